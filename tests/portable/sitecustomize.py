"""Python without what Windows and macOS do not have, so that the portable code runs here.

``nox -s portable`` puts this directory on ``PYTHONPATH``: each Python that the tests start imports
it before anything else. What the package may not use is taken away. What Python itself, Trio and
the tests need in order to run on this system was imported before, and keeps it.

SIGHUP and SIGSTOP stay: the tests drive processes with them.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import multiprocessing.connection
import multiprocessing.resource_sharer  # noqa: F401
import os
import select
import signal
import socket
import stat
import subprocess  # noqa: F401
import sys
from types import SimpleNamespace
from typing import Any

import trio

vars(trio._core._io_epoll)["select"] = SimpleNamespace(**vars(select))

UNKNOWN = 0x7FFF  # an option that no socket has: the system refuses it

for module, names in {
    select: [name for name in vars(select) if name.lower().startswith("epoll")],
    os: ["writev", "readv", "sendfile", "geteuid"],
    socket: ["SO_PEERCRED"],
    signal: ["SIGWINCH", "SIGTSTP"],
}.items():
    for name in names:
        delattr(module, name)

vars(socket)["TCP_INFO"] = UNKNOWN

for name in ("fcntl", "pty", "resource", "termios", "tty"):
    sys.modules[name] = None  # type: ignore[assignment]

unix, pair, read = socket.AF_UNIX, socket.socketpair, os.read
del socket.AF_UNIX


def socketpair(family: int = unix, *args: Any) -> Any:
    """With the same default as before: Trio wakes itself by such a pair."""
    return pair(family, *args)


def read_files_only(fd: int, size: int, /) -> bytes:
    """A socket is no file descriptor on Windows."""
    assert not stat.S_ISSOCK(os.fstat(fd).st_mode), "os.read() of a socket"
    return read(fd, size)


socket.socketpair, os.read = socketpair, read_files_only  # type: ignore[assignment]
