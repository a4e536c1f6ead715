"""How connections end: the table of phases, and real connections that keep to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise, product
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack._connection import connection as connection_module
from trio_httptrack._connection.connection import Connection
from trio_httptrack._connection.phases import (
    CLOSE,
    CLOSED,
    DRAIN,
    DRAINING,
    HALF_CLOSED,
    LINGERING,
    LINGERING_IN_DRAIN,
    OPEN,
    OWN_EOF,
    PEER_EOF,
    STEPS,
    IllegalStep,
    Phase,
    Step,
    after,
)
from trio_httptrack._hypercorn.worker import Worker
from trio_httptrack._states import TRANSITIONS
from trio_httptrack.testing import ClientStream, memory_server

from .clients import Http2, http1
from .support import Recorder, app, respond, without_lifespan

PHASES = (OPEN, DRAINING, HALF_CLOSED, LINGERING, LINGERING_IN_DRAIN, CLOSED)

# What the table must say, written down a second time.
WAYS = {
    (OPEN, DRAIN): DRAINING,
    (OPEN, PEER_EOF): HALF_CLOSED,
    (OPEN, OWN_EOF): LINGERING,
    (OPEN, CLOSE): CLOSED,
    (DRAINING, DRAIN): DRAINING,
    (DRAINING, PEER_EOF): HALF_CLOSED,
    (DRAINING, OWN_EOF): LINGERING_IN_DRAIN,
    (DRAINING, CLOSE): CLOSED,
    (HALF_CLOSED, DRAIN): HALF_CLOSED,
    (HALF_CLOSED, CLOSE): CLOSED,
    (LINGERING, DRAIN): LINGERING_IN_DRAIN,
    (LINGERING, CLOSE): CLOSED,
    (LINGERING_IN_DRAIN, DRAIN): LINGERING_IN_DRAIN,
    (LINGERING_IN_DRAIN, CLOSE): CLOSED,
}


def of_a_step(value: object) -> str:
    return str(getattr(value, "name", value)).replace(" ", "-")


@pytest.mark.parametrize(("phase", "step"), list(product(PHASES, Step)), ids=of_a_step)
def test_a_step_leads_where_the_table_says_or_nowhere(phase: Phase, step: Step) -> None:
    """An illegal step raises, names what was tried, and changes nothing of the table."""
    before = {each: dict(steps) for each, steps in STEPS.items()}
    if (phase, step) in WAYS:
        assert after(phase, step) is WAYS[phase, step]
    else:
        with pytest.raises(IllegalStep) as raised:
            after(phase, step)
        assert str(raised.value) == f"{step.value!r} is illegal in the phase {phase.name!r}"
    assert before == STEPS


def test_every_phase_is_reached_and_every_one_ends() -> None:
    """From OPEN, in any order of steps; and CLOSE leads from each straight to the end."""
    reached, left = {OPEN}, [OPEN]
    while left:
        for phase in STEPS[left.pop()].values():
            if phase not in reached:
                reached.add(phase)
                left.append(phase)
    assert reached == set(STEPS) == set(PHASES)
    for phase in PHASES:
        assert phase is CLOSED or after(phase, CLOSE) is CLOSED


def test_what_may_be_done_in_a_phase_only_becomes_less() -> None:
    """A side that was closed is not reopened, and nothing is written to a discarded client."""
    for phase, steps in STEPS.items():
        for following in steps.values():
            assert phase.reads or not following.reads
            assert phase.writes or not following.writes
        assert not (phase.discards and (phase.reads or phase.writes))
        assert phase.writes or not phase.reads
    assert not any((CLOSED.reads, CLOSED.writes, CLOSED.discards))


# On real connections


async def test_an_illegal_step_changes_nothing_of_a_connection(
    connections: list[Connection], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its phase nor its socket, its state or its deadline."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        await http1(client)
        (connection,) = connections
        with monkeypatch.context() as without_ways:
            without_ways.setattr(
                connection_module, "after", lambda phase, step: after(CLOSED, step)
            )
            with pytest.raises(IllegalStep):
                connection.drain()
            with pytest.raises(IllegalStep):
                connection.close("internal_error")
            with pytest.raises(IllegalStep):
                await connection.finish(linger=True)
        assert connection.phase is OPEN
        assert connection.conn.close_reason is None
        assert not connection.conn.draining.is_set()
        assert recorder.sequences() == ["NAI"]
        await trio.sleep(4)
        assert await http1(client) == (200, b"/")
        assert await client.receive_some() == b""
        assert trio.current_time() == 9
    assert recorder.sequences() == ["NAIAIC"]


async def test_what_comes_after_the_end_does_nothing(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """A closed connection may be closed or drained again, and its reason stays."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        client = await server.connect()
        (connection,) = connections
        connection.close("read_timeout")
        connection.close("connection_reset")
        connection.drain()
        connection.abort()
        await connection.finish(linger=True)
        await wait_all_tasks_blocked()
        assert connection.phase is CLOSED
        assert connection.conn.close_reason == "read_timeout"
        assert not connection.conn.draining.is_set()
        assert await client.receive_some() == b""
    assert recorder.sequences() == ["NC"]


