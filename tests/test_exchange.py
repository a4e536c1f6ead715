"""What an application may do with ``receive`` and ``send``, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from errno import EPIPE
from pathlib import Path
from typing import Any

import h11
import pytest
import trio
from hypercorn.middleware import TrioWSGIMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_httptrack._connection.errors import ClientDisconnected, UnexpectedMessage
from trio_httptrack.testing import ClientStream, memory_server
from trio_httptrack.testing._network import BUFFER_SIZE

from .clients import Http2, http1, read_to_end
from .support import OLD_HYPERCORN, problems, respond, without_lifespan

App = Callable[[Any, Any, Any], Awaitable[None]]

OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": []}
BODY: dict[str, Any] = {"type": "http.response.body", "body": b"body"}
MORE: dict[str, Any] = {**BODY, "more_body": True}
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
DISCONNECT = {"type": "http.disconnect"}


def event(body: bytes, more: bool = False) -> dict[str, object]:
    return {"type": "http.request", "body": body, "more_body": more}


class Handler:
    """Runs a test's own steps as the handler of the first request, with its callables."""

    def __init__(self, steps: App) -> None:
        self._steps = steps
        self.done = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await self._steps(scope, receive, send)
        self.done.set()


@asynccontextmanager
async def handling(steps: App, **settings: Any) -> AsyncIterator[tuple[ClientStream, Handler]]:
    """A client of a server with a handler that must come to its end within a minute."""
    handler = Handler(steps)
    async with memory_server(handler, **settings) as server:
        client = await server.connect()
        yield client, handler
        with trio.fail_after(60):
            await handler.done.wait()


def cancelled() -> AbstractContextManager[trio.CancelScope]:
    scope = trio.CancelScope()
    scope.cancel()
    return scope


def expired() -> AbstractContextManager[trio.CancelScope]:
    return trio.move_on_after(0)


@contextmanager
def within_cancelled() -> Iterator[trio.CancelScope]:
    """A scope that is not cancelled itself, but one around it is."""
    with cancelled(), trio.CancelScope() as scope:
        yield scope


POLLS = [cancelled, expired, within_cancelled]
Poll = Callable[[], AbstractContextManager[trio.CancelScope]]


async def polled(poll: Poll, receive: Any) -> Any:
    """What is there; None if nothing is."""
    with poll():
        return await receive()
    return None


# Polling


@pytest.mark.parametrize("poll", POLLS)
@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (GET, b""),
        (POST + b"0123456789", b"0123456789"),
        (GET.replace(b"Host", b"X: 1\r\nX: 2\r\nHost"), b""),
    ],
    ids=["get", "post", "unusual"],
)
async def test_a_poll_finds_the_whole_body_and_nothing_until_the_client_goes(
    sent: bytes, body: bytes, poll: Poll, autojump_clock: MockClock
) -> None:
    """Then it finds the disconnect, as often as it is repeated."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        assert await polled(poll, receive) == event(body)
        for _ in range(3):
            assert await polled(poll, receive) is None
        client.reset()
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert await polled(poll, receive) == DISCONNECT
        assert await receive() == DISCONNECT

    async with handling(steps) as (client, _):
        await client.send_all(sent)


@pytest.mark.parametrize("poll", POLLS)
@pytest.mark.parametrize(
    ("head", "parts"),
    [(POST, [b"01234", b"56789"]), (CHUNKED, [b"5\r\n01234\r\n", b"5\r\n56789\r\n"])],
    ids=["length", "chunked"],
)
async def test_a_poll_finds_each_part_when_it_has_come(
    head: bytes, parts: list[bytes], poll: Poll, autojump_clock: MockClock
) -> None:
    """What arrives between two polls is there for the next poll, or for a waiting receive."""
    last = [b"0\r\n\r\n"] if head == CHUNKED else []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        assert await polled(poll, receive) is None
        await client.send_all(parts[0])
        await wait_all_tasks_blocked()
        assert await polled(poll, receive) == event(b"01234", True)
        assert await polled(poll, receive) is None
        await client.send_all(parts[1])
        await wait_all_tasks_blocked()
        assert await receive() == event(b"56789", bool(last))
        for each in last:
            await client.send_all(each)
            await wait_all_tasks_blocked()
            assert await polled(poll, receive) == event(b"")
        await client.send_eof()
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert await polled(poll, receive) == DISCONNECT

    async with handling(steps) as (client, _):
        await client.send_all(head)


@pytest.mark.parametrize("poll", POLLS)
async def test_a_poll_finds_over_http_2_what_it_finds_over_http_1(
    poll: Poll, autojump_clock: MockClock
) -> None:
    """The body, and the client's reset of the stream."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        assert await polled(poll, receive) is None
        client.h2.send_data(stream, b"01234")
        await client.flush()
        await wait_all_tasks_blocked()
        assert await polled(poll, receive) == event(b"01234", True)
        assert await polled(poll, receive) is None
        client.h2.reset_stream(stream)
        await client.flush()
        await wait_all_tasks_blocked()
        for _ in range(3):
            assert await polled(poll, receive) == DISCONNECT

    async with handling(steps) as (transport, _):
        client = Http2(transport)
        await client.start()
        stream = client.request(method="POST", end=False)
        await client.flush()
        await wait_all_tasks_blocked()


