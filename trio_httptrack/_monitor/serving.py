"""A worker's Unix socket, on which other workers and ``httptrack top`` query it.

A request is a line of JSON: ``{"query": {...}, "max_age": 0.9}``. The response is a ``Report``,
also a line of JSON. Its first byte is sent at once. Without a query the report lists no
connections. A client may send any number of requests, one after the other.

The socket is in a directory that other users cannot enter. Besides, the peer must be the same user
or root, if the kernel reports the peer's user.
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
CHECK_INTERVAL = 10  # seconds between two checks whether our socket still exists


def listen(directory: Path, name: str) -> socket.socket:
    """Return a socket that listens in the directory.

    Raises:
      DirectoryError: its path would be too long.
      OSError: it cannot be made.
    """
    path = socket_path(directory, name)
    sock = socket.socket(socket.AF_UNIX)
    try:
        # Other workers remove a socket that nobody listens on, because its worker must be dead.
        # So the socket gets its final name only when it listens.
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
    """Return the directory and the socket of a worker.

    Raises:
      DirectoryError, OSError: as ``prepare_directory`` and ``listen``.
    """
    for _ in range(ATTEMPTS):
        directory = prepare_directory(runtime_dir)
        with suppress(FileNotFoundError):  # another worker has just removed the empty directory
            return directory, listen(directory, name)
    return directory, listen(directory, name)


async def serve(
    monitor: Monitor,
    runtime_dir: str | None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Respond to requests until cancelled. Then remove the socket, and the directory if empty.

    If something else removes the directory, as a logout does with ``$XDG_RUNTIME_DIR``, it is made
    again as soon as possible.

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
    """Respond to the requests of one client."""
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
                # A first byte of JSON at once, even if the report has to wait: it shows that the
                # event loop runs.
                await stream.send_all(b" ")
                try:
                    query, max_age = parsed(request)
                    report = await monitor.report(query, max_age=max_age)
                    with monitor.charged():
                        response = json.dumps(report, ensure_ascii=False).encode()
                except Exception as error:  # it must not stop the worker
                    response = json.dumps({"error": repr(error)}).encode()
                await stream.send_all(response + b"\n")


def parsed(request: bytes) -> tuple[Query | None, float]:
    """
    >>> parsed(b'{"query": {"sort": "-age"}, "max_age": 0}')[0].sort
    '-age'
    """
    fields = json.loads(request)
    query = fields["query"]
    return None if query is None else Query(**query), float(fields["max_age"])
