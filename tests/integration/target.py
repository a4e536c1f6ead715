"""A tracked ``hypercorn`` that is scraped, and the numbers of its own trackers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from trio_httptrack import ConnState, Stats

from ..clients import Http2, http1
from ..hypercorn_process import SECONDS, HypercornProcess, connect, hypercorn
from ..support import tls_client

APP = "integration.tracked_app"
CONFIG = f"""
from trio_httptrack import hook

conn_state = hook("{APP}:tracker")
keep_alive_timeout = 120
graceful_timeout = 5
"""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
IDLE = 4  # connections that hold() leaves idle
GAUGES = "httptrack_connections"
COUNTERS = "httptrack_connection_transitions_total"
LIVES = "httptrack_connection_duration_seconds"


@dataclass(frozen=True)
class Worker:
    """What a worker reports on its Unix socket."""

    pid: int
    stats: Stats  # now
    scrapes: list[Stats]  # at each scrape


class Target:
    """A running server, its processes and its clients' connections."""

    def __init__(self, server: HypercornProcess, folder: Path, workers: int) -> None:
        self.server = server
        self.instance = urlsplit(server.url).netloc
        self._folder = folder
        self._processes = max(workers, 1)

    async def workers(self) -> list[Worker]:
        """Query until all workers respond, without the tracked server."""
        with trio.fail_after(SECONDS):
            while True:
                sockets = self._folder.glob("*.sock")
                found = [worker for path in sockets for worker in await query(path)]
                if len(found) == self._processes:
                    return found
                await trio.sleep(0.02)

    async def hold(self, clients: AsyncExitStack) -> int:
        """Leave connections open until the stack is closed; return how many of them are silent.

        Each worker has at least one of these. Others are idle, and two were upgraded.
        """
        for _ in range(IDLE - 1):
            stream = await clients.enter_async_context(await connect(self.server.url))
            await http1(stream)
        tls = await clients.enter_async_context(await connect(self.server.tls_url))
        client = Http2(await tls_client(tls, "h2"))
        await client.start()
        await client.get()
        for _ in range(2):
            stream = await clients.enter_async_context(await connect(self.server.url))
            await stream.send_all(UPGRADE)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        silent = 0
        while silent < 3 or not all(worker.stats.accepted for worker in await self.workers()):
            await clients.enter_async_context(await connect(self.server.url))
            silent += 1
        return silent

    async def settled(self, silent: int, scrapers: int = 1) -> list[Worker]:
        """Wait until nothing is open but what is held, and the scrapers' connections."""
        with trio.fail_after(SECONDS):
            while True:
                workers = await self.workers()
                stats = total(worker.stats for worker in workers)
                if (stats.accepted, stats.active + stats.idle) == (silent, IDLE + scrapers):
                    return workers


@asynccontextmanager
async def serving(
    folder: Path, certificate: Path, *, workers: int, directory: Path | None = None
) -> AsyncIterator[Target]:
    """Run it while the block runs, with the directory for the multiprocess mode if one is given."""
    config = f"file:{configured(folder)}"
    arguments = ["-k", "trio", "-w", str(workers), "-c", config, f"{APP}:app"]
    async with AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("WORKERS", str(folder))
            environment.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
            if directory is not None:
                environment.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
            server = await stack.enter_async_context(
                hypercorn(*arguments, certificate=certificate, seconds=120)
            )
        target = Target(server, folder, workers)
        await target.workers()
        yield target


def configured(folder: Path) -> Path:
    folder.mkdir()
    config = folder / "hypercorn_conf.py"
    config.write_text(CONFIG)
    return config


async def query(path: Path) -> list[Worker]:
    """The worker behind a Unix socket, if it is still there."""
    try:
        stream = await trio.open_unix_socket(path)
    except OSError:
        return []
    async with stream:
        response = json.loads(b"".join([bytes(chunk) async for chunk in stream]))
    scrapes = [Stats(**stats) for stats in response["scrapes"]]
    return [Worker(response["pid"], Stats(**response["stats"]), scrapes)]


async def scrape(stream: Any) -> Stats:
    """Return the response of ``/metrics`` on a connection."""
    status, body = await http1(stream, path="/metrics")
    assert status == 200
    numbers: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            numbers.setdefault(sample.name, {})[sample.labels.get("state", "")] = sample.value
    return as_stats(numbers[GAUGES], numbers[COUNTERS])


def as_stats(gauges: Mapping[str, float], counters: Mapping[str, float]) -> Stats:
    """From the numbers by state."""
    states = [str(state) for state in ConnState]
    assert sorted(gauges) == sorted(states[:3])
    assert sorted(counters) == sorted(states)
    numbers = [gauges[state] for state in states[:3]] + [counters[state] for state in states]
    assert all(number == int(number) for number in numbers)
    return Stats(*map(int, numbers))


def total(stats: Iterable[Stats]) -> Stats:
    """The sums of the numbers."""
    return Stats(*map(sum, zip(*map(astuple, stats), strict=True)))
