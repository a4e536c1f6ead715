"""Every public name is explained, by something that runs, and can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .public import MODULES, Public, public_names

NAMES = public_names()
DOCS = {module.__name__: module.__doc__ or "" for module in MODULES}


def ids(public: Public) -> str:
    return public.path


def test_the_public_names_are_found() -> None:
    """Of each kind: functions, classes, attributes in all the ways that they are written."""
    assert {
        "trio_httptrack.compose",
        "trio_httptrack.config.conn_tracker",
        "trio_httptrack.Conn.client",
        "trio_httptrack.ConnTracker.wait",
        "trio_httptrack.TrackedServer.urls",
        "trio_httptrack.TrackerFunc.track",
    } <= {public.path for public in NAMES}


@pytest.mark.parametrize("public", NAMES, ids=ids)
def test_every_public_name_has_a_docstring(public: Public) -> None:
    """In a sentence at least."""
    assert re.match(r"\S.*[.:]$", public.doc.split("\n\n")[0], re.DOTALL), public.path


@pytest.mark.parametrize("public", [each for each in NAMES if not each.is_attribute], ids=ids)
def test_every_public_name_has_an_example_that_runs(public: Public) -> None:
    """In its docstring; that of a module's value is its module's, where doctest looks for it."""
    module = public.path.rpartition(".")[0]
    example = re.search(rf">>> .*\b{public.name}\b", DOCS[module])
    assert ">>> " in public.doc or example is not None


@pytest.mark.parametrize("public", NAMES, ids=ids)
def test_every_public_name_documents_what_it_raises(public: Public) -> None:
    """Whatever its own code does."""
    of_ours = {
        "HookError": "ValueError",
        "MalformedPathError": "ValueError",
        "NotAPathError": "TypeError",
    }
    _, _, section = public.doc.partition("Raises:")
    documented = set(re.findall(r"^ *([\w.]+): ", section, re.MULTILINE))
    assert {of_ours.get(name, name) for name in public.raised} <= documented


@pytest.mark.parametrize("public", NAMES, ids=ids)
def test_every_public_name_is_in_the_file_for_type_checkers(public: Public) -> None:
    """As a user would write it."""
    source = Path(__file__).with_name("typing_api.py").read_text()
    assert re.search(rf"\b{public.name}\b", source), public.path
