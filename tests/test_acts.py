"""What trackers, handlers and other tasks do to a connection: close it, drain it, look at it.

Whatever they do, each test with a :class:`House` checks the same when it is over: every tracker has
seen the same legal states, with one terminal state; no task, no deadline and no connection is left;
nothing was logged as an error; and a bystander's connection is still open.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, assert_no_checkpoints, wait_all_tasks_blocked

from trio_httptrack import (
    Conn,
    ConnLimit,
    ConnState,
    ConnTracker,
    HijackTracker,
    RequestInFlight,
    StatsTracker,
    compose,
    tracked_server,
)
from trio_httptrack._connection.timeouts import Timeout
from trio_httptrack._hypercorn.worker import Worker
from trio_httptrack._monitor.query import path_of
from trio_httptrack._states import TRANSITIONS
from trio_httptrack.testing import memory_server

from .clients import GoAwayHttp2, Http2, http1, read_to_end
from .support import CA, Recorder, reset, respond, tls_client, without_lifespan
from .test_ends import request_and_do_not_read
from .test_faults import Arena, handshake, request
from .test_phases import Restless
from .test_websocket_alike import TEXT, closing, frame


class Log(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logger = logging.Logger("server", logging.INFO)
        self.logger.addHandler(self)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def lines(self, above: int = logging.NOTSET) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno > above]


class Acting:
    """A tracker that, once it is switched on, acts on transitions."""

    def __init__(self, act: Callable[[Conn, str], object]) -> None:
        self._act = act
        self._states: dict[Conn, str] = {}
        self.on = False

    def track(self, conn: Conn, state: ConnState) -> None:
        states = self._states[conn] = self._states.get(conn, "") + state.name[0]
        if self.on:
            self._act(conn, states)


class House(Arena):
    """A server with several trackers, a bystander, and all that must hold in the end."""

    def __init__(self) -> None:
        super().__init__()
        self.behind = Recorder()
        self.stats, self.hijacks, self.conns = StatsTracker(), HijackTracker(), ConnTracker()
        self.log = Log()
        self.called: list[str] = []  # for which paths handlers were called
        self.conn: Conn = Conn()  # that of the handler which was called last
        self.workers: list[Worker] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            self.called.append(scope["path"])
            self.conn = scope["extensions"]["httptrack"]
        await super().app(scope, receive, send)

    async def http_echo(self, scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive())["type"] == "http.request":
            if not event["more_body"]:
                await respond(send, b"whole")

    async def http_chunks(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        self.reached.set()
        await self.gate.wait()
        await send({"type": "http.response.body", "body": b"two"})

    async def http_afterwards(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"afterwards")
        await self.gate.wait()

    async def websocket_hold(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await self.gate.wait()

    async def reach(self, states: str) -> Conn:
        """Wait until the newest connection has come so far."""
        recorder = self.recorder
        while len(recorder.conns) < 2 or not recorder.sequences()[-1].startswith(states):
            await recorder._changed.park()
        await wait_all_tasks_blocked()
        return recorder.conns[-1]

    def keep(self, stream: Any) -> Any:
        """A client's end, which is closed behind the server."""
        self.clients.push_async_callback(trio.aclose_forcefully, stream)
        return stream

    def check_states(self) -> None:
        conns = self.recorder.conns
        assert self.behind.conns == conns
        for conn in conns:
            states = self.recorder.states(conn)
            assert self.behind.states(conn) == states
            assert states[0] is ConnState.NEW
            for state, following in pairwise(states):
                assert following in TRANSITIONS[state]
            assert states[-1].terminal == conn.state.terminal

    async def check(self, tasks: int) -> None:
        """Only the bystander is left."""
        first, *others = self.recorder.conns
        with trio.fail_after(30):
            for conn in others:
                await conn.wait_closed()
        await wait_all_tasks_blocked()
        (worker,) = self.workers
        assert [each.conn for each in worker.connections] == [first]
        assert {getattr(each, "conn", each) for each in waiting_in(worker)} <= {first}
        assert trio.lowlevel.current_statistics().tasks_living <= tasks
        self.check_states()
        stats = self.stats.stats()
        assert (stats.accepted_total, stats.accepted) == (len(others) + 1, 0)
        assert stats.closed_total + stats.hijacked_total == len(others)
        assert (stats.active, stats.idle) == (0, 1)
        assert list(self.stats.connections()) == [first]
        assert (self.conns.count, self.hijacks.count) == (1, 0)
        assert not self.log.lines(logging.INFO)


def waiting_in(worker: Worker) -> list[Any]:
    """Return everything that waits for a deadline, and is referred to by it."""
    timeouts = [*(getattr(worker, name, None) for name in Worker.__slots__), *worker._ages]
    return [each for timeout in timeouts if isinstance(timeout, Timeout) for each in timeout._due]


@contextmanager
def watched_workers() -> Iterator[list[Worker]]:
    """The workers of the block's servers."""
    workers: list[Worker] = []
    make_connection = Worker.make_connection

    def make(worker: Worker, *args: Any) -> Any:
        if worker not in workers:
            workers.append(worker)
        return make_connection(worker, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "make_connection", make)
        yield workers


@asynccontextmanager
async def open_house(
    certificate: Path,
    clock: MockClock | None,
    acting: Acting | None = None,
    place: str = "middle",
    **settings: Any,
) -> AsyncIterator[House]:
    """Serve while the block runs, with a tracker that acts at some place among the others."""
    house = House()
    trackers: list[Any] = [house.recorder, house.stats, house.hijacks, house.behind, house.conns]
    if acting is not None:
        trackers.insert({"first": 0, "middle": 2, "last": 5}[place], acting)
    config = Config.from_mapping(
        bind="127.0.0.1:0",
        insecure_bind="127.0.0.1:0",
        certfile=str(certificate),
        keyfile=str(certificate),
        errorlog=house.log.logger,
        **{"keep_alive_timeout": 300, "max_connection_age": 1000, **settings},
    )
    serve = tracked_server if clock is None else memory_server
    with watched_workers() as house.workers:
        async with (
            house.clients,
            serve(house.app, config, tracker=compose(*trackers)) as house.server,
        ):
            bystander = await house.connected()
            assert await http1(bystander) == (200, b"hello")
            tasks = await house.tasks()
            house.called.clear()
            if acting is not None:
                acting.on = True
            yield house
            if acting is not None:
                acting.on = False
            await house.check(tasks)
            assert await http1(bystander) == (200, b"hello")
            await bystander.aclose()
    for sequence in house.recorder.sequences():
        assert sum(sequence.count(terminal) for terminal in "CH") == 1


# Conversations: what a client does on one connection, as far as the server lets it


class Ended(Exception):
    """The server has ended the connection."""


CLOSE_FRAME = b"\x88\x02\x03\xf4"  # with the code 1012, with which a server drains


async def read_until(stream: Any, end: bytes) -> bytes:
    received = b""
    while not received or end not in received:
        data = await stream.receive_some()
        if not data:
            raise Ended(received)
        received += data
    return received


async def pump_until(client: Http2, done: Callable[[], bool]) -> None:
    while not done():
        if not await client.pump():
            raise Ended


async def get(client: Http2, path: str = "/") -> None:
    stream_id = client.request(path)
    await client.flush()
    await pump_until(client, lambda: stream_id in client.ended)
    assert client.statuses[stream_id] == "200"


async def upgrade_to_h2c(stream: Any, path: str = "/") -> GoAwayHttp2:
    """Request over HTTP/1.1 what is responded to over HTTP/2."""
    client = GoAwayHttp2(stream)
    value = client.h2.initiate_upgrade_connection()
    assert value is not None
    lines = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")
    await stream.send_all(request(path, *lines, f"HTTP2-Settings: {value.decode()}"))
    received = await read_until(stream, b"\r\n\r\n")
    client._unread = received.partition(b"\r\n\r\n")[2]
    await client.flush()
    return client


async def converse_http1(stream: Any, done: list[str]) -> None:
    for path in ("/one", "/two"):
        await stream.send_all(request("/", f"X: {path}"))
        received = await read_until(stream, b"hello")
        assert received.startswith(b"HTTP/1.1 200 ")
        done.append("closing" if b"connection: close" in received else "response")


