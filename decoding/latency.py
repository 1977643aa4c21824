"""The cost model: what each piece of a round costs on this host.

Wall-clock is true but noisy, so environments reward with a calibrated model: `calibrate` measures
the median cost of a target pass by rows and context, of each drafter by draft length, and of
catching up by backlog. One *target step* (a pass over one row) is the unit of latency.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from decoding.arms import Arm
from decoding.drafting import Drafter, DraftShape
from decoding.embedded import cache_folder
from decoding.errors import DraftgymError
from decoding.session import Session
from decoding.target import Target
from decoding.transformer import NewRows
from decoding.verification import GreedyRule, VerificationRule

ROWS = (1, 2, 3, 5, 9, 17)
CONTEXTS = (64, 256, 640)
BACKLOGS = (1, 8, 64, 256)
LENGTHS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Curve:
    """A measured cost over one variable, linear in between and flat outside.

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
        target_pass: For each measured context, the cost of a pass over its number of rows.
        draft: Per drafter, cost of drafting by length.
        catch_up: Per drafter, cost of encoding a backlog by its positions.
    """

    host: dict[str, Any]
    target_pass: dict[int, Curve]
    draft: dict[str, Curve]
    catch_up: dict[str, Curve]

    def target_seconds(self, rows: int, context: int) -> float:
        """Cost of a target pass over `rows` new rows behind `context` cached positions."""
        contexts = sorted(self.target_pass)
        costs = [self.target_pass[c](rows) for c in contexts]
        return _interpolate(context, contexts, costs)

    def step_seconds(self, context: int) -> float:
        """One target step: the cost of a token in plain decoding."""
        return self.target_seconds(1, context)

    def round_seconds(self, arm: Arm, drafted: int, context: int, caught_up: int) -> float:
        """Cost of a round.

        Args:
            arm: What was chosen.
            drafted: Tokens it proposed (an n-gram match may be shorter than its length).
            context: Positions in the target's cache.
            caught_up: Positions the drafter encoded first.
        """
        seconds = self.target_seconds(1 + drafted, context)
        if arm.drafts:
            seconds += self.draft[arm.drafter](drafted) + self.catch_up[arm.drafter](caught_up)
        return seconds

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

        try:
            body = json.loads(text)
            return cls(
                body["host"],
                {int(context): curve(c) for context, c in body["target_pass"].items()},
                {name: curve(c) for name, c in body["draft"].items()},
                {name: curve(c) for name, c in body["catch_up"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DraftgymError(
                f"not a cost model: {error!r}", "measure it again: delete this file"
            ) from error


def _interpolate(x: float, at: Sequence[float], values: Sequence[float]) -> float:
    """Linear in between, flat outside; numpy would spend most of its time on making arrays."""
    right = bisect_right(at, x)
    if right == 0 or right == len(at):
        return values[max(0, right - 1)]
    part = (x - at[right - 1]) / (at[right] - at[right - 1])
    return values[right - 1] + part * (values[right] - values[right - 1])


class PrefixView:
    """A session as it was when it had only its first `length` tokens (a `DraftContext`)."""

    def __init__(self, session: Session, length: int) -> None:
        self.session, self.length = session, length
        self.rule: VerificationRule = session.rule

    @property
    def tokens(self) -> Tensor:
        """The first tokens."""
        return self.session.tokens[: self.length]

    def features(self, layers: Sequence[int], start: int, stop: int) -> Tensor:
        """Taps, as `Session.features`."""
        return self.session.features(layers, start, stop)


def calibrate(
    target: Target,
    drafters: Mapping[str, Drafter],
    repeats: int = 7,
    contexts: Sequence[int] = CONTEXTS,
) -> CostModel:
    """Measures the cost model on this host; takes some seconds.

    Args:
        target: The target.
        drafters: Drafters by name.
        repeats: Timings per point, after one warm-up; the median counts.
        contexts: Context lengths for the target's passes.
    """
    longest = max((drafter.max_draft_length for drafter in drafters.values()), default=0)
    limit = target.context_limit - max(ROWS) - longest - 2
    contexts = sorted({min(context, limit) for context in contexts})
    session = _random_session(target, drafters, contexts[-1])
    passes = {}
    for context in reversed(contexts):  # rolling back only ever shortens the cache
        session.cache.roll_back(context)
        runs = {rows: _pass(session, rows) for rows in ROWS}
        passes[context] = _curve(runs, repeats)
    draft, catch_up = {}, {}
    for name, drafter in drafters.items():
        drafter.catch_up(session.state_of(drafter), session)
        lengths = [n for n in LENGTHS if n < drafter.max_draft_length] + [drafter.max_draft_length]
        draft[name] = _curve({n: _draft(session, drafter, n) for n in lengths}, repeats)
        backlogs = [n for n in BACKLOGS if n < contexts[-1] - 4]
        catch_up[name] = _catch_up_curve(session, drafter, backlogs, repeats)
    return CostModel(_host(target, drafters), passes, draft, catch_up)


def load_cost_model(target: Target, drafters: Mapping[str, Drafter]) -> CostModel:
    """The host's cost model from the user cache, measured when missing.

    Raises:
        DraftgymError: The cached file is damaged.
    """
    host = _host(target, drafters)
    key = hashlib.sha256(json.dumps(host, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_folder() / "cost-models" / f"{key}.json"
    if path.is_file():
        return _read_cost_model(path)
    print("measuring the cost model of this host (once)", file=sys.stderr)
    model = calibrate(target, drafters)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(model.to_json())
    partial.replace(path)
    return model


def _read_cost_model(path: Path) -> CostModel:
    try:
        return CostModel.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, DraftgymError) as error:
        problem = error.problem if isinstance(error, DraftgymError) else str(error)
        raise DraftgymError(
            f"{path}: {problem}", "delete the file; it is measured again"
        ) from error


def _host(target: Target, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    shape = target.decoder.shape
    return {
        "target": target.fingerprint,
        "layers": shape.layers,
        "dtype": target.precision.dtype,
        "threads": target.precision.threads,
        "drafters": {name: drafter.max_draft_length for name, drafter in sorted(drafters.items())},
        "torch": torch.__version__,
    }


def _random_session(target: Target, drafters: Mapping[str, Drafter], context: int) -> Session:
    """A session over random tokens: the arithmetic costs the same whatever the text says."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(target.vocab_size, (context,), generator=generator)
    session = Session(target, prompt, GreedyRule(), max(ROWS) + 1, drafters)
    session.prefill()
    return session


