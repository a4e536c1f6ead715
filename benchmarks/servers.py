"""The servers and the load generator as processes, each on a core of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SERVER_CORE, LOAD_CORE = 0, 1


class Server:
    """A running Hypercorn; ``port`` speaks HTTP/1, ``tls_port`` HTTP/2."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        ports: dict[str, int] = {}
        assert process.stderr is not None
        while len(ports) < 2:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError("the server did not start")
            if found := re.search(r"Running on (https?)://127\.0\.0\.1:(\d+)", line):
                ports[found[1]] = int(found[2])
        self.port = ports["http"]
        self.tls_port = ports["https"]

    @property
    def memory(self) -> int:
        """The resident set's size, in bytes."""
        return _field(self.process.pid, "VmRSS") * 1024


def _field(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)
    assert found is not None
    return int(found[1])


@contextmanager
def serving(worker: str, settings: str, certificate: Path) -> Iterator[Server]:
    """``hypercorn -k WORKER`` with ``benchmarks.SETTINGS``, while the block runs."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "hypercorn", "-w", "0", "-k", worker),
            *("-c", f"python:benchmarks.{settings}"),
            *("--certfile", str(certificate), "--keyfile", str(certificate)),
            *("-b", "127.0.0.1:0", "--insecure-bind", "127.0.0.1:0", "benchmarks.app:app"),
        ],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {SERVER_CORE}),
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate()


class Load:
    """The load generator's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, command: str, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"command": command, **order}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
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
