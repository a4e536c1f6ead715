"""StatusApp: the page as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import trio

from .._asgi import conn_of, live, refuse_websocket
from .._hijacks import HijackTracker
from .._stats import StatsTracker
from ._access import Access
from ._history import INTERVAL, History
from ._page import POLICY, page, update
from ._view import Query, View

HTML, JSON, EVENTS = "text/html", "application/json", "text/event-stream"


class StatusApp:
    """An ASGI application that shows what the connections of its process are doing.

    Mount it anywhere; it answers every path below its mount with the same page, by what the
    client accepts: HTML, ``application/json``, or ``text/event-stream``, by which the page keeps
    itself up to date. ``?sort=-age&page=2`` chooses which of the open connections are listed:
    a hundred, by default those first that have been in their state for longest.

    Where it gets the lifespan's events, as it does from Hypercorn's
    ``TrioDispatcherMiddleware``, it knows the last five minutes when somebody looks;
    elsewhere, the minutes since somebody looked first.

    It is read-only, loads nothing from other hosts, and is not cached. It shows addresses and
    paths, but no queries and no headers.

    Args:
      stats_tracker: whose connections are shown. Only those that are
        :class:`~trio_httptrack.Conn` objects can be listed.
      hijack_tracker: shows the upgraded connections, too.
      allow: who may look, as a list of networks such as ``["10.1.0.0/16", "::1"]``. A peer's
        address is that of its socket; headers such as ``X-Forwarded-For`` do not change it.
        By default it is shown to browsers on the same machine only, as ``localhost``, and not
        through a proxy, as far as that can be known: a proxy on the same machine that adds no
        header, such as nginx since 1.29.7 unless told otherwise, looks like a browser. With
        ``allow`` the address is all that counts. Everybody else gets a 403.

    Raises:
      TypeError: a tracker is something else, or ``allow`` is a single string.
      ValueError: something in ``allow`` is not a network.

    >>> from trio_httptrack import StatsTracker
    >>> tracker = StatsTracker()
    >>> status = StatusApp(tracker)
    >>> async def app(scope, receive, send):
    ...     if scope["type"] == "lifespan" or scope["path"] == "/status":
    ...         await status(scope, receive, send)
    """

    def __init__(
        self,
        stats_tracker: StatsTracker,
        *,
        hijack_tracker: HijackTracker | None = None,
        allow: Iterable[str] | None = None,
    ) -> None:
        if not isinstance(stats_tracker, StatsTracker):
            raise TypeError(f"a StatsTracker is needed, not {stats_tracker!r}")
        if hijack_tracker is not None and not isinstance(hijack_tracker, HijackTracker):
            raise TypeError(f"hijack_tracker must be a HijackTracker, not {hijack_tracker!r}")
        self._tracker = stats_tracker
        self._hijacks = hijack_tracker
        self._access = Access(allow)
        self._history = History(stats_tracker, hijack_tracker)
        # What the viewers of this second are sent: those who want to see the same share it.
        self._updates: dict[Query, bytes] = {}
        self._second: object = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await refuse_websocket(receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        async with trio.open_nursery() as nursery:
            await live(receive, send, partial(nursery.start_soon, self._history.keep))
            nursery.cancel_scope.cancel()

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = self._access.refusal(scope)
        if refusal is not None:
            await respond(send, 403, refusal)
        elif scope["method"] not in ("GET", "HEAD"):
            await respond(send, 405, "This page can only be read.", allow="GET, HEAD")
        else:
            try:
                query = Query.parse(scope["query_string"])
            except ValueError as error:
                await respond(send, 400, f"{error}.")
                return
            kind = accepted(scope["headers"])
            if kind == EVENTS:
                await self._stream(query, scope, receive, send)
                return
            view = self._view(query)
            self._updates.clear()  # what this viewer will be sent next must not be older
            body = view.as_json() if kind == JSON else page(view)
            await respond(send, 200, body, kind)

    def _view(self, query: Query) -> View:
        return View.of(query, self._tracker, self._hijacks, self._history)

    def _update(self, query: Query) -> bytes:
        now = self._history.now()
        query = query.within(sum(now.stats.gauges.values()) + now.hijacked)
        second = self._history.run, now.time // INTERVAL
        if second != self._second:
            self._updates.clear()
            self._second = second
        if query not in self._updates:
            self._updates[query] = f"data: {update(self._view(query))}\n\n".encode()
        return self._updates[query]

    async def _stream(self, query: Query, scope: Any, receive: Any, send: Any) -> None:
        """Send what changes each second, until the viewer or the server goes."""
        await send(head(200, EVENTS))
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body"})
            return
        conn = conn_of(scope)
        async with trio.open_nursery() as nursery:

            async def end_with(wait: Callable[[], Awaitable[object]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            async def disconnect() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass

            nursery.start_soon(end_with, disconnect)
            if conn is not None:
                nursery.start_soon(end_with, conn.draining.wait)
            while True:
                body = self._update(query)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await trio.sleep(INTERVAL)
        await send({"type": "http.response.body"})


def accepted(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The kind of answer that the client asks for by name; HTML if for none of them."""
    accept = b",".join(value for name, value in headers if name == b"accept").decode("latin-1")
    kinds = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
    return next((kind for kind in kinds if kind in (HTML, JSON, EVENTS)), HTML)


def head(status: int, kind: str, **headers: str) -> dict[str, Any]:
    """An answer's first event. What it says is for this viewer, at this moment, on this page."""
    fields = {
        "content-type": kind if kind == JSON else f"{kind}; charset=utf-8",
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
    send: Any, status: int, text: str, kind: str = "text/plain", **headers: str
) -> None:
    body = text.encode() if status == 200 else f"{text}\n".encode()
    headers["content-length"] = str(len(body))
    await send(head(status, kind, **headers))
    await send({"type": "http.response.body", "body": body})
