"""What several test files need: a recorder, an application, and two networks to serve it on."""

from __future__ import annotations

import socket
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trio
import trustme
from hypercorn.config import Config
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from trio.testing import MemoryReceiveStream, MemorySendStream, memory_stream_pair

from trio_httptrack import Conn, ConnState, Tracker, compose, tracked_server
from trio_httptrack._hypercorn.connection import Connection
from trio_httptrack._hypercorn.errors import ungrouped
from trio_httptrack._hypercorn.readiness import Readiness
from trio_httptrack._hypercorn.worker import Worker

# It cannot push, upgrade or send trailers with the h2 of today, nor serve WSGI without noise.
OLD_HYPERCORN = version("hypercorn").startswith("0.17.")

CA = trustme.CA()
CERT = CA.issue_cert("localhost", "127.0.0.1")


class Recorder:
    """A tracker that keeps every transition, and lets tests wait for one."""

    def __init__(self) -> None:
        self.events: list[tuple[Conn, ConnState, float]] = []
        self._changed = trio.Event()

    def track(self, conn: Conn, state: ConnState) -> None:
        self.events.append((conn, state, trio.current_time()))
        self._changed.set()
        self._changed = trio.Event()

    @property
    def conns(self) -> list[Conn]:
        return list(dict.fromkeys(conn for conn, _, _ in self.events))

    def sequences(self) -> list[str]:
        """Each connection's states as their initials, such as ``["NAIC"]``."""
        initials: dict[Conn, str] = defaultdict(str)
        for conn, state, _ in self.events:
            initials[conn] += state.name[0]
        return list(initials.values())

    async def wait_for(self, happened: Callable[[], bool]) -> None:
        while not happened():
            await self._changed.wait()

    async def wait_states(self, sequence: str) -> None:
        """Wait until the only connection has reported at least so much."""
        await self.wait_for(lambda: any(s.startswith(sequence) for s in self.sequences()))

    async def wait_terminal(self, connections: int = 1) -> None:
        await self.wait_for(lambda: sum(s[-1] in "CH" for s in self.sequences()) >= connections)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers as its path says."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
        return
    path = scope["path"]
    if path == "/raise":
        raise ValueError("the application's own error")
    if path == "/until-disconnect":
        while (await receive())["type"] != "http.disconnect":
            pass
    if path == "/body":
        body = b""
        while True:
            event = await receive()
            body += event["body"]
            if not event["more_body"]:
                break
        await respond(send, body)
    elif path == "/nothing":
        await respond(send, b"", status=204)
    elif path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"one", b"two", b"three"):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})
    else:
        await respond(send, path.encode())


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    headers = [] if status == 204 else [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def websocket(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})


def server_ssl() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2", "http/1.1"])
    CERT.configure_cert(context)
    return context


def client_ssl(*alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(list(alpn))
    CA.configure_trust(context)
    return context


async def tls_client(transport: Any, *alpn: str) -> trio.SSLStream[Any]:
    """A client's end after its handshake."""
    stream = trio.SSLStream(
        transport, client_ssl(*alpn), server_hostname="localhost", https_compatible=True
    )
    await stream.do_handshake()
    return stream


class MemorySocket:
    """As much of a socket as a connection asks for beside its stream."""

    family = socket.AF_INET

    def __init__(self, send: MemorySendStream, receive: MemoryReceiveStream) -> None:
        self._send = send
        self._receive = receive

    def fileno(self) -> int:
        return -1

    def getpeername(self) -> tuple[str, int]:
        return ("192.0.2.7", 4711)

    def getsockname(self) -> tuple[str, int]:
        return ("192.0.2.1", 80)

    def shutdown(self, how: int) -> None:
        self._send.close()

    def close(self) -> None:
        self._send.close()
        self._receive.close()


class MemoryNetwork:
    """The connection code on in-memory streams, for a mock clock."""

    def __init__(
        self,
        app: Any,
        config: Config,
        tracker: Tracker,
        nursery: trio.Nursery,
        readiness: Readiness,
    ) -> None:
        self._app = wrap_app(app, config.wsgi_max_body_size, None)
        self._worker = Worker(config, compose(tracker), nursery, readiness)
        self._nursery = nursery
        self.context = self._worker._make_context(None)
        self.writes = 0

    async def connect(self, *, tls: bool = False) -> Any:
        """A client's end; with ``tls`` the other end expects a handshake."""
        client, server = memory_stream_pair()
        deliver = server.send_stream.send_all_hook
        assert deliver is not None

        async def count() -> None:
            self.writes += 1
            await deliver()

        server.send_stream.send_all_hook = count
        transport: Any = server
        transport.socket = MemorySocket(server.send_stream, server.receive_stream)
        if tls:
            transport = trio.SSLStream(
                transport, server_ssl(), server_side=True, https_compatible=True
            )
        self._nursery.start_soon(self._serve, transport)
        return client

    @property
    def timeouts_kept(self) -> int:
        """How many connections the worker's clocks still know."""
        worker = self._worker
        return len(worker.keep_alive_timeout._due) + len(worker.handshake_timeout._due)

    @property
    def connections(self) -> set[Connection]:
        return self._worker.connections

    async def _serve(self, stream: Any) -> None:
        await Connection(
            self._worker, self._app, self._worker.config, self.context, ConnectionState({}), stream
        )


@asynccontextmanager
async def memory_network(
    app: Any, tracker: Tracker, **settings: Any
) -> AsyncIterator[MemoryNetwork]:
    config = Config.from_mapping(settings)
    with closing(Readiness()) as readiness, ungrouped(nurseries=1):
        async with trio.open_nursery() as nursery:
            yield MemoryNetwork(app, config, tracker, nursery, readiness)
            nursery.cancel_scope.cancel()


class SocketNetwork:
    """The real worker on real sockets."""

    def __init__(self, plain: str, tls: str, clients: AsyncExitStack) -> None:
        self._ports = {False: int(plain.rpartition(":")[2]), True: int(tls.rpartition(":")[2])}
        self._clients = clients

    async def connect(self, *, tls: bool = False) -> trio.SocketStream:
        """A client's end, closed at the latest with the network."""
        stream = await trio.open_tcp_stream("127.0.0.1", self._ports[tls])
        return await self._clients.enter_async_context(stream)


@asynccontextmanager
async def socket_network(
    app: Any, tracker: Tracker, certificate: Path, **settings: Any
) -> AsyncIterator[SocketNetwork]:
    config = Config.from_mapping(
        bind="127.0.0.1:0",
        insecure_bind="127.0.0.1:0",
        certfile=str(certificate),
        keyfile=str(certificate),
        **settings,
    )
    async with (
        AsyncExitStack() as clients,
        tracked_server(app, config, tracker=tracker) as server,
    ):
        tls, plain = server.urls
        yield SocketNetwork(plain, tls, clients)
