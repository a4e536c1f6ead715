"""A socket by its shortest way: what is read, what is written, and how both end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_httptrack._hypercorn.kernel import SystemKernel
from trio_httptrack._hypercorn.transport import MAX_PARTS, MAX_RECEIVE, Transport
from trio_httptrack.testing._network import MemoryKernel, MemorySocket, MemoryStream

from .support import reset

linux = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")


@asynccontextmanager
async def tcp_pair() -> AsyncIterator[tuple[trio.SocketStream, Transport]]:
    """A client's end, and the transport of the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await trio.open_tcp_stream(*listener.getsockname())
        server = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
    with closing(SystemKernel()) as kernel:
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(kernel.run)
            with closing(Transport(server, kernel)) as transport:
                yield client, transport
            assert kernel._callbacks == {}
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def memory_pair() -> AsyncIterator[tuple[MemoryStream, Transport]]:
    """The same, of a memory server."""
    ours, theirs = MemorySocket(("127.0.0.1", 80)), MemorySocket(("127.0.0.1", 40001))
    kernel = MemoryKernel()
    ours.connect(theirs)
    ours.open(kernel)
    async with (
        MemoryStream(theirs) as client,
        MemoryStream(ours) as server,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(kernel.run)
        with closing(Transport(server, kernel)) as transport:  # type: ignore[arg-type]
            yield client, transport
        assert not kernel._registered
        assert not kernel._sockets
        nursery.cancel_scope.cancel()


Pair = Callable[[], AbstractAsyncContextManager[tuple[Any, Transport]]]


@pytest.fixture(params=[pytest.param(tcp_pair, marks=linux, id="epoll"), "trio", memory_pair])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Makes connections whose server waits for the worker's epoll, or as on other systems."""
    if request.param == "trio":
        monkeypatch.setattr(SystemKernel, "tells", False)
        return tcp_pair
    make: Pair = request.param
    return make


def read_now(client: Any) -> bytes:
    """Without a checkpoint."""
    if isinstance(client, MemoryStream):
        return client.socket.recv(2**20)
    return os.read(client.socket.fileno(), 2**20)


async def become_known(transport: Transport) -> None:
    """Have its socket registered, as the first who waits for something to read does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.receive)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_what_comes_is_read_whenever_it_comes(pair: Pair) -> None:
    """Before anybody reads, while somebody waits, and behind what was read."""
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        for part in (b"one", b"two"):
            await client.send_all(part)
            with assert_checkpoints():
                assert await transport.receive() == part

        received = []

        @nursery.start_soon
        async def read() -> None:
            received.append(await transport.receive())

        await wait_all_tasks_blocked()
        assert received == []
        await client.send_all(b"three")
        while not received:
            await trio.lowlevel.checkpoint()
        assert received == [b"three"]


async def test_more_than_one_read_takes_is_read_by_the_next(pair: Pair) -> None:
    """Though the kernel tells of it but once."""
    data = bytes(3 * MAX_RECEIVE + 1)
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        received = 0
        while received < len(data):
            received += len(await transport.receive())


async def test_the_end_is_read_behind_the_last_bytes(pair: Pair) -> None:
    """Also where both came before anybody read, and as often as it is asked for."""
    async with pair() as (client, transport):
        await client.send_all(b"first")
        assert await transport.receive() == b"first"
        with trio.move_on_after(0):
            await transport.receive()  # now the socket is registered
        await client.send_all(b"last")
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert await transport.receive() == b"last"
        assert await transport.receive() == b""
        assert await transport.receive() == b""


@linux
async def test_a_socket_that_a_child_still_has_is_forgotten_all_the_same() -> None:
    """Its number may be another's next, and what happens to it is no longer ours."""
    async with tcp_pair() as (client, transport):
        await become_known(transport)
        number, told = transport._fileno, list[int]()
        kernel: Any = transport._kernel
        inherited = os.dup(number)  # as a forked child would have it
        try:
            transport.close()
            kernel._callbacks[number] = told.append  # as its next owner would be
            await client.send_all(b"hello")
            await wait_all_tasks_blocked()
            assert told == []
            del kernel._callbacks[number]
        finally:
            os.close(inherited)


@pytest.mark.parametrize("tells", [pytest.param(True, marks=linux), False])
async def test_what_lies_behind_an_urgent_byte_is_read(
    tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read stops before it, and nothing new has come when the next one begins."""
    monkeypatch.setattr(SystemKernel, "tells", tells)
    async with tcp_pair() as (client, transport):
        await become_known(transport)
        await client.socket.send(b"before")
        await client.socket.send(b"!", socket.MSG_OOB)
        await client.socket.send(b"behind")
        await wait_all_tasks_blocked()
        received = b""
        with trio.fail_after(5):
            while not received.endswith(b"behind"):
                received += await transport.receive()
    assert received == b"beforebehind"


@pytest.mark.parametrize("tells", [pytest.param(True, marks=linux), False])
async def test_what_lies_behind_a_passed_descriptor_is_read(
    tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read from a Unix socket stops there, too."""
    monkeypatch.setattr(SystemKernel, "tells", tells)
    ours, theirs = socket.socketpair()
    with closing(SystemKernel()) as kernel, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.run)
            server = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
            with closing(Transport(server, kernel)) as transport:
                await become_known(transport)
                socket.send_fds(theirs, [b"one"], [theirs.fileno()])
                theirs.send(b"two")
                await wait_all_tasks_blocked()
                received = b""
                with trio.fail_after(5):
                    while not received.endswith(b"two"):
                        received += await transport.receive()
            nursery.cancel_scope.cancel()


async def test_a_reset_is_a_broken_connection(pair: Pair) -> None:
    """For who reads it and for who writes on."""
    async with pair() as (client, transport):
        reset(client)
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()
        with pytest.raises(trio.BrokenResourceError):
            await transport.send([b"hello"])


async def test_closing_wakes_who_reads_and_who_writes(pair: Pair) -> None:
    """They learn that it was closed, and everybody after them."""
    async with pair() as (_, transport):
        closed = []

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive()
            closed.append("read")

        async def write() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send([bytes(2**25)])
            closed.append("write")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            transport.close()
        assert sorted(closed) == ["read", "write"]
        await read()
        await write()


async def test_a_cancelled_read_loses_nothing(pair: Pair) -> None:
    """Neither when it waits, nor when there is something."""
    async with pair() as (client, transport):
        for _ in range(2):
            with trio.CancelScope() as scope:
                scope.cancel()
                await transport.receive()
            assert scope.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.receive)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await client.send_all(b"hello")
        assert await transport.receive() == b"hello"


