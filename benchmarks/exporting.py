"""A tracked server with the exporter that the variable ``EXPORTER`` names, and its clients.

``python -m benchmarks.exporting get 1000`` handles 1000 requests and exits. With ``once`` it
prints how many milliseconds a scrape takes, or an export.
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median
from typing import Any

import hypercorn.trio
import trio
from hypercorn.config import Config
from hypercorn.statsd import StatsdLogger as BaseStatsdLogger
from hypercorn.trio.statsd import StatsdLogger

from trio_httptrack import Conn, ConnState, ConnTracker, StatsTracker, compose, wrap

from .app import app

EXPORTER = os.environ["EXPORTER"]
CLIENTS = 8
CLIENT = """
import socket, sys
port, kind, rounds = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
close = b"connection: close\\r\\n" if kind == "one-shot" else b""
request = b"GET / HTTP/1.1\\r\\nhost: localhost\\r\\naccept: */*\\r\\n%s\\r\\n" % close
clients = []
for _ in range(rounds):
    while len(clients) < 8:
        clients.append(socket.create_connection(("127.0.0.1", port)))
    for client in clients:
        client.sendall(request)
    for client in clients:
        while not client.recv(65536).endswith(b"world!"):
            pass
    if close:
        while clients:
            clients.pop().close()
"""


class HypercornStatsdLogger(StatsdLogger):
    """StatsD with Hypercorn's own metrics only."""

    def __init__(self, config: Config) -> None:
        config.statsd_host = "127.0.0.1:9"
        super().__init__(config)
        config.statsd_host = None


def make() -> tuple[StatsTracker, Any]:
    """Return the tracker, and a function that scrapes or exports; None if it has none."""
    if EXPORTER.startswith("prometheus"):
        from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        from trio_httptrack.prometheus import PrometheusTracker

        def scrape() -> None:
            registry = REGISTRY
            if "multiprocess" in EXPORTER:
                registry = CollectorRegistry()
                MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            generate_latest(registry)

        return PrometheusTracker(), scrape
    if EXPORTER == "opentelemetry":
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        from trio_httptrack.opentelemetry import OpenTelemetryTracker

        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        return OpenTelemetryTracker(meter_provider=provider), reader.get_metrics_data
    return StatsTracker(), None


async def serve(kind: str, requests: int) -> None:
    tracker, _ = make()
    config = Config()
    config.bind = "127.0.0.1:0"
    config.keep_alive_max_requests = 10**9
    config.errorlog = None
    if EXPORTER == "statsd":
        config.statsd_host = "127.0.0.1:9"
    elif EXPORTER == "hypercorn's statsd":
        config.logger_class = HypercornStatsdLogger
        assert isinstance(config.log, BaseStatsdLogger)
    wrap(config, compose(tracker, ConnTracker()))
    finished = trio.Event()
    async with trio.open_nursery() as nursery:

        async def start(task_status: trio.TaskStatus[Any]) -> None:
            await hypercorn.trio.serve(
                app, config, shutdown_trigger=finished.wait, task_status=task_status
            )

        (url,) = await nursery.start(start)
        rounds = str(requests // CLIENTS)
        arguments = [url.rpartition(":")[2], kind, rounds]
        await trio.run_process([sys.executable, "-c", CLIENT, *arguments])
        finished.set()


async def once() -> float:
    tracker, export = make()
    if export is None:
        return 0
    for number in range(100):
        conn = Conn(("192.0.2.1", number), opened_at=-number)
        conn._count_request("/some/path")
        tracker.track(conn, ConnState.NEW)
    times = []
    for _ in range(300):
        began = time.perf_counter()
        export()
        times.append(time.perf_counter() - began)
    return median(times) * 1e3


if __name__ == "__main__":
    if sys.argv[1] == "once":
        print(trio.run(once))
    else:
        trio.run(serve, sys.argv[1], int(sys.argv[2]))
