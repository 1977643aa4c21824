"""A host that was measured by hand: its passes, and what drafting takes."""

from __future__ import annotations

from draftgym.decoding.costs.batch_cost import BatchCost
from draftgym.decoding.costs.cost_model import CostModel, Curve
from draftgym.envs.cell.host import MeasuredHost

USERS, ROWS = (1, 4, 16), (1, 9, 17)
FACTS = {"target": "tiny", "dtype": "float32", "threads": 1, "cpu": "a processor"}


def handmade_host(rounding: float = 0.0) -> MeasuredHost:
    """A pass takes 10 ms, 2 ms a user and 1 ms a drafted token; small drafts 5 ms a token."""
    grid = [[0.01 + n * (0.002 + 0.001 * (rows - 1)) for rows in ROWS] for n in USERS]
    grid[0][0] += rounding
    batches = BatchCost({}, (64,), USERS, ROWS, (tuple(map(tuple, grid)),))
    drafting = {"small": Curve((1.0, 8.0), (0.01, 0.04)), "ngram": Curve((1.0, 8.0), (0.0, 0.0))}
    return MeasuredHost(batches, CostModel({}, {}, drafting, {}), FACTS)
