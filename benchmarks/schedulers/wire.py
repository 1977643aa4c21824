"""Environment against wire: what cells predict of a lab, and what the lab then measures.

    $ python -m benchmarks.schedulers.wire --json runs/wire.json

Every scheduler runs the same labs (`draftgym edge lab`: devices and a server as processes, over
links that are really slow; needs Linux and root), and the environment of each lab
(`benchmarks.schedulers.lab_cell`): the same devices, prompts, channels and host. The environment
knows what was set of the network (delay), what a message takes beside its tokens (`--frame-bits`,
`--message-seconds`), how long planning takes here; of the rest nothing.
Passes and prompts are timed anew before each lab, as machines drift, unless they are paced
(`--lab.server FILE --lab.server-factor 2`). What has been run is read from its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from benchmarks.report import Cell, Table
from benchmarks.results import Result, finish
from benchmarks.schedulers.lab_cell import LabCell, LabDevice, LabTable, plan_seconds, play_seconds
from draftgym.decoding.costs.batch_cost import measure_batches
from draftgym.decoding.errors import DraftgymError, exit_on_user_error
from draftgym.decoding.files import read_json, write_text
from draftgym.decoding.model.target import Target, load_target
from draftgym.envs.cell.host import HostArgs, measure_host
from draftgym.envs.scheduler.planners import MakePlanner, planner_by_name
from draftgym.rollouts.traces.file import read_traces
from draftgym.rollouts.traces.trace import TraceSet
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.channels import write_channels
from draftgym.serving.edge.lab.lab import prompt_lines, run_lab
from draftgym.serving.edge.server.command import EdgeServeArgs, cell_settings

SCHEDULERS = (
    "heterogeneous@beta+found",
    "checkpoints/scheduler-smollm2-135m",
    "heterogeneous@beta",
    "homogeneous@beta",
    "fixed",
)
ROWS = (1, 3, 5, 9, 17)
PROMPT = 128
"""Tokens of the prompt that is timed."""
PAUSE = 0.05
"""Seconds of rest before each timing: a server rests while devices draft."""
AGAIN = "remove the folder, or name another with --folder"


@dataclass(frozen=True, kw_only=True)
class WireArgs:
    """Compare environments with labs.

    Attributes:
        schedulers: Who plans, as `draftgym edge serve` reads it.
        devices: Numbers of devices.
        seeds: Labs of each number, with channels of their own.
        lab: All else of a lab; its scheduler, devices, seed, folder and json are not read.
        traces: Traces of the lab's prompts, of the same length.
        frame_bits: What a draft's message takes on the air beside its tokens, acknowledgements of
            what came down included.
        message_seconds: What gRPC, both programs and the jitter of the slowest device add to a
            round trip; of a lab of prompt lookup alone (`--kinds ngram --band-hertz 10e6`).
        folder: Where labs are kept.
        json: Write the figures to this file.
    """

    schedulers: tuple[str, ...] = SCHEDULERS
    devices: tuple[int, ...] = (4, 8, 16)
    seeds: tuple[int, ...] = (0,)
    lab: EdgeLabArgs = field(
        default_factory=lambda: EdgeLabArgs(
            seconds=120, max_new_tokens=128, limit=150, dtype="bfloat16", threads=1, check=False
        )
    )
    traces: Path = Path("runs/users-heldout")
    frame_bits: int = 1040
    message_seconds: float = 0.008
    folder: Path = Path("runs/wire")
    json: Path | None = None

    def labs(self) -> list[EdgeLabArgs]:
        """All labs, schedulers in turn, so that what drifts drifts for all of them."""
        return [
            replace(self.lab, devices=devices, seed=seed, scheduler=name, json=None, folder=None)
            for devices, seed, name in product(self.devices, self.seeds, self.schedulers)
        ]


def run(args: WireArgs) -> Result:
    """Runs the labs, plays their environments, shows and writes both.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    traces = read_traces(args.traces)
    if traces.origin.max_new_tokens != args.lab.max_new_tokens:
        raise DraftgymError(
            f"{traces.origin.max_new_tokens} tokens of each text were traced",
            f"give --lab.max-new-tokens {traces.origin.max_new_tokens}",
        )
    target = load_target(args.lab.target, args.lab.dtype, args.lab.threads, args.lab.device)
    rows = []
    for lab in args.labs():
        lab = replace(lab, server=host_of(args, lab))
        reading = reading_of(args, lab, target)
        measured = measure(args, lab)
        predicted = predict(args, lab, traces, target, reading)
        rows.append({**_named(lab), "predicted": predicted, "measured": measured})
        finish(tables, args, {"rows": rows}, target, last=False)
    return finish(tables, args, {"rows": rows}, target)


