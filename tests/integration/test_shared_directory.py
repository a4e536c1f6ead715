"""What processes that share a directory serve to a scrape, whichever of them responds."""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import trio

from ..clients import http1
from ..hypercorn_process import connect
from .target import IDLE, scrape, serving, total


async def test_each_of_four_workers_serves_the_total(tmp_path: Path, certificate: Path) -> None:
    """The same total, except that the connection of the scrape is active."""
    directory = tmp_path / "multiprocess"
    directory.mkdir()
    async with (
        serving(tmp_path / "four", certificate, workers=4, directory=directory) as server,
        AsyncExitStack() as clients,
    ):
        silent = await server.hold(clients)
        streams: dict[bytes, trio.SocketStream] = {}  # one to each worker
        connections = 0
        while len(streams) < 4:
            stream = await clients.enter_async_context(await connect(server.server.url))
            _, worker = await http1(stream)
            streams[worker] = stream
            connections += 1
        for stream in streams.values():
            workers = await server.settled(silent, connections)
            idle = total(worker.stats for worker in workers)
            assert idle.active == 0
            assert await scrape(stream) == replace(
                idle, active=1, active_total=idle.active_total + 1, idle=idle.idle - 1
            )


async def test_a_killed_process_has_no_open_connections(tmp_path: Path, certificate: Path) -> None:
    """What it has counted stays; the file of its gauges is removed by the next scrape."""
    directory = tmp_path / "multiprocess"
    directory.mkdir()
    async with (
        serving(tmp_path / "one", certificate, workers=0, directory=directory) as killed,
        serving(tmp_path / "two", certificate, workers=0, directory=directory) as other,
        AsyncExitStack() as clients,
    ):
        silent = await killed.hold(clients), await other.hold(clients)
        (dead,) = await killed.settled(silent[0], scrapers=0)
        await other.settled(silent[1], scrapers=0)
        stream = await clients.enter_async_context(await connect(other.server.url))
        stats = await scrape(stream)
        assert (stats.accepted, stats.active, stats.idle) == (sum(silent), 1, 2 * IDLE)

        killed.server.process.send_signal(signal.SIGKILL)
        await killed.server.process.wait()
        files = {path.name for path in directory.iterdir()}
        assert {f"gauge_livesum_{dead.pid}.db", f"counter_{dead.pid}.db"} < files
        await other.settled(silent[1])
        stats = await scrape(stream)
        (living,) = await other.workers()
        counters = replace(dead.stats, accepted=0, active=0, idle=0)
        assert stats == total([living.scrapes[-1], counters])
        gone = files - {path.name for path in directory.iterdir()}
        assert gone == {f"gauge_livesum_{dead.pid}.db", f"httptrack_lock_{dead.pid}"}
