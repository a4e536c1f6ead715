"""httptrack top in a real terminal of 80 columns and 24 lines."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from ..clients import Http2, http1
from ..hypercorn_process import HypercornProcess, connect, hypercorn
from ..pages import DOCS, blocks
from ..terminal_process import TOP
from .target import UPGRADE
from .tmux import Tmux, tmux


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a socket's path must not be long."""
    with TemporaryDirectory() as name:
        yield Path(name)


@asynccontextmanager
async def busy(folder: Path) -> AsyncIterator[HypercornProcess]:
    """A server with requests in flight, with WebSockets, and with a client that is silent."""
    config = folder / "hypercorn_conf.py"
    config.write_text(
        "from trio_httptrack import hook\n"
        f"conn_state = hook('top_app:tracker')\nruntime_dir = {str(folder / 'run')!r}\n"
        "graceful_timeout = 0.1\nkeep_alive_timeout = 120\n"
    )
    arguments = ("-k", "trio", "-w", "1", "-c", f"file:{config}", "top_app:app")
    async with hypercorn(*arguments) as server, AsyncExitStack() as clients:

        async def client() -> trio.SocketStream:
            return await clients.enter_async_context(await connect(server.url))

        report = await client()
        await http1(report)
        await report.send_all(b"GET /report HTTP/1.1\r\nhost: localhost\r\n\r\n")
        h2 = Http2(await client())
        await h2.start()
        await h2.get()
        h2.request("/report")
        events = h2.request("/events")
        while events not in h2.statuses:
            await h2.flush()
            await h2.pump()
        await h2.websocket("/chat")
        chat = await client()
        await chat.send_all(UPGRADE.replace(b"GET /", b"GET /chat"))
        await chat.receive_some()
        events1 = await client()
        await events1.send_all(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await events1.receive_some()
        await client()
        yield server


async def start(terminal: Tmux, folder: Path) -> None:
    command = shlex.join([sys.executable, "-c", TOP, str(folder / "run")])
    await terminal.type("-l", f"clear; echo before; {command}")
    await terminal.type("Enter")


def shape(screen: str) -> list[str]:
    """Its lines, with the same text for all numbers, ages and sizes."""
    first, *lines = screen.rstrip("\n").splitlines()
    lines = [re.sub(r"\d[\d.,]*(\w\d*\w?)?", "0", line) for line in lines]
    return [" ".join(line.split()) for line in (first.split()[1], *lines) if line]


async def test_the_page_of_the_documentation_shows_what_there_is_to_see(folder: Path) -> None:
    """The same lines in the same order; the first request is the one that is stuck."""
    page = next(block for block in blocks(DOCS / "howto" / "top.md") if block.kind == "output")
    async with busy(folder), tmux(folder) as terminal:
        await start(terminal, folder)
        screen = await terminal.shows("^Per second: ")
        assert shape(screen)[1:] == shape(page.text)[1:]


async def test_its_keys_and_the_screen_that_it_leaves(folder: Path) -> None:
    """Filters, groups, help, pause, another size, Ctrl-Z; at the end all is as it was before."""
    async with busy(folder), tmux(folder) as terminal:
        await start(terminal, folder)
        await terminal.shows("GET /report  stream 3$")
        await terminal.type("f", "f")
        await terminal.shows("^Listed: 3 of 5, page 1 of 1; what may be stuck first; state active$")
        await terminal.type("/", "x", "BSpace", "e", "v")
        await terminal.shows("^Path contains: ev   Enter: filter")
        await terminal.type("Enter")
        await terminal.shows("^Listed: 2 of 5, page 1 of 1; .* state active, ev in a path$")
        await terminal.type("c", "9")
        await terminal.type("Escape")
        await terminal.type("g")
        await terminal.shows(r"^127\.0\.0\.1 +2 +0 +2 +0 +0 +0 ")
        await terminal.type("?")
        await terminal.shows("^q Ctrl-C   quit$")
        await terminal.type("?", "Space")
        await terminal.shows(" paused$")
        await terminal.run("resize-window", "-x", "60", "-y", "10")
        await terminal.shows("^s sort  r reverse  f state .*…$")
        await terminal.run("resize-window", "-x", "80", "-y", "24")
        await terminal.shows("q quit$")
        await terminal.type("C-z")
        await terminal.shows(r"^\[1\]\+  Stopped")
        await terminal.type("fg", "Enter")
        await terminal.shows("q quit$")
        await terminal.type("q")
        screen = await terminal.shows(r"^\$ fg\n(.+\n)+\$$")
        assert "before\n" in screen
        assert "Listed" not in screen
        assert (
            await terminal.run("display", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}")
            == "0 1 1\n"
        )
        await terminal.type(
            "-l", "echo $?; stty -a | tr ' ;' '\\n\\n' | grep -xE -- '-?(echo|icanon)' | xargs"
        )
        await terminal.type("Enter")
        await terminal.shows("^0\nicanon echo$")
