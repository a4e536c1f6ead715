"""The bytes of one accepted stream, by the shortest way.

A plain socket is read and written with system calls on its descriptor. Reading waits
first, for between two requests there is nothing to read; writing tries first, for there is
nearly always room, and is no checkpoint if everything went out. TLS goes through its
stream, and so does whatever else is no plain socket.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_WR
from typing import Any

import trio
from hypercorn.utils import parse_socket_addr

MAX_RECEIVE = 2**16
MAX_PARTS = 16  # of one write; the kernel's limit is higher, but many small parts are no gain


class Transport:
    """One end of a connection. One task may read; any may write, each in its turn."""

    __slots__ = ("_fileno", "_impatient", "_sending", "_socket", "_stream", "client", "server")

    def __init__(self, stream: trio.SSLStream[trio.SocketStream] | trio.SocketStream) -> None:
        self._stream = stream
        self._socket = (
            stream.transport_stream.socket if isinstance(stream, trio.SSLStream) else stream.socket
        )
        self._fileno = self._socket.fileno() if isinstance(stream, trio.SocketStream) else -1
        self._impatient = True  # the first request mostly comes with its connection
        self._sending = trio.Lock()
        self.client = self._address(self._socket.getpeername)
        self.server = self._address(self._socket.getsockname)

    def _address(self, get: Callable[[], Any]) -> tuple[str, int] | None:
        try:
            return parse_socket_addr(self._socket.family, get())
        except OSError:
            return None  # the peer has gone already

    @property
    def tls(self) -> bool:
        return isinstance(self._stream, trio.SSLStream)

    async def handshake(self) -> str | None:
        """Do the TLS handshake, if there is one to do; return the protocol agreed on."""
        if not isinstance(self._stream, trio.SSLStream):
            return None
        await self._stream.do_handshake()
        alpn: str | None = self._stream.selected_alpn_protocol()
        return alpn

    def fileno(self) -> int:
        """The socket's descriptor; -1 if it is closed, or none of the kernel's."""
        number: int = self._socket.fileno()
        return number

    async def receive(self) -> bytes:
        """The next bytes, none at the peer's end.

        Raises:
          trio.BrokenResourceError: the connection was reset.
          trio.ClosedResourceError: it was closed, perhaps meanwhile.
        """
        if self._fileno < 0:
            return bytes(await self._stream.receive_some(MAX_RECEIVE))
        if self._impatient:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(self._fileno)
        while True:
            if self._fileno < 0:
                raise trio.ClosedResourceError
            try:
                data = os.read(self._fileno, MAX_RECEIVE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fileno)
            except OSError as error:
                raise trio.BrokenResourceError from error
            else:
                self._impatient = len(data) == MAX_RECEIVE  # there may be more
                return data

    async def send(self, parts: list[bytes]) -> None:
        """Write everything, also if cancelled meanwhile. A checkpoint only if it must wait.

        Raises:
          trio.BrokenResourceError: the peer has gone.
          trio.ClosedResourceError: the connection was closed, perhaps meanwhile.
        """
        if self._fileno < 0 or len(parts) > MAX_PARTS:
            parts = [b"".join(parts)]
        sent = 0
        if self._fileno >= 0 and not self._sending.locked():
            try:
                sent = os.writev(self._fileno, parts)
            except BlockingIOError:
                pass
            except OSError as error:
                raise trio.BrokenResourceError from error
            if sent == sum(map(len, parts)):
                return
        with trio.CancelScope(shield=True):
            async with self._sending:
                for part in parts:
                    if sent < len(part):
                        await self._stream.send_all(memoryview(part)[sent:])
                    sent = max(0, sent - len(part))

    def send_eof(self) -> None:
        """End our side, under TLS as well."""
        with suppress(OSError):
            self._socket.shutdown(SHUT_WR)

    def close(self) -> None:
        """Wakes whoever reads or writes."""
        self.send_eof()
        self._socket.close()
        self._fileno = -1
