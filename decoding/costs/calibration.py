"""Measures the cost model of this host, once, and keeps it in the user cache.

Two kinds of files: what passes of a target take on a machine, and what drafting with one drafter
takes there. Each is named by a hash of all that decides its seconds, so another machine, dtype or
version, or a retrained drafter is measured anew, and another choice of drafters measures only what
is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from draftgym.decoding.arms import Arm, check_arms
from draftgym.decoding.costs.cost_model import CostModel
from draftgym.decoding.costs.measuring import Clock, measure
from draftgym.decoding.costs.pieces import CONTEXTS, Pieces, Seconds, everything, needed
from draftgym.decoding.drafting import Drafter
from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import keep_text, read_json
from draftgym.decoding.model.device import clock as device_clock
from draftgym.decoding.model.device import device_facts
from draftgym.decoding.model.embedded import cache_folder
from draftgym.decoding.model.precision import usable_cores
from draftgym.decoding.model.target import Target
from draftgym.decoding.provenance import cpu_model

FORMAT = 5
"""Part of what names a file, so that what older versions measured is measured again."""
REPEATS = 5
BUDGET, BUDGET_VARIABLE = 60.0, "DRAFTGYM_CALIBRATION_SECONDS"
AGAIN = "delete the file; it is measured again"


def calibrate(
    target: Target,
    drafters: Mapping[str, Drafter],
    repeats: int = REPEATS,
    contexts: Sequence[int] = CONTEXTS,
) -> CostModel:
    """Measures the cost model on this host, however long it takes.

    Args:
        target: The target.
        drafters: Drafters by name.
        repeats: Timings per piece, after one warm-up; the median counts.
        contexts: Context lengths for the target's passes.
    """
    pieces = Pieces(target, drafters, everything(drafters), contexts)
    clock = partial(device_clock, target.device)
    seconds = measure(pieces.rounds(), pieces.coarse, repeats, clock=clock)
    return _model(pieces, seconds)


def load_cost_model(
    target: Target,
    drafters: Mapping[str, Drafter],
    arms: Iterable[Arm] | None = None,
    longest: int = 0,
    clock: Clock | None = None,
) -> CostModel:
    """The host's cost model; what the user cache lacks of it is measured first.

    Measuring stops after a minute, or as many seconds as `DRAFTGYM_CALIBRATION_SECONDS` says, with
    what is known by then: at least every curve's ends.

    Args:
        target: The target.
        drafters: Drafters by name.
        arms: What costs are asked of: no other drafters are measured; None stands for all.
        longest: Positions of the longest text, if known: passes behind so many are measured, too.
        clock: Tells seconds; by default the system's, once the target's device has done its work.

    Raises:
        DraftgymError: A cached file is damaged, no drafter can serve an arm, or the budget is no
            number.
    """
    if getattr(target.decoder, "shared", False):
        raise DraftgymError(
            f"processes share target {target.name!r}, and each would time its rounds otherwise",
            "choose a policy that asks for no costs, as ngram:8 or eagle3:3x6",
        )
    budget = _budget()
    arms = None if arms is None else list(arms)
    check_arms(arms or (), drafters, target.decoder.draws_trees)
    asked = everything(drafters) if arms is None else needed(arms)
    budget_of_rows = max((arm.shape.budget for arm in arms or ()), default=0)
    pieces = Pieces(target, drafters, asked, contexts_up_to(longest), budget_of_rows)
    paths = {name: _path(target, drafters.get(name)) for name in ("", *asked)}
    kept = {name: _read(path) for name, path in paths.items()}
    known = {piece: times for piece in pieces.all if (times := kept[piece.drafter].get(piece.text))}
    if missing := pieces.missing(known):
        print("measuring what rounds cost on this host, once", file=sys.stderr)
        rounds = {piece: play for piece, play in pieces.rounds().items() if piece in missing}
        clock = clock or partial(device_clock, target.device)
        measured = measure(rounds, pieces.coarse, REPEATS, budget, clock)
        print(how_sure(measured, budget), file=sys.stderr)
        known |= {piece: times for piece, times in measured.items() if times}
        for name in {piece.drafter for piece in missing}:
            fresh = {p.text: times for p, times in known.items() if p.drafter == name}
            body = {"of": _owner(target, drafters.get(name)), "seconds": kept[name] | fresh}
            keep_text(paths[name], json.dumps(body, indent=1))
    elif (fewest := min(map(len, known.values()))) < REPEATS:
        print(
            f"note: what rounds cost here was measured in a hurry (some pieces {fewest} times, "
            f"{len(pieces.all) - len(known)} interpolated); to measure again, delete "
            f"{paths[''].parent}",
            file=sys.stderr,
        )
    return _model(pieces, known)


def contexts_up_to(longest: int) -> list[int]:
    """The contexts that are measured for texts of so many positions.

    Beyond the usual ones a single one more, of few that are possible: others find it measured.
    """
    contexts = [*CONTEXTS]
    if longest > CONTEXTS[-1]:
        contexts.append(CONTEXTS[-1] * 2 ** math.ceil(math.log2(longest / CONTEXTS[-1])))
    return contexts


def how_sure(measured: Seconds, budget: float) -> str:
    """A line for the user: how often pieces were timed, and by how much their times vary."""
    counts = [len(times) for times in measured.values()]
    reached = [count for count in counts if count]
    fewest, most = min(reached), max(reached)
    often = f"{most} times" if fewest == most else f"{fewest} to {most} times"
    line = f"measured {len(reached)} pieces of a round, {'once' if most == 1 else often}"
    if (spread := typical_spread(measured)) is not None:
        line += f"; half of them vary by less than {spread:.0%}"
    if min(counts) < REPEATS:
        line += f"; stopped at {budget:g} s ({BUDGET_VARIABLE} gives more)"
    if lacking := len(counts) - len(reached):
        line += f"; {lacking} more lie between measured ones and are interpolated"
    return line


def typical_spread(seconds: Seconds) -> float | None:
    """Half the range of a piece's times over their median: its own median over all pieces.

    None if no piece was timed more than once.
    """
    spreads = [
        (max(times) - min(times)) / 2 / median(times)
        for times in seconds.values()
        if len(times) > 1
    ]
    return median(spreads) if spreads else None


def measured_host(target: Target, drafters: Mapping[str, Drafter]) -> dict[str, Any]:
    """What decides the seconds of a measurement: machine, versions, numbers, weights."""
    names = {name: drafter.fingerprint for name, drafter in sorted(drafters.items())}
    return {**_owner(target, None), "drafters": names}


def _owner(target: Target, drafter: Drafter | None) -> dict[str, Any]:
    """What decides the seconds of passes, or of a drafter's pieces."""
    precision = target.precision
    return {
        "format": FORMAT,
        "cpu": cpu_model(),
        "platform": f"{platform.system()} {platform.machine()}",
        **_machine(target),
        "torch": torch.__version__,
        "dtype": precision.dtype,
        "packed": precision.packed,
        "target": target.fingerprint,
        **({"compiled": True} if precision.compiles else {}),
        **({"spread": precision.spread} if precision.spread else {}),
        **({} if drafter is None else {"drafter": drafter.fingerprint}),
        **({} if drafter is None or drafter.compiled is None else {"drafter_compiled": True}),
    }


