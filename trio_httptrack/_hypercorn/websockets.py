"""What a WebSocket needs beside Hypercorn's stream, over HTTP/1 and HTTP/2 alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypercorn.protocol.events import Body, Data, Event, Response, StreamClosed
from hypercorn.protocol.ws_stream import WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason
from wsproto.handshake import server_extensions_handshake

# Without a close frame (RFC 6455, 7.1.5).
ABNORMAL_END: Mapping[str, Any] = {
    "type": "websocket.disconnect",
    "code": int(CloseReason.ABNORMAL_CLOSURE),
}


class WebSocket:
    """Stands before the two ways into a new stream: the client's input, and its answer.

    * A client that speaks before it is accepted gets one answer: Hypercorn's 400, or the
      application's if that has begun, and not both at once.
    * An offer of an extension that cannot be understood is declined (RFC 7692, 5.1), where
      Hypercorn lets the application's ``accept`` fail.
    * After a message that was too big the next one begins anew.
    * In a drain it is closed as RFC 6455 (7.1) has it: a close frame, and the client's answer.
    """

    def __init__(self, stream: WSStream, drain_code: int) -> None:
        self._stream = stream
        self._drain_code = drain_code
        self._draining = False
        self._answered = False
        self._stream_send, self._stream_handle = stream.send, stream.handle
        stream.send = self.send
        stream.handle = self.handle  # type: ignore[method-assign]
        try:
            server_extensions_handshake(stream.handshake.extensions or [], [PerMessageDeflate()])
        except ValueError:
            stream.handshake.extensions = None

    async def send(self, event: Event) -> None:
        if isinstance(event, StreamClosed) and self._awaits_answer:
            # It is the application that has finished. Nobody shall wait for it to read.
            assert self._stream.app_put is not None
            await self._stream.app_put(dict(ABNORMAL_END))
            return
        self._answered = self._answered or isinstance(event, Response)
        await self._stream_send(event)
        if isinstance(event, Response) and self._draining:
            await self.drain()

    async def handle(self, event: Any) -> None:
        stream = self._stream
        if isinstance(event, (Body, Data)) and not stream.handshake.accepted:
            if not (stream.closed or self._answered):
                stream.closed = True  # what the application answers from here on is dropped
                await stream._send_error_response(400)
                assert stream.app_put is not None
                await stream.app_put(dict(ABNORMAL_END))
            return
        await self._stream_handle(event)
        if stream.buffer.length > stream.buffer.max_length:
            stream.buffer.clear()

    async def drain(self) -> None:
        """Close it, now or as soon as it is accepted."""
        self._draining = True
        stream = self._stream
        if stream.handshake.accepted and stream.connection.state is ConnectionState.OPEN:
            assert stream.app_put is not None
            # Without a checkpoint between the two, lest the application's end is the reason.
            await stream.app_put({"type": "websocket.disconnect", "code": self._drain_code})
            await stream._send_wsproto_event(CloseConnection(code=self._drain_code))

    @property
    def _awaits_answer(self) -> bool:
        """Whether there is still the client's close frame to come, in a drain."""
        return (
            self._draining
            and self._stream.handshake.accepted
            and self._stream.connection.state is ConnectionState.LOCAL_CLOSING
        )
