"""A WebSocket is the same to its application over HTTP/1.1 and over one stream of HTTP/2."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from hyperframe.frame import DataFrame, Frame, GoAwayFrame
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_httptrack._connection.connection import Connection
from trio_httptrack._connection.errors import ClientDisconnected, UnexpectedMessage
from trio_httptrack.testing import ClientStream, MemoryServer, memory_server
from trio_httptrack.testing._network import BUFFER_SIZE

from .clients import GoAwayHttp2, Http2, read_to_end
from .support import Recorder, problems, without_lifespan

App = Callable[[Any, Any, Any], Awaitable[None]]

ACCEPT = {"type": "websocket.accept"}
CLOSE = {"type": "websocket.close"}
CONNECT = {"type": "websocket.connect"}
TEXT, BINARY, CONTINUATION, CLOSING, PING, PONG = 1, 2, 0, 8, 9, 10


def handshake(*lines: str, path: str = "/") -> bytes:
    head = [
        f"GET {path} HTTP/1.1",
        "Host: here",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *lines,
        "",
        "",
    ]
    return "\r\n".join(head).encode()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, first: int = 0) -> bytes:
    """A client's frame, whose mask is nothing."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 2**16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    return bytes([opcode | first | (0x80 if fin else 0)]) + length + bytes(4) + payload


def closing(code: int, reason: str = "") -> bytes:
    return frame(CLOSING, code.to_bytes(2, "big") + reason.encode())


def message(data: str | bytes) -> dict[str, Any]:
    text = isinstance(data, str)
    return {
        "type": "websocket.receive",
        "text": data if text else None,
        "bytes": None if text else data,
    }


def disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


class Client:
    """A WebSocket client by hand."""

    def __init__(self, server: MemoryServer, stream: ClientStream) -> None:
        self.server = server
        self.stream = stream
        self._received = b""

    async def open(self, *lines: str) -> None:
        await self.stream.send_all(handshake(*lines))
        while b"\r\n\r\n" not in self._received:
            await self.more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")

    async def more(self) -> bool:
        data = await self.stream.receive_some()
        self._received += data
        return bool(data)

    async def send(self, *frames: bytes) -> None:
        """Send all at once. Keep what arrives meanwhile: the server must not wait for us."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            await self.stream.send_all(b"".join(frames))
            nursery.cancel_scope.cancel()

    async def _keep(self) -> None:
        while await self.more():
            pass

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame's opcode and payload; None at the end."""
        while True:
            data = self._received
            if len(data) >= 2:
                size, start = data[1], 2
                if size >= 126:
                    start = 4 if size == 126 else 10
                    size = int.from_bytes(data[2:start], "big")
                if len(data) >= start + size:
                    self._received = data[start + size :]
                    return data[0] & 0x0F, data[start : start + size]
            if not await self.more():
                assert not self._received
                return None

    async def frames(self) -> list[tuple[int, bytes]]:
        """All to the end."""
        found = []
        while (each := await self.frame()) is not None:
            found.append(each)
        return found

    async def leave(self, how: str) -> None:
        if how == "reset":
            self.stream.reset()
        else:
            await self.stream.send_eof()


class Http2Client(Client):
    """The same over one stream of HTTP/2."""

    async def open(self, *lines: str) -> None:
        self.http2 = GoAwayHttp2(self.stream)
        await self.http2.start()
        self.stream_id = await self.http2.websocket("/")
        assert self.http2.statuses[self.stream_id] == "200"

    async def more(self) -> bool:
        http2, stream_id = self.http2, self.stream_id
        while stream_id not in http2.bodies and stream_id not in http2.ended | http2.reset:
            if not await http2.pump():
                return False
        data = http2.bodies.pop(stream_id, b"")
        self._received += data
        return bool(data)

    async def send(self, *frames: bytes) -> None:
        data = b"".join(frames)
        for start in range(0, len(data), 2**14):
            part = data[start : start + 2**14]
            while self.http2.h2.local_flow_control_window(self.stream_id) < len(part):
                await self.http2.pump()
            self.http2.h2.send_data(self.stream_id, part)
            await self.http2.flush()

    async def leave(self, how: str) -> None:
        if how == "reset":
            self.http2.h2.reset_stream(self.stream_id)
        else:
            self.http2.h2.end_stream(self.stream_id)
        await self.http2.flush()


OVER = {"http1": Client, "h2": Http2Client}

OVER_AND_HOW = [("http1", "reset"), ("http1", "end"), ("h2", "reset"), ("h2", "end")]


@pytest.fixture(params=OVER)
def over(request: pytest.FixtureRequest) -> str:
    """Each protocol that can carry a WebSocket."""
    return str(request.param)


class Application:
    """Accepts, and keeps what it receives and when."""

    def __init__(self, steps: App | None = None) -> None:
        self._steps = steps
        self.received: list[tuple[float, dict[str, Any]]] = []
        self.done = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return

        async def kept() -> Any:
            event = await receive()
            self.received.append((trio.current_time(), event))
            return event

        try:
            assert await receive() == CONNECT
            await send(ACCEPT)
            if self._steps is not None:
                await self._steps(scope, kept, send)
            else:
                while (await kept())["type"] == "websocket.receive":
                    pass
        finally:
            self.done.set()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for _, event in self.received]


