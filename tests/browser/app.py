"""What ``hypercorn`` serves here: the demo, but /slow takes until the client goes."""

from __future__ import annotations

from typing import Any

from trio_httptrack._demo import app as demo


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http" and scope["path"] == "/slow":
        while (await receive())["type"] != "http.disconnect":
            pass
    else:
        await demo(scope, receive, send)