def _machine(target: Target) -> dict[str, Any]:
    """What decides them beside the processor's model: its cores and threads, or the accelerator.

    On an accelerator a processor only starts what is computed there: its model counts, since small
    passes wait for it, but not how many of its cores are free.
    """
    if target.device.type != "cpu":
        return device_facts(target.device)
    return {
        "cores": usable_cores(),
        "threads": target.precision.threads,
        "interop_threads": torch.get_num_interop_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _model(pieces: Pieces, seconds: Seconds) -> CostModel:
    known = {piece: seconds[piece] for piece in pieces.all if seconds.get(piece)}
    counts = [len(times) for times in known.values()]
    facts = {
        "timings": [min(counts), max(counts)],
        "spread": typical_spread(known),
        "interpolated": len(pieces.all) - len(known),
    }
    return pieces.model(known, {**measured_host(pieces.target, pieces.drafters), **facts})


def _budget() -> float:
    text = os.environ.get(BUDGET_VARIABLE, str(BUDGET))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        raise DraftgymError(
            f"{BUDGET_VARIABLE} is {text!r}", "set it to the seconds that measuring may take"
        )
    return seconds


def _path(target: Target, drafter: Drafter | None) -> Path:
    text = json.dumps(_owner(target, drafter), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return cache_folder() / "cost-models" / f"{digest}.json"


def _read(path: Path) -> dict[str, list[float]]:
    """Timings by piece; empty where there is no file.

    Raises:
        DraftgymError: It is damaged.
    """
    if not path.is_file():
        return {}
    seconds = read_json(path, AGAIN).get("seconds")
    if not isinstance(seconds, dict) or not all(map(_is_timings, seconds.values())):
        raise DraftgymError(f"{path} holds no timings", AGAIN)
    return seconds


def _is_timings(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(type(one) in (int, float) and 0 <= one < math.inf for one in value)
    )
