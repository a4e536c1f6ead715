"""``check``: whether ``hypercorn`` would start and track, without starting it.

Hypercorn's own ``main`` parses the arguments and reads the config. Then it calls our function
instead of its ``run``. With ``workers`` the rest happens in a spawned process, as at a start. Only
there can the check see whether the Config can be pickled, and whether anything calls
:func:`install` *in the worker*. (A call in the config file happens in the parent.)
"""

from __future__ import annotations

import argparse
import socket
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import hypercorn.config
from hypercorn.__main__ import _load_config as hypercorn_load_config
from hypercorn.__main__ import main as hypercorn_main
from hypercorn.config import Config
from hypercorn.utils import load_application

from .._local import ProcessLocal
from .._monitor.directory import DirectoryError, check_length, check_private, socket_path
from . import statsd
from .conn_state import resolve, unresolved
from .entry import exit_in_one_line, installed, refuse_copies
from .settings import SettingError, runtime_dir_of, settings_of
from .worker import describe

DESCRIPTION = """\
Check that hypercorn would start with these arguments, which are hypercorn's own, and print what it
would track. The check imports the config and the application, looks for the tracker, and validates
the settings, the TLS files and the addresses. It binds nothing and does not run the application's
lifespan: it cannot know whether a startup handler would fail. Run 'httptrack check' where you run
'hypercorn', and 'python -m trio_httptrack check' where you run 'python -m hypercorn': Python finds
modules in the current directory in the second case only.
"""
STATUS = """\
The exit status is 0 if hypercorn would start and track, 1 if not (one line on stderr says why), and
2 if the arguments are wrong.
"""
LIBRARY_PATHS = (
    Path(__file__).parents[1],
    Path(hypercorn.config.__file__).parent,
    Path(sysconfig.get_path("stdlib")),
)
EXAMPLE_NAME = "4194304-0a1b2c3d"  # the longest possible name of a worker's socket
NOTHING_TRACKED = (
    "conn_state is missing, so nothing would be tracked: write conn_state = hook('myapp:tracker') "
    "into a Python config file, or use the ready-made one, -c python:trio_httptrack.config"
)


def check(program: str, arguments: list[str]) -> None:
    """Check that hypercorn would start with the same arguments, and print what it would track."""
    make_parser = partial(
        argparse.ArgumentParser, prog=program, description=DESCRIPTION, epilog=STATUS
    )
    names: dict[str, object] = {
        "argparse": SimpleNamespace(**{**vars(argparse), "ArgumentParser": make_parser}),
        "_load_config": _load_config,
        "run": _check,
    }
    start = FunctionType(
        hypercorn_main.__code__,
        {**hypercorn_main.__globals__, **names},
        argdefs=hypercorn_main.__defaults__,
    )
    sys.argv[1:] = arguments  # main() reads them here, and the application may, too
    with exit_in_one_line():
        start()


@contextmanager
def _as_setting_error(what: str) -> Iterator[None]:
    """Raise any other error as a SettingError, whose message is one line."""
    try:
        yield
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingError(
            f"{what}: {type(error).__name__}: {error}{_user_location(error)}"
        ) from None


def _user_location(error: BaseException) -> str:
    """Return the file and line of an error in the user's code. (A SyntaxError names its own.)"""
    if isinstance(error, SyntaxError):
        return ""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        library = {"site-packages", "dist-packages"} & {*file.parts}
        frozen = frame.filename.startswith("<")
        if not (library or frozen or any(map(file.is_relative_to, LIBRARY_PATHS))):
            return f" ({file.name}, line {frame.lineno})"
    return ""