async def converse_http2(client: Http2, done: list[str], requests: int = 2) -> None:
    for _ in range(requests):
        await get(client)
        done.append("response")


async def converse_websocket(stream: Any, done: list[str]) -> None:
    await stream.send_all(handshake())
    received = (await read_until(stream, b"\r\n\r\n")).partition(b"\r\n\r\n")[2]
    done.append("accepted")
    await stream.send_all(frame(TEXT, b"hello"))
    while b"hello" not in received and CLOSE_FRAME not in received:
        received += await read_until(stream, b"")
    done.append("closing" if CLOSE_FRAME in received else "message")
    await stream.send_all(closing(1000))
    await read_to_end(stream)


async def converse_websocket_over_http2(client: Http2, done: list[str]) -> None:
    stream_id = await client.websocket("/", accepted=False)
    await pump_until(client, lambda: stream_id in client.statuses)
    done.append("accepted")
    client.h2.send_data(stream_id, frame(TEXT, b"hello"))
    await client.flush()
    await pump_until(client, lambda: stream_id in client.bodies)
    done.append("closing" if CLOSE_FRAME in client.bodies[stream_id] else "message")
    client.h2.send_data(stream_id, closing(1000))
    await client.flush()
    await pump_until(client, lambda: stream_id in client.ended)


async def converse(house: House, protocol: str) -> list[str]:
    """Go through a protocol's states; return what came of it."""
    done: list[str] = []
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError, Ended):
        stream = await house.connect(tls=protocol in ("tls", "h2"))
        async with stream:
            if protocol in ("tls", "h2"):
                stream = await tls_client(stream, *(["h2"] if protocol == "h2" else []))
            async with stream:
                if protocol in ("http1", "tls"):
                    await converse_http1(stream, done)
                elif protocol == "websocket":
                    await converse_websocket(stream, done)
                elif protocol == "upgrade":
                    client: Http2 = await upgrade_to_h2c(stream)
                    await pump_until(client, lambda: 1 in client.ended)
                    done.append("response")
                    await converse_http2(client, done, 1)
                else:
                    client = GoAwayHttp2(stream)
                    await client.start()
                    if protocol == "websocket over h2":
                        await converse_websocket_over_http2(client, done)
                    else:
                        await converse_http2(client, done, 1)
    return done


# The states of a conversation, and how many handlers were called when each is reported.
STATES = {
    "http1": [("N", 0), ("NA", 0), ("NAI", 1), ("NAIA", 1), ("NAIAI", 2)],
    "tls": [("N", 0), ("NA", 0), ("NAI", 1), ("NAIA", 1), ("NAIAI", 2)],
    "h2": [("N", 0), ("NA", 0), ("NAI", 0), ("NAIA", 0), ("NAIAI", 1)],
    "h2c": [("N", 0), ("NA", 0), ("NAI", 0), ("NAIA", 0), ("NAIAI", 1)],
    "upgrade": [("N", 0), ("NA", 0), ("NAI", 1), ("NAIA", 1), ("NAIAI", 2)],
    "websocket": [("N", 0), ("NA", 0), ("NAH", 1)],
    "websocket over h2": [("N", 0), ("NA", 0), ("NAI", 0), ("NAIA", 0), ("NAIAI", 1)],
}
EACH_STATE = [
    pytest.param(protocol, states, called, id=f"{protocol}-{states}")
    for protocol, each in STATES.items()
    for states, called in each
]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize(("protocol", "states", "called"), EACH_STATE)
async def test_a_tracker_closes_a_connection_in_any_state(
    protocol: str, states: str, called: int, place: str, certificate: Path, clock: MockClock | None
) -> None:
    """All trackers see that state first and CLOSED then, and no handler is called."""

    def close(conn: Conn, so_far: str) -> None:
        if so_far == states:
            conn.close("banned")
            conn.close("again")
            conn.drain()

    async with open_house(certificate, clock, Acting(close), place) as house:
        await converse(house, protocol)
        conn = await house.reach(states)
        assert house.recorder.sequences()[-1] == states + ("" if states[-1] == "H" else "C")
        assert conn.close_reason == "banned"
        assert len(house.called) == called


@pytest.mark.parametrize("protocol", STATES)
async def test_a_tracker_that_closes_what_is_closed_changes_nothing(
    protocol: str, certificate: Path, clock: MockClock | None
) -> None:
    """At the last state there is nothing to do, and no reason to give."""

    def act(conn: Conn, states: str) -> None:
        if states[-1] == "C":
            conn.close("late")
            conn.drain()

    async with open_house(certificate, clock, Acting(act)) as house:
        done = await converse(house, protocol)
        conn = await house.reach(STATES[protocol][-1][0])
        with trio.fail_after(5):
            await conn.wait_closed()
        assert conn.close_reason is None
        assert len(done) >= 1


@pytest.mark.parametrize("place", ["first", "middle", "last"])
async def test_a_tracker_closes_every_connection_at_new(
    place: str, certificate: Path, clock: MockClock | None
) -> None:
    """None of a hundred clients gets a task, a handshake or a byte, and all find the end."""
    received: list[bytes] = []

    def close(conn: Conn, states: str) -> None:
        if states == "N":
            conn.close("no_entry")

    async def visit(house: House, tls: bool) -> None:
        async with await house.connect(tls=tls) as stream:
            received.append(await read_to_end(stream))

    async with open_house(certificate, clock, Acting(close), place) as house:
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(visit, house, number % 2 == 0)
        assert received == [b""] * 100
        assert house.recorder.sequences()[1:] == ["NC"] * 100
        assert {conn.close_reason for conn in house.recorder.conns[1:]} == {"no_entry"}
        assert not house.called


VICTIMS: dict[str, tuple[str, bytes]] = {
    "N": ("NC", b""),
    "NA": ("NAC", request("/hold")),
    "NAI": ("NAIC", request()),
    "NAH": ("NAH", handshake("/hold")),
}


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("told", ["N", "NA", "NAI", "NAIC"])
async def test_a_tracker_closes_another_connection(
    told: str, victim: str, certificate: Path, clock: MockClock | None
) -> None:
    """While it is called for one. Each of the two reports all of its states."""
    victims: list[Conn] = []

    def act(conn: Conn, states: str) -> None:
        if states == told and conn not in victims:
            victims[0].close("replaced")

    acting = Acting(act)
    async with open_house(certificate, clock, acting) as house:
        acting.on = False
        states, data = VICTIMS[victim]
        stream = house.keep(await house.connect())
        await stream.send_all(data)
        victims.append(await house.reach(victim))
        acting.on = True
        async with await house.connect() as other:
            assert await http1(other) == (200, b"hello")
        conn = await house.reach("NAIC")
        assert conn is not victims[0]
        await victims[0].wait_closed()
        house.gate.set()
        assert house.recorder.sequences()[1:] == [states, "NAIC"]
        assert (victims[0].close_reason, conn.close_reason) == ("replaced", None)


async def test_trackers_close_connections_that_close_each_other(
    certificate: Path, clock: MockClock | None
) -> None:
    """Each end is reported once, and behind the state during which it came."""
    pair: list[Conn] = []

    def act(conn: Conn, states: str) -> None:
        if states == "N":
            pair.append(conn)
        elif states[-1] in "AC":
            for each in pair:
                each.close("together")

    async with open_house(certificate, clock, Acting(act)) as house:
        first, second = house.keep(await house.connect()), house.keep(await house.connect())
        while len(pair) < 2:
            await wait_all_tasks_blocked()
        await second.send_all(request())
        for conn in pair:
            await conn.wait_closed()
        assert await read_to_end(first) == b""
        assert sorted(house.recorder.sequences()[1:]) == ["NAC", "NC"]
        assert not house.called


