from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from .prometheus_server import Prometheus
from .scenario import Observed, observe


@pytest.fixture(scope="session")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Started when the servers run; it responds after they have stopped, too."""
    with closing(Prometheus(tmp_path_factory.mktemp("prometheus"))) as server:
        yield server


@pytest.fixture(scope="session")
def observed(
    prometheus: Prometheus, tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> Observed:
    """Observe once for all tests, because Prometheus can be queried for any moment."""
    return trio.run(observe, prometheus, tmp_path_factory.mktemp("servers"), certificate)
