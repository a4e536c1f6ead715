"""A handler ends with its client: the setting cancel_on_disconnect, and the block on a Conn."""

from __future__ import annotations

import gc
import logging
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from inspect import signature
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from h2.settings import SettingCodes
from hypercorn.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from quart import request as quart_request
from quart import websocket as quart_websocket
from quart_trio import QuartTrio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import Conn, tracked_server
from trio_httptrack._connection.errors import split
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server
from trio_httptrack.testing._network import BUFFER_SIZE

from .clients import Http2, http1, read_to_end
from .support import client_ssl, problems, respond, without_lifespan

over_anyio = pytest.mark.skipif(
    "reason" not in signature(trio.CancelScope.cancel).parameters,
    reason="today's anyio, with which Starlette cancels, needs a newer Trio",
)

App = Callable[[Any, Any, Any], Awaitable[None]]
Leave = Callable[[], Awaitable[object]]
Log = pytest.LogCaptureFixture

OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
MORE: dict[str, Any] = {"type": "http.response.body", "body": b"part", "more_body": True}
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CLOSE_FRAME = b"\x88\x80\x00\x00\x00\x00"  # of a client, without a code


def get(path: str = "/", version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\nHost: here\r\n\r\n".encode()


@dataclass
class Handler:
    """Runs a test's steps for each request, and notes when one was cancelled, and ended."""

    steps: App
    cancelled: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    cleaned_up: int = 0
    block: float | None = None
    """Seconds for a block around the steps; None for no block."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            with self._block(scope):
                try:
                    await self.steps(scope, receive, send)
                except trio.Cancelled:
                    self.cancelled.append(trio.current_time())
                    raise
                finally:
                    with trio.CancelScope(shield=True):  # as a rollback would be
                        await trio.lowlevel.checkpoint()
                    self.cleaned_up += 1
        finally:
            self.ended.append(trio.current_time())

    def _block(self, scope: Any) -> AbstractContextManager[object]:
        if self.block is None:
            return nullcontext()
        return conn_of(scope).cancel_on_disconnect(scope, self.block)


def conn_of(scope: Any) -> Conn:
    conn: Conn = scope["extensions"]["httptrack"]
    return conn


async def forever(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
    await trio.sleep_forever()


async def never_accepts(scope: Any, receive: Any, send: Any) -> None:
    await trio.sleep_forever()


async def work(scope: Any, receive: Any, send: Any) -> None:
    """A minute's work, and a response."""
    await trio.sleep(60)
    await respond(send, b"late")


@dataclass
class Served:
    """A server in memory, and what it has logged of requests."""

    server: MemoryServer
    access: list[str]
    logged: trio.Event
    """Set when the access log has its first line."""

    tasks: int
    """Before there was a connection."""

    async def connect(self, *, tls: bool = False) -> ClientStream:
        return await self.server.connect(tls=tls)

    async def connect_tls(self) -> TlsClient:
        return TlsClient(await self.server.connect(tls=True, handshake=False))

    async def http2(self, *, tls: bool = False) -> Http2:
        client = Http2(await self.server.connect(tls=tls, alpn=["h2"] if tls else ()))
        await client.start()
        return client


class TlsClient:
    """A TLS client that can end its side by a close_notify, and read on."""

    def __init__(self, transport: ClientStream) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    async def _do(self, operation: Callable[[], Any]) -> Any:
        while True:
            try:
                return operation()
            except ssl.SSLWantReadError:
                await self._flush()
                self._incoming.write(await self._transport.receive_some())

    async def _flush(self) -> None:
        await self._transport.send_all(self._outgoing.read())

    async def send_all(self, data: bytes) -> None:
        await self._do(self._tls.do_handshake)
        self._tls.write(data)
        await self._flush()

    async def receive_some(self) -> bytes:
        data: bytes = await self._do(self._tls.read)
        return data

    async def send_eof(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    async def aclose(self) -> None:
        await self.send_eof()
        await self._transport.aclose()


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.logged = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.logged.set()


@asynccontextmanager
async def serving(app: Any, **config: Any) -> AsyncIterator[Served]:
    """A server, and its access log."""
    lines = Lines()
    logger = logging.Logger("access")
    logger.addHandler(lines)
    config = {"accesslog": logger, "access_log_format": "%(U)s %(s)s", **config}
    config.setdefault("keep_alive_timeout", 3600)
    async with memory_server(without_lifespan(app), **config) as server:
        await wait_all_tasks_blocked()
        yield Served(server, lines.lines, lines.logged, tasks_living())


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


# Ways to leave: each opens a connection, sends a request, and returns how it leaves


async def http1_leaves(served: Served, how: str) -> Leave:
    client = await served.connect()
    await client.send_all(get())
    await wait_all_tasks_blocked()
    return client.aclose if how == "FIN" else partial(as_async, client.reset)


async def tls_leaves(served: Served, how: str) -> Leave:
    if how == "close_notify":
        by_hand = await served.connect_tls()
        await by_hand.send_all(get())
        await wait_all_tasks_blocked()
        return by_hand.aclose
    client = await served.connect(tls=True)
    await client.send_all(get())
    await wait_all_tasks_blocked()
    return client.aclose if how == "FIN" else partial(as_async, client.reset)


async def http2_leaves(served: Served, how: str, *, tls: bool = False) -> Leave:
    client = await served.http2(tls=tls)
    stream_id = client.request()
    await client.flush()
    await wait_all_tasks_blocked()
    if how != "RST_STREAM":
        return client.stream.aclose if how == "FIN" else partial(as_async, client.stream.reset)
    client.h2.reset_stream(stream_id)
    return client.flush


async def websocket_leaves(served: Served, how: str, *, tls: bool = False) -> Leave:
    client = await served.connect(tls=tls)
    await client.send_all(HANDSHAKE)
    assert (await client.receive_some()).startswith(b"HTTP/1.1 101 ")
    if how == "close frame":
        return partial(client.send_all, CLOSE_FRAME)
    return client.aclose if how == "FIN" else partial(as_async, client.reset)


async def http2_websocket_leaves(served: Served, how: str) -> Leave:
    client = await served.http2()
    stream_id = await client.websocket("/")
    if how == "close frame":
        client.h2.send_data(stream_id, CLOSE_FRAME)
    elif how == "RST_STREAM":
        client.h2.reset_stream(stream_id)
    else:
        return client.stream.aclose if how == "FIN" else partial(as_async, client.stream.reset)
    return client.flush


async def as_async(func: Callable[[], object]) -> None:
    func()


Opens = Callable[[Served], Awaitable[Leave]]
HTTP_WAYS: dict[str, Opens] = {
    **{f"HTTP/1.1 {how}": partial(http1_leaves, how=how) for how in ("FIN", "RST")},
    **{f"TLS {how}": partial(tls_leaves, how=how) for how in ("close_notify", "FIN", "RST")},
    **{f"HTTP/2 {how}": partial(http2_leaves, how=how) for how in ("RST_STREAM", "FIN", "RST")},
    "HTTP/2 over TLS RST_STREAM": partial(http2_leaves, how="RST_STREAM", tls=True),
}
WEBSOCKET_WAYS: dict[str, Opens] = {
    **{
        f"WebSocket {how}": partial(websocket_leaves, how=how)
        for how in ("close frame", "FIN", "RST")
    },
    "WebSocket over TLS FIN": partial(websocket_leaves, how="FIN", tls=True),
    **{
        f"WebSocket over HTTP/2 {how}": partial(http2_websocket_leaves, how=how)
        for how in ("close frame", "RST_STREAM", "FIN", "RST")
    },
}
WAYS = HTTP_WAYS | WEBSOCKET_WAYS
FORMS = ("setting", "block")


def form(app: App, how: str, seconds: float) -> tuple[Handler, dict[str, Any]]:
    """A handler that is cancelled by the setting, or by a block around it."""
    if how == "setting":
        return Handler(app), {"cancel_on_disconnect": seconds}
    return Handler(app, block=seconds), {}


@pytest.mark.parametrize("seconds", [0, 3])
@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_is_cancelled_when_its_client_has_gone(
    way: str,
    how: str,
    seconds: int,
    autojump_clock: MockClock,
    caplog: Log,
) -> None:
    """After exactly so many seconds. It cleans up, no error is logged, and no task is left."""
    handler, setting = form(forever, how, seconds)
    async with serving(handler, **setting) as served:
        leave = await WAYS[way](served)
        await trio.sleep(10)
        assert handler.ended == []
        await leave()
        await trio.sleep(10)
        assert handler.cancelled == handler.ended == [10 + seconds]
        assert handler.cleaned_up == 1
        (line,) = served.access
        assert line in (("/ 101", "/ 200") if way in WEBSOCKET_WAYS else ("/ 499",))
    assert problems(caplog) == []


@pytest.mark.parametrize("way", WAYS)
async def test_without_the_setting_a_handler_goes_on(way: str, autojump_clock: MockClock) -> None:
    """As ASGI has it: what it does after its client has left is its own affair."""
    handler = Handler(forever)
    async with serving(handler, graceful_timeout=0) as served:
        leave = await WAYS[way](served)
        await leave()
        await trio.sleep(1000)
        assert handler.ended == []


@pytest.mark.parametrize("way", HTTP_WAYS)
async def test_a_handler_that_notices_in_time_is_not_cancelled(
    way: str, autojump_clock: MockClock
) -> None:
    """It has three seconds, returns after two, and the access log says 499 all the same."""

    async def notices(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await trio.sleep(2)

    handler = Handler(notices)
    async with serving(handler, cancel_on_disconnect=3) as served:
        leave = await HTTP_WAYS[way](served)
        await leave()
        await trio.sleep(10)
        assert (handler.cancelled, handler.ended, served.access) == ([], [2], ["/ 499"])


@pytest.mark.parametrize("way", ["HTTP/1.1 RST", "TLS FIN", "HTTP/2 RST_STREAM"])
async def test_a_handler_that_is_told_by_its_send_is_logged_with_499(
    way: str, autojump_clock: MockClock, caplog: Log
) -> None:
    """What ``send`` raises is no error of the application."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=100) as served:
        leave = await HTTP_WAYS[way](served)
        await leave()
        await trio.sleep(100)
        assert (handler.cancelled, handler.ended, served.access) == ([], [60], ["/ 499"])
    assert problems(caplog) == []


async def test_the_other_streams_of_a_connection_go_on(autojump_clock: MockClock) -> None:
    """A stream that is reset ends its own handler, and no other."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.http2()
        first, second = client.request("/first"), client.request("/second")
        await client.flush()
        await trio.sleep(1)
        client.h2.reset_stream(first)
        await client.flush()
        while second not in client.ended:
            await client.pump()
        await wait_all_tasks_blocked()
        assert (handler.cancelled, handler.ended) == ([1], [1, 60])
        assert client.bodies == {second: b"late"}
        assert served.access == ["/first 499", "/second 200"]


async def test_a_request_that_has_waited_for_a_handler_runs_as_any_other(
    autojump_clock: MockClock,
) -> None:
    """It begins in the very step in which the first handler of its connection ends."""
    handler = Handler(work)
    async with serving(handler, request_timeout=1000, h2_max_concurrent_streams=1) as served:
        client = await served.http2()
        first = client.request("/first")
        await client.flush()
        await trio.sleep(1)
        client.h2.reset_stream(first)
        second = client.request("/second")
        await client.flush()
        while second not in client.ended:
            await client.pump()
        assert client.bodies[second] == b"late"
        client.stream.reset()
    assert (handler.cancelled, handler.ended) == ([], [60, 120])


async def test_a_handler_that_has_ended_gives_its_place_away_for_good(
    autojump_clock: MockClock,
) -> None:
    """Its WebSocket has still something to send, and is reset later: that is not for the next
    handler, which runs in its place."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "bytes": bytes(1000)})
        else:
            await work(scope, receive, send)

    handler = Handler(steps)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.http2()
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        websocket = await client.websocket("/")
        await wait_all_tasks_blocked()
        request = client.request("/after")
        client.h2.increment_flow_control_window(1000, request)
        await client.flush()
        await trio.sleep(1)
        client.h2.reset_stream(websocket)
        await client.flush()
        while request not in client.ended:
            await client.pump()
        assert client.bodies[request] == b"late"
        client.stream.reset()
    assert handler.cancelled == []


@pytest.mark.parametrize("how", FORMS)
async def test_the_next_request_of_a_connection_has_its_own_time(
    how: str, autojump_clock: MockClock
) -> None:
    """What a handler had left, when it noticed by itself, is not taken from the next one."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(2 if scope["path"] == "/short" else 60)

    handler, setting = form(steps, how, 3)
    async with serving(handler, **setting) as served:
        client = await served.http2()
        for path in ("/short", "/long"):
            stream_id = client.request(path)
            await client.flush()
            await trio.sleep(1)
            if path == "/short":
                client.h2.reset_stream(stream_id)
                await client.flush()
                await trio.sleep(1.5)
        await trio.sleep(10)
        client.h2.reset_stream(stream_id)
        await client.flush()
        await trio.sleep(10)
        assert (handler.ended, handler.cancelled) == ([2, 16.5], [16.5])
        assert served.access == ["/short 499", "/long 499"]


async def test_many_streams_leave_each_for_itself(autojump_clock: MockClock) -> None:
    """Of three times fifty at a time, each second one is reset, and the others are responded to."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.http2()
        for _ in range(3):
            streams = [client.request() for _ in range(50)]
            await client.flush()
            await trio.sleep(1)
            for stream_id in streams[::2]:
                client.h2.reset_stream(stream_id)
            await client.flush()
            while not client.ended.issuperset(streams[1::2]):
                await client.pump()
        await wait_all_tasks_blocked()
        assert (len(handler.cancelled), len(handler.ended)) == (75, 150)
        assert served.access == (["/ 499"] * 25 + ["/ 200"] * 25) * 3
        assert tasks_living() < served.tasks + 25  # fewer than there were handlers at a time
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert tasks_living() == served.tasks


# A client that has ended its side, and reads on


def statuses(received: bytes) -> list[bytes]:
    return [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]


def without_date(response: bytes) -> bytes:
    return b"\r\n".join(line for line in response.split(b"\r\n") if not line.startswith(b"date: "))


HALF_CLOSED = b"HTTP/1.1 200 \r\ncontent-length: 4\r\nserver: hypercorn-h11\r\n\r\nlate"
CONTINUE = b"HTTP/1.1 100 \r\nserver: hypercorn-h11\r\n\r\n"


@pytest.mark.parametrize(
    ("setting", "block", "interim"),
    [(None, None, b""), (0, None, CONTINUE), (3, None, CONTINUE), (None, 0, CONTINUE)],
    ids=["neither", "0 s", "3 s", "block"],
)
async def test_a_half_closed_client_gets_its_whole_response(
    setting: float | None, block: float | None, interim: bytes, autojump_clock: MockClock
) -> None:
    """It has not gone. All that it sees of the setting is a ``100 Continue``, which it ignores."""
    handler = Handler(work, block=block)
    async with serving(handler, cancel_on_disconnect=setting) as served:
        client = await served.connect()
        await client.send_all(get())
        await client.send_eof()
        assert without_date(await read_to_end(client)) == interim + HALF_CLOSED
        assert (handler.cancelled, served.access) == ([], ["/ 200"])


async def test_a_client_that_has_ended_its_side_of_tls_gets_its_whole_response(
    autojump_clock: MockClock,
) -> None:
    """A close_notify alone is a half-close, as a FIN is."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect_tls()
        await client.send_all(get())
        await client.send_eof()
        received = b""
        while not received.endswith(b"late"):
            received += await client.receive_some()
        assert statuses(received) == [b"100", b"200"]
        assert handler.cancelled == []


async def test_it_gets_one_probe_whatever_wants_to_be_cancelled(
    autojump_clock: MockClock,
) -> None:
    """The setting, and blocks around and behind each other."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(2):
            conn = conn_of(scope)
            with conn.cancel_on_disconnect(scope), conn.cancel_on_disconnect(scope, 3):
                await trio.sleep(1)
        await respond(send, b"late")

    async with serving(steps, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await client.send_eof()
        assert statuses(await read_to_end(client)) == [b"100", b"200"]


async def test_it_gets_no_probe_while_it_has_something_to_read(autojump_clock: MockClock) -> None:
    """There might be no room for the whole of it, and half of one would break what follows."""
    size = 60_000  # as many digits as the one that follows

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await respond(send, bytes(size))

    async with serving(steps, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(2)
        size += BUFFER_SIZE - len(await client.receive_some()) - 5
        for _ in range(2):
            await client.send_all(get())
        await trio.sleep(1.5)
        await client.send_eof()
        await wait_all_tasks_blocked()
        received = without_date(await read_to_end(client)).replace(CONTINUE, b"")
        head = b"HTTP/1.1 200 \r\ncontent-length: %d\r\nserver: hypercorn-h11\r\n\r\n" % size
        assert received == 2 * (head + bytes(size))


async def test_it_gets_no_probe_when_its_response_has_begun(autojump_clock: MockClock) -> None:
    """An interim response must come before the final one."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send(OK)
        await send(MORE)
        await trio.sleep(1)
        with conn_of(scope).cancel_on_disconnect(scope):
            await trio.sleep(1)
        await send({**MORE, "more_body": False})

    async with serving(steps, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await wait_all_tasks_blocked()
        await client.send_eof()
        received = await read_to_end(client)
        assert statuses(received) == [b"200"]
        assert received.endswith(b"4\r\npart\r\n4\r\npart\r\n0\r\n\r\n")


async def test_a_client_that_reads_on_gets_no_probe(autojump_clock: MockClock) -> None:
    """Requests on a connection that is kept alive are responded to as ever."""
    async with serving(work, cancel_on_disconnect=0) as served:
        client = await served.connect()
        for _ in range(2):
            await client.send_all(get())
            assert without_date(bytes(await client.receive_some())) == HALF_CLOSED


async def test_an_http10_client_that_has_ended_its_side_is_sent_no_100(
    autojump_clock: MockClock,
) -> None:
    """It does not know interim responses. So it gets its response, and nothing before."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get(version="1.0"))
        await client.send_eof()
        assert statuses(await read_to_end(client)) == [b"200"]


@pytest.mark.parametrize(("how", "cancelled", "ended"), [("FIN", [], [60]), ("RST", [1], [1])])
async def test_an_http10_client_that_closes_is_noticed_at_its_response(
    how: str, cancelled: list[float], ended: list[float], autojump_clock: MockClock
) -> None:
    """And not before, unless with a reset."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get(version="1.0"))
        await trio.sleep(1)
        await (client.aclose() if how == "FIN" else as_async(client.reset))
        await trio.sleep(99)
        assert (handler.cancelled, handler.ended) == (cancelled, ended)


# In the middle of something


async def stream(scope: Any, receive: Any, send: Any) -> None:
    """A part every ten seconds."""
    await send(OK)
    for _ in range(6):
        await send(MORE)
        await trio.sleep(10)
    await send({**MORE, "more_body": False})


@pytest.mark.parametrize(
    ("how", "tls", "cancelled"),
    [("FIN", False, 10), ("RST", False, 1), ("close_notify", True, 10), ("FIN", True, 1)],
)
async def test_a_client_that_leaves_in_the_middle_of_its_response(
    how: str, tls: bool, cancelled: float, autojump_clock: MockClock, caplog: Log
) -> None:
    """Is noticed at once if it says so. A client that has read everything and closes only says
    that it sends no more: that nobody reads either is found out by the next part of the body."""
    handler = Handler(stream)
    async with serving(handler, cancel_on_disconnect=0) as served:
        if how == "close_notify":
            client: Any = await served.connect_tls()
        else:
            client = await served.connect(tls=tls)
        await client.send_all(get())
        received = b""
        while not received.endswith(b"part\r\n"):
            received += await client.receive_some()
        await trio.sleep(1)
        await (as_async(client.reset) if how == "RST" else client.aclose())
        await trio.sleep(99)
        assert (handler.cancelled, served.access) == ([cancelled], ["/ 499"])
    assert problems(caplog) == []


@pytest.mark.parametrize("way", HTTP_WAYS)
async def test_a_client_that_leaves_a_response_it_does_not_read(
    way: str, autojump_clock: MockClock, caplog: Log
) -> None:
    """A handler that waits in ``send`` for its client to read is cancelled, too."""
    sent = 0

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send(OK)
        while True:
            await send({**MORE, "body": bytes(2**14)})
            sent += 1

    handler = Handler(steps)
    async with serving(handler, cancel_on_disconnect=0) as served:
        leave = await HTTP_WAYS[way](served)
        await trio.sleep(1)
        assert 0 < sent < 20  # and it waits
        await leave()
        await trio.sleep(9)
        assert (handler.ended, served.access) == ([1], ["/ 499"])
    assert problems(caplog) == []


POST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n12345"
CHUNKED = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"


@pytest.mark.parametrize("seconds", [0, 3])
@pytest.mark.parametrize(
    ("sent", "how"),
    [
        *((sent, how) for sent in (POST, CHUNKED) for how in ("FIN", "RST", "half-closed")),
        (CHUNKED, "broken"),
    ],
)
async def test_a_request_that_stays_incomplete_ends_its_handler(
    sent: bytes, how: str, seconds: int, autojump_clock: MockClock, caplog: Log
) -> None:
    """Its client has gone, or gets a 400, and nobody will read what the handler makes."""
    handler = Handler(forever)
    async with serving(handler, cancel_on_disconnect=seconds) as served:
        client = await served.connect()
        await client.send_all(sent)
        await trio.sleep(1)
        if how == "broken":
            await client.send_all(b"this is no chunk\r\n")
        elif how == "half-closed":
            await client.send_eof()
        else:
            await (client.aclose() if how == "FIN" else as_async(client.reset))
        if how in ("broken", "half-closed"):
            assert (await client.receive_some()).startswith(b"HTTP/1.1 400 ")
            await client.aclose()
        await trio.sleep(9)
        assert handler.cancelled == handler.ended == [1 + seconds]
        assert served.access == ["/ 499" if how == "RST" else "/ 400"]
    assert problems(caplog) == []


async def test_a_request_that_comes_too_slowly_ends_its_handler(autojump_clock: MockClock) -> None:
    """Its client gets a 408, and is not waited for."""
    handler = Handler(forever)
    async with serving(handler, cancel_on_disconnect=0, min_request_body_rate=240) as served:
        client = await served.connect()
        await client.send_all(POST)
        assert (await client.receive_some()).startswith(b"HTTP/1.1 408 ")
        await wait_all_tasks_blocked()
        assert handler.cancelled == [trio.current_time()] == [5]
        assert served.access == ["/ 408"]


async def test_a_stream_that_is_reset_in_the_middle_of_its_request(
    autojump_clock: MockClock,
) -> None:
    """Ends its handler, whether or not that reads."""

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        while scope["path"] == "/" and (await receive())["type"] == "http.request":
            pass
        await trio.sleep_forever()

    handler = Handler(reads)
    async with serving(handler, cancel_on_disconnect=3) as served:
        client = await served.http2()
        for path in ("/", "/sleep"):
            stream_id = client.request(path, "POST", end=False)
            client.h2.send_data(stream_id, b"12345")
            await client.flush()
            await wait_all_tasks_blocked()
            client.h2.reset_stream(stream_id)
            await client.flush()
            await trio.sleep(5)
        assert handler.cancelled == [3, 8]
        assert served.access == ["/ 499", "/sleep 499"]


@pytest.mark.parametrize("complete", [True, False])
async def test_a_client_that_leaves_a_handler_that_does_not_read(
    complete: bool, autojump_clock: MockClock
) -> None:
    """It is noticed although what it has sent still waits to be taken."""
    handler = Handler(forever)
    async with serving(
        handler, cancel_on_disconnect=0, max_app_queue_size=1, graceful_timeout=0
    ) as served:
        client = await served.connect()
        await client.send_all(CHUNKED + b"5\r\n12345\r\n" * 5 + b"0\r\n\r\n" * complete)
        await trio.sleep(1)
        await client.aclose()
        await trio.sleep(100)
        assert handler.cancelled == [1]


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_a_client_that_leaves_with_another_request_in_the_pipeline(
    how: str, autojump_clock: MockClock
) -> None:
    """The handler of the first is cancelled, and the second never has one."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get("/first") + get("/second"))
        await trio.sleep(1)
        await (client.aclose() if how == "FIN" else as_async(client.reset))
        await trio.sleep(99)
        assert (handler.cancelled, served.access) == ([1], ["/first 499"])


async def test_a_half_closed_client_gets_each_response_of_its_pipeline(
    autojump_clock: MockClock,
) -> None:
    """With a probe before each."""
    handler = Handler(work)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get("/first") + get("/second"))
        await client.send_eof()
        assert statuses(await read_to_end(client)) == [b"100", b"200", b"100", b"200"]
        await wait_all_tasks_blocked()
        assert handler.ended == [60, 120]


@pytest.mark.parametrize("by", ["task", "handler"])
async def test_a_connection_that_is_closed_here_counts_as_gone(
    by: str, autojump_clock: MockClock, caplog: Log
) -> None:
    """``Conn.close`` ends the handlers, also the one that calls it."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        if by == "handler":
            conn_of(scope).close("banned")
        await trio.sleep_forever()

    handler = Handler(steps)
    async with serving(handler, cancel_on_disconnect=3) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.conn.close("banned")
        await trio.sleep(9)
        assert (handler.cancelled, served.access) == ([4], ["/ 499"])
        assert client.conn.close_reason == "banned"
    assert problems(caplog) == []


async def test_what_a_websocket_sends_too_early_ends_its_handler(
    autojump_clock: MockClock,
) -> None:
    """Its client gets a 400, and nothing before it."""
    handler = Handler(never_accepts)
    async with serving(handler, cancel_on_disconnect=0, graceful_timeout=0) as served:
        client = await served.connect()
        await client.send_all(HANDSHAKE)
        await wait_all_tasks_blocked()
        await client.send_all(CLOSE_FRAME)
        received = await read_to_end(client)
        await wait_all_tasks_blocked()
        assert (statuses(received), len(handler.cancelled)) == ([b"400"], 1)


async def test_a_websocket_whose_stream_ends_counts_as_gone(autojump_clock: MockClock) -> None:
    """END_STREAM stands for the end of a connection (RFC 8441, 5)."""
    handler = Handler(forever)
    async with serving(handler, cancel_on_disconnect=3) as served:
        client = await served.http2()
        stream_id = await client.websocket("/")
        client.h2.end_stream(stream_id)
        await client.flush()
        await trio.sleep(10)
        assert handler.cancelled == [3]


# What is cancelled, and where


async def busy(scope: Any, receive: Any, send: Any) -> None:
    deadline = trio.current_time() + 3600
    while trio.current_time() < deadline:
        await trio.lowlevel.checkpoint()
        await trio.sleep(0.5)


async def reads_on(scope: Any, receive: Any, send: Any) -> None:
    """Ignores what it is told, for ever."""
    while True:
        await receive()
        await trio.lowlevel.checkpoint()


async def waits_for_body(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    with trio.CancelScope(shield=False):
        await receive()
    await trio.sleep_forever()


async def polls(scope: Any, receive: Any, send: Any) -> None:
    while True:
        with trio.move_on_after(0):
            await receive()
        await trio.sleep(0.5)


@pytest.mark.parametrize("steps", [busy, reads_on, waits_for_body, polls])
async def test_a_handler_is_cancelled_wherever_it_waits(
    steps: App, autojump_clock: MockClock, caplog: Log
) -> None:
    """Also where it has been told that its client has gone, and does not care."""
    handler = Handler(steps)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1.25)
        await client.aclose()
        await trio.sleep(10)
        assert (len(handler.cancelled), served.access) == (1, ["/ 499"])
        assert 1.25 <= handler.ended[0] <= 1.75
    assert problems(caplog) == []


@pytest.mark.parametrize("how", FORMS)
async def test_a_handler_that_only_receives_is_cancelled(
    how: str, autojump_clock: MockClock
) -> None:
    """When its time is up, though each call finds the disconnect at once: a loop that ignores it
    must not go on for ever."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for number in range(100):
            await receive()
            if number == 10:
                autojump_clock.jump(5)

    handler, setting = form(steps, how, 3)
    async with serving(handler, **setting) as served:
        client = await served.connect()
        await client.send_all(get())
        await wait_all_tasks_blocked()
        client.reset()
        await wait_all_tasks_blocked()
        assert handler.cancelled == [5]


async def test_a_handler_in_a_thread_is_cancelled_after_it(autojump_clock: MockClock) -> None:
    """A thread cannot be cancelled; what waits for it is, when it has ended."""
    release, ended = threading.Event(), trio.Event()

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.to_thread.run_sync(release.wait)
        await trio.sleep_forever()

    handler = Handler(steps)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await handler(scope, receive, send)
        finally:
            ended.set()

    async with serving(app, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await wait_all_tasks_blocked()
        client.reset()
        await wait_all_tasks_blocked()
        assert handler.ended == []
        release.set()
        await ended.wait()
        assert len(handler.cancelled) == 1
        await wait_all_tasks_blocked()
        assert (served.access, tasks_living()) == (["/ 499"], served.tasks)


async def test_what_is_shielded_is_completed_first(autojump_clock: MockClock, caplog: Log) -> None:
    """Such as a payment, which must not stop half-way."""
    paid = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
            paid.append(trio.current_time())
        await trio.sleep_forever()

    handler = Handler(steps)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await trio.sleep(9)
        assert (paid, handler.cancelled, served.access) == ([5], [5], ["/ 499"])
    assert problems(caplog) == []


async def test_a_handler_that_swallows_its_cancellation_goes_on(
    autojump_clock: MockClock, caplog: Log
) -> None:
    """Until its next checkpoint, where it is cancelled again: ``send`` is one."""
    after = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        with suppress(trio.Cancelled):
            await trio.sleep_forever()
        after.append("went on")
        await respond(send, b"late")
        after.append("never")

    handler = Handler(steps)
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await trio.sleep(9)
        assert (after, handler.cancelled, served.access) == (["went on"], [1], ["/ 499"])
    assert problems(caplog) == []


async def raises(scope: Any, receive: Any, send: Any) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("the rollback has failed")


async def raises_in_a_task(scope: Any, receive: Any, send: Any) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raises, scope, receive, send)
        nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize("steps", [raises, raises_in_a_task])
async def test_what_a_cancelled_handler_raises_is_logged(
    steps: App, autojump_clock: MockClock, caplog: Log
) -> None:
    """An error in its cleanup is an error, and the access log has 499 all the same."""
    async with serving(steps, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await wait_all_tasks_blocked()
        assert served.access == ["/ 499"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[1] is not None
    assert split(record.exc_info[1], ValueError)[1] is None


async def test_the_tasks_of_a_handler_end_with_it(autojump_clock: MockClock, caplog: Log) -> None:
    """Those of its nurseries, and of nurseries within; what they have open is closed."""
    closed: list[int] = []

    @asynccontextmanager
    async def resource(number: int) -> AsyncIterator[None]:
        try:
            yield
        finally:
            closed.append(number)

    async def task(depth: int) -> None:
        async with resource(depth), trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(task, depth - 1) if depth else None
            await trio.sleep_forever()

    handler = Handler(lambda *_: task(3))
    async with serving(handler, cancel_on_disconnect=0) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await wait_all_tasks_blocked()
        assert sorted(closed) == [0] * 8 + [1] * 4 + [2] * 2 + [3]
        assert handler.ended == [1]
    assert problems(caplog) == []


# What is not cancelled


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("way", HTTP_WAYS)
async def test_a_handler_whose_response_is_complete_goes_on(
    way: str, how: str, autojump_clock: MockClock
) -> None:
    """What it does then, it does for itself, and the access log has the response's status."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"whole")
        await trio.sleep(60)

    handler, setting = form(steps, how, 0)
    async with serving(handler, **setting) as served:
        leave = await HTTP_WAYS[way](served)
        await leave()
        await trio.sleep(100)
        assert (handler.cancelled, handler.ended, served.access) == ([], [60], ["/ 200"])


@pytest.mark.parametrize("how", FORMS)
@pytest.mark.parametrize("last", ["Connection: close", "HTTP/1.0", "half-closed", "FIN"])
async def test_a_response_that_ends_its_connection_does_not_end_its_handler(
    last: str, how: str, autojump_clock: MockClock
) -> None:
    """It is we who close then, and the client has all it has waited for, as far as we know."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send(OK)
        await send(MORE)
        await trio.sleep(1)
        await send({**MORE, "more_body": False})
        await trio.sleep(60)

    handler, setting = form(steps, how, 0)
    async with serving(handler, **setting) as served:
        client = await served.connect()
        request = get(version="1.0" if last == "HTTP/1.0" else "1.1")
        if last == "Connection: close":
            request = request.replace(b"Host", b"Connection: close\r\nHost")
        await client.send_all(request)
        received = b""
        while not received.endswith((b"part", b"part\r\n")):
            received += await client.receive_some()
        if last == "FIN":
            await client.aclose()
        elif last == "half-closed":
            await client.send_eof()
        await client.conn.wait_closed()
        assert trio.current_time() == 1
        await trio.sleep(99)
        assert (handler.cancelled, handler.ended, served.access) == ([], [61], ["/ 200"])


async def test_a_block_after_the_response_ends_by_itself(autojump_clock: MockClock) -> None:
    """The client has what it has waited for: nobody else's request is probed for it."""
    begin = trio.Event()

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/second":
            begin.set()
            await trio.sleep(5)
        await respond(send, b"late")
        if scope["path"] == "/first":
            await begin.wait()
            with conn_of(scope).cancel_on_disconnect(scope):
                await trio.sleep(60)

    handler = Handler(steps)
    async with serving(handler) as served:
        client = await served.connect()
        await client.send_all(get("/first"))
        assert statuses(bytes(await client.receive_some())) == [b"200"]
        await client.send_all(get("/second"))
        assert statuses(bytes(await client.receive_some())) == [b"200"]
        client.reset()
        await trio.sleep(100)
        assert (handler.cancelled, handler.ended) == ([], [5, 60])


# What is left


@pytest.mark.parametrize(
    ("way", "how"),
    [
        ("HTTP/1.1 FIN", "setting"),
        ("HTTP/1.1 RST", "setting"),
        ("HTTP/1.1 FIN", "block"),
        ("HTTP/1.1 RST", "block"),
        ("HTTP/2 RST_STREAM", "setting"),
        ("HTTP/2 RST_STREAM", "block"),
        ("HTTP/2 FIN", "setting"),
        ("HTTP/2 FIN", "block"),
    ],
)
async def test_a_handler_that_would_never_return_leaves_nothing(
    way: str, how: str, autojump_clock: MockClock
) -> None:
    """No task, no connection, and nothing that the collector would have to find."""
    handler, setting = form(forever, how, 0)
    async with serving(handler, **setting) as served:
        leaves: list[Leave] = []
        for number in range(20):
            if number == 10:
                gc.collect()
            leaves.append(await HTTP_WAYS[way](served))
            await leaves[-1]()
            await wait_all_tasks_blocked()
        if "HTTP/2" not in way:  # a client of h2 has some of its own
            assert gc.collect() == 0
        assert len(handler.ended) == 20
        if "RST_STREAM" not in way:
            assert served.server.connections() == {}
            assert tasks_living() == served.tasks


@pytest.mark.parametrize("way", ["HTTP/1.1 FIN", "HTTP/1.1 RST", "HTTP/2 FIN"])
async def test_a_connection_is_freed_with_its_end(way: str, autojump_clock: MockClock) -> None:
    """Without the collector; but the first, for which a timer still runs, and the last."""
    connections = weakref.WeakSet[Any]()

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        connections.add(conn_of(scope)._controls)  # not its Conn, which a failure's note needs
        await trio.sleep_forever()

    gc.disable()
    try:
        async with serving(steps, cancel_on_disconnect=0) as served:
            for _ in range(10):
                leave = await HTTP_WAYS[way](served)
                await leave()
                del leave
                await wait_all_tasks_blocked()
            assert len(connections) <= 2
    finally:
        gc.enable()


@pytest.mark.parametrize(("seconds", "ended"), [(None, 103), (0, 100), (2, 102)])
async def test_a_shutdown_need_not_wait_for_who_nobody_waits_for(
    seconds: float | None, ended: float, autojump_clock: MockClock
) -> None:
    """Without the setting it waits for the whole of ``graceful_timeout``."""
    async with serving(forever, cancel_on_disconnect=seconds, graceful_timeout=3) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(100)
        client.reset()
        await served.server.shutdown()
        assert trio.current_time() == ended


# The block


async def cancelled_within(scope: Any, seconds: float) -> float | None:
    """When a block was cancelled."""
    with conn_of(scope).cancel_on_disconnect(scope, seconds) as cancel_scope:
        await trio.sleep(60)
    return trio.current_time() if cancel_scope.cancelled_caught else None


async def test_only_the_block_is_cancelled(autojump_clock: MockClock) -> None:
    """The handler goes on behind it, and can find out whether it was."""
    found = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        found.append(await cancelled_within(scope, 3))
        await trio.sleep(5)

    handler = Handler(steps)
    async with serving(handler) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await trio.sleep(20)
        assert (found, handler.cancelled, handler.ended) == ([4], [], [9])
        assert served.access == ["/ 499"]


async def test_blocks_within_and_beside_each_other_are_cancelled_each_in_its_time(
    autojump_clock: MockClock,
) -> None:
    """The outer one does not wait for the inner, nor the other way round."""
    found: dict[str, float | None] = {}

    async def note(name: str, scope: Any, seconds: float) -> None:
        found[name] = await cancelled_within(scope, seconds)

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, "5 s", scope, 5)
            nursery.start_soon(note, "3 s", scope, 3)
            with conn_of(scope).cancel_on_disconnect(scope, 4) as outer:
                await note("inner, 2 s", scope, 2)
                await trio.sleep(60)
            found["outer, 4 s"] = trio.current_time() if outer.cancelled_caught else None
            with conn_of(scope).cancel_on_disconnect(scope, 0) as late:
                found["late"] = trio.current_time()
                await trio.sleep(60)
            assert late.cancelled_caught

    async with serving(steps) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await trio.sleep(59)
        assert found == {"inner, 2 s": 3, "3 s": 4, "outer, 4 s": 5, "late": 5, "5 s": 6}


BEYOND = "beyond its first checkpoint"


@pytest.mark.parametrize("seconds", [0, 3])
@pytest.mark.parametrize("how", ["FIN", "RST", "RST_STREAM"])
async def test_a_block_that_is_entered_too_late_is_cancelled_as_well(
    how: str, seconds: int, autojump_clock: MockClock
) -> None:
    """At its first checkpoint, or after the seconds from there. Of a client that has sent a FIN it
    has to be found out first, by the probe."""
    found: list[object] = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10)
        conn = conn_of(scope)
        with conn.cancel_on_disconnect(scope, seconds) as cancel_scope:
            found.append("entered")
            await trio.lowlevel.checkpoint()
            found.append(BEYOND)
            await trio.sleep(60)
        found.extend((cancel_scope.cancelled_caught, trio.current_time()))

    end = 10 + seconds
    async with serving(steps) as served:
        opens = http2_leaves if how == "RST_STREAM" else http1_leaves
        leave = await opens(served, how)
        await leave()
        await trio.sleep(100)
        if how == "FIN":
            found = [note for note in found if note != BEYOND]
        assert found == ["entered", *([BEYOND] if seconds and how != "FIN" else ()), True, end]


async def test_a_block_that_is_entered_too_late_and_only_receives_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    """The disconnect, which is always there, does not come before the cancellation for ever."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(2)
        with conn_of(scope).cancel_on_disconnect(scope) as block:
            for _ in range(100):
                await receive()
        cancelled.append(block.cancelled_caught)

    cancelled: list[bool] = []
    handler = Handler(steps)
    async with memory_server(without_lifespan(handler)) as server:
        client = await server.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await trio.sleep(5)
    assert (handler.ended, cancelled) == ([2], [True])


async def test_a_block_that_was_left_is_not_cancelled_any_more(autojump_clock: MockClock) -> None:
    """And nothing is kept of it."""
    scopes = weakref.WeakSet[trio.CancelScope]()
    handler = Handler(forever)

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(100):
            with conn_of(scope).cancel_on_disconnect(scope, 3) as cancel_scope:
                scopes.add(cancel_scope)
        del cancel_scope
        assert len(scopes) == 0
        await trio.sleep(60)

    handler = Handler(steps)
    async with serving(handler) as served:
        client = await served.connect()
        await client.send_all(get())
        await wait_all_tasks_blocked()
        client.reset()
        await trio.sleep(100)
        assert (handler.cancelled, handler.ended) == ([], [60])


async def test_the_shorter_time_of_setting_and_block_counts(autojump_clock: MockClock) -> None:
    """A block cannot lengthen the setting's; it can be shorter."""
    for setting, block, cancelled in (1, 5, 1), (5, 1, 1):
        handler = Handler(work, block=block)
        async with serving(handler, cancel_on_disconnect=setting) as served:
            began = trio.current_time()
            client = await served.connect()
            await client.send_all(get())
            await wait_all_tasks_blocked()
            client.reset()
            await trio.sleep(10)
            assert handler.cancelled == [began + cancelled]


async def test_a_deadline_of_its_own_counts_if_it_is_earlier(autojump_clock: MockClock) -> None:
    """A client that has gone gives a block no more time than it had."""
    found = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        with conn_of(scope).cancel_on_disconnect(scope, 10) as cancel_scope:
            cancel_scope.deadline = 5
            await trio.sleep(60)
        found.append(trio.current_time())

    async with serving(steps) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await trio.sleep(99)
        assert found == [5]


COPIES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "shallow": copy,
    "with a path of its own": lambda scope: {**scope, "path": "/", "root_path": "/here"},
    "with headers of its own": lambda scope: {**scope, "headers": [*scope["headers"], (b"x", b"")]},
    "with extensions of its own": lambda scope: {**scope, "extensions": dict(scope["extensions"])},
}


@pytest.mark.parametrize("name", COPIES)
async def test_a_copy_of_the_scope_does_as_well(name: str, autojump_clock: MockClock) -> None:
    """Middlewares make them."""
    found = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        found.append(await cancelled_within(COPIES[name](scope), 0))

    async with serving(steps) as served:
        client = await served.connect()
        await client.send_all(get())
        await trio.sleep(1)
        client.reset()
        await wait_all_tasks_blocked()
        assert found == [1]


async def test_the_scope_of_another_request_is_refused(autojump_clock: MockClock) -> None:
    """Of one that is over, of another connection, one that is made up, and one of which each part
    is a copy; nothing is cancelled."""
    scopes: dict[str, Any] = {}
    errors = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        conn = conn_of(scope)
        if scope["path"] == "/last":
            others = {**scopes, "made up": {"type": "http"}, "deep copy": deepcopy(scope)}
            for other in others.values():
                with (
                    pytest.raises(ValueError, match="is not of a request in flight on conn"),
                    conn.cancel_on_disconnect(other),
                ):
                    errors.append("entered")
            errors.append("done")
        scopes[scope["path"]] = scope
        if scope["path"] == "/elsewhere":
            await trio.sleep_forever()
        await respond(send, b"")

    async with serving(steps, graceful_timeout=0) as served:
        client, other = await served.connect(), await served.connect()
        await other.send_all(get("/elsewhere"))
        assert await http1(client, path="/over") == (200, b"")
        assert await http1(client, path="/last") == (200, b"")
        assert errors == ["done"]


async def test_a_request_of_two_on_one_connection_is_the_one_whose_scope_it_is(
    autojump_clock: MockClock,
) -> None:
    """On HTTP/2, where each stream leaves for itself."""
    found: dict[str, float | None] = {}

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        found[scope["path"]] = await cancelled_within(dict(scope), 0)

    async with serving(steps) as served:
        client = await served.http2()
        first, second = client.request("/first"), client.request("/second")
        await client.flush()
        for stream_id in (second, first):
            await trio.sleep(1)
            client.h2.reset_stream(stream_id)
            await client.flush()
        await wait_all_tasks_blocked()
        assert found == {"/second": 1, "/first": 2}


async def test_a_middleware_may_have_it_around_an_application(
    autojump_clock: MockClock, caplog: Log
) -> None:
    """That knows nothing of it: for some paths only, as the middleware says."""
    handler = Handler(work)

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/report":
            with conn_of(scope).cancel_on_disconnect(scope, 3):
                await handler(dict(scope), receive, send)
        else:
            await handler(scope, receive, send)

    async with serving(middleware) as served:
        for path in ("/report", "/payment"):
            client = await served.connect()
            await client.send_all(get(path))
            await wait_all_tasks_blocked()
            client.reset()
        await trio.sleep(100)
        assert (handler.cancelled, handler.ended) == ([3], [3, 60])
        assert served.access == ["/report 499", "/payment 499"]
    assert problems(caplog) == []


# Frameworks: what each does by itself, and with the setting


class Notes:
    """What became of the work in a framework's handler."""

    def __init__(self) -> None:
        self.begun, self.over = trio.Event(), trio.Event()
        self.of_work = ""
        self.left = 0.0  # when the client has

    async def work(self) -> None:
        self.begun.set()
        try:
            await trio.sleep(60)
            self.of_work = "done"
        except trio.Cancelled:
            self.of_work = f"cancelled {trio.current_time() - self.left:g} s after its client left"
            raise
        finally:
            self.over.set()

    async def parts(self) -> AsyncIterator[bytes]:
        yield b"part"
        await self.work()
        yield b"part"


def plain(notes: Notes) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(OK)
        if scope["path"] == "/stream":
            await send(MORE)
        await notes.work()
        await send({**MORE, "more_body": False})

    return app


class Middle(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def starlette(notes: Notes, *middleware: Middleware) -> App:
    async def endpoint(request: Request) -> Response:
        await notes.work()
        return PlainTextResponse("late")

    def threaded(request: Request) -> Response:
        trio.from_thread.run(notes.work)
        return PlainTextResponse("late")

    async def stream(request: Request) -> Response:
        return StreamingResponse(notes.parts())

    async def background(request: Request) -> Response:
        return PlainTextResponse("early", background=BackgroundTask(notes.work))

    async def polls(request: Request) -> Response:
        notes.begun.set()
        for _ in range(60):
            if await request.is_disconnected():
                break
            await trio.sleep(1)
        else:
            notes.of_work = "done"
        notes.of_work = notes.of_work or "noticed"
        notes.over.set()
        return PlainTextResponse("late")

    async def websocket(websocket: StarletteWebSocket) -> None:
        await websocket.accept()
        await notes.work()

    routes = [
        WebSocketRoute("/", websocket),
        Route("/polls", polls),
        Route("/", endpoint),
        Route("/threaded", threaded),
        Route("/stream", stream),
        Route("/background", background),
    ]
    return Starlette(routes=routes, middleware=middleware)


def quart(notes: Notes) -> App:
    app = QuartTrio("quart")

    async def endpoint() -> str:
        await notes.work()
        return "late"

    def threaded() -> str:
        trio.from_thread.run(notes.work)
        return "late"

    async def stream() -> Any:
        return notes.parts()

    @app.websocket("/")
    async def websocket() -> None:
        await quart_websocket.accept()
        await notes.work()

    for path, view in ("/", endpoint), ("/threaded", threaded), ("/stream", stream):
        app.add_url_rule(path, view.__name__, view)
    served: App = app
    return served


FRAMEWORKS: dict[str, Callable[[Notes], App]] = {
    "plain ASGI": plain,
    "Starlette": starlette,
    "BaseHTTPMiddleware": lambda notes: starlette(notes, Middleware(Middle)),
    "Quart-Trio": quart,
}
CANCELLED, DONE = "cancelled 0 s after its client left", "done"
BY_THEMSELVES = {
    ("plain ASGI", "/"): DONE,
    ("plain ASGI", "/stream"): DONE,
    ("Starlette", "/"): DONE,
    ("Starlette", "/threaded"): DONE,
    ("Starlette", "/stream"): CANCELLED,
    ("Starlette", "/background"): DONE,
    ("BaseHTTPMiddleware", "/"): DONE,
    ("BaseHTTPMiddleware", "/threaded"): DONE,
    ("BaseHTTPMiddleware", "/stream"): CANCELLED,
    ("Quart-Trio", "/"): CANCELLED,
    ("Quart-Trio", "/threaded"): CANCELLED,
    ("Quart-Trio", "/stream"): CANCELLED,
}


async def leave_framework(
    framework: str, path: str, how: str, **config: Any
) -> tuple[str, list[str]]:
    """What becomes of the work when the client leaves in the middle of it, and the access log."""
    notes = Notes()
    responds = path in ("/stream", "/background")
    async with serving(FRAMEWORKS[framework](notes), **config) as served:
        if how == "RST_STREAM":
            http2 = await served.http2()
            stream_id = http2.request(path)
            await http2.flush()
            await notes.begun.wait()
            while responds and not http2.bodies:
                await http2.pump()
            if path == "/background":
                leave: Leave = http2.stream.aclose  # its stream is over
            else:
                http2.h2.reset_stream(stream_id)
                leave = http2.flush
        else:
            client = await served.connect()
            await client.send_all(get(path))
            await notes.begun.wait()
            if responds and how != "RST":
                await client.receive_some()
            if how == "RST":
                leave = partial(as_async, client.reset)
            else:
                leave = client.aclose if how == "FIN" else client.send_eof
        notes.left = trio.current_time()
        await leave()
        await notes.over.wait()
        await served.logged.wait()  # a thread takes its time
        return notes.of_work, served.access


# Starlette 1.7, the last version for Python 3.10, leaves it to the garbage collector.
with_starlette = pytest.mark.filterwarnings(
    "ignore:Async generator 'starlette.requests.Request.stream':ResourceWarning"
)


@with_starlette
@over_anyio
@pytest.mark.parametrize("how", ["FIN", "RST", "RST_STREAM"])
@pytest.mark.parametrize(("framework", "path"), BY_THEMSELVES)
async def test_what_each_framework_does_by_itself_when_its_client_leaves(
    framework: str, path: str, how: str, autojump_clock: MockClock
) -> None:
    """The table of the how-to: Quart-Trio cancels, Starlette does so for what it streams."""
    of_work, _ = await leave_framework(framework, path, how)
    assert of_work == BY_THEMSELVES[framework, path]


@with_starlette
@over_anyio
@pytest.mark.parametrize("how", ["FIN", "RST", "RST_STREAM"])
@pytest.mark.parametrize(("framework", "path"), BY_THEMSELVES)
async def test_what_each_framework_does_with_the_setting(
    framework: str, path: str, how: str, autojump_clock: MockClock, caplog: Log
) -> None:
    """Its handler is cancelled, an endpoint in a thread too when it comes back from there; but not
    a background task, nor one that streams to a client which has sent nothing but a FIN."""
    goes_on = path == "/background" or (framework, path, how) == ("plain ASGI", "/stream", "FIN")
    of_work, access = await leave_framework(framework, path, how, cancel_on_disconnect=0)
    assert of_work == (DONE if goes_on else CANCELLED)
    if path not in ("/background", "/stream"):
        assert access == [f"{path} 499"]
    assert problems(caplog) == []


@with_starlette
@over_anyio
@pytest.mark.parametrize("setting", [None, 0])
@pytest.mark.parametrize(("framework", "path"), BY_THEMSELVES)
async def test_what_each_framework_does_with_a_half_closed_client(
    framework: str, path: str, setting: float | None, autojump_clock: MockClock
) -> None:
    """Those that cancel by themselves take it for one that has gone; the setting does not."""
    of_work, _ = await leave_framework(
        framework, path, "half-closed", cancel_on_disconnect=setting, graceful_timeout=0
    )
    assert of_work == BY_THEMSELVES[framework, path]


@with_starlette
@over_anyio
@pytest.mark.parametrize("how", ["FIN", "RST", "RST_STREAM"])
@pytest.mark.parametrize(
    ("framework", "tells"), [("Starlette", True), ("BaseHTTPMiddleware", False)]
)
async def test_whether_starlette_tells_who_polls(
    framework: str, tells: bool, how: str, autojump_clock: MockClock
) -> None:
    """``request.is_disconnected()`` does, but below a BaseHTTPMiddleware."""
    of_work, _ = await leave_framework(framework, "/polls", how)
    assert of_work == ("noticed" if tells else "done")


@over_anyio
@pytest.mark.parametrize("setting", [None, 0])
@pytest.mark.parametrize("framework", ["Starlette", "Quart-Trio"])
@pytest.mark.parametrize("how", ["close frame", "FIN", "RST"])
async def test_what_each_framework_does_with_a_websocket(
    how: str, framework: str, setting: float | None, autojump_clock: MockClock
) -> None:
    """Quart-Trio cancels by itself, and Starlette with the setting."""
    notes = Notes()
    async with serving(FRAMEWORKS[framework](notes), cancel_on_disconnect=setting) as served:
        leave = await websocket_leaves(served, how)
        await notes.begun.wait()
        notes.left = trio.current_time()
        await leave()
        await notes.over.wait()
    by_itself = framework == "Quart-Trio"
    assert notes.of_work == (CANCELLED if by_itself or setting == 0 else DONE)


@over_anyio
@pytest.mark.parametrize("framework", ["Starlette", "Quart-Trio"])
async def test_a_stream_that_ends_because_its_client_has_is_logged_with_499(
    framework: str, autojump_clock: MockClock
) -> None:
    """Though a FIN is all that is known of the client."""
    _, access = await leave_framework(framework, "/stream", "FIN")
    assert access == ["/stream 499"]


async def test_the_block_takes_the_scopes_of_starlette_and_quart(
    autojump_clock: MockClock,
) -> None:
    """As their requests have them, also beneath a mount."""
    notes = Notes()

    async def endpoint(request: Request) -> Response:
        with conn_of(request.scope).cancel_on_disconnect(request.scope, 0):
            await notes.work()
        return PlainTextResponse("late")

    inner = Starlette(routes=[Route("/star", endpoint)])
    star = Starlette(routes=[Mount("/mount", inner)])
    quart_app = QuartTrio("quart")

    @quart_app.get("/quart")
    async def view() -> str:
        scope = quart_request.scope
        with conn_of(scope).cancel_on_disconnect(scope, 0):
            await notes.work()
        return "late"

    for app, path in (star, "/mount/star"), (quart_app, "/quart"):
        async with serving(app) as served:
            client = await served.connect()
            await client.send_all(get(path))
            await trio.sleep(1)
            client.reset()
            notes.left, notes.of_work = trio.current_time(), ""
            await wait_all_tasks_blocked()
            assert notes.of_work == CANCELLED
            assert served.access == [f"{path} 499"]


# Whatever happens in whichever order


@dataclass(frozen=True)
class Visit:
    """A client, its request, and what its handler does; times are in tenths of a second."""

    http2: bool
    comes: int
    leaves: int | None
    how: str
    before: int
    streams: int
    after: int

    @property
    def responded(self) -> int:
        return self.comes + self.before + self.streams

    @property
    def waits(self) -> bool:
        """Whether the client is there until its response is complete, though it has left."""
        return self.how == "half-closed"

    @property
    def gives_up(self) -> float:
        """When a ``send`` tells its handler, if it is not cancelled before."""
        assert self.leaves is not None
        begins = self.comes + self.before
        return (begins if self.leaves < begins else self.responded) / 10


VISITS = st.builds(
    Visit,
    http2=st.booleans(),
    comes=st.integers(0, 20),
    leaves=st.none() | st.integers(1, 40),
    how=st.sampled_from(["FIN", "RST", "half-closed"]),
    before=st.integers(0, 20),
    streams=st.integers(0, 20),
    after=st.integers(0, 20),
).map(lambda visit: odd(visit))


def odd(visit: Visit) -> Visit:
    """Where the client's end and the handler's steps never meet in one instant."""
    how = "FIN" if visit.http2 and visit.how == "half-closed" else visit.how
    double = {name: getattr(visit, name) * 2 for name in ("comes", "before", "streams", "after")}
    leaves = None if visit.leaves is None else double["comes"] + 2 * visit.leaves + 1
    return Visit(http2=visit.http2, how=how, leaves=leaves, **double)


@settings(max_examples=60)
@given(
    visits=st.lists(VISITS, min_size=1, max_size=6),
    seconds=st.sampled_from([0, 0.5, 1.5]),
)
def test_no_response_is_lost_and_no_task_is_left(visits: list[Visit], seconds: float) -> None:
    """Whoever waits for its response gets it, and no handler outlives its client for longer."""
    ended: dict[str, float] = {}
    bodies: dict[str, bytes] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        visit = visits[int(scope["path"][1:])]
        try:
            await trio.sleep(visit.before / 10)
            await send(OK)
            await send(MORE)
            await trio.sleep(visit.streams / 10)
            await send({**MORE, "body": b"end", "more_body": False})
            await trio.sleep(visit.after / 10)
        finally:
            ended[scope["path"]] = trio.current_time()

    async def client(served: Served, visit: Visit, path: str) -> None:
        await trio.sleep_until(visit.comes / 10)
        stream = await served.connect()
        with trio.CancelScope() as patience:
            if visit.leaves is not None and visit.how != "half-closed":
                patience.deadline = visit.leaves / 10
            if visit.http2:
                http2 = Http2(stream)
                await http2.start()
                bodies[path] = (await http2.get(path))[1]
            else:
                await stream.send_all(get(path))
                if visit.leaves is not None and visit.how == "half-closed":
                    await trio.sleep_until(visit.leaves / 10)
                    await stream.send_eof()
                received = b""
                while not received.endswith(b"0\r\n\r\n") and (data := await stream.receive_some()):
                    received += data
                bodies[path] = received.rpartition(b"\r\n\r\n4\r\n")[2]
        if visit.how == "RST":
            stream.reset()
        else:
            await stream.aclose()

    async def main() -> None:
        async with serving(app, cancel_on_disconnect=seconds) as served:
            async with trio.open_nursery() as nursery:
                for number, visit in enumerate(visits):
                    nursery.start_soon(client, served, visit, f"/{number}")
            await trio.sleep(20)
            assert served.server.connections() == {}
            assert tasks_living() == served.tasks

    trio.run(main, clock=MockClock(autojump_threshold=0))
    for number, visit in enumerate(visits):
        path, whole = f"/{number}", (visit.responded + visit.after) / 10
        if visit.waits or visit.leaves is None or visit.leaves > visit.responded:
            assert bodies[path] == (b"partend" if visit.http2 else b"part\r\n3\r\nend\r\n0\r\n\r\n")
            assert ended[path] == pytest.approx(whole)
        elif visit.leaves > visit.comes + visit.before and visit.how == "FIN" and not visit.http2:
            # It had read all that was written, and what is written next is all the rest.
            assert ended[path] == pytest.approx(whole)
        else:
            assert ended[path] == pytest.approx(min(visit.gives_up, visit.leaves / 10 + seconds))


# Real sockets, and clients that people use


@asynccontextmanager
async def real_server(
    handler: Any, certificate: Path | None = None, **config: Any
) -> AsyncIterator[str]:
    """Its URL. Whatever comes must come within ten seconds."""
    if certificate is not None:
        config |= {"certfile": str(certificate), "keyfile": str(certificate)}
    made = Config.from_mapping(bind="127.0.0.1:0", **config)
    with trio.fail_after(10):
        async with tracked_server(without_lifespan(handler), made) as server:
            yield server.urls[0].replace("127.0.0.1", "localhost")


class Awaited:
    """A handler whose begin and end can be waited for."""

    def __init__(self, steps: App = forever) -> None:
        self.begun, self.ended = trio.Event(), trio.Event()
        self.cancelled = False
        self._steps = steps

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        try:
            await self._steps(scope, receive, send)
        except trio.Cancelled:
            self.cancelled = True
            raise
        finally:
            self.ended.set()


@pytest.mark.parametrize("sign", ["TERM", "KILL"])
@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
@pytest.mark.parametrize("tls", [False, True], ids=["clear", "tls"])
async def test_curl_is_killed(
    tls: bool, protocol: str, sign: str, certificate: Path, caplog: Log
) -> None:
    """Its system ends its connection for it, and the handler ends."""
    if protocol == "--http2" and not tls:
        protocol = "--http2-prior-knowledge"
    handler = Awaited()
    async with real_server(handler, certificate if tls else None, cancel_on_disconnect=0) as url:
        curl = await trio.lowlevel.open_process(["curl", "--insecure", "-sN", protocol, url])
        await handler.begun.wait()
        curl.terminate() if sign == "TERM" else curl.kill()
        await handler.ended.wait()
        await curl.wait()
    assert handler.cancelled
    assert problems(caplog) == []


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
async def test_httpx_loses_patience(http2: bool, certificate: Path) -> None:
    """Over HTTP/1.1 it closes its connection. Over HTTP/2 it resets no stream: the handler ends
    when the client does."""
    handler = Awaited()
    async with real_server(handler, certificate, cancel_on_disconnect=0) as url:
        client = httpx.AsyncClient(verify=client_ssl("h2", "http/1.1"), http2=http2)
        async with client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.get, url)
                await handler.begun.wait()
                nursery.cancel_scope.cancel()
            if not http2:
                await handler.ended.wait()
            assert handler.ended.is_set() is not http2
        await handler.ended.wait()
    assert handler.cancelled


async def test_a_real_half_closed_client_gets_its_response() -> None:
    """After its FIN was seen, and behind a ``100 Continue`` that its system has taken."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, b"late")

    async with real_server(Awaited(steps), cancel_on_disconnect=0) as url:
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream:
            await stream.send_all(get())
            await stream.send_eof()
            assert statuses(await read_to_end(stream)) == [b"100", b"200"]


async def test_the_standard_library_ignores_the_probe() -> None:
    """``http.client`` reads on to the final response, as RFC 9110 has it."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, b"late")

    def client(port: int) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/")
        connection.sock.shutdown(1)
        response = connection.getresponse()
        found = response.status, response.read()
        connection.close()
        return found

    async with real_server(Awaited(steps), cancel_on_disconnect=0) as url:
        port = int(url.rpartition(":")[2])
        assert await trio.to_thread.run_sync(client, port) == (200, b"late")
