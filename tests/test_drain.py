"""What happens between "stop" and "gone", each rule at its exact time."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

import h2.errors
import httpx
import pytest
import trio
import trio_websocket
import wsproto
import wsproto.events
from h2.connection import ConnectionState
from hypercorn.logging import Logger
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import ConnState, HijackTracker, ShutdownReport, compose
from trio_httptrack.testing import ClientStream, MemoryServer, RecordingTracker, memory_server

from .clients import GoAwayHttp2, http1, read_to_end
from .support import Recorder, problems, respond, without_lifespan
from .test_faults import handshake, request

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState
SECONDS_IN = 10  # the drain begins


@without_lifespan
async def app(scope: Any, receive: Any, send: Any) -> None:
    """Respond after as many seconds as the path says."""
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
        return
    name, _, seconds = scope["path"].strip("/").partition("/")
    if name == "late":  # after the head
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"some, ", "more_body": True})
        await trio.sleep(float(seconds))
        await send({"type": "http.response.body", "body": b"and more"})
    elif name == "events":
        draining = scope["extensions"]["httptrack"].draining
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello, ", "more_body": True})
        await draining.wait()
        await send({"type": "http.response.body", "body": b"goodbye"})
    else:
        await trio.sleep(float(seconds or 0))
        await respond(send, b"done")


async def websocket(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await trio.sleep(float(scope["path"].strip("/") or 0))
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})
    SEEN.append((trio.current_time(), event["code"]))


SEEN: list[tuple[float, int]] = []


async def upgrade(stream: ClientStream, path: str = "/") -> GoAwayHttp2:
    """Request an upgrade to HTTP/2, and read the responses."""
    client = GoAwayHttp2(stream)
    settings = client.h2.initiate_upgrade_connection() or b""
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
    await stream.send_all(request(path, *lines, f"HTTP2-Settings: {settings.decode()}"))
    await read_head(stream)
    await client.flush()
    return client


async def read_head(stream: ClientStream) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await stream.receive_some(1)
    return head


@asynccontextmanager
async def drained(
    server: MemoryServer, *, at: float = SECONDS_IN
) -> AsyncIterator[list[ShutdownReport]]:
    """Begin the shutdown at a time, while the block goes on; then hold its report."""
    report: list[ShutdownReport] = []

    async def shut_down() -> None:
        await trio.sleep_until(at)
        report.append(await server.shutdown())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shut_down)
        yield report


class Timed:
    """What a client reads, and when."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, bytes]] = []

    async def read(self, stream: ClientStream) -> None:
        try:
            while data := await stream.receive_some():
                self.parts.append((trio.current_time(), bytes(data)))
            self.parts.append((trio.current_time(), b""))
        except trio.BrokenResourceError:
            self.parts.append((trio.current_time(), b"reset"))
        await stream.aclose()

    @property
    def end(self) -> tuple[float, bytes]:
        return self.parts[-1]

    @property
    def all(self) -> bytes:
        return b"".join(data for _, data in self.parts)


# HTTP/1.1


