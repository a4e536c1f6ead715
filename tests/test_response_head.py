"""Response heads side by side with h11's writer, fed as Hypercorn feeds it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import h11
import pytest
from hypercorn.utils import build_and_validate_headers
from hypothesis import assume, event, example, given
from hypothesis import strategies as st

from trio_httptrack._connection.response_head import (
    CHUNKED,
    COMMON,
    MAX_CACHED_LINE,
    MAX_CACHED_LINES,
    UNTIL_CLOSE,
    ResponseHeads,
    header_line,
    tokens,
    validate,
)
from trio_httptrack._connection.settings import Headers

OWN = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"hypercorn-h11")]
SHARED = ResponseHeads(lambda protocol: OWN)
"""For all examples of a test: what it remembers of one must not change another."""

REFUSALS = (h11.LocalProtocolError, ValueError)


def render(
    status: int = 200,
    headers: Any = (),
    *,
    http11: bool = True,
    to_head: bool = False,
    last: bool = False,
    client_closes: bool = False,
    heads: ResponseHeads = SHARED,
) -> tuple[bytes, int, bool]:
    return heads.render(
        status,
        headers,
        http11=http11,
        to_head=to_head,
        last=last,
        client_closes=client_closes or not http11,
    )


def server(http11: bool, to_head: bool, client_closes: bool) -> h11.Connection:
    """h11's side of a connection on which such a request was read."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(
        b"%b / HTTP/1.%d\r\nHost: here\r\n%b\r\n"
        % (
            b"HEAD" if to_head else b"GET",
            http11,
            b"Connection: close\r\n" if client_closes else b"",
        )
    )
    assert isinstance(connection.next_event(), h11.Request)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    return connection


def sent(connection: h11.Connection, event: Any) -> bytes:
    return connection.send(event) or b""


def as_hypercorn(status: int, headers: Headers, last: bool) -> h11.Response:
    close = [(b"connection", b"close")] if last else []
    headers = [*build_and_validate_headers(headers), *OWN, *close]
    return h11.Response(status_code=status, headers=headers)


def as_documented(status: int, headers: Headers, last: bool) -> h11.Response:
    """What differs on purpose."""
    headers = build_and_validate_headers(headers)
    names = {name.lower() for name, _ in headers}
    said = {
        token for name, value in headers if name.lower() == b"connection" for token in tokens(value)
    }
    own = [header for header in OWN if header[0] not in names]
    close = [(b"connection", b"close")] if last and b"close" not in said else []
    if status in (204, 205):
        framing = (b"content-length", b"transfer-encoding")
        headers = [header for header in headers if header[0].lower() not in framing]
    empty = [(b"content-length", b"0")] if status == 205 else []
    return h11.Response(status_code=status, headers=[*headers, *own, *close, *empty])


def anywhere(name: str, *values: bytes) -> st.SearchStrategy[tuple[bytes, bytes]]:
    """A header in upper, lower or mixed case."""
    names = [spelling.encode() for spelling in (name, name.lower(), name.upper())]
    return st.tuples(st.sampled_from(names), st.sampled_from(values))


framing_headers = anywhere("Content-Length", b"0", b"3", b"03", b"17", b"", b"-1", b"+3", b"3x")
coding_headers = anywhere("Transfer-Encoding", b"chunked", b"Chunked", b"gzip", b"gzip, chunked")
connection_headers = anywhere(
    "Connection", b"close", b"Close", b"keep-alive", b"x, CLOSE,", b"upgrade, keep-alive", b"", b","
)
other_headers = st.one_of(
    anywhere("Content-Type", b"text/plain", b"text/html; charset=utf-8"),
    anywhere(
        "X-Any", b"", b" padded\t", b"a b", b"a\tb", b"\xe4\xff", b"a\r\nb: c", b"\0", b"a\vb"
    ),
    anywhere("Set-Cookie", b"a=b", b"c=d"),
    anywhere("Date", b"yesterday"),
    anywhere("Server", b"mine"),
    st.tuples(
        st.sampled_from([b"x y", b"x:", b"x\r\n", b" x", b"\xff", b":status", b"x\0", b"_~!"]),
        st.just(b"value"),
    ),
    st.tuples(st.binary(min_size=1, max_size=3), st.binary(max_size=3)),
)
# Most responses have one of each at most.
header_lists = st.one_of(
    st.lists(
        st.one_of(framing_headers, coding_headers, connection_headers, other_headers), max_size=5
    ),
    st.lists(st.one_of(framing_headers, connection_headers, other_headers), max_size=2),
)
statuses = st.one_of(
    st.sampled_from([200, 204, 205, 206, 304, 404, 500]), st.integers(min_value=195, max_value=1002)
)


