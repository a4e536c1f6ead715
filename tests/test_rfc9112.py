"""RFC 9112 (HTTP/1.1), and what RFC 9110 (HTTP) says about connections, section by section.

Each row of ``ROWS`` is a requirement on an origin server: what a client sends, and what must
come back. Its ID begins with the RFC and the section. ``comes`` is written in these words:
``100 | 200 open`` means the status codes of the responses in order, with ``|`` where the
client sends its next piece, and then what happens to the connection:

* ``open``: it serves the next request;
* ``close``: the server closes it, and the last response has said so;
* ``cut``: the server closes it, and the last response has not said so;
* ``torn``: the server closes it in the middle of a response;
* ``reset``: it is reset, or under TLS closed without a ``close_notify``;
* ``waits``: the server waits for the rest of the request;
* ``upgraded``: it speaks another protocol.

Where the RFC leaves a choice, ``or`` separates the alternatives. What every response must be is
in :func:`parse` and :func:`check`. Each request that the server does not refuse reaches the
application, and no other does.

Requirements that only the application, or the server's operator, can meet (all of RFC 9110):

* 5.6.7, the dates that it parses; 8.3 and 8.4, its Content-Type and Content-Encoding
* 7.4, which names it serves (``config.server_names``), and whether its peer is a gateway that
  may send an ``https`` target over an unsecured connection
* 7.8 and 15.5.22, Upgrade in a 426; 8.6, a Content-Length of HEAD and 304 that is GET's
* 8.8, validators; 9.2.1, safe methods that are safe; 9.3.4, the status code of a PUT
* 9.3.7 and 9.3.8, the response to OPTIONS and TRACE
* 10.2.1 and 15.5.6, Allow in a 405; 11.6.1 and 15.5.2, WWW-Authenticate in a 401
* 12, negotiation; 13, preconditions; 14 and 15.3.7, ranges; 15.4.5, the headers of a 304

What the server does not follow, and why:

* 9112 3 and 9110 9.1: an unknown method SHOULD get a 501. Only the application knows which ones
  it implements. (Methods are case-sensitive, too, but ASGI wants them in upper case.)
* 9112 3.2: an invalid request line SHOULD get a 400. Clients send characters such as ``|`` or
  ``{`` without encoding them: if they are visible, they reach the application unchanged.
* 9112 7.1.1 and 9110 5.6.3: whitespace before a chunk extension MUST be removed. It gets a 400,
  because where parsers disagree about framing, requests can be smuggled.
* 9110 5.6.1.2: empty elements of a list MUST be ignored. In Transfer-Encoding they get a 400 or
  a 501, for the same reason.
* 9110 10.1.1: an unknown expectation MAY get a 417. It is ignored.
* 9110 15.5, 15.6 and 15.6.6: an error response SHOULD explain the error. The server's own ones
  go to clients that do not speak HTTP properly, and have no content.
* 9112 9.6: the last response before the server closes SHOULD say ``close``. At an idle timeout,
  or when the client has left, it was sent too early to know. (test_connection.py has the
  timeouts of 9.5.)
* 9112 C.2.2: an HTTP/1.0 connection MAY be kept alive. It is closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack.testing import memory_server

from .support import client_ssl

Sends = str | tuple[str | None, ...]  # in one piece, or in several

FIN = None  # a piece: the client ends its side
SILENCE = 1  # seconds (virtual ones), after which the client sends its next piece
REFUSED = {400, 413, 414, 417, 431, 501, 505}  # by the server; the application sends none


@dataclass(frozen=True)
class Row:
    id: str
    requirement: str
    sends: Sends
    comes: str
    given: dict[str, Any] | None = None  # to the application, in its only call
    content: str | None = None  # of the responses
    has: tuple[str, ...] = ()  # headers of the last response, each once
    lacks: tuple[str, ...] = ()  # names of headers that no response has
    tls: bool = False


def head(*lines: str) -> str:
    """Return a request line and a header section."""
    return "".join(f"{line}\r\n" for line in (*lines, ""))


GET, POST, HOST = "GET / HTTP/1.1", "POST / HTTP/1.1", "Host: a"
PLAIN = head(GET, HOST)
UPLOAD = head(POST, HOST, "Content-Length: 5")
CHUNKED = head(POST, HOST, "Transfer-Encoding: chunked")
EXPECTING = head(POST, HOST, "Content-Length: 5", "Expect: 100-continue")
SETTINGS = "HTTP2-Settings: AAMAAABkAAQAAP__"
H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", SETTINGS)
DATE = "date: Tue, 15 Nov 1994 08:12:31 GMT"
WEBSOCKET = ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
LONG = "a" * 17_000  # longer than h11_max_incomplete_size


def variants(
    id_: str, requirement: str, comes: str, sends: dict[str, Sends], **more: Any
) -> Iterator[Row]:
    """Make a row for each of several things that a client may send."""
    for name, sent in sends.items():
        yield Row(f"{id_}-{name}", requirement, sent, comes, **more)


ROWS = [
    # RFC 9112
    # 2.2 Message Parsing
    Row(
        "9112-2.2-octets",
        "a message is parsed as octets",
        head(GET, HOST, "X: \xe9\xff"),
        "200 open",
        given={"headers": [(b"host", b"a"), (b"x", b"\xe9\xff")]},
    ),
    Row(
        "9112-2.2-lf",
        "LF alone may end a line",
        "GET / HTTP/1.1\nHost: a\n\n",
        "200 open",
    ),
    *variants(
        "9112-2.2-bare-cr",
        "a CR without its LF is invalid",
        "400 close",
        {
            "in-the-target": head("GET /\r HTTP/1.1", HOST),
            "before-the-version": head("GET /\rHTTP/1.1", HOST),
            "in-a-name": head(GET, HOST, "X\rY: z"),
            "in-a-value": head(GET, HOST, "X: y\rz"),
            "before-crlf": head(GET, HOST, "X: y\r"),
        },
    ),
    Row("9112-2.2-empty-line-first", "an empty line may come first", "\r\n" + PLAIN, "200 open"),
    Row(
        "9112-2.2-empty-line-between",
        "an empty line may come behind a request's content",
        UPLOAD + "hello\r\n" + PLAIN,
        "200 200 open",
        content="hello /",
    ),
    *variants(
        "9112-2.2-space-before-the-headers",
        "no whitespace between start line and headers",
        "400 close",
        {
            "space": "GET / HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n",
            "tab": "GET / HTTP/1.1\r\n\tX: y\r\nHost: a\r\n\r\n",
            "empty": "GET / HTTP/1.1\r\n \r\nHost: a\r\n\r\n",
        },
    ),
    *variants(
        "9112-2.2-not-http",
        "what is not HTTP gets a 400 and is closed",
        "400 close",
        {
            "text": "This is not HTTP.\r\n\r\n",
            "simple-request": "GET /\r\n\r\n",
            "tls": "\x16\x03\x01\x00\x05hello",
            "response": "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        },
    ),
    # 2.3 HTTP Version
    *variants(
        "9112-2.3-version",
        'HTTP-name is case-sensitive, and the version is DIGIT "." DIGIT',
        "400 close",
        {
            "lower-case": head("GET / http/1.1", HOST),
            "two-digits": head("GET / HTTP/1.10", HOST),
            "no-minor": head("GET / HTTP/1", HOST),
            "no-dot": head("GET / HTTP/11", HOST),
            "no-name": head("GET / 1.1", HOST),
            "letter": head("GET / HTTP/1.x", HOST),
        },
    ),
    # 3 Request Line
    *variants(
        "9112-3-whitespace",
        "a single space is between the parts of a request line, and none elsewhere",
        "400 close",
        {
            "two-after-the-method": head("GET  / HTTP/1.1", HOST),
            "two-after-the-target": head("GET /  HTTP/1.1", HOST),
            "at-the-end": head("GET / HTTP/1.1 ", HOST),
            "first": head(" GET / HTTP/1.1", HOST),
            "tab": head("GET\t/\tHTTP/1.1", HOST),
            "in-the-target": head("GET /a b HTTP/1.1", HOST),
            "form-feed": head("GET\x0c/ HTTP/1.1", HOST),
        },
    ),
    Row(
        "9112-3-8000-octets",
        "a request line has at least 8000 octets",
        head(f"GET /{'a' * 8000} HTTP/1.1", HOST),
        "200 open",
    ),
    *variants(
        "9112-3-target-too-long",
        "a target that is too long gets a 414",
        "414 close",
        {
            "unfinished": f"GET /{LONG}",
            "finished": f"GET /{LONG} HTTP/1.1\r\nHost: a\r\n",
            "query": f"GET /?{LONG}",
        },
    ),
    # 3.1 Method
    Row(
        "9112-3.1-unknown",
        "a method that the server does not know is the application's",
        head("M-SEARCH / HTTP/1.1", HOST),
        "200 open",
        given={"method": "M-SEARCH"},
    ),
    Row(
        "9112-3.1-lower-case",
        "ASGI asks for upper case",
        head("get / HTTP/1.1", HOST),
        "200 open",
        given={"method": "GET"},
    ),
    *variants(
        "9112-3.1-invalid",
        "a method is a token",
        "400 close",
        {
            "empty": head(" / HTTP/1.1", HOST),
            "missing": head("/ HTTP/1.1", HOST),
            "delimiter": head("G(T / HTTP/1.1", HOST),
            "not-ascii": head("G\xc9T / HTTP/1.1", HOST),
            "nul": head("G\0T / HTTP/1.1", HOST),
        },
    ),
    # 3.2 Request Target
    *variants(
        "9112-3.2-target",
        "a target has one of four forms",
        "400 close",
        {
            "empty": head("GET  HTTP/1.1", HOST),
            "relative": head("GET a HTTP/1.1", HOST),
            "query-only": head("GET ?q HTTP/1.1", HOST),
            "asterisk-of-a-get": head("GET * HTTP/1.1", HOST),
            "asterisk-and-more": head("OPTIONS *a HTTP/1.1", HOST),
            "authority-of-a-get": head("GET a:80 HTTP/1.1", HOST),
            "fragment": head("GET /#f HTTP/1.1", HOST),
            "fragment-of-a-query": head("GET /?q#f HTTP/1.1", HOST),
            "fragment-of-a-uri": head("GET http://a/#f HTTP/1.1", HOST),
            "not-ascii": head("GET /\xe9 HTTP/1.1", HOST),
            "control": head("GET /\x01 HTTP/1.1", HOST),
            "nul": head("GET /\0 HTTP/1.1", HOST),
            "delete": head("GET /\x7f HTTP/1.1", HOST),
        },
    ),
    Row("9112-3.2-no-host", "HTTP/1.1 without Host gets a 400", head(GET), "400 close"),
    Row("9112-3.2-no-host-1.0", "HTTP/1.0 needs no Host", head("GET / HTTP/1.0"), "200 close"),
    Row(
        "9112-3.2-no-host-uri",
        "an absolute target does not replace a missing Host",
        head("GET http://a/ HTTP/1.1"),
        "400 close",
    ),
    *variants(
        "9112-3.2-two-hosts",
        "more than one Host gets a 400",
        "400 close",
        {
            "other": head(GET, HOST, "Host: b"),
            "same": head(GET, HOST, HOST),
            "apart": head(GET, HOST, "X: y", "hOST: a"),
            "1.0": head("GET / HTTP/1.0", HOST, HOST),
            "uri": head("GET http://a/ HTTP/1.1", HOST, HOST),
        },
    ),
    *variants(
        "9112-3.2-host-invalid",
        "an invalid Host gets a 400",
        "400 close",
        {
            "space": head(GET, "Host: a b"),
            "list": head(GET, "Host: a, a"),
            "path": head(GET, "Host: a/b"),
            "query": head(GET, "Host: a?b"),
            "fragment": head(GET, "Host: a#b"),
            "uri": head(GET, "Host: http://a"),
            "userinfo": head(GET, "Host: u@a"),
            "backslash": head(GET, "Host: a\\b"),
            "port": head(GET, "Host: a:b"),
            "two-ports": head(GET, "Host: a:80:80"),
            "ipv6-open": head(GET, "Host: [::1"),
            "ipv6-bare": head(GET, "Host: ::1"),
            "ipv6-wrong": head(GET, "Host: [a]"),
            "percent": head(GET, "Host: a%zz"),
            "not-ascii": head(GET, "Host: \xe9"),
            "control": head(GET, "Host: a\x01"),
            "1.0": head("GET / HTTP/1.0", "Host: a b"),
        },
    ),
    *variants(
        "9112-3.2-host-valid",
        "a valid Host is accepted",
        "200 open",
        {
            "name": head(GET, "Host: A-1.example."),
            "underscore": head(GET, "Host: a_b"),
            "port": head(GET, "Host: a:8080"),
            "empty-port": head(GET, "Host: a:"),
            "empty": head(GET, "Host:"),
            "ipv4": head(GET, "Host: 127.0.0.1:80"),
            "ipv6": head(GET, "Host: [::1]:80"),
            "percent": head(GET, "Host: a%C3%A9"),
        },
    ),
    # 3.2.1 Origin Form
    Row(
        "9112-3.2.1-origin-form",
        "path and query are the target's",
        head("GET /a%20b/%2F?q=%20&r HTTP/1.1", HOST),
        "200 open",
        given={"path": "/a b//", "raw_path": b"/a%20b/%2F", "query_string": b"q=%20&r"},
    ),
    Row(
        "9112-3.2.1-two-slashes",
        "a path that begins with two slashes names no host",
        head("GET //b/c HTTP/1.1", HOST),
        "200 open",
        given={"path": "//b/c", "raw_path": b"//b/c", "host": [b"a"]},
    ),
    # 3.2.2 Absolute Form
    *variants(
        "9112-3.2.2-absolute-form",
        "an absolute target is accepted, and its host replaces that of Host",
        "200 open",
        {
            "other-host": head("GET http://b/x?q HTTP/1.1", HOST),
            "same-host": head("GET http://b/x?q HTTP/1.1", "Host: b"),
            "empty-host": head("GET http://b/x?q HTTP/1.1", "Host:"),
            "upper-case": head("GET HTTP://b/x?q HTTP/1.1", HOST),
        },
        given={"path": "/x", "raw_path": b"/x", "query_string": b"q", "host": [b"b"]},
    ),
    Row(
        "9112-3.2.2-absolute-form-port",
        "the port is part of the target's host",
        head("GET http://b:81/x HTTP/1.1", HOST),
        "200 open",
        given={"path": "/x", "host": [b"b:81"]},
    ),
    Row(
        "9112-3.2.2-absolute-form-1.0",
        "in HTTP/1.0 the target's host becomes Host",
        head("GET http://b/x HTTP/1.0"),
        "200 close",
        given={"path": "/x", "host": [b"b"]},
    ),
    Row(
        "9112-3.2.2-absolute-form-no-path",
        "an empty path is /",
        head("GET http://b HTTP/1.1", HOST),
        "200 open",
        given={"path": "/", "raw_path": b"/", "query_string": b"", "host": [b"b"]},
    ),
    Row(
        "9112-3.2.2-absolute-form-only-query",
        "an empty path is / before a query, too",
        head("GET http://b?q HTTP/1.1", HOST),
        "200 open",
        given={"path": "/", "raw_path": b"/", "query_string": b"q", "host": [b"b"]},
    ),
    *variants(
        "9112-3.2.2-absolute-form-invalid",
        "a target with an invalid authority gets a 400",
        "400 close",
        {
            "port": head("GET http://b:x/ HTTP/1.1", HOST),
            "ipv6": head("GET http://[::1/ HTTP/1.1", HOST),
            "no-slashes": head("GET http:b/ HTTP/1.1", HOST),
            "one-slash": head("GET http:/b/ HTTP/1.1", HOST),
        },
    ),
    # 3.2.3 Authority Form
    *variants(
        "9112-3.2.3-connect",
        "ASGI has no tunnels: the server does not implement CONNECT",
        "501 close",
        {
            "name": head("CONNECT b:80 HTTP/1.1", "Host: b:80"),
            "ipv6": head("CONNECT [::1]:80 HTTP/1.1", "Host: [::1]:80"),
            "1.0": head("CONNECT b:80 HTTP/1.0"),
            "early-data": head("CONNECT b:80 HTTP/1.1", "Host: b:80") + PLAIN,
        },
    ),
    # 3.2.4 Asterisk Form
    Row(
        "9112-3.2.4-asterisk-form",
        "OPTIONS * is about the server as a whole",
        head("OPTIONS * HTTP/1.1", HOST),
        "200 open",
        given={"method": "OPTIONS", "path": "*", "raw_path": b"*", "query_string": b""},
    ),
    # 5 Field Syntax
    Row(
        "9112-5-case",
        "the names of headers are case-insensitive",
        head(POST, "hOST: a", "CONTENT-length: 5") + "hello",
        "200 open",
        given={"headers": [(b"host", b"a"), (b"content-length", b"5")], "body": b"hello"},
    ),
    *variants(
        "9112-5.1-whitespace",
        "whitespace around a value is not part of it",
        "200 open",
        {
            "none": head(GET, "Host:a", "X:y z", "E:"),
            "spaces": head(GET, "Host:  a", "X:   y z  ", "E:  "),
            "tabs": head(GET, "Host:\ta\t", "X: \ty z\t ", "E: \t"),
        },
        given={"headers": [(b"host", b"a"), (b"x", b"y z"), (b"e", b"")]},
    ),
    *variants(
        "9112-5.1-before-the-colon",
        "whitespace before the colon gets a 400",
        "400 close",
        {
            "space": head(GET, HOST, "X : y"),
            "tab": head(GET, HOST, "X\t: y"),
            "framing": head(POST, HOST, "Transfer-Encoding : chunked") + "0\r\n\r\n",
        },
    ),
    *variants(
        "9112-5.1-no-field",
        "a header is a name, a colon and a value",
        "400 close",
        {
            "no-colon": head(GET, HOST, "X"),
            "no-name": head(GET, HOST, ": y"),
        },
    ),
    *variants(
        "9112-5.2-obs-fold",
        "a line that continues a header gets a 400",
        "400 close",
        {
            "space": head(GET, HOST, "X: y", " z"),
            "tab": head(GET, HOST, "X: y", "\tz"),
            "empty": head(GET, HOST, "X: y", " "),
            "host": head(GET, "Host:", " a"),
            "framing": head(POST, HOST, "Transfer-Encoding:", " chunked") + "0\r\n\r\n",
        },
    ),
    # 6.1 Transfer-Encoding
    *variants(
        "9112-6.1-chunked",
        "chunked content is parsed, and the name of the coding is case-insensitive",
        "200 open",
        {
            "lower": CHUNKED + "5\r\nhello\r\n0\r\n\r\n",
            "upper": head(POST, HOST, "Transfer-Encoding: CHUNKED") + "5\r\nhello\r\n0\r\n\r\n",
        },
        given={"body": b"hello", "end": "complete"},
    ),
    *variants(
        "9112-6.1-unknown",
        "a coding that the server does not know gets a 501",
        "501 close",
        {
            "gzip": head(POST, HOST, "Transfer-Encoding: gzip, chunked"),
            "lines": head(POST, HOST, "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
            "bogus": head(POST, HOST, "Transfer-Encoding: bogus, chunked"),
        },
    ),
    *variants(
        "9112-6.1-chunked-twice",
        "chunked is not applied twice",
        "400 close or 501 close",
        {
            "list": head(POST, HOST, "Transfer-Encoding: chunked, chunked"),
            "lines": head(POST, HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        },
    ),
    *variants(
        "9112-6.1-and-length",
        "both kinds of framing get a 400, and what follows is no request",
        "400 close",
        {
            "length-first": head(POST, HOST, "Content-Length: 5", "Transfer-Encoding: chunked")
            + "0\r\n\r\n"
            + PLAIN,
            "length-last": head(POST, HOST, "Transfer-Encoding: chunked", "Content-Length: 5")
            + "0\r\n\r\n"
            + PLAIN,
        },
    ),
    *variants(
        "9112-6.1-of-1.0",
        "in HTTP/1.0 Transfer-Encoding is faulty framing",
        "400 close",
        {
            "alone": head("POST / HTTP/1.0", HOST, "Transfer-Encoding: chunked") + "0\r\n\r\n",
            "length": head(
                "POST / HTTP/1.0", HOST, "Transfer-Encoding: chunked", "Content-Length: 5"
            )
            + "0\r\n\r\n",
        },
    ),
    *variants(
        "9112-6.1-response-to-1.0",
        "HTTP/1.0 gets no Transfer-Encoding",
        "200 close",
        {
            "unknown-length": head("GET /stream HTTP/1.0"),
            "application": head("GET /chunked HTTP/1.0"),
        },
        content="streamed",
        lacks=("transfer-encoding",),
    ),
    Row(
        "9112-6.1-response-chunked-once",
        "what the application calls chunked is chunked once",
        head("GET /chunked HTTP/1.1", HOST),
        "200 open",
        content="streamed",
        has=("transfer-encoding: chunked",),
    ),
    # 6.2 Content-Length
    Row(
        "9112-6.2-response",
        "no response has both kinds of framing, even if the application wants it",
        head("GET /both HTTP/1.1", HOST),
        "200 open",
        content="streamed",
    ),
    # 6.3 Message Body Length
    *variants(
        "9112-6.3-not-chunked-last",
        "where chunked is not the last coding, the length is unknown: 400",
        "400 close",
        {
            "before-gzip": head(POST, HOST, "Transfer-Encoding: chunked, gzip"),
            "gzip": head(POST, HOST, "Transfer-Encoding: gzip"),
            "identity": head(POST, HOST, "Transfer-Encoding: identity"),
            "lines": head(POST, HOST, "Transfer-Encoding: chunked", "Transfer-Encoding: gzip"),
            "like-it": head(POST, HOST, "Transfer-Encoding: xchunked"),
            "control": head(POST, HOST, "Transfer-Encoding: \x0bchunked"),
            "quoted": head(POST, HOST, 'Transfer-Encoding: "chunked"'),
        },
    ),
    Row(
        "9112-6.3-no-coding",
        "a Transfer-Encoding without a coding is refused",
        head(POST, HOST, "Transfer-Encoding:"),
        "400 close or 501 close",
    ),
    *variants(
        "9112-6.3-length",
        "Content-Length is the length",
        "200 open",
        {"decimal": UPLOAD + "hello", "zeros": head(POST, HOST, "Content-Length: 005") + "hello"},
        given={"body": b"hello", "end": "complete"},
    ),
    Row(
        "9112-6.3-no-length",
        "without framing a request has no content",
        head(POST, HOST) + PLAIN,
        "200 200 open",
    ),
    *variants(
        "9112-6.3-length-repeated",
        "a length that is repeated is one length",
        "200 open",
        {
            "list": head(POST, HOST, "Content-Length: 5, 5") + "hello",
            "lines": head(POST, HOST, "Content-Length: 5", "Content-Length: 5") + "hello",
        },
        given={"headers": [(b"host", b"a"), (b"content-length", b"5")], "body": b"hello"},
    ),
    *variants(
        "9112-6.3-length-invalid",
        "an invalid Content-Length gets a 400",
        "400 close",
        {
            "list": head(POST, HOST, "Content-Length: 5, 6") + "hello!",
            "lines": head(POST, HOST, "Content-Length: 5", "Content-Length: 6") + "hello!",
            "lines-reversed": head(POST, HOST, "Content-Length: 6", "Content-Length: 5") + "hello!",
            "list-and-more": head(POST, HOST, "Content-Length: 5, x5") + "hello",
            "empty": head(POST, HOST, "Content-Length:") + "hello",
            "minus": head(POST, HOST, "Content-Length: -5") + "hello",
            "minus-zero": head(POST, HOST, "Content-Length: -0") + "hello",
            "plus": head(POST, HOST, "Content-Length: +5") + "hello",
            "hex": head(POST, HOST, "Content-Length: 0x5") + "hello",
            "hex-digit": head(POST, HOST, "Content-Length: a") + "hello",
            "space": head(POST, HOST, "Content-Length: 5 5") + "hello",
            "point": head(POST, HOST, "Content-Length: 5.0") + "hello",
            "underscore": head(POST, HOST, "Content-Length: 1_0") + "hello",
            "exponent": head(POST, HOST, "Content-Length: 1e1") + "hello",
            "superscript": head(POST, HOST, "Content-Length: \xb2") + "hello",
            "arabic": head(POST, HOST, "Content-Length: \xd9\xa5") + "hello",
            "too-many-digits": head(POST, HOST, f"Content-Length: {'9' * 100}") + "hello",
            "1.0": head("POST / HTTP/1.0", "Content-Length: +5") + "hello",
        },
    ),
    *variants(
        "9112-6.3-response-length",
        "a response without length is chunked, so that its end is known",
        "200 open",
        {"1.1": head("GET /stream HTTP/1.1", HOST), "1.2": head("GET /stream HTTP/1.2", HOST)},
        content="streamed",
        has=("transfer-encoding: chunked",),
    ),
    # 7.1 Chunked Transfer Coding
    *variants(
        "9112-7.1-size",
        "a chunk's size is hexadecimal, and the last one is zero",
        "200 open",
        {
            "lower": CHUNKED + "a\r\n0123456789\r\n0\r\n\r\n",
            "upper": CHUNKED + "A\r\n0123456789\r\n0\r\n\r\n",
            "zeros": CHUNKED + "000a\r\n0123456789\r\n000\r\n\r\n",
            "two": CHUNKED + "5\r\n01234\r\n5\r\n56789\r\n0\r\n\r\n",
        },
        given={"body": b"0123456789", "end": "complete"},
    ),
    Row(
        "9112-7.1-pieces",
        "chunks may arrive in any pieces",
        (CHUNKED + "a", "\r", "\n01234", "56789\r", "\n0", "\r\n\r", "\n"),
        "| | | | | | 200 open",
        given={"body": b"0123456789", "end": "complete"},
    ),
    *variants(
        "9112-7.1-invalid",
        "invalid chunked content gets a 400, and the application a disconnect",
        "400 close",
        {
            "no-size": CHUNKED + "\r\nhello\r\n0\r\n\r\n",
            "not-hex": CHUNKED + "g\r\nhello\r\n0\r\n\r\n",
            "minus": CHUNKED + "-5\r\nhello\r\n0\r\n\r\n",
            "plus": CHUNKED + "+5\r\nhello\r\n0\r\n\r\n",
            "prefix": CHUNKED + "0x5\r\nhello\r\n0\r\n\r\n",
            "underscore": CHUNKED + "0_5\r\nhello\r\n0\r\n\r\n",
            "space-first": CHUNKED + " 5\r\nhello\r\n0\r\n\r\n",
            "space-in-it": CHUNKED + "0 5\r\nhello\r\n0\r\n\r\n",
            "lf": CHUNKED + "5\nhello\r\n0\r\n\r\n",
            "cr": CHUNKED + "5\rhello\r\n0\r\n\r\n",
            "too-many-digits": CHUNKED + "f" * 100 + "\r\nhello\r\n0\r\n\r\n",
        },
        given={"body": b"", "end": "disconnect"},
    ),
    *variants(
        "9112-7.1-invalid-data",
        "a chunk is as long as its size says",
        "400 close",
        {
            "longer": CHUNKED + "5\r\nhello!\r\n0\r\n\r\n",
            "no-crlf": CHUNKED + "5\r\nhello0\r\n\r\n",
            "lf": CHUNKED + "5\r\nhello\n0\r\n\r\n",
            "two-bytes-instead": CHUNKED + "5\r\nhelloXX0\r\n\r\n",
        },
        given={"body": b"hello", "end": "disconnect"},
    ),
    Row(
        "9112-7.1-invalid-later",
        "a response that has begun is not completed as if all were well",
        (
            head("POST /relay HTTP/1.1", HOST, "Transfer-Encoding: chunked") + "5\r\nhello\r\n",
            "g\r\n",
        ),
        "200 | torn",
        given={"body": b"hello", "end": "disconnect"},
    ),
    Row(
        "9112-7.1-overflow",
        "2**64 + 5 is not 5",
        CHUNKED + "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "waits or 400 close",
        given={},
    ),
    Row(
        "9112-7.1-parameter",
        "a parameter of chunked is an error",
        head(POST, HOST, "Transfer-Encoding: chunked;q=1"),
        "400 close or 501 close",
    ),
    # 7.1.1 Chunk Extensions
    *variants(
        "9112-7.1.1-extension",
        "an unknown chunk extension is ignored",
        "200 open",
        {
            "name": CHUNKED + "5;x\r\nhello\r\n0\r\n\r\n",
            "value": CHUNKED + "5;x=y;z\r\nhello\r\n0;x=y\r\n\r\n",
            "quoted": CHUNKED + '5;x="y;0"\r\nhello\r\n0\r\n\r\n',
        },
        given={"body": b"hello", "end": "complete"},
    ),
    Row(
        "9112-7.1.1-too-long",
        "chunk extensions are limited",
        CHUNKED + f"5;{LONG}",
        "400 close or 413 close or 431 close",
        given={"body": b"", "end": "disconnect"},
    ),
    # 7.1.2 Chunked Trailer Section
    *variants(
        "9112-7.1.2-trailers",
        "trailers are not merged into the headers, nor read as anything else",
        "200 open",
        {
            "unknown": CHUNKED + "5\r\nhello\r\n0\r\nX: y\r\nZ: z\r\n\r\n",
            "framing": CHUNKED + "5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n",
            "close": CHUNKED + "5\r\nhello\r\n0\r\nConnection: close\r\nHost: b\r\n\r\n",
        },
        given={
            "headers": [(b"host", b"a"), (b"transfer-encoding", b"chunked")],
            "body": b"hello",
            "end": "complete",
        },
    ),
    *variants(
        "9112-7.1.2-invalid",
        "a trailer is a header",
        "400 close",
        {
            "no-colon": CHUNKED + "5\r\nhello\r\n0\r\nX\r\n\r\n",
            "space": CHUNKED + "5\r\nhello\r\n0\r\nX : y\r\n\r\n",
            "request": CHUNKED + "5\r\nhello\r\n0\r\n" + PLAIN,
        },
        given={"body": b"hello", "end": "disconnect"},
    ),
    Row(
        "9112-7.1.2-too-long",
        "trailers are limited",
        CHUNKED + f"5\r\nhello\r\n0\r\nX: {LONG}",
        "431 close or 400 close",
        given={"body": b"hello", "end": "disconnect"},
    ),
    # 7.4 Negotiating Transfer Codings
    *variants(
        "9112-7.4-te",
        "TE is ignored: no response has another coding, or trailers",
        "200 open",
        {
            "trailers": head("GET /stream HTTP/1.1", HOST, "TE: trailers", "Connection: TE"),
            "gzip": head("GET /stream HTTP/1.1", HOST, "TE: gzip;q=0.5", "Connection: TE"),
            "alone": head("GET /stream HTTP/1.1", HOST, "TE: trailers"),
        },
        content="streamed",
        has=("transfer-encoding: chunked",),
        lacks=("trailer",),
    ),
    # 8 Handling Incomplete Messages
    *variants(
        "9112-8-incomplete-content",
        "incomplete content is not passed on as if it were complete",
        "| cut or | 400 close",
        {"length": (UPLOAD + "hel", FIN), "chunked": (CHUNKED + "5\r\nhel", FIN)},
        given={"body": b"hel", "end": "disconnect"},
    ),
    Row(
        "9112-8-no-last-chunk",
        "chunked content without its last chunk is incomplete",
        (CHUNKED + "3\r\nhel\r\n", FIN),
        "| cut or | 400 close",
        given={"body": b"hel", "end": "disconnect"},
    ),
    *variants(
        "9112-8-incomplete-headers",
        "a request without all its headers is none",
        "| cut or | 400 close",
        {"line": ("GET / HT", FIN), "headers": (PLAIN[:-2], FIN), "end": (PLAIN[:-1], FIN)},
    ),
    # 9.3 Persistence
    Row("9112-9.3-persistent", "HTTP/1.1 connections persist", (PLAIN, PLAIN), "200 | 200 open"),
    *variants(
        "9112-9.3-1.0",
        "HTTP/1.0 connections do not persist",
        "200 close",
        {
            "default": head("GET / HTTP/1.0", HOST),
            "keep-alive": head("GET / HTTP/1.0", HOST, "Connection: keep-alive"),
            "upload": head("POST / HTTP/1.0", "Content-Length: 5") + "hello",
        },
    ),
    Row(
        "9112-9.3-unread-content",
        "content that the application does not read is no request",
        head("POST /early HTTP/1.1", HOST, f"Content-Length: {len(PLAIN)}") + PLAIN,
        "200 open or 200 close",
    ),
    *variants(
        "9112-9.3-early-response",
        "content that comes behind the response is no request",
        "200 | open or 200 | close",
        {
            "length": (head("POST /early HTTP/1.1", HOST, f"Content-Length: {len(PLAIN)}"), PLAIN),
            "chunked": (
                head("POST /early HTTP/1.1", HOST, "Transfer-Encoding: chunked"),
                f"{len(PLAIN):x}\r\n{PLAIN}\r\n0\r\n\r\n",
            ),
        },
    ),
    # 9.3.2 Pipelining
    Row(
        "9112-9.3.2-order",
        "pipelined requests are responded to in their order",
        head("GET /slow HTTP/1.1", HOST)
        + UPLOAD
        + "hello"
        + CHUNKED
        + "3\r\nbye\r\n0\r\n\r\n"
        + head("HEAD /stream HTTP/1.1", HOST)
        + head("GET /end HTTP/1.1", HOST),
        "200 200 200 200 200 open",
        content="/slow hello bye  /end",
    ),
    # 9.6 Tear-down
    *variants(
        "9112-9.6-close",
        "behind a request with close, or its response, nothing is served",
        "200 close",
        {
            "alone": head(GET, HOST, "Connection: close"),
            "upper": head(GET, HOST, "Connection: CLOSE"),
            "list": head(GET, HOST, "Connection: keep-alive, close"),
            "lines": head(GET, HOST, "Connection: keep-alive", "Connection: x, close"),
            "pipelined": head(GET, HOST, "Connection: close") + PLAIN,
            "pipelined-nonsense": head(GET, HOST, "Connection: close") + "nonsense\r\n\r\n",
            "pipelined-1.0": head("GET / HTTP/1.0", HOST) + PLAIN,
            "of-the-application": head("GET /close HTTP/1.1", HOST) + PLAIN,
        },
    ),
    Row(
        "9112-9.6-behind-an-error",
        "behind a request that is refused, nothing is served",
        head(GET) + PLAIN,
        "400 close",
    ),
    Row(
        "9112-9.6-behind-a-good-one",
        "an error does not cost the responses before it",
        PLAIN + head(GET),
        "200 400 close",
    ),
    *variants(
        "9112-9.6-in-stages",
        "the server reads on, so that no reset destroys its last response",
        "400 close",
        {
            "nonsense": "nonsense\r\n\r\n" + "x" * 100_000,
            "upload": head(POST, HOST, "Content-Length: +5") + "x" * 100_000,
            "chunked": head(POST, "Transfer-Encoding: chunked") + "x" * 100_000,
        },
    ),
    *variants(
        "9112-9.6-half-close",
        "a client that has sent everything still gets its response",
        "200 | cut or 200 | close",
        {"get": (PLAIN, FIN), "slow": (head("GET /slow HTTP/1.1", HOST), FIN)},
    ),
    # 9.8 TLS Connection Closure
    Row(
        "9112-9.8-close-notify",
        "the server sends close_notify before it closes",
        head(GET, HOST, "Connection: close"),
        "200 close",
        tls=True,
    ),
    # 11.1 Response Splitting
    Row(
        "9112-11.1-splitting",
        "an application's value cannot begin another header",
        head("GET /splitting HTTP/1.1", HOST),
        "500 open or 500 close",
        lacks=("x", "y"),
    ),
    # RFC 9110
    # 4.2 HTTP-Related URI Schemes
    *variants(
        "9110-4.2.1-no-host",
        "a URI without a host is invalid",
        "400 close",
        {
            "http": head("GET http:///x HTTP/1.1", HOST),
            "https": head("GET https:///x HTTP/1.1", HOST),
            "port": head("GET http://:80/x HTTP/1.1", HOST),
            "nothing": head("GET http:// HTTP/1.1", HOST),
        },
    ),
    Row(
        "9110-4.2.4-userinfo",
        "userinfo in a URI is an error",
        head("GET http://u:p@a/ HTTP/1.1", HOST),
        "400 close",
    ),
    # 5 Fields
    *variants(
        "9110-5.1-name",
        "the name of a header is a token",
        "400 close",
        {
            "delimiter": head(GET, HOST, "X(y: z"),
            "not-ascii": head(GET, HOST, "X\xe9: z"),
            "nul": head(GET, HOST, "X\0: z"),
            "control": head(GET, HOST, "X\x01: z"),
        },
    ),
    Row(
        "9110-5.3-order",
        "headers of one name stay apart and in their order",
        head(GET, HOST, "X: 1", "Y: 2", "x: 3"),
        "200 open",
        given={"headers": [(b"host", b"a"), (b"x", b"1"), (b"y", b"2"), (b"x", b"3")]},
    ),
    Row(
        "9110-5.3-all-headers",
        "nothing is done before all headers are there",
        ("GET / HTTP/1.1\r\n", "Host: a\r\n", "\r", "\n"),
        "| | | 200 open",
    ),
    *variants(
        "9110-5.4-too-large",
        "headers that are too large get a 4xx",
        "431 close",
        {
            "value": f"GET / HTTP/1.1\r\nHost: a\r\nX: {LONG}",
            "name": f"GET / HTTP/1.1\r\nHost: a\r\n{LONG}",
            "together": "GET / HTTP/1.1\r\nHost: a\r\n" + "X: y\r\n" * 3000,
        },
    ),
    *variants(
        "9110-5.5-value",
        "CR, LF and NUL in a value are invalid",
        "400 close",
        {"nul": head(GET, HOST, "X: y\0z"), "cr": head(GET, HOST, "X: \ry")},
    ),
    *variants(
        "9110-5.5-control",
        "other control characters may be refused",
        "200 open or 400 close",
        {"start": head(GET, HOST, "X: y\x01z"), "delete": head(GET, HOST, "X: y\x7fz")},
    ),
    Row(
        "9110-5.6.1.2-empty-elements",
        "empty elements of a list are ignored",
        head(GET, HOST, "Connection: ,, close ,"),
        "200 close",
    ),
    # 6.2 Control Data
    *variants(
        "9110-6.2-major-version",
        "another major version gets a 505",
        "505 close",
        {
            "0.9": head("GET / HTTP/0.9", HOST),
            "2.0": head("GET / HTTP/2.0", HOST),
            "3.0": head("GET / HTTP/3.0", HOST),
            "9.9": head("GET / HTTP/9.9", HOST),
            "no-host": head("GET / HTTP/2.0"),
        },
    ),
    Row(
        "9110-6.2-minor-version",
        "a higher minor version is treated as 1.1",
        head("GET / HTTP/1.2", HOST),
        "200 open",
        given={"http_version": "1.1"},
    ),
    Row(
        "9110-6.2-minor-no-host",
        "a higher minor version needs a Host",
        head("GET / HTTP/1.2"),
        "400 close",
    ),
    Row(
        "9110-6.2-version",
        "the application is told the client's version",
        head("GET / HTTP/1.0", HOST),
        "200 close",
        given={"http_version": "1.0"},
    ),
    # 6.6.1 Date, 10.2.4 Server
    Row(
        "9110-6.6.1-date",
        "Date and Server are those of the application, if it sends them",
        head("GET /dated HTTP/1.1", HOST),
        "200 open",
        has=(DATE, "server: mine"),
    ),
    # 7.6.1 Connection
    Row(
        "9110-7.6.1-unknown-option",
        "an unknown connection option changes nothing",
        head(GET, HOST, "Connection: x, keep-alive, closed"),
        "200 open",
    ),
    # 7.8 Upgrade, and RFC 7540, 3.2
    *variants(
        "9110-7.8-ignored",
        "an Upgrade that the server does not support is ignored",
        "200 open",
        {
            "unknown": head(GET, HOST, "Connection: Upgrade", "Upgrade: irc/6.9"),
            "h2": head(GET, HOST, H2C[0], "Upgrade: h2", SETTINGS),
            "h2c-no-option": head(GET, HOST, "Upgrade: h2c", SETTINGS),
            "h2c-no-settings": head(GET, HOST, "Connection: Upgrade", "Upgrade: h2c"),
            "h2c-two-settings": head(GET, HOST, *H2C, SETTINGS),
            "websocket-no-option": head(GET, HOST, "Upgrade: websocket", *WEBSOCKET),
            "websocket-of-a-post": head(
                POST, HOST, "Connection: Upgrade", "Upgrade: websocket", *WEBSOCKET
            ),
        },
        given={"type": "http", "http_version": "1.1"},
    ),
    Row(
        "9110-7.8-pipelined",
        "an Upgrade that is ignored does not hold up what follows",
        head(GET, HOST, "Connection: Upgrade", "Upgrade: irc/6.9") + PLAIN,
        "200 200 open",
    ),
    Row(
        "9110-7.8-invalid-settings",
        "an Upgrade with invalid settings is ignored or refused",
        head(GET, HOST, H2C[0], H2C[1], "HTTP2-Settings: *"),
        "200 open or 400 close",
    ),
    Row(
        "9110-7.8-with-content",
        "an Upgrade of a request with content is ignored",
        head(POST, HOST, *H2C, "Content-Length: 5") + "hello",
        "200 open",
        given={"http_version": "1.1", "body": b"hello"},
    ),
    *variants(
        "9110-7.8-1.0",
        "an Upgrade in HTTP/1.0 is ignored",
        "200 close",
        {
            "h2c": head("GET / HTTP/1.0", HOST, *H2C),
            "websocket": head(
                "GET / HTTP/1.0", HOST, "Connection: Upgrade", "Upgrade: websocket", *WEBSOCKET
            ),
        },
        given={"type": "http", "http_version": "1.0"},
    ),
    Row(
        "9110-7.8-close",
        "an Upgrade of a connection that is to be closed is ignored (9112, 9.6)",
        head(GET, HOST, "Connection: close, Upgrade, HTTP2-Settings", *H2C[1:]),
        "200 close",
    ),
    *variants(
        "9110-7.8-h2c",
        "a 101 names the protocol, which is case-insensitive",
        "101 upgraded",
        {
            "preferred": head(GET, HOST, *H2C),
            "upper": head(
                GET, HOST, "Connection: UPGRADE, http2-settings", "Upgrade: H2C", SETTINGS
            ),
        },
        given={"http_version": "2", "path": "/"},
        has=("upgrade: h2c", "connection: upgrade"),
    ),
    *variants(
        "9110-7.8-websocket",
        "the 101 of a WebSocket names it, too",
        "101 upgraded",
        {
            "preferred": head(GET, HOST, "Connection: Upgrade", "Upgrade: websocket", *WEBSOCKET),
            "list": head(
                GET, HOST, "Connection: keep-alive, upgrade", "Upgrade: WebSocket", *WEBSOCKET
            ),
        },
        given={"type": "websocket", "path": "/"},
        has=("upgrade: websocket", "connection: upgrade"),
    ),
    # 8.6 Content-Length
    Row(
        "9110-8.6-overflow",
        "2**64 + 5 is not 5",
        head(POST, HOST, f"Content-Length: {2**64 + 5}") + "hello" + PLAIN,
        "waits",
        given={"body": b"hello" + PLAIN.encode(), "end": None},
    ),
    Row(
        "9110-8.6-too-short",
        "a response that is shorter than its length is not completed by anything else",
        head("GET /too-short HTTP/1.1", HOST) + PLAIN,
        "200 torn",
    ),
    Row(
        "9110-8.6-too-long",
        "nothing of a response comes behind its length",
        head("GET /too-long HTTP/1.1", HOST),
        "200 torn or 200 cut or 200 close or 200 open or 500 close",
    ),
    # 9.3 Methods
    Row(
        "9110-9.3.2-head",
        "the response to HEAD has no content, but its length",
        head("HEAD / HTTP/1.1", HOST),
        "200 open",
        content="",
        has=("content-length: 1",),
    ),
    *variants(
        "9110-9.3.2-head-stream",
        "the response to HEAD has no content if its length is unknown, either",
        "200 open",
        {
            "1.1": head("HEAD /stream HTTP/1.1", HOST),
            "chunked": head("HEAD /chunked HTTP/1.1", HOST),
        },
        content="",
        lacks=("content-length",),
    ),
    Row(
        "9110-9.3.2-head-refused",
        "the server's own response to HEAD has no content",
        head("HEAD / HTTP/1.1"),
        "400 close",
        content="",
    ),
    *variants(
        "9110-9.3.6-port",
        "CONNECT to an empty or invalid port is refused",
        "400 close or 501 close",
        {
            "missing": head("CONNECT b HTTP/1.1", HOST),
            "empty": head("CONNECT b: HTTP/1.1", HOST),
            "invalid": head("CONNECT b:x HTTP/1.1", HOST),
            "path": head("CONNECT /x HTTP/1.1", HOST),
        },
    ),
    Row(
        "9110-9.3.8-trace",
        "TRACE is the application's",
        head("TRACE / HTTP/1.1", HOST),
        "200 open",
        given={"method": "TRACE"},
    ),
    # 10.1.1 Expect
    *variants(
        "9110-10.1.1-continue",
        "the 100 does not wait for the content",
        "100 | 200 open",
        {
            "length": (EXPECTING, "hello"),
            "upper": (EXPECTING.replace("100-c", "100-C"), "hello"),
        },
        given={"body": b"hello", "end": "complete"},
    ),
    Row(
        "9110-10.1.1-continue-chunked",
        "the 100 does not wait for the first chunk",
        (
            head(POST, HOST, "Transfer-Encoding: chunked", "Expect: 100-continue"),
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        "100 | 200 open",
        given={"body": b"hello", "end": "complete"},
    ),
    *variants(
        "9110-10.1.1-needless",
        "a 100 may be omitted if there is nothing to wait for",
        "200 open or 100 200 open",
        {
            "no-content": head(GET, HOST, "Expect: 100-continue"),
            "empty": head(POST, HOST, "Content-Length: 0", "Expect: 100-continue"),
            "all": EXPECTING + "hello",
        },
    ),
    Row(
        "9110-10.1.1-1.0",
        "HTTP/1.0 gets no 1xx (15.2)",
        (head("POST / HTTP/1.0", "Content-Length: 5", "Expect: 100-continue"), "hello"),
        "| 200 close",
        given={"body": b"hello"},
    ),
    Row(
        "9110-10.1.1-early-response",
        "a final response may come before the content",
        (head("POST /early HTTP/1.1", HOST, "Content-Length: 5", "Expect: 100-continue"), "hello"),
        "200 | open or 200 | close or 100 200 | open or 100 200 | close",
    ),
    Row(
        "9110-10.1.1-refused",
        "a request that is refused gets no 100",
        head(POST, "Content-Length: 5", "Expect: 100-continue"),
        "400 close",
    ),
    Row(
        "9110-10.1.1-unknown",
        "an unknown expectation is ignored",
        head(POST, HOST, "Content-Length: 5", "Expect: more") + "hello",
        "200 open",
    ),
    # 15 Status Codes
    *variants(
        "9110-15.3.5-204",
        "a 204 has neither content nor framing, even if the application wants it",
        "204 open",
        {
            "empty": head("GET /204 HTTP/1.1", HOST),
            "length": head("GET /204-length HTTP/1.1", HOST),
            "chunked": head("GET /204-chunked HTTP/1.1", HOST),
        },
        content="",
    ),
    Row(
        "9110-15.3.6-205",
        "a 205 has no content, even if the application wants it",
        head("GET /205 HTTP/1.1", HOST),
        "205 open",
        content="",
    ),
    Row(
        "9110-15.4.5-304",
        "a 304 has no content, but may have a length",
        head("GET /304 HTTP/1.1", HOST),
        "304 open",
        content="",
        has=("content-length: 7",),
    ),
    Row(
        "9110-15.3.5-204-1.0",
        "a 204 to HTTP/1.0 needs no framing, either",
        head("GET /204 HTTP/1.0"),
        "204 close",
        content="",
    ),
]


# The application

RESPONSES: dict[str, tuple[int, list[str], bytes]] = {
    "/stream": (200, [], b"streamed"),
    "/chunked": (200, ["transfer-encoding: chunked"], b"streamed"),
    "/both": (200, ["transfer-encoding: chunked", "content-length: 8"], b"streamed"),
    "/close": (200, ["connection: close", "content-length: 0"], b""),
    "/dated": (200, [DATE, "server: mine", "content-length: 0"], b""),
    "/splitting": (200, ["x: a\r\ny: b", "content-length: 0"], b""),
    "/too-short": (200, ["content-length: 9"], b"content"),
    "/too-long": (200, ["content-length: 3"], b"content"),
    "/204": (204, [], b""),
    "/204-length": (204, ["content-length: 7"], b"content"),
    "/204-chunked": (204, ["transfer-encoding: chunked"], b"content"),
    "/205": (205, [], b"content"),
    "/304": (304, ["content-length: 7"], b"content"),
}


class Application:
    """Responds as the path says, by default with the request's content; keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        given = {**scope, "host": hosts, "body": b"", "end": None}
        self.given.append(given)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            return
        path = scope["path"]
        if path == "/relay":
            await send({"type": "http.response.start", "status": 200})
        while path != "/early" and given["end"] is None:
            event = await receive()
            if event["type"] == "http.disconnect":
                given["end"] = "disconnect"
                return
            given["body"] += event["body"]
            if not event["more_body"]:
                given["end"] = "complete"
            if path == "/relay":
                await send({**event, "type": "http.response.body"})
        if path == "/relay":
            return
        if path == "/slow":
            await trio.sleep(SILENCE / 2)
        content = given["body"] or path.encode()
        default = (200, [f"content-length: {len(content)}"], content)
        status, lines, content = RESPONSES.get(path, default)
        headers = [tuple(line.encode().split(b": ", 1)) for line in lines]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body"})