async def test_a_poll_finds_the_disconnect_behind_the_response(
    autojump_clock: MockClock,
) -> None:
    """Then the client has all that it waited for."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")
        assert await polled(cancelled, receive) == event(b"")  # which nobody has read yet
        for _ in range(3):
            assert await polled(cancelled, receive) == DISCONNECT

    async with handling(steps) as (client, _):
        assert await http1(client) == (200, b"done")


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_starlette_finds_out_whether_its_client_has_gone(
    over: str, autojump_clock: MockClock
) -> None:
    """Its is_disconnected() cancels a receive before it begins."""
    found: list[object] = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        found.append(await request.body())
        found.append(await request.is_disconnected())
        found.append(await request.is_disconnected())
        client.reset()
        await wait_all_tasks_blocked()
        found.append(await request.is_disconnected())
        found.append(await request.is_disconnected())

    async with handling(steps) as (client, _):
        if over == "h2":
            http2 = Http2(client)
            await http2.start()
            stream = http2.request(method="POST", end=False)
            http2.h2.send_data(stream, b"0123456789", end_stream=True)
            await http2.flush()
        else:
            await client.send_all(POST + b"0123456789")
    assert found == [b"0123456789", False, False, True, True]


async def test_starlette_stops_a_stream_when_its_client_goes(
    autojump_clock: MockClock,
) -> None:
    """Its StreamingResponse waits for the disconnect beside what it sends."""
    sent = 0

    async def ticks() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            yield b"tick\n"
            sent += 1
            await trio.sleep(1)

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await StreamingResponse(ticks())(scope, receive, send)

    async with handling(steps) as (client, handler):
        await client.send_all(GET)
        await trio.sleep(3.5)
        await client.aclose()
        await handler.done.wait()
        assert trio.current_time() <= 5
    assert sent <= 6


async def test_starlette_reads_an_upload_in_its_parts(autojump_clock: MockClock) -> None:
    """As they come, and to the end."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        parts = [part async for part in Request(scope, receive).stream()]
        await PlainTextResponse(b"|".join(parts))(scope, receive, send)

    async with handling(steps) as (client, _):
        await client.send_all(POST)
        for part in (b"0123", b"45", b"6789"):
            await wait_all_tasks_blocked()
            await client.send_all(part)
        response = await client.receive_some()
    assert response.endswith(b"\r\n\r\n0123|45|6789|")


# Checkpoints


async def test_every_receive_is_a_checkpoint(autojump_clock: MockClock) -> None:
    """Whether its event was there, is waited for, is the disconnect, or follows the response."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for expected in [event(b"0123", True), event(b"456789"), DISCONNECT, DISCONNECT]:
            with assert_checkpoints():
                assert await receive() == expected
        await respond(send, b"")
        with assert_checkpoints():
            assert await receive() == DISCONNECT

    async with handling(steps) as (client, _):
        await client.send_all(POST + b"0123")
        await wait_all_tasks_blocked()
        await client.send_all(b"456789")
        await wait_all_tasks_blocked()
        await client.send_eof()

    async def whole(scope: Any, receive: Any, send: Any) -> None:
        with assert_checkpoints():
            assert await receive() == event(b"0123456789")

    async with handling(whole) as (client, _):
        await client.send_all(POST + b"0123456789")


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_every_send_is_a_checkpoint(over: str, autojump_clock: MockClock) -> None:
    """Whether it is written, held back or refused."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for message, error in [
            (BODY, UnexpectedMessage),  # before its head
            ({**OK, "status": "none"}, ValueError),
            ({"type": "nonsense"}, UnexpectedMessage),
            ({}, KeyError),
            (OK, None),
            (OK, UnexpectedMessage),
            ({**BODY, "body": None}, TypeError),
            (MORE, None),
            ({**MORE, "body": b""}, None),
            (OK, UnexpectedMessage),
            (BODY, None),
            (BODY, UnexpectedMessage),
            (OK, UnexpectedMessage),
        ]:
            with assert_checkpoints():
                if error is None:
                    await send(message)
                else:
                    with pytest.raises(error):
                        await send(message)

    async with handling(steps) as (client, _):
        if over == "h2":
            http2 = Http2(client)
            await http2.start()
            assert await http2.get() == ("200", b"bodybody")
        else:
            assert await http1(client) == (200, b"bodybody")


