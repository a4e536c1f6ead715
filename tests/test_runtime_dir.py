"""How workers find and query each other, over real Unix sockets."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
import trio
from hypercorn.config import Config
from trio.testing import MockClock

from trio_httptrack import tracked_server
from trio_httptrack._hypercorn.settings import SettingError
from trio_httptrack._monitor import directory as directories
from trio_httptrack._monitor.directory import (
    DirectoryError,
    check_private,
    prepare_directory,
    server_directories,
    sockets,
)
from trio_httptrack._monitor.monitor import Monitor
from trio_httptrack._monitor.peers import REPORT_TIMEOUT, RESPONSE_TIMEOUT, Peers
from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.report import Report, Worker
from trio_httptrack._monitor.serving import CHECK_INTERVAL, listen, serve
from trio_httptrack.status import StatusApp

from .hypercorn_process import HypercornProcess, hypercorn
from .test_monitor import Server, connection, ids
from .test_status import connect_as

if not hasattr(socket, "AF_UNIX"):
    pytest.skip("workers find each other by Unix sockets", allow_module_level=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return prepare_directory(str(tmp_path / "workers"))


@asynccontextmanager
async def worker(directory: Path, *conns: Any) -> AsyncIterator[Monitor]:
    """A worker that can be queried."""
    monitor = Monitor(Server(*conns))
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, monitor, str(directory))
        yield monitor
        nursery.cancel_scope.cancel()


async def query_peers(
    peers: Peers, query: Query | None = None
) -> tuple[list[Report], list[Worker]]:
    with trio.fail_after(20):
        return await peers.fetch_reports(query)


# The directory


@pytest.mark.parametrize("runtime", [None, "run"])
def test_each_server_has_a_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str | None
) -> None:
    """In the user's runtime directory, or in the temporary one; other users cannot enter it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if runtime is None:
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        base = tmp_path / f"trio-httptrack-{os.geteuid()}"
    else:
        (tmp_path / runtime).mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / runtime))
        base = tmp_path / runtime / "trio-httptrack"
    directory = prepare_directory(None)
    assert directory == base / str(os.getpid())
    for path in (directory, base):
        assert path.stat().st_mode & 0o777 == 0o700
    assert prepare_directory(None) == directory  # again, as another worker does


def test_a_directory_that_is_not_safe_is_refused(tmp_path: Path) -> None:
    """Others' could be watched, or have sockets in it that are not our workers'."""
    path = tmp_path / "there"
    path.mkdir(mode=0o755)
    with pytest.raises(DirectoryError, match=f"{path} is open to other users: use one"):
        prepare_directory(str(path))
    path.chmod(0o700)
    assert prepare_directory(str(path)) == path
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(DirectoryError, match="link is not a directory"):
        prepare_directory(str(link))
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        prepare_directory(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError):
        prepare_directory(str(tmp_path / "not" / "there"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    """Its owner could replace it. Only root may use it."""
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 65534, -1)
    prepare_directory(str(path))  # root looks
    os.chown(path, 0, -1)
    tmp_path.chmod(0o755)
    opened = os.open(tmp_path, os.O_PATH)  # what is above it is not open to others
    os.seteuid(65534)
    try:
        with pytest.raises(DirectoryError, match="belongs to another user"):
            check_private(Path(f"/proc/self/fd/{opened}/theirs"))
    finally:
        os.seteuid(0)
        os.close(opened)


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    """The system would cut it off, or fail with another's words."""
    long = prepare_directory(str(tmp_path / ("long" * 25)))
    with pytest.raises(DirectoryError, match="too long for a Unix socket's path"):
        listen(long, "1-aaaaaaaa")
    assert list(long.iterdir()) == []


async def test_the_sockets_of_a_killed_server_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next server that starts; what a living one has stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    base = prepare_directory(None).parent
    dead, living = base / "1", base / "2"
    for path in (dead, living):
        prepare_directory(str(path))
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(dead / "1-aaaaaaaa.sock"))
    async with worker(living) as monitor:
        prepare_directory(None)
        assert not dead.exists()
        assert [path.stem for path in sockets(living)] == [monitor.name]
    assert not living.exists()
    assert base.is_dir()


def test_a_directory_that_another_worker_has_just_made_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is empty until that worker listens in it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    directory = prepare_directory(None)
    assert prepare_directory(None) == directory
    assert directory.is_dir()