# The client


@dataclass
class Response:
    start: int  # its offset in what was received
    status: int
    headers: dict[str, list[str]]
    content: bytes = b""
    complete: bool = True


STATUS_LINE = re.compile(r"HTTP/1\.1 (\d{3}) [\t -~]*")  # with the space (9112, 4)
FIELD_LINE = re.compile(r"([-!#$%&'*+.^_`|~\w]+): ?((?:[!-~\x80-\xff]|[\t ]+(?=\S))*)", re.ASCII)
IMF_FIXDATE = re.compile(
    "(Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-3][0-9] (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    " [0-9]{4} [0-2][0-9]:[0-5][0-9]:[0-6][0-9] GMT"
)


def parse(data: bytes, methods: list[str], ended: bool) -> Iterator[Response]:
    """Parse what the server has sent in response to requests with these methods.

    Nothing is tolerated that a server must not generate: it follows the grammar (9110, 2.2), and
    has neither a bare CR (9112, 2.2) nor a folded line (5.2).
    """
    requests = iter(methods)
    method = next(requests, "GET")
    rest = data
    while rest:
        start = len(data) - len(rest)
        section, end, rest = rest.partition(b"\r\n\r\n")
        status_line, *lines = section.decode("latin-1").split("\r\n")
        match = STATUS_LINE.fullmatch(status_line)
        assert match, status_line
        assert end, "incomplete headers"
        parsed = Response(start, int(match[1]), {})
        for line in lines:
            field = FIELD_LINE.fullmatch(line)
            assert field, line
            parsed.headers.setdefault(field[1].lower(), []).append(field[2])
        if parsed.status == 101:
            rest = b""  # another protocol's bytes
        elif parsed.status < 200 or parsed.status in (204, 304) or method == "HEAD":
            pass  # has no content (9112, 6.3)
        elif "transfer-encoding" in parsed.headers:
            assert parsed.headers["transfer-encoding"] == ["chunked"]
            parsed.content, rest, parsed.complete = dechunked(rest)
        elif "content-length" in parsed.headers:
            length = int(parsed.headers["content-length"][0])
            parsed.content, rest = rest[:length], rest[length:]
            parsed.complete = len(parsed.content) == length
        else:
            parsed.content, rest, parsed.complete = rest, b"", ended
        if parsed.status >= 200:
            method = next(requests, "GET")
        yield parsed


