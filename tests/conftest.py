from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
from trio.testing import MockClock

from trio_httptrack._connection.connection import Connection
from trio_httptrack._hypercorn.worker import Worker

from .pages import EXECUTED, pages
from .pages import blocks as page_blocks
from .support import CERT

# How long an example takes says nothing about the code where other tests run at the same time.
hypothesis.settings.register_profile("without a deadline", deadline=None)
hypothesis.settings.load_profile("without a deadline")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory whose path leaves room for a Unix socket's, which has 107 bytes.

    pytest's own path contains the names of the user, the worker and the test, and may not.
    """
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate for localhost."""
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    CERT.private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


@pytest.fixture(params=["memory", "sockets"])
def clock(request: pytest.FixtureRequest) -> MockClock | None:
    """The clock of a test that runs in memory, which pytest-trio sees; None for real sockets."""
    return MockClock(autojump_threshold=0) if request.param == "memory" else None


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """What the servers of a test make of the streams that they accept, to look into them."""
    made: list[Connection] = []
    make_connection = Worker.make_connection

    def make(worker: Worker, *args: Any) -> Connection:
        made.append(make_connection(worker, *args))
        return made[-1]

    monkeypatch.setattr(Worker, "make_connection", make)
    return made


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process for each core for the whole suite, none beside our own for a part of it."""
    return None if config.args_source is pytest.Config.ArgsSource.TESTPATHS else 0


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How much of the documentation has been run."""
    properties = [
        each
        for report in terminalreporter.stats.get("passed", ())
        for each in report.user_properties
    ]
    executed = sum(number for name, number in properties if name == EXECUTED)
    if executed:
        blocks = [block for page in pages() for block in page_blocks(page)]
        others = Counter(block.elsewhere for block in blocks if block.elsewhere is not None)
        terminalreporter.write_line(
            f"code blocks of README and docs: {executed} of {len(blocks)} executed, "
            + ", ".join(f"{number} by {who}" for who, number in others.items())
        )
