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
    """The application that Hypercorn has wrapped."""
    if type(wrapper) is ASGIWrapper:
        app: Any = wrapper.app
        return whole_bodies(app) if is_wsgi(app) else app

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await wrapper(scope, receive, send, trio.to_thread.run_sync, trio.from_thread.run)

    return whole_bodies(call)


def is_wsgi(app: Any) -> bool:
    # Who has made one has imported it, and asyncio with it, which nobody else needs.
    middleware = sys.modules.get("hypercorn.middleware")
    return middleware is not None and isinstance(app, middleware.TrioWSGIMiddleware)


def whole_bodies(app: App) -> App:
    """For WSGI, which Hypercorn calls with what has come of a body when its client leaves."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, undisturbed(scope, receive), send)

    return call


def undisturbed(scope: Any, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    async def receive_or_leave() -> Any:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientDisconnected(scope["extensions"]["httptrack"])
        return event

    return receive_or_leave
