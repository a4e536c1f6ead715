"""memory_server: a tracked Hypercorn whose clients connect in memory.

It is Hypercorn's own worker with the connections of every tracked server. Only the listener
is another, and what the connections ask of the operating system. And where a server in
production logs an error and goes on, this one ends, and the test gets the error.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from copy import copy
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.config import Config
from hypercorn.typing import AppWrapper, LifespanState
from hypercorn.utils import LifespanFailureError

from .._connection.errors import split
from .._connection.kernel import Kernel
from .._connection.shutdown_report import ShutdownReport
from .._extra import require_extra
from .._hypercorn.accept import Accepted, StartConnection
from .._hypercorn.lifespan import Lifespan
from .._hypercorn.setting_types import type_complaint
from .._hypercorn.settings import check_config, is_hypercorn_setting, is_setting
from .._hypercorn.worker import Worker, run
from .._server import App, TrackedServer, serving
from .._states import Conn
from .._trackers import Composed, Tracker, compose
from ._client import ClientStream
from ._history import History
from ._network import (
    MemoryKernel,
    MemoryListener,
    MemorySocket,
    MemoryStream,
    ServerEnd,
)
from ._tls import Tls

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import httpx


class MemoryServer(TrackedServer):
    """A running server; what ``async with memory_server(...)`` gives you.

    It has all that a :class:`trio_httptrack.TrackedServer` has. Its ``urls`` lead to it from its
    :meth:`httpx_transport` only, as does any other URL.

    >>> import httpx, trio
    >>> async def app(scope, receive, send):
    ...     assert scope["type"] == "http"
    ...     await send({"type": "http.response.start", "status": 204, "headers": []})
    ...     await send({"type": "http.response.body"})
    >>> async def main():
    ...     async with memory_server(app) as server:
    ...         async with httpx.AsyncClient(transport=server.httpx_transport()) as client:
    ...             print((await client.get(server.urls[0])).status_code, server.stats().idle)
    >>> trio.run(main)
    204 1
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        self._kernel = MemoryKernel()
        self._listener = MemoryListener()
        self._client_ports = count(40001)

    @cached_property
    def _tls(self) -> Tls:
        return Tls(self._config)

    async def connect(
        self,
        *,
        tls: bool = False,
        alpn: Sequence[str] = (),
        handshake: bool = True,
        client: tuple[str, int] | None = None,
    ) -> ClientStream:
        """Open a connection; return the client's end of it when the server has accepted it.

        NEW is reported by then. A stream that is left open ends with the server.

        Args:
          tls: whether the server expects TLS. Its certificate is that of the config; without
            one it is made for the occasion, which needs the extra ``testing``.
          alpn: the protocols that the client offers, such as ``["h2"]``, best first.
          handshake: False for a client that does no TLS handshake, or does it itself.
          client: the client's address and port, IPv4 or IPv6; by default 127.0.0.1 and a port
            that no other connection of this server has.

        Raises:
          ConnectionRefusedError: the server does not accept any more.
          trio.BrokenResourceError: the TLS handshake failed.
          ValueError: ``alpn`` is given for a connection that does no handshake here.
          ModuleNotFoundError: a certificate is needed, and the extra ``testing`` is missing.
        """
        if alpn and not (tls and handshake):
            raise ValueError(f"alpn={alpn!r} is part of the TLS handshake, and there is none")
        if client is None:
            client = ("127.0.0.1", next(self._client_ports))
        theirs = MemorySocket(client, client=True)
        ours = MemorySocket(("::1" if ":" in client[0] else "127.0.0.1", 443 if tls else 80))
        ours.connect(theirs)
        server_end = ServerEnd(ours, self._tls.server if tls else None)
        with ExitStack() as undo:
            undo.callback(theirs.close)
            await self._listener.offer(server_end)
            await server_end.accepted.wait()
            stream = ClientStream(MemoryStream(theirs), server_end.conn)
            if tls and handshake:
                await stream._start_tls(self._tls.client(alpn))
            undo.pop_all()
        return stream

    def httpx_transport(
        self, *, http1: bool = True, http2: bool = False
    ) -> httpx.AsyncBaseTransport:
        """A transport for ``httpx.AsyncClient`` whose connections all lead to this server.

        Whatever the URL's host and port are. ``https`` means TLS, and HTTP/2 if both ends want
        it; with ``http1=False``, ``http`` means HTTP/2 by prior knowledge. Needs the extra
        ``testing``.

        Args:
          http1: whether HTTP/1.1 may be spoken.
          http2: whether HTTP/2 may be spoken.

        Raises:
          ModuleNotFoundError: the extra ``testing`` is missing.
        """
        with require_extra("httpx_transport()", extra="testing"):
            from ._httpx import MemoryTransport
        return MemoryTransport(self, http1=http1, http2=http2)


