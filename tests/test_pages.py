"""README and docs do what they say, block by block."""

from __future__ import annotations

import os
import re
import socket
import sys
from ast import literal_eval
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config

from trio_httptrack import tracked_server
from trio_httptrack._hypercorn.settings import DEFAULTS

from . import pages
from .hypercorn_process import check, failing_hypercorn, get, hypercorn
from .test_opentelemetry import Receiver

PAGES = [page for page in pages.pages() if pages.blocks(page)]
README, DOCS = pages.ROOT / "README.md", pages.DOCS
SERVERS = {README: 2, DOCS / "howto" / "hypercorn.md": 6}


def name(page: Path) -> str:
    return str(page.relative_to(pages.ROOT))


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """In which the commands are this Python's."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


# What the server of these pages shares with others, it shares as POSIX does.
POSIX = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets, or locks of files"
)
SHARING = {"prometheus.rst", "top.md"}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[POSIX] * (page.name in SHARING)) for page in PAGES],
    ids=name,
)
async def test_every_code_block_does_what_its_page_says(
    page: Path,
    tmp_path: Path,
    environ: dict[str, str],
    record_property: Callable[[str, object], None],
) -> None:
    """Files, commands and what they print, from the first block to the last."""
    if page.stem == "reloads" and version("hypercorn").startswith("0.17"):
        pytest.skip("as the page says, Hypercorn 0.17 dies of a SIGHUP")
    if page.stem == "testing" and sys.version_info < (3, 11):
        pytest.skip("as the page says, an error has notes with Python 3.11 and later")
    if page.stem == "fastapi" and find_spec("fastapi.sse") is None:
        pytest.skip("as the page says, an old FastAPI closes dependencies earlier")
    async with tracked_server(Receiver()) as collector:
        environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.urls[0]
        reader = await pages.follow(page, tmp_path, environ)
    assert reader.executed
    record_property(pages.EXECUTED, len(reader.executed))
    if page in SERVERS:  # each of its servers was a tracked one
        totals = "Connections: new 0, active 0, idle 0; in all:"
        assert reader.transcript.count(totals) == SERVERS[page]


LIES = {
    "`false` failed with status 1": "```console\nfalse\n```",
    "failed with status 1": "```console\nfalse | cat\n```",
    "`true` should fail": "```console\ntrue  # fails\n```",
    "not printed: two": "```console\necho one\n```\n```text\ntwo\n```",
    "not printed: one": "```console\necho one; echo two\n```\n```text\ntwo\none\n```",
    "not printed: three": "```console\necho two three\n```\n```text\ntwo\nthree\n```",
    "not printed: earlier": (
        "```console\necho earlier\n```\n```console\necho later\n```\n```text\nearlier\n```"
    ),
    "not printed: idle 1.0": "```console\necho idle 2.0\n```\n```text\nidle 1.0\n```",
    "not printed: 200 OK": "```console\necho 503 OK\n```\n```text\n200 OK\n```",
    "not printed: 1 passed": "```console\necho 11 passed\n```\n```text\n1 passed\n```",
    "unused.py is not used": "```python\n# unused.py\n```\n```console\ntrue\n```",
    "twice.py is not used": (
        "```python\n# twice.py\n```\n```console\npython -c 'import twice'\n```\n"
        "```python\n# twice.py\n1 / 0\n```\n```console\ntrue\n```"
    ),
    "app.toml is not used": "```toml\n# app.toml\n```\n```console\necho app.tomlx\n```",
    "no extra of that name": "```console\npip install 'trio-httptrack[nothing]'\n```",
    "nobody knows what to do with a block of 'perl'": "```perl\nprint 1\n```",
    "must be a comment": "```python\nprint(1)\n```",
    "the server has ended\n": "```console\nhypercorn -k trio nothing:app\n```",
    "ended with status 3": (
        "```python\n# serve.py\nimport signal, sys\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(3))\n"
        "print('Running on http://127.0.0.1:1')\nsignal.pause()\n```\n"
        "```console\npython serve.py\n```"
    ),
}


@pytest.mark.parametrize("complaint", LIES)
def test_a_page_that_does_not_do_what_it_says_fails(
    complaint: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    """In each of the ways in which it may not."""
    page = tmp_path / "page.md"
    page.write_text(f"{LIES[complaint]}\n")
    with pytest.raises(pages.PageError, match=re.escape(complaint)):
        trio.run(pages.follow, page, tmp_path, environ)


def test_a_page_in_the_other_format_is_read_as_well(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Its blocks do not differ."""
    page = tmp_path / "page.rst"
    page.write_text(".. code-block:: console\n\n   echo one\n\n.. code-block:: text\n\n   two\n")
    with pytest.raises(pages.PageError, match="not printed: two"):
        trio.run(pages.follow, page, tmp_path, environ)


