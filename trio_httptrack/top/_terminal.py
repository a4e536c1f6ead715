"""The terminal: its alternate screen and its keys.

Only the parts of a frame that differ from the previous frame are written. In most lines these are
the last digits of an age. So a slow connection, such as SSH over a bad network, carries a few
hundred bytes a second instead of the whole screen.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from operator import itemgetter

import trio

from .._extra import require_extra
from .._monitor.formatting import display_width
from .._monitor.text import Line, Style, cut_to_width

try:
    import termios
    import tty
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "a live view needs a POSIX terminal, which this system does not have; "
        "--once prints it as text"
    ) from None

with require_extra("a live view", "top"):
    from rich.console import Console
    from rich.text import Text

# Switch to the alternate screen, hide the cursor, and switch off line wrapping. (The terminal may
# disagree with us about the width of a character: such a line must not wrap.)
ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
# CAN first: it cancels an escape sequence that was written in part.
LEAVE = "\x18\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
LEAVE_TIMEOUT = 1  # seconds: a terminal that does not read must not block the exit

CURSOR_MOVE_SIZE = 8  # bytes of an escape sequence that moves the cursor

# Bold, dim and red are legible on a light and on a dark background; yellow and blue are not.
STYLES: dict[Style, str] = {
    "": "",
    "strong": "bold",
    "weak": "dim",
    "trouble": "bold red",
    "heading": "reverse",
}

Characters = list[tuple[str, Style]]

KEY = re.compile(r"\x1b\[[0-9;]*[@-~]|\x1bO.|.", re.DOTALL)
KEYS = {
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
}


class Terminal:
    """The process's controlling terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._stream = trio.lowlevel.FdStream(fd)
        self._modes = termios.tcgetattr(fd)
        self._shown: list[Characters] = []
        self._size = os.terminal_size((80, 24))
        self._entered = False
        self._lock = trio.Lock()
        self._console = Console(file=io.StringIO(), force_terminal=True, legacy_windows=False)

    @property
    def size(self) -> os.terminal_size:
        with suppress(OSError):  # the terminal has gone
            self._size = os.get_terminal_size(self._fd)
        return self._size

    async def enter(self) -> None:
        """Switch to our screen. Call it again if another process may have written to it."""
        async with self._lock:
            tty.setcbreak(self._fd)  # Ctrl-C and Ctrl-Z still send signals
            self._entered = True
            self._shown = []
            await self._write(ENTER)

    async def leave(self) -> None:
        """Restore the screen and the terminal's modes."""
        self._entered = False
        with suppress(termios.error):  # the terminal has gone
            termios.tcsetattr(self._fd, termios.TCSANOW, self._modes)
        with trio.CancelScope(deadline=trio.current_time() + LEAVE_TIMEOUT, shield=True):
            async with self._lock:
                await self._write(LEAVE)

    async def paint(self, frame: list[Line]) -> None:
        """Show lines from the top of the screen."""
        async with self._lock:
            if self._entered:
                await self._paint(frame)

    async def _paint(self, frame: list[Line]) -> None:
        width, height = self.size
        # The terminal may have been resized since the frame was made.
        fitted = [*frame, *[[]] * height][:height]
        lines = [characters(line, width) for line in fitted]
        if len(self._shown) != height:
            self._shown = [[]] * height
        changes = (
            self._change(row, line, before)
            for row, (line, before) in enumerate(zip(lines, self._shown, strict=True), 1)
        )
        written = "".join(changes)
        self._shown = lines
        if written:
            await self._write(written)

    def forget(self) -> None:
        """Have the next frame painted in full, because the screen has been resized."""
        self._shown = []

    def _change(self, row: int, line: Characters, before: Characters) -> str:
        """Return what to write to change a row of the screen from ``before`` to ``line``."""
        if line == before:
            return ""
        if len(line) != len(before) or not (is_ascii(line) and is_ascii(before)):
            return f"\x1b[{row};1H\x1b[2K{self._rendered(line)}"
        return "".join(
            f"\x1b[{row};{start + 1}H{self._rendered(line[start:end])}"
            for start, end in differences(line, before)
        )

    def _rendered(self, part: Characters) -> str:
        text = Text()
        for style, group in groupby(part, key=itemgetter(1)):
            text.append("".join(character for character, _ in group), STYLES[style])
        with self._console.capture() as capture:
            self._console.print(text, end="", soft_wrap=True)
        return capture.get()

    async def _write(self, text: str) -> None:
        with suppress(trio.BrokenResourceError):  # the terminal has gone; pressed() notices, too
            await self._stream.send_all(text.encode("utf-8", "replace"))

    async def pressed(self) -> AsyncIterator[str]:
        """Yield keys until the terminal has gone: characters, and the names of other keys.

        An escape sequence may arrive in two parts on a slow line. Its first part is then taken for
        the Escape key. To wait for a second part would delay that key for all users.
        """
        while received := await self._received():
            for key in keys_in(received.decode("utf-8", "replace")):
                yield key

    async def _received(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some())
        except trio.BrokenResourceError:
            return b""

    async def close(self) -> None:
        await self._stream.aclose()


def characters(line: Line, width: int) -> Characters:
    """Return a line's characters up to the edge of the screen, each with its style."""
    line = cut_to_width(line, width)
    found: Characters = [(each, span.style) for span in line for each in span.text]
    return found + [(" ", "")] * (width - sum(display_width(span.text) for span in line))


def is_ascii(line: Characters) -> bool:
    """Return whether each character takes one column in every terminal."""
    return all(character.isascii() for character, _ in line)


def differences(line: Characters, before: Characters) -> list[tuple[int, int]]:
    """Return the ranges in which two lines differ.

    Ranges are joined if writing the characters between them takes fewer bytes than moving the
    cursor.

    >>> old, new = ([(each, "") for each in text] for text in ("1m09s" * 3, "1m10s" + "1m09s" * 2))
    >>> differences(new, old)
    [(2, 4)]
    """
    found: list[tuple[int, int]] = []
    for column, (now, then) in enumerate(zip(line, before, strict=True)):
        if now != then:
            if found and column - found[-1][1] < CURSOR_MOVE_SIZE:
                start, _ = found.pop()
            else:
                start = column
            found.append((start, column + 1))
    return found


def keys_in(text: str) -> Iterator[str]:
    """
    >>> list(keys_in("s\\x1b[5~\\r\\x1b[1;5C\\x07"))
    ['s', 'page up', 'enter']
    """
    for key in KEY.findall(text):
        named = KEYS.get(key, key)
        if named.isprintable():
            yield named


@asynccontextmanager
async def terminal() -> AsyncIterator[Terminal]:
    """Open the terminal, and restore it at the end, whatever happens."""
    # Not the standard streams: the shell shares them, and Trio would make them non-blocking.
    fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    opened = Terminal(fd)
    try:
        await opened.enter()
        yield opened
    finally:
        await opened.leave()
        await opened.close()
