"""A device: it drafts, uploads at its share of the band, and writes what the server says.

    Open  ->  [ turn: draft  ->  upload, paced  ->  verdict: text ]...  ->  ending

What makes a text (prompt, seed, what is written) is the device's, so a text goes on after anything
that ends a connection: with the next one the device tells what it has, and the target's next token
is what it would have been.
"""

from __future__ import annotations

import math
import queue
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.radio import Band, from_db
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.drafting import DeviceText, Drafting
from draftgym.serving.edge.devices.pacing import Pacer
from draftgym.serving.edge.payload import chances_of, packed
from draftgym.serving.edge.protocol import METHOD, TOKEN, require
from draftgym.serving.edge.rules import device_rule

FRAMING = 14
"""Bytes that HTTP/2 (9) and gRPC (5) put before a message."""
COME_BACK = ("UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED")
"""Endings of a connection after which a device tries again."""
TRIES = 8
"""Connections in a row that may fail before a device gives up."""
LONGEST_PAUSE = 5.0


@dataclass(frozen=True)
class Text:
    """What a device is to write.

    Attributes:
        prompt: Token ids.
        max_new_tokens: At most.
        temperature: 0 for greedy.
        seed: Of the sampling noise.
        category: What kind of text it is, for schedulers; may be empty.
    """

    prompt: Sequence[int]
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    category: str = ""


@dataclass
class Written:
    """What has become of it.

    Attributes:
        tokens: Token ids.
        finish_reason: `stop` or `length`.
        rounds: Verdicts, the first token included.
        drafted, accepted: Tokens of drafts.
        connections: Connections that it took.
        reconnects: Connections that broke meanwhile.
        up, down: Bytes with their framing (`FRAMING`); TCP, TLS and headers come on top.
        seconds: Time from the first message to the last.
        drafting: Seconds of it that drafts took.
    """

    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    connections: int = 0
    reconnects: int = 0
    up: int = 0
    down: int = 0
    seconds: float = 0.0
    drafting: float = 0.0


class _Stream:
    """One connection: messages out, paced, and messages in.

    Args:
        channel: Of gRPC.
        token: Who may connect.
        pacer: Lets messages go.
    """

    def __init__(self, channel: Any, token: str | None, pacer: Pacer) -> None:
        self._out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._pacer = pacer
        call = channel.stream_stream(
            METHOD,
            request_serializer=wire.FromDevice.SerializeToString,
            response_deserializer=wire.FromServer.FromString,
        )
        metadata = [(TOKEN, f"Bearer {token}")] if token else None
        self.messages = call(self._requests(), metadata=metadata)

    def send(self, message: Any) -> None:
        """Queues a message; it leaves at the device's rate."""
        self._out.put(message)

    def close(self) -> None:
        """Ends the stream at once."""
        self._pacer.close()
        self._out.put(None)
        self.messages.cancel()

    def _requests(self) -> Iterator[Any]:
        while (message := self._out.get()) is not None:
            self._pacer.send(8 * wire_bytes(message))
            yield message


def wire_bytes(message: Any) -> int:
    """Bytes of a message with its framing."""
    return int(message.ByteSize()) + FRAMING


