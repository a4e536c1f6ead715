"""Reloads under load, with the real ``hypercorn`` command: what is lost, and how long they take.

``python -m tests.reload`` prints, as CSV, what a tracked and a plain Hypercorn lose under the same
load, and on the standard error which clients lost it. The clients react to ``Connection: close``, a
GOAWAY and a close frame as their protocols require, and do nothing else: none of them repeats a
request without a response, except for one that an HTTP/2 server has refused before it was handled.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import signal
import statistics
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import h2.exceptions
import httpx
import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from .clients import GoAwayHttp2
from .hypercorn_process import HypercornProcess, connect, get, hypercorn
from .support import CERT, client_ssl, tls_client

WEBSOCKETS = 4  # clients
APP = "ways_in.reload_app"
HEAD = "server", "requests", "lost", "retried", "median", "WebSockets' close codes"


@dataclass
class Load:
    """Clients that send one request after the other until they are stopped."""

    server: HypercornProcess
    succeeded: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    refused: int = 0  # by HTTP/2, and repeated on another connection
    opened: Counter[int] = field(default_factory=Counter)  # WebSockets, by their client's number
    closed: Counter[int] = field(default_factory=Counter)  # WebSockets, by code
    seconds: list[float] = field(default_factory=list)  # of each reload
    stopping: bool = False
    _opened: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot, repr=False)

    def row(self) -> list[str]:
        """Return the results, in the columns of :data:`HEAD`."""
        return [
            f"{self.succeeded.total() + self.lost.total():,}",
            str(self.lost.total()),
            str(self.refused),
            f"{statistics.median(self.seconds):.1f} s",
            ", ".join(f"{code:d} ({count})" for code, count in sorted(self.closed.items())),
        ]

    def lost_by_client(self) -> str:
        by_client: Counter[str] = Counter()
        for what, count in self.lost.items():
            by_client[what.partition(":")[0]] += count
        return ", ".join(f"{client} {count}" for client, count in sorted(by_client.items()))

    async def repeat(self, name: str, request: Callable[[], Awaitable[str]]) -> None:
        """Send requests, one after the other."""
        while not self.stopping:
            try:
                text = await request()
            except (httpx.HTTPError, OSError, trio.BrokenResourceError, ValueError) as error:
                self.lost[f"{name}: {type(error).__name__}"] += 1
            else:
                self.check(name, text)

    def check(self, name: str, text: str) -> None:
        whole = text.startswith("worker ") and text.removeprefix("worker ").isdigit()
        (self.succeeded if whole else self.lost)[name] += 1

    async def httpx_http1(self) -> None:
        async with httpx.AsyncClient(timeout=20) as client:

            async def request() -> str:
                return (await client.get(self.server.url)).text

            await self.repeat("keep-alive", request)

    async def httpx_http2(self) -> None:
        async with httpx.AsyncClient(http2=True, verify=client_ssl("h2"), timeout=20) as client:

            async def request() -> str:
                return (await client.get(self.server.tls_url)).text

            await self.repeat("httpx HTTP/2", request)

    async def one_shot(self) -> None:
        async def request() -> str:
            return (await get(self.server.url)).decode()

        await self.repeat("one-shot", request)

    async def http2(self) -> None:
        """Three requests at a time on one connection, and on another what that refuses."""
        refused = 0
        while not self.stopping:
            async with await connect(self.server.tls_url) as stream:
                streams: set[int] = set()
                client = None
                try:
                    client = GoAwayHttp2(await tls_client(stream, "h2"))
                    await client.start()
                    streams = {client.request() for _ in range(refused or 3)}
                    await client.flush()
                    refused = await self._http2(client, streams)
                except (OSError, trio.BrokenResourceError, h2.exceptions.ProtocolError) as error:
                    refused = 0
                    self.lost[f"HTTP/2: {type(error).__name__}"] += 1

    async def _http2(self, client: GoAwayHttp2, streams: set[int]) -> int:
        """Returns how many have been refused."""
        counted: set[int] = set()
        while True:
            alive = await client.pump()
            for stream in (client.ended & streams) - counted:
                counted.add(stream)
                self.check("HTTP/2", client.bodies.pop(stream, b"").decode())
                if client.last is None and not self.stopping:
                    streams.add(client.request())
            await client.flush()
            left = streams - counted
            refused = {
                stream
                for stream in left
                if stream in client.reset or (client.last is not None and stream > client.last)
            }
            if left == refused:
                self.refused += len(refused)
                return len(refused)
            if not alive:
                self.lost["HTTP/2: end"] += len(left - refused)
                return len(refused)

    async def websocket(self) -> None:
        """Echo until the server sends a close frame; then connect again."""
        for number in itertools.count():
            if self.stopping:
                break
            async with await connect(self.server.url) as stream, trio.open_nursery() as nursery:
                websocket = await wrap_client_stream(nursery, stream, "localhost", "/")
                self.opened[number] += 1
                self._opened.unpark_all()
                try:
                    while True:
                        await websocket.send_message("hello")
                        assert await websocket.get_message() == "hello"
                        await trio.sleep(0.01)
                except ConnectionClosed as closed:
                    self.closed[closed.reason.code if closed.reason else 1006] += 1

    async def websockets(self, clients: int, number: int) -> None:
        """Wait until so many clients have opened their WebSocket of this number."""
        while self.opened[number] < clients:
            await self._opened.park()

    async def workers(self, count: int, *, other_than: Collection[bytes] = ()) -> set[bytes]:
        """Send requests until so many workers have responded."""
        found: set[bytes] = set()
        while len(found) < count:
            found |= {await get(self.server.url)} - set(other_than)
        return found

    async def reload(self, workers: set[bytes]) -> set[bytes]:
        """SIGHUP, and wait until every worker is a new one; return these."""
        begun = trio.current_time()
        self.server.process.send_signal(signal.SIGHUP)
        new = await self.workers(len(workers), other_than=workers)
        self.seconds.append(trio.current_time() - begun)
        return new


async def run(
    certificate: Path, *, workers: int, reloads: int, tracked: bool, scale: int = 1
) -> tuple[Load, HypercornProcess]:
    """Reload so many times under load, and then end with SIGTERM."""
    arguments = ["-k", "trio", "-w", str(workers), "--graceful-timeout", "5"]
    if tracked:
        config = certificate.with_name("reload_conf.py")
        config.write_text(
            f"from trio_httptrack import hook\n\nconn_state = hook('{APP}:tracker')\n"
        )
        arguments += ["-c", f"file:{config}"]
    seconds = 30 + 15 * reloads
    async with hypercorn(
        *arguments, f"{APP}:app", certificate=certificate, seconds=seconds
    ) as server:
        load = Load(server)
        current = await load.workers(workers)
        async with trio.open_nursery() as nursery:
            for client, clients in (
                (load.httpx_http1, 6),
                (load.one_shot, 3),
                (load.httpx_http2, 4),
                (load.http2, 2),
                (load.websocket, WEBSOCKETS),
            ):
                for _ in range(clients * scale):
                    nursery.start_soon(client)
            for number in range(reloads + 1):
                if number:
                    current = await load.reload(current)
                # A client that needs longer than the pause would miss the close frame of a worker.
                await load.websockets(WEBSOCKETS * scale, number)
                await trio.sleep(0.3)
            load.stopping = True
            server.process.terminate()
    return load, server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.reload", description=__doc__)
    parser.add_argument("--reloads", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--scale", type=int, default=1, help="how many times the clients")
    arguments = parser.parse_args()
    failed = False
    rows = csv.writer(sys.stdout)
    rows.writerow(HEAD)
    with TemporaryDirectory() as folder:
        certificate = Path(folder, "localhost.pem")
        CERT.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        for workers in (1, 2):
            for tracked in (True, False):
                load, _ = trio.run(
                    lambda: run(
                        certificate,
                        workers=workers,  # noqa: B023
                        reloads=arguments.reloads,
                        tracked=tracked,  # noqa: B023
                        scale=arguments.scale,
                    )
                )
                kind = "tracked" if tracked else "plain"
                server = f"{kind}, {workers} worker{'s' * (workers > 1)}"
                rows.writerow([server, *load.row()])
                sys.stdout.flush()
                if load.lost:
                    print(f"{server} lost: {load.lost_by_client()}", file=sys.stderr)  # noqa: T201
                failed = failed or (tracked and bool(load.lost))
    sys.exit(failed)


if __name__ == "__main__":
    main()
