"""The network of a memory server: what TCP promises, and where it does worse than TCP may.

``test_transport.py`` has what a server's connections make of it.
"""

from __future__ import annotations

from array import array
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from trio.testing import MockClock, check_half_closeable_stream

from trio_httptrack.testing._network import (
    BUFFER_SIZE,
    MemoryKernel,
    MemoryListener,
    MemorySocket,
    MemoryStream,
    ServerSide,
)


def socket_pair() -> tuple[MemorySocket, MemorySocket]:
    """A server's and a client's."""
    server = MemorySocket(("192.0.2.1", 80))
    client = MemorySocket(("192.0.2.7", 4711), client=True)
    server.connect(client)
    return server, client


async def stream_pair() -> tuple[MemoryStream, MemoryStream]:
    one, other = socket_pair()
    return MemoryStream(one), MemoryStream(other)


async def clogged_pair() -> tuple[MemoryStream, MemoryStream]:
    one, other = await stream_pair()
    for stream in (one, other):
        await stream.send_all(bytes(BUFFER_SIZE))
    return one, other


async def test_it_does_what_any_trio_stream_does() -> None:
    """By Trio's own list of what that is."""
    await check_half_closeable_stream(stream_pair, clogged_pair)


async def test_a_sender_waits_for_its_reader(autojump_clock: MockClock) -> None:
    """64 KiB are on their way at most, each way."""
    one, other = await stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, bytes(BUFFER_SIZE + 1))
        nursery.start_soon(other.send_all, bytes(BUFFER_SIZE))
        await trio.sleep(1)
        assert len(nursery.child_tasks) == 1
        assert await other.receive_some(1) == b"\0"
        await trio.sleep(1)
        assert len(nursery.child_tasks) == 0


async def test_a_reset_destroys_what_a_client_has_not_read() -> None:
    """And breaks the connection for readers and for writers."""
    server, client = await stream_pair()
    await server.send_all(b"answer")
    server.reset()
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
            await client.receive_some()
        with pytest.raises(trio.BrokenResourceError, match="Broken pipe"):
            await client.send_all(b"x")


async def test_a_server_reads_what_came_before_a_reset() -> None:
    """As on Linux."""
    server, client = await stream_pair()
    await client.send_all(b"request")
    client.reset()
    assert await server.receive_some() == b"request"
    with pytest.raises(trio.BrokenResourceError, match="reset by peer"):
        await server.receive_some()


async def test_closing_with_something_unread_is_a_reset() -> None:
    """As RFC 2525 requires of TCP: the peer must learn that its data was not read."""
    server, client = await stream_pair()
    await client.send_all(b"unheard")
    await server.send_all(b"answer")
    await server.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()


async def test_what_was_sent_before_a_close_is_read_before_the_end() -> None:
    """A close that leaves nothing unread is no reset."""
    server, client = await stream_pair()
    await server.send_all(b"answer")
    await server.aclose()
    assert [await client.receive_some() for _ in range(3)] == [b"answer", b"", b""]


async def test_sending_to_a_closed_peer_causes_a_reset() -> None:
    """Which the first to send does not know yet, and which destroys what it has not read."""
    server, client = await stream_pair()
    await server.send_all(b"answer")
    await server.aclose()
    await client.send_all(b"one more thing")
    for use in (client.send_all(b"another"), client.receive_some()):
        with pytest.raises(trio.BrokenResourceError):
            await use


async def test_a_peer_that_has_read_the_end_reads_no_reset() -> None:
    """As on Linux: the end came first."""
    server, client = await stream_pair()
    await server.aclose()
    await client.send_all(b"a request that comes too late")
    assert await client.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")


async def test_after_a_reset_or_a_close_no_end_can_be_sent() -> None:
    """As with any socket; but twice it can."""
    server, client = await stream_pair()
    await client.send_eof()
    await client.send_eof()
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_eof()
    server, client = await stream_pair()
    client.reset()
    with pytest.raises(trio.BrokenResourceError):
        await server.send_eof()


async def test_any_buffer_can_be_sent() -> None:
    """Whatever its items are; what counts are its bytes."""
    server, client = await stream_pair()
    await client.send_all(memoryview(array("I", [1, 2])))
    assert await server.receive_some() == array("I", [1, 2]).tobytes()