async def test_a_request_in_flight_gets_its_response_with_connection_close(
    autojump_clock: MockClock,
) -> None:
    """The connection is closed after the response."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, graceful_timeout=60) as server:
        stream = await server.connect()
        await stream.send_all(request("/slow/15"))
        timed = Timed()
        async with drained(server) as reports, trio.open_nursery() as nursery:
            nursery.start_soon(timed.read, stream)
    assert timed.end == (15, b"")
    assert b"\r\nconnection: close\r\n" in timed.all.lower()
    assert timed.all.endswith(b"done")
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=5)]
    assert tracker.states(stream.conn) == [NEW, ACTIVE, CLOSED]
    assert stream.conn.close_reason is None


async def test_a_request_that_arrives_in_a_drain_gets_its_response_with_connection_close(
    autojump_clock: MockClock,
) -> None:
    """On a connection that rested, and on one that was new."""
    async with memory_server(app, graceful_timeout=60, keep_alive_timeout=60) as server:
        idle = await server.connect()
        await http1(idle)
        await trio.sleep_until(9)
        new = await server.connect()
        async with drained(server) as reports:
            for stream, time, seconds in ((idle, 10.375, 2), (new, 13.875, 7)):
                await trio.sleep_until(time)
                await stream.send_all(request(f"/slow/{seconds}"))
                response = await read_to_end(stream)
                assert b"\r\nconnection: close\r\n" in response.lower()
                assert response.endswith(b"done")
                assert trio.current_time() == time + seconds
                await stream.aclose()
    assert reports == [ShutdownReport(finished=2, forced=0, seconds=10.875)]


@pytest.mark.parametrize(("settings", "seconds"), [({}, 0.5), ({"drain_idle_timeout": 2}, 2)])
async def test_an_idle_connection_is_closed_after_drain_idle_timeout(
    settings: Any, seconds: float, autojump_clock: MockClock
) -> None:
    """Also where its own keep-alive timeout would let it rest for longer."""
    async with memory_server(app, keep_alive_timeout=60, **settings) as server:
        stream = await server.connect()
        await http1(stream)
        async with drained(server):
            assert await stream.receive_some() == b""
            assert trio.current_time() == 10 + seconds
    assert stream.conn.close_reason is None


async def test_a_connection_whose_response_has_begun_is_idle_once_more_before_it_is_closed(
    autojump_clock: MockClock,
) -> None:
    """Its client did not get Connection: close, so another request may be arriving."""
    async with memory_server(app, graceful_timeout=60, keep_alive_timeout=60) as server:
        again, silent = await server.connect(), await server.connect()
        for stream in (again, silent):
            await stream.send_all(request("/late/15"))
        async with drained(server):
            for stream in (again, silent):
                response = b""
                while not response.endswith(b"0\r\n\r\n"):
                    response += await stream.receive_some()
                assert b"connection: close" not in response.lower()
            assert trio.current_time() == 15
            await again.send_all(request())
            assert b"connection: close" in (await read_to_end(again)).lower()
            assert trio.current_time() == 15
            assert await silent.receive_some() == b""
            assert trio.current_time() == 15.5
    assert (again.conn.close_reason, silent.conn.close_reason) == (None, None)


@pytest.mark.parametrize(
    ("opened", "settings", "end"),
    [
        (8, {}, 13),
        (4, {}, 10),
        (9, {"drain_new_timeout": 1.5}, 10.5),
        (9, {"graceful_timeout": 2}, 12),  # neither grace exceeds it
    ],
)
async def test_a_new_connection_may_send_a_request_until_it_is_five_seconds_old(
    opened: float, settings: Any, end: float, autojump_clock: MockClock
) -> None:
    """As Go's http.Server.Shutdown has it; older ones end at once."""
    settings = {"graceful_timeout": 60, "keep_alive_timeout": 60, **settings}
    async with memory_server(app, **settings) as server:
        await trio.sleep_until(opened)
        streams = [await server.connect(), await server.connect(tls=True, handshake=False)]
        await streams[0].send_all(b"GET / HT")
        async with drained(server):
            for stream in streams:
                assert await stream.receive_some() == b""
                assert trio.current_time() == end


async def test_a_pipelined_request_does_not_cost_the_last_response(
    autojump_clock: MockClock,
) -> None:
    """It gets no response, as Connection: close announces, and the connection is not reset."""
    async with memory_server(app, graceful_timeout=60) as server:
        stream = await server.connect()
        await stream.send_all(request("/slow/12") + request("/slow/12"))
        await wait_all_tasks_blocked()
        timed = Timed()
        async with drained(server), trio.open_nursery() as nursery:
            nursery.start_soon(timed.read, stream)
            await trio.sleep_until(11)
            await stream.send_all(request() * 10)
        assert timed.end == (12, b"")
        assert timed.all.count(b"HTTP/1.1 200") == 1


# HTTP/2


@asynccontextmanager
async def http2(server: MemoryServer, *, tls: bool = False) -> AsyncIterator[GoAwayHttp2]:
    """A client that reads while the block runs."""
    client = GoAwayHttp2(await server.connect(tls=tls, alpn=["h2"] if tls else []))
    await client.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        yield client


ANY = 2**31 - 1


@pytest.mark.parametrize("tls", [False, True])
async def test_open_streams_get_their_responses_and_then_the_connection_a_goaway(
    tls: bool, autojump_clock: MockClock
) -> None:
    """The GOAWAY follows the last response, so that no client fails what is in flight."""
    tracker = RecordingTracker()
    async with (
        memory_server(app, tracker=tracker, graceful_timeout=60, keep_alive_timeout=60) as server,
        http2(server, tls=tls) as client,
        drained(server) as reports,
    ):
        await trio.sleep_until(9.875)
        streams = [client.request(path) for path in ("/late/0.25", "/slow/0.375")]
        await client.flush()
    assert [client.bodies[stream] for stream in streams] == [b"some, and more", b"done"]
    assert client.ended == set(streams)
    assert client.seen == [(10.25, "goaway", 3), (10.25, "end", 0)]
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=0.25)]
    assert tracker.conns[0].close_reason is None


