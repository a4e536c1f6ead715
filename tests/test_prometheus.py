"""The numbers for Prometheus; tests/integration has a real one read them."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import trio
from hypercorn.config import Config
from hypercorn.middleware.dispatcher import TrioDispatcherMiddleware
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock, assert_no_checkpoints

from trio_httptrack import Conn, ConnState, StatsTracker, tracked_server
from trio_httptrack._monitor.monitor import Monitor
from trio_httptrack._monitor.serving import listen
from trio_httptrack._stats import BUCKETS
from trio_httptrack.prometheus import MetricsApp, PrometheusTracker, _hold_lock
from trio_httptrack.testing import memory_server

from .clients import Http2, http1
from .prometheus_process import Process, process
from .support import app as support_app
from .support import without_lifespan
from .test_monitor import Server, connection

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)

sharing = pytest.mark.skipif(
    find_spec("fcntl") is None, reason="processes share their numbers under its locks"
)


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as ``connections{new}``."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sample.labels.values())
            name = sample.name.removeprefix("httptrack_")
            if not name.endswith("_created"):
                found[f"{name}{{{labels}}}" if labels else name] = sample.value
    return found


def entered(conn: Conn, state: ConnState, at: float = 0.0) -> tuple[Conn, ConnState]:
    conn.state, conn.state_since = state, at
    return conn, state


def scrape(registry: CollectorRegistry) -> dict[str, float]:
    return samples(generate_latest(registry).decode())


# One process


async def test_the_metrics_are_those_of_the_tracker(autojump_clock: MockClock) -> None:
    """Gauges and counters by state, and how long connections lived."""
    registry = CollectorRegistry()
    tracker = PrometheusTracker(registry)
    async with memory_server(support_app, tracker=tracker, keep_alive_timeout=40) as server:
        silent = await server.connect()
        await http1(await server.connect())
        assert scrape(registry) == {
            "connections{new}": 1,
            "connections{active}": 0,
            "connections{idle}": 1,
            "connection_transitions_total{new}": 2,
            "connection_transitions_total{active}": 1,
            "connection_transitions_total{idle}": 1,
            "connection_transitions_total{hijacked}": 0,
            "connection_transitions_total{closed}": 0,
            **{f"connection_duration_seconds_bucket{{{float(each)}}}": 0 for each in BUCKETS},
            "connection_duration_seconds_bucket{+Inf}": 0,
            "connection_duration_seconds_count": 0,
            "connection_duration_seconds_sum": 0,
        }
        await trio.sleep(1.5)
        await silent.aclose()
        await trio.sleep(40)
        now = scrape(registry)
        assert now["connections{new}"] == now["connections{idle}"] == 0
        assert now["connection_transitions_total{closed}"] == 2
        assert now["connection_duration_seconds_sum"] == 1.5 + 40
        buckets = {
            each: now[f"connection_duration_seconds_bucket{{{float(each)}}}"] for each in BUCKETS
        }
        assert buckets == {each: (each >= 1.5) + (each >= 40) for each in BUCKETS}


def test_an_upgraded_connection_has_no_duration() -> None:
    """It leaves HTTP, and goes on."""
    registry = CollectorRegistry()
    tracker = PrometheusTracker(registry)
    for state in (NEW, ACTIVE, HIJACKED):
        tracker.track(*entered(Conn(), state, 5))
    assert registry.get_sample_value("httptrack_connection_duration_seconds_count") == 0
    upgraded = registry.get_sample_value(
        "httptrack_connection_transitions_total", {"state": "hijacked"}
    )
    assert upgraded == 1


def test_each_reason_for_a_close_is_counted() -> None:
    """That of an upgraded connection when its socket closes; a normal end has none."""
    registry = CollectorRegistry()
    tracker = PrometheusTracker(registry)
    hijacked = Conn()
    for state in (NEW, ACTIVE, HIJACKED):
        tracker.track(*entered(hijacked, state, 5))
    for reason in ("keep_alive_timeout", "keep_alive_timeout", "banned", None):
        conn = Conn()
        conn.close_reason = reason
        tracker.track(conn, CLOSED)
    counted = "connection_close_reasons_total"
    expected = {f"{counted}{{keep_alive_timeout}}": 2, f"{counted}{{banned}}": 1}
    now = scrape(registry)
    assert {name: now[name] for name in now if name.startswith(counted)} == expected
    hijacked.close("banned")
    assert scrape(registry)[f"{counted}{{banned}}"] == 2
    closed = Conn()
    closed.close("banned")  # by a tracker that was told of it before
    tracker.track(closed, HIJACKED)
    assert scrape(registry)[f"{counted}{{banned}}"] == 3


async def test_it_is_a_stats_tracker() -> None:
    """With all that one has, and never a checkpoint."""
    tracker = PrometheusTracker(CollectorRegistry())
    conn = Conn()
    with assert_no_checkpoints():
        tracker.track(conn, NEW)
    assert tracker.stats().accepted == 1
    assert tracker.connections() == {conn: NEW}
    assert repr(tracker).startswith("<PrometheusTracker new 1")


def test_two_on_one_registry_are_refused() -> None:
    """Their numbers would be mixed up; the first goes on."""
    registry = CollectorRegistry()
    first = PrometheusTracker(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusTracker(registry)
    first.track(Conn(), NEW)
    assert registry.get_sample_value("httptrack_connections", {"state": "new"}) == 1


def test_other_metrics_of_the_registry_stay() -> None:
    """And the global registry is left alone where another is given."""
    registry = CollectorRegistry()
    Gauge("orders", "Of the application's own.", registry=registry).inc()
    PrometheusTracker(registry)
    assert registry.get_sample_value("orders") == 1
    assert REGISTRY.get_sample_value("httptrack_connections", {"state": "new"}) is None


async def test_the_route_speaks_what_the_scraper_accepts(autojump_clock: MockClock) -> None:
    """OpenMetrics, gzip, and a choice of names."""
    registry = CollectorRegistry()
    PrometheusTracker(registry).track(Conn(), NEW)
    async with memory_server(MetricsApp(registry)) as server:
        client = await server.connect()
        _, body = await http1(client, accept="application/openmetrics-text; version=1.0.0")
        parsed = openmetrics_families(body.decode())  # type: ignore[no-untyped-call]
        families = {each.name: each for each in parsed}
        assert families["httptrack_connection_transitions"].type == "counter"
        _, body = await http1(client, accept_encoding="gzip")
        assert samples(gzip.decompress(body).decode())["connections{new}"] == 1
        _, body = await http1(client, path="/metrics?name[]=httptrack_connections")
        assert samples(body.decode()).keys() == {
            "connections{new}",
            "connections{active}",
            "connections{idle}",
        }
        status, body = await http1(client, "HEAD")
        assert (status, body) == (200, b"")


async def test_the_open_websockets_are_counted(autojump_clock: MockClock) -> None:
    """Over HTTP/1.1 and HTTP/2, until they are closed; by name, too."""
    registry = CollectorRegistry()
    PrometheusTracker(registry)
    metrics = MetricsApp(registry)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (metrics if scope["path"] == "/metrics" else support_app)(scope, receive, send)

    async with memory_server(without_lifespan(app)) as server:

        async def websockets(query: str = "") -> dict[str, float]:
            client = await server.connect()
            _, body = await http1(client, path=f"/metrics{query}", accept="text/plain")
            await client.aclose()
            return samples(body.decode())

        assert (await websockets())["websockets"] == 0
        http2 = Http2(await server.connect())
        await http2.start()
        await http2.websocket("/ws")
        await http2.websocket("/ws")
        upgraded = await server.connect()
        await upgraded.send_all(UPGRADE)
        await upgraded.receive_some()
        found = await websockets()
        assert found["websockets"] == 3
        assert "connections{active}" in found
        assert await websockets("?name[]=httptrack_websockets") == {"websockets": 3}
        await upgraded.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await websockets())["websockets"] == 2
        await http2.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (await websockets())["websockets"] == 0


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
async def test_a_worker_that_does_not_respond_has_the_websockets_that_it_had(
    tmp_path: Path,
) -> None:
    """They are open, even if their worker does not respond now."""
    registry = CollectorRegistry()
    config = Config()
    config.bind = "127.0.0.1:0"
    config.runtime_dir = str(tmp_path / "run")  # type: ignore[attr-defined]
    async with (
        tracked_server(MetricsApp(registry), config) as server,
        httpx.AsyncClient() as client,
    ):

        async def websockets() -> float:
            return samples((await client.get(server.urls[0])).text)["websockets"]

        directory = tmp_path / "run"
        monitor = Monitor(Server(connection(state=HIJACKED), connection(state=HIJACKED)))
        with closing(listen(directory, monitor.name)) as sock:
            async with trio.open_nursery() as nursery:

                async def respond_once() -> None:
                    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
                    async with await listener.accept() as stream:
                        await stream.receive_some()
                        report = json.dumps(await monitor.report(None))
                        await stream.send_all(report.encode() + b"\n")
                        await trio.sleep_forever()

                nursery.start_soon(respond_once)
                assert await websockets() == 2
                assert await websockets() == 2  # of last time
                nursery.cancel_scope.cancel()
        assert await websockets() == 0


async def test_the_route_can_be_mounted_by_hypercorns_dispatcher(
    autojump_clock: MockClock,
) -> None:
    """It handles the lifespan, too."""
    app = TrioDispatcherMiddleware({"/metrics": MetricsApp(CollectorRegistry()), "": support_app})
    async with memory_server(app) as server:
        client = await server.connect()
        assert (await http1(client, path="/metrics"))[0] == 200
        assert await http1(client, path="/other") == (200, b"/other")


# Several processes


def shown(process: Process, *transitions: str) -> dict[str, float]:
    """The gauges and counters that are not zero, right after some transitions."""
    return {
        re.sub(r'httptrack_(.*){state="(.*)"}', r"\1{\2}", name): value
        for name, value in process.scrape(*transitions).items()
        if "state" in name and value
    }


@sharing
def test_each_process_serves_the_total_of_all_processes(tmp_path: Path) -> None:
    """Whichever process responds."""
    with process(tmp_path) as one, process(tmp_path) as two:
        one.track("a", "NEW", "ACTIVE", "IDLE", "ACTIVE")
        one.track("b", "NEW")
        two.track("a", "NEW", "ACTIVE")
        two.track("b", "NEW", "ACTIVE", "IDLE", "CLOSED")
        two.track("c", "NEW", "ACTIVE", "HIJACKED")
        two.track("d", "NEW")
        total = {
            "connections{new}": 2,
            "connections{active}": 2,
            "connection_transitions_total{new}": 6,
            "connection_transitions_total{active}": 5,
            "connection_transitions_total{idle}": 2,
            "connection_transitions_total{hijacked}": 1,
            "connection_transitions_total{closed}": 1,
        }
        assert shown(one) == total
        assert shown(two) == total
        assert two.scrape()["httptrack_connection_duration_seconds_count"] == 1


@sharing
def test_the_numbers_are_there_when_they_are_read(tmp_path: Path) -> None:
    """In the same turn of the event loop, after a run, and where Trio does not run at all."""
    with process(tmp_path) as one, process(tmp_path) as two:
        two.track("a", "NEW", run=False)
        assert shown(one)["connections{new}"] == 1
        two.track("b", "NEW")
        assert shown(one)["connections{new}"] == 2
        assert shown(one, "c", "NEW")["connections{new}"] == 3
        two.track("b", "CLOSED", run=False)
        assert shown(one, "d", "NEW")["connections{new}"] == 3


@sharing
def test_any_sequence_adds_up_over_the_processes(tmp_path: Path) -> None:
    """Possible or not, of connections met at whatever state."""
    random = Random(7)
    models = [StatsTracker(), StatsTracker()]
    with process(tmp_path) as one, process(tmp_path) as two:
        for _ in range(300):
            number, conn = random.randrange(2), random.choice("abcd")
            state = random.choice([*ConnState])
            (one, two)[number].track(conn, state.name)
            models[number].track(conn, state)
        expected: Counter[str] = Counter()
        for stats in (model.stats() for model in models):
            for state, number in stats.gauges.items():
                expected[f"connections{{{state}}}"] += number
            for state, number in stats.counters.items():
                expected[f"connection_transitions_total{{{state}}}"] += number
        assert shown(one) == shown(two) == +expected


@sharing
def test_a_dead_process_has_no_connections(tmp_path: Path) -> None:
    """Its share of the gauges is gone with the next scrape; what it has counted stays."""
    with process(tmp_path) as one, process(tmp_path) as two:
        one.track("a", "NEW", "ACTIVE")
        two.track("a", "NEW", "ACTIVE")
        two.kill()
        for _ in range(2):
            assert shown(one) == {
                "connections{active}": 1,
                "connection_transitions_total{new}": 2,
                "connection_transitions_total{active}": 2,
            }
        assert {path.name for path in tmp_path.glob("*live*")} == {f"gauge_livesum_{one.pid}.db"}
        assert [path.name for path in tmp_path.glob("*lock*")] == [f"httptrack_lock_{one.pid}"]


@sharing
def test_a_process_that_gets_a_dead_ones_number_begins_with_no_connections(tmp_path: Path) -> None:
    """Even without a scrape in between; the counters go on."""
    with process(tmp_path) as one:
        one.track("a", "NEW", "ACTIVE")
        one.kill()
        with process(tmp_path) as two:
            for path in tmp_path.glob(f"*_{one.pid}*"):
                path.rename(str(path).replace(str(one.pid), str(two.pid)))
            two.track("b", "NEW")
            assert shown(two) == {
                "connections{new}": 1,
                "connection_transitions_total{new}": 2,
                "connection_transitions_total{active}": 1,
            }


@sharing
def test_the_gauges_of_a_process_without_a_tracker_stay(tmp_path: Path) -> None:
    """It cannot be known whether it lives, so they are left to the user."""
    with process(tmp_path) as one, process(tmp_path) as two:
        one.track("a", "NEW")
        two.track("a", "NEW")
        two.kill()
        Path(tmp_path, f"httptrack_lock_{two.pid}").unlink()
        assert shown(one)["connections{new}"] == 2


def failed(program: str, **environment: str) -> str:
    """Return the last line of a failing program's output."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import os\n{program}"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    return ended.stderr.splitlines()[-1]


