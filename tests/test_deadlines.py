"""What a client, or a handler, may take its time for, each limit at its exact time."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from random import Random
from typing import Any

import h2.events
import h2.settings
import pytest
import trio
import wsproto.events
from hypercorn.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnLimit, ConnState, compose, tracked_server
from trio_httptrack._connection.connection import Connection
from trio_httptrack._hypercorn.settings import SettingError
from trio_httptrack._hypercorn.worker import Worker
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server
from trio_httptrack.testing._network import BUFFER_SIZE

from .clients import GoAwayHttp2, Http2, http1, read_to_end
from .hypercorn_process import failing_hypercorn
from .support import Recorder, problems, respond, tls_client, without_lifespan
from .test_drain import Peer, open_websocket, read_head
from .test_faults import handshake
from .test_http1 import Busy, TlsClient, request, responses, send_now
from .test_http1 import tls_client as tls_client_by_hand

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

App = Callable[[Any, Any, Any], Awaitable[None]]

CANCEL, ENHANCE_YOUR_CALM = 0x8, 0xB  # RFC 9113, 7
START = {"type": "http.response.start", "status": 200, "headers": []}

# Powers of two: times and rates are exact then.
UPLOAD: dict[str, Any] = {"min_request_body_rate": 64}
DOWNLOAD: dict[str, Any] = {"min_response_rate": 2**14}
GRACE = 5.0
SLOW_REQUEST, SLOW_RESPONSE = "min_request_body_data_rate", "min_response_data_rate"
NO_LINE = 2.0**-20  # added to each pause, so that no two things happen in the same instant


class Told:
    """An application, and when it learned of what."""

    def __init__(self, app: Callable[[Told, Any, Any, Any], Awaitable[None]]) -> None:
        self._app = app
        self.seen: list[tuple[float, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(self, scope, receive, send)

    def note(self, what: str) -> None:
        self.seen.append((trio.current_time(), what))


@Told
async def nothing(told: Told, scope: Any, receive: Any, send: Any) -> None:
    """Responds at once."""
    await respond(send, b"")


def uploads(begins: float = 0) -> Told:
    """Reads bodies, from some time on."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await trio.sleep(float(scope["path"].strip("/") or 0))
            await respond(send, b"got")
            return
        await trio.sleep_until(begins)
        size = 0
        while (event := await receive())["type"] == "http.request":
            size += len(event["body"])
            if not event["more_body"]:
                told.note("whole")
                await respond(send, b"%d" % size)
                return
        told.note("gone")
        try:
            await respond(send, b"too late")
        except OSError:
            told.note("unheard")

    return Told(app)


class Upload:
    """A request whose body its client sends as it likes, each part in one instant."""

    def __init__(self, stream: ClientStream, over: str) -> None:
        self.stream = stream
        self._over = over
        self._tls: TlsClient | None = None
        self.http2 = GoAwayHttp2(stream)

    async def begin(self, server: MemoryServer, length: int) -> None:
        if self._over == "h2":
            await self.http2.start()
            self.id = self.http2.request("/", "POST", end=False)
            await self.http2.flush()
        else:
            chunked = self._over == "chunked"
            framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {length}"
            if self._over == "tls":
                self._tls = TlsClient(server, self.stream)
                await self._tls.handshake()
            self._write(request("/", framing, method="POST"))
        await wait_all_tasks_blocked()

    def _write(self, data: bytes) -> None:
        send_now(self.stream, self._tls.encrypt(data) if self._tls is not None else data)

    def send(self, size: int, *, end: bool = False) -> int:
        """Returns for how many bytes a part counts."""
        body = bytes(size)
        if self._over == "h2":
            self.http2.h2.send_data(self.id, body, end_stream=end)
            self._write(self.http2.h2.data_to_send())
            return size
        if self._over == "chunked":
            body = b"%x\r\n%b\r\n" % (size, body) + (b"0\r\n\r\n" if end else b"")
        self._write(body)
        return len(body)


@asynccontextmanager
async def uploading(
    app: App, over: str, length: int = 1000, **settings: Any
) -> AsyncIterator[tuple[Upload, Recorder]]:
    """A client that has sent the head of its request, and is closed behind the block."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, **{**UPLOAD, **settings}) as server:
        upload = Upload(await server.connect(tls=over == "tls", handshake=False), over)
        await upload.begin(server, length)
        yield upload, recorder
        upload.stream.reset()


over_each = pytest.mark.parametrize("over", ["length", "chunked", "tls", "h2"])
over_http1 = pytest.mark.parametrize("over", ["length", "chunked", "tls"])

parts = st.lists(
    st.tuples(
        st.integers(0, 64).map(lambda eighths: eighths / 8 + NO_LINE),
        st.integers(1, 640),
    ),
    min_size=1,
    max_size=8,
)


# A request's body


@over_each
@settings(max_examples=25)
@given(parts)
def test_any_upload_ends_when_it_is_too_slow_or_is_whole(
    over: str, schedule: list[tuple[float, int]]
) -> None:
    """The model: after the grace period, the bytes received are never below the rate."""
    app = uploads()
    expected: list[tuple[float, str]] = []

    async def main() -> None:
        length = sum(size for _, size in schedule)
        async with uploading(app, over, length) as (upload, _):
            now, moved = 0.0, 0
            for number, (pause, size) in enumerate(schedule, 1):
                due = max(GRACE, moved / 64)
                now += pause
                if now > due:
                    expected[:] = [(due, "gone"), (due, "unheard")]
                    await trio.sleep_until(due + 100)
                    return
                await trio.sleep_until(now)
                moved += upload.send(size, end=number == len(schedule))
            expected.append((now, "whole"))
            await wait_all_tasks_blocked()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert app.seen == expected


@over_each
@pytest.mark.parametrize(("size", "whole"), [(33, True), (24, False)])
async def test_an_upload_just_above_the_rate_succeeds_and_one_just_below_does_not(
    over: str, size: int, whole: bool, autojump_clock: MockClock
) -> None:
    """For a minute, by two small parts a second."""
    app, moved, due = uploads(), 0, GRACE
    async with uploading(app, over, 120 * size) as (upload, _):
        for number in range(120):
            await trio.sleep_until(number / 2 + NO_LINE)
            if trio.current_time() > due:
                break
            moved += upload.send(size, end=number == 119)
            due = max(GRACE, moved / 64)
        await wait_all_tasks_blocked()
    assert app.seen[0] == ((59.5 + NO_LINE, "whole") if whole else (due, "gone"))


@over_http1
@pytest.mark.parametrize("begun", [False, True])
async def test_a_slow_http1_upload_gets_a_408_or_its_begun_response_is_cut_off(
    over: str, begun: bool, autojump_clock: MockClock
) -> None:
    """The handler receives a disconnect, its next send is an OSError, and there is a reason."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({**START, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] == "http.request":
            pass
        told.note("gone")
        with pytest.raises(OSError, match="does not read"):
            await send({"type": "http.response.body"} if begun else START)

    told = Told(app)
    async with uploading(told, over) as (upload, recorder):
        received = b""
        if upload._tls is None:
            received = await read_to_end(upload.stream)
        else:
            with suppress(EOFError) if begun else nullcontext():
                while data := await upload._tls.read():
                    received += data
        assert trio.current_time() == GRACE
    if begun:
        assert received.startswith(b"HTTP/1.1 200 ")
        assert received.endswith(b"\r\n\r\nbegun")
    else:
        head = received.lower()
        assert head.startswith(b"http/1.1 408 ")
        assert head.endswith(b"\r\n\r\n")
        assert b"\r\ncontent-length: 0\r\n" in head
        assert b"\r\nconnection: close\r\n" in head
    assert told.seen == [(GRACE, "gone")]
    assert upload.stream.conn.close_reason == SLOW_REQUEST
    assert recorder.sequences() == ["NAC"]


