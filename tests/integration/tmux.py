"""A shell in a real terminal: tmux, which is read from and typed into."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ..hypercorn_process import SECONDS, TESTS

SHELL = "env PS1='$ ' bash --norc --noprofile"


class Tmux:
    """One pane of 80 columns and 24 lines."""

    def __init__(self, folder: Path) -> None:
        self._socket = str(folder / "tmux")
        self._pipe = folder / "pipe"
        os.mkfifo(self._pipe)
        # For writing, too: else it would be at its end before the first writer is there.
        self._output = trio.lowlevel.FdStream(os.open(self._pipe, os.O_RDWR))

    async def run(self, *arguments: str) -> str:
        ended = await trio.run_process(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *arguments],
            env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONPATH": str(TESTS.parent)},
            capture_stdout=True,
        )
        return ended.stdout.decode()

    async def screen(self, *options: str) -> str:
        """What is on it, without the blanks at the end of a line."""
        return await self.run("capture-pane", "-p", *options)

    async def type(self, *keys: str) -> None:
        """Press keys, by tmux's names for them; or type the text behind ``-l``."""
        await self.run("send-keys", *keys)

    async def shows(self, pattern: str) -> str:
        """Wait until the screen has something on it, and return the screen."""
        with trio.move_on_after(SECONDS / 2):
            while True:
                screen = await self.screen()
                if re.search(pattern, screen, re.MULTILINE):
                    return screen
                await self._output.receive_some()
        raise AssertionError(f"{pattern!r} is not on the screen:\n{screen}")

    async def start(self) -> None:
        await self.run("new-session", "-d", "-x", "80", "-y", "24", SHELL)
        await self.run("pipe-pane", f"cat > '{self._pipe}'")

    async def stop(self) -> None:
        await self.run("kill-server")
        await self._output.aclose()


@asynccontextmanager
async def tmux(folder: Path) -> AsyncIterator[Tmux]:
    """A terminal while the block runs."""
    terminal = Tmux(folder)
    with trio.fail_after(SECONDS):
        await terminal.start()
        try:
            yield terminal
        finally:
            with trio.CancelScope(shield=True):
                await terminal.stop()