@sharing
@pytest.mark.parametrize("name", ["PrometheusTracker", "MetricsApp"])
@pytest.mark.parametrize("directory", ["/nowhere", ""])
def test_a_directory_that_is_not_there_is_refused_by_name(name: str, directory: str) -> None:
    """Before prometheus_client fails at some file in it."""
    assert failed(
        f"from trio_httptrack.prometheus import *; {name}()", PROMETHEUS_MULTIPROC_DIR=directory
    ) == (
        f"NotADirectoryError: PROMETHEUS_MULTIPROC_DIR is {directory!r}, which is not a "
        "directory: make it, empty, before the server starts"
    )


def test_a_directory_that_is_named_too_late_is_refused(tmp_path: Path) -> None:
    """prometheus_client looks when it is imported; half of the metrics would be elsewhere."""
    assert failed(
        "from trio_httptrack.prometheus import *\n"
        f"os.environ['PROMETHEUS_MULTIPROC_DIR'] = {str(tmp_path)!r}\nMetricsApp()"
    ).startswith("RuntimeError: PROMETHEUS_MULTIPROC_DIR was changed after prometheus_client")


@sharing
def test_a_write_that_fails_is_made_up_for(tmp_path: Path) -> None:
    """Trio removes an instrument that raises; the next transition installs it again."""
    program = """
import trio
from trio_httptrack import Conn, ConnState
from trio_httptrack.prometheus import PrometheusTracker
from prometheus_client import REGISTRY
tracker = PrometheusTracker()
shared = tracker._shared

async def main():
    gauges, shared._gauges = shared._gauges, None
    tracker.track(Conn(), ConnState.NEW)
    await trio.lowlevel.checkpoint()
    shared._gauges = gauges
    tracker.track(Conn(), ConnState.NEW)
    await trio.lowlevel.checkpoint()
    raise SystemExit(str(REGISTRY.get_sample_value("httptrack_connections", {"state": "new"})))

trio.run(main)
"""
    assert failed(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == "2.0"


@sharing
def test_a_worker_that_is_just_starting_does_not_fail_the_scrape_of_another(tmp_path: Path) -> None:
    """Its file is there a moment before its content."""
    (tmp_path / "counter_4711.db").touch()
    program = """
import trio
from trio_httptrack import Conn, ConnState
from trio_httptrack.prometheus import *
PrometheusTracker().track(Conn(), ConnState.NEW)
sent = []

async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}

async def send(event):
    sent.append(event)

scope = {"type": "http", "method": "GET", "headers": [], "query_string": b""}
trio.run(MetricsApp(), scope, receive, send)
raise SystemExit(str(b'connections{state="new"} 1.0' in sent[1]["body"]))
"""
    assert failed(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == "True"


@sharing
def test_two_trackers_in_a_process_are_refused(tmp_path: Path) -> None:
    """Their files are the same; each would overwrite the other's numbers."""
    assert failed(
        "from prometheus_client import CollectorRegistry\n"
        "from trio_httptrack.prometheus import *\n"
        "PrometheusTracker(); PrometheusTracker(CollectorRegistry())",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    ) == (
        "ValueError: in multiprocess mode a process has one PrometheusTracker only: make it once, "
        "where the application's module is imported"
    )


@sharing
def test_a_process_of_the_same_number_is_refused(tmp_path: Path) -> None:
    """Such as one in another container, on the same volume; it does not wait for ever."""
    program = f"""
import fcntl, shutil
from pathlib import Path
held = open(Path({str(tmp_path)!r}, f"httptrack_lock_{{os.getpid()}}"), "w")
fcntl.flock(held, fcntl.LOCK_EX)
from trio_httptrack.prometheus import *
PrometheusTracker()
"""
    said = failed(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert said.endswith(": give each container a PROMETHEUS_MULTIPROC_DIR of its own")


@sharing
def test_a_lock_that_a_scrape_takes_away_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise no process would ever notice that its process has died."""
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "lock"
    flock = fcntl.flock

    def taken_away(file: Any, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", taken_away)
    with _hold_lock(path), path.open("rb") as other, pytest.raises(BlockingIOError):
        flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