def test_a_missing_xdg_runtime_dir_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a shell that has another user's environment."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not" / "there"))
    assert prepare_directory(None).parent == tmp_path / f"trio-httptrack-{os.geteuid()}"


async def test_all_servers_that_are_visible_to_the_user_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In either of the places; but neither through a link, nor where others could be."""
    with TemporaryDirectory() as name:  # whose path is short
        await find_servers(Path(name), monkeypatch)


async def find_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(directories, "RUN_USER", tmp_path / "user")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    uid = os.geteuid()
    bases = [tmp_path / f"trio-httptrack-{uid}", tmp_path / "user" / str(uid) / "trio-httptrack"]
    bases[1].parent.mkdir(parents=True)
    found = []
    for base in bases:
        for name in ("1", "open"):
            prepare_directory(str(base))
            found.append(prepare_directory(str(base / name)))
    hidden = prepare_directory(str(tmp_path / "elsewhere"))
    (bases[0] / "link").symlink_to(hidden)
    async with AsyncExitStack() as stack:
        for directory in (*found, hidden):
            await stack.enter_async_context(worker(directory))
            if directory.name == "open":
                directory.chmod(0o755)
        assert server_directories() == sorted(base / "1" for base in bases)
        bases[1].chmod(0o755)
        assert server_directories() == [bases[0] / "1"]
        bases[0].rename(tmp_path / "moved")
        bases[0].symlink_to(tmp_path / "moved")
        assert server_directories() == []


async def test_a_directory_that_was_removed_is_made_again(
    directory: Path, mock_clock: MockClock
) -> None:
    """A logout may remove it, or a cleanup."""
    async with worker(directory) as monitor:
        for name in ("moved", "moved too"):
            take_away(directory, name)
            mock_clock.jump(CHECK_INTERVAL)
            await trio.testing.wait_all_tasks_blocked(0.01)
            give_back(directory)
            mock_clock.jump(CHECK_INTERVAL)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert [path.stem for path in sockets(directory)] == [monitor.name]
            peers = Peers(directory)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_one_report, peers)


def take_away(directory: Path, name: str) -> None:
    """Rename a directory, and prevent that it is made again."""
    directory.rename(directory.with_name(name))
    directory.touch()


def give_back(directory: Path) -> None:
    directory.unlink()


async def expect_one_report(peers: Peers) -> None:
    with peers.viewing():
        reports, silent = await peers.fetch_reports(None)
        assert (len(reports), silent) == (1, [])


# Queries


async def test_workers_report_to_each_other(directory: Path) -> None:
    """Each other worker gets the viewer's query."""
    async with (
        worker(directory, connection(since=-5)) as one,
        worker(directory, connection(since=-7), connection(since=-3)) as two,
        worker(directory) as own,
    ):
        peers = Peers(directory, own.name)
        with peers.viewing():
            reports, silent = await query_peers(peers, Query(sort="-age"))
            names = {report["worker"]["name"]: len(report["rows"]) for report in reports}
            assert names == {one.name: 1, two.name: 2}
            assert silent == []
            reports, _ = await query_peers(peers)
            assert [report["rows"] for report in reports] == [[], []]
    assert sockets(directory) == []


async def test_several_viewers_query_in_turn(directory: Path) -> None:
    """Each gets the response to its own query."""
    conns = [connection(client=("10.0.0.1", number), since=number) for number in range(300)]
    async with worker(directory, *conns):
        peers = Peers(directory)
        found: dict[int, int] = {}

        async def look(page: int) -> None:
            with peers.viewing():
                for _ in range(10):
                    (report,), _ = await query_peers(peers, Query(page=page))
                    found[page] = len(report["rows"])

        async with trio.open_nursery() as nursery:
            for page in (1, 2, 3):
                nursery.start_soon(look, page)
        assert found == {1: 100, 2: 200, 3: 300}


async def test_a_dead_workers_socket_is_removed(directory: Path) -> None:
    """By the next worker that queries, but not from outside; and a new worker is found."""
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(directory / "4711-aaaaaaaa.sock"))
    outside = Peers(directory)
    with outside.viewing():
        assert await query_peers(outside) == ([], [])
        assert len(sockets(directory)) == 1
    peers = Peers(directory, "4712-bbbbbbbb")
    with peers.viewing():
        assert await query_peers(peers) == ([], [])
        assert sockets(directory) == []
        async with worker(directory) as monitor:
            reports, _ = await query_peers(peers)
            assert [report["worker"]["name"] for report in reports] == [monitor.name]
        assert await query_peers(peers) == ([], [])


