"""What training a router takes on traces of many positions: memory, and time until it begins.

    $ draftgym collect --prompts train --dtype float32 --out runs/traces
    $ python -m benchmarks.scaling.many_positions --traces runs/traces --positions 1000000
    $ python -m benchmarks.scaling.many_positions --traces runs/traces --positions 10000000 \
        --ways stream --states float16

Traces of that many positions are made of those that are there: each text is written again under
other question ids, until there are enough of them. What they take is what as many different texts
would take (in memory and mapped; their Parquet files are smaller, as copies lie side by side). What
a router learns on them means nothing, since its validation texts are copies, too.

Each way is `draftgym train-router` in a process of its own, with `--stream` or without. Linux tells
what its pages are: anonymous ones must stay in memory, file-backed ones the system may drop and
read again.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks.report import Cell, Table, number, titled
from benchmarks.results import Result, check, finish
from benchmarks.scaling.commands import draftgym
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.provenance import sole_writer
from draftgym.rollouts.traces.file import read_done, read_origin, read_texts, rows_in, trace_table
from draftgym.rollouts.traces.mapped import FOLDER
from draftgym.rollouts.traces.shards import ShardWriter, numbers_in, shards_in
from draftgym.rollouts.traces.trace import States, TextTrace

SHARD_TEXTS = 64
GB = 1e9
PAGES = "/proc/{}/smaps_rollup"


@dataclass(frozen=True, kw_only=True)
class ManyPositionsArgs:
    """What to measure.

    Attributes:
        traces: Folder of the traces that are written again; it is only read.
        out: Folder for the larger ones, a folder each, and for the routers.
        positions: How many there should be, at least.
        ways: With `--stream` or in memory.
        states: How they hold hidden states; default: as the traces do.
        rounds: What a router is trained for.
        threads: CPU threads of a training; default: every core.
        stop_at: GB of anonymous memory at which a training is ended.
        json: Write the figures to this file.
    """

    traces: Path = Path("runs/traces")
    out: Path = Path("runs/many")
    positions: tuple[int, ...] = (1_000_000,)
    ways: tuple[Literal["memory", "stream"], ...] = ("memory", "stream")
    states: States | None = None
    rounds: int = 50_000
    threads: int | None = None
    stop_at: float | None = None
    json: Path | None = None


def measure(args: ManyPositionsArgs) -> Result:
    """Makes traces, trains on them, shows and writes the figures.

    Raises:
        DraftgymError: Bad settings, no traces, a system that does not tell pages, or a training
            that failed.
    """
    check(args, "rounds")
    if not Path(PAGES.format("self")).exists():
        raise DraftgymError("this system does not tell the pages of a process", "run it on Linux")
    rows: list[dict[str, Any]] = []
    for wanted in args.positions:
        folder, positions = multiply(args.traces, args.out, wanted, args.states)
        for way in args.ways:
            row = {"positions": positions, "states": read_origin(shards_in(folder)[0]).states}
            rows.append(row | {"way": way} | train(args, folder, way == "stream"))
    return finish(tables, args, {"rows": rows})


def multiply(
    source: Path, out: Path, wanted: int, states: States | None = None
) -> tuple[Path, int]:
    """Writes the texts of some traces again and again; goes on where it was interrupted.

    Args:
        source: The traces; one shard of them is in memory at a time.
        out: Where the folder goes.
        wanted: Positions there should be, at least.
        states: How hidden states are stored; None as they are.

    Returns:
        The folder, named after positions and states, and the positions that it holds.

    Raises:
        DraftgymError: No traces, or they do not hold the states that are wanted.
    """
    shards = shards_in(source)
    if not shards or wanted < 1:
        raise DraftgymError(f"{source} cannot become {wanted} positions", "name other --traces")
    origin = read_origin(shards[0])
    if states not in (None, "none") and not origin.holds_states:
        raise DraftgymError(f"{source} holds no hidden states", "leave --states out")
    origin = replace(origin, states=states or origin.states)
    there = sum(map(rows_in, shards)) - len(read_done(source))
    copies = -(-wanted // there)
    folder = out / f"{wanted}-{origin.states}"
    with sole_writer(folder):
        to_table, done = partial(trace_table, origin=origin), SHARD_TEXTS * len(numbers_in(folder))
        with ShardWriter[TextTrace](folder, to_table, SHARD_TEXTS, whole=True) as writer:
            for text in islice(_again(shards, copies), done, None):
                writer.add(text)
    return folder, copies * there


def _again(shards: Sequence[Path], copies: int) -> Iterator[TextTrace]:
    """Every text so many times."""
    for shard in shards:
        for text in read_texts(shard, read_origin(shard)):
            for copy in range(copies):
                yield replace(text, question_id=f"{text.question_id}~{copy}")


def train(args: ManyPositionsArgs, traces: Path, stream: bool) -> dict[str, Any]:
    """Trains a router on a folder; returns what that took."""
    run = traces.with_name(f"{traces.name}-{'stream' if stream else 'memory'}")
    shutil.rmtree(run, ignore_errors=True)  # it would be resumed
    options = {"--traces": traces, "--run": run, "--rounds": args.rounds, "--threads": args.threads}
    given = [one for pair in options.items() if pair[1] is not None for one in pair]
    command = draftgym("train-router", *given)
    if stream:
        command.append("--stream")
    marks = {"laid_out": run / "config.json", "first_update": run / "metrics.jsonl"}
    took = watch(command, run.with_name(f"{run.name}.log"), marks, args.stop_at)
    mapped = traces / FOLDER
    stored = {"parquet": _bytes(traces, "*.parquet"), "mapped": _bytes(mapped, "*.arrow")}
    return {**vars(took), **(stored if stream else stored | {"mapped": 0})}


def _bytes(folder: Path, kind: str) -> int:
    return sum(one.stat().st_size for one in folder.glob(kind))


@dataclass
class Taken:
    """What a process took.

    Attributes:
        anonymous: Most anonymous memory that was resident, in bytes.
        file_backed: Most of its files' pages that were resident.
        seconds: How long it ran.
        after: Seconds until files appeared with something in them, by name.
        stopped: Whether it was ended for its memory.
    """

    anonymous: int = 0
    file_backed: int = 0
    seconds: float = 0.0
    after: dict[str, float] = field(default_factory=dict)
    stopped: bool = False


def watch(
    command: Sequence[str], log: Path, marks: dict[str, Path], stop_at: float | None = None
) -> Taken:
    """Runs a command and looks at its pages up to once a second.

    Args:
        command: What is run.
        log: Where its output goes.
        marks: Files to wait for, by name.
        stop_at: GB of anonymous memory at which it is ended.

    Raises:
        DraftgymError: It failed.
    """
    taken, began = Taken(), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            while process.poll() is None and not taken.stopped:
                anonymous, backed = pages(process.pid)
                taken.anonymous = max(taken.anonymous, anonymous)
                taken.file_backed = max(taken.file_backed, backed)
                taken.seconds = time.monotonic() - began
                for name, file in marks.items():
                    if name not in taken.after and file.exists() and file.stat().st_size:
                        taken.after[name] = taken.seconds
                taken.stopped = stop_at is not None and anonymous > stop_at * GB
                time.sleep(min(1.0, 0.05 + taken.seconds / 20))
        finally:
            process.kill()
            process.wait()
    if process.returncode and not taken.stopped:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise DraftgymError(f"the training failed: {last}", f"read {log}")
    return taken


def pages(process: int) -> tuple[int, int]:
    """Anonymous and other resident memory of a process, in bytes; 0 of one that has just ended."""
    try:
        lines = Path(PAGES.format(process)).read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}
    anonymous, resident = sizes.get("Anonymous", 0), sizes.get("Rss", 0)
    return anonymous, resident - anonymous


def tables(result: Result) -> list[Table]:
    """A row for each training."""
    title = "training a router for {rounds:,} rounds; {machine}"

    def gigabytes(key: str) -> Cell:
        return lambda row: f"{row[key] / GB:.2f}"

    def after(key: str) -> Cell:
        return lambda row: f"{row['after'][key]:.0f}" if key in row["after"] else ""

    columns: dict[str, Cell] = {
        "": lambda row: "with --stream" if row["way"] == "stream" else "in memory",
        "positions": number("positions", ","),
        "states": number("states", ""),
        "anonymous, GB": lambda row: (
            ("above " if row["stopped"] else "") + f"{row['anonymous'] / GB:.2f}"
        ),
        "bytes a position": lambda row: f"{row['anonymous'] / row['positions']:,.0f}",
        "file-backed, GB": gigabytes("file_backed"),
        "mapped files, GB": gigabytes("mapped"),
        "s until laid out": after("laid_out"),
        "s until first update": after("first_update"),
        "s": number("seconds", ".0f"),
    }
    facts = titled(result)
    title = title.format(rounds=facts["settings"]["rounds"], machine=facts["machine"])
    return [Table.of(title, result["rows"], columns)]


if __name__ == "__main__":
    with exit_on_user_error():
        measure(tyro.cli(ManyPositionsArgs, description=__doc__))
