"""``check`` finds what a start of ``hypercorn`` would find, and starts nothing."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest

from trio_httptrack._hypercorn.check import DESCRIPTION

from .hypercorn_process import check, get, hypercorn, run_to_its_end

SCRIPTS = Path(sys.executable).parent
HOOK = "from trio_httptrack import hook\n\nconn_state = hook('myapp:tracker')\n"
MYAPP = """\
from trio_httptrack import StatsTracker

tracker = StatsTracker()
number = 5


class Own:
    def track(self, conn, state): ...


own = Own()


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise RuntimeError("the lifespan has run")
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the command is typed."""
    (tmp_path / "myapp.py").write_text(MYAPP)
    (tmp_path / "conf.py").write_text(HOOK)
    return tmp_path


CONF = ("-k", "trio", "-c", "file:conf.py")


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.parametrize("more", [[], ["--statsd-host", "127.0.0.1:9"]], ids=["plain", "statsd"])
@pytest.mark.parametrize("tracker", ["StatsTracker", "LogTracker"])
async def test_the_line_is_the_one_that_the_start_logs(
    workers: str, more: list[str], tracker: str, folder: Path
) -> None:
    """Nothing else is printed, and the exit status is 0."""
    (folder / "myapp.py").write_text(MYAPP.replace("StatsTracker", tracker))
    config, app = f"file:{folder / 'conf.py'}", f"{folder / 'myapp.py'}:app"
    arguments = ("-k", "trio", "-c", config, "-w", workers, *more, app)
    status, stdout, stderr = await check(*arguments, cwd=folder)
    assert (status, stderr) == (0, "")
    assert stdout == f"Tracking with myapp:tracker: {tracker}; HTTP/1.1, h2; drain 3.0 s\n"
    async with hypercorn(*arguments) as server:
        assert await get(server.url) == b""
    assert f"[INFO] {stdout}" in server.stderr


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
async def test_nothing_is_bound_written_or_run(folder: Path) -> None:
    """The check runs beside the server, with the server's own arguments."""
    unix = folder / "socket"
    (folder / "conf.py").write_text(f"{HOOK}runtime_dir = 'runtime'\n")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as unix_listener,
    ):
        unix_listener.bind(str(unix))
        binds = ["-b", "{}:{}".format(*listener.getsockname()), "-b", f"unix:{unix}"]
        logs = ["--access-logfile", "access", "--error-logfile", "error"]
        status, _, stderr = await check(
            *CONF, *binds, *logs, "--pid", "pid", "myapp:app", cwd=folder
        )
    assert (status, stderr) == (0, "")  # the lifespan would have failed
    assert unix.is_socket()
    assert not (folder / "pid").exists()
    assert not (folder / "runtime").exists()
    assert not (folder / "access").exists()
    assert not (folder / "error").exists()


