"""How a WebSocket opens and ends, and what holds it up in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import pytest
import trio
import wsproto
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    TextMessage,
)
from wsproto.extensions import Extension, PerMessageDeflate

from trio_httptrack._connection.errors import UnexpectedMessage
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server

from .clients import read_to_end
from .support import problems
from .test_drain import drained, read_head
from .test_faults import handshake

App = Callable[[Any, Any, Any], Awaitable[None]]

CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}


class Client:
    """A WebSocket client that decides itself when it reads, and what it replies."""

    def __init__(self, stream: ClientStream, *, deflate: bool = False) -> None:
        self.stream = stream
        extensions: list[Extension] = []
        if deflate:
            extensions.append(PerMessageDeflate())
            extensions[0].finalize("permessage-deflate")
        self.websocket = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT, extensions)
        self.seen: list[tuple[float, Event]] = []

    async def send(self, *events: Event) -> None:
        await self.stream.send_all(b"".join(self.websocket.send(event) for event in events))

    async def read(self) -> list[tuple[float, Event]]:
        """All that comes until the end."""
        try:
            while data := bytes(await self.stream.receive_some()):
                self.websocket.receive_data(data)
                now = trio.current_time()
                self.seen += [(now, event) for event in self.websocket.events()]
        except trio.BrokenResourceError:
            self.seen.append((trio.current_time(), Event()))
        return self.seen

    async def closing(self) -> tuple[float, int, str | None]:
        """When and with what the server closes."""
        await self.read()
        time, event = self.seen[-1]
        assert isinstance(event, CloseConnection)
        return time, int(event.code), event.reason


class Served:
    """Runs a test's steps as the application of each WebSocket."""

    def __init__(self, steps: App) -> None:
        self._steps = steps
        self.done = trio.Event()
        self.error: Exception | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        try:
            await self._steps(scope, receive, send)
        except Exception as error:  # which the server only logs
            self.error = error
            raise
        finally:
            self.done.set()


@asynccontextmanager
async def serving(
    steps: App, *lines: str, opened: bool = True, **settings: Any
) -> AsyncIterator[tuple[Client, MemoryServer]]:
    """A client that has requested a WebSocket; its application must return."""
    served = Served(steps)
    async with memory_server(served, **settings) as server:
        client = Client(await server.connect(), deflate=bool(lines))
        await client.stream.send_all(handshake("/", *lines))
        if opened:
            assert (await read_head(client.stream)).startswith(b"HTTP/1.1 101 ")
        yield client, server
        with trio.fail_after(120):
            await served.done.wait()
    if served.error is not None:
        raise served.error


class Echo:
    """Accepts, replies to each message with the same, and keeps its disconnect."""

    def __init__(self) -> None:
        self.disconnect: dict[str, Any] = {}
        self.told = 0.0  # when
        self.received: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        await send(ACCEPT)
        while (event := await receive())["type"] == "websocket.receive":
            self.received.append(event["text"] or event["bytes"])
            await send({**event, "type": "websocket.send"})
        self.disconnect, self.told = event, trio.current_time()
        assert await receive() == event  # as often as it is repeated


def disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def masked(first: int, payload: bytes) -> bytes:
    """A client's frame, with any first byte."""
    return bytes((first, 0x80 | len(payload), 0, 0, 0, 0)) + payload


# What the application learns of the end


@pytest.mark.parametrize(
    ("frame", "told", "reply"),
    [
        (masked(0x88, b"\x0f\xa0bye"), (4000, "bye"), (4000, "bye")),
        (masked(0x88, b"\x03\xe8"), (1000, ""), (1000, None)),
        (masked(0x88, b""), (1005, ""), (1005, None)),
        (masked(0xF1, b"x"), (1002, None), (1002, None)),
        (masked(0x81, b"\xff"), (1007, None), (1007, None)),
    ],
    ids=["code and reason", "code", "empty", "reserved bits", "not UTF-8"],
)
async def test_an_application_learns_why_its_websocket_was_closed(
    frame: bytes,
    told: tuple[int, str | None],
    reply: tuple[int, str | None],
    autojump_clock: MockClock,
) -> None:
    """By the client's close frame, or by the code for what it did wrong."""
    echo = Echo()
    async with serving(echo) as (client, _):
        await client.stream.send_all(frame)
        time, code, reason = await client.closing()
    assert (time, code) == (0, reply[0])
    assert echo.disconnect["code"] == told[0]
    if told[1] is not None:
        assert (echo.disconnect["reason"], reason or None) == (told[1], reply[1])


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_a_client_that_just_leaves_is_1006(how: str, autojump_clock: MockClock) -> None:
    """It sent no close frame."""
    echo = Echo()
    async with serving(echo) as (client, _):
        if how == "reset":
            client.stream.reset()
        else:
            await client.stream.aclose()
    assert echo.disconnect == disconnect(1006)


