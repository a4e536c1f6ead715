"""What a WebSocket needs beside Hypercorn's stream, over HTTP/1 and HTTP/2 alike."""

from __future__ import annotations

from typing import Any

from hypercorn.protocol.events import Body, Data, Event, Response
from hypercorn.protocol.ws_stream import WSStream
from wsproto.extensions import PerMessageDeflate
from wsproto.handshake import server_extensions_handshake


def adopt(stream: WSStream) -> None:
    """Put ours before the two ways into a new stream: the client's input, and its answer.

    * A client that speaks before it is accepted gets one answer: Hypercorn's 400, or the
      application's if that has begun, and not both at once.
    * An offer of an extension that cannot be understood is declined (RFC 7692, 5.1), where
      Hypercorn lets the application's ``accept`` fail.
    * After a message that was too big the next one begins anew.
    """
    send, handle = stream.send, stream.handle
    answered = False

    async def guarded_send(event: Event) -> None:
        nonlocal answered
        answered = answered or isinstance(event, Response)
        await send(event)

    async def guarded_handle(event: Any) -> None:
        if isinstance(event, (Body, Data)) and not stream.handshake.accepted:
            if not (stream.closed or answered):
                stream.closed = True  # what the application answers from here on is dropped
                await stream._send_error_response(400)
                if stream.app_put is not None:
                    await stream.app_put({"type": "websocket.disconnect", "code": 1006})
            return
        await handle(event)
        if stream.buffer.length > stream.buffer.max_length:
            stream.buffer.clear()

    stream.send = guarded_send
    stream.handle = guarded_handle  # type: ignore[method-assign]
    try:
        server_extensions_handshake(stream.handshake.extensions or [], [PerMessageDeflate()])
    except ValueError:
        stream.handshake.extensions = None