async def test_a_worker_that_does_not_respond_is_waited_for_once(directory: Path) -> None:
    """It is known since when it has been silent; and it gets one question, not one a look."""
    with closing(socket.socket(socket.AF_UNIX)) as stopped:
        stopped.bind(str(directory / "4711-aaaaaaaa.sock"))
        stopped.listen()
        peers = Peers(directory)
        async with worker(directory) as living:
            with peers.viewing():
                began = trio.current_time()
                for number in range(5):
                    reports, (silent,) = await query_peers(peers, Query(page=number + 1))
                    assert [report["worker"]["name"] for report in reports] == [living.name]
                    assert (silent["pid"], silent["name"]) == (4711, "4711-aaaaaaaa")
                    passed = trio.current_time() - began
                    assert silent["silent"] is not None
                    assert RESPONSE_TIMEOUT - 0.01 <= silent["silent"] <= passed + 0.01
                assert passed < 2 * RESPONSE_TIMEOUT
                accepted, _ = stopped.accept()
                with trio.socket.from_stdlib_socket(accepted) as sock:
                    requests = (await sock.recv(10_000)).splitlines()
                    assert [json.loads(each)["query"]["page"] for each in requests] == [1]
                    # It goes on, and sends the response to the earlier request.
                    late = json.dumps(await Monitor(Server(connection())).report(Query())).encode()
                    await sock.send(late[:100])
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(query_page_9, peers)
                        await sock.send(late[100:] + b"\n")
                        assert json.loads(await sock.recv(10_000))["query"]["page"] == 9
                        await sock.send(late + b"\n")


async def query_page_9(peers: Peers) -> None:
    reports, silent = await query_peers(peers, Query(page=9))
    assert (len(reports), silent) == (2, [])


async def test_a_worker_that_has_begun_to_respond_is_waited_for(
    directory: Path, mock_clock: MockClock
) -> None:
    """It runs, and others may look at so much that this report has to wait."""

    async def pass_time(seconds: float) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(seconds)

    found: list[Any] = []

    async def look(peers: Peers) -> None:
        with peers.viewing():
            found.append(await peers.fetch_reports(None))
            found.append(await peers.fetch_reports(None))

    with closing(socket.socket(socket.AF_UNIX)) as busy:
        busy.bind(str(directory / "4711-aaaaaaaa.sock"))
        busy.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, Peers(directory))
            await pass_time(RESPONSE_TIMEOUT - 0.1)
            accepted, _ = busy.accept()
            with accepted:
                accepted.send(b" ")
                await pass_time(REPORT_TIMEOUT - 0.1)
                report = json.dumps(await Monitor(Server()).report(None)).encode()
                await pass_time(0)
                accepted.send(report + b"\n")
                await pass_time(0)
                (reports, silent) = found.pop()
                assert (len(reports), silent) == (1, [])
                accepted.send(b" ")
                await pass_time(REPORT_TIMEOUT + 0.1)
                await trio.testing.wait_all_tasks_blocked(0.01)
        ((reports, (silent,)),) = found
        assert (reports, silent["silent"]) == ([], REPORT_TIMEOUT + 0.1)


async def test_a_worker_whose_backlog_is_full_is_silent(directory: Path) -> None:
    """Where even a connection would have to wait."""
    with closing(socket.socket(socket.AF_UNIX)) as stopped:
        path = str(directory / "4711-aaaaaaaa.sock")
        stopped.bind(path)
        stopped.listen(0)
        peers = Peers(directory)
        with ExitStack() as waiting, peers.viewing():
            clients = 0
            with suppress(BlockingIOError):
                while True:
                    client = waiting.enter_context(socket.socket(socket.AF_UNIX))
                    client.setblocking(False)
                    client.connect(path)
                    clients += 1
            for _ in range(2):
                _, (silent,) = await query_peers(peers)
                assert silent["silent"] is not None
            for _ in range(clients):
                stopped.accept()[0].close()
            await query_peers(peers)
            accepted, _ = stopped.accept()
            with accepted:
                assert accepted.recv(100).startswith(b'{"query": null')


