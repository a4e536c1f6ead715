"""httpx on the in-memory network: a transport, and a network backend for its connection pools.

Only public names of httpx and httpcore are used. httpcore writes the requests, and chooses the
connections.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import httpcore
import httpx
import trio

from ._client import ClientStream
from ._tls import Tls


class Server(Protocol):
    """What httpx needs of a memory server."""

    @property
    def _tls(self) -> Tls: ...

    async def connect(self, *, tls: bool, handshake: bool) -> ClientStream: ...


class MemoryTransport(httpx.AsyncBaseTransport):
    """Sends httpx's requests to a memory server."""

    def __init__(self, server: Server, *, http1: bool, http2: bool) -> None:
        self._server = server
        self._http1 = http1
        self._http2 = http2
        self._pools: dict[bool, httpcore.AsyncConnectionPool] = {}

    def _pool(self, tls: bool) -> httpcore.AsyncConnectionPool:
        # Two pools, because a network backend does not know whether TLS will follow.
        if tls not in self._pools:
            self._pools[tls] = httpcore.AsyncConnectionPool(
                ssl_context=self._server._tls.client() if tls else None,
                max_connections=None,
                network_backend=Backend(self._server, tls),
                http1=self._http1,
                http2=self._http2,
            )
        return self._pools[tls]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        with map_exceptions(HTTPX):
            response = await self._pool(request.url.scheme == "https").handle_async_request(
                httpcore.Request(
                    request.method,
                    url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=Body(response),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()


class Body(httpx.AsyncByteStream):
    """A response's body, as a stream."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with map_exceptions(HTTPX):
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


class Backend(httpcore.AsyncNetworkBackend):
    """Connects to a memory server, whatever the address."""

    def __init__(self, server: Server, tls: bool) -> None:
        self._server = server
        self._tls = tls

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Stream:
        with map_exceptions(CONNECTING), trio.fail_after(seconds(timeout)):
            return Stream(await self._server.connect(tls=self._tls, handshake=False))


class Stream(httpcore.AsyncNetworkStream):
    def __init__(
        self, client: ClientStream, tls: trio.SSLStream[ClientStream] | None = None
    ) -> None:
        self._client = client
        self._tls = tls
        self._stream: trio.abc.Stream = tls or client

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with map_exceptions(READING), trio.fail_after(seconds(timeout)):
            return bytes(await self._stream.receive_some(max_bytes))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with map_exceptions(WRITING), trio.fail_after(seconds(timeout)):
            await self._stream.send_all(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> Stream:
        stream = trio.SSLStream(
            self._client, ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        try:
            with map_exceptions(CONNECTING), trio.fail_after(seconds(timeout)):
                await stream.do_handshake()
        except BaseException:
            self._client.reset()
            raise
        return Stream(self._client, stream)

    def get_extra_info(self, info: str) -> Any:
        conn = self._client.conn
        return {
            "ssl_object": self._tls,  # it has the same methods
            "client_addr": conn.client,
            "server_addr": conn.server,
            "is_readable": self._client._readable,
        }.get(info)


def seconds(timeout: float | None) -> float:
    return math.inf if timeout is None else timeout


Errors = Mapping[type[Exception], type[Exception]]

CONNECTING: Errors = {
    trio.TooSlowError: httpcore.ConnectTimeout,
    trio.BrokenResourceError: httpcore.ConnectError,
    OSError: httpcore.ConnectError,
}
READING: Errors = {
    trio.TooSlowError: httpcore.ReadTimeout,
    trio.BrokenResourceError: httpcore.ReadError,
    trio.ClosedResourceError: httpcore.ReadError,
}
WRITING: Errors = {
    trio.TooSlowError: httpcore.WriteTimeout,
    trio.BrokenResourceError: httpcore.WriteError,
    trio.ClosedResourceError: httpcore.WriteError,
}
# httpx has the same names.
HTTPX: Errors = {
    getattr(httpcore, name): getattr(httpx, name)
    for name in (
        "ConnectTimeout",
        "ReadTimeout",
        "WriteTimeout",
        "PoolTimeout",
        "ConnectError",
        "ReadError",
        "WriteError",
        "ProxyError",
        "UnsupportedProtocol",
        "LocalProtocolError",
        "RemoteProtocolError",
    )
}


@contextmanager
def map_exceptions(errors: Errors) -> Iterator[None]:
    """Replace each error of a type in ``errors`` by one of the type that it maps to."""
    try:
        yield
    except Exception as error:
        for kind, other in errors.items():
            if isinstance(error, kind):
                raise other(str(error)) from error
        raise
