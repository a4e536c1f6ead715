"""What an HTTP/2 connection writes, and in what order.

Frames that belong to no body are written first, in the order in which they were made: settings,
acknowledgements, windows, resets and the headers of responses. Behind them the streams that have
something to send, and a window for it, take turns by a frame each. Priorities are ignored, as RFC
9113 (5.3) allows: they cost memory for streams that are long finished, and clients no longer send
them.

What is written together leaves in one write. Where one handler alone is at work, its response is
written at once; where there are several, they probably finish in the same scheduler step, and the
sender, a task that runs in the next one, writes for all of them. The sender also writes whatever
has to wait for room, and lets other tasks run between two writes.

Invariant: while ``_sending`` is true nobody but the sender writes, for it may be in the middle of a
frame.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import trio

from .http2_frames import (
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_STREAM,
    frame_header,
)
from .pace import Pace, Rate
from .transport import Parts

WRITE_SIZE = 2**16  # bytes of bodies in one write
JOIN_LIMIT = 2**14  # bytes that are copied into one piece rather than written from where they are
CONGESTED = 2**14  # bytes of frames that belong to no body

# Bytes of one stream's body: where its handler waits, and where it goes on.
HIGH_WATER, LOW_WATER = 2**15, 2**14


class Connection(Protocol):
    """What the output needs of its connection."""

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for. What is left, if anything is, must be written next."""

    async def write(self, parts: Parts) -> None:
        """Write, in order. Not a checkpoint unless it has to wait."""


class Body(Protocol):
    """What the output needs of a stream."""

    id: int
    outbox: Outbox

    def tail(self) -> bytes:
        """The frames behind the one that ends it."""

    def sent(self) -> None:
        """Everything is written, and nothing follows."""


