"""What clients and applications can do to a server, each against the real worker.

Whatever it is, the same must hold afterwards: a bystander's request that was in flight got its
response, a new request gets a response, every connection has reported exactly one terminal state,
no task and no file descriptor is left, and the shutdown is in time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.exceptions
import pytest
import trio
import wsproto
import wsproto.events
from hypercorn.config import Config
from hyperframe.frame import DataFrame
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnState, TrackedServer, tracked_server
from trio_httptrack.testing import MemoryServer, memory_server

from . import hypercorn_process
from .clients import Http2, http1, read_to_end
from .support import Recorder, reset, respond, tls_client

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

GRACE = 0.1  # seconds


class Arena:
    """A server under attack, and what is around it."""

    server: TrackedServer

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.gate = trio.Event()
        self.seen: list[str] = []
        self.written = 0
        self.clients = AsyncExitStack()
        self.reached = trio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while True:
                await send({"type": (await receive())["type"] + ".complete"})
        name = scope["path"].strip("/").replace("-", "_") or "hello"
        await getattr(self, f"{scope['type']}_{name}")(scope, receive, send)

    # Applications, good and bad

    async def http_hello(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"hello")

    async def http_hold(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate.wait()
        await respond(send, b"held")

    async def http_until_disconnect(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.seen.append("disconnect")

    async def http_until_oserror(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = {"type": "http.response.body", "body": b"x" * 10_000, "more_body": True}
        while True:
            try:
                await send(body)
            except OSError:
                self.seen.append("oserror")
                raise

    async def http_early(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"early")

    async def http_deaf_until_gate(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate.wait()

    async def http_big(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.set()
        await respond(send, b"x" * 50_000_000)

    async def http_endless(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.set()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            body = b"x" * 10_000
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self.written += len(body)

    async def http_gives_up(self, scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(respond, send, b"x" * 20_000_000)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            self.reached.set()

    async def http_says_close(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"connection", b"close"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.gate.wait()
        await send({"type": "http.response.body"})

    async def http_never_returns(self, scope: Any, receive: Any, send: Any) -> None:
        self.reached.set()
        while True:
            with suppress(OSError):
                await receive()

    websocket_never_returns = http_never_returns

    async def http_always_sends(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            self.reached.set()
            for event in ("http.response.start", "http.response.body", "websocket.send"):
                with suppress(Exception):
                    await send({"type": event, "status": 200, "body": b"x", "more_body": True})
            with trio.move_on_after(0):
                await receive()

    websocket_always_sends = http_always_sends

    async def http_only_sends_nonsense(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            self.reached.set()
            with suppress(Exception):
                await send({"type": "nonsense"})
            with suppress(Exception):
                await send({})

    websocket_only_sends_nonsense = http_only_sends_nonsense

    async def http_ctrl_c(self, scope: Any, receive: Any, send: Any) -> None:
        raise KeyboardInterrupt("from a handler")

    async def http_sys_exit(self, scope: Any, receive: Any, send: Any) -> None:
        sys.exit("from a handler")

    async def http_echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            event = await receive()
            body += event["body"]
            if not event["more_body"]:
                break
        await respond(send, body)

    async def http_raise(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("the application's own error")

    async def http_raise_after_head(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise ValueError("the application's own error")

    async def http_asyncio_cancelled(self, scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    async def http_stray_base_exception(self, scope: Any, receive: Any, send: Any) -> None:
        raise GeneratorExit

    async def http_group(self, scope: Any, receive: Any, send: Any) -> None:
        raise BaseExceptionGroup("several", [ValueError(), BaseException()])

    async def http_switch(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"", status=101)

    async def http_twice(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"once")
        await respond(send, b"twice")

    async def http_return(self, scope: Any, receive: Any, send: Any) -> None:
        return

    async def http_malformed(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": "two hundred"})

    async def http_bad_header(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x", b"a\r\nb")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def http_too_short(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"short"})

    async def websocket_hello(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})

    async def websocket_never_accepts(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "websocket.disconnect":
            pass
        self.seen.append("disconnect")

    async def websocket_deaf_until_gate(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await self.gate.wait()

    async def websocket_push(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            try:
                await send({"type": "websocket.send", "bytes": b"x" * 1000})
            except OSError:
                self.seen.append("oserror")
                raise

    async def websocket_big(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.reached.set()
        await send({"type": "websocket.send", "bytes": b"x" * 50_000_000})

    async def websocket_endless(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self.reached.set()
        while True:
            message = b"x" * 10_000
            await send({"type": "websocket.send", "bytes": message})
            self.written += len(message)

    async def websocket_subprotocol(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "not-offered"})

    async def websocket_raise(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        raise ValueError("the application's own error")

    async def websocket_return(self, scope: Any, receive: Any, send: Any) -> None:
        return

    # Clients

    async def connect(self, *, tls: bool = False) -> Any:
        if isinstance(self.server, MemoryServer):
            return await self.server.connect(tls=tls, handshake=False)
        port = self.server.urls[0 if tls else 1].rpartition(":")[2]
        return await trio.open_tcp_stream("127.0.0.1", int(port))

    async def connected(self) -> Any:
        """A client's end that is closed with the arena."""
        return await self.clients.enter_async_context(await self.connect())

    async def connect_tls(self, *alpn: str) -> trio.SSLStream[Any]:
        return await tls_client(await self.connect(tls=True), *alpn)

    async def connect_h2(self, *, tls: bool = True) -> Http2:
        client = Http2(await (self.connect_tls("h2") if tls else self.connect()))
        await client.start()
        return client

    async def exchange(self, data: bytes, *, tls: bool = False) -> bytes:
        """Send what is given and read to the server's end, on a connection of its own."""
        async with await self.connect(tls=tls) as stream:
            await stream.send_all(data)
            return await read_to_end(stream)

    async def tasks(self) -> int:
        await wait_all_tasks_blocked()
        return trio.lowlevel.current_statistics().tasks_living


