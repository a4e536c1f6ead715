"""HTTP/2: Hypercorn's protocol, as a connection sees any protocol.

What Hypercorn has for a connection and for its streams is not used: the streams are ours
(``http2_input``), and so is what they write (``http2_output``) and what of h2 Hypercorn gets to
see (``http2_connection``).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import h2.events
import h2.exceptions
import hyperframe.exceptions
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import EndBody
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ConnectionState

from .._connection.settings import Headers
from .._states import ACTIVE
from .http2_connection import H2Connection
from .http2_input import Streams
from .http2_output import RoundRobin, StreamBuffers, send, stream_send

if TYPE_CHECKING:
    from hypercorn.trio.worker_context import WorkerContext

    from .._connection.connection import Connection


class Http2(H2Protocol):
    """Hypercorn's protocol, on one connection of ours."""

    def __init__(self, connection: Connection, config: Config, context: WorkerContext) -> None:
        unused: Any = None
        super().__init__(
            unused,
            config,
            context,
            connection,  # type: ignore[arg-type]  # for its spawn
            ConnectionState({}),
            connection.conn.tls,
            connection.conn.client,
            connection.conn.server,
            self._send_event,
        )
        self.owner = connection
        self._unsent: list[bytes] = []
        self._corked = False
        self.priority = RoundRobin()  # type: ignore[assignment]
        self.streams = Streams(self)
        self.stream_buffers = StreamBuffers(self)
        self.connection = H2Connection(self, self.streams, connection)  # type: ignore[assignment]
        self.stream_send = partial(stream_send, self)  # type: ignore[method-assign]
        # Hypercorn allows one request more than over HTTP/1.
        self.keep_alive_requests = 1

    async def initiate(self, headers: Headers | None = None, settings: bytes | None = None) -> None:
        """Hypercorn's, but its sender runs before the request that was upgraded is handled."""
        if headers is None or settings is None:
            self.connection.initiate_connection()
        else:
            try:
                self.connection.initiate_upgrade_connection(settings)
            except (ValueError, h2.exceptions.H2Error, hyperframe.exceptions.HyperframeError):
                self.owner.close()  # they are not settings
                return
        await self._flush()
        self.owner.spawn(send, self)
        if headers is not None:
            request = h2.events.RequestReceived(stream_id=1, headers=headers)
            await self._create_stream(request)
            await self.streams[1].handle(EndBody(stream_id=1))
            if self.keep_alive_requests > self.config.keep_alive_max_requests:
                self.owner.drain()

    async def run(self, data: bytes) -> None:
        connection = self.owner
        while True:
            if data:
                await self.handle(RawData(data))
                if self.idle:
                    await self.rest()
            data = await connection.receive(owed=self._owes_request)
            if not data:
                break
        connection.close(orderly=not self.streams)
        await self.handle(Closed())
        for buffer in tuple(self.stream_buffers.values()):
            await buffer.close()

    @property
    def _owes_request(self) -> bool:
        if not self.owner.settings.read_timeout:
            return False
        return self.streams.owe_request()  # type: ignore[attr-defined, no-any-return]

    async def rest(self) -> None:
        """Every request has its response."""
        if self.owner.conn.state is ACTIVE:
            self.owner.rest()
            if self.owner.conn.draining.is_set():
                await self.connection.say_goodbye()  # type: ignore[attr-defined]

    def drain(self) -> None:
        self.connection.drain()  # type: ignore[attr-defined]

    # What Hypercorn's protocol writes in many small parts leaves in one write: code that is about
    # to cause several, with no checkpoint between, calls cork first and flush last.

    async def _send_event(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data:
                self._unsent.append(event.data)
            if not self._corked:
                await self.flush()
        elif isinstance(event, Updated):
            if event.idle:
                await self.rest()
            else:
                self.owner.activate()
        elif isinstance(event, Closed):
            self.owner.close(orderly=True)

    def cork(self) -> None:
        """Keep what is written until it is flushed, or until something is written uncorked."""
        self._corked = True

    def uncork(self) -> None:
        self._corked = False

    async def flush(self) -> None:
        """Write what was kept. A checkpoint only if it has to wait."""
        self._corked = False
        if self._unsent:
            parts, self._unsent = self._unsent, []
            await self.owner.write(parts)
