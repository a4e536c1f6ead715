"""httptrack top: its keys, its sources, and a terminal that it gives back as it was."""

from __future__ import annotations

import pytest

pytest.importorskip("termios", reason="a live view needs a POSIX terminal")

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
from hypercorn.config import Config

from trio_httptrack import TrackedServer, tracked_server
from trio_httptrack._monitor import directory as directories
from trio_httptrack._monitor.directory import sockets
from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.serving import listen
from trio_httptrack._monitor.text import Span, plain
from trio_httptrack._monitor.view import View
from trio_httptrack.status import StatusApp
from trio_httptrack.top._live import Live
from trio_httptrack.top._sources import SourceError, open_source
from trio_httptrack.top._terminal import Terminal

from .hypercorn_process import SECONDS, HypercornProcess, connect, get, hypercorn, read_all
from .support import CA
from .terminal_process import TOP, once, top
from .views import request, row, silent, view, worker

# What the keys do


def lines(live: Live, width: int = 80, height: int = 24) -> list[str]:
    """What is on the screen; it always has all of its lines."""
    frame = live.frame(width, height)
    assert len(frame) == height
    return [plain(line, width) for line in frame]


def looking_at(*rows: Any, **changes: Any) -> Live:
    live = Live(Query())
    live.show(view(*rows, **changes), live.query)
    return live


def press(live: Live, *keys: str) -> Query:
    for key in keys:
        live.press(key)
    return live.query


def test_s_sorts_by_the_next_column_and_r_the_other_way_round() -> None:
    """By ages the greatest come first: what takes long is what one looks for."""
    live = looking_at()
    sorts = [press(live, "s").sort for _ in range(10)]
    assert sorts[:2] == ["id", "client"]
    assert sorts[-4:] == ["-age", "-requests", "path", "-stuck"]
    assert press(live, "r").sort == "stuck"
    assert press(live, "s", "r").sort == "-id"


def test_f_shows_one_state_after_the_other() -> None:
    """And at last all of them again."""
    live = looking_at()
    states = [press(live, "f").state for _ in range(6)]
    assert states == ["new", "active", "idle", "hijacked", "closed", ""]


def test_a_filter_is_typed_into_the_last_line() -> None:
    """Enter takes it, Escape does not, Backspace takes a character away."""
    live = looking_at(row())
    press(live, "c", "1", "9", "q", "backspace")
    assert lines(live)[-1] == "Client address begins with: 19   Enter: filter  Escape: cancel"
    assert live.query == Query()
    assert press(live, "enter").client == "19"
    assert press(live, "/", "/", "s", "enter") == Query(client="19", path="/s")
    assert press(live, "/", "x", "escape") == Query(client="19", path="/s")
    assert press(live, "/", "backspace", "backspace", "enter") == Query(client="19")
    assert not live.quitting


def test_a_filter_is_no_longer_than_a_query_allows() -> None:
    """More of it is not taken."""
    live = looking_at()
    assert press(live, "/", *"a" * 300, "enter").path == "a" * 200


def test_typed_text_is_escaped() -> None:
    """A paste may have anything in it."""
    live = looking_at()
    press(live, "c", "\u202e")
    assert r"\u202e" in lines(live)[-1]


def test_g_groups_by_client_and_back() -> None:
    """From the first page on."""
    live = looking_at(pages=3)
    press(live, "page down")
    assert live.query.page == 2
    assert press(live, "g") == Query(group="client")
    assert press(live, "g") == Query()


def test_q_ends_it() -> None:
    """But not while something is typed."""
    live = looking_at()
    press(live, "/", "q")
    assert not live.quitting
    press(live, "escape", "q")
    assert live.quitting


def test_help_is_in_place_of_the_connections() -> None:
    """Until ? or Escape."""
    live = looking_at(row(request()))
    for close in ("?", "escape"):
        press(live, "?")
        shown = lines(live)
        assert any(line.startswith("q Ctrl-C   quit") for line in shown)
        assert not any("GET" in line for line in shown)
        assert not any("…" in line for line in shown)
        press(live, close)
        assert any("GET" in line for line in lines(live))


def numbered(page: int = 1, pages: int = 1, connections: int = 40) -> View:
    rows = [row(id=number, state="idle") for number in range(connections)]
    return view(*rows, query=Query(page=page), pages=pages)


def shown_ids(live: Live) -> list[int]:
    return [int(line.split()[4]) for line in lines(live) if line.startswith("idle")]


