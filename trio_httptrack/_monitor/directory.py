"""Where the workers of one server find each other: a directory that is private to its user.

Each worker listens on a Unix socket in it, ``PID-random.sock``. Without the setting
``runtime_dir``, each server has a directory of its own below ``$XDG_RUNTIME_DIR/trio-httptrack``,
or below ``/tmp/trio-httptrack-UID`` if there is no ``XDG_RUNTIME_DIR``. The name of the directory
is the ID of the workers' parent process.

Other users may write to ``/tmp``. So a directory is used only if it belongs to us and other users
cannot enter it. Then they cannot put a socket or a link into it, or replace it. Root may look at
the directories of all users, and one of them may be hostile. So a viewer outside of the server
removes nothing, sends nothing but a request, and sends it only to a process of the directory's
owner.
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
RUN_USER = Path("/run/user")  # where systemd puts each user's XDG_RUNTIME_DIR
MAX_PATH_LENGTH = 107  # bytes: the longest path of a Unix socket on Linux


class DirectoryError(ValueError):
    """A directory cannot be used for the workers' sockets."""


class NoDirectoryError(DirectoryError):
    """No directory can be used: Python has no Unix sockets on this system, such as Windows."""


def require_unix_sockets() -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise NoDirectoryError("Python has no Unix sockets on this system")


def default_base() -> Path:
    """Return the parent of the directories of this user's servers.

    Raises:
      NoDirectoryError: the system has no Unix sockets.
    """
    require_unix_sockets()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime):
        return Path(runtime, "trio-httptrack")
    return Path(tempfile.gettempdir(), f"trio-httptrack-{os.geteuid()}")


def default_directory() -> Path:
    """Return the default directory of this process's server."""
    parent = parent_process()
    return default_base() / str(os.getpid() if parent is None or parent.pid is None else parent.pid)


def prepare_directory(runtime_dir: str | None) -> Path:
    """Return the directory of this process's server. Make it if it does not exist.

    Raises:
      DirectoryError: it belongs to another user, is open to others, or is not a directory.
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
    """Raise a DirectoryError unless it is a directory that only its owner can enter.

    The owner must be our user. Root may use the directories of all users.
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
    """Return the path of a worker's socket.

    Raises:
      DirectoryError: the path would be too long.
    """
    path = directory / f"{name}{SUFFIX}"
    check_length(path)
    return path


def check_length(path: Path) -> None:
    """Raise a DirectoryError if the path is too long for a Unix socket."""
    if len(os.fsencode(path)) > MAX_PATH_LENGTH:
        raise DirectoryError(
            f"{path.parent} is too long for a Unix socket's path: choose a shorter one"
        )


def sockets(directory: Path) -> list[Path]:
    """Return the sockets in a directory. Those of dead workers may be among them."""
    with suppress(FileNotFoundError):
        return sorted(directory.glob(f"*{SUFFIX}"))
    return []


def socket_exists(path: Path) -> bool:
    return path.exists()


def remove_socket(path: Path) -> None:
    """Remove a socket that no worker listens on any more."""
    with suppress(OSError):  # another process was faster
        path.unlink()


def is_dead(path: Path) -> bool:
    """Return whether no worker listens on a socket any more."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
    return False


def remove_dead_sockets(base: Path, own: Path) -> None:
    """Remove the sockets and directories of servers that were killed."""
    for directory in base.iterdir():
        if directory != own:  # another worker of our server may just have made it
            for path in filter(is_dead, sockets(directory)):
                remove_socket(path)
            remove_if_empty(directory)


def remove_if_empty(directory: Path) -> None:
    """Remove a directory, if it is empty."""
    with suppress(OSError):
        directory.rmdir()


def pid_of(path: Path) -> int:
    """Return the ID of the process that made a socket; 0 if the name has another form."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def server_directories() -> list[Path]:
    """Return the directories of all running servers of this user; for root, of all users.

    Another session of the same user may have no ``XDG_RUNTIME_DIR``, so all places are searched.

    Raises:
      NoDirectoryError: the system has no Unix sockets.
    """
    require_unix_sockets()
    user = "*" if os.geteuid() == 0 else str(os.geteuid())
    bases = {
        default_base(),
        *Path(tempfile.gettempdir()).glob(f"trio-httptrack-{user}"),
        *RUN_USER.glob(f"{user}/trio-httptrack"),
    }
    # A server that was killed leaves its sockets: skip it.
    return sorted(
        path
        for base in bases
        for path in private_directories(base)
        if not all(map(is_dead, sockets(path)))
    )


def private_directories(base: Path) -> Iterator[Path]:
    """Yield the servers' directories in a base directory. Skip links and what is not private."""
    with suppress(OSError, DirectoryError):
        check_private(base)
        for path in base.iterdir():
            with suppress(OSError, DirectoryError):
                check_private(path)
                yield path