@asynccontextmanager
async def arena(
    certificate: Path, clock: MockClock | None = None, **settings: Any
) -> AsyncIterator[Arena]:
    """Serve while the block runs, in memory with a mock clock; the shutdown must come in time."""
    arena = Arena()
    config = Config.from_mapping(
        bind="127.0.0.1:0",
        insecure_bind="127.0.0.1:0",
        certfile=str(certificate),
        keyfile=str(certificate),
        **{"errorlog": None, "graceful_timeout": GRACE, **settings},
    )
    serve = tracked_server if clock is None else memory_server
    async with arena.clients, serve(arena.app, config, tracker=arena.recorder) as arena.server:
        yield arena
        told = trio.current_time()
        await arena.server.shutdown()
        assert trio.current_time() - told <= GRACE + (0.5 if clock is None else 0)
    assert arena.server.conn_tracker.count == 0
    for sequence in arena.recorder.sequences():
        assert sum(sequence.count(terminal) for terminal in "CH") == 1
        assert sequence[-1] in "CH"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


Fault = Callable[[Arena], Awaitable[object]]
FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    FAULTS[function.__name__] = function
    return function


def faults(name: str, **functions: Fault) -> None:
    FAULTS.update({f"{name}-{key}": function for key, function in functions.items()})


def request(path: str = "/", *lines: str, method: str = "GET") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]
    return "\r\n".join(head).encode()


def handshake(path: str = "/", *lines: str) -> bytes:
    return request(
        path,
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
    )


# HTTP/1: too much, too little, and what is not HTTP


@fault
async def an_empty_line_too_many_after_http_1_0(arena: Arena) -> None:
    response = await arena.exchange(b"GET / HTTP/1.0\r\n\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"hello")


@fault
async def a_request_pipelined_behind_connection_close(arena: Arena) -> None:
    response = await arena.exchange(request("/", "Connection: close") + request("/hold"))
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"hello")


@fault
async def h2c_with_broken_settings(arena: Arena) -> None:
    upgrade = "Connection: Upgrade, HTTP2-Settings, close"
    lines = (upgrade, "Upgrade: h2c", "HTTP2-Settings: AAMAA")
    await arena.exchange(request("/", *lines))


@fault
async def expect_100_continue_and_no_body(arena: Arena) -> None:
    async with await arena.connect() as stream:
        lines = ("Transfer-Encoding: chunked", "Expect: 100-continue")
        await stream.send_all(request("/", *lines, method="POST"))


@fault
async def garbage_in_a_chunked_body(arena: Arena) -> None:
    head = request("/until-disconnect", "Transfer-Encoding: chunked", method="POST")
    await arena.exchange(head + b"no length\r\n")
    await wait_all_tasks_blocked()
    assert arena.seen == ["disconnect"]


@fault
async def an_endless_request_head(arena: Arena) -> None:
    response = await arena.exchange(b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000)
    assert response.startswith(b"HTTP/1.1 431 ")