def _load_config(path: str | None) -> Config:
    """Replaces Hypercorn's function of this name."""
    if path is not None and path.endswith(".py") and not path.startswith(("file:", "python:")):
        raise SettingError(f"-c {path} would be read as TOML: write -c file:{path}")
    if path is not None and path.startswith("file:") and not path.endswith(".py"):
        raise SettingError(f"-c {path}: the name of a Python file must end with .py")
    with _as_setting_error(f"-c {path} cannot be loaded"):
        try:
            config: Config = hypercorn_load_config(path)
        except (ValueError, AttributeError) as error:
            # If Hypercorn cannot import a name as a module, it tries it as an attribute of a
            # module. The error of the second attempt hides the first.
            if isinstance(error.__context__, ImportError):
                raise error.__context__ from None
            raise
        return config


@_as_setting_error("hypercorn would not start")
def _check(config: Config) -> None:
    """Replaces Hypercorn's ``run``."""
    if config.worker_class != "trio":
        raise SettingError(
            f"worker_class is {config.worker_class!r}, and only Hypercorn's trio worker is "
            "tracked: start it with -k trio"
        )
    if not isinstance(config.workers, int) or config.workers < 0:
        raise SettingError(f"workers must be a number, 0 or more, not {config.workers!r}")
    if config.use_reloader and config.workers == 0:
        raise SettingError("use_reloader needs a worker process: with --reload, remove -w 0")
    if getattr(config, "conn_state", None) is None:
        raise SettingError(NOTHING_TRACKED)
    unresolved(config.conn_state)  # type: ignore[attr-defined]
    _check_tls(config)
    _check_addresses(config)
    _check_pid_path(config)
    tracking = _check_worker(config) if config.workers == 0 else _check_in_process(config)
    print(f"Tracking{tracking}")  # noqa: T201


def _check_tls(config: Config) -> None:
    # create_ssl_context() does not say which of the files is missing.
    for name in ("certfile", "keyfile", "ca_certs"):
        path = getattr(config, name)
        if path is not None:
            with _as_setting_error(f"{name} cannot be read"):
                Path(path).open("rb").close()
    if (config.certfile is None) != (config.keyfile is None):
        raise SettingError(
            "certfile and keyfile: TLS needs both, and Hypercorn would serve without TLS"
        )
    with _as_setting_error("certfile, keyfile, ca_certs, ciphers: they cannot be used for TLS"):
        config.create_ssl_context()


def _check_addresses(config: Config) -> None:
    found: set[str] = set()
    for name in ("bind", "insecure_bind"):
        addresses = getattr(config, name)
        for address in addresses if isinstance(addresses, (list, tuple)) else [addresses]:
            _check_address(name, address)
            if address in found and not address.endswith(":0"):
                raise SettingError(f"{name}: {address!r} is listed twice")
            found.add(address)
    if not found:
        raise SettingError("bind is empty, so the server would not listen anywhere")


def _check_pid_path(config: Config) -> None:
    if config.pid_path is not None and not Path(config.pid_path).absolute().parent.is_dir():
        raise SettingError(f"pid_path: the directory of {config.pid_path!r} does not exist")


