"""The servers and the load generator, as processes on a core each."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1


class Server:
    """A running Hypercorn."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self.ports: dict[str, int] = {}
        assert process.stderr is not None
        said = ""
        while len(self.ports) < 2:
            line = process.stderr.readline()
            said += line
            if not line:
                raise RuntimeError(f"the server did not start:\n{said}")
            if found := re.search(r"Running on (https?)://127\.0\.0\.1:(\d+)", line):
                self.ports[found[1]] = int(found[2])

    def memory(self) -> int:
        """The size of what is in memory, in bytes."""
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) * 1024

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def _prepare_server() -> None:
    os.sched_setaffinity(0, {SERVER_CORE})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def serving(
    worker: str, settings: str, certificate: Path, *, keep_alive: int = 600
) -> Iterator[Server]:
    """``hypercorn -k WORKER -c python:benchmarks.SETTINGS``, while the block runs."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hypercorn", "-w", "0", "-k", worker),
            *("-c", f"python:benchmarks.{settings}", "--keep-alive", str(keep_alive)),
            *("--certfile", str(certificate), "--keyfile", str(certificate)),
            *("-b", "127.0.0.1:0", "--insecure-bind", "127.0.0.1:0", "benchmarks.app:app"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_prepare_server,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate()


class Load:
    """The load generator: a call is an order, and returns its result."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

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
def loading() -> Iterator[Load]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", str(LOAD_CORE)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Load(process)
    finally:
        process.kill()
        process.communicate()
