"""What the documentation has for Prometheus, as it stands there."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ..pages import blocks, pages
from .prometheus_server import Prometheus
from .scenario import Observed

BLOCKS = [block for page in pages() for block in blocks(page) if block.kind == "promql"]
QUERIES = [query for block in BLOCKS for query in block.text.splitlines()]


def test_there_are_queries() -> None:
    """Those of Prometheus itself and those behind an OpenTelemetry collector."""
    assert len(BLOCKS) == 2
    assert len(QUERIES) == 11


@pytest.mark.parametrize("query", QUERIES)
async def test_each_query_is_understood(
    query: str, prometheus: Prometheus, observed: Observed
) -> None:
    """And returns data, where it is for what is scraped here."""
    found = await prometheus.query(query, observed.after_load.at)
    assert bool(found) == ("httptrack" in query)


def test_prometheus_understands_its_configuration(tmp_path: Path) -> None:
    """With two targets."""
    (block,) = (b for page in pages() for b in blocks(page) if b.file == "prometheus.yml")
    path = tmp_path / "prometheus.yml"
    path.write_text(block.text)
    command = ["promtool", "check", "config", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert block.text.count("127.0.0.1:800") == 2