async def test_a_tracker_closes_all_connections_when_one_has_ended(
    autojump_clock: MockClock,
) -> None:
    """However many there are: each is closed while another is reported as closed."""
    recorder = Recorder()

    def act(conn: Conn, states: str) -> None:
        if states[-1] == "C":
            for each in recorder.conns:
                each.close("together")

    acting = Acting(act)
    acting.on = True
    tracker = compose(recorder, acting)
    async with memory_server(House().app, tracker=tracker) as server:
        for _ in range(300):
            await server.connect()
        recorder.conns[0].close("first")
        await wait_all_tasks_blocked()
        assert recorder.sequences() == ["NC"] * 300
        assert server.stats().closed_total == 300


@pytest.mark.parametrize("who", ["a tracker", "a task"])
async def test_a_connection_that_is_closed_after_it_was_refused_stays_refused(
    who: str, autojump_clock: MockClock
) -> None:
    """Its reason is the first one: metrics must count as many as the limit does."""
    limit = ConnLimit(total=1)

    def act(conn: Conn, states: str) -> None:
        if who == "a tracker" and conn.close_reason is not None:
            conn.close("banned")

    acting = Acting(act)
    acting.on = True
    async with memory_server(House().app, tracker=compose(limit, acting)) as server:
        await server.connect()
        stream = await server.connect()
        stream.conn.close("banned")
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 503 ")
        assert limit.refused["total"] == 1
        assert stream.conn.close_reason == "max_concurrent_connections_exceeded"


# What a connection may be doing when another task closes or drains it

Situation = Callable[[House], Awaitable[object]]
SITUATIONS: dict[str, tuple[str, Situation]] = {}  # and the states that lead there
QUEUE_SIZE = 1


def situation(states: str) -> Callable[[Situation], Situation]:
    def add(function: Situation) -> Situation:
        SITUATIONS[function.__name__.replace("_", " ")] = states, function
        return function

    return add


def sends(name: str, states: str, *data: bytes, tls: bool = False) -> None:
    """A client that sends something, and then nothing."""

    async def act(house: House) -> None:
        stream = house.keep(await (house.connect_tls() if tls else house.connect()))
        for part in data:
            await stream.send_all(part)
            await wait_all_tasks_blocked()

    SITUATIONS[name] = states, act


def post(path: str, *lines: str, body: bytes = b"") -> bytes:
    return request(path, *lines, method="POST") + body


CHUNKED = "Transfer-Encoding: chunked"

sends("new, no byte", "N")
sends("new, half a head", "N", b"GET / HTTP/1.1\r\nHost")
sends("new, half a preface", "N", b"PRI * HTTP")
sends("new, after the TLS handshake", "N", tls=True)
sends("half a body", "NA", post("/echo", "Content-Length: 9", body=b"half"))
sends("half a body over TLS", "NA", post("/echo", "Content-Length: 9", body=b"half"), tls=True)
sends("half a chunked body", "NA", post("/echo", CHUNKED, body=b"4\r\nha"))
sends("the handler sleeps", "NA", request("/hold"))
sends("the handler sleeps, over TLS", "NA", request("/hold"), tls=True)
sends("the handler receives", "NA", request("/until-disconnect"))
sends("the second request", "NAIA", request(), request("/hold"))
sends("pipelined requests", "NA", request("/hold") + request("/hold") + request("/hold"))
sends("in the middle of a response", "NA", request("/chunks"))
sends("after the response", "NAI", request("/afterwards"))
sends("half of the second head", "NAI", request(), b"GET / HT")
sends("idle", "NAI", request())
sends("idle over TLS", "NAI", request(), tls=True)
sends(
    "the queue is full",
    "NA",
    post("/deaf-until-gate", CHUNKED, body=b"1\r\nx\r\n"),
    *[b"1\r\nx\r\n"] * 3,
)
sends("a WebSocket that is not accepted", "NA", handshake("/never-accepts"))
sends("a WebSocket", "NAH", handshake())
sends("a WebSocket over TLS", "NAH", handshake(), tls=True)
sends(
    "a WebSocket whose queue is full",
    "NAH",
    handshake("/deaf-until-gate"),
    *[frame(TEXT, b"x")] * 4,
)
sends("a WebSocket that has broken the protocol", "NAH", handshake("/hold"), b"\xff" * 20)
sends("lingering", "NA", post("/early", "Content-Length: 1000000", body=b"x" * 1000))


@situation("N")
async def before_the_TLS_handshake(house: House) -> None:
    house.keep(await house.connect(tls=True))


async def shake_hands(house: House, rounds: int, size: int | None = None) -> None:
    """Begin a TLS handshake, and stop in the middle."""
    stream = house.keep(await house.connect(tls=True))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # in which there are two rounds
    CA.configure_trust(context)
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    for number in range(rounds):
        if number:
            incoming.write(await stream.receive_some())
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        await stream.send_all(outgoing.read()[:size])


@situation("N")
async def in_the_TLS_handshakes_first_record(house: House) -> None:
    await shake_hands(house, 1, 50)


@situation("N")
async def in_the_middle_of_the_TLS_handshake(house: House) -> None:
    await shake_hands(house, 1)


@situation("NA")
async def half_closed(house: House) -> None:
    stream = house.keep(await house.connect())
    await stream.send_all(request("/hold"))
    await stream.send_eof()


@situation("N")
async def http2_by_ALPN_without_a_byte(house: House) -> None:
    house.keep(await house.connect_tls("h2"))


async def http2(house: House, *paths: str, tls: bool = False) -> Http2:
    client = Http2(house.keep(await (house.connect_tls("h2") if tls else house.connect())))
    await client.start()
    for path in paths:
        client.request(path)
    await client.flush()
    return client


@situation("NAIAI")
async def http2_idle(house: House) -> None:
    await get(await http2(house, tls=True))


@situation("NAI")
async def http2_without_a_request(house: House) -> None:
    await http2(house)


@situation("NAIA")
async def http2_several_handlers(house: House) -> None:
    await http2(house, "/hold", "/until-disconnect", "/chunks", tls=True)


@situation("NAIAIAIAIAIA")
async def http2_requests_that_wait_for_handlers(house: House) -> None:
    # Those that were reset still have their handlers.
    client = await http2(house)
    for _ in range(4):
        client.h2.reset_stream(client.request("/hold"))
        await client.flush()
        await wait_all_tasks_blocked()
    client.request("/until-disconnect")
    await client.flush()


@situation("NAIA")
async def http2_half_a_body(house: House) -> None:
    client = await http2(house)
    stream_id = client.request("/echo", "POST", end=False)
    client.h2.send_data(stream_id, b"half")
    await client.flush()


@situation("NAIA")
async def http2_a_window_that_is_closed(house: House) -> None:
    await http2(house, "/big")


@situation("NAIA")
async def a_WebSocket_over_http2(house: House) -> None:
    client = await http2(house)
    stream_id = await client.websocket("/", accepted=False)
    await pump_until(client, lambda: stream_id in client.statuses)


@situation("NAIA")
async def a_WebSocket_over_http2_whose_queue_is_full(house: House) -> None:
    client = await http2(house)
    stream_id = await client.websocket("/deaf-until-gate", accepted=False)
    await pump_until(client, lambda: stream_id in client.statuses)
    client.h2.send_data(stream_id, frame(TEXT, b"x") * 4)
    await client.flush()


@situation("NAI")
async def http2_after_a_failure(house: House) -> None:
    client = await http2(house)
    await client.stream.send_all(bytes(3) + b"\x00" + bytes(5))  # DATA without a stream


@situation("NA")
async def upgraded_to_http2(house: House) -> None:
    house.keep((await upgrade_to_h2c(house.keep(await house.connect()), "/hold")).stream)


def does_not_read(protocol: str, states: str) -> None:
    """A client whose handler is blocked in ``send``."""

    async def act(house: House) -> None:
        house.keep(await request_and_do_not_read(house, protocol, "/big"))
        await house.reached.wait()

    SITUATIONS[f"{protocol} is not read"] = states, act


for _protocol, _states in (
    ("http1", "NA"),
    ("tls", "NA"),
    ("h2", "NAIA"),
    ("h2c", "NAIA"),
    ("websocket", "NAH"),
    ("websocket over h2", "NAIA"),
):
    does_not_read(_protocol, _states)