async def test_a_client_that_is_never_idle_gets_a_goaway_and_opens_no_more_streams(
    autojump_clock: MockClock,
) -> None:
    """Streams that it opens before the second GOAWAY are served. Later ones are refused, so that
    it repeats them elsewhere. The connection closes with the last stream."""
    async with (
        memory_server(app, graceful_timeout=60, keep_alive_timeout=60) as server,
        http2(server) as client,
        drained(server),
    ):
        await trio.sleep_until(9)
        first = client.request("/slow/5")
        await client.flush()
        await trio.sleep_until(10.75)
        second = client.request("/slow/5")
        await client.flush()
        await trio.sleep_until(11.5)
        third = client.request()
        await client.flush()
    assert client.ended == {first, second}
    assert client.reset == {third}
    assert client.seen == [
        (10.75, "goaway", ANY),
        (11.25, "goaway", second),
        (11.5, "reset", h2.errors.ErrorCodes.REFUSED_STREAM),
        (15.75, "end", 0),
    ]


async def test_an_idle_http2_connection_gets_a_goaway_after_drain_idle_timeout(
    autojump_clock: MockClock,
) -> None:
    """A request that arrives before that gets its response."""
    async with (
        memory_server(app, keep_alive_timeout=60) as server,
        http2(server) as silent,
        http2(server) as late,
        drained(server),
    ):
        await trio.sleep_until(10.375)
        late.request()
        await late.flush()
    assert silent.seen == [(10.5, "goaway", 0), (10.5, "end", 0)]
    assert late.seen == [(10.375, "goaway", 1), (10.375, "end", 0)]
    assert late.bodies == {1: b"done"}


async def test_a_new_http2_connection_may_send_a_request_too(autojump_clock: MockClock) -> None:
    """Its preface may arrive, and its first request within the idle timeout of the drain."""
    async with memory_server(app, graceful_timeout=60) as server:
        await trio.sleep_until(9)
        stream = await server.connect()
        async with drained(server):
            await trio.sleep_until(13)
            client = GoAwayHttp2(stream)
            await client.start()
            await trio.sleep_until(13.375)
            client.request()
            await client.flush()
            await client.run()
    assert client.bodies == {1: b"done"}
    assert client.seen == [(13.375, "goaway", 1), (13.375, "end", 0)]


async def test_a_client_that_replies_with_a_goaway_gets_its_responses(
    autojump_clock: MockClock,
) -> None:
    """With a GOAWAY, as Node sends it, a client only promises to open no more streams."""
    async with (
        memory_server(app, graceful_timeout=60, keep_alive_timeout=60) as server,
        http2(server) as client,
        drained(server) as reports,
    ):
        await trio.sleep_until(9)
        streams = [client.request("/slow/3"), client.request("/late/4")]
        await client.flush()
        await trio.sleep_until(11)
        client.h2.close_connection()
        await client.flush()
        client.h2.state_machine.state = ConnectionState.CLIENT_OPEN  # else h2 would not read on
    assert client.bodies == dict(zip(streams, (b"done", b"some, and more"), strict=True))
    assert client.seen == [(13, "end", 0)]
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=3)]


@pytest.mark.parametrize("drain", [False, True])
async def test_a_cancelled_download_delays_neither_its_handler_nor_a_drain(
    drain: bool, autojump_clock: MockClock
) -> None:
    """Neither its handler, which waits for a window that never opens, nor a drain."""
    ended = []

    @without_lifespan
    async def download(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                body = bytes(10_000)
                await send({"type": "http.response.body", "body": body, "more_body": True})
        except OSError:
            ended.append(trio.current_time())
            raise

    async with memory_server(download, graceful_timeout=60, keep_alive_timeout=60) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        async with drained(server) as reports:
            await trio.sleep_until(10.25 if drain else 9.25)
            stream = client.request()
            await client.flush()
            await trio.sleep(0.125)
            client.h2.reset_stream(stream)
            await client.flush()
            await client.run()
    assert ended == [10.375 if drain else 9.375]
    assert reports[0].forced == 0


async def test_a_long_http2_response_causes_no_goaway(
    autojump_clock: MockClock,
) -> None:
    """httpx, which cannot read on after one, gets it whole."""
    async with (
        memory_server(app, graceful_timeout=60) as server,
        httpx.AsyncClient(transport=server.httpx_transport(http2=True), timeout=60) as client,
        drained(server, at=1) as reports,
    ):
        assert (await client.get("https://app/slow/30")).text == "done"
        assert trio.current_time() == 30
        await client.aclose()
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=29)]


async def test_a_client_that_reads_late_reads_it_all(autojump_clock: MockClock) -> None:
    """Even if it sends something after our close and before it reads."""
    async with memory_server(app, graceful_timeout=60, keep_alive_timeout=60) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        async with drained(server) as reports:
            await trio.sleep_until(9.875)
            client.request("/slow/0.25")
            await client.flush()
            await trio.sleep_until(20)
            client.h2.ping(b"12345678")
            await client.flush()
            await client.run()
    assert client.bodies == {1: b"done"}
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=10)]


