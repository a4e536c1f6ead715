"""What the connections have done when a test fails: the note on the error."""

from __future__ import annotations

import re
import subprocess
import sys
import unittest
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import Conn, ConnState, ConnTracker, TrackerFunc
from trio_httptrack._connection.connection import Connection
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server
from trio_httptrack.testing._history import KEPT, NAMED, History

from .clients import Http2, http1
from .support import respond, without_lifespan

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

    pytest.skip("an exception has notes since Python 3.11", allow_module_level=True)

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState


@without_lifespan
async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/waiting":
        await trio.sleep_forever()
    if scope["path"] == "/streaming":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await trio.sleep_forever()
    await respond(send, b"")
    if scope["path"] == "/afterwards":
        await trio.sleep_forever()


async def send_request(server: MemoryServer, path: str) -> ClientStream:
    stream = await server.connect()
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await wait_all_tasks_blocked()
    return stream


async def notes(
    test: Callable[[MemoryServer], Awaitable[None]], app: Any = app, **kwargs: Any
) -> list[str]:
    """Those of the error that leaves the block."""
    try:
        async with memory_server(app, **kwargs) as server:
            await test(server)
    except BaseException as error:
        return list(getattr(error, "__notes__", []))
    raise AssertionError("nothing was raised")


async def test_a_failure_has_a_note_on_the_connections(
    autojump_clock: MockClock,
) -> None:
    """As it was when the test failed, and not when everything was closed for it."""

    async def test(server: MemoryServer) -> None:
        for path in ("/waiting", "/streaming", "/", "/afterwards"):
            await send_request(server, path)
        await trio.sleep(20.5)
        await server.connect()
        assert not server.connections()

    (note,) = await notes(test, keep_alive_timeout=10)
    assert note == (
        "Connections of this memory_server at 20.5:\n"
        "Conn 1 127.0.0.1:40001 http/1.1: NEW 0.0 > ACTIVE 0.0\n"
        "  in flight: GET '/waiting', 20.5 s, waiting for its response\n"
        "Conn 2 127.0.0.1:40002 http/1.1: NEW 0.0 > ACTIVE 0.0\n"
        "  in flight: GET '/streaming', 20.5 s, streaming\n"
        "Conn 3 127.0.0.1:40003 http/1.1: "
        "NEW 0.0 > ACTIVE 0.0 > IDLE 0.0 > CLOSED 10.0 (keep_alive_timeout)\n"
        "Conn 4 127.0.0.1:40004 http/1.1: NEW 0.0 > ACTIVE 0.0 > IDLE 0.0 > "
        "CLOSED 10.0 (keep_alive_timeout)\n"
        "  in flight: GET '/afterwards', 20.5 s, its handler continues after the response\n"
        "Conn 5 127.0.0.1:40005: NEW 20.5"
    )


async def test_a_test_without_a_connection_learns_just_that(autojump_clock: MockClock) -> None:
    """Its client may be one of another server."""

    async def test(server: MemoryServer) -> None:
        raise AssertionError

    assert await notes(test) == ["Connections of this memory_server at 0.0: none"]


async def test_an_error_of_a_server_that_has_not_started_has_no_note() -> None:
    """There was no block."""

    async def test(server: MemoryServer) -> None:
        raise AssertionError

    assert await notes(test, tcp_keepalive="often") == []


async def test_a_failure_behind_a_shutdown_has_its_report(autojump_clock: MockClock) -> None:
    """As the log has it."""

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/waiting")
        assert await server.shutdown() is None

    (note,) = await notes(test)
    assert note == (
        "Connections of this memory_server at 3.0:\n"
        "Conn 1 127.0.0.1:40001 http/1.1: NEW 0.0 > ACTIVE 0.0 > CLOSED 3.0 "
        "(app_shutdown_timeout)\n"
        "Shut down: 0 of 1 connections closed by themselves and 1 by force, in 3.0 s"
    )


