"""Hypercorn's application wrappers, as the ASGI applications that connections run."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.typing import AppWrapper

from .._connection.errors import ClientDisconnected
from .._connection.exchange import App


def as_asgi(wrapper: AppWrapper) -> App:
    """Return an ASGI application that calls the wrapped one."""
    if type(wrapper) is ASGIWrapper:
        app: Any = wrapper.app
        return require_complete_body(app) if is_wsgi(app) else app

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await wrapper(scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)

    return require_complete_body(call)


def is_wsgi(app: Any) -> bool:
    # Do not import it: it imports asyncio. If an app is one, the module is already imported.
    middleware = sys.modules.get("hypercorn.middleware")
    return middleware is not None and isinstance(app, middleware.TrioWSGIMiddleware)


def require_complete_body(app: App) -> App:
    """Stop a WSGI request whose client disconnects before its body is complete.

    Hypercorn would call the application with the part of the body that has arrived.
    """

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, raising_on_disconnect(scope, receive), send)

    return call


def raising_on_disconnect(
    scope: Any, receive: Callable[[], Awaitable[Any]]
) -> Callable[[], Awaitable[Any]]:
    async def receive_or_leave() -> Any:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnected(scope["extensions"]["httptrack"])
        return event

    return receive_or_leave
