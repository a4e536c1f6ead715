"""What each of our ASGI applications does beside answering requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._states import Conn


async def live(receive: Any, send: Any, start: Callable[[], None] | None = None) -> None:
    """The lifespan of an application that starts at once, and has nothing to end."""
    while True:
        event = await receive()
        if event["type"] == "lifespan.startup" and start is not None:
            start()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def refuse_websocket(receive: Any, send: Any) -> None:
    """For an application that has none."""
    await receive()
    await send({"type": "websocket.close"})


def conn_of(scope: Any) -> Conn | None:
    """The connection of a request; None if the server is not tracked."""
    conn = (scope.get("extensions") or {}).get("httptrack")
    return conn if isinstance(conn, Conn) else None
