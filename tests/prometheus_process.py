"""A process of ``prometheus_client``'s multiprocess mode that runs commands, line by line.

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

    def track(self, conn: str, *states: str, run: bool = True) -> None:
        """Track transitions while Trio runs, or while it does not."""
        self._ask({"conn": conn, "states": states, "run": run})

    def scrape(self, conn: str = "", *states: str) -> dict[str, float]:
        """All samples that its ``/metrics`` has, right after some transitions."""
        found: dict[str, float] = self._ask({"conn": conn, "states": states, "run": "scrape"})
        return found

    def kill(self) -> None:
        """Kill it, and leave a zombie: nothing has waited for it."""
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

    def track(conn: str, states: list[str]) -> None:
        assert tracker is not None
        for state in states:
            tracker.track(conns.setdefault(conn, Conn()), ConnState[state])

    async def run(order: Any) -> Any:
        track(order["conn"], order["states"])
        if order["run"] != "scrape":
            return None
        body = b""

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(event: Any) -> None:
            nonlocal body
            body += event.get("body", b"")

        assert metrics is not None
        await metrics({"type": "http", "headers": []}, receive, send)
        lines = [each.rsplit(" ", 1) for each in body.decode().splitlines()]
        return {name: float(value) for name, value in lines if name[0] != "#"}

    for line in sys.stdin:
        order = json.loads(line)
        if tracker is None:
            tracker, metrics = PrometheusTracker(), MetricsApp()
        response = None
        if order["run"]:
            response = trio.run(run, order)
        else:
            track(order["conn"], order["states"])
        sys.stdout.write(f"{json.dumps(response)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
