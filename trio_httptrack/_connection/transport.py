"""The bytes of one accepted connection, by the shortest way: a plain socket and TLS alike.

Both are system calls on the socket, which the kernel knows by a number. Reading waits until the
kernel has reported that there is something. Writing tries first, for there is nearly always room,
and is no checkpoint if everything went out. TLS stands between the two and the caller and does no
I/O: it turns bytes into records, and records into bytes.

Invariants:

* The number is used only while ``_fileno`` is not negative. The number of a closed one
  may be another connection's in the same scheduler step.
* What has been encrypted is written completely and in that order, for TLS numbers its records.
  Nobody's bytes come between those of one ``send``.
* ``_sending`` is None except while a write waits: for room, or for its turn. An idle connection
  has no lock, and a write that has room neither makes nor takes one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from socket import AF_INET, AF_INET6, SHUT_WR
from typing import Any, Protocol

import trio

from .kernel import HANG_UP, RESET, URGENT, Kernel
from .pace import Pace, Rate

MAX_RECEIVE = 2**16
MAX_PARTS = 16  # of one write; the kernel's limit is higher, but many small parts are no gain
MAX_RECORD = 2**14  # bytes of one TLS record
MAX_DISCARD_READS = 16  # reads of what nobody wants to have

Parts = Sequence[bytes | memoryview]


class Socket(Protocol):
    """As much of a non-blocking ``socket.socket`` as a server uses."""

    @property
    def family(self) -> int: ...
    def fileno(self) -> int: ...
    def getpeername(self) -> Any: ...
    def getsockname(self) -> Any: ...
    def shutdown(self, how: int, /) -> None: ...
    def close(self) -> None: ...


class Expired(Exception):
    """The deadline has passed, and a last look at the socket found nothing to read.

    The connection still works: one can write, or renew it and read on.
    """


class TooSlow(trio.BrokenResourceError):
    """The peer does not read fast enough what is written."""


class Transport:
    """The server's end of a connection. One task may read; any may write, each in its turn."""

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
        self._tls: Tls | None = None  # once there is a handshake
        self._fileno = kernel.add(socket)
        self._readable = True  # perhaps: the first request mostly comes with its connection
        # Whether a read may stop before the last byte: at TCP's urgent mark, or behind a
        # message that carries descriptors through a Unix socket. The kernel does not report
        # the rest again, and who waited for that after a short read would wait forever.
        self._short_reads = socket.family not in (AF_INET, AF_INET6)
        self._hang_up_events = 0  # how the peer has, perhaps behind unread bytes, as epoll says it
        self._expired = False
        self._reader: trio.lowlevel.Task | None = None
        self._registered = False
        self._on_hang_up: Callable[[bool], None] | None = None
        self._sending: trio.Lock | None = None
        self.progress = 0
        """How often the peer has made room for a write that had to wait."""

    @property
    def tls(self) -> bool:
        return self._tls is not None

    async def handshake(self) -> str | None:
        """Do the TLS handshake, if there is one to do; return the protocol of ALPN.

        Raises:
          Expired: the deadline has passed.
          trio.BrokenResourceError: the handshake failed, or the peer has gone.
          trio.ClosedResourceError: the connection was closed, perhaps meanwhile.
        """
        if self._ssl_context is None:
            return None
        tls = self._tls = Tls(self._ssl_context)
        established = False
        while not established:
            records = await self._read(MAX_RECORD)
            if not records:
                raise trio.BrokenResourceError("the peer has gone before the handshake was done")
            try:
                established = tls.do_handshake(records)
            except ssl.SSLError as error:
                self._write_alert(tls)
                raise trio.BrokenResourceError from error
            if established and tls.sends_tickets:
                # They stay until something else is sent. A client that only sends, and closes
                # without reading, would have them unread then. Its kernel would reset the
                # connection, and destroy what it has sent.
                tls.unwritten = tls.data_to_send()
                break
            while not self._flush(tls):
                if self._expired:
                    raise Expired
                # Neither shielded nor in a turn: nobody else sends yet, and nothing of the
                # connection is of use without the rest of the handshake.
                await self._kernel.wait_writable(self._fileno)
        return tls.alpn

    def receive(self) -> Coroutine[Any, Any, bytes]:
        """Await the next bytes; none at the peer's end. Always a checkpoint.

        A missing ``close_notify`` makes no difference: HTTP has its own ways to say where a
        message ends.

        Raises:
          Expired: the deadline has passed.
          trio.BrokenResourceError: the connection was reset, or its TLS is broken.
          trio.ClosedResourceError: it was closed, perhaps meanwhile.
        """
        # No coroutine around the coroutine: that is memory of each idle connection.
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
                self._write_alert(tls)  # OpenSSL has refused a renegotiation, and goes on
                if tls.pending > MAX_RECORD:
                    raise trio.BrokenResourceError("the peer renegotiates, and does not read")
            if data is not None:
                return data
            if not (records := await self._read()):
                tls.truncated = True
                return b""

    @property
    def truncated(self) -> bool:
        """Whether the peer's end came without TLS's ``close_notify``.

        That is no half-close, from which a plain end cannot be told: nothing can be written
        to such a peer any more.
        """
        return self._tls is not None and self._tls.truncated

    def _write_alert(self, tls: Tls) -> None:
        """Tell the peer what is wrong with its TLS, if there is room."""
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            self._flush(tls)

    async def _read(self, size: int = MAX_RECEIVE) -> bytes:
        """What ``receive`` does without TLS."""
        if self._expired:
            self._readable = True  # perhaps: look once more, whatever was reported
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
                # The kernel reports what comes, not what is still there. After a short read
                # nothing is, and the next read can wait without trying.
                self._readable = (
                    len(data) == size or bool(self._hang_up_events) or self._short_reads
                )
                return data

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _register(self) -> None:
        # By who waits first, and not at the start: a connection whose only request is there
        # with it is never registered.
        if not self._registered and self._fileno >= 0:
            self._kernel.register(self._fileno, self._on_events)
            self._registered = True

    def _on_events(self, events: int) -> None:
        if events & URGENT:
            self._short_reads = True
        if events & HANG_UP:
            # From now on reads must go on until they find the end themselves: it came with
            # the last bytes, and is not reported again behind them.
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
        """Let the reader look at the socket once more, and then not wait any more.

        What came in time counts, though the reader has not seen it yet: both the deadline and
        the bytes may have come while another task was running.
        """
        self._expired = True
        self._kernel.wake(self._fileno)  # a handshake that writes
        self._wake_reader()

    def retry_read(self) -> None:
        """Let the reader look at the socket once more, and wait again if nothing is there."""
        self._wake_reader()

    def renew(self) -> None:
        """Let the reader wait again: the deadline does not matter any more."""
        self._expired = False

    @contextmanager
    def watch(self, on_hang_up: Callable[[bool], None]) -> Iterator[None]:
        """While the block runs and nobody reads, call ``on_hang_up(reset)`` at the peer's end.

        ``reset`` is true if the peer does not read any more either.
        """
        self._on_hang_up = on_hang_up
        self._notify_watcher()
        self._register()
        try:
            yield
        finally:
            self._on_hang_up = None

    def discard(self, on_eof: Callable[[], object]) -> None:
        """End our side, throw away what the peer still sends, and call ``on_eof`` at its end.

        Without a task. For a connection that nobody has read from, nor will.
        """
        self._shutdown_write()

        def on_events(_: int) -> None:
            if self._discard_input():
                on_eof()

        self._kernel.register(self._fileno, on_events)

    def _discard_input(self) -> bool:
        """Read what is there; return whether that was the end."""
        try:
            for _ in range(MAX_DISCARD_READS):
                if not self._kernel.read(self._fileno, MAX_RECEIVE):
                    return True
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True  # it does not stop

    def send_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for, and return what is left of it; None if nothing is.

        What is left must be given to :meth:`send` at once, or others come before it. There is
        nearly always room, and a coroutine that never waits costs as much as the rest of this.

        Raises:
          trio.BrokenResourceError: the peer has gone.
          trio.ClosedResourceError: the connection was closed.
        """
        if len(parts) > MAX_PARTS:
            parts = [b"".join(parts)]
        return self._write(parts) if self._sending is None else parts

    async def send(self, parts: Parts) -> None:
        """Write everything, also if cancelled meanwhile. A checkpoint only if it must wait.

        Raises:
          TooSlow: the peer reads less than it must.
          trio.BrokenResourceError: the peer has gone.
          trio.ClosedResourceError: the connection was closed, perhaps meanwhile.
        """
        rest = self.send_now(parts)
        if rest is not None:
            async with self._write_lock():
                await self._write_all(rest)

    async def send_eof(self) -> None:
        """End our side behind what is being written. The peer can still send.

        Under TLS a ``close_notify`` goes first: the peer knows then that nothing was cut off.
        Its own is not waited for. If it has gone, there is nothing to do.
        """
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with self._write_lock():
                if self._tls is not None:
                    self._tls.send_close_notify()
                    await self._write_all(())
                self._shutdown_write()

    @asynccontextmanager
    async def _write_lock(self) -> AsyncIterator[None]:
        """Let nobody else write in the block, nor anything but a close stop it.

        Half a frame, or half a record, would make all that follows unreadable.
        """
        lock = self._sending = self._sending or trio.Lock()
        try:
            with trio.CancelScope(shield=True):
                async with lock:
                    yield
        finally:
            if not lock.locked():  # else it is somebody else's by now, in the order they came
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

        What the kernel has taken is not read yet, and it takes a large part of its buffer at a
        time: megabytes, which a slow peer may read for hours. What counts is what has left it.
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
            if not drained:  # not every system says what is unsent
                pace.moved += left - _size(rest or ())

    def _write(self, parts: Parts) -> Parts | None:
        """Write as much as there is room for; return what is left of the parts.

        That is None if everything went out. Under TLS it may be empty: all is encrypted then,
        but not all the records are written.
        """
        tls = self._tls
        if tls is None:
            return _remaining_parts(parts, self._writev(parts))
        while self._flush(tls):
            if not parts:
                return None
            try:
                parts = tls.encrypt(parts)
            except ssl.SSLError as error:  # our side has ended, or the TLS is broken
                raise trio.BrokenResourceError from error
        return parts

    def _flush(self, tls: Tls) -> bool:
        """Write as many records as there is room for; return whether that was all."""
        while tls.unwritten or tls.pending:
            records = tls.unwritten or tls.data_to_send()
            sent = self._writev((records,))
            tls.unwritten = memoryview(records)[sent:] if sent < len(records) else b""
            if tls.unwritten:
                return False
        return True

    def _writev(self, parts: Parts) -> int:
        """Write as much as there is room for; return how many bytes that was."""
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
        """How many bytes the peer's kernel has not taken yet."""
        return 0 if self._fileno < 0 else self._kernel.unsent(self._fileno)

    @property
    def in_flight(self) -> int:
        """How many bytes are on their way to the peer's kernel."""
        return 0 if self._fileno < 0 else self._kernel.in_flight(self._fileno)

    def close(self, *, orderly: bool = False) -> None:
        """Close the socket. Wakes the tasks that read or write. Does nothing again.

        Args:
          orderly: send a ``close_notify`` if there is TLS, and room for it, and nothing is
            being written. Without it the peer can tell that the end was cut off.
        """
        if self._fileno < 0:
            return
        if orderly and self._tls is not None and self._sending is None:
            self._tls.send_close_notify()
            with suppress(trio.BrokenResourceError):
                self._flush(self._tls)
        # A forked child may have the socket, too. Closing alone would not end it then.
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
    """What is left of the parts when so many bytes have been sent; None if nothing is."""
    for index, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[index + 1 :]]
        sent -= len(part)
    return None