async def test_a_send_to_a_client_that_has_gone_is_a_checkpoint(autojump_clock: MockClock) -> None:
    """However often it is tried."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        client.reset()
        await wait_all_tasks_blocked()
        for message in (OK, BODY, {"type": "nonsense"}) * 3:
            with assert_checkpoints(), pytest.raises(ClientDisconnected):
                await send(message)

    async with handling(steps) as (client, _):
        await client.send_all(GET)


# Cancellation


@pytest.mark.parametrize("poll", POLLS)
async def test_a_cancelled_send_has_sent_nothing(poll: Poll, autojump_clock: MockClock) -> None:
    """So it can be sent again, and is there once."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for message in ({**OK, "status": 404}, OK, MORE, BODY):
            with poll():
                await send({**message, "body": b"never", "headers": [(b"x-never", b"1")]})
                pytest.fail("it was sent all the same")
            if message.get("status") != 404:
                await send(message)

    async with handling(steps) as (client, _):
        await client.send_all(GET)
        await wait_all_tasks_blocked()
        response = bytes(await client.receive_some())
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"never" not in response
    assert response.endswith(b"\r\n\r\n4\r\nbody\r\n4\r\nbody\r\n0\r\n\r\n")


async def test_a_cancelled_receive_takes_nothing(autojump_clock: MockClock) -> None:
    """After a cancelled receive, a later one gets everything."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        with trio.move_on_after(3) as scope:
            await receive()
        assert scope.cancelled_caught
        await client.send_all(b"0123456789")
        assert await receive() == event(b"0123456789")

    async with handling(steps) as (client, _):
        await client.send_all(POST)


@pytest.mark.parametrize("how", ["waits", "polls", "receives the disconnect", "sends"])
async def test_the_end_of_a_drain_stops_a_handler_that_only_receives(
    how: str, autojump_clock: MockClock
) -> None:
    """Even one that polls, and one that ignores that its client has gone."""

    @without_lifespan
    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        while True:
            autojump_clock.jump(0.01)  # who never waits has to move the clock himself
            if how == "waits":
                await receive()
            elif how == "polls":
                await polled(cancelled, receive)
            elif how == "sends":
                with pytest.raises(UnexpectedMessage):
                    await send({"type": "nonsense"})
            else:
                assert await receive() == DISCONNECT

    async with memory_server(stubborn, graceful_timeout=3) as server:
        client = await server.connect()
        await client.send_all(GET)
        if how == "receives the disconnect":
            await client.send_eof()
        await trio.sleep(0.1)
        began = trio.current_time()
    assert began + 3 <= trio.current_time() < began + 3.1


# The peer's end


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_a_send_to_a_client_that_has_gone_is_an_oserror(
    over: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """EPIPE, as often as it is tried; and it is not an error that would be logged."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        client.reset()
        await wait_all_tasks_blocked()
        for message in (OK, BODY):
            with pytest.raises(OSError, match="does not read this response") as raised:
                await send(message)
            assert raised.value.errno == EPIPE
            assert isinstance(raised.value, ClientDisconnected)
        handler.done.set()
        async with trio.open_nursery() as nursery:  # from which it comes in a group
            nursery.start_soon(send, OK)

    async with handling(steps) as (client, handler):
        if over == "h2":
            http2 = Http2(client)
            await http2.start()
            http2.request()
            await http2.flush()
        else:
            await client.send_all(GET)
    assert not problems(caplog)


