"""Measure what a flood of connections costs another client: ``python -m benchmarks.flood``.

One process floods a tracked server with 5,000 connections a second from 127.0.0.2, each with a
request. Meanwhile a client at 127.0.0.1 sends one request after the other, and measures how long
each takes: without the flood, with the flood, and with the flood and a ``ConnLimit`` of 100
connections per client. The server has a core of its own. On the other core the client has a higher
priority than the flood. Otherwise it would wait for its own processor.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from hypercorn.config import Config

from trio_httptrack import ConnLimit, tracked_server

from .app import app
from .servers import LOAD_CORE, SERVER_CORE

FLOODER, CLIENT = "127.0.0.2", "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
PER_CLIENT = 100
PER_SECOND = 5000


async def serve(limited: str) -> None:
    """Serve until killed; print the port."""
    config = Config()
    config.bind = "127.0.0.1:0"
    config.backlog = 4096
    config.loglevel = "warning"
    config.keep_alive_max_requests = 10**9
    tracker = ConnLimit(per_client=PER_CLIENT) if limited == "limited" else None
    async with tracked_server(app, config, tracker=tracker) as server:
        print(server.urls[0].rpartition(":")[2], flush=True)
        await trio.sleep_forever()


def flood(port: int, connections: int) -> None:
    """Open so many connections, send a request on each, and hold those that stay open.

    Print how many were opened, in how many seconds, and how many the server has refused.
    """
    refused = opened = 0
    selector = selectors.DefaultSelector()
    began = time.perf_counter()
    held = 0
    while opened < connections:
        time.sleep(max(0.0, began + opened / PER_SECOND - time.perf_counter()))
        stream = socket.socket()
        stream.bind((FLOODER, 0))
        stream.connect(("127.0.0.1", port))
        stream.sendall(REQUEST)
        opened += 1
        held += 1
        selector.register(stream, selectors.EVENT_READ)
        for key, _ in selector.select(0):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            try:
                data = connection.recv(4096)
            except OSError:
                data = b""
            if not data or b" 429 " in data:
                refused += 1
                held -= 1
                selector.unregister(connection)
                connection.close()
    print(opened, f"{time.perf_counter() - began:.2f}", refused, flush=True)
    sys.stdin.read()  # hold the rest until stdin is closed


def waiting_times(port: int, until: float | subprocess.Popen[str]) -> list[float]:
    """Send one request after the other on a connection. Return how long each took, in ms."""
    times = []
    with socket.create_connection(("127.0.0.1", port), source_address=(CLIENT, 0)) as stream:
        while True:
            began = time.perf_counter()
            stream.sendall(REQUEST)
            stream.recv(4096)
            now = time.perf_counter()
            times.append((now - began) * 1000)
            if isinstance(until, float):
                if now > until:
                    return times
            elif until.stdout in _readable(until):
                return times


def _readable(process: subprocess.Popen[str]) -> list[object]:
    with selectors.DefaultSelector() as selector:
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        return [key.fileobj for key, _ in selector.select(0)]


@contextmanager
def process(core: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "benchmarks.flood", *arguments]

    def prepare() -> None:
        os.sched_setaffinity(0, {core})
        if core == LOAD_CORE:
            os.nice(10)

    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def measure(connections: int, *, limited: bool, flooded: bool) -> list[str]:
    """Return one row of the table."""
    rate = refused = ""
    with process(SERVER_CORE, "serve", "limited" if limited else "unlimited") as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        waiting_times(port, time.perf_counter() + 0.5)
        if flooded:
            with process(LOAD_CORE, "flood", str(port), str(connections)) as flooder:
                times = waiting_times(port, flooder)
                assert flooder.stdout is not None
                opened, seconds, refused = flooder.stdout.readline().split()
                rate = f"{int(opened) / float(seconds):,.0f}/s"
        else:
            times = waiting_times(port, time.perf_counter() + 3)
    cuts = statistics.quantiles(times, n=100)
    return [
        "flood" if flooded else "no flood",
        f"{PER_CLIENT} a client" if limited else "no limit",
        rate,
        refused,
        f"{statistics.median(times):.2f}",
        f"{cuts[98]:.2f}",
        f"{max(times):.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000, metavar="N")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(
        ["load", "limit", "connections", "refused", "median ms", "99 % ms", "longest ms"]
    )
    for flooded, limited in ((False, False), (True, False), (True, True)):
        table.writerow(measure(arguments.connections, limited=limited, flooded=flooded))
        sys.stdout.flush()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, sys.argv[2])
    elif sys.argv[1:2] == ["flood"]:
        flood(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
