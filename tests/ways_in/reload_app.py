"""An application under load: requests that take a moment, and WebSockets that echo."""

import os
import random
from typing import Any

import trio

from trio_httptrack import StatsTracker

tracker = StatsTracker()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    else:
        await trio.sleep(random.uniform(0, 0.02))
        head, body = b"worker ", b"%d" % os.getpid()
        headers = [(b"content-length", b"%d" % len(head + body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": head, "more_body": True})
        await trio.sleep(random.uniform(0, 0.02))
        await send({"type": "http.response.body", "body": body})
