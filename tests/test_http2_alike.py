"""HTTP/2 beside h2: arbitrary frames mean the same to both, or one of these differences is why.

h2 closes the connection, where RFC 9113 lets a stream be reset, or requires it. Our other streams
go on:

* A malformed request, or malformed trailers, such as those without END_STREAM (8.1.1).
* A body whose length is not its ``content-length`` (8.1.1). h2 does not look where headers end the
  stream.
* More streams than there may be: REFUSED_STREAM (5.1.2).
* DATA beyond a stream's window (6.9.1), and a stream's window that grows by nothing (6.9).

h2 goes on, or resets a stream, where we close the connection:

* The first frame is not SETTINGS (3.4).
* RST_STREAM of a stream that was never opened (6.4).
* DATA or HEADERS of a stream that the client has ended before or has reset, and DATA of one that
  it has passed over (5.1). Where we have reset the stream while the client was sending, such frames
  are ignored; h2 resets it again.
* A stream that depends on itself, and a CONTINUATION that continues nothing (6.10), wherever they
  come.
* A value of a setting that is not allowed, with another one behind it in the same frame (6.5.3).
* Padding that leaves less than the priority that HEADERS have (6.2).

We close it earlier: h2 waits for the end of a frame that is too long, and for the end of a header
block whose first frame is a PUSH_PROMISE or cannot be of a client's stream.

The code is a more precise one: COMPRESSION_ERROR for a block that cannot be decoded (4.3),
FRAME_SIZE_ERROR for an acknowledgement of settings with a payload (6.5), ENHANCE_YOUR_CALM for too
many CONTINUATION frames. Where a frame is wrong in two ways, one of the two has to be first.

We refuse requests that h2 lets pass: their names are tokens, ``te`` is ``trailers`` in lower case,
``:authority`` or ``host`` is a host, ``:scheme`` is a scheme, the path begins with a slash and has
printable ASCII only, so have headers that are decoded, ``content-length`` has at most 20 digits,
and CONNECT is for WebSockets alone. (Those have tests of their own, and are not compared.)

We accept what h2 is wrong to refuse: the reserved bit of a window's increment is ignored (6.9), as
are ALTSVC frames, whatever is in them (RFC 7838, 4), and an increment of 0 for a stream that is
over. Padding may be all that HEADERS have (6.2). The ``content-length`` of trailers means nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingReceived,
    RequestReceived,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import FlowControlError, InvalidBodyLengthError, ProtocolError
from h2.settings import SettingCodes, Settings
from h2.utilities import HeaderValidationFlags, validate_headers
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple
from hpack.exceptions import HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack._connection.http2_frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEADER,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    NUMBER,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTING,
    SETTINGS,
    WINDOW_UPDATE,
    settings_frame,
)
from trio_httptrack.testing import memory_server

ALTSVC = 0xA
UNKNOWN = 0xB

Headers = list[tuple[bytes, bytes]]
Request = tuple[str, str, bytes, bytes, tuple[tuple[bytes, bytes], ...]]
"""Method, path, raw path, query and headers, as an application sees them."""


class Frame(NamedTuple):
    """A frame, whose length may be a lie."""

    kind: int
    flags: int = 0
    stream_id: int = 0
    payload: bytes = b""
    excess: int = 0

    def __bytes__(self) -> bytes:
        length = max(len(self.payload) + self.excess, 0)
        head = HEADER.pack(length >> 16, length & 0xFFFF, self.kind, self.flags, self.stream_id)
        return head + self.payload


def split(data: bytes) -> Iterator[tuple[Frame, int]]:
    """The frames that have come whole, or are known to be too long, and where each ends."""
    start = 0
    while len(data) - start >= HEADER.size:
        high, low, kind, flags, stream_id = HEADER.unpack_from(data, start)
        length = high << 16 | low
        begin, start = start + HEADER.size, start + HEADER.size + length
        if length > DEFAULT_FRAME_SIZE:
            yield Frame(kind, flags, stream_id & MAX_STREAM_ID, b"", length), begin
            return
        if start > len(data):
            return
        yield Frame(kind, flags, stream_id & MAX_STREAM_ID, data[begin:start]), start


# What h2 makes of frames


@dataclass
class Stream:
    """A request as far as it has come."""

    request: Request
    length: int | None
    body: bytes = b""
    complete: bool = False
    open: bool = True

    # As it was before the last piece that came for it: so much was delivered.
    settled_body: bytes = b""
    settled_complete: bool = False


@dataclass
class Outcome:
    """What a server has made of a connection."""

    code: int | None = None
    """Of its GOAWAY; None if the connection goes on."""

    resets: dict[int, int] = field(default_factory=dict)
    pings: list[bytes] = field(default_factory=list)
    settings: int = 0
    """How many of them were acknowledged."""


CLOSED = -1  # instead of a code: without a GOAWAY, because the client has sent one


class Failure(Exception):
    """The connection ends."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Stop(Exception):
    """What follows cannot be compared."""

    def __init__(self, *, before: bool = False) -> None:
        self.before = before
        """Whether the last frame cannot either."""


