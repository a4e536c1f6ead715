"""The examples are tests themselves; here is what the documentation makes of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from trio_httptrack import tracked_server
from trio_httptrack._hypercorn import statsd
from trio_httptrack.prometheus import PrometheusTracker

from .hypercorn_process import hypercorn
from .test_opentelemetry import Receiver

ROOT = Path(__file__).parent.parent
HOWTO = ROOT / "docs" / "howto"


def test_the_pages_show_each_example() -> None:
    """And no others."""
    pages = "".join(path.read_text() for path in HOWTO.glob("*.rst"))
    shown = re.findall(r"(?:literalinclude:: |:download:`.*<)\.\./\.\./examples/([\w.-]+)", pages)
    assert sorted(shown) == sorted(
        path.name for path in (ROOT / "examples").iterdir() if path.is_file()
    )
    assert len(shown) == 15


@pytest.fixture
def conf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """A config file, for one of the examples."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples"))

    def write(module: str) -> str:
        path = tmp_path / "hypercorn_conf.py"
        path.write_text(
            f"from trio_httptrack import hook\n\nconn_state = hook('{module}:tracker')\n"
        )
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


def test_the_page_about_statsd_has_the_names_as_they_are() -> None:
    """Which are those of the module that sends them."""
    assert statsd.__doc__ is not None
    page = (HOWTO / "statsd.rst").read_text()
    names = re.findall(r"^ +(httptrack\.\S+) +(\w+)$", statsd.__doc__, re.MULTILINE)
    assert len(names) == 2
    for name, kind in names:
        prefix, _, states = name.rpartition(".")
        (row,) = re.findall(
            rf"^   \* - {kind}\n     - ``{prefix}\.`` and (.+)$", page, re.MULTILINE
        )
        assert re.findall("``(.+?)``", row) == states.split("|")


def test_the_page_has_the_names_of_prometheus_as_they_are() -> None:
    """In its queries and in those of the dashboard, too."""
    registry = CollectorRegistry()
    PrometheusTracker(registry)
    metrics = list(registry.collect())
    names = {sample.name for metric in metrics for sample in metric.samples}
    names |= {f"{metric.name}_total" for metric in metrics if metric.type == "counter"}
    page = (HOWTO / "prometheus.rst").read_text()
    dashboard = (ROOT / "examples" / "grafana-dashboard.json").read_text()
    used = set(re.findall(r"httptrack_connection\w+", page + dashboard))
    assert used <= names
    assert len(used) >= 3
