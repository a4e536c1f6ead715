"""Reloads under load through a proxy: what clients of HTTP/3 lose.

``python -m tests.integration.http3_load`` prints, as CSV, what is lost of the same load with
several Caddyfiles. The clients never repeat a request. Half of the requests are POSTs with a body.

The load is of two kinds. *Busy* clients pause for a moment between requests. *Late* ones wait
for a drain, and then send one request each, within 3 ms of the moment when the server closes the
connections that are idle: that is when a proxy that keeps them loses most.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import pytest
import trio
from curl_cffi import CurlHttpVersion, CurlOpt, requests

from ..clients import http1
from ..hypercorn_process import HypercornProcess, connect, hypercorn
from ..reload import Load
from .caddy import Caddy, caddy, caddyfile

APP = "integration.http3_app"
Method = Literal["GET", "POST"]
SIZES = (10, 1_000, 100_000)  # bytes, of a POST's body
IDLE = 0.5  # drain_idle_timeout, by default
MEASURED = [  # clients, tracked, upstream, and what the Caddyfile is without
    ("busy", True, "HTTP/1.1", None),
    ("busy", False, "HTTP/1.1", None),
    ("busy", True, "h2c", None),
    ("busy", True, "h2c", "lb_try_duration"),
    ("late", True, "HTTP/1.1", None),
    ("late", True, "HTTP/1.1", "keepalive"),
    ("late", True, "h2c", None),
    ("late", True, "h2c", "keepalive"),
]
HEAD = "server", "upstream", "Caddyfile", "clients", "reloads", "median", "requests", "lost"


class Http3Client:
    """A client with one connection, which speaks nothing but HTTP/3."""

    def __init__(self, caddy: Caddy) -> None:
        self._caddy = caddy
        self._session: requests.Session[requests.Response] = requests.Session(
            http_version="v3only",
            timeout=20,
            trust_env=False,
            use_thread_local_curl=False,  # or each thread has a connection of its own
            curl_options={CurlOpt.CAINFO: str(caddy.root)},
        )

    def close(self) -> None:
        self._session.close()

    async def request(
        self, method: Method, path: str, body: bytes = b"", **headers: str
    ) -> requests.Response:
        """Send a request, and read its response in a thread."""
        send = partial(
            self._session.request,
            method,
            self._caddy.url + path,
            data=body or None,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        return await trio.to_thread.run_sync(send)


@dataclass
class Http3Load(Load):
    """Clients that request over HTTP/3, each on a connection of its own."""

    caddy: Caddy = field(kw_only=True)
    succeeded_posts: set[str] = field(default_factory=set)
    lost_posts: set[str] = field(default_factory=set)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    draining: trio.Event = field(default_factory=trio.Event)

    async def request(self, client: Http3Client, method: Method, body: bytes) -> str:
        """Send one request; return which worker has responded."""
        path = f"/{next(self.numbers)}"
        if method == "POST":
            self.lost_posts.add(path)  # until it is known better
        response = await client.request(method, path, body)
        worker, _, for_path = response.text.rpartition(" ")
        if response.http_version != CurlHttpVersion.V3 or for_path != path:
            raise ValueError(f"{response.status_code} {response.text!r}")
        if method == "POST":
            self.lost_posts.remove(path)
            self.succeeded_posts.add(path)
        return worker

    async def busy(self, method: Method, size: int, pause: float) -> None:
        """One request after the other, with pauses."""
        with closing(Http3Client(self.caddy)) as client:

            async def request() -> str:
                await trio.sleep(random.uniform(0, pause))
                return await self.request(client, method, b"x" * size)

            await self.repeat(method, request)

    async def late(self, method: Method, size: int) -> None:
        """One request before each reload, and one when the server closes what is idle."""
        with closing(Http3Client(self.caddy)) as client:

            async def request() -> str:
                await self.request(client, method, b"x" * size)
                await self.draining.wait()
                await trio.sleep(IDLE + random.uniform(-0.003, 0.003))
                return await self.request(client, method, b"x" * size)

            await self.repeat(method, request)

    async def run(self, reloads: int, *, late: bool = False) -> None:
        """All clients, and so many reloads."""
        current = await self.workers(1)
        async with trio.open_nursery() as nursery:
            for number, size in enumerate(SIZES * (4 if late else 2)):
                pause = (0.02, 0.8)[number % 2]
                if late:
                    nursery.start_soon(self.late, "GET", 0)
                    nursery.start_soon(self.late, "POST", size)
                else:
                    nursery.start_soon(self.busy, "GET", 0, pause)
                    nursery.start_soon(self.busy, "POST", size, pause)
            for _ in range(reloads):
                async with trio.open_nursery() as watching:
                    if late:
                        watching.start_soon(self.watch)
                    await trio.sleep(0.5)
                    current = await self.reload(current)
            await trio.sleep(0.5)
            self.stopping = True
            self.draining.set()

    async def watch(self) -> None:
        """Wait until the worker drains, and set the event."""
        async with await connect(self.server.url) as stream:
            await http1(stream, path="/draining")
        draining, self.draining = self.draining, trio.Event()
        draining.set()


@dataclass(frozen=True)
class Reloaded:
    """What has come of a load and its reloads."""

    load: Http3Load
    handled: Counter[str]
    """How often the application has read each POST, by its path."""

    versions: set[str]
    """Of HTTP, between the proxy and the server."""

    errors: list[str]
    """That the proxy has logged."""

    server: HypercornProcess


async def reload_under_load(
    folder: Path, text: str, *, reloads: int, late: bool = False, tracked: bool = True
) -> Reloaded:
    """Run the server, Caddy before it, and the clients; and end with SIGTERM."""
    config, notes = folder / "http3_conf.py", folder / "notes.txt"
    hooked = f"from trio_httptrack import hook\n\nconn_state = hook('{APP}:tracker')\n"
    config.write_text(hooked if tracked else "")
    arguments = ("-k", "trio", "--graceful-timeout", "5", "-c", f"file:{config}", f"{APP}:app")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NOTES", str(notes))
        async with (
            hypercorn(*arguments, seconds=30 + 15 * reloads) as server,
            caddy(folder, text, server.url) as proxy,
        ):
            load = Http3Load(server, caddy=proxy)
            await load.run(reloads, late=late)
    noted = [line.split() for line in notes.read_text().splitlines()]
    return Reloaded(
        load=load,
        handled=Counter(path for method, path, _, _ in noted if method == "POST"),
        versions={version for _, path, version, _ in noted if path[1:].isdigit()},
        errors=proxy.errors,
        server=server,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.integration.http3_load", description=__doc__
    )
    parser.add_argument("--reloads", type=int, default=20, help="default: %(default)s")
    reloads = parser.parse_args().reloads
    rows = csv.writer(sys.stdout)
    rows.writerow(HEAD)
    for clients, tracked, upstream, without in MEASURED:
        options = {} if without is None else {without: False}
        text = caddyfile(upstream="h2c" if upstream == "h2c" else "", **options)
        with TemporaryDirectory() as folder:
            run = partial(
                reload_under_load,
                Path(folder),
                text,
                reloads=reloads,
                late=clients == "late",
                tracked=tracked,
            )
            load = trio.run(run).load
        lost = ", ".join(f"{what} {count}" for what, count in sorted(load.lost.items()))
        requests = load.succeeded.total() + load.lost.total()
        rows.writerow(
            [
                "tracked" if tracked else "plain",
                upstream,
                "as above" if without is None else f"without {without}",
                clients,
                str(len(load.seconds)),
                f"{statistics.median(load.seconds):.1f} s",
                f"{requests:,}",
                f"{load.lost.total()}: {lost}" if lost else "0",
            ]
        )
        sys.stdout.flush()


if __name__ == "__main__":
    main()