async def test_an_error_of_a_tracker_has_the_note(autojump_clock: MockClock) -> None:
    """With the transition that it was called for, and the request that it cut off."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is ACTIVE:
            raise ValueError

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/waiting")

    (note,) = await notes(test, tracker=TrackerFunc(fail))
    assert note.splitlines()[1:] == ["Conn 1 127.0.0.1:40001 http/1.1: NEW 0.0 > ACTIVE 0.0"]


async def test_an_error_of_a_lifespan_has_the_note(autojump_clock: MockClock) -> None:
    """Behind the one that says where it was raised."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await trio.sleep(5)
            raise ZeroDivisionError
        await app(scope, receive, send)

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/waiting")
        await trio.sleep_forever()

    lifespan, note = await notes(test, failing)
    assert "in its lifespan" in lifespan
    assert note.splitlines()[2] == "  in flight: GET '/waiting', 5.0 s, waiting for its response"


async def test_a_lifespan_that_fails_when_all_is_over_has_the_note(
    autojump_clock: MockClock,
) -> None:
    """Nothing has seen the error before it leaves."""

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "no database"})

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/")

    (note,) = await notes(test, failing)
    assert note.splitlines() == [
        "Connections of this memory_server at 0.5:",
        "Conn 1 127.0.0.1:40001 http/1.1: NEW 0.0 > ACTIVE 0.0 > IDLE 0.0 > CLOSED 0.5",
        "Shut down: 1 of 1 connections closed by themselves and 0 by force, in 0.5 s",
    ]


async def test_an_error_while_all_connections_are_closed_has_one_note(
    autojump_clock: MockClock,
) -> None:
    """Of the time when the test failed, though it is the tracker's error that leaves."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is CLOSED:
            raise ValueError

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/waiting")
        raise KeyError

    (note,) = await notes(test, tracker=TrackerFunc(fail))
    assert note.splitlines()[2] == "  in flight: GET '/waiting', 0.0 s, waiting for its response"


async def test_an_error_of_the_drain_has_the_note(autojump_clock: MockClock) -> None:
    """The block has been left by then; the drain's report is there."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is CLOSED:
            raise ValueError

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/")

    (note,) = await notes(test, tracker=TrackerFunc(fail))
    assert note.splitlines()[1:] == [
        "Conn 1 127.0.0.1:40001 http/1.1: NEW 0.0 > ACTIVE 0.0 > IDLE 0.0 > CLOSED 0.5",
        "Shut down: 1 of 1 connections closed by themselves and 0 by force, in 0.5 s",
    ]


async def test_a_group_has_the_note_and_its_errors_have_none(autojump_clock: MockClock) -> None:
    """It is the group that leaves."""
    one, two = ValueError(), KeyError()
    with pytest.raises(ExceptionGroup) as raised:
        async with memory_server(app):
            raise ExceptionGroup("both", [one, two])
    assert len(raised.value.__notes__) == 1
    assert not hasattr(one, "__notes__")
    assert not hasattr(two, "__notes__")


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(),
        GeneratorExit(),
        pytest.skip.Exception(),
        unittest.SkipTest(""),
        BaseExceptionGroup("skips", [pytest.skip.Exception(), KeyboardInterrupt()]),
    ],
    ids=repr,
)
async def test_an_exception_that_is_no_failure_has_no_note(
    error: BaseException, autojump_clock: MockClock
) -> None:
    """The test did not fail."""

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/waiting")
        raise error

    assert await notes(test) == []


async def test_a_cancellation_has_no_note(autojump_clock: MockClock) -> None:
    """Such as that of a timeout around the server."""

    async def test(server: MemoryServer) -> None:
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        assert await notes(test) == []


