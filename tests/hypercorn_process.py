"""The real ``hypercorn`` command, as a process of its own, and a client for it.

``hypercorn`` is given a socket that listens already: a client may connect at once, and
waits in the socket's queue until a worker accepts.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import trio

from trio_httptrack._connection.errors import ungrouped

TESTS = Path(__file__).parent
SECONDS = 20  # nothing takes so long: what would hang is broken, and fails
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


class HypercornProcess:
    """A running ``hypercorn``; what it leaves behind is known after the block."""

    url: str
    tls_url: str
    process: trio.Process
    returncode: int
    stderr: str


@asynccontextmanager
async def hypercorn(
    *arguments: str, certificate: Path | None = None, seconds: float = SECONDS
) -> AsyncIterator[HypercornProcess]:
    """Run ``hypercorn`` while the block runs, and end it with SIGTERM.

    With a certificate it listens with TLS, too.
    """
    server = HypercornProcess()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_server(("127.0.0.1", 0)) as tls_listener,
    ):
        server.url = "http://{}:{}".format(*listener.getsockname())
        server.tls_url = "https://{}:{}".format(*tls_listener.getsockname())
        plain, tls = f"fd://{listener.fileno()}", f"fd://{tls_listener.fileno()}"
        binds = ["-b", plain]
        if certificate is not None:
            binds = ["-b", tls, "--insecure-bind", plain]
            binds += ["--certfile", str(certificate), "--keyfile", str(certificate)]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "hypercorn", *binds, *arguments],
            cwd=TESTS,
            stderr=subprocess.PIPE,
            pass_fds=[listener.fileno(), tls_listener.fileno()],
            start_new_session=True,
        )
    server.process = process
    assert process.stderr is not None
    written = bytearray()

    async def read_log(stderr: trio.abc.ReceiveStream) -> None:
        async for chunk in stderr:  # at once, or the workers wait for room in the pipe
            written.extend(chunk)

    try:
        with trio.fail_after(seconds), ungrouped(nurseries=1):
            async with process.stderr, trio.open_nursery() as nursery:
                nursery.start_soon(read_log, process.stderr)
                yield server
                process.terminate()
        server.stderr = written.decode()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the workers, too
        raise
    finally:
        with trio.CancelScope(shield=True):
            server.returncode = await process.wait()


async def failing_hypercorn(*arguments: str) -> tuple[int, str]:
    """Run a ``hypercorn`` that ends by itself; return its exit status and its stderr."""
    with trio.fail_after(SECONDS):
        ended = await trio.run_process(
            [sys.executable, "-m", "hypercorn", "-b", "127.0.0.1:0", *arguments],
            cwd=TESTS,
            capture_stderr=True,
            check=False,
        )
    return ended.returncode, ended.stderr.decode()


async def run_to_its_end(*command: str, cwd: Path) -> tuple[int, str, str]:
    """Run a command that ends by itself; return its exit status, its stdout and its stderr."""
    with trio.fail_after(SECONDS):
        ended = await trio.run_process(
            command, cwd=cwd, capture_stdout=True, capture_stderr=True, check=False
        )
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


async def check(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    """Run ``python -m trio_httptrack check`` in the same way."""
    return await run_to_its_end(
        sys.executable, "-m", "trio_httptrack", "check", *arguments, cwd=cwd
    )


async def connect(url: str) -> trio.SocketStream:
    """Open a connection to a server."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    return await trio.open_tcp_stream(address.hostname, address.port)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Read until the end."""
    return b"".join([bytes(chunk) async for chunk in stream])


async def get(url: str) -> bytes:
    """Return the body of the response to one request, on a connection of its own."""
    async with await connect(url) as client:
        await client.send_all(GET)
        _, _, body = (await read_all(client)).partition(b"\r\n\r\n")
        return body