async def test_a_client_that_expects_a_100_is_waited_for_from_then_on(
    autojump_clock: MockClock,
) -> None:
    """It gets it, and has as long as any other."""
    app = uploads()
    async with memory_server(app, **UPLOAD) as server:
        client = await server.connect()
        await client.send_all(
            request("/", "Content-Length: 640", "Expect: 100-continue", method="POST")
        )
        assert (await read_head(client)).startswith(b"HTTP/1.1 100 ")
        await client.send_all(bytes(639))
        assert (await read_to_end(client)).startswith(b"HTTP/1.1 408 ")
    assert app.seen == [(639 / 64, "gone"), (639 / 64, "unheard")]


@over_http1
async def test_what_comes_with_the_head_counts(over: str, autojump_clock: MockClock) -> None:
    """As what comes behind it does."""
    app = uploads()
    async with memory_server(app, **UPLOAD) as server:
        stream = await server.connect(tls=over == "tls", handshake=False)
        tls = TlsClient(server, stream) if over == "tls" else None
        if tls is not None:
            await tls.handshake()
        framing, part = "Content-Length: 1000", bytes(640)
        if over == "chunked":
            framing, part = "Transfer-Encoding: chunked", b"%x\r\n%b" % (640, bytes(635))
        data = request("/", framing, method="POST", body=part)
        await stream.send_all(data if tls is None else tls.encrypt(data))
        await stream.conn.wait_closed()
        assert trio.current_time() == 10


@over_http1
async def test_the_time_in_which_the_application_does_not_read_the_body_does_not_count(
    over: str, autojump_clock: MockClock
) -> None:
    """Its queue has room for ten events; the client has the rest of its time behind that."""
    app = uploads(begins=100)
    async with uploading(app, over) as (upload, recorder):
        await trio.sleep(2)
        for _ in range(12):
            upload.send(1)
            await wait_all_tasks_blocked()
        await trio.sleep_until(99)
        assert recorder.sequences() == ["NA"]
        await trio.sleep_until(1000)
    # Two seconds of five were over.
    assert app.seen == [(103, "gone"), (103, "unheard")]


@over_http1
@pytest.mark.parametrize(
    ("read_timeout", "sent", "time", "reason"),
    [
        (3, 0, 3, "read_timeout"),
        (8, 0, 5, SLOW_REQUEST),
        (3, 320, 4, "read_timeout"),
        (8, 320, 5, SLOW_REQUEST),
        (8, 640, 9, "read_timeout"),
    ],
)
async def test_whichever_of_rate_and_read_timeout_is_first_ends_an_upload(
    over: str,
    read_timeout: float,
    sent: int,
    time: float,
    reason: str,
    autojump_clock: MockClock,
) -> None:
    """A timeout for the next bytes, and a rate for all of them."""
    app = uploads()
    async with uploading(app, over, read_timeout=read_timeout) as (upload, _):
        await trio.sleep(1)
        if sent:
            upload.send(sent - 7 * (over == "chunked"))  # the chunk's framing
        await upload.stream.conn.wait_closed()
        assert trio.current_time() == (time if sent else min(read_timeout, GRACE))
        assert upload.stream.conn.close_reason == reason
        received = await upload._tls.read() if upload._tls else await read_to_end(upload.stream)
        assert received.startswith(b"HTTP/1.1 408 ") == (reason == SLOW_REQUEST)


@over_http1
async def test_an_upload_that_was_in_time_leaves_the_other_deadlines_as_they_are(
    over: str, autojump_clock: MockClock
) -> None:
    """The next one has all its time, and an idle connection its own."""
    app = uploads()
    async with uploading(app, over, 10, keep_alive_timeout=30) as (upload, recorder):
        await trio.sleep(4)
        upload.send(10, end=True)
        await trio.sleep_until(20)
        upload._write(request("/", "Content-Length: 10", method="POST"))
        await trio.sleep_until(24)
        upload._write(bytes(10))
        await upload.stream.conn.wait_closed()
        assert trio.current_time() == 54
    assert app.seen == [(4, "whole"), (24, "whole")]
    assert upload.stream.conn.close_reason == "keep_alive_timeout"
    assert recorder.sequences() == ["NAIAIC"]


