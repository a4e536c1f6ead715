"""What a connection is told by its server's configuration, once, when the worker starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .pace import Rate

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that connections read of a configuration. Times are in seconds."""

    keep_alive_timeout: float
    """How long a connection may rest before its first request and between two."""

    handshake_timeout: float
    """How long a TLS handshake may take."""

    read_timeout: float | None
    """How long a client may pause in the middle of a request."""

    min_request_rate: Rate | None
    """How fast a request's body must come."""

    min_response_rate: Rate | None
    """How fast what is written must be read."""

    request_timeout: float | None
    """How long a handler may take until its response is complete."""

    cancel_on_disconnect: float | None
    """How long a handler may go on when its client has gone; None for as long as it likes."""

    max_connection_ages: Sequence[float]
    """After how long a connection drains: each after one of these, if there are any."""

    tcp_keepalive: float | None
    """After how long a peer that the kernel hears nothing of has gone."""

    drain_idle_timeout: float
    drain_new_timeout: float
    drain_websocket_code: int

    keep_alive_max_requests: int
    """The response to this many requests on one connection is its last."""

    max_head_size: int
    """Bytes of a request's head that may come without its end."""

    raw_header_names: bool
    """Whether the application sees header names as the client wrote them."""

    max_queue_size: int
    """Events that may wait for an application before its client has to wait."""

    h2c_upgrade: bool
    """Whether an HTTP/1.1 request in the clear may upgrade its connection to HTTP/2."""

    h2_max_streams: int
    """Requests of one HTTP/2 connection that may be in flight, and handlers that may run."""

    h2_max_header_list_size: int
    """Bytes of an HTTP/2 request's headers, as RFC 9113 (6.5.2) counts them."""

    h2_max_frame_size: int
    """Bytes of a frame that a client may send."""

    h2_max_overhead: int
    """Bytes of HTTP/2 frames that carry nothing, in ten seconds."""

    websocket_max_message_size: int
    websocket_ping_interval: float | None

    websocket_ping_timeout: float | None
    """How long a WebSocket's client may be silent behind a ping."""

    root_path: str
    server_names: frozenset[str]
    """Hosts that are served; empty for any."""

    server_headers: Callable[[str], Headers]
    """The server's own response headers, such as the date, for ``"h11"`` or ``"h2"``."""
