"""What an accelerator makes of draftgym, in one command and about ten minutes: a JSON and a card.

    $ make gpu
    $ python -m benchmarks.system.accelerator --device cuda:1 --out runs/gpu
    $ python -m benchmarks.system.accelerator --parts speed

Parts, in this order:

- `tests`: `tests/device`, on the accelerator.
- `speed`: plain decoding, drafters, the shipped router and transformers' `generate()` write prompts
  in an order that rotates (greedy; warmed up; whole calls, prompt included).
- `texts`: are these texts plain decoding's, and `generate()`'s, and would the processor have chosen
  the same tokens? In float32, where only near ties between tokens may fall differently.
- `rounds`: what a round reads back, uploads and starts; on CUDA also its kernels and the share of
  time in which one runs.
- `graphs`: on CUDA, a pass of so many rows: ordinary, in fixed shapes, and held by a CUDA graph.

Each runs in a process of its own: where one fails, its error is told and the next begins. Parts
that have their time behind them stop at the next prompt. Files are written after each part, and the
same command again measures what is missing or failed; when nothing is, all anew.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
import tyro

from benchmarks.report import show
from benchmarks.results import Record, Result, check, write_json
from benchmarks.system.accelerator.apart import apart
from benchmarks.system.accelerator.card import card, tables
from benchmarks.system.accelerator.parts import (
    AcceleratorArgs,
    Part,
    compare_speeds,
    compare_texts,
    describe,
    measure_graphs,
    measure_rounds,
    run_tests,
)
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import read_json, write_text
from draftgym.decoding.model.device import choose_device
from draftgym.decoding.provenance import plain

PARTS: dict[Part, tuple[Callable[[AcceleratorArgs, float], Record], float]] = {
    "tests": (run_tests, 0.2),
    "speed": (compare_speeds, 0.3),
    "texts": (compare_texts, 0.3),
    "rounds": (measure_rounds, 0.1),
    "graphs": (measure_graphs, 0.1),
}
"""Parts, and how much of the time each may take; what one leaves over is the others'."""

DOWNLOADING = 3600.0
"""Seconds that loading a target for the first time may take."""

LOADING = 240.0
"""Seconds beyond its time after which a part is killed: it loads models, and ends a prompt."""

Run = Callable[[Callable[..., Any], tuple[Any, ...], float], Any]
"""Calls a function with arguments, for so many seconds at most."""


def measure(args: AcceleratorArgs, run: Run = apart) -> Result:
    """Measures part by part; writes the file and the card after each.

    Args:
        args: Settings.
        run: Where a part is measured.

    Raises:
        DraftgymError: Bad settings, or nothing can be loaded at all.
    """
    check(args, "speed_prompts", "text_prompts", "max_new_tokens", "repeats")
    _tell_device(args)
    end = time.monotonic() + 60 * args.minutes
    facts = plain(run(describe, (args,), DOWNLOADING))
    parts = _measured_before(args, facts)
    due = [part for part in PARTS if part in args.parts]
    missing = [part for part in due if "error" in parts.get(part, {"error": "not measured"})]
    if len(missing) < len(due) and missing:
        print(f"{args.json} has the other parts: only {', '.join(missing)}", file=sys.stderr)
    due = missing or due
    for index, part in enumerate(due):
        shares = [PARTS[one][1] for one in due[index:]]
        seconds = max(0.0, end - time.monotonic()) * shares[0] / sum(shares)
        print(f"{part} ({index + 1} of {len(due)})", file=sys.stderr)
        parts[part] = plain(_survived(run, part, args, seconds))
        ordered = {name: parts[name] for name in PARTS if name in parts}
        result: Result = {"benchmark": "benchmarks.system.accelerator", "environment": facts}
        result["parts"] = ordered
        write_json(args.json, result)
        write_text(args.card, card(result))
    show(tables(result))
    print(f"{args.json} and {args.card} tell all of it")
    return result


def measure_part(part: Part, args: AcceleratorArgs, seconds: float) -> Record:
    """A part's figures, or what went wrong: hardware that nobody has tried fails in any way."""
    try:
        return PARTS[part][0](args, time.monotonic() + seconds)
    except Exception as error:
        return {"error": _told(error), "traceback": traceback.format_exc()}


def _survived(run: Run, part: Part, args: AcceleratorArgs, seconds: float) -> Record:
    """A part's figures or error with its seconds, whatever becomes of the process."""
    start = time.monotonic()
    try:
        figures = run(measure_part, (part, args, seconds), seconds + LOADING)
    except Exception as error:
        figures = {"error": _told(error)}
    if "error" in figures:
        print(f"note: {part} failed: {figures['error']}", file=sys.stderr)
    return {"seconds": time.monotonic() - start, **figures}


def _told(error: Exception) -> str:
    return error.problem if isinstance(error, DraftgymError) else repr(error)


def _measured_before(args: AcceleratorArgs, facts: Record) -> dict[Part, Record]:
    """Parts that are measured already, here and with the same settings."""
    if not args.json.is_file():
        return {}
    before = read_json(args.json, "delete it, or name another folder with --out")
    same = _comparable(before.get("environment", {})) == _comparable(facts)
    return dict(before.get("parts", {})) if same else {}


def _comparable(facts: Mapping[str, Any]) -> Record:
    """What must be the same for two parts to stand in one file."""
    settings = dict(facts.get("settings", {}))
    for free in ("parts", "minutes", "out", "require_accelerator"):
        settings.pop(free, None)
    return {**facts, "settings": settings, "command": None}


def _tell_device(args: AcceleratorArgs) -> None:
    """Says what is measured where no accelerator is.

    Raises:
        DraftgymError: Torch finds none, and one is required.
    """
    device, _ = choose_device(args.device)
    if device.type != "cpu":
        return
    none = f"torch {torch.__version__} finds no accelerator"
    if args.require_accelerator:
        raise DraftgymError(
            none,
            "install a torch that is built for yours (docs/guides/devices.md says how), or measure "
            "the processor: python -m benchmarks.system.accelerator --device cpu",
        )
    print(f"note: {none}; this measures the processor", file=sys.stderr)


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(AcceleratorArgs, description=__doc__))
