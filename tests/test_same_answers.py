"""If plain Hypercorn responds correctly, a tracked server sends the same bytes.

Each exchange below is run twice, with Hypercorn's own trio worker and with a tracked server, by the
same client, with the same application and the same settings. The client must receive the same, and
so must the application: its scopes, and the events from ``receive``. HTTP/1, and WebSockets over
it, are compared byte by byte. So are HTTP/2 frames, except for WINDOW_UPDATE, for the compression
of header blocks, for an empty DATA frame that only ends a stream, and for the boundaries between a
stream's DATA frames, which depend on when the server's tasks run. If several streams are open, each
of them is compared separately.

These are the differences, all of them intended:

* Once the peer has gone, ``send`` raises an OSError, as ASGI requires, and ``receive`` repeats the
  disconnect. In plain Hypercorn ``send`` does nothing, and ``receive`` never returns.
* A connection on which Hypercorn itself has refused an HTTP/1 request is closed after the
  response. Plain Hypercorn keeps it, without reading and without a deadline, until the client
  closes.
* An idle HTTP/1 connection is closed as soon as its client has closed its side. Plain
  Hypercorn keeps it for the whole of ``keep_alive_timeout``.
* What an HTTP/1 client sends after its last request is ignored. In plain Hypercorn it is
  an error, which can cost the response.
* The headers of a response wait for the first event of its body, as ASGI requires. If that never
  comes, because the handler fails or returns, the response is a 500. Plain Hypercorn has sent the
  headers, and closes the HTTP/1 connection after them.
* An HTTP/2 stream whose handler fails after its body has begun is reset. In plain
  Hypercorn the client waits for the rest.
* A WebSocket over HTTP/2 that was closed ends its stream (RFC 8441, 5). In plain
  Hypercorn only one that the application has closed does.
* Over HTTP/2, as over HTTP/1, the connection closes after ``keep_alive_max_requests`` responses.
  Plain Hypercorn closes it one request later, and responds neither to that one nor to those in
  flight. (``test_drain.py`` has this, and the other differences of a shutdown.)
* A scope has the connection in its extensions, as ``httptrack``.
* Where plain Hypercorn deviates from RFC 9112 and RFC 9110, a tracked server follows them;
  ``test_rfc9112.py`` has all of it. Of these, the requests below differ that a client may send in
  good faith: an empty line before a request is ignored, the target of a request may be absolute,
  CONNECT is refused if an application cannot serve it, and a Date or Server header of the
  application replaces the server's own.
* A response that does not wait for the whole request has ``Connection: close``, and so has one
  that refuses a WebSocket. Plain Hypercorn just closes.
* A WebSocket's disconnect has the code and the reason of the client's close frame. Plain
  Hypercorn's is always 1006, or 1000 if the application was the first to close.
* A message that came before a WebSocket's protocol error is delivered, and can be replied to.
* A response over HTTP/2 that does not wait for the whole request is followed by RST_STREAM with
  NO_ERROR (RFC 9113, 8.1), so that the client need not send the rest.
* Over HTTP/2, as over HTTP/1, a client that expects a 100 gets one, a response that is not as long
  as its Content-Length says is an error of the application, and a 204 has no Content-Length. An
  idle connection gets a GOAWAY before it is closed (``test_rfc9113.py`` has what RFCs demand).
* HTTP/2 priorities are ignored, as RFC 9113 (5.3) allows.
* HTTP/2 flow-control windows are returned earlier, but a stream's only when its handler has
  read, so that streams do not wait for each other (``test_http2.py`` has this).
* An application that just returns when it is called with the lifespan scope, as any WSGI
  application does, is served. Plain Hypercorn's trio worker exits.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import hypercorn.trio
import pytest
import trio
import wsproto
import wsproto.extensions
from hypercorn.config import Config
from hypercorn.middleware import TrioWSGIMiddleware
from trio.testing import wait_all_tasks_blocked
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    TextMessage,
)

from trio_httptrack import install, tracked_server
from trio_httptrack._hypercorn import entry as internals

from .support import OLD_HYPERCORN, client_ssl, respond

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

MEGABYTE = 2**20

# The application


class Application:
    """Responds as the first part of the path says, and records what it receives."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, list[Any]]] = []
        self.noted: list[object] = []
        self.gate = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["started"] = ["by the lifespan"]
            while True:
                await send({"type": (await receive())["type"] + ".complete"})
        events: list[Any] = []
        told = deepcopy(scope)
        told["extensions"].pop("httptrack", None)  # the tracked server's Conn
        self.told.append((told, events))

        async def kept_receive() -> Any:
            event = await receive()
            before = events[-1] if events and isinstance(events[-1], dict) else {}
            if "more_body" in event and before.get("more_body"):
                # How many parts a body has is TCP's business.
                events[-1] = {**event, "body": before["body"] + event["body"]}
            elif event["type"] == "websocket.disconnect":
                events.append(event["type"])  # why is one of the differences
            else:
                events.append(event)
            return event

        path = scope["path"].removeprefix(scope["root_path"]).lstrip("/")
        name = path.split("/")[0].replace("-", "_")
        answer = getattr(self, f"{scope['type']}_{name}", self.http_echo)
        await answer(scope, kept_receive, send)

    async def http_echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b"".join([part async for part in parts(receive)])
        await respond(send, b"%s %s: %s" % (scope["method"].encode(), scope["raw_path"], body))

    async def http_count(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"%d" % sum([len(part) async for part in parts(receive)]))

    async def http_back(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends each part of the body when it comes."""
        await start(send)
        async for part in parts(receive):
            await more(send, part)
        await send({"type": "http.response.body"})

    async def http_empty(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"")

    async def http_nothing(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"", status=204)

    async def http_unchanged(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 304, (b"etag", b'"1"'))
        await send({"type": "http.response.body", "body": b"of no use"})

    async def http_refuse(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"no", status=405)

    async def http_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for part in (b"one", b"two", b"", b"three"):
            await more(send, part)
            await trio.lowlevel.checkpoint()
        await send({"type": "http.response.body"})

    async def http_in_parts(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, (b"content-length", b"11"))
        await wait_all_tasks_blocked()  # the client has the head by now
        await more(send, b"one")
        await more(send, b"two")
        await send({"type": "http.response.body", "body": b"three"})

    async def http_big(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"x" * MEGABYTE)

    async def http_big_stream(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        for digit in b"0123456789":
            await more(send, bytes([digit]) * 30_000)
        await send({"type": "http.response.body"})

    async def http_headers(self, scope: Any, receive: Any, send: Any) -> None:
        await start(
            send,
            202,
            (b"X-Upper", b"Value"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-spaces", b"  around  "),
            (b"x-latin", b"caf\xe9"),
            (b"x-empty", b""),
        )
        await send({"type": "http.response.body", "body": b"with headers"})

    async def http_long_head(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, *((b"x-%d" % n, b"y" * 1000) for n in range(20)))
        await send({"type": "http.response.body", "body": b"at last"})

    async def http_close(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send, 200, (b"connection", b"close"), (b"content-length", b"3"))
        await send({"type": "http.response.body", "body": b"bye"})

    async def http_early(self, scope: Any, receive: Any, send: Any) -> None:
        """Does not read."""
        await respond(send, b"early")

    async def http_raise(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("the application's own error")

    async def http_return(self, scope: Any, receive: Any, send: Any) -> None:
        return

    async def http_raise_after_head(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await more(send, b"part")
        raise ValueError("the application's own error")

    async def http_head_only(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send)

    async def http_until_disconnect(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await respond(send, b"you have said all")

    async def http_receive_after_answer(self, scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"answered")
        while (await receive())["type"] != "http.disconnect":
            pass

    async def http_keep_state(self, scope: Any, receive: Any, send: Any) -> None:
        """The state is the server's, its copies are the requests'."""
        scope["state"]["request"] = scope["path"]
        await respond(send, b"kept")

    async def http_hint(self, scope: Any, receive: Any, send: Any) -> None:
        for links in ([b"</a.css>; rel=preload"], [b"</b.js>; rel=preload", b"</c>; rel=next"]):
            await send({"type": "http.response.early_hint", "links": links})
        await respond(send, b"hinted")

    async def http_trailers(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        if scope["path"] != "/trailers/only":
            await more(send, b"with ")
            await send({"type": "http.response.body", "body": b"trailers"})
        else:
            await send({"type": "http.response.body"})
        headers = [(b"x-sum", b"42"), (b"x-more", b"no")]
        await send({"type": "http.response.trailers", "headers": headers})

    async def http_push(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-pushed", b"yes")]
        await send({"type": "http.response.push", "path": "/pushed", "headers": headers})
        await respond(send, b"pushing")

    async def websocket_echo(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})

    async def websocket_choose(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-extra", b"1"), (b"set-cookie", b"a=b")]
        await accept(receive, send, subprotocol=scope["subprotocols"][1], headers=headers)
        await receive()

    async def websocket_say(self, scope: Any, receive: Any, send: Any) -> None:
        """Speaks, once it was spoken to, in all sizes that a frame's length is written in."""
        await accept(receive, send)
        await receive()
        for size in (0, 125, 126, 65535, 65536, MEGABYTE):
            await send({"type": "websocket.send", "bytes": b"x" * size})
        await send({"type": "websocket.send", "text": "to the \N{END WITH LEFTWARDS ARROW ABOVE}"})
        await receive()

    async def websocket_goodbye(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        await send({"type": "websocket.close", "code": 3001, "reason": "enough"})
        await receive()

    async def websocket_leave(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()

    async def websocket_fall(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        raise ValueError("the application's own error")

    async def websocket_refuse(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})

    async def websocket_deny(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [(b"content-length", b"11"), (b"x-why", b"so")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        for part in (b"one", b"two", b"three"):
            event = {"type": "websocket.http.response.body", "body": part}
            await send({**event, "more_body": part != b"three"})

    async def websocket_raise(self, scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("the application's own error")

    async def websocket_return(self, scope: Any, receive: Any, send: Any) -> None:
        return

    async def websocket_listen(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        while (await receive())["type"] == "websocket.receive":
            pass

    # For the differences

    async def http_dated(self, scope: Any, receive: Any, send: Any) -> None:
        own = ((b"date", b"today"), (b"server", b"mine"), (b"content-length", b"0"))
        await start(send, 200, *own)
        await send({"type": "http.response.body"})

    async def websocket_reports(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        self.noted.append(await receive())
        self.gate.set()

    async def http_send_after_disconnect(self, scope: Any, receive: Any, send: Any) -> None:
        await start(send)
        await more(send, b"part")
        await self._note_the_end(receive, partial(more, send, b"more"))

    async def websocket_send_after_disconnect(self, scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        event = {"type": "websocket.send", "text": "into the dark"}
        await self._note_the_end(receive, partial(send, event))

    async def _note_the_end(self, receive: Any, send: Callable[[], Awaitable[None]]) -> None:
        while not (await receive())["type"].endswith(".disconnect"):
            pass
        try:
            await send()
            self.noted.append("send returned")
        except OSError:
            self.noted.append("send raised OSError")
        async with trio.open_nursery() as nursery:

            async def receive_again() -> None:
                self.noted.append((await receive())["type"])

            nursery.start_soon(receive_again)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        self.gate.set()


async def parts(receive: Any) -> AsyncIterator[bytes]:
    while True:
        event = await receive()
        yield event["body"]
        if not event["more_body"]:
            return


async def start(send: Any, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def more(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def accept(receive: Any, send: Any, **event: Any) -> None:
    await receive()
    await send({"type": "websocket.accept", **event})


class WsgiApplication(Application):
    """The same for WSGI, with a lifespan, so that plain Hypercorn serves it too."""

    def __init__(self) -> None:
        super().__init__()
        self._middleware = TrioWSGIMiddleware(self._wsgi, 10)

    async def http_echo(self, scope: Any, receive: Any, send: Any) -> None:
        await self._middleware(scope, receive, send)

    def _wsgi(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        environ.update({"wsgi.input": environ["wsgi.input"].read(), "wsgi.errors": None})
        self.noted.append({**environ, "SERVER_PORT": 0})
        start_response("200 OK", [("X-Wsgi", "yes")])
        yield b"one"
        yield b"two" + environ["wsgi.input"]


# The servers

Serve = Callable[[Any, Config], AbstractAsyncContextManager[list[str]]]


@asynccontextmanager
async def plain(app: Any, config: Config) -> AsyncIterator[list[str]]:
    """Hypercorn without us, whether or not something has called ``install``."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(hypercorn.trio.serve, app, config)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def tracked(app: Any, config: Config) -> AsyncIterator[list[str]]:
    async with tracked_server(app, config) as server:
        yield server.urls


trust = cache(client_ssl)


class Network:
    """Where a client finds the server, and the names of its addresses."""

    def __init__(self, app: Application, urls: list[str], streams: AsyncExitStack) -> None:
        self.application = app
        self._streams = streams
        self._addresses: dict[bool, str] = {}
        self._names: dict[Any, Any] = {None: None}
        for url in urls:
            scheme, _, address = url.partition("://")
            self._addresses[scheme == "https"] = address
            if not address.startswith("unix:"):
                host, _, port = address.rpartition(":")
                self._names[host.strip("[]"), int(port)] = f"the {scheme} server"

    async def connect(self, *alpn: str) -> Any:
        """A stream, closed at the latest with the network; over TLS if ALPN offers something."""
        address = self._addresses[bool(alpn)]
        if address.startswith("unix:"):
            return await self._streams.enter_async_context(
                await trio.open_unix_socket(address.removeprefix("unix:"))
            )
        host, _, port = address.rpartition(":")
        stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        await self._streams.enter_async_context(stream)
        self._names[stream.socket.getsockname()[:2]] = f"client {len(self._names)}"
        if not alpn:
            return stream
        encrypted = trio.SSLStream(
            stream, trust(*alpn), server_hostname="localhost", https_compatible=True
        )
        await encrypted.do_handshake()
        return encrypted

    def with_names(self, scope: Any) -> Any:
        """A scope whose addresses have no port that another server would not have."""
        names = {key: self._names[scope[key]] for key in ("client", "server")}
        return {**scope, **names}


@dataclass(frozen=True)
class Exchange:
    """A client, and the server's settings for it."""

    client: Callable[[Network], Awaitable[object]]
    settings: dict[str, Any] = field(default_factory=dict)
    application: type[Application] = Application

    async def hold(self, serve: Serve, certificate: Path, **settings: Any) -> Any:
        """What the client received, and what the application received."""
        app = self.application()
        config = configured(certificate, **self.settings, **settings)
        with trio.fail_after(10):
            async with AsyncExitStack() as streams:
                urls = await streams.enter_async_context(serve(app, config))
                network = Network(app, urls, streams)
                received = await self.client(network)
        # Streams that begin together have no order.
        by_path = sorted(app.told, key=lambda told: bytes(told[0]["raw_path"]))
        told = [(network.with_names(scope), events) for scope, events in by_path]
        return received, told, app.noted


def configured(certificate: Path, **settings: Any) -> Config:
    return Config.from_mapping(
        {
            "bind": "127.0.0.1:0",
            "insecure_bind": "127.0.0.1:0",
            "certfile": str(certificate),
            "keyfile": str(certificate),
            "errorlog": None,
            "include_date_header": False,
            **settings,
        }
    )


EXCHANGES: dict[str, Exchange] = {}

# HTTP/1


def request(
    target: str = "/echo",
    *lines: str,
    method: str = "GET",
    version: str = "1.1",
    server: str = "localhost",
) -> bytes:
    head = [f"{method} {target} HTTP/{version}", f"Host: {server}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1")


def handshake(*lines: str, server: str = "localhost") -> bytes:
    head = ["Connection: keep-alive, Upgrade", "Upgrade: WebSocket"]
    if not any(line.startswith("Sec-WebSocket-Version") for line in lines):
        head.append("Sec-WebSocket-Version: 13")
    head.append("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    return request("/echo", *head, *lines, server=server)


LAST = "Connection: close"


class Until(bytes):
    """What the client waits for before it goes on."""


END = Until()  # instead: say that nothing follows
STOP = Until()  # instead: leave, without waiting for the server's end


async def read_to_end(stream: Any) -> bytes:
    received = b""
    while data := await stream.receive_some():
        received += data
    return received


async def converse(
    network: Network, alpn: tuple[str, ...], statuses: str, turns: list[bytes]
) -> bytes:
    stream = await network.connect(*alpn)
    received, heard = b"", 0
    for turn, following in pairwise([*turns, b""]):
        if turn is END:
            await stream.send_eof()
        elif turn is STOP:
            await trio.aclose_forcefully(stream)
        elif isinstance(turn, Until):
            while not received.endswith(turn, heard):
                data = await stream.receive_some()
                assert data, received[-1000:]
                received += data
            heard = len(received)
        else:
            await stream.send_all(turn)
            if not isinstance(following, Until):
                await wait_all_tasks_blocked()  # so that it is read for itself
    if turns[-1] is not STOP:
        received += await read_to_end(stream)
    assert re.findall(rb"HTTP/1\.1 (\d+) ", received) == statuses.encode().split()
    return re.sub(rb"(?<=\r\ndate: )[^\r]+", b"some day", received)


def http1(
    name: str, *turns: bytes, statuses: str = "200", app: Any = Application, **settings: Any
) -> None:
    """A client that reads to the end, which it brings about itself; over TCP, and over TLS."""
    for transport, alpn in {"tcp": (), "tls": ("http/1.1",)}.items():
        if transport == "tls" and any(turn is END for turn in turns):
            continue  # TLS has no half-close
        client = partial(converse, alpn=alpn, statuses=statuses, turns=list(turns))
        EXCHANGES[f"http1-{transport}-{name}"] = Exchange(client, settings, app)


def length(n: int) -> str:
    return f"Content-Length: {n}"


CHUNKED = "Transfer-Encoding: chunked"
CHUNKS = b"3\r\none\r\n5;ext=1\r\nthree\r\n0\r\n\r\n"
OK = Until(b"GET /echo: ")

http1("get", request("/echo", LAST))
http1("head", request("/echo", LAST, method="HEAD"))
http1("head-of-a-stream", request("/stream", LAST, method="HEAD"))
http1("post", request("/echo", LAST, length(5), method="POST") + b"hello")
http1("post-chunked", request("/echo", LAST, CHUNKED, method="POST") + CHUNKS)
http1(
    "post-with-trailers",
    request("/echo", LAST, CHUNKED, method="POST") + b"3\r\none\r\n0\r\nX-Sum: 42\r\n\r\n",
)
http1("put-nothing", request("/echo", LAST, length(0), method="PUT"))
http1("lower-case-method", request("/echo", LAST, method="brew"))
http1("no-content", request("/nothing", LAST), statuses="204")
http1("not-modified", request("/unchanged", LAST), statuses="304")
http1("empty", request("/empty", LAST))
http1("streamed", request("/stream", LAST))
http1("streamed-back", request("/back", LAST, length(5), method="POST") + b"hello")
http1("head-first-body-in-parts", request("/in-parts", LAST))
http1("headers", request("/headers", LAST), statuses="202")
http1("long-head", request("/long-head", LAST))
http1("close-by-the-application", request("/close"))
http1("keep-alive", request(), OK, request(), OK, request("/echo", LAST), statuses="200 200 200")
http1("keep-alive-then-leave", request(), OK, request(), OK, STOP, statuses="200 200")
http1(
    "keep-alive-of-all-kinds",
    request("/nothing") + request("/stream"),
    Until(b"0\r\n\r\n"),
    request("/unchanged") + request("/back", CHUNKED, method="POST") + CHUNKS,
    Until(b"0\r\n\r\n"),
    request("/empty", method="HEAD") + request("/big"),
    Until(b"x" * MEGABYTE),
    request("/echo", LAST),
    statuses="204 200 304 200 200 200 200",
)
http1("pipelined", request() + request() + request("/echo", LAST), statuses="200 200 200")
http1(
    "pipelined-with-bodies",
    (request("/echo", length(5), method="POST") + b"hello") * 3 + request("/echo", LAST),
    statuses="200 200 200 200",
)
http1(
    "pipelined-slow-answers",
    request("/in-parts") * 3 + request("/in-parts", LAST),
    statuses="200 200 200 200",
)
http1("pipelined-then-end", request() + request("/in-parts") * 2, END, statuses="200 200 200")
http1("half-close", request(), END, OK, STOP)
http1("half-close-while-answering", request("/in-parts"), END)
http1(
    "half-close-after-an-upload",
    request("/echo", length(5), method="POST") + b"hello",
    END,
    Until(b"POST /echo: hello"),
    STOP,
)
http1("half-close-as-a-message", request("/until-disconnect"), END)
http1("half-close-of-a-big-answer", request("/big"), END)
http1("half-close-of-a-big-streamed-answer", request("/big-stream"), END)
http1("receive-after-the-answer", request("/receive-after-answer", LAST))
http1(
    "receive-after-the-answer-and-keep-alive",
    request("/receive-after-answer"),
    Until(b"answered"),
    request("/echo", LAST),
    statuses="200 200",
)
http1(
    "continue",
    request("/echo", LAST, length(5), "Expect: 100-continue", method="POST"),
    Until(b"\r\n\r\n"),
    b"hello",
    statuses="100 200",
)
http1(
    "continue-chunked",
    request("/echo", LAST, CHUNKED, "Expect: 100-continue", method="POST"),
    Until(b"\r\n\r\n"),
    CHUNKS,
    statuses="100 200",
)
http1(
    "continue-and-body-at-once",
    request("/echo", LAST, length(5), "Expect: 100-continue", method="POST") + b"hello",
    statuses="100 200",
)
http1("upload", request("/count", LAST, length(MEGABYTE), method="POST"), b"x" * MEGABYTE)
http1(
    "upload-chunked",
    request("/count", LAST, CHUNKED, method="POST"),
    b"".join(b"100\r\n%s\r\n" % (b"x" * 256) for _ in range(1000)) + b"0\r\n\r\n",
)
http1("big", request("/big", LAST))
http1("big-streamed", request("/big-stream", LAST))
http1("a-byte-at-a-time", *(bytes([byte]) for byte in request("/echo", LAST, method="POST")))
http1("begins-like-http2", b"PRI", b"NT /echo HTTP/1.0\r\n\r\n")
http1("options-for-the-server", request("*", LAST, method="OPTIONS"))
http1("options", request("/echo", LAST, method="OPTIONS"))
http1("query", request("/echo?a=1&b=%20+&&c", LAST))
http1("query-is-empty", request("/echo?", LAST))
http1("percent-encoding", request("/echo/caf%C3%A9%2Fx%3F%zz;p=1/.././/?q=%C3%A9", LAST))
http1("headers-of-all-kinds", request("/echo", "X-A: 1", "x-a:2", "X-B:   ", "X-C: \xe9", LAST))
http1(
    "raw-headers",
    request("/echo", "X-CamelCase: Yes", "Cookie: a=1; b=2", LAST),
    h11_pass_raw_headers=True,
)
http1("raises", request("/raise", LAST), statuses="500")
http1("raises-and-keep-alive", request("/raise"), statuses="500")
http1("raises-behind-a-good-one", request() + request("/raise"), statuses="200 500")
http1("returns", request("/return", LAST), statuses="500")
http1("raises-after-the-head", request("/raise-after-head"))
http1("early-hint", request("/hint", LAST), statuses="500")  # not over HTTP/1
http1(
    "lifespan-state", request("/keep-state/1") + request("/keep-state/2", LAST), statuses="200 200"
)
http1("http-1.0", request("/echo", version="1.0"))
http1("http-1.0-without-a-host", b"GET /echo HTTP/1.0\r\n\r\n")
http1("http-1.0-head", request("/echo", method="HEAD", version="1.0"))
http1("http-1.0-post", request("/echo", length(5), method="POST", version="1.0") + b"hello")
http1("http-1.0-streamed", request("/stream", version="1.0"))
http1("http-1.0-no-content", request("/nothing", version="1.0"), statuses="204")
http1("http-1.0-keep-alive", request("/echo", "Connection: keep-alive", version="1.0"))
http1("http-1.0-raises", request("/raise", version="1.0"), statuses="500")
http1("http-1.0-half-close", request("/in-parts", version="1.0"), END)
http1("unknown-upgrade", request("/echo", "Connection: upgrade, close", "Upgrade: irc/6.9"))
http1("upgrade-of-a-post", request("/echo", LAST, "Upgrade: websocket", method="POST"))
http1(
    "h2c-upgrade-with-a-body",
    request("/echo", "Connection: close, Upgrade, HTTP2-Settings", "Upgrade: h2c", length(5))
    + b"hello",
)
http1("date", request("/echo", LAST), include_date_header=True)
http1(
    "date-of-each",
    request("/stream") + request("/raise"),
    statuses="200 500",
    include_date_header=True,
)
http1("no-server-header", request("/echo", LAST), include_server_header=False)
http1("alt-svc", request("/echo", LAST), alt_svc_headers=['h3=":443"; ma=3600', 'h2=":443"'])
http1("root-path", request("/root/echo", LAST), root_path="/root/")
http1("server-name", request("/echo", LAST), server_names=["localhost"])
HEAD = Until(b"\r\n\r\n")
http1("another-server-name", request(), HEAD, END, statuses="404", server_names=["elsewhere"])
http1(
    "another-server-name-last",
    request("/echo", LAST),
    HEAD,
    END,
    statuses="404",
    server_names=["elsewhere"],
)
http1(
    "max-requests",
    request(),
    OK,
    request(),
    OK,
    request(),
    statuses="200 200 200",
    keep_alive_max_requests=3,
)
http1("max-requests-pipelined", request() * 3, statuses="200 200", keep_alive_max_requests=2)
http1("wsgi", request("/x/y?q=1", "X-A: 1", "X-A: 2", LAST), app=WsgiApplication)
http1("wsgi-post", request("/", LAST, length(5), method="POST") + b"hello", app=WsgiApplication)
http1("wsgi-keep-alive", request("/") + request("/", LAST), statuses="200 200", app=WsgiApplication)
http1("wsgi-head", request("/", LAST, method="HEAD"), app=WsgiApplication)
http1("wsgi-root-path", request("/root/x", LAST), app=WsgiApplication, root_path="/root")
http1(
    "wsgi-too-big",
    request("/", LAST, length(22), method="POST") + b"hello world",
    statuses="400",
    app=WsgiApplication,
)

# HTTP/2

DATA, HEADERS, RST_STREAM, PUSH_PROMISE, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 5, 8, 9
NO_ERROR = bytes(4)


class Http2:
    """An HTTP/2 client that keeps every byte, and each stream's events."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.received = b""
        self.events: defaultdict[int, list[Any]] = defaultdict(list)
        self.ended: set[int] = set()

    async def flush(self) -> None:
        if data := self.h2.data_to_send():
            await self.stream.send_all(data)

    def request(
        self, path: str = "/echo", *headers: tuple[str, str], method: str = "GET", **how: Any
    ) -> int:
        """Queue a request; ``body=None`` leaves it open."""
        stream_id: int = self.h2.get_next_available_stream_id()
        body = how.pop("body", b"")
        fields = [(":method", method), (":scheme", "https"), (":authority", "localhost")]
        fields = [(name, how.pop(name[1:], value)) for name, value in fields]
        fields += [(":path", path), *headers]
        self.h2.send_headers(stream_id, fields, end_stream=body == b"", **how)
        if body:
            self.h2.send_data(stream_id, body, end_stream=True)
        return stream_id

    async def pump(self) -> None:
        await self.take()
        await self.flush()

    async def take(self) -> None:
        data = await self.stream.receive_some()
        assert data, "the server has left"
        self.receive(data)

    def receive(self, data: bytes) -> None:
        self.received += data
        for event in self.h2.receive_data(data):
            self._keep(event)
            if isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _keep(self, event: Any) -> None:
        if isinstance(event, (h2.events.WindowUpdated, h2.events.SettingsAcknowledged)):
            return
        if isinstance(event, h2.events.StreamReset) and not event.error_code:
            return
        events = self.events[getattr(event, "stream_id", None) or 0]
        name = type(event).__name__
        if isinstance(event, h2.events.DataReceived):
            if events and events[-1][0] == name:
                events[-1] = (name, events[-1][1] + event.data)
            elif event.data:
                events.append((name, event.data))
        elif isinstance(event, h2.events.PushedStreamReceived):
            self.events[event.parent_stream_id or 0].append((name, event.headers))
        elif isinstance(event, h2.events.StreamEnded):
            events.append((name,))
            self.ended.add(event.stream_id)
        elif hasattr(event, "headers"):
            events.append((name, event.headers))
        else:
            events.append((name, repr(event)))

    async def until(self, *stream_ids: int) -> None:
        await self.flush()
        while not self.ended.issuperset(stream_ids):
            await self.pump()

    async def get(self, path: str = "/echo", *headers: tuple[str, str], **how: Any) -> int:
        """A request and its whole response."""
        stream_id = self.request(path, *headers, **how)
        await self.until(stream_id)
        return stream_id

    def names(self, stream_id: int) -> list[str]:
        return [event[0] for event in self.events[stream_id]]

    async def until_event(self, name: str, stream_id: int = 0, count: int = 1) -> None:
        """Until so many such events of a stream, or of the connection."""
        await self.flush()
        while self.names(stream_id).count(name) < count:
            await self.pump()

    async def settle(self) -> None:
        """Until the server has done all that it could."""
        await self.flush()
        await wait_all_tasks_blocked()
        self.h2.ping(b"all done")
        await self.until_event("PingAckReceived", count=self.names(0).count("PingAckReceived") + 1)

    async def finish(self) -> None:
        await wait_all_tasks_blocked()  # what was sent last is read for itself
        self.h2.close_connection()
        await self.flush()
        self.received += await read_to_end(self.stream)

    def statuses(self) -> str:
        """The final ones, in the order of the streams."""
        responses = (
            dict(event[1])[b":status"].decode()
            for _, events in sorted(self.events.items())
            for event in events
            if event[0] == "ResponseReceived"
        )
        return " ".join(responses)


def frames(received: bytes) -> list[tuple[int, int, int, object]]:
    """Type, stream, flags and payload of each, but no windows.

    A stream's data is in one, header blocks are decoded, and where a stream ends with its headers
    or with empty data makes no difference.
    """
    head, upgraded, rest = received.partition(b"upgrade: h2c\r\n\r\n")
    found: list[tuple[int, int, int, Any]] = [(-1, 0, 0, head)] if upgraded else []
    rest = rest if upgraded else received
    decoder = hpack.Decoder()
    block = b""
    while rest:
        size, kind, flags = int.from_bytes(rest[:3], "big"), rest[3], rest[4]
        stream_id, payload = int.from_bytes(rest[5:9], "big"), rest[9 : 9 + size]
        if kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            promised, payload = (
                payload[: 4 * (kind == PUSH_PROMISE)],
                payload[4 * (kind == PUSH_PROMISE) :],
            )
            if kind == CONTINUATION:
                kind, _, first_flags, (promised, _) = found.pop()
                flags |= first_flags
            block += payload
            fields: Any = None
            if flags & 4:
                fields, block = [tuple(each) for each in decoder.decode(block, raw=True)], b""
            found.append((kind, stream_id, flags, (promised, fields)))
        elif (
            kind == DATA
            and found
            and found[-1][1] == stream_id
            and (found[-1][0] == DATA or (not payload and flags & 1))
        ):
            last = found[-1]
            data = last[3] + payload if last[0] == DATA else last[3]
            found[-1] = (*last[:2], last[2] | flags, data)
        elif kind != WINDOW_UPDATE and (kind, payload) != (RST_STREAM, NO_ERROR):
            found.append((kind, stream_id, flags, payload))
        rest = rest[9 + size :]
    return found


Http2Client = Callable[[Http2], Awaitable[None]]


async def prior_knowledge(network: Network, *alpn: str) -> Http2:
    client = Http2(await network.connect(*alpn))
    client.h2.initiate_connection()
    return client


async def upgrade(network: Network) -> Http2:
    """The request that upgrades gets its response on stream 1 before the client goes on."""
    client = Http2(await network.connect())
    await client.stream.send_all(request_upgrade(client))
    await receive_upgrade(client)
    while 1 not in client.ended:
        await client.take()
    await client.flush()
    return client


def request_upgrade(client: Http2) -> bytes:
    settings = (client.h2.initiate_upgrade_connection() or b"").decode()
    lines = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", f"HTTP2-Settings: {settings}"]
    return request("/echo/upgrade", *lines)


async def receive_upgrade(client: Http2) -> None:
    received = b""
    while b"\r\n\r\n" not in received:
        received += await client.stream.receive_some()
    head, end, rest = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    client.received = head + end
    client.receive(rest)


HTTP2: dict[str, Callable[[Network], Awaitable[Http2]]] = {
    "h2": lambda network: prior_knowledge(network, "h2"),
    "h2c": prior_knowledge,
    "upgrade": upgrade,
}


def http2(
    name: str,
    statuses: str = "200",
    *,
    compare: Callable[[Http2], object] = lambda client: frames(client.received),
    only: tuple[str, ...] = tuple(HTTP2),
    **settings: Any,
) -> Callable[[Http2Client], Http2Client]:
    """Decorates a client that ends when the server sends nothing more."""

    def decorate(converse: Http2Client) -> Http2Client:
        def exchange(transport: str) -> Callable[[Network], Awaitable[object]]:
            async def hold(network: Network) -> object:
                client = await HTTP2[transport](network)
                await converse(client)
                await client.finish()
                before = "200 " if transport == "upgrade" else ""
                assert client.statuses() == (before + statuses).strip()
                return compare(client)

            return hold

        for transport in only:
            EXCHANGES[f"http2-{transport}-{name}"] = Exchange(exchange(transport), settings)
        return converse

    return decorate


def streams(client: Http2) -> object:
    """Each stream's events: for streams whose frames mingle."""
    return client.events


def http2_get(name: str, path: str, status: str, **settings: Any) -> None:
    @http2(name, status, **settings)
    async def client(client: Http2) -> None:
        await client.get(path)


http2_get("get", "/echo", "200")
http2_get("no-content", "/nothing", "204")
http2_get("not-modified", "/unchanged", "304")
http2_get("empty", "/empty", "200")
http2_get("headers", "/headers", "202")
http2_get("query", "/echo/caf%C3%A9%2Fx?a=1&b=%20+?", "200")
http2_get("raises", "/raise", "500")
http2_get("returns", "/return", "500")
http2_get("no-server-header", "/echo", "200", include_server_header=False)
http2_get("alt-svc", "/echo", "200", alt_svc_headers=['h3=":443"; ma=3600'])
http2_get("root-path", "/root/echo", "200", root_path="/root")


@http2("head", "200 200")
async def head(client: Http2) -> None:
    await client.get(method="HEAD")
    await client.get("/stream", method="HEAD")


@http2("options", "200 200")
async def options(client: Http2) -> None:
    await client.get("*", method="OPTIONS")
    await client.get(method="OPTIONS")


@http2("post", "200 200")
async def post(client: Http2) -> None:
    await client.get(method="POST", body=b"hello")
    await client.get("/echo", ("content-length", "5"), method="POST", body=b"hello")


@http2("post-in-parts", "200 200")
async def post_in_parts(client: Http2) -> None:
    for path in ("/echo", "/back"):
        stream_id = client.request(path, method="POST", body=None)
        for part in (b"one", b"", b"two"):
            client.h2.send_data(stream_id, part, pad_length=7)
            await client.flush()
            await wait_all_tasks_blocked()
        client.h2.end_stream(stream_id)
        await client.until(stream_id)


@http2("post-with-trailers")
async def post_with_trailers(client: Http2) -> None:
    stream_id = client.request(method="POST", body=None)
    client.h2.send_data(stream_id, b"hello")
    client.h2.send_headers(stream_id, [("x-sum", "42")], end_stream=True)
    await client.until(stream_id)


@http2("answered-before-the-upload", "200 200")
async def answered_before_the_upload(client: Http2) -> None:
    stream_id = client.request("/early", method="POST", body=None)
    await client.until(stream_id)
    with suppress(h2.exceptions.StreamClosedError):
        client.h2.reset_stream(stream_id)
    await client.get()


@http2("streamed")
async def streamed(client: Http2) -> None:
    await client.get("/stream")


@http2("head-first-body-in-parts")
async def head_first_body_in_parts(client: Http2) -> None:
    await client.get("/in-parts")


@http2("trailers", "200 200 200 200")
async def trailers(client: Http2) -> None:
    for path in ("/trailers", "/trailers/only"):
        await client.get(path, ("te", "trailers"))
        await client.get(path)  # this client does not want them


@http2("early-hints")
async def early_hints(client: Http2) -> None:
    await client.get("/hint")
    assert client.names(max(client.ended))[:2] == ["InformationalResponseReceived"] * 2


@http2("push", "200 200", compare=streams, only=("h2", "h2c"))
async def push(client: Http2) -> None:
    stream_id = client.request("/push")
    await client.until(stream_id, 2)


@http2("push-that-the-client-forbids", "200 200", compare=streams)
async def push_forbidden(client: Http2) -> None:
    client.h2.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: 0})
    await client.get()
    await client.get("/push")


@http2("streams-in-turn", " ".join(["200"] * 10))
async def streams_in_turn(client: Http2) -> None:
    for n in range(10):
        await client.get(f"/echo/{n}")


@http2("streams-of-all-kinds", "200 204 304 200 500 200 200 202 200")
async def streams_of_all_kinds(client: Http2) -> None:
    for path in [
        "stream",
        "nothing",
        "unchanged",
        "empty",
        "raise",
        "big",
        "back",
        "headers",
        "echo",
    ]:
        await client.get(f"/{path}")


@http2("streams-at-once", " ".join(["200"] * 20), compare=streams)
async def streams_at_once(client: Http2) -> None:
    paths = ["echo", "stream", "in-parts", "back"] * 5
    ids = [client.request(f"/{path}/{n}", body=b"hello") for n, path in enumerate(paths)]
    await client.until(*ids)


@http2("big-streams-at-once", "200 200 200", compare=streams)
async def big_streams_at_once(client: Http2) -> None:
    await client.until(*[client.request(path) for path in ("/big", "/big-stream", "/echo")])


@http2("priorities", "200 200 200 200", compare=streams)
async def priorities(client: Http2) -> None:
    first = client.request("/big-stream/1", priority_weight=1)
    second = client.request("/big-stream/2", priority_weight=256, priority_depends_on=first)
    third = client.request("/echo/3", priority_weight=16, priority_exclusive=True)
    await client.flush()
    client.h2.prioritize(first, weight=200, depends_on=third)
    fourth = client.h2.get_next_available_stream_id()
    client.h2.prioritize(fourth, weight=3, depends_on=second)
    client.request("/stream/4")
    await client.until(first, second, third, fourth)


@http2("big", "200 200")
async def big(client: Http2) -> None:
    await client.get("/big")
    await client.get("/big-stream")


@http2("small-windows")
async def small_windows(client: Http2) -> None:
    client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 3})
    await client.get("/stream")


@http2("windows-that-open-later", "200 200", compare=streams)
async def window_opens_later(client: Http2) -> None:
    initial = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
    client.h2.update_settings({initial: 0})
    by_settings, by_update = client.request("/stream"), client.request("/stream")
    await client.until_event("ResponseReceived", by_settings)
    await client.until_event("ResponseReceived", by_update)
    await client.settle()
    client.h2.increment_flow_control_window(100, by_update)
    await client.until(by_update)
    client.h2.update_settings({initial: 5})
    await client.until(by_settings)


@http2("larger-frames")
async def larger_frames(client: Http2) -> None:
    client.h2.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: 2**17})
    await client.get("/big")


@http2("upload", "200 200")
async def upload(client: Http2) -> None:
    for path, left in {"/count": MEGABYTE, "/back": 200_000}.items():
        stream_id = client.request(path, method="POST", body=None)
        await client.flush()
        while left:
            window = client.h2.local_flow_control_window(stream_id)
            if not window:
                await client.pump()
                continue
            size = min(left, window, 10_000)
            client.h2.send_data(stream_id, b"x" * size)
            await client.flush()
            left -= size
        client.h2.end_stream(stream_id)
        await client.until(stream_id)


@http2("uploads-at-once", "200 200 200", compare=streams)
async def uploads_at_once(client: Http2) -> None:
    ids = [client.request(f"/count/{n}", method="POST", body=None) for n in range(3)]
    for _ in range(20):
        for stream_id in ids:
            client.h2.send_data(stream_id, b"x" * 1000)
        await client.flush()
    for stream_id in ids:
        client.h2.end_stream(stream_id)
    await client.until(*ids)


@http2("long-heads", "200 200")
async def long_heads(client: Http2) -> None:
    await client.get("/long-head", *((f"x-{n}", "y" * 1000) for n in range(20)))
    await client.get("/long-head")


@http2("request-headers", "200 200")
async def request_headers(client: Http2) -> None:
    await client.get("/echo", ("cookie", "a=1"), ("cookie", "b=2"), ("x-a", "1"), ("x-a", "\xe9"))
    await client.get("/echo", authority="localhost:80")


@http2("ping", "200 200")
async def ping(client: Http2) -> None:
    for n, data in enumerate([b"ping-one", b"ping-two"], 1):
        client.h2.ping(data)
        await client.until_event("PingAckReceived", count=n)
        await client.get()


@http2("settings", "200 200")
async def settings(client: Http2) -> None:
    await client.get()
    client.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    await client.get()


@http2("a-reset-by-the-client", "200", compare=streams)
async def a_reset_by_the_client(client: Http2) -> None:
    stream_id = client.request("/until-disconnect", body=None)
    await client.flush()
    await wait_all_tasks_blocked()
    client.h2.reset_stream(stream_id)
    await client.get()


@http2("a-reset-in-an-answer", "200", compare=lambda client: client.events[max(client.ended)])
async def a_reset_in_an_answer(client: Http2) -> None:
    stream_id = client.request("/big")
    await client.until_event("DataReceived", stream_id)
    client.h2.reset_stream(stream_id)
    del client.events[stream_id]
    await client.get()


@http2("no-request", "")
async def no_request(client: Http2) -> None:
    await client.until_event("RemoteSettingsChanged")


@http2("receive-after-the-answer", "200 200")
async def receive_after_the_answer(client: Http2) -> None:
    await client.get("/receive-after-answer")
    await client.get()


@http2("lifespan-state", "200 200")
async def lifespan_state(client: Http2) -> None:
    await client.get("/keep-state/1")
    await client.get("/keep-state/2")


@http2("another-server-name", "404 200 404", only=("h2", "h2c"), server_names=["localhost"])
async def another_server_name(client: Http2) -> None:
    await client.get(authority="elsewhere")
    await client.get()
    await client.get(authority="elsewhere", method="POST", body=b"hello")


@http2("date", compare=streams, include_date_header=True)
async def date(client: Http2) -> None:
    stream_id = await client.get()
    for events in client.events.values():
        for _, headers in (event for event in events if event[0] == "ResponseReceived"):
            headers[:] = [(name, b"" if name == b"date" else value) for name, value in headers]
    assert stream_id in client.events


@http2("leaves-in-an-upload", "", compare=streams)
async def leaves_in_an_upload(client: Http2) -> None:
    stream_id = client.request("/until-disconnect", method="POST", body=None)
    await client.flush()
    await wait_all_tasks_blocked()
    client.h2.send_data(stream_id, b"part")
    await client.flush()


@http2("leaves-with-the-end-of-an-upload", "", compare=streams)
async def leaves_with_the_end_of_an_upload(client: Http2) -> None:
    """The last of the body and the GOAWAY are read at once."""
    stream_id = client.request("/until-disconnect", method="POST", body=None)
    await client.flush()
    await wait_all_tasks_blocked()
    client.h2.send_data(stream_id, b"part")
    client.h2.close_connection()
    await client.flush()


@http2("leaves-with-a-request", "", compare=streams)
async def leaves_with_a_request(client: Http2) -> None:
    client.request("/until-disconnect")
    client.h2.close_connection()
    await client.flush()


@http2("resets-with-the-end-of-an-upload", "200", compare=streams)
async def resets_with_the_end_of_an_upload(client: Http2) -> None:
    stream_id = client.request("/until-disconnect", method="POST", body=None)
    await client.flush()
    await wait_all_tasks_blocked()
    client.h2.send_data(stream_id, b"part")
    client.h2.reset_stream(stream_id)
    await client.get()


async def preface_a_byte_at_a_time(network: Network) -> object:
    client = await prior_knowledge(network)
    client.request()
    for byte in client.h2.data_to_send():
        await client.stream.send_all(bytes([byte]))
        await wait_all_tasks_blocked()
    await client.until(1)
    await client.finish()
    assert client.statuses() == "200"
    return frames(client.received)


async def preface_behind_the_upgrade(network: Network) -> object:
    """The client does not wait for the 101."""
    client = Http2(await network.connect())
    upgrading = request_upgrade(client)
    client.request("/echo/3")
    await client.stream.send_all(upgrading + client.h2.data_to_send())
    await receive_upgrade(client)
    await client.until(1, 3)
    await client.finish()
    assert client.statuses() == "200 200"
    return client.events


async def http1_over_any_tls(network: Network) -> object:
    """Hypercorn does not insist on what ALPN has agreed on, if on anything."""
    turns = [request(), OK, request("/echo", LAST)]
    return await converse(network, ("unknown",), "200 200", turns)


async def http2_over_any_tls(network: Network) -> object:
    client = await prior_knowledge(network, "unknown")
    await client.get()
    await client.finish()
    return frames(client.received)


async def a_choice_of_protocols(network: Network) -> object:
    client = await prior_knowledge(network, "http/1.1", "h2")
    await client.get()
    await client.finish()
    return frames(client.received)


EXCHANGES["http1-over-any-tls"] = Exchange(http1_over_any_tls)
EXCHANGES["http2-over-any-tls"] = Exchange(http2_over_any_tls)
EXCHANGES["http2-before-http1"] = Exchange(a_choice_of_protocols)
EXCHANGES["http2-preface-a-byte-at-a-time"] = Exchange(preface_a_byte_at_a_time)
EXCHANGES["http2-preface-behind-the-upgrade"] = Exchange(preface_behind_the_upgrade)

# WebSockets


class WebSocket:
    """A client's WebSocket over either protocol."""

    def __init__(self) -> None:
        self.connection: wsproto.connection.Connection
        self.deflates = False
        self.heard: list[wsproto.events.Event] = []

    def opened(self, extensions: str = "") -> None:
        deflate = wsproto.extensions.PerMessageDeflate()
        if extensions:
            deflate.finalize(extensions)
        self.deflates = deflate.enabled()
        self.connection = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT, [deflate])

    async def open(self, path: str, **headers: str) -> str:
        """Return the response's status."""
        raise NotImplementedError

    async def say_bytes(self, data: bytes, *, last: bool = False) -> None:
        raise NotImplementedError

    async def listen(self) -> bytes:
        raise NotImplementedError

    async def finish(self) -> object:
        """Return what was received."""
        raise NotImplementedError

    async def say(self, *events: wsproto.events.Event) -> None:
        """The end of the last one is that of the WebSocket, if it closes."""
        data = b"".join(self.connection.send(event) for event in events)
        await self.say_bytes(data, last=isinstance(events[-1], CloseConnection))

    def take(self, data: bytes) -> None:
        self.connection.receive_data(data)
        self.heard += self.connection.events()

    async def hear(self, kind: type[Any]) -> Any:
        """Return the next event of a kind, or the end of a message in parts."""
        while True:
            while self.heard:
                event = self.heard.pop(0)
                if isinstance(event, kind) and getattr(event, "message_finished", True):
                    return event
            self.take(await self.listen())


class WebSocket1(WebSocket):
    """A connection of its own."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._stream = stream
        self._received = b""

    async def open(self, path: str, **headers: str) -> str:
        fields = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        await self._stream.send_all(request(path, *(f"{k}: {v}" for k, v in fields.items())))
        while b"\r\n\r\n" not in self._received:
            await self.listen()
        head, _, rest = self._received.partition(b"\r\n\r\n")
        extensions = re.search(r"permessage-deflate[^\r]*", head.decode())
        self.opened(extensions[0] if extensions else "")
        status = head.split()[1].decode()
        if status == "101":
            self.take(rest)
        return status

    async def say_bytes(self, data: bytes, *, last: bool = False) -> None:
        await self._stream.send_all(data)

    async def listen(self) -> bytes:
        data = bytes(await self._stream.receive_some())
        assert data, "the server has left"
        self._received += data
        return data

    async def leave(self) -> None:
        """Without a word."""
        await self._stream.send_eof()

    async def finish(self) -> object:
        return self._received + await read_to_end(self._stream)


class WebSocket2(WebSocket):
    """A stream of an HTTP/2 connection (RFC 8441)."""

    def __init__(self, client: Http2) -> None:
        super().__init__()
        self._client = client
        self._id = 0
        self._heard = 0

    async def open(self, path: str, **headers: str) -> str:
        fields = {
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": "https",
            ":authority": "localhost",
            ":path": path,
            "sec-websocket-version": "13",
            **{name.lower().replace("_", "-"): value for name, value in headers.items()},
        }
        self._id = self._client.h2.get_next_available_stream_id()
        self._client.h2.send_headers(self._id, fields.items())
        await self._client.until_event("ResponseReceived", self._id)
        response = dict(self._client.events[self._id][0][1])
        self.opened(response.get(b"sec-websocket-extensions", b"").decode())
        return str(response[b":status"], "ascii")

    async def say_bytes(self, data: bytes, *, last: bool = False) -> None:
        while data:
            window = self._client.h2.local_flow_control_window(self._id)
            if not window:
                await self._client.pump()
                continue
            size = min(window, 2**14)
            chunk, data = data[:size], data[size:]
            self._client.h2.send_data(self._id, chunk, end_stream=last and not data)
            await self._client.flush()

    async def listen(self) -> bytes:
        while True:
            received = b"".join(
                e[1] for e in self._client.events[self._id] if e[0] == "DataReceived"
            )
            if len(received) > self._heard:
                self._heard, start = len(received), self._heard
                return received[start:]
            await self._client.pump()

    async def finish(self) -> object:
        status = dict(self._client.events[self._id][0][1])[b":status"]
        if status != b"200":
            await self._client.until(self._id)
        await self._client.finish()
        events = self._client.events[self._id]
        # Whether it ends after a WebSocket's end is one of the differences.
        return [event for event in events if status != b"200" or event != ("StreamEnded",)]


async def websocket1(network: Network, *alpn: str) -> WebSocket1:
    return WebSocket1(await network.connect(*alpn))


async def websocket2(network: Network, *alpn: str) -> WebSocket2:
    return WebSocket2(await prior_knowledge(network, *alpn))


WEBSOCKETS: dict[str, Callable[[Network], Awaitable[WebSocket]]] = {
    "tcp": websocket1,
    "tls": lambda network: websocket1(network, "http/1.1"),
    "h2": lambda network: websocket2(network, "h2"),
    "h2c": websocket2,
}
WebSocketClient = Callable[[WebSocket], Awaitable[None]]


def websocket(
    name: str, path: str = "/echo", status: int = 200, only: str = "tcp tls h2 h2c", **how: Any
) -> Callable[[WebSocketClient], WebSocketClient]:
    """Decorates what the client does after the response to its handshake."""
    settings = {key: how.pop(key) for key in list(how) if key in vars(Config)}

    def decorate(converse: WebSocketClient) -> WebSocketClient:
        def exchange(transport: str) -> Callable[[Network], Awaitable[object]]:
            async def hold(network: Network) -> object:
                client = await WEBSOCKETS[transport](network)
                accepted = 101 if isinstance(client, WebSocket1) else 200
                expected = accepted if status == 200 else status
                assert await client.open(path, **how) == str(expected)
                await converse(client)
                return await client.finish()

            return hold

        for transport in only.split():
            EXCHANGES[f"websocket-{transport}-{name}"] = Exchange(exchange(transport), settings)
        return converse

    return decorate


GOODBYE = CloseConnection(code=1000, reason="goodbye")


async def say_goodbye(client: WebSocket) -> None:
    await client.say(GOODBYE)
    await client.hear(CloseConnection)


async def echo(client: WebSocket) -> None:
    for message in (
        TextMessage("text"),
        BytesMessage(b"bytes"),
        TextMessage(""),
        BytesMessage(b""),
    ):
        await client.say(message)
        assert await client.hear(type(message)) == message
    await say_goodbye(client)


async def no_more(client: WebSocket) -> None:
    """The server sends nothing more."""


websocket("goodbye-by-the-client")(say_goodbye)
websocket("echo")(echo)
websocket("query", "/echo/caf%C3%A9?token=%20x")(say_goodbye)
websocket("root-path", "/echo", root_path="/root")(say_goodbye)
websocket("subprotocol", "/choose", Sec_WebSocket_Protocol="a, b, c")(say_goodbye)
websocket("subprotocol-that-is-not-chosen", Sec_WebSocket_Protocol="a, b")(say_goodbye)
websocket("request-headers", Cookie="a=b", Origin="http://localhost")(say_goodbye)
websocket("no-server-header", include_server_header=False)(echo)
websocket("refused", "/refuse", 403)(no_more)
websocket("denied", "/deny", 401, only="h2 h2c")(no_more)
websocket("raises", "/raise", 500)(no_more)
websocket("returns", "/return", 500)(no_more)
websocket("of-another-server", status=404, only="h2 h2c", server_names=["elsewhere"])(no_more)
websocket("of-another-version", status=400, only="h2 h2c", Sec_WebSocket_Version="12")(no_more)
websocket("of-this-server", server_names=["localhost"])(say_goodbye)


@websocket("fragmented")
async def fragmented(client: WebSocket) -> None:
    await client.say(TextMessage("one ", message_finished=False))
    await client.say(TextMessage("", message_finished=False), Ping(b"between"))
    await client.hear(Pong)
    await client.say(TextMessage("two"))
    assert (await client.hear(TextMessage)).data == "one two"
    await client.say(*(BytesMessage(b"x", message_finished=last) for last in (False, False, True)))
    assert (await client.hear(BytesMessage)).data == b"xxx"
    await say_goodbye(client)


@websocket("messages-at-once")
async def messages_at_once(client: WebSocket) -> None:
    await client.say(*(TextMessage(f"{n}") for n in range(30)))
    while (await client.hear(TextMessage)).data != "29":
        pass
    await say_goodbye(client)


@websocket("ping")
async def ping_pong(client: WebSocket) -> None:
    for payload in (b"", b"payload"):
        await client.say(Ping(payload))
        assert (await client.hear(Pong)).payload == payload
    await client.say(Pong(b"that nobody asked for"))
    await echo(client)


@websocket("ping-by-the-server", websocket_ping_interval=3600)
async def ping_by_the_server(client: WebSocket) -> None:
    await client.hear(Ping)
    await client.say(Pong())
    await echo(client)


@websocket("deflate", Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")
async def deflate(client: WebSocket) -> None:
    assert client.deflates
    for _ in range(2):
        await client.say(TextMessage("again and " * 1000), BytesMessage(b"\0" * 10_000))
        await client.hear(TextMessage)
        await client.hear(BytesMessage)
    await say_goodbye(client)


@websocket(
    "deflate-without-context",
    Sec_WebSocket_Extensions="x-unknown, permessage-deflate; server_no_context_takeover;"
    " client_no_context_takeover; server_max_window_bits=10",
)
async def deflate_without_context(client: WebSocket) -> None:
    assert client.deflates
    await deflate(client)


@websocket("big-answers", "/say")
async def big_answers(client: WebSocket) -> None:
    await client.say(TextMessage("please"))
    await client.hear(TextMessage)
    await say_goodbye(client)


@websocket("big-message")
async def big_message(client: WebSocket) -> None:
    await client.say(BytesMessage(b"x" * MEGABYTE))
    await client.hear(BytesMessage)
    await say_goodbye(client)


@websocket("too-big-a-message", websocket_max_message_size=10)
async def too_big_a_message(client: WebSocket) -> None:
    await client.say(TextMessage("0123456789"))
    await client.hear(TextMessage)
    await client.say(TextMessage("0123456789+"))
    goodbye = await client.hear(CloseConnection)
    assert goodbye.code == 1009
    await client.say(goodbye.response())


@websocket("messages-and-goodbye-at-once", "/listen")
async def messages_and_goodbye_at_once(client: WebSocket) -> None:
    """More than Hypercorn's queue takes."""
    await client.say(*(TextMessage(f"{n}") for n in range(30)), GOODBYE)
    await client.hear(CloseConnection)


@websocket("goodbye-by-the-application", "/goodbye")
async def goodbye_by_the_application(client: WebSocket) -> None:
    await client.say(TextMessage("please"))
    goodbye = await client.hear(CloseConnection)
    assert (goodbye.code, goodbye.reason) == (3001, "enough")
    await client.say(goodbye.response())


@websocket("left-by-the-application", "/leave")
@websocket("fallen-application", "/fall")
async def left_by_the_application(client: WebSocket) -> None:
    await client.say(TextMessage("please"))
    assert (await client.hear(CloseConnection)).code == 1011


@websocket("goodbye-with-nothing-to-say")
async def goodbye_with_nothing_to_say(client: WebSocket) -> None:
    await client.say_bytes(b"\x88\x80\0\0\0\0", last=True)
    await client.hear(CloseConnection)


http1("websocket-that-is-left", handshake(), HEAD, END, statuses="101")
http1(
    "websocket-of-another-version",
    handshake("Sec-WebSocket-Version: 12"),
    HEAD,
    END,
    statuses="400",
)
http1(
    "websocket-of-another-server",
    handshake(),
    HEAD,
    END,
    statuses="404",
    server_names=["elsewhere"],
)


@pytest.mark.parametrize("name", EXCHANGES)
async def test_a_tracked_server_responds_as_plain_hypercorn_does(
    name: str, certificate: Path
) -> None:
    """The client receives the same, and so does the application."""
    if OLD_HYPERCORN and re.search("wsgi|upgrade|push|trailers|lifespan-state", name):
        pytest.skip("plain Hypercorn 0.17 does not answer this correctly")
    expected = await EXCHANGES[name].hold(plain, certificate)
    assert await EXCHANGES[name].hold(tracked, certificate) == expected


async def test_the_responses_are_the_same_over_ipv6_and_unix_sockets(
    certificate: Path, tmp_path: Path
) -> None:
    """Where addresses look different, or are missing."""
    unix = [f"unix:{tmp_path / 'socket'}"] if hasattr(socket, "AF_UNIX") else []
    for bind in ("[::1]:0", *unix):
        for name in ("http1-tcp-keep-alive", "http2-h2c-get", "websocket-tcp-echo"):
            exchange = EXCHANGES[name]
            expected = await exchange.hold(plain, certificate, insecure_bind=bind)
            assert await exchange.hold(tracked, certificate, insecure_bind=bind) == expected


async def test_install_leaves_a_config_without_a_tracker_to_hypercorn(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its responses before and after are the same."""
    for name in ("http1-tls-post", "http2-h2-upload", "websocket-h2c-echo"):
        with monkeypatch.context() as patch:
            patch.setattr(hypercorn.trio, "worker_serve", vars(internals)["hypercorn_serve"])
            expected = await EXCHANGES[name].hold(plain, certificate)
        install()
        assert await EXCHANGES[name].hold(plain, certificate) == expected


# The differences


async def both(
    client: Callable[[Network], Awaitable[Any]], certificate: Path, **settings: Any
) -> tuple[Any, Any]:
    """What a client returns, from plain Hypercorn and from a tracked server."""
    in_plain, _, _ = await Exchange(client, settings).hold(plain, certificate)
    in_tracked, _, _ = await Exchange(client, settings).hold(tracked, certificate)
    return in_plain, in_tracked


async def ends(stream: Any) -> bool:
    """Whether the server has ended the connection, when all that it had to do is done."""
    ended = False

    async def read() -> None:
        nonlocal ended
        await read_to_end(stream)
        ended = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return ended


async def resets_its_stream(network: Network) -> None:
    client = await prior_knowledge(network)
    stream_id = client.request("/send-after-disconnect")
    await client.until_event("DataReceived", stream_id)
    client.h2.reset_stream(stream_id)
    await client.flush()


async def resets_its_connection(network: Network) -> None:
    stream = await network.connect()
    await stream.send_all(request("/send-after-disconnect"))
    await stream.receive_some()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def leaves_its_websocket(network: Network) -> None:
    client = await websocket1(network)
    await client.open("/send-after-disconnect")
    await client.leave()


@pytest.mark.parametrize("leave", [resets_its_stream, resets_its_connection, leaves_its_websocket])
async def test_difference_an_application_learns_that_its_peer_has_gone(
    leave: Callable[[Network], Awaitable[None]], certificate: Path
) -> None:
    """ASGI: ``send`` should raise an OSError; and nothing else can come than the disconnect."""

    async def client(network: Network) -> list[object]:
        await leave(network)
        await network.application.gate.wait()
        return network.application.noted

    in_plain, in_tracked = await both(client, certificate)
    assert in_plain == ["send returned"]
    assert in_tracked[0] == "send raised OSError"
    assert in_tracked[1] in ("http.disconnect", "websocket.disconnect")


@pytest.mark.parametrize(
    "data",
    [
        request(server="elsewhere"),
        handshake(server="elsewhere"),
        handshake("Sec-WebSocket-Version: 12"),
    ],
    ids=["server-name", "websocket-server-name", "websocket-version"],
)
async def test_difference_a_refused_http1_connection_is_closed(
    data: bytes, certificate: Path
) -> None:
    """Hypercorn would not read another request, nor close it before the client does."""

    async def client(network: Network) -> tuple[bytes, bool]:
        stream = await network.connect()
        await stream.send_all(data)
        received = b""
        while not received.endswith(b"\r\n\r\n"):
            received += await stream.receive_some()
        return received, await ends(stream)

    in_plain, in_tracked = await both(client, certificate, server_names=["localhost"])
    assert in_plain[0] == in_tracked[0]
    assert (in_plain[1], in_tracked[1]) == (False, True)


def response(status: int, *lines: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} ", *lines, "", ""]).encode() + body


SERVER = "server: hypercorn-h11"
IN_GOOD_FAITH = {
    "an empty line before a request": (
        b"\r\n" + request("/echo", LAST),
        response(400, "content-length: 0", "connection: close", SERVER),
        response(200, "content-length: 11", SERVER, LAST, body=b"GET /echo: "),
    ),
    "an absolute target": (
        request("http://localhost/echo", LAST),
        response(200, "content-length: 27", SERVER, LAST, body=b"GET http://localhost/echo: "),
        response(200, "content-length: 11", SERVER, LAST, body=b"GET /echo: "),
    ),
    "a tunnel": (
        request("localhost:80", LAST, method="CONNECT"),
        response(200, "content-length: 22", SERVER, LAST),
        response(501, "content-length: 0", "connection: close", SERVER),
    ),
    "a date of the application's": (
        request("/dated", LAST),
        response(200, "date: today", "server: mine", "content-length: 0", SERVER, LAST),
        response(200, "date: today", "server: mine", "content-length: 0", LAST),
    ),
    "a request that is not complete": (
        request("/early", length(5), method="POST"),
        response(200, "content-length: 5", SERVER, body=b"early"),
        response(200, "content-length: 5", SERVER, "connection: close", body=b"early"),
    ),
    "a WebSocket that is denied": (
        handshake().replace(b"/echo", b"/deny"),
        response(401, "content-length: 11", "x-why: so", SERVER, body=b"onetwothree"),
        response(
            *(401, "content-length: 11", "x-why: so", SERVER, "connection: close"),
            body=b"onetwothree",
        ),
    ),
}


@pytest.mark.parametrize("name", IN_GOOD_FAITH)
async def test_difference_what_a_client_sends_in_good_faith(name: str, certificate: Path) -> None:
    """The RFCs define the result."""
    data, in_plain, in_tracked = IN_GOOD_FAITH[name]

    async def client(network: Network) -> bytes:
        stream = await network.connect()
        await stream.send_all(data)
        return await read_to_end(stream)

    assert await both(client, certificate) == (in_plain, in_tracked)


@pytest.mark.parametrize("connect", WEBSOCKETS.values(), ids=WEBSOCKETS)
async def test_difference_an_application_learns_why_its_websocket_was_closed(
    connect: Callable[[Network], Awaitable[WebSocket]], certificate: Path
) -> None:
    """The code of the client's close frame, and 1005 if that was empty."""

    async def told(network: Network, *last: bytes) -> list[Any]:
        client = await connect(network)
        await client.open("/reports")
        if last:
            await client.say_bytes(*last, last=True)
        else:
            await client.say(CloseConnection(code=3001, reason="because"))
        await client.hear(CloseConnection)
        await network.application.gate.wait()
        return network.application.noted

    def disconnect(code: int, reason: str) -> list[Any]:
        return [{"type": "websocket.disconnect", "code": code, "reason": reason}]

    abnormal = [{"type": "websocket.disconnect", "code": 1006}]
    assert await both(told, certificate) == (abnormal, disconnect(3001, "because"))
    said_nothing = lambda network: told(network, b"\x88\x80\0\0\0\0")  # noqa: E731
    assert await both(said_nothing, certificate) == (abnormal, disconnect(1005, ""))


@pytest.mark.parametrize("connect", WEBSOCKETS.values(), ids=WEBSOCKETS)
async def test_difference_a_message_before_a_protocol_error_is_delivered(
    connect: Callable[[Network], Awaitable[WebSocket]], certificate: Path
) -> None:
    """And what the application replies arrives before the close frame."""
    text, reserved = b"\x81\x82\0\0\0\0hi", b"\xa1\x80\0\0\0\0"

    async def client(network: Network) -> list[str]:
        client = await connect(network)
        await client.open("/echo")
        await client.say_bytes(text + reserved)
        heard = []
        while "CloseConnection" not in heard:
            try:
                heard.append(type(await client.hear(wsproto.events.Event)).__name__)
            except AssertionError:  # the server has left
                break
        return heard

    # Plain Hypercorn sends no close frame over HTTP/2, and closes an idle connection.
    received = await both(client, certificate, keep_alive_timeout=1)
    assert received[1] == ["TextMessage", "CloseConnection"]


async def test_difference_an_application_without_a_lifespan_is_served(certificate: Path) -> None:
    """A WSGI application has none."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"hello"]

    with pytest.raises((trio.ClosedResourceError, BaseExceptionGroup)):
        async with plain(app, configured(certificate)):
            pass
    async with tracked(app, configured(certificate)) as urls, AsyncExitStack() as streams:
        network = Network(Application(), urls, streams)
        answer = await converse(network, (), "200", [request("/", LAST)])
    assert b"hello" in answer


async def test_difference_an_idle_connection_whose_client_has_gone_is_closed(
    certificate: Path,
) -> None:
    """Hypercorn keeps its end for the whole of ``keep_alive_timeout``."""

    async def client(network: Network) -> tuple[bytes, bool]:
        stream = await network.connect()
        await stream.send_all(request())
        received = b""
        while not received.endswith(b"GET /echo: "):
            received += await stream.receive_some()
        await wait_all_tasks_blocked()
        await stream.send_eof()
        return received, await ends(stream)

    in_plain, in_tracked = await both(client, certificate)
    assert in_plain[0] == in_tracked[0]
    assert (in_plain[1], in_tracked[1]) == (False, True)


async def test_difference_data_after_a_last_request_does_not_cost_its_response(
    certificate: Path,
) -> None:
    """Such as the empty line that some clients put behind a body."""
    data = request("/echo", LAST, length(5), method="POST") + b"hello\r\n"

    async def client(network: Network) -> bytes:
        stream = await network.connect()
        await stream.send_all(data)
        return (await read_to_end(stream)).partition(b" \r\n")[0]

    assert await both(client, certificate) == (b"HTTP/1.1 400", b"HTTP/1.1 200")


async def test_difference_a_head_without_a_body_is_a_500(certificate: Path) -> None:
    """The client learns that there is nothing to come."""

    async def client(network: Network) -> list[bytes]:
        stream = await network.connect()
        await stream.send_all(request("/head-only"))
        return (await read_to_end(stream)).split(b"\r\n")

    in_plain, in_tracked = await both(client, certificate)
    assert in_plain[0] == b"HTTP/1.1 200 "
    assert in_plain[-2:] == [b"", b""]  # of the chunks that it announced, not even an end
    assert in_tracked[0] == b"HTTP/1.1 500 "
    assert b"content-length: 0" in in_tracked


async def test_difference_a_stream_that_its_handler_leaves_unfinished_is_reset(
    certificate: Path,
) -> None:
    """Its client would wait for the rest."""

    async def client(network: Network) -> list[str]:
        client = await prior_knowledge(network)
        stream_id = client.request("/raise-after-head")
        await client.until_event("DataReceived", stream_id)
        await client.settle()
        return client.names(stream_id)

    in_plain, in_tracked = await both(client, certificate)
    assert in_plain == ["ResponseReceived", "DataReceived"]
    assert in_tracked == ["ResponseReceived", "DataReceived", "StreamReset"]


@pytest.mark.parametrize("path", ["/echo", "/leave"])
async def test_difference_a_closed_websocket_over_http2_ends_its_stream(
    path: str, certificate: Path
) -> None:
    """RFC 8441 (5): the stream's end stands for the connection's."""

    async def client(network: Network) -> bool:
        client = await prior_knowledge(network)
        websocket = WebSocket2(client)
        await websocket.open(path)
        await websocket.say(TextMessage("please") if path == "/leave" else GOODBYE)
        await websocket.hear(CloseConnection)
        await client.settle()
        return bool(client.ended)

    assert await both(client, certificate) == (False, True)


async def test_difference_priorities_are_ignored(certificate: Path) -> None:
    """Here, that the second stream is to wait for the first."""

    async def client(network: Network) -> list[int]:
        client = await prior_knowledge(network)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        first = client.request("/big-stream/1")
        second = client.request("/big-stream/2", priority_depends_on=first)
        for stream_id in (first, second):
            await client.until_event("ResponseReceived", stream_id)
        await client.settle()
        before = len(client.received)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**15})
        await client.settle()
        return [stream_id for kind, stream_id, *_ in frames(client.received[before:]) if kind == 0]

    in_plain, in_tracked = await both(client, certificate)
    assert in_plain == [1, 3]
    turns = len(in_tracked) // 2
    assert turns > 1
    assert in_tracked in ([1, 3] * turns, [3, 1] * turns)