# How h2 says that a header section is malformed, even if it does not validate it.
MALFORMED = re.compile(
    "Invalid content-length|Conflicting content-length|Cannot set END_STREAM on informational"
    "|Invalid input StreamInputs.RECV_INFORMATIONAL_HEADERS"
)


class Reference:
    """h2 as a server, and what is to be expected of ours."""

    def __init__(self, max_streams: int) -> None:
        # We validate headers, by h2's function, and count streams: h2 would not go on after that.
        config = H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
        self.h2 = H2Connection(config)
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: 2**16,
            },
        )
        self.h2.initiate_connection()
        self.h2.receive_data(PREFACE)
        self.streams: dict[int, Stream] = {}
        self.outcome = Outcome()
        self._max_streams = max_streams
        self._settled = False  # the client's settings have come
        self._block: list[Frame] = []  # the frames of a header block that goes on
        self._highest = 0
        self._left: set[int] = set()  # streams that we have reset while the client was sending

    def read(self, pieces: Iterable[bytes]) -> list[bytes]:
        """Return the pieces that can be compared."""
        compared: list[bytes] = []
        unread = b""
        for piece in pieces:
            for stream in self.streams.values():
                if stream.open:
                    stream.settled_body = stream.body
                    stream.settled_complete = stream.complete
            compared.append(piece)
            unread += piece
            start = 0
            for frame, end in split(unread):
                try:
                    self._read(frame)
                except Failure as failure:
                    self.outcome.code = failure.code
                    for stream in self.streams.values():
                        stream.open = False
                    return compared  # both ignore whatever follows
                except Stop as stop:
                    behind = len(unread) - (start if stop.before else end)
                    compared[-1] = piece[: max(len(piece) - behind, 0)]
                    return compared
                start = end
            unread = unread[start:]
        return compared

    def _read(self, frame: Frame) -> None:
        if frame.excess:
            raise Failure(ErrorCodes.FRAME_SIZE_ERROR)
        if not self._settled and frame.kind != SETTINGS:
            raise Failure(ErrorCodes.PROTOCOL_ERROR)
        if frame.kind == CONTINUATION and not self._block:
            raise Failure(ErrorCodes.PROTOCOL_ERROR)
        if self._block and frame.kind != CONTINUATION:
            self._fail(frame, ErrorCodes.PROTOCOL_ERROR)
        READERS.get(frame.kind, Reference._feed)(self, frame)
        live = sum(stream.open for stream in self.streams.values())
        assert self.h2.open_inbound_streams == live

    def _feed(self, frame: Frame) -> list[Event]:
        try:
            events = self.h2.receive_data(bytes(frame))
        except ProtocolError as error:
            raise Failure(error.error_code) from error
        for event in events:
            self._note(event)
        return events

    def _fail(self, frame: Frame, code: int) -> None:
        """h2 ends the connection, too, but perhaps with another code."""
        with pytest.raises(Failure):
            self._feed(frame)
        raise Failure(code)

    def _note(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            stream = self.streams[event.stream_id]
            stream.body += event.data or b""
            stream.complete = event.stream_ended is not None
            if event.flow_controlled_length:
                self.h2.increment_flow_control_window(event.flow_controlled_length)
        elif isinstance(event, StreamReset):
            if not event.remote_reset:
                self._resets(event.stream_id, event.error_code)
            elif stream_or_none := self._live(event.stream_id):
                stream_or_none.open = False
        elif isinstance(event, PingReceived):
            self.outcome.pings.append(event.ping_data or b"")
        elif isinstance(event, ConnectionTerminated):
            raise Failure(CLOSED)

    def _live(self, stream_id: int) -> Stream | None:
        stream = self.streams.get(stream_id)
        return stream if stream is not None and stream.open else None

    def _resets(self, stream_id: int, code: int) -> None:
        """Note that the server resets a stream."""
        stream = self._live(stream_id)
        if stream is not None:
            stream.open = False
        if stream is None or not stream.complete:
            self._left.add(stream_id)
        self.outcome.resets.setdefault(stream_id, code)

    def _reset(self, stream_id: int, code: int = ErrorCodes.PROTOCOL_ERROR) -> None:
        """Reset a stream."""
        self.h2.reset_stream(stream_id, code)
        self._resets(stream_id, code)

    # Frames that are something else for ours

    def _read_settings(self, frame: Frame) -> None:
        if frame.stream_id:
            self._feed(frame)
        elif frame.flags & ACK and frame.payload:
            self._fail(frame, ErrorCodes.FRAME_SIZE_ERROR)
        elif frame.flags & ACK or len(frame.payload) % SETTING.size:
            self._feed(frame)
        else:
            self._settled = True
            values = list(SETTING.iter_unpack(frame.payload))
            if len(dict(values)) == len(values):
                self._feed(frame)
            else:  # of which h2 would see the last only
                self._validate(values)
                for each in values:
                    self._feed(frame._replace(payload=SETTING.pack(*each)))
            self.outcome.settings += 1

    def _validate(self, values: Iterable[tuple[int, int]]) -> None:
        try:
            for setting, value in values:
                self.h2.remote_settings.validate_received_setting(setting, value)
        except ProtocolError as error:
            raise Failure(error.error_code) from error

    def _read_window(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if len(frame.payload) == NUMBER.size:
            increment = NUMBER.unpack(frame.payload)[0] & MAX_WINDOW
            if not increment and stream_id % 2 and stream_id <= self._highest:
                if self._live(stream_id):
                    self._reset(stream_id)
                return
            frame = frame._replace(payload=NUMBER.pack(increment))
        self._feed(frame)

    def _read_reset(self, frame: Frame) -> None:
        if frame.stream_id > self._highest or not frame.stream_id % 2:
            raise Failure(ErrorCodes.PROTOCOL_ERROR)
        self._feed(frame)
        self._left.discard(frame.stream_id)

    def _read_alternative(self, frame: Frame) -> None:
        self._feed(frame._replace(kind=UNKNOWN))

    def _read_push(self, frame: Frame) -> None:
        self._fail(frame._replace(flags=frame.flags | END_HEADERS), ErrorCodes.PROTOCOL_ERROR)

    def _read_data(self, frame: Frame) -> None:
        stream_id = frame.stream_id
        if not stream_id and frame.flags & PADDED and not frame.payload:
            self._fail(frame, ErrorCodes.FRAME_SIZE_ERROR)
        stream = self._live(stream_id)
        try:
            self._feed(frame)
        except Failure as failure:
            if stream is not None and isinstance(failure.__cause__, InvalidBodyLengthError):
                self._resets(stream_id, ErrorCodes.PROTOCOL_ERROR)
            elif stream is not None and isinstance(failure.__cause__, FlowControlError):
                self._resets(stream_id, ErrorCodes.FLOW_CONTROL_ERROR)
            else:
                raise
            raise Stop from None
        if stream is None and stream_id not in self._left:
            raise Failure(ErrorCodes.STREAM_CLOSED)

    def _read_headers(self, frame: Frame) -> None:
        _, flags, stream_id, payload, _ = frame
        whole = frame._replace(flags=flags | END_HEADERS)
        if not stream_id % 2:
            self._fail(whole, ErrorCodes.PROTOCOL_ERROR)
        if flags & PADDED and payload:
            if payload[0] >= len(payload):
                self._fail(frame, ErrorCodes.PROTOCOL_ERROR)
            # hyperframe would not take padding that leaves nothing.
            payload = payload[1 : len(payload) - payload[0]]
            flags &= ~PADDED
        if flags & HAS_PRIORITY and not flags & PADDED:
            if len(payload) < 5:
                raise Failure(ErrorCodes.FRAME_SIZE_ERROR)
            if NUMBER.unpack_from(payload)[0] & MAX_STREAM_ID == stream_id:
                raise Failure(ErrorCodes.PROTOCOL_ERROR)
        first = frame._replace(flags=flags, payload=payload)
        if flags & END_HEADERS:
            self._read_block(first, first)
        else:
            self._feed(self._ending(first))
            self._block = [first]

    def _read_continuation(self, frame: Frame) -> None:
        first = self._block[0]
        if frame.stream_id == first.stream_id:
            self._block.append(frame)
            if len(self._block) > 64:
                self._fail(frame, ErrorCodes.ENHANCE_YOUR_CALM)
            if frame.flags & END_HEADERS:
                self._block = []
                self._read_block(frame, first)
                return
        self._feed(frame)

    def _ending(self, first: Frame) -> Frame:
        """Trailers that do not end the stream are given to h2 as if they did."""
        stream = self._live(first.stream_id)
        if stream is None or stream.complete or first.kind != HEADERS:
            return first
        return first._replace(flags=first.flags | END_STREAM)

    def _read_block(self, last: Frame, first: Frame) -> None:
        """A header block is complete."""
        stream_id, end = first.stream_id, bool(first.flags & END_STREAM)
        new, stream = stream_id > self._highest, self._live(first.stream_id)
        known = stream_id in self._left
        try:
            events = self._feed(self._ending(last))
        except Failure as failure:
            error = failure.__cause__
            assert isinstance(error, ProtocolError)
            if failure.code == ErrorCodes.PROTOCOL_ERROR and isinstance(
                error.__cause__, HPACKError
            ):
                raise Failure(ErrorCodes.COMPRESSION_ERROR) from None
            if new and MALFORMED.match(str(error)):
                self._resets(stream_id, ErrorCodes.PROTOCOL_ERROR)
                raise Stop from None
            if stream is not None and MALFORMED.match(str(error)):
                raise Stop(before=True) from None
            raise
        for event in events:
            if isinstance(event, RequestReceived):
                self._highest = stream_id
                self._open(stream_id, event.headers or [], end=end)
            elif isinstance(event, TrailersReceived):
                assert stream is not None
                headers = event.headers or []
                wrong = stream.length not in (None, len(stream.body))
                if not end or wrong or is_malformed(headers, trailers=True):
                    self._reset(stream_id)
                else:
                    stream.complete = True
        if not (new or stream is not None or known):
            raise Failure(ErrorCodes.STREAM_CLOSED)

    def _open(self, stream_id: int, headers: Iterable[Any], *, end: bool) -> None:
        fields = [(bytes(name), bytes(value)) for name, value in headers]
        if is_malformed(fields):
            self._reset(stream_id)
            return
        if (b":method", b"CONNECT") in fields:
            raise Stop(before=True)
        if sum(stream.open for stream in self.streams.values()) >= self._max_streams:
            self._reset(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        length = next((int(value) for name, value in fields if name == b"content-length"), None)
        if end and length:
            self._reset(stream_id)
            return
        self.streams[stream_id] = Stream(request_of(fields), length, complete=end)


READERS: dict[int, Callable[[Reference, Frame], object]] = {
    SETTINGS: Reference._read_settings,
    WINDOW_UPDATE: Reference._read_window,
    RST_STREAM: Reference._read_reset,
    ALTSVC: Reference._read_alternative,
    PUSH_PROMISE: Reference._read_push,
    DATA: Reference._read_data,
    HEADERS: Reference._read_headers,
    CONTINUATION: Reference._read_continuation,
}

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
PATH = re.compile(rb"/[!\"$-~]*")
NAMED_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*(?::[0-9]*)?")
IPV6_HOST = re.compile(rb"\[([0-9A-Fa-f:.]+)\](?::[0-9]*)?")
DECODED = re.compile(rb"host|connection|upgrade|http2-settings|sec-websocket-.*", re.DOTALL)


def is_malformed(headers: Iterable[Any], *, trailers: bool = False) -> bool:
    """Whether h2 does not accept a header section, or we do not, for one of the reasons above."""
    fields = [(bytes(name), bytes(value)) for name, value in headers]
    flags = HeaderValidationFlags(
        is_client=False, is_trailer=trailers, is_response_header=False, is_push_promise=False
    )
    try:
        list(validate_headers(fields, flags))
    except ProtocolError:
        return True
    found = dict(fields)
    if any(
        (name[:1] != b":" and not TOKEN.fullmatch(name))
        or (name == b"te" and value != b"trailers")
        or (DECODED.fullmatch(name) and not value.isascii())
        or (name == b"content-length" and len(value) > 20)
        for name, value in fields
    ):
        return True
    if trailers:
        return False
    method, path = found[b":method"].upper(), found.get(b":path", b"")
    return (
        not TOKEN.fullmatch(method)
        or (method == b"CONNECT" and b":protocol" not in found)
        or not SCHEME.fullmatch(found[b":scheme"])
        or not (PATH.fullmatch(path) or (path == b"*" and method == b"OPTIONS"))
        or not is_host(found.get(b":authority", found.get(b"host", b"")))
    )


def is_host(value: bytes) -> bool:
    if match := IPV6_HOST.fullmatch(value):
        try:
            IPv6Address(match[1].decode())
        except ValueError:
            return False
        return True
    return NAMED_HOST.fullmatch(value) is not None


def request_of(fields: Headers) -> Request:
    """A request as an application sees it."""
    found = dict(fields)
    headers = [(b"host", found.get(b":authority", found.get(b"host", b"")))]
    cookies = [value for name, value in fields if name == b"cookie"]
    seen = {b"host", b"cookie"}
    for name, value in fields:
        if name[:1] != b":" and name not in seen:
            headers.append((name, value))
        if name == b"content-length":
            seen.add(name)
    if cookies:
        headers.append((b"cookie", b"; ".join(cookies)))
    path, _, query = found[b":path"].partition(b"?")
    decoded = unquote_to_bytes(path).decode("utf-8", "replace")
    return found[b":method"].decode().upper(), decoded, path, query, tuple(headers)


# What ours makes of them


@dataclass
class Record:
    """What an application has received of a request."""

    request: Request
    body: bytes = b""
    complete: bool = False
    disconnected: bool = False


async def serve(
    pieces: list[bytes], max_streams: int, *, eager: bool
) -> tuple[Outcome, list[Record]]:
    """Send these; the application reads what comes at once, or only after all of it."""
    records: list[Record] = []
    all_sent = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        assert scope["type"] == "http"
        request = (
            scope["method"],
            scope["path"],
            scope["raw_path"],
            scope["query_string"],
            tuple(scope["headers"]),
        )
        record = Record(request)
        records.append(record)
        if not eager:
            await all_sent.wait()
        while (event := await receive())["type"] == "http.request":
            assert not record.complete
            record.body += event["body"]
            record.complete = not event["more_body"]
        assert event == {"type": "http.disconnect"}
        record.disconnected = True

    received = bytearray()

    async def read() -> None:
        while data := await client.receive_some():
            received.extend(data)

    async with memory_server(app, h2_max_concurrent_streams=max_streams) as server:
        client = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for piece in [PREFACE, *pieces]:
                if not client.conn.state.terminal:
                    await client.send_all(piece)
                    await wait_all_tasks_blocked()
            all_sent.set()
            await wait_all_tasks_blocked()
            outcome = outcome_of(bytes(received))
            if client.conn.state.terminal:
                assert outcome.code is None
                outcome.code = CLOSED
            else:
                await client.send_eof()
        await client.conn.wait_closed()
        assert trio.current_time() == 0
    assert all(record.disconnected for record in records)
    return outcome, records


def outcome_of(received: bytes) -> Outcome:
    outcome = Outcome()
    end = 0
    for frame, end in split(received):  # noqa: B007
        kind, flags, stream_id, payload, _ = frame
        assert outcome.code is None, "a frame behind GOAWAY"
        if kind == GOAWAY:
            outcome.code = NUMBER.unpack_from(payload, 4)[0]
        elif kind == RST_STREAM:
            assert stream_id not in outcome.resets
            outcome.resets[stream_id] = NUMBER.unpack(payload)[0]
        elif kind == PING:
            assert flags == ACK
            outcome.pings.append(payload)
        elif kind == SETTINGS:
            outcome.settings += flags & ACK
        else:
            assert kind == WINDOW_UPDATE
    assert end == len(received)
    return outcome


def was_delivered(stream: Stream, record: Record, *, eager: bool) -> bool:
    """Whether an application has received what has come."""
    if stream.request != record.request:
        return False
    if stream.open:
        return (record.body, record.complete) == (stream.body, stream.complete)
    # It may have been told before it could read what had come in the same piece.
    least = stream.settled_body if eager else b""
    return (
        stream.body.startswith(record.body)
        and record.body.startswith(least)
        and (not eager or record.complete >= stream.settled_complete)
        and (not record.complete or (stream.complete and record.body == stream.body))
    )


def compare(frames: bytes, cuts: list[int], max_streams: int, *, eager: bool) -> Outcome:
    """Hold the two side by side; return what was expected."""
    if len(frames) >= DEFAULT_FRAME_SIZE:
        eager = False  # or windows would open again, for which each has times of its own
    reference = Reference(max_streams)
    pieces = reference.read(cut(frames, cuts))
    expected = reference.outcome
    clock = MockClock(autojump_threshold=0)
    outcome, records = trio.run(partial(serve, pieces, max_streams, eager=eager), clock=clock)
    if expected.code == CLOSED:
        # What was still to be written is not, for the client has sent its last.
        assert outcome.code == CLOSED
        assert expected.resets.items() >= outcome.resets.items()
        assert expected.pings[: len(outcome.pings)] == outcome.pings
        assert expected.settings >= outcome.settings
    else:
        assert outcome == expected
    for stream in sorted(reference.streams.values(), key=lambda each: not each.open):
        fitting = [each for each in records if was_delivered(stream, each, eager=eager)]
        if fitting:
            records.remove(fitting[0])
        else:  # only one that never had its turn
            assert not stream.open
            assert len(reference.streams) > max_streams
    assert records == []
    return expected


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


# Frames, and what can be done to them

SIZES = [0, 1, 5, 12, 200]
FIELDS: list[Headers] = [
    [(b"accept", b"*/*")],
    [(b"content-length", b"5")],
    [(b"content-length", b"12"), (b"content-length", b"12")],
    [(b"content-length", b"0")],
    [(b"cookie", b"a=b"), (b"x", b"y"), (b"cookie", b"c=d; e=f")],
    [(b"host", b"localhost")],
    [(b"te", b"trailers")],
    [(b"x-bytes", b"\x80\xff")],
    [(b"x-long", b"long" * 100)],
]
ODD_FIELDS = (
    ":method=|:method=get|:method=CONNECT|:method=A B|:method=POST|:path=|:path=*|:path=a|:path=a/"
    "|:path=/\xff|:path=/%zz?%|:path=//b??c|:scheme=|:scheme=http|:status=103|:authority=[::1]:80"
    "|:authority=|:authority=[::g]|:authority=a b|:authority=a@b|:authority=a:b|:status=200"
    "|:protocol=websocket|content-length=|content-length=+5|content-length=-5|content-length=5,5"
    "|content-length=05|content-length=555555555555555555555|content-length=7|upgrade=a|keep-alive=5"
    "|upgrade=\xff|sec-websocket-key=\xff|proxy-connection=a|connection=close|Accept=a"
    "|te=gzip|te=Trailers|a b=a|a:b=a|a(b=a|\xff=a|a@=a|=a|:=|x=|x= a|x=a\t|x=a\rb|x=a\nb|x=a\x00b"
    "|x=a\x7f|host=elsewhere|cookie=a |cookie=b|transfer-encoding=chunked"
)
ODD_HEADERS: Headers = [
    (name.encode("latin-1"), value.encode("latin-1"))
    for name, value in (each.split("=", 1) for each in ODD_FIELDS.split("|"))
]
SETTING_VALUES = [0, 1, 2, 100, 4096, DEFAULT_WINDOW, DEFAULT_FRAME_SIZE, 2**24, MAX_WINDOW, 2**31]
INCREMENTS = [0, MAX_WINDOW - DEFAULT_WINDOW, MAX_WINDOW, 2**31 + 5, 2**31]

small = st.integers(0, 40)
numbers = st.integers(0, 2**32 - 1)
paddings = st.sampled_from([None, None, None, 0, 1, 100, 255])
ways = st.fixed_dictionaries(
    {
        "end": st.booleans(),
        "padding": paddings,
        "priority": st.sampled_from([None, None, None, 0, 9]),
        "places": st.lists(small, max_size=2),
        "huffman": st.booleans(),
        "indexed": st.booleans(),
    }
)
field_lists = st.lists(st.sampled_from(FIELDS), max_size=3, unique_by=lambda each: each[0][0])
changes = st.tuples(
    st.sampled_from(["add", "replace", "remove"]), small, st.sampled_from(ODD_HEADERS)
)


def steps(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


# What a client does
usual_steps = st.one_of(
    steps("request", st.sampled_from([2, 2, 2, 4]), field_lists, st.none(), ways),
    steps("data", small, st.sampled_from(SIZES), st.booleans(), paddings),
    steps("data", small, st.none(), st.booleans(), paddings),
    steps("trailers", small, st.none(), ways),
    steps("window", small, st.sampled_from([1, 1000])),
    steps("reset", small, st.sampled_from([0, 8])),
    steps("priority", small, st.sampled_from([0, 9])),
    steps("settings", st.dictionaries(st.sampled_from([1, 3, 4, 6, 99]), st.integers(0, 2**16))),
    steps(
        "frame",
        st.sampled_from(
            [
                Frame(SETTINGS, ACK),
                Frame(PING, 0, 0, b"12345678"),
                Frame(PING, ACK, 0, b"87654321"),
                Frame(UNKNOWN, 0xFF, 3, b"unknown"),
                Frame(ALTSVC, 0, 1, b"alternative"),
            ]
        ),
    ),
)
# What no client should do, or seldom does
odd_steps = st.one_of(
    steps("request", st.sampled_from([0, 1, 2, 2]), field_lists, changes, ways),
    steps("trailers", small, changes, ways),
    steps("stray", st.none() | st.integers(0, 8), st.sampled_from(SIZES), st.booleans()),
    steps("much", small, st.integers(-1, 1), st.booleans()),
    steps("many", small),
    steps("window", small, st.sampled_from(INCREMENTS)),
    steps("stray_reset", small),
    steps("priority", small, st.sampled_from([1, 3])),
    steps(
        "settings",
        st.dictionaries(st.sampled_from([2, 4, 5, 8]), st.sampled_from(SETTING_VALUES)),
    ),
    steps(
        "frame",
        st.tuples(
            st.integers(0, 11),
            st.integers(0, 255),
            st.sampled_from([0, 1, 1, 1, 2, 3, 5, MAX_STREAM_ID]),
            st.binary(max_size=12),
        ).map(lambda parts: Frame(*parts)),
    ),
    steps(
        "frame",
        st.sampled_from(
            [
                Frame(DATA, PADDED, 1, b"\x02ab"),
                Frame(DATA, PADDED, 1, b"\x03ab"),
                Frame(HEADERS, PADDED | END_HEADERS | END_STREAM, 1, b"\x02ab"),
                Frame(HEADERS, PADDED | END_HEADERS | END_STREAM, 1, b"\x03ab"),
                Frame(PUSH_PROMISE, END_HEADERS, 1, NUMBER.pack(2)),
                Frame(GOAWAY, 0, 0, bytes(8)),
                Frame(SETTINGS, 0, 0, SETTING.pack(4, 2**31) + SETTING.pack(4, 5)),
            ]
        ),
    ),
)


PLAIN: dict[str, Any] = {
    "end": False,
    "padding": None,
    "priority": None,
    "places": [],
    "huffman": True,
    "indexed": True,
}


class Client:
    """Makes frames of steps, as a client would, with one state of the compression."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._encoder = Encoder()
        self._last = -1
        self._sent = 0
        self._open: dict[int, int | None] = {}  # what is left of each body, where that is known

    def do(self, step: tuple[Any, ...]) -> None:
        getattr(self, "_" + step[0])(*step[1:])

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self.frames))

    def _stream(self, number: int, *, incomplete: bool = False) -> int:
        """One that the client has opened, or whose request is not complete."""
        if self._last < 1 or (incomplete and not self._open):
            self._request(2, [], None, PLAIN)
        streams = list(self._open) if incomplete else range(1, self._last + 1, 2)
        return streams[number % len(streams)]

    def send_headers(
        self,
        stream_id: int,
        fields: Headers,
        *,
        end: bool,
        padding: int | None,
        priority: int | None,
        places: list[int],
        huffman: bool,
        indexed: bool,
    ) -> None:
        header_type = HeaderTuple if indexed else NeverIndexedHeaderTuple
        block = self._encoder.encode([header_type(*each) for each in fields], huffman=huffman)
        flags = END_STREAM if end else 0
        first, *others = cut(block, places) or [b""]
        if priority is not None:
            flags |= HAS_PRIORITY
            first = NUMBER.pack(priority) + b"\x10" + first
        if padding is not None:
            flags |= PADDED
            first = bytes([padding]) + first + bytes(padding)
        self.frames.append(Frame(HEADERS, flags, stream_id, first))
        self.frames += [Frame(CONTINUATION, 0, stream_id, part) for part in others]
        last = self.frames[-1]
        self.frames[-1] = last._replace(flags=last.flags | END_HEADERS)

    def _request(self, gap: int, lists: list[Headers], change: Any, how: dict[str, Any]) -> None:
        stream_id = max(self._last + gap, 0)
        self._last = max(self._last, stream_id)
        fields = [field for fields in lists for field in fields]
        length = next((int(value) for name, value in fields if name == b"content-length"), None)
        if length and how["end"]:
            how = {**how, "end": False}
        if not how["end"]:
            self._open[stream_id] = length
        usual = usual_fields(stream_id, end=how["end"])
        self.send_headers(stream_id, changed([*usual, *fields], change), **how)

    def _trailers(self, number: int, change: Any, how: dict[str, Any]) -> None:
        if change is None:
            how = {**how, "end": True}
        stream_id = self._stream(number, incomplete=True)
        if left := self._open.get(stream_id):
            self._data(number, left, False, None)
        self._open.pop(stream_id, None)
        self.send_headers(stream_id, changed([(b"x-trailer", b"a")], change), **how)

    def _body(self, size: int) -> bytes:
        """The next bytes of one long sequence, so that it matters where they are."""
        start, self._sent = self._sent, self._sent + size
        return bytes(number % 251 for number in range(start, self._sent))

    def _data(self, number: int, size: int | None, end: bool, padding: int | None) -> None:
        stream_id = self._stream(number, incomplete=True)
        left = self._open[stream_id]
        if size is None:
            size = 3 if left is None else left
        elif left is not None:
            size = min(size, left)
        if left is not None:
            self._open[stream_id] = left = left - size
        flags = END_STREAM if end and not left else 0
        if flags:
            del self._open[stream_id]
        body = self._body(size)
        if padding is not None:
            flags |= PADDED
            body = bytes([padding]) + body + bytes(padding)
        self.frames.append(Frame(DATA, flags, stream_id, body))

    def _stray(self, stream_id: int | None, size: int, end: bool) -> None:
        """DATA wherever it comes, and however long it is."""
        if stream_id is None:
            stream_id = self._stream(size, incomplete=True)
        flags = END_STREAM if end else 0
        self.frames.append(Frame(DATA, flags, stream_id, self._body(size)))

    def _much(self, number: int, more: int, end: bool) -> None:
        """As much as a window has room for, or one byte more or less."""
        stream_id = self._stream(number, incomplete=True)
        body = bytes(DEFAULT_WINDOW + more)
        for start in range(0, len(body), DEFAULT_FRAME_SIZE):
            part = body[start : start + DEFAULT_FRAME_SIZE]
            self.frames.append(Frame(DATA, 0, stream_id, part))
        if end:
            self.frames.append(Frame(DATA, END_STREAM, stream_id))

    def _many(self, number: int) -> None:
        """As many CONTINUATION frames as a header block may have, or more."""
        self._last += 2
        self.frames.append(Frame(HEADERS, END_STREAM, self._last))
        self.frames += [Frame(CONTINUATION, 0, self._last)] * (60 + number % 5)
        self.frames.append(Frame(CONTINUATION, END_HEADERS, self._last, b"\x82\x87\x84\x01\x01a"))

    def _window(self, number: int, increment: int) -> None:
        stream_id = self._stream(number // 2) if number % 2 else 0
        self.frames.append(Frame(WINDOW_UPDATE, 0, stream_id, NUMBER.pack(increment)))

    def _reset(self, number: int, code: int) -> None:
        stream_id = self._stream(number)
        self._open.pop(stream_id, None)
        self.frames.append(Frame(RST_STREAM, 0, stream_id, NUMBER.pack(code)))

    def _stray_reset(self, number: int) -> None:
        self.frames.append(Frame(RST_STREAM, 0, number % 8, bytes(4)))

    def _priority(self, number: int, parent: int) -> None:
        payload = NUMBER.pack(parent) + b"\x00"
        self.frames.append(Frame(PRIORITY, 0, self._stream(number), payload))

    def _settings(self, values: dict[int, int]) -> None:
        payload = b"".join(SETTING.pack(*each) for each in values.items())
        self.frames.append(Frame(SETTINGS, 0, 0, payload))

    def _frame(self, frame: Frame) -> None:
        self.frames.append(frame)


def usual_fields(stream_id: int, *, end: bool) -> Headers:
    return [
        (b":method", b"GET" if end else b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"localhost"),
        (b":path", b"/%%20%d?q" % stream_id),
    ]


def changed(fields: Headers, change: tuple[str, int, tuple[bytes, bytes]] | None) -> Headers:
    if change is not None:
        how, place, header = change
        place %= len(fields)
        fields[place : place + (how != "add")] = [] if how == "remove" else [header]
    return fields


# Each changes frames in place.


def repeated(frames: list[Frame], place: int, number: int) -> None:
    frames.insert(number % (len(frames) + 1), frames[place])


def removed(frames: list[Frame], place: int, number: int) -> None:
    del frames[place]


def moved(frames: list[Frame], place: int, number: int) -> None:
    frames.insert(number % len(frames), frames.pop(place))


def of_another_kind(frames: list[Frame], place: int, number: int) -> None:
    frames[place] = frames[place]._replace(kind=number % 12)


def of_another_stream(frames: list[Frame], place: int, number: int) -> None:
    frames[place] = frames[place]._replace(stream_id=[0, 1, 2, 3, 5, 2**31 + 1][number % 6])


def with_another_flag(frames: list[Frame], place: int, number: int) -> None:
    frames[place] = frames[place]._replace(flags=frames[place].flags ^ 1 << number % 8)


def with_another_byte(frames: list[Frame], place: int, number: int) -> None:
    payload = bytearray(frames[place].payload)
    if payload:
        payload[number % len(payload)] ^= number >> 8 & 0xFF
    frames[place] = frames[place]._replace(payload=bytes(payload))


def shorter(frames: list[Frame], place: int, number: int) -> None:
    payload = frames[place].payload
    frames[place] = frames[place]._replace(payload=payload[: number % (len(payload) + 1)])


def longer(frames: list[Frame], place: int, number: int) -> None:
    payload = frames[place].payload + NUMBER.pack(number)[: number % 5]
    frames[place] = frames[place]._replace(payload=payload)


def with_a_wrong_length(frames: list[Frame], place: int, number: int) -> None:
    frames[place] = frames[place]._replace(excess=[-9, -1, 1, 9, 2**14, 2**20][number % 6])


mutations = st.tuples(
    st.sampled_from(
        [
            repeated,
            removed,
            moved,
            of_another_kind,
            of_another_stream,
            with_another_flag,
            with_another_byte,
            shorter,
            longer,
            with_a_wrong_length,
        ]
    ),
    small,
    numbers,
)
FIRST = [
    settings_frame({}),
    settings_frame({INITIAL_WINDOW_SIZE: MAX_WINDOW}),
    settings_frame({MAX_FRAME_SIZE: 2**24 - 1}) + bytes(Frame(SETTINGS, ACK)),
]


def bytes_of(usual: list[Any], odd: list[Any], changes: list[Any]) -> bytes:
    for place, step in odd:
        usual.insert(place % (len(usual) + 1), step)
    client = Client()
    for step in usual:
        client.do(step)
    for mutate, place, number in changes:
        if client.frames:
            mutate(client.frames, place % len(client.frames), number)
    return bytes(client)


usual = st.lists(usual_steps, max_size=10)
odd = st.lists(st.tuples(small, odd_steps), max_size=2)
cuts = st.lists(st.integers(0, 2000), max_size=4)
limits = st.sampled_from([100, 100, 2])


@settings(max_examples=250)
@given(st.sampled_from(FIRST), usual, odd, cuts, limits, st.booleans())
def test_frames_mean_the_same_to_both(
    first: bytes, usual: list[Any], odd: list[Any], cuts: list[int], max_streams: int, eager: bool
) -> None:
    """The same requests and bodies are delivered, and the same streams reset."""
    compare(first + bytes_of(usual, odd, []), cuts, max_streams, eager=eager)


@settings(max_examples=250)
@given(
    st.sampled_from([*FIRST, *FIRST, b""]),
    usual,
    odd,
    st.lists(mutations, min_size=1, max_size=2),
    st.just(b"") | st.binary(max_size=30),
    cuts,
    limits,
    st.booleans(),
)
def test_mutated_frames_mean_the_same_to_both(
    first: bytes,
    usual: list[Any],
    odd: list[Any],
    changes: list[Any],
    random: bytes,
    cuts: list[int],
    max_streams: int,
    eager: bool,
) -> None:
    """And the connection ends for the same reason, if it does."""
    frames = first + bytes_of(usual, odd, changes) + random
    compare(frames, cuts, max_streams, eager=eager)


@pytest.mark.parametrize("header", ODD_HEADERS, ids=repr)
def test_an_unusual_header_means_the_same_to_both(header: tuple[bytes, bytes]) -> None:
    """Before and behind the others, twice, in place of each, and in trailers."""
    usual = usual_fields(1, end=False)
    replaced = [[*usual[:place], header, *usual[place + 1 :]] for place in range(len(usual))]
    for fields in [[header, *usual], [*usual, header], [*usual, header, header], *replaced]:
        client = Client()
        client.send_headers(1, fields, **PLAIN)
        client.do(("stray", 1, 5, True))
        compare(FIRST[0] + bytes(client), [], 100, eager=True)
    client = Client()
    client.do(("trailers", 0, ("add", 0, header), {**PLAIN, "end": True}))
    compare(FIRST[0] + bytes(client), [], 100, eager=True)


def test_the_frames_are_of_many_kinds() -> None:
    """Some requests are complete, some connections and streams end: the comparison is useful."""
    codes: Counter[int | None] = Counter()
    resets: Counter[int] = Counter()
    bodies: list[int] = []

    @settings(max_examples=500, derandomize=True, database=None)
    @given(usual, odd, st.lists(mutations, max_size=1))
    def count(usual: list[Any], odd: list[Any], changes: list[Any]) -> None:
        reference = Reference(2)
        reference.read([FIRST[0] + bytes_of(usual, odd, changes)])
        codes[reference.outcome.code] += 1
        resets.update(reference.outcome.resets.values())
        bodies.extend(len(each.body) for each in reference.streams.values() if each.complete)

    count()
    assert 0.3 < codes[None] / sum(codes.values()) < 0.9
    names = {ErrorCodes(code).name for code in codes if code is not None and code >= 0}
    assert names == {
        "PROTOCOL_ERROR",
        "FLOW_CONTROL_ERROR",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "COMPRESSION_ERROR",
        "ENHANCE_YOUR_CALM",
    }
    names = {ErrorCodes(code).name for code in resets}
    assert names == {"PROTOCOL_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED", "REFUSED_STREAM"}
    assert sum(map(bool, bodies)) > 50
