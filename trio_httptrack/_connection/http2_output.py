"""Write an HTTP/2 connection's frames, and schedule its streams.

Control frames are written first, in order: settings, acknowledgements, window updates, resets and
the headers of responses. After them, the streams that have body bytes and a window for them take
turns, one frame each. Priorities are ignored, as RFC 9113 (5.3) allows: they cost memory for
streams that are long closed, and clients no longer send them.

Queued frames are written together. If only one handler is running, its response is written at
once. If there are several, they probably finish in the same scheduler step, and the sender, a task
that runs in the next step, writes for all of them. The sender also writes everything that has to
wait for room, and lets other tasks run between two writes.

Invariant: while ``_sending`` is true, only the sender writes, because it may be in the middle of a
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
JOIN_LIMIT = 2**14  # bytes of one write that are joined first
CONGESTED = 2**14  # bytes of control frames

# Bytes of one stream's body: where its handler starts to wait, and where it continues.
HIGH_WATER, LOW_WATER = 2**15, 2**14


class Connection(Protocol):
    """What the output needs of its connection."""

    def write_now(self, parts: Parts) -> Parts | None:
        """Write what there is room for; return the rest, which must be written next, or None."""

    async def write(self, parts: Parts) -> None:
        """Write everything, in order. A checkpoint only if it has to wait."""


class Body(Protocol):
    """What the output needs of a stream."""

    id: int
    outbox: Outbox

    def final_frames(self) -> bytes:
        """Return the frames to send after the last frame of the body."""

    def sent(self) -> None:
        """Note that everything is written, and nothing follows."""


class Outbox:
    """The bytes that one stream has to send: the rest of its body, and the frames after it."""

    __slots__ = ("_changed", "_drained", "_parts", "end", "pace", "queued", "size", "window")

    def __init__(self, window: int, rate: Rate | None = None) -> None:
        self.window = window
        self.pace = None if rate is None else Pace(rate)  # of the response's body
        self._drained = False  # since the last part was added, there was room for another
        self._parts: deque[bytes | memoryview] | None = None
        self.size = 0
        self.end: bytes | None = None
        """The frames after the body; empty if the last DATA frame ends the stream."""
        self.queued = False
        self._changed: trio.Event | None = None

    def add(self, body: bytes) -> None:
        if self._parts is None:
            self._parts = deque()
        self._parts.append(body)
        if self.pace is not None and (self._drained or not self.size):
            # Each part has a pace of its own, as each write over HTTP/1 has: a client that has
            # read the last part fast gets no extra time for this one.
            self.pace.restart(trio.current_time())
            self._drained = False
        self.size += len(body)

    def move(self, size: int, parts: list[bytes | memoryview]) -> None:
        """Move ``size`` bytes of the body to ``parts``."""
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
        """Drop everything: nothing more will be sent."""
        self.end = self.pace = None
        self.size = 0
        self._parts = None
        self._wake()

    async def wait_for_room(self) -> None:
        """If it is above the high-water mark, wait until it is at the low-water mark."""
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
    """Writes the frames of one connection."""

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
        self._out_of_window: dict[Body, None] = {}  # streams blocked by the connection's window
        self._ending: list[Body] = []  # streams that end with what is being written
        self._unsent: Parts | None = None  # the rest of a write that had no room
        self._sending = False
        self._sender: trio.lowlevel.Task | None = None  # while it is idle
        self._changed: trio.Event | None = None
        self.window = DEFAULT_WINDOW
        self.max_frame_size = DEFAULT_FRAME_SIZE
        self.body_bytes = 0  # bytes of bodies

    def add(self, frame: bytes, *, ends: Body | None = None) -> None:
        """Queue a control frame. ``ends`` is the stream whose last frame it is, if any."""
        self._control.append(frame)
        self._control_size += len(frame)
        if ends is not None:
            self._ending.append(ends)

    def add_response(self, stream: Body, headers: bytes, body: bytes) -> bool:
        """Queue a whole response, if the windows have room for it; return whether it is queued.

        Most responses are small, and need not wait for their turn.
        """
        length, box = len(body), stream.outbox
        if length > min(box.window, self.window, self.max_frame_size) or self.congested:
            return False
        box.window -= length
        self.window -= length
        self.body_bytes += length
        end = frame_header(length, DATA, END_STREAM, stream.id)
        self.add(b"".join((headers, end, body, stream.final_frames())), ends=stream)
        return True

    def schedule(self, stream: Body) -> None:
        """Give a stream its turns, if it has something to send."""
        box = stream.outbox
        if not box.queued and (box.size or box.end is not None):
            box.queued = True
            self._turns.append(stream)

    def update_window(self, increment: int) -> None:
        """Enlarge the client's window for all bodies together."""
        self.window += increment
        if self.window > 0:
            self._turns.extend(self._out_of_window)
            self._out_of_window.clear()

    def forget(self, stream: Body) -> None:
        """Forget a closed stream. If it still has a turn, that finds nothing to send."""
        self._out_of_window.pop(stream, None)

    @property
    def empty(self) -> bool:
        """Whether everything is written that can be. Bodies may wait for a window."""
        return not (self._control or self._turns or self._unsent is not None or self._sending)

    @property
    def congested(self) -> bool:
        """Whether to stop reading, because the client does not read our control frames."""
        return self._sending and self._control_size > CONGESTED

    async def wait_for_change(self) -> None:
        """Wait until the next write is done."""
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def flush(self) -> None:
        """Write what there is room for, and let the sender write the rest."""
        if self._sending:
            return
        parts = self._next_write()
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
        """Run the sender."""
        while True:
            self._sending = True
            # The rest may be empty and still have to be written: TLS has encrypted it already.
            parts, self._unsent = self._unsent, None
            if parts is None:
                parts = self._next_write() or None
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

    def _next_write(self) -> list[bytes | memoryview]:
        """Return what is to be written next."""
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
        """Give a stream its turn; return how many bytes it has added to ``parts``."""
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
        if not (length or ends):  # it was closed meanwhile
            box.queued = False
            return 0
        if length or (ends and not box.end):
            flags = END_STREAM if ends and not box.end else 0
            parts.append(frame_header(length, DATA, flags, stream.id))
            if length:
                box.move(length, parts)
                self.body_bytes += length
        if ends:
            if rest := (box.end or b"") + stream.final_frames():
                parts.append(rest)
            box.end = None
            self._ending.append(stream)
        if box.size:
            self._turns.append(stream)
        else:
            box.queued = False
        return length + 9