async def test_a_drain_is_1012(autojump_clock: MockClock) -> None:
    """The client gets the same code."""
    echo = Echo()
    async with serving(echo) as (client, server), drained(server), trio.open_nursery() as nursery:
        nursery.start_soon(client.read)
        await trio.sleep_until(11)
        await client.send(client.seen[0][1].response())  # type: ignore[attr-defined]
    time, event = client.seen[0]
    assert isinstance(event, CloseConnection)
    assert (time, event.code) == (10, 1012)
    assert (echo.told, echo.disconnect) == (10, disconnect(1012))


# Before a violation


async def test_a_message_before_a_violation_is_replied_to_before_the_close(
    autojump_clock: MockClock,
) -> None:
    """They came together, and a reply may take its time."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        assert (await receive())["text"] == "one"
        await trio.sleep(1.5)
        await send({"type": "websocket.send", "text": "reply"})
        assert (await receive())["code"] == 1002

    async with serving(steps) as (client, _):
        await client.stream.send_all(masked(0x81, b"one") + masked(0xF1, b"x"))
        await client.read()
    (_, message), (time, close) = client.seen
    assert isinstance(message, TextMessage)
    assert message.data == "reply"
    assert isinstance(close, CloseConnection)
    assert (time, close.code) == (1.5, 1002)


async def test_an_application_that_does_not_receive_holds_that_up_for_two_seconds(
    autojump_clock: MockClock,
) -> None:
    """Its client need not wait for it for longer."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await trio.sleep(30)
        assert (await receive())["text"] == "one"
        assert (await receive())["code"] == 1002

    async with serving(steps) as (client, _):
        await client.stream.send_all(masked(0x81, b"one") + masked(0xF1, b"x"))
        assert (await client.closing())[:2] == (2, 1002)


# Sizes


@pytest.mark.parametrize("deflate", [False, True])
async def test_a_message_may_be_as_big_as_the_setting_allows(
    deflate: bool, autojump_clock: MockClock
) -> None:
    """When it is inflated, too; a byte more is 1009."""
    lines = ["Sec-WebSocket-Extensions: permessage-deflate"] if deflate else []
    echo = Echo()
    async with serving(echo, *lines, websocket_max_message_size=1000) as (client, _):
        await client.send(BytesMessage(b"x" * 1000))
        await wait_all_tasks_blocked()
        await client.send(BytesMessage(b"x" * 1001))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            await trio.sleep(1)
            await client.send(CloseConnection(1009))
    assert echo.received == [b"x" * 1000]
    assert echo.disconnect == disconnect(1009)
    _, close = client.seen[-1]
    assert isinstance(close, CloseConnection)
    assert close.code == 1009


# Clients that do not reply


async def test_a_client_that_does_not_reply_to_a_close_is_closed(
    autojump_clock: MockClock,
) -> None:
    """It has as long as an idle connection. Then the application gets a disconnect."""
    told = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await send({"type": "websocket.close", "code": 4001, "reason": "enough"})
        told.append((await receive(), trio.current_time()))

    async with serving(steps, keep_alive_timeout=7) as (client, _):
        assert await client.closing() == (0, 4001, "enough")
        assert trio.current_time() == 7
    assert told == [(disconnect(1006), 7)]


async def test_a_client_that_does_not_reply_after_a_big_message_is_closed(
    autojump_clock: MockClock,
) -> None:
    """Likewise, though its application knows at once."""
    echo = Echo()
    async with serving(echo, websocket_max_message_size=10, keep_alive_timeout=7) as (client, _):
        await client.send(BytesMessage(b"x" * 11))
        assert (await client.closing())[:2] == (0, 1009)
        assert trio.current_time() == 7
    assert echo.disconnect == disconnect(1009)


# Pings, back-pressure


