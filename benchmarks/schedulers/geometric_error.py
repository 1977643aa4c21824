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

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from benchmarks.report import Cell, Json, Table, each, ends
from benchmarks.results import Result, check, finish
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.envs.cell.texts import ChainTable
from draftgym.policies.multispin.problem import expected_tokens
from draftgym.rollouts.report.rows import ALL
from draftgym.rollouts.report.statistics import Interval, ratio_of_sums
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
    """

    traces: Path = Path("runs/users-heldout")
    arms: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (1, 2, 4, 8, 16)
    json: Path | None = None


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


def measure(args: GeometricErrorArgs) -> Result:
    """Measures, shows and writes the figures.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check(args)
    traces = read_traces(args.traces)
    errors = model_errors(ChainTable(traces, args.arms or None), args.lengths)
    figures = {"errors": list(map(asdict, errors))}
    return finish(tables, args, figures, facts={"traces": traces.origin.describe()})


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
        sums = [_sums(table, arm, length) for arm in range(len(table.arms))]
        for arm, mine in zip(map(str, table.arms), sums, strict=True):
            for index, category in enumerate(table.categories):
                found.append(_error(arm, category, length, mine[:, table.members(index)]))
            found.append(_error(arm, ALL, length, mine))
        found.append(_error(ALL, ALL, length, np.concatenate(sums, axis=1)))
    order = [*map(str, table.arms), ALL]
    return sorted(found, key=lambda one: order.index(one.arm))


def tables(result: Json) -> list[Table]:
    """What drafts commit and how wrong the model is: a row per group, a column per length."""
    groups: dict[str, dict[str, Json]] = {}
    for one in result["errors"]:
        group = ALL if one["arm"] == ALL else f"{one['arm']}, {one['category']}"
        groups.setdefault(group, {})[str(one["length"])] = one
    lengths = list(groups[ALL])
    title = "Error of the model in the mean of committed tokens, 95 % interval: "
    forms: dict[str, Cell] = {
        "Committed tokens per draft, by its length": lambda one: f"{one['committed']:.2f}",
        title + "by the task's mean acceptance": lambda one: _percent(one["of_task"]),
        title + "by each text's own acceptance": lambda one: _percent(one["of_text"]),
    }
    return [
        Table.named(what, "drafts", groups, each(lengths, partial(_at, tell)))
        for what, tell in forms.items()
    ]


def _at(tell: Cell, group: Json, length: str) -> str:
    return tell(group[length])


def _sums(table: ChainTable, arm: int, length: int) -> Floats:
    """Sums over the positions of each text `[4, texts]`, for one drafter and draft length.

    Committed tokens in truth, by the task's acceptance and by the text's own; and the positions.
    """
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
    true = np.add.reduceat(committed, np.append(0, sizes.cumsum()[:-1]))
    of_task, of_text = (
        sizes * expected_tokens(one, length) for one in (task, table.text_acceptance()[arm])
    )
    return np.stack([true, of_task, of_text, sizes]).astype(float)


def _error(arm: str, category: str, length: int, sums: Floats) -> ModelError:
    true, of_task, of_text, positions = sums
    errors = [_less_one(list(zip(one, true, strict=True))) for one in (of_task, of_text)]
    return ModelError(arm, category, length, float(true.sum() / positions.sum()), *errors)


def _less_one(parts: Sequence[tuple[float, float]]) -> Interval:
    ratio = ratio_of_sums(parts)
    return Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1)


def _percent(error: Json) -> str:
    value, low, high = ends(error)
    return f"{value:+.1%}\n({low:+.0%} to {high:+.0%})"


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(GeometricErrorArgs, description=__doc__))
