"""Read and write the frames of one WebSocket, without I/O (RFC 6455; RFC 7692 for compression).

Most frames of most WebSockets are whole, uncompressed data frames. A short fast path here reads
and writes those. Every other frame goes to wsproto, which decides what it means: fragments,
control frames, compressed messages, and invalid frames.

wsproto does not expose how much it has buffered. Two rules keep the two in step:

* wsproto gets the bytes of one frame at a time, and none of the next. So its position is known:
  ``_frame_left`` bytes before the end of a frame, and inside a message unless ``_message`` is None.
  The fast path is taken only if both say that a new message begins.
* A frame on the fast path changes no state. Only wsproto knows which side has sent a close frame.

After a message that was too big, wsproto is not used any more: frames are split as before, and
discarded up to the peer's close frame.

An event is something for the caller to handle: a ``str`` or ``bytes`` is a complete message,
``Reply`` has bytes to write, ``EndOfMessages`` comes once and last.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from struct import pack

import wsproto.events
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import (
    CloseReason,
    FrameDecoder,
    FrameProtocol,
    Opcode,
    RsvBits,
    XorMaskerSimple,
)
from wsproto.utilities import LocalProtocolError

# The first byte of a data frame that is a whole message: FIN, no reserved bit, the opcode.
TEXT = 0x80 | Opcode.TEXT
BINARY = 0x80 | Opcode.BINARY

OPEN, LOCAL_CLOSING = ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING


@dataclass(frozen=True, slots=True)
class Reply:
    """A pong, to be written now."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndOfMessages:
    """No message follows: the peer sent a close frame or broke the protocol.

    ``code`` and ``reason`` are the peer's (1005 for a close frame without a code), or describe the
    error. ``close_frame`` is to be written. It is empty if we have sent one before.

    It is also empty if the peer broke the protocol. The application may still reply to the
    messages before that. So the caller decides when to send ``close(code, reason)``, after which
    nothing can be sent.
    """

    code: int
    reason: str
    close_frame: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Many frames have brought no event: the caller should let other tasks run."""


Event = str | bytes | Reply | EndOfMessages | Checkpoint

MAX_SILENT_FRAMES = 64


class Frames:
    """Both directions of a server's WebSocket, from the end of its handshake."""

    closed: bool
    """Whether nothing more is read, after the peer's close frame or a protocol error.

    It is true after ``EndOfMessages``, except after a message that was too big. Then the input is
    discarded up to the peer's close frame. If bytes of the message were left unread, a reset would
    overtake our close frame, and the peer would not learn why.
    """

    def __init__(self, max_message_size: int, deflate: Deflate | None = None) -> None:
        self.closed = False
        self._max_message_size = max_message_size
        self._connection = Connection(ConnectionType.SERVER, [deflate] if deflate else [])
        self._deflates = deflate is not None
        self._no_more_messages = False
        # The received bytes. wsproto or the fast path has handled the part before _start.
        self._data = b""
        self._start = 0
        # A frame that is not on the fast path: its opcode, and its bytes that are still to come.
        self._opcode = 0
        self._frame_left = 0
        # The message that wsproto is reading, so far. One buffer and not a list of parts: a part
        # may be empty, so a limit on their bytes is no limit on their number.
        self._message: bytearray | None = None

    @property
    def open(self) -> bool:
        """Whether neither side has sent a close frame."""
        return self._connection.state is OPEN

    def receive(self, data: bytes) -> Iterator[Event]:
        """Return an iterator over the events in these bytes, which reads them lazily.

        The iterator may be dropped at any time; the next call's iterator continues from there.
        """
        if not self.closed:
            self._data = self._data[self._start :] + data
            self._start = 0
        return iter(self._next_event, None)

    def text(self, data: str) -> bytes:
        """Return a text message's frame. As for all frames, empty after a close frame."""
        if self._deflates:
            return self._send(TextMessage(data))
        return self._frame(TEXT, data.encode())

    def binary(self, data: bytes) -> bytes:
        """Return a binary message's frame."""
        if self._deflates:
            return self._send(BytesMessage(data))
        return self._frame(BINARY, data)

    def ping(self) -> bytes:
        """Return a ping."""
        return self._send(Ping())

    def close(self, code: int, reason: str | None = None) -> bytes:
        """Return a close frame. A reason that is too long is truncated."""
        return self._send(CloseConnection(code, reason))

    def _send(self, event: wsproto.events.Event) -> bytes:
        try:
            return self._connection.send(event)
        except LocalProtocolError:  # the connection's state does not allow it
            return b""

    def _frame(self, first: int, payload: bytes) -> bytes:
        if not self.open:
            return b""
        size = len(payload)
        if size < 126:
            return pack("!BB", first, size) + payload
        if size < 2**16:
            return pack("!BBH", first, 126, size) + payload
        return pack("!BBQ", first, 127, size) + payload

    def _next_event(self) -> Event | None:
        """Return the next event in the bytes received so far, or None."""
        silent = 0
        while not self.closed:
            if silent == MAX_SILENT_FRAMES:
                return Checkpoint()
            silent += 1
            if not self._frame_left and self._message is None and not self._no_more_messages:
                message = self._whole_message()
                if message is not None:
                    return message
            data = self._next_frame_part()
            if not data:
                break
            if self._no_more_messages:
                self.closed = self._opcode == Opcode.CLOSE and not self._frame_left
                continue
            self._connection.receive_data(data)
            for part in self._connection.events():  # a single one, or none
                event = self._event(part)
                if event is not None:
                    return event
        return None

    def _whole_message(self) -> str | bytes | None:
        """Read the next frame if it is a whole, uncompressed message.

        A frame with a 64-bit length is not read here: it does not come in one piece.
        """
        data, start = self._data, self._start
        payload = start + 6
        if len(data) < payload or data[start] not in (TEXT, BINARY):
            return None
        size = data[start + 1] - 0x80
        if size == 126:
            size = data[start + 2] << 8 | data[start + 3]
            payload += 2
            if size < 126:
                return None
        elif not 0 <= size < 126:  # without a mask, or with a 64-bit length
            return None
        end = payload + size
        if end > len(data) or size > self._max_message_size:
            return None
        unmasked = unmask(data[payload:end], data[payload - 4 : payload])
        message: str | bytes = unmasked
        if data[start] == TEXT:
            try:
                message = unmasked.decode()
            except UnicodeDecodeError:
                return None
        self._start = end
        return message

    def _next_frame_part(self) -> bytes:
        """Split off what wsproto reads next: a frame, or a part of one."""
        start = self._start
        if not self._frame_left:
            header = self._data[start : start + 10]
            if len(header) < 2:
                return b""
            self._opcode = header[0] & 0x0F
            size = header[1] & 0x7F
            extended = {126: 2, 127: 8}.get(size, 0)
            # Only data frames may be that long. wsproto refuses any other at its second byte.
            if extended and self._opcode <= Opcode.BINARY:
                if len(header) < 2 + extended:
                    return b""
                size = extended + int.from_bytes(header[2 : 2 + extended], "big")
            self._frame_left = 2 + (4 if header[1] & 0x80 else 0) + size
        data = self._data[start : start + self._frame_left]
        self._start += len(data)
        self._frame_left -= len(data)
        return data

    def _event(self, part: wsproto.events.Event) -> Event | None:
        if isinstance(part, CloseConnection):
            # wsproto reports close frames and protocol errors alike. Only a close frame changes
            # its state.
            error = self._connection.state in (OPEN, LOCAL_CLOSING)
            if error and part.code == CloseReason.MESSAGE_TOO_BIG:
                return self._too_big()
            self._no_more_messages = self.closed = True
            response = b"" if error else self._send(part.response())
            return EndOfMessages(int(part.code), part.reason or "", response)
        if isinstance(part, Ping):
            pong = self._send(part.response())
            return Reply(pong) if pong else None
        if isinstance(part, TextMessage | BytesMessage):
            return self._add_to_message(part)
        return None

    def _add_to_message(self, part: TextMessage | BytesMessage) -> Event | None:
        if self._message is None:
            self._message = bytearray()
        message = self._message
        message += part.data.encode() if isinstance(part, TextMessage) else part.data
        if len(message) > self._max_message_size:
            return self._too_big()
        if not part.message_finished:
            return None
        self._message = None
        return message.decode() if isinstance(part, TextMessage) else bytes(message)

    def _too_big(self) -> EndOfMessages:
        self._no_more_messages = True
        self._message = None
        code = int(CloseReason.MESSAGE_TOO_BIG)
        return EndOfMessages(code, "", self.close(code))


