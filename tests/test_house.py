"""The arrows between the modules, which point one way:

integrations -> _hypercorn -> _connection -> the core, and _hypercorn -> _monitor -> the core.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import trio_httptrack.testing

PACKAGE = Path(trio_httptrack.__file__).parent
CORE = {
    "_states",
    "_scoped",
    "_trackers",
    "_conns",
    "_stats",
    "_hijacks",
    "_limits",
    "_logs",
    "_local",
}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, ours without the package's name."""
    here = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = here[: len(here) - node.level] if node.level else ()
            module = ".".join((*parents, *filter(None, [node.module])))
            names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {module} if module else set(names)
    return found


def is_ours(path: Path) -> bool:
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_the_core_imports_trio_and_the_standard_library_only() -> None:
    """The trackers can be used, and reasoned about, without any server."""
    allowed = CORE | set(sys.stdlib_module_names) | {"trio", "exceptiongroup"}
    for name in CORE:
        top_levels = {module.split(".")[0] for module in imports(PACKAGE / f"{name}.py")}
        assert top_levels <= allowed, name


def test_only_the_hypercorn_room_knows_hypercorns_internals() -> None:
    """Outside of it, Hypercorn's Config, its types and wrap_app are all that is imported."""
    allowed = {"hypercorn.config", "hypercorn.typing", "hypercorn.utils"}
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "_hypercorn":
            continue
        assert {m for m in imports(path) if m.startswith("hypercorn")} <= allowed, path.name


def ours(path: Path) -> set[str]:
    """What a file imports of this package."""
    return {m for m in imports(path) if is_ours(PACKAGE / m.replace(".", "/"))}


def test_the_hypercorn_room_knows_connections_monitors_and_the_core_only() -> None:
    """It never imports what stands on it."""
    for path in (PACKAGE / "_hypercorn").glob("*.py"):
        below = ("_hypercorn", "_connection", "_monitor")
        assert {m for m in ours(path) if m.split(".")[0] not in below} <= CORE, path.name


def test_a_monitor_knows_the_core_only() -> None:
    """It can be queried without a server."""
    allowed = CORE | set(sys.stdlib_module_names) | {"_monitor", "trio"}
    for path in (PACKAGE / "_monitor").glob("*.py"):
        top_levels = {module.split(".")[0] for module in imports(path)}
        assert top_levels <= allowed, path.name


def test_a_connection_knows_trio_and_the_protocol_libraries_only() -> None:
    """And no Hypercorn, so that no server is needed to reason about it."""
    allowed = CORE | set(sys.stdlib_module_names) | {"_connection", "exceptiongroup"}
    for path in (PACKAGE / "_connection").glob("*.py"):
        top_levels = {module.split(".")[0] for module in imports(path)}
        assert top_levels <= allowed | {"trio", "h11", "hpack", "wsproto"}, path.name


def test_nothing_imports_in_a_circle() -> None:
    """What a module needs of the one above it, it declares itself; types are no excuse."""
    graph = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ours(path)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")
    rooms = ("exchange", "websocket", "http2_stream", "http2", "connection", "drain")
    places = [order.index(f"_connection.{room}") for room in rooms]
    assert places == sorted(places)


def test_nothing_imports_hypercorns_protocols() -> None:
    """The protocols are our own."""
    for path in PACKAGE.rglob("*.py"):
        assert not {m for m in imports(path) if m.startswith("hypercorn.protocol")}, path.name


def test_nothing_needs_what_is_for_tests() -> None:
    """A server in production never imports trio_httptrack.testing."""
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "testing":
            assert not {m for m in imports(path) if m.startswith("testing")}, path.name


def test_every_public_name_has_the_module_that_it_is_imported_from() -> None:
    """Tracebacks and documentation show the public path, not the private module."""
    for package in (trio_httptrack, trio_httptrack.testing):
        for name in package.__all__:
            assert getattr(package, name).__module__ == package.__name__


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("prometheus", "prometheus_client", "prometheus"),
        ("opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_without_its_extra_a_module_says_how_to_install_it(
    module: str, package: str, extra: str
) -> None:
    """And nothing else of the library needs it."""
    program = f"""
import sys
sys.modules[{package!r}] = None
import trio_httptrack, trio_httptrack.config, trio_httptrack.status, trio_httptrack.testing
try:
    import trio_httptrack.{module}
except ModuleNotFoundError as error:
    print(error)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.startswith(f"trio_httptrack.{module} needs {package}")
    assert ended.stdout.endswith(f": pip install 'trio-httptrack[{extra}]'\n")


def test_the_locale_does_not_matter() -> None:
    """As in a container without a locale, with a Python that follows it."""
    modules = "trio_httptrack.status, trio_httptrack.testing"
    subprocess.run(
        [sys.executable, "-X", "utf8=0", "-X", "warn_default_encoding", "-c", f"import {modules}"],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        check=True,
    )
