"""What README.md promises beside its code blocks, which ``test_pages`` runs."""

from __future__ import annotations

import re
from pathlib import Path

from . import pages

README = pages.ROOT / "README.md"


HYPERCORN = pages.DOCS / "howto" / "hypercorn.md"


def test_the_ways_in_are_short() -> None:
    """No example is missing, and none is longer than ten lines."""
    files = {block.file: block.text for block in pages.blocks(README) if block.file}
    assert sorted(files) == ["hypercorn_conf.py", "myapp.py", "test_timeout.py", "trackers.py"]
    others = {block.file: block.text for block in ways_in(HYPERCORN) if block.file}
    assert sorted(others) == [
        "block.py",
        "hypercorn.toml",
        "hypercorn_conf.py",
        "installed.py",
        "myapp.py",
        "serve.py",
    ]
    for content in [*files.values(), *others.values()]:
        _, *lines = filter(None, content.split("\n"))  # the first is its name
        assert len(lines) < 10


def ways_in(page: Path) -> list[pages.Block]:
    text = page.read_text()
    end = text.count("\n", 0, text.index("## With several workers"))
    return [block for block in pages.blocks(page) if block.line < end]


def test_the_view_in_the_readme_is_the_one_that_is_tested() -> None:
    """``tests/integration/test_top.py`` compares it with what a terminal shows."""
    top = next(b for b in pages.blocks(pages.DOCS / "howto" / "top.md") if b.kind == "output")
    (shown,) = (block for block in pages.blocks(README) if block.kind == "output")
    assert shown.text == top.text


def test_every_guarantee_is_the_name_of_a_test() -> None:
    """What the README promises in bold, tests of the same name show."""
    _, _, rest = README.read_text().partition("## What a tracked server guarantees")
    section = rest.partition("\n## ")[0]
    promises = re.findall(r"^- \*\*(.+?)\.?\*\*", section, re.MULTILINE)
    names = {re.sub(r"\W+", "_", promise).lower() for promise in promises}
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert len(names) == 15
    assert names <= set(re.findall(r"def test_(\w+)", source))
