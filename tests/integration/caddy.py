"""A real Caddy between HTTP/3 clients and a server.

It is given sockets that are bound already, one for TCP and one for UDP, so it needs no fixed
ports, and no other process can take its own. All that it writes is in one folder.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import trio

from ..hypercorn_process import SECONDS
from ..pages import DOCS, Block, blocks

PAGE = DOCS / "howto" / "http3.md"
SITE, UPSTREAM = "localhost:8443", "127.0.0.1:8000"  # as the page has them
BIND = "\tbind 127.0.0.1\n"
ERROR = re.compile(r'"level":"error".*?"msg":"(.*?)"')


def on_page(kind: str) -> list[Block]:
    """The page's blocks of a kind."""
    return [block for block in blocks(PAGE) if block.kind == kind]


def caddyfile(*, upstream: str = "", keepalive: bool = True, lb_try_duration: bool = True) -> str:
    """The page's Caddyfile, or what is left of it without one of its settings."""
    (block,) = on_page("caddy")
    text = block.text
    if upstream:
        text = replaced(text, UPSTREAM, f"{upstream}://{UPSTREAM}")
    if not keepalive:
        text = replaced(text, "\t\ttransport http {\n\t\t\tkeepalive 400ms\n\t\t}\n", "")
    if not lb_try_duration:
        text = replaced(text, "\t\tlb_try_duration 5s\n", "")
    return text


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} is not in {text!r} once"
    return text.replace(old, new)


class Caddy:
    """A running proxy, and what it has logged."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.url = f"https://localhost:{port}"
        self.folder = folder
        self.log = ""
        self.root = folder / "caddy-data" / "pki" / "authorities" / "local" / "root.crt"
        self._logged = trio.lowlevel.ParkingLot()

    def here(self, text: str) -> str:
        """What the page says, with the address that the proxy really has."""
        return text.replace(SITE, self.url.removeprefix("https://"))

    async def read_log(self, stderr: trio.abc.ReceiveStream) -> None:
        """Read what it logs until it ends."""
        async for chunk in stderr:
            self.log += chunk.decode()
            self._logged.unpark_all()

    async def wait_logged(self, text: str) -> None:
        """Wait until it has logged a text."""
        with trio.fail_after(SECONDS):
            while text not in self.log:
                await self._logged.park()

    async def handshakes(self) -> bool:
        """Return whether it has its certificate; its log says so a moment too early."""
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                context = ssl.create_default_context(cafile=self.root)
                await trio.SSLStream(stream, context, server_hostname="localhost").do_handshake()
        except (OSError, trio.BrokenResourceError):
            return False
        return True

    @property
    def errors(self) -> list[str]:
        """What it has logged as errors."""
        return ERROR.findall(self.log)


def bound_pair() -> tuple[socket.socket, socket.socket]:
    """Sockets for TCP and UDP with the same port, which is what clients of both expect."""
    while True:
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:  # another process has that one: look further
            tcp.close()
            udp.close()
        else:
            return tcp, udp


def environ(folder: Path) -> dict[str, str]:
    """In which commands are this Python's, and Caddy writes nothing outside of the folder."""
    homes = ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    no_proxy = {"NO_PROXY": "*", "no_proxy": "*"}
    return {**os.environ, **no_proxy, **dict.fromkeys(homes, str(folder)), "PATH": path}


@asynccontextmanager
async def caddy(
    folder: Path, text: str, url: str, *, command: str = "caddy run"
) -> AsyncIterator[Caddy]:
    """Run it while the block runs, in front of a server."""
    tcp, udp = bound_pair()
    with tcp, udp:
        binds = f"\tbind fd/{tcp.fileno()} {{\n\t\tprotocols h1 h2\n\t}}\n"
        binds += f"\tbind fdgram/{udp.fileno()} {{\n\t\tprotocols h3\n\t}}\n"
        text = replaced(replaced(text, BIND, binds), UPSTREAM, urlsplit(url).netloc)
        (folder / "Caddyfile").write_text(text)
        process = await trio.lowlevel.open_process(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env=environ(folder),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[tcp.fileno(), udp.fileno()],
        )
        running = Caddy(folder, tcp.getsockname()[1])
    assert process.stderr is not None
    try:
        async with process.stderr, trio.open_nursery() as nursery:
            nursery.start_soon(running.read_log, process.stderr)
            with trio.fail_after(SECONDS):
                while not await running.handshakes():
                    assert process.poll() is None, running.log
            yield running
            process.kill()  # for it would wait for its clients' connections
    finally:
        if process.poll() is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