async def test_an_error_beside_the_clients_end_is_logged(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a group only what is not the client's end."""

    async def fail() -> None:
        raise ValueError("the application's own error")

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        client.reset()
        await wait_all_tasks_blocked()
        handler.done.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(send, OK)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async with handling(steps) as (client, handler):
        await client.send_all(GET)
    assert len(problems(caplog)) == 1
    assert "the application's own error" in caplog.text
    assert "does not read this response" not in caplog.text


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("end", ["eof", "reset", "part"])
async def test_what_has_come_before_the_clients_end_is_received_before_it(
    end: str, size: int, autojump_clock: MockClock
) -> None:
    """However small the queue is; and the disconnect needs no room in it. Behind a reset that
    is as much as the queue had."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for number in range(10 if end == "eof" else 9):
            await client.send_all(b"%d" % number)
            await wait_all_tasks_blocked()
        if end == "reset":
            client.reset()
        else:
            await client.send_eof()
        await wait_all_tasks_blocked()
        received = b""
        while (message := await receive())["type"] == "http.request":
            received += message["body"]
            assert message["more_body"] is (len(received) < 10)
            await wait_all_tasks_blocked()
        if end == "reset":
            assert received == b"012"[:size]
        else:
            assert received == b"0123456789"[: 10 if end == "eof" else 9]
        assert await receive() == DISCONNECT

    async with handling(steps, max_app_queue_size=size) as (client, _):
        await client.send_all(POST)
        await wait_all_tasks_blocked()


async def test_the_response_of_a_client_that_has_ended_its_side_is_sent(
    autojump_clock: MockClock,
) -> None:
    """Over HTTP/1 it may still read, so the application may respond after the disconnect."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == event(b"")
        assert await receive() == DISCONNECT
        await trio.sleep(10)
        await send(OK)
        await send(MORE)
        await trio.sleep(10)
        await send(BODY)

    async with handling(steps) as (client, _):
        await client.send_all(GET)
        await client.send_eof()
        assert (await read_to_end(client)).endswith(b"4\r\nbody\r\n4\r\nbody\r\n0\r\n\r\n")
        assert trio.current_time() == 20


@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_what_an_application_does_to_its_disconnect_changes_no_other(
    over: str, autojump_clock: MockClock
) -> None:
    """Each is an event of its own."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for _ in range(2):
            disconnect = await receive()
            assert disconnect == DISCONNECT
            disconnect.clear()

    for _ in range(2):
        async with handling(steps) as (client, _):
            if over == "h2":
                http2 = Http2(client)
                await http2.start()
                http2.request()
                await http2.flush()
            else:
                await client.send_all(GET)
            await wait_all_tasks_blocked()
            client.reset()


@pytest.mark.parametrize(
    ("begun", "told", "status"),
    [(False, False, b"500"), (False, True, b""), (True, False, b"500"), (True, True, b"500")],
)
async def test_an_application_that_returns_at_the_disconnect_need_not_respond(
    begun: bool, told: bool, status: bytes, autojump_clock: MockClock
) -> None:
    """Without a disconnect, or when it has begun, it must respond: the client may still read."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send(OK)
        await wait_all_tasks_blocked()
        while told and await receive() != DISCONNECT:
            pass

    async with handling(steps) as (client, _):
        await client.send_all(GET)
        await client.send_eof()
        assert (await read_to_end(client))[9:12] == status


@pytest.mark.parametrize("over", ["http1", "h2"])
@pytest.mark.parametrize("parts", [[b"more than five"], [b"12345", b"6"], [b"1234"], [b"1", b""]])
async def test_a_body_must_be_as_long_as_its_content_length_says(
    over: str, parts: list[bytes], autojump_clock: MockClock
) -> None:
    """What is not is an error of the application, and its client sees that the response failed."""
    errors = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send({**OK, "headers": [(b"content-length", b"5")]})
        try:
            for number, part in enumerate(parts):
                more = number < len(parts) - 1
                await send({"type": "http.response.body", "body": part, "more_body": more})
        except h11.LocalProtocolError as error:
            errors.append(str(error))

    async with handling(steps) as (client, _):
        if over == "h2":
            http2 = Http2(client)
            await http2.start()
            stream = http2.request()
            await http2.flush()
            while not {stream} & (http2.reset | http2.ended):
                await http2.pump()
            assert http2.statuses.get(stream) == "500" or stream in http2.reset
        else:
            await client.send_all(GET)
            response = await read_to_end(client)
            assert response.startswith(b"HTTP/1.1 500 ") or len(response.split(b"\r\n\r\n")[1]) <= 5
    assert len(errors) == 1


# What may be sent when


@pytest.mark.parametrize(
    ("before", "state"),
    [
        ([], "before the response"),
        ([OK], "before the first part of the response's body"),
        ([OK, MORE], "in the response's body"),
        ([OK, BODY], "after the response"),
    ],
)
@pytest.mark.parametrize("type_", ["http.response.start", "http.response.body", "http.nonsense"])
async def test_a_message_that_is_not_allowed_is_refused_and_changes_nothing(
    before: list[dict[str, Any]], state: str, type_: str, autojump_clock: MockClock
) -> None:
    """The error names both, and the response goes on as it was."""
    rest = [OK, MORE, BODY]
    if before:
        rest = [MORE, BODY] if before == [OK] else [BODY]
    if before[-1:] == [BODY]:
        rest = []
    allowed = (type_ == "http.response.start") == (not before) and state != "after the response"

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        for message in before:
            await send(message)
        if not allowed or type_ == "http.nonsense":
            with pytest.raises(UnexpectedMessage) as raised:
                await send({**OK, **BODY, "type": type_})
            assert str(raised.value) == f"{type_!r} cannot be sent {state}"
        for message in rest:
            await send(message)

    expected = b"body" * sum(message["type"] == BODY["type"] for message in before + rest)
    async with handling(steps) as (client, _):
        assert await http1(client) == (200, expected)
        assert await http1(client) == (200, expected)


@pytest.mark.parametrize("big", [OK, MORE, BODY], ids=["start", "more", "last"])
async def test_a_second_task_cannot_send_into_a_response_that_waits_for_room(
    big: dict[str, Any], autojump_clock: MockClock
) -> None:
    """Its state is that behind what is being written, so what does not fit there is refused."""
    size = 3 * BUFFER_SIZE

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send(OK)
        async with trio.open_nursery() as nursery:
            if big is not OK:
                await send(MORE)
            large = {**(BODY if big is BODY else MORE), "body": b"x" * size}
            nursery.start_soon(send, large)
            await wait_all_tasks_blocked()
            with pytest.raises(UnexpectedMessage):
                await send(OK)
            if big is BODY:
                with pytest.raises(UnexpectedMessage):
                    await send(BODY)
            else:
                nursery.start_soon(send, BODY)  # in its turn
            await wait_all_tasks_blocked()
            reading.set()

    reading = trio.Event()
    async with handling(steps) as (client, _):
        await client.send_all(GET)
        await reading.wait()
        response = bytearray()
        while not response.endswith(b"\r\n0\r\n\r\n"):
            response += await client.receive_some()
    assert response.count(b"HTTP/1.1 ") == 1
    assert response.count(b"x" * size) == 1


async def test_a_head_that_cannot_be_sent_may_be_followed_by_another(
    autojump_clock: MockClock,
) -> None:
    """Nothing was written of it."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send({**OK, "headers": [(b"content-length", b"3")]})
        with pytest.raises(Exception, match="Too much data"):
            await send(BODY)
        with pytest.raises(UnexpectedMessage):
            await send(BODY)
        await respond(send, b"better", status=203)

    async with handling(steps) as (client, _):
        assert await http1(client) == (203, b"better")


@pytest.mark.parametrize("status", [1000, 101, 100, 99, 0])
@pytest.mark.parametrize("over", ["http1", "h2"])
async def test_an_invalid_status_code_is_refused_over_every_protocol(
    over: str, status: int, autojump_clock: MockClock
) -> None:
    """It is refused when it would be written, and then there may be another one."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(Exception, match=r"status"):
            await respond(send, b"bad", status=status)
        await respond(send, b"good")

    async with handling(steps) as (client, _):
        if over == "h2":
            http2 = Http2(client)
            await http2.start()
            assert await http2.get() == ("200", b"good")
        else:
            assert await http1(client) == (200, b"good")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [200, 204, 205, 304])
