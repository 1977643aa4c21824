"""What is written leaves at once, and waits for no acknowledgement of what left before."""

from __future__ import annotations

import socket

from draftgym.serving.http.server import listen


def test_a_connection_holds_nothing_back() -> None:
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as taken,
    ):
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
