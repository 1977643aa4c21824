"""What goes wrong in a lab, each once, at its time, and what became of it.

A fault is a generator: it does something, tells how many seconds to wait, and goes on. Closed
early, it mends what it did.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import read_json
from draftgym.decoding.model.prompts.messages import encode_messages
from draftgym.decoding.model.prompts.text import load_tokenizer
from draftgym.decoding.model.target import resolve_target
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.serving.edge.devices.journal import REMEDY
from draftgym.serving.edge.lab.args import EdgeLabArgs
from draftgym.serving.edge.lab.network import SERVER_ADDRESS
from draftgym.serving.edge.lab.processes import PORT, journal_of
from draftgym.serving.edge.lab.strangers import STRANGERS, Facts
from draftgym.serving.edge.protocol import vocabulary_fingerprint

if TYPE_CHECKING:
    from draftgym.serving.edge.lab.lab import Lab

STALL, CUT = 8.0, 5.0
"""Seconds that a device stands still, and that a link is down."""
LOOK = 0.2
PLACES = 2
"""Places beside the devices': one of two twins is there until the other takes its place."""


@dataclass
class Fault:
    """Something that goes wrong once.

    Attributes:
        name: What.
        at: When, seconds from the devices' beginning.
        device: On which device; None for none of them.
        became: What became of it.
        sessions: Texts under way that it is about.
        texts: Texts that strangers wrote.
    """

    name: str
    at: float
    device: int | None
    became: str = "there was no time for it"
    sessions: list[str] = field(default_factory=list)
    texts: list[dict[str, Any]] = field(default_factory=list)

    def happen(self, lab: Lab) -> Generator[float, None, None]:
        """Goes wrong; see the module."""
        before, began = _committed(lab), time.time()
        own = self.device is None
        index = None if self.device is None else self.device
        self.sessions = _under_way(lab, range(lab.args.devices) if own else [index or 0])
        yield from FAULTS[self.name](self, lab)
        passed, written = time.time() - began, _committed(lab) - before
        self.became += f"; {written} tokens were written in these {passed:.1f} s"


def planned_faults(args: EdgeLabArgs) -> list[Fault]:
    """What is to go wrong, spread over the time that there is, on one device after the other.

    Raises:
        DraftgymError: An unknown name.
    """
    names = list(FAULTS) if "all" in args.faults else list(dict.fromkeys(args.faults))
    for name in names:
        if name not in FAULTS:
            raise DraftgymError(f"no fault {name!r}", f"there are all, {', '.join(FAULTS)}")
    times = [args.seconds * (i + 1) / (len(names) + 2) for i in range(len(names))]
    return [
        Fault(name, at, i % args.devices if name in ON_DEVICES else None)
        for i, (name, at) in enumerate(zip(names, times, strict=True))
    ]


def strangers_of(faults: Sequence[Fault]) -> int:
    """Networks that are needed beside the devices'."""
    return int(any(one.name in STRANGERS for one in faults))


def _kill(fault: Fault, lab: Lab) -> Generator[float, None, None]:
    """A device is killed in mid-round and started again."""
    assert fault.device is not None
    one = lab.devices[fault.device]
    one.kill()
    kept = _kept(lab, fault.device)
    tokens = len(kept["unfinished"]["tokens"]) if kept and kept["unfinished"] else 0
    lab.restart(fault.device)
    while not _kept_more(lab, fault.device, kept) and one.alive:
        yield LOOK
    fault.became = f"killed with {tokens} tokens of a text written, which went on from there"


def _stall(fault: Fault, lab: Lab) -> Generator[float, None, None]:
    """A device stands still."""
    assert fault.device is not None
    lab.devices[fault.device].send(signal.SIGSTOP)
    try:
        yield STALL
    finally:
        lab.devices[fault.device].send(signal.SIGCONT)
    fault.became = f"stood still for {STALL:g} s"


def _restart(fault: Fault, lab: Lab) -> Generator[float, None, None]:
    """The server is killed and started again."""
    lab.server.kill()
    lab.server.start()
    began = time.time()
    while lab.server.alive and lab.server.there not in lab.server.said:
        yield LOOK
    seconds = time.time() - began
    while lab.server.alive and not _rounds_since(lab, began):
        yield LOOK
    fault.became = (
        f"killed; listened again after {seconds:.1f} s, and its first round ended "
        f"{time.time() - began - seconds:.1f} s later"
    )


def _cut(fault: Fault, lab: Lab) -> Generator[float, None, None]:
    """A link is down."""
    lab.network.tell(cut=fault.device, seconds=CUT)
    yield CUT
    fault.became = f"lost every packet for {CUT:g} s"


def _stranger(fault: Fault, lab: Lab) -> Generator[float, None, None]:
    """Somebody who does not belong here talks to the server."""
    words = [sys.executable, "-m", "draftgym.serving.edge.lab.strangers", fault.name]
    process = subprocess.Popen(
        lab.network.inside(lab.args.devices, [*words, json.dumps(asdict(_facts(lab.args)))]),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        while process.poll() is None:
            yield LOOK
    finally:
        process.kill()
    assert process.stdout is not None
    told = process.stdout.read().strip().rpartition("\n")[2]
    found: dict[str, Any] = json.loads(told) if told else {"said": "it failed"}
    fault.became = str(found["said"])
    fault.texts = [found["text"]] if "text" in found else []


def _facts(args: EdgeLabArgs) -> Facts:
    tokenizer = load_tokenizer(resolve_target(args.target), args.target)
    prompt = load_prompts(args.prompts)[0].text
    return Facts(
        f"{SERVER_ADDRESS}:{PORT}",
        vocabulary_fingerprint(tokenizer, 0),
        encode_messages(tokenizer, prompt, args.target, {}).tolist(),
        args.max_new_tokens,
        args.temperature,
        args.seed,
    )


ON_DEVICES: Mapping[str, Callable[[Fault, Lab], Generator[float, None, None]]] = {
    "kill": _kill,
    "stall": _stall,
    "loss": _cut,
}
FAULTS: Mapping[str, Callable[[Fault, Lab], Generator[float, None, None]]] = {
    **ON_DEVICES,
    "server": _restart,
    **dict.fromkeys(STRANGERS, _stranger),
}
"""Everything that can go wrong, in the order in which it does."""


def _kept(lab: Lab, device: int) -> dict[str, Any] | None:
    path = journal_of(lab.folder, device)
    return read_json(path, REMEDY) if path.exists() else None


def _kept_more(lab: Lab, device: int, before: Mapping[str, Any] | None) -> bool:
    """Whether a device has written something since."""
    return _kept(lab, device) != before


def _under_way(lab: Lab, devices: Sequence[int]) -> list[str]:
    """Sessions of the texts that devices are writing."""
    kept = [_kept(lab, one) for one in devices]
    return [str(one["unfinished"]["session"]) for one in kept if one and one["unfinished"]]


def _log(lab: Lab) -> list[dict[str, Any]]:
    path = lab.folder / "rounds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [one for one in map(json.loads, lines) if "committed" in one]


def _committed(lab: Lab) -> int:
    return sum(sum(one["committed"]) for one in _log(lab))


def _rounds_since(lab: Lab, moment: float) -> int:
    return sum(one["began"] > moment for one in _log(lab))
