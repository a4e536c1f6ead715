"""What users get from ``trio_httptrack.testing``."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import trio
import trio_websocket
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.utils import LifespanFailureError, LifespanTimeoutError
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_httptrack import Conn, ConnState, Stats, TrackerFunc
from trio_httptrack.testing import MemoryServer, RecordingTracker, memory_server
from trio_httptrack.testing._tls import _certificate

from .clients import Http2, http1, read_response, read_to_end
from .support import CERT, Recorder, app, problems, respond, without_lifespan

if sys.version_info < (3, 11):
    pass

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def do_nothing(server: MemoryServer) -> None:
    pass


async def serve(
    app: Any, test: Callable[[MemoryServer], Awaitable[None]] = do_nothing, **kwargs: Any
) -> None:
    """A whole test in one statement."""
    async with memory_server(app, **kwargs) as server:
        await test(server)


# The server


async def test_a_timeout_of_minutes_is_over_at_once(autojump_clock: MockClock) -> None:
    """And at exactly its time, in every run."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, keep_alive_timeout=300) as server:
        stream = await server.connect()
        assert await http1(stream) == (200, b"/")
        assert await stream.receive_some() == b""
    assert [(event.state, event.time) for event in tracker.events] == [
        (NEW, 0),
        (ACTIVE, 0),
        (IDLE, 0),
        (CLOSED, 300),
    ]


