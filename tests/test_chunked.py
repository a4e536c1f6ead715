"""Chunked bodies side by side with h11: refused, or exactly what h11 makes of them."""

from __future__ import annotations

import time
from itertools import pairwise

import h11
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st

from trio_httptrack._connection.chunked import Chunked
from trio_httptrack._connection.http1_rules import Refused

HEAD = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
MAX_TRAILERS = 2**14

Read = tuple[bytes, bytes | None]
"""The body, and what came behind it; None if it is not complete."""


def ours(pieces: list[bytes]) -> Read | None:
    """None if it is refused."""
    chunks = Chunked(MAX_TRAILERS)
    body = b""
    try:
        for number, piece in enumerate(pieces):
            body += b"".join(chunks.feed(piece))
            if chunks.complete:
                return body, chunks.rest + b"".join(pieces[number + 1 :])
    except Refused:
        return None
    return body, None


def h11s(data: bytes) -> Read | None:
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(HEAD + data)
    body = b""
    try:
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return body, reader.trailing_data[0]
            elif event is h11.NEED_DATA:
                return body, None
    except h11.RemoteProtocolError:
        return None


chunks = st.builds(
    lambda data, extension: b"%x%b\r\n%b\r\n" % (len(data), extension, data),
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"", b";a=b", b"; a", b" ", b"\t ", b" ;a"]),
)
trailers = st.sampled_from(
    [b"", b"a: b\r\n", b"a:\r\nB:\xff \r\n", b" a: b\r\n", b"a : b\r\n", b"a\r\n"]
)
bodies = st.builds(
    lambda chunks, zero, trailers, behind: b"".join(chunks) + zero + trailers + b"\r\n" + behind,
    st.lists(chunks, max_size=4),
    st.sampled_from([b"0\r\n", b"00\r\n", b"0;x\r\n", b"0 \r\n"]),
    trailers,
    st.binary(max_size=10),
)
EDITS = [
    b"",
    b"\r",
    b"\n",
    b"\r\n",
    b"0",
    b"f",
    b"g",
    b" ",
    b"\0",
    b";",
    b"-1",
    b"0x",
    b":",
    b"\xff",
]


@st.composite
def edited(draw: st.DrawFn) -> bytes:
    """A chunked body with a few bytes put, replaced or taken away."""
    data: bytes = draw(bodies)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(EDITS)) + data[at + draw(st.integers(0, 2)) :]
    return data


@given(edited(), st.lists(st.integers(0, 300), max_size=5))
@example(b"3\r\noneXX0\r\n\r\n", [])
@example(b"3\r\none\n0\r\n\r\n", [])
@example(b"3\r\none\r\n0\r\n\r\nrest", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
def test_a_body_is_refused_or_what_h11_makes_of_it(data: bytes, cuts: list[int]) -> None:
    """In any pieces: the same bytes, the same end, and the same bytes behind it."""
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    found = ours([data[start:end] for start, end in pairwise(places)])
    assert found == ours([data])
    event("refused" if found is None else "incomplete" if found[1] is None else "complete")
    if found is not None:
        expected = h11s(data)
        if found[1] is not None or expected is not None:
            assert found == expected


@given(bodies.filter(lambda data: b" ;" not in data and b" a:" not in data))
def test_an_ordinary_body_is_read(data: bytes) -> None:
    """So that the comparison is one."""
    assert (ours([data]) is None) == (h11s(data) is None)


@pytest.mark.parametrize(
    "data",
    [
        b"-1\r\n",
        b"+1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1_0\r\n",
        b" 1\r\nx\r\n",
        b"1\nx\r\n",
        b"1\r\nx\n0\r\n\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx0\r\n\r\n",
        b"\r\n",
        b"g\r\n",
        b"1" * 17 + b"\r\n",
        b"1;\0\r\nx\r\n",
        b"1;\r;\r\nx\r\n",
        b"1 ;a\r\nx\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\na\r\n\r\n",
        b"0\r\na: \0\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\n\n",
        b"1;" + b"x" * 5000,
        b"0\r\n" + b"a: b\r\n" * 3000,
        b"0\r\na: " + b"b" * 20_000,
    ],
)
def test_what_is_not_plainly_right_is_refused(data: bytes) -> None:
    """Whole, and a byte at a time."""
    assert ours([data]) is None
    assert ours([bytes([byte]) for byte in data]) is None


def test_a_trailer_of_spaces_takes_no_time() -> None:
    """h11 needs many seconds for it."""
    began = time.process_time()
    assert ours([b"0\r\na:" + b" " * (MAX_TRAILERS - 10) + b"\0\r\n\r\n"]) is None
    assert time.process_time() - began < 0.1