def dechunked(data: bytes) -> tuple[bytes, bytes, bool]:
    """Return chunked content, what follows it, and whether it is complete."""
    content = b""
    while match := re.match(rb"([0-9a-fA-F]+)\r\n", data):
        size, data = int(match[1], 16), data[match.end() :]
        if not size:
            return content, data[2:], data.startswith(b"\r\n")
        content += data[:size]
        if not data.startswith(b"\r\n", size):
            break
        data = data[size + 2 :]
    return content, b"", False


def check(response: Response) -> None:
    """Check what every response must be."""
    headers = response.headers
    for name in ("date", "server", "content-length", "transfer-encoding"):
        assert len(headers.get(name, [])) <= 1, f"more than one {name}"
    framing = headers.keys() & {"content-length", "transfer-encoding"}
    assert len(framing) <= 1, "both kinds of framing (9112, 6.2)"
    if response.status < 200 or response.status == 204:
        assert not framing, "framing of no content (9112, 6.1; 9110, 8.6)"
    if response.status >= 200:
        assert "date" in headers, "no Date (9110, 6.6.1)"
        assert IMF_FIXDATE.fullmatch(headers["date"][0]), "not a date (9110, 5.6.7)"
    if response.status == 101:
        assert "upgrade" in headers, "no Upgrade (9110, 7.8)"