def test_page_down_goes_through_the_lines_and_then_to_the_next_page() -> None:
    """One line stays in sight. Up and down go by one line."""
    live = Live(Query())
    live.show(numbered(pages=2), live.query)
    first = shown_ids(live)
    assert first == list(range(17))
    assert "lines 1-17 of 40" in lines(live)[0]
    press(live, "up", "down")
    assert shown_ids(live)[0] == 1
    press(live, "up", "page up", "page down")
    assert shown_ids(live)[0] == 16
    press(live, "page down")
    assert shown_ids(live)[-1] == 39
    assert press(live, "page down").page == 2
    live.show(numbered(page=2, pages=2, connections=30), live.query)
    assert shown_ids(live) == list(range(17))
    press(live, "page down")
    assert shown_ids(live)[-1] == 29
    press(live, "page down")
    assert live.query.page == 2
    assert press(live, "page up", "page up").page == 1
    live.show(numbered(pages=2), live.query)
    assert shown_ids(live)[-1] == 39


def test_a_page_that_no_longer_exists_is_left() -> None:
    """There are fewer connections now than when it was looked at."""
    live = Live(Query(page=7))
    live.show(numbered(page=2, pages=2), live.query)
    assert live.query.page == 2


def test_of_many_workers_those_with_problems_are_shown() -> None:
    """The others are counted."""
    many = [worker(pid, lag=0.001) for pid in range(1, 33)]
    many[7] = silent(8, 12.5)
    many[30] = worker(31, lag=2.5)
    shown = "\n".join(lines(looking_at(row(), workers=many)))
    assert "   8  no response for 12.5 s\n" in shown
    assert "  31   1h05m            3     2.5 s\n" in shown
    assert "and 27 more workers\n" in shown


def test_one_client_does_not_fill_the_screen() -> None:
    """Five of its requests are shown."""
    many = [request(stream=number) for number in range(1, 41, 2)]
    shown = "\n".join(lines(looking_at(row(*many, in_flight_count=57), row(id=99))))
    assert shown.count("GET") == 5
    assert "5 of 57 requests in flight\nidle" in shown


class Counting:
    """A source that counts how often it is looked at."""

    name = "counting"
    query = Query()
    views = 0

    async def view(self, query: Query) -> View:
        self.views += 1
        return view(query=query)


async def test_it_fetches_a_view_each_second_but_not_while_paused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A key that changes what is listed looks at once, and once."""
    source = Counting()
    live = Live(source.query)
    async with trio.open_nursery() as nursery:

        async def views_after(seconds: float, *keys: str) -> int:
            before = source.views
            press(live, *keys)
            await trio.sleep(seconds)
            return source.views - before

        nursery.start_soon(live.watch, source)
        assert await views_after(3.5) == 4
        assert await views_after(0.1, "s") == 1
        assert await views_after(100, " ") == 0
        assert "paused" in lines(live)[0]
        assert await views_after(100, "f") == 1
        assert await views_after(0.5, " ") == 1
        assert await views_after(3) == 3
        nursery.cancel_scope.cancel()


async def test_it_shows_for_how_long_there_was_no_data(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each second, above what was seen last, and in as many lines as it takes."""
    live = looking_at(row())
    await live.changed()
    live.fail("first")
    await live.changed()
    assert trio.current_time() == 0
    for second in (1, 2, 3):
        await live.changed()
        assert trio.current_time() == second
    live.fail("no such thing " * 10)
    shown = lines(live)
    assert shown[1].startswith("No data for 3.0 s: no such thing")
    assert " ".join(shown).count("no such thing") == 10
    assert any(line.startswith("idle") for line in shown)
    live.show(view(row()), live.query)
    assert not any("No data" in line for line in lines(live))
    await trio.sleep(5)
    live.fail("again")
    assert lines(live)[1] == "No data for 0.0 s: again"


@pytest.mark.parametrize("size", [(80, 24), (20, 5), (1, 1), (200, 60)])
def test_it_fits_every_terminal(size: tuple[int, int]) -> None:
    """With the keys in the last line, where there is room for them."""
    live = looking_at(*(row(request()) for _ in range(40)))
    for keys in ((), ("?",), ("?", "c", "x"), ("escape", " ")):
        press(live, *keys)
        frame = live.frame(*size)
        assert len(frame) >= size[1]
        if size[1] == 24:
            assert len(frame) == 24
            assert plain(frame[-1], 80).endswith(("q quit", "Escape: cancel"))


