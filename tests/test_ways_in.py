"""How a tracker gets to a server: by the ``hypercorn`` command, and by the user's own code."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ParamSpec

import hypercorn.asyncio
import hypercorn.trio
import pytest
import trio
from hypercorn.config import Config
from hypercorn.utils import LifespanFailureError
from trio.testing import wait_all_tasks_blocked

from trio_httptrack import (
    Conn,
    ConnState,
    ConnTracker,
    Stats,
    StatsTracker,
    TrackerFunc,
    compose,
    hook,
    install,
    tracked_server,
    wrap,
)
from trio_httptrack._hypercorn import entry as internals
from trio_httptrack._hypercorn import worker
from trio_httptrack._hypercorn.conn_state import resolve

from .hypercorn_process import GET, SECONDS, connect, failing_hypercorn, get, read_all
from .hypercorn_process import hypercorn as hypercorn_command
from .ways_in.stats_app import stats_app
from .ways_in.unaware import app as hello

P = ParamSpec("P")


def limited(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
    """Nothing here takes long; what would hang is broken, and fails."""

    @wraps(test)
    async def limited_test(*args: P.args, **kwargs: P.kwargs) -> None:
        with trio.fail_after(SECONDS):
            await test(*args, **kwargs)

    return limited_test


def local(**settings: Any) -> Config:
    return Config.from_mapping(bind="127.0.0.1:0", **settings)


# The command


def hook_config(directory: Path, path: str) -> str:
    """A Python config file with a hook, as ``-c`` wants it."""
    file = directory / "hypercorn_conf.py"
    file.write_text(f"from trio_httptrack import hook\n\nconn_state = hook({path!r})\n")
    return f"file:{file}"


def toml_config(directory: Path, conn_state: str) -> str:
    """A TOML config file, as ``-c`` wants it."""
    file = directory / "hypercorn.toml"
    file.write_text(f"conn_state = {conn_state}\n")
    return str(file)


if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


@pytest.mark.parametrize("workers", [["-w", "0"], [], ["-w", "2"]], ids=["none", "default", "two"])
async def test_a_hook_in_a_python_config_is_the_applications_own_tracker(
    workers: list[str], tmp_path: Path
) -> None:
    """The application's own tracker has the connection of the request that it handles."""
    config = hook_config(tmp_path, "ways_in.myapp:tracker")
    async with hypercorn_command(
        "-k", "trio", "-c", config, *workers, "ways_in.myapp:app"
    ) as server:
        stats = json.loads(await get(server.url))
    assert (stats["accepted_total"], stats["accepted"], stats["active"]) == (1, 0, 1)
    assert "Traceback" not in server.stderr


async def test_each_of_two_workers_counts_for_itself(tmp_path: Path) -> None:
    """A worker's numbers do not know of the other worker's connections."""
    config = hook_config(tmp_path, "ways_in.myapp:tracker")
    async with hypercorn_command(
        "-k", "trio", "-c", config, "-w", "2", "ways_in.myapp:app"
    ) as server:
        one = json.loads(await get(server.url))
        os.kill(one["pid"], signal.SIGSTOP)  # so that the other one accepts
        other = json.loads(await get(server.url))
        os.kill(one["pid"], signal.SIGCONT)
    assert one["pid"] != other["pid"]
    assert one["accepted_total"] == other["accepted_total"] == 1
    assert server.stderr.count("Connections: new 0, active 0, idle 0; in all: accepted 1,") == 2


async def test_the_ready_made_config_logs_the_totals_of_an_application_that_knows_nothing() -> None:
    """At the end of the worker its log says how many connections there were."""
    async with hypercorn_command(
        "-k", "trio", "-c", "python:trio_httptrack.config", "ways_in.unaware:app"
    ) as server:
        assert await get(server.url) == b"hello"
    assert server.stderr.endswith(
        "[INFO] Connections: new 0, active 0, idle 0; "
        "in all: accepted 1, active 1, idle 0, hijacked 0, closed 1\n"
    )
    assert server.returncode == 0


