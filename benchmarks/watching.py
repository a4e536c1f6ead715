"""Measure what viewers cost: ``python -m benchmarks.watching``.

A real ``hypercorn -k trio -w 4`` has 40,000 connections, one in ten with a request in flight. The
benchmark measures the processor time of all workers, and the latencies of a client that sends one
request after the other: without viewers, with a viewer of the status page, with ``httptrack top``,
and with thirty viewers of different pages. One viewer has the last page, which costs the most.
Takes three minutes.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import Pipe, Process, connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from trio_httptrack._monitor.directory import sockets
from trio_httptrack._monitor.peers import Peers
from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.view import view_of
from trio_httptrack.status import StatusApp

WORKERS = 4
SECONDS = 10.0
CONFIG = """
from trio_httptrack import hook
conn_state = hook("trio_httptrack.config:tracker")
keep_alive_timeout = 10_000
backlog = 4096
loglevel = "warning"
keep_alive_max_requests = 10**9
runtime_dir = {directory!r}
"""

status: StatusApp = StatusApp(allow=["127.0.0.1"])


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan" or scope["path"] == "/status":
        await status(scope, receive, send)
        return
    if scope["path"] == "/hold":
        await trio.sleep_forever()
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hi"})


def request(path: str, accept: str = "*/*") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n".encode()


def hold(port: int, number: int, connections: int, ready: connection.Connection) -> None:
    """Open so many connections from an address of this process's own, and keep them."""
    raise_limit()
    with ExitStack() as streams:
        for each in range(connections):
            stream = streams.enter_context(socket.socket())
            stream.bind((f"127.0.1.{number}", 0))
            stream.connect(("127.0.0.1", port))
            stream.sendall(request("/hold" if each % 10 == 0 else "/"))
            if each % 10:
                stream.recv(1000)
        ready.send(None)
        ready.recv()


def watch_page(port: int, paths: list[str]) -> None:
    """View pages as browsers do: read the update of each second."""
    with ExitStack() as streams:
        opened = []
        for path in paths:
            stream = streams.enter_context(socket.create_connection(("127.0.0.1", port)))
            stream.sendall(request(path, "text/event-stream"))
            stream.setblocking(False)
            opened.append(stream)
        while True:
            time.sleep(0.05)
            for stream in opened:
                try:
                    while stream.recv(2**20):
                        pass
                except BlockingIOError:
                    pass


async def top(directory: Path) -> None:
    """Query the workers as ``httptrack top`` does."""
    peers = Peers(directory)
    with peers.viewing():
        while True:
            view_of(Query(), *await peers.fetch_reports(Query()))
            await trio.sleep(1)


def watch_top(directory: Path) -> None:
    trio.run(top, directory)


def seconds_of(pids: list[int]) -> float:
    """Return the processor time that processes have used so far."""
    ticks = 0
    for pid in pids:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def waiting_times(port: int, seconds: float) -> list[float]:
    """Measure how long a request takes, 200 times a second. Return the times in milliseconds."""
    times = []
    with ExitStack() as stack:
        streams = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(8)
        ]
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            for stream in streams:
                began = time.perf_counter()
                stream.sendall(request("/"))
                stream.recv(4096)
                times.append((time.perf_counter() - began) * 1000)
                time.sleep(0.005)
    return times


@contextmanager
def running(target: Any, *arguments: Any) -> Iterator[None]:
    process = Process(target=target, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def measure(port: int, pids: list[int]) -> list[str]:
    time.sleep(2)
    before = seconds_of(pids)
    times = waiting_times(port, SECONDS)
    busy = (seconds_of(pids) - before) / SECONDS / WORKERS
    cuts = statistics.quantiles(times, n=100)
    return [
        f"{busy:.2%}",
        f"{statistics.median(times):.2f}",
        f"{cuts[98]:.2f}",
        f"{max(times):.2f}",
    ]


def raise_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000, metavar="N", help="a worker")
    connections = parser.parse_args().connections
    raise_limit()
    with TemporaryDirectory() as folder, ExitStack() as stack:
        directory = Path(folder, "run")
        config = Path(folder, "conf.py")
        config.write_text(CONFIG.format(directory=str(directory)))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", "hypercorn", "-k", "trio", "-w", str(WORKERS)]
        command += ["-c", f"file:{config}", "-b", f"fd://{listener.fileno()}"]
        server = subprocess.Popen(
            [*command, "benchmarks.watching:app"], pass_fds=[listener.fileno()]
        )
        stack.callback(server.terminate)
        while len(sockets(directory)) < WORKERS:
            time.sleep(0.1)
        pids = [int(path.name.partition("-")[0]) for path in sockets(directory)]
        for number in range(1, WORKERS + 1):
            ours, theirs = Pipe()
            stack.enter_context(running(hold, port, number, connections, theirs))
            ours.recv()
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["viewer", "of a worker's time", "median ms", "99 % ms", "longest ms"])
        others = [f"/status?path=/{number}" for number in range(30)]
        far = [f"/status?page={WORKERS * connections // 100}"]
        for name, watcher in (
            ("none", None),
            ("the page", partial(running, watch_page, port, ["/status"])),
            ("httptrack top", partial(running, watch_top, directory)),
            ("grouped by client", partial(running, watch_page, port, ["/status?group=client"])),
            ("30 different pages", partial(running, watch_page, port, others)),
            ("the last page", partial(running, watch_page, port, far)),
            ("none", None),
        ):
            with ExitStack() as watching:
                if watcher is not None:
                    watching.enter_context(watcher())
                table.writerow([name, *measure(port, pids)])
                sys.stdout.flush()


if __name__ == "__main__":
    main()
