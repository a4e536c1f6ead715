"""What ``nox -s docs`` has built: nothing is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

from trio_httptrack._states import TRANSITIONS

from .. import pages
from ..public import Public, public_names

BUILT = pages.DOCS / "_build"


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


@pytest.mark.parametrize(
    "page",
    [page for page in pages.pages() if page.parent.name != "reference"],
    ids=lambda p: p.stem,
)
def test_no_code_block_is_overlooked(page: Path) -> None:
    """What a page shows as code is what the tests find there and run."""
    if page.name == "README.md":
        return
    html = (BUILT / page.relative_to(pages.DOCS)).with_suffix(".html").read_text()
    included = pages.blocks(pages.ROOT / "README.md") if "README.md" in page.read_text() else []
    shown = re.findall(r'<div class="(?:doctest )?highlight-(\w+)', html)
    found = [block.kind for block in pages.blocks(page)]
    assert len(found) <= len(shown) <= len(found) + len(included)


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
