"""`draftgym edge device`: writes what it is asked, one text after the other."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.files import write_json
from draftgym.decoding.text.stream import TextStream
from draftgym.decoding.verify.seeds import check_seed
from draftgym.rollouts.prompts.sets import load_prompts
from draftgym.serving.edge.devices.channel import RecordedSnr, find_trace
from draftgym.serving.edge.devices.drafting import Drafting, DraftingArgs, load_drafting
from draftgym.serving.edge.devices.pacing import Pacer
from draftgym.serving.edge.protocol import authorities, require_edge, token_of

if TYPE_CHECKING:
    from draftgym.serving.edge.devices.device import EdgeDevice
    from draftgym.serving.edge.devices.journal import Journal
    from draftgym.serving.edge.devices.writing import Text, Written

READY = "ready"
"""What a device says that waits for its beginning."""


@dataclass(frozen=True, kw_only=True)
class EdgeDeviceArgs(DraftingArgs):
    """Write texts as a device: draft here, have the target verify there.

    Attributes:
        server: Where `draftgym edge serve` listens, as HOST:PORT.
        prompt: What to ask; several are answered one after the other.
        prompts: Ask what is in a prompt set: train, heldout, or a JSON-lines file.
        seconds: Ask all again and again until so many seconds have passed; the text under way then
            stays unfinished.
        max_new_tokens: Tokens of a text at most.
        temperature: 0 (greedy), or above to sample.
        seed: Of the sampling noise: the same seed gives the same text.
        category: What kind of text it is (chat, code, math, ...), for the scheduler.
        snr_db: Signal-to-noise ratio of the device's channel, as its modem tells it.
        channel: Recording of the channel instead (CSV: seconds, snr_db, and user where there are
            several), played again and again.
        channel_user: Whose recording in it.
        channel_since: When the recording begins, Unix seconds; by default when the device does.
        token_seconds: Draft no faster than so many seconds a token, as a slower device would.
        pace: Uploads wait until they would have left at the device's share of the band; off where
            the network itself keeps to shares.
        wait: Load everything, say "ready" on standard error, and begin when a line comes on
            standard input: the Unix seconds at which the recording begins, or nothing for now.
        state: File that keeps what is written; a device that is started again goes on from there.
        json: Write what became of each text to this file.
        tries: Connections in a row that may fail before the device gives up.
        token: What the server asks for; also read from the variable DRAFTGYM_EDGE_TOKEN.
        tls: Talk through TLS.
        tls_ca: Certificate of who signed the server's, PEM; default: those of the system.
    """

    server: str
    prompt: tuple[str, ...] = ()
    prompts: str | None = None
    seconds: float | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    category: str = ""
    snr_db: float = 20.0
    channel: Path | None = None
    channel_user: str | None = None
    channel_since: float | None = None
    token_seconds: float | None = None
    pace: bool = True
    wait: bool = False
    state: Path | None = None
    json: Path | None = None
    tries: int | None = None
    token: str | None = None
    tls: bool = False
    tls_ca: Path | None = None

    def asked(self) -> list[tuple[str, str, str]]:
        """Name, category and text of what is asked.

        Raises:
            DraftgymError: Nothing is, or the set cannot be read.
        """
        found = [(f"prompt-{i}", self.category, one) for i, one in enumerate(self.prompt)]
        if self.prompts is not None:
            found += [
                (one.question_id, self.category or one.category, one.text)
                for one in load_prompts(self.prompts)
            ]
        if not found:
            raise DraftgymError("nothing to ask", "give --prompt TEXT or --prompts FILE")
        return found


class TimeIsUp(Exception):
    """The device was to write for so long; what it has is kept."""


def run_device(args: EdgeDeviceArgs) -> list[Written]:
    """Writes the texts, and tells on standard error what they took.

    Raises:
        DraftgymError: Anything the user can mend.
    """
    check_seed(args.seed)
    if args.token_seconds is not None and not 0 <= args.token_seconds < 3600:
        raise DraftgymError(
            f"--token-seconds is {args.token_seconds}", "give seconds, such as 0.05"
        )
    require_edge()
    from draftgym.serving.edge.devices.journal import Journal

    asked, journal = args.asked(), Journal(args.state)
    trace = find_trace(args.channel, args.channel_user) if args.channel else None
    drafting = load_drafting(args)
    since = _beginning(args.wait) or args.channel_since or time.time()
    snr_db = (lambda: args.snr_db) if trace is None else RecordedSnr(trace, since)
    device = _device(args, drafting, snr_db)
    if args.seconds is not None:
        signal.signal(signal.SIGTERM, _stop)
    done: list[Written] = []
    try:
        written = len(journal.done)
        for index, (question_id, text) in enumerate(_texts(args, drafting, asked)):
            if index < written:
                journal.check(index, text, question_id)
                continue
            done.append(_write(args, device, journal, text, question_id, since))
    except TimeIsUp:
        pass
    finally:
        device.close()
        if args.json is not None:
            body = {"drafter": drafting.name, "token_seconds": device.token_seconds}
            texts = {"texts": journal.done, "unfinished": journal.unfinished}
            write_json(args.json, body | texts, None)
    return done


def _device(args: EdgeDeviceArgs, drafting: Drafting, snr_db: Callable[[], float]) -> EdgeDevice:
    grpc = require_edge()
    from draftgym.serving.edge.devices.device import EdgeDevice

    options = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 20_000)]
    roots = authorities(args.tls_ca) if args.tls_ca else None

    def connect() -> Any:
        if not (args.tls or args.tls_ca):
            return grpc.insecure_channel(args.server, options)
        return grpc.secure_channel(args.server, grpc.ssl_channel_credentials(roots), options)

    return EdgeDevice(
        drafting,
        connect,
        token_of(args.token),
        snr_db,
        args.token_seconds,
        pacer=Pacer if args.pace else partial(Pacer, paced=False),
        slowed=args.token_seconds is not None,
        tries=args.tries,
    )


def _texts(
    args: EdgeDeviceArgs, drafting: Drafting, asked: list[tuple[str, str, str]]
) -> Iterator[tuple[str, Text]]:
    """What is to be written: name and text."""
    from draftgym.serving.edge.devices.writing import Text

    forever = args.seconds is not None
    for name, category, prompt in itertools.cycle(asked) if forever else asked:
        ids = drafting.encode(prompt)
        yield name, Text(ids, args.max_new_tokens, args.temperature, args.seed, category)


def _write(
    args: EdgeDeviceArgs,
    device: EdgeDevice,
    journal: Journal,
    text: Text,
    question_id: str,
    since: float,
) -> Written:
    """Writes a text to standard output, and keeps each round of it."""
    session, written = journal.begin(text, question_id)
    decode = device.drafting.decode
    stream = TextStream(decode, lambda piece: print(piece, end="", flush=True))
    stream.add(written.tokens)

    def tell(tokens: list[int]) -> None:
        stream.add(tokens)
        journal.save()
        if args.seconds is not None and time.time() - since >= args.seconds:
            raise TimeIsUp

    device.write(text, tell, session, written)
    stream.close()
    print(flush=True)
    print(describe(written), file=sys.stderr)
    return written


def _beginning(wait: bool) -> float | None:
    """Waits for the beginning where it is to; the moment, if it is told."""
    if not wait:
        return None
    print(READY, file=sys.stderr, flush=True)
    line = sys.stdin.readline().strip()
    try:
        return float(line) if line else None
    except ValueError as error:
        raise DraftgymError(f"the beginning is {line!r}", "give Unix seconds") from error


def _stop(number: int, frame: Any) -> None:
    raise TimeIsUp


def describe(done: Written) -> str:
    """What a text took, in a line."""
    tokens = len(done.tokens)
    return (
        f"{tokens} tokens in {done.rounds} rounds and {done.seconds:.1f} s; "
        f"{done.accepted} of {done.drafted} drafted tokens accepted; "
        f"{done.up} bytes up, {done.down} down ({done.up / tokens:.0f} and "
        f"{done.down / tokens:.0f} a token); ended by {done.finish_reason}"
    )
