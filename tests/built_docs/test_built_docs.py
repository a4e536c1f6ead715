"""What ``nox -s docs`` has built: nothing is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from sphinx.util.inventory import InventoryFile

from trio_httptrack._states import TRANSITIONS

from .. import pages
from ..public import Public, public_names

BUILT = pages.DOCS / "_build"
README, *PAGES = pages.pages()


def name(page: Path) -> str:
    return str(page.relative_to(pages.DOCS))


@pytest.fixture(scope="module")
def reference() -> set[str]:
    """Every name that the reference has."""
    with (BUILT / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: f"{base}{name}")
    return {name for role in inventory for name in inventory[role] if role.startswith("py:")}


@pytest.mark.parametrize("public", public_names(), ids=lambda public: public.path)
def test_every_public_name_is_in_the_reference(public: Public, reference: set[str]) -> None:
    """Where links and searches find it."""
    assert public.path in reference


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "reference"], ids=name)
def test_no_code_block_is_overlooked(page: Path) -> None:
    """What Sphinx shows as code is what the tests find on the page, or in what it includes."""
    found = len(pages.blocks(page))
    for marks in re.findall(r':start-after: "(.+)"\n:end-before: "(.+)"', page.read_text()):
        begins, ends = (line_of(mark) for mark in marks)
        found += sum(begins < block.line < ends for block in pages.blocks(README))
    html = (BUILT / page.relative_to(pages.DOCS)).with_suffix(".html").read_text()
    assert len(re.findall(r'<div class="(?:doctest )?highlight-', html)) == found


def line_of(mark: str) -> int:
    readme = README.read_text()
    return readme.count("\n", 0, readme.index(mark)) + 1


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "reference"], ids=name)
def test_the_reference_has_no_code_but_the_docstrings(page: Path) -> None:
    """Which doctest runs."""
    assert pages.blocks(page) == []
    assert not re.search(r"^(?!\.\. [\w-]+::$).*::$|^ *>>>", page.read_text(), re.MULTILINE)


def test_no_code_block_of_the_readme_is_overlooked() -> None:
    """A parser for Markdown finds as many."""
    tokens = MarkdownIt().parse(README.read_text())
    code = [token for token in tokens if token.type in ("fence", "code_block")]
    assert len(code) == len(pages.blocks(README))


def test_the_diagram_has_each_transition_and_no_other() -> None:
    """It is drawn from the code's own table."""
    html = (BUILT / "explanation" / "states.html").read_text()
    (svg,) = re.findall(r'<svg[^>]*class="state-diagram">.*?</svg>', html, re.DOTALL)
    assert svg.count("marker-end") == sum(map(len, TRANSITIONS.values()))
    assert re.findall(r"<text[^>]*>(\w+)</text>", svg) == [state.name for state in TRANSITIONS]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    """In a clone; Sphinx looks at the links of the pages."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (pages.ROOT / name).read_text())
    assert links
    assert [link for link in links if not (pages.ROOT / link).exists()] == []