class Client:
    """Sends one piece after the other, and keeps what it receives behind each."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.received: list[bytes] = []
        self.end = ""  # how the connection was closed, once it is

    async def send(self, piece: str | None) -> None:
        """Send a piece, and receive until the server is silent."""
        self.received.append(b"")
        with trio.move_on_after(SILENCE):
            try:
                if piece is FIN:
                    await self._stream.send_eof()
                else:
                    await self._stream.send_all(piece.encode("latin-1"))
                while data := await self._stream.receive_some():
                    self.received[-1] += data
                self.end = "cut"
            except trio.BrokenResourceError:
                self.end = "reset"
            await wait_all_tasks_blocked()  # the application learns of the end, too

    def statuses(self, responses: list[Response]) -> str:
        """Return their status codes, with ``|`` between the pieces."""
        statuses, stop = [], 0
        for data in self.received:
            start, stop = stop, stop + len(data)
            statuses.append(" ".join(str(r.status) for r in responses if start <= r.start < stop))
        return " | ".join(statuses)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS])
async def test_requirement(row: Row, certificate: Path, autojump_clock: MockClock) -> None:
    """What the client sends has the result that the row states."""
    application = Application()
    pem = str(certificate)
    pieces = row.sends if isinstance(row.sends, tuple) else (row.sends,)
    async with memory_server(application, certfile=pem, keyfile=pem) as server:
        stream: Any = await server.connect(tls=row.tls, handshake=False)
        if row.tls:  # an SSLStream that, unlike most clients, insists on a close_notify
            stream = trio.SSLStream(stream, client_ssl(), server_hostname="localhost")
        client = Client(stream)
        for piece in pieces:
            await client.send(piece)
        given, received = [dict(call) for call in application.given], b"".join(client.received)
        end, next_response = client.end, b""
        if not end and FIN not in pieces:
            await client.send(head("GET /next HTTP/1.1", HOST))
            next_response = client.received.pop()

    methods = re.findall(r"([A-Z]+) \S+ HTTP/1", "".join(filter(None, pieces)))
    came = list(parse(received, methods, bool(end)))
    last = came[-1] if came else Response(0, 0, {})
    if last.status == 101:
        end = "upgraded"
    elif not end:
        end = "open" if next_response.endswith(b"\r\n\r\n/next") else "waits"
    elif end == "cut" and not last.complete:
        end = "torn"
    elif end == "cut" and "close" in last.headers.get("connection", []):
        end = "close"
    outcome = " ".join(f"{client.statuses(came)} {end}".split())
    expected = row.comes.split(" or ")
    assert outcome in expected, row.requirement
    for response in came:
        check(response)
        assert not response.headers.keys() & set(row.lacks)
    for header in row.has:
        name, _, value = header.partition(": ")
        assert [v.lower() for v in last.headers.get(name, [])] == [value.lower()]
    if row.content is not None:
        contents = [response.content.decode() for response in came if response.status >= 200]
        assert " ".join(contents) == row.content
    if row.given is not None:
        (call,) = given
        assert {name: call[name] for name in row.given} == row.given
    else:
        served = [response for response in came if response.status not in {100, *REFUSED}]
        assert len(given) == len(served)
