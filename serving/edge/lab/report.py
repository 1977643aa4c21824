"""What a lab found: figures for a file, and a table for people."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from draftgym.rollouts.report.table import make_console
from draftgym.serving.edge.devices.journal import texts_of
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.checking import OTHER, PREFIX, SAME

if TYPE_CHECKING:
    from draftgym.serving.edge.lab.faults import Fault
    from draftgym.serving.edge.lab.lab import Lab

Samples = Sequence[tuple[float, int, float]]
LEGEND = (
    "said: bytes of the device's messages; up, down: bytes of packets on its link, all a written "
    "token; lost: packets; MB: resident memory"
)
COUNTED = ("rounds", "drafted", "accepted", "reconnects", "up", "down", "seconds", "drafting")


def figures_of(
    args: EdgeLabArgs,
    lab: Lab,
    counts: Sequence[Mapping[str, Any]],
    texts: Mapping[str, Any],
    checked: Sequence[Mapping[str, Any]],
    faults: Sequence[Fault],
) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        args: What was asked for.
        lab: What ran.
        counts: What happened on each link.
        texts: What each device keeps, by its name.
        checked: See `check_texts`.
        faults: What went wrong.
    """
    rounds = rounds_within(lab.folder / "rounds.jsonl", lab.began, args.seconds)
    devices = []
    for index, one in enumerate(lab.devices):
        mine = texts_of(texts[one.name]) if one.name in texts else []
        link = counts[index] if index < len(counts) else {}
        facts = {"name": one.name, "kind": str(args.kind(index)), "starts": one.starts}
        devices.append(facts | device_figures(mine) | {"link": link, "memory": thirds(one.rss)})
    return {
        "settings": json.loads(json.dumps(asdict(args), default=str)),
        "began": lab.began,
        "server": server_figures(rounds, args.seconds),
        "memory": {"server": thirds(lab.server.rss), "relay": thirds(lab.relay_rss)},
        "devices": devices,
        "texts": Counter(one["is"] for one in checked),
        "differences": [one for one in checked if one["is"] == OTHER],
        "faults": [asdict(one) | _texts_at(one, checked) for one in faults],
        "deaths": lab.deaths,
        "rounds": rounds,
    }


def _texts_at(fault: Fault, checked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What became of the texts that a fault was about."""
    about = {*fault.sessions, *(one["session"] for one in fault.texts)}
    return {"checked": Counter(one["is"] for one in checked if one["session"] in about)}


def rounds_within(log: Path, began: float, seconds: float) -> list[dict[str, Any]]:
    """Rounds that ended within a time, as the server logged them."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    rounds = [json.loads(line) for line in lines]
    ends = [one.get("began", 0.0) + one.get("seconds", 0.0) for one in rounds]
    return [one for one, end in zip(rounds, ends, strict=True) if began <= end <= began + seconds]


def server_figures(rounds: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, float]:
    """What the server did within a time."""
    committed, drafted, accepted = (
        sum(sum(one[name]) for one in rounds) for name in ("committed", "drafted", "accepted")
    )
    return {
        "goodput": committed / seconds,
        "rounds": len(rounds),
        "committed": committed,
        "drafted": drafted,
        "accepted": accepted,
        "round_seconds": _mean([one["seconds"] for one in rounds]),
        "planning_seconds": _mean([one["planning"] for one in rounds]),
        "verifying_seconds": _mean([one["verifying"] for one in rounds]),
        "between_seconds": seconds - sum(one["seconds"] for one in rounds),
    }


def device_figures(texts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a device did; bytes are those of messages, their framing included."""
    tokens = sum(len(one["tokens"]) for one in texts)
    finished = sum(bool(one["finish_reason"]) for one in texts)
    sums = {name: sum(one[name] for one in texts) for name in COUNTED}
    return {"texts": finished, "tokens": tokens, **sums}


def thirds(samples: Samples) -> dict[str, float]:
    """Medians of resident megabytes in the first and the last third of the longest process."""
    if not samples:
        return {}
    longest = Counter(pid for _, pid, _ in samples).most_common(1)[0][0]
    sizes = [size for _, pid, size in samples if pid == longest]
    part = max(1, len(sizes) // 3)
    return {
        "first": statistics.median(sizes[:part]),
        "last": statistics.median(sizes[-part:]),
        "samples": len(sizes),
    }


def show(found: Mapping[str, Any], console: Console | None = None) -> None:
    """The tables."""
    console = console or make_console()
    server, settings = found["server"], found["settings"]
    console.print(
        f"\n{len(found['devices'])} devices, {settings['seconds']:g} s, {settings['scheduler']}: "
        f"{server['goodput']:.1f} tokens/s in {server['rounds']} rounds of "
        f"{server['round_seconds']:.3f} s ({server['verifying_seconds']:.3f} s of it the pass); "
        f"{server['accepted']} of {server['drafted']} drafted tokens accepted"
    )
    console.print(device_table(found["devices"]))
    for name, memory in found["memory"].items():
        if memory:
            console.print(
                f"memory of the {name}: {memory['first']:.0f} MB in its first third, "
                f"{memory['last']:.0f} MB in its last"
            )
    for one in found["faults"]:
        whom = "" if one["device"] is None else f" on device-{one['device']}"
        texts = ", ".join(f"{count} {what}" for what, count in one["checked"].items())
        console.print(f"{one['at']:.0f} s, {one['name']}{whom}: {one['became']}")
        console.print(f"    texts under way then: {texts or 'not compared'}")
    for name, when, words in found["deaths"]:
        console.print(f"{name} ended at {when:.0f} s: {words}")
    texts = found["texts"]
    if texts:
        console.print(
            f"{texts.get(SAME, 0)} finished texts and {texts.get(PREFIX, 0)} unfinished ones are "
            f"plain decoding's, {texts.get(OTHER, 0)} are not"
        )
    for one in found["differences"]:
        console.print(f"{one['device']}, {one['question_id']}: other from token {one['index']} on")


def device_table(devices: Sequence[Mapping[str, Any]]) -> Table:
    """A row per device."""
    columns = ("texts", "tokens", "rounds", "accepted", "said", "up", "down", "lost", "MB")
    table = Table("", "device", *columns, caption=LEGEND)
    for one in devices:
        tokens, link = max(1, one["tokens"]), one["link"]
        up, down = (link.get(way, {}) for way in ("up", "down"))
        table.add_row(
            one["name"].rpartition("-")[2],
            one["kind"],
            str(one["texts"]),
            str(one["tokens"]),
            str(one["rounds"]),
            f"{one['accepted']}/{one['drafted']}",
            f"{one['up'] / tokens:.0f}",
            f"{up.get('bytes', 0) / tokens:.0f}",
            f"{down.get('bytes', 0) / tokens:.0f}",
            str(sum(way.get("lost", 0) + way.get("dropped", 0) for way in (up, down))),
            f"{one['memory'].get('last', 0):.0f}",
        )
    return table


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
