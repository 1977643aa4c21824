"""A device of which a test says every message, and honest ones beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from draftgym.decoding.model.target import Target
from draftgym.serving.edge import edge_v1_pb2 as wire
from draftgym.serving.edge.devices.writing import Written
from draftgym.serving.edge.protocol import METHOD, vocabulary_fingerprint
from tests.serving.edge.edges import (
    LENGTH,
    Edge,
    in_threads,
    plain,
    text,
)

HONEST = 2


class Raw:
    """A device of which a test says every message."""

    def __init__(self, edge: Edge, metadata: Any = None) -> None:
        self._channel = grpc.insecure_channel(edge.address)
        self._out: list[Any] = []
        self._there = threading.Condition()
        call = self._channel.stream_stream(
            METHOD,
            request_serializer=lambda one: (
                one if isinstance(one, bytes) else one.SerializeToString()
            ),
            response_deserializer=wire.FromServer.FromString,
        )
        self.messages = call(self._requests(), metadata=metadata)

    def _requests(self) -> Iterator[Any]:
        while True:
            with self._there:
                self._there.wait_for(lambda: bool(self._out))
                message = self._out.pop(0)
            if message is None:
                return
            yield message

    def send(self, message: Any) -> None:
        """Sends a message, or any bytes."""
        with self._there:
            self._out.append(message)
            self._there.notify()

    def asked_to_draft(self) -> Any:
        """The verdict that asks for a draft."""
        for message in self.messages:
            if message.WhichOneof("what") == "verdict" and message.verdict.next.length:
                return message.verdict
        raise AssertionError("no draft was asked for")

    def ended_by(self) -> str:
        """Name of the status that ends the stream."""
        try:
            for _ in self.messages:
                pass
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def close(self) -> None:
        """Ends the connection without a word."""
        self.send(None)
        self._channel.close()


def opening(target: Target, index: int = 99, **changes: Any) -> Any:
    """What a device opens."""
    one = text(index)
    facts = {
        "session": f"raw-{index}",
        "prompt": one.prompt,
        "max_new_tokens": LENGTH,
        "drafter": "small",
        "tokenizer": vocabulary_fingerprint(None, target.vocab_size),
        "report": wire.Report(snr_db=20, token_seconds=0.01),
    }
    return wire.FromDevice(open=wire.Open(**(facts | changes)))


@contextmanager
def others_write(edge: Edge, target: Target, temperature: float = 1.0) -> Iterator[None]:
    """Honest devices write meanwhile, and get plain decoding's texts."""
    asked = [[text(10 * i + j, temperature) for j in range(3)] for i in range(HONEST)]
    results: list[list[Written]] = []

    def write(index: int) -> list[Written]:
        device = edge.device(target, ("small", "ngram")[index % 2])
        try:
            return [device.write(one) for one in asked[index]]
        finally:
            device.close()

    thread = threading.Thread(
        target=lambda: results.extend(in_threads(*(partial(write, i) for i in range(HONEST))))
    )
    thread.start()
    try:
        yield
    finally:
        thread.join()
    assert len(results) == HONEST, "every honest device has its texts"
    for texts, done in zip(asked, results, strict=True):
        assert [one.tokens for one in done] == [plain(target, one) for one in texts]
        assert sum(one.connections for one in done) == 1
