"""A process of ``prometheus_client``'s multiprocess mode that does what it is told, line by line.

It says its number, and makes its tracker when it is told of the first transition.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Process:
    """One of the processes, as a test sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def track(self, conn: str, *states: str) -> None:
        self._ask({"conn": conn, "states": states})

    def scrape(self) -> dict[str, float]:
        """All samples that its ``/metrics`` has."""
        found: dict[str, float] = self._ask({})
        return found

    def kill(self) -> None:
        """What is left of it is a zombie: nobody has waited for it."""
        self._process.kill()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def _ask(self, order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


@contextmanager
def process(directory: Path) -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.prometheus_process"],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield Process(running)
        finally:
            running.kill()


def main() -> None:
    import trio

    from trio_httptrack import Conn, ConnState
    from trio_httptrack.prometheus import MetricsApp, PrometheusTracker

    conns: dict[str, Conn] = {}
    tracker = metrics = None

    async def scraped() -> str:
        body = b""

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(event: Any) -> None:
            nonlocal body
            body += event.get("body", b"")

        assert metrics is not None
        await metrics({"type": "http", "headers": []}, receive, send)
        return body.decode()

    for line in sys.stdin:
        order = json.loads(line)
        if tracker is None:
            tracker, metrics = PrometheusTracker(), MetricsApp()
        answer: Any = None
        if order:
            conn = conns.setdefault(order["conn"], Conn())
            for state in order["states"]:
                tracker.track(conn, ConnState[state])
        else:
            lines = [each.rsplit(" ", 1) for each in trio.run(scraped).splitlines()]
            answer = {name: float(value) for name, value in lines if name[0] != "#"}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