@fault
async def an_upload_that_nobody_reads(arena: Arena) -> None:
    async with await arena.connect() as stream:
        length = "Content-Length: 1000000"
        await stream.send_all(request("/early", length, method="POST"))
        with suppress(trio.BrokenResourceError):  # it gets its response before it has sent all
            for _ in range(30):
                await stream.send_all(b"x" * 1000)
        await read_to_end(stream)


@fault
async def a_client_that_hangs_up_behind_its_pipelined_request(arena: Arena) -> None:
    async with await arena.connect() as stream:
        await stream.send_all(request("/until-disconnect") + request())
        await arena.recorder.wait_for(ConnState.ACTIVE, times=2)
        await wait_all_tasks_blocked()
    await arena.recorder.wait_terminal(1)
    assert arena.seen == ["disconnect"]


@fault
async def a_client_that_resets_behind_its_pipelined_request(arena: Arena) -> None:
    stream = await arena.connect()
    await stream.send_all(request("/until-disconnect") + request("/until-oserror"))
    await arena.recorder.wait_for(ConnState.ACTIVE, times=2)
    await wait_all_tasks_blocked()
    reset(stream)
    await arena.recorder.wait_terminal(1)
    await wait_all_tasks_blocked()
    assert arena.seen == ["disconnect"]  # and the second request is not begun


# HTTP/2: frames that a good client does not send


def bad_h2(headers: list[tuple[str, str]]) -> Fault:
    async def client(arena: Arena) -> None:
        client = await arena.connect_h2()
        client.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        client.h2.initiate_connection()
        client.h2.clear_outbound_data_buffer()  # has been sent
        client.h2.send_headers(1, headers, end_stream=True)
        good = client.request()
        await client.flush()
        while good not in client.ended and await client.pump():
            pass
        assert client.bodies == {good: b"hello"}
        await client.stream.aclose()

    return client


AUTHORITY = [(":scheme", "https"), (":authority", "localhost")]
faults(
    "h2",
    connect_without_path=bad_h2([(":method", "CONNECT"), (":authority", "localhost")]),
    path_beyond_ascii=bad_h2([(":method", "GET"), (":path", "/\xe9"), *AUTHORITY]),
    method_beyond_ascii=bad_h2([(":method", "G\xc9T"), (":path", "/"), *AUTHORITY]),
)


@fault
async def h2_data_for_an_answered_stream(arena: Arena) -> None:
    client = await arena.connect_h2()
    stream_id = client.request("/early", "POST", end=False)
    await client.flush()
    while stream_id not in client.ended:
        await client.pump()
    # It was told that it need not send more, but has done so.
    data = DataFrame(stream_id, data=b"x" * 1000).serialize() * 20
    end = DataFrame(stream_id, flags=["END_STREAM"]).serialize()
    await client.stream.send_all(data + end)
    assert await client.get() == ("200", b"hello")
    await client.stream.aclose()


@fault
async def h2_priority_for_a_thousand_finished_streams(arena: Arena) -> None:
    client = await arena.connect_h2()
    for stream_id in range(1, 2401, 2):
        client.h2.prioritize(stream_id, weight=20)
    await client.flush()
    client.h2.highest_outbound_stream_id = 2401
    assert await client.get() == ("200", b"hello")
    await client.stream.aclose()


@fault
async def h2_garbage_instead_of_frames(arena: Arena) -> None:
    async with await arena.connect() as stream:
        settings_of_odd_length = b"\0\0\5\4\0\0\0\0\0" + b"12345"
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_of_odd_length)
        await read_to_end(stream)


@fault
async def h2_a_reset_endless_response(arena: Arena) -> None:
    client = await arena.connect_h2()
    stream_id = client.request("/until-oserror")
    await client.flush()
    await client.pump()
    client.h2.reset_stream(stream_id)
    await client.flush()
    assert await client.get() == ("200", b"hello")
    await wait_all_tasks_blocked()
    assert arena.seen == ["oserror"]
    await client.stream.aclose()


@fault
async def h2_an_answer_that_its_handler_leaves_unfinished(arena: Arena) -> None:
    client = await arena.connect_h2()
    broken = client.request("/raise-after-head")
    await client.flush()
    while broken not in client.reset:
        await client.pump()
    assert await client.get() == ("200", b"hello")
    await client.stream.aclose()


# WebSockets


