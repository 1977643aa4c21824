"""Connections that break, anywhere: a device comes back, goes on, and in the end gives up."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.decoding.model.target import Target
from draftgym.serving.edge.devices.device import EdgeDevice
from draftgym.serving.edge.protocol import METHOD
from tests.serving.edge.edges import PATIENT, SetClock, drafting, plain, serving, text
from tests.serving.edge.raw import Raw, others_write
from tests.serving.edge.test_faults_harm_nobody_else import eventually


class Cutting:
    """A relay of TCP on loopback that ends connections after so many bytes to the device.

    Args:
        port: Of the server.
        after: Bytes of each connection in turn; the next ones are left whole.
    """

    def __init__(self, port: int, after: list[int]) -> None:
        self._port, self._after = port, after
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.cuts = 0
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _accept(self) -> None:
        works: list[threading.Thread] = []
        with suppress(OSError):
            while True:
                device, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._port))
                most = self._after.pop(0) if self._after else None
                for one in (
                    partial(self._carry, device, server, None),
                    partial(self._carry, server, device, most),
                ):
                    works.append(threading.Thread(target=one))
                    works[-1].start()
        for one in works:
            one.join()

    def _carry(self, source: socket.socket, sink: socket.socket, most: int | None) -> None:
        carried = 0
        with suppress(OSError):
            while (most is None or carried < most) and (read := source.recv(65536)):
                sink.sendall(read if most is None else read[: most - carried])
                carried += len(read)
            self.cuts += most is not None and carried >= most
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_goes_on_wherever_its_connections_break(target: Target, temperature: float) -> None:
    """In headers, between messages and within them."""
    with serving(target, "fixed") as edge, others_write(edge, target):
        relay = Cutting(edge.port, [10, 60, 110, 170, 230, 290, 350, 410])
        connect = partial(grpc.insecure_channel, f"127.0.0.1:{relay.port}")
        device = edge.device(target, connect=connect, sleep=lambda seconds: None, tries=99)
        told: list[int] = []
        done = device.write(text(7, temperature), told.extend)
        device.close()
        relay.close()
    assert done.tokens == told == plain(target, text(7, temperature))
    assert relay.cuts >= 2 and done.reconnects >= 2


class Ends(grpc.GenericRpcHandler):
    """Ends every stream at once, in peace."""

    def service(self, details: Any) -> Any:
        """See gRPC."""
        assert details.method == METHOD
        return grpc.stream_stream_rpc_method_handler(lambda messages, context: iter(()))


@contextmanager
def ending() -> Iterator[int]:
    """A server that does; its port."""
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Ends()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def test_a_server_that_ends_every_stream_is_given_up(target: Target) -> None:
    slept: list[float] = []
    with ending() as port:
        connect = partial(grpc.insecure_channel, f"127.0.0.1:{port}")
        device = EdgeDevice(drafting(target), connect, None, sleep=slept.append, tries=3)
        with pytest.raises(DraftgymError, match="in the middle of a text"):
            device.write(text(0))
    assert len(slept) == 2 and slept[0] < slept[1]


def test_streams_beyond_what_there_is_room_for_are_refused(target: Target) -> None:
    """A place, one that waits for it, and one more to tell so; none of them says anything."""
    clock = SetClock()
    with serving(target, users=1, limits=replace(PATIENT, waiting=1), clock=clock) as edge:
        silent = [Raw(edge) for _ in range(3)]
        eventually(lambda: clock.sleepers > len(silent))  # and who watches for idle ones
        assert Raw(edge).ended_by() == "RESOURCE_EXHAUSTED"
        for one in silent:
            one.close()


def test_what_is_no_http2_harms_nobody(target: Target) -> None:
    with serving(target) as edge, others_write(edge, target):
        somebody = socket.create_connection(("127.0.0.1", edge.port))
        somebody.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
        while somebody.recv(65536):
            pass
        somebody.close()


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6")
def test_a_server_listens_on_an_address_of_ipv6(target: Target) -> None:
    with serving(target, host="::1") as edge:
        connect = partial(grpc.insecure_channel, f"[::1]:{edge.port}")
        device = edge.device(target, connect=connect)
        assert device.write(text(0)).tokens == plain(target, text(0))
        assert [one.peer for one in edge.rounds.members] == ["::1"]
        device.close()
