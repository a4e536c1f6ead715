"""The settings of connections, read once from the configuration when the worker starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .pace import Rate

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings that connections read. Times are in seconds."""

    keep_alive_timeout: float
    """How long a connection may be idle before its first request and between two."""

    handshake_timeout: float
    """How long a TLS handshake may take."""

    read_timeout: float | None
    """How long a client may pause in the middle of a request."""

    min_request_rate: Rate | None
    """The minimum rate at which a client must send a request's body."""

    min_response_rate: Rate | None
    """The minimum rate at which a client must read."""

    request_timeout: float | None
    """How long a handler may take until its response is complete."""

    cancel_on_disconnect: float | None
    """How long a handler may run after its client has disconnected; None for no limit."""

    max_connection_ages: Sequence[float]
    """The ages at which connections drain: each connection gets one of them, if there are any."""

    tcp_keepalive: float | None
    """After how long the kernel gives up a silent peer."""

    drain_idle_timeout: float
    drain_new_timeout: float
    drain_websocket_code: int

    keep_alive_max_requests: int
    """Requests on one connection. The response to the last of them closes the connection."""

    max_head_size: int
    """Maximum bytes of an incomplete request head."""

    raw_header_names: bool
    """Whether the application gets header names as the client wrote them."""

    max_queue_size: int
    """Events that may be queued for an application before the server stops reading."""

    h2c_upgrade: bool
    """Whether an HTTP/1.1 request without TLS may upgrade its connection to HTTP/2."""

    h2_max_streams: int
    """Maximum requests in flight, and running handlers, of one HTTP/2 connection."""

    h2_max_header_list_size: int
    """Maximum bytes of an HTTP/2 request's headers, as RFC 9113 (6.5.2) counts them."""

    h2_max_frame_size: int
    """Maximum bytes of a frame that a client sends."""

    h2_max_overhead: int
    """Maximum bytes of HTTP/2 frames without payload, in ten seconds."""

    websocket_max_message_size: int
    websocket_ping_interval: float | None

    websocket_ping_timeout: float | None
    """How long a WebSocket's client may be silent after a ping."""

    root_path: str
    server_names: frozenset[str]
    """The hosts that are served; empty for any."""

    server_headers: Callable[[str], Headers]
    """The server's own response headers, such as the date, for ``"h11"`` or ``"h2"``."""
