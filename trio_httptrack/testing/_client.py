"""The client's side of a connection in memory."""

from __future__ import annotations

import ssl

import trio

from .._states import Conn
from ._network import MemoryStream


class ClientStream(trio.abc.HalfCloseableStream):
    """The client's side of a connection; :meth:`MemoryServer.connect` returns it.

    It is a Trio stream, and raises the exceptions of one. It buffers 64 KiB in each direction.
    If a buffer is full, its sender waits.

    >>> import trio.testing
    >>> from trio_httptrack.testing import memory_server
    >>> async def app(scope, receive, send):
    ...     assert scope["type"] == "http"
    >>> async def main():
    ...     async with memory_server(app) as server, await server.connect() as stream:
    ...         await stream.send_all(b"This is not HTTP.\\r\\n\\r\\n")
    ...         print(bytes(await stream.receive_some()).split(b"\\r\\n")[0])
    ...         await stream.conn.wait_closed()
    ...         print(stream.conn.state, stream.conn.requests)
    >>> trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    b'HTTP/1.1 400 '
    closed 0
    """

    conn: Conn
    """The connection as the server and its trackers see it."""

    def __init__(self, transport: MemoryStream, conn: Conn) -> None:
        self.conn = conn
        self._transport = transport
        self._tls: trio.SSLStream[MemoryStream] | None = None
        self._stream: trio.abc.Stream = transport

    @property
    def alpn(self) -> str | None:
        """The protocol that the TLS handshake has selected; None if there is none."""
        return self._tls.selected_alpn_protocol() if self._tls is not None else None

    @property
    def _readable(self) -> bool:
        """Whether there are unread bytes, below TLS if there is TLS."""
        return bool(self._transport.socket.events)

    async def _start_tls(self, context: ssl.SSLContext) -> None:
        self._stream = self._tls = trio.SSLStream(
            self._transport, context, server_hostname="localhost", https_compatible=True
        )
        await self._tls.do_handshake()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send, and wait while there is no room, as any Trio stream does."""
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Receive what is there, or wait for it; ``b""`` at the server's EOF.

        Raises:
          trio.BrokenResourceError: the server has reset the connection. Unread bytes are lost,
            which may happen with TCP, too.
        """
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        """Half-close the connection: send EOF, and keep receiving.

        With TLS, the EOF is sent below it, without a ``close_notify``.
        """
        await self._transport.send_eof()

    async def aclose(self) -> None:
        """Close the connection as a client that is done; with a reset if there are unread bytes."""
        await self._stream.aclose()

    def reset(self) -> None:
        """Reset the connection, as if the client crashed. Not a checkpoint."""
        self._transport.reset()

    def __repr__(self) -> str:
        return f"<ClientStream of {self.conn}>"
