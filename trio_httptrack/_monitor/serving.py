"""A worker's Unix socket, on which other workers, and ``httptrack top``, ask what it is doing.

A question is a line of JSON, and so is what it gets: ``{"query": {...}, "max_age": 0.9}``, and a
``Report``, whose first byte comes at once. Without a query the report lists no connections. A
client may ask as often as it likes, one question at a time.

The socket is in a directory that nobody else can enter. And where the kernel tells who is at the
other end, it must be the same user or root.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from .directory import (
    DirectoryError,
    prepare_directory,
    remove_if_empty,
    remove_socket,
    socket_exists,
    socket_path,
)
from .monitor import Monitor
from .query import Query
from .sockets import is_own, peer_uid

MAX_REQUEST_SIZE = 2**14  # bytes
BACKLOG = 64
ATTEMPTS = 5
CHECK_INTERVAL = 10  # seconds, to see whether our socket is still there


def listen(directory: Path, name: str) -> socket.socket:
    """A socket that listens in the directory.

    Raises:
      DirectoryError: its path would be too long.
      OSError: it cannot be made.
    """
    path = socket_path(directory, name)
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Who finds a socket on which nobody listens takes it for a dead worker's, and removes it.
        # So it gets its name when it listens.
        unfinished = path.with_suffix("")
        sock.bind(os.fspath(unfinished))
        unfinished.chmod(0o600)
        sock.listen(BACKLOG)
        unfinished.rename(path)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(runtime_dir: str | None, name: str) -> tuple[Path, socket.socket]:
    """The directory and the socket of a worker.

    Raises:
      DirectoryError, OSError: as ``prepare_directory`` and ``listen``.
    """
    for _ in range(ATTEMPTS):
        directory = prepare_directory(runtime_dir)
        with suppress(FileNotFoundError):  # another has just left the directory, and removed it
            return directory, listen(directory, name)
    return directory, listen(directory, name)


async def serve(
    monitor: Monitor,
    runtime_dir: str | None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Respond to questions until cancelled; then the socket goes, and the directory, if empty.

    Where somebody removes the directory, as a log-out does with ``$XDG_RUNTIME_DIR``, it is made
    again as soon as that can be.

    Raises:
      DirectoryError, OSError: as ``prepare``, at the start.
    """
    directory, sock = prepare(runtime_dir, monitor.name)
    task_status.started()
    while True:
        monitor.peers.directory = directory
        path = socket_path(directory, monitor.name)
        try:
            listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, partial(respond, monitor), [listener])
                while socket_exists(path):  # noqa: ASYNC110  # a file has no Event
                    await trio.sleep(CHECK_INTERVAL)
                nursery.cancel_scope.cancel()
        finally:
            sock.close()
            remove_socket(path)
            remove_if_empty(directory)
        again = None
        while again is None:
            with suppress(OSError, DirectoryError):
                again = prepare(runtime_dir, monitor.name)
            await trio.sleep(CHECK_INTERVAL if again is None else 0)
        directory, sock = again


async def respond(monitor: Monitor, stream: trio.SocketStream) -> None:
    """Respond to one client's questions."""
    buffer = b""
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async with stream:
            uid = peer_uid(stream.socket)
            if uid is not None and not is_own(uid):
                return
            while len(buffer) < MAX_REQUEST_SIZE:
                request, end, rest = buffer.partition(b"\n")
                if not end:
                    received = await stream.receive_some()
                    if not received:
                        return
                    buffer += received
                    continue
                buffer = rest
                await stream.send_all(b" ")  # JSON that begins: the loop runs, whatever is in turn
                try:
                    query, max_age = parsed(request)
                    report = await monitor.report(query, max_age=max_age)
                    with monitor.charged():
                        response = json.dumps(report, ensure_ascii=False).encode()
                except Exception as error:  # it must end neither the worker nor its server
                    response = json.dumps({"error": repr(error)}).encode()
                await stream.send_all(response + b"\n")


def parsed(request: bytes) -> tuple[Query | None, float]:
    """
    >>> parsed(b'{"query": {"sort": "-age"}, "max_age": 0}')[0].sort
    '-age'
    """
    asked = json.loads(request)
    query = asked["query"]
    return None if query is None else Query(**query), float(asked["max_age"])
