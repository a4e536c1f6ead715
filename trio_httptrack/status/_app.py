"""StatusApp: the page as an ASGI application."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import trio

from .._asgi import conn_of, monitor_of, refuse_websocket, run_lifespan
from .._monitor.monitor import SAMPLE_INTERVAL, Monitor, still_fresh
from .._monitor.query import Query
from .._monitor.text import as_text
from .._monitor.view import View
from ._access import Access
from ._page import POLICY, page, update

HTML, JSON, EVENTS, TEXT = "text/html", "application/json", "text/event-stream", "text/plain"
UNTRACKED = (
    "This server is not tracked, so there is nothing to show: does its config have a conn_state, "
    "and was it started with -k trio?"
)
MAX_AGE = SAMPLE_INTERVAL - 0.1  # seconds: viewers that refresh every second share reports


class StatusApp:
    """An ASGI application that shows what the connections of all workers are doing.

    Mount it anywhere. Every path below its mount serves the same page. The ``Accept`` header
    chooses the format: HTML; ``application/json``; ``text/plain``, for a terminal; or
    ``text/event-stream``, with which the page updates itself. The query of the URL
    filters and sorts the open connections: ``?state=active&path=/slow&sort=-age&page=2``. A page
    has a hundred connections. By default those that may be stuck come first: the ones with the
    oldest requests in flight.

    It is read-only, loads nothing from other hosts, and is not cached. It shows addresses and
    paths, but no queries and no headers.

    Args:
      allow: the networks that may view the page, such as ``["10.1.0.0/16", "::1"]``, and
        ``"unix"`` for the server's own user and root on a Unix socket. The address of the socket
        counts. Headers such as ``X-Forwarded-For`` do not change it. By default the page needs its
        :attr:`token`, from any address. Other viewers get a 403.

    Raises:
      TypeError: ``allow`` is a single string, or an item of it is not a string.
      ValueError: an item of ``allow`` is not a network.

    >>> status = StatusApp()
    >>> async def app(scope, receive, send):
    ...     if scope["type"] == "lifespan" or scope["path"] == "/status":
    ...         await status(scope, receive, send)
    """

    def __init__(self, *, allow: Iterable[str] | None = None) -> None:
        self._access = Access(allow)
        self._announced = False
        # The updates of this second. Viewers with the same query share them.
        self._updates: dict[tuple[str, Query], tuple[float, bytes]] = {}
        self._lock = trio.Lock()

    @property
    def token(self) -> str:
        """The token that a viewer needs, as in ``?token=...``, unless ``allow`` is given.

        All workers of a server have the same token, until its parent process exits. It is also in
        the log: at the start, if the application passes lifespan events to this one, or else at the
        first request without a token.
        """
        return self._access.token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._announce(scope)
            await run_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send)
        else:
            await self._respond(scope, receive, send)

    async def _announce(self, scope: Any) -> None:
        """Log the token, once in each process."""
        monitor = monitor_of(scope)
        if self._access.by_token and not self._announced and monitor is not None:
            self._announced = True
            await monitor.log(f"Status page: add ?token={self.token} to its address")

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = self._access.refusal(scope)
        monitor = monitor_of(scope)
        if refusal is not None:
            await self._announce(scope)
            await respond(send, 403, refusal)
        elif scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, "This page can only be read.", allow="GET, HEAD")
        elif monitor is None:
            await respond(send, 503, UNTRACKED)
        else:
            try:
                query = Query.parse(scope["query_string"])
            except ValueError as error:
                await respond(send, 400, f"{error}.")
                return
            with monitor.viewing(conn_of(scope)):
                await self._send_view(monitor, query, scope, receive, send)

    async def _send_view(
        self, monitor: Monitor, query: Query, scope: Any, receive: Any, send: Any
    ) -> None:
        media_type = media_type_for(scope["headers"])
        if media_type == EVENTS:
            await self._stream(monitor, query, scope, receive, send)
            return
        view = await monitor.view(query)
        with monitor.charged():
            body = self._rendered(view, media_type)
        await respond(send, 200, body, media_type)

    def _rendered(self, view: View, media_type: str) -> str:
        if media_type == JSON:
            return json.dumps(view)
        self._updates.clear()  # the next update for this viewer must not be older than this page
        return as_text(view) if media_type == TEXT else page(view, self._link_token)

    @property
    def _link_token(self) -> str | None:
        """The token for the page's own links; None if they need none."""
        return self.token if self._access.by_token else None

    async def _update(self, monitor: Monitor, query: Query) -> bytes:
        async with self._lock:
            shared = monitor.name, query
            updated, body = self._updates.get(shared, (-math.inf, b""))
            if trio.current_time() - updated > MAX_AGE:
                view = await monitor.view(query, max_age=MAX_AGE)
                with monitor.charged():
                    body = f"data: {update(view, self._link_token)}\n\n".encode()
                now = trio.current_time()
                self._updates = {**still_fresh(self._updates, now), shared: (now, body)}
            return body

    async def _stream(
        self, monitor: Monitor, query: Query, scope: Any, receive: Any, send: Any
    ) -> None:
        """Send an update each second, until the viewer disconnects or the connection drains."""
        await send(response_start(200, EVENTS))
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        conn = conn_of(scope)
        async with trio.open_nursery() as nursery:

            async def stop_after(wait: Callable[[], Awaitable[object]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            async def disconnect() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass

            nursery.start_soon(stop_after, disconnect)
            if conn is not None:
                nursery.start_soon(stop_after, conn.draining.wait)
            while True:
                body = await self._update(monitor, query)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await trio.sleep(SAMPLE_INTERVAL)
        await send({"type": "http.response.body"})


def media_type_for(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the first of our media types in the Accept header; HTML if it has none."""
    accept = b",".join(value for name, value in headers if name == b"accept").decode("latin-1")
    kinds = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    return next(
        (media_type for media_type in kinds if media_type in (HTML, JSON, EVENTS, TEXT)), HTML
    )


def response_start(status: int, media_type: str, **headers: str) -> dict[str, Any]:
    """Return a response's first event. Its headers forbid caching, framing and foreign content."""
    fields = {
        "content-type": media_type if media_type == JSON else f"{media_type}; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": POLICY,
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "vary": "accept",
        "x-content-type-options": "nosniff",
        **headers,
    }
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
    }


async def respond(
    send: Any, status: int, text: str, media_type: str = TEXT, **headers: str
) -> None:
    body = text.encode() if status == 200 else f"{text}\n".encode()
    headers["content-length"] = str(len(body))
    await send(response_start(status, media_type, **headers))
    await send({"type": "http.response.body", "body": body})