@asynccontextmanager
async def opened(app: App, over: str, *lines: str, **settings: Any) -> AsyncIterator[Client]:
    """A client of an application that has accepted it."""
    async with memory_server(app, **settings) as server:
        client = OVER[over](server, await server.connect())
        await client.open(*lines)
        yield client


async def echo(scope: Any, receive: Any, send: Any) -> None:
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


# Ends


@pytest.mark.parametrize(
    ("sent", "code", "reason", "reply"),
    [
        (closing(1000, "bye"), 1000, "bye", b"\x03\xe8bye"),
        (closing(1001), 1001, "", b"\x03\xe9"),
        (closing(4999, "\N{SNOWMAN}"), 4999, "\N{SNOWMAN}", b"\x13\x87" + "\N{SNOWMAN}".encode()),
        (frame(CLOSING), 1005, "", b""),
    ],
)
async def test_a_clients_code_and_reason_reach_the_application(
    sent: bytes, code: int, reason: str, reply: bytes, over: str, autojump_clock: MockClock
) -> None:
    """And are replied to; an empty close frame is 1005 (RFC 6455, 7.1.5)."""
    app = Application()
    async with opened(app, over) as client:
        await client.send(frame(TEXT, b"hi"), sent)
        assert await client.frames() == [(CLOSING, reply)]
        await app.done.wait()
        assert app.events == [message("hi"), disconnect(code, reason)]


@pytest.mark.parametrize(("over", "how"), OVER_AND_HOW)
async def test_a_client_that_just_leaves_is_1006(
    how: str, over: str, autojump_clock: MockClock
) -> None:
    """There was no close frame; what came before is still the application's."""
    app = Application()
    async with opened(app, over) as client:
        await client.send(frame(TEXT, b"hi"))
        await wait_all_tasks_blocked()
        await client.leave(how)
        with trio.fail_after(1):
            await app.done.wait()
    assert app.events == [message("hi"), disconnect(1006)]


WRONG = {
    "no mask": (b"\x81\x02hi", 1002),
    "reserved opcode": (frame(3, b"hi"), 1002),
    "reserved bit": (frame(TEXT, b"hi", first=0x40), 1002),
    "no beginning": (frame(CONTINUATION, b"hi"), 1002),
    "beginning twice": (frame(TEXT, b"h", fin=False) + frame(TEXT, b"i"), 1002),
    "long ping": (frame(PING, bytes(126)), 1002),
    "bad code": (closing(999), 1002),
    "half a code": (frame(CLOSING, b"\x03"), 1002),
    "no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "no UTF-8 in a part": (frame(TEXT, b"h", fin=False) + frame(CONTINUATION, b"\xff"), 1007),
}