async def test_an_application_finds_its_numbers_in_the_ready_made_config() -> None:
    """``stats_tracker`` of ``trio_httptrack.config`` is the one of the worker that imports it."""
    async with hypercorn_command(
        "-k", "trio", "-c", "python:trio_httptrack.config", "ways_in.readymade:app"
    ) as server:
        stats = json.loads(await get(server.url))
    assert (stats["accepted_total"], stats["accepted"], stats["active"]) == (1, 0, 1)


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_path_in_a_toml_config_is_the_tracker_of_an_application_that_installs(
    workers: str, tmp_path: Path
) -> None:
    """``install()`` in the application's module is early enough."""
    config = toml_config(tmp_path, '"ways_in.tomlapp:tracker"')
    async with hypercorn_command(
        "-k", "trio", "-c", config, "-w", workers, "ways_in.tomlapp:app"
    ) as server:
        stats = json.loads(await get(server.url))
    assert (stats["accepted_total"], stats["accepted"], stats["active"]) == (1, 0, 1)


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_worker_responds_to_the_request_in_flight_before_sigterm_stops_it(
    workers: str, tmp_path: Path
) -> None:
    """Even if the signal does not come from the parent, and without a parent."""
    config = hook_config(tmp_path, "ways_in.twoparts:tracker")
    async with (
        hypercorn_command(
            "-k", "trio", "-c", config, "-w", workers, "ways_in.twoparts:app"
        ) as server,
        await connect(server.url) as client,
    ):
        await client.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n")
        response = b""
        async for chunk in client:
            response += chunk
            if response.endswith(b"."):
                break
        for _ in range(2):  # as Hypercorn's parent does when another worker has ended first
            os.kill(int(response.rpartition(b"\n")[2][:-1]), signal.SIGTERM)
        await client.send_all(b"body")
        assert await read_all(client) == b"done"
        if workers == "0":
            await server.process.wait()  # by itself: another SIGTERM would be one too many
    assert server.returncode == 0
    assert "Connections: new 0, active 0, idle 0; in all: accepted 1, active 1" in server.stderr


# The command's errors


def check_status(status: int, workers: str) -> None:
    """A worker that failed ends with status 1."""
    if workers == "0":  # else Hypercorn's parent process forgets it, and ends with 0
        assert status == 1


FINE = """
server_name = "here"
server_names = [server_name]
password = "secret"
keepalive = drain_timeout = 30
access_log_path = "-"
_grace_timeout = 30
"""


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            "drain_idle_timeout = -1\n",
            "drain_idle_timeout must be a number of seconds, 0 or more, not -1",
        ),
        # What is spelt like no setting, or like one that is there, too, is not misspelt.
        (
            f"{FINE}grace_timeout = 30\n",
            (
                "grace_timeout: there is no such setting; did you mean graceful_timeout? "
                "(A name of your own can begin with _)"
            ),
        ),
    ],
)
@limited
async def test_an_invalid_setting_stops_the_worker_with_one_line(
    settings: str, line: str, tmp_path: Path
) -> None:
    """Before it accepts."""
    config = hook_config(tmp_path, "ways_in.twoparts:tracker")
    file = tmp_path / "hypercorn_conf.py"
    file.write_text(file.read_text() + settings)
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", config, "-w", "0", "ways_in.twoparts:app"
    )
    assert status == 1
    assert stderr.splitlines()[-1] == f"trio_httptrack: {line}"
    assert "Traceback" not in stderr


@limited
async def test_at_the_start_the_log_says_what_is_tracked_and_how(tmp_path: Path) -> None:
    """The hook, the trackers that it leads to, the protocols and the time of a drain."""
    config = hook_config(tmp_path, "ways_in.twoparts:tracker")
    async with hypercorn_command(
        "-k", "trio", "-c", config, "-w", "0", "ways_in.twoparts:app"
    ) as server:
        await get(server.url)
    (line,) = (line for line in server.stderr.splitlines() if "Tracking" in line)
    assert line.partition("[INFO] ")[2] == (
        "Tracking with ways_in.twoparts:tracker: StatsTracker; HTTP/1.1, h2; drain 3.0 s"
    )


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("ways_in.nowhere:tracker", "there is no module 'ways_in.nowhere'"),
        ("ways_in.myapp:nothing", "has no attribute 'nothing'"),
        ("ways_in.myapp:app", "is not a tracker: it has no track(conn, state); wrap a function"),
    ],
)
async def test_a_hook_that_leads_to_no_tracker_ends_the_worker_with_one_line(
    path: str, reason: str, workers: str, tmp_path: Path
) -> None:
    """The line names the hook and says what is wrong; nothing else is written."""
    config = hook_config(tmp_path, path)
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", config, "-w", workers, "ways_in.myapp:app"
    )
    (line,) = stderr.splitlines()
    assert line.startswith(f"trio_httptrack: hook({path!r}): ")
    assert reason in line
    check_status(status, workers)


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_a_conn_state_in_toml_that_is_no_path_ends_the_worker_with_one_line(
    workers: str, tmp_path: Path
) -> None:
    """As above, where nothing could be said when the config was read."""
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", toml_config(tmp_path, "5"), "-w", workers, "ways_in.tomlapp:app"
    )
    assert stderr == (
        "trio_httptrack: conn_state: 5 is not a tracker: it has no track(conn, state)\n"
    )
    check_status(status, workers)


