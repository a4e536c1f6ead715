"""Read and write the bytes of one accepted connection, with or without TLS.

Reads and writes are system calls on the socket's file descriptor. A read waits until the kernel
has reported input. A write first tries, because there is nearly always room, and is no checkpoint
if everything was written. TLS does no I/O: it turns bytes into records, and records into bytes.

Invariants:

* The file descriptor is used only while ``_fileno`` is not negative. After a close, another
  connection may get the same number within the same scheduler step.
* Records are written completely and in the order of their encryption, because TLS numbers them.
  The bytes of two ``send`` calls never mix.
* ``_sending`` is None unless a write waits, for room or for the lock. An idle connection has no
  lock, and a write that has room neither creates nor acquires one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from socket import AF_INET, AF_INET6, SHUT_WR
from typing import Any, Protocol

import trio

from .kernel import HANG_UP, RESET, URGENT, Kernel
from .pace import Pace, Rate

MAX_RECEIVE = 2**16
MAX_PARTS = 16  # of one write; the kernel's limit is higher, but many small parts are not faster
MAX_RECORD = 2**14  # bytes of one TLS record
MAX_DISCARD_READS = 16  # at a time

Parts = Sequence[bytes | memoryview]


class Socket(Protocol):
    """The part of a non-blocking ``socket.socket`` that a server uses."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def getpeername(self) -> Any: ...
    def getsockname(self) -> Any: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class Expired(Exception):
    """The deadline has passed, and a last read found nothing.

    The connection still works. The caller can write, or call ``renew`` and read again.
    """


class TooSlow(trio.BrokenResourceError):
    """The peer reads more slowly than the minimum rate."""