@pytest.mark.parametrize(("wrong", "code"), WRONG.values(), ids=WRONG)
async def test_a_violation_ends_it_for_both_sides_with_the_same_code(
    wrong: bytes, code: int, over: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The message before it is delivered, and its reply comes before the close frame."""
    app = Application(echo)
    async with opened(app, over) as client:
        await client.send(frame(TEXT, b"before"), frame(BINARY, b"it"), wrong, frame(TEXT, b"not"))
        first, second, (opcode, payload), *rest = await client.frames()
        assert [first, second, opcode] == [(TEXT, b"before"), (BINARY, b"it"), CLOSING]
        assert int.from_bytes(payload[:2], "big") == code
        assert rest == []
        await app.done.wait()
        assert app.events == [
            message("before"),
            message(b"it"),
            disconnect(code, payload[2:].decode()),
        ]
        assert trio.current_time() == 0
        if over == "http1":  # the client may be sending still, and is read until it has ended
            await client.stream.send_all(frame(TEXT, b"more") * 1000)
            await client.stream.aclose()
        await wait_all_tasks_blocked()
    assert not problems(caplog)


async def test_an_application_that_does_not_read_holds_the_end_up_for_two_seconds(
    over: str, autojump_clock: MockClock
) -> None:
    """Then the client gets its close frame. The application can still read, but not reply."""

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10)
        for _ in range(3):
            await receive()
            with pytest.raises(ClientDisconnected):
                await send({"type": "websocket.send", "text": "late"})

    app = Application(late)
    async with opened(app, over) as client:
        await client.send(frame(TEXT, b"1"), frame(TEXT, b"2"), frame(3))
        ((opcode, payload),) = await client.frames()
        assert (opcode, payload[:2]) == (CLOSING, b"\x03\xea")
        assert trio.current_time() == 2
        await app.done.wait()
        assert app.events == [message("1"), message("2"), disconnect(1002, payload[2:].decode())]


@pytest.mark.parametrize("pause", [0.5, 1.5])
async def test_an_application_has_two_seconds_for_all_replies_before_the_end(
    pause: float, over: str, autojump_clock: MockClock
) -> None:
    """What it sends in that time is written, and the rest is refused."""
    refused = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while (event := await receive())["type"] == "websocket.receive":
            await trio.sleep(pause)
            try:
                await send({**event, "type": "websocket.send"})
            except ClientDisconnected:
                refused.append(event["text"])

    app = Application(slow)
    async with opened(app, over) as client:
        await client.send(*(frame(TEXT, text) for text in (b"1", b"2", b"3")), frame(3))
        *replies, (opcode, _) = await client.frames()
        assert opcode == CLOSING
        await app.done.wait()
    sent = 3 if pause == 0.5 else 1
    assert replies == [(TEXT, text) for text in (b"1", b"2", b"3")][:sent]
    assert refused == ["2", "3"][: 3 - sent]


async def test_an_application_that_has_taken_everything_does_not_hold_the_end_up(
    over: str, autojump_clock: MockClock
) -> None:
    """Whatever it does now, no message waits for it."""

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await trio.sleep(10)

    async with opened(Application(busy), over) as client:
        await client.send(frame(TEXT, b"1"))
        await wait_all_tasks_blocked()
        await client.send(frame(3))
        ((opcode, payload),) = await client.frames()
        assert (opcode, payload[:2], trio.current_time()) == (CLOSING, b"\x03\xea", 0)


async def test_a_client_that_leaves_behind_its_violation_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    """Its connection ends at once, though its application does not read."""

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10)
        while (await receive())["type"] == "websocket.receive":
            pass

    app = Application(late)
    async with opened(app, "http1") as client:
        await client.send(frame(TEXT, b"1"), frame(3))
        await trio.sleep(0.5)
        client.stream.reset()
        await client.stream.conn.wait_closed()
        assert trio.current_time() == 0.5
        await app.done.wait()
    assert [event.get("text", event.get("code")) for event in app.events] == ["1", 1002]


async def test_an_application_that_ends_holds_the_close_frame_up_no_longer(
    over: str, autojump_clock: MockClock
) -> None:
    """The code is that of the violation, for the application has not ended it."""

    async def one(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await trio.sleep(1)

    app = Application(one)
    async with opened(app, over) as client:
        await client.send(frame(TEXT, b"1"), frame(TEXT, b"2"), frame(3))
        ((opcode, payload),) = await client.frames()
        assert (opcode, payload[:2], trio.current_time()) == (CLOSING, b"\x03\xea", 1)


@pytest.mark.parametrize("parts", [1, 3])
async def test_a_message_that_is_too_big_is_1009(
    parts: int, over: str, autojump_clock: MockClock
) -> None:
    """For both sides, and at once. The rest of it is read, and not kept."""
    app = Application()
    async with opened(app, over, websocket_max_message_size=1000) as client:
        await client.send(frame(TEXT, b"x" * 1000))
        sizes = [1001] if parts == 1 else [400, 400, 201]
        for number, size in enumerate(sizes):
            opcode = CONTINUATION if number else BINARY
            await client.send(frame(opcode, bytes(size), fin=number == len(sizes) - 1))
        assert await client.frame() == (CLOSING, b"\x03\xf1")
        await app.done.wait()
        assert app.events == [message("x" * 1000), disconnect(1009)]
        assert trio.current_time() == 0
        await client.send(frame(TEXT, b"ignored"), closing(1009))
        assert await client.frames() == []
        assert trio.current_time() == 0


async def test_a_client_that_does_not_reply_to_1009_is_left(
    over: str, autojump_clock: MockClock
) -> None:
    """After keep_alive_timeout seconds, in which it may have sent as much as it liked."""
    app = Application()
    async with opened(app, over, websocket_max_message_size=10, keep_alive_timeout=5) as client:
        await client.send(frame(BINARY, bytes(11)))
        assert await client.frame() == (CLOSING, b"\x03\xf1")
        for _ in range(4):
            await client.send(frame(BINARY, bytes(11)))
            await trio.sleep(1)
        assert await client.frames() == []
        assert trio.current_time() == 5


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def test_a_bomb_is_1009_and_takes_no_memory(autojump_clock: MockClock) -> None:
    """30 MB of zeros in 30 kB: no more is inflated than may be received."""
    app = Application()
    extension = "Sec-WebSocket-Extensions: permessage-deflate"
    bomb = frame(BINARY, deflated(bytes(30_000_000)), first=0x40)
    async with opened(app, "http1", extension, websocket_max_message_size=10_000) as client:
        await client.send(frame(TEXT, deflated(b"x" * 10_000), first=0x40))
        await wait_all_tasks_blocked()
        tracemalloc.start()
        try:
            await client.send(bomb)
            assert await client.frame() == (CLOSING, b"\x03\xf1")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000
        await app.done.wait()
        assert app.events == [message("x" * 10_000), disconnect(1009)]


@pytest.mark.parametrize("code", [1012, 1001])
async def test_a_drain_closes_with_its_code(
    code: int, over: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """Both sides learn of it, and the client's reply ends the connection, or its stream."""
    app = Application()
    async with opened(app, over, drain_websocket_code=code) as client:
        await client.send(frame(TEXT, b"hi"))
        await wait_all_tasks_blocked()
        connections[0].drain()
        assert await client.frame() == (CLOSING, code.to_bytes(2, "big"))
        await app.done.wait()
        assert app.events == [message("hi"), disconnect(code)]
        await trio.sleep(1)
        await client.send(frame(TEXT, b"late"), closing(code))
        assert await client.frames() == []
        assert trio.current_time() == 1


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ({}, b"\x03\xe8"),
        ({"code": 4001, "reason": "enough"}, b"\x0f\xa1enough"),
        ({"code": 4001, "reason": None}, b"\x0f\xa1"),
        ({"reason": "\N{SNOWMAN}" * 100}, b"\x03\xe8" + "\N{SNOWMAN}".encode() * 41),
    ],
)
async def test_an_applications_code_and_reason_reach_the_client(
    event: dict[str, Any], payload: bytes, over: str, autojump_clock: MockClock
) -> None:
    """A reason that is too long for a close frame is cut where a character ends."""

    async def close(scope: Any, receive: Any, send: Any) -> None:
        await send({**CLOSE, **event})

    app = Application(close)
    async with opened(app, over) as client:
        assert await client.frames() == [(CLOSING, payload)]
        assert trio.current_time() == 0