async def test_an_error_inside_the_module_of_a_hook_shows_its_own_traceback(tmp_path: Path) -> None:
    """A module that exists and cannot be imported is not a wrong path."""
    module = tmp_path / "broken.py"
    module.write_text("import a_module_that_is_not_installed\n")
    config = tmp_path / "hypercorn_conf.py"
    config.write_text(
        f"import sys\n\nsys.path.append({str(tmp_path)!r})\n"
        "from trio_httptrack import hook\n\nconn_state = hook('broken:tracker')\n"
    )
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", f"file:{config}", "-w", "0", "ways_in.unaware:app"
    )
    assert f'File "{module}", line 1, in <module>' in stderr
    assert stderr.endswith(
        "ModuleNotFoundError: No module named 'a_module_that_is_not_installed'\n"
    )
    assert status == 1


@pytest.mark.parametrize("workers", ["0", "1"])
async def test_the_asyncio_worker_refuses_a_hook_with_one_line(
    workers: str, tmp_path: Path
) -> None:
    """Serving untracked without an error would be worse."""
    config = hook_config(tmp_path, "ways_in.myapp:tracker")
    status, stderr = await failing_hypercorn(
        "-k", "asyncio", "-c", config, "-w", workers, "ways_in.myapp:app"
    )
    (line,) = stderr.splitlines()
    assert line.startswith("trio_httptrack: ")
    assert line.endswith(": start it with -k trio, or remove conn_state from its config")
    check_status(status, workers)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    "conn_state",
    [
        "ConnTracker()",
        "compose(hook('ways_in.myapp:tracker'), ConnTracker())",
        "TrackerFunc(print)",
    ],
)
async def test_a_tracker_object_in_a_config_file_ends_the_command_with_one_line(
    conn_state: str, workers: str, tmp_path: Path
) -> None:
    """It cannot be sent to a worker process, and the line says what to write instead."""
    config = tmp_path / "hypercorn_conf.py"
    config.write_text(
        f"from trio_httptrack import ConnTracker, TrackerFunc, compose, hook\n"
        f"conn_state = {conn_state}\ndel ConnTracker, TrackerFunc, compose, hook\n"
    )
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", f"file:{config}", "-w", workers, "ways_in.myapp:app"
    )
    (line,) = stderr.splitlines()
    assert line.startswith("trio_httptrack: ")
    assert " lives in this process and cannot be sent to a worker process; " in line
    assert line.endswith(" conn_state = hook('myapp:tracker')")
    assert status == 1


def test_a_tracker_object_that_is_sent_by_other_programs_is_a_type_error() -> None:
    """Those that catch it go on; and where nothing is sent, it is nothing else."""
    message = "lives in this process and cannot be sent to a worker process"
    with pytest.raises(TypeError, match=message):
        get_context("spawn").Process(target=print, args=(ConnTracker(),)).start()
    with pytest.raises(TypeError, match=message) as caught:
        pickle.dumps(ConnTracker())
    assert caught.type is TypeError


async def test_a_trackers_copy_ends_the_worker_with_one_line(tmp_path: Path) -> None:
    """What was pickled with the config would count unseen by the application."""
    (tmp_path / "own.py").write_text(
        "import trio_httptrack\n"
        "from ways_in.unaware import app\n\n"
        "class Own:\n    def track(self, conn, state): ...\n\n"
        "tracker = Own()\n"
        "trio_httptrack.install()\n"
    )
    config = tmp_path / "hypercorn_conf.py"
    config.write_text(
        f"import sys\n\nsys.path.append({str(tmp_path)!r})\nfrom own import tracker as conn_state\n"
    )
    _, stderr = await failing_hypercorn(
        "-k", "trio", "-c", f"file:{config}", f"{tmp_path / 'own.py'}:app"
    )
    assert stderr.startswith("trio_httptrack: conn_state: <own.Own object at")
    assert stderr.endswith("name that by its import path, conn_state = hook('myapp:tracker')\n")


