"""On a Python without what macOS and Windows lack, of which ``nox -s portable`` runs all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LACKING = Path(__file__).parent / "portable"


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(LACKING), *sys.path]), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def error(program: str, **environ: str) -> str:
    """The last line that a program writes which fails."""
    ended = run(program, **environ)
    assert ended.returncode == 1
    return ended.stderr.splitlines()[-1]


def test_everything_can_be_imported() -> None:
    """But the kernel of Linux, and the live view."""
    ended = run("""
from importlib import import_module
from pkgutil import walk_packages
import trio_httptrack
found = {"trio_httptrack"} | {each.name for each in walk_packages(
    trio_httptrack.__path__, "trio_httptrack.", onerror=print
)}
missing = {"_connection.epoll", "top._live", "top._terminal"}
for name in found - {f"trio_httptrack.{each}" for each in missing}:
    import_module(name)
""")
    assert (ended.stdout, ended.stderr) == ("", "")


def test_a_server_serves_and_logs_that_other_processes_cannot_query_it() -> None:
    """There are no Unix sockets: no setting would help."""
    ended = run("""
import httpx, trio
from trio_httptrack import tracked_server
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})
async def main():
    async with tracked_server(app) as server, httpx.AsyncClient() as client:
        print((await client.get(server.urls[0])).text, server.stats().idle_total)
trio.run(main)
""")
    assert ended.stdout == "hello 1\n", ended.stderr
    assert (
        ended.stderr.rstrip()
        .splitlines()[1]
        .endswith(
            "[INFO] Neither other workers nor httptrack top can see this worker: "
            "Python has no Unix sockets on this system"
        )
    )


def test_a_server_in_memory_serves() -> None:
    """For users who test their applications."""
    ended = run("""
import trio
from trio_httptrack.testing import memory_server
from tests.clients import http1
from tests.support import app
async def main():
    async with memory_server(app) as server:
        print(await http1(await server.connect()))
trio.run(main)
""")
    assert ended.stdout == "(200, b'/')\n", ended.stderr


TOP = "from trio_httptrack.top import main; main('httptrack top', {})"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        (
            TOP.format(["--once"]),
            "httptrack top: Python has no Unix sockets on this system: name the page's URL",
        ),
        (
            "import trio_httptrack.top._live",
            (
                "ModuleNotFoundError: a live view needs a POSIX terminal, "
                "which this system does not have; --once prints it as text"
            ),
        ),
        (
            (
                "from hypercorn.config import Config; from trio_httptrack import tracked_server\n"
                "import trio\n"
                "async def main():\n"
                "    config = Config.from_mapping(bind='127.0.0.1:0', runtime_dir='run')\n"
                "    async with tracked_server(print, config): pass\n"
                "trio.run(main)"
            ),
            (
                "trio_httptrack._hypercorn.settings.SettingError: runtime_dir: "
                "Python has no Unix sockets on this system"
            ),
        ),
    ],
)
def test_what_does_not_work_fails_with_one_line(program: str, says: str) -> None:
    """With what does."""
    assert error(program) == says


def test_processes_cannot_share_their_metrics(tmp_path: Path) -> None:
    """Without file locks, no process would know which other process has died."""
    program = "import trio_httptrack.prometheus as ours; ours.PrometheusTracker()"
    assert error(program, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) == (
        "RuntimeError: multiprocess mode needs file locks (fcntl), which this system does not "
        "have: unset PROMETHEUS_MULTIPROC_DIR, and start one worker"
    )
    assert run(program).returncode == 0