@asynccontextmanager
async def situated(
    name: str, certificate: Path, clock: MockClock | None, **settings: Any
) -> AsyncIterator[tuple[House, Conn]]:
    """A connection in a situation, beside a bystander."""
    states, act = SITUATIONS[name]
    async with open_house(
        certificate,
        clock,
        max_app_queue_size=QUEUE_SIZE,
        h2_max_concurrent_streams=4,
        **settings,
    ) as house:
        await act(house)
        conn = await house.reach(states)
        assert house.recorder.sequences()[-1] == states
        yield house, conn


@pytest.mark.parametrize("name", SITUATIONS)
async def test_another_task_closes_a_connection_whatever_it_is_doing(
    name: str, certificate: Path, clock: MockClock | None
) -> None:
    """At once, without a checkpoint, and the first reason stays."""
    states, _ = SITUATIONS[name]
    async with situated(name, certificate, clock) as (house, conn):
        with assert_no_checkpoints():
            conn.close("banned")
            conn.close("again")
        expected = states + ("" if states[-1] == "H" else "C")
        assert house.recorder.sequences()[-1] == expected
        with trio.fail_after(1):
            await conn.wait_closed()
        conn.drain()
        await wait_all_tasks_blocked()
        house.gate.set()  # for handlers that do not look whether their client has gone
        await wait_all_tasks_blocked()
        assert conn.exchanges == ()
        assert conn.close_reason == "banned"
        assert house.recorder.sequences()[-1] == expected


@pytest.mark.parametrize("name", SITUATIONS)
async def test_a_close_leaves_no_handler_where_handlers_end_with_their_clients(
    name: str, certificate: Path, autojump_clock: MockClock
) -> None:
    """With ``cancel_on_disconnect`` those that wait for something else end, too.

    But not one that has responded: what it does now is not for its client.
    """
    limits = {"cancel_on_disconnect": 0, "request_timeout": 60}
    async with situated(name, certificate, autojump_clock, **limits) as (house, conn):
        conn.close("banned")
        await wait_all_tasks_blocked()
        left = [each.path for each in conn.exchanges]
        assert left == ["/afterwards"] * (name == "after the response")
        assert conn.close_reason == "banned"
        assert trio.current_time() == 0
        house.gate.set()


@pytest.mark.parametrize("name", ["the handler receives", "http2 several handlers"])
async def test_handlers_learn_of_a_close_as_of_a_disconnect(
    name: str, certificate: Path, clock: MockClock | None
) -> None:
    """One that waits for the disconnect receives it at once, and one that sends gets an error."""
    async with situated(name, certificate, clock) as (house, conn):
        conn.close("banned")
        await wait_all_tasks_blocked()
        assert house.seen == ["disconnect"]
        house.gate.set()


@pytest.mark.parametrize("name", SITUATIONS)
async def test_a_close_and_a_drain_in_one_instant_are_a_close(
    name: str, certificate: Path, clock: MockClock | None
) -> None:
    """What the drain has begun is cut off."""
    async with situated(name, certificate, clock) as (house, conn):
        conn.drain()
        conn.drain()
        assert conn.draining.is_set()
        conn.close("banned")
        await wait_all_tasks_blocked()
        house.gate.set()
        assert conn.close_reason == "banned"


@pytest.mark.parametrize("when", ["before", "in", "at the end of"])
@pytest.mark.parametrize("name", SITUATIONS)
async def test_a_close_before_in_and_at_the_end_of_a_shutdown(
    name: str, when: str, certificate: Path, autojump_clock: MockClock
) -> None:
    """The shutdown ends with it, and in time, and the connection has one terminal state."""
    recorder, house = Recorder(), House()
    house.recorder = recorder
    config = Config.from_mapping(certfile=str(certificate), keyfile=str(certificate))
    seconds = {"before": 0, "in": 0.25, "at the end of": 0.375}[when]
    async with (
        house.clients,
        memory_server(
            house.app,
            config,
            tracker=recorder,
            graceful_timeout=0.375,  # less than anything ends by itself
            keep_alive_timeout=99,
            max_app_queue_size=QUEUE_SIZE,
            h2_max_concurrent_streams=4,
        ) as house.server,
        trio.open_nursery() as nursery,
    ):
        await SITUATIONS[name][1](house)
        await wait_all_tasks_blocked()
        (conn,) = recorder.conns
        start = trio.current_time()
        if when == "before":
            conn.close("banned")
        nursery.start_soon(house.server.shutdown)
        await trio.sleep(seconds)
        conn.close("banned")
        house.gate.set()
        await house.server.shutdown()
        assert trio.current_time() - start <= seconds
        # At its end it is left to chance which of the two is first.
        # And a client that has had its response is then just closed.
        late = ["app_shutdown_timeout", "aborted_by_app", None] if when == "at the end of" else []
        assert conn.close_reason in ["banned", *late]
    (sequence,) = recorder.sequences()
    assert sum(map(sequence.count, "CH")) == 1


# A handler acts on its own connection


def handler(steps: Callable[[Any, Any, Any, Conn], Awaitable[None]]) -> Any:
    """An application whose handlers act on their connection as the request says."""

    @without_lifespan
    async def run(scope: Any, receive: Any, send: Any) -> None:
        await steps(scope, receive, send, scope["extensions"]["httptrack"])

    return run


START = {"type": "http.response.start", "status": 200, "headers": []}


def body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


