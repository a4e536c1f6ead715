"""A real Prometheus, and its responses."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from trio_httptrack import Stats

from ..hypercorn_process import SECONDS
from .target import COUNTERS, GAUGES, as_stats

JOB = "httptrack"
LISTENING = re.compile(r'msg="Listening on".* address=(\S+)\n')


@dataclass(frozen=True)
class Series:
    """One of the series that a query returned."""

    labels: dict[str, str]
    points: list[tuple[float, float]]
    """When, in seconds since 1970, and the value."""

    @property
    def value(self) -> float:
        """The only one."""
        ((_, value),) = self.points
        return value


class Prometheus:
    """A server of its own, with its data in a folder; once started, it runs until ``close``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, instances: Collection[str]) -> None:
        """Scrape these, and listen on a free port."""
        process = self._process = self._run(instances)
        with trio.fail_after(SECONDS):
            while not (found := LISTENING.search(self._log.read_text())):
                assert process.poll() is None, self._log.read_text()
                await trio.sleep(0.02)
        self._url = f"http://{found[1]}"

    def _run(self, instances: Collection[str]) -> subprocess.Popen[bytes]:
        scrapes = {"job_name": JOB, "static_configs": [{"targets": list(instances)}]}
        config = {"global": {"scrape_interval": "500ms"}, "scrape_configs": [scrapes]}
        (self._folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        arguments = [
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            "--web.listen-address=127.0.0.1:0",
        ]
        with self._log.open("wb") as log:
            return subprocess.Popen(["prometheus", *arguments], cwd=self._folder, stderr=log)

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=SECONDS)

    async def query(self, promql: str, at: float | None = None) -> list[Series]:
        """Run a query for now, or for an earlier moment."""
        parameters: dict[str, Any] = {"query": promql} | ({} if at is None else {"time": at})
        async with httpx.AsyncClient(verify=False) as client:
            response = await client.get(f"{self._url}/api/v1/query", params=parameters)
        answer = response.json()
        assert answer["status"] == "success", answer
        found = []
        for series in answer["data"]["result"]:
            points = series["values"] if "values" in series else [series["value"]]
            points = [(when, float(value)) for when, value in points]
            found.append(Series(series["metric"], points))
        return found

    async def by_state(self, promql: str, at: float) -> dict[str, float]:
        return {each.labels["state"]: each.value for each in await self.query(promql, at)}

    async def stats(self, at: float, selector: str = "") -> Stats:
        """The numbers of the targets that are selected, summed up."""
        gauges = await self.by_state(f"sum by (state) ({GAUGES}{selector})", at)
        counters = await self.by_state(f"sum by (state) ({COUNTERS}{selector})", at)
        return as_stats(gauges, counters)

    async def scraped(self, instances: Collection[str], after: float) -> float:
        """Wait until each has been scraped after a moment; return the moment when each was."""
        with trio.fail_after(SECONDS):
            while True:
                now = time.time()
                series = await self.query(f"min by (instance) (timestamp({GAUGES})) > {after}", now)
                if {each.labels["instance"] for each in series} == set(instances):
                    return now
                await trio.sleep(0.05)
