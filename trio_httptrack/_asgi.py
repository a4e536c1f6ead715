"""What each of our ASGI applications does beside responding to requests."""

from __future__ import annotations

from typing import Any

from ._monitor.monitor import MONITOR, Monitor
from ._states import Conn


async def run_lifespan(receive: Any, send: Any) -> None:
    """The lifespan of an application that starts at once, and has nothing to end."""
    while True:
        event = await receive()
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


def monitor_of(scope: Any) -> Monitor | None:
    """That of the worker which serves a request, or a lifespan; None if it is not tracked."""
    conn = conn_of(scope)
    if conn is None:
        return (scope.get("extensions") or {}).get(MONITOR)
    monitor = conn._monitor
    return monitor if isinstance(monitor, Monitor) else None
