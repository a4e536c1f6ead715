"""What the kernel knows of a socket, which costs nothing until somebody asks."""

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
    """How many bytes of a TCP connection's data were received, and sent and acknowledged.

    TLS and headers are among them. None where the system does not say.
    """
    if sys.platform == "linux" and isinstance(sock, socket.socket):  # else it is in memory
        try:
            info = sock.getsockopt(
                socket.IPPROTO_TCP, socket.TCP_INFO, BYTE_COUNTERS_OFFSET + BYTE_COUNTERS.size
            )
            sent, received = BYTE_COUNTERS.unpack_from(info, BYTE_COUNTERS_OFFSET)
            return received, sent
        except (OSError, struct.error):  # it is closed, or a Unix socket, or the kernel is old
            pass
    return None, None


def is_own(uid: int) -> bool:
    """Whether it is the user that runs this process, or root."""
    return uid in (0, os.geteuid())


def peer_uid(sock: object) -> int | None:
    """The user at the other end of a Unix socket; None if it is none, or nobody can tell."""
    if (
        not hasattr(socket, "SO_PEERCRED")
        or not isinstance(sock, (socket.socket, trio.socket.SocketType))
        or sock.family != socket.AF_UNIX
    ):
        return None
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:  # it is closed
        return None
    _, uid, _ = struct.unpack("3i", credentials)
    return int(uid)
