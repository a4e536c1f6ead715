"""Two servers under load, one of them reloaded, and a Prometheus that sees it all.

A scrape counts itself: it is a request, so no two scrapes of a server read the same numbers,
and they can be compared exactly. The application notes its tracker's numbers at each scrape
(:mod:`.tracked_app`); what Prometheus has must be what one of these notes says. Of the workers
that share a directory one is scraped, since Prometheus keeps its connection alive; when the load
is over the others' numbers stand still, and are queried before and afterwards.
"""

from __future__ import annotations

import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio
from trio_websocket import ConnectionClosed, wrap_client_stream

from trio_httptrack import Stats

from ..hypercorn_process import connect
from ..reload import Load
from ..support import reset
from .prometheus_server import Prometheus
from .target import Target, Worker, serving, total

SCRAPES = 6  # under each load
ENDED = re.compile(
    r"\[(\d+)\] \[INFO\] Connections: new (\d+), active (\d+), idle (\d+); in all: accepted (\d+), "
    r"active (\d+), idle (\d+), hijacked (\d+), closed (\d+)\n"
)


@dataclass(frozen=True)
class Quiet:
    """A moment when nothing moved but the scrapes."""

    at: float  # for PromQL
    silent: dict[str, int]  # how many connections, by instance, as everything here
    noted: dict[str, list[Stats]]  # at the scrapes about this moment, all living workers' sums
    alive: dict[str, set[int]]


@dataclass(frozen=True)
class Observed:
    """What is known without a query of Prometheus."""

    shared: str  # the instance that has two workers, and is reloaded
    single: str  # the instance that is one process
    after_load: Quiet
    after_reload: Quiet
    scrapes: list[Stats]  # all of the single process
    loads: list[MixedLoad]
    ended: dict[int, Stats] = field(default_factory=dict)  # what each worker logged at its end


class MixedLoad(Load):
    """Clients of each kind; some of them send nothing."""

    async def websocket(self) -> None:
        """Upgrade, echo once, and repeat."""
        while not self.stopping:
            async with await connect(self.server.url) as stream, trio.open_nursery() as nursery:
                try:
                    websocket = await wrap_client_stream(nursery, stream, "localhost", "/")
                    await websocket.send_message("hello")
                    assert await websocket.get_message() == "hello"
                    await websocket.aclose()
                except ConnectionClosed as closed:
                    self.closed[closed.reason.code if closed.reason else 1006] += 1
                else:
                    self.succeeded["WebSocket"] += 1

    async def silent(self) -> None:
        """Send nothing for a while."""
        while not self.stopping:
            async with await connect(self.server.url) as stream:
                with trio.move_on_after(0.3):
                    await stream.receive_some()

    async def rude(self) -> None:
        """Reset the connection in the middle of a request."""
        while not self.stopping:
            async with await connect(self.server.url) as stream:
                await stream.send_all(b"GET / HT")
                await trio.sleep(0.1)
                reset(stream)

    async def run(self) -> None:
        """Run all clients until they are stopped."""
        async with trio.open_nursery() as nursery:
            for client in (self.httpx_http1, self.one_shot, self.http2, self.websocket):
                nursery.start_soon(client)
                nursery.start_soon(client)
            nursery.start_soon(self.httpx_http2)
            nursery.start_soon(self.rude)
            for _ in range(3):
                nursery.start_soon(self.silent)


async def observe(prometheus: Prometheus, folder: Path, certificate: Path) -> Observed:
    """Start and stop the servers, and return what they reported."""
    directory = folder / "multiprocess"
    directory.mkdir()
    async with (
        serving(folder / "shared", certificate, workers=2, directory=directory) as shared,
        serving(folder / "single", certificate, workers=0) as single,
    ):
        await prometheus.start([shared.instance, single.instance])
        observed = await load_and_reload(prometheus, shared, single)
    return replace(observed, ended=ended(shared.server.stderr + single.server.stderr))


async def load_and_reload(prometheus: Prometheus, shared: Target, single: Target) -> Observed:
    """Load, quiet, a reload under load, quiet."""
    targets = [shared, single]
    instances = [target.instance for target in targets]
    loads = [MixedLoad(target.server) for target in targets]

    async def scrapes(count: int) -> None:
        for _ in range(count):
            await prometheus.scraped(instances, after=time.time())

    async with trio.open_nursery() as nursery:
        for load in loads:
            nursery.start_soon(load.run)
        await scrapes(SCRAPES)
        for load in loads:
            load.stopping = True
    after_load = await quiet(prometheus, targets)

    for load in loads:
        load.stopping = False
    async with trio.open_nursery() as nursery:
        for load in loads:
            nursery.start_soon(load.run)
        await scrapes(1)
        await loads[0].reload({b"worker %d" % pid for pid in after_load.alive[shared.instance]})
        await scrapes(SCRAPES)
        for load in loads:
            load.stopping = True
    after_reload = await quiet(prometheus, targets)
    (alone,) = await single.workers()
    return Observed(
        shared.instance, single.instance, after_load, after_reload, alone.scrapes, loads
    )


async def quiet(prometheus: Prometheus, targets: list[Target]) -> Quiet:
    """Leave some connections open, and wait until Prometheus has seen them, and no others."""
    async with AsyncExitStack() as clients:
        silent = {each.instance: await each.hold(clients) for each in targets}
        before = {each.instance: await each.settled(silent[each.instance]) for each in targets}
        moment = await prometheus.scraped(silent, after=time.time())
        await prometheus.scraped(silent, after=moment)  # so all that is of the moment is stored
        after = {each.instance: await each.workers() for each in targets}
    noted = {instance: notes(before[instance], after[instance]) for instance in silent}
    alive = {instance: {worker.pid for worker in after[instance]} for instance in silent}
    return Quiet(moment, silent, noted, alive)


def notes(before: list[Worker], after: list[Worker]) -> list[Stats]:
    """All workers' sums at each scrape from before to after."""
    old = {worker.pid: worker for worker in before}
    (scraped,) = [worker for worker in after if worker.scrapes != old[worker.pid].scrapes]
    others = [worker.stats for worker in after if worker is not scraped]
    assert all(worker.stats == old[worker.pid].stats for worker in after if worker is not scraped)
    new = scraped.scrapes[len(old[scraped.pid].scrapes) :]
    return [total([stats, *others]) for stats in new]


def ended(stderr: str) -> dict[int, Stats]:
    """The totals that each worker has logged at its end."""
    found = [[int(number) for number in numbers] for numbers in ENDED.findall(stderr)]
    return {pid: Stats(*numbers) for pid, *numbers in found}