@given(
    status=statuses,
    headers=header_lists,
    http11=st.booleans(),
    to_head=st.booleans(),
    last=st.booleans(),
    client_closes=st.booleans(),
)
@example(200, [(b"content-length", b"3")], True, False, False, False)
@example(200, [(b"content-length", b"3"), (b"Date", b"yesterday")], True, False, False, False)
@example(200, [(b"content-length", b"3"), (b"connection", b"close")], True, False, True, False)
@example(200, [(b"content-length", b"3"), (b"connection", b"close")], True, False, False, False)
@example(200, [(b"connection", b"f, e, d, c, b, a")], True, False, False, True)
@example(205, [(b"content-length", b"3")], True, False, False, True)
@example(304, [(b"transfer-encoding", b"chunked")], True, False, False, False)
def test_a_head_is_h11s_or_an_error_where_h11_has_one(
    status: int, headers: Headers, http11: bool, to_head: bool, last: bool, client_closes: bool
) -> None:
    """Its bytes, what frames the body, and whether the connection goes on behind it."""
    assume(not any(b"\x7f" in value for _, value in headers))  # here we are stricter
    # What is said strangely has its own test.
    lower = [name.lower() for name, _ in headers]
    assume(lower.count(b"content-length") < 2 and lower.count(b"transfer-encoding") < 2)
    assume(all(value.islower() for name, value in headers if name.lower() == b"transfer-encoding"))
    client_closes = client_closes or not http11
    theirs = server(http11, to_head, client_closes)
    try:
        as_hypercorn(status, headers, last)
    except REFUSALS:
        event("refused")
        with pytest.raises(REFUSALS):
            render(status, headers, http11=http11, to_head=to_head, last=last)
        return
    expected = sent(theirs, as_documented(status, headers, last))
    head, framing, closes = render(
        status, headers, http11=http11, to_head=to_head, last=last, client_closes=client_closes
    )
    event(f"framing {min(framing, 1)}, closes {closes}")
    assert head == expected

    if framing == CHUNKED:
        assert sent(theirs, h11.Data(b"body")) == b"4\r\nbody\r\n"
    elif framing == UNTIL_CLOSE:
        assert sent(theirs, h11.Data(b"body")) == b"body"
        assert b"content-length" not in head.lower()
    elif framing:
        assert sent(theirs, h11.Data(bytes(framing))) == bytes(framing)
    end = sent(theirs, h11.EndOfMessage())
    assert end == (b"0\r\n\r\n" if framing == CHUNKED else b"")
    assert closes is (theirs.our_state is h11.MUST_CLOSE)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, [(b"Content-Length", b"3"), (b"content-length", b"3")]),
        (200, [(b"content-length", b"3"), (b"x", b"1"), (b"content-length", b"3")]),
        (200, [(b"content-length", b"3, 3")]),
        (200, [(b"content-length", b"1" * 21)]),
        (200, [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]),
        (304, [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")]),
        (304, [(b"transfer-encoding", b"Chunked")]),
    ],
)
def test_an_unusual_content_length_or_coding_is_handled_as_by_h11(
    status: int, headers: Headers
) -> None:
    """Rare enough that the examples above need not meet them."""
    try:
        response = as_hypercorn(status, headers, False)
    except REFUSALS:
        with pytest.raises(REFUSALS):
            render(status, headers)
    else:
        expected = sent(server(True, False, False), response)
        assert render(status, headers)[0] == expected