class Outbox:
    """What one stream has to send: its body, and how it ends."""

    __slots__ = ("_changed", "_drained", "_parts", "end", "pace", "queued", "size", "window")

    def __init__(self, window: int, rate: Rate | None = None) -> None:
        self.window = window
        self.pace = None if rate is None else Pace(rate)  # that the client has to keep
        self._drained = False  # so far that there was room for another part
        self._parts: deque[bytes | memoryview] | None = None
        self.size = 0
        self.end: bytes | None = None
        """The frames behind the body; empty if its last frame ends the stream."""
        self.queued = False
        self._changed: trio.Event | None = None

    def add(self, body: bytes) -> None:
        if self._parts is None:
            self._parts = deque()
        self._parts.append(body)
        if self.pace is not None and (self._drained or not self.size):
            # For each part by itself, as for each write over HTTP/1: what the client has read
            # before gives it no more time.
            self.pace.restart(trio.current_time())
            self._drained = False
        self.size += len(body)

    def move(self, size: int, parts: list[bytes | memoryview]) -> None:
        """Move so much of the body into ``parts``."""
        assert self._parts is not None
        if self.pace is not None:
            self.pace.moved += size
            if size == self.size:
                self.pace.pause(trio.current_time())
            self._drained |= self.size > LOW_WATER >= self.size - size
        self.size -= size
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                view = memoryview(part)
                part, rest = view[:size], view[size:]
                self._parts.appendleft(rest)
            parts.append(part)
            size -= len(part)
        if self.size <= LOW_WATER:
            self._wake()

    def close(self) -> None:
        """Nothing more will be sent."""
        self.end = self.pace = None
        self.size = 0
        self._parts = None
        self._wake()

    async def wait_for_room(self) -> None:
        """Wait, if it is too full, until it is nearly empty."""
        if self.size >= HIGH_WATER:
            while self.size > LOW_WATER:
                if self._changed is None:
                    self._changed = trio.Event()
                await self._changed.wait()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class Output:
    """Writes for one connection."""

    __slots__ = (
        "_changed",
        "_connection",
        "_control",
        "_control_size",
        "_ending",
        "_out_of_window",
        "_sender",
        "_sending",
        "_turns",
        "_unsent",
        "body_bytes",
        "max_frame_size",
        "window",
    )

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._control: list[bytes] = []
        self._control_size = 0
        self._turns: deque[Body] = deque()
        self._out_of_window: dict[Body, None] = {}  # the connection's
        self._ending: list[Body] = []  # what is written ends them
        self._unsent: Parts | None = None  # what there was no room for
        self._sending = False
        self._sender: trio.lowlevel.Task | None = None  # while it waits for work
        self._changed: trio.Event | None = None
        self.window = DEFAULT_WINDOW
        self.max_frame_size = DEFAULT_FRAME_SIZE
        self.body_bytes = 0  # bytes of bodies

    def add(self, frame: bytes, *, ends: Body | None = None) -> None:
        """Queue a frame that belongs to no body. It may be the last of its stream."""
        self._control.append(frame)
        self._control_size += len(frame)
        if ends is not None:
            self._ending.append(ends)

    def add_whole(self, stream: Body, headers: bytes, body: bytes) -> bool:
        """Queue a whole response, if the windows have room for it; return whether they had.

        The usual response is small, and its stream need not wait for its turn.
        """
        length, box = len(body), stream.outbox
        if length > min(box.window, self.window, self.max_frame_size) or self.congested:
            return False
        box.window -= length
        self.window -= length
        self.body_bytes += length
        end = frame_header(length, DATA, END_STREAM, stream.id)
        self.add(b"".join((headers, end, body, stream.tail())), ends=stream)
        return True

    def schedule(self, stream: Body) -> None:
        """A stream has something to send, or a window for it again."""
        box = stream.outbox
        if not box.queued and (box.size or box.end is not None):
            box.queued = True
            self._turns.append(stream)

    def open_window(self, increment: int) -> None:
        """The client takes so many more bytes of all bodies together."""
        self.window += increment
        if self.window > 0:
            self._turns.extend(self._out_of_window)
            self._out_of_window.clear()

    def forget(self, stream: Body) -> None:
        """A stream has ended. Where it has had a turn it needs none any more."""
        self._out_of_window.pop(stream, None)

    @property
    def empty(self) -> bool:
        """Whether everything that can be written is. Bodies may wait for a window."""
        return not (self._control or self._turns or self._unsent is not None or self._sending)

    @property
    def congested(self) -> bool:
        """Whether the client does not read what must be written before anything else is read."""
        return self._sending and self._control_size > CONGESTED

    async def wait_for_change(self) -> None:
        """Wait until something, or everything, has been written."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def flush(self) -> None:
        """Write what there is room for, and leave the rest to the sender."""
        if self._sending:
            return
        parts = self._next()
        if not parts:
            return
        self._unsent = self._connection.write_now(parts)
        if self._unsent is None:
            self._written()
        else:
            self._sending = True
        if not self.empty:
            self.flush_later()

    def flush_later(self) -> None:
        """Let the sender write in the next scheduler step."""
        if self._sender is not None:
            trio.lowlevel.reschedule(self._sender)
            self._sender = None

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """The sender."""
        while True:
            self._sending = True
            # What is left may be empty and still have to be written: TLS has encrypted it already.
            parts, self._unsent = self._unsent, None
            if parts is None:
                parts = self._next() or None
            if parts is not None:
                await self._connection.write(parts)
                self._written()
                await trio.lowlevel.checkpoint()
            else:
                self._sending = False
                self._notify()
                self._sender = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        self._sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _written(self) -> None:
        ending, self._ending = self._ending, []
        for stream in ending:
            stream.sent()
        self._notify()

    def _notify(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _next(self) -> list[bytes | memoryview]:
        """What is to be written now."""
        parts: list[bytes | memoryview] = list(self._control)
        size = self._control_size
        self._control.clear()
        self._control_size = 0
        limit = size + WRITE_SIZE
        while self._turns and size < limit:
            stream = self._turns.popleft()
            size += self._frame(stream, parts)
        if len(parts) > 1 and size <= JOIN_LIMIT:
            return [b"".join(parts)]
        return parts

    def _frame(self, stream: Body, parts: list[bytes | memoryview]) -> int:
        """Give a stream its turn; return how many bytes it had to send."""
        box = stream.outbox
        length = box.size
        if length:
            length = min(length, box.window, self.window, self.max_frame_size)
            if length <= 0:
                if box.window > 0:
                    self._out_of_window[stream] = None
                else:
                    box.queued = False
                return 0
            box.window -= length
            self.window -= length
        ends = length == box.size and box.end is not None
        if not (length or ends):  # it has ended meanwhile
            box.queued = False
            return 0
        if length or (ends and not box.end):
            flags = END_STREAM if ends and not box.end else 0
            parts.append(frame_header(length, DATA, flags, stream.id))
            if length:
                box.move(length, parts)
                self.body_bytes += length
        if ends:
            if rest := (box.end or b"") + stream.tail():
                parts.append(rest)
            box.end = None
            self._ending.append(stream)
        if box.size:
            self._turns.append(stream)
        else:
            box.queued = False
        return length + 9