async def test_a_response_that_is_not_a_report_is_left_out(directory: Path) -> None:
    """A worker of another version, or something else that was put there."""

    async def respond(listener: socket.socket, responses: list[bytes]) -> None:
        sock = trio.socket.from_stdlib_socket(listener)
        for response in responses:
            stream, _ = await sock.accept()
            await stream.recv(1000)
            await stream.send(response)
            stream.close()

    with closing(socket.socket(socket.AF_UNIX)) as other:
        other.bind(str(directory / "4711-aaaaaaaa.sock"))
        other.listen()
        other.setblocking(False)
        responses = [b"{}\n", b"nothing\n", b"\xff\n", b""]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(respond, other, responses)
            for _ in responses:
                peers = Peers(directory)
                with peers.viewing():
                    assert await query_peers(peers) == ([], [])


async def test_a_viewer_may_leave_at_any_time(directory: Path) -> None:
    """The next one gets its own report, whole."""
    conns = [connection(client=("10.0.0.1", number)) for number in range(3000)]
    async with worker(directory, *conns) as monitor:
        peers = Peers(directory)
        with peers.viewing():
            for checkpoints in range(12):
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(peers.fetch_reports, Query(page=checkpoints + 1))
                        for _ in range(checkpoints):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
            (report,), _ = await query_peers(peers, Query(page=30))
            assert ids(report) == ids(await monitor.report(Query(page=30)))


async def test_no_connection_is_open_without_viewers(directory: Path) -> None:
    """The connections go with the last viewer."""
    async with worker(directory):
        peers = Peers(directory)
        before = len(os.listdir("/proc/self/fd"))
        with peers.viewing():
            with peers.viewing():
                await query_peers(peers)
            assert len(os.listdir("/proc/self/fd")) > before
        for _ in range(5):
            await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) == before


async def line(stream: trio.SocketStream) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        received += await stream.receive_some()
    return received


@pytest.mark.parametrize(
    "request_line",
    [
        *(b"\n", b"nothing\n", b"{}\n", b"[]\n", b"\xff\n"),
        b'{"query": {"sort": "x"}, "max_age": 0}\n',
        b'{"query": {"sort": 5}, "max_age": 0}\n',
        b'{"query": null, "max_age": ' + b"9" * 400 + b"}\n",
        b"[" * 9000 + b"\n",
        b'{"query": {"speed": 1}, "max_age": 0}\n',
        b'{"query": null, "max_age": "x"}\n',
    ],
)
async def test_an_invalid_request_gets_an_error(directory: Path, request_line: bytes) -> None:
    """Nothing else happens: the next request gets its report."""
    async with worker(directory) as monitor:
        path = str(sockets(directory)[0])
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(request_line)
            assert "error" in json.loads(await line(stream))
            await stream.send_all(b'{"query": null, "max_age": 0}\n')
            report = json.loads(await line(stream))
            assert report["worker"]["name"] == monitor.name