class Listener:
    """Where a server accepts in memory, as it accepts from sockets."""

    def __init__(self, listener: MemoryListener) -> None:
        self._listener = listener

    @trio.lowlevel.enable_ki_protection
    async def accept(self, start: StartConnection) -> None:
        async with self._listener:
            while True:
                end = await self._listener.accept()
                client, server = end.socket.getpeername(), end.socket.getsockname()
                end.conn = start(Accepted(end.socket, end.ssl_context, client, server)).conn
                end.accepted.set()  # NEW is reported before anybody notices


LIFESPAN = (
    'Raised by the application in its lifespan, a call with scope["type"] == "lifespan". '
    "An application that has none raises, or returns, before it receives anything."
)


class MemoryWorker(Worker):
    """A worker whose first error, which in production it would have to survive, is ``fail``'s."""

    def __init__(
        self,
        config: Config,
        tracker: Composed,
        kernel: Kernel,
        fail: Callable[[BaseException], None],
        nursery: trio.Nursery,
    ) -> None:
        super().__init__(config, tracker, kernel, nursery)
        self._fail = fail

    def make_lifespan(self, app: AppWrapper, config: Config, state: LifespanState) -> Lifespan:
        async def watched(scope: Any, receive: Any, send: Any, *others: Any) -> None:
            supported = False

            async def received() -> Any:
                nonlocal supported
                event = await receive()
                supported = True
                return event

            async def sent(message: Any) -> None:
                nonlocal supported
                supported = message["type"].startswith("lifespan.")
                await send(message)

            try:
                await app(scope, received, sent, *others)
            except Exception as error:
                said_so, _ = split(error, LifespanFailureError)
                if said_so is not None:
                    raise
                if not supported:
                    return  # that is how it says that it has no lifespan
                if sys.version_info >= (3, 11):
                    error.add_note(LIFESPAN)
                self._fail(error)
                lifespan.failure = LifespanFailureError("the application", repr(error))
                raise lifespan.failure from error

        lifespan = super().make_lifespan(cast(AppWrapper, watched), config, state)
        return lifespan

    async def log_application_error(self, error: BaseException, conn: Conn, path: str) -> None:
        if not isinstance(error, Exception):
            self._fail(error)  # such as pytest.fail's
        await super().log_application_error(error, conn, path)

    async def log_connection_error(self, error: BaseException, conn: Conn) -> None:
        self._fail(error)
        await super().log_connection_error(error, conn)

    def log_error(self, error: BaseException, message: str, *args: object) -> None:
        errors = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        self._fail(errors[0] if len(errors) == 1 else error)  # composed trackers raise a group
        super().log_error(error, message, *args)


