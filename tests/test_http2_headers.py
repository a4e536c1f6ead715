"""Header blocks of HTTP/2, read and written beside hpack."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import h11
import hpack
import pytest
from hpack.exceptions import HPACKError, OversizedHeaderListError
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_httptrack._connection.http2_compression import (
    DEFAULT_TABLE_SIZE,
    ENTRY_SIZE,
    encode,
    header_block,
)
from trio_httptrack._connection.http2_frames import (
    COMPRESSION_ERROR,
    ENHANCE_YOUR_CALM,
    PROTOCOL_ERROR,
    ConnectionFailure,
    StreamFailure,
)
from trio_httptrack._connection.http2_headers import (
    CONNECTION_HEADERS,
    MAX_CACHED_BLOCK,
    MAX_CACHED_BLOCKS,
    HeaderReader,
    HeaderWriter,
    Request,
    header_kind,
    parse_request,
)
from trio_httptrack._connection.response_head import COMMON, MAX_CACHED_LINE, MAX_CACHED_LINES
from trio_httptrack._connection.settings import Headers
from trio_httptrack.testing import memory_server

from .clients import Http2
from .support import respond

MAX_SIZE = 2**16
OWN = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"Server", b"hypercorn-h2")]
SHARED = HeaderWriter(lambda protocol: OWN)
"""For all examples of a test: what it remembers of one must not change another."""


def lower(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(name.lower(), value) for name, value in headers]


def decoded(block: bytes) -> Headers:
    """What any client reads, even one without a dynamic table."""
    usual, without = hpack.Decoder(), hpack.Decoder()
    without.header_table_size = without.max_allowed_table_size = 0
    usual.max_header_list_size = without.max_header_list_size = 2**20
    fields = [(name, value) for name, value in usual.decode(block, raw=True)]
    assert [(name, value) for name, value in without.decode(block, raw=True)] == fields
    assert not usual.header_table.dynamic_entries
    return fields


# Writing

TOKEN = "!#$%&'*+-.^_`|~0123456789abcxyzABCXYZ"
names = st.text(TOKEN, min_size=1, max_size=8).map(str.encode) | st.sampled_from(
    b"content-type Content-Type vary x-request-id Set-Cookie location etag cache-control".split()
)
visible = bytes([*range(0x21, 0x7F), *range(0x80, 0x100)]).decode("latin-1")
values = st.sampled_from([b"", b"text/html; charset=utf-8", b"a", b"gzip, deflate"]) | st.lists(
    st.text(visible, min_size=1, max_size=5).map(lambda text: text.encode("latin-1")), max_size=3
).map(b" ".join)
statuses = st.integers(100, 999)


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=200))))
def test_any_headers_that_are_written_can_be_read(headers: Headers) -> None:
    """Without a dynamic table, which the decoder need not have; names are in lower case."""
    assert decoded(header_block(headers)) == lower(headers)
    assert decoded(b"".join(encode(*each) for each in headers)) == headers


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16510, 16511, 2**18])
def test_a_length_is_written_as_it_is(size: int) -> None:
    """At each size where it takes one byte more."""
    header = (b"n" * (size or 1), b"v" * size)
    assert decoded(encode(*header)) == [header]


def test_constants_of_the_static_table_are_one_byte() -> None:
    """And of several entries with the same name, the name is the first's."""
    assert encode(b":status", b"200") == b"\x88"
    assert encode(b"accept-encoding", b"gzip, deflate") == b"\x90"
    assert encode(b":status", b"201") == b"\x08\x03201"
    assert encode(b"vary", b"a") == b"\x0f\x2c\x01a"


@given(statuses, st.lists(st.tuples(names, values), max_size=5))
def test_a_response_is_what_the_application_gave_and_the_servers_own(
    status: int, headers: Headers
) -> None:
    """In this order, each time again, whether or not something is remembered."""
    expected = [(b":status", b"%d" % status), *lower(headers), *lower(OWN)]
    for writer in (HeaderWriter(lambda protocol: OWN), SHARED, SHARED):
        block, length = writer.response(status, headers)
        assert decoded(block) == expected
        assert length is None


