"""Measure a tracked Hypercorn and its baselines; print all, and write what the pages show.

``python -m benchmarks`` takes some fourteen minutes, ``--quick`` six. All servers of a row run at
the same time, on one core, and get their load in turn from one generator on another; each
ratio is the median of the rounds' own ratios. The terminal shows more than the pages: the
smallest and the largest ratio, and our goals.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import trustme

from .chart import chart
from .micro import timings
from .servers import (
    ASYNCIO,
    LOAD_CORE,
    TRACKED,
    TRIO,
    UVICORN,
    UVLOOP,
    Load,
    Server,
    loading,
    serving,
)

NEEDS = {UVICORN: ("uvicorn",), UVLOOP: ("uvicorn", "httptools", "uvloop")}

# The tables of the page, in its order. What their cells have no unit for, the title names.
HTTP1 = "HTTP/1.1, requests per second"
HTTP2 = "HTTP/2 over TLS, requests per second"
WEBSOCKET = "WebSocket over HTTP/1.1, messages per second"
FRAMEWORKS = "Frameworks, requests per second"
LATENCY = "Latency"
LIFETIME = "Start and close"
MEMORY = "Memory"
CPU = "Processor time"
GROUPS = [HTTP1, HTTP2, WEBSOCKET, FRAMEWORKS, LATENCY, LIFETIME, MEMORY, CPU]

BROWSER_HEADERS = " ".join(
    f"-H {shlex.quote(header)}"
    for header in (
        "accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "accept-language: en-US,en;q=0.5",
        "accept-encoding: gzip, deflate, br, zstd",
        "cookie: session=7d1c3f0b9a2e48d6; theme=dark",
        "sec-fetch-dest: document",
        "sec-fetch-mode: navigate",
        "sec-fetch-site: same-origin",
        "upgrade-insecure-requests: 1",
    )
)


@dataclass(frozen=True)
class Rate:
    """A row for each baseline: how many requests each server handles in a second."""

    metric: str
    load: str
    """The kind of load, as ``load.make()`` knows it."""

    connections: int
    goals: dict[str, float]
    """The smallest ratio to each baseline."""

    group: str = HTTP1
    app: str = "app"
    https: bool = False


HTTP2_GOALS = {TRIO: 1.0, ASYNCIO: 5.0}
USUAL = "the same server before"
FRAMEWORK_GOALS = {TRIO: 1.5, UVICORN: 1.0, UVLOOP: 0.6}
RATES = [
    Rate("GET, 32 connections", "get", 32, {TRIO: 2.0, ASYNCIO: 1.0, UVICORN: 2.5, UVLOOP: 0.6}),
    Rate("GET, 1 connection", "get", 1, {TRIO: 1.0, UVICORN: 2.5}),
    Rate("GET, 256 connections", "get", 256, {TRIO: 1.0, UVICORN: 2.5}),
    Rate("GET, 2,000 connections", "get", 2000, {TRIO: 1.0, UVICORN: 2.5}),
    Rate("GET with a browser's twelve headers", "browser", 32, {UVICORN: 2.0}),
    Rate("GET over TLS", "tls", 32, {UVICORN: 2.5}, https=True),
    Rate("GET, one request per connection", "one-shot", 32, {TRIO: 1.0, UVICORN: 1.0}),
    Rate("POST of 1 KiB", "post", 32, {TRIO: 1.0, UVICORN: 2.5}),
    Rate("response streamed in ten chunks", "stream", 32, {TRIO: 1.0, UVICORN: 1.5}),
    Rate("1 MiB response", "megabyte", 32, {TRIO: 1.0, UVICORN: 1.0}),
    Rate("1 stream at a time", "h2-1", 32, HTTP2_GOALS, HTTP2, https=True),
    Rate("10 streams at a time", "h2-10", 32, HTTP2_GOALS, HTTP2, https=True),
    Rate("echo, all with wsproto", "websocket", 32, {TRIO: 1.0, UVICORN: 1.0}, WEBSOCKET),
    Rate("Quart-Trio", "get", 32, {TRIO: 2.0}, FRAMEWORKS, app="quart_app"),
    Rate("Starlette", "get", 32, FRAMEWORK_GOALS, FRAMEWORKS, app="starlette_app"),
    Rate("FastAPI", "get", 32, FRAMEWORK_GOALS, FRAMEWORKS, app="fastapi_app"),
    # Plain Hypercorn's trio worker does not start with a WSGI application.
    Rate("Flask (WSGI)", "get", 32, {ASYNCIO: 1.0}, FRAMEWORKS, app="flask_app"),
]


@dataclass
class Row:
    """A line of a table."""

    group: str
    metric: str
    baseline: str
    base: str
    figure: str
    ratios: list[float]
    goal: str
    met: bool

    @property
    def ratio(self) -> str:
        return f"{median(self.ratios):.2f}" if median(self.ratios) > 0.01 else "< 0.01"

    def printed(self) -> list[str]:
        spread = f"{min(self.ratios):.2f}-{max(self.ratios):.2f}" if len(self.ratios) > 1 else ""
        baseline = f"{self.baseline}: {self.base}"
        met = "yes" if self.met else "NO"
        return [self.metric, baseline, self.figure, self.ratio, spread, self.goal, met]


HEAD = ["metric", "baseline", "tracked", "ratio", "spread", "goal", "met"]
WIDTHS = [60, 38, 12, 6, 11, 9, 3]
PACKAGES = {  # by their distribution's name
    "hypercorn": "hypercorn",
    "trio": "trio",
    "h11": "h11",
    "h2": "h2",
    "uvicorn": "uvicorn",
    "httptools": "httptools",
    "uvloop": "uvloop",
    "quart-trio": "quart_trio",
    "starlette": "starlette",
    "fastapi": "fastapi",
    "flask": "flask",
}
Measurement = Callable[[str], Iterable[Row]]


class Bench:
    """Takes the measurements, each of which makes a row or several."""

    def __init__(self, certificate: Path, load: Load, stack: ExitStack, quick: bool) -> None:
        self.certificate = certificate
        self.load = load
        self.stack = stack
        self.rounds, self.seconds = (2, 0.3) if quick else (5, 1.0)
        self.servers: dict[tuple[str, str, bool], Server] = {}
        self.names = [TRIO, ASYNCIO, UVICORN, UVLOOP, TRACKED]
        self.left_out: set[str] = set()
        for name, modules in NEEDS.items():
            if not all(map(find_spec, modules)):
                self.names.remove(name)
                self.left_out.add(name)
        self.busiest = 0.0, ""
        self.over_connections: dict[str, dict[int, float]] = {name: {} for name in self.names}
        self.of_apps: dict[str, dict[str, tuple[float, float]]] = {}
        """For each application, by server: requests per second, and seconds as the median."""

    def measurements(self) -> dict[str, Measurement]:
        """By what ``--only`` calls them."""
        return {
            **{rate.metric: partial(self.rate, rate) for rate in RATES},
            f"{RATES[0].metric}, measured by wrk": self.wrk,
            "1 stream at a time, measured by h2load": partial(self.h2load, "h2load -c32 -m1 -D {}"),
            "10 streams at a time, measured by h2load": partial(
                self.h2load, "h2load -c32 -m10 -D {}"
            ),
            "the same, with a browser's headers and 500 paths": partial(
                self.h2load, f"h2load -c32 -m10 -D {{}} {BROWSER_HEADERS}", pages=500
            ),
            "GET, 32 connections, while 15,000 clients vanish": self.vanishing,
            "idle connection": self.memory,
            "open HTTP/2 stream": self.stream_memory,
            "from the client's close to CLOSED, p99": self.closings,
            "from the start to the first response": self.start,
            "instructions per GET": self.instructions,
            "track() and stats()": self.calls,
        }

    def server(self, name: str, *, app: str = "app", https: bool = False) -> Server:
        """A server that runs until all is measured."""
        key = name, app, https
        if key not in self.servers:
            certificate = self.certificate if https else None
            server = serving(name, app=app, certificate=certificate)
            self.servers[key] = self.stack.enter_context(server)
        return self.servers[key]

    def compared(self, goals: dict[str, float]) -> list[str]:
        return [name for name in self.names if name in goals or name == TRACKED]

    def found(self, tool: str) -> bool:
        if shutil.which(tool) is None:
            self.left_out.add(tool)
        return tool not in self.left_out

    def in_turn(self, names: list[str]) -> Iterator[str]:
        """Each name once in each round, and in each round another one first."""
        for number in range(self.rounds):
            first = number % len(names)
            yield from names[first:] + names[:first]

    def rate(self, rate: Rate, metric: str) -> Iterator[Row]:
        charted = rate.load == "get" and rate.app == "app"
        names = self.names if charted else self.compared(rate.goals)
        servers = {name: self.server(name, app=rate.app, https=rate.https) for name in names}
        rates: dict[str, list[float]] = {name: [] for name in names}
        middle: dict[str, list[float]] = {name: [] for name in names}
        p99: dict[str, list[float]] = {name: [] for name in names}
        for name in self.in_turn(names):
            result = self.load(
                "run",
                kind=rate.load,
                port=servers[name].port,
                connections=rate.connections,
                # Long enough for each connection to have its turn.
                seconds=max(self.seconds, rate.connections / 1000),
                warmup=0.3 + rate.connections / 4000,
            )
            self.busiest = max(self.busiest, (result["busy"], f"{rate.metric}, {name}"))
            rates[name].append(result["rate"])
            middle[name].append(result["median"] * 1e3)
            p99[name].append(result["p99"] * 1e3)
        yield from self.at_least(rate.group, metric, rates, rate.goals)
        if charted:
            for name in names:
                self.over_connections[name][rate.connections] = median(rates[name])
        if rate is RATES[0] or rate.group is FRAMEWORKS:
            self.of_apps[rate.app] = {
                name: (median(rates[name]), median(middle[name])) for name in names
            }
        if rate is RATES[0]:
            yield at_most(LATENCY, f"{rate.metric}, median", TRIO, middle, " ms", 0.6)
            yield at_most(LATENCY, f"{rate.metric}, p99", TRIO, p99, " ms", 0.6)

    def at_least(
        self, group: str, metric: str, rates: dict[str, list[float]], goals: dict[str, float]
    ) -> Iterator[Row]:
        for baseline, goal in goals.items():
            if baseline in self.names:
                yield at_least(group, metric, baseline, rates, goal)

    def wrk(self, metric: str) -> Iterator[Row]:
        """What a generator in C measures, which is never the limit itself."""
        if self.found("wrk"):
            yield from self._other("wrk -t1 -c32 -d{}", HTTP1, metric, RATES[0].goals)

    def h2load(self, command: str, metric: str, pages: int = 0) -> Iterator[Row]:
        if self.found("h2load"):
            yield from self._other(command, HTTP2, metric, HTTP2_GOALS, https=True, pages=pages)

    def _other(
        self,
        command: str,
        group: str,
        metric: str,
        goals: dict[str, float],
        https: bool = False,
        pages: int = 0,
    ) -> Iterator[Row]:
        names = self.compared(goals)
        servers = {name: self.server(name, https=https) for name in names}
        rates: dict[str, list[float]] = {name: [] for name in names}
        whole = max(1, round(self.seconds))  # neither knows fractions
        for name in self.in_turn(names):
            url = f"{'https' if https else 'http'}://127.0.0.1:{servers[name].port}/"
            urls = [f"{url}{number}" for number in range(pages)] or [url]
            rates[name].append(requests_per_second([*shlex.split(command.format(whole)), *urls]))
        yield from self.at_least(group, metric, rates, goals)

    def vanishing(self, metric: str) -> Iterator[Row]:
        """What other clients get while the connections of those that vanished are closed."""
        rates: dict[str, list[float]] = {USUAL: [], TRACKED: []}
        for _ in range((self.rounds + 1) // 2):
            # What vanishes is nice: its end shall not slow down the generator.
            with serving(TRACKED) as server, loading(nice=19) as clients:
                files = server.open_files()
                clients("hold", port=server.port, connections=15_000)
                found = self.load(
                    "vanish", port=server.port, victims=clients.pid, server=server.pid, files=files
                )
            rates[USUAL].append(found["before"]["rate"])
            rates[TRACKED].append(found["during"]["rate"])
        yield at_least(HTTP1, metric, USUAL, rates, 0.5)

    def memory(self, metric: str) -> Iterator[Row]:
        connections = 5000
        goals = {TRIO: 0.8, UVICORN: 1.0}
        cost: dict[str, list[float]] = {}
        for name in self.compared(goals):
            with serving(name) as server:
                port = server.port
                self.load("run", kind="get", port=port, connections=32, seconds=0.5, warmup=0)
                before = server.memory()
                self.load("hold", port=port, connections=connections)
                cost[name] = [(server.memory() - before) / connections / 1024]
            self.load("release")
        for baseline, goal in goals.items():
            if baseline in cost:
                yield at_most(MEMORY, metric, baseline, cost, " KiB", goal)

    def stream_memory(self, metric: str) -> Iterator[Row]:
        connections, streams = 50, 100
        goals = {TRIO: 1.0, ASYNCIO: 1.0}
        cost: dict[str, list[float]] = {}
        for name in self.compared(goals):
            with serving(name, certificate=self.certificate) as server:
                port = server.port
                self.load("run", kind="h2-10", port=port, connections=32, seconds=0.5, warmup=0)
                before = server.memory()
                self.load("hold_streams", port=port, connections=connections, streams=streams)
                cost[name] = [(server.memory() - before) / connections / streams / 1024]
            self.load("release")
        for baseline, goal in goals.items():
            yield at_most(MEMORY, metric, baseline, cost, " KiB", goal)

    def closings(self, metric: str) -> Iterator[Row]:
        keep_alive = 5
        with serving("tracked, with closings") as server:
            self.load("hold", port=server.port, connections=1000)
            left = self.load("release")
            time.sleep(0.5)
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/closings") as response:
                reported = json.load(response)
        delays = sorted(reported[client] - when for client, when in left.items())
        p99 = delays[len(delays) * 99 // 100]
        with serving(TRIO, keep_alive=keep_alive) as server:
            at_rest = server.open_files()
            self.load("hold", port=server.port, connections=1000)
            self.load("release")
            began = time.monotonic()
            while server.open_files() > at_rest + 10:  # 1 %
                time.sleep(0.01)
            plain = time.monotonic() - began
        base = f"{plain:.1f} s (keep-alive {keep_alive} s)"
        figure, ratio = f"{p99 * 1e3:.2f} ms", p99 / plain
        yield Row(LIFETIME, metric, TRIO, base, figure, [ratio], "< 10 ms", p99 < 0.01)

    def start(self, metric: str) -> Iterator[Row]:
        times: dict[str, list[float]] = {TRIO: [], TRACKED: []}
        for name in self.in_turn(list(times)):
            began = time.perf_counter()
            with serving(name):
                times[name].append((time.perf_counter() - began) * 1e3)
        yield at_most(LIFETIME, metric, TRIO, times, " ms", 1.0)

    def instructions(self, metric: str) -> Iterator[Row]:
        """What twice as many requests cost more: neither the start nor the end is counted."""
        if not self.found("valgrind"):
            return
        requests, goal = 400, 260_000
        baseline = UVICORN if UVICORN in self.names else TRIO
        cost = {
            name: (self._callgrind(name, 2 * requests) - self._callgrind(name, requests)) / requests
            for name in (baseline, TRACKED)
        }
        figure = cost[TRACKED]
        yield Row(
            CPU,
            metric,
            baseline,
            f"{cost[baseline]:,.0f}",
            f"{figure:,.0f}",
            [figure / cost[baseline]],
            f"< {goal:,}",
            figure < goal,
        )

    def _callgrind(self, name: str, requests: int) -> int:
        log = self.certificate.with_name("callgrind.log")
        options = ["--callgrind-out-file=/dev/null", f"--log-file={log}"]
        with serving(name, under=("valgrind", "--tool=callgrind", *options)) as server:
            self.load("repeat", port=server.port, requests=requests)
            server.process.send_signal(signal.SIGTERM)
            server.process.wait()
        found = re.search(r"Collected : (\d+)", log.read_text())
        assert found is not None, log.read_text()
        return int(found[1])

    def calls(self, _: str) -> Iterator[Row]:
        """What a call costs, in this process."""
        found = [timings() for _ in range(self.rounds)]

        def row(metric: str, baseline: str, key: str, base: str, most: float) -> Row:
            times = {
                name: [timing[of] * 1e9 for timing in found]
                for name, of in ((baseline, base), (TRACKED, key))
            }
            return at_most(CPU, metric, baseline, times, " ns", most)

        metric = "track(), StatsTracker and ConnTracker"
        yield row(metric, "an empty method", "track", "empty", 6)
        yield row(metric, "prometheus_client, inc() and dec()", "track", "prometheus", 0.5)
        metric = "stats() with 100,000 connections"
        yield row(metric, "with 10 connections", "stats of 100,000", "stats of 10", 1.1)


def at_least(
    group: str, metric: str, baseline: str, found: dict[str, list[float]], goal: float
) -> Row:
    return compared(group, metric, baseline, found, "", f">= {goal}", lambda ratio: ratio >= goal)


def at_most(
    group: str, metric: str, baseline: str, found: dict[str, list[float]], unit: str, goal: float
) -> Row:
    return compared(group, metric, baseline, found, unit, f"<= {goal}", lambda ratio: ratio <= goal)


def compared(
    group: str,
    metric: str,
    baseline: str,
    found: dict[str, list[float]],
    unit: str,
    goal: str,
    reached: Callable[[float], bool],
) -> Row:
    base, figures = found[baseline], found[TRACKED]
    ratios = [figure / other for figure, other in zip(figures, base, strict=True)]
    digits = 0 if median(figures) >= 100 else 1
    return Row(
        group,
        metric,
        baseline,
        f"{median(base):,.{digits}f}{unit}",
        f"{median(figures):,.{digits}f}{unit}",
        ratios,
        goal,
        reached(median(ratios)),
    )


def requests_per_second(command: list[str]) -> float:
    output = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,  # or it waits for ever for a server that has got stuck
    ).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)|([\d.]+) req/s", output)
    assert found is not None, output
    return float(found[1] or found[2])


def markdown(head: list[str], rows: Iterable[list[str]], texts: int = 1) -> str:
    """A table: so many columns of text, the others of numbers."""
    lines = [head, [*["---"] * texts, *["---:"] * (len(head) - texts)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def for_readers(rows: list[Row]) -> str:
    """A table for each group, without what only we want to know."""
    parts = []
    for group in GROUPS:
        cells, last = [], ""
        for row in rows:
            if row.group == group:
                metric, last = "" if row.metric == last else row.metric, row.metric
                cells.append([metric, f"{row.baseline}: {row.base}", row.figure, row.ratio])
        if cells:
            head = ["metric", "baseline", "tracked", "ratio"]
            parts.append(f"### {group}\n\n{markdown(head, cells, texts=2)}")
    return "\n".join(parts)


def of_app(found: dict[str, tuple[float, float]]) -> str:
    """What the page of a framework shows, the fastest server first."""
    fastest_first = sorted(found.items(), key=lambda item: -item[1][0])
    cells = [[name, f"{rate:,.0f}", f"{ms:.1f} ms"] for name, (rate, ms) in fastest_first]
    return markdown(["server", "requests per second", "median latency"], cells)


def machine() -> str:
    """Where and with what this was measured."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"{name} {version(name)}" for name in PACKAGES if find_spec(PACKAGES[name])]
    return (
        f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB of "
        f"memory, {platform.system()} {platform.release().partition('-')[0]}; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def show(cells: list[str]) -> None:
    print(*(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--only",
        metavar="SUBSTRING",
        help="measure only what has this in its name, and write no files",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIRECTORY",
        help="where the pages' tables and picture are written, default: %(default)s",
    )
    arguments = parser.parse_args()
    if sys.platform != "linux" or (os.cpu_count() or 1) < 2:
        sys.exit("Linux and two cores are needed: one for the servers, one for the load.")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 16_000:
        sys.exit("A process must be able to open 16,000 files: raise the limit, ulimit -Hn.")
    os.sched_setaffinity(0, {LOAD_CORE})
    rows: list[Row] = []
    with TemporaryDirectory() as folder, loading() as load, ExitStack() as stack:
        certificate = Path(folder, "localhost.pem")
        issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
        bench = Bench(certificate, load, stack, arguments.quick)
        show(HEAD)
        for metric, measure in bench.measurements().items():
            if (arguments.only or "").lower() in metric.lower():
                for row in measure(metric):
                    rows.append(row)
                    show(row.printed())
    about = f"{machine()}. {bench.rounds} rounds of {bench.seconds:g} s each."
    busy, when = bench.busiest
    print(f"{about} The load generator was busy for at most {busy:.0%} of the time ({when}).")
    if bench.left_out:
        print(f"Left out, as it is not installed: {', '.join(sorted(bench.left_out))}.")
    if arguments.only is not None:
        return
    title = "Requests per second by number of connections"
    written = {
        "table.md": for_readers(rows),
        "machine.md": f"{about}\n",
        "throughput.svg": chart(title, bench.over_connections),
        **{f"{app}.md": of_app(found) for app, found in bench.of_apps.items()},
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, text in written.items():
        arguments.output.joinpath(name).write_text(text)
    print(f"Written to {arguments.output}: {', '.join(written)}")


if __name__ == "__main__":
    main()
