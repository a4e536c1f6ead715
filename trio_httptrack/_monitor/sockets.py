"""What the kernel knows about a socket. It costs nothing until it is queried."""

from __future__ import annotations

import os
import socket
import struct
import sys

import trio

# In Linux's struct tcp_info, since 4.1: tcpi_bytes_acked and tcpi_bytes_received.
BYTE_COUNTERS = struct.Struct("QQ")
BYTE_COUNTERS_OFFSET = 120


def traffic(sock: object) -> tuple[int | None, int | None]:
    """Return how many bytes a TCP connection has received, and sent and had acknowledged.

    TLS and headers are included. None if the system does not count them.
    """
    if sys.platform == "linux" and isinstance(sock, socket.socket):  # otherwise it is in memory
        try:
            info = sock.getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, BYTE_COUNTERS_OFFSET + BYTE_COUNTERS.size
            )
            sent, received = BYTE_COUNTERS.unpack_from(info, BYTE_COUNTERS_OFFSET)
            return received, sent
        except (OSError, struct.error):  # closed, or a Unix socket, or an old kernel
            pass
    return None, None


def is_own(uid: int) -> bool:
    """Return whether a user is the one that runs this process, or root."""
    return uid in (0, os.geteuid())


def peer_uid(sock: object) -> int | None:
    """Return the user ID of a Unix socket's peer; None for another socket, or if unknown."""
    if (
        not hasattr(socket, "SO_PEERCRED")
        or not isinstance(sock, (socket.socket, trio.socket.SocketType))
        or sock.family != socket.AF_UNIX
    ):
        return None
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:  # the socket is closed
        return None
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