def unmask(data: bytes, mask: bytes) -> bytes:
    """Remove a client's mask (RFC 6455, 5.3).

    For short data, one large integer is fastest; for long data, wsproto's four strides are.
    """
    size = len(data)
    if size > 2000:
        return bytes(XorMaskerSimple(mask).process(bytearray(data)))
    repeated = (mask * (size // 4 + 1))[:size]
    number = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
    return number.to_bytes(size, "little")


class Deflate(PerMessageDeflate):
    """permessage-deflate that inflates a message only up to the maximum message size.

    wsproto's inflates all its input, and each byte may become a thousand. It still negotiates and
    compresses, but this class inflates. Two more things differ:

    * A ping between two fragments of a compressed message does not end its compression.
    * A client may finish a message's deflate stream and begin the next message with a new one
      (RFC 7692, 7.2.3.4).
    """

    def __init__(self, max_message_size: int) -> None:
        super().__init__()
        self._max_message_size = max_message_size
        self._inflater: zlib._Decompress | None = None
        # Whether the message is compressed, as its first frame says; None between messages.
        self._compressed: bool | None = None
        self._control = False

    def frame_inbound_header(
        self,
        proto: FrameDecoder | FrameProtocol,
        opcode: Opcode,
        rsv: RsvBits,
        payload_length: int,
    ) -> CloseReason | RsvBits:
        if rsv.rsv1 and opcode not in (Opcode.TEXT, Opcode.BINARY):
            return CloseReason.PROTOCOL_ERROR
        self._control = opcode.iscontrol()
        if not self._control and self._compressed is None:
            self._compressed = rsv.rsv1
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        return self._inflate(data) if self._compressed and not self._control else data

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        if self._control or not fin:
            return None
        compressed, self._compressed = self._compressed, None
        if not compressed:
            return None
        data = self._inflate(b"\x00\x00\xff\xff")
        if self.client_no_context_takeover or (self._inflater and self._inflater.eof):
            self._inflater = None
        return data

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-self.client_max_window_bits)
        # zlib would not inflate what follows the end of a stream, but would keep it all.
        if self._inflater.eof:
            return b""
        try:
            # Never inflate more than the limit, and one byte that shows that it is exceeded.
            # ``Frames`` refuses fragments that exceed the limit together, as uncompressed ones.
            inflated = self._inflater.decompress(data, self._max_message_size + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        too_big = len(inflated) > self._max_message_size
        return CloseReason.MESSAGE_TOO_BIG if too_big else inflated