WRONG: dict[str, tuple[dict[str, str], str, str]] = {
    # What is wrong: the files that differ, the arguments, the line.
    "no config file": (
        {},
        "-c file:missing.py myapp:app",
        (
            "-c file:missing.py cannot be loaded: FileNotFoundError: "
            "[Errno 2] No such file or directory: '{folder}/missing.py'"
        ),
    ),
    "a broken config file": (
        {"conf.py": "import os\n\nconn_state = os.environ['TRACKER']\n"},
        "-c file:conf.py myapp:app",
        "-c file:conf.py cannot be loaded: KeyError: 'TRACKER' (conf.py, line 3)",
    ),
    "no config module": (
        {},
        "-c python:missing myapp:app",
        "-c python:missing cannot be loaded: ModuleNotFoundError: No module named 'missing'",
    ),
    "a broken TOML file": (
        {"conf.toml": "conn_state = myapp"},
        "-c conf.toml myapp:app",
        "-c conf.toml cannot be loaded: TOMLDecodeError: Invalid value (at line 1, column 14)",
    ),
    "a Python file as TOML": (
        {},
        "-c conf.py myapp:app",
        "-c conf.py would be read as TOML: write -c file:conf.py",
    ),
    "a Python file of another name": (
        {},
        "-c file:conf myapp:app",
        "-c file:conf: the name of a Python file must end with .py",
    ),
    "no application": (
        {},
        "-c file:conf.py yourapp:app",
        (
            "yourapp:app cannot be imported: NoAppError: "
            "Cannot load application from 'yourapp:app', module not found."
        ),
    ),
    "a syntax error": (
        {"broken.py": "async def app(scope, receive, send)\n"},
        "-c file:conf.py broken:app",
        "broken:app cannot be imported: SyntaxError: expected ':' (broken.py, line 1)",
    ),
    "a syntax error behind an import": (
        {"broken.py": "1 +\n", "importing.py": "\nimport broken\n"},
        "-c file:conf.py importing:app",
        "importing:app cannot be imported: SyntaxError: invalid syntax (broken.py, line 1)",
    ),
    "an error in the standard library": (
        {"broken.py": "import json\n\njson.loads('{')\n"},
        "-c file:conf.py broken:app",
        (
            "broken:app cannot be imported: JSONDecodeError: Expecting property name enclosed in "
            "double quotes: line 1 column 2 (char 1) (broken.py, line 3)"
        ),
    ),
    "an error of several lines": (
        {"broken.py": "raise ValueError('one\\ntwo')\n"},
        "-c file:conf.py broken:app",
        "broken:app cannot be imported: ValueError: one two (broken.py, line 1)",
    ),
    "an application that exits": (
        {"broken.py": "import sys\n\nsys.exit('no database')\n"},
        "-c file:conf.py broken:app",
        "broken:app cannot be imported: SystemExit: no database (broken.py, line 3)",
    ),
    "a worker process that ends": (
        {"broken.py": "import os\n\nos._exit(7)\n"},
        "-c file:conf.py -w 1 broken:app",
        "broken:app: the worker process exited with status 7 while it imported the application",
    ),
    "another form": (
        {},
        "-c file:conf.py my:app:app",
        "my:app:app cannot be imported: ValueError: Invalid mode, must be 'asgi', or 'wsgi'",
    ),
    "no application at all": (
        {},
        "-c file:conf.py myapp:number",
        "myapp:number is 5, which is not an ASGI or WSGI application",
    ),
    "no conn_state": (
        {},
        "myapp:app",
        (
            "conn_state is missing, so nothing would be tracked: write conn_state = "
            "hook('myapp:tracker') into a Python config file, or use the ready-made one, "
            "-c python:trio_httptrack.config"
        ),
    ),
    "a string that nobody reads": (
        {"conf.toml": "conn_state = 'myapp:tracker'"},
        "-c conf.toml myapp:app",
        (
            "conn_state is 'myapp:tracker', but nothing calls install(), so nothing would be "
            "tracked: call trio_httptrack.install() in the application's module"
        ),
    ),
    "a string that only the parent reads": (
        {"conf.py": "from trio_httptrack import install\ninstall()\nconn_state = 'myapp:tracker'"},
        "-c file:conf.py -w 1 myapp:app",
        (
            "conn_state is 'myapp:tracker', but nothing calls install(), so nothing would be "
            "tracked: call trio_httptrack.install() in the application's module"
        ),
    ),
    "a hook that leads nowhere": (
        {"conf.py": HOOK.replace("myapp", "yourapp")},
        "-c file:conf.py -w 1 myapp:app",
        "hook('yourapp:tracker'): there is no module 'yourapp'",
    ),
    "a hook of another form": (
        {"conf.py": HOOK.replace(":", ".")},
        "-c file:conf.py myapp:app",
        "hook('myapp.tracker'): write it as 'package.module:attribute'",
    ),
    "a hook to what cannot be imported": (
        {"conf.py": HOOK.replace("myapp", "broken"), "broken.py": "1 / 0"},
        "-c file:conf.py myapp:app",
        (
            "conn_state, hook('broken:tracker'), cannot be imported: ZeroDivisionError: "
            "division by zero (broken.py, line 1)"
        ),
    ),
    "no tracker": (
        {"conf.py": "conn_state = 42"},
        "-c file:conf.py -w 1 myapp:app",
        "conn_state: 42 is not a tracker: it has no track(conn, state)",
    ),
    "an object that fails when it is looked at": (
        {
            "conf.py": "class Odd:\n    @property\n    def track(self):\n        return 1 / 0\n"
            "conn_state = Odd()"
        },
        "-c file:conf.py myapp:app",
        "hypercorn would not start: ZeroDivisionError: division by zero (conf.py, line 4)",
    ),
    "a tracker that cannot travel": (
        {"conf.py": "from trio_httptrack import ConnTracker\nconn_state = ConnTracker()"},
        "-c file:conf.py -w 1 myapp:app",
        (
            "conn_state: <ConnTracker count=0> lives in this process and cannot be sent to a "
            "worker process; in a Hypercorn config do not import it, but name it by its import "
            "path: conn_state = hook('myapp:tracker')"
        ),
    ),
    "a tracker that cannot be pickled": (
        {
            "conf.py": "class Own:\n    def track(self, conn, state): ...\n"
            "    def __repr__(self): return 'Own()'\n"
            "conn_state = Own()\ndel Own"
        },
        "-c file:conf.py -w 1 myapp:app",
        (
            "conn_state: Own() cannot be sent to a worker process (Can't pickle <class "
            "'module.name.Own'>: …): "
            "write conn_state = hook('myapp:tracker')"
        ),
    ),
    "another name that cannot be pickled": (
        {"conf.py": f"{HOOK}lock = __import__('threading').Event()._cond._lock"},
        "-c file:conf.py -w 1 myapp:app",
        (
            "lock: <unlocked _thread.lock object at …> cannot be sent to a worker process (cannot "
            "pickle '_thread.lock' object): write 'del lock' at the end of the config file"
        ),
    ),
    "a copy of a tracker": (
        {
            "own.py": "import trio_httptrack\nfrom myapp import app\ntrio_httptrack.install()",
            "conf.py": "import sys\nsys.path.append('.')\nfrom myapp import own as conn_state",
        },
        "-c file:conf.py -w 1 own:app",
        (
            "conn_state: <myapp.Own object at …> is a copy of the application's tracker: name that "
            "by its import path, conn_state = hook('myapp:tracker')"
        ),
    ),
    "another worker": (
        {},
        "-k asyncio -c file:conf.py myapp:app",
        (
            "worker_class is 'asyncio', and only Hypercorn's trio worker is tracked: "
            "start it with -k trio"
        ),
    ),
    "no number of workers": (
        {},
        "-c file:conf.py -w -1 myapp:app",
        "workers must be a number, 0 or more, not -1",
    ),
    "a reload without workers": (
        {},
        "-c file:conf.py --reload myapp:app",
        "use_reloader needs a worker process: with --reload, remove -w 0",
    ),
    "a misspelt setting": (
        {"conf.py": f"{HOOK}grace_timeout = 3"},
        "-c file:conf.py -w 1 myapp:app",
        (
            "grace_timeout: there is no such setting; did you mean graceful_timeout? "
            "(A name of your own can begin with _)"
        ),
    ),
    "a wrong setting": (
        {"conf.py": f"{HOOK}drain_idle_timeout = -1"},
        "-c file:conf.py myapp:app",
        "drain_idle_timeout must be a number of seconds, 0 or more, not -1",
    ),
    "a wrong setting of Hypercorn's": (
        {"conf.py": f"{HOOK}server_names = 5"},
        "-c file:conf.py myapp:app",
        "server_names must be a list of strings, not 5",
    ),
    "a runtime directory that is not one": (
        {"conf.py": f"{HOOK}runtime_dir = 'myapp.py'"},
        "-c file:conf.py myapp:app",
        "runtime_dir: {folder}/myapp.py is not a directory",
    ),
    "a runtime directory without a place": (
        {"conf.py": f"{HOOK}runtime_dir = 'not/there'"},
        "-c file:conf.py myapp:app",
        "runtime_dir: [Errno 2] No such file or directory: '{folder}/not/there'",
    ),
    "a runtime directory that is too long": (
        {"conf.py": f"{HOOK}runtime_dir = '{'long' * 25}'"},
        "-c file:conf.py myapp:app",
        (
            f"runtime_dir: {{folder}}/{'long' * 25} is too long for a Unix socket's path: "
            "choose a shorter one"
        ),
    ),
    "a PID file without a place": (
        {},
        "-c file:conf.py --pid not/there myapp:app",
        "pid_path: the directory of 'not/there' does not exist",
    ),
    "a Unix socket with too long a path": (
        {},
        f"-c file:conf.py -b unix:/{'long' * 30}/socket myapp:app",
        f"bind: /{'long' * 30} is too long for a Unix socket's path: choose a shorter one",
    ),
    "an address twice": (
        {},
        "-c file:conf.py -b 127.0.0.1:8000 -b 127.0.0.1:8000 myapp:app",
        "bind: '127.0.0.1:8000' is listed twice",
    ),
    "no address": (
        {"conf.py": f"{HOOK}bind = []"},
        "-c file:conf.py myapp:app",
        "bind is empty, so the server would not listen anywhere",
    ),
    "a StatsD host without a port": (
        {},
        "-c file:conf.py --statsd-host localhost myapp:app",
        "statsd_host must be 'HOST:PORT', by name or IPv4 address, not 'localhost'",
    ),
    "a log level that there is not": (
        {},
        "-c file:conf.py --log-level LOUD myapp:app",
        "the log cannot be opened: ValueError: Unknown level: 'Level LOUD'",
    ),
    "no certificate": (
        {},
        "-c file:conf.py --certfile cert.pem --keyfile conf.py myapp:app",
        (
            "certfile cannot be read: FileNotFoundError: "
            "[Errno 2] No such file or directory: 'cert.pem'"
        ),
    ),
    "a certificate without a key": (
        {},
        "-c file:conf.py --certfile conf.py myapp:app",
        "certfile and keyfile: TLS needs both, and Hypercorn would serve without TLS",
    ),
    "another file as certificate": (
        {},
        "-c file:conf.py --certfile conf.py --keyfile conf.py myapp:app",
        "certfile, keyfile, ca_certs, ciphers: they cannot be used for TLS: SSLError: …",
    ),
    "a port that is not one": (
        {},
        "-c file:conf.py -b 127.0.0.1:80000 myapp:app",
        "bind: '127.0.0.1:80000' has a port that is not from 0 to 65535",
    ),
    "a port with letters": (
        {},
        "-c file:conf.py -b 127.0.0.1:http myapp:app",
        (
            "bind: '127.0.0.1:http' is not the address of a host (…): "
            "write 'HOST:PORT', 'HOST', 'unix:PATH' or 'fd://NUMBER'"
        ),
    ),
    "a port alone": (
        {},
        "-c file:conf.py -b 8000 myapp:app",
        "bind must be 'HOST:PORT', 'HOST', 'unix:PATH' or 'fd://NUMBER', not '8000'",
    ),
    "a file descriptor with letters": (
        {},
        "-c file:conf.py --insecure-bind fd://three myapp:app",
        "insecure_bind must be 'HOST:PORT', 'HOST', 'unix:PATH' or 'fd://NUMBER', not 'fd://three'",
    ),
    "an address that is no text": (
        {"conf.py": f"{HOOK}bind = 8000"},
        "-c file:conf.py myapp:app",
        "bind must be 'HOST:PORT', 'HOST', 'unix:PATH' or 'fd://NUMBER', not 8000",
    ),
}
WITH_UNIX_SOCKETS = {
    "a runtime directory that is not one",
    "a runtime directory without a place",
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_an_error_is_reported_in_one_line(wrong: str, folder: Path) -> None:
    """With status 1; a … stands for what differs each time."""
    if wrong in WITH_UNIX_SOCKETS and not hasattr(socket, "AF_UNIX"):
        pytest.skip("needs Unix sockets")
    files, arguments, line = WRONG[wrong]
    for name, content in files.items():
        (folder / name).write_text(content)
    command = ["-k", "trio", "-w", "0", *arguments.split()]
    status, stdout, stderr = await check(*command, cwd=folder)
    expected = re.escape(f"trio_httptrack: {line}\n").replace("…", ".+")
    assert re.fullmatch(expected.replace(re.escape("{folder}"), ".*"), stderr), stderr
    assert (status, stdout) == (1, "")


@pytest.mark.parametrize(
    "address",
    [":8000", "localhost", "[::1]:8000", "0.0.0.0:0", "fd://99", "unix:/nowhere/socket"],
)
async def test_an_address_that_can_be_bound_on_another_day_is_fine(
    address: str, folder: Path
) -> None:
    """Systemd provides file descriptors and directories for the server only."""
    assert await check(*CONF, "-w", "0", "-b", address, "myapp:app", cwd=folder) == (
        0,
        "Tracking with myapp:tracker: StatsTracker; HTTP/1.1, h2; drain 3.0 s\n",
        "",
    )


async def test_with_tls_the_line_has_its_protocols(folder: Path, certificate: Path) -> None:
    """The files are fine, and are read."""
    tls = ("--certfile", str(certificate), "--keyfile", str(certificate))
    status, stdout, _ = await check(*CONF, *tls, "myapp:app", cwd=folder)
    assert (status, stdout) == (
        0,
        "Tracking with myapp:tracker: StatsTracker; h2, http/1.1; drain 3.0 s\n",
    )


async def test_a_thread_that_never_ends_does_not_keep_the_check(folder: Path) -> None:
    """What the application starts as it is imported ends with the worker process."""
    (folder / "threads.py").write_text(
        "import threading\nfrom myapp import app\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
    )
    status, _, stderr = await check(*CONF, "threads:app", cwd=folder)
    assert (status, stderr) == (0, "")


@pytest.mark.parametrize(
    ("ours", "hypercorns", "found"),
    [
        ([str(SCRIPTS / "httptrack")], [str(SCRIPTS / "hypercorn")], False),
        ([sys.executable, "-m", "trio_httptrack"], [sys.executable, "-m", "hypercorn"], True),
    ],
    ids=["scripts", "modules"],
)
async def test_modules_are_found_where_hypercorn_finds_them(
    ours: list[str], hypercorns: list[str], found: bool, folder: Path
) -> None:
    """A config file imports from the current directory under ``python -m`` only."""
    (folder / "conf.py").write_text(f"import myapp\n{HOOK}")
    status, _, stderr = await run_to_its_end(*ours, "check", *CONF, "myapp:app", cwd=folder)
    assert (status == 0) is found
    assert ("No module named 'myapp'" not in stderr) is found
    # Hypercorn reads the config and then fails, as it has an address that it cannot read.
    wrong = ("-b", "fd://x")
    _, _, stderr = await run_to_its_end(*hypercorns, *CONF, *wrong, "myapp:app", cwd=folder)
    assert ("No module named 'myapp'" not in stderr) is found


async def test_wrong_arguments_exit_with_status_2(folder: Path) -> None:
    """As Hypercorn's do; the parser is its own."""
    for arguments, complaint in (
        (["-w", "many", "myapp:app"], "-w/--workers: invalid int value: 'many'"),
        ([], "the following arguments are required: application"),
    ):
        status, _, stderr = await check(*arguments, cwd=folder)
        assert status == 2
        assert stderr.startswith("usage: python -m trio_httptrack check ")
        assert stderr.endswith(f"error: {'argument ' * bool(arguments)}{complaint}\n")


async def test_the_application_sees_hypercorns_arguments(folder: Path) -> None:
    """Not the name of the check."""
    (folder / "argued.py").write_text("import sys\nfrom myapp import app\nprint(sys.argv[1:])\n")
    arguments = [*CONF, "-w", "0", "argued:app"]
    _, stdout, _ = await check(*arguments, cwd=folder)
    assert stdout.startswith(f"{arguments}\n")


async def test_the_help_describes_what_is_not_checked(folder: Path) -> None:
    """And has Hypercorn's arguments."""
    status, stdout, _ = await check("--help", cwd=folder)
    assert status == 0
    assert " ".join(DESCRIPTION.split()) in " ".join(stdout.split())
    assert "does not run the application's lifespan" in DESCRIPTION.replace("\n", " ")
    assert "--graceful-timeout" in stdout