# Where a view comes from


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[tuple[TrackedServer, StatusApp]]:
    """A server with a status page, on a real socket."""
    status = StatusApp()
    config = Config()
    config.bind = "127.0.0.1:0"
    for name, value in settings.items():
        setattr(config, name, value)
    async with tracked_server(status, config) as server:
        yield server, status


async def test_a_page_is_fetched_over_one_connection() -> None:
    """It has the token, what else the URL has, and the view's query."""
    async with (
        serving() as (server, status),
        open_source(f"{server.urls[0]}/?token={status.token}&sort=-age&other=1") as source,
    ):
        assert source.name == f"{server.urls[0]}/"
        assert source.query == Query(sort="-age")
        for query in (source.query, Query(sort="id", state="active")):
            seen = await source.view(query)
            assert Query(**seen["query"]) == query
        assert seen["rows"][0]["requests"] == 2
        assert seen["totals"]["new"] == 1


async def test_a_connection_that_the_server_has_closed_is_opened_again() -> None:
    """As when the view was paused for longer than its keep_alive_timeout."""
    async with (
        serving() as (server, status),
        open_source(f"{server.urls[0]}/?token={status.token}") as source,
    ):
        await source.view(source.query)
        (conn,) = server.connections()
        conn.close("test")
        await conn.wait_closed()
        seen = await source.view(source.query)
        assert seen["totals"]["new"] == 2


LOGGED = "the server's log has it, as ?token=... to add to the page's address"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("", f"the token is missing: {LOGGED}"),
        ("?token=x", f"the token is wrong: {LOGGED}"),
    ],
)
async def test_without_the_token_the_error_says_where_it_is(query: str, says: str) -> None:
    """In one sentence."""
    async with serving() as (server, _), open_source(f"{server.urls[0]}/{query}") as source:
        with pytest.raises(SourceError) as error:
            await source.view(source.query)
    assert str(error.value) == says


RESPONSES = {
    "redirects to https://elsewhere.example/: name the page itself": (
        b"HTTP/1.1 302 Found\r\nlocation: https://elsewhere.example/\r\ncontent-length: 0\r\n\r\n"
    ),
    r"responded with 500: \x1b[2J": (
        b"HTTP/1.1 500 No\r\ncontent-length: 12\r\n\r\n\x1b[2J\nTrace.."
    ),
    "is not a status page of this version of trio-httptrack": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    ),
    "is not a status page of this": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
    "is not a status page of": b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"[" * 5000,
    "is not a status page": b'HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{"query": {}}',
    "illegal status line": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "peer closed connection without sending complete": (
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi"
    ),
    "the connection was closed without a response": b"",
}


LONG = f"{'a' * 200}\N{HORIZONTAL ELLIPSIS}"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://[::1/status", r"http://\[::1/status: Invalid IPv6 URL"),
        (f"http://{'a' * 70}/", rf"http://{'a' * 70}/: .*label too long"),
        ("a" * 5000, f"{LONG}: File name too long|no worker listens in {LONG}"),  # since 3.14
        ("\x1b[2J", r"no worker listens in \\x1b\[2J"),
    ],
)
async def test_a_failing_source_is_reported_in_one_line(target: str, says: str) -> None:
    """Without a traceback, and without escape sequences."""
    with pytest.raises(SourceError) as error:
        async with open_source(target) as source:
            await source.view(source.query)
    assert re.fullmatch(says, str(error.value))


async def test_a_path_that_is_not_ascii_is_requested_as_by_a_browser() -> None:
    """In UTF-8, with percent signs."""
    async with serving() as (server, status):
        url = f"{server.urls[0]}/st\u00e4tus%20x?token={status.token}"
        async with open_source(url) as source:
            (row,) = (await source.view(source.query))["rows"]
    assert row["path"] == "/st\u00e4tus x"