FORMS: list[Callable[[bytes, bytes], Any]] = [
    lambda name, value: (name, value),
    lambda name, value: [name, value],
    lambda name, value: (bytearray(name), memoryview(value)),
    lambda name, value: (b" " + name + b"\t", b"\t " + value + b" "),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [b"vary", b"X-Other"])
def test_a_header_may_have_any_form_of_bytes_and_white_space_around_it(
    name: bytes, form: Callable[[bytes, bytes], Any]
) -> None:
    """It is written as if it had none."""
    writer = HeaderWriter(lambda protocol: OWN)
    expected, _ = writer.response(200, [(name, b"a  b")])
    for _ in range(2):
        assert writer.response(200, [form(name, b"a  b")]) == (expected, None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("theirs", "left"),
    [
        ([b"Date"], [b"server"]),
        ([b"SERVER"], [b"date"]),
        ([b"server", b"date"], []),
        ([b"vary", b"date"], [b"server"]),
    ],
)
def test_the_applications_date_and_server_replace_ours(
    theirs: list[bytes], left: list[bytes], form: Callable[[bytes, bytes], Any]
) -> None:
    """In that response only."""
    writer = HeaderWriter(lambda protocol: [*OWN, (b"alt-svc", b"h3")])
    for _ in range(2):
        block, _ = writer.response(200, [form(name, b"theirs") for name in theirs])
        fields = decoded(block)[1:]
        assert fields[: len(theirs)] == [(name.lower(), b"theirs") for name in theirs]
        assert [name for name, _ in fields[len(theirs) :]] == [*left, b"alt-svc"]
        assert decoded(writer.response(200, [])[0])[1:] == [*lower(OWN), (b"alt-svc", b"h3")]


def test_the_servers_own_headers_change_with_the_second() -> None:
    """They are another list then, and the same one within a second."""
    own = [(b"date", b"one")]
    writer = HeaderWriter(lambda protocol: own)
    first = writer.response(200, [(b"vary", b"a")])
    assert writer.response(200, [(b"vary", b"a")]) == first
    own = [(b"date", b"two")]
    second, _ = writer.response(200, [(b"vary", b"a")])
    assert decoded(second) == [(b":status", b"200"), (b"vary", b"a"), (b"date", b"two")]


@given(st.sampled_from(sorted(CONNECTION_HEADERS)), st.booleans(), values)
def test_headers_of_a_connection_are_left_out(name: bytes, title: bool, value: bytes) -> None:
    """HTTP/2 has none of them (RFC 9113, 8.2.2)."""
    header = (name.title() if title else name, value)
    for _ in range(2):
        block, length = SHARED.response(200, [(b"x", b"y"), header, (b"z", b"")])
        assert (block, length) == SHARED.response(200, [(b"x", b"y"), (b"z", b"")])


WRONG = {
    "line break in a value": (b"x", b"a\r\nset-cookie: b"),
    "line feed in a value": (b"x", b"a\nb"),
    "NUL in a value": (b"x", b"a\x00b"),
    "DEL in a value": (b"x", b"a\x7fb"),
    "no name": (b"", b"a"),
    "space in a name": (b"a b", b"c"),
    "colon in a name": (b"a:b", b"c"),
    "no ASCII in a name": (b"\xe4", b"c"),
    "no length": (b"content-length", b""),
    "a negative length": (b"Content-Length", b"-1"),
    "a length with a sign": (b"content-length", b"+1"),
    "two lengths in one": (b"content-length", b"1, 1"),
    "a length too long": (b"content-length", b"1" * 21),
}


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
def test_a_header_that_cannot_be_sent_is_refused(header: tuple[bytes, bytes]) -> None:
    """Each time, and the error does not contain its value."""
    for _ in range(2):
        with pytest.raises(h11.LocalProtocolError) as caught:
            SHARED.response(200, [(b"vary", b"a"), header])
        assert "set-cookie" not in str(caught.value)


