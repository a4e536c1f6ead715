"""The servers, started as their users start them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import trio
import trustme
from cryptography.hazmat.primitives import serialization

from ..servers import ROOT

APP = "benchmarks.comparison.app:app"
HYPERCORN = "hypercorn -w {workers} --bind 127.0.0.1:{port} --log-level warning"
UVICORN = "uvicorn --workers {workers} --port {port} --no-access-log --log-level warning"
SERVERS = {
    "tracked": f"{HYPERCORN} -k trio -c python:trio_httptrack.config",
    "Hypercorn -k trio": f"{HYPERCORN} -k trio",
    "Hypercorn -k asyncio": f"{HYPERCORN} -k asyncio",
    "uvicorn": UVICORN,
    "uvicorn --http2": f"{UVICORN} --http zttp --http2",
    "Granian": "granian --interface asgi --workers {workers} --port {port} --log-level warning",
    "Daphne": "daphne -v 0 --bind 127.0.0.1 --port {port}",
    "net/http": "net/http {port}",
}
TLS = {
    "hypercorn": "--certfile {certificate} --keyfile {key}",
    "uvicorn": "--ssl-certfile {certificate} --ssl-keyfile {key}",
    "granian": "--ssl-certificate {certificate} --ssl-keyfile {key}",
    "net/http": "{certificate} {key}",
}
DAPHNE_TLS = "daphne -v 0 -e ssl:{port}:privateKey={key}:certKey={certificate}:interface=127.0.0.1"


@dataclass
class Machine:
    """Where servers are started."""

    folder: Path
    certificate: Path
    key: Path
    go: Path

    def missing(self, name: str) -> bool:
        program = SERVERS[name].split()[0]
        if program == "net/http":
            return not self.go.exists()
        return find_spec(program) is None or ("zttp" in SERVERS[name] and find_spec("zttp") is None)

    def command(
        self, name: str, port: int, *, tls: bool = False, workers: int = 1, app: str = APP
    ) -> list[str]:
        command = SERVERS[name]
        program = command.split()[0]
        if tls:
            command = DAPHNE_TLS if program == "daphne" else f"{command} {TLS[program]}"
        command = command.format(
            port=port, workers=workers, certificate=self.certificate, key=self.key
        )
        _, *arguments = command.split()
        if program == "net/http":
            return [str(self.go), *arguments]
        return [sys.executable, "-m", program, *arguments, app]


@dataclass
class Running:
    """A server that accepts connections."""

    process: trio.Process
    port: int
    notes_file: Path
    stopped_at: float = 0.0
    tags: int = 0

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    def tag(self) -> str:
        self.tags += 1
        return f"t{self.tags}-{random.random()}"

    def terminate(self, *, all_processes: bool = False) -> None:
        self.stopped_at = trio.current_time()
        if all_processes:
            os.killpg(self.process.pid, signal.SIGTERM)
        else:
            self.process.send_signal(signal.SIGTERM)

    def break_application(self) -> None:
        """For processes that start from now on."""
        Path(f"{self.notes_file}.broken").touch()

    def since_stopped(self) -> str:
        return f"{trio.current_time() - self.stopped_at:.1f} s"

    async def exits(self, seconds: float) -> str:
        with trio.move_on_after(seconds):
            await self.process.wait()
            return f"exits after {self.since_stopped()}"
        return f"runs on for over {seconds} s"

    def notes(self, tag: str) -> list[Any]:
        lines = self.notes_file.read_text().splitlines() if self.notes_file.exists() else []
        return [note for note in map(json.loads, lines) if note["tag"] == tag]

    async def noted(self, tag: str, seconds: float, number: int = 1) -> str:
        """What the handler wrote, when it has written enough or nothing more is to come."""
        with trio.move_on_after(seconds):
            while len(self.notes(tag)) < number:  # noqa: ASYNC110 - another process writes them
                await trio.sleep(0.02)
        found = [f"{note['text']} (at {note['after']:.1f} s)" for note in self.notes(tag)]
        return "; ".join(found) or f"nothing within {seconds} s"


@asynccontextmanager
async def serving(
    machine: Machine, name: str, *, tls: bool = False, workers: int = 1
) -> AsyncIterator[Running]:
    """The server ``name``, in a process group of its own that does not outlive the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    notes = machine.folder / f"{port}.notes"
    log = machine.folder / f"{port}.log"
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            machine.command(name, port, tls=tls, workers=workers),
            cwd=ROOT,
            env={**os.environ, "COMPARISON_NOTES": str(notes)},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    running = Running(process, port, notes)
    try:
        with trio.fail_after(60):
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"{name} did not start:\n{log.read_text()}")
                try:
                    await (await running.connect()).aclose()
                    break
                except OSError:
                    await trio.sleep(0.05)
        await trio.sleep(0.5 * workers)  # a parent that listens may have no worker yet
        yield running
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()


def prepare(folder: Path) -> Machine:
    issued = trustme.CA().issue_cert("localhost", "127.0.0.1")
    certificate, key, go = folder / "certificate.pem", folder / "key.pem", folder / "comparison"
    certificate.write_bytes(issued.cert_chain_pems[0].bytes())
    key.write_bytes(  # in the one format that Granian reads
        serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    if compiler := shutil.which("go", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"):
        subprocess.run([compiler, "build", "-o", go, "handlers.go"], cwd=Path(__file__).parent)
    return Machine(folder, certificate, key, go)
