"""A text under way on a device: what it drafts, and what the server's messages make of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from draftgym.decoding.drafting import DraftShape
from draftgym.decoding.errors import DraftgymError
from draftgym.envs.radio.radio import Band, from_db
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.drafting import DeviceText
from draftgym.serving.edge.devices.pacing import Pacer
from draftgym.serving.edge.devices.stream import Stream, wire_bytes
from draftgym.serving.edge.payload import chances_of, packed
from draftgym.serving.edge.rules import device_rule

if TYPE_CHECKING:  # a device writes texts
    from draftgym.serving.edge.devices.device import EdgeDevice


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


class Writing:
    """A text under way on a device.

    Args:
        device: Drafts, and knows its channel and speed.
        text: The text.
        tell: Is given each round's tokens.
        session: The text's name for the server.
        written: What there is of the text, which grows.
    """

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

    def send(self, stream: Stream, message: Any) -> None:
        """Sends a message and counts it."""
        self.done.up += wire_bytes(message)
        stream.send(message)

    def take(self, message: Any, stream: Stream, pacer: Pacer) -> None:
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
