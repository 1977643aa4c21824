"""A connected device as the server sees it, and what is still to be told to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from draftgym.decoding.model.interface import PassOutput
from draftgym.decoding.round import Draft
from draftgym.decoding.session import Session
from draftgym.decoding.verify.base import Verdict
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.protocol import Refused

MOST_UNREAD = 8
"""Messages that wait for a device that does not read; verdicts become one while they wait."""


class Outbox:
    """What a device is still to be told, in order, without growing.

    A verdict that has not left takes in the next one, and a share takes the place of another.
    """

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()
        self._there = asyncio.Event()
        self._refused: Refused | None = None

    def put(self, message: Any) -> None:
        """Adds a message.

        Raises:
            Refused: The device does not read.
        """
        if not (self._waiting and _takes_in(self._waiting[-1], message)):
            self._waiting.append(message)
        if len(self._waiting) > MOST_UNREAD:
            raise Refused("RESOURCE_EXHAUSTED", "the device does not read what it is told")
        self._there.set()

    def refuse(self, refused: Refused) -> None:
        """What is there is still told, then the stream ends with a reason."""
        self._refused = self._refused or refused
        self._there.set()

    async def next(self) -> Any:
        """The next message, when there is one.

        Raises:
            Refused: There is none any more.
        """
        while not self._waiting:
            if self._refused is not None:
                raise self._refused
            self._there.clear()
            await self._there.wait()
        return self._waiting.popleft()


def _takes_in(last: Any, new: Any) -> bool:
    """Whether an unsent message has become both."""
    kinds = last.WhichOneof("what"), new.WhichOneof("what")
    if kinds == ("share", "share"):
        last.CopyFrom(new)
        return True
    if kinds != ("verdict", "verdict") or last.verdict.ending or new.verdict.accepted:
        return False
    last.verdict.tokens.extend(new.verdict.tokens)
    last.verdict.ending = new.verdict.ending
    last.verdict.ClearField("next")
    if new.verdict.HasField("next"):
        last.verdict.next.CopyFrom(new.verdict.next)
    return True


@dataclass(frozen=True)
class Asked:
    """What a device opened.

    Attributes:
        session: Its own name for the text.
        prompt: Token ids.
        written: What it has of the text.
        max_new_tokens: Of the whole text.
        temperature: 0 for greedy.
        seed: Of the sampling noise.
        drafter: What it drafts with.
        drafter_fingerprint: Which one exactly.
        category: What kind of text it is.
    """

    session: str
    prompt: tuple[int, ...]
    written: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    seed: int
    drafter: str
    drafter_fingerprint: str
    category: str

    def continues(self, other: Asked) -> bool:
        """Whether it is the same text as another's: the name alone proves nothing."""
        mine, its = (
            (one.session, one.prompt, one.max_new_tokens, one.temperature, one.seed)
            for one in (self, other)
        )
        return mine == its


@dataclass(frozen=True)
class Verified:
    """What a pass said of a draft, until it is committed.

    Attributes:
        draft: The draft.
        output: What the pass gave of it.
        verdict: What is accepted.
        seconds: What the pass took.
    """

    draft: Draft
    output: PassOutput
    verdict: Verdict
    seconds: float


@dataclass(eq=False)
class Member:
    """A connected device.

    Attributes:
        peer: Its address.
        outbox: What it is to be told.
        asked: Its text; None before the first.
        place: Its place in the cell; None while it waits for one.
        newcomer: Whether the cell knows nothing of it yet.
        session: The text as it is written; None where none is.
        snr_db, token_seconds: What it reported last.
        length: Tokens that it was told to draft, and has not sent yet; 0 where none.
        arrived: The draft that is there and not committed yet; None where one is waited for, or
            its correction.
        arrived_at: When it came, by the server's clock.
        sampled: What its tokens, or the rejected one, were sampled by `[n, vocab]`; None where
            nothing was told.
        chances: Its tokens' own probabilities, of payload `scalar`.
        verified: What the pass said of it; None before.
        rejected: Which token was rejected, while its distribution is waited for.
        accepted: Tokens of its last draft that it has not been told of.
        tokens: Tokens behind them that it has not been told.
        position: Tokens of the text that it has been told.
        waited_since: Since when it has been waited for; None where it need not do anything.
        gone: Whether its stream has ended.
    """

    peer: str = ""
    outbox: Outbox = field(default_factory=Outbox)
    asked: Asked | None = None
    place: int | None = None
    newcomer: bool = True
    session: Session | None = None
    snr_db: float = 0.0
    token_seconds: float = 0.0
    length: int = 0
    arrived: list[int] | None = None
    arrived_at: float = 0.0
    sampled: Tensor | None = None
    chances: list[float] | None = None
    verified: Verified | None = None
    rejected: int | None = None
    accepted: int = 0
    tokens: list[int] = field(default_factory=list)
    position: int = 0
    waited_since: float | None = None
    gone: bool = False

    @property
    def writing(self) -> bool:
        """Whether a text is being written."""
        return self.session is not None

    def take(self, accepted: int, tokens: Sequence[int]) -> None:
        """A verdict, to be told with the next turn."""
        self.accepted, self.tokens = accepted, list(tokens)

    def tell(self, turn: tuple[int, float] | None, ending: Any = wire.NONE) -> None:
        """Tells the newest verdict and what is next.

        Args:
            turn: Length of the next draft and share of the band; None behind an ending.
            ending: How the text has ended, if it has.

        Raises:
            Refused: The device does not read.
        """
        verdict = wire.Verdict(
            position=self.position, accepted=self.accepted, tokens=self.tokens, ending=ending
        )
        if turn is not None:
            verdict.next.length, verdict.next.share = turn
        self.position += self.accepted + len(self.tokens)
        self.accepted, self.tokens = 0, []
        self.outbox.put(wire.FromServer(verdict=verdict))
