"""One request's application: the two callables it is given, and its end.

Hypercorn's protocol hands each request to ``spawn_app`` and from then on speaks
to the application through :meth:`Handler.put`, the application to it through
:meth:`Handler.send`. Four promises are kept here:

* ``send`` and ``receive`` are checkpoints, so an application cannot freeze the loop;
* nobody waits for an application that no longer reads: a disconnect needs no room
  in the queue, and what is put after the application's end is dropped;
* a response's head waits for its body's first event, as ASGI asks for: both leave in one
  write, and where the body never comes the answer can still be a 500;
* once the peer is gone, ``receive`` says so as often as it is asked, and ``send``
  raises an OSError.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.config import Config
from hypercorn.typing import AppWrapper

from .errors import TRAVELLING, PeerGone, split
from .websockets import ABNORMAL_END, WebSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .connection import Connection

DISCONNECTS = frozenset({"http.disconnect", "websocket.disconnect"})


async def _ended(event: Any) -> None:
    raise RuntimeError(f"{event['type']} was sent after the application had returned")


class Handler:
    """The task of one request, or of one WebSocket."""

    __slots__ = (
        "_answered",
        "_begun",
        "_changed",
        "_config",
        "_connection",
        "_disconnect",
        "_events",
        "_http1",
        "_protocol_send",
        "_scope",
        "_start",
        "_told",
        "_upgrades",
        "websocket",
        "written",
    )

    def __init__(
        self,
        connection: Connection,
        config: Config,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._connection = connection
        self._config = config
        self._scope = scope
        self._protocol_send = send
        self._events: deque[Any] = deque()
        self._changed: trio.Event | None = None  # what somebody waits for
        self._disconnect: Any = None
        self._start: Any = None  # the head, while it waits
        self._begun = False
        self._told = False  # that its peer has gone
        self._answered = False
        self.written = False  # the whole answer: nothing is owed any more
        self.websocket: WebSocket | None = None  # if it is one
        http1 = scope["http_version"] in ("1.0", "1.1")
        self._upgrades = http1 and scope["type"] == "websocket"
        # The connection is this request's alone: its bytes may be held back for a moment, and
        # the client may say that it has said everything, and still read the answer.
        self._http1 = http1 and scope["type"] == "http"

    async def put(self, event: Any) -> None:
        """Called by the protocol: the application's next event."""
        if event["type"] in DISCONNECTS:
            if self._disconnect is None:  # the first one says why
                self._disconnect = event
                self._has_changed()
            return
        # No checkpoint if there is room: all that was read together is put before the
        # application runs, and a request that is complete does not cost its connection,
        # if it is answered unread. After a disconnect nobody will read.
        while self.full and self._disconnect is None:
            await self._change()
        if self._disconnect is None:
            self._events.append(event)
            self._has_changed()

    @property
    def path(self) -> str:
        path: str = self._scope["path"]
        return path

    @property
    def full(self) -> bool:
        """Whether the next ``put`` would wait for the application."""
        return len(self._events) >= max(1, self._config.max_app_queue_size)

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = trio.Event()
        await self._changed.wait()

    def _has_changed(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def hang_up(self) -> None:
        """Called by the connection: the peer has gone, whatever the protocol knows of it."""
        if self._disconnect is None:
            websocket = self._scope["type"] == "websocket"
            self._disconnect = dict(ABNORMAL_END) if websocket else {"type": "http.disconnect"}
            self._has_changed()

    @trio.lowlevel.enable_ki_protection
    async def receive(self) -> Any:
        """Called by the application."""
        if self._events or self._disconnect is not None:
            await trio.lowlevel.checkpoint()
        while not self._events:
            if self._disconnect is not None:
                self._told = True
                return self._disconnect
            await self._change()
        event = self._events.popleft()
        self._has_changed()
        return event

    @trio.lowlevel.enable_ki_protection
    async def send(self, event: Any) -> None:
        """Called by the application.

        Raises:
          PeerGone: the connection, or this stream of it, ended before the answer did.
        """
        connection = self._connection
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            if not self._answered and (
                connection.gone or (self._disconnect is not None and not self._http1)
            ):
                raise PeerGone(connection.conn)
            type_ = event["type"]
            if type_ == "http.response.start" and not self._begun:
                self._begun = True
                if int(event["status"]) >= 200:  # else no body follows it
                    self._start = {**event, "headers": list(event.get("headers", ()))}
                    return
            start, self._start = self._start, None
            if type_ == "http.response.body" and not event.get("more_body", False):
                self._answered = True  # what closes the connection from here on is no error
            elif type_ == "websocket.accept":
                connection.upgrading = self._upgrades
            if self._http1:
                connection.cork()
            if start is not None:
                await self._protocol_send(start)
            await self._protocol_send(event)
        finally:  # also where the event is refused: the application may try again for ever
            if self._http1:
                await connection.flush()
                self.written = self._answered
            await trio.lowlevel.cancel_shielded_checkpoint()

    @trio.lowlevel.disable_ki_protection
    async def _call(self, app: AppWrapper) -> None:
        await app(
            self._scope,
            self.receive,
            self.send,
            trio.to_thread.run_sync,
            trio.from_thread.run,
        )

    async def run(self, app: AppWrapper) -> None:
        """Run the application to its end, and tell the protocol of it."""
        failed = False
        try:
            await self._call(app)
        except BaseException as error:
            travels, rest = split(error, TRAVELLING)
            if rest is not None:
                _, rest = split(rest, PeerGone)
            if rest is not None:
                failed = True
                await self._connection.log_application_error(rest, self.path)
            if travels is not None:
                raise travels from None
        try:
            if self._told and not (failed or self._begun):
                await self._connection.leave_unanswered()
            await self._protocol_send(None)
        finally:
            # It knows us, too. Break the cycle, so that both are freed at once.
            self._protocol_send = _ended