def test_the_reader_of_the_output_may_exit_early() -> None:
    """As in ``httptrack top --json | head -1``."""
    program = "from trio_httptrack.top import write; write('x' * 100_000)"
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.mark.parametrize("says", RESPONSES)
async def test_a_url_that_is_not_a_status_page_is_reported_in_one_line(says: str) -> None:
    """And a redirect is not followed: the token is for this host only."""

    async def respond(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(RESPONSES[says])

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, respond, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with open_source(f"http://127.0.0.1:{port}/") as source:
            with pytest.raises(SourceError) as error:
                await source.view(source.query)
        nursery.cancel_scope.cancel()
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(source.name)


async def test_a_response_without_an_end_is_not_read_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is as long as a worker's may be."""
    monkeypatch.setattr("trio_httptrack.top._sources.MAX_RESPONSE_SIZE", 100)
    async with (
        serving() as (server, status),
        open_source(f"{server.urls[0]}/?token={status.token}") as source,
    ):
        with pytest.raises(SourceError, match="the response is too long"):
            await source.view(source.query)


async def test_a_page_that_does_not_respond_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Ten seconds are enough."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        host, port = listener.getsockname()
        async with open_source(f"http://{host}:{port}/") as source:
            with pytest.raises(SourceError, match="no response within 10 seconds"):
                await source.view(source.query)
            assert trio.current_time() == 10


async def test_a_page_that_is_encrypted(
    certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate is verified."""
    authority = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(authority))
    async with serving(certfile=str(certificate), keyfile=str(certificate)) as (server, status):
        url = f"{server.urls[0]}/?token={status.token}".replace("127.0.0.1", "localhost")
        async with open_source(url) as source:
            with pytest.raises(SourceError, match="certificate verify failed"):
                await source.view(source.query)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        async with open_source(url) as source:
            assert (await source.view(source.query))["rows"][0]["tls"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http:///status", "http:///status: it has no host"),
        ("http://localhost:x/", "http://localhost:x/: Port could not be cast to integer"),
        ("http://localhost/?page=0", "http://localhost/?page=0: page must be a number from 1"),
        ("/nowhere", "no worker listens in /nowhere"),
    ],
)
async def test_a_source_that_can_never_be_shown_is_refused_at_once(target: str, says: str) -> None:
    """Before the terminal is touched."""
    with pytest.raises(SourceError) as error:
        async with open_source(target):
            pass
    assert str(error.value).startswith(says)


@pytest.fixture
def runtime_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


async def test_a_directory_that_other_users_can_enter_is_refused(runtime_dir: Path) -> None:
    """A user who can put a socket there could send anything."""
    async with serving(runtime_dir=str(runtime_dir)), open_source(str(runtime_dir)) as source:
        assert len((await source.view(source.query))["workers"]) == 1
        os.chmod(runtime_dir, 0o755)
        with pytest.raises(SourceError, match="is open to other users: use one"):
            await source.view(source.query)
        os.chmod(runtime_dir, 0o700)
        await source.view(source.query)


def listen_in(directory: Path) -> socket.socket:
    """As a worker of this user does."""
    for path in (directory.parent, directory):
        path.mkdir(exist_ok=True, mode=0o700)
        os.chown(path, os.geteuid(), -1)
    return listen(directory, "17-abcd")


async def test_without_a_name_it_is_the_only_server_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None, or several, is an error."""
    with TemporaryDirectory() as name:
        monkeypatch.setenv("XDG_RUNTIME_DIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setattr(directories, "RUN_USER", Path(name))
        directory = Path(name, "trio-httptrack", "1")
        listen_in(directory.with_name("killed")).close()
        with pytest.raises(SourceError, match="no running server is visible to this user: name"):
            await enter(None)
        with listen_in(directory):
            assert await enter(None) == str(directory)
            with (
                listen_in(directory.with_name("2")),
                pytest.raises(
                    SourceError, match=r"several servers are running: name one of .*/1, .*/2$"
                ),
            ):
                await enter(None)


async def test_a_directory_whose_workers_were_killed_has_no_view() -> None:
    """What they have left in it stays there: it may be another user's trap."""
    with TemporaryDirectory() as name:
        directory = Path(name, "run")
        listen_in(directory).close()
        async with open_source(str(directory)) as source:
            with pytest.raises(SourceError, match=f"no worker listens in {directory}"):
                await source.view(source.query)
        assert len(sockets(directory)) == 1


async def enter(target: str | None) -> str:
    async with open_source(target) as source:
        return source.name


# Without a terminal


async def test_once_prints_a_view_as_text_and_json_as_json(runtime_dir: Path) -> None:
    """And nothing else."""
    async with serving(runtime_dir=str(runtime_dir)):
        ended = await once("--once", str(runtime_dir))
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert "Listed: 0, page 1 of 1; what may be stuck first\n" in ended.stdout.decode()
        ended = await once("--json", str(runtime_dir))
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert json.loads(ended.stdout).keys() == View.__annotations__.keys()


async def test_where_there_is_no_server_it_ends_with_one_line() -> None:
    """And with status 1."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        url = "http://{}:{}/status".format(*unused.getsockname())
        ended = await once("--once", f"{url}?token=secret")
    assert ended.returncode == 1
    assert ended.stdout == b""
    assert ended.stderr.decode() == f"httptrack top: {url}: Connection refused\n"


async def test_once_is_as_wide_as_the_variable_columns() -> None:
    """As a shell sets it; without it, 80 columns."""
    async with serving() as (server, status):
        url = f"{server.urls[0]}/?token={status.token}&path={'a' * 200}"
        for columns in ("", "120"):
            ended = await once("--once", url, COLUMNS=columns)
            assert max(map(len, ended.stdout.decode().splitlines())) == int(columns or 80)


async def test_a_locale_without_an_ellipsis_is_no_error() -> None:
    """As in a container that sets none."""
    async with serving() as (server, status):
        url = f"{server.urls[0]}/?token={status.token}&client=127"
        ended = await once("--once", url, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert rb"client 127\u2026" in ended.stdout


async def test_ctrl_c_while_it_waits_is_no_error() -> None:
    """It is the signal that ends the process, as a shell expects, and no traceback."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = "http://{}:{}/".format(*listener.getsockname())
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", TOP, "--once", url], stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        with trio.fail_after(SECONDS):
            client, _ = await listener.accept()
            with client:
                process.send_signal(signal.SIGINT)
                assert await read_all(process.stderr) == b""
                assert await process.wait() == -signal.SIGINT
        await process.stderr.aclose()


async def test_a_live_view_needs_a_terminal(runtime_dir: Path) -> None:
    """The error names the alternative."""
    async with serving(runtime_dir=str(runtime_dir)):
        ended = await once(str(runtime_dir))
    assert ended.returncode == 1
    assert (
        ended.stderr == b"httptrack top: a live view needs a terminal; --once prints it as text\n"
    )


def test_only_the_live_view_needs_rich() -> None:
    """The error names the command to install it."""
    program = """
import io, sys
sys.modules["rich"] = sys.modules["rich.console"] = None
import trio_httptrack.top
sys.stdin = sys.stdout = type("Terminal", (io.StringIO,), {"isatty": lambda self: True})()
trio_httptrack.top.main("httptrack top", ["/nowhere"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "httptrack top: a live view needs rich.console: pip install 'trio-httptrack[top]'\n"
    )


# In a terminal


@asynccontextmanager
async def stuck(
    runtime_dir: Path, folder: Path, *arguments: str
) -> AsyncIterator[HypercornProcess]:
    """A real server with workers, and a request in flight."""
    config = folder / "hypercorn_conf.py"
    config.write_text(
        "from trio_httptrack import hook\n"
        f"conn_state = hook('top_app:tracker')\nruntime_dir = {str(runtime_dir)!r}\n"
        "graceful_timeout = 0.1\n"
    )
    async with (
        hypercorn("-k", "trio", *arguments, "-c", f"file:{config}", "top_app:app") as server,
        await connect(server.url) as client,
    ):
        await get(server.url)  # a worker is there
        await client.send_all(b"GET /report HTTP/1.1\r\nhost: x\r\n\r\n")
        yield server


STUCK = r"^ +[\d.]+s waiting   GET /report$"


async def test_it_shows_a_stuck_request_of_two_workers(runtime_dir: Path, tmp_path: Path) -> None:
    """Filtered and grouped, paused, and on a screen of another size, as the keys say."""
    async with stuck(runtime_dir, tmp_path, "-w", "2"), top(str(runtime_dir)) as terminal:
        await terminal.shows(STUCK)
        await terminal.shows(r"^ *\d+ +[\d.]+s +1 +\d+ ms$")
        await terminal.shows(r"^ *\d+ +[\d.]+s +0 +\d+ ms$")
        await terminal.press("/nothing\r")
        await terminal.shows("^Listed: 0 of 1, page 1 of 1; .*; nothing in a path$")
        assert "GET" not in terminal.screen.text
        await terminal.press("/" + 7 * "\x7f" + "\r")
        await terminal.shows(STUCK)
        await terminal.press("g")
        await terminal.shows(r"^127\.0\.0\.1 +1 +0 +1 +0 +0 +0 +")
        await terminal.press(" ")
        await terminal.shows("paused")
        terminal.resize(100, 12)
        await terminal.shows(r"^127\.0\.0\.1 +1 +0 +1 +0 +0 +0 +")
        await terminal.shows("q quit")
        await terminal.press("q")
        assert await terminal.ends() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_it_and_the_terminal_is_as_before(
    runtime_dir: Path, number: signal.Signals
) -> None:
    """With its first screen, its cursor and its modes."""
    async with serving(runtime_dir=str(runtime_dir)), top(str(runtime_dir)) as terminal:
        await terminal.shows("q quit")
        assert terminal.screen.alternate
        assert not any(terminal.screen.modes.values())
        terminal.process.send_signal(number)
        assert await terminal.ends() == 0


async def test_ctrl_c_ends_it(runtime_dir: Path) -> None:
    """It is a signal, which the terminal sends."""
    async with serving(runtime_dir=str(runtime_dir)), top(str(runtime_dir)) as terminal:
        await terminal.shows("q quit")
        await terminal.press("\x03")
        assert await terminal.ends() == 0


async def test_a_terminal_that_has_gone_ends_it(runtime_dir: Path) -> None:
    """Without an error message."""
    async with serving(runtime_dir=str(runtime_dir)), top(str(runtime_dir)) as terminal:
        await terminal.shows("q quit")
        await terminal.hang_up()
        assert await terminal.process.wait() in (0, -signal.SIGHUP)  # whichever came first


@asynccontextmanager
async def on_screen() -> AsyncIterator[tuple[Terminal, int]]:
    """A terminal without a process, and its other end."""
    ours, tty = pty.openpty()
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("4H", 5, 40, 0, 0))
    screen = Terminal(tty)
    await screen.enter()
    try:
        yield screen, ours
    finally:
        await screen.close()
        with suppress(OSError):  # the test has closed it
            os.close(ours)


async def written(ours: int, screen: Terminal) -> str:
    """What was written since the last time."""
    await screen._write("END")
    received = b""
    while not received.endswith(b"END"):
        await trio.lowlevel.wait_readable(ours)
        received += os.read(ours, 2**16)
    return received[:-3].decode()


async def test_only_the_changed_parts_of_a_line_are_written() -> None:
    """Unless there is a character that the terminal may think wider than we do."""
    async with on_screen() as (screen, ours):
        await screen.paint(
            [[Span("/slow 1m09s"), Span("  3 requests  1m08s")], [Span("/日本 1m09s")]]
        )
        await written(ours, screen)
        await screen.paint(
            [[Span("/slow 1m10s"), Span("  3 requests  1m09s")], [Span("/日本 1m10s")]]
        )
        assert await written(ours, screen) == (
            f"\x1b[1;9H10\x1b[1;29H9\x1b[2;1H\x1b[2K{'/日本 1m10s':38}"
        )
        await screen.paint(
            [[Span("/slow 1m10s"), Span("  3 requests  1m09s")], [Span("/日本 1m10s")]]
        )
        assert await written(ours, screen) == ""


async def test_nothing_is_painted_while_the_terminal_is_not_ours() -> None:
    """While Ctrl-Z has stopped it, and before it is entered again."""
    async with on_screen() as (screen, ours):
        await screen.leave()
        await written(ours, screen)
        await screen.paint([[Span("mine")]])
        assert await written(ours, screen) == ""
        await screen.enter()
        await screen.paint([[Span("mine")]])
        assert "mine" in await written(ours, screen)


async def test_a_terminal_that_has_gone_causes_no_error() -> None:
    """It ends the keys."""
    async with on_screen() as (screen, ours):
        os.close(ours)
        await screen.paint([[Span("lost")]])
        assert [key async for key in screen.pressed()] == []
        await screen.leave()


async def test_a_terminal_that_does_not_read_does_not_block_the_exit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Such as one behind a connection that is stuck: it gets its modes back, and a second."""
    async with on_screen() as (screen, _):
        cooked = screen._modes
        assert termios.tcgetattr(screen._fd) != cooked
        with suppress(BlockingIOError):
            while True:
                os.write(screen._fd, bytes(1024))
        await screen.leave()
        assert trio.current_time() == 1
        assert termios.tcgetattr(screen._fd) == cooked


async def test_an_error_of_ours_is_written_on_the_first_screen(runtime_dir: Path) -> None:
    """And the terminal is as before."""
    broken = f"""
from trio_httptrack.top import _live
_live.Live.press = lambda live, key: 1 / 0
{TOP}
"""
    async with (
        serving(runtime_dir=str(runtime_dir)),
        top(str(runtime_dir), program=broken, height=200) as terminal,
    ):
        await terminal.shows("q quit")
        await terminal.press("x")
        assert await terminal.ends() == 1
        await terminal.shows("ZeroDivisionError: division by zero")


async def test_a_resized_screen_is_painted_in_full(runtime_dir: Path) -> None:
    """After a SIGWINCH, also where its size is what it was before."""
    async with serving(runtime_dir=str(runtime_dir)), top(str(runtime_dir)) as terminal:
        await terminal.shows("q quit")
        terminal.screen.resize(80, 24)
        terminal.process.send_signal(signal.SIGWINCH)
        await terminal.shows("q quit")
        await terminal.press("q")
        assert await terminal.ends() == 0


async def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(runtime_dir: Path) -> None:
    """Then the screen is painted again."""
    async with serving(runtime_dir=str(runtime_dir)), top(str(runtime_dir)) as terminal:
        await terminal.shows("q quit")
        await terminal.press("\x1a")
        await terminal.left()
        await stopped(terminal.process.pid)
        assert termios.tcgetattr(terminal.tty) == terminal.modes
        terminal.process.send_signal(signal.SIGCONT)
        await terminal.shows("q quit")
        assert terminal.screen.alternate
        await terminal.press("q")
        assert await terminal.ends() == 0


async def stopped(pid: int) -> None:
    """Wait until a child of ours is."""
    await trio.to_thread.run_sync(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


@pytest.mark.parametrize(
    ("environ", "colours"), [({}, {"31"}), ({"NO_COLOR": "1"}, set()), ({"TERM": "dumb"}, set())]
)
async def test_problems_are_red(environ: Any, colours: set[str]) -> None:
    """Unless the user wants no colours, or the terminal has none; the words show it, too."""
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        async with top("http://{}:{}/".format(*unused.getsockname()), **environ) as terminal:
            await terminal.shows("^No data for .*: Connection refused$")
            found = {each for style in terminal.screen.styles for each in style.split(";")}
            assert {each for each in found if len(each) > 1} == colours


async def test_a_worker_that_is_stopped_does_not_respond_for_longer_and_longer(
    runtime_dir: Path, tmp_path: Path
) -> None:
    """Until it goes on."""
    async with stuck(runtime_dir, tmp_path, "-w", "1"), top(str(runtime_dir)) as terminal:
        await terminal.shows(STUCK)
        (pid,) = {int(path.name.partition("-")[0]) for path in sockets(runtime_dir)}
        os.kill(pid, signal.SIGSTOP)
        try:
            for second in ("0", "1", "2"):
                await terminal.shows(rf"^ *{pid}  no response for {second}\.\d s$")
        finally:
            os.kill(pid, signal.SIGCONT)
        await terminal.shows(STUCK)
        await terminal.hides("no response")


async def test_a_worker_that_was_killed_disappears(runtime_dir: Path, tmp_path: Path) -> None:
    """If it was the last one, there is an error."""
    async with (
        stuck(runtime_dir, tmp_path, "-w", "0") as killed,
        stuck(runtime_dir, tmp_path, "-w", "0") as other,
        top(str(runtime_dir)) as terminal,
    ):
        await terminal.shows(rf"^ *{killed.process.pid} ")
        await terminal.shows(rf"^ *{other.process.pid} ")
        killed.process.kill()
        await terminal.hides(rf"^ *{killed.process.pid} ")
        assert re.search(rf"^ *{other.process.pid} ", terminal.screen.text, re.MULTILINE)
        other.process.kill()
        await terminal.shows(f"^No data for .* s: no worker listens in {runtime_dir}$")


async def test_a_page_that_comes_back_is_shown_again() -> None:
    """It keeps trying, and shows for how long it has tried."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host, port = listener.getsockname()
    async with top(f"http://{host}:{port}/?token={StatusApp().token}") as terminal:
        await terminal.shows(f"^No data for .* s: http://{host}:{port}/: Connection refused$")
        async with serving(bind=f"{host}:{port}"):
            await terminal.shows("^Listed: 1, page 1 of 1")
            assert "No data" not in terminal.screen.text
        await terminal.shows("^No data for .* s: ")
        assert "Listed: 1" in terminal.screen.text
        await terminal.press("q")
        assert await terminal.ends() == 0
