"""Hypercorn's protocol, and the questions that a connection has to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from hypercorn.config import Config
from hypercorn.events import Closed
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper, ConnectionState

from .._states import ACTIVE
from . import http1, http2

if TYPE_CHECKING:
    from hypercorn.trio.worker_context import WorkerContext

    from .connection import Connection


class Protocol(ProtocolWrapper):
    """Hypercorn's wrapper of HTTP/1 or HTTP/2, where one may become the other (h2c)."""

    def __init__(
        self,
        connection: Connection,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        state: ConnectionState,
        protocol: str,
    ) -> None:
        self._connection = connection
        conn = connection.conn
        super().__init__(
            app,
            config,
            context,
            connection,  # type: ignore[arg-type]  # for its spawn_app and spawn
            state,
            conn.tls,
            conn.client,
            conn.server,
            connection.protocol_send,
            protocol,
        )

    @property
    def protocol(self) -> H11Protocol | H2Protocol:
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: H11Protocol | H2Protocol) -> None:
        if isinstance(protocol, H2Protocol):
            http2.adopt(protocol, self._connection)
        else:
            http1.adopt(protocol, self._connection)
        self._protocol = protocol
        if self._connection.draining and self._connection.conn.state is ACTIVE:
            self.drain()  # it is HTTP/2 from now on (h2c)

    @property
    def idle(self) -> bool:
        """Whether an HTTP/2 connection has no stream at work. HTTP/1 says so itself."""
        if not isinstance(self._protocol, H2Protocol):
            return False
        self._protocol.streams.forget_closed()  # type: ignore[attr-defined]
        return self._protocol.idle

    @property
    def refused(self) -> bool:
        """Whether an HTTP/1 request was refused without an application: nothing follows."""
        if isinstance(self._protocol, H2Protocol) or self._protocol.stream is None:
            return False
        return self._protocol.stream.closed

    @property
    def still_receiving(self) -> bool:
        """Whether an HTTP/1 client has not finished asking, has asked more than it will be
        answered, or is not understood."""
        connection = self._protocol.connection
        if not isinstance(connection, h11.Connection):
            return False
        return connection.their_state in (h11.SEND_BODY, h11.ERROR) or bool(
            connection.trailing_data[0]
        )

    @property
    def may_still_answer(self) -> bool:
        """Whether a client that has ended its side may still read: in HTTP/1, if not upgraded."""
        return isinstance(self._protocol.connection, h11.Connection)

    def drain(self) -> None:
        """Answer no request but those that are on their way. May be called again."""
        if isinstance(self._protocol, H2Protocol):
            self._protocol.connection.drain()  # type: ignore[attr-defined]
        else:
            http1.drain(self._protocol)

    async def say_goodbye(self) -> None:
        """In a drain, when every request has been answered."""
        if isinstance(self._protocol, H2Protocol):
            await self._protocol.connection.say_goodbye()  # type: ignore[attr-defined]

    async def hang_up(self) -> None:
        """Nothing more is read, and nobody waits any longer for what was to be written."""
        await self.handle(Closed())
        if isinstance(self._protocol, H2Protocol):
            for buffer in tuple(self._protocol.stream_buffers.values()):
                await buffer.close()