async def test_pings_come_at_their_interval_until_the_end(autojump_clock: MockClock) -> None:
    """The first one at once; none behind a close frame."""
    async with (
        serving(Echo(), websocket_ping_interval=3) as (client, _),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(client.read)
        await trio.sleep(10)
        await client.send(CloseConnection(1000))
    assert [time for time, event in client.seen if isinstance(event, Ping)] == [0, 3, 6, 9]
    assert isinstance(client.seen[-1][1], CloseConnection)


async def test_a_client_waits_for_an_application_that_does_not_receive(
    autojump_clock: MockClock,
) -> None:
    """No more is read of it than the queue holds, and then all of it."""
    received = []

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await trio.sleep(5)
        while (event := await receive())["type"] == "websocket.receive":
            received.append(event["bytes"])

    message = b"x" * 50_000
    sent = 0
    async with serving(steps, max_app_queue_size=2) as (client, _):
        with trio.move_on_at(4):
            while True:
                await client.send(BytesMessage(message))
                sent += 1
        assert sent < 10
        await client.stream.wait_send_all_might_not_block()
        assert trio.current_time() == 5
        client.stream.reset()
    assert len(received) >= sent - 1  # the last one was cut off
    assert set(received) == {message}


# Before it is open


async def test_a_refusal_has_connection_close(autojump_clock: MockClock) -> None:
    """It is a 403, and the last response of its connection."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async with serving(steps, opened=False) as (client, _):
        response = await read_to_end(client.stream)
    assert response.startswith(b"HTTP/1.1 403 ")
    assert response.lower().count(b"\r\nconnection: close\r\n") == 1


async def test_an_application_may_respond_to_what_it_refuses(autojump_clock: MockClock) -> None:
    """With a response of its own, in parts."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        start = {"type": "websocket.http.response.start", "status": 418, "headers": [(b"x", b"y")]}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": b"tea", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"pot"})
        with pytest.raises((UnexpectedMessage, OSError)):
            await send(ACCEPT)

    async with serving(steps, opened=False) as (client, _):
        response = await read_to_end(client.stream)
    assert response.startswith(b"HTTP/1.1 418 \r\nx: y\r\n")
    assert b"\r\nconnection: close\r\n" in response.lower()
    assert response.endswith(b"3\r\ntea\r\n3\r\npot\r\n0\r\n\r\n")


BAD: dict[str, Any] = {**ACCEPT, "headers": [(b"x", b"a\r\nb: c")]}


async def test_an_accept_that_cannot_be_sent_may_be_tried_again(autojump_clock: MockClock) -> None:
    """Nothing was written."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        strange = {**ACCEPT, "headers": [(b"content-length", b"x")]}
        for bad in (BAD, strange, {**ACCEPT, "subprotocol": "none"}):
            with pytest.raises(Exception, match=r"Illegal|bad|subprotocol"):
                await send(bad)
        await send(ACCEPT)

    async with serving(steps) as (client, _):
        assert (await client.closing())[1] == 1011


async def test_an_accept_that_cannot_be_sent_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    """It is the application's error."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(BAD)

    with pytest.raises(h11.LocalProtocolError, match="Illegal"):  # noqa: PT012
        async with serving(steps, opened=False) as (client, _):
            response = await read_to_end(client.stream)
            assert response.startswith(b"HTTP/1.1 500 ")
            assert b"\r\nconnection: close\r\n" in response.lower()
    assert [problem.partition(" (")[0] for problem in problems(caplog)] == [
        "Error in ASGI Framework"
    ]


async def test_a_client_that_leaves_unaccepted_is_1006(autojump_clock: MockClock) -> None:
    """And what is sent then is an OSError."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert await receive() == disconnect(1006)
        with pytest.raises(OSError, match="does not read"):
            await send(ACCEPT)

    async with serving(steps, opened=False) as (client, _):
        await wait_all_tasks_blocked()
        client.stream.reset()


# Sending


async def test_two_tasks_may_send_while_there_is_no_room(autojump_clock: MockClock) -> None:
    """Each message arrives whole, and in the order in which they were sent."""
    parts = [bytes([number]) * 100_000 for number in range(5)]

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        async with trio.open_nursery() as nursery:
            for part in parts:
                nursery.start_soon(send, {"type": "websocket.send", "bytes": part})
                await wait_all_tasks_blocked()

    async with serving(steps) as (client, _):
        await trio.sleep(1)
        await client.read()
    messages = [event for _, event in client.seen if isinstance(event, Message)]
    assert b"".join(bytes(message.data) for message in messages) == b"".join(parts)
    assert sum(message.message_finished for message in messages) == len(parts)


async def test_a_send_after_the_close_raises(autojump_clock: MockClock) -> None:
    """The application's own, or the client's."""

    async def steps(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(ACCEPT)
        await send({"type": "websocket.close"})
        for type_ in ("websocket.send", "websocket.close", "websocket.accept"):
            with pytest.raises(UnexpectedMessage):
                await send({"type": type_, "text": "late"})
        assert (await receive())["code"] == 1000
        with pytest.raises(OSError, match="does not read"):
            await send({"type": "websocket.send", "text": "late"})

    async with serving(steps) as (client, _), trio.open_nursery() as nursery:
        nursery.start_soon(client.read)
        await trio.sleep(1)
        await client.send(CloseConnection(1000))
    assert [type(event) for _, event in client.seen] == [CloseConnection]
