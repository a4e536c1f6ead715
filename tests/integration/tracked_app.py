"""An application whose workers can be queried in two ways: by Prometheus and directly.

``/metrics`` is mounted on the tracked server, as users do. So each scrape is a request of a tracked
connection, and is counted in what it reads. The application records its tracker's numbers then, and
reports them on a Unix socket of the worker, where a query changes no number.
"""

import json
import os
from dataclasses import asdict
from typing import Any

import trio

from trio_httptrack.prometheus import MetricsApp, PrometheusTracker

tracker = PrometheusTracker()
metrics = MetricsApp()
scrapes: list[dict[str, int]] = []


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    elif scope["path"] == "/metrics":
        scrapes.append(asdict(tracker.stats()))
        await metrics(scope, receive, send)  # which awaits nothing before it has read the numbers
    else:
        body = b"worker %d" % os.getpid()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await trio.sleep(0.01)  # so that connections are seen at work
        await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.bind(f"{os.environ['WORKERS']}/{os.getpid()}.sock")
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, tell, [trio.SocketListener(sock)])
            await send({"type": "lifespan.startup.complete"})
            await receive()
            nursery.cancel_scope.cancel()
    await send({"type": "lifespan.shutdown.complete"})


async def tell(stream: trio.SocketStream) -> None:
    async with stream:
        response = {"pid": os.getpid(), "stats": asdict(tracker.stats()), "scrapes": scrapes}
        await stream.send_all(json.dumps(response).encode())