async def test_a_slow_upload_has_one_line_in_the_access_log(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """With the status code that its client got."""
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("test_deadlines")
    async with uploading(
        uploads(), "length", accesslog=logger, access_log_format="%(m)s %(s)s"
    ) as (upload, _):
        await read_to_end(upload.stream)
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert lines == ["POST 408"]
    assert problems(caplog) == []


async def test_a_response_that_is_cut_off_has_no_orderly_end(autojump_clock: MockClock) -> None:
    """Only close_notify shows an HTTP/1.0 client that a response without a length is complete."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] == "http.request":
            pass

    async with memory_server(Told(app), **UPLOAD) as server:
        client = await tls_client_by_hand(server)
        head = b"POST / HTTP/1.0\r\nContent-Length: 9\r\n\r\n"
        await client.stream.send_all(client.encrypt(head))
        with pytest.raises(EOFError, match="without a close_notify"):
            await client.read_to_end()


# A request's body over HTTP/2


async def test_only_the_slow_stream_of_a_connection_is_reset(autojump_clock: MockClock) -> None:
    """The others get their responses, and the connection its usual end."""
    app = uploads()
    async with uploading(app, "h2", keep_alive_timeout=30) as (upload, recorder):
        client = upload.http2
        slow_get, upload_in_time = client.request("/7"), client.request("/", "POST", end=False)
        await client.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await trio.sleep(4)
            client.h2.send_data(upload_in_time, bytes(384))
            await client.flush()
            await trio.sleep_until(5.75)
            client.h2.send_data(upload_in_time, b"", end_stream=True)
            await client.flush()
        assert client.seen == [(5, "reset", ENHANCE_YOUR_CALM), (37, "goaway", 5), (37, "end", 0)]
        assert client.statuses == {slow_get: "200", upload_in_time: "200"}
        assert client.bodies == {slow_get: b"got", upload_in_time: b"384"}
    assert app.seen == [(5, "gone"), (5, "unheard"), (5.75, "whole")]
    assert upload.stream.conn.close_reason == "keep_alive_timeout"
    assert recorder.sequences() == ["NAIAIC"]


async def test_streams_that_are_slow_one_after_the_other_are_each_reset_in_time(
    autojump_clock: MockClock,
) -> None:
    """And the last one ends the connection."""
    async with uploading(uploads(), "h2") as (upload, _):
        client = upload.http2
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            upload.send(448)
            await trio.sleep(1)
            client.request("/", "POST", end=False)
            await client.flush()
            await trio.sleep(0.5)
            client.request("/", "POST", end=False)
            await client.flush()
        resets = [(time, what) for time, what, _ in client.seen]
        assert resets == [(6, "reset"), (6.5, "reset"), (7, "reset"), (7, "goaway"), (7, "end")]
        assert upload.stream.conn.close_reason == SLOW_REQUEST


async def test_the_only_stream_ends_its_connection(autojump_clock: MockClock) -> None:
    """A reset, a GOAWAY with the error code, and the close reason."""
    async with uploading(uploads(), "h2") as (upload, recorder):
        await upload.http2.run()
        assert upload.http2.seen == [
            (5, "reset", ENHANCE_YOUR_CALM),
            (5, "goaway", upload.id),
            (5, "end", 0),
        ]
        await wait_all_tasks_blocked()
        assert upload.stream.conn.close_reason == SLOW_REQUEST
    assert recorder.sequences() == ["NAIAIC"]


async def test_a_stream_whose_handler_does_not_read_is_not_slow(
    autojump_clock: MockClock,
) -> None:
    """Its window is closed; the client's time goes on when it opens."""
    app = uploads(begins=1000)
    async with uploading(app, "h2", min_request_body_rate=2**14) as (upload, _):
        await trio.sleep(2)
        for _ in range(3):
            upload.send(2**14)
            await wait_all_tasks_blocked()
        upload.send(2**14 - 1)  # the window is 65535
        await upload.http2.run()
    due = 1000 - 2 + 5.0
    assert upload.http2.seen[0] == (due, "reset", ENHANCE_YOUR_CALM)
    assert app.seen == [(due, "gone"), (due, "unheard")]


async def test_a_request_that_ends_early_is_not_slow(autojump_clock: MockClock) -> None:
    """By trailers, by the client's reset, or by a response that did not wait for it."""
    async with memory_server(uploads(), keep_alive_timeout=30, **UPLOAD) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        reset, trailers = (client.request("/", "POST", end=False) for _ in range(2))
        early = client.request("/1", "GET", end=False)
        await client.flush()
        await wait_all_tasks_blocked()
        client.h2.reset_stream(reset, CANCEL)
        client.h2.send_headers(trailers, [("x-trailer", "1")], end_stream=True)
        await client.flush()
        await client.run()
        assert client.seen == [(1, "reset", 0), (31, "goaway", early), (31, "end", 0)]
        assert client.statuses == {trailers: "200", early: "200"}


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_only_while_a_client_is_waited_for_it_can_be_too_slow(
    over: str, autojump_clock: MockClock
) -> None:
    """Not while its handler works, before its response or in it."""

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        for part in (bytes(10**5), b"late"):
            await trio.sleep(1000)
            if part != b"late":
                await send(START)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await trio.sleep(1000)
        await send({"type": "http.response.body"})

    async with memory_server(app, **UPLOAD, **DOWNLOAD) as server:
        stream = await server.connect()
        if over == "h2":
            client = Http2(stream)
            await client.start()
            assert await client.post("/", b"body") == ("200", bytes(10**5) + b"late")
        else:
            await stream.send_all(request("/", "Content-Length: 4", method="POST"))
            await trio.sleep(1)
            await stream.send_all(b"body")
            assert await responses(stream, 1, "POST") == [(200, bytes(10**5) + b"late")]
        assert stream.conn.close_reason is None
        stream.reset()


# Bytes that came in time


async def open_late(server: MemoryServer, kind: str) -> tuple[ClientStream, bytes]:
    """A client, and what it has to send in time."""
    stream = await server.connect()
    client = Http2(stream)
    data = b""
    if kind == "upload":
        await stream.send_all(request("/", "Content-Length: 1000", method="POST"))
        data = bytes(640)
    elif kind == "websocket":
        await stream.send_all(handshake())
        await read_head(stream)
        data = b"\x8a\x80\0\0\0\0"  # a pong
    else:
        await client.start()
        path, method = ("/large", "GET") if kind == "h2 window" else ("/", "POST")
        stream_id = client.request(path, method, end=False)
        if kind == "h2 window":
            client.h2.end_stream(stream_id)
        await client.flush()
        await wait_all_tasks_blocked()
        if kind == "h2 window":
            await stream.receive_some()  # or there is no room for more, whatever the window
            client.h2.increment_flow_control_window(2**16, stream_id)
            client.h2.increment_flow_control_window(2**16)
        else:
            client.h2.send_data(stream_id, bytes(640))
        data = client.h2.data_to_send()
    await wait_all_tasks_blocked()
    return stream, data


@pytest.mark.parametrize("kind", ["upload", "h2 upload", "h2 window", "websocket"])
def test_what_came_before_the_deadline_counts_though_the_loop_was_busy(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are seen in the same step, in whichever order its tasks run."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        elif scope["path"] == "/large":
            await respond(send, bytes(10**6))
        while (await receive())["type"] in ("http.request", "websocket.receive"):
            pass
        told.note("gone")

    async def main() -> None:
        told = Told(app)
        busy = Busy(told)
        async with memory_server(
            busy, websocket_ping_interval=50, websocket_ping_timeout=5, **UPLOAD, **DOWNLOAD
        ) as server:
            client, data = await open_late(server, kind)

            def both() -> None:
                assert send_now(client, data) == len(data)
                clock.jump(1.5)

            await trio.sleep(4)
            await busy.keep(server, both)
            seen = list(told.seen)
            client.reset()
        assert seen == []

    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    for seed in range(6):
        monkeypatch.setattr(trio._core._run, "_r", Random(seed))
        clock = MockClock(autojump_threshold=0)
        trio.run(main, clock=clock)


@over_http1
async def test_what_comes_in_the_instant_of_the_deadline_is_in_time(
    over: str, autojump_clock: MockClock
) -> None:
    """As for any other deadline."""
    app = uploads()
    async with uploading(app, over, 640) as (upload, _):
        await trio.sleep_until(5)
        upload.send(640, end=True)
        await wait_all_tasks_blocked()
    assert app.seen == [(5, "whole")]


# A response


class Downloads:
    """Responds with large bodies."""

    def __init__(self, size: int, sends: int = 1) -> None:
        self._size, self._sends = size, sends
        self.seen: list[tuple[float, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        if scope["path"] != "/":
            await trio.sleep(float(scope["path"].strip("/")))
            await respond(send, b"got")
            return
        headers = [(b"content-length", b"%d" % (self._size * self._sends + 1))]
        body = {"type": "http.response.body", "more_body": True}
        await send({**START, "headers": headers})
        await send({**body, "body": b"1"})
        await receive()
        try:
            for _ in range(self._sends):
                await send({**body, "body": bytes(self._size)})
            self.seen.append((trio.current_time(), "sent"))
            await send({**body, "more_body": False})
            self.seen.append((trio.current_time(), "whole"))
        except OSError:
            self.seen.append((trio.current_time(), "unheard"))


def read_now(stream: ClientStream, size: int) -> int:
    """Read what is there, without letting any other task run."""
    return len(stream._transport.socket.recv(size))


reads = st.lists(
    st.tuples(
        st.integers(0, 40).map(lambda eighths: eighths / 8 + NO_LINE),
        st.integers(1, 4).map(lambda quarters: quarters * 2**14),
    ),
    max_size=12,
)


@pytest.mark.parametrize("tls", [False, True])
@settings(max_examples=25)
@given(reads)
def test_any_client_that_reads_too_slowly_over_http1_is_closed_exactly_then(
    tls: bool, schedule: list[tuple[float, int]]
) -> None:
    """The model: what it has read since the handler had to wait, as often as it had to."""
    size, records = 2**19, 32 * 22 if tls else 0  # bytes that TLS adds to the whole body
    app = Downloads(size)
    expected: list[Any] = []

    async def main() -> None:
        async with memory_server(app, **DOWNLOAD) as server:
            stream = await server.connect(tls=tls, handshake=False)
            if tls:
                client = TlsClient(server, stream)
                await client.handshake()
                await stream.send_all(client.encrypt(request("/", "Content-Length: 1")))
                await wait_all_tasks_blocked()
                read_now(stream, BUFFER_SIZE)
                body = client.encrypt(b"x")
            else:
                await stream.send_all(request("/", "Content-Length: 1"))
                await wait_all_tasks_blocked()
                read_now(stream, BUFFER_SIZE)
                body = b"x"
            await stream.send_all(body)
            await wait_all_tasks_blocked()
            now, moved, left = 0.0, 0, size + records - BUFFER_SIZE
            for pause, wanted in schedule:
                if left <= 0:
                    break
                due = max(GRACE, moved / 2**14)
                now += pause
                if now > due:
                    break
                await trio.sleep_until(now)
                read = read_now(stream, wanted)
                moved += read
                left -= read
                await wait_all_tasks_blocked()
            if left > 0:
                await trio.sleep(1000)
                expected.append(stream.conn.close_reason)
                expected.append(max(GRACE, moved / 2**14))
            else:
                expected.append(now)
            stream.reset()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    if len(expected) == 2:
        assert expected[0] == SLOW_RESPONSE
        assert app.seen[0] == (expected[1], "sent")
        assert app.seen[-1] == (expected[1], "unheard")
    else:
        assert app.seen[0] == (expected[0], "sent")


class Reader(GoAwayHttp2):
    """An HTTP/2 client that opens no window by itself."""

    def __init__(self, stream: ClientStream, window: int = 65535) -> None:
        super().__init__(stream)
        values = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=values)
        self.ended_at = 0.0

    def note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamEnded):
            self.ended_at = trio.current_time()
        if not isinstance(event, h2.events.DataReceived):
            super().note(event)

    async def open(self, increment: int, stream_id: int | None) -> None:
        self.h2.increment_flow_control_window(increment, stream_id)
        await self.flush()


@pytest.mark.parametrize("window", ["stream", "connection"])
@settings(max_examples=25)
@given(reads)
def test_any_client_that_opens_its_window_too_slowly_has_its_stream_reset_exactly_then(
    window: str, schedule: list[tuple[float, int]]
) -> None:
    """The model: what there was a window for."""
    size = 2**19
    expected: list[Any] = []
    seen: list[Any] = []

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(size))

    async def main() -> None:
        async with memory_server(app, **DOWNLOAD) as server:
            client = Reader(await server.connect(), 65535 if window == "stream" else 2**20)
            await client.start()
            stream_id = client.request()
            if window == "stream":
                await client.open(2**20, None)
            await client.flush()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                await wait_all_tasks_blocked()
                now, moved = 0.0, 65535
                for pause, increment in [*schedule, (10**6, 0)]:
                    due = max(GRACE, moved / 2**14)
                    now += pause
                    if now > due:
                        await trio.sleep_until(due + 1)
                        expected.append((due, "reset", ENHANCE_YOUR_CALM))
                        seen.extend(client.seen[:1])
                        assert client.stream.conn.close_reason == SLOW_RESPONSE
                        break
                    await trio.sleep_until(now)
                    await client.open(increment, stream_id if window == "stream" else None)
                    await wait_all_tasks_blocked()
                    moved += increment
                    if moved >= size:
                        expected.append(now)
                        seen.append(client.ended_at)
                        break
                nursery.cancel_scope.cancel()
            client.stream.reset()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert seen == expected


@pytest.mark.parametrize("sends", [1, 3])
@pytest.mark.parametrize("over", ["http1", "tls", "h2", "h2 by the socket"])
async def test_a_client_that_never_reads_is_given_up_after_the_grace_period(
    over: str, sends: int, autojump_clock: MockClock
) -> None:
    """Its handler is woken at once, and its next send is an OSError."""
    app = Downloads(2**18, sends)
    async with memory_server(app, **DOWNLOAD) as server:
        stream = await server.connect(tls=over == "tls")
        if over.startswith("h2"):
            client = Reader(stream, 65535 if over == "h2" else 2**20)
            await client.start()
            client.request("/")
            if over != "h2":
                await client.open(2**20, None)
            await client.flush()
        else:
            await stream.send_all(request("/", "Content-Length: 1"))
            await wait_all_tasks_blocked()
            await stream.receive_some()
            await stream.send_all(b"x")
        if over == "h2":
            await client.run()
        await stream.conn.wait_closed()
        assert trio.current_time() == GRACE
        assert stream.conn.close_reason == SLOW_RESPONSE
        stream.reset()
    sent = [(GRACE, "sent")] if sends == 1 else []
    assert app.seen == [*sent, (GRACE, "unheard")]


async def test_only_the_stream_that_is_not_read_is_reset(autojump_clock: MockClock) -> None:
    """The others get their responses, and the connection its usual end."""
    async with memory_server(Downloads(2**18), keep_alive_timeout=30, **DOWNLOAD) as server:
        client = Reader(await server.connect())
        await client.start()
        await client.open(2**20, None)
        slow, other = client.request("/"), client.request("/7")
        await client.flush()
        await client.run()
        assert client.seen == [
            (5, "reset", ENHANCE_YOUR_CALM),
            (37, "goaway", other),
            (37, "end", 0),
        ]
        assert client.statuses == {slow: "200", other: "200"}
        assert client.ended == {other}
        assert client.stream.conn.close_reason == "keep_alive_timeout"


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_a_websocket_whose_client_does_not_read_is_given_up(
    over: str, autojump_clock: MockClock
) -> None:
    """And its handler receives a disconnect."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(2**15)})
        except OSError:
            told.note("unheard")
            assert (await receive())["code"] == 1006

    told = Told(app)
    async with memory_server(told, **DOWNLOAD) as server:
        stream = await server.connect()
        if over == "http1":
            await stream.send_all(handshake())
        else:
            client = Reader(stream)
            await client.start()
            await client.websocket("/")
            await client.run()
        await stream.conn.wait_closed()
        assert trio.current_time() == GRACE
        assert stream.conn.close_reason == SLOW_RESPONSE
        stream.reset()
    assert told.seen == [(GRACE, "unheard")]


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_what_a_client_has_read_before_gives_it_no_credit(
    over: str, autojump_clock: MockClock
) -> None:
    """It is given up as soon as one that has read nothing yet."""

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        body = {"type": "http.response.body", "more_body": True}
        for _ in range(100):
            await send({**body, "body": bytes(2**14)})
            await trio.sleep(1)
        await trio.sleep(1)
        await send({**body, "body": bytes(2**20)})

    async with memory_server(app, **DOWNLOAD) as server:
        stream = await server.connect()
        with trio.move_on_at(100.5):
            if over == "h2":
                client = Http2(stream)
                await client.start()
                client.request("/")
                await client.flush()
                while True:
                    await client.pump()
            await stream.send_all(request("/"))
            while True:
                await stream.receive_some()
        if over == "h2":
            await read_to_end(stream)  # but opens no window
            await stream.aclose()
        await stream.conn.wait_closed()
        assert trio.current_time() == 101 + GRACE
        stream.reset()


@asynccontextmanager
async def reading_little(port: int) -> AsyncIterator[trio.SocketStream]:
    """A client whose system has little room."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", port))
    async with trio.SocketStream(sock) as stream:
        yield stream


