"""The servers and the load generator, as processes on a core each."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1
# As the tables name them.
TRIO, ASYNCIO = "Hypercorn, trio", "Hypercorn, asyncio"
UVICORN, UVLOOP = "uvicorn, h11", "uvicorn, httptools and uvloop"
TRACKED = "tracked"
TRACKED_WITH_CLOSINGS = "tracked, with closings"
COMMANDS = {
    TRIO: "hypercorn -k trio -c python:benchmarks.settings",
    ASYNCIO: "hypercorn -k asyncio -c python:benchmarks.settings",
    TRACKED: "hypercorn -k trio -c python:benchmarks.settings_tracked",
    TRACKED_WITH_CLOSINGS: "hypercorn -k trio -c python:benchmarks.settings_closings",
    # With the WebSocket library that Hypercorn uses.
    UVICORN: "uvicorn --http h11 --loop asyncio --ws wsproto",
    UVLOOP: "uvicorn --http httptools --loop uvloop --ws wsproto",
}
OPTIONS = {  # what makes them alike; the backlog of Hypercorn is in its settings
    "hypercorn": "-w 0 --log-level warning --bind 127.0.0.1:{port} --keep-alive {keep_alive}",
    "uvicorn": "--no-access-log --log-level warning --backlog 4096 --port {port} "
    "--timeout-keep-alive {keep_alive}",
}
TLS_OPTIONS = {
    "hypercorn": ("--certfile", "--keyfile"),
    "uvicorn": ("--ssl-certfile", "--ssl-keyfile"),
}


class Server:
    """A running server, which has responded to a first request."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, *, tls: bool) -> None:
        self.process = process
        self.pid = process.pid
        self.port = port
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        while True:
            client = (
                http.client.HTTPSConnection("127.0.0.1", port, context=context)
                if tls
                else http.client.HTTPConnection("127.0.0.1", port)
            )
            try:
                client.request("GET", "/", headers={"connection": "close"})
            except ConnectionRefusedError:
                if process.poll() is not None:
                    raise RuntimeError("a server did not start") from None
                time.sleep(0.001)
            else:
                break
        response = client.getresponse()
        if response.status != 200:
            raise RuntimeError(f"a server responds {response.status}")
        client.close()

    def memory(self) -> int:
        """Return the resident memory, in bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def open_files(self) -> int:
        return open_files(self.pid)


def open_files(pid: int) -> int:
    folder = f"/proc/{pid}/fd"
    # Since Linux 6.2, st_size is the number. Before, they must be counted, which takes long.
    return os.stat(folder).st_size or len(os.listdir(folder))


def _prepare(core: int, nice: int = 0) -> None:
    os.sched_setaffinity(0, {core})
    os.nice(nice)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def serving(
    name: str,
    *,
    app: str = "app",
    certificate: Path | None = None,
    keep_alive: int = 600,
    under: tuple[str, ...] = (),
) -> Iterator[Server]:
    """The server ``name``, while the block runs; over TLS if there is a certificate."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program, *arguments = COMMANDS[name].split()
    arguments += OPTIONS[program].format(port=port, keep_alive=keep_alive).split()
    if certificate is not None:
        for option in TLS_OPTIONS[program]:
            arguments += [option, str(certificate)]
    with TemporaryFile() as errors:
        process = subprocess.Popen(
            [*under, sys.executable, "-m", program, *arguments, f"benchmarks.{app}:app"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            preexec_fn=partial(_prepare, SERVER_CORE),
            stderr=errors,
        )
        try:
            yield Server(process, port, tls=certificate is not None)
        except RuntimeError:
            errors.seek(0)
            sys.stderr.write(f"{name} said:\n{errors.read().decode()}\n")
            raise
        finally:
            process.kill()
            process.wait()


class Load:
    """The load generator: a call sends a command, and returns its result."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def __call__(self, command: str, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"command": command, **order}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator failed: {command} {order}")
        result: dict[str, Any] = json.loads(line)
        return result


@contextmanager
def loading(nice: int = 0) -> Iterator[Load]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(_prepare, LOAD_CORE, nice),
    )
    try:
        yield Load(process)
    finally:
        process.kill()
        process.communicate()