class EdgeDevice:
    """Writes texts with a server.

    Args:
        drafting: What it drafts with.
        connect: Opens a channel of gRPC.
        token: What the server asks for, if it does.
        snr_db: Tells the channel's signal-to-noise ratio, decibels.
        token_seconds: Seconds per drafted token to report; None measures it.
        slowed: Whether a draft takes at least that long.
        tries: Connections in a row that may fail before it gives up; None for `TRIES`.
        pacer: Makes what lets the messages of a connection go.
        sleep: Waits before another connection.
    """

    def __init__(
        self,
        drafting: Drafting,
        connect: Callable[[], Any],
        token: str | None = None,
        snr_db: Callable[[], float] = lambda: 20.0,
        token_seconds: float | None = None,
        pacer: Callable[[], Pacer] = Pacer,
        sleep: Callable[[float], None] = time.sleep,
        slowed: bool = False,
        tries: int | None = None,
    ) -> None:
        self.drafting, self._connect, self._token = drafting, connect, token
        self._snr_db, self._token_seconds = snr_db, token_seconds
        self._make_pacer, self._sleep, self._slowed = pacer, sleep, slowed
        self._tries = TRIES if tries is None else tries
        self._channel: Any = None
        self._stream: _Stream | None = None
        self._grpc = require("grpc")

    def write(
        self,
        text: Text,
        tell: Callable[[list[int]], None] = lambda tokens: None,
        session: str | None = None,
        written: Written | None = None,
    ) -> Written:
        """Writes a text to its end, over as many connections as it takes.

        Args:
            text: The text.
            tell: Is given each round's tokens, when `written` has them.
            session: The text's name for the server; None makes one.
            written: What there is of the text, which goes on from there; None begins it.

        Raises:
            DraftgymError: The server refuses it, or cannot be reached any more.
        """
        most = self.drafting.positions
        if most is not None and len(text.prompt) + text.max_new_tokens > most:
            raise DraftgymError(
                f"a prompt of {len(text.prompt)} tokens and {text.max_new_tokens} new ones; the "
                f"drafter knows {most} positions",
                "shorten the prompt or lower --max-new-tokens",
            )
        session, written = session or new_session(), written or Written()
        writing = _Writing(self, text, tell, session, written)
        failed = 0
        while not writing.done.finish_reason:
            before = len(writing.done.tokens)
            ending = self._go_on(writing)
            if ending is None:
                break
            written.reconnects += 1
            failed = 1 if len(writing.done.tokens) > before else failed + 1
            if ending[0] not in COME_BACK or failed >= self._tries:
                raise _ended(*ending)
            self._sleep(min(LONGEST_PAUSE, 0.1 * 2**failed))
        return writing.done

    def close(self) -> None:
        """Ends the connection."""
        if self._stream is not None:
            self._stream.close()
        if self._channel is not None:
            self._channel.close()
        self._stream = self._channel = None

    def _go_on(self, writing: _Writing) -> tuple[str, str] | None:
        """Writes until the text is done, or tells how its connection ended: status and reason."""
        done = False
        try:
            self._talk(writing)
            done = bool(writing.done.finish_reason)
        except self._grpc.RpcError as error:
            return error.code().name, str(error.details())
        finally:
            if not done:
                self.close()
        return None if done else ("UNAVAILABLE", "it ended in the middle of a text")

    def _talk(self, writing: _Writing) -> None:
        if self._stream is None:
            self._channel, self._pacer = self._connect(), self._make_pacer()
            self._stream = _Stream(self._channel, self._token, self._pacer)
            writing.done.connections += 1
        self._pacer.set_rate(math.inf)  # no share belongs to what opens a text
        writing.send(self._stream, wire.FromDevice(open=writing.opening()))
        for message in self._stream.messages:
            writing.take(message, self._stream, self._pacer)
            if writing.done.finish_reason:
                return

    @property
    def token_seconds(self) -> float | None:
        """Seconds per drafted token that it reports; None before they are known."""
        return self._token_seconds

    def report(self) -> Any:
        """What the device knows of itself."""
        return wire.Report(snr_db=self._snr_db(), token_seconds=self._token_seconds or 0.0)

    def lose_time(self, tokens: int, seconds: float) -> float:
        """Waits until a draft has taken as long as it must.

        Args:
            tokens: Drafted tokens.
            seconds: What they took.

        Returns:
            What they have taken now.
        """
        least = tokens * (self._token_seconds or 0.0) if self._slowed else 0.0
        if least > seconds:
            self._sleep(least - seconds)
        return max(least, seconds)

    def measure(self, prompt: Sequence[int]) -> None:
        """Finds out how fast it drafts, once."""
        if self._token_seconds is None:
            self._token_seconds = self.drafting.token_seconds(prompt)


