"""HTTP/2: floods, streams and their windows, and the order of what is written."""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import hpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnState
from trio_httptrack._connection.connection import Connection
from trio_httptrack._connection.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADER,
    HEADER_SIZE,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_WINDOW,
    NO_ERROR,
    NUMBER,
    PADDED,
    PING,
    PREFACE,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    WINDOW_UPDATE,
    frame,
    reset_frame,
    settings_frame,
    window_frame,
)
from trio_httptrack._connection.http2_output import Outbox, Output
from trio_httptrack._connection.transport import Parts
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server
from trio_httptrack.testing._network import MemoryKernel

from .clients import Http2
from .support import Recorder, app, problems, respond, without_lifespan

PAGE = 2**14  # bytes: a frame's default size
PINGED = frame(PING, 0, 0, b"12345678")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Why a stream is reset, or the connection is going away."""
        (code,) = NUMBER.unpack_from(self.payload, 4 if self.kind == GOAWAY else 0)
        return int(code)


class Client:
    """An HTTP/2 client that sends and receives frames, and manages nothing by itself."""

    def __init__(self, stream: ClientStream) -> None:
        self.stream = stream
        self.conn = stream.conn
        self.frames: list[Frame] = []
        self.eof = False
        self._unread = b""
        self._decoder = hpack.Decoder()

    async def start(self, settings: dict[int, int] | None = None) -> None:
        await self.send(PREFACE, settings_frame(settings or {}))

    async def send(self, *frames: bytes) -> None:
        await self.stream.send_all(b"".join(frames))

    def take(self) -> None:
        """Parse what was read."""
        while len(self._unread) >= HEADER_SIZE:
            high, low, kind, flags, stream = HEADER.unpack_from(self._unread)
            end = HEADER_SIZE + (high << 16 | low)
            if len(self._unread) < end:
                break
            self.frames.append(Frame(kind, flags, stream, self._unread[HEADER_SIZE:end]))
            self._unread = self._unread[end:]

    async def read(self) -> list[Frame]:
        """Everything that the server sends without being sent more; return the frames of it."""
        known = len(self.frames)
        await wait_all_tasks_blocked()
        while self.stream._readable and not self.eof:
            data = await self.stream.receive_some()
            self._unread += data
            self.eof = not data
            self.take()
            await wait_all_tasks_blocked()
        return self.frames[known:]

    async def read_to_end(self) -> None:
        while not self.eof:
            data = await self.stream.receive_some()
            self._unread += data
            self.eof = not data
            self.take()

    def body(self, stream: int) -> bytes:
        return b"".join(each.payload for each in self.of(DATA, stream))

    def of(self, kind: int, stream: int) -> list[Frame]:
        return [each for each in self.frames if (each.kind, each.stream) == (kind, stream)]

    def ended(self, stream: int) -> bool:
        return any(each.flags & END_STREAM for each in self.of(DATA, stream)) or any(
            each.flags & END_STREAM for each in self.of(HEADERS, stream)
        )

    @property
    def codes(self) -> list[int]:
        """Of all GOAWAYs."""
        return [each.code for each in self.frames if each.kind == GOAWAY]


ENCODER = hpack.Encoder()


def block(path: str = "/", method: str = "GET", *extra: tuple[str, str]) -> bytes:
    fields = [(":method", method), (":scheme", "http"), (":authority", "here"), (":path", path)]
    if method == "CONNECT":
        fields.insert(1, (":protocol", "websocket"))
        extra = (("sec-websocket-version", "13"), *extra)
    # Of which none goes into the table: so a block is the same wherever it comes.
    never_indexed = [hpack.NeverIndexedHeaderTuple(*field) for field in (*fields, *extra)]
    return bytes(ENCODER.encode(never_indexed))


def request(
    stream: int,
    path: str = "/",
    method: str = "GET",
    *extra: tuple[str, str],
    end: bool = True,
) -> bytes:
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, block(path, method, *extra))


def post(stream: int, path: str = "/", *extra: tuple[str, str]) -> bytes:
    return request(stream, path, "POST", *extra, end=False)


def data(stream: int, body: bytes = b"", *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, body)


def padded(stream: int, body: bytes, padding: int) -> bytes:
    return frame(DATA, PADDED, stream, bytes([padding]) + body + bytes(padding))


def cancel(stream: int) -> bytes:
    return reset_frame(stream, 8)


Handler = Callable[[str, Any, Any], Awaitable[None]]


def handled_by(handler: Handler) -> Any:
    """An application of HTTP requests only, each known by its path."""

    @without_lifespan
    async def handling(scope: Any, receive: Any, send: Any) -> None:
        await handler(scope["path"], receive, send)

    return handling


@asynccontextmanager
async def connected(
    handler: Handler | Any,
    windows: dict[int, int] | None = None,
    **settings: Any,
) -> AsyncIterator[Client]:
    """A client that has sent its preface, and a server that has acknowledged its settings."""
    async with memory_server(handler, **settings) as server:
        client = await started(server, windows)
        yield client


async def started(server: MemoryServer, settings: dict[int, int] | None = None) -> Client:
    client = Client(await server.connect())
    await client.start(settings)
    await client.read()
    client.frames.clear()
    return client


WIDE = {INITIAL_WINDOW_SIZE: MAX_WINDOW}
WIDER = window_frame(0, MAX_WINDOW - DEFAULT_WINDOW)


async def forever(path: str, receive: Any, send: Any) -> None:
    await trio.sleep_forever()


async def begin(send: Any, *, more: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if more:
        await send({"type": "http.response.body", "body": more, "more_body": True})


async def finish(send: Any, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})


# Floods


def floods(caplog: pytest.LogCaptureFixture) -> int:
    """How many lines the log has about them; it must have no other about a problem."""
    lines = problems(caplog)
    assert all("flood" in line for line in lines), lines
    return len(lines)


class Sleepers:
    """Handlers that never end by themselves, and how many of them run."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0

    async def __call__(self, path: str, receive: Any, send: Any) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await trio.sleep_forever()
        finally:
            self.running -= 1


def zero_increment(stream: int) -> list[bytes]:
    return [request(stream), window_frame(stream, 0)]


def too_large_a_window(stream: int) -> list[bytes]:
    return [request(stream), window_frame(stream, MAX_WINDOW)]


