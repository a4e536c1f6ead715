"""A WebSocket as ASGI sees it, over HTTP/1.1 or one HTTP/2 stream.

``websocket_handshake`` and ``websocket_frames`` implement the wire format. This module defines
what an application may do when, and how a WebSocket closes (RFC 6455, 7):

* The client sends a close frame: the application's disconnect has its code and reason, we reply
  with a close frame, and the connection closes.
* The client breaks the protocol: likewise, with the code of the error. The application still
  receives the messages before that, and may reply to them. So our close frame waits for the
  application to read its queue, but not for long.
* The client disconnects without a close frame: the code is 1006.
* The application closes, or returns: we send a close frame, and the connection closes when the
  application is done.
* The server drains: we send a close frame, and give the client time to reply.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from . import exchange
from .errors import ClientDisconnected, UnexpectedMessage
from .exchange import Event, Exchange, Scope, validated
from .response_head import NO_CONTENT
from .settings import Headers, Settings
from .timeouts import Timeout
from .websocket_frames import Checkpoint, EndOfMessages, Frames, Reply
from .websocket_handshake import Handshake

NO_CLOSE_FRAME = 1006
INTERNAL_ERROR = 1011
NORMAL_CLOSURE = 1000

APP_READ_TIMEOUT = 2.0  # seconds for an application to receive the messages before the disconnect


class Connection(exchange.Connection, Protocol):
    """What a WebSocket needs of its connection."""

    settings: Settings
    websocket_ping_timeout: Timeout[WebSocket] | None

    @property
    def progress(self) -> int:
        """A number that changes whenever the client makes room for a write that waits."""

    @property
    def shutting_down(self) -> bool:
        """Whether the whole server drains, which has a deadline of its own."""

    async def read_pending(self) -> None:
        """Let the reader handle the bytes that are in the socket already."""

    def spawn(self, func: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run a task that is cancelled, at the latest, when the connection is done."""


class Stream(exchange.Stream, Protocol):
    """What a WebSocket needs of its protocol."""

    async def accept(self, status: int, headers: Headers) -> None:
        """Respond, and switch from HTTP to frames."""

    async def write_data(self, data: bytes) -> None:
        """Write frames."""

    async def end_data(self) -> None:
        """End the data: no frame follows."""

    async def release(self, *, linger: bool = False, discard: bool = False) -> None:
        """Close the stream, or the connection, of a closed WebSocket.

        Args:
          linger: whether the client may still be sending.
          discard: whether to drop what is not written yet.
        """


HANDSHAKE, RESPONSE, REFUSED, CONNECTED, CLOSED = (
    "before the WebSocket is accepted",
    "in the response that refuses the WebSocket",
    "after the WebSocket was refused",
    "while the WebSocket is open",
    "after the WebSocket was closed",
)