async def test_an_accepted_end_has_a_descriptor_until_it_is_closed() -> None:
    """It is closed by its server, and again by the code that accepted it."""
    kernel = MemoryKernel()
    async with MemoryListener() as listener, trio.open_nursery() as nursery:
        server, client = socket_pair()
        nursery.start_soon(listener.offer, ServerSide(server))
        accepted = await listener.accept()
        assert accepted.socket is server
        client.send(b"request")
        assert kernel.read(kernel.add(server), 100) == b"request"
        server.close()
        await accepted.aclose()
        assert server.fileno() == -1
        assert not kernel._sockets


async def test_a_closed_listener_refuses() -> None:
    """As an operating system does for a port without a listener."""
    listener = MemoryListener()
    await listener.aclose()
    with pytest.raises(ConnectionRefusedError):
        await listener.offer(ServerSide(socket_pair()[0]))


CLIENT = 1


class BothEnds(RuleBasedStateMachine):
    """Any sequence of what two peers can do, beside two strings and what is known of them."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets = socket_pair()
        self.unread = [b"", b""]  # by who is to read it
        self.ended = [False, False]
        self.closed = [False, False]
        self.broken = [False, False]
        self.was_reset = [False, False]

    @rule(end=st.sampled_from([0, 1]), data=st.binary(), times=st.sampled_from([1, 2000]))
    def send(self, end: int, data: bytes, times: int) -> None:
        data *= times
        if self.closed[end] or self.ended[end] or self.broken[end]:
            with pytest.raises(OSError, match=r"Bad file descriptor|Broken pipe"):
                self.sockets[end].send(data)
        elif not data:
            assert self.sockets[end].send(data) == 0
        elif self.closed[1 - end]:
            assert self.sockets[end].send(data) == len(data)
            self._reset(end)
        elif len(self.unread[1 - end]) == BUFFER_SIZE:
            with pytest.raises(BlockingIOError):
                self.sockets[end].send(data)
        else:
            sent = self.sockets[end].send(data)
            assert sent == min(len(data), BUFFER_SIZE - len(self.unread[1 - end]))
            self.unread[1 - end] += data[:sent]

    @rule(end=st.sampled_from([0, 1]), size=st.integers(1, BUFFER_SIZE))
    def recv(self, end: int, size: int) -> None:
        if self.closed[end] or (self.was_reset[end] and not self.unread[end]):
            with pytest.raises(OSError, match=r"Bad file descriptor|reset by peer"):
                self.sockets[end].recv(size)
        elif not self.unread[end] and not self.ended[1 - end]:
            with pytest.raises(BlockingIOError):
                self.sockets[end].recv(size)
        else:
            assert self.sockets[end].recv(size) == self.unread[end][:size]
            self.unread[end] = self.unread[end][size:]

    @rule(end=st.sampled_from([0, 1]))
    def end(self, end: int) -> None:
        if self.closed[end] or self.broken[end]:
            with pytest.raises(OSError, match="not connected"):
                self.sockets[end].shutdown(1)
        else:
            self.sockets[end].shutdown(1)
            self.ended[end] = True

    @rule(end=st.sampled_from([0, 1]))
    def close(self, end: int) -> None:
        self.sockets[end].close()
        self._close(end, reset=bool(self.unread[end]))

    @rule(end=st.sampled_from([0, 1]))
    def reset(self, end: int) -> None:
        self.sockets[end].reset()
        self._close(end, reset=True)

    def _close(self, end: int, *, reset: bool) -> None:
        if not self.closed[end]:
            self.closed[end] = True
            self.ended[end] = self.ended[end] or not (self.broken[end] or reset)
            self.unread[end] = b""
            if reset:
                self._reset(1 - end)

    def _reset(self, end: int) -> None:
        self.broken[end] = True
        destroyed = end == CLIENT and self.unread[end] != b""
        if destroyed or not self.ended[1 - end]:
            self.was_reset[end] = True
        if destroyed:
            self.unread[end] = b""

    @invariant()
    def says_what_can_be_read(self) -> None:
        for end, socket in enumerate(self.sockets):
            readable = self.unread[end] or self.ended[1 - end] or self.broken[end]
            if not self.closed[end]:
                assert bool(socket.events) == bool(readable)


TestBothEnds: Any = BothEnds.TestCase
TestBothEnds.settings = settings(max_examples=100)
