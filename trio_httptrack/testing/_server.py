"""memory_server: a tracked Hypercorn whose clients connect in memory.

It runs Hypercorn's own worker, with the same connections as every tracked server. Only the listener
and the kernel (``_connection.kernel``) are replaced. There is one more difference: if a server in
production would log an error and continue, this server stops, and the test gets the error.
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
    ServerSide,
)
from ._tls import Tls

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    import httpx


class MemoryServer(TrackedServer):
    """A running server, from ``async with memory_server(...)``.

    It has everything that a :class:`trio_httptrack.TrackedServer` has. Its ``urls`` work only with
    its :meth:`httpx_transport`, which connects any other URL to this server, too.

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
        """Open a connection; return the client's side when the server has accepted it.

        NEW has been reported by then. A stream that is left open is closed with the server.

        Args:
          tls: whether the server expects TLS. Its certificate is that of the config. If there is
            none, one is created, which needs the extra ``testing``.
          alpn: the protocols that the client offers, such as ``["h2"]``, preferred ones first.
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
            raise ValueError(f"alpn={alpn!r} needs a TLS handshake, and there is none")
        if client is None:
            client = ("127.0.0.1", next(self._client_ports))
        client_socket = MemorySocket(client, client=True)
        server_socket = MemorySocket(
            ("::1" if ":" in client[0] else "127.0.0.1", 443 if tls else 80)
        )
        server_socket.connect(client_socket)
        server_side = ServerSide(server_socket, self._tls.server if tls else None)
        with ExitStack() as undo:
            undo.callback(client_socket.close)
            await self._listener.offer(server_side)
            await server_side.accepted.wait()
            stream = ClientStream(MemoryStream(client_socket), server_side.conn)
            if tls and handshake:
                await stream._start_tls(self._tls.client(alpn))
            undo.pop_all()
        return stream

    def httpx_transport(
        self, *, http1: bool = True, http2: bool = False
    ) -> httpx.AsyncBaseTransport:
        """Return a transport for ``httpx.AsyncClient`` that connects to this server only.

        The host and port of a URL are ignored. ``https`` means TLS, and HTTP/2 if both sides
        support it. With ``http1=False``, ``http`` means HTTP/2 by prior knowledge. Needs the extra
        ``testing``.

        Args:
          http1: whether the client supports HTTP/1.1.
          http2: whether the client supports HTTP/2.

        Raises:
          ModuleNotFoundError: the extra ``testing`` is missing.
        """
        with require_extra("httpx_transport()", extra="testing"):
            from ._httpx import MemoryTransport
        return MemoryTransport(self, http1=http1, http2=http2)


class Listener:
    """Accepts connections in memory, in place of sockets."""

    def __init__(self, listener: MemoryListener) -> None:
        self._listener = listener

    @trio.lowlevel.enable_ki_protection
    async def accept(self, start: StartConnection) -> None:
        async with self._listener:
            while True:
                side = await self._listener.accept()
                client, server = side.socket.getpeername(), side.socket.getsockname()
                side.conn = start(Accepted(side.socket, side.ssl_context, client, server)).conn
                side.accepted.set()  # after NEW is reported


LIFESPAN = (
    'Raised by the application in its lifespan, a call with scope["type"] == "lifespan". '
    "An application that has none raises, or returns, before it receives anything."
)


class MemoryWorker(Worker):
    """A worker that passes errors to ``fail`` that a worker in production would only log."""

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
                reported, _ = split(error, LifespanFailureError)
                if reported is not None:
                    raise
                if not supported:
                    return  # the application does not support the lifespan
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

    It does what :func:`trio_httptrack.tracked_server` does, with the same code, but without
    sockets. So only Trio's clock determines the time: with pytest-trio's ``autojump_clock`` a
    timeout of minutes takes no real time. Every run has the same times, and on each connection the
    same order. If a test does several things at the same instant, or on several connections, Trio's
    scheduler chooses their order. If that matters, wait in between: for a response, or for
    ``trio.testing.wait_all_tasks_blocked()``.

    When the block is left, the server drains its connections, and then shuts down the application's
    lifespan. Two things differ from production:

    * An error that production would only log cancels the block, and is raised from it: an error of
      a tracker, of a lifespan that has received its first event, or of the server itself. (A
      handler's exception gets a 500 as usual, but ``pytest.fail()`` in a handler fails the test.)
    * Clients connect only by :meth:`MemoryServer.connect` or :meth:`MemoryServer.httpx_transport`.

    An error that leaves the block has a note, which pytest prints. It shows the history of the
    connections, and the requests in flight when the error was raised (Python 3.11 and later).

    Args:
      app: an ASGI application. (A WSGI application runs in threads, which have no mock clock.)
      config: Hypercorn's Config. It is not changed, and its addresses are not used.
      tracker: called for each transition, after ``config.conn_state`` if that is set.
      settings: changes to the config, such as ``keep_alive_timeout=5`` (s).

    Raises:
      TypeError: there is no such setting, or the value is of a wrong type; ``config`` is not
        Hypercorn's Config, or ``tracker`` is not a tracker.
      ValueError: ``config.conn_state`` does not refer to a tracker, or another setting is invalid.
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
    config = with_settings(config, settings)
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
                    raise errors[0]  # the others were logged
        except BaseException as error:
            stops_program, _ = split(error, (KeyboardInterrupt, SystemExit))
            if not errors or stops_program is not None:
                raise
            if not set(leaves(error)) <= set(leaves(errors[0])):
                raise errors[0]  # noqa: B904  # the block's own error is its context
        if errors:
            raise errors[0]
    except BaseException as error:
        if server.urls:  # it has started
            # If its lifespan failed after the drain, only the worker has the report.
            history.add_note(error, getattr(worker, "report", None))
        raise


def with_settings(config: Config | None, settings: Mapping[str, Any]) -> Config:
    """Return a copy of the config, or a new one, with these settings."""
    if config is None:
        config = Config()
    check_config(config)
    config = copy(config)
    config._log = None  # it is created from the settings
    for name, value in settings.items():
        if not is_setting(name):
            raise TypeError(f"memory_server(): Hypercorn's Config has no setting {name!r}")
        complaint = type_complaint(name, value) if is_hypercorn_setting(name) else None
        if complaint is not None:
            raise TypeError(f"memory_server(): {complaint}")
        setattr(config, name, value)
    return config


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors in a group, without those that only wrap others.

    A group that has passed a nursery is a copy, so groups cannot be compared themselves.
    """
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from leaves(each)
    elif isinstance(error, LifespanFailureError) and error.__cause__ is not None:
        yield from leaves(error.__cause__)
    elif not isinstance(error, trio.Cancelled):
        yield error