def test_a_pseudo_header_of_an_application_is_refused() -> None:
    """The status is the server's to write."""
    with pytest.raises(ValueError, match="Pseudo"):
        SHARED.response(200, [(b":status", b"404")])


def test_the_bodys_length_is_read_from_its_header() -> None:
    """The same length may be given twice, but not two different ones."""
    for _ in range(2):
        assert SHARED.response(200, [(b"Content-Length", b"5")])[1] == 5
        assert SHARED.response(200, [(b"content-length", b"5")] * 2)[1] == 5
        with pytest.raises(h11.LocalProtocolError):
            SHARED.response(200, [(b"content-length", b"5"), (b"content-length", b"6")])


@pytest.mark.parametrize("status", [100, 103, 199, 204, 205])
def test_a_status_without_a_body_has_no_length(status: int) -> None:
    """RFC 9110, 8.6. Another status may have one, as 304 does."""
    block, length = SHARED.response(status, [(b"Content-Length", b"5"), (b"vary", b"a")])
    assert (block, length) == SHARED.response(status, [(b"vary", b"a")])
    assert SHARED.response(304, [(b"content-length", b"5")])[1] == 5


def test_only_headers_without_secrets_are_cached() -> None:
    """And none that is long, or no key."""
    writer = HeaderWriter(lambda protocol: OWN)
    secret = [b"set-cookie", b"Authorization", b"x-request-id", b"location", b"etag", b"cookie"]
    writer.response(200, [(name, b"secret") for name in secret])
    writer.response(
        200, [(b"vary", b"v" * MAX_CACHED_LINE), (b"content-type", b"t" * MAX_CACHED_LINE)]
    )
    for form in FORMS[1:3]:
        writer.response(200, [form(b"vary", b"a")])
    assert not writer._cache
    writer.response(200, [(b"Vary", b"a")])
    assert list(writer._cache) == [(b"Vary", b"a")]


def test_what_the_writer_remembers_is_bounded() -> None:
    """However many values an application makes up."""
    writer = HeaderWriter(lambda protocol: OWN)
    name = min(COMMON)
    for number in range(2 * MAX_CACHED_LINES + 1):
        writer.response(200, [(name, b"%d" % number)])
        assert len(writer._cache) <= MAX_CACHED_LINES
    assert len(writer._cache) == 1


# Reading


def fresh(fields: Iterable[tuple[bytes, bytes]]) -> Request | int:
    """The request that these make without anything remembered, or the error's code."""
    try:
        return parse_request(
            [((name, value), header_kind(name, value), 0) for name, value in fields]
        )
    except StreamFailure as failure:
        return failure.code


def read(reader: HeaderReader, block: bytes) -> Request | int:
    try:
        return reader.request(block)
    except StreamFailure as failure:
        return failure.code


# Few names and values, all of the same size: tables that look alike are common.
FIELDS = [(name, value) for name in (b"a", b"b") for value in (b"1", b"2", b"3")]
USUAL = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/"),
]
OTHERS = [
    *[(b":path", b"/?q"), (b"host", b"localhost"), (b"cookie", b"c=d"), (b"cookie", b"e=f")],
    *[(b"content-length", b"5"), (b"Upper", b"case"), (b"x-long", bytes(range(97, 123)) * 50)],
]
blocks = st.tuples(
    st.lists(st.sampled_from(FIELDS) | st.sampled_from(OTHERS), max_size=3),
    st.sampled_from(["indexed", "indexed", "indexed", "sensitive"]),
    st.booleans(),
)
repeats = st.integers(0, 20)
TABLE_SIZES = [0, 34, 68, 100, 1000, DEFAULT_TABLE_SIZE]
resizes = st.sampled_from(TABLE_SIZES).map(lambda size: {"size": size})