async def test_there_is_no_socket_and_no_thread(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where TLS is spoken."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("there should be none")

    for module, name in [(trio.socket, "from_stdlib_socket"), (threading.Thread, "start")]:
        monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr("socket.socket.__init__", fail)
    async with memory_server(app) as server:
        assert await http1(await server.connect(tls=True)) == (200, b"/")


async def test_the_lifespan_is_around_all_of_it(autojump_clock: MockClock) -> None:
    """It has started before the block begins, and ends behind the last request."""
    events = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                event = await receive()
                scope["state"]["greeting"] = b"hello"
                events.append(event["type"])
                await send({"type": f"{event['type']}.complete"})
        else:
            await trio.sleep(2)
            await respond(send, scope["state"]["greeting"])
            events.append("answered")

    async with memory_server(app) as server, trio.open_nursery() as nursery:
        assert events == ["lifespan.startup"]
        stream = await server.connect()

        @nursery.start_soon
        async def send_requests() -> None:
            assert await http1(stream) == (200, b"hello")

        await wait_all_tasks_blocked()
        await server.shutdown()
        assert trio.current_time() == 2
    assert events == ["lifespan.startup", "answered", "lifespan.shutdown"]


async def test_it_has_what_a_tracked_server_has(autojump_clock: MockClock) -> None:
    """Numbers, connections, the conn tracker, a shutdown, and URLs."""
    async with memory_server(app) as server:
        first, second = await server.connect(), await server.connect()
        await http1(first)
        assert server.stats() == Stats(
            accepted=1, idle=1, accepted_total=2, active_total=1, idle_total=1
        )
        assert server.connections() == {first.conn: IDLE, second.conn: NEW}
        assert server.conn_tracker.count == 2
        await server.shutdown()
        assert server.conn_tracker.count == 0
        async with httpx.AsyncClient(transport=server.httpx_transport()) as client:
            for url in server.urls:
                with pytest.raises(httpx.ConnectError):
                    await client.get(url)
    assert server.urls == ["http://localhost", "https://localhost"]


async def test_each_server_counts_its_connections_from_one(autojump_clock: MockClock) -> None:
    """Also where there are several in one process, or a connection was made by hand."""
    Conn()
    async with memory_server(app) as one, memory_server(app) as other:
        streams = [await server.connect() for server in (one, other, one)]
        assert [stream.conn.id for stream in streams] == [1, 1, 2]


async def test_a_config_is_not_changed_by_the_settings(autojump_clock: MockClock) -> None:
    """Its other settings hold, and so does its own tracker, which runs first."""
    order = []
    config = Config.from_mapping(keep_alive_timeout=7, bind="192.0.2.1:1")
    config.conn_state = TrackerFunc(lambda conn, state: order.append("config"))  # type: ignore[attr-defined]
    tracker = TrackerFunc(lambda conn, state: order.append("argument"))
    async with memory_server(app, config, tracker=tracker, root_path="/root") as server:
        stream = await server.connect()
        assert order == ["config", "argument"]
        assert await stream.receive_some() == b""
        assert trio.current_time() == 7
    assert config.root_path == ""


async def test_a_tracker_can_be_a_setting(autojump_clock: MockClock) -> None:
    """As it is in a config file."""
    tracker = RecordingTracker()
    async with memory_server(app, conn_state=tracker) as server:
        stream = await server.connect()
        assert tracker.states(stream.conn) == [NEW]


async def test_a_tracker_in_the_place_of_the_config_is_refused() -> None:
    """With a word about where it belongs."""
    with pytest.raises(TypeError, match=r"config must be Hypercorn's Config, .* tracker="):
        await serve(app, config=RecordingTracker())


async def test_a_setting_of_the_log_holds_also_where_there_is_a_log_already(
    autojump_clock: MockClock,
) -> None:
    """It is made once, from the settings as they are then."""
    config = Config()
    log = config.log

    class Silent(Logger):
        async def warning(self, *args: Any, **kwargs: Any) -> None:
            silenced.append(args)

    silenced: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await respond(send, b"")  # and not in a lifespan

    async with memory_server(app, config, logger_class=Silent) as server:
        await server._config.log.warning("hello")
    assert silenced == [("hello",)]
    assert config.log is log


@pytest.mark.parametrize(
    "name", ["keepalive_timeout", "from_mapping", "create_sockets", "log", "_log", "ssl_enabled"]
)
async def test_a_setting_that_hypercorn_does_not_have_is_refused(name: str) -> None:
    """So that a spelling mistake is not a test of something else."""
    with pytest.raises(TypeError, match=f"Config has no setting '{name}'"):
        await serve(app, do_nothing, **{name: 5})


async def test_leaving_the_block_drains_and_leaving_it_by_an_error_does_not(
    autojump_clock: MockClock,
) -> None:
    """As with tracked_server."""

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(2)
        await respond(send, b"done")

    async with memory_server(slow) as server:
        stream = await server.connect()
        await stream.send_all(GET)
        await wait_all_tasks_blocked()
    assert trio.current_time() == 2
    assert (await read_to_end(stream)).endswith(b"done")

    async def fail(server: MemoryServer) -> None:
        nonlocal stream
        stream = await server.connect()
        await stream.send_all(GET)
        await wait_all_tasks_blocked()
        raise KeyError

    with pytest.raises(KeyError):
        await serve(slow, fail)
    assert trio.current_time() == 2
    assert stream.conn.close_reason == "aborted_by_app"


async def test_a_client_that_was_forgotten_ends_with_the_server(autojump_clock: MockClock) -> None:
    """Whatever it was doing: nothing waits for it longer than graceful_timeout."""
    async with memory_server(app, graceful_timeout=9) as server:
        streams = [await server.connect(), await server.connect(tls=True), await server.connect()]
        await streams[-1].send_all(b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await wait_all_tasks_blocked()
    assert trio.current_time() == 9
    assert [stream.conn.close_reason for stream in streams] == [None, None, "app_shutdown_timeout"]


async def test_after_the_shutdown_nobody_can_connect(autojump_clock: MockClock) -> None:
    """Not even while the last request is in flight."""

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(2)

    async with memory_server(slow) as server, trio.open_nursery() as nursery:
        await (await server.connect()).send_all(GET)
        await wait_all_tasks_blocked()
        nursery.start_soon(server.shutdown)
        await trio.sleep(1)
        with pytest.raises(ConnectionRefusedError):
            await server.connect()


# Errors


async def test_a_trackers_error_ends_the_test(autojump_clock: MockClock) -> None:
    """As itself, though the tracker fails at every transition, and at once."""

    def fail(conn: Conn, state: ConnState) -> None:
        raise ValueError(f"a tracker's own error at {state}")

    async def connect(server: MemoryServer) -> None:
        await server.connect()
        await trio.sleep_forever()

    with pytest.raises(ValueError, match="own error at new"):
        await serve(app, connect, tracker=TrackerFunc(fail))
    assert trio.current_time() == 0


async def test_a_trackers_error_waits_for_no_request(autojump_clock: MockClock) -> None:
    """What is in flight then is cut off, however long it might have taken."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is ACTIVE:
            raise ValueError("a tracker's own error")

    async def send_requests(server: MemoryServer) -> None:
        await (await server.connect()).send_all(
            b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n"
        )
        await trio.sleep_forever()

    with pytest.raises(ValueError, match="own error"):
        await serve(app, send_requests, tracker=TrackerFunc(fail), graceful_timeout=60)
    assert trio.current_time() == 0


async def test_a_test_that_failed_first_is_not_forgotten(autojump_clock: MockClock) -> None:
    """Where a tracker fails because of it, its error shows in what context."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is CLOSED:
            raise ValueError("a tracker's own error")

    async def test(server: MemoryServer) -> None:
        await server.connect()
        raise KeyError("the test's own")

    with pytest.raises(ValueError, match="tracker's own") as raised:
        await serve(app, test, tracker=TrackerFunc(fail))
    assert repr(raised.value.__context__) == 'KeyError("the test\'s own")'


@pytest.mark.parametrize("grouped", [False, True])
async def test_an_error_keeps_its_own_cause(grouped: bool, autojump_clock: MockClock) -> None:
    """And a group is not its own."""
    original = KeyError("the cause")

    def fail(conn: Conn, state: ConnState) -> None:
        error = ValueError("a tracker's own error")
        raise (ExceptionGroup("two", [error, error]) if grouped else error) from original

    async def connect(server: MemoryServer) -> None:
        await server.connect()
        await trio.lowlevel.checkpoint()

    with pytest.raises((ValueError, ExceptionGroup)) as raised:
        await serve(app, connect, tracker=TrackerFunc(fail))
    assert raised.value.__cause__ is original
    assert isinstance(raised.value, ExceptionGroup) == grouped


async def test_an_error_is_not_lost_in_a_cancellation(autojump_clock: MockClock) -> None:
    """Of whatever is around the server."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is CLOSED:
            raise ValueError("a tracker's own error")

    async def connect(server: MemoryServer) -> None:
        await server.connect()
        scope.cancel()
        await trio.sleep_forever()

    with pytest.raises(ValueError, match="own error"), trio.CancelScope() as scope:
        await serve(app, connect, tracker=TrackerFunc(fail))


async def test_a_trackers_error_at_the_end_is_not_lost(autojump_clock: MockClock) -> None:
    """Also where the block has already been left."""

    def fail(conn: Conn, state: ConnState) -> None:
        if state is CLOSED:
            raise ValueError("a tracker's own error")

    async def connect(server: MemoryServer) -> None:
        await server.connect()

    with pytest.raises(ValueError, match="own error"):
        await serve(app, connect, tracker=TrackerFunc(fail))


async def test_an_error_of_the_server_ends_the_test(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which in production would have cost one connection, and a line in the log."""

    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("trio_httptrack._connection.http1.read_request_head", fail)

    async def send_requests(server: MemoryServer) -> None:
        await http1(await server.connect())  # which fails, too, because of it

    with pytest.raises(ZeroDivisionError):
        await serve(app, send_requests)


async def test_a_handlers_error_becomes_a_500_and_does_not_fail_the_test(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As in production: the client gets a 500, and the error is logged."""
    async with memory_server(app) as server:
        assert await http1(await server.connect(), path="/raise") == (500, b"")
        assert await http1(await server.connect()) == (200, b"/")
    assert "the application's own error" in caplog.text


@pytest.mark.parametrize("in_a_nursery", [False, True])
async def test_pytest_fail_in_a_handler_ends_the_test(
    in_a_nursery: bool, autojump_clock: MockClock
) -> None:
    """As does what else is no Exception, such as a skip or a timeout of the test's."""

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if in_a_nursery:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
        pytest.fail("should not be called")

    async def fail() -> None:
        pytest.fail("should not be called")

    async def send_requests(server: MemoryServer) -> None:
        await http1(await server.connect())

    with pytest.raises(BaseException, match=r"should not be called|nursery") as raised:
        await serve(app, send_requests)
    failed = raised.value.exceptions[0] if in_a_nursery else raised.value  # type: ignore[attr-defined]
    assert isinstance(failed, pytest.fail.Exception)


@pytest.mark.parametrize("when", ["startup", "running", "shutdown"])
async def test_an_error_in_the_lifespan_ends_the_test(when: str, autojump_clock: MockClock) -> None:
    """As itself, whenever it happens; production goes on without a lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if when == "startup":
            raise ZeroDivisionError
        await send({"type": "lifespan.startup.complete"})
        if when == "running":
            await trio.sleep(5)
            raise ZeroDivisionError
        await receive()
        raise ZeroDivisionError

    begun = []

    async def test(server: MemoryServer) -> None:
        begun.append(server)
        if when == "running":
            await trio.sleep_forever()

    with pytest.raises(ZeroDivisionError) as raised:
        await serve(app, test)
    assert len(begun) == (0 if when == "startup" else 1)
    assert raised.value.__cause__ is None
    assert trio.current_time() == (5 if when == "running" else 0)
    if sys.version_info >= (3, 11):
        assert "in its lifespan" in raised.value.__notes__[0]


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_lifespan_that_reports_its_failure_fails_the_test(
    when: str, autojump_clock: MockClock
) -> None:
    """With its message."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive())["type"] != f"lifespan.{when}":
            await send({"type": f"{event['type']}.complete"})
        await send({"type": f"lifespan.{when}.failed", "message": "no database"})

    with pytest.raises(LifespanFailureError, match=f"{when}.*no database"):
        await serve(app)


@pytest.mark.parametrize("manner", ["keeps it to itself", "in a nursery"])
@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_failed_lifespan_reaches_the_test_however_it_leaves_the_application(
    when: str, manner: str, autojump_clock: MockClock
) -> None:
    """Or does not: the server ends in any case."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive())["type"] != f"lifespan.{when}":
            await send({"type": f"{event['type']}.complete"})
        failed = {"type": f"lifespan.{when}.failed", "message": "no database"}
        if manner == "in a nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, failed)
        else:
            with suppress(LifespanFailureError):
                await send(failed)

    with pytest.raises(LifespanFailureError, match="no database"):
        await serve(app)
    assert trio.current_time() == 0


@pytest.mark.parametrize("when", ["startup", "shutdown"])
async def test_a_lifespan_that_never_responds_fails_the_test(
    when: str, autojump_clock: MockClock
) -> None:
    """After its timeout, in virtual time."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive())["type"] != f"lifespan.{when}":
            await send({"type": f"{event['type']}.complete"})
        await trio.sleep_forever()

    with pytest.raises(LifespanTimeoutError):
        await serve(app, startup_timeout=600, shutdown_timeout=600)
    assert trio.current_time() == 600


@without_lifespan
async def returns(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, b"hello")


async def asserts(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await respond(send, b"hello")


async def answers_anything(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await respond(send, b"hello")


@pytest.mark.parametrize("app", [returns, asserts, answers_anything])
async def test_an_application_needs_no_lifespan(
    app: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """However it refuses the lifespan; nothing is logged."""
    async with memory_server(app) as server:
        assert await http1(await server.connect()) == (200, b"hello")
    assert not problems(caplog)


# Connections


async def test_a_connection_is_accepted_when_connect_returns(autojump_clock: MockClock) -> None:
    """NEW was reported, and of what."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker) as server:
        with assert_checkpoints():
            stream = await server.connect()
        assert tracker.states(stream.conn) == [NEW]
        assert str(stream.conn) in repr(stream)
        assert tracker.conns == [stream.conn]


@pytest.mark.parametrize(
    ("client", "server_host"), [(("192.0.2.7", 4711), "127.0.0.1"), (("2001:db8::7", 4711), "::1")]
)
async def test_a_client_has_the_address_that_it_was_given(
    client: tuple[str, int], server_host: str, autojump_clock: MockClock
) -> None:
    """For the trackers and for the application; two others never have the same."""
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, b"")

    async with memory_server(without_lifespan(app)) as server:
        stream = await server.connect(client=client)
        await http1(stream)
        assert stream.conn.client == client == tuple(scopes[0]["client"])
        assert stream.conn.server == (server_host, 80)
        others = [await server.connect(), await server.connect(tls=True)]
        assert others[0].conn.client != others[1].conn.client
        assert others[1].conn.server == ("127.0.0.1", 443)


@pytest.mark.parametrize(
    ("offered", "agreed"), [([], None), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "h2")]
)
async def test_tls_is_real(
    offered: list[str], agreed: str | None, autojump_clock: MockClock
) -> None:
    """A certificate that the client trusts, and a protocol that both agree on."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker) as server:
        stream = await server.connect(tls=True, alpn=offered)
        assert stream.alpn == agreed
        assert stream.conn.tls
        if agreed == "h2":
            client = Http2(stream)
            await client.start()
            assert await client.get("/hello") == ("200", b"/hello")
        else:
            assert await http1(stream, path="/hello") == (200, b"/hello")
        assert stream.conn.protocol == (agreed or "http/1.1")
        await stream.aclose()
        await tracker.wait_for(CLOSED)
    assert stream.conn.close_reason is None


async def test_the_certificate_of_the_config_is_used(
    certificate: Path, autojump_clock: MockClock
) -> None:
    """And the client's end trusts that one."""
    expected = certificate.read_text()  # noqa: ASYNC240
    config = Config.from_mapping(certfile=str(certificate), keyfile=str(certificate))
    async with memory_server(app, config) as server:
        stream = await server.connect(tls=True)
        assert await http1(stream) == (200, b"/")
        assert stream._tls is not None
        pem = ssl.DER_cert_to_PEM_cert(stream._tls.getpeercert(binary_form=True))
        assert pem in expected


async def test_without_a_handshake_the_client_is_left_alone(autojump_clock: MockClock) -> None:
    """It may send anything, or nothing."""
    async with memory_server(app, ssl_handshake_timeout=7) as server:
        stream = await server.connect(tls=True, handshake=False)
        assert await stream.receive_some() == b""
        assert trio.current_time() == 7
        assert stream.alpn is None
    assert stream.conn.close_reason == "tls_handshake_failed"


@pytest.mark.parametrize("arguments", [{}, {"tls": True, "handshake": False}])
async def test_alpn_without_a_handshake_is_refused(arguments: Any) -> None:
    """There is no handshake in which to offer it."""
    async with memory_server(app) as server:
        with pytest.raises(ValueError, match=r"alpn=\['h2'\] needs a TLS handshake"):
            await server.connect(alpn=["h2"], **arguments)
        assert server.stats().accepted_total == 0


async def test_a_failed_handshake_is_raised_and_leaves_nothing_behind(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As trio.SSLStream raises it, such as for a certificate that is another's."""
    async with memory_server(app) as server:
        monkeypatch.setattr(server._tls, "_trusted", CERT.cert_chain_pems[0].bytes().decode())
        with pytest.raises(trio.BrokenResourceError):
            await server.connect(tls=True)
        await wait_all_tasks_blocked()
        assert server.connections() == {}


@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_can_end_in_each_manner(tls: bool, autojump_clock: MockClock) -> None:
    """Closed, half-closed, or reset."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        closing, half, resetting = [await server.connect(tls=tls) for _ in range(3)]
        for stream in (closing, half, resetting):
            await http1(stream)
            await stream.send_all(b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await wait_all_tasks_blocked()
        await closing.aclose()
        await half.send_eof()
        resetting.reset()
        await recorder.wait_terminal(3)
        response = await read_to_end(half)
        assert response.endswith(b"" if tls else b"/until-disconnect")
    assert recorder.sequences() == ["NAIAC"] * 3
    if not tls:  # where an end is the end of both directions
        assert [conn.close_reason for conn in recorder.conns] == [None, None, "connection_reset"]
    assert trio.current_time() == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_a_client_that_stops_reading_stops_the_handler(
    tls: bool, autojump_clock: MockClock
) -> None:
    """Back-pressure is real: what is on its way is bounded."""
    sent = 0

    @without_lifespan
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1000), "more_body": True})
            sent += 1000

    async with memory_server(endless) as server:
        stream = await server.connect(tls=tls)
        await stream.send_all(GET)
        await trio.sleep(1000)
        assert 50_000 < sent < 70_000
        before = sent
        for _ in range(10):
            await stream.receive_some()
        await trio.sleep(1)
        assert sent > before
        await stream.wait_send_all_might_not_block()
        stream.reset()


# What records


async def test_the_record_reads_as_a_sentence_for_each_connection(
    autojump_clock: MockClock,
) -> None:
    """As a failing assertion shows it."""
    tracker = RecordingTracker()
    assert repr(tracker) == "RecordingTracker: no connection"

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(0.3)
        await respond(send, b"")

    async with memory_server(slow, tracker=tracker, keep_alive_timeout=5) as server:
        one = await server.connect(tls=True, alpn=["h2"], client=("127.0.0.1", 40112))
        client = Http2(one)
        await client.start()
        await client.get()
        await server.connect()
        await one.conn.wait_closed()
    assert repr(tracker) == (
        "Conn 1 127.0.0.1:40112 h2: NEW 0.0 > ACTIVE 0.0 > IDLE 0.0 > ACTIVE 0.0 > "
        "IDLE 0.3 > CLOSED 5.3 (keep_alive_timeout)\n"
        "Conn 2 127.0.0.1:40001: NEW 0.3 > CLOSED 5.3 "
        "(request_headers_timeout)"
    )


async def test_waiting_for_a_state_misses_none(autojump_clock: MockClock) -> None:
    """Neither one that has been reported, nor one of a certain connection, nor the second."""
    tracker = RecordingTracker()
    one, other = Conn(), Conn()
    tracker.track(one, NEW)
    with assert_checkpoints():
        assert await tracker.wait_for(NEW) == (one, NEW, 0)

    times = []

    async def wait() -> None:
        times.append((await tracker.wait_for(IDLE)).time)

    async def report() -> None:
        for time, conn in enumerate([one, other, one]):
            await trio.sleep_until(time + 1)
            tracker.track(conn, IDLE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(report)
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        assert (await tracker.wait_for(IDLE, conn=other)).time == 2
        assert times == [1, 1]
        assert (await tracker.wait_for(IDLE)).time == 1
        assert (await tracker.wait_for(IDLE, conn=one, times=2)).time == 3
        assert (await tracker.wait_for(IDLE, times=3)).time == 3
    with pytest.raises(ValueError, match="times must be at least 1, not 0"):
        await tracker.wait_for(IDLE, times=0)
    with pytest.raises(ValueError, match="'idle' is not a valid ConnState"):
        await tracker.wait_for("idle")  # type: ignore[arg-type]
    assert tracker.states(one) == [NEW, IDLE, IDLE]
    assert tracker.states(Conn()) == []


async def test_anything_may_stand_for_a_connection(autojump_clock: MockClock) -> None:
    """As with the other trackers."""
    tracker = RecordingTracker()
    tracker.track(("me", 1), NEW)  # type: ignore[arg-type]
    assert tracker.states(("me", 1)) == [NEW]  # type: ignore[arg-type]
    assert repr(tracker) == "('me', 1): NEW 0.0"


# Clients


@pytest.mark.parametrize(
    ("url", "protocols", "spoken"),
    [
        ("http://app/hello", {}, "HTTP/1.1"),
        ("https://app/hello", {}, "HTTP/1.1"),
        ("https://app:8443/hello", {"http2": True}, "HTTP/2"),
        ("http://app/hello", {"http1": False, "http2": True}, "HTTP/2"),
    ],
)
async def test_httpx_reaches_the_application(
    url: str, protocols: dict[str, bool], spoken: str, autojump_clock: MockClock
) -> None:
    """By real HTTP/1.1 and HTTP/2, on a connection that is kept."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        transport = server.httpx_transport(**protocols)
        async with httpx.AsyncClient(transport=transport) as client:
            for _ in range(2):
                response = await client.get(url)
                assert (response.http_version, response.text) == (spoken, "/hello")
            body = bytes(200_000)
            response = await client.post(httpx.URL(url).join("/body"), content=body)
            assert response.content == body
        await recorder.wait_terminal()
    assert recorder.sequences() == ["NAIAIAIC" if spoken == "HTTP/1.1" else "NAIAIAIAIC"]


async def test_httpx_opens_another_connection_where_the_server_has_closed_one(
    autojump_clock: MockClock,
) -> None:
    """It sees the end of a connection that it keeps."""
    async with (
        memory_server(app, keep_alive_timeout=5) as server,
        httpx.AsyncClient(transport=server.httpx_transport()) as client,
    ):
        for _ in range(2):
            assert (await client.get("http://app/")).text == "/"
            await trio.sleep(10)
        assert server.stats().accepted_total == 2


async def test_httpx_has_its_own_errors(autojump_clock: MockClock) -> None:
    """Its timeouts in virtual time, and what the server does to its connections."""

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await trio.sleep(600)

    async with (
        memory_server(slow, graceful_timeout=1) as server,
        httpx.AsyncClient(transport=server.httpx_transport(), timeout=30) as client,
    ):
        with pytest.raises(httpx.ReadTimeout):
            await client.get("http://app/")
        assert trio.current_time() == 30
        async with client.stream("GET", "http://app/stream") as response:
            await server.shutdown()
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
        with pytest.raises(httpx.ConnectError):
            await client.get("http://app/")


async def test_httpx_sees_a_stream_as_it_comes(autojump_clock: MockClock) -> None:
    """Not only when all of it is there."""

    @without_lifespan
    async def ticks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            await trio.sleep(1)
        await send({"type": "http.response.body"})

    async with (
        memory_server(ticks) as server,
        httpx.AsyncClient(transport=server.httpx_transport()) as client,
        client.stream("GET", "http://app/") as response,
    ):
        times = [trio.current_time() async for _ in response.aiter_raw()]
    assert times == [0, 1, 2]


async def test_many_httpx_requests_can_be_in_flight(autojump_clock: MockClock) -> None:
    """No pool of the transport's own keeps any of them waiting."""

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        await respond(send, b"")

    async with (
        memory_server(slow) as server,
        httpx.AsyncClient(transport=server.httpx_transport()) as client,
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(client.get, "http://app/")
        assert trio.current_time() == 1


async def test_trio_websocket_works_on_a_connection(autojump_clock: MockClock) -> None:
    """Its handshake, messages both ways, and its close."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker) as server:
        stream = await server.connect(tls=True)
        async with trio.open_nursery() as nursery:
            websocket = await trio_websocket.wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]
                "localhost",
                "/",
            )
            await websocket.send_message("hello")
            assert await websocket.get_message() == "hello"
            await websocket.aclose()
        await stream.conn.wait_closed()
    assert tracker.states(stream.conn) == [NEW, ACTIVE, HIJACKED]


async def test_h11_works_on_a_connection(autojump_clock: MockClock) -> None:
    """One request after the other."""
    async with memory_server(app) as server:
        stream = await server.connect()
        client = h11.Connection(h11.CLIENT)
        for target in ("/1", "/2"):
            headers = [("Host", "localhost")]
            request = client.send(h11.Request(method="GET", target=target, headers=headers))
            await stream.send_all(request + (client.send(h11.EndOfMessage()) or b""))
            assert await read_response(stream, client) == (200, target.encode())
            client.start_next_cycle()


@pytest.mark.parametrize("package", ["httpx", "httpcore", "trustme"])
async def test_what_is_not_installed_is_named(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that installs it; the rest works without."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "trio_httptrack.testing._httpx", raising=False)
    _certificate.cache_clear()
    words = rf"needs {package}: pip install 'trio-httptrack\[testing\]'"
    async with memory_server(app) as server:
        with pytest.raises(ModuleNotFoundError, match=words):
            server.httpx_transport() if package != "trustme" else await server.connect(tls=True)
        assert await http1(await server.connect()) == (200, b"/")


async def test_httpx_reports_a_failed_handshake_as_a_connect_error(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a connection that could not be made, of which nothing is left."""
    async with (
        memory_server(app) as server,
        httpx.AsyncClient(transport=server.httpx_transport()) as client,
    ):
        monkeypatch.setattr(server._tls, "client", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        with pytest.raises(httpx.ConnectError):
            await client.get("https://app/")
        await wait_all_tasks_blocked()
        assert server.connections() == {}


async def test_an_error_of_the_tests_own_passes_httpx_as_it_is(autojump_clock: MockClock) -> None:
    """Such as one in a body that it makes as it goes."""

    async def body() -> AsyncIterator[bytes]:
        yield b"some"
        raise ZeroDivisionError

    async with (
        memory_server(app) as server,
        httpx.AsyncClient(transport=server.httpx_transport()) as client,
    ):
        with pytest.raises(ZeroDivisionError):
            await client.post("http://app/body", content=body())