def more_than_announced(stream: int) -> list[bytes]:
    return [post(stream, "/", ("content-length", "1")), data(stream, b"12")]


def data_behind_the_end(stream: int) -> list[bytes]:
    return [request(stream), data(stream, b"1")]


def headers_again(stream: int) -> list[bytes]:
    return [post(stream), post(stream)]


def reset(stream: int) -> list[bytes]:
    return [request(stream), cancel(stream)]


async def test_a_request_that_has_waited_does_not_inherit_context_variables(
    autojump_clock: MockClock,
) -> None:
    """It begins when another handler ends, and has nothing else to do with that."""
    variable = ContextVar("variable", default="clean")
    seen = []

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(variable.get())
        variable.set(scope["path"])
        await trio.sleep(1)
        await respond(send, b"")

    async with memory_server(app, h2_max_concurrent_streams=1) as server:
        client = Http2(await server.connect())
        await client.start()
        first = client.request("/first")
        await client.flush()
        await wait_all_tasks_blocked()
        client.h2.reset_stream(first)  # its handler goes on, and the next one waits for that
        second = client.request("/second")
        await client.flush()
        while second not in client.ended:
            await client.pump()
        client.stream.reset()
    assert seen == ["clean", "clean"]


@pytest.mark.parametrize(
    "attack",
    [
        reset,
        zero_increment,
        too_large_a_window,
        more_than_announced,
        data_behind_the_end,
        headers_again,
    ],
)
async def test_requests_that_are_reset_are_a_flood_when_too_many_wait_for_handlers(
    attack: Callable[[int], list[bytes]],
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever side resets: 4 handlers run, 16 requests may wait, and the next ends all."""
    sleepers = Sleepers()
    async with connected(
        handled_by(sleepers), h2_max_concurrent_streams=4, graceful_timeout=0
    ) as client:
        for number in range(20):
            await client.send(*attack(2 * number + 1))
        await client.read()
        assert sleepers.most == 4
        assert client.codes == []
        assert floods(caplog) == 0
        await client.send(*attack(41))
        await client.read()
        assert sleepers.most == 4
        assert client.codes == [ENHANCE_YOUR_CALM]
        assert client.eof
        assert client.conn.close_reason == "enhance_your_calm"
        assert floods(caplog) == 1


async def test_the_overhead_limit_is_exact(autojump_clock: MockClock) -> None:
    """As many bytes as the limit are allowed, and one more is a flood."""
    limit = len(settings_frame({})) + 5 * len(PINGED)
    for more in (0, 1):
        async with connected(app, h2_max_overhead=limit - more) as client:
            await client.send(PINGED * 5)
            await client.read()
            assert client.codes == [ENHANCE_YOUR_CALM] * more


async def test_overhead_is_forgotten_after_ten_seconds(autojump_clock: MockClock) -> None:
    """Not at ten seconds, but behind them, and then a new period begins."""
    limit = len(settings_frame({})) + 5 * len(PINGED)
    settings: dict[str, Any] = {"h2_max_overhead": limit, "keep_alive_timeout": 60}
    async with connected(app, **settings) as client:
        await client.send(PINGED * 5)
        await trio.sleep_until(10)
        await client.send(PINGED)
        await client.read()
        assert client.codes == [ENHANCE_YOUR_CALM]
    async with connected(app, **settings) as client:
        await client.send(PINGED * 5)
        await trio.sleep(10.5)
        await client.send(PINGED * 5)
        await client.read()
        assert client.codes == []
        await client.send(PINGED)
        await client.read()
        assert client.codes == [ENHANCE_YOUR_CALM]


async def test_a_body_pays_for_eight_times_as_much_overhead(autojump_clock: MockClock) -> None:
    """A request's body and headers allow for overhead, and so does a response's body."""
    limit = len(settings_frame({}))
    carried = len(block("/body", "POST")) + 2 * len(b"hello")
    async with connected(app, h2_max_overhead=limit) as client:
        await client.send(post(1, "/body"), data(1, b"hello", end=True))
        await client.read()
        assert client.body(1) == b"hello"
        pings, rest = divmod(8 * carried, len(PINGED))
        assert rest < len(PINGED)
        await client.send(PINGED * pings)
        await client.read()
        assert client.codes == []
        await client.send(PINGED)
        await client.read()
        assert client.codes == [ENHANCE_YOUR_CALM]


async def test_empty_data_is_overhead(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Sent to a handler that does not read, it ends the connection at the limit exactly."""
    begun = post(1)
    limit = len(settings_frame({})) + 1000 * len(data(1)) - 8 * len(block("/", "POST"))
    async with connected(handled_by(forever), h2_max_overhead=limit, graceful_timeout=0) as client:
        await client.send(begun, data(1) * 1000)
        await client.read()
        assert client.codes == []
        await client.send(data(1))
        await client.read()
        assert client.codes == [ENHANCE_YOUR_CALM]
        assert floods(caplog) == 1


async def test_empty_data_takes_no_memory(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """However many frames come for a handler that does not read, nothing is kept of them."""
    async with connected(handled_by(forever), graceful_timeout=0) as client:
        await client.send(post(1))
        await client.read()
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(50):
            await client.send(data(1) * 1000)
            await client.read()
        gc.collect()
        assert len(gc.get_objects()) - before < 100
        assert client.codes == []


ACKNOWLEDGED = {"ping": PINGED, "settings": settings_frame({})}


@pytest.mark.parametrize("name", ACKNOWLEDGED)
async def test_a_client_that_does_not_read_acknowledgements_is_not_read_from(
    name: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """What waits for it is bounded, and its idle connection ends at the deadline."""
    recorder = Recorder()
    sent = 0
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = await started(server)
        http2 = connections[0]._http2
        assert http2 is not None
        try:
            while True:
                await client.send(ACKNOWLEDGED[name] * 20)
                sent += 20 * len(ACKNOWLEDGED[name])
                assert http2.output._control_size < 2**17
        except trio.BrokenResourceError:
            pass  # the connection has ended
        assert sent < 5 * 2**16
        assert [(state.name, time) for _, state, time in recorder.events][-2:] == [
            ("IDLE", 0),
            ("CLOSED", 5),
        ]
        assert client.conn.close_reason == "keep_alive_timeout"


async def test_pings_do_not_keep_an_idle_connection_open(autojump_clock: MockClock) -> None:
    """It ends at ``keep_alive_timeout`` exactly, although bytes are there whenever it reads."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = await started(server)
        with suppress(trio.BrokenResourceError):  # what comes behind the end is not read
            while not client.eof:
                await client.send(PINGED)
                autojump_clock.jump(0.25)
                await client.read()
        assert recorder.events[-1][1:] == (ConnState.CLOSED, 5)
        assert client.conn.close_reason == "keep_alive_timeout"


@pytest.mark.parametrize("last", [63, 64])
async def test_a_header_block_has_a_limited_number_of_frames(
    last: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """In 64 frames it is served, and in 65 it is a flood, however short they are."""
    async with connected(app) as client:
        fields = block()
        await client.send(frame(HEADERS, END_STREAM, 1, fields))
        await client.send(frame(CONTINUATION, 0, 1) * (last - 1))
        await client.send(frame(CONTINUATION, END_HEADERS, 1))
        await client.read()
        assert client.ended(1) == (last == 63)
        assert client.codes == ([] if last == 63 else [ENHANCE_YOUR_CALM])
        assert floods(caplog) == (last == 64)


async def test_a_header_block_that_does_not_end_has_a_limited_size(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is a flood once it is larger than its headers may be."""
    async with connected(app, h2_max_header_list_size=1000) as client:
        await client.send(frame(HEADERS, 0, 1, bytes(400)))
        await client.send(frame(CONTINUATION, 0, 1, bytes(600)))
        await client.read()
        assert client.codes == []
        await client.send(frame(CONTINUATION, 0, 1, bytes(1)))
        await client.read()
        assert client.codes == [ENHANCE_YOUR_CALM]
        assert client.conn.close_reason == "enhance_your_calm"
        assert floods(caplog) == 1


async def test_headers_are_limited_in_what_they_take_decoded(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A small block that stands for many headers is a flood (as RFC 9113, 6.5.2, counts them)."""
    async with connected(app, h2_max_header_list_size=5000) as client:
        # A literal that goes into the table, and then one byte for each repetition of it.
        long = b"\x40\x01a\x7f\x81\x01" + b"x" * 256
        await client.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, block() + long + b"\xbe" * 9))
        await client.read()
        assert client.ended(1)
        await client.send(frame(HEADERS, END_STREAM | END_HEADERS, 3, block() + b"\xbe" * 100))
        await client.read()
        assert client.codes == [ENHANCE_YOUR_CALM]
        assert floods(caplog) == 1


async def test_streams_without_windows_are_bounded_and_end_with_the_server(
    autojump_clock: MockClock,
) -> None:
    """Each keeps what its writer may write ahead, and a drain closes them at its deadline."""
    recorder = Recorder()
    produced: Counter[str] = Counter()

    async def handler(path: str, receive: Any, send: Any) -> None:
        await begin(send)
        while True:
            produced[path] += 1024
            await send({"type": "http.response.body", "body": bytes(1024), "more_body": True})

    async with connected(
        handled_by(handler),
        {INITIAL_WINDOW_SIZE: 0},
        tracker=recorder,
        h2_max_concurrent_streams=3,
        graceful_timeout=7,
    ) as client:
        await client.send(*(request(stream, f"/{stream}") for stream in (1, 3, 5, 7)))
        await client.read()
        assert produced == {"/1": 2**15, "/3": 2**15, "/5": 2**15}
        assert [each.code for each in client.of(RST_STREAM, 7)] == [REFUSED_STREAM]
    assert recorder.events[-1][1:] == (ConnState.CLOSED, 7)
    assert client.conn.close_reason == "app_shutdown_timeout"


async def test_a_client_that_does_not_read_responses_is_not_read_from(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Headers of responses that it resets wait in a bounded queue; it can go on when it reads."""
    served = 0

    async def handler(path: str, receive: Any, send: Any) -> None:
        nonlocal served
        served += 1
        headers = [(b"x", bytes(b"x" * 4000))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await finish(send, b"hello")

    async with connected(handled_by(handler)) as client:
        http2 = connections[0]._http2
        assert http2 is not None
        stream = 1
        while not http2.output.congested:
            await client.send(request(stream))
            await wait_all_tasks_blocked()
            await client.send(cancel(stream))
            await wait_all_tasks_blocked()
            stream += 2
        assert served == stream // 2 < 30
        assert http2.output._control_size < 2**15
        await client.send(*(request(more) for more in range(stream, stream + 20, 2)))
        await wait_all_tasks_blocked()
        assert served == stream // 2
        await client.read()
        assert served == stream // 2 + 10
        assert http2.output.empty
        assert client.conn.state is ConnState.IDLE


# Whose handler runs, and until when a stream counts


async def test_a_request_waits_for_a_handler_that_ends(autojump_clock: MockClock) -> None:
    """It has its turn then, in the order of the requests, unless it was reset meanwhile."""
    ended = {path: trio.Event() for path in ("/1", "/3", "/5", "/7", "/9")}
    running: list[str] = []

    async def handler(path: str, receive: Any, send: Any) -> None:
        running.append(path)
        await ended[path].wait()
        running.remove(path)

    async with connected(
        handled_by(handler), h2_max_concurrent_streams=2, graceful_timeout=0
    ) as client:
        for stream in (1, 3):
            await client.send(request(stream, f"/{stream}"), cancel(stream))
        await client.send(request(5, "/5"), cancel(5), request(7, "/7"), request(9, "/9"))
        await client.read()
        assert sorted(running) == ["/1", "/3"]
        ended["/1"].set()
        await client.read()
        assert sorted(running) == ["/3", "/7"]
        ended["/3"].set()
        await client.read()
        assert sorted(running) == ["/7", "/9"]


@pytest.mark.parametrize("body", [b"", b"hello"])
async def test_a_response_before_the_requests_end_is_followed_by_a_reset_without_error(
    body: bytes, autojump_clock: MockClock
) -> None:
    """RST_STREAM(NO_ERROR) follows END_STREAM, and the stream does not count any more."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, body)

    async with connected(handled_by(handler), h2_max_concurrent_streams=1) as client:
        await client.send(post(1))
        assert [each.kind for each in await client.read()] == [
            HEADERS,
            *([DATA] if body else []),
            RST_STREAM,
        ]
        assert client.ended(1)
        assert client.frames[-1].code == NO_ERROR
        assert client.conn.state is ConnState.IDLE
        await client.send(post(3))
        await client.read()
        assert client.ended(3)


async def test_data_for_a_stream_that_has_its_response_is_ignored(
    autojump_clock: MockClock,
) -> None:
    """It was on its way: it is no error, and the connection's window opens again."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, b"hello")

    async with connected(handled_by(handler)) as client:
        await client.send(post(1))
        await client.read()
        for _ in range(5):
            await client.send(data(1, bytes(PAGE)), data(1, bytes(PAGE)))
            (update,) = await client.read()
            assert update == (WINDOW_UPDATE, 0, 0, NUMBER.pack(2 * PAGE))
        await client.send(data(1, b"the last", end=True), request(3))
        await client.read()
        assert client.ended(3)


async def test_a_send_that_is_cancelled_while_it_waits_is_not_repeated(
    autojump_clock: MockClock,
) -> None:
    """What it gave is sent once, and then the client learns that nothing follows."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await begin(send)
        with trio.move_on_after(1):
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})

    async with connected(handled_by(handler), {INITIAL_WINDOW_SIZE: 0}) as client:
        await client.send(request(1))
        await trio.sleep(2)
        await client.send(window_frame(1, 2**17), window_frame(0, 2**17))
        await client.read()
        assert len(client.of(HEADERS, 1)) == 1
        assert len(client.body(1)) == 2**16
        assert len(client.of(RST_STREAM, 1)) == 1
        assert client.conn.state is ConnState.IDLE


@pytest.mark.parametrize("how", ["reset by client", "connection reset", "end of client", "drain"])
async def test_a_writer_that_waits_for_a_window_is_woken_by_the_end(
    how: str, autojump_clock: MockClock
) -> None:
    """Of its stream, or of its connection; what it sends next raises an OSError."""
    ended: list[float] = []

    async def handler(path: str, receive: Any, send: Any) -> None:
        await begin(send)
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(PAGE), "more_body": True})
        except OSError:
            ended.append(trio.current_time())

    async with connected(
        handled_by(handler), {INITIAL_WINDOW_SIZE: 0}, graceful_timeout=1
    ) as client:
        await client.send(request(1))
        await client.read()
        if how == "reset by client":
            await client.send(cancel(1))
        elif how == "connection reset":
            client.stream.reset()
        elif how == "end of client":
            await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert ended == ([] if how == "drain" else [0])
    assert len(ended) == (how != "drain")  # whose end cancels it


# Windows


class Readers:
    """Handlers that read once for each time that they are let."""

    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[None](100)

    async def __call__(self, path: str, receive: Any, send: Any) -> None:
        async for _ in self._receive:
            await receive()


def updates(frames: list[Frame]) -> list[tuple[int, int]]:
    """Which windows are opened, and by how much. There must be nothing else."""
    assert {each.kind for each in frames} <= {WINDOW_UPDATE}
    return [(each.stream, int(NUMBER.unpack(each.payload)[0])) for each in frames]


async def test_the_connections_window_opens_at_once_and_a_streams_as_it_is_read(
    autojump_clock: MockClock,
) -> None:
    """A handler that does not read keeps its own stream's window closed, and no other."""
    readers = Readers()
    async with connected(handled_by(readers), graceful_timeout=0) as client:
        await client.send(post(1), data(1, bytes(PAGE)))
        assert updates(await client.read()) == []
        await client.send(data(1, bytes(PAGE)))
        assert updates(await client.read()) == [(0, 2 * PAGE)]
        readers.send.send_nowait(None)
        assert updates(await client.read()) == [(1, 2 * PAGE)]


async def test_padding_is_given_back_to_both_windows(autojump_clock: MockClock) -> None:
    """It counts in the windows, but no handler reads it."""
    async with connected(handled_by(forever), graceful_timeout=0) as client:
        whole = padded(1, b"", 255)  # 256 bytes of the window
        await client.send(post(1), whole * 63)
        assert updates(await client.read()) == []
        await client.send(whole)
        assert updates(await client.read()) == [(1, PAGE)]
        await client.send(whole * 64)
        assert sorted(updates(await client.read())) == [(0, 2 * PAGE), (1, PAGE)]


async def test_padding_takes_room_in_a_streams_window(autojump_clock: MockClock) -> None:
    """What is not read and not padding stays: the window ends where both together fill it."""
    async with connected(handled_by(forever), graceful_timeout=0) as client:
        await client.send(post(1), *(data(1, bytes(PAGE)) for _ in range(3)))
        await client.send(padded(1, bytes(PAGE - 10), 9))  # all but one byte of 65,535
        await client.send(data(1, b"12"))
        await client.read()
        assert [each.code for each in client.of(RST_STREAM, 1)] == [3]  # FLOW_CONTROL_ERROR


async def test_a_writer_waits_at_32_kib_and_goes_on_at_16(autojump_clock: MockClock) -> None:
    """Of what its client has no window for."""
    sent = 0

    async def handler(path: str, receive: Any, send: Any) -> None:
        nonlocal sent
        await begin(send)
        while True:
            await send({"type": "http.response.body", "body": bytes(1024), "more_body": True})
            sent += 1

    async with connected(
        handled_by(handler), {INITIAL_WINDOW_SIZE: 0}, graceful_timeout=0
    ) as client:
        await client.send(request(1))
        await client.read()
        assert sent == 31
        await client.send(window_frame(1, 2**14 - 1))
        await client.read()
        assert sent == 31
        await client.send(window_frame(1, 1))
        await client.read()
        assert sent == 31 + 16


async def test_streams_take_turns_frame_by_frame(autojump_clock: MockClock) -> None:
    """Two large responses share the connection, a frame each."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(8 * PAGE))

    async with connected(handled_by(handler), WIDE) as client:
        await client.send(WIDER, request(1), request(3))
        await client.read()
        order = [each.stream for each in client.frames if each.kind == DATA]
        assert order in ([1, 3] * 8, [3, 1] * 8)


async def test_a_stream_out_of_its_window_holds_up_no_other(autojump_clock: MockClock) -> None:
    """It has sent what it may; the one behind it is sent."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(int(path[1:])))

    async with connected(handled_by(handler), {INITIAL_WINDOW_SIZE: 10}) as client:
        await client.send(request(1, "/20"))
        await client.read()
        await client.send(request(3, "/5"))
        await client.read()
        assert (len(client.body(1)), len(client.body(3))) == (10, 5)
        assert (client.ended(1), client.ended(3)) == (False, True)


async def test_bodies_wait_for_the_connections_window(autojump_clock: MockClock) -> None:
    """All of them share it, and go on in their turns as it opens."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(int(path[1:])))

    async with connected(handled_by(handler), WIDE) as client:
        await client.send(request(1, f"/{DEFAULT_WINDOW}"))
        await client.read()
        await client.send(request(3, "/5"))
        await client.read()
        await client.send(request(5, "/5"))
        received = []
        for opened in (0, 3, 4, 100):
            if opened:
                await client.send(window_frame(0, opened))
            await client.read()
            received.append((len(client.body(3)), len(client.body(5))))
        assert received == [(0, 0), (3, 0), (3, 4), (5, 5)]


async def test_small_responses_take_of_the_connections_window(autojump_clock: MockClock) -> None:
    """Those that leave with their headers count as well as larger ones."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(PAGE - 1))

    async with connected(handled_by(handler), WIDE) as client:
        for stream in (1, 3, 5, 7, 9):
            await client.send(request(stream))
            await client.read()
        assert [len(client.body(stream)) for stream in (1, 3, 5, 7, 9)] == [PAGE - 1] * 4 + [3]


async def test_what_needs_no_window_is_sent_without_one(autojump_clock: MockClock) -> None:
    """The end of a stream, and its trailers, when the connection's window is used up."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        if path == "/all":
            await respond(send, bytes(DEFAULT_WINDOW))
        elif path == "/nothing":
            await respond(send, b"", status=204)
        elif path == "/end":
            await begin(send)
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            await finish(send)
        else:
            start = {"type": "http.response.start", "status": 200, "headers": []}
            await send({**start, "trailers": True})
            await finish(send)
            await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    async with connected(handled_by(handler), WIDE) as client:
        await client.send(request(1, "/all"))
        await client.read()
        await client.send(request(3, "/nothing"), request(5, "/end"))
        await client.send(request(7, "/trailers", "GET", ("te", "trailers")))
        await client.read()
        assert [client.ended(stream) for stream in (1, 3, 5, 7)] == [True] * 4
        assert [each.flags & END_STREAM for each in client.of(HEADERS, 7)] == [0, END_STREAM]


async def test_a_new_initial_window_size_changes_the_windows_of_open_streams(
    autojump_clock: MockClock,
) -> None:
    """By the difference, also below zero (RFC 9113, 6.9.2)."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(30))

    async with connected(handled_by(handler), {INITIAL_WINDOW_SIZE: 10}) as client:
        received = []
        for sent in (
            request(1),
            settings_frame({INITIAL_WINDOW_SIZE: 15}),
            settings_frame({INITIAL_WINDOW_SIZE: 0}),  # the stream's window is -15 now
            window_frame(1, 15),
            window_frame(1, 5),
            settings_frame({INITIAL_WINDOW_SIZE: 100}),
        ):
            await client.send(sent)
            await client.read()
            received.append(len(client.body(1)))
        assert received == [10, 15, 15, 15, 20, 30]


@pytest.mark.parametrize("size", [PAGE, PAGE + 1, 2**15])
async def test_no_frame_is_larger_than_the_client_takes(
    size: int, autojump_clock: MockClock
) -> None:
    """Neither of a body nor of headers; and none is smaller than it has to be."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        headers = [(b"x", b"\xff" * 50_000)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await finish(send, bytes(50_000))

    async with connected(handled_by(handler), {MAX_FRAME_SIZE: size}) as client:
        await client.send(request(1))
        await client.read()
        kinds = {HEADERS, CONTINUATION}
        headers = [len(each.payload) for each in client.frames if each.kind in kinds]
        body = [len(each.payload) for each in client.of(DATA, 1)]
        assert max(headers) == max(body) == size
        assert len(headers) == len(body) == 50_000 // size + 1


async def test_a_smaller_table_is_acknowledged_in_the_next_header_block(
    autojump_clock: MockClock,
) -> None:
    """By a dynamic table size update of zero, once (RFC 7541, 4.2)."""
    async with connected(app) as client:
        await client.send(settings_frame({HEADER_TABLE_SIZE: 0}), request(1))
        await client.read()
        await client.send(request(3))
        await client.read()
        first, second = (client.of(HEADERS, stream)[0].payload for stream in (1, 3))
        assert first[:1] == b"\x20"
        assert second[:1] == b"\x88"  # :status 200


# What is written together


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each write to a memory socket had."""
    from trio_httptrack.testing._network import MemoryKernel

    made: list[int] = []
    writev = MemoryKernel.writev

    def counted(kernel: MemoryKernel, fileno: int, parts: Parts, /) -> int:
        made.append(sum(map(len, parts)))
        return writev(kernel, fileno, parts)

    monkeypatch.setattr(MemoryKernel, "writev", counted)
    return made


async def test_the_response_of_a_handler_alone_leaves_at_once_in_one_write(
    writes: list[int], autojump_clock: MockClock
) -> None:
    """Headers, body and end together, before ``send`` returns."""
    at_once: list[int] = []

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, b"hello")
        at_once.append(len(writes))

    async with connected(handled_by(handler)) as client:
        writes.clear()
        await client.send(request(1))
        await client.read()
        assert client.ended(1)
        assert len(writes) == 1
        assert at_once == [1]


async def test_responses_of_handlers_that_finish_together_leave_in_one_write(
    writes: list[int], autojump_clock: MockClock
) -> None:
    """Ten in one scheduler step, and nothing of them is left behind."""
    go = trio.Event()

    async def handler(path: str, receive: Any, send: Any) -> None:
        await go.wait()
        await respond(send, b"hello")

    async with connected(handled_by(handler)) as client:
        await client.send(*(request(stream) for stream in range(1, 21, 2)))
        await client.read()
        writes.clear()
        go.set()
        await client.read()
        assert all(client.ended(stream) for stream in range(1, 21, 2))
        assert len(writes) == 1


async def test_acknowledgements_do_not_wait_for_bodies(autojump_clock: MockClock) -> None:
    """A PING is acknowledged behind what was being written, not behind a whole response."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(2**20))

    async with connected(handled_by(handler), WIDE) as client:
        await client.send(WIDER, request(1))
        await wait_all_tasks_blocked()
        await client.send(PINGED)
        await client.read()
        assert client.ended(1)
        kinds = [each.kind for each in client.frames]
        before = client.frames[: kinds.index(PING)]
        assert sum(len(each.payload) for each in before) <= 2 * 2**16


class Body:
    """A stream as the output sees it."""

    def __init__(self, stream: int, window: int) -> None:
        self.id = stream
        self.outbox = Outbox(window)
        self.given = b""
        self.ends = False
        self.closed = False
        self.was_sent = False

    def final_frames(self) -> bytes:
        return b""

    def sent(self) -> None:
        assert not self.was_sent
        self.was_sent = True


class Pipe:
    """A connection that has room for so many bytes."""

    def __init__(self) -> None:
        self.room = 0
        self.written = bytearray()
        self._writing = False
        self._changed = trio.Event()

    def give(self, room: int) -> None:
        self.room += room
        self._changed.set()
        self._changed = trio.Event()

    def write_now(self, parts: Parts) -> Parts | None:
        assert not self._writing
        whole = b"".join(parts)
        self.written += whole[: self.room]
        rest = whole[self.room :]
        self.room -= min(self.room, len(whole))
        return [rest] if rest else None

    async def write(self, parts: Parts) -> None:
        rest = self.write_now(parts)
        self._writing = True
        while rest is not None:
            await self._changed.wait()
            self._writing = False
            rest = self.write_now(rest)
            self._writing = True
        self._writing = False

    def frames(self) -> list[Frame]:
        """The frames that are written completely."""
        frames, start = [], 0
        while len(self.written) - start >= HEADER_SIZE:
            high, low, kind, flags, stream = HEADER.unpack_from(self.written, start)
            start += HEADER_SIZE
            end = start + (high << 16 | low)
            if end > len(self.written):
                break
            frames.append(Frame(kind, flags, stream, bytes(self.written[start:end])))
            start = end
        return frames


STREAMS = 4
STREAM = st.integers(0, STREAMS - 1)
SIZE = st.one_of(st.integers(1, 100), st.integers(1, 2**17))
STEPS = st.one_of(
    st.tuples(st.just("add"), STREAM, SIZE),
    st.tuples(st.just("end"), STREAM, st.booleans()),
    st.tuples(st.just("close"), STREAM, st.none()),
    st.tuples(st.just("grow"), STREAM, st.one_of(SIZE, st.integers(-(2**16), -1))),
    st.tuples(st.just("control"), STREAM, st.integers(8, 8)),
    st.tuples(st.just("window"), STREAM, SIZE),
    st.tuples(st.just("room"), STREAM, SIZE),
    st.tuples(st.just("flush"), STREAM, st.none()),
    st.tuples(st.just("later"), STREAM, st.none()),
    st.tuples(st.just("settle"), STREAM, st.none()),
)
TRAILERS = frame(HEADERS, END_HEADERS | END_STREAM, 0, b"\x88")


class Model:
    """Drives an output by random steps, and knows what may come and what must."""

    def __init__(self) -> None:
        self.pipe = Pipe()
        self.output = Output(self.pipe)
        self.bodies = [Body(2 * number + 1, 1000) for number in range(STREAMS)]
        self.windows = [1000] * STREAMS
        self.window = self.output.window = 2000
        self.most = [1000] * STREAMS  # that a window has ever allowed
        self.controls = 0
        self.filler = 0

    async def step(self, what: str, number: int, value: Any) -> None:
        body, output = self.bodies[number], self.output
        usable = not (body.ends or body.closed)
        if what == "add" and usable:
            self.filler += 1
            part = bytes([self.filler % 256]) * value
            body.given += part
            body.outbox.add(part)
            output.schedule(body)
        elif what == "end" and usable:
            body.ends = True
            body.outbox.end = TRAILERS if value else b""
            output.schedule(body)
        elif what == "close" and not body.was_sent:
            body.closed = True
            body.outbox.close()
        elif what == "grow" and not body.closed:
            self.windows[number] += value
            self.most[number] = max(self.most[number], self.windows[number])
            body.outbox.window += value
            output.schedule(body)
        elif what == "control":
            self.controls += 1
            output.add(frame(PING, ACK, 0, bytes(value)))
        elif what == "window":
            self.window += value
            output.update_window(value)
        elif what == "room":
            self.pipe.give(value)
        elif what == "flush":
            output.flush()
        elif what == "later":
            output.flush_later()
        elif what == "settle":
            await wait_all_tasks_blocked()
        self.check()

    def check(self) -> None:
        """No window is exceeded, and what comes is what was given, in order."""
        total = 0
        for body, most in zip(self.bodies, self.most, strict=True):
            frames = [each for each in self.pipe.frames() if each.stream == body.id]
            received = b"".join(each.payload for each in frames if each.kind == DATA)
            assert body.given.startswith(received)
            assert len(received) <= most
            total += len(received)
        assert total <= self.window

    def check_rest(self) -> None:
        """When there is room, all is sent that there are windows for."""
        assert self.output.empty
        for body in self.bodies:
            box = body.outbox
            if not body.closed:
                assert not box.size or box.window <= 0 or self.output.window <= 0
                assert box.size or box.end is None
                assert body.was_sent == (body.ends and not box.size)
        assert sum(each.kind == PING for each in self.pipe.frames()) == self.controls

    async def run(self, steps: list[tuple[str, int, Any]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.output.run)
            for step in steps:
                await self.step(*step)
            self.output.flush()
            self.pipe.give(2**40)
            await wait_all_tasks_blocked()
            self.check()
            self.check_rest()
            for number in range(STREAMS):
                await self.step("grow", number, 2**30)
            await self.step("window", 0, 2**30)
            self.output.flush()
            await wait_all_tasks_blocked()
            self.check()
            self.check_rest()
            for body in self.bodies:
                if not body.closed:
                    assert body.outbox.size == 0
                    assert body.was_sent == body.ends
            assert not self.output._turns
            assert not self.output._ending
            assert self.output._out_of_window == {}
            nursery.cancel_scope.cancel()


@given(st.lists(STEPS, max_size=40))
def test_whatever_is_queued_is_sent_as_windows_and_room_allow(
    steps: list[tuple[str, int, Any]],
) -> None:
    """In order, within the windows, completely, and each stream ends once."""

    async def main() -> None:
        await Model().run(steps)

    trio.run(main)


@given(
    st.lists(st.integers(0, 6 * PAGE), min_size=1, max_size=6),
    st.lists(st.integers(1, 2**17), max_size=10),
)
def test_turns_are_fair(sizes: list[int], rooms: list[int]) -> None:
    """Between two frames of a stream, each other one that has something to send has one."""
    expected = []
    left = dict(enumerate(sizes))
    waiting = deque(left)
    while waiting:
        number = waiting.popleft()
        expected.append((2 * number + 1, min(left[number], PAGE)))
        left[number] -= expected[-1][1]
        if left[number]:
            waiting.append(number)

    async def main() -> None:
        pipe = Pipe()
        output = Output(pipe)
        output.update_window(2**30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.run)
            await wait_all_tasks_blocked()
            for number, size in enumerate(sizes):
                body = Body(2 * number + 1, 2**30)
                if size:
                    body.outbox.add(bytes(size))
                body.outbox.end = b""
                output.schedule(body)
            output.flush()
            for room in [*rooms, 2**30]:
                pipe.give(room)
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [(each.stream, len(each.payload)) for each in pipe.frames()] == expected

    trio.run(main)


async def test_streams_that_were_reset_do_not_hold_up_one_behind_them() -> None:
    """However many of them had something to send."""
    pipe = Pipe()
    pipe.give(2**40)
    output = Output(pipe)
    output.window = 0
    bodies = [Body(2 * number + 1, 100) for number in range(10_000)]
    for body in bodies:
        body.outbox.add(b"hello")
        output.schedule(body)
        output.flush()
    for body in bodies[:-1]:
        body.outbox.close()
    output.update_window(100)
    output.flush()
    assert [(each.stream, each.payload) for each in pipe.frames()] == [(bodies[-1].id, b"hello")]


async def test_the_response_of_the_only_handler_is_not_left_to_the_sender(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written at once, which saves a scheduler step."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, b"hello")

    async with connected(handled_by(handler)) as client:
        monkeypatch.setattr(Output, "flush_later", lambda output: None)
        await client.send(request(1))
        await client.read()
        assert client.body(1) == b"hello"
        assert client.ended(1)
        monkeypatch.undo()


async def test_responses_that_are_finished_in_one_step_leave_in_one_write(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of several handlers that have waited for the same."""
    gate = trio.Event()

    async def handler(path: str, receive: Any, send: Any) -> None:
        await gate.wait()
        await respond(send, b"hello")

    async with connected(handled_by(handler)) as client:
        await client.send(*(request(stream) for stream in range(1, 21, 2)))
        await client.read()
        writes: list[int] = []
        writev = MemoryKernel.writev

        def counted(kernel: MemoryKernel, fileno: int, parts: Any) -> int:
            writes.append(fileno)
            return writev(kernel, fileno, parts)

        monkeypatch.setattr(MemoryKernel, "writev", counted)
        gate.set()
        await client.read()
        assert all(client.ended(stream) for stream in range(1, 21, 2))
        assert len(writes) == 1
        monkeypatch.undo()


# What stays


async def test_nothing_stays_of_requests_that_are_over(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """After 10,000 on one connection its collections are empty, and no cycle is left."""

    async def serve(streams: range) -> None:
        frames: list[bytes] = []
        for stream in streams:
            if stream % 3 == 0:
                frames += [post(stream, "/body"), data(stream, b"hello", end=True)]
            else:
                frames.append(request(stream, "/stream" if stream % 5 else "/"))
        await client.send(*frames)
        await client.read()
        assert all(client.ended(stream) for stream in (streams[0], streams[-1]))
        client.frames.clear()

    async with connected(app, WIDE, keep_alive_max_requests=20_000) as client:
        await client.send(WIDER)
        await serve(range(1, 201, 2))
        gc.collect()
        for start in range(201, 20_001, 200):
            await serve(range(start, start + 200, 2))
        assert gc.collect() == 0
        assert client.conn.requests == 10_000
        assert client.conn.state is ConnState.IDLE
        http2 = connections[0]._http2
        assert http2 is not None
        output = http2.output
        assert [*http2._streams, *http2._queue, *http2._closed_early] == []
        assert [*output._turns, *output._out_of_window, *output._ending, *output._control] == []
        assert output.empty


# Ends, pushes and headers at their limits


async def test_over_tls_the_last_of_a_response_waits_for_room_and_is_sent(
    autojump_clock: MockClock,
) -> None:
    """What is encrypted but finds no room is written as soon as the client has read."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(63_000 if path == "/large" else 10_000))

    async with memory_server(handled_by(handler)) as server:
        client = Client(await server.connect(tls=True, alpn=["h2"]))
        await client.start(WIDE)
        await client.send(WIDER)
        await client.read()
        await client.send(request(1, "/large"))
        await wait_all_tasks_blocked()
        await client.send(request(3))
        await wait_all_tasks_blocked()
        await client.read()
        assert len(client.body(3)) == 10_000
        assert client.ended(3)
        assert client.conn.state is ConnState.IDLE


async def test_responses_that_end_together_do_not_hold_up_a_drain(
    autojump_clock: MockClock,
) -> None:
    """However many of them the sender writes at once, GOAWAY and the end follow at once."""
    recorder = Recorder()

    async def handler(path: str, receive: Any, send: Any) -> None:
        await trio.sleep_until(1)
        await respond(send, b"hello")

    async with trio.open_nursery() as nursery:
        async with memory_server(handled_by(handler), tracker=recorder) as server:
            for _ in range(20):
                client = await started(server)
                await client.send(request(1), request(3))
                nursery.start_soon(client.read_to_end)
            await wait_all_tasks_blocked()
        ends = {event.time for event in recorder.events if event.state is ConnState.CLOSED}
        nursery.cancel_scope.cancel()
    assert max(ends) <= 3.0  # LINGER_TIMEOUT, for clients that do not end their side
    assert {conn.close_reason for conn in recorder.conns} == {None}


async def test_streams_that_are_reset_do_not_wait_for_the_connections_window(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """A client that lets the connection's window be empty, and resets, leaves nothing behind."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(DEFAULT_WINDOW if path == "/all" else 5))

    async with connected(handled_by(handler), WIDE, h2_max_concurrent_streams=10) as client:
        await client.send(request(1, "/all"))
        await client.read()
        for stream in range(3, 103, 2):
            await client.send(request(stream))
            await client.read()
            await client.send(cancel(stream))
            await client.read()
        http2 = connections[0]._http2
        assert http2 is not None
        assert http2._streams == {}
        assert len(http2.output._out_of_window) <= 10


async def test_a_push_that_has_to_wait_for_its_turn_is_no_flood(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler may push as much as it likes: a client that did nothing is not accused."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        if path == "/":
            for number in range(10):
                event = {"type": "http.response.push", "path": f"/{number}", "headers": []}
                await send(event)
        await respond(send, path.encode())

    async with connected(handled_by(handler), h2_max_concurrent_streams=1) as client:
        await client.send(request(1))
        await client.read()
        assert client.body(1) == b"/"
        assert problems(caplog) == []


async def test_a_push_that_cannot_be_made_is_not_promised(autojump_clock: MockClock) -> None:
    """A path that is not ASCII is the application's error, and the connection goes on."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        with pytest.raises(ValueError, match="ascii"):
            await send({"type": "http.response.push", "path": "/\xe9", "headers": []})
        await respond(send, b"hello")

    async with connected(handled_by(handler)) as client:
        await client.send(request(1))
        await client.read()
        assert client.ended(1)
        assert client.of(PUSH_PROMISE, 1) == []
        assert client.conn.state is ConnState.IDLE


async def test_a_client_limits_how_many_pushes_are_in_flight(autojump_clock: MockClock) -> None:
    """It allows none by SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113, 5.1.2)."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        if path == "/":
            await send({"type": "http.response.push", "path": "/pushed", "headers": []})
        await respond(send, b"hello")

    async with connected(handled_by(handler), {MAX_CONCURRENT_STREAMS: 0}) as client:
        await client.send(request(1))
        await client.read()
        assert client.ended(1)
        assert client.body(2) == b""


async def test_the_first_header_block_sets_the_table_size_to_zero(
    autojump_clock: MockClock,
) -> None:
    """Whichever block that is. Later blocks need not, whatever the client's SETTINGS are."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        if path == "/":
            await send({"type": "http.response.push", "path": "/pushed", "headers": []})
        await respond(send, b"hello")

    async with connected(handled_by(handler)) as client:
        await client.send(request(1))
        await client.read()
        assert client.of(PUSH_PROMISE, 1)[0].payload[4:5] == b"\x20"


async def test_goaway_comes_behind_what_waits_for_room(autojump_clock: MockClock) -> None:
    """A client that breaks the protocol while a response is written to it learns why."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await respond(send, bytes(2**20))

    async with connected(handled_by(handler), WIDE) as client:
        await client.send(WIDER, request(1))
        await wait_all_tasks_blocked()
        await client.send(window_frame(0, 0))
        await client.read()
        assert client.codes == [PROTOCOL_ERROR]


async def test_a_later_goaway_does_not_take_back_which_stream_was_the_last(
    autojump_clock: MockClock,
) -> None:
    """The last stream of a GOAWAY never rises (RFC 9113, 6.8)."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        if path == "/forever":
            await trio.sleep_forever()
        await respond(send, b"hello")

    async def cross() -> None:
        await trio.sleep(0.1)
        await client.send(request(3, "/forever"))
        await trio.sleep(1)
        await client.send(request(5), window_frame(0, 0))
        await client.read()

    async with trio.open_nursery() as nursery, memory_server(handled_by(handler)) as server:
        client = await started(server)
        await client.send(request(1, "/forever"))
        await client.read()
        nursery.start_soon(cross)
    lasts = [NUMBER.unpack_from(each.payload)[0] for each in client.frames if each.kind == GOAWAY]
    assert lasts == [MAX_WINDOW, 3, 3]


async def test_a_window_that_opens_again_begins_the_time_to_read(
    autojump_clock: MockClock,
) -> None:
    """Where the client waited for us, ``read_timeout`` begins when it need not any more."""
    recorder = Recorder()

    async def handler(path: str, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        while (await receive())["type"] != "http.disconnect":
            pass

    async with connected(handled_by(handler), tracker=recorder, read_timeout=5) as client:
        page = bytes(PAGE)
        await client.send(post(1), data(1, page), data(1, page), data(1, page))
        await client.send(data(1, page[:-1]))
        with trio.move_on_after(20):
            await client.read_to_end()
        assert trio.current_time() == 6
        assert client.conn.close_reason == "read_timeout"


async def test_websockets_count_as_handlers_before_they_run(autojump_clock: MockClock) -> None:
    """Those that come together are no more than there may be handlers."""
    running = 0

    @without_lifespan
    async def handler(scope: Any, receive: Any, send: Any) -> None:
        nonlocal running
        running += 1
        await trio.sleep_forever()

    async with connected(handler, h2_max_concurrent_streams=4, graceful_timeout=0) as client:
        for stream in (1, 3, 5):
            await client.send(request(stream), cancel(stream))
            await client.read()
        await client.send(*(request(stream, "/", "CONNECT", end=False) for stream in (7, 9, 11)))
        await client.read()
        assert running == 4


async def test_trailers_that_the_client_does_not_want_leave_a_response_with_headers(
    autojump_clock: MockClock,
) -> None:
    """A response that begins with its trailers has headers, whether or not trailers are wanted."""

    async def handler(path: str, receive: Any, send: Any) -> None:
        await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    async with connected(handled_by(handler)) as client:
        await client.send(request(1))
        await client.read()
        assert len(client.of(HEADERS, 1)) == 1
        assert client.ended(1)
