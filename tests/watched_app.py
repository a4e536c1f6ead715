"""An application with a status page, whose responses contain the ID of their worker."""

from __future__ import annotations

import os
from typing import Any

import trio

from trio_httptrack.status import StatusApp

status = StatusApp(allow=["127.0.0.1"])


async def app(scope: Any, receive: Any, send: Any) -> None:
    async def send_with_worker(event: Any) -> None:
        if event["type"] == "http.response.start":
            event["headers"] = [*event["headers"], (b"x-worker", b"%d" % os.getpid())]
        await send(event)

    if scope["type"] == "lifespan":
        await status(scope, receive, send)
        return
    scope["headers"].append((b"accept", b"application/json"))
    if scope["path"] == "/status":
        await status(scope, receive, send_with_worker)
    elif scope["path"] == "/hold":
        await trio.sleep_forever()