class WebSocket(Exchange):
    """A request to open a WebSocket, and the WebSocket."""

    __slots__ = (
        "_awaiting_close_frame",
        "_denial",
        "_draining",
        "_frames",
        "_handshake",
        "_peer_active",
        "_ping_timeout",
        "_ping_written",
        "_pinged",
        "_progress",
        "_settings",
        "_state",
        "_waiting_for_application",
    )

    _connection: Connection

    disconnected = {"type": "websocket.disconnect", "code": NO_CLOSE_FRAME, "reason": ""}  # noqa: RUF012

    def __init__(
        self,
        connection: Connection,
        stream: Stream,
        scope: Scope,
        handshake: Handshake,
        started: float,
    ) -> None:
        settings = connection.settings
        method = "CONNECT" if scope["http_version"] == "2" else "GET"
        super().__init__(connection, stream, scope, settings.max_queue_size, method, started)
        self._settings = settings
        self._handshake = handshake
        self._frames: Frames | None = None  # None until it is accepted
        self._state = HANDSHAKE
        self._denial: Event | None = None  # the start of a response that refuses it
        self._draining = False
        self._awaiting_close_frame = False  # the connection closes when it comes
        self._waiting_for_application = False  # to receive the messages before the disconnect
        self._ping_timeout = connection.websocket_ping_timeout
        self._ping_written = True  # the last ping was written completely
        self._pinged = False  # and the timeout is running
        self._peer_active = False  # since that ping
        self._progress = 0  # the connection's, at that ping

    drains = True

    @property
    def begun(self) -> bool:
        return self._state is not HANDSHAKE

    @property
    def done(self) -> bool:
        return self._state is CLOSED or self._state is REFUSED

    def note_activity(self) -> None:
        """Note that the client is alive: it has opened its window."""
        self._peer_active = True

    def time_out(self) -> None:
        if self._state is not CONNECTED:
            super().time_out()

    @staticmethod
    def complete_scope(scope: Scope, handshake: Handshake) -> None:
        """Turn a request's scope into a WebSocket's."""
        scope["type"] = "websocket"
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["asgi"] = {"spec_version": "2.3", "version": "3.0"}
        scope["subprotocols"] = handshake.subprotocols
        scope["extensions"]["websocket.http.response"] = {}

    # The client's side

    def open(self) -> bool:
        """Queue the connect event; return False if the request is invalid."""
        if self._handshake.valid:
            self.add({"type": "websocket.connect"})
        return self._handshake.valid

    async def feed(self, data: bytes) -> None:
        """Handle what the client has sent."""
        frames = self._frames
        self._peer_active = True
        if frames is None:
            if self._state is HANDSHAKE:  # the client has not waited for the response
                self.disconnect_with_status(400)
                await self.respond_with_error(400)
            return
        broken = False
        for number, event in enumerate(frames.receive(data)):
            if number % 64 == 63 or isinstance(event, Checkpoint):
                # A read may have thousands of frames, none of which is waited for.
                await trio.lowlevel.cancel_shielded_checkpoint()
            if isinstance(event, str):
                await self.put({"type": "websocket.receive", "bytes": None, "text": event})
            elif isinstance(event, bytes):
                await self.put({"type": "websocket.receive", "bytes": event, "text": None})
            elif isinstance(event, Reply):
                await self._stream.write_data(event.data)
            elif isinstance(event, EndOfMessages):
                broken = await self._handle_close(event)
        if frames.closed:
            await self._stream.release(linger=broken)
            self.client_disconnected()

    async def _handle_close(self, end: EndOfMessages) -> bool:
        """Handle a close frame or a protocol error; return whether it was an error."""
        assert self._frames is not None
        frames, close_frame = self._frames, end.close_frame
        broken = frames.closed and frames.open
        self.disconnect(closed(end.code, end.reason))
        if broken:
            if self._events and not self._app_done:
                await self._wait_for_application()
            close_frame = frames.close(end.code, end.reason)
        if close_frame:
            await self._stream.write_data(close_frame)
        if not frames.closed:
            self._await_close_frame(frames)  # after a message that was too big
        return broken

    async def _wait_for_application(self) -> None:
        """Wait for the application to receive, and reply to, the messages before the error."""
        self._waiting_for_application = True
        with self._stream.waiting(), trio.move_on_after(APP_READ_TIMEOUT):
            while not (self._disconnect_delivered or self._app_done):
                await self._wait_for_change()
        self._waiting_for_application = False

    def _await_close_frame(self, frames: Frames) -> None:
        """Give the client ``keep_alive_timeout`` seconds to reply to our close frame."""
        self._awaiting_close_frame = True
        self._connection.spawn(self._enforce_close_deadline, frames)

    async def _enforce_close_deadline(self, frames: Frames) -> None:
        await trio.sleep(self._settings.keep_alive_timeout)
        if not frames.closed:
            self.disconnect()
            await self._stream.release(discard=True)
            self.client_disconnected()

    async def drain(self) -> None:
        """Close it, now or as soon as it is accepted."""
        self._draining = True
        if self._state is CONNECTED and self._frames is not None and self._frames.open:
            code = self._settings.drain_websocket_code
            # First, so that this is the disconnect event even if the application returns meanwhile.
            self.disconnect(closed(code, ""))
            self._awaiting_close_frame = True
            if not self._connection.shutting_down:
                self._await_close_frame(self._frames)
            await self._stream.write_data(self._frames.close(code))

    # The application's side

    def _send(self, event: Event) -> Awaitable[None] | None:
        if not self._connection.phase.writes or (
            self._disconnect is not None and not self._waiting_for_application
        ):
            raise ClientDisconnected(self._connection.conn)
        type_, state = event["type"], self._state
        if type_ == "websocket.send" and state is CONNECTED:
            return self._send_message(event)
        if type_ == "websocket.accept" and state is HANDSHAKE:
            return self._accept(event)
        if type_ == "websocket.close" and state is HANDSHAKE:
            return self.respond_with_error(403)
        if type_ == "websocket.close" and state is CONNECTED:
            return self._close(event)
        if type_ == "websocket.http.response.start" and state is HANDSHAKE:
            self._denial = {**event, "headers": validated(event.get("headers", ()))}
            return None
        if type_ == "websocket.http.response.body" and (
            state is RESPONSE or (state is HANDSHAKE and self._denial is not None)
        ):
            return self._deny(event)
        raise UnexpectedMessage(type_, state)

    async def _close(self, event: Event) -> None:
        frames = self._frames
        assert frames is not None
        close_frame = frames.close(int(event.get("code", NORMAL_CLOSURE)), event.get("reason"))
        self._state = CLOSED
        await self._stream.write_data(close_frame)
        await self._stream.end_data()
        self._connection.spawn(self._enforce_close_deadline, frames)

    async def _send_message(self, event: Event) -> None:
        assert self._frames is not None
        data = event.get("bytes")
        if data is not None:
            frame = self._frames.binary(data if type(data) is bytes else bytes(data))
        else:
            text = event["text"]
            if not isinstance(text, str):
                raise TypeError(f"{text} should be a str")
            frame = self._frames.text(text)
        if frame:
            await self._stream.write_data(frame)

    async def _accept(self, event: Event) -> None:
        status, headers, frames = self._handshake.accept(
            event.get("subprotocol"), validated(event.get("headers", ()))
        )
        self._state, self._frames = CONNECTED, frames
        try:
            await self._stream.accept(status, headers)
        except Exception:  # nothing was written
            self._state, self._frames = HANDSHAKE, None
            raise
        await self._log_access({"status": status, "headers": []})
        if self._settings.websocket_ping_interval is not None:
            self._connection.spawn(self._ping, frames, self._settings.websocket_ping_interval)
        if self._draining:
            await self.drain()

    async def _ping(self, frames: Frames, interval: float) -> None:
        while frames.open:
            # If the client has not responded to a ping, the next ping does not extend its time.
            if self._peer_active or not self._pinged:
                self._await_pong()
            self._ping_written = False
            await self._stream.write_data(frames.ping())
            self._ping_written = True
            await trio.sleep(interval)

    def _await_pong(self) -> None:
        if self._ping_timeout is not None:
            self._pinged, self._peer_active = True, False
            self._progress = self._connection.progress
            self._ping_timeout.start(self, trio.current_time())

    def pong_timed_out(self) -> None:
        """Close the WebSocket, unless there is a sign that its client is alive.

        Any input is such a sign, because the pong may have to wait for a long message before it.
        So is a client that reads, because the ping may have to wait likewise. And if we do not
        read, the client is not to blame.
        """
        if self._is_silent:
            self._connection.spawn(self._close_if_silent)
        elif self._ping_written:
            self._pinged = False  # until the next ping
        elif self._connection.phase.writes:
            self._await_pong()

    async def _close_if_silent(self) -> None:
        """Read the input that came in time, and close the connection if there was none."""
        await self._connection.read_pending()
        if self._is_silent:
            self._stream.abort("websocket_ping_timeout")

    @property
    def _is_silent(self) -> bool:
        frames, connection = self._frames, self._connection
        if frames is None or not frames.open or not connection.phase.writes:
            return False
        return not (self._peer_active or self.full or connection.progress != self._progress)

    async def _deny(self, event: Event) -> None:
        assert self._denial is not None
        status, headers = int(self._denial["status"]), self._denial["headers"]
        if not 200 <= status < 1000:
            raise ValueError(f"a WebSocket cannot be refused with the status code {status}")
        body, more = bytes(event.get("body", b"")), event.get("more_body", False)
        if status in NO_CONTENT:
            body = b""
        state = self._state
        # Before anything waits for room, as in an HTTP exchange.
        self._state = RESPONSE if more else REFUSED
        try:
            if state is HANDSHAKE:
                await self._stream.respond(status, headers, body, more)
            else:
                await self._stream.write_body(body, more)
        except Exception:
            self._state = state
            raise
        if not more:
            await self._log_access(self._denial)

    async def respond_with_error(self, status: int) -> None:
        """Respond in place of the application."""
        self._state = REFUSED
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await self._stream.respond(status, headers, b"", False)
        await self._log_access({"status": status, "headers": []})

    async def _finish(self) -> None:
        state = self._state
        if self._ping_timeout is not None:
            self._ping_timeout.cancel(self)
        if self._waiting_for_application:
            return  # _handle_close continues
        if state is HANDSHAKE:
            if self._connection.phase.writes and self._disconnect is None:
                await self.respond_with_error(504 if self._timed_out else 500)
            else:
                await self._stream.abandon()
        elif state is RESPONSE:
            await self._stream.abandon()
        elif state is CONNECTED and self._frames is not None and self._frames.open:
            await self._stream.write_data(self._frames.close(INTERNAL_ERROR))
        frames = self._frames
        if frames is None or frames.closed:
            await self._stream.release()
        elif not self._awaiting_close_frame:
            await self._stream.release(linger=True)  # the client may still be sending


def closed(code: int, reason: str) -> Event:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}
