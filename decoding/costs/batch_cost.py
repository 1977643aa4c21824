"""What verifying several drafts in one ragged pass costs on this host.

The cost model (`draftgym.decoding.costs.cost_model`) times the passes of one session. A server
verifies many users at once; `measure_batches` times that, with the project's own verification
(pass, verdict, commit), for equal drafts. The rows of all users are packed for the linear layers
and nothing is padded, so a batch of unequal drafts is taken to cost what equal drafts with as many
rows in all do.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from draftgym.decoding.costs.calibration import measured_host
from draftgym.decoding.costs.measuring import median_seconds
from draftgym.decoding.costs.pieces import ROOM, fitting_contexts, random_session
from draftgym.decoding.costs.timed_rounds import Piece, verification
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.target import Target
from draftgym.decoding.session import Session

USERS = (1, 2, 4, 8, 16)
ROWS_EACH = (1, 2, 4, 9, 17)
CONTEXTS = (64, 256, 640)

AGAIN = "measure it again: delete this file"


@dataclass(frozen=True)
class BatchCost:
    """Seconds of a verification pass by context, users and rows; linear between what was measured.

    Attributes:
        host: Where it was measured.
        contexts: Ascending numbers of cached positions `[C]`.
        users: Ascending numbers of users, from 1 `[U]`.
        rows_each: Ascending numbers of rows of each user, from 1 `[R]`.
        seconds: Medians, `[C][U][R]`.
    """

    host: dict[str, Any]
    contexts: tuple[int, ...]
    users: tuple[int, ...]
    rows_each: tuple[int, ...]
    seconds: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        axes = (self.contexts, self.users, self.rows_each)
        ascending = all(list(axis) == sorted(set(axis)) for axis in axes)
        if not ascending or (*self.users[:1], *self.rows_each[:1]) != (1, 1):
            raise ValueError("axes must ascend, those of users and rows from 1")
        if self._grid.shape != tuple(map(len, axes)):
            raise ValueError("the seconds do not fit their axes")

    @cached_property
    def _grid(self) -> NDArray[np.float64]:
        return np.array(self.seconds, float)

    def __call__(
        self, users: ArrayLike, rows: ArrayLike, context: ArrayLike
    ) -> NDArray[np.float64]:
        """Seconds of passes.

        Args:
            users: Users in each pass, at least 1, any shape.
            rows: Rows of each pass in all: a user has one more than it drafted.
            context: Mean number of cached positions; beyond those measured seconds go on along
                the last measured slope and never fall, as those of the cost model do.

        Raises:
            DraftgymError: More users, or more rows per user, than were measured.
        """
        users, rows = np.asarray(users, float), np.asarray(rows, float)
        context, last = np.asarray(context, float), self.contexts[-1]
        each = rows / users
        self._require("users", users, self.users)
        self._require("rows of a user", each, self.rows_each)
        total = self._inside(users, each, np.minimum(context, last))
        if len(self.contexts) > 1 and (context > last).any():
            before = self.contexts[-2]
            ends = (self._inside(users, each, np.array(float(at))) for at in (last, before))
            slope = np.maximum(np.subtract(*ends), 0) / (last - before)
            total = total + slope * np.maximum(context - last, 0)
        return total

    def _inside(
        self,
        users: NDArray[np.float64],
        each: NDArray[np.float64],
        context: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Seconds, linear between what was measured and flat outside."""
        places = [
            _place(context, self.contexts),
            _place(users, self.users),
            _place(each, self.rows_each),
        ]
        total = np.zeros(np.broadcast_shapes(users.shape, each.shape, context.shape))
        for corner in itertools.product((0, 1), repeat=3):
            index, weight = [], np.ones(())
            for (low, part, top), up in zip(places, corner, strict=True):
                index.append(np.minimum(low + up, top))
                weight = weight * (part if up else 1 - part)
            total += weight * self._grid[tuple(index)]
        return total

    def _require(self, what: str, asked: NDArray[np.float64], known: Sequence[int]) -> None:
        if asked.size and asked.max() > known[-1]:
            raise DraftgymError(
                f"a pass with {asked.max():g} {what}; only up to {known[-1]} were measured",
                "measure larger batches, or serve fewer users or shorter drafts",
            )

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> BatchCost:
        """Reads `to_json`'s text.

        Raises:
            DraftgymError: The text is no such thing.
        """
        try:
            body = parse_json(
                text, "not a cost of batches: it", "measure it again: delete this file"
            )
            contexts, users, rows_each = (
                tuple(map(int, body[name])) for name in ("contexts", "users", "rows_each")
            )
            seconds = tuple(
                tuple(tuple(map(float, row)) for row in table) for table in body["seconds"]
            )
            return cls(body["host"], contexts, users, rows_each, seconds)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DraftgymError(f"not a cost of batches: {error!r}", AGAIN) from error


def _place(x: ArrayLike, axis: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Where `x` lies on an axis: the point below, the part of the way to the next, the last."""
    place = np.interp(np.asarray(x, float), axis, np.arange(len(axis)))
    low = np.floor(place).astype(np.int64)
    return low, place - low, len(axis) - 1


def _rested(pause: float, sessions: Sequence[Session], rows: Sequence[int]) -> Piece:
    time.sleep(pause)
    return verification(sessions, rows)


def measure_batches(
    target: Target,
    users: Sequence[int] = USERS,
    rows_each: Sequence[int] = ROWS_EACH,
    contexts: Sequence[int] = CONTEXTS,
    repeats: int = 5,
    pause: float = 0.0,
) -> BatchCost:
    """Times verification passes of several users on this host; takes minutes on a real one.

    Args:
        target: The target.
        users: Numbers of users; 1 is added.
        rows_each: Rows of each user, drafted tokens and one; 1 is added.
        contexts: Cached positions, shortened to what the target can attend to.
        repeats: Timings per point, after one warm-up; the median counts.
        pause: Seconds of rest before each: a processor that has waited is slower at first.
    """
    users, rows_each = sorted({1, *users}), sorted({1, *rows_each})
    room = max(ROOM, rows_each[-1] + 1)
    contexts = fitting_contexts(target, {}, contexts, room)
    sessions = [random_session(target, {}, contexts[-1], room) for _ in range(users[-1])]
    grid = np.zeros((len(contexts), len(users), len(rows_each)))
    for at in reversed(range(len(contexts))):  # rolling back only ever shortens the texts
        for session in sessions:
            session.roll_back(contexts[at] + 1)
        points = list(itertools.product(users, rows_each))
        runs = {
            (count, rows): partial(_rested, pause, sessions[:count], [rows] * count)
            for count, rows in points
        }
        seconds = median_seconds(runs, repeats, partial(clock, target.device))
        grid[at] = np.reshape([seconds[point] for point in points], grid.shape[1:])
    return BatchCost(
        measured_host(target, {}),
        tuple(contexts),
        tuple(users),
        tuple(rows_each),
        tuple(tuple(map(tuple, table)) for table in grid.tolist()),
    )
