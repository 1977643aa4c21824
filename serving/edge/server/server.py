"""The server's side of the wire: who may connect, what may be said, and what goes wrong.

One stream per device. What a stream reads goes to `draftgym.serving.edge.server.rounds`; what the
rounds have to say waits in the device's outbox, so that nobody waits for a slow reader.
"""

from __future__ import annotations

import asyncio
import hmac
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.verify.rules import check_temperature
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.payload import MODES
from draftgym.serving.edge.protocol import (
    LONGEST_NAME,
    METHOD,
    TOKEN,
    Refused,
    address_of,
    host_of,
    require,
    vocabulary_fingerprint,
)
from draftgym.serving.edge.server.member import Asked, Member
from draftgym.serving.edge.server.rounds import EdgeRounds

KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
"""Both sides ask whether the other is there: a dead connection ends within 40 seconds."""


@dataclass(frozen=True)
class Access:
    """Who may connect, and how.

    Attributes:
        token: What devices must send; None lets everybody in.
        certificate, key: For TLS, PEM; None for none.
    """

    token: str | None = None
    certificate: bytes | None = None
    key: bytes | None = None


class EdgeServer:
    """Serves devices until it is stopped; made and used in one event loop.

    Args:
        rounds: What plays.
        host: Where to listen.
        port: Where to listen; 0 takes any port that is free.
        access: Who may connect.

    Attributes:
        port: The port.
    """

    def __init__(
        self, rounds: EdgeRounds, host: str, port: int, access: Access | None = None
    ) -> None:
        self.rounds, self.access = rounds, access or Access()
        self._vocabulary = vocabulary_fingerprint(rounds.target.tokenizer, rounds.target.vocab_size)
        grpc = self._grpc = require("grpc")
        require("grpc.aio")
        limits = rounds.limits
        self._server = grpc.aio.server(
            options=(
                *KEEPALIVE,
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_metadata_size", 8192),
            ),
            maximum_concurrent_rpcs=rounds.cell.shape[1] + 2 * limits.waiting,
        )
        handler = grpc.stream_stream_rpc_method_handler(
            self._talk,
            request_deserializer=None,  # what cannot be read is answered, as other mistakes are
            response_serializer=wire.FromServer.SerializeToString,
        )
        _, service, method = METHOD.split("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self.port = self._listen(address_of(host, port))
        self._tasks: list[asyncio.Task[None]] = []

    def _listen(self, address: str) -> int:
        access = self.access
        try:
            if access.certificate is None:
                return int(self._server.add_insecure_port(address))
            pair = [(access.key, access.certificate)]
            credentials = self._grpc.ssl_server_credentials(pair)
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError as error:
            raise DraftgymError(
                f"cannot listen on {address}",
                "choose another --host or --port, or end who listens there",
            ) from error

    async def start(self) -> None:
        """Lets devices in."""
        await self._server.start()
        work = (self.rounds.run(), self.rounds.watch())
        self._tasks = [asyncio.ensure_future(one) for one in work]

    async def stop(self, grace: float | None = None) -> None:
        """Ends all streams; devices come back to the next server and go on."""
        await self._server.stop(grace)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait(self) -> None:
        """Returns when the rounds have ended, with their error."""
        await asyncio.gather(*self._tasks)

    async def _talk(self, requests: Any, context: Any) -> None:
        """A device's stream."""
        member = Member(host_of(context.peer()))
        reading = asyncio.ensure_future(self._read(member, context))
        writing = asyncio.ensure_future(self._write(member, context))
        try:
            done, _ = await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
            if reading in done and reading.exception() is not None and not writing.done():
                await asyncio.wait({writing}, timeout=self.rounds.limits.open_seconds)
            for task in (writing, reading):
                error = task.exception() if task.done() else None
                if isinstance(error, Refused):
                    await context.abort(self._grpc.StatusCode[error.code], error.reason)
        finally:
            self.rounds.leave(member)
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)

    async def _read(self, member: Member, context: Any) -> None:
        """Hands on what a device says, until it closes its side or says what it may not."""
        try:
            self._check_token(context)
            read = await self._first(context)
            while read is not self._grpc.aio.EOF:
                message = _parsed(read)
                kind = message.WhichOneof("what")
                if kind == "open":
                    self._open(member, message.open)
                elif kind == "draft":
                    _report(member, message.draft.report)
                    self.rounds.receive(member, message.draft)
                elif kind == "correction":
                    self.rounds.correct(member, message.correction)
                elif kind == "close":
                    return
                else:
                    raise Refused("INVALID_ARGUMENT", "a message of an unknown kind")
                read = await context.read()
        except Refused as refused:
            member.outbox.refuse(refused)
            raise

    async def _first(self, context: Any) -> Any:
        """The first message, if it comes in time."""
        reading = asyncio.ensure_future(context.read())
        over = asyncio.ensure_future(self.rounds.clock.sleep(self.rounds.limits.open_seconds))
        try:
            await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise Refused("DEADLINE_EXCEEDED", "the device has opened no text")
            return reading.result()
        finally:
            reading.cancel()
            over.cancel()

    async def _write(self, member: Member, context: Any) -> None:
        """Tells a device what there is to tell."""
        while True:
            await context.write(await member.outbox.next())

    def _check_token(self, context: Any) -> None:
        if self.access.token is None:
            return
        told = [value for name, value in context.invocation_metadata() or () if name == TOKEN]
        wanted = f"Bearer {self.access.token}".encode()
        if len(told) != 1 or not hmac.compare_digest(str(told[0]).encode(), wanted):
            raise Refused("UNAUTHENTICATED", "the server asks for another token")

    def _open(self, member: Member, opening: Any) -> None:
        asked = self._asked(opening)
        _report(member, opening.report)
        cell = self.rounds.cell
        member.outbox.put(
            wire.FromServer(
                opened=wire.Opened(
                    vocab_size=self.rounds.target.vocab_size,
                    hertz=cell.band.hertz,
                    noise_grows=cell.band.noise_grows,
                    payload=MODES[self.rounds.payload],
                    kept=self.rounds.kept,
                )
            )
        )
        self.rounds.open(member, asked)

    def _asked(self, opening: Any) -> Asked:
        """What a device opens, if it may.

        Raises:
            Refused: It may not.
        """
        limits, target = self.rounds.limits, self.rounds.target
        named = (opening.session, opening.drafter, opening.drafter_fingerprint, opening.category)
        if not opening.session or max(map(len, named)) > LONGEST_NAME:
            raise Refused("INVALID_ARGUMENT", "a session without a name, or one too long")
        if opening.tokenizer != self._vocabulary:
            raise Refused(
                "FAILED_PRECONDITION",
                f"the device's tokenizer is not that of target {target.name!r}",
            )
        prompt, written = tuple(opening.prompt), tuple(opening.written)
        if not 1 <= len(prompt) <= limits.prompt_tokens:
            raise Refused(
                "INVALID_ARGUMENT",
                f"a prompt of {len(prompt)} tokens; 1 to {limits.prompt_tokens} are served",
            )
        if not len(written) < opening.max_new_tokens <= limits.new_tokens:
            raise Refused(
                "INVALID_ARGUMENT",
                f"a text of {opening.max_new_tokens} tokens, {len(written)} of them written; "
                f"texts of up to {limits.new_tokens} are served",
            )
        self._check_tokens(prompt, written)
        try:
            check_temperature(opening.temperature)
            self.rounds.cell.table.arm_of(opening.drafter)
        except DraftgymError as error:
            raise Refused("INVALID_ARGUMENT", f"{error.problem}; {error.remedy}") from error
        return Asked(
            opening.session,
            prompt,
            written,
            opening.max_new_tokens,
            opening.temperature,
            opening.seed,
            opening.drafter,
            opening.drafter_fingerprint,
            opening.category,
        )

    def _check_tokens(self, prompt: Sequence[int], written: Sequence[int]) -> None:
        target = self.rounds.target
        most = target.decoder.embedding.shape[0]
        if max((*prompt, *written)) >= most:
            raise Refused("INVALID_ARGUMENT", f"a token beyond the {most} of the target")
        if not target.stop_tokens.isdisjoint(written):
            raise Refused("INVALID_ARGUMENT", "this text has ended")


def _parsed(read: bytes) -> Any:
    """A message.

    Raises:
        Refused: It cannot be read.
    """
    try:
        return wire.FromDevice.FromString(read)
    except Exception as error:  # protobuf's own, of several kinds
        raise Refused("INVALID_ARGUMENT", "a message that cannot be read") from error


def _report(member: Member, report: Any) -> None:
    """Keeps what a device says of itself.

    Raises:
        Refused: It cannot be.
    """
    possible = math.isfinite(report.snr_db) and abs(report.snr_db) <= 300
    if not possible or not 0 <= report.token_seconds < 3600:
        raise Refused("INVALID_ARGUMENT", "a report of impossible numbers")
    member.snr_db, member.token_seconds = report.snr_db, report.token_seconds
