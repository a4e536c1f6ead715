"""The gauge of open WebSockets as a real Prometheus reads it from four workers."""

from __future__ import annotations

from contextlib import AsyncExitStack, closing
from pathlib import Path

import trio

from ..hypercorn_process import SECONDS, connect
from .prometheus_server import Prometheus
from .target import UPGRADE, serving


async def test_every_scrape_has_the_websockets_of_all_workers(
    tmp_path: Path, certificate: Path
) -> None:
    """Whichever worker responds to it."""
    (tmp_path / "prometheus").mkdir()
    async with (
        serving(tmp_path / "four", certificate, workers=4) as target,
        AsyncExitStack() as clients,
    ):
        for _ in range(20):
            stream = await clients.enter_async_context(await connect(target.server.url))
            await stream.send_all(UPGRADE)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        with closing(Prometheus(tmp_path / "prometheus")) as prometheus:
            await prometheus.start([target.instance])
            points: list[tuple[float, float]] = []
            with trio.fail_after(SECONDS):
                while len(points) < 6:
                    await trio.sleep(0.1)
                    for series in await prometheus.query("httptrack_websockets[1m]"):
                        points = series.points
            assert {value for _, value in points} == {20}
            await clients.aclose()
            with trio.fail_after(SECONDS):
                while (await prometheus.query("httptrack_websockets"))[0].value:  # noqa: ASYNC110
                    await trio.sleep(0.1)