@pytest.mark.parametrize(
    ("drains", "eof", "phases"),
    [
        (False, False, [LINGERING, CLOSED]),
        (True, False, [DRAINING, LINGERING_IN_DRAIN, CLOSED]),
        (False, True, [HALF_CLOSED, CLOSED]),
        (True, True, [DRAINING, HALF_CLOSED, CLOSED]),
    ],
)
async def test_a_response_that_ends_the_connection_takes_the_way_of_its_phase(
    drains: bool,
    eof: bool,
    phases: list[Phase],
    connections: list[Connection],
    autojump_clock: MockClock,
) -> None:
    """A client that may still send is lingered for; one that has ended its side needs not be."""
    gate = trio.Event()

    @without_lifespan
    async def hold(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await respond(send, b"held")

    with watched_phases() as changes:
        async with memory_server(hold) as server:
            client = await server.connect()
            await client.send_all(
                b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\nand more"
            )
            await wait_all_tasks_blocked()
            if drains:
                connections[0].drain()
            if eof:
                await client.send_eof()
            await wait_all_tasks_blocked()
            gate.set()
            while await client.receive_some():
                pass
            await client.aclose()
            await wait_all_tasks_blocked()
    assert [phase for _, _, phase in changes] == [OPEN, *phases]


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_drain_behind_the_clients_end_finds_no_way_back(
    how: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """What is owed to a client that has ended its side is still written; else it is over."""
    gate = trio.Event()

    @without_lifespan
    async def hold(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await respond(send, b"held")

    async with memory_server(hold) as server:
        client = await server.connect()
        await client.send_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        await wait_all_tasks_blocked()
        if how == "eof":
            await client.send_eof()
        else:
            client.reset()
        await wait_all_tasks_blocked()
        connections[0].drain()
        assert connections[0].phase is (HALF_CLOSED if how == "eof" else CLOSED)
        gate.set()
        if how == "eof":
            response = await client.receive_some()
            assert response.startswith(b"HTTP/1.1 200 ")
            assert b"\r\nConnection: close\r\n" in response.replace(b"connection", b"Connection")
            assert await client.receive_some() == b""
        await wait_all_tasks_blocked()
        assert connections[0].phase is CLOSED


# Any connection, whatever happens to it


@contextmanager
def watched_phases() -> Iterator[list[tuple[Connection, Phase | None, Phase]]]:
    """Keep each change of any connection's phase, from which to which."""
    changes: list[tuple[Connection, Phase | None, Phase]] = []
    slot: Any = Connection.__dict__["phase"]

    def set_phase(connection: Connection, phase: Phase) -> None:
        try:
            before = slot.__get__(connection)
        except AttributeError:
            before = None
        if phase is not before:
            changes.append((connection, before, phase))
        slot.__set__(connection, phase)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "phase", property(slot.__get__, set_phase))
        yield changes


class Restless(trio.abc.Instrument):
    """Cancels what takes far too many steps: a mock clock stands still while a task spins."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._steps = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps > 5_000:
            self._scope.cancel()


class Driven:
    """One connection, and all that may happen to it."""

    def __init__(self, client: ClientStream, connection: Connection) -> None:
        self.client = client
        self.connection = connection
        self.gate = trio.Event()

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket" or scope["path"] != "/held":
            await app(scope, receive, send)
        else:
            await self.gate.wait()
            await respond(send, b"held")

    def send(self, data: bytes) -> None:
        """As much as there is room for: the client must not wait for the server."""
        with suppress(OSError):
            self.client._transport.socket.send(data)

    def read(self) -> None:
        with suppress(OSError):
            self.client._transport.socket.recv(2**20)

    def end(self, how: str) -> None:
        with suppress(OSError):
            if how == "half-close":
                self.client._transport.socket.shutdown(1)
            elif how == "reset":
                self.client.reset()
            else:
                self.client._transport.socket.close()

    def respond(self) -> None:
        self.gate.set()
        self.gate = trio.Event()

    def server(self, how: str) -> None:
        if how == "drain":
            self.connection.drain()
        elif how == "abort":
            self.connection.abort()
        else:
            self.connection.close(orderly=how == "orderly")


def request(path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: here", *lines, "", ""]
    return "\r\n".join(head).encode() + body


HANDSHAKE = request(
    "/echo",
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
WHOLE = {
    "quick": request("/"),
    "held": request("/held"),
    "unusual": request("/held", "Expect: nothing", "Accept:\t*/*"),
    "last": request("/held", "Connection: close"),
    "http/1.0": b"GET /held HTTP/1.0\r\n\r\n",
    "body": request("/body", "Content-Length: 4", method="POST", body=b"body"),
    "chunked": request("/held", "Transfer-Encoding: chunked", method="POST", body=b"0\r\n\r\n"),
    "failing": request("/raise"),
    "streamed": request("/stream"),
    "until disconnect": request("/until-disconnect"),
    "garbage": b"\x00\x01\r\n\r\n",
    "websocket": HANDSHAKE,
    "refused websocket": HANDSHAKE.replace(b"/echo", b"/refuse"),
    "message": b"\x81\x82" + bytes(4) + b"hi",
    "close frame": b"\x88\x82" + bytes(4) + b"\x03\xe8",
    "h2c": request(
        "/held", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: "
    ),
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5),
    "goaway": b"\x00\x00\x08\x07" + bytes(5) + bytes(8),
}
PARTS = {
    "request line": b"GET /held HTTP/1.1\r\n",
    "header": b"Host: here\r\n",
    "end": b"\r\n",
    "upload": request("/body", "Content-Length: 9", method="POST", body=b"four"),
    "early": request("/", "Content-Length: 9", method="POST"),
    "five": b"bytes",
    "P": b"P",
    "frame": b"\x81\x85" + bytes(4) + b"he",
}

happenings = st.one_of(
    st.tuples(st.just("send"), st.sampled_from(sorted(WHOLE) + sorted(PARTS))),
    st.tuples(st.just("end"), st.sampled_from(["half-close", "reset", "close"])),
    st.tuples(st.just("server"), st.sampled_from(["drain", "drain", "orderly", "cut", "abort"])),
    st.tuples(st.just("sleep"), st.sampled_from(["0.2", "0.5", "1", "2", "5", "8"])),
    st.tuples(st.just("respond"), st.just("")),
    st.tuples(st.just("read"), st.just("")),
)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(happenings, st.booleans()), max_size=12),
    st.sampled_from([None, 1.0]),
    st.integers(1, 3),
)
def test_whatever_happens_a_connection_keeps_to_its_table_and_leaves_nothing(
    events: list[tuple[tuple[str, str], bool]], read_timeout: float | None, requests: int
) -> None:
    """Each event with or without time for the server to react.

    Every change of phase is one of the table, every state is one that may follow, exactly one
    is terminal, and once the client has gone neither the connection nor a deadline is left.
    """
    workers: list[Worker] = []
    make_connection = Worker.make_connection

    def make(worker: Worker, *args: Any) -> Connection:
        workers.append(worker)
        made.append(make_connection(worker, *args))
        return made[-1]

    made: list[Connection] = []
    recorder = Recorder()

    async def held(scope: Any, receive: Any, send: Any) -> None:
        await driven.app(scope, receive, send)

    async def main() -> None:
        with trio.move_on_after(1000) as scope:
            trio.lowlevel.add_instrument(Restless(scope))
            await drive()
        assert not scope.cancelled_caught, "a task waits for ever, or never does"

    driven: Any = None

    async def drive() -> None:
        nonlocal driven
        async with memory_server(
            without_lifespan(held),
            tracker=recorder,
            errorlog=None,
            keep_alive_timeout=5,
            read_timeout=read_timeout,
            keep_alive_max_requests=requests,
            graceful_timeout=3,
        ) as server:
            driven = Driven(await server.connect(), made[0])
            for (name, argument), settled in events:
                if name == "send":
                    driven.send({**WHOLE, **PARTS}[argument])
                elif name == "sleep":
                    await trio.sleep(float(argument))
                else:
                    method: Callable[..., None] = getattr(driven, name)
                    method(*[argument] * bool(argument))
                if settled:
                    await wait_all_tasks_blocked()
            driven.end("reset")
            await wait_all_tasks_blocked()
            for _ in range(len(events) + 1):  # what was pipelined waits, too
                driven.respond()
                await wait_all_tasks_blocked()
            worker = workers[0]
            assert not worker.connections
            for timeout in (
                worker.handshake_timeout,
                worker.keep_alive_timeout,
                worker.drain_idle_timeout,
            ):
                assert len(timeout) == 0

    with watched_phases() as changes, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "make_connection", make)
        trio.run(main, clock=MockClock(autojump_threshold=0))
    phases = [phase for _, _, phase in changes]
    assert phases[0] is OPEN
    assert phases[-1] is CLOSED
    for _, before, phase in changes[1:]:
        assert before is not None
        assert phase in STEPS[before].values()
    (conn,) = recorder.conns
    states = recorder.states(conn)
    assert sum(state.terminal for state in states) == 1
    for state, following in pairwise(states):
        assert following in TRANSITIONS[state]


async def test_http_2_keeps_to_the_table(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """With a drain while a stream is open, and the client's end behind its response."""
    with watched_phases() as changes:
        async with memory_server(app) as server:
            client = Http2(await server.connect())
            await client.start()
            assert await client.get() == ("200", b"/")
            connections[0].drain()
            await wait_all_tasks_blocked()
            while data := await client.stream.receive_some():
                if b"\x07" in data[3:4]:  # GOAWAY
                    break
            await client.stream.aclose()
            await wait_all_tasks_blocked()
    assert [phase for _, _, phase in changes] == [OPEN, DRAINING, LINGERING_IN_DRAIN, CLOSED]