async def test_a_lingering_connection_does_not_delay_the_drain(
    autojump_clock: MockClock,
) -> None:
    """It has its response already."""

    @without_lifespan
    async def early(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"too much", status=413)

    async with memory_server(early, graceful_timeout=60, keep_alive_timeout=60) as server:
        stream = await server.connect()
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 9000\r\n\r\n")
        assert (await read_to_end(stream)).endswith(b"too much")
        async with drained(server) as reports:
            pass
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=2)]


async def test_a_new_connections_other_timeouts_do_not_count_in_a_drain(
    autojump_clock: MockClock,
) -> None:
    """After its handshake it may send a request until it is five seconds old."""
    async with memory_server(app, graceful_timeout=60, ssl_handshake_timeout=1) as server:
        await trio.sleep_until(9.5)
        raw = await server.connect(tls=True, handshake=False)
        async with drained(server):
            await trio.sleep_until(10.25)
            stream = trio.SSLStream(
                raw, server._tls.client(), server_hostname="localhost", https_compatible=True
            )
            await stream.do_handshake()
            await trio.sleep_until(14)
            assert await http1(stream) == (200, b"done")
            await stream.aclose()


async def test_a_cancellation_in_a_drain_is_no_deadline(autojump_clock: MockClock) -> None:
    """The close reason shows it."""
    with trio.CancelScope() as scope:
        async with memory_server(app, graceful_timeout=60) as server:
            stream = await server.connect()
            await stream.send_all(request("/slow/60"))
            async with drained(server):
                await trio.sleep_until(11)
                scope.cancel()
    assert stream.conn.close_reason == "aborted_by_app"


async def test_a_connection_that_is_upgraded_in_a_drain_gets_its_response_and_is_closed(
    autojump_clock: MockClock,
) -> None:
    """HTTP/2 by an upgrade from HTTP/1.1, whose first request is its last."""
    async with memory_server(app, graceful_timeout=60) as server:
        await trio.sleep_until(9)
        stream = await server.connect()
        async with drained(server):
            await trio.sleep_until(11)
            client = await upgrade(stream, "/slow/2")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                await trio.sleep_until(12)
                client.request("/slow/2")
                await client.flush()
    assert client.bodies == {1: b"done", 3: b"done"}
    assert client.seen == [(12, "goaway", ANY), (12.5, "goaway", 3), (14, "end", 0)]


async def test_data_and_resets_in_a_drain_have_no_side_effects(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An upload goes on, a stream that is reset is forgotten."""

    @without_lifespan
    async def upload(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                await respond(send, body)
                break

    async with (
        memory_server(upload, graceful_timeout=60) as server,
        http2(server) as client,
        drained(server),
    ):
        one = client.request(method="POST", end=False)
        other = client.request(method="POST", end=False)
        await client.flush()
        await trio.sleep_until(10.25)
        client.h2.send_data(one, b"hello", end_stream=True)
        await client.flush()
        await trio.sleep_until(10.375)
        client.h2.reset_stream(other)
        await client.flush()
    assert client.bodies == {one: b"hello"}
    assert client.seen == [(10.375, "goaway", other), (10.375, "end", 0)]
    assert not problems(caplog)


async def test_too_many_requests_drain_their_own_connection(autojump_clock: MockClock) -> None:
    """The last one allowed gets its response, and so do those in flight with it."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, keep_alive_max_requests=3) as server:
        async with http2(server) as client:
            streams = [client.request(path) for path in ("/slow/2", "/", "/slow/3")]
            await client.flush()
        assert client.ended == set(streams)
        assert client.seen == [(3, "goaway", 5), (3, "end", 0)]
        async with http2(server) as client:
            for _ in range(3):
                stream = client.request()
                await client.flush()
                while stream not in client.ended:
                    await trio.lowlevel.checkpoint()
        assert client.seen == [(3, "goaway", 5), (3, "end", 0)]
        assert [conn.draining.is_set() for conn in tracker.conns] == [True, True]
        assert await http1(await server.connect()) == (200, b"done")


@pytest.mark.parametrize("reads", [False, True])
async def test_a_client_that_does_not_close_is_closed(
    reads: bool, autojump_clock: MockClock
) -> None:
    """Two seconds after the last response, or after keep_alive_timeout if it does not read."""
    async with memory_server(app, graceful_timeout=60, keep_alive_timeout=20) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        async with drained(server) as reports:
            await trio.sleep_until(9.875)
            client.request("/slow/0.25")
            await client.flush()
            if reads:
                while await client.pump():
                    pass
                assert client.bodies == {1: b"done"}
                assert client.last == 1
            await client.stream.conn.wait_closed()
            assert trio.current_time() == (12.125 if reads else 30.125)
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=2.125 if reads else 20.125)]
    assert client.stream.conn.close_reason is None


