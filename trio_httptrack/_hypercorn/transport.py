"""The bytes of one accepted stream, by the shortest way.

A plain socket is read and written with system calls on its descriptor. Reading waits until
the kernel has told that there is something; writing tries first, for there is nearly always
room, and is no checkpoint if everything went out. TLS goes through its stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import AF_INET, AF_INET6, SHUT_WR
from typing import Any

import trio
from hypercorn.utils import parse_socket_addr

from .kernel import ENDED, HANGUP, READABLE, RESET, URGENT, Kernel

MAX_RECEIVE = 2**16
MAX_PARTS = 16  # of one write; the kernel's limit is higher, but many small parts are no gain


class Transport:
    """One end of a connection. One task may read; any may write, each in its turn."""

    __slots__ = (
        "_ended",
        "_fileno",
        "_gaps",
        "_hung_up",
        "_kernel",
        "_readable",
        "_reader",
        "_registered",
        "_sending",
        "_socket",
        "_stream",
        "client",
        "server",
    )

    def __init__(
        self,
        stream: trio.SSLStream[trio.SocketStream] | trio.SocketStream,
        kernel: Kernel,
    ) -> None:
        self._stream = stream
        self._kernel = kernel
        if isinstance(stream, trio.SSLStream):
            self._socket = stream.transport_stream.socket
            self._fileno = -1
        else:
            self._socket = stream.socket
            self._fileno = self._socket.fileno()
        self._readable = True  # perhaps: the first request mostly comes with its connection
        # Whether a read may stop before the last byte: at TCP's urgent mark, or behind a
        # message that carries descriptors through a Unix socket.
        self._gaps = self._socket.family not in (AF_INET, AF_INET6)
        self._ended = 0  # how the peer has, perhaps behind unread bytes, as epoll says it
        self._reader: trio.lowlevel.Task | None = None
        self._registered = False
        self._hung_up: Callable[[bool], None] | None = None
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

    async def receive(self) -> bytes:
        """The next bytes, none at the peer's end.

        Raises:
          trio.BrokenResourceError: the connection was reset.
          trio.ClosedResourceError: it was closed, perhaps meanwhile.
        """
        if self._fileno < 0:
            return bytes(await self._stream.receive_some(MAX_RECEIVE))
        if self._readable:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._readable:
                await self._wait_readable()
            if self._fileno < 0:
                raise trio.ClosedResourceError
            try:
                data = self._kernel.read(self._fileno, MAX_RECEIVE)
            except BlockingIOError:
                self._readable = False
            except OSError as error:
                raise trio.BrokenResourceError from error
            else:
                # The kernel tells of what comes, not of what is still there.
                self._readable = len(data) == MAX_RECEIVE or bool(self._ended) or self._gaps
                return data

    async def _wait_readable(self) -> None:
        if not self._kernel.tells:
            await trio.lowlevel.wait_readable(self._fileno)
            self._readable = True
            return
        self._register()
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _register(self) -> None:
        if not self._registered and self._kernel.tells and self._socket.fileno() >= 0:
            self._registered = True
            events = HANGUP if self._fileno < 0 else READABLE
            self._kernel.register(self._socket.fileno(), self._notice, events)

    def _notice(self, events: int) -> None:
        if events & URGENT:
            self._gaps = True
        if events & ENDED:
            self._ended |= events
            self._tell_watcher()
        self._wake_reader()

    def _tell_watcher(self) -> None:
        if self._ended and self._hung_up is not None:
            self._hung_up(bool(self._ended & RESET))

    def _wake_reader(self) -> None:
        self._readable = True
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    @contextmanager
    def watch(self, hung_up: Callable[[bool], None]) -> Iterator[None]:
        """While the block runs and nobody reads, call ``hung_up(reset)`` at the peer's end.

        ``reset`` is true if the peer does not read any more either.
        """
        self._hung_up = hung_up
        self._tell_watcher()
        self._register()
        try:
            yield
        finally:
            self._hung_up = None

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
                sent = self._kernel.writev(self._fileno, parts)
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

    @property
    def unsent(self) -> int:
        """How many bytes the peer's kernel has not taken yet."""
        return self._kernel.unsent(self._socket.fileno())

    async def finish(self) -> None:
        """End our side when all is written that is being written."""
        async with self._sending:
            self.send_eof()

    def send_eof(self) -> None:
        """End our side, under TLS as well."""
        with suppress(OSError):
            self._socket.shutdown(SHUT_WR)

    def close(self) -> None:
        """Wakes whoever reads or writes."""
        self.send_eof()
        self._kernel.forget(self._socket.fileno())
        self._socket.close()
        self._fileno = -1
        self._wake_reader()
