"""``httptrack top`` in a terminal of its own, and what there is on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from .hypercorn_process import SECONDS

TOP = "import sys; from trio_httptrack.top import main; main('httptrack top', sys.argv[1:])"
SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x18|\r|\n|[^\x00-\x1f\x7f]")


class Screen:
    """A terminal that knows what ``httptrack top`` writes, and fails where it writes else."""

    def __init__(self, width: int, height: int) -> None:
        self.resize(width, height)
        self.alternate = False
        self.modes = {"25": True, "7": True}  # of the cursor, and of the right edge
        self.styles: set[str] = set()
        """That were used, as SGR's parameters."""

        self._rows = self._main

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._main = [[" "] * width for _ in range(height)]
        self._rows = self._main
        self._row = self._column = 0

    @property
    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self._rows)

    def write(self, text: str) -> None:
        at = 0
        while at < len(text):
            match = SEQUENCE.match(text, at)
            assert match is not None, f"what does a terminal do with {text[at : at + 20]!r}?"
            at = match.end()
            self._do(match)

    def _do(self, match: re.Match[str]) -> None:
        private, numbers, command = match.groups()
        if match[0] == "\x18":
            return
        if match[0] == "\r":
            self._column = 0
        elif match[0] == "\n":
            self._next_row()
        elif command is None:
            if self._column == self.width:
                assert self.modes["7"], "a character behind the edge"
                self._next_row()
                self._column = 0
            self._rows[self._row][self._column] = match[0]
            self._column += 1
        elif command == "H":
            self._row, self._column = (int(each) - 1 for each in numbers.split(";"))
        elif command == "m":
            self.styles.add(numbers)
        elif command == "K":
            assert numbers == "2"
            self._rows[self._row] = [" "] * self.width
        else:
            assert private
            self._switch(numbers, command == "h")

    def _next_row(self) -> None:
        if self._row < self.height - 1:
            self._row += 1
        else:
            self._rows.append([" "] * self.width)
            del self._rows[0]

    def _switch(self, mode: str, on: bool) -> None:
        if mode == "1049":
            self.alternate = on
            blank = [[" "] * self.width for _ in range(self.height)]
            self._rows = blank if on else self._main
        else:
            assert mode in self.modes
            self.modes[mode] = on


class TerminalProcess:
    """A process in a terminal."""

    process: trio.Process

    def __init__(self, width: int, height: int) -> None:
        self._fd, self.tty = pty.openpty()
        self.screen = Screen(width, height)
        self.size(width, height)
        self.modes = termios.tcgetattr(self.tty)
        self._stream = trio.lowlevel.FdStream(self._fd)
        self._unread = b""

    def size(self, width: int, height: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("4H", height, width, 0, 0))

    def resize(self, width: int, height: int) -> None:
        self.screen.resize(width, height)
        self.size(width, height)

    async def press(self, keys: str) -> None:
        await self._stream.send_all(keys.encode())

    async def read(self) -> bool:
        """Read what was written; return False if no process has the terminal any more."""
        try:
            received = self._unread + bytes(await self._stream.receive_some())
        except (OSError, trio.BrokenResourceError):
            return False
        # The last sequence, or the last character, may not be complete yet.
        whole = max(received.rfind(b"\x1b"), len(received) - 16, 0)
        if re.fullmatch(rb"\x1b(\[[?\d;]*)?", received[whole:]) is None:
            whole = len(received)
            while whole and received[whole - 1] >= 0x80:
                whole -= 1
            if received[whole:].decode("utf-8", "ignore").encode() == received[whole:]:
                whole = len(received)
        self._unread = received[whole:]
        self.screen.write(received[:whole].decode())
        return True

    async def shows(self, pattern: str) -> str:
        """Wait until the screen has something on it, and return that."""
        with trio.move_on_after(SECONDS / 2):
            while (match := re.search(pattern, self.screen.text, re.MULTILINE)) is None:
                if not await self.read():
                    break
            else:
                return match[0]
        raise AssertionError(f"{pattern!r} is not on the screen:\n{self.screen.text}")

    async def hides(self, pattern: str) -> None:
        """Wait until it is gone."""
        while re.search(pattern, self.screen.text, re.MULTILINE):
            assert await self.read()

    async def left(self) -> None:
        """Wait until the screen is as it was before."""
        while self.screen.alternate or not all(self.screen.modes.values()):
            assert await self.read()

    async def ends(self) -> int:
        """Its exit status. The terminal must be as it was before."""
        status = await self.process.wait()
        await self.left()
        assert termios.tcgetattr(self.tty) == self.modes
        return status

    async def hang_up(self) -> None:
        """As when the window is closed, or the SSH connection is."""
        os.close(self.tty)
        await self._stream.aclose()


@asynccontextmanager
async def top(
    *arguments: str, width: int = 80, height: int = 24, program: str = TOP, **environ: str
) -> AsyncIterator[TerminalProcess]:
    """Run it while the block runs, and kill it if it does not end before."""
    terminal = TerminalProcess(width, height)

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    # What the tests themselves run under says nothing of the terminal here.
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    options: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.tty)
    try:
        with trio.fail_after(SECONDS):
            terminal.process = await trio.lowlevel.open_process(
                [sys.executable, "-c", program, *arguments],
                env={**inherited, "TERM": "xterm-256color", **environ},
                start_new_session=True,
                preexec_fn=take_terminal,
                **options,
            )
            try:
                yield terminal
            finally:
                with trio.CancelScope(shield=True):
                    terminal.process.kill()
                    await terminal.process.wait()
    finally:
        with trio.CancelScope(shield=True), suppress(OSError):  # it has hung up before
            await terminal.hang_up()


async def once(*arguments: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """Run it where there is no terminal."""
    with trio.fail_after(SECONDS):
        return await trio.run_process(
            [sys.executable, "-c", TOP, *arguments],
            env={**os.environ, **environ},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