class Transport:
    """The server's side of a connection. One task may read; any number of tasks may write."""

    __slots__ = (
        "_expired",
        "_fileno",
        "_hang_up_events",
        "_kernel",
        "_min_rate",
        "_on_hang_up",
        "_readable",
        "_reader",
        "_registered",
        "_sending",
        "_short_reads",
        "_ssl_context",
        "_tls",
        "progress",
        "socket",
    )

    def __init__(
        self,
        socket: Socket,
        kernel: Kernel,
        ssl_context: ssl.SSLContext | None,
        min_rate: Rate | None = None,
    ) -> None:
        self.socket = socket
        self._kernel = kernel
        self._min_rate = min_rate
        self._ssl_context = ssl_context
        self._tls: Tls | None = None  # from the handshake on
        self._fileno = kernel.add(socket)
        self._readable = True  # the first request is likely to be there already
        # Whether a read may return before the last byte: at TCP's urgent mark, or after a message
        # that passes descriptors through a Unix socket. The kernel does not report the rest again,
        # so a reader that waited after such a short read would wait forever.
        self._short_reads = socket.family not in (AF_INET, AF_INET6)
        self._hang_up_events = 0  # epoll's, if the peer has hung up; bytes before may be unread
        self._expired = False
        self._reader: trio.lowlevel.Task | None = None
        self._registered = False
        self._on_hang_up: Callable[[bool], None] | None = None
        self._sending: trio.Lock | None = None
        self.progress = 0
        """How often the peer has made room for a waiting write."""

    @property
    def tls(self) -> bool:
        return self._tls is not None

    async def handshake(self) -> str | None:
        """Do the TLS handshake, if there is TLS; return the ALPN protocol.

        Raises:
          Expired: the deadline has passed.
          trio.BrokenResourceError: the handshake failed, or the peer has disconnected.
          trio.ClosedResourceError: the connection is closed, or was closed meanwhile.
        """
        if self._ssl_context is None:
            return None
        tls = self._tls = Tls(self._ssl_context)
        established = False
        while not established:
            records = await self._read(MAX_RECORD)
            if not records:
                raise trio.BrokenResourceError("the peer disconnected during the TLS handshake")
            try:
                established = tls.do_handshake(records)
            except ssl.SSLError as error:
                self._write_alert(tls)
                raise trio.BrokenResourceError from error
            if established and tls.sends_tickets:
                # Keep the tickets until something else is sent. A client that only sends, and
                # closes without reading, would leave them unread. Then its kernel would reset the
                # connection, and destroy what the client has sent.
                tls.unwritten = tls.data_to_send()
                break
            while not self._flush(tls):
                if self._expired:
                    raise Expired
                # Neither shielded nor locked: nobody else sends yet, and the connection is useless
                # without the rest of the handshake.
                await self._kernel.wait_writable(self._fileno)
        return tls.alpn

    def receive(self) -> Coroutine[Any, Any, bytes]:
        """Receive the next bytes; ``b""`` at the peer's EOF. Always a checkpoint.

        A missing ``close_notify`` makes no difference: HTTP has its own framing.

        Raises:
          Expired: the deadline has passed.
          trio.BrokenResourceError: the connection was reset, or its TLS is broken.
          trio.ClosedResourceError: the connection is closed, or was closed meanwhile.
        """
        # No coroutine around the coroutine: each idle connection would keep it in memory.
        return self._read() if self._tls is None else self._receive_tls(self._tls)

    async def _receive_tls(self, tls: Tls) -> bytes:
        records = b""
        if tls.readable:
            await trio.lowlevel.checkpoint()
            if self._fileno < 0:
                raise trio.ClosedResourceError
        elif not (records := await self._read()):
            tls.truncated = True
            return b""
        while True:
            try:
                data = tls.decrypt(records)
            except ssl.SSLError as error:
                self._write_alert(tls)
                raise trio.BrokenResourceError from error
            if tls.pending:
                self._write_alert(tls)  # OpenSSL has refused a renegotiation, and continues
                if tls.pending > MAX_RECORD:
                    raise trio.BrokenResourceError("the peer renegotiates TLS and does not read")
            if data is not None:
                return data
            if not (records := await self._read()):
                tls.truncated = True
                return b""

    @property
    def truncated(self) -> bool:
        """Whether the peer's EOF came without TLS's ``close_notify``.

        Then it is no half-close, and nothing can be written to the peer any more. Without TLS, the
        two cannot be told apart.
        """
        return self._tls is not None and self._tls.truncated

    def _write_alert(self, tls: Tls) -> None:
        """Send a TLS alert to the peer, if there is room."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._flush(tls)

    async def _read(self, size: int = MAX_RECEIVE) -> bytes:
        """Receive without TLS."""
        if self._expired:
            self._readable = True  # read once more, whatever the kernel has reported
        if self._readable:
            await trio.lowlevel.checkpoint()
        while True:
            if not self._readable:
                if self._expired:
                    raise Expired
                self._register()
                self._reader = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
            if self._fileno < 0:
                raise trio.ClosedResourceError
            try:
                data = self._kernel.read(self._fileno, size)
            except BlockingIOError:
                self._readable = False
            except OSError as error:
                raise trio.BrokenResourceError from error
            else:
                # The kernel reports new input, not what is still unread. After a short read
                # nothing is left, so the next read can wait without trying.
                self._readable = (
                    len(data) == size or bool(self._hang_up_events) or self._short_reads
                )
                return data

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _register(self) -> None:
        # The first task that waits registers the socket. A connection whose only request is there
        # from the start never registers it.
        if not self._registered and self._fileno >= 0:
            self._kernel.register(self._fileno, self._on_events)
            self._registered = True

    def _on_events(self, events: int) -> None:
        if events & URGENT:
            self._short_reads = True
        if events & HANG_UP:
            # From now on, reads must continue until they find the EOF: it was reported with the
            # last bytes, and is not reported again after them.
            self._hang_up_events |= events
            self._notify_watcher()
        self._wake_reader()

    def _notify_watcher(self) -> None:
        if self._hang_up_events and self._on_hang_up is not None:
            self._on_hang_up(bool(self._hang_up_events & RESET))

    def _wake_reader(self) -> None:
        self._readable = True
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    def expire(self) -> None:
        """Let the reader read once more, and then raise Expired in place of waiting.

        Bytes that came in time count, even if they are unread: both the deadline and the bytes
        may have come while another task was running.
        """
        self._expired = True
        self._kernel.wake(self._fileno)  # for a handshake that writes
        self._wake_reader()

    def retry_read(self) -> None:
        """Let the reader read once more, and wait again if nothing is there."""
        self._wake_reader()

    def renew(self) -> None:
        """Let the reader wait again after ``expire``: the deadline was moved."""
        self._expired = False

    def watch(self, on_hang_up: Callable[[bool], None]) -> None:
        """Call ``on_hang_up(reset)`` if the peer hangs up before :meth:`unwatch`; nobody reads.

        ``reset`` is true if the peer does not read any more either.
        """
        self._on_hang_up = on_hang_up
        self._notify_watcher()
        self._register()

    def unwatch(self) -> None:
        self._on_hang_up = None

    def discard(self, on_eof: Callable[[], object]) -> None:
        """Send EOF, discard what the peer sends, and call ``on_eof`` at the peer's EOF.

        This needs no task. It is for a connection that is never read otherwise.
        """
        self._shutdown_write()

        def on_events(_: int) -> None:
            if self._discard_input():
                on_eof()

        self._kernel.register(self._fileno, on_events)

    def _discard_input(self) -> bool:
        """Read what is there; return whether to stop: at EOF, or if the peer sends too much."""
        try:
            for _ in range(MAX_DISCARD_READS):
                if not self._kernel.read(self._fileno, MAX_RECEIVE):
                    return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True  # too much

    def send_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for; return the rest, or None if everything was written.

        The rest must be passed to :meth:`send` at once, or other bytes get before it. This method
        exists because there is nearly always room, and a coroutine that never waits costs as much
        as all the rest.

        Raises:
          trio.BrokenResourceError: the peer has disconnected.
          trio.ClosedResourceError: the connection is closed.
        """
        if len(parts) > MAX_PARTS:
            parts = [b"".join(parts)]
        return self._write(parts) if self._sending is None else parts

    async def send(self, parts: Parts) -> None:
        """Write everything, even if cancelled meanwhile. A checkpoint only if it has to wait.

        Raises:
          TooSlow: the peer reads more slowly than the minimum rate.
          trio.BrokenResourceError: the peer has disconnected.
          trio.ClosedResourceError: the connection is closed, or was closed meanwhile.
        """
        rest = self.send_now(parts)
        if rest is not None:
            async with self._write_lock():
                await self._write_all(rest)

    async def send_eof(self) -> None:
        """Send EOF after what is being written. The peer can still send.

        Under TLS a ``close_notify`` goes first, so that the peer knows that nothing was truncated.
        Do not wait for the peer's. If the peer has disconnected, do nothing.
        """
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with self._write_lock():
                if self._tls is not None:
                    self._tls.send_close_notify()
                    await self._write_all(())
                self._shutdown_write()

    @asynccontextmanager
    async def _write_lock(self) -> AsyncIterator[None]:
        """Allow no other write during the block. Only a close can interrupt the block.

        After half a frame, or half a record, the peer could read nothing that follows.
        """
        lock = self._sending = self._sending or trio.Lock()
        try:
            with trio.CancelScope(shield=True):
                async with lock:
                    yield
        finally:
            if not lock.locked():  # otherwise the next task in line has acquired it
                self._sending = None

    async def _write_all(self, parts: Parts) -> None:
        rest = self._write(parts)
        if rest is not None and self._min_rate is not None:
            await self._write_in_time(rest, self._min_rate)
            return
        while rest is not None:
            await self._kernel.wait_writable(self._fileno)
            self.progress += 1
            rest = self._write(rest)

    async def _write_in_time(self, parts: Parts, rate: Rate) -> None:
        """Write everything, as long as the peer reads fast enough.

        Bytes in the kernel's send buffer are not read yet. A write may put megabytes there, which
        a slow peer may read for hours. So only bytes that have left the buffer count.
        """
        pace = Pace(rate)
        pace.resume(trio.current_time())
        rest: Parts | None = parts
        while rest is not None:
            unsent, left = self.unsent, _size(rest)
            with trio.CancelScope(deadline=pace.due) as late:
                await self._kernel.wait_writable(self._fileno)
            drained = unsent - self.unsent
            self.progress += not late.cancelled_caught
            pace.moved += drained
            if late.cancelled_caught and pace.due <= trio.current_time():
                raise TooSlow
            rest = self._write(rest)
            if not drained:  # not every system reports how much is unsent
                pace.moved += left - _size(rest or ())

    def _write(self, parts: Parts) -> Parts | None:
        """Write as much as there is room for; return the rest of the parts.

        It is None if everything was written. Under TLS it may be empty: then everything is
        encrypted, but not all records are written.
        """
        tls = self._tls
        if tls is None:
            return _remaining_parts(parts, self._writev(parts))
        while self._flush(tls):
            if not parts:
                return None
            try:
                parts = tls.encrypt(parts)
            except ssl.SSLError as error:  # we have sent close_notify, or the TLS is broken
                raise trio.BrokenResourceError from error
        return parts

    def _flush(self, tls: Tls) -> bool:
        """Write as many records as there is room for; return whether all are written."""
        while tls.unwritten or tls.pending:
            records = tls.unwritten or tls.data_to_send()
            sent = self._writev((records,))
            tls.unwritten = memoryview(records)[sent:] if sent < len(records) else b""
            if tls.unwritten:
                return False
        return True

    def _writev(self, parts: Parts) -> int:
        """Write as much as there is room for; return the number of bytes."""
        if self._fileno < 0:
            raise trio.ClosedResourceError
        try:
            return self._kernel.writev(self._fileno, parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError from error

    @property
    def unsent(self) -> int:
        """How many bytes the peer's kernel has not received yet."""
        return 0 if self._fileno < 0 else self._kernel.unsent(self._fileno)

    @property
    def in_flight(self) -> int:
        """How many bytes are in flight to the peer's kernel."""
        return 0 if self._fileno < 0 else self._kernel.in_flight(self._fileno)

    def close(self, *, orderly: bool = False) -> None:
        """Close the socket, and wake the tasks that read or write. Idempotent.

        Args:
          orderly: send a ``close_notify`` if there is TLS, and room for it, and nothing is
            being written. Without it the peer knows that something may be truncated.
        """
        if self._fileno < 0:
            return
        if orderly and self._tls is not None and self._sending is None:
            self._tls.send_close_notify()
            with suppress(trio.BrokenResourceError):
                self._flush(self._tls)
        # A forked child may have the socket, too. Then closing it here would send no FIN.
        self._shutdown_write()
        self._kernel.forget(self._fileno)
        self._fileno = -1
        self.socket.close()
        self._wake_reader()

    def _shutdown_write(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(SHUT_WR)


def _size(parts: Parts) -> int:
    return sum(map(len, parts))


def _remaining_parts(parts: Parts, sent: int) -> Parts | None:
    """Return the parts without the first ``sent`` bytes; None if nothing is left."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return None


class Tls:
    """The TLS of one connection, without I/O: it turns bytes into records and back."""

    __slots__ = (
        "_eof",
        "_failure",
        "_incoming",
        "_outgoing",
        "_ssl_object",
        "truncated",
        "unwritten",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl_object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._eof = False  # nothing more can be decrypted
        self.truncated = False  # EOF came without a close_notify
        self._failure: ssl.SSLError | None = None  # why, unless the peer sent close_notify
        self.unwritten: bytes | memoryview = b""
        """Records from ``data_to_send`` that could not be written yet."""

    def data_to_send(self) -> bytes:
        """Return the records that are to be written, once."""
        return self._outgoing.read()

    def do_handshake(self, records: bytes) -> bool:
        """Continue the handshake; return whether it is done."""
        self._incoming.write(records)
        try:
            self._ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    @property
    def alpn(self) -> str | None:
        return self._ssl_object.selected_alpn_protocol()

    @property
    def sends_tickets(self) -> bool:
        """Whether a server's last records in a handshake are session tickets only."""
        return self._ssl_object.version() == "TLSv1.3"

    @property
    def pending(self) -> int:
        """How many bytes ``data_to_send`` would return."""
        return self._outgoing.pending

    @property
    def readable(self) -> bool:
        """Whether ``decrypt`` needs no more records: some came with the last of the handshake,
        or EOF is known."""
        return self._eof or self._incoming.pending > 0

    def decrypt(self, records: bytes) -> bytes | None:
        """Return the bytes of the complete records; None if there is none, ``b""`` at EOF."""
        data = b""
        # OpenSSL never frees memory before the connection closes, so feed it little at a time.
        for start in range(0, len(records) or 1, MAX_RECORD):
            self._incoming.write(records[start : start + MAX_RECORD])
            # If there were no input, OpenSSL would raise an exception, which is slower than this.
            while self._incoming.pending and not self._eof:
                try:
                    chunk = self._ssl_object.read(MAX_RECORD)
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:  # in place of b"" after our own close_notify
                    chunk = b""
                except ssl.SSLError as error:
                    self._failure = error
                    chunk = b""
                data = data + chunk if data else chunk  # a few at most
                self._eof = not chunk
        if data:
            return data
        if self._failure is not None:
            raise self._failure
        return b"" if self._eof else None

    def encrypt(self, parts: Parts) -> Parts:
        """Encrypt as much of the parts as fits into the buffer; return the rest.

        Encrypted bytes that are not written yet are a second copy in memory. There must be no such
        copy of a whole large response, also because OpenSSL would keep the memory.
        """
        if len(parts) > 1 and sum(map(len, parts)) <= MAX_RECORD:
            parts = [b"".join(parts)]  # a record costs more than its bytes
        if len(parts) == 1 and 0 < len(parts[0]) <= MAX_RECORD:
            self._ssl_object.write(parts[0])
            return ()
        for index, part in enumerate(parts):
            view = memoryview(part)
            while view:
                if self._outgoing.pending >= MAX_RECORD:
                    return [view, *parts[index + 1 :]]
                view = view[self._ssl_object.write(view[:MAX_RECORD]) :]
        return ()

    def send_close_notify(self) -> None:
        """Encrypt a ``close_notify``, unless one was sent, or there was no handshake."""
        with suppress(ssl.SSLError):  # it is also raised if the peer's has not come yet
            self._ssl_object.unwrap()