@given(status=st.sampled_from([100, 101, 103, 199]), headers=header_lists)
@example(103, [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")])
def test_an_interim_response_is_h11s_without_what_would_frame_a_body(
    status: int, headers: Headers
) -> None:
    """It has none (RFC 9110, 8.6, and RFC 9112, 6.1)."""
    assume(not any(b"\x7f" in value for _, value in headers))
    try:
        given = build_and_validate_headers(headers)
        h11.InformationalResponse(status_code=status, headers=given)
    except REFUSALS as error:
        assume("Content-Length headers" not in str(error))  # they are not sent anyway
        assume("multiple" not in str(error))
        with pytest.raises(REFUSALS):
            SHARED.interim(status, headers)
        return
    framing = (b"content-length", b"transfer-encoding")
    left = [header for header in given if header[0].lower() not in framing]
    connection = server(True, False, False)
    expected = h11.InformationalResponse(status_code=status, headers=[*left, *OWN])
    if status == 101:  # which h11 sends in response to an upgrade only
        expected = h11.InformationalResponse(status_code=100, headers=expected.headers)
    data = sent(connection, expected).replace(b"HTTP/1.1 100", b"HTTP/1.1 %d" % status, 1)
    assert SHARED.interim(status, headers) == data


# Header injection

LINE_BREAKS = [
    b"\r\nx: y",
    b"\nx: y",
    b"\rx: y",
    b"\0",
    b"a\r\n\r\nHTTP/1.1 200 ",
    b"a\nb",
    b"a\rb",
    b"a\0b",
]
FORMS: list[Callable[[bytes, bytes], Any]] = [
    lambda name, value: (name, value),
    lambda name, value: [name, value],
    lambda name, value: (bytearray(name), bytearray(value)),
    lambda name, value: (name, bytearray(value)),
    lambda name, value: (memoryview(name), memoryview(value)),
    lambda name, value: [memoryview(bytearray(name)), memoryview(bytearray(value))],
    lambda name, value: (name, memoryview(bytearray(value))),
]
FORM_NAMES = ["tuple", "list", "bytearrays", "bytearray", "memoryviews", "list of views", "view"]


def render_alone(heads: ResponseHeads) -> Callable[[Any], object]:
    return lambda header: render(headers=[header], heads=heads)


def heads_interim(heads: ResponseHeads) -> Callable[[Any], object]:
    return lambda header: heads.interim(103, [header])


each_form = pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)


@each_form
@pytest.mark.parametrize("name", [b"content-type", b"Set-Cookie", b"Connection", b"date"])
def test_a_line_break_in_a_value_is_refused_in_any_form(
    form: Callable[[bytes, bytes], Any], name: bytes
) -> None:
    """Even if its harmless beginning is cached; and the error does not contain it."""
    heads = ResponseHeads(lambda protocol: OWN)
    render(headers=[(name, b"secret")], heads=heads)
    for break_ in LINE_BREAKS:
        header = form(name, b"secret" + break_ + b"secret")
        for check in (render_alone(heads), heads_interim(heads), validate, header_line):
            with pytest.raises(REFUSALS) as caught:
                check(header)
            assert "secret" not in str(caught.value)


@each_form
def test_a_line_break_in_a_name_is_refused_in_any_form(
    form: Callable[[bytes, bytes], Any],
) -> None:
    """Also behind a name that is remembered."""
    heads = ResponseHeads(lambda protocol: OWN)
    render(headers=[(b"vary", b"secret")], heads=heads)
    for break_ in LINE_BREAKS:
        header = form(b"vary" + break_, b"secret")
        for check in (render_alone(heads), heads_interim(heads), validate, header_line):
            with pytest.raises(REFUSALS) as caught:
                check(header)
            assert "secret" not in str(caught.value)


@each_form
@pytest.mark.parametrize("name", [b"content-type", b"x-any"])
def test_any_form_of_a_header_is_sent_the_same(
    form: Callable[[bytes, bytes], Any], name: bytes
) -> None:
    """The first time, and when the same was sent before."""
    heads = ResponseHeads(lambda protocol: OWN)
    expected = render(headers=[(name, b"value")])
    for _ in range(2):
        assert render(headers=[form(name, b"value")], heads=heads) == expected
    render(headers=[(name, b"value")], heads=heads)
    assert render(headers=[form(name, b"value")], heads=heads) == expected


def test_a_value_that_changes_after_it_was_sent_is_checked_again() -> None:
    """A bytearray is no key of what is remembered."""
    heads = ResponseHeads(lambda protocol: OWN)
    value = bytearray(b"value")
    header = [b"vary", value]
    render(headers=[header], heads=heads)
    value += b"\r\nx: y"
    with pytest.raises(h11.LocalProtocolError):
        render(headers=[header], heads=heads)


@pytest.mark.parametrize("header", [("vary", b"x"), (b"vary", "x"), ("vary", "x"), ["vary", "x"]])
def test_a_str_is_a_type_error(header: Any) -> None:
    """Also where the same in bytes is remembered."""
    heads = ResponseHeads(lambda protocol: OWN)
    render(headers=[(b"vary", b"x")], heads=heads)
    for check in (render_alone(heads), heads_interim(heads), validate, header_line):
        with pytest.raises(TypeError):
            check(header)


@pytest.mark.parametrize("name", [b":status", b" :status", b":"])
def test_a_pseudo_header_is_refused(name: bytes) -> None:
    """It would be one over HTTP/2."""
    with pytest.raises(ValueError, match="Pseudo"):
        validate((name, b"200"))


# What is remembered


def test_what_is_remembered_is_bounded() -> None:
    """A client that can choose a value cannot fill the memory, with many or with long ones."""
    heads = ResponseHeads(lambda protocol: OWN)
    most = 0
    for number in range(3 * MAX_CACHED_LINES):
        render(headers=[(b"content-length", b"%d" % number)], heads=heads)
        most = max(most, len(heads._cache))
    assert most == MAX_CACHED_LINES
    for length in range(MAX_CACHED_LINE, 2 * MAX_CACHED_LINE):
        render(headers=[(b"vary", b"x" * length)], heads=heads)
    assert all(len(line) <= MAX_CACHED_LINE for line, _, _ in heads._cache.values())


def test_only_headers_without_secrets_are_cached() -> None:
    """In whatever case, and as often as they are sent."""
    heads = ResponseHeads(lambda protocol: OWN)
    others = [b"set-cookie", b"Authorization", b"x-request-id", b"location", b"etag", b"date"]
    for name, _ in product(others, range(3)):
        render(headers=[(name, b"1")], heads=heads)
        render(headers=[(name.upper(), b"1")], heads=heads)
    assert not heads._cache
    for name in sorted(COMMON - {b"transfer-encoding"}):
        render(headers=[(name, b"1")], heads=heads)
        render(headers=[(name.upper(), b"1")], heads=heads)
    known = COMMON - {b"transfer-encoding"}
    assert set(heads._cache) == {(n, b"1") for name in known for n in (name, name.upper())}


def test_the_servers_own_headers_follow_its_settings() -> None:
    """They are another list when the date has changed."""
    own = [(b"date", b"one")]
    heads = ResponseHeads(lambda protocol: own)
    assert heads.own() == b"date: one\r\n"
    own = [(b"date", b"two"), (b"x-server", b"more")]
    head, _, _ = render(headers=[(b"content-length", b"0")], heads=heads)
    assert head == b"HTTP/1.1 200 \r\ncontent-length: 0\r\ndate: two\r\nx-server: more\r\n\r\n"
