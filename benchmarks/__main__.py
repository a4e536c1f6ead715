"""Measure a tracked Hypercorn beside plain ones, and print what came out.

``python -m benchmarks`` takes some five minutes, ``--quick`` under two. All servers run at
the same time, on one core, and are asked in turn by one load generator on another; each
ratio is the median of the rounds' own, with the least and the greatest behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import trustme

from .chart import chart
from .micro import timings
from .servers import LOAD_CORE, Load, Server, loading, serving

SERVERS = {
    "plain trio": ("trio", "settings"),
    "plain asyncio": ("asyncio", "settings"),
    "tracked": ("trio", "settings_tracked"),
}
CONNECTIONS = (1, 32, 256, 2000)
RATES = [  # what, kind of load, connections, the least ratio to plain trio
    ("HTTP/1.1 keep-alive, small GET, 32 connections", "get", 32, 2.0),
    ("the same, 1 connection", "get", 1, 1.0),
    ("the same, 256 connections", "get", 256, 1.0),
    ("the same, 2,000 connections", "get", 2000, 1.0),
    ("one request per connection", "one-shot", 32, 1.0),
    ("POST of 1 KiB", "post", 32, 1.0),
    ("a response streamed in ten chunks", "stream", 32, 1.0),
    ("a 1 MiB response", "megabyte", 32, 1.0),
    ("HTTP/2 over TLS, 1 stream at a time", "h2-1", 32, 1.0),
    ("HTTP/2 over TLS, 10 streams at a time", "h2-10", 32, 1.0),
    ("WebSocket echo", "websocket", 32, 1.0),
]


@dataclass
class Row:
    """A line of the table."""

    what: str
    against: str
    """What the figure is compared with."""

    base: str
    figure: str
    ratios: list[float]
    goal: str
    met: bool

    def cells(self) -> list[str]:
        ratio = f"{median(self.ratios):.2f}" if median(self.ratios) > 0.01 else "< 0.01"
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}" if len(self.ratios) > 1 else ""
        met = "yes" if self.met else "NO"
        return [self.what, self.against, self.base, self.figure, ratio, spread, self.goal, met]


HEAD = ["what", "beside", "its", "tracked", "ratio", "spread", "goal", "met"]


class Bench:
    """Takes the measurements, one row or several at a time."""

    def __init__(self, certificate: Path, load: Load, rounds: int, seconds: float) -> None:
        self.certificate = certificate
        self.load = load
        self.rounds = rounds
        self.seconds = seconds
        self.busiest = 0.0
        self.over_connections: dict[str, dict[int, float]] = {name: {} for name in SERVERS}

    def rates(self) -> Iterator[Row]:
        with ExitStack() as stack:
            servers = {
                name: stack.enter_context(serving(*how, self.certificate))
                for name, how in SERVERS.items()
            }
            for what, kind, connections, least in RATES:
                yield from self._rate(servers, what, kind, connections, least)
            yield from self._other_generators(servers)

    def _rate(
        self, servers: dict[str, Server], what: str, kind: str, connections: int, least: float
    ) -> Iterator[Row]:
        names = list(servers) if kind == "get" else ["plain trio", "tracked"]
        scheme = "https" if kind.startswith("h2") else "http"
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for number in range(self.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                result = self.load(
                    "run",
                    kind=kind,
                    port=servers[name].ports[scheme],
                    connections=connections,
                    # Long enough for each connection to have its turn.
                    seconds=max(self.seconds, connections / 1000),
                    warmup=0.3 + connections / 4000,
                )
                self.busiest = max(self.busiest, result["busy"])
                results[name].append(result)
        unit = "messages/s" if kind == "websocket" else "requests/s"
        rates = {name: [result["rate"] for result in results[name]] for name in names}
        yield at_least(f"{unit}: {what}", "plain trio", rates, unit, least)
        if kind == "get":
            for name in names:
                self.over_connections[name][connections] = median(rates[name])
        if (kind, connections) == ("get", 32):
            yield at_least("the same", "plain asyncio", rates, unit, 1.0)
            p99 = {name: [result["p99"] * 1e3 for result in results[name]] for name in names}
            yield at_most("p99 latency of the same", "plain trio", p99, "ms", 0.6)

    def _other_generators(self, servers: dict[str, Server]) -> Iterator[Row]:
        """What others measure, where they are installed."""
        seconds = str(max(1, round(self.seconds)))  # neither knows fractions
        wrk = ["wrk", "-t1", "-c32", f"-d{seconds}"]
        h2load = ["h2load", "-c32", "-m10", "-D", seconds]
        for command, scheme, what in (
            (wrk, "http", RATES[0][0]),
            (h2load, "https", "HTTP/2 over TLS, 32 connections, 10 streams at a time"),
        ):
            if not shutil.which(command[0]):
                continue
            rates: dict[str, list[float]] = {name: [] for name in ("plain trio", "tracked")}
            for _ in range(self.rounds):
                for name, found in rates.items():
                    url = f"{scheme}://127.0.0.1:{servers[name].ports[scheme]}/"
                    found.append(requests_per_second([*command, url]))
            least = 2.0 if scheme == "http" else 1.0
            what = f"requests/s by {command[0]}: {what}"
            yield at_least(what, "plain trio", rates, "requests/s", least)

    def memory(self) -> Row:
        """What 5,000 idle connections cost the server."""
        connections = 5000
        cost: dict[str, list[float]] = {}
        for name in ("plain trio", "tracked"):
            with serving(*SERVERS[name], self.certificate) as server:
                port = server.ports["http"]
                self.load("run", kind="get", port=port, connections=32, seconds=0.5, warmup=0)
                before = server.memory()
                self.load("hold", port=port, connections=connections)
                cost[name] = [(server.memory() - before) / connections / 1024]
            self.load("release")
        what = "server memory per idle connection, 5,000 of them"
        return at_most(what, "plain trio", cost, "KiB", 0.8)

    def closings(self) -> Row:
        """How long after its client a connection is closed, with 1,000 idle ones."""
        keep_alive = 5
        with serving("trio", "settings_closings", self.certificate) as server:
            port = server.ports["http"]
            self.load("hold", port=port, connections=1000)
            left = self.load("release")
            time.sleep(0.5)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/closings") as answer:
                reported = json.load(answer)
        delays = sorted(reported[client] - when for client, when in left.items())
        p99 = delays[len(delays) * 99 // 100]
        with serving("trio", "settings", self.certificate, keep_alive=keep_alive) as server:
            at_rest = server.open_files()
            self.load("hold", port=server.ports["http"], connections=1000)
            self.load("release")
            began = time.monotonic()
            while server.open_files() > at_rest + 10:  # 1 %
                time.sleep(0.01)
            plain = time.monotonic() - began
        return Row(
            "CLOSED after the client has closed, p99 of 1,000 idle connections",
            "plain trio",
            f"{plain:.1f} s, of a keep-alive of {keep_alive}",
            f"{p99 * 1e3:.2f} ms",
            [p99 / plain],
            "< 10 ms",
            p99 < 0.01,
        )


def at_least(what: str, against: str, found: dict[str, list[float]], unit: str, goal: float) -> Row:
    return compared(what, against, found, unit, f">= {goal}", lambda ratio: ratio >= goal)


def at_most(what: str, against: str, found: dict[str, list[float]], unit: str, goal: float) -> Row:
    return compared(what, against, found, unit, f"<= {goal}", lambda ratio: ratio <= goal)


def compared(
    what: str, against: str, found: dict[str, list[float]], unit: str, goal: str, reached: Any
) -> Row:
    base, figures = found[against], found["tracked"]
    ratios = [figure / other for figure, other in zip(figures, base, strict=True)]
    digits = 0 if median(figures) >= 100 else 1
    return Row(
        what,
        against,
        f"{median(base):,.{digits}f} {unit}",
        f"{median(figures):,.{digits}f} {unit}",
        ratios,
        goal,
        reached(median(ratios)),
    )


def calls(rounds: int) -> Iterator[Row]:
    """What a call costs, in this process."""
    found = [timings() for _ in range(rounds)]

    def row(what: str, against: str, key: str, base: str, most: float) -> Row:
        times = {
            name: [timing[of] * 1e9 for timing in found]
            for name, of in ((against, base), ("tracked", key))
        }
        return at_most(what, against, times, "ns", most)

    what = "one track() through compose(stats, conns)"
    yield row(what, "an empty method", "track", "empty", 6)
    yield row("the same", "prometheus inc() + dec()", "track", "prometheus", 0.5)
    what = "stats() with 100,000 connections"
    yield row(what, "with 10", "stats of 100,000", "stats of 10", 1.1)


def requests_per_second(command: list[str]) -> float:
    output = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *command], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)|([\d.]+) req/s", output)
    assert found is not None, output
    return float(found[1] or found[2])


def markdown(rows: Iterable[Row]) -> str:
    lines = [HEAD, ["---"] * len(HEAD), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIRECTORY",
        help="where table.md and throughput.svg are written, default: %(default)s",
    )
    arguments = parser.parse_args()
    if sys.platform != "linux" or (os.cpu_count() or 1) < 2:
        sys.exit("Linux and two cores are needed: one for the servers, one for the load.")
    rounds, seconds = (2, 0.3) if arguments.quick else (5, 1.0)
    about = (
        f"{rounds} rounds of {seconds:g} s each; Python {platform.python_version()}, "
        f"Hypercorn {version('hypercorn')}, trio {version('trio')}, h11 {version('h11')}, "
        f"h2 {version('h2')}"
    )
    print(about, flush=True)
    rows: list[Row] = []

    def show(row: Row) -> None:
        rows.append(row)
        what, against, base, figure, ratio, spread, goal, met = row.cells()
        print(f"{what:<64} {ratio:>6} {spread:>12}  {goal:>8} {met:>4}   ", end="")
        print(f"{figure} beside {base} ({against})", flush=True)

    print(f"{'what':<64} {'ratio':>6} {'spread':>12}  {'goal':>8} {'met':>4}")
    with TemporaryDirectory() as folder, loading() as load:
        certificate = Path(folder, "localhost.pem")
        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        bench = Bench(certificate, load, rounds, seconds)
        for row in bench.rates():
            show(row)
        show(bench.memory())
        show(bench.closings())
        for row in calls(rounds):
            show(row)
    limit = f"The load generator was busy for at most {bench.busiest:.0%} of its core's time."
    print(limit)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = f"{markdown(rows)}\n{about}. {limit}\n"
    arguments.output.joinpath("table.md").write_text(table)
    title = "Requests per second over the number of connections"
    picture = chart(title, bench.over_connections)
    arguments.output.joinpath("throughput.svg").write_text(picture)
    print(f"Written: {arguments.output}/table.md and throughput.svg")


if __name__ == "__main__":
    main()
