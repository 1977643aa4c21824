"""What a scheduler may know of its cell: one row of numbers per user, and a few of the cell.

Everything is known to a real server before it decides: what it verified, where the text stands,
what devices and their latest channel reports say. Times are in units of a pass over all who are
there without drafts, so that one policy fits slow and fast cells, and shares of the band are equal
ones among them: a place that nobody has taken changes nothing. Its row is 0.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from draftgym.decoding.observers.observation import TEXT_SIGNALS, Observation
from draftgym.envs.cell.state import CellState
from draftgym.envs.cell.users import RECENT
from draftgym.envs.radio.radio import known_efficiency
from draftgym.policies.multispin.uplink import Floats

USER_FEATURES = (
    "active",
    "deciding",
    "task_acceptance",
    "acceptance",
    "judged",
    "average_acceptance",
    *(f"{what}_{age}" for age in range(1, RECENT + 1) for what in ("drafted", "accepted")),
    *TEXT_SIGNALS,
    "confidence",
    "token_seconds",
    "sending_seconds",
    "snr",
    "context",
    "remaining",
    "rate",
    "planned",
    "arrives_in",
)
"""Names of the numbers of a user, in order."""

CELL_FEATURES = ("active", "pass_seconds", "seconds_per_user", "seconds_per_token")
"""Names of the numbers of the cell, in order."""

LIMIT = 10.0
"""No number is larger, or smaller than its negative: fades have no bound."""


def scheduler_observation_space(users: int) -> spaces.Dict:
    """Space of `observe_cell` for one cell.

    Args:
        users: Places, K.
    """
    return spaces.Dict(
        {
            "users": spaces.Box(-LIMIT, LIMIT, (users, len(USER_FEATURES)), np.float32),
            "cell": spaces.Box(-LIMIT, LIMIT, (len(CELL_FEATURES),), np.float32),
        }
    )


def observe_cell(cell: CellState) -> Observation:
    """Observations of n cells: `users` `[n, K, features]` and `cell` `[n, features]`, float32."""
    per_user = np.stack([*_acceptance(cell), *_text(cell), *_hardware(cell), *_flight(cell)], -1)
    active = cell.users.active
    seen = np.where(active[..., None], np.clip(per_user, -LIMIT, LIMIT), 0.0)
    law, (present, unit) = cell.verification, _unit(cell)
    features = (
        np.log1p(active.sum(-1)),
        np.log(unit),
        present * law.per_user / unit,
        present * law.per_token / unit,
    )
    whole = np.stack(features, axis=-1)
    whole = np.clip(whole, -LIMIT, LIMIT)
    return {"users": seen.astype(np.float32), "cell": whole.astype(np.float32)}


def _unit(cell: CellState) -> tuple[Floats, Floats]:
    """Users who are there, at least 1, and seconds of a pass over them without drafts `[n]`."""
    present = np.maximum(cell.users.active.sum(-1), 1).astype(float)
    return present, cell.verification.seconds(present, 0)


def _acceptance(cell: CellState) -> list[Floats]:
    """What is known of acceptance."""
    users = cell.users
    given = users.means[users.task]
    judged = users.posterior.judged
    assert judged is not None  # Users has begun it
    rounds = users.recent.reshape(*cell.shape, -1) / cell.longest
    return [
        users.active.astype(float),
        cell.deciding.astype(float),
        given,
        users.posterior.estimate(given),
        np.log1p(judged) / 4,
        users.average.estimate(given),
        *np.moveaxis(rounds, -1, 0),
    ]


def _text(cell: CellState) -> list[NDArray[np.float32]]:
    """The target's confidence in the newest token, and the drafter's in the next one."""
    users, table = cell.users, cell.table
    told = cell.deciding & (cell.settings.confidence | (users.token_seconds == 0))
    confidence = table.confidence(users.arm, users.row, told)
    return [*np.moveaxis(table.signals[users.row], -1, 0), confidence]


def _hardware(cell: CellState) -> list[Floats]:
    """Devices, channels as reported, and positions."""
    users, (present, unit) = cell.users, (one[:, None] for one in _unit(cell))
    efficiency = known_efficiency(cell.band, cell.reported, 1 / present)
    sending = cell.payload.bits_per_token / (efficiency * cell.band.hertz / present)
    decibels = 10 * np.log10(np.maximum(cell.reported, 1e-12))
    return [
        np.log1p(users.token_seconds * cell.longest / unit),
        np.log1p(sending * cell.longest / unit),
        decibels / 20,
        np.log1p(users.context) / 8,
        cell.table.remaining[users.row] / cell.table.limit,
    ]


def _flight(cell: CellState) -> list[Floats]:
    """How users have been served, and what is under way."""
    users = cell.users
    mean = (users.rates * users.active).sum(-1) / np.maximum(users.active.sum(-1), 1)
    flying, arrival = cell.uploads.in_flight, cell.uploads.arrival
    until = np.where(flying, arrival - cell.clock[:, None], 0.0)
    return [
        np.log(users.rates / np.maximum(mean, 1e-12)[:, None]),
        np.where(flying, cell.uploads.planned, 0) / cell.longest,
        np.sign(until) * np.log1p(np.abs(until) / _unit(cell)[1][:, None]),
    ]