@pytest.mark.parametrize("over", ["http1", "tls", "h2"])
@pytest.mark.parametrize("reads", [False, True])
async def test_over_real_sockets_a_client_that_reads_nothing_is_closed(
    over: str, reads: bool, certificate: Path
) -> None:
    """Whatever the buffers of both systems hold."""
    size = 2**24
    recorder = Recorder()

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(size))

    config = Config.from_mapping(
        bind="127.0.0.1:0",
        insecure_bind="127.0.0.1:0",
        certfile=str(certificate),
        keyfile=str(certificate),
        min_response_rate=1000 if reads else 10**7,
        min_rate_grace_period=5 if reads else 0.05,
    )
    async with tracked_server(app, config, tracker=recorder) as server:
        tls, plain = (int(url.rpartition(":")[2]) for url in server.urls)
        with trio.fail_after(10):
            async with reading_little(tls if over == "tls" else plain) as sock:
                stream: Any = await tls_client(sock) if over == "tls" else sock
                if over == "h2":
                    client = Reader(stream, 2**30)
                    await client.start()
                    client.request()
                    await client.open(2**30, None)
                    await client.flush()
                else:
                    await stream.send_all(request("/", "Connection: close"))
                if not reads:
                    await recorder.wait_terminal()
                elif over == "h2":
                    while not client.ended_at:
                        await client.pump()
                else:
                    received = 0
                    while received < size:
                        received += len(await stream.receive_some(2**20))
    (conn,) = recorder.conns
    assert conn.close_reason == (None if reads else SLOW_RESPONSE)


async def test_a_response_that_the_systems_buffers_hold_is_not_waited_for() -> None:
    """It is written. When the client reads it does not matter."""
    recorder = Recorder()

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, bytes(2**14))

    config = Config.from_mapping(
        bind="127.0.0.1:0", min_response_rate=10**9, min_rate_grace_period=2**-20
    )
    async with (
        tracked_server(app, config, tracker=recorder) as server,
        reading_little(int(server.urls[0].rpartition(":")[2])) as stream,
    ):
        await stream.send_all(request("/"))
        await recorder.wait_states("NAI")
        assert recorder.conns[0].close_reason is None
        assert await responses(stream, 1) == [(200, bytes(2**14))]


# A connection's age


AGE: dict[str, Any] = {
    "max_connection_age": 20,
    "max_connection_age_jitter": 0,
    "keep_alive_timeout": 60,
}


@Told
async def seconds(told: Told, scope: Any, receive: Any, send: Any) -> None:
    """Takes as many seconds as its path says."""
    await trio.sleep(float(scope["path"].strip("/") or 0))
    await respond(send, b"done")


