"""WebSocket frames and handshakes, beside what wsproto and Hypercorn make of the same bytes."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hypercorn.protocol.ws_stream
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from trio_httptrack._connection.websocket_frames import (
    Checkpoint,
    EndOfMessages,
    Event,
    Frames,
    Reply,
)
from trio_httptrack._connection.websocket_handshake import Handshake

LIMIT = 2**24
OFFER = "permessage-deflate"
KIB, MIB = 2**10, 2**20


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x12\x34\x56\x78",
    length_bytes: int = 0,
) -> bytes:
    """A client's frame, with its length in at least so many bytes of their own."""
    size = len(payload)
    masked = 0 if mask is None else 0x80
    first = bytes([fin << 7 | rsv << 4 | opcode])
    if size < 126 and not length_bytes:
        head = first + bytes([masked | size])
    elif size < 2**16 and length_bytes < 8:
        head = first + bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        head = first + bytes([masked | 127]) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


def text(data: str) -> bytes:
    return frame(Opcode.TEXT, data.encode())


def close(code: int, reason: str = "") -> bytes:
    return frame(Opcode.CLOSE, code.to_bytes(2, "big") + reason.encode())


def deflating(limit: int = LIMIT, offer: str = OFFER) -> Frames:
    return Handshake(http1(offer), "1.1", limit).accept(None, [])[2]


