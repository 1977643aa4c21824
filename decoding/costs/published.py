"""Costs that others measured and published, as cost models by name.

They say what rounds would cost there with acceptance measured here: where rows are nearly free,
other arms win than on a processor. A published fit is linear, so nothing is extrapolated.

`llama3.1-8b-h100@32` is what a round takes in which 32 requests have drafts and texts of the same
lengths: one pass verifies all of them, and so a row is dearer beside what a pass costs at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from draftgym.decoding.costs.cost_model import CostModel, Curve, read_cost_model
from draftgym.decoding.drafting import LOOKUPS, MAX_TREE_NODES
from draftgym.decoding.errors import DraftgymError

LONGEST, DEEPEST = 1 << 17, 64


@dataclass(frozen=True)
class LinearCosts:
    """A linear fit, in seconds.

    Attributes:
        source: Where it was published.
        step: Overhead of a round.
        pass_start: A pass, beside
        pass_row: what each of its rows, and
        pass_cached: each cached position takes.
        draft_start: A draft of a drafter's network, however deep it is, beside
        draft_row: what each of its rows, and
        draft_cached: what each cached position takes.
        lookup: Prompt lookup, as a share of a pass of one row.
    """

    source: str
    step: float
    pass_start: float
    pass_row: float
    pass_cached: float
    draft_start: float
    draft_row: float
    draft_cached: float
    lookup: float


PUBLISHED = {
    "llama3.1-8b-h100": LinearCosts(
        source="SpecDecode-Bench (arXiv 2601.11580): Llama-3.1-8B with an EAGLE head on one H100",
        step=1.20683946e-3,
        pass_start=5.88590713e-3,
        pass_row=2.10103129e-5,
        pass_cached=3.92645679e-8,
        draft_start=2.13526175e-3,
        draft_row=8.41429603e-7,
        draft_cached=2.37768493e-9,
        lookup=5.875e-3,
    )
}
"""As their authors reckon: there, the start of a draft is the same for 1, 3 and 5 tokens."""
NOTHING = Curve((0.0, LONGEST), (0.0, 0.0))


def published_costs(name: str) -> LinearCosts:
    """A published fit by name.

    Raises:
        DraftgymError: Nobody published costs of this name.
    """
    if name not in PUBLISHED:
        close = difflib.get_close_matches(name, PUBLISHED, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise DraftgymError(
            f"no published costs are called {name!r}", f"{hint}there are {', '.join(PUBLISHED)}"
        )
    return PUBLISHED[name]


def published_cost_model(name: str, drafters: Iterable[str], requests: int = 1) -> CostModel:
    """A published fit as a cost model of some drafters.

    The cached positions that a drafter's step reads are left out: those of one text take a
    thousandth of it, those of 64 with a thousand positions each 7 %. A server's costs count them
    (`draftgym.decoding.costs.server_costs`).

    Args:
        name: One of `PUBLISHED`.
        drafters: Their names.
        requests: Requests in a round, whose drafts and texts are equally long. Seconds are of all.

    Raises:
        DraftgymError: Nobody published costs of this name.
    """
    costs, names = _of_several(published_costs(name), requests), list(drafters)
    networks = [one for one in names if one not in LOOKUPS]
    rows = (1.0, 1.0 + MAX_TREE_NODES)

    def passing(context: int) -> Curve:
        base = costs.step + costs.pass_start + costs.pass_cached * context
        return Curve(rows, tuple(base + costs.pass_row * row for row in rows))

    def draft(drafter: str, at: tuple[float, ...]) -> Curve:
        if drafter in LOOKUPS:
            seconds = costs.lookup * (costs.pass_start + costs.pass_row)
            return Curve((0.0, 1.0), (seconds, seconds))
        start = costs.draft_start
        return Curve(at, tuple(start + costs.draft_row * row if row else 0.0 for row in at))

    missed = Curve((0.0, LONGEST), (0.0, costs.draft_row * LONGEST))
    return CostModel(
        {"costs": name, "requests": requests, "source": costs.source},
        {context: passing(context) for context in (0, LONGEST)},
        {one: draft(one, (0.0, 1.0, DEEPEST)) for one in names},
        {one: missed if one in networks else NOTHING for one in names},
        {one: {1: draft(one, rows)} for one in names},
    )


def named_cost_model(given: str | Path, drafters: Iterable[str]) -> CostModel:
    """A cost model's file, or published costs by name, such as `llama3.1-8b-h100@32`.

    Raises:
        DraftgymError: It is neither.
    """
    name, at, requests = str(given).partition("@")
    if name in PUBLISHED or not Path(given).exists():
        if at and not (requests.isdecimal() and int(requests)):
            raise DraftgymError(
                f"{str(given)!r} has {requests!r} requests", f"write a number, as in {name}@32"
            )
        return published_cost_model(name, drafters, int(requests or 1))
    return read_cost_model(Path(given), "name a file that this program wrote, or published costs")


def _of_several(costs: LinearCosts, requests: int) -> LinearCosts:
    """What a round takes that several requests share."""
    return replace(
        costs,
        pass_row=requests * costs.pass_row,
        pass_cached=requests * costs.pass_cached,
        draft_row=requests * costs.draft_row,
    )
