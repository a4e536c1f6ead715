"""The units of the documentation, without systemd: what their commands do.

As systemd does, the tests listen, pass the socket as file descriptor 3, and run the commands of a
reload one after the other until one fails.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypercorn.config import Config

from .hypercorn_process import SECONDS, get, run_to_its_end
from .support import OLD_HYPERCORN

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = Path(sys.executable).parent
MYAPP = """\
import trio_httptrack

tracker = trio_httptrack.StatsTracker()


async def app(scope, receive, send):
    assert scope["type"] == "http"
    headers = [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"one"})
"""
HOOK = "from trio_httptrack import hook\n\nconn_state = hook('myapp:tracker')\n"


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit, with the scripts of this environment."""
    settings: dict[str, list[str]] = {}
    text = (EXAMPLES / name).read_text().replace("/srv/myapp/.venv/bin", str(SCRIPTS))
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        settings.setdefault(key, []).append(value)
    return settings


def commands(setting: str, **variables: str) -> list[list[str]]:
    """The commands of a setting of the service, with its variables as systemd puts them in."""
    service = unit("myapp.service")
    for assignment in service["Environment"]:
        name, _, value = shlex.split(assignment)[0].partition("=")
        variables[name] = value
    return [
        re.sub(r"\$(\w+)", lambda match: variables[match[1]], command).split()
        for command in service[setting]
    ]


class Service:
    """A service that runs."""

    def __init__(self, folder: Path, url: str, process: trio.Process) -> None:
        self.url, self.process = url, process
        self.log = ""
        self._folder = folder
        self._logged = trio.lowlevel.ParkingLot()

    async def read_log(self) -> None:
        assert self.process.stderr is not None
        async for chunk in self.process.stderr:
            self.log += chunk.decode()
            self._logged.unpark_all()

    async def wait_for_starts(self, number: int) -> None:
        while self.log.count("Running on") < number:
            await self._logged.park()

    async def reload(self) -> tuple[int, str]:
        """Run the commands until one fails; return the last one's exit status and stderr."""
        status, stderr = 0, ""
        for command in commands("ExecReload", MAINPID=str(self.process.pid)):
            if status == 0:
                status, _, stderr = await run_to_its_end(*command, cwd=self._folder)
        return status, stderr


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Service]:
    """Start the service, and stop it as ``KillMode=mixed`` does, by a SIGTERM to the parent."""
    (command,) = commands("ExecStart")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        process = await trio.lowlevel.open_process(
            ["bash", "-c", f'exec "$@" 3<&{number}', "bash", *command],
            cwd=folder,
            stderr=subprocess.PIPE,
            pass_fds=[number],
            start_new_session=True,
        )
        service = Service(folder, "http://{}:{}".format(*listener.getsockname()), process)
    assert process.stderr is not None
    try:
        with trio.fail_after(SECONDS):
            async with process.stderr, trio.open_nursery() as nursery:
                nursery.start_soon(service.read_log)
                await service.wait_for_starts(1)
                yield service
                process.terminate()
                assert await process.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the worker, too
        with trio.CancelScope(shield=True):
            await process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "myapp.py").write_text(MYAPP)
    (tmp_path / "hypercorn_conf.py").write_text(HOOK)
    return tmp_path


@pytest.mark.skipif(OLD_HYPERCORN, reason="Hypercorn 0.17 knows no SIGHUP")
async def test_a_reload_with_good_code_starts_the_new_code(folder: Path) -> None:
    """On the same socket, in the same main process."""
    async with started(folder) as service:
        assert await get(service.url) == b"one"
        # Of another size: Python takes what it has compiled if size and second are the same.
        (folder / "myapp.py").write_text(f"{MYAPP.replace('one', 'two')}# new\n")
        assert await service.reload() == (0, "")
        await service.wait_for_starts(2)
        assert await get(service.url) == b"two"


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        (
            "myapp.py",
            "async def app(",
            "myapp:app cannot be imported: SyntaxError: '(' was never closed (myapp.py, line 1)",
        ),
        (
            "hypercorn_conf.py",
            f"{HOOK}drain_idle_timeout = -1\n",
            "drain_idle_timeout must be a number of seconds, 0 or more, not -1",
        ),
    ],
    ids=["code", "setting"],
)
async def test_a_reload_that_would_end_the_server_fails_and_the_server_goes_on(
    file: str, content: str, line: str, folder: Path
) -> None:
    """Its worker is not stopped."""
    async with started(folder) as service:
        (folder / file).write_text(content)
        assert await service.reload() == (1, f"trio_httptrack: {line}\n")
        assert await get(service.url) == b"one"
    assert service.log.count("Running on") == 1


def test_systemd_waits_for_longer_than_a_stop_may_take() -> None:
    """For the drain and for the end of the lifespan."""
    (timeout,) = unit("myapp.service")["TimeoutStopSec"]
    (command,) = commands("ExecStart")
    graceful = command[command.index("--graceful-timeout") + 1]
    assert int(timeout) > int(graceful) + Config.shutdown_timeout


def test_the_socket_unit_opens_the_one_socket_that_the_service_takes() -> None:
    """The first file descriptor that systemd passes is 3."""
    (command,) = commands("ExecStart")
    assert command[command.index("--bind") + 1] == "fd://3"
    assert [key for key in unit("myapp.socket") if key.startswith("Listen")] == ["ListenStream"]
    assert len(unit("myapp.socket")["ListenStream"]) == 1