async def test_a_request_whose_response_is_an_error_fails_the_page(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """Where ``curl`` alone would be content."""
    async with tracked_server(refuse) as server:
        page = tmp_path / "page.md"
        page.write_text(f"```console\ncurl {server.urls[0]}\n```\n")
        with pytest.raises(pages.PageError, match="failed with status 22"):
            await pages.follow(page, tmp_path, environ)


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body"})


def test_a_command_that_does_not_exit_is_reported_and_killed(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is ended."""
    monkeypatch.setattr(pages, "SECONDS", 0.1)
    page = tmp_path / "page.md"
    page.write_text("```console\nsleep 1000\n```\n")
    with pytest.raises(pages.PageError, match="does not come to an end"):
        trio.run(pages.follow, page, tmp_path, environ)


def test_the_reference_has_the_settings_as_they_are() -> None:
    """Each with its default; Hypercorn's too."""
    page = (DOCS / "reference" / "server.rst").read_text()
    cells = re.findall(r"\* - ``(\w+)``\n     - ([\d.]+|True|False|none)\n", page)
    rows = {name: literal_eval(default.capitalize()) for name, default in cells}
    assert {name: rows[name] for name in rows if name in DEFAULTS} == DEFAULTS
    hypercorns = {name: rows[name] for name in rows if name not in {*DEFAULTS, "conn_state"}}
    assert len(hypercorns) == 16
    assert hypercorns == {name: getattr(Config, name) for name in hypercorns}


@pytest.mark.parametrize(
    ("number", "worker", "conn_state"),
    [
        (0, "trio", "hook('myapp:trackr')"),
        (1, "trio", "hook('myap:tracker')"),
        (2, "trio", "trio_httptrack.StatsTracker()"),
        (3, "trio", "hook('myapp')"),
        (4, "trio", "hook('trio_httptrack.config:tracker'); keep_alive_timeout = '5'"),
        (5, "trio", "hook('trio_httptrack.config:tracker'); kep_alive_timeout = 5"),
        (6, "asyncio", "hook('myapp:tracker')"),
    ],
)
async def test_what_hypercorn_says_when_it_does_not_start_is_on_the_page(
    number: int, worker: str, conn_state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table's order; what differs from one application to the next is a … there."""
    page = (DOCS / "howto" / "hypercorn.md").read_text()
    lines = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(lines) == 8
    (tmp_path / "myapp.py").write_text("import trio_httptrack\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = tmp_path / "hypercorn_conf.py"
    config.write_text(
        f"import trio_httptrack\nfrom trio_httptrack import hook\nconn_state = {conn_state}\n"
        "del trio_httptrack, hook\n"
    )
    _, stderr = await failing_hypercorn("-k", worker, "-c", f"file:{config}", "ways_in.unaware:app")
    assert re.search(re.escape(lines[number]).replace("…", ".*"), stderr), stderr


async def test_the_command_for_kubernetes_serves_what_its_probe_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the port of the probe."""
    manifest = (pages.ROOT / "examples" / "kubernetes.yaml").read_text()
    listed = re.search(r"command:\s+\[(hypercorn.+?)\]", manifest, re.DOTALL)
    assert listed is not None
    command = [argument.strip().strip('"') for argument in listed[1].split(",")]
    probe = re.search(r"httpGet: { path: (\S+), port: (\d+) }", manifest)
    assert probe is not None
    bind = command.index("--bind")
    assert command.pop(bind) == "--bind"
    assert command.pop(bind) == f"0.0.0.0:{probe[2]}"
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT / "examples"))
    async with hypercorn(*command[1:]) as server:
        assert await get(f"{server.url}{probe[1]}") == b""
    assert "Connections: new 0, active 0, idle 0; in all: accepted 1" in server.stderr


async def test_the_check_of_the_image_is_that_of_its_command() -> None:
    """With the same arguments; and it succeeds."""
    manifest = (pages.ROOT / "examples" / "kubernetes.yaml").read_text()
    command = re.search(r"command:\s+\[hypercorn, (.+?)\]", manifest, re.DOTALL)
    (block,) = (
        each for each in pages.blocks(DOCS / "howto" / "reloads.rst") if each.kind == "dockerfile"
    )
    assert command is not None
    arguments = [argument.strip().strip('"') for argument in command[1].split(",")]
    assert block.text.split() == ["RUN", "httptrack", "check", *arguments]
    status, _, stderr = await check(*arguments, cwd=pages.ROOT / "examples")
    assert (status, stderr) == (0, "")
