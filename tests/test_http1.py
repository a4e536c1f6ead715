"""HTTP/1.x on one connection: deadlines, turns, ends and settings, in virtual time."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random
from typing import Any

import h11
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnState
from trio_httptrack._connection.connection import Connection
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server
from trio_httptrack.testing._network import BUFFER_SIZE, MemoryKernel

from .clients import http1, read_response, read_to_end
from .support import Recorder, app, problems, respond, without_lifespan

App = Callable[[Any, Any, Any], Awaitable[None]]

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
OK = {"type": "http.response.start", "status": 200, "headers": []}


def request(path: str = "/", *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: here", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def send_now(client: ClientStream, data: bytes) -> int:
    """Send what there is room for, without letting any other task run."""
    try:
        return client._transport.socket.send(data)
    except BlockingIOError:
        return 0


def closed(recorder: Recorder, client: ClientStream) -> tuple[float, str | None]:
    """When the connection was closed, and why."""
    (time,) = [
        time
        for conn, state, time in recorder.events
        if conn is client.conn and state is ConnState.CLOSED
    ]
    return time, client.conn.close_reason


async def responses(stream: Any, number: int, method: str = "GET") -> list[tuple[int, bytes]]:
    """So many responses to requests that were sent already."""
    found: list[tuple[int, bytes]] = []
    connection = h11.Connection(h11.CLIENT)
    for _ in range(number):
        connection.send(h11.Request(method=method, target="/", headers=[("host", "here")]))
        connection.send(h11.EndOfMessage())
        found.append(await read_response(stream, connection))
        if number > len(found):
            connection.start_next_cycle()
    return found


def head_of(response: bytes | bytearray) -> dict[bytes, list[bytes]]:
    """A response's headers by their names in lower case."""
    headers: dict[bytes, list[bytes]] = {}
    for line in bytes(response).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        headers.setdefault(name.lower(), []).append(value)
    return headers


