"""Servers as processes, and clients that open connections to them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import h2.connection

TESTS = Path(__file__).parent.parent
UPGRADE = (
    "connection: upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Http2:
    """A connection that sends requests, and leaves the responses where they are."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._h2 = h2.connection.H2Connection()
        self._h2.initiate_connection()

    def request(self, *paths: str) -> None:
        for path in paths:
            headers = [
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "localhost"),
                (":path", path),
            ]
            stream_id = self._h2.get_next_available_stream_id()
            self._h2.send_headers(stream_id, headers, end_stream=True)
        self._client.sendall(self._h2.data_to_send())

    def cancel(self, *stream_ids: int) -> None:
        for stream_id in stream_ids:
            self._h2.reset_stream(stream_id)
        self._client.sendall(self._h2.data_to_send())


class Server:
    """A running server, whose status page is at ``url``."""

    def __init__(self, process: subprocess.Popen[str], port: int, token: str) -> None:
        self.process = process
        self.token = token
        self.url = f"http://127.0.0.1:{port}/?token={token}"
        self._port = port
        self._clients: list[socket.socket] = []

    def connect(
        self, path: str | None = None, headers: str = "", *, wait: bool = True, host: str = ""
    ) -> socket.socket:
        """Open a connection and keep it; with a path, request it and wait for the response."""
        client = self._connected(host)
        if path is not None:
            head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"
            client.sendall(head.encode())
            if wait:
                client.recv(100_000)
        return client

    def websocket(self) -> None:
        self.connect("/ws", UPGRADE)

    def http2(self) -> Http2:
        return Http2(self._connected())

    def _connected(self, host: str = "") -> socket.socket:
        address = ("127.0.0.1", self._port)
        client = socket.create_connection(address, source_address=(host, 0) if host else None)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()


@contextmanager
def demo() -> Iterator[Server]:
    """The demo."""
    arguments = ["trio_httptrack", "--bind", "127.0.0.1:0"]
    with running(arguments, r"The status page: http://127\.0\.0\.1:(\d+)/\?token=(\w+)") as server:
        yield server


@contextmanager
def hypercorn(directory: Path, *, workers: int) -> Iterator[Server]:
    """The ``hypercorn`` command, for an application whose /slow takes until the client goes.

    The servers whose directory is the same are one for the status page.
    """
    config = directory / "hypercorn_conf.py"
    config.write_text(
        "from trio_httptrack import hook\n\n"
        'conn_state = hook("trio_httptrack.config:tracker")\n'
        f"runtime_dir = {str(directory)!r}\n"
    )
    arguments = ["hypercorn", "-k", "trio", "-w", str(workers), "-c", f"file:{config}"]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        arguments += ["-b", f"fd://{fd}", "browser.app:app"]
        with running(arguments, r"Status page: ()add \?token=(\w+)", fd=fd, port=port) as server:
            yield server


@contextmanager
def running(
    arguments: list[str], announced: str, *, fd: int | None = None, port: int | None = None
) -> Iterator[Server]:
    """Run a module; its port, unless it is known, and its token are in its log."""
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=TESTS,
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[] if fd is None else [fd],
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        try:
            found = None
            while found is None:
                line = process.stderr.readline()
                assert line, "the server did not start"
                found = re.search(announced, line)
            server = Server(process, port or int(found[1]), found[2])
            try:
                yield server
            finally:
                server.close_clients()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers, too