@pytest.mark.parametrize(("drain_idle_timeout", "time"), [(0.5, 20.5), (3, 23)])
async def test_an_idle_connection_of_that_age_ends_after_a_short_time(
    drain_idle_timeout: float, time: float, autojump_clock: MockClock
) -> None:
    """In which a request that is on its way would be responded to."""
    async with memory_server(seconds, drain_idle_timeout=drain_idle_timeout, **AGE) as server:
        client = await server.connect()
        await http1(client)
        assert await client.receive_some() == b""
        assert trio.current_time() == time
        assert client.conn.close_reason == "max_connection_age"


@pytest.mark.parametrize(("age", "time"), [(2, 5), (20, 20)])
async def test_a_new_connection_of_that_age_may_send_a_request_until_it_is_five_seconds_old(
    age: float, time: float, autojump_clock: MockClock
) -> None:
    """As in a shutdown."""
    async with memory_server(seconds, **{**AGE, "max_connection_age": age}) as server:
        client = await server.connect()
        assert await client.receive_some() == b""
        assert trio.current_time() == time
        assert client.conn.close_reason == "max_connection_age"


async def test_a_request_in_flight_at_that_age_has_its_response(
    autojump_clock: MockClock,
) -> None:
    """With ``Connection: close``, and the end behind it."""
    async with memory_server(seconds, **AGE) as server:
        client = await server.connect()
        await client.send_all(request("/50"))
        response = await read_to_end(client)
        assert trio.current_time() == 50
        assert response.endswith(b"\r\n\r\ndone")
        assert b"\r\nconnection: close\r\n" in response.lower()
        assert client.conn.close_reason == "max_connection_age"


@pytest.mark.parametrize(("path", "time"), [("/", 20.5), ("/50", 50)])
async def test_an_http2_connection_of_that_age_gets_a_goaway(
    path: str, time: float, autojump_clock: MockClock
) -> None:
    """Behind the last response; an idle one after a short time."""
    async with memory_server(seconds, **AGE) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        stream_id = client.request(path)
        await client.flush()
        await client.run()
        assert client.seen == [(time, "goaway", stream_id), (time, "end", 0)]
        assert client.bodies == {stream_id: b"done"}
        await wait_all_tasks_blocked()
        assert client.stream.conn.close_reason == "max_connection_age"


def echo() -> Told:
    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await respond(send, b"got")
            return
        await receive()
        await trio.sleep_until(float(scope["path"].strip("/") or 0))
        await send({"type": "websocket.accept"})
        await trio.sleep_until(float(scope["query_string"] or 0))
        while (event := await receive())["type"] == "websocket.receive":
            await send({**event, "type": "websocket.send"})
        told.note(str(event["code"]))

    return Told(app)


over_websockets = pytest.mark.parametrize("over", ["http1", "h2"])


@over_websockets
async def test_a_websocket_of_that_age_gets_a_close_frame(
    over: str, autojump_clock: MockClock
) -> None:
    """With the code of a drain."""
    app = echo()
    async with memory_server(app, drain_websocket_code=1001, **AGE) as server:
        peer = await open_websocket(server, over)
        assert (await peer.read_close()).code == 1001
        assert trio.current_time() == 20
        await peer.send(wsproto.events.CloseConnection(1001))
        await peer.read_end()
        await wait_all_tasks_blocked()
        assert peer.stream.conn.close_reason == "max_connection_age"
    assert app.seen == [(20, "1001")]


async def test_an_endless_response_learns_of_that_age(autojump_clock: MockClock) -> None:
    """By ``conn.draining``; it is not cut off."""

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        await scope["extensions"]["httptrack"].draining.wait()
        await trio.sleep(100)
        await send({"type": "http.response.body", "body": b", goodbye"})

    async with memory_server(app, **AGE) as server:
        client = await server.connect()
        assert await http1(client) == (200, b"hello, goodbye")
        assert trio.current_time() == 120
        assert await client.receive_some() == b""
        assert trio.current_time() == 120.5
        assert client.conn.close_reason == "max_connection_age"


async def test_connections_reach_different_ages_between_the_bounds(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In sixteen steps, each of which is taken."""
    monkeypatch.setattr("trio_httptrack._hypercorn.worker.random", Random(0))
    settings = {**AGE, "max_connection_age": 1000, "max_connection_age_jitter": 0.1}
    ages: list[float] = []
    async with memory_server(seconds, **{**settings, "keep_alive_timeout": 5000}) as server:

        async def connect(nursery: trio.Nursery) -> None:
            client = await server.connect()
            nursery.start_soon(wait, client)

        async def wait(client: ClientStream) -> None:
            await client.receive_some()
            ages.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                await connect(nursery)
    assert sorted(set(ages)) == pytest.approx([906.25 + 12.5 * step for step in range(16)])


@pytest.mark.parametrize("how", ["response", "reset", "refused", "tracker"])
async def test_a_connection_that_closes_earlier_leaves_nothing_in_the_timers(
    how: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """However it ends."""
    tracker: Any = Recorder()
    if how == "refused":
        tracker = ConnLimit(total=1)
    elif how == "tracker":

        class Closer:
            def track(self, conn: Any, state: ConnState) -> None:
                if state is ConnState.NEW:
                    conn.close("not_today")

        tracker = compose(Closer())
    async with memory_server(seconds, tracker=tracker, **AGE) as server:
        client = await server.connect()
        if how == "response":
            await http1(client, connection="close")
        elif how == "refused":
            await server.connect()
        client.reset()
        await wait_all_tasks_blocked()
        worker: Any = connections[0]._server
        assert [len(timeout) for timeout in worker._ages] == [0]


# A WebSocket's pings


PINGS: dict[str, Any] = {
    "websocket_ping_interval": 2,
    "websocket_ping_timeout": 5,
    "keep_alive_timeout": 1000,
}


@over_websockets
@pytest.mark.parametrize("interval", [2, 5, 20])
async def test_a_client_that_never_responds_to_a_ping_is_given_up_in_time(
    over: str, interval: float, autojump_clock: MockClock
) -> None:
    """Whether or not other pings follow before; the application sees it vanish."""
    app = echo()
    settings = {**PINGS, "websocket_ping_interval": interval}
    async with memory_server(app, **settings) as server:
        peer = await open_websocket(server, over, "/3")
        conn = peer.stream.conn
        if over == "http1":
            await read_to_end(peer.stream)
            assert trio.current_time() == 8
            assert conn.close_reason == "websocket_ping_timeout"
        else:
            assert peer.http2 is not None
            with trio.move_on_at(20):
                await peer.http2.run()
            assert peer.http2.seen == [(8, "reset", CANCEL)]
            assert await peer.http2.get("/") == ("200", b"got")  # the connection goes on
            assert conn.close_reason is None
        peer.stream.reset()
    assert app.seen == [(8, "1006")]


async def raw(peer: Peer, data: bytes) -> None:
    if peer.http2 is None:
        await peer.stream.send_all(data)
    else:
        peer.http2.h2.send_data(peer.id, data)
        await peer.http2.flush()


@over_websockets
@pytest.mark.parametrize("interval", [2, 5, 20])
@pytest.mark.parametrize(
    "data",
    [b"\x8a\x80\0\0\0\0", b"\x89\x80\0\0\0\0", b"\x82\x81\0\0\0\0x", b"\x82", b"\x02\x81\0\0\0\0x"],
    ids=["pong", "ping", "message", "first byte", "fragment"],
)
async def test_whatever_comes_keeps_a_websocket_open(
    over: str, interval: float, data: bytes, autojump_clock: MockClock
) -> None:
    """Until a ping that nothing follows."""
    app = echo()
    async with memory_server(app, **{**PINGS, "websocket_ping_interval": interval}) as server:
        peer = await open_websocket(server, over)
        await trio.sleep(interval / 2 if interval < 5 else 4)
        await raw(peer, data)
        await trio.sleep(100)
        peer.stream.reset()
    assert app.seen == [(interval + 5, "1006")]


@over_websockets
async def test_a_client_whose_application_does_not_receive_is_not_given_up(
    over: str, autojump_clock: MockClock
) -> None:
    """Its pong waits behind its messages; when they are taken the next ping counts."""
    app = echo()
    async with memory_server(app, **PINGS) as server:
        peer = await open_websocket(server, over, "/?100")
        for _ in range(11):  # one more than there is room for
            await raw(peer, b"\x82\x81\0\0\0\0x")
        await trio.sleep(1000)
        peer.stream.reset()
    # Pings at 2, 8, 14 ... 98 counted.
    assert app.seen == [(103, "1006")]


@over_websockets
async def test_a_client_that_vanishes_while_it_is_written_to_is_given_up(
    over: str, autojump_clock: MockClock
) -> None:
    """The ping waits for room like the rest."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep(1)
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(2**16)})
        except OSError:
            told.note(str((await receive())["code"]))

    told = Told(app)
    async with memory_server(told, **PINGS) as server:
        peer = await open_websocket(server, over)
        await trio.sleep(100)
        peer.stream.reset()
    assert told.seen == [(5, "1006")]


