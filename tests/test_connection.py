"""One connection: its deadlines, its errors and its end, in virtual time."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_httptrack import Conn, ConnState, ConnTracker, TrackerFunc, compose
from trio_httptrack._connection.connection import Connection
from trio_httptrack.testing import memory_server

from .clients import GoAwayHttp2, Http2, http1, read_to_end
from .support import (
    Recorder,
    app,
    problems,
    respond,
    socket_server,
    without_lifespan,
)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def ends(recorder: Recorder) -> list[tuple[float, str | None]]:
    """When each connection was closed, and why."""
    return [
        (time, conn.close_reason)
        for conn, state, time in recorder.events
        if state is ConnState.CLOSED
    ]


async def test_an_idle_connection_ends_at_its_deadline(autojump_clock: MockClock) -> None:
    """It ends exactly keep_alive_timeout seconds after its last response."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        await http1(client)
        await trio.sleep(4)
        await http1(client)
        assert await client.receive_some() == b""
    assert ends(recorder) == [(9, "keep_alive_timeout")]


async def test_a_connection_that_has_ended_is_not_kept_for_its_timeout(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Neither after its requests nor before the first one."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        for requests in range(2):
            client = await server.connect()
            for _ in range(requests):
                await http1(client)
            await client.aclose()
        await recorder.wait_terminal(connections=2)
        worker = connections[0]._server
        assert not len(worker.keep_alive_timeout)
        assert not len(worker.handshake_timeout)


async def test_bytes_that_are_no_request_win_no_time(autojump_clock: MockClock) -> None:
    """A client that trickles its request head is closed keep_alive_timeout after it came."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        for byte in GET[:4]:
            await client.send_all(bytes([byte]))
            await trio.sleep(1)
        assert await client.receive_some() == b""
    assert ends(recorder) == [(5, "request_headers_timeout")]


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_silent_tls_client_ends_at_the_handshakes_deadline(
    sent: bytes, autojump_clock: MockClock
) -> None:
    """ssl_handshake_timeout applies to a client that sends nothing, or not enough."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, ssl_handshake_timeout=7) as server:
        client = await server.connect(tls=True, handshake=False)
        await client.send_all(sent)
        assert await client.receive_some() == b""
    assert ends(recorder) == [(7, "tls_handshake_failed")]


async def test_garbage_instead_of_a_handshake_ends_at_once(autojump_clock: MockClock) -> None:
    """What is not TLS is closed when it is read."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        client = await server.connect(tls=True, handshake=False)
        await client.send_all(GET)
        while await client.receive_some():
            pass
        await recorder.wait_terminal()
    assert ends(recorder) == [(0, "tls_handshake_failed")]


async def test_a_working_handler_has_no_deadline(autojump_clock: MockClock) -> None:
    """An active connection outlives keep_alive_timeout by far."""

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(600)
        await respond(send, b"done")

    recorder = Recorder()
    async with memory_server(slow, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        assert await http1(client) == (200, b"done")
        assert await client.receive_some() == b""
    assert ends(recorder) == [(605, "keep_alive_timeout")]


async def test_read_timeout_ends_an_upload_that_stalls(autojump_clock: MockClock) -> None:
    """So long after its last bytes."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, read_timeout=3) as server:
        client = await server.connect()
        await client.send_all(
            b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        )
        await trio.sleep(1)
        await client.send_all(b"some")
        assert await client.receive_some() == b""
        await recorder.wait_terminal()
    assert ends(recorder) == [(4, "read_timeout")]


@pytest.mark.parametrize("path", ["/body", "/until-disconnect"])
async def test_read_timeout_ends_an_upload_that_stalls_over_http2(
    path: str, autojump_clock: MockClock
) -> None:
    """But not a connection whose client owes nothing, whatever its handlers do."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, read_timeout=3) as server:
        client = Http2(await server.connect())
        await client.start()
        client.request("/until-disconnect")
        await client.flush()
        await trio.sleep(10)
        assert recorder.sequences() == ["NAIA"]
        stream = client.request(path, "POST", end=False)
        await client.flush()
        await trio.sleep(1)
        client.h2.send_data(stream, b"some")
        await client.flush()
        while await client.pump():
            pass
    assert ends(recorder) == [(14, "read_timeout")]


@pytest.mark.parametrize("requests", [0, 1])
async def test_a_connection_closes_with_its_peer_and_not_at_a_timeout(
    requests: int, autojump_clock: MockClock
) -> None:
    """NEW or IDLE, the connection ends with its peer and not with its timeout."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        client = await server.connect()
        for _ in range(requests):
            await http1(client)
        await client.aclose()
        await recorder.wait_terminal()
    assert ends(recorder) == [(0, None)]


async def test_an_h2_stream_that_its_client_resets_leaves_the_connection_idle(
    autojump_clock: MockClock,
) -> None:
    """With no stream left the connection rests, and ends at its deadline."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = Http2(await server.connect())
        await client.start()
        stream = client.request("/until-disconnect")
        await client.flush()
        await recorder.wait_states("NAIA")
        client.h2.reset_stream(stream)
        await client.flush()
        while await client.pump():
            pass
    assert recorder.sequences() == ["NAIAIC"]
    assert ends(recorder) == [(5, "keep_alive_timeout")]


@pytest.mark.parametrize("requests", [0, 1])
async def test_an_idle_http2_connection_gets_a_goaway_before_it_is_closed(
    requests: int, autojump_clock: MockClock
) -> None:
    """So that its client knows that a request which crosses it was not handled."""
    async with memory_server(app, keep_alive_timeout=5) as server:
        client = GoAwayHttp2(await server.connect())
        await client.start()
        for _ in range(requests):
            await client.get()
        await client.run()
    assert client.seen == [(5, "goaway", requests), (5, "end", 0)]


async def test_an_error_of_a_tracker_affects_neither_the_connection_nor_other_trackers(
    certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with the connection. The response is sent, and the other trackers are called."""

    def fail(conn: Conn, state: ConnState) -> None:
        raise ValueError("a tracker's own error")

    recorder, conns = Recorder(), ConnTracker()
    tracker = compose(TrackerFunc(fail), recorder, conns)
    async with socket_server(app, certificate, tracker=tracker) as server:
        client = await server.connect()
        assert await http1(client, Connection="close") == (200, b"/")
        await recorder.wait_terminal()
        await wait_all_tasks_blocked()
    assert recorder.sequences() == ["NAC"]
    assert conns.count == 0
    failures = [record for record in caplog.records if record.levelname == "ERROR"]
    for state, record in zip(("new", "active", "closed"), failures, strict=True):
        assert record.getMessage().startswith("A tracker failed (conn 1 ")
        assert record.getMessage().endswith(f" {state})")
    assert "a tracker's own error" in caplog.text


async def test_an_error_is_logged_with_its_connection_and_once_with_its_traceback(
    certificate: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that finds one must not be able to fill the log with tracebacks."""

    def fail(data: bytes, max_size: int) -> None:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("trio_httptrack._connection.http1.read_request_head", fail)
    recorder = Recorder()
    async with socket_server(app, certificate, tracker=recorder) as server:
        for _ in range(3):
            client = await server.connect()
            await client.send_all(GET)
            assert await read_to_end(client) == b""
    assert [reason for _, reason in ends(recorder)] == ["internal_error"] * 3
    first, *others = [record for record in caplog.records if record.levelname == "ERROR"]
    assert first.exc_info is not None
    assert [record.exc_info for record in others] == [None, None]
    for conn, record in zip(recorder.conns, [first, *others], strict=True):
        message = f"Error in a connection, which is closed ({conn}): ZeroDivisionError("
        assert record.getMessage().startswith(message)


async def test_cancelling_the_server_closes_every_connection_at_once(
    autojump_clock: MockClock,
) -> None:
    """A cancellation from outside waits for no handler and no client."""
    recorder = Recorder()
    with trio.CancelScope() as scope:
        async with memory_server(app, tracker=recorder) as server:
            client = await server.connect()
            await client.send_all(b"GET /until-disconnect HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await recorder.wait_states("NA")
            await server.connect()
            scope.cancel()
            await trio.sleep_forever()
    assert ends(recorder) == [(0, "aborted_by_app")] * 2


async def test_a_handler_learns_from_its_next_receive_or_send_that_its_peer_has_gone(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are checkpoints however often they are called, and the OSError is not logged."""
    done = trio.Event()

    @without_lifespan
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        body = {"type": "http.response.body", "body": b"more", "more_body": True}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(body)
        for _ in range(3):
            with assert_checkpoints():
                event = await receive()
            assert event["type"] in ("http.request", "http.disconnect")
        assert event["type"] == "http.disconnect"
        with assert_checkpoints():
            await send(body)  # that the client does not read either, TCP learns from this
        await wait_all_tasks_blocked()
        for _ in range(2):
            with (
                assert_checkpoints(),
                pytest.raises(
                    OSError, match=r"does not read .* \(conn \d+ 127.0.0.1:40001 http/1.1\)"
                ),
            ):
                await send(body)
        done.set()
        await send(body)

    async with memory_server(stubborn) as server:
        client = await server.connect()
        await client.send_all(GET)
        await client.receive_some()
        await client.aclose()
        await done.wait()
        await wait_all_tasks_blocked()
    assert not problems(caplog)


async def test_an_applications_own_error_is_logged_with_its_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that raises is logged, and its client gets a 500."""
    async with memory_server(app) as server:
        client = await server.connect()
        assert await http1(client, path="/raise") == (500, b"")
    assert "Error in ASGI Framework (conn" in caplog.text
    assert "the application's own error" in caplog.text


async def test_ctrl_c_is_for_the_server_and_for_applications_only(
    autojump_clock: MockClock,
) -> None:
    """Trackers, which run in the connection's own code, are protected from KeyboardInterrupt."""
    protected = []

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        protected.append(("app", trio.lowlevel.currently_ki_protected()))
        await respond(send, b"")

    tracker = TrackerFunc(
        lambda conn, state: protected.append((str(state), trio.lowlevel.currently_ki_protected()))
    )
    async with memory_server(app, tracker=tracker) as server:
        await http1(await server.connect())
    assert protected == [
        ("new", True),
        ("active", True),
        ("app", False),
        ("idle", True),
        ("closed", True),
    ]


async def test_a_response_before_the_end_of_the_request_is_not_reset(
    autojump_clock: MockClock,
) -> None:
    """Our side ends, and what the client still sends is read to nothing until it ends, too."""

    async def early(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"no, thank you", status=413)

    recorder = Recorder()
    async with memory_server(early, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        await client.send_all(b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 9000\r\n\r\n")
        response = await read_to_end(client)
        assert response.startswith(b"HTTP/1.1 413 ")
        assert response.endswith(b"no, thank you")
        for _ in range(9):
            await client.send_all(b"x" * 1000)
            await wait_all_tasks_blocked()
        assert recorder.sequences() == ["NA"]
        await client.aclose()
        await recorder.wait_terminal()
    assert ends(recorder) == [(0, None)]


async def test_a_client_that_never_ends_its_request_is_not_lingered_for_for_ever(
    autojump_clock: MockClock,
) -> None:
    """It is closed after keep_alive_timeout seconds of sending data that is not read."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder, keep_alive_timeout=5) as server:
        client = await server.connect()
        await client.send_all(b"\x00\x01\x02\r\n\r\n")
        for _ in range(5):
            await client.send_all(b"more")
            await trio.sleep(1)
        await client.send_all(b"more")  # TCP finds out that nobody reads
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(b"more")
    assert ends(recorder) == [(5, None)]


async def test_what_a_client_sends_after_its_last_request_is_not_kept(
    autojump_clock: MockClock,
) -> None:
    """However much it is, and however long the response takes, it costs no memory."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        client = await server.connect()
        await client.send_all(b"GET /until-disconnect HTTP/1.0\r\n\r\n")
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            for _ in range(100):
                await client.send_all(b"x" * 10_000)
                await wait_all_tasks_blocked()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 200_000
        await client.aclose()
        await recorder.wait_terminal()


async def test_a_handler_receives_a_disconnect_at_once_if_its_client_breaks_the_protocol(
    autojump_clock: MockClock,
) -> None:
    """Not only when that client, which is lingered for, has ended its side."""
    told = []

    @without_lifespan
    async def upload(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.append(trio.current_time())

    async with memory_server(upload) as server:
        client = await server.connect()
        head = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send_all(head + b"no length\r\n")
        await wait_all_tasks_blocked()
    assert told == [0]


async def test_the_handler_of_a_pushed_stream_learns_that_the_peer_has_gone(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Also where the peer went while the push was being written."""
    pushed = []

    @without_lifespan
    async def push(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/pushed":
            while (event := await receive())["type"] != "http.disconnect":
                pass
            pushed.append(event)
        else:
            client.stream.reset()
            with suppress(OSError):
                await send({"type": "http.response.push", "path": "/pushed", "headers": []})

    async with memory_server(push) as server:
        client = Http2(await server.connect())
        await client.start()
        client.request()
        await client.flush()
        await wait_all_tasks_blocked()
        assert connections[0]._server.connections == set()
    assert pushed == [{"type": "http.disconnect"}]


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def test_a_websocket_client_that_sends_frames_too_early_gets_one_response(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's, if that has begun; and nothing is logged, for it is no error of ours."""
    gate = trio.Event()

    @without_lifespan
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        body = {"type": "websocket.http.response.body", "body": b"not ", "more_body": True}
        await send(body)
        await gate.wait()
        await send({"type": "websocket.http.response.body", "body": b"you"})

    async with memory_server(refuse) as server:
        client = await server.connect()
        await client.send_all(HANDSHAKE)
        await wait_all_tasks_blocked()
        await client.send_all(b"too early")
        await wait_all_tasks_blocked()
        gate.set()
        response = await read_to_end(client)
    assert response.startswith(b"HTTP/1.1 403 ")
    assert response.endswith(b"4\r\nnot \r\n3\r\nyou\r\n0\r\n\r\n")
    assert not problems(caplog)


async def test_a_websocket_message_after_one_that_was_too_big_is_no_error_of_ours(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets a close frame for the first. The second has no effect."""
    async with memory_server(app, websocket_max_message_size=10) as server:
        client = await server.connect()
        await client.send_all(HANDSHAKE)
        await wait_all_tasks_blocked()
        for frame in (b"\x82\x94" + bytes(4) + b"x" * 20, b"\x81\x81" + bytes(4) + b"y"):
            await client.send_all(frame)
            await wait_all_tasks_blocked()
        response = bytes(await client.receive_some())
    assert response.startswith(b"HTTP/1.1 101 ")
    assert response.endswith(b"\r\n\r\n\x88\x02" + (1009).to_bytes(2, "big"))
    assert not problems(caplog)


@pytest.mark.parametrize(
    "line", [b"Host: \xe9", b"Connection: \xe9", b"Sec-WebSocket-Protocol: \xe9", b"Upgrade: \xe9"]
)
async def test_a_header_that_must_be_ascii_and_is_not_is_refused(
    line: bytes, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Over HTTP/1 with a 400, over HTTP/2 by resetting its stream; other headers may be any."""
    async with memory_server(app, server_names=["here"]) as server:
        client = await server.connect()
        await client.send_all(b"GET / HTTP/1.1\r\nHost: here\r\n" + line + b"\r\n\r\n")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 400 ")
        client = await server.connect()
        await client.send_all(b"GET / HTTP/1.1\r\nHost: here\r\nCookie: \xe9\r\n\r\n")
        assert (await client.receive_some()).startswith(b"HTTP/1.1 200 ")
        http2 = Http2(await server.connect())
        await http2.start()
        http2.h2.config.validate_outbound_headers = False
        name, value = line.split(b": ")
        headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
        authority = (b":authority", value if name == b"Host" else b"here")
        extra = [] if name in (b"Host", b"Connection", b"Upgrade") else [(name.lower(), value)]
        http2.h2.send_headers(1, [*headers, authority, *extra], end_stream=True)
        good = http2.request()
        await http2.flush()
        while good not in http2.ended:
            await http2.pump()
        refused = line.startswith((b"Host", b"Sec"))
        assert http2.reset == ({1} if refused else set())
    assert not problems(caplog)


async def test_data_with_a_goaway_behind_it_is_read(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A client may send its last bytes and its farewell at once."""
    bodies = []

    @without_lifespan
    async def upload(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])

    async with memory_server(upload) as server:
        client = Http2(await server.connect())
        await client.start()
        stream_id = client.request(method="POST", end=False)
        client.h2.send_data(stream_id, b"hello", end_stream=True)
        client.h2.close_connection()
        await client.flush()
        await wait_all_tasks_blocked()
    assert bodies == [b"hello"]
    assert not problems(caplog)