async def test_a_write_that_has_room_is_no_checkpoint(pair: Pair) -> None:
    """However many parts it has."""
    async with pair() as (client, transport):
        for parts in ([b"x"], [b"x"] * MAX_PARTS, [b"x"] * 5000):
            with assert_no_checkpoints():
                await transport.send(parts)
            received = b""
            while len(received) < len(parts):
                received += await client.receive_some()
            assert received == b"x" * len(parts)


async def test_what_has_no_room_is_written_in_order_and_also_if_cancelled(pair: Pair) -> None:
    """Nobody's bytes come between the others', and no part is left out."""
    big = bytes(2**23)
    writes = [[b"head", big, b"", b"tail"], [b"second", big], [b"third"]]
    expected = b"".join(map(b"".join, writes))
    async with (
        pair() as (client, transport),
        trio.open_nursery() as nursery,
        trio.open_nursery() as writers,
    ):
        for parts in writes:
            writers.start_soon(transport.send, parts)
            await wait_all_tasks_blocked()
        writers.cancel_scope.cancel()
        received = bytearray()

        @nursery.start_soon
        async def read() -> None:
            while len(received) < len(expected):
                received.extend(await client.receive_some())

    assert received == expected


async def test_nobody_overtakes_who_waits_for_room(pair: Pair) -> None:
    """Also where there is room again, before the one who waits for it has noticed."""
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        big = bytes(2**23)
        nursery.start_soon(transport.send, [big])
        await wait_all_tasks_blocked()
        received = bytearray()
        with suppress(BlockingIOError):
            while True:
                received += read_now(client)

        @nursery.start_soon
        async def read() -> None:
            while len(received) < len(big) + 4:
                received.extend(await client.receive_some())

        await transport.send([b"last"])
    assert received == big + b"last"


telling = pytest.mark.parametrize("pair", [pytest.param(tcp_pair, marks=linux), memory_pair])


@telling
@pytest.mark.parametrize("was_reset", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("known", [False, True])
async def test_a_peers_end_is_seen_behind_what_it_sent(
    pair: Pair, was_reset: bool, before: bool, known: bool
) -> None:
    """Without any reading, whether somebody watches already or not."""
    told = list[bool]()
    async with pair() as (client, transport):
        if known:
            await become_known(transport)

        async def end() -> None:
            if was_reset:
                reset(client)
            else:
                await client.send_eof()

        await client.send_all(b"unread")
        if before:
            await end()
            await wait_all_tasks_blocked()
        with transport.watch(told.append):
            await wait_all_tasks_blocked()
            if not before:
                assert told == []
                await end()
            while not told:
                await trio.lowlevel.checkpoint()
        assert told[-1] == was_reset


@telling
@pytest.mark.parametrize("first", ["client", "server"])
async def test_where_both_have_ended_the_peer_reads_no_more(pair: Pair, first: str) -> None:
    """The kernel does not tell such an end from a reset, whoever was the first."""
    told = list[bool]()
    async with pair() as (client, transport):
        with transport.watch(told.append):
            if first == "server":
                transport.send_eof()
                await wait_all_tasks_blocked()
                assert told == []
            await client.send_eof()
            await wait_all_tasks_blocked()
            if first == "client":
                assert told == [False]
                transport.send_eof()
            while not told or not told[-1]:
                await trio.lowlevel.checkpoint()


@telling
async def test_who_does_not_watch_any_more_is_not_told(pair: Pair) -> None:
    """Neither after the block's end, nor where the socket was closed within it."""
    told = list[bool]()
    async with pair() as (client, transport):
        with transport.watch(told.append):
            pass
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert told == []
        with transport.watch(told.append):
            transport.close()
    assert told in ([], [False])  # it may have been seen before it was closed
