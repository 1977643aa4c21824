"""The cost model: what each piece of a round costs on this host.

Wall-clock is true but noisy, so environments reward with a calibrated model: the median cost of
verifying (target pass, verdict, commit) by rows and context, of each drafter by draft length and by
the depth and node budget of trees, and of catching up by backlog
(`draftgym.decoding.costs.calibration` measures them). One *target step* (a round of plain
decoding) is the unit of latency.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draftgym.decoding.arms import Asking
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import parse_json, write_text


@dataclass(frozen=True)
class Curve:
    """A measured cost over one variable, linear in between.

    Below what was measured the nearest cost counts; beyond it costs go on along the last measured
    slope, and never fall.

    Attributes:
        at: Ascending arguments.
        seconds: Median cost at each.
    """

    at: tuple[float, ...]
    seconds: tuple[float, ...]

    def __call__(self, x: float) -> float:
        """Cost at `x` in seconds."""
        return _interpolate(x, self.at, self.seconds)


@dataclass(frozen=True)
class CostModel:
    """Costs of the pieces of a round, in seconds.

    Attributes:
        host: Where it was measured: dtype, threads, target, drafters.
        target_pass: For each measured context, the cost of verifying by rows of the pass.
        draft: Per drafter, cost of drafting by length.
        catch_up: Per drafter, cost of encoding a backlog by its positions.
        trees: Per drafter that draws them, for each measured depth, the cost of drawing a tree by
            its node budget.
    """

    host: dict[str, Any]
    target_pass: dict[int, Curve]
    draft: dict[str, Curve]
    catch_up: dict[str, Curve]
    trees: dict[str, dict[int, Curve]] = field(default_factory=dict)

    def target_seconds(self, rows: int, context: int) -> float:
        """Cost of a pass over `rows` new rows behind `context` cached positions, and its commit."""
        return _between(self.target_pass, context, rows)

    def step_seconds(self, context: int) -> float:
        """One target step: the cost of a token in plain decoding."""
        return self.target_seconds(1, context)

    def draft_seconds(self, asked: Asking) -> float:
        """Cost of drafting with an arm of one drafter, without catching up."""
        arm = asked.arm
        if arm.nodes is None:
            return self.draft[arm.drafter](asked.drafted)
        if not asked.depth:  # no room was left, and nobody was asked
            return 0.0
        if arm.drafter not in self.trees:
            raise DraftgymError(
                f"the cost model knows no costs of {arm.drafter}'s trees (arm {str(arm)!r})",
                "measure it again with this version, or leave the arm out",
            )
        return _between(self.trees[arm.drafter], asked.depth, arm.nodes)

    def round_seconds(self, asked: Sequence[Asking], drafted: int, context: int) -> float:
        """Cost of a round.

        Args:
            asked: What each drafter did that was asked.
            drafted: Tokens that were verified.
            context: Positions in the target's cache.
        """
        seconds = self.target_seconds(1 + drafted, context)
        for one in asked:
            seconds += self.draft_seconds(one)
            seconds += self.catch_up[one.arm.drafter](one.caught_up)
        return seconds

    def reach(self) -> dict[str, int]:
        """Up to where passes and catching up were measured; costs beyond are extrapolated."""
        backlogs = [int(curve.at[-1]) for curve in self.catch_up.values() if curve.at]
        reach = {"positions of context": max(self.target_pass, default=0)}
        return reach | ({"positions to catch up on": min(backlogs)} if backlogs else {})

    def sureness(self) -> dict[str, Any]:
        """What files of figures say of the costs: how often and how far they were measured."""
        told = {key: self.host.get(key) for key in ("timings", "spread", "interpolated")}
        return {**told, "measured_to": self.reach()}

    def to_json(self) -> str:
        """The model as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> CostModel:
        """Reads `to_json`'s text.

        Raises:
            DraftgymError: The text is not a cost model.
        """

        def curve(body: dict[str, list[float]]) -> Curve:
            return Curve(tuple(body["at"]), tuple(body["seconds"]))

        def curves(body: dict[str, Any]) -> dict[int, Curve]:
            return {int(at): curve(c) for at, c in body.items()}

        try:
            body = parse_json(text, "not a cost model: it", "measure it again: delete this file")
            return cls(
                body["host"],
                curves(body["target_pass"]),
                {name: curve(c) for name, c in body["draft"].items()},
                {name: curve(c) for name, c in body["catch_up"].items()},
                {name: curves(c) for name, c in body["trees"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DraftgymError(
                f"not a cost model: {error!r}", "measure it again: delete this file"
            ) from error


def _between(curves: Mapping[int, Curve], at: float, x: float) -> float:
    """The cost at `x` of curves that were measured at several values of another variable."""
    ordered = sorted(curves)
    return _interpolate(at, ordered, [curves[known](x) for known in ordered])


def _interpolate(x: float, at: Sequence[float], values: Sequence[float]) -> float:
    """As `Curve` says; numpy would spend most of its time on making arrays."""
    right = bisect_right(at, x)
    if right == 0:
        return values[0]
    if right == len(at):
        return values[-1] + slope_beyond(at, values) * (x - at[-1])
    part = (x - at[right - 1]) / (at[right] - at[right - 1])
    return values[right - 1] + part * (values[right] - values[right - 1])


def slope_beyond(at: Sequence[float], values: Sequence[float]) -> float:
    """How much a cost grows per unit beyond the last measured point; never below 0."""
    if len(at) < 2:
        return 0.0
    return max(0.0, (values[-1] - values[-2]) / (at[-1] - at[-2]))


_told: set[tuple[str, int]] = set()


def note_extrapolation(model: CostModel, longest: int) -> None:
    """Says on standard error, once for each reach, that figures rest on extrapolated costs.

    Args:
        model: The costs.
        longest: Positions of the longest text that they are asked about.
    """
    reach = model.reach()
    beyond = {what: most for what, most in reach.items() if longest > most}
    new = beyond.items() - _told
    if new:
        _told.update(new)
        known = " and ".join(f"{most} {what}" for what, most in sorted(beyond.items()))
        print(
            f"note: costs were measured up to {known}; beyond (texts have up to {longest} "
            "positions) they go on along the measured slope",
            file=sys.stderr,
        )


def write_cost_model(model: CostModel, path: Path) -> None:
    """Writes a cost model beside a run, so that its rewards can be reproduced."""
    write_text(path, model.to_json())


def read_cost_model(path: Path, remedy: str) -> CostModel:
    """Reads a cost model's file.

    Args:
        path: The file.
        remedy: What the user can do when it is damaged.

    Raises:
        DraftgymError: It cannot be read, or is no cost model.
    """
    try:
        return CostModel.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DraftgymError) as error:
        problem = error.problem if isinstance(error, DraftgymError) else str(error)
        raise DraftgymError(f"{path}: {problem}", remedy) from error
