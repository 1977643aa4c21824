"""What a long prompt takes: memory above the loaded model, and time, until its first token.

    $ python -m benchmarks.system.prefill_memory --json runs/prefill.json --dtype float32
    $ python -m benchmarks.system.prefill_memory --lengths 1000 4000 --drafters runs/eagle3

Each length runs in a process of its own: the target and its drafters are loaded, a short prompt is
written, then a prompt of random tokens is prefilled, with the taps of all drafters. `peak` is the
most resident memory of that prefill above what was resident before it; `kept` is what of it stays
with the sequence: keys, values and taps. Where a prompt has more tokens than the target has
positions, it runs with the same weights and as many positions as it needs.

Linux tells the peak of a process and can set it back (`/proc/self/clear_refs`); others do not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import tyro

from benchmarks.report import Json, Table, number, titled
from benchmarks.results import Result, TargetOptions, check, finish
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.model.device import clock
from draftgym.decoding.model.target import load_target, resolve_target
from draftgym.decoding.session import Session
from draftgym.decoding.verify.greedy import GreedyRule

RESET = Path("/proc/self/clear_refs")
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PrefillArgs(TargetOptions):
    """What to measure.

    Attributes:
        lengths: Tokens of the prompts.
        dtype: auto, float32, bfloat16 or float16.
        json: Write the figures to this file.
    """

    lengths: tuple[int, ...] = (2048, 8192, 16384)
    dtype: str = "float32"
    json: Path | None = None


def measure(args: PrefillArgs) -> Result:
    """Runs every length, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings, a machine that does not tell peaks, or a prefill that failed.
    """
    check(args)
    if not RESET.exists():
        raise DraftgymError("this system does not tell peaks of memory", "run it on Linux")
    target, drafters = args.load(args.dtype)
    layers = sorted({layer for one in drafters.values() for layer in one.tap_layers})
    facts = {"dtype": target.precision.dtype, "threads": target.precision.threads, "taps": layers}
    positions = target.context_limit
    with tempfile.TemporaryDirectory() as scratch:
        rows = []
        for length in args.lengths:
            source = args.target
            if length >= positions:
                source = str(_with_positions(resolve_target(source), length + 1, Path(scratch)))
            asked = {"target": source, "length": length, **facts}
            asked |= {"device": args.device, "backend": args.backend}
            rows.append(_in_a_process(asked))
    return finish(tables, args, {"rows": rows}, target, drafters, {"tap_layers": layers})


def _with_positions(source: str, positions: int, scratch: Path) -> Path:
    """The same model with more positions."""
    folder = scratch / f"positions-{positions}"
    if not folder.is_dir():
        if not Path(source).is_dir():
            raise DraftgymError(
                f"{source} has fewer positions", "name a local folder, or --lengths"
            )
        shutil.copytree(source, folder, symlinks=False)
        config = json.loads((folder / "config.json").read_text())
        config["max_position_embeddings"] = positions
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _in_a_process(asked: Json) -> Json:
    command = [sys.executable, "-m", "benchmarks.system.prefill_memory", "--one", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise DraftgymError(
            f"the prefill of {asked['length']} tokens failed: {last}", "measure shorter --lengths"
        )
    row: Json = json.loads(done.stdout.splitlines()[-1])
    return row


def measure_one(asked: Json) -> Json:
    """One prefill, in this process."""
    told = SimpleNamespace(**asked)
    target = load_target(told.target, told.dtype, told.threads, told.device, told.backend)
    # A session reads nothing else of its drafters before they draft.
    tapping: Any = SimpleNamespace(tap_layers=tuple(asked["taps"]), max_tree_nodes=0)
    tokens = torch.randint(
        100, 1000, (asked["length"],), generator=torch.Generator().manual_seed(0)
    )

    def session(prompt: torch.Tensor) -> Session:
        return Session(target, prompt, GreedyRule(), 1, {"taps": tapping})

    session(tokens[:32]).prefill()
    RESET.write_text("5")  # the peak is what is resident now
    before = _resident("VmHWM")
    start = clock(target.device)
    written = session(tokens)
    written.prefill()
    seconds = clock(target.device) - start
    shape, size = target.decoder.shape, target.decoder.dtype.itemsize
    a_token = 2 * shape.layers * shape.kv_heads * shape.head_dim + len(asked["taps"]) * shape.hidden
    return {
        "length": asked["length"],
        "kept_mib": asked["length"] * a_token * size / MIB,
        "peak_mib": _resident("VmHWM") - before,
        "model_mib": before,
        "seconds": seconds,
        "tokens_per_second": asked["length"] / seconds,
        "first_token": written.new_tokens[0],
    }


def _resident(what: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{what}:")]
    return int(line.split()[1]) / 1024


def tables(result: Json) -> list[Table]:
    """A row per length."""
    title = "prefill\n{target}, {dtype}, threads {threads}; {machine}".format(**titled(result))
    columns = {
        "tokens": number("length", ""),
        "kept, MiB": number("kept_mib", ".0f"),
        "peak, MiB": number("peak_mib", ".0f"),
        "seconds": number("seconds", ".1f"),
        "tokens/s": number("tokens_per_second", ".0f"),
    }
    return [Table.of(title, result["rows"], columns)]


if __name__ == "__main__":
    with exit_on_user_error():
        if sys.argv[1:2] == ["--one"]:
            print(json.dumps(measure_one(json.loads(sys.argv[2]))))
        else:
            measure(tyro.cli(PrefillArgs, description=__doc__))