async def test_a_failure_behind_a_cancellation_has_the_note(autojump_clock: MockClock) -> None:
    """What was cancelled is over, so the note is of a later time."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is CLOSED:
            raise ValueError

    async def test(server: MemoryServer) -> None:
        await server.connect()
        scope.cancel()
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        (note,) = await notes(test, tracker=TrackerFunc(fail))
    assert note.splitlines()[1] == "Conn 1 127.0.0.1:40001: NEW 0.0 > CLOSED 0.0 (aborted_by_app)"


async def test_of_many_connections_the_last_and_the_busy_are_named(
    autojump_clock: MockClock,
) -> None:
    """And how many others there were; of a transition long ago only the state is known."""
    closed = KEPT

    async def test(server: MemoryServer) -> None:
        await send_request(server, "/waiting")
        for _ in range(closed):
            await (await server.connect()).aclose()
            await wait_all_tasks_blocked()
        raise AssertionError

    (note,) = await notes(test)
    first, *lines = note.splitlines()
    assert first == (
        f"Connections of this memory_server at 0.0: the last {NAMED}, "
        f"without {closed + 1 - NAMED} others"
    )
    assert lines[:2] == [
        "Conn 1 127.0.0.1:40001 http/1.1: ... > ACTIVE 0.0",
        "  in flight: GET '/waiting', 0.0 s, waiting for its response",
    ]
    ids = [int(line.split()[1]) for line in lines if line.startswith("Conn ")]
    assert ids == [1, *range(closed + 3 - NAMED, closed + 2)]


async def test_of_many_transitions_the_last_are_named(autojump_clock: MockClock) -> None:
    """A connection that is kept alive has two with each request."""

    async def test(server: MemoryServer) -> None:
        stream = await server.connect()
        for _ in range(NAMED):
            await http1(stream)
        raise AssertionError

    (note,) = await notes(test)
    assert note.count("ACTIVE") == note.count("IDLE") == NAMED / 2
    assert "http/1.1: ... > ACTIVE 0.0 > IDLE 0.0 > ACTIVE" in note


async def test_of_many_requests_the_oldest_are_named(autojump_clock: MockClock) -> None:
    """One connection over HTTP/2 may have a hundred in flight."""

    async def test(server: MemoryServer) -> None:
        client = Http2(await server.connect(tls=True, alpn=["h2"]))
        await client.start()
        for _ in range(NAMED + 3):
            client.request("/waiting")
        await client.flush()
        await wait_all_tasks_blocked()
        raise AssertionError

    (note,) = await notes(test)
    assert note.count("in flight: GET") == NAMED
    assert note.splitlines()[-1] == "  in flight: 3 others"


async def test_a_long_test_takes_no_more_memory_than_a_short_one(
    autojump_clock: MockClock,
) -> None:
    """Of its transitions, only the last are kept."""
    history = History()
    for _ in range(5 * KEPT):
        history.track(Conn(), NEW)
        assert len(history.events) < 2 * KEPT
    assert len(history.events) >= KEPT


async def test_the_history_is_behind_all_trackers_but_conn_trackers(
    autojump_clock: MockClock, connections: list[Connection]
) -> None:
    """When ConnTracker.wait() returns, all other trackers are complete."""
    mine, counting = TrackerFunc(lambda conn, state: None), ConnTracker()
    async with memory_server(app, conn_state=counting, tracker=mine) as server:
        await server.connect()
        *others, history, first, last = connections[0]._server._tracker.trackers  # type: ignore[attr-defined]
    assert others == [mine, server._stats_tracker]
    assert isinstance(history, History)
    assert [first, last] == [counting, server.conn_tracker]


def test_pytest_prints_the_note(tmp_path: Path) -> None:
    """With pytest-trio, which puts a group around the error."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from trio_httptrack.testing import memory_server\n"
        "async def app(scope, receive, send):\n"
        "    raise AssertionError\n"
        "@pytest.mark.trio\n"
        "async def test_it(autojump_clock):\n"
        "    async with memory_server(app, keep_alive_timeout=5) as server:\n"
        "        stream = await server.connect()\n"
        "        await stream.conn.wait_closed()\n"
        "        assert stream.conn.close_reason is None\n"
    )
    command = [sys.executable, "-m", "pytest", "test_it.py"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stdout
    note = r"Conn 1 127\.0\.0\.1:40001: NEW 0\.0 > CLOSED 5\.0 \(request_headers_timeout\)"
    assert len(re.findall(note, ended.stdout)) == 1, ended.stdout