def _curve(runs: Mapping[int, Callable[[], object]], repeats: int) -> Curve:
    """Times each run `repeats` times, interleaved, after one warm-up of each."""
    seconds: dict[int, list[float]] = {at: [] for at in runs}
    for repeat in range(repeats + 1):
        for at, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[at].append(time.perf_counter() - start)
    return Curve(
        tuple(float(at) for at in runs), tuple(median(times) for times in seconds.values())
    )


def _pass(session: Session, rows: int) -> Callable[[], object]:
    tokens = session.tokens[:rows]
    decoder, taps = session.target.decoder, session.tap_layers
    return lambda: decoder.forward([NewRows(session.cache, tokens)], taps)


def _draft(session: Session, drafter: Drafter, length: int) -> Callable[[], object]:
    return lambda: drafter.propose(session.state_of(drafter), session, DraftShape(length))


def _catch_up_curve(
    session: Session, drafter: Drafter, backlogs: Sequence[int], repeats: int
) -> Curve:
    seconds: dict[int, list[float]] = {backlog: [] for backlog in backlogs}
    for repeat in range(repeats + 1):
        for backlog in backlogs:
            state = drafter.new_state(session.capacity)
            drafter.catch_up(state, PrefixView(session, len(session.tokens) - backlog))
            start = time.perf_counter()
            drafter.catch_up(state, session)
            if repeat:
                seconds[backlog].append(time.perf_counter() - start)
    at = (0.0, *(float(backlog) for backlog in backlogs))
    return Curve(at, (0.0, *(median(times) for times in seconds.values())))


def write_cost_model(model: CostModel, path: Path) -> None:
    """Writes a cost model beside a run, so that its rewards can be reproduced."""
    path.write_text(model.to_json())