async def test_a_client_may_close_in_any_way_after_the_goaway(
    autojump_clock: MockClock,
) -> None:
    """A reset is no reason then."""
    async with memory_server(app, keep_alive_timeout=60) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        async with drained(server) as reports:
            await trio.sleep_until(9.875)
            client.request("/slow/0.25")
            await client.flush()
            await trio.sleep_until(11)
            client.stream.reset()
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=1)]
    assert client.stream.conn.close_reason is None


def test_a_client_that_connects_when_the_drain_begins_is_drained_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it is accepted at all, whichever task is the first."""

    async def connect() -> float:
        async with memory_server(app, graceful_timeout=60, keep_alive_timeout=60) as server:
            await trio.sleep_until(SECONDS_IN)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.shutdown)
                for _ in range(5):
                    try:
                        stream = await server.connect()
                    except ConnectionRefusedError:
                        return SECONDS_IN
                await stream.conn.wait_closed()
        return trio.current_time()

    scheduler = trio._core._run
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    for seed in range(100):
        monkeypatch.setattr(scheduler, "_r", Random(seed))
        assert trio.run(connect, clock=MockClock(autojump_threshold=0)) <= SECONDS_IN + 5


def test_a_request_that_crosses_the_goaway_does_not_reset_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever task runs first: the client reads the last response, the GOAWAY and the end."""

    async def cross() -> tuple[GoAwayHttp2, list[int]]:
        async with memory_server(app, keep_alive_timeout=60) as server, drained(server):
            client = GoAwayHttp2(await server.connect(tls=True, alpn=["h2"]))
            await client.start()
            await trio.sleep_until(9.875)
            streams = [client.request("/slow/0.25")]
            await client.flush()
            await trio.sleep_until(10.125)  # its response is in flight
            streams.append(client.request())
            for _ in range(20):
                client.h2.ping(b"12345678")
                await client.flush()
            await trio.sleep_until(11)
            await client.run()
        return client, streams

    scheduler = trio._core._run
    monkeypatch.setattr(scheduler, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    for seed in range(100):
        monkeypatch.setattr(scheduler, "_r", Random(seed))
        client, streams = trio.run(cross, clock=MockClock(autojump_threshold=0))
        assert client.last is not None
        responded = {stream for stream in streams if stream <= client.last}
        assert client.ended == responded
        assert streams[0] in responded
        assert client.seen[-1] == (11, "end", 0)


async def test_httpx_loses_nothing(autojump_clock: MockClock) -> None:
    """Over HTTP/2, too: it repeats on another connection what was refused on the old one."""
    async with (
        memory_server(app, graceful_timeout=60) as old,
        memory_server(app, graceful_timeout=60) as new,
    ):
        servers = [old]
        connect = old.connect
        old.connect = lambda **kwargs: (connect if servers[-1] is old else new.connect)(**kwargs)  # type: ignore[method-assign]
        transport = old.httpx_transport(http2=True)
        responses = 0

        async def send_requests(client: httpx.AsyncClient, pause: float) -> None:
            nonlocal responses
            while trio.current_time() < 12:
                assert (await client.get("https://app/slow/0.01")).text == "done"
                responses += 1
                await trio.sleep(pause)

        async with (
            httpx.AsyncClient(transport=transport) as client,
            drained(old),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(send_requests, client, 0.007)
            await trio.sleep_until(SECONDS_IN)
            servers.append(new)
        assert responses > 500
        assert new.stats().accepted_total == 1


async def test_the_first_request_counts_also_where_it_is_an_upgrade(
    autojump_clock: MockClock,
) -> None:
    """With keep_alive_max_requests=1 it is the only one."""
    async with memory_server(app, keep_alive_max_requests=1, keep_alive_timeout=60) as server:
        client = await upgrade(await server.connect())
        await client.run()
    assert client.seen == [(0, "goaway", 1), (0, "end", 0)]


# WebSockets


class Peer:
    """A WebSocket client over either protocol, which records what it receives and when."""

    def __init__(self, stream: ClientStream, http2: GoAwayHttp2 | None, path: str) -> None:
        self.stream = stream
        self.http2 = http2
        self.path = path
        self.websocket = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
        self.seen: list[tuple[float, int]] = []

    async def open(self) -> None:
        if self.http2 is not None:
            await self.http2.start()
            self.id = await self.http2.websocket(self.path)
            return
        await self.stream.send_all(handshake(self.path))
        assert (await read_head(self.stream)).startswith(b"HTTP/1.1 101 ")

    async def send(self, event: wsproto.events.Event) -> None:
        data = self.websocket.send(event)
        if self.http2 is None:
            await self.stream.send_all(data)
        else:
            self.http2.h2.send_data(self.id, data)
            await self.http2.flush()

    async def read_close(self) -> wsproto.events.CloseConnection:
        while True:
            if self.http2 is None:
                self.websocket.receive_data(bytes(await self.stream.receive_some()))
            else:
                while not self.http2.bodies.get(self.id):
                    await self.http2.pump()
                self.websocket.receive_data(self.http2.bodies.pop(self.id))
            for event in self.websocket.events():
                if isinstance(event, wsproto.events.CloseConnection):
                    return event

    async def read_end(self) -> float:
        """When the connection ended."""
        if self.http2 is not None:
            await self.http2.run()
        else:
            await read_to_end(self.stream)
            await self.stream.aclose()
        return trio.current_time()


async def open_websocket(server: MemoryServer, over: str, path: str = "/") -> Peer:
    stream = await server.connect()
    peer = Peer(stream, GoAwayHttp2(stream) if over == "h2" else None, path)
    await peer.open()
    return peer


over_each = pytest.mark.parametrize("over", ["http1", "h2"])


@over_each
@pytest.mark.parametrize(("settings", "code"), [({}, 1012), ({"drain_websocket_code": 1001}, 1001)])
async def test_a_websocket_is_closed_as_its_protocol_has_it(
    over: str, settings: Any, code: int, autojump_clock: MockClock
) -> None:
    """The close frame is sent at once. The application gets a disconnect. The client may reply."""
    SEEN.clear()
    async with memory_server(app, graceful_timeout=60, **settings) as server:
        peer = await open_websocket(server, over)
        async with drained(server) as reports:
            close = await peer.read_close()
            assert (trio.current_time(), close.code) == (10, code)
            await trio.sleep_until(12)
            await peer.send(close.response())
            assert await peer.read_end() == 12
    assert [(10, code)] == SEEN
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=2)]
    if peer.http2 is not None:
        assert peer.id in peer.http2.ended
        goodbye = [(what, stream) for _, what, stream in peer.http2.seen]  # read at 12
        assert goodbye == [("goaway", 1), ("end", 0)]


