"""A device: it drafts, uploads at its share of the band, and writes what the server says.

    Open  ->  [ turn: draft  ->  upload, paced  ->  verdict: text ]...  ->  ending

What makes a text (prompt, seed, what is written) is the device's, so a text goes on after anything
that ends a connection: with the next one the device tells what it has, and the target's next token
is what it would have been.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.drafting import Drafting
from draftgym.serving.edge.devices.pacing import Pacer
from draftgym.serving.edge.devices.stream import Stream
from draftgym.serving.edge.devices.writing import Text, Writing, Written, new_session
from draftgym.serving.edge.protocol import require

COME_BACK = ("UNAVAILABLE", "CANCELLED", "INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED")
"""Endings of a connection after which a device tries again."""
TRIES = 8
"""Connections in a row that may fail before a device gives up."""
LONGEST_PAUSE = 5.0


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
        self._stream: Stream | None = None
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
        writing = Writing(self, text, tell, session, written)
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

    def _go_on(self, writing: Writing) -> tuple[str, str] | None:
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

    def _talk(self, writing: Writing) -> None:
        if self._stream is None:
            self._channel, self._pacer = self._connect(), self._make_pacer()
            self._stream = Stream(self._channel, self._token, self._pacer)
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
