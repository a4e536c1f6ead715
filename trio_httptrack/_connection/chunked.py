"""Read a chunked request body without h11 (RFC 9112, 7.1).

h11's time for a trailer is quadratic in a run of spaces: a packet full of them takes seconds. And
before version 0.16 it accepted any two bytes at the end of a chunk, which allows request
smuggling. Every step here is linear, and everything that is not plainly valid is refused. This
module may be stricter than h11, but never laxer.

Chunk extensions are ignored, and trailers are dropped: neither may change how the request is
understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .http1_rules import Refused

# 16 digits are 64 bits. An extension is any text without a line break.
SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\x00\r\n]*|[ \t]*)")
TRAILER = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+:[^\x00\r\n\x0b\x0c\x7f]*")

MAX_LINE = 2**12  # bytes of a chunk's first line


class Chunked:
    """Decodes a chunked body."""

    __slots__ = ("_left", "_line", "_max_trailers", "_trailers", "complete", "rest")

    def __init__(self, max_trailers: int) -> None:
        self._max_trailers = max_trailers
        self._line = b""  # a line, as far as it was read
        self._left = 0  # bytes of the current chunk, with the line break after it
        self._trailers = -1  # bytes of trailers; negative before the last chunk
        self.complete = False
        """Whether the whole body was read."""
        self.rest = b""
        """The bytes after the body."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the parts of the body in ``data``, chunk by chunk.

        Raises:
          Refused: the body is not validly chunked. The parts before that were yielded.
        """
        start = 0
        while not self.complete and start < len(data):
            if self._left > 2:
                end = min(len(data), start + self._left - 2)
                self._left -= end - start
                yield data[start:end]
                start = end
            elif self._left:
                if data[start] != b"\r\n"[-self._left]:
                    raise Refused(400)
                self._left -= 1
                start += 1
            else:
                end = data.find(b"\n", start) + 1 or len(data)
                self._line += data[start:end]
                start = end
                if self._line.endswith(b"\n"):
                    self._read_line()
                elif len(self._line) > self._limit:
                    raise Refused(400 if self._trailers < 0 else 431)
        self.rest = data[start:]

    @property
    def _limit(self) -> int:
        return MAX_LINE if self._trailers < 0 else self._max_trailers

    def _read_line(self) -> None:
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise Refused(400)
        text = line[:-2]
        if self._trailers >= 0:
            self._trailers += len(line)
            if self._trailers > self._max_trailers:
                raise Refused(431)
            if text and not TRAILER.fullmatch(text):
                raise Refused(400)
            self.complete = not text
            return
        match = SIZE.fullmatch(text)
        if match is None or len(line) > MAX_LINE:
            raise Refused(400)
        size = int(match[1], 16)
        if size:
            self._left = size + 2
        else:
            self._trailers = 0
