"""The queries of the documentation, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from .prometheus_server import Prometheus
from .scenario import Observed

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.rst").read_text()
BLOCKS = re.findall(r"^\.\. code-block:: promql\n\n((?:   .+\n)+)", PAGE, re.MULTILINE)
QUERIES = [query for block in BLOCKS for query in dedent(block).splitlines()]


def test_there_are_queries() -> None:
    """Those of Prometheus itself and those behind an OpenTelemetry collector."""
    assert len(BLOCKS) == 2
    assert len(QUERIES) == 9


@pytest.mark.parametrize("query", QUERIES)
async def test_each_query_is_understood(
    query: str, prometheus: Prometheus, observed: Observed
) -> None:
    """And returns data, where it is for what is scraped here."""
    found = await prometheus.query(query, observed.after_load.at)
    assert bool(found) == ("httptrack" in query)