async def test_a_body_where_none_may_be_is_dropped(
    method: str, status: int, autojump_clock: MockClock
) -> None:
    """The client would take it for the next response."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await send({**OK, "status": status})
        await send(MORE)
        await send(BODY)

    async with handling(steps) as (client, _):
        for _ in range(2):
            expected = b"bodybody" if (method, status) == ("GET", 200) else b""
            assert await http1(client, method) == (status, expected)


# What an application leaves behind


@pytest.mark.parametrize("gone", [False, True])
async def test_a_task_that_outlives_its_application_cannot_send(
    gone: bool, autojump_clock: MockClock
) -> None:
    """Also one that comes when the whole connection has gone."""

    async def late(receive: Any, send: Any) -> None:
        await trio.sleep(10)
        for _ in range(2):
            assert await receive() == DISCONNECT
            with pytest.raises(UnexpectedMessage, match="after the application had returned"):
                await send(BODY)
        finished.set()

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == event(b"")
        if scope["path"] == "/part":
            await send(OK)
            await send(MORE)
        elif scope["path"] != "/silent":
            await respond(send, b"done")
        background.start_soon(late, receive, send)

    for path, status in (b"/", 200), (b"/silent", 500), (b"/part", 200):
        finished = trio.Event()
        async with trio.open_nursery() as background, handling(steps) as (client, _):
            await client.send_all(GET.replace(b"/", path, 1))
            assert int((await client.receive_some())[9:12]) == status
            if gone:
                await client.aclose()
            with trio.fail_after(60):
                await finished.wait()


async def test_data_that_an_application_does_not_read_is_dropped_when_it_ends(
    autojump_clock: MockClock,
) -> None:
    """When an application has returned, its client can send the rest."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)

    async with handling(steps, max_app_queue_size=1) as (client, _):
        await client.send_all(POST[:-4].replace(b"10", b"300000") + b"\r\n\r\n")
        with trio.move_on_after(0.5):
            await client.send_all(bytes(300_000))
        response = await read_to_end(client)
        assert response.startswith(b"HTTP/1.1 500 ")
        assert trio.current_time() == 1