async def test_a_hook_without_an_attribute_is_refused_where_it_is_written() -> None:
    """It needs no import to see that."""
    with pytest.raises(ValueError, match=r"^hook\('no_colon'\): write it as 'package.module:attri"):
        hook("no_colon")


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("hook('no_colon')", "hook('no_colon'): write it as 'package.module:attribute'\n"),
        ("hook(42)", "hook() takes a tracker's import path, such as 'myapp:tracker', not 42; "),
    ],
)
async def test_a_config_file_with_a_wrong_hook_ends_with_one_line(
    hook: str, says: str, workers: str, tmp_path: Path
) -> None:
    """Though Hypercorn's parent process, which reads the file, catches nothing."""
    config = tmp_path / "conf.py"
    config.write_text(f"from trio_httptrack import hook\n\nconn_state = {hook}\n")
    status, stderr = await failing_hypercorn(
        "-k", "trio", "-c", f"file:{config}", "-w", workers, "ways_in.myapp:app"
    )
    assert stderr.startswith(f"trio_httptrack: {says}")
    assert stderr.count("\n") == 1
    assert status == 1


# One's own code: wrap(), install() and hypercorn.trio.serve()


@limited
async def test_wrap_tracks_what_hypercorn_serves(nursery: trio.Nursery) -> None:
    """``hypercorn.trio.serve`` reports the connections of a wrapped Config."""
    config, tracker = local(), StatsTracker()
    assert wrap(config, tracker) is None
    (url,) = await nursery.start(hypercorn.trio.serve, stats_app(tracker), config)
    stats = json.loads(await get(url))
    assert (stats["accepted_total"], stats["accepted"], stats["active"]) == (1, 0, 1)
    assert tracker.stats() == Stats(accepted_total=1, active_total=1, closed_total=1)


@limited
async def test_wrap_keeps_and_returns_the_tracker_that_was_there(nursery: trio.Nursery) -> None:
    """For each transition the older one is called first."""
    calls: list[tuple[str, ConnState]] = []
    first = TrackerFunc(lambda conn, state: calls.append(("first", state)))
    second = TrackerFunc(lambda conn, state: calls.append(("second", state)))
    config = local(conn_state=first)
    assert wrap(config, second) is first
    (url,) = await nursery.start(hypercorn.trio.serve, hello, config)
    await get(url)
    states = [ConnState.NEW, ConnState.ACTIVE, ConnState.CLOSED]
    assert calls == [(name, state) for state in states for name in ("first", "second")]


@limited
async def test_wrap_lets_a_conn_tracker_run_last(nursery: trio.Nursery) -> None:
    """Even if it was there first: when its wait() returns, the other trackers are complete."""
    conns, seen = ConnTracker(), list[int]()
    config = local(conn_state=conns)
    wrap(config, TrackerFunc(lambda conn, state: seen.append(conns.count)))
    (url,) = await nursery.start(hypercorn.trio.serve, hello, config)
    await get(url)
    assert seen == [0, 1, 1]  # NEW, ACTIVE, CLOSED: each before the count changed
    assert conns.count == 0


@limited
async def test_a_tracker_that_removes_itself_is_called_until_the_server_ends(
    nursery: trio.Nursery,
) -> None:
    """The trackers of a server are those that its Config named when it started."""
    seen: list[str] = []

    def once(conn: Conn, state: ConnState) -> None:
        seen.append(str(state))
        config.conn_state = None  # type: ignore[attr-defined]

    config = local()
    wrap(config, TrackerFunc(once))
    (url,) = await nursery.start(hypercorn.trio.serve, hello, config)
    for _ in range(2):
        assert await get(url) == b"hello"
    assert seen == ["new", "active", "closed"] * 2


@pytest.mark.parametrize(("there", "added"), [(None, 5), (5, StatsTracker())])
async def test_wrap_refuses_what_is_not_a_tracker(there: object, added: Any) -> None:
    """Whether it is added or was there; the Config is left as it was."""
    config = local(conn_state=there)
    with pytest.raises((TypeError, ValueError), match="5 is not a tracker"):
        wrap(config, added)
    assert vars(config)["conn_state"] is there


