"""Where the workers of one server find each other: a directory that is private to its user.

Each worker listens on a Unix socket in it, ``PID-random.sock``. Unless ``runtime_dir`` says
otherwise, a server has a directory of its own below ``$XDG_RUNTIME_DIR/trio-httptrack``, or, where
that is not there, below ``/tmp/trio-httptrack-UID``. Its name is the ID of the process that the
workers have in common.

Others may write to ``/tmp``. So a directory counts only if it is ours, and closed to them: with
that, nobody else can put a socket or a link into it, or take its place. Root may look at
everybody's, and that may be hostile. So who looks from outside removes nothing, and sends nothing
but a question, to nobody but the directory's own user.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import parent_process
from pathlib import Path

SUFFIX = ".sock"
RUN_USER = Path("/run/user")  # where systemd has each user's XDG_RUNTIME_DIR
MAX_PATH_LENGTH = 107  # bytes: the path of a Unix socket, on Linux


class DirectoryError(ValueError):
    """A directory that cannot be used to find workers in."""


class NoDirectoryError(DirectoryError):
    """No directory can be used: the system has no Unix sockets, as Python on Windows."""


def require_unix_sockets() -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise NoDirectoryError("Python has no Unix sockets on this system")


def default_base() -> Path:
    """Return where the directories of all servers of this user are.

    Raises:
      NoDirectory: nowhere.
    """
    require_unix_sockets()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime, "trio-httptrack")
    return Path(tempfile.gettempdir(), f"trio-httptrack-{os.geteuid()}")


def default_directory() -> Path:
    """That of this process's server."""
    parent = parent_process()
    return default_base() / str(os.getpid() if parent is None or parent.pid is None else parent.pid)


def prepare_directory(runtime_dir: str | None) -> Path:
    """The directory for this process's server, which is made if it is not there.

    Raises:
      DirectoryError: it is somebody else's, or open to others, or no directory.
      OSError: it cannot be made.
    """
    require_unix_sockets()
    if runtime_dir is not None:
        directory = Path(runtime_dir).absolute()
    else:
        directory = default_directory()
        make_private(directory.parent)
        remove_dead_sockets(directory.parent, directory)
    make_private(directory)
    return directory


def make_private(path: Path) -> None:
    path.mkdir(mode=0o700, exist_ok=True)
    check_private(path)


def check_private(path: Path) -> None:
    """Raise a DirectoryError unless it is a directory that nobody but its user can enter.

    Its user is ours; root may look at everybody's.
    """
    require_unix_sockets()
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise DirectoryError(f"{path} is not a directory")
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise DirectoryError(f"{path} belongs to another user")
    if found.st_mode & 0o077:
        raise DirectoryError(
            f"{path} is open to other users: use one that only its owner can enter"
        )


def socket_path(directory: Path, name: str) -> Path:
    """That of a worker's socket.

    Raises:
      DirectoryError: it would be too long.
    """
    path = directory / f"{name}{SUFFIX}"
    check_length(path)
    return path


def check_length(path: Path) -> None:
    """Raise a DirectoryError if it is too long for a Unix socket."""
    if len(os.fsencode(path)) > MAX_PATH_LENGTH:
        raise DirectoryError(
            f"{path.parent} is too long for a Unix socket's path: choose a shorter one"
        )


def sockets(directory: Path) -> list[Path]:
    """The sockets of its workers; some may be dead."""
    with suppress(FileNotFoundError):
        return sorted(directory.glob(f"*{SUFFIX}"))
    return []


def socket_exists(path: Path) -> bool:
    return path.exists()


def remove_socket(path: Path) -> None:
    """Remove a socket on which nobody listens any more, or will soon."""
    with suppress(OSError):  # somebody else was faster
        path.unlink()


def is_dead(path: Path) -> bool:
    """Whether nobody listens on a socket any more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
    return False


def remove_dead_sockets(base: Path, own: Path) -> None:
    """Remove what servers have left behind that were killed."""
    for directory in base.iterdir():
        if directory != own:  # which another worker may just have made
            for path in filter(is_dead, sockets(directory)):
                remove_socket(path)
            remove_if_empty(directory)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory, if it is empty."""
    with suppress(OSError):
        directory.rmdir()


def pid_of(path: Path) -> int:
    """The process that has made a socket; 0 if its name is not one of ours."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def server_directories() -> list[Path]:
    """The directories of all servers that run now and that we may look at: root everybody's.

    A server that was started in another session of the same user may be in the other of the places.

    Raises:
      NoDirectory: none can be looked at.
    """
    require_unix_sockets()
    user = "*" if os.geteuid() == 0 else str(os.geteuid())
    bases = {
        default_base(),
        *Path(tempfile.gettempdir()).glob(f"trio-httptrack-{user}"),
        *RUN_USER.glob(f"{user}/trio-httptrack"),
    }
    # A server that was killed has left its sockets.
    return sorted(
        path
        for base in bases
        for path in private_directories(base)
        if not all(map(is_dead, sockets(path)))
    )


def private_directories(base: Path) -> Iterator[Path]:
    """Those in a directory of servers. What is not private, or a link, is nobody's."""
    with suppress(OSError, DirectoryError):
        check_private(base)
        for path in base.iterdir():
            with suppress(OSError, DirectoryError):
                check_private(path)
                yield path
