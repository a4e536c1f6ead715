"""The sources of a view: the sockets in a directory, or a status page.

A directory works without an HTTP port and without a status page. Its workers respond to the same
user and to root.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import h11
import trio

from .._monitor.directory import (
    DirectoryError,
    NoDirectoryError,
    check_private,
    server_directories,
    sockets,
)
from .._monitor.formatting import visible
from .._monitor.peers import MAX_RESPONSE_SIZE, Peers
from .._monitor.query import PARAMETERS, Query
from .._monitor.text import as_text
from .._monitor.view import View, view_of

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

RESPONSE_TIMEOUT = 10  # seconds: longer than a status page waits for its workers
SAFE_IN_PATH = "/%:@!$&'()*+,;=~"  # characters that need no quoting in the path of a URL
SCHEMES = {"http": 80, "https": 443}


class SourceError(Exception):
    """A source has no view now. It may have one later."""


class Source(Protocol):
    """A server whose views can be fetched."""

    name: str
    query: Query
    """The query to begin with."""

    async def view(self, query: Query) -> View:
        """Fetch a view.

        Raises:
          SourceError: there is none.
        """


@asynccontextmanager
async def open_source(target: str | None) -> AsyncIterator[Source]:
    """Open the source that the user names; without a name, the only running server.

    Raises:
      SourceError: there is no such source.
    """
    if target is not None and target.startswith(("http:", "https:")):
        page = Page(target)
        try:
            yield page
        finally:
            await page.close()
    else:
        directory = only_server() if target is None else Path(target)
        check(directory)
        peers = Peers(directory)
        with peers.viewing():
            yield Directory(directory, peers)


def only_server() -> Path:
    try:
        found = server_directories()
    except NoDirectoryError as error:
        raise SourceError(f"{error}: name the page's URL") from None
    if len(found) == 1:
        return found[0]
    if not found:
        raise SourceError(
            "no running server is visible to this user: "
            "name the status page's URL, or the server's runtime_dir"
        )
    names = ", ".join(visible(str(each)) for each in found)
    raise SourceError(f"several servers are running: name one of {names}")


def check(directory: Path) -> None:
    """Raise a SourceError unless a directory has workers, and is private to its owner."""
    name = visible(str(directory))
    try:
        if not sockets(directory):
            raise SourceError(f"no worker listens in {name}")
        check_private(directory)
    except DirectoryError as error:
        raise SourceError(visible(str(error))) from None
    except OSError as error:
        raise SourceError(f"{name}: {error.strerror}") from None


# What as_text() may raise for data that is not a view.
MALFORMED = ArithmeticError, AttributeError, LookupError, TypeError, ValueError


def validated(view: object) -> View:
    """Return a view that another process has made.

    Raises one of ``MALFORMED`` if the data is not a view.
    """
    found = cast(View, view)
    as_text(found)
    return found


class Directory:
    """The workers whose sockets are in a directory."""

    query: Query = Query()

    def __init__(self, directory: Path, peers: Peers) -> None:
        self.name = visible(str(directory))
        self._directory = directory
        self._peers = peers

    async def view(self, query: Query) -> View:
        check(self._directory)  # each time: it may have been replaced
        reports, silent = await self._peers.fetch_reports(query)
        if not reports and not silent:  # all of them were killed
            raise SourceError(f"no worker listens in {self.name}")
        try:
            return validated(view_of(query, reports, silent))
        except MALFORMED:
            raise SourceError(f"the workers in {self.name} are of another version") from None


class Page:
    """A status page. It is fetched over one connection, so that viewing changes little."""

    def __init__(self, url: str) -> None:
        self._stream: trio.abc.Stream | None = None
        self._http = h11.Connection(h11.CLIENT)
        try:
            self._url = urlsplit(url)
            given = parse_qsl(self._url.query, keep_blank_values=True)
            self._other_parameters = [
                (name, value) for name, value in given if name not in PARAMETERS
            ]
            if not self._url.hostname:
                raise ValueError("it has no host")
            self._host, self._port = self._url.hostname, self._url.port or SCHEMES[self._url.scheme]
            self.query = Query.parse(self._url.query.encode())
        except ValueError as error:
            raise SourceError(f"{visible(url)}: {error}") from None
        self.name = visible(self._url._replace(query="", fragment="").geturl())  # without the token

    async def view(self, query: Query) -> View:
        with trio.move_on_after(RESPONSE_TIMEOUT):
            try:
                return await self._view(query)
            except (
                OSError,
                UnicodeError,  # from the encoding of the host name
                trio.BrokenResourceError,
                EOFError,
                h11.ProtocolError,
            ) as error:
                raise SourceError(f"{self.name}: {described(error)}") from None
        raise SourceError(f"{self.name}: no response within {RESPONSE_TIMEOUT} seconds")

    async def _view(self, query: Query) -> View:
        reused = self._stream is not None
        try:
            status, location, body = await self._get(query)
        except (trio.BrokenResourceError, EOFError):
            if not reused:
                raise
            # The server has closed the idle connection: try a new one.
            status, location, body = await self._get(query)
        if status == 403:
            raise SourceError(self._refusal())
        if 300 <= status < 400:
            raise SourceError(f"{self.name} redirects to {visible(location)}: name the page itself")
        if status != 200:
            raise SourceError(f"{self.name} responded with {status}: {first_line(body)}")
        try:
            return validated(json.loads(body))
        except (*MALFORMED, RecursionError):
            raise SourceError(
                f"{self.name} is not a status page of this version of trio-httptrack"
            ) from None

    def _refusal(self) -> str:
        has = any(name == "token" for name, _ in self._other_parameters)
        return (
            f"the token is {'wrong' if has else 'missing'}: "
            "the server's log has it, as ?token=... to add to the page's address"
        )

    async def _get(self, query: Query) -> tuple[int, str, bytes]:
        """Send a request. Return the status code, Location and body of the response.

        If this fails, the connection is closed.
        """
        try:
            stream = await self._connected()
            await stream.send_all(self._request(query))
            return await self._response(stream)
        except BaseException:
            await self.close()
            raise

    async def _connected(self) -> trio.abc.Stream:
        if self._stream is None:
            if self._url.scheme == "https":
                self._stream = await trio.open_ssl_over_tcp_stream(
                    self._host, self._port, https_compatible=True
                )
            else:
                self._stream = await trio.open_tcp_stream(self._host, self._port)
            self._http = h11.Connection(h11.CLIENT)
        else:
            self._http.start_next_cycle()
        return self._stream

    def _request(self, query: Query) -> bytes:
        others = f"&{urlencode(self._other_parameters)}" if self._other_parameters else ""
        headers = {
            "host": self._url.netloc.rpartition("@")[2],
            "accept": "application/json",
            "user-agent": "httptrack-top",
        }
        request = h11.Request(
            method="GET",
            target=f"{quote(self._url.path or '/', safe=SAFE_IN_PATH)}{query.link()}{others}",
            headers=list(headers.items()),
        )
        head = self._http.send(request)
        end = self._http.send(h11.EndOfMessage())
        assert head is not None
        assert end is not None
        return head + end

    async def _response(self, stream: trio.abc.Stream) -> tuple[int, str, bytes]:
        status, location, body = 0, "", bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                received = await stream.receive_some()
                if not received and not status:
                    raise EOFError("the connection was closed without a response")
                self._http.receive_data(bytes(received))
            elif isinstance(event, h11.Response):
                status = event.status_code
                fields = dict(event.headers)
                location = fields.get(b"location", b"").decode("latin-1")
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_RESPONSE_SIZE:
                    raise EOFError("the response is too long")
            elif isinstance(event, h11.EndOfMessage):
                if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
                    await self.close()
                return status, location, bytes(body)

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)


def described(error: BaseException) -> str:
    """Return what went wrong with a connection: the first cause, in the system's words."""
    if isinstance(error, BaseExceptionGroup):
        return described(error.exceptions[0])
    if error.__cause__ is not None:
        return described(error.__cause__)
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        # Trio's message for a refused connection is longer, and says no more.
        if isinstance(error, socket.gaierror):  # its errno is not one of os.strerror()
            return visible(error.strerror or str(error))
        return os.strerror(error.errno)
    return visible(str(error) or type(error).__name__)


def first_line(body: bytes) -> str:
    return visible(body.decode("utf-8", "replace").partition("\n")[0])