def _check_address(name: str, address: Any) -> None:
    """Refuse an address that Hypercorn's ``create_sockets()`` can never bind.

    A file descriptor need not be open, and the directory of a Unix socket need not exist: systemd
    provides both for the server, but not for the check.
    """
    form = "'HOST:PORT', 'HOST', 'unix:PATH' or 'fd://NUMBER'"
    malformed = SettingError(f"{name} must be {form}, not {address!r}")
    # A number alone would be an odd form of a host. The user means a port.
    if not isinstance(address, str) or address in ("", "unix:") or address.isdecimal():
        raise malformed
    if address.startswith("fd://"):
        if not address.removeprefix("fd://").isdecimal():
            raise malformed
    elif address.startswith("unix:"):
        try:
            check_length(Path(address.removeprefix("unix:")))
        except DirectoryError as error:
            raise SettingError(f"{name}: {error}") from None
    else:
        # As Hypercorn parses it: without a number after the last colon, all of it is the host.
        bare = address.replace("[", "").replace("]", "")
        host, _, port = bare.rpartition(":") if ":" in bare else (bare, "", "8000")
        if not port.removeprefix("-").isdecimal():
            host, port = bare, "8000"
        if not 0 <= int(port) < 65536:
            raise SettingError(f"{name}: {address!r} has a port that is not from 0 to 65535")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            socket.getaddrinfo(host or None, int(port), family, socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SettingError(
                f"{name}: {address!r} is not the address of a host ({error}): write {form}"
            ) from None


def _check_runtime_dir(config: Config) -> None:
    """Refuse a directory that a start would refuse. A missing one is fine: a start makes it."""
    path = runtime_dir_of(config)
    if path is not None:
        directory = Path(path).absolute()
        try:
            socket_path(directory, EXAMPLE_NAME)
            if directory.parent.is_dir() and not directory.exists():
                return
            check_private(directory)
        except (OSError, DirectoryError) as error:
            raise SettingError(f"runtime_dir: {error}") from None


def _check_in_process(config: Config) -> str:
    """Run :func:`_check_worker` as Hypercorn runs a worker, and return what it returns."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(config, sender))
    process.daemon = getattr(config, "daemon", True)  # Hypercorn 0.17 lacks the setting
    try:
        process.start()
    except Exception as error:
        _refuse_unsendable(config)
        raise SettingError(f"the config cannot be sent to a worker process: {error}") from None
    sender.close()
    try:
        ok, line = receiver.recv()
    except EOFError:
        process.join()
        raise SettingError(
            f"{config.application_path}: the worker process exited with status "
            f"{process.exitcode} while it imported the application"
        ) from None
    finally:
        process.kill()  # the application may have started threads that never stop
        process.join()
    if not ok:
        raise SettingError(line)
    return str(line)


def _report(config: Config, sender: Connection) -> None:
    try:
        sender.send((True, _check_worker(config)))
    except SettingError as error:
        sender.send((False, str(error)))


def _refuse_unsendable(config: Config) -> None:
    """Raise an error that names the setting that cannot be pickled.

    Hypercorn makes every name in a config file a setting.
    """
    for name, value in vars(config).items():
        try:
            ForkingPickler.dumps(value)
        except Exception as error:
            if isinstance(value, ProcessLocal):  # its own error says what to write
                raise SettingError(f"{name}: {error}") from None
            advice = f"write 'del {name}' at the end of the config file"
            if name == "conn_state":
                advice = "write conn_state = hook('myapp:tracker')"
            raise SettingError(
                f"{name}: {value!r} cannot be sent to a worker process ({error}): {advice}"
            ) from None


def _check_worker(config: Any) -> str:
    """Do what a worker does before it serves. Return what it would log about its trackers."""
    path = config.application_path
    with _as_setting_error(f"{path} cannot be imported"):
        app = load_application(path, config.wsgi_max_body_size).app  # type: ignore[attr-defined]
    if not callable(app):
        raise SettingError(f"{path} is {app!r}, which is not an ASGI or WSGI application")
    if not installed():
        raise SettingError(
            f"conn_state is {config.conn_state!r}, but nothing calls install(), so nothing would "
            "be tracked: call trio_httptrack.install() in the application's module"
        )
    if config.workers > 0:
        refuse_copies(config)
    with _as_setting_error(f"conn_state, {config.conn_state!r}, cannot be imported"):
        tracker = resolve(config.conn_state)
    settings_of(config)
    _check_runtime_dir(config)
    if config.statsd_host is not None:
        statsd.check(config)
    _check_log(config)
    return describe(config, tracker)


def _check_log(config: Config) -> None:
    """Check that the log can be opened. Remove a file that this creates.

    The file would belong to the user of the check, and the service might not be able to write to
    it.
    """
    files = [config.accesslog, config.errorlog]
    created = [Path(each) for each in files if isinstance(each, str) and each != "-"]
    created = [path for path in created if not path.exists()]
    try:
        with _as_setting_error("the log cannot be opened"):
            _ = config.log
    finally:
        for path in created:
            path.unlink(missing_ok=True)