@over_each
async def test_a_websocket_that_its_client_has_closed_is_not_closed_again(
    over: str, autojump_clock: MockClock
) -> None:
    """Its application receives the first close, even if it calls receive only now."""
    told = []

    @without_lifespan
    async def busy(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep_until(11)
        told.extend([await receive(), await receive()])

    async with memory_server(busy, graceful_timeout=60) as server:
        peer = await open_websocket(server, over)
        async with drained(server):
            await trio.sleep_until(9)
            await peer.send(wsproto.events.CloseConnection(1000))
            await peer.read_close()
    assert told == [{"type": "websocket.disconnect", "code": 1000, "reason": ""}] * 2


@over_each
async def test_a_websocket_closed_with_unread_messages_still_closes(
    over: str, autojump_clock: MockClock
) -> None:
    """Unread messages of the client do not keep its close frame from being read."""

    @without_lifespan
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep_until(9)
        await send({"type": "websocket.close"})
        await trio.sleep_until(11)

    async with memory_server(deaf, graceful_timeout=60, keep_alive_timeout=60) as server:
        peer = await open_websocket(server, over)
        for _ in range(20):
            await peer.send(wsproto.events.TextMessage("hello"))
        async with drained(server):
            close = await peer.read_close()
            await peer.send(close.response())
            assert await peer.read_end() == (11 if over == "http1" else 10.5)


@pytest.mark.parametrize("grace", [0, 5])
async def test_a_websocket_that_could_not_be_accepted_is_drained_all_the_same(
    grace: float, autojump_clock: MockClock
) -> None:
    """And so is one that was accepted, without waiting."""

    @without_lifespan
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if grace:
            with suppress(Exception):
                await send({"type": "websocket.accept", "subprotocol": "not-offered"})
        else:
            await send({"type": "websocket.accept"})
        await trio.sleep_forever()

    async with memory_server(fails, graceful_timeout=grace) as server:
        stream = await server.connect()
        await stream.send_all(handshake())
        async with drained(server) as reports:
            pass
    assert (reports[0].finished, reports[0].seconds) == (0, grace)


@over_each
async def test_a_websocket_whose_client_does_not_reply_is_closed_at_the_deadline(
    over: str, autojump_clock: MockClock
) -> None:
    """It has got its close frame, and what it still sends is not read."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, graceful_timeout=7) as server:
        peer = await open_websocket(server, over)
        async with drained(server) as reports:
            await trio.sleep_until(11)
            await peer.send(wsproto.events.TextMessage("hello?"))
            assert (await peer.read_close()).code == 1012
            assert await peer.read_end() == 17
    assert reports == [ShutdownReport(finished=0, forced=1, seconds=7)]
    assert tracker.conns[0].close_reason == "app_shutdown_timeout"


@over_each
@pytest.mark.parametrize("requested", [9, 11])
async def test_a_websocket_that_is_accepted_in_a_drain_is_closed_at_once(
    over: str, requested: float, autojump_clock: MockClock
) -> None:
    """Its request arrived before or in the drain, and so it gets its response."""
    async with memory_server(app, graceful_timeout=60) as server:
        await trio.sleep_until(9)
        stream = await server.connect()
        async with drained(server):
            await trio.sleep_until(requested)
            peer = Peer(stream, GoAwayHttp2(stream) if over == "h2" else None, "/3")
            await peer.open()
            assert trio.current_time() == requested + 3
            assert (await peer.read_close()).code == 1012
            await peer.send(wsproto.events.CloseConnection(1012))
            assert await peer.read_end() == requested + 3


async def test_trio_websocket_sees_a_restart(autojump_clock: MockClock) -> None:
    """A client library that replies to a close frame by itself."""
    async with (
        memory_server(app) as server,
        drained(server) as reports,
        trio.open_nursery() as nursery,
    ):
        stream: Any = await server.connect()
        websocket = await trio_websocket.wrap_client_stream(nursery, stream, "here", "/")
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await websocket.get_message()
        assert closed.value.reason is not None
        assert closed.value.reason.code == 1012
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=0)]


async def test_upgraded_connections_are_followed_until_their_sockets_close(
    autojump_clock: MockClock,
) -> None:
    """By a HijackTracker, and by wait_closed()."""
    hijacks = HijackTracker()
    async with memory_server(app, tracker=hijacks) as server:
        await http1(await server.connect())
        await hijacks.wait()
        peers = [await open_websocket(server, "http1") for _ in range(2)]
        conns = [peer.stream.conn for peer in peers]
        assert (hijacks.count, hijacks.connections()) == (2, conns)
        ended: list[float] = []

        async def wait() -> None:
            await hijacks.wait()
            ended.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for time, peer in enumerate(peers, 1):
                await trio.sleep_until(time)
                await peer.stream.aclose()
                await peer.stream.conn.wait_closed()
                assert trio.current_time() == time
                assert hijacks.connections() == conns[time:]
        assert ended == [2]


async def test_a_hijack_tracker_may_be_called_twice(autojump_clock: MockClock) -> None:
    """As one that is on the config and an argument, too."""
    hijacks = HijackTracker()
    async with memory_server(app, tracker=compose(hijacks, hijacks)) as server:
        peer = await open_websocket(server, "http1")
        assert hijacks.count == 1
        await peer.stream.aclose()
        await hijacks.wait()
        assert hijacks.count == 0
        await http1(await server.connect())  # the server is well


async def test_a_hijack_tracker_keeps_nothing_that_is_not_a_conn() -> None:
    """It raises an error, and wait() does not wait for such an object."""
    hijacks = HijackTracker()
    with pytest.raises(AttributeError):
        hijacks.track("no Conn", ConnState.HIJACKED)  # type: ignore[arg-type]
    assert hijacks.count == 0
    await hijacks.wait()


@pytest.mark.parametrize("grace", [0, 0.05, 3])
async def test_a_connection_closed_at_the_deadline_has_another_reason_than_a_cancelled_one(
    grace: float, autojump_clock: MockClock
) -> None:
    """However short the grace period is, and whether we or Hypercorn are faster at its end."""

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    for cancels in [True, *[False] * 10]:  # which of the two is faster is luck
        with trio.CancelScope() as scope:
            async with memory_server(without_lifespan(endless), graceful_timeout=grace) as server:
                stream = await server.connect()
                await stream.send_all(request())
                await wait_all_tasks_blocked()
                if cancels:
                    scope.cancel()
                    await trio.sleep_forever()
        reason = "aborted_by_app" if cancels else "app_shutdown_timeout"
        assert stream.conn.close_reason == reason


# Handlers, the deadline, and what is said of it


async def test_a_handler_that_would_run_for_ever_can_finish(autojump_clock: MockClock) -> None:
    """It reaches its connection by its scope, and waits for the drain."""
    async with memory_server(app) as server:
        stream = await server.connect()
        await stream.send_all(request("/events"))
        async with http2(server) as client, drained(server) as reports:
            events = client.request("/events")
            await client.flush()
            response = b""
            while not response.endswith(b"goodbye\r\n0\r\n\r\n"):
                response += await stream.receive_some()
            assert trio.current_time() == 10
            await stream.aclose()
    assert client.bodies[events] == b"hello, goodbye"
    assert reports == [ShutdownReport(finished=2, forced=0, seconds=0)]


async def test_what_is_left_at_the_deadline_is_closed_by_force(
    autojump_clock: MockClock,
) -> None:
    """With that close reason. Connections that closed before have none."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, graceful_timeout=4) as server:
        streams = [await server.connect() for _ in range(3)]
        for stream, seconds in zip(streams, (12, 60, 60), strict=True):
            await stream.send_all(request(f"/slow/{seconds}"))
        async with drained(server) as reports:
            assert await read_to_end(streams[2]) == b""
            assert trio.current_time() == 14
    assert reports == [ShutdownReport(finished=1, forced=2, seconds=4)]
    assert [stream.conn.close_reason for stream in streams] == [
        None,
        "app_shutdown_timeout",
        "app_shutdown_timeout",
    ]


async def test_the_log_shows_what_a_shutdown_waits_for(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and every second while anything is left; and at the end, how it ended."""
    caplog.set_level(logging.INFO)
    async with memory_server(app, graceful_timeout=3.5, keep_alive_timeout=60) as server:
        idle, oldest, hijacked = await server.connect(), await server.connect(), None
        await http1(idle)
        await idle.aclose()
        await trio.sleep_until(5)
        await oldest.send_all(request("/slow/60?password=secret"))
        await trio.sleep_until(8)
        hijacked = await open_websocket(server, "http1")
        new = await server.connect()
        async with drained(server):
            assert (await hijacked.read_close()).code == 1012
            await trio.sleep_until(11.5)
            await new.aclose()
            await hijacked.stream.aclose()
    lines = [record.getMessage() for record in caplog.records]
    assert [record.levelname for record in caplog.records] == ["INFO"] * 4 + ["WARNING"]
    name = f"{oldest.conn} active '/slow/60'"
    states = "new 1, active 1, hijacked 1"
    assert lines == [
        f"Shutting down: 3 connections left ({states}); the oldest is {name}, 10.0 s old",
        f"Shutting down: 3 connections left ({states}); the oldest is {name}, 11.0 s old",
        f"Shutting down: 1 connection left (active 1); the oldest is {name}, 12.0 s old",
        f"Shutting down: 1 connection left (active 1); the oldest is {name}, 13.0 s old",
        (
            "Shut down: 2 of 3 connections ended by themselves and 1 by force, in 3.5 s. The "
            f"longest request was GET '/slow/60' ({oldest.conn}), 8.5 s. If it should have ended, "
            "raise graceful_timeout, which is 3.5 s"
        ),
    ]


async def test_a_log_that_takes_its_time_does_not_hurt(autojump_clock: MockClock) -> None:
    """The report waits for it."""

    class SlowLogger(Logger):
        async def info(self, *args: Any, **kwargs: Any) -> None:
            await trio.sleep(0.75)

    async with memory_server(app, logger_class=SlowLogger) as server:
        stream = await server.connect()
        await stream.send_all(request("/slow/10.5"))
        async with drained(server) as reports:
            assert (await read_to_end(stream)).endswith(b"done")
            assert trio.current_time() == 10.5
            await stream.aclose()
    assert reports == [ShutdownReport(finished=1, forced=0, seconds=0.75)]


async def test_a_shutdown_without_connections_is_over_at_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged."""
    caplog.set_level(logging.INFO)
    async with memory_server(app) as server:
        report = ShutdownReport(finished=0, forced=0, seconds=0)
        assert await server.shutdown() == report
        assert await server.shutdown() == report  # and once more
    assert not caplog.records


async def test_the_report_of_a_server_that_was_cancelled_is_an_error() -> None:
    """It has not drained."""
    with trio.CancelScope() as scope:
        async with memory_server(app) as server:
            scope.cancel()
            await trio.sleep_forever()
    with pytest.raises(RuntimeError, match="before its connections were drained"):
        await server.shutdown()


async def test_max_requests_end_the_server_as_a_shutdown_does(autojump_clock: MockClock) -> None:
    """Requests in flight get their responses."""
    async with memory_server(app, max_requests=1, graceful_timeout=60) as server:
        first, second = await server.connect(), await server.connect()
        await first.send_all(request("/slow/5"))
        await wait_all_tasks_blocked()
        assert await http1(second) == (200, b"done")
        assert b"connection: close" in (await read_to_end(first)).lower()
        assert trio.current_time() == 5
        with pytest.raises(ConnectionRefusedError):
            await server.connect()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drain_idle_timeout", -1),
        ("drain_idle_timeout", float("nan")),
        ("drain_new_timeout", "5"),
        ("drain_new_timeout", None),
        ("drain_websocket_code", 1000),
    ],
)
async def test_an_invalid_setting_is_refused(name: str, value: Any) -> None:
    """Before anything is bound."""
    with pytest.raises(ValueError, match=f"{name} must be .*, not "):
        async with memory_server(app, **{name: value}):
            raise AssertionError


async def test_every_state_can_be_drained(autojump_clock: MockClock) -> None:
    """And none reports more than it would have without."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=60) as server:
        await trio.sleep_until(9)
        streams = [await server.connect() for _ in range(3)]
        await http1(streams[1])
        await streams[2].send_all(request("/slow/2"))
        await open_websocket(server, "http1")
        async with drained(server):
            pass
    assert recorder.sequences() == ["NC", "NAIC", "NAC", "NAH"]