@over_websockets
async def test_a_client_that_reads_a_long_message_slowly_is_not_given_up(
    over: str, autojump_clock: MockClock
) -> None:
    """A ping waits behind the message, so nothing can come for it."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep(0.5)
        await send({"type": "websocket.send", "bytes": bytes(20 * BUFFER_SIZE)})
        told.note("sent")
        while (event := await receive())["type"] == "websocket.receive":
            pass
        told.note(str(event["code"]))

    told = Told(app)
    async with memory_server(told, **PINGS) as server:
        peer = await open_websocket(server, over)
        while not told.seen:
            await trio.sleep(1)
            with trio.move_on_after(0.5):
                await (peer.stream.receive_some() if peer.http2 is None else peer.http2.pump())
        await trio.sleep(20)
        peer.stream.reset()
    (sent, _), (gone, code) = told.seen
    assert sent > 15
    assert (gone > sent + 2, code) == (True, "1006")


async def test_a_client_that_vanishes_after_it_has_read_a_part_is_given_up(
    autojump_clock: MockClock,
) -> None:
    """The ping still waits behind the rest, and so does none that follows."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep(0.5)
        await send({"type": "websocket.send", "bytes": bytes(20 * BUFFER_SIZE)})
        told.note(str((await receive())["code"]))

    told = Told(app)
    async with memory_server(told, **PINGS) as server:
        peer = await open_websocket(server, "http1")
        await trio.sleep(3)
        await peer.stream.receive_some()
        await trio.sleep(100)
        peer.stream.reset()
    assert told.seen == [(10, "1006")]