class _Writing:
    """A text under way on a device."""

    def __init__(
        self,
        device: EdgeDevice,
        text: Text,
        tell: Callable[[list[int]], None],
        session: str,
        written: Written,
    ) -> None:
        self.device, self.text, self.tell = device, text, tell
        self.done, self._session = written, session
        self._before, self._begun = written.seconds, time.monotonic()
        self._context: DeviceText | None = None
        self._state: Any = None
        self._draft: list[int] = []
        self._sampled: Tensor | None = None
        self._band: Band | None = None
        self._scalar = False
        device.measure(text.prompt)

    def opening(self) -> Any:
        """Opens the text, or goes on with it."""
        text, drafting = self.text, self.device.drafting
        self._draft = []
        return wire.Open(
            session=self._session,
            prompt=text.prompt,
            written=self.done.tokens,
            max_new_tokens=text.max_new_tokens,
            temperature=text.temperature,
            seed=text.seed,
            drafter=drafting.name,
            drafter_fingerprint=drafting.drafter.fingerprint,
            tokenizer=drafting.vocabulary,
            category=text.category,
            report=self.device.report(),
        )

    def send(self, stream: _Stream, message: Any) -> None:
        """Sends a message and counts it."""
        self.done.up += wire_bytes(message)
        stream.send(message)

    def take(self, message: Any, stream: _Stream, pacer: Pacer) -> None:
        """Does what the server says."""
        self.done.down += wire_bytes(message)
        kind = message.WhichOneof("what")
        if kind == "opened":
            self._begin(message.opened)
        elif kind == "share":
            self._pace(message.share.share, pacer)
        elif kind == "rejected":
            self._pace(message.rejected.share, pacer)
            self.send(stream, self._correction(message.rejected.accepted))
        elif kind == "verdict":
            self._write(message.verdict)
            if message.verdict.HasField("next"):
                self._pace(message.verdict.next.share, pacer)
                if message.verdict.next.length:
                    self.send(stream, self._drafted(message.verdict.next.length))

    def _begin(self, opened: Any) -> None:
        text = self.text
        self._band = Band(opened.hertz, opened.noise_grows)
        self._scalar = opened.payload == wire.SCALAR
        rule = device_rule(opened, text.temperature, text.seed)
        if self._context is None:
            self._context = DeviceText(text.prompt, text.max_new_tokens, rule)
            self._context.add(self.done.tokens)
            self._state = self.device.drafting.drafter.new_state(self._context.capacity)
        self._context.rule = rule

    def _pace(self, share: float, pacer: Pacer) -> None:
        assert self._band is not None  # shares come behind `Opened`
        snr = from_db(self.device.report().snr_db)
        pacer.set_rate(float(self._band.rate(snr, share)))

    def _write(self, verdict: Any) -> None:
        context = self._context
        if context is None or verdict.position != len(self.done.tokens):
            raise DraftgymError("the server's verdict is of another text", "start the device again")
        new = [*self._draft[: verdict.accepted], *verdict.tokens]
        context.add(new)
        self.done.rounds += 1
        self.done.accepted += verdict.accepted
        self.done.tokens += new
        self._draft = []
        self.done.seconds = self._before + time.monotonic() - self._begun
        self.done.finish_reason = {wire.STOP: "stop", wire.LENGTH: "length"}.get(verdict.ending, "")
        self.tell(new)

    def _drafted(self, length: int) -> Any:
        """A draft, as long as the server says."""
        drafter, context = self.device.drafting.drafter, self._context
        assert context is not None  # a verdict came before
        begin = time.monotonic()
        drafter.catch_up(self._state, context)
        shape = DraftShape(min(length, drafter.max_draft_length))
        proposal = drafter.propose(self._state, context, shape)
        self._draft, self._sampled = proposal.token_ids, proposal.draft_probs
        taken = self.device.lose_time(len(self._draft), time.monotonic() - begin)
        self.done.drafting += taken
        self.done.drafted += len(self._draft)
        draft = wire.Draft(
            position=len(self.done.tokens), tokens=self._draft, report=self.device.report()
        )
        if self._scalar and self._sampled is not None:
            draft.chances.extend(chances_of(self._sampled, self._draft))
        else:
            draft.distributions.extend(packed(self._sampled))
        return wire.FromDevice(draft=draft)

    def _correction(self, node: int) -> Any:
        """What a rejected token was sampled from."""
        if self._sampled is None or node >= len(self._draft):
            raise DraftgymError("the server rejects what was not drafted", "start the device again")
        (told,) = packed(self._sampled[node : node + 1])
        correction = wire.Correction(position=len(self.done.tokens), distribution=told)
        return wire.FromDevice(correction=correction)


def new_session() -> str:
    """A text's name that nobody else can guess."""
    return secrets.token_hex(16)


def _ended(code: str, details: str) -> DraftgymError:
    """What a device's user is told."""
    remedies = {
        "UNAUTHENTICATED": "give the server's token with --token",
        "UNAVAILABLE": "check --server, and whether `draftgym edge serve` runs there",
        "RESOURCE_EXHAUSTED": "try again later, or send less",
        "FAILED_PRECONDITION": "use the drafter and tokenizer that belong to the server's target",
    }
    remedy = remedies.get(code, "start the device again; the server's log may say more")
    return DraftgymError(f"the server ended the stream: {details or code}", remedy)