@settings(max_examples=300)
@given(st.lists(blocks | repeats | resizes, min_size=1, max_size=20))
def test_a_request_is_what_hpack_decodes_whatever_was_remembered(steps: list[Any]) -> None:
    """Blocks are repeated byte by byte, where their references mean something else by then."""
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    reader = HeaderReader(MAX_SIZE)
    sent: list[bytes] = []
    for step in steps:
        if isinstance(step, dict):
            encoder.header_table_size = step["size"]
            continue
        if isinstance(step, int):
            if not sent:
                continue
            block = sent[step % len(sent)]
        else:
            fields, indexing, huffman = step
            sensitive = indexing == "sensitive"
            headers = [(*field, sensitive) for field in [*USUAL, *fields]]
            block = encoder.encode(headers, huffman=huffman)
            sent.append(block)
        try:
            expected = fresh(decoder.decode(block, raw=True))
        except HPACKError:
            with pytest.raises(ConnectionFailure):
                reader.request(block)
            return
        assert read(reader, block) == expected


def literal(name: bytes, value: bytes) -> bytes:
    """A header that goes into the table."""
    return b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value


PREFIX = header_block(USUAL)
NEWEST, OLDER = b"\xbe", b"\xbf"  # indices 62 and 63
EMPTY_TABLE = b"\x20\x3f\xe1\x1f"  # of no size, and of 4,096 bytes again


@pytest.mark.parametrize(
    ("before", "block", "between", "values"),
    [
        pytest.param(
            literal(b"a", b"1"), NEWEST, EMPTY_TABLE + PREFIX + literal(b"a", b"2"), b"12",
            id="emptied",
        ),
        pytest.param(
            b"\x3f\x03" + PREFIX + literal(b"a", b"1"), NEWEST, PREFIX + literal(b"a", b"2"), b"12",
            id="evicted",
        ),
        pytest.param(
            literal(b"a", b"1") + literal(b"a", b"2"),
            NEWEST + OLDER,
            EMPTY_TABLE + PREFIX + literal(b"a", b"2") + literal(b"a", b"1"),
            b"2112",
            id="in-another-order",
        ),
    ],
)  # fmt: skip
def test_a_table_of_the_same_length_and_size_may_be_another(
    before: bytes, block: bytes, between: bytes, values: bytes
) -> None:
    """As many entries of the same size: the same block makes another request."""
    reader = HeaderReader(MAX_SIZE)
    block = PREFIX + block

    def seen() -> bytes:
        return b"".join(value for name, value in reader.request(block).headers if name == b"a")

    reader.request(before if before.startswith(b"\x3f") else PREFIX + before)
    half = len(values) // 2
    assert seen() == seen() == values[:half]
    reader.request(between)
    assert seen() == seen() == values[half:]


@pytest.mark.parametrize("what", ["skip", "check_trailers"])
def test_other_blocks_change_the_table_as_well(what: str) -> None:
    """Trailers, and the headers of streams that are over."""
    reader = HeaderReader(MAX_SIZE)
    reader.request(PREFIX + literal(b"a", b"1"))
    block = PREFIX + NEWEST
    assert reader.request(block).headers[1:] == [(b"a", b"1")]
    getattr(reader, what)(literal(b"a", b"2"))
    assert reader.request(block).headers[1:] == [(b"a", b"2")]


def test_a_block_that_is_malformed_changes_the_table_as_well() -> None:
    """It is no request, but decoded, and what is behind it refers to it."""
    reader = HeaderReader(MAX_SIZE)
    reader.request(PREFIX + literal(b"a", b"1"))
    block = PREFIX + NEWEST
    assert reader.request(block).headers[1:] == [(b"a", b"1")]
    with pytest.raises(StreamFailure):
        reader.request(literal(b"a", b"2"))
    assert reader.request(block).headers[1:] == [(b"a", b"2")]


