"""The examples are tests themselves; here is what the documentation makes of them."""

from __future__ import annotations

import re
from pathlib import Path

from trio.testing import MockClock

from trio_httptrack._hypercorn.drain import DEFAULTS
from trio_httptrack.testing import RecordingTracker, memory_server

from .clients import http1
from .support import app

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "testing.rst").read_text()


def test_the_pages_show_each_example() -> None:
    """And no others."""
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.rst"))
    shown = re.findall(r"literalinclude:: \.\./examples/(\S+)", pages)
    assert sorted(shown) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))
    assert len(shown) == 6


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