async def test_a_ping_without_a_pong_at_the_connections_end_has_no_effect(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Also where the handler was cancelled with all that its connection had."""
    async with memory_server(echo(), **PINGS) as server:
        peer = await open_websocket(server, "http1")
        await trio.sleep(1)
        nursery = connections[0]._nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await trio.sleep(50)
        assert peer.stream.conn.state is ConnState.HIJACKED
        other = await open_websocket(server, "http1")
        assert other.stream.conn.close_reason is None


@over_websockets
@pytest.mark.parametrize(
    "settings",
    [{"websocket_ping_timeout": 5}, {"websocket_ping_interval": 2, "websocket_ping_timeout": None}],
)
async def test_without_an_interval_or_a_timeout_a_silent_client_is_kept(
    over: str, settings: Any, autojump_clock: MockClock
) -> None:
    """For as long as it likes."""
    app = echo()
    async with memory_server(app, **settings) as server:
        peer = await open_websocket(server, over)
        await trio.sleep(1000)
        peer.stream.reset()
    assert app.seen == [(1000, "1006")]


@over_websockets
async def test_a_websocket_that_has_ended_leaves_nothing_in_the_timers(
    over: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Its handler has, too."""
    async with memory_server(echo(), **PINGS) as server:
        peer = await open_websocket(server, over)
        await peer.send(wsproto.events.CloseConnection(1000))
        await wait_all_tasks_blocked()
        timeout = connections[0].websocket_ping_timeout
        assert timeout is not None
        assert len(timeout) == 0
        peer.stream.reset()


# A handler's time


TIMEOUT: dict[str, Any] = {"request_timeout": 5, "keep_alive_timeout": 1000}


def handler(steps: App) -> Told:
    """Runs the steps for all paths but "/3", and notes when it was cancelled."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/3":
            await trio.sleep(3)
            await respond(send, b"got")
            return
        try:
            await steps(scope, receive, send)
        except trio.Cancelled:
            told.note("cancelled")
            raise
        told.note("done")

    return Told(app)


async def never(scope: Any, receive: Any, send: Any) -> None:
    await trio.sleep_forever()


async def receives(scope: Any, receive: Any, send: Any) -> None:
    while True:
        await receive()


async def starts(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await trio.sleep_forever()


async def begins(scope: Any, receive: Any, send: Any) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    await trio.sleep_forever()


@pytest.mark.parametrize("steps", [never, receives, starts])
async def test_a_handler_that_takes_too_long_is_cancelled_and_its_client_told(
    steps: App, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A 504, the reason, one line in the access log, and one warning that names the request."""
    caplog.set_level(logging.INFO)
    told, logger = handler(steps), logging.getLogger("test_deadlines")
    async with memory_server(
        told, accesslog=logger, access_log_format="%(m)s %(U)s %(s)s", **TIMEOUT
    ) as server:
        client = await server.connect()
        await trio.sleep(1)
        await client.send_all(request("/some/where?secret"))
        response = (await read_to_end(client)).lower()
        assert trio.current_time() == 6
        assert response.startswith(b"http/1.1 504 ")
        assert b"\r\nconnection: close\r\n" in response
        assert client.conn.close_reason == "request_timeout"
        line = (
            f"A handler took longer than request_timeout, 5.0 s, and was cancelled "
            f"({client.conn}, GET '/some/where')"
        )
    assert told.seen == [(6, "cancelled")]
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert lines == ["GET /some/where 504"]
    assert problems(caplog) == [line]


async def test_a_response_that_has_begun_is_cut_off(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """And the connection closed, so that its client does not take it for the whole."""
    told = handler(begins)
    async with memory_server(told, **TIMEOUT) as server:
        client = await server.connect()
        await client.send_all(request("/"))
        response = await read_to_end(client)
        assert trio.current_time() == 5
        assert response.endswith(b"\r\n\r\n5\r\nbegun\r\n")
        assert client.conn.close_reason == "request_timeout"
    assert told.seen == [(5, "cancelled")]
    assert len(problems(caplog)) == 1


@pytest.mark.parametrize("steps", [never, begins])
async def test_over_http2_only_the_stream_ends(steps: App, autojump_clock: MockClock) -> None:
    """With a 504, or a reset; the others and the connection go on."""
    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        slow = client.request("/")
        await client.flush()
        await trio.sleep(4)
        other = client.request("/3")
        await client.flush()
        while other not in client.ended:
            await client.pump()
        assert trio.current_time() == 7
        assert client.statuses == {slow: "504" if steps is never else "200", other: "200"}
        assert [time for time, what, _ in client.seen if what == "reset"] == [5] * (steps is begins)
        assert client.ended == ({slow, other} if steps is never else {other})
        assert client.stream.conn.close_reason is None
        assert client.stream.conn.state is ConnState.IDLE
        client.stream.reset()
    assert told.seen == [(5, "cancelled")]


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_what_a_handler_does_after_its_response_has_no_limit(
    over: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client does not wait for it."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(4)
        await respond(send, b"")
        await trio.sleep(100)

    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        stream = await server.connect()
        if over == "h2":
            client = Http2(stream)
            await client.start()
            assert await client.get() == ("200", b"")
        else:
            assert await http1(stream) == (200, b"")
        await trio.sleep(101)
        stream.reset()
    assert told.seen == [(104, "done")]
    assert problems(caplog) == []


@over_websockets
@pytest.mark.parametrize(("accepts", "seen"), [(4, (1000, "done")), (6, (5, "cancelled"))])
async def test_a_websocket_must_be_accepted_in_time_and_has_no_limit_then(
    over: str, accepts: float, seen: tuple[float, str], autojump_clock: MockClock
) -> None:
    """Otherwise its client gets a 504."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(accepts)
        await send({"type": "websocket.accept"})
        await trio.sleep_until(1000)

    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        stream = await server.connect()
        if over == "h2":
            client = GoAwayHttp2(stream)
            await client.start()
            stream_id = await client.websocket("/")
            status = client.statuses[stream_id]
        else:
            await stream.send_all(handshake())
            status = (await read_head(stream))[9:12].decode()
        assert trio.current_time() == min(accepts, 5)
        expected = "504" if accepts > 5 else "200" if over == "h2" else "101"
        assert status == expected
        await trio.sleep_until(1001)
        stream.reset()
    assert told.seen == [seen]


@over_websockets
async def test_what_a_handler_does_after_it_has_refused_a_websocket_has_no_limit(
    over: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As after any other response."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close"})
        await trio.sleep(100)

    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        stream = await server.connect()
        if over == "h2":
            client = GoAwayHttp2(stream)
            await client.start()
            await client.websocket("/")
        else:
            await stream.send_all(handshake())
            await read_head(stream)
        await trio.sleep(101)
        stream.reset()
    assert told.seen == [(100, "done")]
    assert problems(caplog) == []


async def test_a_request_that_waits_for_its_handlers_turn_has_all_its_time_then(
    autojump_clock: MockClock,
) -> None:
    """A handler whose stream was reset still has its turn, until it is cancelled itself."""
    told = handler(never)
    async with memory_server(told, h2_max_concurrent_streams=1, **TIMEOUT) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        first = client.request()
        await client.flush()
        await trio.sleep(2)
        client.h2.reset_stream(first, CANCEL)
        second = client.request()
        await client.flush()
        while second not in client.ended:
            await client.pump()
        assert trio.current_time() == 10
        assert client.statuses == {second: "504"}
        client.stream.reset()
    assert told.seen == [(5, "cancelled"), (10, "cancelled")]


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_a_handler_that_waits_in_send_is_cancelled_in_time(
    over: str, autojump_clock: MockClock
) -> None:
    """Its client does not read, and finds the response cut off."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        while True:
            await send({"type": "http.response.body", "body": bytes(2**17), "more_body": True})

    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        stream = await server.connect()
        if over == "h2":
            client = Reader(stream)
            await client.start()
            client.request("/")
            await client.flush()
        else:
            await stream.send_all(request("/"))
        await trio.sleep(100)
        assert told.seen == [(5, "cancelled")]
        if over == "http1":
            assert stream.conn.state is ConnState.CLOSED
            assert stream.conn.close_reason == "request_timeout"
        stream.reset()


async def test_a_shielded_handler_goes_on_until_its_shield_ends(autojump_clock: MockClock) -> None:
    """Then its client gets a 504."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(8)
        await trio.sleep(1)

    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        client = await server.connect()
        assert await http1(client) == (504, b"")
        assert trio.current_time() == 8
    assert told.seen == [(8, "cancelled")]


async def test_a_handler_in_a_thread_is_cancelled_behind_it() -> None:
    """A thread cannot be."""
    events: list[str] = []
    late = trio.Event()

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        def work() -> None:
            trio.from_thread.run(late.wait)
            events.append("worked")

        await trio.to_thread.run_sync(work)
        await trio.sleep_forever()

    told = handler(steps)
    async with memory_server(told, request_timeout=2**-10) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await trio.sleep(2**-9)
                late.set()

            nursery.start_soon(end)
            assert await http1(client) == (504, b"")
    assert [what for _, what in told.seen] == ["cancelled"]


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_a_handler_may_respond_itself_when_it_is_cancelled(
    over: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Then that is its response, and the connection goes on."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await respond(send, b"my own", status=503)

    told = handler(steps)
    async with memory_server(told, **TIMEOUT) as server:
        stream = await server.connect()
        if over == "h2":
            client = Http2(stream)
            await client.start()
            assert await client.get() == ("503", b"my own")
        else:
            assert await http1(stream) == (503, b"my own")
        assert trio.current_time() == 5
        assert stream.conn.state is ConnState.IDLE
        assert stream.conn.close_reason is None
        stream.reset()
    assert problems(caplog) == []


@pytest.mark.parametrize("group", [False, True])
async def test_what_a_cancelled_handler_raises_is_logged(
    group: bool, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Its client gets its 504 all the same."""

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("of the cleanup")

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        if not group:
            await fail()
        async with trio.open_nursery() as nursery:
            for task in (fail, fail, trio.sleep_forever):
                nursery.start_soon(task)

    async with memory_server(handler(steps), **TIMEOUT) as server:
        client = await server.connect()
        assert await http1(client) == (504, b"")
        assert trio.current_time() == 5
        assert client.conn.close_reason == "request_timeout"
    error, timeout = (record for record in caplog.records if record.levelno > logging.INFO)
    assert error.exc_info is not None
    assert isinstance(error.exc_info[1], ExceptionGroup if group else ValueError)
    assert "request_timeout" in timeout.getMessage()


# TCP's keep-alive


def keepalive_of(connection: Connection) -> list[int]:
    sock: Any = connection._transport.socket
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
    options += [
        (socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    ]
    return [sock.getsockopt(*option) for option in options]


@pytest.mark.skipif(sys.platform != "linux", reason="the options are Linux's")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 60, 6, 10]),
        ({"tcp_keepalive": 20}, [1, 10, 1, 10]),
        ({"tcp_keepalive": 600.0}, [1, 300, 30, 10]),
        ({"tcp_keepalive": None}, None),
    ],
)
@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0", "tls"])
async def test_an_accepted_socket_has_tcps_keep_alive(
    settings: Any,
    expected: list[int] | None,
    bind: str,
    connections: list[Connection],
    certificate: Path,
) -> None:
    """As the setting says; without it, none."""
    config = Config.from_mapping(bind=bind if bind != "tls" else "127.0.0.1:0", **settings)
    if bind == "tls":
        config.certfile = config.keyfile = str(certificate)
    recorder = Recorder()
    async with tracked_server(nothing, config, tracker=recorder) as server:
        host, port = ("::1" if "::1" in bind else "127.0.0.1"), server.urls[0].rpartition(":")[2]
        async with await trio.open_tcp_stream(host, int(port)):
            await recorder.wait_states("N")
            found = keepalive_of(connections[0])
    assert found == expected if expected is not None else found[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the options are Linux's")
@pytest.mark.parametrize("seconds", [2, 10, 25, 30, 45, 90, 120, 600])
async def test_tcp_keepalive_takes_as_long_as_the_setting(
    seconds: int, connections: list[Connection]
) -> None:
    """Except for rounding: a system counts whole seconds, and sends fewer probes in few seconds."""
    config = Config.from_mapping(bind="127.0.0.1:0", tcp_keepalive=seconds)
    recorder = Recorder()
    async with (
        tracked_server(nothing, config, tracker=recorder) as server,
        await trio.open_tcp_stream("127.0.0.1", int(server.urls[0].rpartition(":")[2])),
    ):
        await recorder.wait_states("N")
        _, idle, interval, count = keepalive_of(connections[0])
    assert idle + interval * count == pytest.approx(seconds, abs=1)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
async def test_a_unix_socket_has_no_keep_alive(
    connections: list[Connection], tmp_path: Path
) -> None:
    """TCP's options are not for it."""
    config = Config.from_mapping(bind=f"unix:{tmp_path}/socket", tcp_keepalive=1)
    recorder = Recorder()
    async with (
        tracked_server(nothing, config, tracker=recorder),
        await trio.open_unix_socket(f"{tmp_path}/socket"),
    ):
        await recorder.wait_states("N")
        sock: Any = connections[0]._transport.socket
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


# Where two of them meet


async def test_a_504_is_not_announced_by_a_100(autojump_clock: MockClock) -> None:
    """A client that is known to be connected gets no probe."""
    async with memory_server(handler(never), cancel_on_disconnect=0, **TIMEOUT) as server:
        client = await server.connect()
        await client.send_all(request("/"))
        assert (await read_to_end(client)).startswith(b"HTTP/1.1 504 ")


async def test_the_reason_of_a_connection_that_has_ended_stays(autojump_clock: MockClock) -> None:
    """Its handler goes on, and is cancelled later."""
    told = handler(never)
    async with memory_server(told, **TIMEOUT) as server:
        client = await server.connect()
        await client.send_all(request("/"))
        await trio.sleep(1)
        client.reset()
        await trio.sleep(10)
        assert client.conn.close_reason == "connection_reset"
    assert told.seen == [(5, "cancelled")]


async def test_a_stream_that_its_client_has_reset_is_not_reset_again(
    autojump_clock: MockClock,
) -> None:
    """Its handler is cancelled, and nothing is sent for it."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await trio.sleep_forever()

    async with memory_server(Told(app), **TIMEOUT) as server:
        client = Http2(await server.connect())
        await client.start()
        stream_id = client.request()
        await client.flush()
        await trio.sleep(1)
        await client.pump()
        client.h2.reset_stream(stream_id)
        await client.flush()
        with trio.move_on_after(20):
            await client.stream.receive_some()
            raise AssertionError
        client.stream.reset()


@pytest.mark.parametrize(("how", "status"), [("times out", "-"), ("leaves", "499")])
async def test_the_log_of_an_incomplete_response_shows_which_side_ended_it(
    how: str, status: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    """499 means that the client ended it."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": bytes(10**6)})

    logger = logging.getLogger("access of test_deadlines")
    logger.setLevel(logging.INFO)
    async with memory_server(
        Told(app),
        cancel_on_disconnect=0,
        accesslog=logger,
        access_log_format="%(s)s",
        **TIMEOUT,
    ) as server:
        client = await server.connect()
        await client.send_all(request("/"))
        await trio.sleep(1)
        if how == "leaves":
            client.reset()
        await trio.sleep(10)
    lines = [record.getMessage() for record in caplog.records if record.name == logger.name]
    assert lines == [status]


