"""One connection of a device: messages out at its rate, and messages in."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.pacing import Pacer
from draftgym.serving.edge.protocol import METHOD, TOKEN

FRAMING = 14
"""Bytes that HTTP/2 (9) and gRPC (5) put before a message."""


class Stream:
    """Messages out, paced, and messages in.

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