async def test_a_failing_report_affects_nothing_else(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has other things to do."""

    async def fail(self: Monitor, query: Query | None, *, max_age: float = 0) -> Report:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    async with worker(directory):
        path = str(sockets(directory)[0])
        async with await trio.open_unix_socket(path) as stream:
            with monkeypatch.context() as broken:
                broken.setattr(Monitor, "report", fail)
                await stream.send_all(b'{"query": null, "max_age": 0}\n')
                assert json.loads(await line(stream)) == {"error": "RuntimeError('a bug')"}
            await stream.send_all(b'{"query": null, "max_age": 0}\n')
            assert "worker" in json.loads(await line(stream))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_only_processes_of_the_directorys_owner_are_queried(directory: Path) -> None:
    """The owner of a directory could lead root to a socket of another user."""
    async with worker(directory):
        os.chown(directory, 65534, -1)
        peers = Peers(directory)
        with peers.viewing():
            assert await query_peers(peers) == ([], [])
        os.chown(directory, 0, -1)
        with peers.viewing():
            assert len((await query_peers(peers))[0]) == 1


async def test_a_response_to_an_old_request_is_dropped_and_the_request_repeated(
    directory: Path, mock_clock: MockClock
) -> None:
    """A worker that was stopped sends its old report when it goes on."""

    async def respond(accepted: socket.socket, uptime: float) -> None:
        report = await Monitor(Server()).report(None)
        report["worker"]["uptime"] = uptime
        accepted.send(json.dumps(report).encode() + b"\n")

    found: list[Any] = []

    async def look(peers: Peers) -> None:
        found.append(await peers.fetch_reports(None))

    with closing(socket.socket(socket.AF_UNIX)) as stopped:
        stopped.bind(str(directory / "4711-aaaaaaaa.sock"))
        stopped.listen()
        peers = Peers(directory)
        async with trio.open_nursery() as nursery:
            with peers.viewing():
                nursery.start_soon(look, peers)
                await trio.testing.wait_all_tasks_blocked(0.01)
                accepted, _ = stopped.accept()
                mock_clock.jump(1000)
                await trio.testing.wait_all_tasks_blocked(0.01)
                with accepted:
                    await respond(accepted, 1)
                    nursery.start_soon(look, peers)
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    await respond(accepted, 1001)
                    await trio.testing.wait_all_tasks_blocked(0.01)
    assert found[0][0] == []
    assert [report["worker"]["uptime"] for report in found[1][0]] == [1001]


async def test_a_request_without_an_end_is_dropped(directory: Path) -> None:
    """Its connection is closed before it has taken much memory."""
    async with worker(directory):
        path = str(sockets(directory)[0])
        async with await trio.open_unix_socket(path) as stream:
            with suppress(trio.BrokenResourceError):
                for _ in range(1000):
                    await stream.send_all(b"x" * 1000)
                pytest.fail("it has taken a megabyte")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
async def test_another_user_gets_nothing(directory: Path) -> None:
    """Even if the directory lets the user in: the kernel reports the peer's user."""
    async with worker(directory):
        for user, responds in ((0, True), (65534, False)):
            client = connect_as(user, sockets(directory)[0])
            async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
                try:
                    await stream.send_all(b'{"query": null, "max_age": 0}\n')
                    received = await stream.receive_some()
                except trio.BrokenResourceError:
                    received = b""
            assert bool(received) == responds


# Servers


async def test_a_server_can_be_seen_while_it_runs(tmp_path: Path) -> None:
    """By its directory, where other servers may be, too."""
    config = Config()
    config.bind = "127.0.0.1:0"
    config.runtime_dir = str(tmp_path / "run")  # type: ignore[attr-defined]
    async with tracked_server(StatusApp(allow=["127.0.0.1"]), config) as server:
        async with tracked_server(StatusApp(), config):
            assert len(sockets(tmp_path / "run")) == 2
            async with httpx.AsyncClient() as client:
                headers = {"accept": "application/json"}
                seen = (await client.get(server.urls[0], headers=headers)).json()
            assert [each["connections"] for each in seen["workers"]] in ([0, 1], [1, 0])
        assert len(sockets(tmp_path / "run")) == 1
    assert not (tmp_path / "run").exists()


async def test_an_unusable_runtime_dir_stops_the_start(tmp_path: Path) -> None:
    """In one sentence. Without the setting, the server runs and is not seen."""
    config = Config()
    config.bind = "127.0.0.1:0"
    for path, says in (
        (str(tmp_path / "not" / "there"), "runtime_dir: .*No such file or directory"),
        (4711, "runtime_dir must be a directory's path, or None, not 4711"),
        ("", "runtime_dir must be a directory's path, or None, not ''"),
    ):
        config.runtime_dir = path  # type: ignore[attr-defined]
        with pytest.raises(SettingError, match=says):
            async with tracked_server(StatusApp(), config):
                pass


async def test_the_server_runs_without_any_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as in a container without a writable place. The log has the reason."""
    caplog.set_level("INFO")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not" / "there"))
    config = Config()
    config.bind = "127.0.0.1:0"
    async with (
        tracked_server(StatusApp(allow=["127.0.0.1"]), config) as server,
        httpx.AsyncClient() as client,
    ):
        headers = {"accept": "application/json"}
        seen = (await client.get(server.urls[0], headers=headers)).json()
        assert seen["connections"]["active"] == 1
    (line,) = [each for each in caplog.messages if each.startswith("Neither other workers nor")]
    assert "No such file or directory" in line
    assert "Set runtime_dir to a directory" in line


# Workers of the command


@asynccontextmanager
async def workers(tmp_path: Path, number: int) -> AsyncIterator[tuple[HypercornProcess, Path]]:
    """A real ``hypercorn`` whose workers share a directory."""
    conf = tmp_path / "conf.py"
    conf.write_text(
        "from trio_httptrack import hook\n"
        "conn_state = hook('trio_httptrack.config:tracker')\n"
        f"runtime_dir = {str(tmp_path / 'run')!r}\n"
    )
    arguments = ["-k", "trio", "-w", str(number), "-c", f"file:{conf}", "watched_app:app"]
    async with hypercorn(*arguments) as server:
        await there(tmp_path / "run", max(number, 1))
        yield server, tmp_path / "run"


async def there(directory: Path, number: int) -> None:
    """Wait until so many workers can be queried."""
    with trio.fail_after(20):
        while len(sockets(directory)) < number:  # noqa: ASYNC110  # processes have no Event
            await trio.sleep(0.02)


async def test_every_workers_page_shows_all_workers(tmp_path: Path) -> None:
    """Whichever responds: totals, a row each, and all connections, each with its worker."""
    async with (
        workers(tmp_path, 3) as (server, _),
        httpx.AsyncClient(base_url=server.url) as client,
        trio.open_nursery() as nursery,
    ):
        streams = []
        for _ in range(12):
            stream = await trio.open_tcp_stream("127.0.0.1", int(server.url.rpartition(":")[2]))
            await stream.send_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")
            streams.append(stream)
        pages: set[str] = set()
        with trio.fail_after(20):
            while len(pages) < 3:
                response = await client.get("/status", headers={"connection": "close"})
                seen = response.json()
                if sum(seen["connections"].values()) != 13:
                    continue  # not all are accepted yet
                pages.add(response.headers["x-worker"])
                assert len(seen["workers"]) == 3
                assert seen["matching"] == 13
                found = {row["worker"] for row in seen["rows"]}
                assert found <= {each["pid"] for each in seen["workers"]}
                held = [row for row in seen["rows"] if row["in_flight"][0]["path"] == "/hold"]
                assert len(held) == 12
                by_worker = {each["pid"]: each["connections"] for each in seen["workers"]}
                assert sum(by_worker.values()) == 13
        for stream in streams:
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_stopped_worker_is_seen_to_be_silent(tmp_path: Path) -> None:
    """With the time of its silence. When it goes on, it logs that it was blocked."""
    async with workers(tmp_path, 2) as (server, directory):
        stopped, _ = (int(path.name.partition("-")[0]) for path in sockets(directory))
        os.kill(stopped, signal.SIGSTOP)
        try:
            peers = Peers(directory)
            with peers.viewing(), trio.fail_after(20):
                silences: list[float] = []
                while not silences or silences[-1] < 1.2:
                    reports, silent = await peers.fetch_reports(Query())
                    assert len(reports) == 1
                    assert [each["pid"] for each in silent] == [stopped]
                    silences.append(silent[0]["silent"] or 0)
                    await trio.sleep(0.1)
                assert silences == sorted(silences)
                os.kill(stopped, signal.SIGCONT)
                while silent:
                    reports, silent = await peers.fetch_reports(Query())
                    await trio.sleep(0.02)
                by_pid = {report["worker"]["pid"]: report["worker"] for report in reports}
                assert (by_pid[stopped]["lag"] or 0) > 1
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert server.stderr.count("The event loop was blocked for") == 1


async def test_a_draining_worker_is_seen_to_be_draining(tmp_path: Path) -> None:
    """Until its last request has its response."""
    async with workers(tmp_path, 1) as (server, directory):
        port = int(server.url.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /hold HTTP/1.1\r\nhost: a\r\n\r\n")
            peers = Peers(directory)
            with peers.viewing(), trio.fail_after(20):
                (report,), _ = await peers.fetch_reports(Query(state="active"))
                while not report["rows"]:
                    (report,), _ = await peers.fetch_reports(Query(state="active"))
                assert not report["worker"]["draining"]
                server.process.terminate()
                while not report["worker"]["draining"]:
                    (report,), _ = await peers.fetch_reports(Query(state="active"))
                assert [row["in_flight"][0]["path"] for row in report["rows"]] == ["/hold"]


async def test_a_killed_worker_is_not_listed(tmp_path: Path) -> None:
    """Another worker removes its socket at the next view of the page."""
    async with workers(tmp_path, 0) as (living, directory), workers(tmp_path, 0) as (other, _):
        await there(directory, 2)
        other.process.send_signal(signal.SIGKILL)
        await other.process.wait()
        assert len(sockets(directory)) == 2
        async with httpx.AsyncClient() as client:
            seen = (await client.get(f"{living.url}/status")).json()
        assert [each["silent"] for each in seen["workers"]] == [None]
        assert len(sockets(directory)) == 1


async def test_workers_of_one_server_meet_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a directory that is named by the process that has started them."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    arguments = ["-k", "trio", "-w", "2", "-c", "python:trio_httptrack.config", "watched_app:app"]
    async with hypercorn(*arguments) as server:
        await there(tmp_path / "trio-httptrack" / str(server.process.pid), 2)
    assert list((tmp_path / "trio-httptrack").iterdir()) == []