faults(
    "websocket",
    byte_before_the_accept=lambda arena: arena.exchange(handshake("/never-accepts") + b"x"),
    with_a_body=lambda arena: arena.exchange(
        handshake("/never-accepts", "Content-Length: 4") + b"body"
    ),
    no_key=lambda arena: arena.exchange(
        request("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    ),
    subprotocol_not_offered=lambda arena: arena.exchange(handshake("/subprotocol")),
    app_raises=lambda arena: arena.exchange(handshake("/raise")),
    app_returns=lambda arena: arena.exchange(handshake("/return")),
    garbage_frames=lambda arena: arena.exchange(handshake() + b"\xff" * 50),
)


@fault
async def websocket_bad_extension_parameter(arena: Arena) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=x"
    async with await arena.connect() as stream:
        await stream.send_all(handshake("/", offer))
        response = bytes(await stream.receive_some())
        assert response.startswith(b"HTTP/1.1 101 ")
        assert b"extensions" not in response


@fault
async def websocket_push_to_a_client_that_leaves(arena: Arena) -> None:
    async with await arena.connect() as stream:
        await stream.send_all(handshake("/push"))
        await stream.receive_some()
    await arena.recorder.conns[-1].wait_closed()
    await wait_all_tasks_blocked()
    assert arena.seen == ["oserror"]


@fault
async def websocket_over_h2_before_the_accept(arena: Arena) -> None:
    client = await arena.connect_h2()
    stream_id = await client.websocket("/never-accepts", accepted=False)
    client.h2.send_data(stream_id, b"x" * 10)
    await client.flush()
    assert await client.get() == ("200", b"hello")
    await client.stream.aclose()


@fault
async def websocket_over_h2_push_to_a_client_that_resets(arena: Arena) -> None:
    client = await arena.connect_h2()
    stream_id = await client.websocket("/push")
    client.h2.reset_stream(stream_id)
    await client.flush()
    assert await client.get() == ("200", b"hello")
    await wait_all_tasks_blocked()
    assert arena.seen == ["oserror"]
    await client.stream.aclose()


@fault
async def websocket_over_h2_that_says_goodbye(arena: Arena) -> None:
    client = await arena.connect_h2()
    stream_id = await client.websocket("/")
    websocket = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    client.h2.send_data(stream_id, websocket.send(wsproto.events.CloseConnection(code=1000)))
    await client.flush()
    while stream_id not in client.ended:
        await client.pump()
    await client.stream.aclose()


# TLS


faults(
    "tls",
    garbage=lambda arena: arena.exchange(b"garbage" * 100, tls=True),
    plain_http=lambda arena: arena.exchange(request(), tls=True),
)


@fault
async def tls_half_a_handshake(arena: Arena) -> None:
    async with await arena.connect(tls=True) as stream:
        await stream.send_all(b"\x16\x03\x01\x02\x00")


# Applications, over each protocol

APP_FAULTS = [
    "raise",
    "raise-after-head",
    "asyncio-cancelled",
    "stray-base-exception",
    "group",
    "switch",
    "twice",
    "return",
    "malformed",
    "bad-header",
    "too-short",
]


# Hypercorn sends them as the application said, and the client ends the connection.
ANSWERS_THAT_H2_CLIENTS_REFUSE = {"/switch", "/bad-header", "/too-short"}


def bad_app(path: str, protocol: str) -> Fault:
    async def over_http1(arena: Arena) -> None:
        stream = await (arena.connect_tls() if protocol == "tls" else arena.connect())
        await stream.send_all(request(path, "Connection: close"))
        await read_to_end(stream)
        await stream.aclose()

    async def over_http2(arena: Arena) -> None:
        client = await arena.connect_h2(tls=protocol == "h2")
        stream_id = client.request(path)
        await client.flush()
        try:
            while stream_id not in client.ended | client.reset:
                await client.pump()
            assert await client.get() == ("200", b"hello")
        except h2.exceptions.ProtocolError:
            assert path in ANSWERS_THAT_H2_CLIENTS_REFUSE
        await client.stream.aclose()

    return over_http2 if protocol in ("h2", "h2c") else over_http1


for path, protocol in product(APP_FAULTS, ["http1", "tls", "h2", "h2c"]):
    FAULTS[f"app-{path}-{protocol}"] = bad_app(f"/{path}", protocol)


# Clients that leave: at each moment, in each manner, over each protocol


async def at_once(arena: Arena, protocol: str) -> Any:
    return await arena.connect()


async def in_a_request_line(arena: Arena, protocol: str) -> Any:
    stream = await opened(arena, protocol)
    await stream.send_all(b"GET /ha")
    return stream


async def in_a_body(arena: Arena, protocol: str) -> Any:
    if protocol in ("h2", "h2c"):
        client = await arena.connect_h2(tls=protocol == "h2")
        client.h2.send_data(client.request("/until-disconnect", "POST", end=False), b"part")
        await client.flush()
        return client.stream
    stream = await opened(arena, protocol)
    head = request("/until-disconnect", "Content-Length: 9", method="POST")
    await stream.send_all(head + b"part")
    return stream


async def while_the_handler_waits(arena: Arena, protocol: str) -> Any:
    return await requested(arena, protocol, "/until-disconnect")


async def in_an_answer(arena: Arena, protocol: str) -> Any:
    stream = await requested(arena, protocol, "/until-oserror")
    await stream.receive_some()
    return stream


async def idle(arena: Arena, protocol: str) -> Any:
    stream = await requested(arena, protocol, "/")
    await stream.receive_some()
    return stream


async def opened(arena: Arena, protocol: str) -> Any:
    return await (arena.connect_tls("http/1.1") if protocol == "tls" else arena.connect())


async def requested(arena: Arena, protocol: str, path: str) -> Any:
    if protocol in ("h2", "h2c"):
        client = await arena.connect_h2(tls=protocol == "h2")
        client.request(path)
        await client.flush()
        return client.stream
    stream = await opened(arena, protocol)
    if protocol == "websocket":
        await stream.send_all(handshake({"/until-oserror": "/push"}.get(path, "/never-accepts")))
    else:
        await stream.send_all(request(path))
    return stream


async def closes(stream: Any) -> None:
    await trio.aclose_forcefully(stream)


async def resets(stream: Any) -> None:
    reset(stream)


def leaving(moment: Any, manner: Any, protocol: str) -> Fault:
    async def client(arena: Arena) -> None:
        stream = await moment(arena, protocol)
        await wait_all_tasks_blocked()  # a handler that writes has met the end of its windows
        await manner(stream)
        await trio.aclose_forcefully(stream)

    return client


MOMENTS = [at_once, in_a_request_line, in_a_body, while_the_handler_waits, in_an_answer, idle]
for moment, manner, protocol in product(
    MOMENTS, [closes, resets], ["http1", "tls", "h2", "h2c", "websocket"]
):
    if moment in (at_once, in_a_request_line) and protocol in ("h2", "h2c", "websocket"):
        continue
    if moment in (in_a_body, idle) and protocol == "websocket":
        continue
    FAULTS[f"{manner.__name__}-{moment.__name__}-{protocol}"] = leaving(moment, manner, protocol)


@pytest.mark.parametrize("name", FAULTS)
async def test_an_error_closes_its_own_connection_and_no_other(
    name: str, certificate: Path
) -> None:
    """Whatever one client or handler does, others do not notice, and nothing is left of it."""
    async with arena(certificate) as server, await server.connect() as bystander:
        await bystander.send_all(request("/hold"))
        await server.recorder.wait_states("NA")
        tasks, files = await server.tasks(), open_files()

        with trio.fail_after(10):
            await FAULTS[name](server)
            await server.recorder.wait_terminal(len(server.recorder.conns) - 1)
            for conn in server.recorder.conns[1:]:
                await conn.wait_closed()
            assert (await server.tasks(), open_files()) == (tasks, files)

            async with await server.connect() as fresh:
                assert await http1(fresh) == (200, b"hello")
            server.gate.set()
            response = b""
            while not response.endswith(b"held"):
                response += await bystander.receive_some()


async def test_a_fault_takes_neither_workers_nor_their_parent_down(tmp_path: Path) -> None:
    """The command with two workers handles the requests in flight, and goes on."""
    config = tmp_path / "hypercorn_conf.py"
    config.write_text(
        "from trio_httptrack import hook\n\nconn_state = hook('ways_in.twoparts:tracker')\n"
    )
    command = ("-k", "trio", "-c", f"file:{config}", "-w", "2", "ways_in.twoparts:app")
    head = request("/", "Content-Length: 4", "Connection: close", method="POST")
    async with hypercorn_process.hypercorn(*command) as server, AsyncExitStack() as clients:
        in_flight = []
        for _ in range(4):
            client = await hypercorn_process.connect(server.url)
            in_flight.append(await clients.enter_async_context(client))
            await client.send_all(head)
            while not (await client.receive_some()).endswith(b"."):
                pass
        for _ in range(8):
            async with await hypercorn_process.connect(server.url) as bad:
                await bad.send_all(handshake() + b"x")
                await read_to_end(bad)
        for client in in_flight:
            await client.send_all(b"body")
            assert await read_to_end(client) == b"done"
        async with await hypercorn_process.connect(server.url) as fresh:
            await fresh.send_all(head + b"body")
            assert (await read_to_end(fresh)).endswith(b"done")
    assert server.returncode == 0
