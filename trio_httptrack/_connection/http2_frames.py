"""Encode and decode HTTP/2 frames (RFC 9113, 4 and 6).

Nothing here depends on a stream's state: ``http2`` decides whether a frame is allowed.
"""

from __future__ import annotations

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)

END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

# Error codes (RFC 9113, 7)
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

# Settings (RFC 9113, 6.5.2, and RFC 8441, 3)
HEADER_TABLE_SIZE = 0x1
ENABLE_PUSH = 0x2
MAX_CONCURRENT_STREAMS = 0x3
INITIAL_WINDOW_SIZE = 0x4
MAX_FRAME_SIZE = 0x5
MAX_HEADER_LIST_SIZE = 0x6
ENABLE_CONNECT_PROTOCOL = 0x8

MAX_STREAM_ID = 2**31 - 1
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 2**16 - 1
DEFAULT_FRAME_SIZE = 2**14
LARGEST_FRAME_SIZE = 2**24 - 1

HEADER = Struct(">BHBBL")
"""A frame's length, in two parts, its type, its flags, and its stream's ID."""

HEADER_SIZE = HEADER.size
NUMBER = Struct(">L")
SETTING = Struct(">HL")


class ConnectionFailure(Exception):
    """A connection error (RFC 9113, 5.4.1): the client broke the protocol, so we disconnect."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamFailure(Exception):
    """A stream error (RFC 9113, 5.4.2): the client broke the protocol on one stream."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return frame_header(len(payload), kind, flags, stream_id) + payload


def frame_header(length: int, kind: int, flags: int, stream_id: int) -> bytes:
    return HEADER.pack(length >> 16, length & 0xFFFF, kind, flags, stream_id)


def header_frames(
    stream_id: int, block: bytes, max_size: int, *, end: bool, kind: int = HEADERS
) -> bytes:
    """Return a header block, split into as many frames as necessary."""
    flags = END_STREAM if end else 0
    if len(block) <= max_size:
        return frame(kind, flags | END_HEADERS, stream_id, block)
    frames = [frame(kind, flags, stream_id, block[:max_size])]
    for start in range(max_size, len(block), max_size):
        part = block[start : start + max_size]
        last = start + max_size >= len(block)
        frames.append(frame(CONTINUATION, END_HEADERS if last else 0, stream_id, part))
    return b"".join(frames)


def reset_frame(stream_id: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream_id, NUMBER.pack(code))


def window_frame(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, NUMBER.pack(increment))


def goaway_frame(last_stream_id: int, code: int, message: str = "") -> bytes:
    payload = NUMBER.pack(last_stream_id) + NUMBER.pack(code) + message.encode()
    return frame(GOAWAY, 0, 0, payload)


def settings_frame(settings: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(SETTING.pack(*each) for each in settings.items()))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Parse the settings of a SETTINGS frame, in order.

    Raises:
      ConnectionFailure: the length is wrong, or a value is not allowed.
    """
    if len(payload) % SETTING.size:
        raise ConnectionFailure(FRAME_SIZE_ERROR, "SETTINGS of the wrong length")
    settings = list(SETTING.iter_unpack(payload))
    for setting, value in settings:
        if setting in (ENABLE_PUSH, ENABLE_CONNECT_PROTOCOL) and value > 1:
            raise ConnectionFailure(PROTOCOL_ERROR, "a setting is neither 0 nor 1")
        if setting == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFailure(FLOW_CONTROL_ERROR, "initial window too large")
        if setting == MAX_FRAME_SIZE and not DEFAULT_FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
            raise ConnectionFailure(PROTOCOL_ERROR, "maximum frame size out of range")
    return settings


def strip_padding(flags: int, payload: bytes) -> bytes:
    """Return the payload of a DATA or HEADERS frame without its padding."""
    if not flags & PADDED:
        return payload
    if not payload:
        raise ConnectionFailure(FRAME_SIZE_ERROR, "a padded frame without its padding length")
    padding = payload[0]
    if padding >= len(payload):
        raise ConnectionFailure(PROTOCOL_ERROR, "padding longer than the payload")
    return payload[1 : len(payload) - padding]
