"""The server's side of a WebSocket's opening handshake, over HTTP/1.1 and HTTP/2.

The request alone decides whether it can be accepted (RFC 6455, 4.2.1, and RFC 8441 for HTTP/2).
No input of a client raises here, only invalid arguments of an application.
"""

from __future__ import annotations

from collections.abc import Iterable

from wsproto.handshake import WEBSOCKET_VERSION
from wsproto.utilities import generate_accept_token, split_comma_header

from .websocket_frames import Deflate, Frames

Headers = list[tuple[bytes, bytes]]


class Handshake:
    """A request to open a WebSocket."""

    valid: bool
    """Whether it may be accepted."""

    subprotocols: list[str]
    """The subprotocols that the client offers, in the order of its preference."""

    def __init__(
        self, headers: Iterable[tuple[bytes, bytes]], http_version: str, max_message_size: int
    ) -> None:
        self._http_version = http_version
        self._max_message_size = max_message_size
        fields: dict[bytes, bytes] = {}
        for name, value in headers:
            name = name.lower()
            if name in (b"connection", b"upgrade") or name.startswith(b"sec-websocket-"):
                # A repeated field is one list (RFC 9110, 5.3).
                fields[name] = fields[name] + b"," + value if name in fields else value
        ascii_only = all(value.isascii() for value in fields.values())
        self._key = fields.get(b"sec-websocket-key")
        self._extensions = _split(fields, b"sec-websocket-extensions") if ascii_only else []
        self.subprotocols = _split(fields, b"sec-websocket-protocol") if ascii_only else []
        self.valid = (
            ascii_only
            and fields.get(b"sec-websocket-version") == WEBSOCKET_VERSION
            and http_version >= "1.1"
            and (http_version != "1.1" or self._upgrades(fields))
        )

    def _upgrades(self, fields: dict[bytes, bytes]) -> bool:
        """Return whether the request is for an HTTP/1.1 upgrade. HTTP/2 has CONNECT for that."""
        connection = [token.lower() for token in _split(fields, b"connection")]
        return (
            self._key is not None
            and "upgrade" in connection
            and fields.get(b"upgrade", b"").lower() == b"websocket"
        )

    def accept(
        self, subprotocol: str | None, additional_headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[int, Headers, Frames]:
        """Return the response's status code and headers, and the frames of the open WebSocket.

        Raises:
          ValueError: the client did not offer the subprotocol, or a header must not be added.
        """
        headers: Headers = []
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError(f"the client did not offer the subprotocol {subprotocol!r}")
            headers.append((b"sec-websocket-protocol", subprotocol.encode()))
        deflate, extensions = self._negotiate()
        if extensions:
            headers.append((b"sec-websocket-extensions", extensions))
        if self._key is not None:
            headers.append((b"sec-websocket-accept", generate_accept_token(self._key)))
        status = 200
        if self._http_version == "1.1":
            headers += [(b"upgrade", b"WebSocket"), (b"connection", b"Upgrade")]
            status = 101
        for name, value in additional_headers:
            if name.lower() == b"sec-websocket-protocol" or name.startswith(b":"):
                raise ValueError(f"an application cannot add the header {name!r}")
            headers.append((name, value))
        return status, headers, Frames(self._max_message_size, deflate)

    def _negotiate(self) -> tuple[Deflate | None, bytes]:
        """Accept the first offer of compression that can be met, and decline the others.

        Each offer gets an extension object of its own, because an object that declines an offer
        may already have changed its parameters.
        """
        for offer in self._extensions:
            if offer.split(";", 1)[0].strip() != Deflate.name:
                continue
            deflate = Deflate(self._max_message_size)
            try:
                parameters = deflate.accept(offer)
            except ValueError:  # invalid
                continue
            if isinstance(parameters, str):
                response = f"{Deflate.name}; {parameters}" if parameters else Deflate.name
                return deflate, response.encode()
        return None, b""


def _split(fields: dict[bytes, bytes], name: bytes) -> list[str]:
    return split_comma_header(fields[name]) if name in fields else []