def test_what_the_reader_remembers_is_bounded() -> None:
    """In blocks, and in bytes of each; and nothing that would be another request the next time."""
    reader = HeaderReader(MAX_SIZE)
    for number in range(2 * MAX_CACHED_BLOCKS):
        reader.request(PREFIX + encode(b"x", b"%d" % number))
    assert len(reader._cache) == MAX_CACHED_BLOCKS
    reader.request(PREFIX + literal(b"a", b"1"))
    assert not reader._cache
    reader.request(PREFIX + encode(b"x", b"a" * MAX_CACHED_BLOCK))
    assert not reader._cache


async def test_an_application_cannot_change_what_is_remembered(autojump_clock: MockClock) -> None:
    """The next request has headers of its own."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append([*scope["headers"]])
            scope["headers"].clear()
            await respond(send, b"")

    async with memory_server(app) as server:
        client = Http2(await server.connect())
        await client.start()
        for _ in range(4):
            assert (await client.get())[0] == "200"
    assert seen == [[(b"host", b"localhost")]] * 4


MALFORMED = {
    "index 0": b"\x80",
    "index behind the table": b"\xbe",
    "index far behind the table": b"\xff\xff\xff\xff\x0f",
    "name behind the table": b"\x7e\x01a",
    "index cut off": b"\xff",
    "index too long": b"\xff" + b"\x80" * 5 + b"\x00",
    "length cut off": b"\x00",
    "long length cut off": b"\x00\x7f",
    "name cut off": b"\x00\x02a",
    "no value": b"\x00\x01a",
    "value cut off": b"\x00\x01a\x02b",
    "length too long": b"\x00\x7f" + b"\xff" * 5 + b"\x00",
    "length of too many bytes": b"\x00\x7f" + b"\x80" * 5 + b"\x00" + b"n" * 127 + b"\x01v",
    "table too large": b"\x3f\xe2\x1f",
    "table size behind a header": b"\x82\x20",
    "end of string in Huffman's code": b"\x00\x01a\x84\xff\xff\xff\xff",
    "padding of zeros in Huffman's code": b"\x00\x01a\x81\x00",
    "more than a byte of padding": b"\x00\x01a\x82\x1f\xff",
}

CALLS = ["request", "check_trailers", "skip"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("block", MALFORMED.values(), ids=MALFORMED)
def test_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes, call: str) -> None:
    """Whatever it was for, and also where hpack does not accept it."""
    for start in (b"", PREFIX):
        with pytest.raises(HPACKError):
            hpack.Decoder().decode(start + block, raw=True)
        with pytest.raises(ConnectionFailure) as caught:
            getattr(HeaderReader(MAX_SIZE), call)(start + block)
        assert caught.value.code == COMPRESSION_ERROR


def test_an_index_means_nothing_any_more_when_the_table_is_emptied() -> None:
    """Even if the block was a request before."""
    reader = HeaderReader(MAX_SIZE)
    reader.request(PREFIX + literal(b"a", b"1"))
    reader.request(PREFIX + NEWEST)
    reader.skip(b"\x20")
    with pytest.raises(ConnectionFailure) as caught:
        reader.request(PREFIX + NEWEST)
    assert caught.value.code == COMPRESSION_ERROR


def test_index_0_means_nothing_however_large_the_table_is() -> None:
    """There are more entries than in the static table."""
    reader = HeaderReader(MAX_SIZE)
    reader.skip(b"".join(literal(b"a", b"%d" % number) for number in range(100)))
    reader.skip(b"\xff\x22")  # the oldest
    for block in (b"\x80", b"\xff\x23"):
        with pytest.raises(ConnectionFailure):
            reader.skip(block)


@settings(max_examples=500)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(CALLS),
            st.binary(max_size=40)
            | st.lists(
                st.sampled_from(
                    [
                        *[
                            PREFIX,
                            NEWEST,
                            OLDER,
                            EMPTY_TABLE,
                            literal(b"a", b"1"),
                            b"\x20",
                            b"\x82",
                        ],
                        *[encode(b"x", b"y"), b"\x7f", b"\xff", b"\x80", b"\x3f", b"\x00"],
                        *[b"\x00\x83", b"\x40\x01a\x82", hpack.Encoder().encode(USUAL)],
                        *[b"\x3f\x45", literal(b"b", b"c" * 60)],
                    ]
                )
                | st.binary(min_size=1, max_size=2),
                max_size=8,
            ).map(b"".join),
        ),
        max_size=6,
    ),
    st.sampled_from([100, 300, MAX_SIZE]),
)
def test_any_bytes_are_what_hpack_decodes_or_end_the_connection(
    sent: list[tuple[str, bytes]], max_size: int
) -> None:
    """No errors escape but the two that name the stream or the connection."""
    decoder, reader = hpack.Decoder(max_size), HeaderReader(max_size)
    for call, block in sent:
        try:
            fields = [(name, value) for name, value in decoder.decode(block, raw=True)]
        except HPACKError as error:
            with pytest.raises(ConnectionFailure) as caught:
                getattr(reader, call)(block)
            too_large = isinstance(error, OversizedHeaderListError)
            assert caught.value.code == (ENHANCE_YOUR_CALM if too_large else COMPRESSION_ERROR)
            return
        if call == "request":
            assert read(reader, block) == fresh(fields)
        elif call == "skip":
            reader.skip(block)
        else:
            with suppress(StreamFailure):
                reader.check_trailers(block)


@pytest.mark.parametrize("call", CALLS)
def test_a_header_list_has_a_limited_size(call: str) -> None:
    """As RFC 9113, 6.5.2, counts it: one of exactly that size is decoded."""
    size = sum(len(name) + len(value) + ENTRY_SIZE for name, value in USUAL) + 1 + ENTRY_SIZE
    block = PREFIX + encode(b"x", b"v" * (1000 - size))
    for max_size in (1000, 999):
        reader = HeaderReader(max_size)
        if max_size < 1000:
            with pytest.raises(ConnectionFailure) as caught:
                getattr(reader, call)(block)
            assert caught.value.code == ENHANCE_YOUR_CALM
        elif call == "check_trailers":
            with pytest.raises(StreamFailure):
                reader.check_trailers(block)
        else:
            getattr(reader, call)(block)


def test_a_large_header_that_is_repeated_by_its_index_counts_each_time() -> None:
    """16 KiB of references would be 65 MB."""
    reader = HeaderReader(MAX_SIZE)
    value = b"v" * 4000
    reader.skip(b"\x40\x01x\x7f\xa1\x1e" + value)
    reader.skip(NEWEST * 16)
    with pytest.raises(ConnectionFailure) as caught:
        reader.skip(NEWEST * 2**14)
    assert caught.value.code == ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    "trailer", [(b":path", b"/"), (b"Upper", b"a"), (b"connection", b"close"), (b"x", b" a")]
)
def test_trailers_that_are_malformed_reset_the_stream(trailer: tuple[bytes, bytes]) -> None:
    """Others are accepted, with the table's memory of what they mean, too."""
    reader = HeaderReader(MAX_SIZE)
    with pytest.raises(StreamFailure) as caught:
        reader.check_trailers(literal(*trailer))
    assert caught.value.code == PROTOCOL_ERROR
    with pytest.raises(StreamFailure):
        reader.check_trailers(NEWEST)
    reader.check_trailers(literal(b"x", b"y"))
    reader.check_trailers(NEWEST)


def test_a_host_that_is_repeated_is_malformed() -> None:
    """Even if it is the same: h2 refuses it, and so does HTTP/1.1 (RFC 9112, 3.2)."""
    reader = HeaderReader(MAX_SIZE)
    with pytest.raises(StreamFailure):
        reader.request(PREFIX + encode(b"host", b"localhost") * 2)
