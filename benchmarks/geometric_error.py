"""How wrong is it that every token of a draft is accepted with the same probability?

    $ python -m benchmarks.geometric_error --traces runs/users-heldout

The closed forms reckon with `(1 - a^(L + 1)) / (1 - a)` committed tokens of a draft of L. Here that
is compared with what drafts of L really commit, meaned over all positions of the texts, for every
drafter and category: once with the mean acceptance of the task, which is what the paper knows, and
once with each text's own, which is the most that such a model can know. The end of a text cuts
drafts short, which counts as part of the error, since no scheduler foresees it.

Acceptances are the likeliest ones of these very texts (`rollouts.chains`), so that no error comes
from other prompts. Intervals are bootstraps over texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.scheduler_tables import Sheet
from decoding.errors import DraftgymError, exit_on_user_error
from decoding.multiuser import expected_tokens
from decoding.provenance import describe_host, plain
from rollouts.chains import ChainTable
from rollouts.evaluation import check_writable
from rollouts.report import ALL
from rollouts.statistics import Interval, ratio_of_sums
from rollouts.table import make_console
from rollouts.trace_file import read_traces

Floats = NDArray[np.float64]
HEAD = ("drafter", "category", "draft", "committed", "by the task's mean", "by each text's own")


@dataclass(frozen=True, kw_only=True)
class GeometricErrorArgs:
    """Measure the error of the geometric model.

    Attributes:
        traces: Folder of traces.
        arms: Chains, one per drafter. Default: the longest traced one of every drafter.
        lengths: Draft lengths; those that were not traced are left out.
        json: Write the figures to this file.
        markdown: Write the table to this file.
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
    """Measures, prints the table and writes the files.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    for path, option in ((args.json, "--json"), (args.markdown, "--markdown")):
        if path is not None:
            check_writable(path, f"name another file with {option}")
    traces = read_traces(args.traces)
    table = ChainTable(traces, args.arms or None)
    errors = model_errors(table, args.lengths)
    shown = sheet(errors)
    shown.print(make_console())
    if args.json is not None:
        facts = {"traces": traces.origin.describe(), "settings": plain(asdict(args))}
        body = {"environment": facts | describe_host(), "errors": list(map(asdict, errors))}
        args.json.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    if args.markdown is not None:
        args.markdown.write_text(shown.markdown() + "\n", encoding="utf-8")
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


def sheet(errors: Sequence[ModelError]) -> Sheet:
    """The table of all errors."""
    title = "Error of the geometric model in the mean of committed tokens, with its 95 % interval"
    ordered = sorted(errors, key=lambda one: one.category == ALL)  # stable: totals come last
    ordered.sort(key=lambda one: one.arm == ALL)
    rows = [
        [one.arm, one.category, str(one.length), f"{one.committed:.2f}"]
        + [_percent(error) for error in (one.of_task, one.of_text)]
        for one in ordered
    ]
    bold = frozenset(index for index, one in enumerate(ordered) if one.arm == ALL)
    return Sheet(title, HEAD, rows, bold)


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
    return f"{error.value:+.1%} ({error.low:+.1%} to {error.high:+.1%})"


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(GeometricErrorArgs, description=__doc__))