@asynccontextmanager
async def memory_server(
    app: App,
    config: Config | None = None,
    *,
    tracker: Tracker | None = None,
    **settings: Any,
) -> AsyncIterator[MemoryServer]:
    """Serve ``app`` with Hypercorn in memory, tracked, while the block runs.

    All that :func:`trio_httptrack.tracked_server` does, and by the same code, but without
    sockets: time passes as Trio's clock says. With pytest-trio's ``autojump_clock`` a timeout
    of minutes is over at once, and everything happens at the same time in each run, and on
    each connection in the same order. Only where a test does several things in one instant,
    or with several connections, does Trio's scheduler choose which is seen first: let it wait
    for an answer, or for ``trio.testing.wait_all_tasks_blocked()``, in between.

    Leaving the block drains, and then ends the application's lifespan. Two things are made
    for tests. An error that in production is logged and survived ends the block and is raised
    in its place: one of a tracker, of a lifespan that has received its first event, or of the
    server itself. (A handler's exception is answered with a 500, as ever; but ``pytest.fail()``
    in one ends the test.) And clients connect by
    :meth:`MemoryServer.connect` or :meth:`MemoryServer.httpx_transport` only.

    An error that leaves the block has a note, which pytest prints, with the history of the
    connections and the requests in flight when it was raised (Python 3.11 and later).

    Args:
      app: an ASGI application. (A WSGI application runs in threads, which know no mock clock.)
      config: Hypercorn's; it is not changed, and its addresses are not used.
      tracker: called for each transition, after ``config.conn_state`` if that is set.
      settings: what is to be changed in the config, such as ``keep_alive_timeout=5`` (s).

    Raises:
      TypeError: there is no such setting, or Hypercorn's is of another type; ``config`` is not
        Hypercorn's Config, or ``tracker`` no tracker.
      ValueError: ``config.conn_state`` does not lead to a tracker, or another of its settings
        cannot be used.
      hypercorn.utils.LifespanFailureError: the application's startup has failed.

    >>> import trio, trio.testing
    >>> async def app(scope, receive, send):
    ...     assert scope["type"] == "http"
    >>> async def main():
    ...     async with memory_server(app, keep_alive_timeout=300) as server:
    ...         stream = await server.connect()
    ...         print(await stream.receive_some(), trio.current_time())
    >>> trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    b'' 300.0
    """
    config = configured(config, settings)
    server = MemoryServer(config)
    history = History()
    block = trio.CancelScope()
    errors: list[BaseException] = []
    worker: MemoryWorker | None = None

    def fail(error: BaseException) -> None:
        history.keep(error, server.connections())
        errors.append(error)
        block.cancel()

    async def serve(
        app: AppWrapper, config: Config, tracker: Composed, **kwargs: Any
    ) -> ShutdownReport:
        tracked = compose(tracker, history)  # in front of each ConnTracker, behind all others

        def make_worker(nursery: trio.Nursery) -> MemoryWorker:
            nonlocal worker
            worker = MemoryWorker(config, tracked, server._kernel, fail, nursery)
            return worker

        return await run(make_worker, app, listener=Listener(server._listener), **kwargs)

    try:
        try:
            async with serving(server, serve, app, config, tracker):
                server.urls = ["http://localhost", "https://localhost"]
                with block:
                    try:
                        yield server
                    except BaseException as error:
                        history.keep(error, server.connections())
                        raise
                if errors:
                    raise errors[0]  # the others are in the log
        except BaseException as error:
            ends_all, _ = split(error, (KeyboardInterrupt, SystemExit))
            if not errors or ends_all is not None:
                raise
            if not set(leaves(error)) <= set(leaves(errors[0])):
                raise errors[0]  # noqa: B904  # whose context is now what the block made of it
        if errors:
            raise errors[0]
    except BaseException as error:
        if server.urls:  # it has started
            # Where its lifespan failed behind the drain, only the worker has the report.
            history.add_note(error, getattr(worker, "report", None))
        raise


def configured(config: Config | None, settings: Mapping[str, Any]) -> Config:
    """A copy of the config, or a new one, with these settings."""
    if config is None:
        config = Config()
    check_config(config)
    config = copy(config)
    config._log = None  # which is made of the settings as they are
    for name, value in settings.items():
        if not is_setting(name):
            raise TypeError(f"memory_server(): Hypercorn's Config has no setting {name!r}")
        complaint = type_complaint(name, value) if is_hypercorn_setting(name) else None
        if complaint is not None:
            raise TypeError(f"memory_server(): {complaint}")
        setattr(config, name, value)
    return config


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors of a group, of which one that passed a nursery is a copy; but what only
    carries others is left out."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    elif isinstance(error, LifespanFailureError) and error.__cause__ is not None:
        yield from leaves(error.__cause__)
    elif not isinstance(error, trio.Cancelled):
        yield error