async def test_wrap_refuses_what_is_not_a_config() -> None:
    """The application, as a rule, which would then be served untracked."""
    with pytest.raises(TypeError, match="must be Hypercorn's Config, not <function"):
        wrap(hello, StatsTracker())  # type: ignore[arg-type]
    assert not hasattr(hello, "conn_state")


@limited
async def test_a_config_without_conn_state_is_hypercorns_own_business(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After ``install()`` it is served as before: nothing makes a Conn."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing should make a Conn")

    monkeypatch.setattr(Conn, "__init__", fail)
    install()
    (url,) = await nursery.start(hypercorn.trio.serve, hello, local())
    assert await get(url) == b"hello"


MODULES = (hypercorn.trio, hypercorn.trio.run)


async def test_install_is_idempotent() -> None:
    """A second call finds the first one's work, and does nothing."""
    install()
    installed = [vars(module)["worker_serve"] for module in MODULES]
    assert vars(internals)["hypercorn_serve"] not in installed
    install()
    assert [vars(module)["worker_serve"] for module in MODULES] == installed


async def another_worker_serve() -> None: ...


class AnotherTCPServer:
    def __init__(self, app: object, config: object, stream: object) -> None: ...


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ``install()`` had not been called yet."""
    monkeypatch.setattr(Config, "set_statsd_logger_class", Config.set_statsd_logger_class)
    for module in MODULES:
        monkeypatch.setattr(module, "worker_serve", vars(internals)["hypercorn_serve"])


@limited
@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.__name__))
@pytest.mark.usefixtures("uninstalled")
async def test_install_refuses_what_another_library_has_replaced(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the names it is, and whatever is there now; nothing is replaced."""
    monkeypatch.setattr(module, "worker_serve", another_worker_serve)
    before = [vars(each)["worker_serve"] for each in MODULES]
    with pytest.raises(RuntimeError, match="or something else has replaced it"):
        install()
    assert [vars(each)["worker_serve"] for each in MODULES] == before


