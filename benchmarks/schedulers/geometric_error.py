"""How wrong is it that every token of a draft is accepted with the same probability?

    $ python -m benchmarks.schedulers.geometric_error --traces runs/users-heldout

The closed forms reckon with `(1 - a^(L + 1)) / (1 - a)` committed tokens of a draft of L. Here that
is compared with what drafts of L really commit, meaned over all positions of the texts, for every
drafter and category: once with the mean acceptance of the task, which is what the paper knows, and
once with each text's own, which is the most that such a model can know. The end of a text cuts
drafts short, which counts as part of the error, since no scheduler foresees it.

Acceptances are the likeliest ones of these very texts (`draftgym.envs.cell.texts`), so that no
error comes from other prompts. Intervals are bootstraps over texts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.schedulers.tables import Sheet
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.provenance import describe_host, plain
from draftgym.envs.cell.texts import ChainTable
from draftgym.policies.multispin.problem import expected_tokens
from draftgym.rollouts.decode.evaluation import check_writable
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Interval, ratio_of_sums
from draftgym.rollouts.report.table import make_console
from draftgym.rollouts.traces.file import read_traces

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class GeometricErrorArgs:
    """Measure the error of the geometric model.

    Attributes:
        traces: Folder of traces.
        arms: Chains, one per drafter. Default: the longest traced one of every drafter.
        lengths: Draft lengths; those that were not traced are left out.
        json: Write the figures to this file.
        markdown: Write the tables to this file.
    """

    traces: Path = Path("runs/users-heldout")
    arms: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1, 2, 4, 8, 16)
    json: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class ModelError:
    """The model in a group of texts, for one draft length.

    Attributes:
        arm: Whose drafts; `ALL` of all drafters.
        category: Of the texts; `ALL` of all.
        length: Tokens that were asked for.
        committed: True mean of committed tokens per draft.
        of_task: Error of the mean by the task's acceptance, as a share of the true one; above 0 the
            model promises too much.
        of_text: The same by each text's own acceptance.
    """

    arm: str
    category: str
    length: int
    committed: float
    of_task: Interval
    of_text: Interval


@dataclass(frozen=True)
class _Sums:
    """Sums over the positions of single texts `[texts]`, for one drafter and length.

    Attributes:
        true: Committed tokens.
        of_task, of_text: The same by the model.
        positions: How many positions.
    """

    true: Floats
    of_task: Floats
    of_text: Floats
    positions: Floats


def measure(args: GeometricErrorArgs) -> list[ModelError]:
    """Measures, prints the tables and writes the files.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    for path, option in ((args.json, "--json"), (args.markdown, "--markdown")):
        if path is not None:
            check_writable(path, f"name another file with {option}")
    traces = read_traces(args.traces)
    table = ChainTable(traces, args.arms or None)
    errors = model_errors(table, args.lengths)
    shown = sheets(errors)
    for one in shown:
        one.print(make_console())
    if args.json is not None:
        facts = {"traces": traces.origin.describe(), "settings": plain(asdict(args))}
        body = {"environment": facts | describe_host(), "errors": list(map(asdict, errors))}
        args.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        text = "\n\n".join(one.markdown() for one in shown) + "\n"
        args.markdown.write_text(text, encoding="utf-8")
    return errors


def model_errors(table: ChainTable, lengths: Sequence[int]) -> list[ModelError]:
    """The model's error for every drafter, category and length, and over all of them.

    Args:
        table: The texts.
        lengths: Draft lengths.

    Raises:
        DraftgymError: None of the lengths was traced.
    """
    lengths = [length for length in lengths if 1 <= length <= table.longest]
    if not lengths:
        raise DraftgymError(
            "no such draft length was traced", f"give --lengths from 1 to {table.longest}"
        )
    found = []
    for length in lengths:
        each = [_sums(table, arm, length) for arm in range(len(table.arms))]
        whole = _Sums(*(np.concatenate(part) for part in zip(*map(_columns, each), strict=True)))
        for arm, sums in zip(map(str, table.arms), each, strict=True):
            for index, category in enumerate(table.categories):
                found.append(_error(arm, category, length, sums, table.members(index)))
            found.append(_error(arm, ALL, length, sums))
        found.append(_error(ALL, ALL, length, whole))
    order = [*map(str, table.arms), ALL]
    return sorted(found, key=lambda one: order.index(one.arm))


def sheets(errors: Sequence[ModelError]) -> list[Sheet]:
    """What drafts commit and how wrong the model is: a row per group, a column per length."""
    lengths = list(dict.fromkeys(one.length for one in errors))
    title = "Error of the model in the mean of committed tokens, 95 % interval: "
    forms: dict[str, Callable[[ModelError], str]] = {
        "Committed tokens per draft, by its length": lambda one: f"{one.committed:.2f}",
        title + "by the task's mean acceptance": lambda one: _percent(one.of_task),
        title + "by each text's own acceptance": lambda one: _percent(one.of_text),
    }
    return [_sheet(title, lengths, errors, form) for title, form in forms.items()]


def _sheet(
    title: str,
    lengths: Sequence[int],
    errors: Sequence[ModelError],
    form: Callable[[ModelError], str],
) -> Sheet:
    rows: dict[str, list[str]] = {}
    for one in errors:
        group = ALL if one.arm == ALL else f"{one.arm}, {one.category}"
        rows.setdefault(group, [group]).append(form(one))
    bold = frozenset(index for index, group in enumerate(rows) if group.endswith(ALL))
    return Sheet(title, ["drafts", *map(str, lengths)], list(rows.values()), bold)


def _sums(table: ChainTable, arm: int, length: int) -> _Sums:
    """What the model and the traces say of one drafter's drafts of this length."""
    sizes = table.last - table.first  # a text's last row has no round
    rows = np.concatenate(
        [np.arange(a, b) for a, b in zip(table.first.tolist(), table.last.tolist(), strict=True)]
    )
    who = np.full(len(rows), arm)
    committed = table.committed(who, rows, table.drafted(who, rows, np.full(len(rows), length)))
    category = np.zeros(len(sizes), np.int64)
    for index in range(len(table.categories)):
        category[table.members(index)] = index
    task = table.task_acceptance()[table.task(np.full(len(sizes), arm), category)]
    return _Sums(
        true=np.add.reduceat(committed, np.append(0, sizes.cumsum()[:-1])).astype(float),
        of_task=sizes * expected_tokens(task, length),
        of_text=sizes * expected_tokens(table.text_acceptance()[arm], length),
        positions=sizes.astype(float),
    )


def _error(
    arm: str, category: str, length: int, sums: _Sums, texts: NDArray[np.int64] | None = None
) -> ModelError:
    """The error in these texts; None takes all."""
    true, of_task, of_text, positions = (
        column if texts is None else column[texts] for column in _columns(sums)
    )
    errors = [_less_one(list(zip(one, true, strict=True))) for one in (of_task, of_text)]
    return ModelError(arm, category, length, float(true.sum() / positions.sum()), *errors)


def _columns(sums: _Sums) -> tuple[Floats, Floats, Floats, Floats]:
    return sums.true, sums.of_task, sums.of_text, sums.positions


def _less_one(parts: Sequence[tuple[float, float]]) -> Interval:
    ratio = ratio_of_sums(parts)
    return Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1)


def _percent(error: Interval) -> str:
    return f"{error.value:+.1%}\n({error.low:+.0%} to {error.high:+.0%})"


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(GeometricErrorArgs, description=__doc__))