class TlsClient:
    """A TLS client by hand, which sees how its server ends."""

    def __init__(self, server: MemoryServer, stream: ClientStream) -> None:
        self.stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = server._tls.client().wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )

    async def last_flight(self) -> bytes:
        """Do the handshake up to the last bytes, which are for the caller to send."""
        while True:
            with suppress(ssl.SSLWantReadError):
                self._tls.do_handshake()
                return self._outgoing.read()
            await self.stream.send_all(self._outgoing.read())
            self._incoming.write(await self.stream.receive_some())

    async def handshake(self) -> None:
        await self.stream.send_all(await self.last_flight())

    def encrypt(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        with suppress(ssl.SSLError):  # which says that the server's has not come yet
            self._tls.unwrap()
        return self._outgoing.read()

    async def read(self) -> bytes:
        """The next bytes; none behind a close_notify.

        Raises:
          EOFError: the server's end came without one.
        """
        while True:
            try:
                return self._tls.read(2**16)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLZeroReturnError:
                return b""
            records = await self.stream.receive_some()
            if not records:
                raise EOFError("without a close_notify")
            self._incoming.write(records)

    async def read_to_end(self) -> bytes:
        received = b""
        while data := await self.read():
            received += data
        return received


async def tls_client(server: MemoryServer) -> TlsClient:
    client = TlsClient(server, await server.connect(tls=True, handshake=False))
    await client.handshake()
    return client


# Bytes that came in time count, though the loop was busy when both they and the deadline came


@pytest.fixture(params=range(4))
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each order in which two tasks of one scheduler step may run."""
    scheduler = trio._core._run
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    monkeypatch.setattr(scheduler, "_r", Random(request.param))


class Busy:
    """Serves an application that, when it is called for /busy, keeps the loop until ``act`` is
    done: whatever that does is seen in one step by all others."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.act: Callable[[], object]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan" and scope["path"] == "/busy":
            self.act()
            await respond(send, b"busy")
        else:
            await self._app(scope, receive, send)

    async def keep(self, server: MemoryServer, act: Callable[[], object]) -> None:
        """Keep the loop busy, and come back when all has been noticed."""
        self.act = act
        async with await server.connect() as client:
            assert await http1(client, path="/busy") == (200, b"busy")
        await wait_all_tasks_blocked()


@without_lifespan
async def slow(scope: Any, receive: Any, send: Any) -> None:
    """Takes longer than any deadline of these tests."""
    event = await receive()
    while event["more_body"]:
        event = await receive()
    await trio.sleep(10)
    await respond(send, scope["path"].encode())


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("requests", [0, 1])
async def test_a_request_that_came_before_its_deadline_is_handled(
    requests: int, autojump_clock: MockClock
) -> None:
    """The first one of a connection, or the next one; and a deadline never ends what is active."""
    busy = Busy(slow)
    recorder = Recorder()
    async with memory_server(busy, tracker=recorder, keep_alive_timeout=1) as server:
        client = await server.connect()
        for _ in range(requests):
            assert await http1(client, path="/before") == (200, b"/before")

        def both() -> None:
            send_now(client, request("/intime"))
            autojump_clock.jump(1.5)

        await trio.sleep(0.5)
        await busy.keep(server, both)
        assert client.conn.state is ConnState.ACTIVE
        assert await responses(client, 1) == [(200, b"/intime")]
        rested = trio.current_time()
        assert await client.receive_some() == b""
        assert closed(recorder, client) == (rested + 1, "keep_alive_timeout")


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(
    ("requests", "reason"), [(0, "request_headers_timeout"), (1, "keep_alive_timeout")]
)
@pytest.mark.parametrize("part", [b"", b"G", b"P", GET[:-1], b"\r\n"])
@pytest.mark.parametrize("read_timeout", [None, 60])
async def test_a_part_of_a_request_that_came_before_its_deadline_is_not_enough(
    part: bytes,
    requests: int,
    reason: str,
    read_timeout: float | None,
    autojump_clock: MockClock,
) -> None:
    """A last read at the deadline finds it, and then the rest is not waited for."""
    busy = Busy(app)
    recorder = Recorder()
    async with memory_server(
        busy, tracker=recorder, keep_alive_timeout=1, read_timeout=read_timeout
    ) as server:
        client = await server.connect()
        for _ in range(requests):
            await http1(client)

        def both() -> None:
            send_now(client, part)
            autojump_clock.jump(1.5)

        await trio.sleep(0.5)
        await busy.keep(server, both)
        assert closed(recorder, client) == (2, reason)


@pytest.mark.usefixtures("order")
async def test_a_handshake_that_was_done_before_its_deadline_is_good(
    autojump_clock: MockClock,
) -> None:
    """Its client has all the time for its first request that any other has."""
    busy = Busy(app)
    recorder = Recorder()
    async with memory_server(
        busy, tracker=recorder, ssl_handshake_timeout=1, keep_alive_timeout=5
    ) as server:
        stream = await server.connect(tls=True, handshake=False)
        client = TlsClient(server, stream)
        last = await client.last_flight()

        def both() -> None:
            send_now(stream, last)
            autojump_clock.jump(1.5)

        await trio.sleep(0.5)
        await busy.keep(server, both)
        await trio.sleep(4)
        await stream.send_all(client.encrypt(GET))
        assert (await client.read()).endswith(b"\r\n\r\n/")
        assert await client.read() == b""
        assert closed(recorder, stream) == (11, "keep_alive_timeout")


@pytest.mark.usefixtures("order")
async def test_a_part_of_a_handshake_before_its_deadline_is_not_enough(
    autojump_clock: MockClock,
) -> None:
    """As of a request."""
    busy = Busy(app)
    recorder = Recorder()
    async with memory_server(
        busy, tracker=recorder, ssl_handshake_timeout=1, keep_alive_timeout=5
    ) as server:
        stream = await server.connect(tls=True, handshake=False)
        last = await TlsClient(server, stream).last_flight()

        def both() -> None:
            send_now(stream, last[:10])
            autojump_clock.jump(1.5)

        await trio.sleep(0.5)
        await busy.keep(server, both)
        assert closed(recorder, stream) == (2, "tls_handshake_failed")


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("requests", [0, 1])
@pytest.mark.parametrize("sent", [GET, GET[:5], b""])
async def test_a_request_that_came_before_the_drains_deadline_is_handled(
    sent: bytes, requests: int, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Of a connection that rests, and of a new one; and it is the last one."""
    busy = Busy(app)
    recorder = Recorder()
    async with memory_server(
        busy,
        tracker=recorder,
        drain_idle_timeout=1,
        drain_new_timeout=1,
        keep_alive_timeout=60,
    ) as server:
        client = await server.connect()
        for _ in range(requests):
            await http1(client)

        def both() -> None:
            send_now(client, sent)
            autojump_clock.jump(1.5)

        await wait_all_tasks_blocked()
        connections[0].drain()
        await trio.sleep(0.5)
        await busy.keep(server, both)
        response = await client.receive_some()
        if sent == GET:
            assert response.startswith(b"HTTP/1.1 200 ")
            assert head_of(response)[b"connection"] == [b"close"]
            response = await client.receive_some()
        assert response == b""
        await client.aclose()  # for which the server may have waited
        await wait_all_tasks_blocked()
        assert closed(recorder, client) == (2, None)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("rest", [b"", b"8", b"89"])
@pytest.mark.parametrize("begun", ["body", "chunk", "head"])
async def test_the_rest_of_a_request_that_came_before_the_read_timeout_is_read(
    begun: str, rest: bytes, autojump_clock: MockClock
) -> None:
    """A part of it has the client win as much time again."""
    busy = Busy(app)
    recorder = Recorder()
    length, method = "Content-Length: 10", "POST"
    whole = {
        "body": request("/body", length, method=method, body=b"0123456789"),
        "chunk": request(
            "/body", "Transfer-Encoding: chunked", method=method, body=b"5\r\n01234\r\n0\r\n\r\n"
        ),
        "head": request("/89"),
    }[begun]
    end = len(whole) - 2
    async with memory_server(
        busy, tracker=recorder, read_timeout=1, keep_alive_timeout=60
    ) as server:
        client = await server.connect()
        await client.send_all(whole[:end])

        def both() -> None:
            send_now(client, whole[end : end + len(rest)])
            autojump_clock.jump(1.5)

        await trio.sleep(0.5)
        await busy.keep(server, both)
        if len(rest) == 2:
            assert (await responses(client, 1))[0][0] == 200
        else:
            assert await read_to_end(client) == b""
            assert closed(recorder, client) == (2 + len(rest), "read_timeout")


@pytest.mark.usefixtures("order")
async def test_what_is_read_behind_the_read_timeout_wins_no_time_for_the_head(
    autojump_clock: MockClock,
) -> None:
    """Where both timeouts pass at once, the one for a whole head holds all the same."""
    busy = Busy(app)
    recorder = Recorder()
    async with memory_server(
        busy, tracker=recorder, read_timeout=5, keep_alive_timeout=5
    ) as server:
        client = await server.connect()
        await client.send_all(GET[:5])

        def both() -> None:
            send_now(client, GET[5:8])
            autojump_clock.jump(2)

        await trio.sleep(4)
        await busy.keep(server, both)
        for byte in GET[8:14]:
            with suppress(trio.BrokenResourceError):
                await client.send_all(bytes([byte]))
            await trio.sleep(3)
        assert closed(recorder, client)[0] == 6


# read_timeout


async def test_read_timeout_is_for_the_client_and_not_for_the_handler(
    autojump_clock: MockClock,
) -> None:
    """A complete request gets its response, however long that takes."""
    async with memory_server(slow, read_timeout=0.5) as server:
        client = await server.connect()
        for sent in (GET, request(method="POST"), request("/", "X-Repeated: 1", "X-Repeated: 2")):
            await client.send_all(sent)
            assert await responses(client, 1) == [(200, b"/")]
        for number in range(1, 3):
            body = request("/", f"Content-Length: {number}", method="POST", body=b"x" * number)
            await client.send_all(body)
            assert await responses(client, 1) == [(200, b"/")]
        assert trio.current_time() == 50


@pytest.mark.parametrize(
    "sent",
    [
        GET[:7],
        GET[:-2],
        b"P",
        b"PRI * HTTP",
        request("/body", "Content-Length: 9", method="POST"),
        request("/body", "Content-Length: 9", method="POST", body=b"some"),
        request("/body", "Transfer-Encoding: chunked", method="POST"),
        request("/body", "Transfer-Encoding: chunked", method="POST", body=b"5\r\nhel"),
        request("/body", "Content-Length: 9", "Expect: 100-continue", method="POST"),
    ],
)
@pytest.mark.parametrize("requests", [0, 1])
async def test_a_request_that_stalls_ends_with_read_timeout(
    sent: bytes, requests: int, autojump_clock: MockClock
) -> None:
    """In its head or in its body, the first one as well as any other."""
    recorder = Recorder()
    async with memory_server(
        app, tracker=recorder, read_timeout=0.5, keep_alive_timeout=60
    ) as server:
        client = await server.connect()
        for _ in range(requests):
            await http1(client)
        await trio.sleep(3)
        await client.send_all(sent)
        await read_to_end(client)
        assert closed(recorder, client) == (3.5, "read_timeout")


async def test_read_timeout_begins_again_with_each_piece(autojump_clock: MockClock) -> None:
    """It is for a pause, not for a request."""
    async with memory_server(app, read_timeout=0.5, keep_alive_timeout=60) as server:
        client = await server.connect()
        for byte in request("/body", "Content-Length: 9", method="POST", body=b"trickling"):
            await trio.sleep(0.4)
            await client.send_all(bytes([byte]))
        assert await responses(client, 1) == [(200, b"trickling")]


@pytest.mark.parametrize("kind", ["new", "idle", "websocket"])
async def test_read_timeout_does_not_close_an_idle_connection_or_a_websocket(
    kind: str, autojump_clock: MockClock
) -> None:
    """A connection that rests, and a WebSocket."""
    async with memory_server(app, read_timeout=0.5, keep_alive_timeout=60) as server:
        client = await server.connect()
        if kind == "idle":
            await http1(client)
        if kind == "websocket":
            await client.send_all(HANDSHAKE)
            assert (await client.receive_some()).startswith(b"HTTP/1.1 101 ")
        await trio.sleep(10)
        if kind == "websocket":
            await client.send_all(b"\x81\x82" + bytes(4) + b"hi")
            assert await client.receive_some() == b"\x81\x02hi"
        else:
            assert await http1(client) == (200, b"/")


async def test_read_timeout_does_not_close_a_client_that_waits_for_the_application(
    autojump_clock: MockClock,
) -> None:
    """A body that lies in our buffers is not the client's pause."""

    @without_lifespan
    async def slow_reader(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (event := await receive())["more_body"]:
            body += event["body"]
            await trio.sleep(3)
        await respond(send, b"%d" % len(body + event["body"]))

    async with memory_server(slow_reader, read_timeout=0.5, max_app_queue_size=1) as server:
        client = await server.connect()
        size = 5 * BUFFER_SIZE
        await client.send_all(request("/", f"Content-Length: {size}", method="POST"))
        await client.send_all(bytes(size))
        assert await responses(client, 1, "POST") == [(200, b"%d" % size)]


# What a request may be


@pytest.mark.parametrize("coding", ["Content-Length: 200000", "Transfer-Encoding: chunked"])
async def test_a_response_to_a_part_of_an_upload_has_connection_close_and_is_not_reset(
    coding: str, autojump_clock: MockClock
) -> None:
    """RFC 9112, 9.6: what is not read is no request, and the client can read the response."""

    @without_lifespan
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await respond(send, b"enough", status=413)

    recorder = Recorder()
    async with memory_server(early, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        await client.send_all(request("/", coding, method="POST", body=b"5\r\nhello\r\n"))
        await wait_all_tasks_blocked()
        for _ in range(10):
            await client.send_all(b"4000\r\n" + bytes(2**14) + b"\r\n")
            await wait_all_tasks_blocked()
        await client.send_all(b"0\r\n\r\n" + GET)
        response = await read_to_end(client)
        assert response.startswith(b"HTTP/1.1 413 ")
        assert response.endswith(b"\r\n\r\nenough")
        assert head_of(response)[b"connection"] == [b"close"]
        assert recorder.sequences() == ["NA"]
        await client.aclose()
    assert recorder.sequences() == ["NAC"]
    assert closed(recorder, client) == (0, None)


async def test_an_early_response_is_not_held_up_by_what_its_handler_has_not_read(
    autojump_clock: MockClock,
) -> None:
    """Nor by a handler that goes on: the rest of the upload is discarded at once."""

    @without_lifespan
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await respond(send, b"enough", status=413)
        await trio.sleep(100)

    async with memory_server(early, max_app_queue_size=1, graceful_timeout=200) as server:
        client = await server.connect()
        size = 4 * BUFFER_SIZE
        await client.send_all(request("/", f"Content-Length: {size}", method="POST"))
        await client.send_all(bytes(size))
        assert trio.current_time() == 1
        assert (await read_to_end(client)).endswith(b"\r\n\r\nenough")
        await client.aclose()
        await client.conn.wait_closed()
        assert trio.current_time() == 1


async def test_a_request_that_crosses_the_last_response_does_not_destroy_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that could not know it is waited for while the response is on its way."""
    # In memory nothing ever is; here it is until it has been read.
    monkeypatch.setattr(MemoryKernel, "in_flight", MemoryKernel.unsent)
    async with memory_server(app, keep_alive_max_requests=1, keep_alive_timeout=5) as server:
        client = await server.connect()
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        await client.send_all(request("/crossing"))
        await wait_all_tasks_blocked()
        response = await read_to_end(client)
    assert response.endswith(b"\r\n\r\n/")
    assert response.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([b"\r\n" + GET], 200),
        ([b"\r", b"\n", GET], 200),
        ([b"\r\n\r\n" + GET], 400),
        ([b"\r\n", b"\r", b"\n" + GET], 400),
    ],
)
async def test_one_empty_line_before_a_request_is_ignored(
    pieces: list[bytes], status: int, autojump_clock: MockClock
) -> None:
    """RFC 9112, 2.2; more of them are no request, however they come."""
    async with memory_server(app) as server:
        client = await server.connect()
        assert await http1(client) == (200, b"/")
        for piece in pieces:
            await client.send_all(piece)
            await wait_all_tasks_blocked()
        assert (await responses(client, 1))[0][0] == status


@pytest.mark.parametrize("raw_names", [False, True])
@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://there:81/a%20b?q=1", "there:81", "/a b", b"q=1"),
        ("HTTPS://there", "there", "/", b""),
        ("http://[::1]/?", "[::1]", "/", b""),
        ("/here", "here", "/here", b""),
    ],
)
async def test_the_authority_of_an_absolute_target_replaces_the_host(
    target: str, host: str, path: str, query: bytes, raw_names: bool, autojump_clock: MockClock
) -> None:
    """RFC 9112, 3.2.2: for the application, and for server_names."""
    scopes = []

    @without_lifespan
    async def record(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, b"")

    async with memory_server(record, server_names=[host], h11_pass_raw_headers=raw_names) as server:
        client = await server.connect()
        await client.send_all(request(target, "X-Other: x"))
        assert (await responses(client, 1))[0][0] == 200
    (scope,) = scopes
    assert (scope["path"], scope["query_string"]) == (path, query)
    assert [value for name, value in scope["headers"] if name.lower() == b"host"] == [host.encode()]
    assert len(scope["headers"]) == 2


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: ")


async def test_an_upgrade_to_http_2_can_be_switched_off(autojump_clock: MockClock) -> None:
    """The request is responded to as any other, over HTTP/1.1, and the connection goes on."""
    for enabled, status in (True, b"101"), (False, b"200"):
        async with memory_server(app, h2c_upgrade=enabled) as server:
            client = await server.connect()
            await client.send_all(request("/", *H2C))
            assert (await client.receive_some()).startswith(b"HTTP/1.1 " + status)
            if not enabled:
                assert await http1(client) == (200, b"/")
                assert client.conn.protocol == "http/1.1"


async def test_there_is_no_upgrade_to_http_2_under_tls(autojump_clock: MockClock) -> None:
    """There ALPN is for that."""
    async with memory_server(app) as server:
        client = await server.connect(tls=True)
        await client.send_all(request("/", *H2C))
        assert await responses(client, 1) == [(200, b"/")]
        assert client.conn.protocol == "http/1.1"


@pytest.mark.parametrize("raw_names", [False, True])
@pytest.mark.parametrize(
    ("line", "body"),
    [
        ("Content-Length: 5", b"hello"),
        ("Content-Length: 0", b""),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
    ],
)
async def test_a_request_with_a_body_does_not_upgrade(
    line: str, body: bytes, raw_names: bool, autojump_clock: MockClock
) -> None:
    """Its body would be taken for HTTP/2, however its headers are spelled."""
    async with memory_server(app, h11_pass_raw_headers=raw_names) as server:
        client = await server.connect()
        await client.send_all(request("/body", *H2C, line, method="POST", body=body))
        expected = b"hello" if body else b""
        assert await responses(client, 1, "POST") == [(200, expected)]


# What a response may be


def replying(status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**OK, "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    replying_app: App = without_lifespan(app)
    return replying_app


@pytest.mark.parametrize("own", [(b"date",), (b"Server",), (b"DATE", b"server"), ()])
@pytest.mark.parametrize("length", [True, False])
async def test_an_applications_date_and_server_replace_ours(
    own: tuple[bytes, ...], length: bool, autojump_clock: MockClock
) -> None:
    """A response has one of each, whatever frames its body."""
    headers = [(name, b"the application's") for name in own]
    if length:
        headers.append((b"content-length", b"0"))
    async with memory_server(replying(200, *headers)) as server:
        client = await server.connect()
        for _ in range(2):  # the second time from what was remembered of the first
            await client.send_all(GET)
            response = head_of(await client.receive_some())
            names = {name.lower() for name in own}
            for name in (b"date", b"server"):
                (value,) = response[name]
                assert (value == b"the application's") is (name in names)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_early_hints_precede_the_response(version: str, autojump_clock: MockClock) -> None:
    """As often as the application sends them; but no client of HTTP/1.0 would understand it."""

    @without_lifespan
    async def hints(scope: Any, receive: Any, send: Any) -> None:
        for path in (b"</a.css>", b"</b.css>"):
            await send({**OK, "status": 103, "headers": [(b"link", path)]})
        await respond(send, b"done")

    async with memory_server(hints) as server:
        client = await server.connect()
        await client.send_all(GET.replace(b"1.1", version.encode()))
        await wait_all_tasks_blocked()
        parts = bytes(await client.receive_some()).split(b"\r\n\r\n")
    assert parts.pop() == b"done"
    final = parts.pop()
    assert final.startswith(b"HTTP/1.1 200 ")
    assert b"link" not in head_of(final)
    assert [part[:13] for part in parts] == ([b"HTTP/1.1 103 "] * 2 if version == "1.1" else [])
    assert [head_of(part)[b"link"] for part in parts] == [[b"</a.css>"], [b"</b.css>"]][
        : len(parts)
    ]


@pytest.mark.parametrize("status", [101, 100, 99, 0, -1, 1000])
async def test_an_invalid_status_code_is_the_applications_error(
    status: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of it goes out, and the client gets a 500."""
    async with memory_server(replying(status)) as server:
        client = await server.connect()
        await client.send_all(GET)
        response = await read_to_end(client)
    assert response.startswith(b"HTTP/1.1 500 \r\n")
    assert response.count(b"HTTP/1.1 ") == 1
    assert "Error in ASGI Framework" in caplog.text


@pytest.mark.parametrize("status", [200, 299, 404, 599, 999])
async def test_any_other_status_is_sent(status: int, autojump_clock: MockClock) -> None:
    """Whether or not it has a name."""
    async with memory_server(replying(status, body=b"body")) as server:
        assert await http1(await server.connect()) == (status, b"body")


@pytest.mark.parametrize("sizes", [[4, 4], [5], [3], [0], [2, 0], [2, 2, 2]])
async def test_a_body_must_have_the_length_of_its_content_length_header(
    sizes: list[int], autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it is the application's error: a 500 if nothing was written yet, or cut off."""

    @without_lifespan
    async def parts(scope: Any, receive: Any, send: Any) -> None:
        await send({**OK, "headers": [(b"content-length", b"4")]})
        for number, size in enumerate(sizes, 1):
            more = number < len(sizes)
            await send({"type": "http.response.body", "body": b"x" * size, "more_body": more})

    async with memory_server(parts) as server:
        client = await server.connect()
        await client.send_all(GET)
        response = await read_to_end(client)
    if len(sizes) == 1:
        assert response.startswith(b"HTTP/1.1 500 ")
        assert response.count(b"HTTP/1.1 ") == 1
    else:
        assert response.startswith(b"HTTP/1.1 200 ")
        assert response.partition(b"\r\n\r\n")[2] in (b"xx", b"xxxx")
    assert "declared Content-Length" in caplog.text


@pytest.mark.parametrize("size", [2**15 - 1, 2**15, 2**15 + 1, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_of_any_size_arrive_whole(
    size: int, chunked: bool, autojump_clock: MockClock
) -> None:
    """Copied into one piece or written from where they are."""
    body = bytes(range(256)) * (size // 256 + 1)

    @without_lifespan
    async def parts(scope: Any, receive: Any, send: Any) -> None:
        length = [] if chunked else [(b"content-length", b"%d" % (2 * size))]
        await send({**OK, "headers": length})
        await send({"type": "http.response.body", "body": body[:size], "more_body": True})
        await send({"type": "http.response.body", "body": bytearray(body[:size])})

    async with memory_server(parts) as server:
        client = await server.connect()
        for _ in range(2):
            assert await http1(client) == (200, body[:size] * 2)


async def test_a_response_behind_a_refusal_is_not_sent(autojump_clock: MockClock) -> None:
    """A client that gets a 400 for a broken body gets no second response to the same request,
    however long the first one has to wait for room."""

    @without_lifespan
    async def late(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fill":
            await respond(send, b"x" * (BUFFER_SIZE - 120))
            return
        while (await receive())["type"] != "http.disconnect":
            pass
        await respond(send, b"late")

    async with memory_server(late, keep_alive_timeout=5) as server:
        client = await server.connect()
        await client.send_all(request("/fill"))
        await wait_all_tasks_blocked()
        broken = request("/", "Transfer-Encoding: chunked", method="POST", body=b"no length\r\n")
        await client.send_all(broken)
        await wait_all_tasks_blocked()
        received = await read_to_end(client)
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.count(b"HTTP/1.1 400 ") == 1


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    """Begins its response before it reads, and ends it when there is nothing more to read."""
    await send(OK)
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    while (event := await receive())["type"] == "http.request" and event["more_body"]:
        pass
    await trio.sleep(1)
    await send({"type": "http.response.body", "body": b"done"})


async def test_a_response_that_has_begun_when_its_request_breaks_is_cut_off(
    autojump_clock: MockClock,
) -> None:
    """There is no 400 in the middle of it, nor an end that would make it look whole."""
    async with memory_server(without_lifespan(streaming)) as server:
        client = await server.connect()
        await client.send_all(request("/", "Transfer-Encoding: chunked", method="POST"))
        await wait_all_tasks_blocked()
        await client.send_all(b"no length\r\n")
        response = await read_to_end(client)
    assert response.partition(b"\r\n\r\n")[2] == b"5\r\nbegun\r\n"


async def test_a_response_that_has_begun_when_its_request_ends_early_goes_on(
    autojump_clock: MockClock,
) -> None:
    """The client has ended its side, and may read on."""
    async with memory_server(without_lifespan(streaming)) as server:
        for head in (
            request("/", "Transfer-Encoding: chunked", method="POST", body=b"4\r\npart"),
            request("/", "Content-Length: 9", method="POST", body=b"part"),
        ):
            client = await server.connect()
            await client.send_all(head)
            await wait_all_tasks_blocked()
            await client.send_eof()
            response = await read_to_end(client)
            assert response.endswith(b"\r\n\r\n5\r\nbegun\r\n4\r\ndone\r\n0\r\n\r\n")


async def test_a_refused_request_gets_no_100_continue(autojump_clock: MockClock) -> None:
    """A 100 behind the final response would be taken for the next one's."""
    async with memory_server(app, server_names=["elsewhere"]) as server:
        client = await server.connect()
        await client.send_all(
            request("/body", "Content-Length: 4", "Expect: 100-continue", method="POST")
        )
        response = await read_to_end(client)
    assert response.startswith(b"HTTP/1.1 404 ")
    assert response.count(b"HTTP/1.1 ") == 1


# Pipelining


class Turns:
    """An application that notes when it is called, and waits for its turn to be allowed."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.gates: dict[str, trio.Event] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        path = scope["path"]
        self.called.append(path)
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event["body"], event["more_body"]
        await self.gates.setdefault(path, trio.Event()).wait()
        await respond(send, path.encode() + body)

    def allow(self, path: str) -> None:
        self.gates.setdefault(path, trio.Event()).set()


async def test_pipelined_requests_are_handled_one_after_the_other(
    autojump_clock: MockClock,
) -> None:
    """With their bodies, whether or not the handler reads them, and in order."""
    turns = Turns()
    recorder = Recorder()
    chunked = "Transfer-Encoding: chunked"
    async with memory_server(turns, tracker=recorder) as server:
        client = await server.connect()
        await client.send_all(
            request("/1")
            + request("/2", "Content-Length: 4", method="POST", body=b"body")
            + request("/3", chunked, method="POST", body=b"3\r\nabc\r\n0\r\n\r\n")
            + request("/4")
        )
        for number in range(1, 5):
            await trio.sleep(20)
            assert turns.called == [f"/{each}" for each in range(1, number + 1)]
            turns.allow(f"/{number}")
        assert await responses(client, 4) == [
            (200, b"/1"),
            (200, b"/2body"),
            (200, b"/3abc"),
            (200, b"/4"),
        ]
    assert recorder.sequences() == ["NAIAIAIAIC"]


async def test_a_pipelined_request_waits_until_the_response_before_it_is_written(
    autojump_clock: MockClock,
) -> None:
    """Not only until it is made: else the responses to a client that does not read pile up."""
    called = []

    @without_lifespan
    async def big(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])
        await respond(send, bytes(2 * BUFFER_SIZE))

    async with memory_server(big) as server:
        client = await server.connect()
        await client.send_all(request("/1") + request("/2"))
        await wait_all_tasks_blocked()
        assert called == ["/1"]
        assert [len(body) for _, body in await responses(client, 2)] == [2 * BUFFER_SIZE] * 2


async def test_a_client_that_pipelines_without_end_is_not_read_without_bounds(
    autojump_clock: MockClock,
) -> None:
    """One buffer of ours, and then its own."""
    turns = Turns()
    async with memory_server(turns) as server:
        client = await server.connect()
        sent = 0
        for _ in range(100):
            sent += send_now(client, request("/1") * 1000)
            await wait_all_tasks_blocked()
        assert sent <= 3 * BUFFER_SIZE
        client.reset()
        turns.allow("/1")


async def test_a_client_that_leaves_its_pipeline_costs_no_time(autojump_clock: MockClock) -> None:
    """While the first handler runs, no task is busy with the second request."""
    finished = []

    @without_lifespan
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10)
        finished.append(scope["path"])

    class Steps(trio.abc.Instrument):
        number = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.number += 1
            if self.number > 1000:
                scope.cancel()  # a mock clock stands still while a task spins

    with trio.CancelScope() as scope:
        async with memory_server(stubborn) as server:
            client = await server.connect()
            await client.send_all(request("/1") + request("/2"))
            await wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(Steps())
            client.reset()
            await trio.sleep(20)
    assert not scope.cancelled_caught
    assert finished == ["/1"]


@pytest.mark.parametrize("end", ["eof", "reset"])
async def test_what_was_pipelined_before_the_clients_end(
    end: str, autojump_clock: MockClock
) -> None:
    """Behind a FIN all of it is still handled; behind a reset nothing is."""
    turns = Turns()
    recorder = Recorder()
    async with memory_server(turns, tracker=recorder) as server:
        client = await server.connect()
        await client.send_all(request("/1") + request("/2") + request("/3"))
        await wait_all_tasks_blocked()
        if end == "eof":
            await client.send_eof()
        else:
            client.reset()
        for number in range(1, 4):
            await wait_all_tasks_blocked()
            turns.allow(f"/{number}")
        if end == "eof":
            assert await responses(client, 3) == [(200, b"/1"), (200, b"/2"), (200, b"/3")]
            assert await client.receive_some() == b""
        await wait_all_tasks_blocked()
    assert turns.called == (["/1", "/2", "/3"] if end == "eof" else ["/1"])
    assert recorder.sequences() == ["NAIAIAC" if end == "eof" else "NAC"]


# TLS


async def test_an_orderly_end_sends_close_notify(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """With Connection: close, at the idle timeout, in a drain, and where the client ends."""
    async with memory_server(app, keep_alive_timeout=5, drain_idle_timeout=1) as server:
        for way in ("close", "idle", "drain", "client", "new"):
            client = await tls_client(server)
            if way != "new":
                lines = ["Connection: close"] if way == "close" else []
                await client.stream.send_all(client.encrypt(request("/", *lines)))
                assert (await client.read()).endswith(b"\r\n\r\n/")
            if way == "drain":
                connections[-1].drain()
            if way == "client":
                await client.stream.send_all(client.close_notify())
            assert await client.read() == b""


@pytest.mark.parametrize("way", ["fails", "shutdown", "cancelled", "too short"])
async def test_a_response_that_is_cut_off_sends_no_close_notify(
    way: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """The client notices that the response is incomplete, even without a length."""

    @without_lifespan
    async def half(scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"9")] if way == "too short" else []
        await send({**OK, "headers": length})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        if way == "fails":
            raise ValueError("the application's own error")
        if way == "too short":
            await send({"type": "http.response.body"})
        await trio.sleep_forever()

    async with memory_server(half, graceful_timeout=1) as server:
        client = await tls_client(server)
        await client.stream.send_all(client.encrypt(b"GET / HTTP/1.0\r\n\r\n"))
        assert (await client.read()).endswith(b"part")
        if way == "cancelled":
            connections[0].abort()
        elif way == "shutdown":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown)
                with pytest.raises(EOFError):
                    await client.read()
            assert client.stream.conn.close_reason == "app_shutdown_timeout"
            return
        with pytest.raises(EOFError):
            await client.read()


@pytest.mark.parametrize("behind", [b"", GET])
async def test_a_tls_client_that_ends_its_side_gets_its_responses(
    behind: bytes, autojump_clock: MockClock
) -> None:
    """Its close_notify shows that nothing was cut off, and it can still read (RFC 8446, 6.1)."""
    recorder = Recorder()
    async with memory_server(slow, tracker=recorder) as server:
        client = await tls_client(server)
        await client.stream.send_all(client.encrypt(GET + behind) + client.close_notify())
        received = await client.read_to_end()
        assert received.count(b"HTTP/1.1 200 ") == 1 + bool(behind)
        assert client.stream.conn.close_reason is None
    assert recorder.sequences() == ["NAIAC" if behind else "NAC"]


async def test_a_tls_client_that_closes_without_close_notify_gets_no_response(
    autojump_clock: MockClock,
) -> None:
    """A FIN beneath TLS is no half-close, and the connection ends with it."""
    recorder = Recorder()
    async with memory_server(slow, tracker=recorder) as server:
        client = await tls_client(server)
        await client.stream.send_all(client.encrypt(GET))
        await wait_all_tasks_blocked()
        await client.stream.send_eof()
        await wait_all_tasks_blocked()
        assert recorder.sequences() == ["NAC"]
        assert trio.current_time() == 0


# Settings


@pytest.mark.parametrize("pipelined", [False, True])
async def test_the_last_response_of_a_connection_has_connection_close(
    pipelined: bool, autojump_clock: MockClock
) -> None:
    """With keep_alive_max_requests=3 the third response has it, and there is no fourth."""
    called = []

    @without_lifespan
    async def record(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])
        await respond(send, b"")

    recorder = Recorder()
    async with memory_server(record, tracker=recorder, keep_alive_max_requests=3) as server:
        client = await server.connect()
        sent = [request(f"/{number}") for number in range(1, 5)]
        if pipelined:
            await client.send_all(b"".join(sent))
            received = await read_to_end(client)
        else:
            received = b""
            for each in sent[:3]:
                await client.send_all(each)
                await wait_all_tasks_blocked()
                received += await client.receive_some()
            assert await client.receive_some() == b""
    heads = [head_of(head + b"\r\n\r\n") for head in received.split(b"\r\n\r\n")[:-1]]
    assert [head.get(b"connection") for head in heads] == [None, None, [b"close"]]
    assert called == ["/1", "/2", "/3"]
    assert recorder.sequences() == ["NAIAIAC"]


@pytest.mark.parametrize("raw_names", [False, True])
@pytest.mark.parametrize("unusual", [False, True])
async def test_header_names_are_passed_on_as_they_were_sent_if_that_is_wanted(
    raw_names: bool, unusual: bool, autojump_clock: MockClock
) -> None:
    """In lower case by default."""
    scopes = []

    @without_lifespan
    async def record(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, b"")

    lines = ["X-Camel: a", "x-lower: b", *["X-Camel: c"] * unusual]
    async with memory_server(record, h11_pass_raw_headers=raw_names) as server:
        client = await server.connect()
        await client.send_all(request("/", *lines))
        await responses(client, 1)
    names = [line.partition(": ")[0] for line in ["Host: here", *lines]]
    expected = [(name if raw_names else name.lower()).encode() for name in names]
    assert [name for name, _ in scopes[0]["headers"]] == expected


@pytest.mark.parametrize("size", [1000, 5000])
@pytest.mark.parametrize("unusual", ["", "X: \x80\r\n"])
@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_request_head_may_be_as_long_as_the_setting_allows(
    size: int, unusual: str, pieces: int, autojump_clock: MockClock
) -> None:
    """In any pieces, by either parser. One byte more without an end is too long."""
    async with memory_server(app, h11_max_incomplete_size=size) as server:
        client = await server.connect()
        start = f"GET / HTTP/1.1\r\nHost: here\r\n{unusual}X-Long: ".encode("latin-1")
        head = start + b"x" * (size - len(start))
        if pieces == 2:
            await client.send_all(head[:100])
            await wait_all_tasks_blocked()
            await client.send_all(head[100:])
        else:
            await client.send_all(head)
        await wait_all_tasks_blocked()
        assert not client._readable
        await client.send_all(b"\r\n\r\n" if pieces == 1 else b"x")
        await wait_all_tasks_blocked()
        status = 200 if pieces == 1 else 431
        assert (await responses(client, 1))[0][0] == status


@pytest.mark.parametrize(
    ("host", "status"), [("here", 200), ("there:81", 200), ("elsewhere", 404), ("Here", 404)]
)
@pytest.mark.parametrize("unusual", [False, True])
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_only_the_servers_own_names_are_served(
    host: str, status: int, unusual: bool, kind: str, autojump_clock: MockClock
) -> None:
    """For others there is a 404 and the connection's end, and no application."""
    called = []

    @without_lifespan
    async def record(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["type"])
        await app(scope, receive, send)

    async with memory_server(record, server_names=["here", "there:81"]) as server:
        client = await server.connect()
        sent = HANDSHAKE if kind == "websocket" else GET
        lines = b"X: 1\r\nX: 2\r\n\r\n" if unusual else b"\r\n"
        sent = sent[:-2].replace(b"Host: here", b"Host: " + host.encode()) + lines
        await client.send_all(sent)
        response = await client.receive_some()
        if status == 404:
            assert response.startswith(b"HTTP/1.1 404 ")
            assert head_of(response)[b"connection"] == [b"close"]
            assert await client.receive_some() == b""
            assert called == []
        else:
            assert response[9:12] == (b"101" if kind == "websocket" else b"200")
            assert called == [kind]


# The access log


async def test_each_request_has_one_line_in_the_access_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With its status code, from the application or from us. A response that was not completed has
    a dash, or 499, as in nginx's log, if its client disconnected before that."""

    @without_lifespan
    async def as_its_path_says(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/cut":
            await send(OK)
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
            raise ValueError("the application's own error")
        if scope["path"] == "/returns":
            await trio.sleep(1)
            return
        await app(scope, receive, send)

    logger = logging.getLogger("access of test_http1")
    logger.setLevel(logging.INFO)
    async with memory_server(
        as_its_path_says,
        accesslog=logger,
        access_log_format="%(m)s %(U)s %(s)s",
        server_names=["here"],
        keep_alive_timeout=5,
    ) as server:
        for sent in (
            request("/whole"),
            request("/stream", "X: 1", "X: 2"),
            request("/body", "Content-Length: 2", method="POST", body=b"hi"),
            request("/nothing"),
            request("/raise"),
            request("/cut"),
            request("/elsewhere").replace(b"here\r\n", b"elsewhere\r\n"),
            HANDSHAKE,
            HANDSHAKE.replace(b"GET /", b"GET /refuse"),
            HANDSHAKE.replace(b": 13", b": 12"),
            HANDSHAKE.replace(b"Host: here", b"Host: elsewhere"),
            request("/until-disconnect"),
        ):
            client = await server.connect()
            await client.send_all(sent)
            await wait_all_tasks_blocked()
            await client.send_eof()
            with suppress(trio.BrokenResourceError):
                await client.receive_some()
            await client.aclose()
            await wait_all_tasks_blocked()
        for path in ("/until-disconnect", "/returns"):
            client = await server.connect()
            await client.send_all(request(path))
            await wait_all_tasks_blocked()
            client.reset()
            await trio.sleep(2)
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert lines == [
        "GET /whole 200",
        "GET /stream 200",
        "POST /body 200",
        "GET /nothing 204",
        "GET /raise 500",
        "GET /cut -",
        "GET /elsewhere 404",
        "GET / 101",
        "GET /refuse 403",
        "GET / 400",
        "GET / 404",
        "GET /until-disconnect 200",
        "GET /until-disconnect 499",
        "GET /returns 499",
    ]


async def test_the_access_log_has_the_time_that_a_response_took(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """From the request's head to the end of the response, on Trio's clock."""
    logger = logging.getLogger("access of test_http1")
    logger.setLevel(logging.INFO)
    async with memory_server(slow, accesslog=logger, access_log_format="%(T)s") as server:
        client = await server.connect()
        for _ in range(2):
            await trio.sleep(1)
            assert await http1(client) == (200, b"/")
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert lines == ["10", "10"]


# Whatever comes, and however it is cut


class Echo:
    """Notes each request, and responds with what it has read of it."""

    def __init__(self) -> None:
        self.requests: list[object] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        body, more = b"", True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            body, more = body + event["body"], event["more_body"]
        names = ("method", "http_version", "path", "raw_path", "query_string", "headers")
        self.requests.append((*(scope[name] for name in names), body))
        headers = [] if b"chunked" in scope["query_string"] else [(b"content-length", b"4")]
        await send({**OK, "headers": headers})
        await send({"type": "http.response.body", "body": b"echo"})


ORDINARY = [
    request("/get"),
    request("/head", method="HEAD"),
    request("/query?chunked", "Accept: */*", "User-Agent: test"),
    request("/post", "Content-Length: 4", method="POST", body=b"body"),
    request("/none", "Content-Length: 0", method="POST"),
    request("/put", "content-type:text/plain", "Content-Length:9", method="PUT", body=GET[:9]),
]
UNUSUAL = [
    request("/chunked", "Transfer-Encoding: chunked", method="POST", body=b"0\r\n\r\n"),
    request(
        "/chunks?chunked",
        "Transfer-Encoding: chunked",
        method="POST",
        body=b"4;x=y\r\nbody\r\n1\r\n.\r\n0\r\nTrailer: 1\r\n\r\n",
    ),
    request("/twice", "X: 1", "X: 2"),
    request("/latin", "X: \xe9").decode().encode("latin-1"),
    request("/expect", "Expect: 100-continue", "Content-Length: 2", method="POST", body=b"hi"),
    request("http://there/absolute?q"),
    request("/bare").replace(b"\r\n", b"\n"),
    b"\r\n" + request("/empty-line-before"),
    request("/trace", method="TRACE"),
    request("/lengths", "Content-Length: 2, 2", method="POST", body=b"hi"),
    request("/long", "X: " + "x" * 300),
]
LAST = [
    request("/last", "Connection: close"),
    request("/last?chunked", "Connection: close", "X: 1", "X: 2"),
    b"GET /old HTTP/1.0\r\n\r\n",
    request("/bad", "no header"),
    request("/bad", "Transfer-Encoding: chunked", method="POST", body=b"no length\r\n"),
    request("#bad"),
    request("/bad", "Transfer-Encoding: gzip, chunked", method="POST"),
    b"garbage\r\n\r\n",
]
SILENT: dict[str, Any] = {
    "include_date_header": False,
    "include_server_header": False,
    "errorlog": None,
}


async def serve_in_pieces(pieces: list[tuple[bytes, bool]]) -> tuple[list[object], bytes]:
    """What the application sees, and what the client, of pieces that are sent with or without
    time for the server between them."""
    echo = Echo()
    async with memory_server(echo, **SILENT) as server:
        client = await server.connect()
        received = b""
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                nonlocal received
                received = await read_to_end(client)

            nursery.start_soon(read)
            for piece, settled in pieces:
                await client.send_all(piece)
                if settled:
                    await wait_all_tasks_blocked()
            await client.send_eof()
    return echo.requests, received


alone: dict[bytes, tuple[list[object], bytes]] = {}


def responded_alone(sent: bytes) -> tuple[list[object], bytes]:
    """What becomes of a request that has a connection for itself."""
    if sent not in alone:
        clock = MockClock(autojump_threshold=0)
        alone[sent] = trio.run(serve_in_pieces, [(sent, True)], clock=clock)
    return alone[sent]


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(ORDINARY + UNUSUAL), max_size=6),
    st.lists(st.sampled_from(LAST), max_size=1),
    st.lists(st.sampled_from(ORDINARY + UNUSUAL + LAST), max_size=2),
    st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=8),
)
@example(ORDINARY + UNUSUAL + ORDINARY, LAST[:1], [], [])
@example([UNUSUAL[1], ORDINARY[0]] * 6, LAST[1:2], ORDINARY, [])
@example([*ORDINARY, *UNUSUAL], [], [], [(at, at % 3 == 0) for at in range(1700)])
def test_any_requests_in_any_pieces_are_handled_as_one_by_one(
    requests: list[bytes],
    last: list[bytes],
    behind: list[bytes],
    cuts: list[tuple[int, bool]],
) -> None:
    """The application sees the same requests, and the client gets the same responses: whether
    they are ordinary or unusual, pipelined, or cut wherever. What follows the last one is not
    heard."""
    handled = requests + last
    stream = b"".join(handled + (behind if last else []))
    pieces, start = [], 0
    for cut, settled in sorted(dict(cuts).items()):
        if start < cut < len(stream):
            pieces.append((stream[start:cut], settled))
            start = cut
    pieces.append((stream[start:], False))
    seen, received = trio.run(serve_in_pieces, pieces, clock=MockClock(autojump_threshold=0))
    assert seen == [each for sent in handled for each in responded_alone(sent)[0]]
    assert received == b"".join(responded_alone(sent)[1] for sent in handled)


async def test_nothing_is_logged_for_what_clients_do(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However wrong it is, it is no error of ours."""
    async with memory_server(app) as server:
        for sent in LAST:
            async with await server.connect() as client:
                await client.send_all(sent)
                await read_to_end(client)
    assert not problems(caplog)