@pytest.mark.parametrize("raises", [False, True])
async def test_an_application_that_ends_without_closing_is_1011(
    raises: bool, over: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether it returns or raises, which is logged."""

    async def end(scope: Any, receive: Any, send: Any) -> None:
        if raises:
            raise ValueError("the application's own error")

    async with opened(Application(end), over) as client:
        assert await client.frames() == [(CLOSING, b"\x03\xf3")]
    assert ("the application's own error" in caplog.text) is raises


@pytest.mark.parametrize("wrong", [False, True])
async def test_a_client_that_is_sending_can_read_why_it_was_closed(
    wrong: bool, autojump_clock: MockClock
) -> None:
    """A reset for what it sends would destroy the close frame."""

    async def close(scope: Any, receive: Any, send: Any) -> None:
        if not wrong:
            await receive()
            await send({**CLOSE, "code": 4000})
        await receive()

    recorder = Recorder()
    async with opened(Application(close), "http1", tracker=recorder) as client:
        for number in range(10):
            sent = frame(3) if wrong and not number else frame(BINARY, bytes(10_000))
            await client.stream.send_all(sent)
            await wait_all_tasks_blocked()
        ((opcode, payload),) = await client.frames()
        assert (opcode, payload[:2]) == (CLOSING, b"\x03\xea" if wrong else b"\x0f\xa0")
        await client.stream.aclose()
        await client.stream.conn.wait_closed()
    assert recorder.sequences() == ["NAH"]


@pytest.mark.parametrize("replies", [True, False])
async def test_an_application_that_has_closed_may_receive_on(
    replies: bool, over: str, autojump_clock: MockClock
) -> None:
    """To the client's close frame; or to 1006, where that has not come in time."""

    async def close(scope: Any, receive: Any, send: Any) -> None:
        await send({**CLOSE, "code": 4000})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    app = Application(close)
    async with opened(app, over, keep_alive_timeout=5) as client:
        assert await client.frame() == (CLOSING, b"\x0f\xa0")
        await client.send(frame(TEXT, b"crossing"))
        await trio.sleep(1)
        if replies:
            await client.send(closing(4000))
        await app.done.wait()
        assert app.events == [message("crossing"), disconnect(4000 if replies else 1006)]
        assert trio.current_time() == (1 if replies else 5)
        assert await client.frames() == []


@pytest.mark.parametrize(("over", "how"), OVER_AND_HOW)
async def test_the_clients_end_needs_no_room_in_the_queue(
    how: str, over: str, autojump_clock: MockClock
) -> None:
    """An application that does not read finds what had come, and that its client has gone."""
    gate = trio.Event()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        while (await receive())["type"] == "websocket.receive":
            pass

    app = Application(late)
    async with opened(app, over, max_app_queue_size=2) as client:
        for number in range(5):
            await client.send(frame(TEXT, b"%d" % number))
            await wait_all_tasks_blocked()
        await client.leave(how)
        await wait_all_tasks_blocked()
        if how == "reset" and over == "http1":
            assert client.stream.conn.close_reason == "connection_reset"
        gate.set()
        with trio.fail_after(1):
            await app.done.wait()
    texts = [event["text"] for event in app.events[:-1]]
    assert texts[:2] == ["0", "1"]
    assert texts == ["0", "1", "2", "3", "4"][: len(texts)]
    assert app.events[-1] == disconnect(1006)


# Refusals


def refusing(*events: dict[str, Any]) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == CONNECT
        for event in events:
            await send(event)

    refusing_app: App = without_lifespan(app)
    return refusing_app


DENIAL = {"type": "websocket.http.response.start", "status": 418, "headers": [(b"x", b"y")]}
DENIAL_BODY = {"type": "websocket.http.response.body", "body": b"no"}
REFUSALS: dict[str, tuple[App, int, bytes]] = {
    "close": (refusing(CLOSE), 403, b""),
    "denial": (refusing(DENIAL, DENIAL_BODY), 418, b"2\r\nno\r\n0\r\n\r\n"),
    "denial in parts": (
        refusing(DENIAL, {**DENIAL_BODY, "more_body": True}, DENIAL_BODY),
        418,
        b"2\r\nno\r\n2\r\nno\r\n0\r\n\r\n",
    ),
    "denial with length": (
        refusing({**DENIAL, "headers": [(b"content-length", b"2")]}, DENIAL_BODY),
        418,
        b"no",
    ),
    "denial without content": (refusing({**DENIAL, "status": 204}, DENIAL_BODY), 204, b""),
    "denial without a body": (refusing(DENIAL), 500, b""),
    "denial that is none": (refusing({**DENIAL, "status": 101}, DENIAL_BODY), 500, b""),
    "denial that cannot be sent": (
        refusing({**DENIAL, "headers": [(b"x", b"a\r\nb")]}, DENIAL_BODY),
        500,
        b"",
    ),
    "nothing": (refusing(), 500, b""),
    "message": (refusing({"type": "websocket.send", "text": "hi"}), 500, b""),
    "header": (refusing({**ACCEPT, "headers": [(b"x", b"a\r\nb: c")]}), 500, b""),
    "header name": (refusing({**ACCEPT, "headers": [(b"x y", b"z")]}), 500, b""),
    "subprotocol": (refusing({**ACCEPT, "subprotocol": "never offered"}), 500, b""),
}


@pytest.mark.parametrize(("app", "status", "body"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refused_websocket_gets_one_response_with_connection_close(
    app: App, status: int, body: bytes, autojump_clock: MockClock
) -> None:
    """With one complete response, from the application or from us, and nothing after it."""
    recorder = Recorder()
    async with memory_server(app, tracker=recorder) as server:
        client = await server.connect()
        await client.send_all(handshake())
        response = await read_to_end(client)
    assert response.startswith(b"HTTP/1.1 %d \r\n" % status)
    head, _, rest = response.partition(b"\r\n\r\n")
    assert rest == body
    assert head.lower().split(b"\r\n").count(b"connection: close") == 1
    assert recorder.sequences() == ["NAC"]


@pytest.mark.parametrize(
    ("app", "status", "body"),
    [pytest.param(*refusal, id=name) for name, refusal in REFUSALS.items()],
)
async def test_a_websocket_is_refused_over_http_2_as_over_http_1(
    app: App, status: int, body: bytes, autojump_clock: MockClock
) -> None:
    """And its connection goes on."""
    async with memory_server(app) as server:
        client = Http2(await server.connect())
        await client.start()
        for _ in range(2):
            stream_id = await client.websocket("/")
            while stream_id not in client.ended and await client.pump():
                pass
            assert client.statuses[stream_id] == str(status)
            assert client.bodies.get(stream_id, b"") == b"no" * body.count(b"no")


async def test_an_application_may_accept_after_an_accept_that_failed(
    over: str, autojump_clock: MockClock
) -> None:
    """Nothing was written of the first one."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(Exception, match="header"):
            await send({**ACCEPT, "headers": [(b"x", b"a\r\nb: c")]})
        await send(ACCEPT)
        await send({"type": "websocket.send", "text": "accepted"})

    async with opened(without_lifespan(app), over) as client:
        assert await client.frame() == (TEXT, b"accepted")


@pytest.mark.parametrize("size", [1, 1000, 50_000])
@pytest.mark.parametrize("settled", [True, False])
async def test_a_client_that_sends_frames_before_it_is_accepted_can_read_its_400(
    size: int, settled: bool, autojump_clock: MockClock
) -> None:
    """However much it sends; and its application gets a disconnect."""
    events = []

    @without_lifespan
    async def never(scope: Any, receive: Any, send: Any) -> None:
        while True:
            events.append(await receive())
            if events[-1]["type"] == "websocket.disconnect":
                with pytest.raises(ClientDisconnected):
                    await send(ACCEPT)
                return

    async with memory_server(never) as server:
        client = await server.connect()
        await client.send_all(handshake())
        if settled:
            await wait_all_tasks_blocked()
        await client.send_all(frame(BINARY, bytes(size)))
        assert (await client.receive_some()).startswith(b"HTTP/1.1 400 ")
        assert await read_to_end(client) == b""
        await client.aclose()
    assert events == [CONNECT, disconnect(1006)]


async def test_a_client_that_sends_frames_while_it_is_refused_can_read_its_response(
    autojump_clock: MockClock,
) -> None:
    """What it has sent for the WebSocket that it did not get is discarded."""
    gate = trio.Event()

    @without_lifespan
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(DENIAL)
        await send({**DENIAL_BODY, "more_body": True})
        await gate.wait()
        await send(DENIAL_BODY)

    async with memory_server(refuse) as server:
        client = await server.connect()
        await client.send_all(handshake())
        await wait_all_tasks_blocked()
        for _ in range(20):
            await client.send_all(frame(BINARY, bytes(10_000)))
            await wait_all_tasks_blocked()
        gate.set()
        assert (await read_to_end(client)).endswith(b"2\r\nno\r\n2\r\nno\r\n0\r\n\r\n")


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_a_client_that_leaves_before_it_is_accepted_gets_nothing(
    how: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Accepting it is an OSError, and that is no error of the application."""
    events = []

    @without_lifespan
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(1)
        events.extend([await receive(), await receive()])
        await send(ACCEPT)

    recorder = Recorder()
    async with memory_server(slow, tracker=recorder) as server:
        client = await server.connect()
        await client.send_all(handshake())
        await wait_all_tasks_blocked()
        await Client(server, client).leave(how)
        await wait_all_tasks_blocked()
        assert recorder.sequences() == ["NAC"]
        await trio.sleep(2)
    assert events == [CONNECT, disconnect(1006)]
    assert not problems(caplog)


# Messages


SIZES = [0, 1, 125, 126, 127, 2**16 - 1, 2**16, 200_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_messages_of_every_size_go_both_ways(
    kind: str, size: int, over: str, autojump_clock: MockClock
) -> None:
    """In one frame or in several, with others before and behind."""
    payload = (b"abcdefgh" * (size // 8 + 1))[:size]
    opcode = TEXT if kind == "text" else BINARY
    parts = [
        frame(opcode, payload[: size // 3], fin=False),
        frame(PING, b"between"),
        frame(CONTINUATION, payload[size // 3 :]),
    ]
    app = Application(echo)
    async with opened(app, over) as client:
        await client.send(frame(TEXT, b"first"), frame(opcode, payload), *parts)
        found = [await client.frame() for _ in range(4)]
        await client.send(closing(1000))
        assert await client.frames() == [(CLOSING, b"\x03\xe8")]
    found.remove((PONG, b"between"))
    assert found == [(TEXT, b"first"), (opcode, payload), (opcode, payload)]


async def test_compressed_messages_go_both_ways(autojump_clock: MockClock) -> None:
    """Where the client has offered it."""
    extension = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover"
    app = Application(echo)
    async with opened(app, "http1", extension) as client:
        inflater = zlib.decompressobj(-15)
        for number in range(3):
            text = b"message %d " % number * 100
            await client.send(frame(TEXT, deflated(text), first=0x40))
            response = await client.frame()
            assert response is not None
            assert inflater.decompress(response[1] + b"\x00\x00\xff\xff") == text
            assert len(response[1]) < 100
    assert [event["text"] for event in app.events[:3]] == [
        f"message {number} " * 100 for number in range(3)
    ]


@pytest.mark.parametrize("size", [1, 3, 10])
async def test_a_client_waits_for_an_application_that_does_not_read(
    size: int, over: str, autojump_clock: MockClock
) -> None:
    """max_app_queue_size messages wait for it, and some in buffers; none is lost or doubled."""
    gate = trio.Event()

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        while (await receive())["type"] == "websocket.receive":
            pass

    app = Application(late)
    number, length = 60, 10_000
    sent = 0
    async with opened(app, over, max_app_queue_size=size) as client, trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            for each in range(number):
                await client.send(frame(BINARY, b"%0*d" % (length, each)))
                sent += 1
            await client.send(closing(1000))

        nursery.start_soon(send)
        await trio.sleep(100)
        assert sent * length <= size * length + 3 * BUFFER_SIZE
        gate.set()
        await app.done.wait()
    bodies = [event.get("bytes") for event in app.events[:-1]]
    assert bodies == [b"%0*d" % (length, each) for each in range(number)]
    assert app.events[-1] == disconnect(1000)


async def test_an_application_waits_for_a_client_that_does_not_read(
    over: str, autojump_clock: MockClock
) -> None:
    """Its sends return when there is room, and nothing is lost."""
    sent = 0

    async def fast(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        for _ in range(100):
            await send({"type": "websocket.send", "bytes": bytes(10_000)})
            sent += 1
        await send(CLOSE)

    async with opened(Application(fast), over) as client:
        await trio.sleep(100)
        assert sent * 10_000 <= 4 * BUFFER_SIZE
        *found, last = await client.frames()
        assert found == [(BINARY, bytes(10_000))] * 100
        assert last[0] == CLOSING


async def test_the_goaway_follows_the_end_of_the_last_websocket(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """A client that cannot read on after it, as h2 by itself cannot, has missed nothing."""
    async with opened(Application(), "h2") as client:
        assert isinstance(client, Http2Client)
        connections[0].drain()
        assert await client.frame() == (CLOSING, b"\x03\xf4")
        await client.send(closing(1012))
        received = b""
        while data := await client.stream.receive_some():
            received += data
    frames = []
    while received:
        each, length = Frame.parse_frame_header(memoryview(received[:9]))
        frames.append(each)
        received = received[9 + length :]
    assert isinstance(frames[-1], GoAwayFrame)
    assert isinstance(frames[-2], DataFrame)
    assert "END_STREAM" in frames[-2].flags


async def test_pings_are_replied_to(over: str, autojump_clock: MockClock) -> None:
    """By us, with their payload, whatever the application does."""

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10)

    async with opened(Application(deaf), over) as client:
        for payload in (b"", b"ping", bytes(125)):
            await client.send(frame(PING, payload))
            assert await client.frame() == (PONG, payload)
        assert trio.current_time() == 0


@pytest.mark.parametrize("end", ["client", "leaves", "application", "drain"])
async def test_pings_are_sent_until_the_end(
    end: str, over: str, connections: list[Connection], autojump_clock: MockClock
) -> None:
    """At once and then every websocket_ping_interval seconds; nothing of them is left then."""
    gate = trio.Event()

    async def until(scope: Any, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:

            async def close() -> None:
                await gate.wait()
                await send(CLOSE)
                nursery.cancel_scope.cancel()

            nursery.start_soon(close)
            while (await receive())["type"] == "websocket.receive":
                pass
            nursery.cancel_scope.cancel()

    app = Application(until)
    async with opened(app, over, websocket_ping_interval=20, keep_alive_timeout=300) as client:
        for number in range(3):
            assert await client.frame() == (PING, b"")
            assert trio.current_time() == 20 * number
            await client.send(frame(PONG))
        await trio.sleep(10)
        if end == "client":
            await client.send(closing(1000))
        elif end == "leaves":
            await client.leave("reset")
        elif end == "application":
            gate.set()
        else:
            connections[0].drain()
        await app.done.wait()
        if end == "drain":
            await client.send(closing(1012))
        if end != "leaves":
            assert [opcode for opcode, _ in await client.frames()] == [CLOSING]
        if over == "http1":
            with suppress(trio.BrokenResourceError):
                await client.stream.aclose()
            await client.stream.conn.wait_closed()
            await wait_all_tasks_blocked()
            assert not connections[0]._server.connections
        assert trio.current_time() == 50
    if end != "drain":
        assert app.events[-1:] == [] or app.events[-1]["type"] == "websocket.disconnect"


async def test_nothing_of_a_websocket_is_left_on_its_connection(
    connections: list[Connection], autojump_clock: MockClock
) -> None:
    """HTTP/2 goes on, and must not ping what has ended for ever."""
    async with memory_server(
        Application(), websocket_ping_interval=2, keep_alive_timeout=300
    ) as server:
        client = Http2(await server.connect())
        await client.start()
        await wait_all_tasks_blocked()
        nursery = connections[0]._nursery
        assert nursery is not None
        tasks = len(nursery.child_tasks)
        for end in (closing(1000), frame(3), b""):
            stream_id = await client.websocket("/")
            if end:
                client.h2.send_data(stream_id, end)
            else:
                client.h2.reset_stream(stream_id)
            await client.flush()
        await trio.sleep(10)
        assert len(nursery.child_tasks) == tasks


# What may be sent when


async def test_what_is_not_allowed_is_refused_and_changes_nothing(
    over: str, autojump_clock: MockClock
) -> None:
    """Each refusal is a checkpoint, and the WebSocket goes on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def refused(event: dict[str, Any], state: str) -> None:
            with assert_checkpoints(), pytest.raises(UnexpectedMessage) as raised:
                await send(event)
            assert str(raised.value) == f"{event['type']!r} cannot be sent {state}"

        event: dict[str, Any]
        data: dict[str, Any]
        text = {"type": "websocket.send", "text": "hi"}
        for event in (text, DENIAL_BODY, {"type": "http.response.start"}):
            await refused(event, "before the WebSocket is accepted")
        with assert_checkpoints():
            assert await receive() == CONNECT
        with assert_checkpoints():
            await send(ACCEPT)
        for event in (ACCEPT, DENIAL, DENIAL_BODY, {"type": "nonsense"}):
            await refused(event, "while the WebSocket is open")
        for data, error in (
            ({"text": b"hi"}, TypeError),
            ({"text": None}, TypeError),
            ({"bytes": "hi"}, TypeError),
            ({}, KeyError),
        ):
            with assert_checkpoints(), pytest.raises(error):
                await send({"type": "websocket.send", **data})
        for data in ({"text": "text"}, {"bytes": b"bytes"}, {"bytes": bytearray(b"array")}):
            with assert_checkpoints():
                await send({"type": "websocket.send", **data})
        with assert_checkpoints():
            await send(CLOSE)
        for event in (text, CLOSE, ACCEPT):
            await refused(event, "after the WebSocket was closed")

    async with opened(without_lifespan(app), over) as client:
        assert await client.frames() == [
            (TEXT, b"text"),
            (BINARY, b"bytes"),
            (BINARY, b"array"),
            (CLOSING, b"\x03\xe8"),
        ]


@pytest.mark.parametrize("end", ["close", "leave", "drain", "wrong", "too big"])
async def test_a_send_to_a_websocket_that_has_ended_is_an_oserror(
    end: str,
    over: str,
    connections: list[Connection],
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever side has closed it, except for the application itself; each is a checkpoint."""

    async def late(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep(10)
        for event in ({"type": "websocket.send", "text": "hi"}, CLOSE, ACCEPT) * 2:
            with assert_checkpoints(), pytest.raises(ClientDisconnected):
                await send(event)
        for _ in range(2):
            with assert_checkpoints():
                assert (await receive())["type"] == "websocket.disconnect"

    app = Application(late)
    async with opened(app, over, keep_alive_timeout=60, websocket_max_message_size=10) as client:
        if end == "close":
            await client.send(closing(1000))
        elif end == "leave":
            await client.leave("reset")
        elif end == "drain":
            connections[0].drain()
        else:
            await client.send(frame(3) if end == "wrong" else frame(TEXT, bytes(11)))
        await app.done.wait()
        await wait_all_tasks_blocked()
        await client.stream.aclose()
    assert len(app.events) == 2
    assert not problems(caplog)


@pytest.mark.parametrize("event", [CLOSE, DENIAL, ACCEPT])
async def test_nothing_can_be_sent_after_a_refusal(
    event: dict[str, Any], autojump_clock: MockClock
) -> None:
    """The connection has ended with it."""
    raised = []

    @without_lifespan
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(CLOSE)
        with pytest.raises((ClientDisconnected, UnexpectedMessage)) as error:
            await send(event)
        raised.append(error)

    async with memory_server(refuse) as server:
        client = await server.connect()
        await client.send_all(handshake())
        response = await read_to_end(client)
    assert response.count(b"HTTP/1.1 ") == 1
    assert len(raised) == 1


async def test_a_cancelled_send_has_sent_no_frame_and_a_cancelled_receive_takes_none(
    over: str, autojump_clock: MockClock
) -> None:
    """A poll finds what has come, and nothing else."""

    async def poll(scope: Any, receive: Any, send: Any) -> None:
        for expected in (None, message("hi"), None, disconnect(1000), disconnect(1000)):
            await trio.sleep(1)
            found = None
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                found = await receive()
            assert found == expected
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await send({"type": "websocket.send", "text": "never"})
                pytest.fail("it was sent all the same")

    app = Application(poll)
    async with opened(app, over) as client:
        await trio.sleep(1.5)
        await client.send(frame(TEXT, b"hi"))
        await trio.sleep(2)
        await client.send(closing(1000))
        await app.done.wait()
        assert await client.frames() == [(CLOSING, b"\x03\xe8")]
        assert trio.current_time() == 5


# What the application is told at the beginning


@pytest.mark.parametrize("tls", [False, True])
async def test_the_scope_is_a_websockets(tls: bool, over: str, autojump_clock: MockClock) -> None:
    """Over TLS its scheme is wss."""
    scopes: list[Any] = []

    async def keep(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    async with memory_server(Application(keep)) as server:
        client = OVER[over](server, await server.connect(tls=tls))
        await client.open("Sec-WebSocket-Protocol: one, two", "Sec-WebSocket-Protocol: three")
        await client.frames()
    (scope,) = scopes
    assert scope["type"] == "websocket"
    assert scope["scheme"] == ("wss" if tls else "ws")
    assert scope["http_version"] == ("1.1" if over == "http1" else "2")
    assert scope["subprotocols"] == (["one", "two", "three"] if over == "http1" else [])
    assert "websocket.http.response" in scope["extensions"]
    assert scope["extensions"]["httptrack"] is client.stream.conn


async def test_an_application_chooses_a_subprotocol_and_adds_headers(
    autojump_clock: MockClock,
) -> None:
    """Of those that the client has offered."""

    @without_lifespan
    async def accept(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"X-Own", b"value"), (b"set-cookie", b"a=b")]
        await send({**ACCEPT, "subprotocol": "two", "headers": headers})

    async with memory_server(accept) as server:
        client = await server.connect()
        await client.send_all(handshake("Sec-WebSocket-Protocol: one, two"))
        head = bytes(await client.receive_some()).partition(b"\r\n\r\n")[0].lower()
    lines = head.split(b"\r\n")
    assert lines[0] == b"http/1.1 101 "
    for line in (
        b"sec-websocket-protocol: two",
        b"sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=",
        b"x-own: value",
        b"set-cookie: a=b",
        b"upgrade: websocket",
        b"connection: upgrade",
    ):
        assert lines.count(line) == 1


async def test_a_websocket_over_http_1_is_hijacked_and_over_http_2_it_is_a_stream(
    over: str, autojump_clock: MockClock
) -> None:
    """The states of its connection show it."""
    recorder = Recorder()
    async with opened(Application(), over, tracker=recorder) as client:
        assert recorder.sequences() == ["NAH" if over == "http1" else "NAIA"]
        await client.send(closing(1000))
        await client.frames()
        await wait_all_tasks_blocked()
        assert recorder.sequences() == ["NAH" if over == "http1" else "NAIAI"]


async def test_the_end_of_a_drain_ends_an_application_that_does_not_mind(
    over: str, autojump_clock: MockClock
) -> None:
    """Both have got the close, and the client does not reply."""

    async def stubborn(scope: Any, receive: Any, send: Any) -> None:
        while True:
            await receive()
            await trio.sleep(1)

    async with opened(Application(stubborn), over, graceful_timeout=3) as client:
        await wait_all_tasks_blocked()
    assert trio.current_time() == 3
    assert client.stream.conn.close_reason == "app_shutdown_timeout"