def folder_of(args: WireArgs, lab: EdgeLabArgs) -> Path:
    """Where a lab is kept."""
    name = f"{Path(lab.scheduler).name}-{lab.devices}-{lab.seed}"
    return args.folder / name.replace("@", "-").replace("+", "-")


def host_of(args: WireArgs, lab: EdgeLabArgs) -> Path:
    """What passes cost here, measured now unless the lab was run before."""
    told = args.lab.server or folder_of(args, lab) / "host.json"
    if not told.exists():
        told.parent.mkdir(parents=True, exist_ok=True)
        measure_host(
            HostArgs(
                out=told, users=(1, max(1, lab.devices // 4), lab.devices), rows_each=ROWS,
                contexts=(128,), repeats=3, pause=PAUSE, target=lab.target, dtype=lab.dtype,
                device=lab.device, threads=lab.threads,
            )
        )  # fmt: skip
    return told


def reading_of(args: WireArgs, lab: EdgeLabArgs, target: Target) -> float:
    """Seconds that a token of a prompt takes here beside a pass, timed as `host_of` is."""
    path = folder_of(args, lab) / "reading.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        (((one, whole),),) = measure_batches(target, (1,), (1, PROMPT), (1,), 3, PAUSE).seconds
        write_text(path, json.dumps({"seconds": max(0.0, (whole - one) / (PROMPT - 1))}))
    return float(read_json(path, AGAIN)["seconds"])


def measure(args: WireArgs, lab: EdgeLabArgs) -> Result:
    """What a lab did, run now unless it was run before."""
    folder = folder_of(args, lab)
    path = folder / "lab.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run_lab(replace(lab, folder=folder, json=path))
    found = read_json(path, AGAIN)
    told = {"texts": found["texts"], "deaths": found["deaths"]}
    whole = lab.seconds / max(1, found["server"]["rounds"])  # what lies between rounds included
    return {**found["server"], "round_seconds": whole, **told}


def predict(
    args: WireArgs, lab: EdgeLabArgs, traces: TraceSet, target: Target, reading: float
) -> Result:
    """What the lab's environment does in the same time; `reading` is `reading_of` it."""
    devices = []
    for index, lines in enumerate(prompt_lines(lab)):
        kind, asked = lab.kind(index), [json.loads(line) for line in lines.splitlines()]
        names = [one["question_id"] for one in asked]
        devices.append(LabDevice(kind.drafter, kind.token_seconds or 0.0, names))
    make: MakePlanner = planner_by_name(lab.scheduler, target)
    served = cell_settings(
        EdgeServeArgs(
            target=lab.target, scheduler=lab.scheduler, users=lab.devices,
            longest_draft=lab.longest_draft, band_hertz=lab.band_hertz, payload=lab.payload,
            kept=lab.kept, server=lab.server, server_factor=lab.server_factor, dtype=lab.dtype,
            threads=lab.threads,
        ), target, make,
    )  # fmt: skip
    table = LabTable(traces, devices)
    known = {task: mean for task, mean in served.means.items() if task in table.task_names}
    args.folder.mkdir(parents=True, exist_ok=True)
    settings = replace(
        served,
        payload=replace(served.make_payload(), frame_bits=args.frame_bits),
        channel_traces=tuple(write_channels(lab, args.folder / "channels.csv")),
        latency=2e-3 * lab.delay_ms + args.message_seconds,
        prompt_token_seconds=reading,
        report_rounds_old=1,  # a device tells of its channel when it drafts
        means=known,
    )
    planning = plan_seconds(make, LabCell(table, settings, devices, 1e3 * lab.least_kbit))
    settings = replace(settings, overhead=planning)
    cell = LabCell(table, settings, devices, 1e3 * lab.least_kbit)
    totals, rounds = play_seconds(make, cell, lab.seconds)
    return {
        "planning_seconds": planning,
        "prompt_token_seconds": reading,
        "goodput": float(totals.tokens[0] / lab.seconds),
        "rounds": rounds,
        "round_seconds": lab.seconds / rounds,
        "drafted": float(totals.drafted[0]),
        "accepted": float(totals.accepted[0]),
    }


def _named(lab: EdgeLabArgs) -> dict[str, Any]:
    name = Path(lab.scheduler).name
    return {"scheduler": name, "devices": lab.devices, "seed": lab.seed}


def tables(result: Result) -> list[Table]:
    """The figures of each number of devices, and who is best there by either."""
    settings, rows = result["environment"]["settings"], result["rows"]
    first = Path(settings["schedulers"][0]).name
    columns: dict[str, Cell] = {
        "scheduler": lambda row: row["scheduler"],
        "predicted, tokens/s": lambda row: f"{_mean(row, 'predicted', 'goodput'):.1f}",
        "measured": lambda row: f"{_mean(row, 'measured', 'goodput'):.1f}",
        "off by": lambda row: f"{_off(row):+.1%}",
        "round, s, predicted / measured": lambda row: _both(row, _round_seconds, ".3f"),
        "accepted a round, predicted / measured": lambda row: _both(row, _accepted, ".2f"),
        f"over {first}, predicted": lambda row: _over(row, "predicted"),
        "measured over it": lambda row: _over(row, "measured"),
    }
    found = []
    for devices in sorted({row["devices"] for row in rows}):
        here = [row for row in rows if row["devices"] == devices]
        names = list(dict.fromkeys(row["scheduler"] for row in here))
        by_name = [[row for row in here if row["scheduler"] == name] for name in names]
        grouped = [
            {"scheduler": name, "rows": mine, "first": by_name[0]}
            for name, mine in zip(names, by_name, strict=True)
        ]
        notes = [f"{by}: {_ranked(grouped, by)}" for by in ("predicted", "measured")]
        title = f"{devices} devices, {settings['lab']['seconds']:g} s, {len(by_name[0])} channels"
        found.append(Table.of(title, grouped, columns, notes=notes))
    return found


def _ranked(rows: Sequence[Mapping[str, Any]], by: str) -> str:
    best = sorted(rows, key=lambda row: _mean(row, by, "goodput"), reverse=True)
    return " > ".join(row["scheduler"] for row in best)


def _mean(row: Mapping[str, Any], by: str, what: str) -> float:
    return fmean(one[by][what] for one in row["rows"])


def _off(row: Mapping[str, Any]) -> float:
    return _mean(row, "predicted", "goodput") / _mean(row, "measured", "goodput") - 1


def _round_seconds(row: Mapping[str, Any], by: str) -> float:
    return _mean(row, by, "round_seconds")


def _accepted(row: Mapping[str, Any], by: str) -> float:
    return _mean(row, by, "accepted") / _mean(row, by, "rounds")


def _both(
    row: Mapping[str, Any], told: Callable[[Mapping[str, Any], str], float], form: str
) -> str:
    return " / ".join(format(told(row, by), form) for by in ("predicted", "measured"))


def _over(row: Mapping[str, Any], by: str) -> str:
    """Gain over the first scheduler, and from which channel's to which's where there are many."""
    gains = [
        mine[by]["goodput"] / its[by]["goodput"] - 1
        for mine, its in zip(row["rows"], row["first"], strict=False)
    ]
    told = f"{fmean(gains):+.1%}"
    return told if len(gains) < 2 else f"{told} ({min(gains):+.1%} to {max(gains):+.1%})"


if __name__ == "__main__":
    with exit_on_user_error():
        run(tyro.cli(WireArgs, description=__doc__))