class Deflater:
    """A client's compression, from one message to the next."""

    def __init__(self) -> None:
        self._compressor = zlib.compressobj(wbits=-15)

    def __call__(self, data: bytes) -> bytes:
        return (self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


class ReferenceDeflate(PerMessageDeflate):
    """wsproto's, except that a control frame does not end a message's compression."""

    control = False

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        self.control = opcode.iscontrol()
        if self.control:
            return CloseReason.PROTOCOL_ERROR if rsv.rsv1 else RsvBits(True, False, False)
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        return data if self.control else super().frame_inbound_payload_data(proto, data)

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        return None if self.control else super().frame_inbound_complete(proto, fin)


class Reference:
    """A WebSocket by wsproto alone, as plain as can be."""

    def __init__(self, limit: int, deflate: bool) -> None:
        extension = ReferenceDeflate()
        if deflate:
            extension.accept(OFFER)
        self.connection = Connection(ConnectionType.SERVER, [extension])
        self.limit = limit
        self.message: list[Any] = []
        self.size = 0
        self.ended = self.closed = self.too_big = False

    @property
    def open(self) -> bool:
        return self.connection.state is ConnectionState.OPEN

    def send(self, event: Any) -> bytes:
        return self.connection.send(event) if self.open else b""

    def receive(self, data: bytes) -> list[Event]:
        if self.closed:
            return []
        self.connection.receive_data(data)
        received = [self.event(event) for event in self.connection.events()]
        return [event for event in received if event is not None]

    def event(self, event: Any) -> Event | None:
        told, self.ended = self.ended, self.ended or isinstance(event, CloseConnection)
        if isinstance(event, CloseConnection):
            self.closed = True
            replies = self.connection.state is ConnectionState.REMOTE_CLOSING
            response = self.connection.send(event.response()) if replies else b""
            return None if told else EndOfMessages(event.code, event.reason or "", response)
        if told:
            return None
        if isinstance(event, Ping):
            return Reply(self.send(event.response())) if self.open else None
        if not isinstance(event, Message):
            return None
        self.message.append(event.data)
        is_text = isinstance(event.data, str)
        self.size += len(event.data.encode() if is_text else event.data)
        if self.size > self.limit:
            self.ended = self.too_big = True
            return EndOfMessages(1009, "", self.send(CloseConnection(1009)))
        if not event.message_finished:
            return None
        message, self.message, self.size = self.message, [], 0
        return "".join(message) if is_text else b"".join(message)


# What a client may send, well or badly made.

payloads = st.one_of(
    st.text(max_size=20).map(str.encode),
    st.binary(max_size=20),
    st.sampled_from([0, 1, 4, 124, 125, 126, 127, 300, 2001, 70_000]).map(lambda n: b"x" * n),
)
masks = st.one_of(st.binary(min_size=4, max_size=4), st.just(bytes(4)))
control_frames = st.builds(
    frame,
    st.sampled_from([Opcode.PING, Opcode.PONG]),
    st.binary(max_size=5),
    mask=masks,
)
close_frames = st.builds(
    frame,
    st.just(Opcode.CLOSE),
    st.one_of(
        st.binary(max_size=5),
        st.builds(
            lambda code, reason: code.to_bytes(2, "big") + reason.encode(),
            st.sampled_from([999, 1000, 1001, 1004, 1005, 1010, 1015, 2999, 3000, 4999, 5000]),
            st.text(max_size=5),
        ),
    ),
)
any_frames = st.builds(
    frame,
    st.integers(0, 15),
    payloads,
    fin=st.booleans(),
    rsv=st.sampled_from([0, 0, 0, 0, 1, 2, 4, 5, 7]),
    mask=st.one_of(masks, masks, masks, st.none()),
    length_bytes=st.sampled_from([0, 0, 0, 2, 8]),
)


@st.composite
def messages(draw: st.DrawFn, deflater: Deflater | None) -> bytes:
    """A message in one frame or more, compressed or not, with control frames in between."""
    payload = draw(payloads)
    opcode = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
    rsv = 0
    if deflater and draw(st.booleans()):
        payload, rsv = deflater(payload), 4
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    sent = b""
    for n, part in enumerate(parts):
        fin = n == len(parts) - 1
        first = (opcode, rsv) if n == 0 else (Opcode.CONTINUATION, 0)
        sent += frame(first[0], part, fin=fin, rsv=first[1], mask=draw(masks))
        if not fin and draw(st.booleans()):
            sent += draw(control_frames)
    return sent


@st.composite
def streams(draw: st.DrawFn, deflate: bool) -> list[bytes]:
    """What a client sends, cut anywhere."""
    deflater = Deflater() if deflate else None
    good = st.one_of(messages(deflater), messages(deflater), control_frames)
    other = st.one_of(close_frames, any_frames, st.binary(max_size=4))
    sent = b"".join(draw(good) for _ in range(draw(st.integers(0, 6))))
    if draw(st.booleans()):
        sent += draw(other) + b"".join(draw(good) for _ in range(draw(st.integers(0, 2))))
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    return [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]


Act = tuple[Callable[[Frames], bytes], Callable[[Reference], bytes]]


def act(ours: Callable[[Frames], bytes], event: Any) -> Act:
    return ours, lambda reference: reference.send(event)


# What an application does after some of what it has received.
acts = st.one_of(
    st.none(),
    st.none(),
    st.text(max_size=150).map(lambda data: act(lambda f: f.text(data), TextMessage(data))),
    payloads.map(lambda data: act(lambda f: f.binary(data), BytesMessage(data))),
    st.just(act(Frames.ping, Ping())),
    st.tuples(
        st.sampled_from([1000, 1005, 1011, 3001]),
        st.one_of(st.none(), st.text(max_size=150)),
    ).map(lambda end: act(lambda f: f.close(*end), CloseConnection(*end))),
)


@pytest.mark.parametrize("deflate", [False, True])
@given(data=st.data(), limit=st.sampled_from([LIMIT, LIMIT, LIMIT, 2000, 20, 0]))
def test_frames_are_what_wsproto_makes_of_them(
    data: st.DataObject, deflate: bool, limit: int
) -> None:
    """Whatever is received and sent, the messages, the replies, the end and the states agree."""
    frames = deflating(limit) if deflate else Frames(limit)
    reference = Reference(limit, deflate)
    for piece in data.draw(streams(deflate)):
        events, expected = frames.receive(piece), reference.receive(piece)
        received = [event for event in events if not isinstance(event, Checkpoint)]
        end = received[-1] if received else None
        if deflate and isinstance(end, EndOfMessages) and end.code == 1009:
            # The reference inflates on, and may end in another way, but not with a message.
            before = len(received) - 1
            assert expected[:before] == received[:before]
            assert not isinstance((*expected, None)[before], str | bytes)
            return
        assert received == expected
        if reference.too_big:
            # Then only the peer's close frame is looked for, and not what is wrong before it.
            assert not frames.open
            assert frames.closed or reference.connection.state is not ConnectionState.CLOSED
            assert reference.closed or not frames.closed
        else:
            assert (frames.open, frames.closed) == (reference.open, reference.closed)
        if (action := data.draw(acts)) is not None:
            assert action[0](frames) == action[1](reference)
            assert frames.open == reference.open


# Receiving


def test_a_message_in_one_frame_needs_no_wsproto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what makes it fast."""

    def receive_data(self: Connection, data: bytes | None) -> None:
        raise AssertionError(data)

    frames = Frames(LIMIT)
    monkeypatch.setattr(Connection, "receive_data", receive_data)
    for size in (0, 1, 125, 126, 2000, 2001, 2**16 - 1):
        sent = frame(Opcode.BINARY, b"x" * size) + text("x" * size)
        assert list(frames.receive(sent)) == [b"x" * size, "x" * size]


@pytest.mark.parametrize("size", [2**16, 2**17])
def test_a_longer_message_is_received_as_well(size: int) -> None:
    """In a frame whose length takes eight bytes."""
    sent = frame(Opcode.BINARY, b"x" * size) + text("x" * size)
    assert list(Frames(LIMIT).receive(sent)) == [b"x" * size, "x" * size]


@pytest.mark.parametrize("size", [0, 5, 300, 2**16])
def test_a_frame_may_come_in_two_pieces(size: int) -> None:
    """Cut anywhere in its header, and what follows is found."""
    sent = frame(Opcode.BINARY, b"x" * size) + text("next")
    for cut in range(15):
        frames = Frames(LIMIT)
        received = [*frames.receive(sent[:cut]), *frames.receive(sent[cut:])]
        assert received == [b"x" * size, "next"]


@pytest.mark.parametrize("opcode", [Opcode.BINARY, Opcode.PING])
def test_bytes_of_a_frame_in_a_payload_are_payload(opcode: Opcode) -> None:
    """Wherever the bytes of the outer one are cut."""
    payload = text("inner") * 3
    sent = frame(opcode, payload, mask=bytes(4))
    (expected,) = Frames(LIMIT).receive(sent)
    assert expected in (payload, Reply(b"\x8a" + bytes([len(payload)]) + payload))
    for cut in range(len(sent)):
        frames = Frames(LIMIT)
        assert [*frames.receive(sent[:cut]), *frames.receive(sent[cut:])] == [expected]


def test_events_are_parsed_when_they_are_requested() -> None:
    """The second ping is read after our close frame, and needs no pong any more."""
    frames = Frames(LIMIT)
    events = frames.receive(frame(Opcode.PING, b"1") + frame(Opcode.PING, b"2"))
    assert next(events) == Reply(b"\x8a\x011")
    frames.close(1000)
    assert list(events) == []


def test_an_iterator_that_is_left_loses_nothing() -> None:
    """That of the next call goes on where it was, fast or not."""
    frames = Frames(LIMIT)
    sent = text("1") + frame(Opcode.TEXT, b"2", fin=False) + frame(0, b"3") + text("4") + text("5")
    assert next(frames.receive(sent[:-1])) == "1"
    assert next(frames.receive(sent[-1:])) == "23"
    assert list(frames.receive(b"")) == ["4", "5"]
    assert list(frames.receive(b"")) == []


def test_many_small_messages_are_never_in_memory_at_once() -> None:
    """As objects they take twelve times their 64 KiB."""
    frames = Frames(LIMIT)
    sent = text("hello") * (64 * KIB // 11)
    with peak_of_memory() as peak:
        assert sum(1 for _ in frames.receive(sent)) == len(sent) // 11
        assert peak() < 80 * KIB


def test_fragments_without_a_byte_take_no_memory() -> None:
    """There is no limit to their number."""
    frames = Frames(LIMIT)
    list(frames.receive(frame(Opcode.BINARY, fin=False)))
    sent = frame(Opcode.CONTINUATION, fin=False) * 1000
    with peak_of_memory() as peak:
        for _ in range(10):
            assert all(event == Checkpoint() for event in frames.receive(sent))
        assert peak() < 40 * KIB
    assert list(frames.receive(frame(Opcode.CONTINUATION, b"x"))) == [b"x"]


def test_frames_that_bring_nothing_do_not_keep_others_from_running() -> None:
    """A read that is full of pongs is handled in parts."""
    events = list(Frames(LIMIT).receive(frame(Opcode.PONG) * 1000))
    assert len(events) >= 10
    assert set(events) == {Checkpoint()}


# The end


def test_a_peer_that_closes_gets_its_close_frame_back() -> None:
    """Then both have sent one, and nothing is received or sent any more."""
    frames = Frames(LIMIT)
    sent = text("bye") + close(3001, "enough") + text("more")
    assert list(frames.receive(sent)) == [
        "bye",
        EndOfMessages(3001, "enough", b"\x88\x08\x0b\xb9enough"),
    ]
    assert (frames.open, frames.closed) == (False, True)
    assert list(frames.receive(text("more"))) == []
    assert frames.text("x") == frames.binary(b"x") == frames.ping() == frames.close(1000) == b""


def test_a_close_frame_may_be_empty() -> None:
    """The application hears of 1005, which is never sent (RFC 6455, 7.4.1)."""
    assert list(Frames(LIMIT).receive(frame(Opcode.CLOSE))) == [EndOfMessages(1005, "", b"\x88\0")]


def test_a_peer_may_close_for_a_message_of_ours_that_is_too_big() -> None:
    """Its code is that of our own refusal, and yet it has sent its close frame."""
    frames = Frames(LIMIT)
    assert list(frames.receive(close(1009, "!"))) == [
        EndOfMessages(1009, "!", b"\x88\x03\x03\xf1!")
    ]
    assert frames.closed


def test_after_our_close_frame_the_peers_is_awaited() -> None:
    """Its messages are received until then, and a second close frame is not sent."""
    frames = Frames(LIMIT)
    assert frames.close(1001, "later") == b"\x88\x07\x03\xe9later"
    assert (frames.open, frames.closed) == (False, False)
    assert frames.text("x") == frames.close(1001) == b""
    assert list(frames.receive(text("wait"))) == ["wait"]
    assert list(frames.receive(close(1001))) == [EndOfMessages(1001, "", b"")]
    assert frames.closed


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (frame(Opcode.TEXT, b"x", mask=None), 1002),
        (frame(Opcode.TEXT, b"x", rsv=1), 1002),
        (frame(Opcode.TEXT, b"x", length_bytes=2), 1002),
        (frame(3, b"x"), 1002),
        (frame(Opcode.CONTINUATION, b"x"), 1002),
        (frame(Opcode.TEXT, b"x", fin=False) + text("y"), 1002),
        (frame(Opcode.PING, b"x" * 126), 1002),
        (frame(Opcode.PING, fin=False), 1002),
        (frame(Opcode.TEXT, b"x\xff"), 1007),
        (frame(Opcode.TEXT, "é".encode()[:1]), 1007),
        (frame(Opcode.TEXT, "\ud800".encode(errors="surrogatepass")), 1007),
    ],
)
def test_a_violation_ends_it_after_the_messages_before(wrong: bytes, code: int) -> None:
    """Nothing else is read. What came before can be replied to, until the close frame."""
    frames = Frames(LIMIT)
    first, end = frames.receive(text("good") + wrong + text("more"))
    assert first == "good"
    assert isinstance(end, EndOfMessages)
    assert end.code == code
    assert (frames.open, frames.closed, end.close_frame) == (True, True, b"")
    assert frames.text("reply") == b"\x81\x05reply"
    assert frames.close(code, end.reason)[2:] == code.to_bytes(2, "big") + end.reason.encode()
    assert not frames.open
    assert frames.text("late") == b""


@pytest.mark.parametrize("opcode", [Opcode.CONTINUATION, Opcode.PING])
def test_only_a_messages_first_frame_says_that_it_is_compressed(opcode: Opcode) -> None:
    """A reserved bit elsewhere is a violation, whatever was negotiated (RFC 7692, 6)."""
    begun = frame(Opcode.TEXT, fin=False, rsv=4)
    (end,) = deflating().receive(begun + frame(opcode, rsv=4))
    assert isinstance(end, EndOfMessages)
    assert end.code == 1002


def test_a_violation_is_noticed_as_soon_as_it_can_be() -> None:
    """The length of a control frame needs no more than its second byte."""
    assert [type(event) for event in Frames(LIMIT).receive(b"\x89\xfe")] == [EndOfMessages]


def fragments(size: int) -> bytes:
    """A binary message of so many bytes, in three frames."""
    return (
        frame(Opcode.BINARY, b"x" * (size // 2), fin=False)
        + frame(Opcode.CONTINUATION, b"x" * (size - size // 2), fin=False)
        + frame(Opcode.CONTINUATION)
    )


def compressed(size: int) -> bytes:
    return frame(Opcode.BINARY, Deflater()(b"x" * size), rsv=4)


@pytest.mark.parametrize(
    "message", [lambda size: frame(Opcode.BINARY, b"x" * size), fragments, compressed]
)
def test_the_limit_is_the_size_that_is_still_received(message: Callable[[int], bytes]) -> None:
    """In bytes, and the next byte ends it with 1009, whatever frames they come in."""
    assert list(deflating(300).receive(message(300))) == [b"x" * 300]
    assert list(deflating(300).receive(message(301))) == [
        EndOfMessages(1009, "", b"\x88\x02\x03\xf1")
    ]


def test_the_limit_of_a_text_counts_its_bytes() -> None:
    """A character may have four."""
    assert list(Frames(8).receive(text("😀😀"))) == ["😀😀"]
    assert list(Frames(8).receive(text("😀😀x"))) == [EndOfMessages(1009, "", b"\x88\x02\x03\xf1")]


@pytest.mark.parametrize("message", [fragments, compressed])
def test_after_a_message_that_was_too_big_the_peers_close_frame_is_awaited(
    message: Callable[[int], bytes],
) -> None:
    """What comes before it is discarded, and there is no second end."""
    frames = deflating(10)
    assert [type(event) for event in frames.receive(message(5000))] == [EndOfMessages]
    assert (frames.open, frames.closed) == (False, False)
    assert list(frames.receive(text("small") + frame(Opcode.PING) + compressed(5))) == []
    assert list(frames.receive(fragments(5000) + compressed(5000))) == []
    goodbye = close(1009)
    assert list(frames.receive(goodbye[:-1])) == []
    assert not frames.closed
    assert list(frames.receive(goodbye[-1:])) == []
    assert frames.closed


# Sending


@pytest.mark.parametrize("size", [0, 1, 125, 126, 2**16 - 1, 2**16])
def test_a_message_is_sent_as_wsproto_would_send_it(size: int) -> None:
    """With the shortest length field that will do."""
    wsproto_server = Connection(ConnectionType.SERVER)
    assert Frames(LIMIT).text("x" * size) == wsproto_server.send(TextMessage("x" * size))
    assert Frames(LIMIT).binary(b"x" * size) == wsproto_server.send(BytesMessage(b"x" * size))


# Compression


@pytest.mark.parametrize("client_bits", [9, 15])
@pytest.mark.parametrize("server_bits", [9, 15])
@pytest.mark.parametrize(
    "takeover", ["", "; client_no_context_takeover; server_no_context_takeover"]
)
def test_both_sides_understand_what_was_negotiated(
    client_bits: int, server_bits: int, takeover: str
) -> None:
    """Every message survives both ways, whatever the windows, and refers to older ones or not."""
    offer = f"{OFFER}; client_max_window_bits={client_bits}; server_max_window_bits={server_bits}"
    offer += "" if takeover else "; client_no_context_takeover; server_no_context_takeover"
    _, headers, frames = Handshake(http1(offer), "1.1", LIMIT).accept(None, [])
    extension = PerMessageDeflate()
    extension.finalize(dict(headers)[b"sec-websocket-extensions"].decode())
    client = Connection(ConnectionType.CLIENT, [extension])
    far = "".join(f"{n}" for n in range(2000))  # repeated at a distance that needs a large window
    for message in ("", "hello " * 9, "", "hello " * 9, far, far):
        (received,) = frames.receive(client.send(TextMessage(message)))
        assert received == message
        client.receive_data(frames.text(message))
        assert list(client.events()) == [TextMessage(message)]


def test_a_ping_within_a_compressed_message_does_not_end_its_compression() -> None:
    """Control frames may come between any two fragments (RFC 6455, 5.4)."""
    data = Deflater()(b"hello " * 9)
    sent = frame(Opcode.TEXT, data[:3], fin=False, rsv=4) + frame(Opcode.PING)
    sent += frame(Opcode.CONTINUATION, data[3:])
    assert list(deflating().receive(sent)) == [Reply(b"\x8a\0"), "hello " * 9]


def test_a_deflate_stream_may_end_with_its_message() -> None:
    """The next message begins another one (RFC 7692, 7.2.3.4, has this example)."""
    hello = frame(Opcode.TEXT, b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", rsv=4)
    assert list(deflating().receive(hello * 3)) == ["Hello"] * 3


def test_a_client_that_renounced_its_context_cannot_refer_to_it() -> None:
    """Nothing of a message is kept for the next one."""
    frames = deflating(offer=f"{OFFER}; client_no_context_takeover")
    deflater = Deflater()
    first, end = frames.receive(
        frame(Opcode.TEXT, deflater(b"hello " * 9), rsv=4)
        + frame(Opcode.TEXT, deflater(b"hello " * 9), rsv=4)
    )
    assert first == "hello " * 9
    assert isinstance(end, EndOfMessages)
    assert end.code == 1007


def test_an_invalid_deflate_stream_ends_it_with_1007() -> None:
    """As a text does that is not UTF-8."""
    (end,) = deflating().receive(frame(Opcode.TEXT, b"\xff\xff", rsv=4))
    assert isinstance(end, EndOfMessages)
    assert end.code == 1007


@pytest.mark.parametrize(("limit", "maximum"), [(1000, 400 * KIB), (4 * MIB, 20 * MIB)])
@pytest.mark.parametrize("size", [KIB, 64 * KIB])
def test_a_bomb_is_inflated_no_further_than_the_limit(limit: int, maximum: int, size: int) -> None:
    """64 KiB that inflate to 64 MiB take no more memory than the limit, in reads of any size."""
    bomb = frame(Opcode.BINARY, Deflater()(bytes(64 * MIB)), rsv=4)
    assert len(bomb) < 64 * KIB
    frames = deflating(limit)
    received: list[Event] = []
    with peak_of_memory() as peak:
        for start in range(0, len(bomb), size):
            received += frames.receive(bomb[start : start + size])
        assert peak() < maximum
    assert received == [EndOfMessages(1009, "", b"\x88\x02\x03\xf1")]


def test_what_follows_the_end_of_a_deflate_stream_is_not_kept() -> None:
    """zlib would, without a limit."""
    frames = deflating()
    hello = b"\xf3\x48\xcd\xc9\xc9\x07\x00"
    list(frames.receive(frame(Opcode.TEXT, hello, fin=False, rsv=4)))
    more = frame(Opcode.CONTINUATION, bytes(10 * KIB), fin=False)
    with peak_of_memory() as peak:
        for _ in range(20):
            list(frames.receive(more))
        assert peak() < 100 * KIB
    assert list(frames.receive(frame(Opcode.CONTINUATION))) == ["Hello"]


# The handshake

KEY = (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ==")
VERSION = (b"Sec-WebSocket-Version", b"13")
UPGRADE = [(b"Connection", b"keep-alive, Upgrade"), (b"Upgrade", b"WebSocket")]
Headers = list[tuple[bytes, bytes]]


def http1(extensions: str = "") -> Headers:
    offer = [(b"Sec-WebSocket-Extensions", extensions.encode())] if extensions else []
    return [(b"Host", b"localhost"), *UPGRADE, KEY, VERSION, *offer]


def http2(extensions: str = "") -> Headers:
    offer = [(b"sec-websocket-extensions", extensions.encode())] if extensions else []
    return [(b":method", b"CONNECT"), (b"sec-websocket-version", b"13"), *offer]


def response(
    headers: Headers, version: str, subprotocol: str | None = None, more: Headers | None = None
) -> tuple[int, Headers]:
    return Handshake(headers, version, LIMIT).accept(subprotocol, more or [])[:2]


def hypercorn_response(
    headers: Headers, version: str, subprotocol: str | None = None, more: Headers | None = None
) -> tuple[int, Headers]:
    handshake = hypercorn.protocol.ws_stream.Handshake(headers, version)
    return handshake.accept(subprotocol, more or [])[:2]


OFFERS = [
    "",
    "x-unknown",
    "x-webkit-deflate-frame",
    "permessage-deflate",  # Firefox, Safari
    "permessage-deflate; client_max_window_bits",  # Chrome, Node's ws, aiohttp
    "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12",  # websockets
    "permessage-deflate; client_max_window_bits=15; server_max_window_bits=15",  # trio-websocket
    "permessage-deflate; client_no_context_takeover; client_max_window_bits",  # Autobahn
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",  # Go
    "permessage-deflate; client_max_window_bits; server_no_context_takeover",
    "x-unknown, permessage-deflate",
    "permessage-deflate; server_max_window_bits=8",
    "permessage-deflate; client_max_window_bits=16",
]


@pytest.mark.parametrize("offer", OFFERS)
def test_the_handshake_is_hypercorns(offer: str) -> None:
    """Byte by byte over HTTP/1.1 and HTTP/2, whatever compression a client knows."""
    more = [(b"x-more", b"1"), (b"set-cookie", b"a=b")]
    protocols = [(b"Sec-WebSocket-Protocol", b"a, b"), (b"sec-WebSocket-protocol2", b"c")]
    for headers, version in ((http1(offer), "1.1"), (http2(offer), "2"), (http2(), "2")):
        requested = [*headers, *protocols]
        assert response(requested, version, "b", more) == hypercorn_response(
            requested, version, "b", more
        )


windows = st.sampled_from(["", "=8", "=9", "=12", "=15", "=16", "=x", "=", '="10"', " = 10"])
parameters = st.one_of(
    st.sampled_from(["client_no_context_takeover", "server_no_context_takeover", "unknown", ""]),
    st.builds("{}_max_window_bits{}".format, st.sampled_from(["client", "server"]), windows),
)


@given(st.lists(parameters, max_size=4))
def test_any_offer_gets_hypercorns_response(parameters: list[str]) -> None:
    """Except for one that cannot be understood, where Hypercorn fails and we decline."""
    offer = "; ".join(["permessage-deflate", *parameters])
    try:
        expected = hypercorn_response(http1(offer), "1.1")
    except ValueError:
        expected = hypercorn_response(http1(), "1.1")
    assert response(http1(offer), "1.1") == expected


def test_the_first_offer_that_can_be_met_is_accepted() -> None:
    """And is not mixed with those before and after it, which the client prefers less."""
    headers = [
        *http1("permessage-deflate; client_max_window_bits=9; server_max_window_bits=x"),
        (b"sec-websocket-extensions", b"permessage-deflate; server_no_context_takeover, x-y"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
    ]
    extensions = dict(response(headers, "1.1")[1])[b"sec-websocket-extensions"]
    assert extensions == b"permessage-deflate; server_no_context_takeover"


def without(*names: bytes) -> Headers:
    return [field for field in http1() if field[0] not in names]


@pytest.mark.parametrize(
    ("headers", "version", "valid"),
    [
        (http1(), "1.1", True),
        ([(name.lower(), value) for name, value in http1()], "1.1", True),
        (http1("permessage-deflate; client_max_window_bits=x"), "1.1", True),
        (
            [*without(b"Connection"), (b"Connection", b"a"), (b"Connection", b"UPGRADE")],
            "1.1",
            True,
        ),
        (http1(), "1.0", False),
        (without(b"Connection"), "1.1", False),
        ([*without(b"Connection"), (b"Connection", b"close")], "1.1", False),
        (without(b"Upgrade"), "1.1", False),
        ([*without(b"Upgrade"), (b"Upgrade", b"h2c")], "1.1", False),
        (without(KEY[0]), "1.1", False),
        (without(VERSION[0]), "1.1", False),
        ([*without(VERSION[0]), (VERSION[0], b"12")], "1.1", False),
        ([*http1(), VERSION], "1.1", False),
        ([*http1(), (b"Sec-WebSocket-Protocol", b"\xe9")], "1.1", False),
        ([*http1(), (b"Sec-WebSocket-Extensions", b"\xff")], "1.1", False),
        ([*http1(), (b"Connection", b"\xe9")], "1.1", False),
        ([*http1(), (b"Cookie", b"\xe9")], "1.1", True),
        (http2(), "2", True),
        ([], "2", False),
        ([*http2(), (b"sec-websocket-protocol", b"\xe9")], "2", False),
    ],
)
def test_a_request_is_valid_or_not(headers: Headers, version: str, valid: bool) -> None:
    """And is never an error of ours."""
    assert Handshake(headers, version, LIMIT).valid is valid


def test_subprotocols_are_offered_in_order() -> None:
    """In one header or in several."""
    headers = [(b"Sec-WebSocket-Protocol", b"b, a"), (b"sec-websocket-protocol", b"c")]
    assert Handshake([*http1(), *headers], "1.1", LIMIT).subprotocols == ["b", "a", "c"]
    assert Handshake(http1(), "1.1", LIMIT).subprotocols == []


@pytest.mark.parametrize(
    ("subprotocol", "name"),
    [("c", b"x"), ("é", b"x"), (None, b"sec-websocket-protocol"), (None, b":status")],
)
def test_what_an_application_must_not_accept_with(subprotocol: str | None, name: bytes) -> None:
    """A subprotocol that the client did not offer, and a header that is not the application's."""
    offers = [*http1(), (b"Sec-WebSocket-Protocol", b"a, b")]
    with pytest.raises(ValueError, match=r"subprotocol|header"):
        response(offers, "1.1", subprotocol, [(name, b"1")])


def test_the_limit_reaches_the_messages() -> None:
    """Compressed or not."""
    for headers in (http1(), http1(OFFER)):
        frames = Handshake(headers, "1.1", 10).accept(None, [])[2]
        for message in ("0123456789", "0123456789+"):
            (event,) = frames.receive(text(message))
            assert (event == message) is (len(message) <= 10)


@contextmanager
def peak_of_memory() -> Iterator[Callable[[], int]]:
    """The peak of what Python and zlib allocate in a block."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
