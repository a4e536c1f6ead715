"""What several test files need: a recorder, an application, and real sockets to serve it on."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from hypercorn.config import Config

from trio_httptrack import TrackedServer, Tracker, tracked_server
from trio_httptrack.testing import RecordingTracker

# By itself it cannot push, upgrade or send trailers with the h2 of today, nor serve WSGI without
# noise, and its requests share one state.
OLD_HYPERCORN = version("hypercorn").startswith("0.17.")

CA = trustme.CA()
CERT = CA.issue_cert("localhost", "127.0.0.1")


class Recorder(RecordingTracker):
    """With the shorthand of these tests: each state by its initial."""

    def sequences(self) -> list[str]:
        """Each connection's states, such as ``["NAIC"]``."""
        return ["".join(state.name[0] for state in self.states(conn)) for conn in self.conns]

    async def wait_states(self, sequence: str) -> None:
        """Wait until a connection has reported at least so much."""
        while not any(states.startswith(sequence) for states in self.sequences()):
            await self._changed.park()

    async def wait_terminal(self, connections: int = 1) -> None:
        """Wait until so many connections have reported their last state."""
        while sum(states[-1] in "CH" for states in self.sequences()) < connections:
            await self._changed.park()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Respond as the path says."""
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


def problems(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log has beside the progress of a shutdown, and how it ended."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno > logging.INFO and not record.msg.startswith("Shut down")
    ]


def without_lifespan(app: Any) -> Any:
    """Around an application that would take the lifespan for a request."""

    async def requests_only(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)

    return requests_only


async def websocket(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    if scope["path"] == "/refuse":
        await send({"type": "websocket.close"})
        return
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})


@cache  # it takes long to make, and a load of clients would wait for it
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


def reset(stream: Any) -> None:
    """End a connection as a crash does: with RST instead of FIN."""
    if hasattr(stream, "reset"):
        stream.reset()
    else:
        sock = getattr(stream, "transport_stream", stream).socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


class SocketServer:
    """The real worker on real sockets, with a memory server's ``connect``."""

    def __init__(self, server: TrackedServer, clients: AsyncExitStack) -> None:
        tls, plain = server.urls
        self._ports = {False: int(plain.rpartition(":")[2]), True: int(tls.rpartition(":")[2])}
        self._clients = clients

    async def connect(
        self, *, tls: bool = False, alpn: Sequence[str] = (), handshake: bool = True
    ) -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
        """A client's end, closed at the latest with the server."""
        stream = await trio.open_tcp_stream("127.0.0.1", self._ports[tls])
        await self._clients.enter_async_context(stream)
        return await tls_client(stream, *alpn) if tls and handshake else stream


@asynccontextmanager
async def socket_server(
    app: Any, certificate: Path, *, tracker: Tracker, **settings: Any
) -> AsyncIterator[SocketServer]:
    config = Config.from_mapping(
        bind="127.0.0.1:0",
        insecure_bind="127.0.0.1:0",
        certfile=str(certificate),
        keyfile=str(certificate),
        **settings,
    )
    async with (
        tracked_server(app, config, tracker=tracker) as server,
        AsyncExitStack() as clients,
    ):
        yield SocketServer(server, clients)
