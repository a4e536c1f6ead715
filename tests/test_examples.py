"""The examples are tests themselves; here is what the documentation makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import httpx
import pytest
from prometheus_client import CollectorRegistry
from trio.testing import MockClock

from trio_httptrack import tracked_server
from trio_httptrack._hypercorn import statsd
from trio_httptrack._hypercorn.drain import DEFAULTS
from trio_httptrack.prometheus import PrometheusTracker
from trio_httptrack.testing import RecordingTracker, memory_server

from .clients import http1
from .hypercorn_process import hypercorn
from .support import app
from .test_opentelemetry import Receiver

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "testing.rst").read_text()
MONITORING = (ROOT / "docs" / "monitoring.rst").read_text()


def test_the_pages_show_each_example() -> None:
    """And no others."""
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.rst"))
    shown = re.findall(r"literalinclude:: \.\./examples/(\S+\.py)", pages)
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert len(shown) == 9


def test_the_page_about_reloads_has_the_settings_as_they_are() -> None:
    """Each with its default."""
    page = (ROOT / "docs" / "reloads.rst").read_text()
    table = dict(re.findall(r"\* - ``(drain_\w+)``\n     - (\S+)\n", page))
    assert {name: float(default) for name, default in table.items()} == DEFAULTS


async def test_the_record_on_the_page_is_what_it_says(autojump_clock: MockClock) -> None:
    """But for the number of the connection, which counts all of a process."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, keep_alive_timeout=300) as server:
        stream = await server.connect()
        await http1(stream)
        await stream.receive_some()
    assert f"   Conn 1 {repr(tracker).split(' ', 2)[2]}\n" in PAGE


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """The page's config file, for one of the examples."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples"))

    def write(module: str) -> str:
        block = re.search(r"   # hypercorn_conf\.py.*\n((?:   .*\n|\n)+)", MONITORING)
        assert block is not None
        path = tmp_path / "hypercorn_conf.py"
        path.write_text(dedent(block[1]).replace("metrics:", f"{module}:"))
        return f"file:{path}"

    return write


async def get(url: str) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).text


async def test_the_example_for_prometheus_adds_up_its_workers(
    conf: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As the page says: with a directory, and several workers."""
    directory = tmp_path / "shop"
    directory.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory))
    async with hypercorn("-k", "trio", "-w", "2", "-c", conf("metrics"), "metrics:app") as server:
        for _ in range(10):
            assert await get(server.url) == "Hello!"
        metrics = await get(f"{server.url}/metrics")
    assert 'httptrack_connection_transitions_total{state="new"} 11.0\n' in metrics


async def test_the_example_for_opentelemetry_exports_from_each_worker(
    conf: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an instance of its own for each, the last time when it ends."""
    collector = Receiver()
    async with tracked_server(collector) as receiving:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiving.urls[0])
        async with hypercorn(
            "-k", "trio", "-w", "2", "-c", conf("telemetry"), "telemetry:app"
        ) as server:
            for _ in range(10):
                assert await get(server.url) == "Hello!"
    closed: dict[str, int] = {}
    for request in collector.requests:
        (metrics,) = request.resource_metrics
        found = {each.key: each.value.string_value for each in metrics.resource.attributes}
        assert found["service.name"] == "shop"
        for metric in metrics.scope_metrics[0].metrics:
            if metric.name == "http.server.connection.duration":
                count = sum(point.count for point in metric.histogram.data_points)
                closed[found["service.instance.id"]] = count
    assert len({str(request.resource_metrics[0].resource) for request in collector.requests}) == 2
    assert sum(closed.values()) == 10


async def test_the_example_of_a_status_page_shows_the_shop(conf: Callable[[str], str]) -> None:
    """Mounted beside it."""
    command = ("-k", "trio", "-w", "0", "-c", conf("status_page"), "status_page:app")
    async with hypercorn(*command) as server:
        assert await get(server.url) == "Hello!"
        assert "<h1>Connections</h1>" in await get(f"{server.url}/status")


def test_the_page_about_statsd_has_the_names_as_they_are() -> None:
    """Which are those of the module that sends them."""
    assert statsd.__doc__ is not None
    for line in re.findall(r"^ +(httptrack\.\S+)", statsd.__doc__, re.MULTILINE):
        assert f"   {line} " in MONITORING


def test_the_page_has_the_names_of_prometheus_as_they_are() -> None:
    """In its queries and in those of the dashboard, too."""
    registry = CollectorRegistry()
    PrometheusTracker(registry)
    names = {sample.name for metric in registry.collect() for sample in metric.samples}
    dashboard = (ROOT / "examples" / "grafana-dashboard.json").read_text()
    used = set(re.findall(r"httptrack_connection\w+", MONITORING + dashboard))
    assert used <= names
    assert len(used) >= 3
