"""The examples are tests themselves; here is what the documentation makes of them."""

from __future__ import annotations

import re
from pathlib import Path

from trio.testing import MockClock

from trio_httptrack.testing import RecordingTracker, memory_server

from .clients import http1
from .support import app

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "testing.rst").read_text()


def test_the_page_shows_each_example() -> None:
    """And no others."""
    shown = re.findall(r"literalinclude:: \.\./examples/(\S+)", PAGE)
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert len(shown) == 4


async def test_the_record_on_the_page_is_what_it_says(autojump_clock: MockClock) -> None:
    """But for the number of the connection, which counts all of a process."""
    tracker = RecordingTracker()
    async with memory_server(app, tracker=tracker, keep_alive_timeout=300) as server:
        stream = await server.connect()
        await http1(stream)
        await stream.receive_some()
    assert f"   Conn 1 {repr(tracker).split(' ', 2)[2]}\n" in PAGE
