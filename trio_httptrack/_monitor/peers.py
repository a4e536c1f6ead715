"""Query the other workers in a directory.

A worker whose event loop runs begins its response at once, and we wait for the rest. For a worker
that does not begin, we wait half a second once. While it stays silent, later queries hardly wait
for it. They do not send it a second request either, as long as there are viewers. So we know for
how long it has been silent, and a worker that was stopped for an hour finds one request and not a
thousand.

Nothing runs here without viewers. The connections to the workers stay open from the first viewer to
the last.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import cast

import trio

from .directory import SUFFIX, pid_of, remove_socket, sockets
from .query import Query
from .report import Report, Worker
from .sockets import peer_uid

RESPONSE_TIMEOUT = 0.5  # seconds for a worker to begin its response
SILENT_TIMEOUT = 0.02  # seconds for a worker that is already silent: it may respond just now
REPORT_TIMEOUT = 5.0  # seconds more for the whole report, which may wait for other viewers' reports
MAX_RESPONSE_SIZE = 2**26  # bytes


class Peer:
    """Another worker, and our connection to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = path.parent.lstat().st_uid
        self._sock: socket.socket | None = None
        self._pending: bytes | None = None  # the request that it has not responded to
        self._requested_at = 0.0
        self._buffer = bytearray()

    @property
    def timeout(self) -> float:
        """How long to wait for the response to begin, in seconds."""
        overdue = self._pending is not None and self._silent_for >= RESPONSE_TIMEOUT
        return SILENT_TIMEOUT if overdue else RESPONSE_TIMEOUT

    @property
    def _silent_for(self) -> float:
        return trio.current_time() - self._requested_at

    def silent(self) -> Worker:
        """Return what is known about a worker that does not respond."""
        return Worker(
            pid=pid_of(self._path),
            name=self._path.name.removesuffix(SUFFIX),
            uptime=None,
            connections=None,
            lag=None,
            draining=False,
            silent=round(self._silent_for, 3),
        )

    async def request(self, request: bytes, scope: trio.CancelScope) -> bytes:
        """Send a request, and return the response. May be cancelled at any time.

        Args:
          request: a line of JSON.
          scope: the cancel scope around this call. Its deadline is extended when the response
            begins.

        Raises:
          OSError: the worker has stopped.
        """
        too_old = self._silent_for > RESPONSE_TIMEOUT + REPORT_TIMEOUT
        if (
            self._sock is not None
            and self._pending is not None
            and (self._pending != request or too_old)
        ):
            await self._receive_response(scope)  # to an earlier request, which was cancelled
        if self._pending is None:
            self._requested_at = trio.current_time()
        elif self._sock is not None:
            return await self._receive_response(scope)
        self._pending = request
        self._send()
        return await self._receive_response(scope)

    def _send(self) -> None:
        """Send the request. It fits into the buffer of the Unix socket, so this does not block."""
        assert self._pending is not None
        if self._sock is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(os.fspath(self._path))
            except BlockingIOError:  # the worker's backlog is full
                sock.close()
                return
            except OSError:
                sock.close()
                raise
            self._sock = sock
            if peer_uid(sock) not in (None, self._owner):
                raise PermissionError("the socket is not that of the directory's user")
        self._sock.sendall(self._pending)

    async def _receive_response(self, scope: trio.CancelScope) -> bytes:
        """Receive the response to the pending request. If cancelled, keep what has arrived."""
        while not self._buffer.endswith(b"\n"):
            if self._sock is None:
                await trio.sleep_forever()
            try:
                received = self._sock.recv(2**20)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if not received or len(self._buffer) > MAX_RESPONSE_SIZE:
                raise ConnectionResetError
            self._buffer += received
            scope.deadline = trio.current_time() + REPORT_TIMEOUT
        response, self._pending = bytes(self._buffer), None
        self._buffer.clear()
        return response

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()


class Peers:
    """The workers in a directory.

    Args:
      directory: the directory of their sockets; None for none.
      own: the name of this worker, which does not query itself; empty outside of a worker.
      charged: a context manager around the work that is done for a viewer.
    """

    def __init__(
        self,
        directory: Path | None,
        own: str = "",
        charged: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.directory = directory
        self._own = own
        self._charged = charged
        self._peers: dict[Path, Peer] = {}
        self._viewers = 0
        self._lock = trio.Lock()  # a connection has one request at a time

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Keep connections to the workers open. Every query must be in such a block."""
        self._viewers += 1
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                for peer in self._peers.values():
                    peer.close()
                self._peers.clear()

    async def fetch_reports(
        self, query: Query | None, max_age: float = 0
    ) -> tuple[list[Report], list[Worker]]:
        """Query all workers. Return the reports, and the workers that do not respond in time.

        Args:
          query: which connections they list; None for none.
          max_age: how old a report may be, in seconds.
        """
        fields = {"query": None if query is None else asdict(query), "max_age": max_age}
        request = json.dumps(fields).encode() + b"\n"
        responses: list[bytes] = []
        silent: list[Worker] = []

        async def fetch(path: Path, peer: Peer) -> None:
            with trio.move_on_after(peer.timeout) as scope:
                try:
                    responses.append(await peer.request(request, scope))
                except OSError as error:
                    peer.close()
                    del self._peers[path]
                    # A dead worker has left the socket. Only a worker of the same server removes
                    # it: another viewer does not know whose directory this is.
                    if self._own and isinstance(error, ConnectionRefusedError):
                        remove_socket(path)
            if scope.cancelled_caught:
                silent.append(peer.silent())

        async with self._lock, trio.open_nursery() as nursery:
            self._refresh()
            for path, peer in self._peers.items():
                nursery.start_soon(fetch, path, peer)
        with self._charged():
            return [report for each in responses for report in parsed(each)], silent

    def _refresh(self) -> None:
        """Find the workers whose sockets are in the directory now."""
        if self.directory is None:
            return
        found = [path for path in sockets(self.directory) if path.stem != self._own]
        for path in set(self._peers).difference(found):
            self._peers.pop(path).close()
        for path in found:
            if path not in self._peers:
                with suppress(OSError):  # the socket was removed in the meantime
                    self._peers[path] = Peer(path)


def parsed(response: bytes) -> Iterator[Report]:
    """Yield the report of a response; nothing if the worker has another version."""
    with suppress(ValueError, RecursionError):
        report = json.loads(response)
        if isinstance(report, dict) and Report.__annotations__.keys() <= report.keys():
            yield cast(Report, report)