class Tls:
    """The TLS of one connection: bytes on the one side, records on the other, and no I/O."""

    __slots__ = (
        "_eof",
        "_failure",
        "_incoming",
        "_object",
        "_outgoing",
        "truncated",
        "unwritten",
    )

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._eof = False  # there is nothing more to decrypt
        self.truncated = False  # the connection ended beneath it
        self._failure: ssl.SSLError | None = None  # and why, unless the peer has said so
        self.unwritten: bytes | memoryview = b""
        """Records that were taken, and could not be written yet."""

    def data_to_send(self) -> bytes:
        """The records that are to be written."""
        return self._outgoing.read()

    def do_handshake(self, records: bytes) -> bool:
        """Go on with the handshake; return whether it is done."""
        self._incoming.write(records)
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    @property
    def alpn(self) -> str | None:
        return self._object.selected_alpn_protocol()

    @property
    def sends_tickets(self) -> bool:
        """Whether all that a server sends at the end of a handshake are session tickets."""
        return self._object.version() == "TLSv1.3"

    @property
    def pending(self) -> int:
        """How many bytes ``data_to_send`` would give."""
        return self._outgoing.pending

    @property
    def readable(self) -> bool:
        """Whether to decrypt before more records are read: some came with the handshake's
        last, or it is known what comes last."""
        return self._eof or self._incoming.pending > 0

    def decrypt(self, records: bytes) -> bytes | None:
        """The bytes of the records that are complete; None if none is, b"" at the end."""
        data = b""
        # OpenSSL keeps as much memory as it ever got at a time, until the connection ends.
        for start in range(0, len(records) or 1, MAX_RECORD):
            self._incoming.write(records[start : start + MAX_RECORD])
            # Where nothing is left to try, OpenSSL would raise, which takes longer than this.
            while self._incoming.pending and not self._eof:
                try:
                    chunk = self._object.read(MAX_RECORD)
                except ssl.SSLWantReadError:
                    break
                except ssl.SSLZeroReturnError:  # instead of b"", if we have ended, too
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
        """Encrypt the first of the parts; return those that have to wait.

        What is encrypted and not written yet is a second copy of the bytes in memory, and it
        must not be one of a whole large response. OpenSSL would keep the memory, too.
        """
        if len(parts) > 1 and sum(map(len, parts)) <= MAX_RECORD:
            parts = [b"".join(parts)]  # a record costs more than its bytes
        if len(parts) == 1 and 0 < len(parts[0]) <= MAX_RECORD:
            self._object.write(parts[0])
            return ()
        for index, part in enumerate(parts):
            view = memoryview(part)
            while view:
                if self._outgoing.pending >= MAX_RECORD:
                    return [view, *parts[index + 1 :]]
                view = view[self._object.write(view[:MAX_RECORD]) :]
        return ()

    def send_close_notify(self) -> None:
        """Encrypt a ``close_notify``, unless there is one, or no handshake was done."""
        with suppress(ssl.SSLError):  # of which one says that the peer's has not come yet
            self._object.unwrap()
