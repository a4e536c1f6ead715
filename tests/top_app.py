"""An application whose requests stay in flight for as long as a test wants."""

from __future__ import annotations

from typing import Any

from trio_httptrack import StatsTracker
from trio_httptrack._asgi import run_lifespan

tracker = StatsTracker()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await run_lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
    elif scope["path"] != "/report":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "more_body": scope["path"] == "/events"})
        if scope["path"] != "/events":
            return
    while not (await receive())["type"].endswith("disconnect"):
        pass
