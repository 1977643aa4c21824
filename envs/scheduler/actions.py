"""How a scheduler's actions become plans, and plans become actions.

Environments of one cell and training over many read actions with this module alone.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.state import CellState
from draftgym.policies.multispin.channels import tilt
from draftgym.policies.multispin.curves import belief_plan
from draftgym.policies.multispin.problem import Plan, nearest_lengths
from draftgym.policies.multispin.uplink import Floats


class Actions(Protocol):
    """A kind of action.

    Args:
        users: Places, K.
        longest: Longest draft.

    Attributes:
        space: Space of the action of one cell.
    """

    space: spaces.Space[Any]

    def __init__(self, users: int, longest: int) -> None: ...

    def plan(self, cell: CellState, actions: NDArray[Any]) -> Plan:
        """Plans of n cells, from actions of their space `[n, ...]`."""

    def actions(self, plan: Plan) -> NDArray[Any]:
        """Actions that stand for plans `[n, K]`, as far as there are such."""

    def masks(self, cell: CellState) -> NDArray[np.bool_]:
        """Which entries matter `[n, ...]`."""


class LengthActions:
    """Draft lengths; the band is divided by the optimal rule. See `Actions`."""

    def __init__(self, users: int, longest: int) -> None:
        self._longest = longest
        self.space: spaces.Space[Any] = spaces.MultiDiscrete(np.full(users, longest + 1))

    def plan(self, cell: CellState, actions: NDArray[Any]) -> Plan:
        """Plans of n cells from lengths `[n, K]`."""
        return cell.best_plan(actions.astype(np.int64))

    def actions(self, plan: Plan) -> NDArray[Any]:
        """Lengths of plans; their shares are lost."""
        return np.asarray(plan.lengths)

    def masks(self, cell: CellState) -> NDArray[np.bool_]:
        """Flat masks of all lengths `[n, K * (longest + 1)]`; where nobody decides, 0 alone."""
        allowed = np.repeat(cell.deciding[..., None], self._longest + 1, axis=-1)
        allowed[..., 0] = True
        return allowed.reshape(cell.count, -1)


class BeliefActions:
    """What acceptance to reckon with; lengths and shares follow by a closed form. See `Actions`.

    The coordination of users, of which a round that waits for the slowest needs much, is thus left
    to optimisation, and what cannot be derived, how sure to be of each user's next tokens, to the
    agent. See `draftgym.envs.scheduler.env.SchedulerBeliefEnv`.
    """

    def __init__(self, users: int, longest: int) -> None:
        self._longest = longest
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (users,), np.float32)

    def plan(self, cell: CellState, actions: NDArray[Any]) -> Plan:
        """Plans of n cells from numbers in [-1, 1] `[n, K]`: acceptances, -1 being 0."""
        planned = belief_plan(cell.problem(), actions, self._longest)
        return cell.best_plan(planned.lengths)

    def actions(self, plan: Plan) -> NDArray[Any]:
        """There is no belief that stands for given lengths.

        Raises:
            DraftgymError: Always.
        """
        raise DraftgymError(
            "draft lengths cannot be said as beliefs", "play them in draftgym/Scheduler-v0"
        )

    def masks(self, cell: CellState) -> NDArray[np.bool_]:
        """Whose entries matter `[n, K]`."""
        return cell.deciding


class TiltActions(BeliefActions):
    """Beliefs about acceptance, from which lengths follow, and a residual on the optimal division.

    A tilt of 0 takes a user's report as it is, and the plan is that of `BeliefActions`. See
    `Actions` and `draftgym.envs.scheduler.env.SchedulerTiltEnv`.
    """

    def __init__(self, users: int, longest: int) -> None:
        super().__init__(users, longest)
        self.space = spaces.Box(-1.0, 1.0, (2 * users,), np.float32)

    def plan(self, cell: CellState, actions: NDArray[Any]) -> Plan:
        """Plans of n cells from acceptances, then tilts `[n, 2 K]`."""
        beliefs, tilts = np.split(np.asarray(actions, float), 2, axis=-1)
        planned = belief_plan(cell.problem(), beliefs, self._longest)
        reckoned = tilt(cell.reported, np.where(cell.deciding, tilts, 0.0))
        return cell.best_plan(planned.lengths, reckoned)

    def masks(self, cell: CellState) -> NDArray[np.bool_]:
        """Whose entries matter `[n, 2 K]`."""
        return np.tile(cell.deciding, 2)


class ShareActions:
    """Draft lengths and shares in one box, as agents for continuous actions want it.

    See `Actions` and `draftgym.envs.scheduler.env.SchedulerSharesEnv`.
    """

    def __init__(self, users: int, longest: int) -> None:
        self._longest = longest
        self.space: spaces.Space[Any] = spaces.Box(-1.0, 1.0, (2 * users,), np.float32)

    def plan(self, cell: CellState, actions: NDArray[Any]) -> Plan:
        """Plans of n cells from lengths and shares `[n, 2 K]`."""
        lengths, weights = np.split(np.asarray(actions, float), 2, axis=-1)
        whole = nearest_lengths(lengths, self._longest)
        drafting = cell.deciding & (whole > 0)
        shares = onto_simplex((weights + 1) / 2, drafting | cell.sending)
        return Plan(np.where(drafting, whole, 0), shares)

    def actions(self, plan: Plan) -> NDArray[Any]:
        """Lengths and shares of plans; what is in turn cannot be said."""
        parts = np.concatenate([plan.lengths / self._longest, plan.shares], axis=-1)
        return np.asarray(2 * parts - 1, np.float32)

    def masks(self, cell: CellState) -> NDArray[np.bool_]:
        """Whose entries matter `[n, 2 K]`."""
        return np.concatenate([cell.deciding, cell.deciding | cell.sending], axis=-1)


def onto_simplex(weights: Floats, sending: NDArray[np.bool_]) -> Floats:
    """The nearest shares with sum 1 of those who send `[..., K]`; 0 for the others.

    Euclidean projection: what exceeds is taken from everybody alike, and who would fall below 0
    gets nothing (Held, Wolfe and Crowder 1974).

    Args:
        weights: Any finite numbers `[..., K]`.
        sending: Who sends.
    """
    least = weights.min(axis=-1, keepdims=True, initial=0.0) - 2.0  # below every threshold
    masked = np.where(sending, weights, least)
    falling = -np.sort(-masked, axis=-1)
    count = np.arange(1, weights.shape[-1] + 1)
    excess = (falling.cumsum(axis=-1) - 1.0) / count
    senders = sending.sum(axis=-1, keepdims=True)
    inside = (falling > excess) & (count <= senders)
    last = np.maximum(inside.sum(axis=-1, keepdims=True) - 1, 0)
    shares = np.maximum(masked - np.take_along_axis(excess, last, axis=-1), 0.0)
    return np.where(sending, shares, 0.0)