async def test_a_stream_that_never_stops_gives_no_credit(autojump_clock: MockClock) -> None:
    """A client that has read fast for a minute, and reads no more, is given up as any other."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        while True:
            try:
                await send({"type": "http.response.body", "body": bytes(2**14), "more_body": True})
            except OSError:
                told.note("gone")
                return

    told = Told(app)
    async with memory_server(told, **DOWNLOAD) as server:
        client = Http2(await server.connect())
        await client.start()
        stream_id = client.request()
        await client.flush()
        for _ in range(60):
            await trio.sleep(1)
            await client.stream.receive_some()
            client.h2.increment_flow_control_window(40_000, stream_id)
            client.h2.increment_flow_control_window(40_000)
            await client.flush()
        await trio.sleep(100)
        client.stream.reset()
    assert told.seen == [(65, "gone")]


async def test_a_trickle_that_is_never_read_is_closed_after_the_grace_period(
    autojump_clock: MockClock,
) -> None:
    """Each event that is added does not give the client more time."""

    async def app(told: Told, scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        while True:
            try:
                await send({"type": "http.response.body", "body": bytes(100), "more_body": True})
            except OSError:
                told.note("gone")
                return
            await trio.sleep(0.75)

    told = Told(app)
    async with memory_server(told, min_response_rate=240) as server:
        client = Http2(await server.connect())
        await client.start()
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        await client.flush()
        await trio.sleep(1.5)
        client.request()
        await client.flush()
        await trio.sleep(20)
        client.stream.reset()
    assert told.seen == [(6.75, "gone")]


# The settings


RATES = ("min_request_body_rate", "min_response_rate")
SECONDS = ("request_timeout", "max_connection_age", "websocket_ping_timeout")
FRACTION = "a fraction of the age, from 0 to below 1"
WRONG: list[tuple[str, Any, str]] = [
    *(
        (name, value, f"{name} must be a number of {unit}, or None, not {value!r}")
        for names, unit in (
            (RATES, "bytes a second, more than 0"),
            (SECONDS, "seconds, more than 0"),
            (("tcp_keepalive",), "seconds, more than 0 and below 32768"),
        )
        for name in names
        for value in (0, -1, "5", True, float("nan"), float("inf"))
    ),
    *(
        (
            "min_rate_grace_period",
            value,
            f"min_rate_grace_period must be a number of seconds, more than 0, not {value!r}",
        )
        for value in (0, -1, "5", True, None, float("nan"), float("inf"))
    ),
    *(
        (
            "max_connection_age_jitter",
            value,
            f"max_connection_age_jitter must be {FRACTION}, not {value!r}",
        )
        for value in (-0.1, 1, "0.1", True, None, float("nan"))
    ),
]
QUIC = (
    "quic_bind: Hypercorn's HTTP/3 is not tracked, and one bad request over it terminates its "
    "worker; remove quic_bind, and let a proxy such as Caddy serve HTTP/3"
)


@pytest.mark.parametrize(("name", "value", "line"), WRONG)
async def test_an_invalid_timeout_is_refused(name: str, value: Any, line: str) -> None:
    """In one line, with the allowed values."""
    with pytest.raises(SettingError) as refused:
        async with memory_server(nothing, **{name: value}):
            raise AssertionError
    assert str(refused.value) == line


@pytest.mark.parametrize("seconds", [10**5, 10**100])
async def test_a_keep_alive_that_is_too_long_for_the_system_is_refused(seconds: int) -> None:
    """Linux takes 32767 seconds at most for TCP_KEEPIDLE."""
    with pytest.raises(SettingError, match="tcp_keepalive must be "):
        async with memory_server(nothing, tcp_keepalive=seconds):
            raise AssertionError


async def test_http3_is_refused_in_memory_and_on_sockets() -> None:
    """In one line, with what to do instead."""
    config = Config.from_mapping(bind="127.0.0.1:0", quic_bind=["127.0.0.1:0"])
    for server in (memory_server, tracked_server):
        with pytest.raises(SettingError) as refused:
            async with server(nothing, config):
                raise AssertionError
        assert str(refused.value) == QUIC


async def test_the_command_refuses_http3_in_one_line(tmp_path: Path) -> None:
    """Where a hook is set; nothing else is written."""
    file = tmp_path / "hypercorn_conf.py"
    file.write_text(
        "from trio_httptrack import hook\n\nconn_state = hook('ways_in.twoparts:tracker')\n"
    )
    status, stderr = await failing_hypercorn(
        *("-k", "trio", "-c", f"file:{file}", "-w", "0"),
        *("--quic-bind", "127.0.0.1:0", "ways_in.twoparts:app"),
    )
    assert status == 1
    assert stderr.splitlines()[-1] == f"trio_httptrack: {QUIC}"
    assert "Traceback" not in stderr


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_without_these_settings_a_request_has_no_scope_and_no_timer(
    over: str,
    connections: list[Connection],
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither one that is read nor one that is responded to."""
    made = 0
    cancel_scope = trio.CancelScope

    def count(*args: Any, **kwargs: Any) -> trio.CancelScope:
        nonlocal made
        made += 1
        return cancel_scope(*args, **kwargs)

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        await respond(send, bytes(100))

    async with memory_server(app) as server:
        stream = await server.connect()
        client = Http2(stream)
        if over == "h2":
            await client.start()
            await client.get()
        else:
            await http1(stream)
        monkeypatch.setattr("trio_httptrack._connection.connection.trio.CancelScope", count)
        for _ in range(3):
            if over == "h2":
                assert await client.post("/", bytes(100)) == ("200", bytes(100))
            else:
                response = await http1(stream, "POST", body=bytes(100), content_length="100")
                assert response == (200, bytes(100))
        monkeypatch.undo()
        worker: Any = connections[0]._server
        assert worker._ages == []
        stream.reset()
    assert made == 0
    assert isinstance(worker, Worker)
