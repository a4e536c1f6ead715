"""What our ASGI applications have in common: the lifespan, WebSockets, the scope's connection."""

from __future__ import annotations

from typing import Any

from ._monitor.monitor import MONITOR, Monitor
from ._states import Conn


async def run_lifespan(receive: Any, send: Any) -> None:
    """Run the lifespan of an application that has nothing to start or stop."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return


async def refuse_websocket(receive: Any, send: Any) -> None:
    """Refuse a WebSocket, for an application that serves none."""
    await receive()
    await send({"type": "websocket.close"})


def conn_of(scope: Any) -> Conn | None:
    """Return the connection of a request; None if the server is not tracked."""
    conn = (scope.get("extensions") or {}).get("httptrack")
    return conn if isinstance(conn, Conn) else None


def monitor_of(scope: Any) -> Monitor | None:
    """Return the monitor of the worker that serves this scope; None if it is not tracked."""
    conn = conn_of(scope)
    if conn is None:
        return (scope.get("extensions") or {}).get(MONITOR)
    monitor = conn._monitor
    return monitor if isinstance(monitor, Monitor) else None