@pytest.mark.parametrize("over", ["http1", "h2"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
async def test_a_handler_closes_its_own_connection(
    after: int, over: str, autojump_clock: MockClock
) -> None:
    """Before its response, in it or behind it: what it sends from then on is an OSError."""
    sent: list[int] = []
    recorder, log = Recorder(), Log()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        events = [START, body(b"one", more=True), body(b"two")]
        for number in range(4):
            if number == after:
                conn.close("enough")
            if number < 3:
                try:
                    await send(events[number])
                    sent.append(number)
                except OSError:
                    pass
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    async with memory_server(app, tracker=recorder, errorlog=log.logger) as server:
        stream = await server.connect()
        if over == "http1":
            await stream.send_all(request())
            received = await read_to_end(stream)
            assert (b"one" in received, b"two" in received) == (after > 1, after > 2)
            states = "NA" + "I" * (after > 2) + "C"
        else:
            client = Http2(stream)
            await client.start()
            client.request()
            await client.flush()
            await read_to_end(stream)
            states = "NAIA" + "I" * (after > 2) + "C"
        await stream.conn.wait_closed()
    assert sent == list(range(after))
    assert recorder.sequences() == [states]
    assert stream.conn.close_reason == "enough"
    assert not log.lines(logging.INFO)


async def test_the_other_streams_of_a_connection_learn_that_one_handler_closes_it(
    autojump_clock: MockClock,
) -> None:
    """Those that receive, those that send, and those that the client has never read from."""
    told: list[str] = []
    gate = trio.Event()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        if scope["path"] == "/close":
            await gate.wait()
            conn.close("enough")
            return
        if scope["path"] == "/receive":
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            await send(START)
            with suppress(OSError):
                while True:
                    await send(body(b"x" * 1000, more=True))
                    if scope["path"] == "/tick":
                        await trio.sleep(1)
        told.append(f"{scope['path']} {trio.current_time()}")

    async with memory_server(app) as server:
        client = Http2(await server.connect())
        await client.start()
        for path in ("/receive", "/close", "/send", "/tick"):
            client.request(path)
        await client.flush()
        await trio.sleep(2.5)
        gate.set()
        with trio.fail_after(0.1):
            await client.stream.conn.wait_closed()
        await wait_all_tasks_blocked()
    assert sorted(told) == ["/receive 2.5", "/send 2.5", "/tick 3.0"]


async def test_a_request_that_waits_for_a_handler_is_not_begun_on_a_closed_connection(
    autojump_clock: MockClock,
) -> None:
    """Nor if the handler that it has waited for returns in the same moment."""
    called: list[str] = []
    gate = trio.Event()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        called.append(scope["path"])
        await gate.wait()
        conn.close("enough")

    async with memory_server(app, h2_max_concurrent_streams=1) as server:
        client = Http2(await server.connect())
        await client.start()
        client.h2.reset_stream(client.request("/first"))
        await client.flush()
        await wait_all_tasks_blocked()
        client.request("/second")
        await client.flush()
        await wait_all_tasks_blocked()
        gate.set()
        await client.stream.conn.wait_closed()
    assert called == ["/first"]


async def test_the_first_of_several_reasons_stays(autojump_clock: MockClock) -> None:
    """A handler that closes twice, and another that closes what is closed."""

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        with assert_no_checkpoints():
            conn.close("first")
            conn.close("second")

    async with memory_server(app) as server, await server.connect() as stream:
        await stream.send_all(request())
        assert await read_to_end(stream) == b""
        assert stream.conn.close_reason == "first"
        stream.conn.close("third")
        assert stream.conn.close_reason == "first"


async def test_a_handler_closes_its_connection_while_it_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    """A ``finally`` may close it: that is no checkpoint."""

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        with trio.move_on_after(3):
            try:
                await trio.sleep_forever()
            finally:
                conn.close("given_up")

    async with memory_server(app) as server, await server.connect() as stream:
        await stream.send_all(request())
        assert await read_to_end(stream) == b""
        assert (trio.current_time(), stream.conn.close_reason) == (3, "given_up")


async def test_a_handler_that_a_shutdown_cancels_may_close_its_connection(
    autojump_clock: MockClock,
) -> None:
    """In its ``finally``, whether or not it is closed by then: that changes nothing else."""
    recorder = Recorder()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        try:
            await trio.sleep_forever()
        finally:
            conn.close("given_up")

    async with memory_server(app, tracker=recorder, graceful_timeout=2) as server:
        stream = await server.connect()
        await stream.send_all(request())
        await wait_all_tasks_blocked()
    assert trio.current_time() == 2
    assert stream.conn.close_reason in ("app_shutdown_timeout", "given_up")
    assert recorder.sequences() == ["NAC"]


async def test_a_connection_is_closed_and_drained_in_the_lifespans_shutdown(
    autojump_clock: MockClock,
) -> None:
    """It has ended by then, and nothing happens."""
    conns: list[Conn] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for conn in conns:
                conn.close("late")
                conn.drain()
                assert conn.exchanges == ()
            await send({"type": "lifespan.shutdown.complete"})
            return
        conns.append(scope["extensions"]["httptrack"])
        await respond(send, b"hello")

    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        assert await http1(await server.connect()) == (200, b"hello")
    (conn,) = conns
    assert conn.close_reason is None
    assert recorder.sequences() == ["NAIC"]


@pytest.mark.parametrize("reason", [None, 1, b"banned"])
@pytest.mark.parametrize("made", ["by hand", "by a server"])
async def test_a_reason_is_a_string(made: str, reason: Any, autojump_clock: MockClock) -> None:
    """Anything else is a TypeError, an empty one a ValueError, and nothing is closed."""
    async with memory_server(without_lifespan(House().app)) as server:
        conn = Conn() if made == "by hand" else (await server.connect()).conn
        with pytest.raises(TypeError, match="a reason is a short name"):
            conn.close(reason)
        with pytest.raises(ValueError, match="must not be empty"):
            conn.close("")
        assert (conn.state, conn.close_reason) == (ConnState.NEW, None)


# Drain

IDLE, NEW = 0.5, 5  # drain_idle_timeout and drain_new_timeout, in seconds

# What a conversation comes to if a tracker drains its connection in one of its states.
DRAINED = {
    "http1-N": (["closing"], "NAC"),
    "http1-NA": (["closing"], "NAC"),
    "http1-NAI": (["response", "closing"], "NAIAC"),
    "http1-NAIA": (["response", "closing"], "NAIAC"),
    "http1-NAIAI": (["response", "response"], "NAIAIC"),
    "h2-N": (["response"], "NAIAIC"),
    "h2-NA": (["response"], "NAIAIC"),
    "h2-NAI": (["response"], "NAIAIC"),
    "h2-NAIA": (["response"], "NAIAIC"),
    "h2-NAIAI": (["response"], "NAIAIC"),
    "upgrade-N": (["response"], "NAIC"),
    "upgrade-NA": (["response"], "NAIC"),
    "upgrade-NAI": (["response"], "NAIC"),
    "upgrade-NAIA": (["response", "response"], "NAIAIC"),
    "upgrade-NAIAI": (["response", "response"], "NAIAIC"),
}


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize(("protocol", "states", "called"), EACH_STATE)
async def test_a_tracker_drains_a_connection_in_any_state(
    protocol: str, states: str, called: int, place: str, certificate: Path, clock: MockClock | None
) -> None:
    """What is in flight gets its response, or its close frame, and then the connection ends."""

    def drain(conn: Conn, so_far: str) -> None:
        if so_far == states:
            conn.drain()
            conn.drain()
            assert conn.draining.is_set()
            assert conn.state.name[0] == states[-1]

    async with open_house(certificate, clock, Acting(drain), place) as house:
        done = await converse(house, protocol)
        conn = await house.reach(states)
        with trio.fail_after(5):
            await conn.wait_closed()
        assert conn.close_reason is None
        assert conn.draining.is_set()
        alike = {"tls": "http1", "h2c": "h2"}.get(protocol, protocol)
        if alike.startswith("websocket"):
            over = states == "NAIAI"
            assert done == ["accepted", "message" if over else "closing"]
        else:
            expected, sequence = DRAINED[f"{alike}-{states}"]
            assert done == expected
            assert house.recorder.sequences()[-1] == sequence


@pytest.mark.parametrize("name", SITUATIONS)
async def test_another_task_drains_a_connection_whatever_it_is_doing(
    name: str, certificate: Path, autojump_clock: MockClock
) -> None:
    """Only one with a handler, or a client, that does not finish is left, until it is closed."""
    async with situated(name, certificate, autojump_clock, keep_alive_timeout=20) as (house, conn):
        states = SITUATIONS[name][0]
        with assert_no_checkpoints():
            conn.drain()
            conn.drain()
        assert conn.draining.is_set()
        assert house.recorder.sequences()[-1] == states
        assert conn.close_reason is None
        start = trio.current_time()
        with trio.move_on_after(15):
            await conn.wait_closed()
        took = trio.current_time() - start
        if states == "N":
            # Before the end of a TLS handshake, that has failed.
            assert (took, conn.close_reason) == (
                NEW - start + conn.opened_at,
                "tls_handshake_failed"
                if "TLS handshakes" in name or "before" in name or "middle of the TLS" in name
                else None,
            )
        elif name in ("idle", "idle over TLS", "half of the second head"):
            assert took == IDLE
        conn.close("enough")
        house.gate.set()


async def test_a_response_that_has_not_begun_gets_connection_close(
    autojump_clock: MockClock,
) -> None:
    """Whether a handler or another task has drained it. One that has begun is not changed."""

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        if scope["path"] == "/before":
            conn.drain()
        await send(START)
        await send(body(b"one", more=True))
        if scope["path"] == "/after":
            conn.drain()
        await send(body(b"two"))

    async with memory_server(app, keep_alive_timeout=60) as server:
        for path, closes in (("/before", True), ("/after", False)):
            start = trio.current_time()
            async with await server.connect() as stream:
                await stream.send_all(request(path))
                received = await read_to_end(stream)
            assert (b"connection: close" in received) == closes
            assert b"one" in received
            assert b"two" in received
            # An idle client may have sent its next request already.
            assert trio.current_time() - start == (0 if closes else IDLE)
            assert stream.conn.close_reason is None


async def test_a_request_that_comes_to_a_drained_connection_gets_the_last_response(
    autojump_clock: MockClock,
) -> None:
    """Within the time for it: an idle connection's, or a new one's."""
    async with memory_server(without_lifespan(House().app), keep_alive_timeout=60) as server:
        async with await server.connect() as stream:
            assert await http1(stream) == (200, b"hello")
            stream.conn.drain()
            await trio.sleep(IDLE - 0.125)
            await stream.send_all(request())
            assert b"connection: close" in await read_to_end(stream)
        async with await server.connect() as stream:
            stream.conn.drain()
            await trio.sleep(NEW - 0.125)
            await stream.send_all(request())
            assert b"connection: close" in await read_to_end(stream)


async def test_a_new_connection_that_is_old_is_closed_when_it_is_drained(
    autojump_clock: MockClock,
) -> None:
    """Its time is over already."""
    async with memory_server(without_lifespan(House().app), keep_alive_timeout=60) as server:
        stream = await server.connect()
        await trio.sleep(NEW + 2)
        stream.conn.drain()
        assert await stream.receive_some() == b""
        assert trio.current_time() == NEW + 2
        assert stream.conn.close_reason is None


async def test_all_streams_get_their_responses_and_then_a_goaway(
    autojump_clock: MockClock,
) -> None:
    """Behind the last of them, and then the connection ends."""

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        await trio.sleep(float(scope["path"][1:]))
        if scope["path"] == "/2":
            conn.drain()
        await respond(send, b"done")

    async with memory_server(app, keep_alive_timeout=60) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        streams = [client.request(f"/{seconds}") for seconds in (1, 2, 7)]
        await client.flush()
        await client.run()
    assert client.bodies == dict.fromkeys(streams, b"done")
    assert client.seen == [(7, "goaway", streams[-1]), (7, "end", 0)]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("who", ["a tracker", "a task"])
async def test_a_new_connection_that_is_drained_ends_when_its_time_is_over(
    who: str, tls: bool, autojump_clock: MockClock
) -> None:
    """Where no request comes: exactly ``drain_new_timeout`` seconds after it was accepted."""
    acting = Acting(lambda conn, states: conn.drain() if states == "N" else None)
    acting.on = who == "a tracker"
    async with memory_server(
        without_lifespan(House().app), tracker=acting, keep_alive_timeout=60
    ) as server:
        stream = await server.connect(tls=tls)
        await trio.sleep(2)
        stream.conn.drain()
        assert await stream.receive_some() == b""
        assert (trio.current_time(), stream.conn.close_reason) == (NEW, None)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("who", ["a tracker", "a task"])
@pytest.mark.parametrize("requests", [0, 1, 2])
async def test_a_new_http2_connection_that_is_drained_gets_its_goaway(
    requests: int, who: str, tls: bool, certificate: Path, autojump_clock: MockClock
) -> None:
    """Behind the first rest after its requests; or when the time for one is over."""
    acting = Acting(lambda conn, states: conn.drain() if states == "N" else None)
    acting.on = who == "a tracker"
    config = Config.from_mapping(certfile=str(certificate), keyfile=str(certificate))
    house = House()
    async with memory_server(
        without_lifespan(house.app), config, tracker=acting, keep_alive_timeout=60
    ) as server:
        stream = await server.connect(tls=tls, handshake=False)
        client = GoAwayHttp2(await tls_client(stream, "h2") if tls else stream)
        await wait_all_tasks_blocked()
        await trio.sleep(2)
        stream.conn.drain()
        await client.start()
        await wait_all_tasks_blocked()
        streams = [client.request() for _ in range(requests)]
        await client.flush()
        await client.run()
    end, last = (2, streams[-1]) if streams else (2 + IDLE, 0)
    assert client.seen == [(end, "goaway", last), (end, "end", 0)]
    assert client.bodies == dict.fromkeys(streams, b"hello")


async def test_an_idle_http2_connection_gets_its_goaway_when_its_time_is_over(
    autojump_clock: MockClock,
) -> None:
    """And ends with it."""
    async with memory_server(without_lifespan(House().app), keep_alive_timeout=60) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        await get(client)
        client.stream.conn.drain()
        await client.run()
    assert client.seen == [(IDLE, "goaway", 1), (IDLE, "end", 0)]


async def test_a_handler_of_server_sent_events_sees_that_its_connection_drains(
    autojump_clock: MockClock,
) -> None:
    """And finishes: nothing was lost, and the client knows that it is all."""

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        await send(START)
        while not conn.draining.is_set():
            await send(body(b"data: tick\n\n", more=True))
            with trio.move_on_after(1):
                await conn.draining.wait()
        await send(body(b""))

    async with memory_server(app) as server, await server.connect() as stream:
        await stream.send_all(request())
        await trio.sleep(2.5)
        stream.conn.drain()
        received = await read_to_end(stream)
        assert received.count(b"tick") == 3
        assert received.endswith(b"0\r\n\r\n")
        assert trio.current_time() == 2.5 + IDLE


KEEP_ALIVE, GRACE = 7, 3


@pytest.mark.parametrize("over", ["http1", "h2"])
@pytest.mark.parametrize("path", ["/", "/big"])
@pytest.mark.parametrize("how", ["drain", "shutdown", "drain, then shutdown"])
async def test_a_websocket_whose_client_does_not_respond_to_the_close_frame_is_given_up(
    how: str, path: str, over: str, autojump_clock: MockClock
) -> None:
    """After ``keep_alive_timeout``; in a shutdown, after ``graceful_timeout``.

    It has read the close frame, or its windows are full before it.
    """
    house = House()
    async with (
        memory_server(
            house.app, keep_alive_timeout=KEEP_ALIVE, graceful_timeout=GRACE
        ) as house.server,
        trio.open_nursery() as nursery,
    ):
        stream = await house.connect()
        if over == "http1":
            await stream.send_all(handshake(path))
        else:
            client = Http2(stream)
            await client.start()
            await client.websocket(path, accepted=False)
        await wait_all_tasks_blocked()
        if over == "h2" or path == "/":

            async def read() -> None:
                await read_to_end(stream)
                await stream.aclose()

            nursery.start_soon(read)
        await wait_all_tasks_blocked()
        if how != "shutdown":
            stream.conn.drain()
        if how != "drain":
            nursery.start_soon(house.server.shutdown)
        with trio.move_on_after(60):
            await stream.conn.wait_closed()
        assert trio.current_time() == (KEEP_ALIVE if how == "drain" else GRACE)
        assert stream.conn.close_reason == (None if how == "drain" else "app_shutdown_timeout")


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_a_websocket_that_is_drained_gets_its_close_frame_and_replies(
    over: str, autojump_clock: MockClock
) -> None:
    """Its code is ``drain_websocket_code``, and its application receives the same code."""
    told: list[dict[str, Any]] = []

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        await receive()
        conn.drain()  # before it is accepted
        await send({"type": "websocket.accept"})
        told.append(await receive())

    async with memory_server(app, drain_websocket_code=1001, keep_alive_timeout=60) as server:
        stream = await server.connect()
        if over == "http1":
            await stream.send_all(handshake())
            received = await read_until(stream, b"\x88\x02\x03\xe9")
            assert received.startswith(b"HTTP/1.1 101 ")
            await stream.send_all(closing(1001))
            assert await stream.receive_some() == b""
        else:
            client = GoAwayHttp2(stream)
            await client.start()
            stream_id = await client.websocket("/", accepted=False)
            await pump_until(client, lambda: stream_id in client.bodies)
            assert client.bodies[stream_id] == b"\x88\x02\x03\xe9"
            client.h2.send_data(stream_id, closing(1001))
            await client.flush()
            await client.run()
        assert trio.current_time() == 0
    assert told == [{"type": "websocket.disconnect", "code": 1001, "reason": ""}]
    assert stream.conn.close_reason is None


async def test_a_shutdown_behind_a_drain_begins_nothing_anew(autojump_clock: MockClock) -> None:
    """The time of an idle connection goes on, and so does the response in flight."""
    house = House()
    async with (
        memory_server(house.app, graceful_timeout=30) as server,
        trio.open_nursery() as nursery,
    ):
        idle, active = await server.connect(), await server.connect()
        assert await http1(idle) == (200, b"hello")
        await active.send_all(request("/hold"))
        await wait_all_tasks_blocked()
        idle.conn.drain()
        active.conn.drain()
        await trio.sleep(IDLE / 2)
        nursery.start_soon(server.shutdown)
        assert await idle.receive_some() == b""
        assert trio.current_time() == IDLE
        await trio.sleep(10)
        house.gate.set()
        assert b"connection: close" in await read_to_end(active)
    assert trio.current_time() == 10 + IDLE


# The requests in flight


async def test_the_requests_in_flight_of_http1(autojump_clock: MockClock) -> None:
    """One at a time, from its headers to its handler's end, as frozen snapshots."""
    seen: list[tuple[RequestInFlight, ...]] = []

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        seen.append(conn.exchanges)
        await trio.sleep(1)
        await send(START)
        seen.append(conn.exchanges)
        await send(body(b"one", more=True))
        seen.append(conn.exchanges)
        await send(body(b"two"))
        seen.append(conn.exchanges)
        await trio.sleep(1)

    path = "/a%20b/" + "x" * 300
    async with memory_server(app) as server, await server.connect() as stream:
        conn = stream.conn
        assert conn.exchanges == ()
        await stream.send_all(b"POST ")
        await trio.sleep(2)
        assert conn.exchanges == ()
        await stream.send_all(f"{path}?query HTTP/1.1\r\nHost: here\r\n".encode())
        await trio.sleep(1)
        await stream.send_all(b"Content-Length: 0\r\n\r\n")
        assert (await read_until(stream, b"two")).startswith(b"HTTP/1.1 200 ")
        await wait_all_tasks_blocked()
        assert conn.exchanges == seen[3]
        await trio.sleep(1)
        await wait_all_tasks_blocked()
        assert conn.exchanges == ()
    expected = RequestInFlight(method="POST", path=f"/a b/{'x' * 195}", started_at=3)
    assert (expected.stream_id, len(expected.path)) == (None, 200)
    begun = [(each.response_begun, each.response_complete) for (each,) in seen]
    assert begun == [(False, False), (True, False), (True, False), (True, True)]
    assert seen[0] == (expected,)
    assert {(each.method, each.path, each.started_at) for (each,) in seen} == {
        ("POST", expected.path, 3)
    }
    with pytest.raises(FrozenInstanceError):
        expected.method = "GET"  # type: ignore[misc]
    assert conn.exchanges == ()


async def test_the_requests_in_flight_of_http2_are_in_their_order(
    autojump_clock: MockClock,
) -> None:
    """Those that wait for a handler to end are behind those that have one."""
    gates: dict[str, trio.Event] = {}

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        gates[scope["path"]] = trio.Event()
        if scope["path"] == "/3":
            await respond(send, b"done")
        await gates[scope["path"]].wait()

    def of(conn: Conn) -> list[tuple[Any, ...]]:
        return [
            (each.path, each.stream_id, each.started_at, each.response_complete)
            for each in conn.exchanges
        ]

    async with memory_server(app, h2_max_concurrent_streams=2) as server:
        client = Http2(await server.connect())
        conn = client.stream.conn
        await client.start()
        for number in range(1, 5):
            await trio.sleep(1)
            stream_id = client.request(f"/{number}?query")
            if number == 1 or number == 2:
                client.h2.reset_stream(stream_id)  # but the handler goes on
            await client.flush()
        await wait_all_tasks_blocked()
        waiting = [("/3", 5, 3, False), ("/4", 7, 4, False)]
        assert of(conn) == [("/1", 1, 1, False), ("/2", 3, 2, False), *waiting]
        await trio.sleep(1)
        gates["/1"].set()
        await wait_all_tasks_blocked()
        assert of(conn) == [("/2", 3, 2, False), ("/3", 5, 3, True), ("/4", 7, 4, False)]
        gates["/2"].set()
        await wait_all_tasks_blocked()
        assert of(conn) == [("/3", 5, 3, True), ("/4", 7, 4, False)]
        conn.close("enough")
        gates["/3"].set()
        gates["/4"].set()
        await wait_all_tasks_blocked()
        assert conn.exchanges == ()


async def test_a_websocket_that_has_waited_for_a_handler_was_requested_before(
    autojump_clock: MockClock,
) -> None:
    """Its ``started_at`` stays that of its headers."""
    house = House()
    async with memory_server(house.app, h2_max_concurrent_streams=1) as server:
        client = Http2(await server.connect())
        conn = client.stream.conn
        await client.start()
        client.h2.reset_stream(client.request("/hold"))
        await trio.sleep(1)
        await client.websocket("/", accepted=False)
        await wait_all_tasks_blocked()
        before = conn.exchanges[1]
        assert (before.method, before.started_at, before.response_begun) == ("CONNECT", 1, False)
        await trio.sleep(1)
        house.gate.set()
        await wait_all_tasks_blocked()
        (websocket,) = conn.exchanges
        assert (websocket.method, websocket.response_begun) == ("CONNECT", True)
        assert websocket.started_at == 1


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_a_websocket_is_a_request_in_flight_until_its_handler_ends(
    over: str, autojump_clock: MockClock
) -> None:
    """Its response has begun when it is accepted."""
    gate = trio.Event()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        await gate.wait()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with memory_server(app) as server:
        stream = await server.connect()
        await trio.sleep(1)
        if over == "http1":
            await stream.send_all(handshake("/socket?query"))
        else:
            client = Http2(stream)
            await client.start()
            await client.websocket("/socket?query", accepted=False)
        await wait_all_tasks_blocked()
        expected = RequestInFlight(
            method={"http1": "GET", "h2": "CONNECT"}[over],
            path="/socket",
            started_at=1,
            stream_id={"http1": None, "h2": 1}[over],
        )
        assert stream.conn.exchanges == (expected,)
        gate.set()
        await wait_all_tasks_blocked()
        (accepted,) = stream.conn.exchanges
        assert (accepted.response_begun, accepted.response_complete) == (True, False)
        stream.reset()
        await stream.conn.wait_closed()
        await wait_all_tasks_blocked()
        assert not stream.conn.exchanges


async def test_the_response_that_refuses_a_websocket_is_complete(
    autojump_clock: MockClock,
) -> None:
    """Though its handler goes on."""
    house = House()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        await send({"type": "websocket.close"})
        await house.gate.wait()

    async with memory_server(app) as server, await server.connect() as stream:
        await stream.send_all(handshake())
        assert (await read_until(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        (refused,) = stream.conn.exchanges
        house.gate.set()
        assert (refused.response_begun, refused.response_complete) == (True, True)


async def test_trackers_see_the_requests_in_flight(autojump_clock: MockClock) -> None:
    """None at NEW and at ACTIVE, which come first; at IDLE that whose handler goes on."""
    seen: list[tuple[str, list[str]]] = []

    def look(conn: Conn, states: str) -> None:
        seen.append((states, [each.path for each in conn.exchanges]))

    acting = Acting(look)
    acting.on = True
    house = House()
    async with memory_server(house.app, tracker=acting) as server:
        async with await server.connect() as stream:
            await stream.send_all(request("/afterwards"))
            await read_until(stream, b"afterwards")
            await wait_all_tasks_blocked()
            house.gate.set()
        await stream.conn.wait_closed()
    assert seen == [("N", []), ("NA", []), ("NAI", ["/afterwards"]), ("NAIC", [])]


async def test_the_progress_of_a_drain_names_the_oldest_request_in_flight(
    autojump_clock: MockClock,
) -> None:
    """And the status page does, while the connection's last request is another."""
    house = House()
    async with memory_server(house.app, errorlog=house.log.logger, graceful_timeout=1.5) as server:
        client = Http2(await server.connect())
        await client.start()
        for path in ("/hold", "/until-disconnect"):
            client.request(path)
        await client.flush()
        await wait_all_tasks_blocked()
        conn = client.stream.conn
        assert (path_of(conn), conn.path) == ("/hold", "/until-disconnect")
        await server.shutdown()
        assert (path_of(conn), conn.path) == ("/until-disconnect", "/until-disconnect")
    lines = [line for line in house.log.lines() if "Shutting down" in line]
    assert [("'/hold'" in line, "until" in line) for line in lines] == [(True, False)] * 2


@pytest.mark.parametrize("spoil", ["clear", "path"])
async def test_what_an_application_does_to_its_scope_does_not_end_a_drain(
    spoil: str, autojump_clock: MockClock
) -> None:
    """The scope is the application's own: the drain still waits for it, and can name it."""
    gate = trio.Event()

    @handler
    async def app(scope: Any, receive: Any, send: Any, conn: Conn) -> None:
        if spoil == "clear":
            scope.clear()
        else:
            scope["path"] = None
        await gate.wait()
        await respond(send, b"done")

    async with memory_server(app) as server, trio.open_nursery() as nursery:
        stream = await server.connect()
        await stream.send_all(request("/path"))
        await wait_all_tasks_blocked()
        assert [each.path for each in stream.conn.exchanges] == ["/path"]
        nursery.start_soon(server.shutdown)
        await trio.sleep(1)
        gate.set()
        assert (await read_to_end(stream)).startswith(b"HTTP/1.1 ")


# A Conn that was made by hand


async def test_a_connection_made_by_hand_is_closed_and_drained(autojump_clock: MockClock) -> None:
    """As far as that goes without a socket: once, and the first reason stays."""
    conn, log, hijacks = Conn(), Recorder(), HijackTracker()
    assert conn.exchanges == ()
    conn.drain()
    conn.drain()
    assert conn.draining.is_set()
    assert (conn.state, conn.close_reason) == (ConnState.NEW, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.wait_closed)
        await wait_all_tasks_blocked()
        with assert_no_checkpoints():
            conn.close("first")
            conn.close("second")
    await conn.wait_closed()
    assert (conn.state, conn.close_reason) == (ConnState.CLOSED, "first")
    conn.drain()
    assert conn.exchanges == ()
    assert not log.events  # no tracker knows it

    conn = Conn()
    conn.state = ConnState.HIJACKED
    hijacks.track(conn, ConnState.HIJACKED)
    conn.close("enough")
    assert (conn.state, hijacks.count) == (ConnState.HIJACKED, 0)


@pytest.mark.parametrize(("seconds", "cancelled"), [(0, True), (2, True), (9, False)])
async def test_a_block_on_a_connection_made_by_hand_is_cancelled_when_it_is_closed(
    seconds: float, cancelled: bool, autojump_clock: MockClock
) -> None:
    """So many seconds later, also if it was closed before the block, and never behind it."""
    for before in (True, False):
        conn, start = Conn(), trio.current_time()
        if before:
            conn.close("early")
        with conn.cancel_on_disconnect({}, seconds) as scope:
            conn.close("enough")
            await trio.sleep(5)
        assert scope.cancelled_caught == cancelled
        assert trio.current_time() - start == min(seconds, 5)
    conn = Conn()
    with conn.cancel_on_disconnect({}) as scope:
        pass
    conn.close("enough")
    assert not scope.cancel_called


# Whatever happens

DATA = {
    "quick": request(),
    "hold": request("/hold"),
    "chunks": request("/chunks"),
    "head": b"GET /hold HTTP/1.1\r\nHo",
    "rest": b"st: here\r\n\r\n",
    "post": post("/until-disconnect", "Content-Length: 9", body=b"four"),
    "body": b"bytes",
    "websocket": handshake("/hold"),
    "frame": frame(TEXT, b"x"),
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5),
    # HEADERS of stream 1: GET, http, "/hold" and an authority, in HPACK without Huffman codes.
    "h2 request": b"\x00\x00\x0f\x01\x05\x00\x00\x00\x01\x82\x86\x04\x05/hold\x01\x04here",
    "early": post("/early", "Content-Length: 1000000", body=b"x" * 1000),
    "big": request("/big"),
    "pipelined": request("/hold") + request() + request("/chunks"),
    "close frame": closing(1000),
}

acts = st.sampled_from(["close", "drain", "close twice", "drain, then close"])
steps = st.one_of(
    st.tuples(st.just("connect"), st.just("")),
    st.tuples(
        st.just("send"),
        st.sampled_from(sorted(DATA)),
    ),
    st.tuples(st.just("end"), st.sampled_from(["half-close", "reset", "close"])),
    st.tuples(st.just("read"), st.just("")),
    st.tuples(st.just("respond"), st.just("")),
    st.tuples(st.just("sleep"), st.sampled_from(["0.25", "0.5", "2", "5", "8"])),
    st.tuples(st.just("act"), acts),
)
# In which state a tracker acts on which connection: its own, or all that there are.
rules = st.tuples(
    st.sampled_from(["N", "A", "I", "H", "C"]), st.integers(1, 3), acts, st.booleans()
)


def act_on(conn: Conn, act: str) -> None:
    if act.startswith("drain"):
        conn.drain()
    if "close" in act:
        conn.close("banned")
    if act == "close twice":
        conn.close("again")


@settings(max_examples=150)
@given(
    st.lists(st.tuples(steps, st.booleans()), max_size=14),
    st.lists(rules, max_size=2),
    st.sampled_from(["first", "middle", "last"]),
    st.sampled_from([{}, {"cancel_on_disconnect": 0}, {"cancel_on_disconnect": 3}])
    | st.sampled_from([{"request_timeout": 6}, {"request_timeout": 1, "cancel_on_disconnect": 0}]),
)
def test_whatever_clients_trackers_and_tasks_do_connections_end_as_they_should(
    events: list[tuple[tuple[str, str], bool]],
    rules: list[tuple[str, int, str, bool]],
    place: str,
    limits: dict[str, float],
) -> None:
    """Each event with or without time for the server to react."""
    house = House()

    def act(conn: Conn, states: str) -> None:
        for state, times, what, all_of_them in rules:
            if states[-1] == state and states.count(state) == times:
                for each in list(house.recorder.conns) if all_of_them else [conn]:
                    act_on(each, what)

    acting = Acting(act)
    acting.on = True
    trackers: list[Any] = [house.recorder, house.stats, house.hijacks, house.behind, house.conns]
    trackers.insert({"first": 0, "middle": 2, "last": 5}[place], acting)

    async def main() -> None:
        with trio.move_on_after(1000) as scope:
            trio.lowlevel.add_instrument(Restless(scope))
            await drive()
        assert not scope.cancelled_caught, "a task waits for ever, or never does"

    async def drive() -> None:
        async with memory_server(
            house.app,
            tracker=compose(*trackers),
            errorlog=house.log.logger,
            keep_alive_timeout=5,
            graceful_timeout=3,
            max_connection_age=200,
            max_app_queue_size=1,
            **limits,  # type: ignore[arg-type]
        ) as server:
            clients = [await server.connect()]
            for (name, argument), settled in events:
                socket = clients[-1]._transport.socket
                with suppress(OSError):
                    if name == "connect":
                        clients.append(await server.connect())
                    elif name == "send":
                        socket.send(DATA[argument])
                    elif name == "read":
                        socket.recv(2**20)
                    elif name == "end" and argument == "half-close":
                        socket.shutdown(1)
                    elif name == "end" and argument == "reset":
                        reset(clients[-1])
                    elif name == "end":
                        socket.close()
                if name == "respond":
                    house.gate.set()
                    house.gate = trio.Event()
                elif name == "sleep":
                    await trio.sleep(float(argument))
                elif name == "act":
                    act_on(clients[-1].conn, argument)
                if settled:
                    await wait_all_tasks_blocked()
            for client in clients:
                reset(client)
            for _ in range(3 * len(events) + 1):  # what was pipelined waits, too
                house.gate.set()
                house.gate = trio.Event()
                await wait_all_tasks_blocked()
            (worker,) = house.workers
            assert not worker.connections
            assert not waiting_in(worker)
            for client in clients:
                await client.conn.wait_closed()
                assert client.conn.exchanges == ()
                if client.conn.close_reason == "again":
                    raise AssertionError("the first reason stays")

    with watched_workers() as house.workers:
        trio.run(main, clock=MockClock(autojump_threshold=0))
    house.check_states()
    for conn in house.recorder.conns:
        states = house.recorder.states(conn)
        assert sum(state.terminal for state in states) == 1
    stats = house.stats.stats()
    assert stats.accepted_total == len(house.recorder.conns)
    assert stats.closed_total + stats.hijacked_total == stats.accepted_total
    assert (stats.accepted, stats.active, stats.idle) == (0, 0, 0)
    assert (house.conns.count, house.hijacks.count) == (0, 0)
    assert all("longer than request_timeout" in line for line in house.log.lines(logging.INFO))
