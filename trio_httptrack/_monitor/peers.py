"""Asking the workers in a directory what they are doing.

A worker whose event loop runs begins to respond at once, and is waited for. Of one that does not,
nobody waits for longer than half a second, and for the same silence nobody waits twice. It is not
asked again before it has responded, for as long as somebody looks: so it is known for how long it
has been silent, and a worker that was stopped for an hour finds one question and not a thousand.

Nothing runs here while nobody looks. Connections to the workers are kept from the first viewer to
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
SILENT_TIMEOUT = 0.02  # seconds for one that is silent already: its response may just have come
REPORT_TIMEOUT = 5.0  # seconds more for its report, behind those that others look at
MAX_RESPONSE_SIZE = 2**26  # bytes


class Peer:
    """Another worker, and our connection to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = path.parent.lstat().st_uid
        self._sock: socket.socket | None = None
        self._pending: bytes | None = None  # while it has not responded to this
        self._requested_at = 0.0
        self._buffer = bytearray()

    @property
    def timeout(self) -> float:
        """How long to wait for it, in seconds."""
        overdue = self._pending is not None and self._silent_for >= RESPONSE_TIMEOUT
        return SILENT_TIMEOUT if overdue else RESPONSE_TIMEOUT

    @property
    def _silent_for(self) -> float:
        return trio.current_time() - self._requested_at

    def silent(self) -> Worker:
        """All that is known of it while it does not respond."""
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
        """Its response. May be cancelled at any time.

        Args:
          question: a line of JSON.
          patience: what is around this call; it gets more time when the response has begun.

        Raises:
          OSError: there is nobody any more.
        """
        too_old = self._silent_for > RESPONSE_TIMEOUT + REPORT_TIMEOUT
        if (
            self._sock is not None
            and self._pending is not None
            and (self._pending != request or too_old)
        ):
            await self._receive_response(scope)  # to somebody who has not waited for it
        if self._pending is None:
            self._requested_at = trio.current_time()
        elif self._sock is not None:
            return await self._receive_response(scope)
        self._pending = request
        self._send()
        return await self._receive_response(scope)

    def _send(self) -> None:
        """Send the question, which never has to wait on a Unix socket that was just connected."""
        assert self._pending is not None
        if self._sock is None:
            sock = socket.socket(socket.AF_UNIX)
            sock.setblocking(False)
            try:
                sock.connect(os.fspath(self._path))
            except BlockingIOError:  # too many wait for this worker already
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
        """The response to what was asked. What has come of it is kept if this is cancelled."""
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
      directory: where they are; None for nowhere.
      own: the name of the worker that looks, which need not ask itself; empty for who looks from
        outside.
      charged: is put around what it costs the one who looks.
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
        self._lock = trio.Lock()  # a connection has one question at a time

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """To be put around everything else."""
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
        """The reports of all that respond in time, and the workers that do not.

        Args:
          query: which connections they list; None for none.
          max_age: how old a report may be, in seconds.
        """
        asked = {"query": None if query is None else asdict(query), "max_age": max_age}
        request = json.dumps(asked).encode() + b"\n"
        responses: list[bytes] = []
        silent: list[Worker] = []

        async def fetch(path: Path, peer: Peer) -> None:
            with trio.move_on_after(peer.timeout) as scope:
                try:
                    responses.append(await peer.request(request, scope))
                except OSError as error:
                    peer.close()
                    del self._peers[path]
                    # A dead worker has left it. From outside nobody knows whose directory it is.
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
        """Look who is there."""
        if self.directory is None:
            return
        there = [path for path in sockets(self.directory) if path.stem != self._own]
        for path in set(self._peers).difference(there):
            self._peers.pop(path).close()
        for path in there:
            if path not in self._peers:
                with suppress(OSError):  # it has just gone
                    self._peers[path] = Peer(path)


def parsed(response: bytes) -> Iterator[Report]:
    """The report that a response is; none if it is of a worker of another version."""
    with suppress(ValueError, RecursionError):
        report = json.loads(response)
        if isinstance(report, dict) and Report.__annotations__.keys() <= report.keys():
            yield cast(Report, report)