@limited
@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("TCPServer", AnotherTCPServer),
        ("hypercorn_serve", another_worker_serve),
        ("hypercorn_serve", partial(another_worker_serve)),
    ],
)
async def test_install_refuses_a_hypercorn_that_it_does_not_know(
    name: str, replacement: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the version that is there and those that would do; nothing is replaced."""
    monkeypatch.setattr(worker, name, replacement)
    before = [vars(module)["worker_serve"] for module in MODULES]
    with pytest.raises(RuntimeError, match=rf"^Hypercorn {version('hypercorn')} .* 0\.17\.3 to 0"):
        install()
    assert [vars(module)["worker_serve"] for module in MODULES] == before


def test_hypercorns_own_asyncio_serve_refuses_a_tracked_config() -> None:
    """It would serve untracked."""
    config = local()
    wrap(config, StatsTracker())
    with pytest.raises(ValueError, match="only Hypercorn's trio worker is tracked"):
        asyncio.run(hypercorn.asyncio.serve(hello, config))


def test_asyncio_is_not_imported_without_need() -> None:
    """Nor Hypercorn's worker for it, only to refuse that."""
    program = "import sys; from trio_httptrack import install; install(); print(*sys.modules)"
    path = os.pathsep.join(each for each in sys.path if not each.endswith("portable"))
    environ = {**os.environ, "PYTHONPATH": path}  # what lacks the rest of Linux needs it
    ended = subprocess.check_output([sys.executable, "-c", program], env=environ, text=True)
    imported = ended.split()
    assert "hypercorn.trio.run" in imported
    assert "asyncio" not in imported


# One's own code: tracked_server()


async def test_a_tracked_server_refuses_a_hypercorn_that_it_does_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would serve, and track nothing."""
    monkeypatch.setattr(worker, "hypercorn_serve", another_worker_serve)
    with pytest.raises(RuntimeError, match="cannot be tracked: its trio worker is not the one"):
        async with tracked_server(hello):
            pass


class Slow:
    """An application that responds when a test lets it."""

    def __init__(self) -> None:
        self.requested = trio.Event()
        self.response = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.requested.set()
            await self.response.wait()
        await hello(scope, receive, send)

    async def send_request(self, url: str) -> trio.SocketStream:
        """A connection with a request in flight."""
        client = await connect(url)
        await client.send_all(GET)
        await self.requested.wait()
        return client


@limited
async def test_a_tracked_server_without_a_config_listens_on_a_free_local_port() -> None:
    """Its url says where."""
    async with tracked_server(hello) as server, tracked_server(hello) as another:
        (url,), (another_url,) = server.urls, another.urls
        assert url.startswith("http://127.0.0.1:")
        assert url != another_url
        assert await get(url) == b"hello"


@limited
async def test_a_tracked_server_lists_and_counts_its_connections() -> None:
    """Its numbers, its connections and its ConnTracker agree, now and at the end."""
    app = Slow()
    async with tracked_server(app) as server:
        async with await app.send_request(server.urls[0]) as client:
            ((conn, state),) = server.connections().items()
            assert (conn.client, state) == (client.socket.getsockname(), ConnState.ACTIVE)
            assert server.stats() == Stats(active=1, accepted_total=1, active_total=1)
            assert server.conn_tracker.count == 1
            app.response.set()
            await server.conn_tracker.wait()
        assert server.stats() == Stats(accepted_total=1, active_total=1, closed_total=1)
        assert server.connections() == {}


@limited
async def test_a_tracked_servers_config_is_not_changed_and_its_tracker_runs_first() -> None:
    """The config's own tracker, then the one that was given, for each transition."""
    calls: list[tuple[str, ConnState]] = []
    first = TrackerFunc(lambda conn, state: calls.append(("first", state)))
    second = TrackerFunc(lambda conn, state: calls.append(("second", state)))
    config = local(conn_state=first)
    settings = dict(vars(config), _log=config.log)  # Hypercorn makes its logger when asked
    async with tracked_server(hello, config, tracker=second) as server:
        await get(server.urls[0])
        states = [ConnState.NEW, ConnState.ACTIVE, ConnState.CLOSED]
        assert calls == [(name, state) for state in states for name in ("first", "second")]
    assert vars(config) == settings


@limited
async def test_leaving_the_block_waits_for_the_response_in_flight(
    nursery: trio.Nursery,
) -> None:
    """Nothing new is accepted meanwhile."""
    app = Slow()

    async def answer_late(url: str) -> None:
        await wait_all_tasks_blocked()  # the block has been left, and waits
        with pytest.raises(OSError, match="all attempts to connect"):
            await connect(url)
        app.response.set()

    async with tracked_server(app) as server:
        client = await app.send_request(server.urls[0])
        nursery.start_soon(answer_late, server.urls[0])
    async with client:
        assert (await read_all(client)).endswith(b"\r\n\r\nhello")


@limited
async def test_shutdown_returns_when_the_server_has_ended() -> None:
    """Then it no longer listens, and the lifespan is over. Calling it again is no error."""
    lifespan: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            lifespan.append((await receive())["type"])
            await send({"type": f"{lifespan[-1]}.complete"})
        await hello(scope, receive, send)

    async with tracked_server(app) as server:
        await get(server.urls[0])
        assert lifespan == ["lifespan.startup"]
        await server.shutdown()
        assert lifespan == ["lifespan.startup", "lifespan.shutdown"]
        with pytest.raises(OSError, match="all attempts to connect"):
            await connect(server.urls[0])
        assert server.stats() == Stats(accepted_total=1, active_total=1, closed_total=1)
        await server.shutdown()


class BlockError(Exception):
    pass


@limited
async def test_an_exception_leaves_the_block_as_itself_and_closes_at_once() -> None:
    """It is not in a group, and no ``graceful_timeout`` is waited for."""
    app, error, clients = Slow(), BlockError(), list[trio.SocketStream]()

    async def block() -> None:
        async with tracked_server(app, local(graceful_timeout=math.inf)) as server:
            clients.append(await app.send_request(server.urls[0]))
            raise error

    with pytest.raises(BlockError) as caught:
        await block()
    assert caught.value is error
    async with clients[0] as client:
        assert await read_all(client) == b""


@limited
async def test_a_group_of_one_that_the_block_raised_stays_a_group() -> None:
    """Only our own nurseries leave no trace."""
    error = ExceptionGroup("mine", [BlockError()])

    async def block() -> None:
        async with tracked_server(hello):
            raise error

    with pytest.raises(ExceptionGroup) as caught:
        await block()
    assert (caught.value.message, caught.value.exceptions) == ("mine", error.exceptions)


@limited
async def test_a_cancellation_closes_at_once() -> None:
    """Neither is it waited for where the block is cancelled."""
    app = Slow()
    with trio.CancelScope() as scope:
        async with tracked_server(app, local(graceful_timeout=math.inf)) as server:
            client = await app.send_request(server.urls[0])
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    async with client:
        assert await read_all(client) == b""


@limited
async def test_a_failing_lifespan_leaves_tracked_server_as_itself() -> None:
    """It is not in a group."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def block() -> None:
        async with tracked_server(app):
            await trio.sleep_forever()

    with pytest.raises(LifespanFailureError, match="no database"):
        await block()


@limited
async def test_a_failed_startup_is_over_before_anything_is_bound() -> None:
    """The block is never entered."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def block() -> None:
        async with tracked_server(app):
            raise BlockError

    with pytest.raises(LifespanFailureError, match="no database"):
        await block()


@pytest.mark.parametrize("events", [0, 1])
@limited
async def test_an_application_may_leave_its_lifespan_early(events: int) -> None:
    """It is served, and shut down, whether it returned before or after its startup."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await hello(scope, receive, send)
        for _ in range(events):
            await send({"type": f"{(await receive())['type']}.complete"})

    async with tracked_server(app) as server:
        assert await get(server.urls[0]) == b"hello"


def test_a_hook_may_name_a_function_that_makes_the_tracker() -> None:
    """As Hypercorn's own argument for the application may. It is called once."""
    from tests.ways_in import factory

    made = hook("tests.ways_in.factory:make()")
    assert resolve(made).trackers == resolve(made).trackers == (factory.made[-1],)
    assert pickle.loads(pickle.dumps(made)).path == "tests.ways_in.factory:make()"
    for name, message in (
        ("number()", "5 cannot be called"),
        ("make_nothing()", "None is not a tracker"),
        ("nothing()", "has no attribute 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(hook(f"tests.ways_in.factory:{name}"))


async def test_hooks_may_lead_to_hooks_but_not_to_themselves() -> None:
    """Every hook behind a hook is resolved at the start as well."""
    chained = resolve(compose(hook("tests.ways_in.chained:tracker"), ConnTracker()))
    names = [type(part).__name__ for part in chained.trackers]
    assert names == ["StatsTracker", "ConnTracker", "ConnTracker"]
    with pytest.raises(ValueError, match=r"hook\('tests.ways_in.chained:loop'\) leads to itself"):
        resolve("tests.ways_in.chained:loop")


async def test_a_slow_tracker_is_ready_before_the_server_is(tmp_path: Path) -> None:
    """Its module is imported before anything is bound, however long that takes."""
    (tmp_path / "slow.py").write_text(
        "import sys\nfrom trio_httptrack import StatsTracker\n\n"
        "tracker = StatsTracker()\nprint('ready', file=sys.stderr)\n"
    )
    config = tmp_path / "hypercorn_conf.py"
    config.write_text(
        f"import sys\n\nsys.path.append({str(tmp_path)!r})\n"
        "from trio_httptrack import hook\n\nconn_state = hook('slow:tracker')\n"
    )
    async with hypercorn_command(
        "-k", "trio", "-c", f"file:{config}", "ways_in.unaware:app"
    ) as server:
        assert await get(server.url) == b"hello"
    assert -1 < server.stderr.index("ready") < server.stderr.index("Running on")


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # Hypercorn cannot bind it
@limited
async def test_an_occupied_port_leaves_tracked_server_as_an_oserror() -> None:
    """Likewise."""
    async with tracked_server(hello) as server:
        config = Config.from_mapping(bind=server.urls[0].removeprefix("http://"))
        with pytest.raises(OSError, match="Address already in use"):
            await tracked_server(hello, config).__aenter__()
    gc.collect()  # the socket, while its warning is ignored


@limited
async def test_a_wrong_path_leaves_tracked_server_as_a_valueerror() -> None:
    """It names the hook."""
    config = local(conn_state="ways_in.nowhere:tracker")
    with pytest.raises(ValueError, match=r"^hook\('ways_in.nowhere:tracker'\): there is no module"):
        await tracked_server(hello, config).__aenter__()
