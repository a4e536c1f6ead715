"""A socket by its shortest way: what is read, what is written, and how both end."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_httptrack._hypercorn.readiness import Readiness
from trio_httptrack._hypercorn.transport import MAX_PARTS, MAX_RECEIVE, Transport

from .test_faults import reset

linux = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")


class Pair:
    """A client's end, and the transport of the server's."""

    def __init__(self, client: trio.SocketStream, transport: Transport) -> None:
        self.client = client
        self.transport = transport


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[Pair]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await trio.open_tcp_stream(*listener.getsockname())
        server = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
    with closing(Readiness()) as readiness:
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(readiness.run)
            with closing(Transport(server, readiness)) as transport:
                yield Pair(client, transport)
            assert readiness._callbacks == {}
            nursery.cancel_scope.cancel()