leaking: ContextVar[str] = ContextVar("leaking", default="nothing")


@pytest.mark.parametrize("over", ["http1", "pipelined", "h2"])
async def test_context_variables_do_not_leak_into_the_next_request(
    over: str, autojump_clock: MockClock
) -> None:
    """Each handler is a task of its own, also on the same connection."""
    found = []

    @without_lifespan
    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(leaking.get())
        leaking.set(scope["path"])
        await respond(send, b"")
        leaking.set(scope["path"] + "later")

    async with memory_server(app) as server:
        client = await server.connect()
        if over == "h2":
            http2 = Http2(client)
            await http2.start()
            for _ in range(3):
                await http2.get()
        elif over == "pipelined":
            await client.send_all(GET * 3)
            await wait_all_tasks_blocked()
        else:
            for _ in range(3):
                await http1(client)
    assert found == ["nothing"] * 3


async def test_each_request_has_its_own_copy_of_the_lifespans_state(
    autojump_clock: MockClock,
) -> None:
    """Of the dictionary, but not of what is in it."""
    found = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["shared"] = []
            while True:
                await send({"type": (await receive())["type"] + ".complete"})
        found.append(dict(scope["state"]))
        scope["state"]["own"] = scope["path"]
        scope["state"]["shared"].append(scope["path"])
        await respond(send, b"")

    async with memory_server(app) as server:
        client = await server.connect()
        for path in ("/1", "/2"):
            await http1(client, path=path)
    assert found == [{"shared": ["/1", "/2"]}] * 2


# WSGI


class Wsgi:
    """Notes with what it was called; an application as such, or in Hypercorn's middleware."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.bodies.append(environ["wsgi.input"].read())
        start_response("200 OK", [("content-length", "4")])
        return [b"wsgi"]


@pytest.mark.skipif(OLD_HYPERCORN, reason="Hypercorn 0.17 serves WSGI with warnings")
@pytest.mark.parametrize("middleware", [False, True])
@pytest.mark.parametrize(
    "sent",
    [
        POST.replace(b"10", b"100") + b"0123456789",
        CHUNKED + b"a\r\n0123456789\r\n",
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("end", ["close", "eof"])
async def test_a_wsgi_application_is_not_called_with_a_part_of_a_body(
    end: str, sent: bytes, middleware: bool, certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that disconnects after 10 of 100 bytes has sent no complete request."""
    wsgi = Wsgi()
    app: Any = TrioWSGIMiddleware(wsgi) if middleware else wsgi
    async with memory_server(app, drain_idle_timeout=0) as server:
        client = await server.connect()
        await client.send_all(sent)
        await wait_all_tasks_blocked()
        if end == "eof":
            await client.send_eof()
            assert (await read_to_end(client)).startswith(b"HTTP/1.1 400 ")
        await client.aclose()
        await client.conn.wait_closed()
        other = await server.connect()
        body = b"x" * 50_000
        assert await http1(other, "POST", body=body, Content_Length="50000") == (200, b"wsgi")
        assert wsgi.bodies == [body]
    assert not problems(caplog)
