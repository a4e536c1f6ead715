"""What README.md promises beside its code blocks, which ``test_pages`` runs."""

from __future__ import annotations

import re
from pathlib import Path

from . import pages

README = pages.ROOT / "README.md"


def test_there_are_five_ways_in() -> None:
    """None of the examples has got lost, nor grown beyond ten lines."""
    files = {block.file: block.text for block in pages.blocks(README) if block.file}
    assert sorted(files) == [
        "block.py",
        "hypercorn.toml",
        "hypercorn_conf.py",
        "installed.py",
        "myapp.py",
        "serve.py",
        "test_timeout.py",
    ]
    for content in files.values():
        _, *lines = filter(None, content.split("\n"))  # the first is its name
        assert len(lines) < 10


def test_every_guarantee_is_the_name_of_a_test() -> None:
    """What the README promises in bold, tests of the same name show."""
    section = README.read_text().partition("## What a tracked server guarantees")[2]
    promises = re.findall(r"^- \*\*(.+?)\.?\*\*", section, re.MULTILINE)
    names = {re.sub(r"\W+", "_", promise).lower() for promise in promises}
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(names) == 15
    assert names <= set(re.findall(r"def test_(\w+)", source))
