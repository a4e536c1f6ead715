from __future__ import annotations

import socket
import sys

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_httptrack._hypercorn.hangups import Hangups

from .test_faults import reset

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await trio.open_tcp_stream(*listener.getsockname())
        server = trio.socket.from_stdlib_socket(listener.accept()[0])
    return client, trio.SocketStream(server)


@pytest.mark.parametrize("was_reset", [False, True])
async def test_a_peers_end_is_seen_behind_what_it_sent(was_reset: bool) -> None:
    """Without any reading, and once; whether it may still read is told as well."""
    hangups, told = Hangups(), list[bool]()
    client, server = await tcp_pair()
    async with trio.open_nursery() as nursery, server:
        nursery.start_soon(hangups.run)
        await client.send_all(b"unread")
        with hangups.watch(server.socket.fileno(), told.append):
            await wait_all_tasks_blocked()
            assert told == []
            if was_reset:
                reset(client)
            else:
                await client.send_eof()
            while not told:
                await trio.lowlevel.checkpoint()
            await client.aclose()
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told == [was_reset]


async def test_who_does_not_watch_any_more_is_not_told_and_not_kept() -> None:
    """Neither after an end of the block, nor where the socket was closed within it."""
    hangups, told = Hangups(), list[bool]()
    client, server = await tcp_pair()
    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(hangups.run)
        with hangups.watch(server.socket.fileno(), told.append):
            pass
        await client.send_eof()
        await wait_all_tasks_blocked()
        with hangups.watch(server.socket.fileno(), told.append):
            await server.aclose()
        assert hangups._callbacks == {}
        nursery.cancel_scope.cancel()
    assert told == []


async def test_what_is_no_socket_is_not_watched() -> None:
    """An in-memory stream has no file descriptor, and a closed socket none any more."""
    hangups = Hangups()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hangups.run)
        with hangups.watch(-1, lambda reset: None):
            assert hangups._callbacks == {}
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
