"""The demo as a process, and clients that open connections to it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UPGRADE = (
    "connection: upgrade\r\nupgrade: websocket\r\n"
    "sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Demo:
    """A running demo."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}/"
        self._port = port
        self._clients: list[socket.socket] = []

    def connect(self, path: str | None = None, headers: str = "", *, wait: bool = True) -> None:
        """Open a connection and keep it; with a path, ask for that and wait for the answer."""
        client = socket.create_connection(("127.0.0.1", self._port))
        self._clients.append(client)
        if path is not None:
            head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n"
            client.sendall(head.encode())
            if wait:
                client.recv(100_000)

    def websocket(self) -> None:
        self.connect("/ws", UPGRADE)

    def close_clients(self) -> None:
        while self._clients:
            self._clients.pop().close()


@contextmanager
def demo() -> Iterator[Demo]:
    with subprocess.Popen(
        [sys.executable, "-m", "trio_httptrack", "--bind", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            port = None
            while port is None:
                line = process.stderr.readline()
                assert line, "the demo did not start"
                port = re.search(r"status page is at http://127\.0\.0\.1:(\d+)", line)
            running = Demo(process, int(port[1]))
            yield running
            running.close_clients()
        finally:
            process.kill()
