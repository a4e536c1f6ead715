"""What HTTP/2 needs beside Hypercorn's protocol, so that its streams do not harm each other.

Here is what is put in the place of Hypercorn's own: how a connection begins, what its streams
read (``http2_input``) and write (``http2_output``), and what of h2 Hypercorn gets to see
(``http2_connection``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import h2.events
import h2.exceptions
import hyperframe.exceptions
from hypercorn.events import Closed
from hypercorn.protocol.events import EndBody
from hypercorn.protocol.h2 import H2Protocol

from .http2_connection import H2Connection
from .http2_input import Streams
from .http2_output import RoundRobin, StreamBuffers, send, stream_send

if TYPE_CHECKING:
    from .connection import Connection


async def initiate(
    protocol: H2Protocol,
    connection: Connection,
    headers: list[tuple[bytes, bytes]] | None = None,
    settings: bytes | None = None,
) -> None:
    """Hypercorn's, but its sender runs before the request that was upgraded is answered."""
    if settings is None:
        protocol.connection.initiate_connection()
    else:
        try:
            protocol.connection.initiate_upgrade_connection(settings)
        except (ValueError, h2.exceptions.H2Error, hyperframe.exceptions.HyperframeError):
            await protocol.send(Closed())  # they are not settings
            return
    await protocol._flush()
    connection.spawn(send, protocol, connection)
    if headers is not None:
        request = h2.events.RequestReceived(stream_id=1, headers=headers)
        await protocol._create_stream(request)
        await protocol.streams[1].handle(EndBody(stream_id=1))
        if protocol.keep_alive_requests > protocol.config.keep_alive_max_requests:
            connection.drain()


def adopt(protocol: H2Protocol, connection: Connection) -> None:
    """Put ours in the place of Hypercorn's, in a new protocol."""
    protocol.initiate = partial(initiate, protocol, connection)  # type: ignore[method-assign]
    protocol.stream_send = partial(stream_send, protocol, connection)  # type: ignore[method-assign]
    protocol.priority = RoundRobin()  # type: ignore[assignment]
    protocol.streams = Streams(protocol)
    protocol.stream_buffers = StreamBuffers(protocol)
    protocol.connection = H2Connection(protocol, protocol.streams, connection)  # type: ignore[assignment]
    # Hypercorn allows one request more than over HTTP/1.
    protocol.keep_alive_requests = 1
