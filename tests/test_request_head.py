from __future__ import annotations

import re
import sys
import time
from itertools import pairwise

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trio_httptrack._connection import request_head
from trio_httptrack._connection.request_head import (
    MAX_CACHED_LINE,
    MAX_CACHED_LINES,
    METHODS,
    RequestHead,
    read_request_head,
)

MAX_SIZE = 16 * 1024


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    request_head._lines.clear()


# What h11 makes of the same bytes


def read_by_h11(pieces: list[bytes], max_size: int = MAX_SIZE) -> tuple[RequestHead, int, bool]:
    """Return the request that h11 reads, how much of its body, and whether that is all of it.

    Only what h11 does in public is compared: the response that it sends says whether the
    connection persists, and 2,000 more bytes that it receives belong to the body or do not.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=max_size)
    event: h11.Event | type[h11.NEED_DATA | h11.PAUSED] = h11.NEED_DATA
    for piece in pieces:
        connection.receive_data(piece)
        if event is h11.NEED_DATA:
            event = connection.next_event()
    assert type(event) is h11.Request
    assert event.http_version == b"1.1"
    assert not connection.they_are_waiting_for_100_continue
    end = sum(map(len, pieces)) - len(connection.trailing_data[0])
    headers = list(event.headers)
    response = connection.send(h11.Response(status_code=204, headers=[]))
    keep_alive = b"connection: close" not in response.lower()
    length = int(dict(headers).get(b"content-length", 0))
    connection.receive_data(b"x" * 2000)
    body = 0
    while type(read := connection.next_event()) is h11.Data:
        body += len(read.data)
    if read is not h11.NEED_DATA:
        assert type(read) is h11.EndOfMessage
        assert connection.their_state is (h11.DONE if keep_alive else h11.MUST_CLOSE)
    request = event.method.decode(), event.target, headers, length, keep_alive, end
    return request, body, read is not h11.NEED_DATA


def is_accepted(data: bytes, cuts: list[int], max_size: int = MAX_SIZE) -> bool:
    """Return False if the head is declined; else h11 must read the same, in any pieces."""
    head = read_request_head(data, max_size)
    assert read_request_head(data, max_size) == head, "the cache has changed the result"
    if head is None:
        return False
    end = head[-1]
    length = head[3]
    available = len(data) - end + 2000
    for places in ([], cuts, [end - 1]):
        by_h11 = read_by_h11(cut(data, places), max_size)
        assert by_h11 == (head, min(length, available), length <= available)
    assert all(type(part) is bytes for header in head[2] for part in header)
    assert data[end - 4 : end] == b"\r\n\r\n"
    assert read_request_head(data[: end - 1], max_size) is None
    return True


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % len(data) for place in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


# Heads, and what can be done to them

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))

names = st.sampled_from(
    b"Accept User-Agent accept-encoding X-Request-ID Cookie te Trailer Keep-Alive Content-Type"
    b" Sec-WebSocket-Key content_length Proxy-Connection Date Origin".split()
) | st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=8).map(str.encode)
values = st.text(VISIBLE + " \t,;=", max_size=20).map(str.encode)
white_space = st.sampled_from([b"", b" ", b" ", b"\t", b" \t  "])
framing = st.sampled_from(
    [
        (b"Connection", b"keep-alive"),
        (b"connection", b"Close"),
        (b"Content-Length", b"0"),
        (b"Content-Length", b"5"),
        (b"content-length", b"1234"),
        (b"Content-Length", b"999999999999999999"),
    ]
)
hosts = st.sampled_from(b"localhost example.org:8000 127.0.0.1:1 [::1]:8000 a_b-c.~d".split())
unusual_lines = st.sampled_from(
    [
        b"Connection: keep-alive, close",
        b"Connection: Upgrade",
        b"Content-Length: 5, 5",
        b"Content-Length: +5",
        b"Content-Length: 05",
        b"Content-Length:",
        b"Expect: 100-continue",
        b"Host: example.org",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"Upgrade: websocket",
        b"X : y",
        b" folded",
    ]
)


@st.composite
def ordinary_heads(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(sorted(METHODS)))
    path = draw(st.text(VISIBLE.replace("#", ""), max_size=12).map(str.encode))
    headers = draw(
        st.lists(
            st.tuples(names, values) | framing,
            max_size=6,
            unique_by=lambda header: header[0].lower(),
        )
    )
    headers.append((draw(st.sampled_from([b"Host", b"host"])), draw(hosts)))
    lines = [
        name + b":" + draw(white_space) + value + draw(white_space)
        for name, value in draw(st.permutations(headers))
    ]
    return b"\r\n".join([method + b" /" + path + b" HTTP/1.1", *lines, b"", b""])


def inserted(head: bytes, place: int, piece: bytes) -> bytes:
    return head[:place] + piece + head[place:]


def inserted_at_delimiter(head: bytes, place: int, piece: bytes) -> bytes:
    """Where one part ends and another begins, in the request line as often as behind it."""
    line = head.split(b"\r\n", 1)[0]
    places = [match.end() for match in DELIMITER.finditer(line if place % 2 else head)]
    return inserted(head, places[place // 2 % len(places)] if places else 0, piece)


def replaced(head: bytes, place: int, piece: bytes) -> bytes:
    return head[:place] + piece + head[place + len(piece) :]


def deleted(head: bytes, place: int, piece: bytes) -> bytes:
    return head[:place] + head[place + len(piece) :]


def other_case(head: bytes, place: int, piece: bytes) -> bytes:
    return head[:place] + head[place : place + 5].swapcase() + head[place + 5 :]


def line_repeated(head: bytes, place: int, piece: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join([*lines[:-2], lines[place % len(lines)], *lines[-2:]])


def line_deleted(head: bytes, place: int, piece: bytes) -> bytes:
    lines = head.split(b"\r\n")
    del lines[place % len(lines)]
    return b"\r\n".join(lines)


DELIMITER = re.compile(rb"(?=[ :,.\r])|[ :,.\r\n]|$")
PIECES = [
    *[b"\r", b"\n", b"\r\n", b"\r\n ", b"\n\n", b"\n\r\n", b"\r\n\r\n", b"\r\r\n", b"\x00", b" "],
    *[b"\t", b":", b",", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\x80", b"\xff", b"a", b"0", b"1"],
    *[b"/", b"#", b"?", b"-", b"+", b"_", b"HTTP/1.0"],
    *[b"\r\nContent-Length: 7", b"\r\nTransfer-Encoding:"],
]
pieces = st.one_of(
    st.sampled_from(PIECES),
    st.binary(min_size=1, max_size=2),
    st.text(VISIBLE, min_size=1, max_size=3).map(str.encode),
)
anywhere = st.sampled_from([inserted, replaced, deleted, other_case, line_repeated, line_deleted])
at_delimiter = st.just(inserted_at_delimiter)
small_pieces = st.sampled_from([b" ", b"\t", b"\r\n", b"0", b"+", b"-", b"_", b","])
mutations = st.tuples(anywhere, st.integers(0, 300), pieces) | st.tuples(
    at_delimiter, st.integers(0, 100), small_pieces
)


@st.composite
def mutated_heads(draw: st.DrawFn) -> bytes:
    """A head that was ordinary, and something behind it."""
    head = draw(ordinary_heads())
    if draw(st.integers(0, 7)) == 0:
        head = head[:-2] + draw(unusual_lines) + b"\r\n\r\n"
    most = draw(st.sampled_from([1, 1, 3]))
    for mutate, place, piece in draw(st.lists(mutations, min_size=1, max_size=most)):
        head = mutate(head, place % (len(head) + 1), piece)
    behind = [b"", b"", b"hello", b"\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"]
    return head + draw(st.sampled_from(behind))


cuts = st.lists(st.integers(0, 1000), max_size=4)


@given(ordinary_heads(), st.binary(max_size=20), cuts)
def test_an_ordinary_head_is_accepted(head: bytes, behind: bytes, cuts: list[int]) -> None:
    """With anything behind it, it gives what h11 reads from it in any pieces."""
    assert is_accepted(head + behind, cuts)


@given(ordinary_heads(), st.integers(0, 300))
def test_an_incomplete_head_is_declined(head: bytes, length: int) -> None:
    """So h11 gets all of it, from its first byte."""
    assert read_request_head(head[: length % len(head)], MAX_SIZE) is None


@settings(max_examples=1000)
@given(mutated_heads(), cuts)
def test_a_mutated_head_is_declined_or_what_h11_reads(data: bytes, cuts: list[int]) -> None:
    """h11 reads the same request, length of the body and end of the head, in any pieces."""
    is_accepted(data, cuts)


@given(st.binary(max_size=60), cuts)
def test_random_bytes_are_declined_or_what_h11_reads(random: bytes, cuts: list[int]) -> None:
    """The same with bytes that were never a head, or only around them."""
    is_accepted(random, cuts)
    is_accepted(b"GET /" + random + b" HTTP/1.1\r\nhost: a\r\n\r\n", cuts)
    is_accepted(b"GET / HTTP/1.1\r\nhost: a\r\n" + random + b"\r\n\r\n", cuts)
    is_accepted(b"GET / HTTP/1.1\r\nhost: a\r\na: " + random + b"\r\n\r\n", cuts)


def test_the_mutated_heads_are_of_both_kinds() -> None:
    """Many of them are accepted and many declined, so the comparison is useful."""
    accepted = []

    @settings(max_examples=300, derandomize=True, database=None)
    @given(mutated_heads())
    def count(data: bytes) -> None:
        accepted.append(read_request_head(data, MAX_SIZE) is not None)

    count()
    assert 20 < sum(accepted) < 200


@given(ordinary_heads(), st.integers(0, 300))
def test_a_head_longer_than_the_limit_is_declined(head: bytes, max_size: int) -> None:
    """One of exactly that size is accepted."""
    assert is_accepted(head + b"GET", [], max_size) == (len(head) <= max_size)
    assert is_accepted(head + b"GET", [], len(head))
    assert not is_accepted(head + b"GET", [], len(head) - 1)


# One by one


def head(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([start, host, *lines, b"", b""])


ORDINARY = {
    "wrk": b"GET / HTTP/1.1\r\nHost: localhost:8000\r\n\r\n",
    "every method": [head(start=method + b" / HTTP/1.1") for method in METHODS],
    "query": head(start=b"GET /a/b%20c;d?e=f&g=[%22]|'\" HTTP/1.1"),
    "two slashes": head(start=b"GET //a/b HTTP/1.1"),
    "no value": head(b"Accept:", b"Cookie: \t "),
    "white space": head(b"Accept:\t */*, \t a  b\t ", b"Content-Length: \t 5 \t", b"x:y"),
    "every character of a name": head(b"!#$%&'*+-.^_`|~09azAZ: x"),
    "every character of a value": head(b"Cookie: " + bytes(range(0x20, 0x7F)) + b"\t."),
    "no length": head(b"Content-Length: 0"),
    "longest length": head(b"Content-Length: 999999999999999999"),
    "keep-alive": head(b"Connection: Keep-Alive"),
    "close": head(b"Connection: cLOSE"),
    "TE and Trailer, which frame nothing": head(b"TE: trailers", b"Trailer: x"),
    "hosts": [
        head(host=b"Host: " + host)
        for host in b"a example.org a.:1 a_b~c-d:65535 127.0.0.1 [::] [::1]:80 [1:2::ffff:1.2.3.4]"
        b" [1:2:3:4:5:6:7:8]:9".split()
    ],
}

# What h11 refuses
REFUSED = {
    "bare CR in a value": head(b"Accept: a\rb"),
    "bare CR between lines": head(b"Accept: a\rContent-Length: 5"),
    "CR before CRLF": head(b"Accept: a\r"),
    "CR in the request line": head(start=b"GET /\r HTTP/1.1"),
    "vertical tab in a value": head(b"Accept: a\x0bb"),
    "form feed in a value": head(b"Accept: a\x0cb"),
    "NUL in a value": head(b"Accept: a\x00b"),
    "NUL in a name": head(b"Acc\x00ept: a"),
    "NUL in the target": head(start=b"GET /\x00 HTTP/1.1"),
    "control character in the target": head(start=b"GET /\x01 HTTP/1.1"),
    "DEL in the target": head(start=b"GET /\x7f HTTP/1.1"),
    "non-ASCII in a name": head("Naïve: a".encode()),
    "non-ASCII in the target": head(start="GET /ä HTTP/1.1".encode()),
    "tab in the target": head(start=b"GET /\t HTTP/1.1"),
    "space in the target": head(start=b"GET /a b HTTP/1.1"),
    "two spaces before the target": head(start=b"GET  / HTTP/1.1"),
    "two spaces before the version": head(start=b"GET /  HTTP/1.1"),
    "tab in the request line": head(start=b"GET\t/ HTTP/1.1"),
    "space before the request line": b" " + head(),
    "space behind the request line": head(start=b"GET / HTTP/1.1 "),
    "empty line first": b"\r\n" + head(),
    "LF first": b"\n" + head(),
    "empty target": head(start=b"GET  HTTP/1.1"),
    "no target": head(start=b"GET HTTP/1.1"),
    "delimiter in the method": head(start=b"GE:T / HTTP/1.1"),
    "empty method": head(start=b" / HTTP/1.1"),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "lower-case version": head(start=b"GET / http/1.1"),
    "HTTP/1.10": head(start=b"GET / HTTP/1.10"),
    "HTTP/01.1": head(start=b"GET / HTTP/01.1"),
    "HTTP/1": head(start=b"GET / HTTP/1"),
    "HTTP/1,1": head(start=b"GET / HTTP/1,1"),
    "HTTPS": head(start=b"GET / HTTPS/1.1"),
    "space before the colon": head(b"Content-Length : 5"),
    "tab before the colon": head(b"Content-Length\t: 5"),
    "no colon": head(b"Accept"),
    "empty name": head(b": a"),
    "space in a name": head(b"Content Length: 5"),
    "delimiter in a name": head(b"Content(Length: 5"),
    "fold in the first header": b"GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\nAccept: a\r\n\r\n",
    "no headers": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": head(b"Host: b"),
    "the same Host twice": head(b"host: a"),
    "Content-Length twice, different": head(b"Content-Length: 5", b"content-length: 6"),
    "Content-Length listed, different": head(b"Content-Length: 5, 6"),
    "Content-Length +5": head(b"Content-Length: +5"),
    "Content-Length -5": head(b"Content-Length: -5"),
    "Content-Length 0x5": head(b"Content-Length: 0x5"),
    "Content-Length 5_0": head(b"Content-Length: 5_0"),
    "Content-Length 5.0": head(b"Content-Length: 5.0"),
    "Content-Length 5 0": head(b"Content-Length: 5 0"),
    "Content-Length with a CR": head(b"Content-Length: 5\r"),
    "Content-Length quoted": head(b'Content-Length: "5"'),
    "Content-Length without a value": head(b"Content-Length:"),
    "Transfer-Encoding identity": head(b"Transfer-Encoding: identity"),
    "Transfer-Encoding listed": head(b"Transfer-Encoding: chunked, identity"),
    "Transfer-Encoding listed, last": head(b"Transfer-Encoding: gzip, chunked"),
    "Transfer-Encoding xchunked": head(b"Transfer-Encoding: xchunked"),
    "Transfer-Encoding vertical tab": head(b"Transfer-Encoding: \x0bchunked"),
    "Transfer-Encoding without a value": head(b"Transfer-Encoding:"),
    "Transfer-Encoding twice": head(b"Transfer-Encoding: chunked", b"transfer-encoding: chunked"),
    "Transfer-Encoding space before the colon": head(b"Transfer-Encoding : chunked"),
}

# What h11 reads, or waits for
UNUSUAL = {
    "incomplete": head()[:-1],
    "LF at the end of each line": head().replace(b"\r\n", b"\n"),
    "LF behind the request line": head().replace(b"1.1\r\n", b"1.1\n"),
    "LF behind a header": head(b"Accept: b").replace(b"a\r\n", b"a\n"),
    "LF between a header and a length": head(b"Accept: b\nContent-Length: 5"),
    "LF at the end": head()[:-2] + b"\n",
    "LF LF, and another end later": head()[:-4] + b"\n\n" + head(),
    "LF CRLF, and another end later": head()[:-4] + b"\n\r\n" + head(),
    "folded value": head(b"Accept: a,", b" b"),
    "value folded by a tab": head(b"Accept: a,", b"\tb"),
    "folded Content-Length": head(b"Content-Length:", b" 5"),
    "folded Transfer-Encoding": head(b"Transfer-Encoding:", b" chunked"),
    "line of a space": head(b" "),
    "control character in a value": head(b"Cookie: a=\x01"),
    "separator in a value": head(b"Cookie: a=\x1f"),
    "DEL in a value": head(b"Cookie: a=\x7f"),
    "UTF-8 in a value": head("Cookie: a=ä".encode()),
    "Latin-1 in a value": head("Cookie: a=ä".encode("latin-1")),
    "no-break space behind a length": head(b"Cookie: 5\xa0"),
    "asterisk target": head(start=b"OPTIONS * HTTP/1.1"),
    "absolute target": head(start=b"GET http://a/ HTTP/1.1"),
    "authority target": head(start=b"GET a:80 HTTP/1.1"),
    "target without a slash": head(start=b"GET index HTTP/1.1"),
    "target with a fragment": head(start=b"GET /a#b HTTP/1.1"),
    "CONNECT": head(start=b"CONNECT a:80 HTTP/1.1"),
    "CONNECT to a path": head(start=b"CONNECT / HTTP/1.1"),
    "PRI": head(start=b"PRI / HTTP/1.1"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown method": head(start=b"PROPFIND / HTTP/1.1"),
    "long method": head(start=b"A" * 1000 + b" / HTTP/1.1"),
    "lower-case method": head(start=b"get / HTTP/1.1"),
    "mixed-case method": head(start=b"Get / HTTP/1.1"),
    "method with a prefix": head(start=b"XGET / HTTP/1.1"),
    "method with a suffix": head(start=b"GETX / HTTP/1.1"),
    "HTTP/1.0": head(start=b"GET / HTTP/1.0"),
    "HTTP/1.2": head(start=b"GET / HTTP/1.2"),
    "HTTP/2.0": head(start=b"GET / HTTP/2.0"),
    "Content-Length twice, the same": head(b"Content-Length: 5", b"Content-Length: 5"),
    "Content-Length listed, the same": head(b"Content-Length: 5, 5"),
    "Content-Length 05": head(b"Content-Length: 05"),
    "Content-Length of 19 digits": head(b"Content-Length: " + b"1" * 19),
    "Transfer-Encoding chunked": head(b"Transfer-Encoding: chunked"),
    "Transfer-Encoding Chunked": head(b"transfer-encoding: Chunked"),
    "Transfer-Encoding, spaces": head(b"Transfer-Encoding:   chunked "),
    "Transfer-Encoding, tab": head(b"Transfer-Encoding:\tchunked\t"),
    "Transfer-Encoding and Content-Length": head(
        b"Content-Length: 5", b"Transfer-Encoding: chunked"
    ),
    "Connection listed": head(b"Connection: keep-alive, close"),
    "Connection names a header": head(b"Connection: close, TE"),
    "Connection ends in a comma": head(b"Connection: close,"),
    "Connection upgrade": head(b"Connection: Upgrade"),
    "Connection without a value": head(b"Connection:"),
    "Connection twice": head(b"Connection: keep-alive", b"Connection: close"),
    "Upgrade": head(b"Upgrade: websocket", b"Connection: Upgrade"),
    "Upgrade alone": head(b"Upgrade: h2c"),
    "HTTP2-Settings": head(b"HTTP2-Settings: AAMAAABkAAQAAP__"),
    "Expect": head(b"Expect: 100-continue", b"Content-Length: 5"),
    "Expect something else": head(b"Expect: x"),
    "name repeated": head(b"Accept: a", b"accept: b"),
    **{
        f"Host {host!r}": head(host=b"Host: " + host)
        for host in [
            *[b"", b"a b", b"a\tb", b"a/b", b"a@b", b"a,b", b"a?b", b"a#b", b"a\\b", b"a%20b"],
            *[b"http://a", b"a:b", b"a:", b"a:-1", b"a:123456", b"a:1:2", b":80", b'"a"', b"<a>"],
            *[b"::1", b"[]", b"[::1", b"::1]", b"[::1]a", b"[::g]", b"[:::]", b"[1.2.3.4]"],
            *[b"[fe80::1%25eth0]", b"[v1.a]", b"[a]", b"[1:2:3:4:5:6:7]", b"a[::1]", b"\xc3\xa4"],
        ]
    },
}


@pytest.mark.parametrize("heads", ORDINARY.values(), ids=ORDINARY)
def test_what_is_ordinary_is_accepted(heads: bytes | list[bytes]) -> None:
    """It gives what h11 reads, alone and with a body or a request behind it."""
    for data in [heads] if isinstance(heads, bytes) else heads:
        for behind in (b"", b"hello", b"\r\n\r\n", head()):
            assert is_accepted(data + behind, [])


@pytest.mark.parametrize("data", (REFUSED | UNUSUAL).values(), ids=REFUSED | UNUSUAL)
def test_what_may_smuggle_is_declined(data: bytes) -> None:
    """It is left to h11, alone and with a body or a request behind it."""
    assert read_request_head(data, MAX_SIZE) is None
    assert read_request_head(data + b"hello", MAX_SIZE) is None
    assert read_request_head(data + head(), MAX_SIZE) is None


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
def test_what_h11_refuses_is_declined(data: bytes) -> None:
    """What stands above as refused is refused by the h11 that is installed, too."""
    with pytest.raises(h11.RemoteProtocolError):
        read_by_h11([data])


def test_a_head_gives_its_parts() -> None:
    """The parts in their order, by example."""
    data = head(b"Connection: close", b"content-Length: 5", b"Cookie:  a=b; c ") + b"hello"
    headers = [
        (b"host", b"a"),
        (b"connection", b"close"),
        (b"content-length", b"5"),
        (b"cookie", b"a=b; c"),
    ]
    expected = ("GET", b"/", headers, 5, False, len(data) - 5)
    assert read_request_head(data, MAX_SIZE) == expected


# The cache


def cached() -> set[bytes]:
    return set(request_head._lines)


def test_only_lines_that_clients_share_are_cached() -> None:
    """A line that is secret, long, of an unknown name or about the body is read each time."""
    shared = [b"Host: a", b"User-Agent: x", b"Accept: " + b"a" * (MAX_CACHED_LINE - 8)]
    own = [b"Cookie: a", b"Authorization: a", b"Proxy-Authorization: a", b"X-Api-Key: a"]
    own += [b"Content-Length: 5", b"Referer: a", b"Origin: " + b"a" * (MAX_CACHED_LINE - 7)]
    assert read_request_head(head(*shared[1:], *own), MAX_SIZE) is not None
    assert cached() == set(shared)


def test_a_line_that_is_declined_is_not_cached() -> None:
    """Otherwise it would be accepted the next time."""
    for data in (REFUSED | UNUSUAL).values():
        for _ in range(2):
            assert read_request_head(data, MAX_SIZE) is None
    for line in cached():
        other = b"X: a" if line.lower().startswith(b"host:") else b"Host: a"
        assert is_accepted(head(line, host=other), [])


def test_the_cache_is_bounded_whatever_clients_send() -> None:
    """Neither many heads nor one with many lines make it larger than its limits."""
    largest = 0
    for number in range(20):
        lines = [
            (b"Accept: %d." % (number * 1000 + line)).ljust(MAX_CACHED_LINE, b"a")
            for line in range(100)
        ]
        read_request_head(head(*lines), 1 << 20)
        for line in lines:
            read_request_head(head(line), MAX_SIZE)
            assert len(cached()) <= MAX_CACHED_LINES
        size = sys.getsizeof(request_head._lines) + sum(
            sys.getsizeof(part)
            for line, header in request_head._lines.items()
            for part in (line, header, *header)
        )
        largest = max(largest, size)
    assert 100_000 < largest < 500_000


def test_a_full_cache_holds_the_lines_that_come_next() -> None:
    """A client that fills it with lines of its own does not keep the others out."""
    for number in range(MAX_CACHED_LINES):
        read_request_head(head(b"Accept: %d" % number), MAX_SIZE)
    read_request_head(head(b"User-Agent: x"), MAX_SIZE)
    assert b"User-Agent: x" in cached()


def test_the_headers_are_the_callers_own() -> None:
    """What an application does to its list is not seen by the next request."""
    for _ in range(2):
        request = read_request_head(head(b"Accept: b"), MAX_SIZE)
        assert request is not None
        assert request[2] == [(b"host", b"a"), (b"accept", b"b")]
        request[2].append((b"cookie", b"c"))


# Time

LONG = 64 * 1024

ADVERSARIAL = {
    "spaces before a value": head(b"a:" + b" " * LONG + b"\x00"),
    "spaces behind a value": head(b"a: b" + b" " * LONG + b"\x00"),
    "words in a value": head(b"a: " + b"b " * (LONG // 2) + b"\x00"),
    "tabs and spaces": head(b"a:" + b"\t " * (LONG // 2) + b"\x00"),
    "name without a colon": head(b"a" * LONG),
    "colons": head(b":" * LONG),
    "method": head(start=b"G" * LONG),
    "target": head(start=b"GET /" + b"a" * LONG),
    "targets": head(start=b"GET " + b"/ HTTP/1.1 " * (LONG // 11)),
    "host": head(host=b"Host: " + b"a" * LONG + b"/"),
    "dots in a host": head(host=b"Host: " + b"a." * (LONG // 2) + b"/"),
    "colons in a host": head(host=b"Host: [" + b"1:" * (LONG // 2) + b"]"),
    "port": head(host=b"Host: a:" + b"1" * LONG),
    "length": head(b"Content-Length: " + b"1" * LONG),
    "lengths": head(b"Content-Length: " + b"1, " * (LONG // 3)),
    "connections": head(b"Connection: " + b"close," * (LONG // 6)),
    "empty headers": head(*[b"a:"] * (LONG // 4)),
    "empty lines": b"\r\n" * (LONG // 2),
    "no end": head()[:-2] + b"a: " + b"\r\n\r" * (LONG // 3),
    "different headers": head(*[b"%x:" % number for number in range(LONG // 8)]),
}


@pytest.mark.parametrize("data", ADVERSARIAL.values(), ids=ADVERSARIAL)
def test_no_head_takes_long(data: bytes) -> None:
    """64 KiB cost a few milliseconds at most; anything quadratic in them takes seconds."""
    start = time.process_time()
    read_request_head(data, 2 * LONG)
    assert time.process_time() - start < 0.1
