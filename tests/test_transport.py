"""The bytes of a connection, plain and under TLS: read, written, and how both end."""

from __future__ import annotations

import os
import select
import shutil
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from functools import cache, partial
from typing import Any

import pytest
import trio
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_httptrack._connection.kernel import Kernel
from trio_httptrack._connection.portable import PortableKernel
from trio_httptrack._connection.transport import (
    MAX_PARTS,
    MAX_RECEIVE,
    MAX_RECORD,
    Expired,
    Transport,
)
from trio_httptrack.testing._network import MemoryKernel, MemorySocket, MemoryStream

from .support import CA, CERT, reset

KERNELS: list[Any] = [PortableKernel]
if hasattr(select, "epoll"):
    from trio_httptrack._connection.epoll import MAX_EVENTS, MAX_HANG_UPS, EpollKernel

    KERNELS = [EpollKernel, PortableKernel]

linux = pytest.mark.skipif(len(KERNELS) == 1, reason="what only epoll does")
kernels = pytest.mark.parametrize("kernel", KERNELS)
TLS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Client:
    """A client's end, of a plain connection or beneath the TLS."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.received = 0  # bytes
        self._kept = b""

    @property
    def raw(self) -> Client:
        return self

    async def send_all(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive_some(self) -> bytes:
        data, self._kept = self._kept, b""
        if not data:
            data = bytes(await self.stream.receive_some(2**20))
        self.received += len(data)
        return data

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    def send_now(self, data: bytes) -> None:
        """Send without a checkpoint, so that no other task has noticed it yet."""
        if isinstance(self.stream, MemoryStream):
            assert self.stream.socket.send(data) == len(data)
        else:
            assert os.write(self.stream.socket.fileno(), data) == len(data)

    def end_now(self) -> None:
        self.stream.socket.shutdown(socket.SHUT_WR)

    def read_now(self) -> None:
        """Make room, without a checkpoint; what was read is received later."""
        with suppress(BlockingIOError):
            while True:
                if isinstance(self.stream, MemoryStream):
                    self._kept += self.stream.socket.recv(2**20)
                else:
                    self._kept += self.stream.socket._sock.recv(2**20)

    def reset(self) -> None:
        reset(self.stream)


class TlsClient:
    """The same with TLS. Unlike Trio's it can end what it sends, and still receive."""

    def __init__(self, raw: Client, context: ssl.SSLContext) -> None:
        self.raw = raw
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self.reset, self.read_now, self.end_now = raw.reset, raw.read_now, raw.end_now

    async def _retry(self, operation: Callable[[], Any]) -> Any:
        while True:
            result = done = None
            with suppress(ssl.SSLWantReadError):
                result, done = operation(), True
            await self._flush()
            if done:
                return result
            records = await self.raw.receive_some()
            if not records:
                raise trio.BrokenResourceError("the end was cut off")
            self._incoming.write(records)

    async def _flush(self) -> None:
        if records := self._outgoing.read():
            await self.raw.send_all(records)

    async def do_handshake(self, request: bytes = b"") -> None:
        """Send the request with the last of it."""

        def operation() -> None:
            self.tls.do_handshake()
            if request:
                self.tls.write(request)

        await self._retry(operation)

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view) :]
        await self._flush()

    def send_now(self, data: bytes) -> None:
        self.tls.write(data)
        self.raw.send_now(self._outgoing.read())

    async def receive_some(self) -> bytes:
        """None at the server's ``close_notify``.

        Raises:
          trio.BrokenResourceError: the server has ended without one.
        """
        try:
            return bytes(await self._retry(partial(self.tls.read, 2**16)))
        except ssl.SSLZeroReturnError:  # instead of b"", if we have ended, too
            return b""

    async def send_close_notify(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()

    async def send_eof(self) -> None:
        await self.send_close_notify()
        await self.raw.send_eof()


@cache
def client_ssl(version: str, alpn: str = "http/1.1", *, trusting: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = TLS[version]
    context.set_alpn_protocols([alpn])
    if trusting:
        CA.configure_trust(context)
    return context


@cache
def server_ssl() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CERT.configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@asynccontextmanager
async def tcp_pair(
    make_kernel: Callable[[], Any] = KERNELS[0], *, tls: bool
) -> AsyncIterator[tuple[Client, Transport]]:
    """A client's end, and the transport of the server's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await trio.open_tcp_stream(*listener.getsockname())
        server = listener.accept()[0]
    server.setblocking(False)
    with closing(make_kernel()) as kernel:
        transport = Transport(server, kernel, server_ssl() if tls else None)
        async with client, running(kernel, transport):
            yield Client(client), transport
        assert not any(each for each in vars(kernel).values() if isinstance(each, (dict, set)))


@asynccontextmanager
async def memory_pair(*, tls: bool) -> AsyncIterator[tuple[Client, Transport]]:
    """The same, of a memory server."""
    ours, theirs = MemorySocket(("127.0.0.1", 80)), MemorySocket(("127.0.0.1", 40001))
    kernel = MemoryKernel()
    ours.connect(theirs)
    transport = Transport(ours, kernel, server_ssl() if tls else None)
    async with MemoryStream(theirs) as client, running(kernel, transport):
        yield Client(client), transport
    assert not kernel._registered
    assert not kernel._sockets


@asynccontextmanager
async def running(kernel: Kernel, transport: Transport) -> AsyncIterator[Transport]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.run)
        with closing(transport):
            yield transport
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def established(connect: Any, version: str | None) -> AsyncIterator[tuple[Any, Transport]]:
    """With the TLS handshake done, if there is a version of it."""
    async with connect(tls=version is not None) as (client, transport):
        if version is not None:
            client = TlsClient(client, client_ssl(version))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(transport.handshake)
                nursery.start_soon(client.do_handshake)
        yield client, transport


# On which a kernel knows all of what happens to a connection, whether or not somebody reads.
knowing = pytest.mark.parametrize("connect", [pytest.param(tcp_pair, marks=linux), memory_pair])

Pair = Callable[[], AbstractAsyncContextManager[tuple[Any, Transport]]]
Connect = Callable[..., AbstractAsyncContextManager[tuple[Client, Transport]]]


@pytest.fixture(
    params=[*(partial(tcp_pair, kernel) for kernel in KERNELS), memory_pair],
    ids=[*(kernel.__name__ for kernel in KERNELS), "memory"],
)
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes connections whose server waits for the worker's epoll, or as on other systems."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=[None, "1.2", "1.3"], ids=["plain", "TLSv1.2", "TLSv1.3"])
def pair(request: pytest.FixtureRequest, connect: Connect) -> Pair:
    """The same, plain or behind the handshake."""
    return partial(established, connect, request.param)


@pytest.fixture(params=["1.2", "1.3"], ids=["TLSv1.2", "TLSv1.3"])
def tls_pair(request: pytest.FixtureRequest, connect: Connect) -> Pair:
    return partial(established, connect, request.param)


async def become_known(transport: Transport) -> None:
    """Have its socket registered, as the first waiting read does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.receive)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def receive_all(client: Any, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += await client.receive_some()
    return bytes(received)


async def read_to_end(transport: Transport) -> bytes:
    received = b""
    while data := await transport.receive():
        received += data
    return received


def fill(transport: Transport) -> int:
    """Leave no room for what the server writes; return how many bytes that took."""
    written = 0
    with suppress(BlockingIOError):
        while True:
            written += transport._kernel.writev(transport._fileno, [bytes(2**16)])
    return written


# Reading


async def test_what_comes_is_read_whenever_it_comes(pair: Pair) -> None:
    """Before a read, while a read waits, and after a read."""
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
    """Though the kernel reports it but once."""
    data = bytes(3 * MAX_RECEIVE + 1)
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, data)
        received = 0
        while received < len(data):
            received += len(await transport.receive())


async def test_the_end_is_read_behind_the_last_bytes(pair: Pair) -> None:
    """Even if both came before the first read, and as often as it is read."""
    async with pair() as (client, transport):
        await client.send_all(b"first")
        assert await transport.receive() == b"first"
        await become_known(transport)
        await client.send_all(b"last")
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert await transport.receive() == b"last"
        for _ in range(3):
            with assert_checkpoints():
                assert await transport.receive() == b""


@linux
async def test_a_socket_that_a_child_still_has_is_forgotten_all_the_same() -> None:
    """Its number may be another's next, and what happens to it is no longer ours."""
    async with tcp_pair(tls=False) as (client, transport):
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
            assert await client.receive_some() == b""  # it has ended all the same
        finally:
            os.close(inherited)


@kernels
async def test_what_lies_behind_an_urgent_byte_is_read(kernel: Any) -> None:
    """A read stops before it, and nothing new has come when the next one begins."""
    async with tcp_pair(kernel, tls=False) as (client, transport):
        await become_known(transport)
        await client.stream.socket.send(b"before")
        await client.stream.socket.send(b"!", socket.MSG_OOB)
        await client.stream.socket.send(b"behind")
        await wait_all_tasks_blocked()
        received = b""
        with trio.fail_after(5):
            while not received.endswith(b"behind"):
                received += await transport.receive()
    assert received == b"beforebehind"


@kernels
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
async def test_what_lies_behind_a_passed_descriptor_is_read(kernel: Any) -> None:
    """A read from a Unix socket stops there, too."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with closing(kernel()) as kernel, theirs:
        async with running(kernel, Transport(ours, kernel, None)) as transport:
            await become_known(transport)
            socket.send_fds(theirs, [b"one"], [theirs.fileno()])
            theirs.send(b"two")
            await wait_all_tasks_blocked()
            received = b""
            with trio.fail_after(5):
                while not received.endswith(b"two"):
                    received += await transport.receive()


async def test_a_reset_is_a_broken_connection(pair: Pair) -> None:
    """For reads and for writes."""
    async with pair() as (client, transport):
        client.reset()
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()
        with pytest.raises(trio.BrokenResourceError):
            await transport.send([b"hello"])
        await transport.send_eof()


async def test_a_cancelled_read_loses_nothing(pair: Pair) -> None:
    """Neither when it waits, nor when there is something."""
    async with pair() as (client, transport):
        for _ in range(2):
            with trio.CancelScope() as scope:
                scope.cancel()
                await transport.receive()
            assert scope.cancelled_caught
        await become_known(transport)
        await client.send_all(b"hello")
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.receive()
        assert await transport.receive() == b"hello"


# The deadline


async def test_a_waiting_reader_learns_that_the_deadline_has_passed(pair: Pair) -> None:
    """And again, until it is renewed."""
    async with pair() as (client, transport):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def read() -> None:
                with pytest.raises(Expired):
                    await transport.receive()

            await wait_all_tasks_blocked()
            with assert_no_checkpoints():
                transport.expire()
        with pytest.raises(Expired), assert_checkpoints():
            await transport.receive()
        transport.renew()
        await become_known(transport)  # it waits
        await client.send_all(b"hello")
        assert await transport.receive() == b"hello"


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("ends", [False, True])
async def test_what_came_in_time_counts(pair: Pair, waiting: bool, ends: bool) -> None:
    """Even if no task has noticed it when the deadline passes."""
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        await become_known(transport)
        received = []

        @nursery.start_soon
        async def read() -> None:
            while not waiting:
                await trio.lowlevel.checkpoint()
            received.append(await transport.receive())
            if ends:
                received.append(await transport.receive())
            else:
                with pytest.raises(Expired):
                    await transport.receive()

        if waiting:
            await wait_all_tasks_blocked()
        if ends:
            client.end_now()
        else:
            client.send_now(b"in time")
        transport.expire()
        waiting = True
    assert received == ([b"", b""] if ends else [b"in time"])


async def test_a_part_of_a_record_is_not_enough_in_time(tls_pair: Pair) -> None:
    """Nothing can be made of it."""
    async with tls_pair() as (client, transport), trio.open_nursery() as nursery:
        client.tls.write(b"late")
        records = client._outgoing.read()

        @nursery.start_soon
        async def read() -> None:
            with pytest.raises(Expired):
                await transport.receive()
            transport.renew()
            assert await transport.receive() == b"late"

        await wait_all_tasks_blocked()
        client.raw.send_now(records[:-1])
        transport.expire()
        await wait_all_tasks_blocked()
        client.raw.send_now(records[-1:])


async def test_a_handshake_has_a_deadline(connect: Connect) -> None:
    """The client's part must come in time."""
    async with connect(tls=True) as (_, transport), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def handshake() -> None:
            with pytest.raises(Expired):
                await transport.handshake()

        await wait_all_tasks_blocked()
        transport.expire()


@pytest.mark.parametrize("closes", [False, True])
async def test_a_handshake_that_has_no_room_has_a_deadline(connect: Connect, closes: bool) -> None:
    """A client need not read the server's part; and it can be closed meanwhile."""
    async with connect(tls=True) as (raw, transport), trio.open_nursery() as nursery:
        fill(transport)
        client = TlsClient(raw, client_ssl("1.3"))
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        raw.send_now(client._outgoing.read())

        @nursery.start_soon
        async def handshake() -> None:
            with pytest.raises(trio.ClosedResourceError if closes else Expired):
                await transport.handshake()

        await wait_all_tasks_blocked()
        if closes:
            transport.close()
        else:
            transport.expire()


# Writing


async def test_a_write_that_has_room_is_no_checkpoint(pair: Pair) -> None:
    """However many parts it has."""
    async with pair() as (client, transport):
        for parts in ([b"x"], [b"x"] * MAX_PARTS, [b"x"] * 5000, [b"x" * 20000, b"x" * 20000]):
            with assert_no_checkpoints():
                await transport.send(parts)
            size = sum(map(len, parts))
            assert await receive_all(client, size) == b"x" * size
            assert transport._sending is None


async def test_what_has_no_room_is_written_in_order_and_also_if_cancelled(pair: Pair) -> None:
    """The bytes of two writers are never mixed, and no part is left out."""
    big = bytes(2**23)
    writes = [[b"head", big, b"", b"tail"], [b"second", big], [b"third"]]
    expected = b"".join(map(b"".join, writes))
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        async with trio.open_nursery() as writers:
            for parts in writes:
                writers.start_soon(transport.send, parts)
                await wait_all_tasks_blocked()
            writers.cancel_scope.cancel()
            received = list[bytes]()

            @nursery.start_soon
            async def read() -> None:
                received.append(await receive_all(client, len(expected)))

        assert transport._sending is None
    assert received == [expected]


@pytest.mark.parametrize("waiting", [1, 2])
async def test_no_writer_overtakes_one_that_waits_for_room(pair: Pair, waiting: int) -> None:
    """Even if there is room again, before the waiting writer has noticed."""
    big = bytes(2**23)
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        for _ in range(waiting):
            nursery.start_soon(transport.send, [big])
            await wait_all_tasks_blocked()
        received = await receive_all(client, (waiting - 1) * len(big))
        await wait_all_tasks_blocked()  # the last of them waits for room now
        client.read_now()
        rest = list[bytes]()

        @nursery.start_soon
        async def read() -> None:
            rest.append(await receive_all(client, waiting * len(big) + 4 - len(received)))

        await transport.send([b"last"])
    assert received + rest[0] == waiting * big + b"last"


async def test_what_has_no_room_now_can_be_sent_later(pair: Pair) -> None:
    """Only what is left of it; and nothing goes out now while others wait for their turn."""
    big = bytes(2**23)
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        assert transport.send_now([b"head", b"body"]) is None
        rest = transport.send_now([b"first", big])
        assert rest is not None
        assert sum(map(len, rest)) < len(big)
        nursery.start_soon(transport.send, rest)
        await wait_all_tasks_blocked()
        client.read_now()
        last = transport.send_now([b"last"])
        assert last == [b"last"]
        nursery.start_soon(transport.send, last)
        expected = b"headbodyfirst" + big + b"last"
        assert await receive_all(client, len(expected)) == expected


async def test_many_writers_take_turns(pair: Pair) -> None:
    """In the order in which they came, while the client reads and writes as it can."""
    writes = [bytes([number]) * (number * 4001 % 90_000) for number in range(1, 200)]
    expected = b"".join(writes)
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        for data in writes:
            nursery.start_soon(transport.send, [data[:9], data[9:]])
            await wait_all_tasks_blocked()

        @nursery.start_soon
        async def read() -> None:
            assert await receive_all(client, len(expected)) == expected

        for _ in range(20):
            await client.send_all(b"ping")
            assert await transport.receive() == b"ping"


async def test_closing_wakes_readers_and_writers(pair: Pair) -> None:
    """They learn that it was closed, and so do later calls."""
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
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            nursery.start_soon(transport.send_eof)  # behind them
            await wait_all_tasks_blocked()
            transport.close()
        assert sorted(closed) == ["read", "write", "write"]
        await read()
        await write()
        await transport.send_eof()
        transport.close(orderly=True)
        assert transport.unsent == 0


async def test_a_close_in_the_same_step_as_new_data_reaches_the_reader(pair: Pair) -> None:
    """The reader has been woken for bytes, and finds its socket closed."""
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        await become_known(transport)

        @nursery.start_soon
        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.receive()

        await wait_all_tasks_blocked()
        client.send_now(b"too late")
        transport._wake_reader()
        transport.close()


@knowing
async def test_what_is_unsent_is_what_has_not_reached_the_peer(connect: Connect) -> None:
    """So nothing is once it has read everything."""
    async with connect(tls=False) as (client, transport):
        written = fill(transport)
        assert transport.unsent > 0
        await receive_all(client, written)
        with trio.fail_after(5):
            while transport.unsent:
                await trio.lowlevel.checkpoint()


# The end


async def test_an_end_comes_behind_what_is_being_written(pair: Pair) -> None:
    """Nothing can be written then; but what the client sends is still read."""
    async with pair() as (client, transport), trio.open_nursery() as nursery:
        big = bytes(2**23)
        nursery.start_soon(transport.send, [big])
        await wait_all_tasks_blocked()
        nursery.start_soon(transport.send_eof)
        await wait_all_tasks_blocked()
        assert await receive_all(client, len(big)) == big
        assert await client.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await transport.send([b"more"])
        for part in (b"one", b"two"):
            await client.send_all(part)
            assert await transport.receive() == part
        await client.send_eof()
        assert await transport.receive() == b""
        assert await transport.receive() == b""


async def test_a_client_that_has_ended_is_still_sent_to(pair: Pair) -> None:
    """It has sent its request, and waits for the response."""
    async with pair() as (client, transport):
        await client.send_all(b"request")
        await client.send_eof()
        assert await read_to_end(transport) == b"request"
        await transport.send([b"response"])
        await transport.send_eof()
        assert await client.receive_some() == b"response"
        assert await client.receive_some() == b""


async def test_a_close_notify_is_an_end(tls_pair: Pair) -> None:
    """Whatever TCP says, and whatever comes behind it."""
    async with tls_pair() as (client, transport):
        await client.send_all(b"request")
        await client.send_close_notify()
        await client.raw.send_all(b"no record")
        assert await read_to_end(transport) == b"request"
        with assert_checkpoints():
            assert await transport.receive() == b""
        assert not transport.truncated
        await transport.send([b"response"])
        transport.close(orderly=True)
        assert await client.receive_some() == b"response"
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()


@pytest.mark.parametrize("within_a_record", [False, True])
async def test_a_missing_close_notify_is_an_end(tls_pair: Pair, within_a_record: bool) -> None:
    """HTTP has its own ways to see that something is missing, and many clients send none."""
    async with tls_pair() as (client, transport):
        await client.send_all(b"request")
        if within_a_record:
            assert await transport.receive() == b"request"
            await client.raw.send_all(b"\x17\x03\x03")
        await client.raw.send_eof()
        assert not transport.truncated
        assert await read_to_end(transport) == (b"" if within_a_record else b"request")
        assert transport.truncated
        await transport.send([b"response"])
        assert await client.receive_some() == b"response"


async def test_an_orderly_close_differs_from_a_forced_one(tls_pair: Pair) -> None:
    """A response that ends with its connection must not look complete if it is not."""
    async with tls_pair() as (client, transport):
        await transport.send([b"response"])
        transport.close(orderly=True)
        assert await client.receive_some() == b"response"
        assert await client.receive_some() == b""
    async with tls_pair() as (client, transport):
        await transport.send([b"a part of the resp"])
        transport.close()
        assert await client.receive_some() == b"a part of the resp"
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some()


async def test_an_end_within_a_write_is_never_orderly(tls_pair: Pair) -> None:
    """What is being written is cut off, also where there is room for more again."""
    async with tls_pair() as (client, transport):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def write() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await transport.send([bytes(2**23)])

            await wait_all_tasks_blocked()
            client.read_now()
            transport.close(orderly=True)
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(client, 2**23)


async def test_an_end_before_the_handshake_is_no_error(connect: Connect) -> None:
    """There is no TLS yet that could be ended."""
    async with connect(tls=True) as (client, transport):
        await transport.send_eof()
        transport.close(orderly=True)
        assert await client.receive_some() == b""


# TLS


@pytest.mark.parametrize(
    ("offered", "agreed"), [("h2", "h2"), ("http/1.1", "http/1.1"), ("smtp", None)]
)
async def test_the_handshake_agrees_on_a_protocol(
    connect: Connect, offered: str, agreed: str | None
) -> None:
    """By ALPN, if the client offers one that the server knows."""
    async with connect(tls=True) as (raw, transport), trio.open_nursery() as nursery:
        nursery.start_soon(TlsClient(raw, client_ssl("1.3", offered)).do_handshake)
        assert await transport.handshake() == agreed
        assert transport.tls


async def test_without_tls_there_is_no_handshake(connect: Connect) -> None:
    """So nothing is read, and nothing is agreed on."""
    async with connect(tls=False) as (_, transport):
        assert await transport.handshake() is None
        assert not transport.tls


@pytest.mark.parametrize("version", list(TLS))
async def test_a_request_may_come_with_the_end_of_the_handshake(
    connect: Connect, version: str
) -> None:
    """Then nothing new has to come for it to be read."""
    async with connect(tls=True) as (raw, transport):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.handshake)
            nursery.start_soon(TlsClient(raw, client_ssl(version)).do_handshake, b"request")
        with trio.fail_after(5), assert_checkpoints():
            assert await transport.receive() == b"request"


async def test_what_comes_with_the_handshake_is_not_read_after_a_close(connect: Connect) -> None:
    """As nothing is."""
    async with connect(tls=True) as (raw, transport):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.handshake)
            nursery.start_soon(TlsClient(raw, client_ssl("1.3")).do_handshake, b"request")
        transport.close()
        with pytest.raises(trio.ClosedResourceError):
            await transport.receive()


async def test_session_tickets_go_first_with_what_is_sent_first(connect: Connect) -> None:
    """A client that has sent all and closes would be reset if it had them unread."""
    async with established(connect, "1.3") as (client, transport):
        client.read_now()
        assert client.raw._kept == b""
        await transport.send([b"response"])
        assert await client.receive_some() == b"response"
        assert client.tls.session.has_ticket
    async with established(connect, "1.3") as (client, transport):
        await client.send_all(b"all of it")
        await client.raw.stream.aclose()
        assert await read_to_end(transport) == b"all of it"


HTTP = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", HTTP, b"\x16\x03\x01\x00\x05hello"])
async def test_what_is_no_handshake_is_a_broken_connection(connect: Connect, sent: bytes) -> None:
    """As is a handshake that is not completed."""
    async with connect(tls=True) as (client, transport):
        await client.send_all(sent)
        await client.send_eof()
        with pytest.raises(trio.BrokenResourceError):
            await transport.handshake()


async def test_a_reset_within_the_handshake_is_a_broken_connection(connect: Connect) -> None:
    """As at any other time."""
    async with connect(tls=True) as (client, transport):
        await client.send_all(b"\x16")
        client.reset()
        with pytest.raises(trio.BrokenResourceError):
            await transport.handshake()


async def test_a_client_that_does_not_trust_the_server_breaks_the_handshake(
    connect: Connect,
) -> None:
    """With the reason."""
    async with connect(tls=True) as (raw, transport), trio.open_nursery() as nursery:
        client = TlsClient(raw, client_ssl("1.2", trusting=False))

        @nursery.start_soon
        async def handshake() -> None:
            with pytest.raises(trio.BrokenResourceError) as broken:
                await transport.handshake()
            assert "UNKNOWN_CA" in str(broken.value.__cause__)

        with pytest.raises(ssl.SSLCertVerificationError):
            await client.do_handshake()
        await client._flush()


ALERT = b"\x15"


async def test_a_failed_handshake_sends_an_alert(connect: Connect) -> None:
    """By an alert, as TLS wants it."""
    async with connect(tls=True) as (client, transport):
        await client.send_all(b"\x16\x03\x01\x00\x05hello")
        with pytest.raises(trio.BrokenResourceError):
            await transport.handshake()
        transport.close()
        assert (await client.receive_some()).startswith(ALERT)


@pytest.mark.parametrize("request_first", [False, True])
async def test_a_record_that_cannot_be_decrypted_sends_an_alert(
    tls_pair: Pair, request_first: bool
) -> None:
    """And what came before it is read first."""
    async with tls_pair() as (client, transport):
        if request_first:
            client.tls.write(b"request")
        forged = b"\x17\x03\x03\x00\x30" + bytes(0x30)
        await client.raw.send_all(client._outgoing.read() + forged)
        if request_first:
            assert await transport.receive() == b"request"
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                await transport.receive()
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            await client.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await transport.send([b"response"])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the command openssl")
async def test_a_renegotiation_is_refused_at_once() -> None:
    """Not with the next response: the client waits for it, and may wait for that only."""
    with socket.create_server(("127.0.0.1", 0)) as listener, closing(KERNELS[0]()) as kernel:
        address = "{}:{}".format(*listener.getsockname())
        command = ["openssl", "s_client", "-tls1_2", "-connect", address]
        quiet = partial(trio.run_process, stdin=b"R\n", capture_stdout=True, capture_stderr=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(quiet, command, check=False))
            await trio.lowlevel.wait_readable(listener)
            ours = listener.accept()[0]
            ours.setblocking(False)
            async with running(kernel, Transport(ours, kernel, server_ssl())) as transport:
                await transport.handshake()
                with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                    await transport.receive()  # the client does without the connection then


@pytest.mark.parametrize("version", list(TLS))
async def test_a_client_that_renegotiates_and_does_not_read_is_disconnected(version: str) -> None:
    """The refusals would fill the memory."""
    async with established(memory_pair, version) as (client, transport):
        fill(transport)
        client.send_now(b"request")
        assert transport._tls is not None
        transport._tls._outgoing.write(bytes(MAX_RECORD))
        assert await transport.receive() == b"request"
        client.send_now(b"request")
        transport._tls._outgoing.write(bytes(MAX_RECORD + 1))
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive()


async def test_small_parts_are_one_record(tls_pair: Pair) -> None:
    """A record costs more than its bytes: a head and its body leave together."""
    async with tls_pair() as (client, transport):
        await transport.send([b"first"])
        assert await client.receive_some() == b"first"  # and the tickets
        await transport.send([b"head", b"body"])
        record = await client.raw.receive_some()
        assert len(record) == 5 + int.from_bytes(record[3:5], "big")


async def test_only_a_part_of_a_large_write_is_encrypted_before_it_is_written(
    tls_pair: Pair,
) -> None:
    """The rest is in memory once."""
    async with tls_pair() as (_, transport), trio.open_nursery() as nursery:

        @nursery.start_soon
        async def write() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send([bytes(2**23)])

        await wait_all_tasks_blocked()
        assert transport._tls is not None
        pending = len(transport._tls.unwritten) + transport._tls._outgoing.pending
        assert 0 < pending < 3 * MAX_RECORD
        transport.close()


# The peer's end, while nobody reads


@contextmanager
def watching(transport: Transport, hung_up: Callable[[bool], None]) -> Iterator[None]:
    transport.watch(hung_up)
    try:
        yield
    finally:
        transport.unwatch()


@pytest.mark.parametrize("was_reset", [False, True])
async def test_a_peers_close_is_noticed_without_a_read(pair: Pair, was_reset: bool) -> None:
    """Whether it has closed its side or reset; a later read finds the same."""
    told = list[bool]()
    async with pair() as (client, transport):
        with watching(transport, told.append):
            await wait_all_tasks_blocked()
            assert told == []
            if was_reset:
                client.reset()
            else:
                await client.raw.send_eof()
            with trio.fail_after(5):
                while not told:
                    await trio.lowlevel.checkpoint()
        assert told[-1] == was_reset
        if was_reset:
            with pytest.raises(trio.BrokenResourceError):
                await transport.receive()
        else:
            assert await transport.receive() == b""


async def test_nothing_watches_a_socket_that_was_closed() -> None:
    """Not even where what it has received was not read."""
    async with tcp_pair(PortableKernel, tls=False) as (client, transport):
        with watching(transport, lambda _: None):
            await client.send_all(b"unread")
            await wait_all_tasks_blocked()
            before = trio.lowlevel.current_statistics().tasks_living
            transport.close()
            await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before - 1


@pytest.mark.parametrize("connect", [partial(tcp_pair, PortableKernel)])
async def test_unread_data_keeps_no_task_busy(pair: Pair) -> None:
    """Trio would report it for as long as it is there."""
    async with pair() as (client, transport):
        with watching(transport, lambda _: None), trio.fail_after(5):
            await client.send_all(b"unread")
            await wait_all_tasks_blocked()
            assert await transport.receive() == b"unread"
            await client.raw.send_eof()
            await wait_all_tasks_blocked()


@knowing
@pytest.mark.parametrize("was_reset", [False, True])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("known", [False, True])
async def test_a_peers_end_is_seen_behind_what_it_sent(
    pair: Pair, was_reset: bool, before: bool, known: bool
) -> None:
    """Without a read, whether it is already watched or not."""
    told = list[bool]()
    async with pair() as (client, transport):
        if known:
            await become_known(transport)

        async def end() -> None:
            if was_reset:
                client.reset()
            else:
                await client.send_eof()

        await client.send_all(b"unread")
        if before:
            await end()
            await wait_all_tasks_blocked()
        with watching(transport, told.append):
            await wait_all_tasks_blocked()
            if not before:
                assert told == []
                await end()
            while not told:
                await trio.lowlevel.checkpoint()
        assert told[-1] == was_reset


@knowing
@pytest.mark.parametrize("first", ["client", "server"])
async def test_where_both_have_ended_the_peer_reads_no_more(pair: Pair, first: str) -> None:
    """The kernel does not distinguish such an end from a reset, whichever side was first."""
    told = list[bool]()
    async with pair() as (client, transport):
        with watching(transport, told.append):
            if first == "server":
                await transport.send_eof()
                await wait_all_tasks_blocked()
                assert told == []
            await client.send_eof()
            await wait_all_tasks_blocked()
            if first == "client":
                assert told == [False]
                await transport.send_eof()
            while not told or not told[-1]:
                await trio.lowlevel.checkpoint()


@knowing
async def test_a_watcher_that_has_stopped_is_not_called(pair: Pair) -> None:
    """Neither after the block's end, nor where the socket was closed within it."""
    told = list[bool]()
    async with pair() as (client, transport):
        with watching(transport, told.append):
            pass
        await client.send_eof()
        await wait_all_tasks_blocked()
        assert told == []
        with watching(transport, told.append):
            transport.close()
    assert told in ([], [False])  # it may have been seen before it was closed


# Many ends at once


@linux
async def test_many_closing_connections_do_not_delay_others() -> None:
    """A request is served before ends that came first, and they leave time for others."""
    count, step = 3 * MAX_EVENTS, 0
    ends, served = list[int](), list[int]()
    with closing(EpollKernel()) as kernel, ExitStack() as stack:

        def connect(callback: Callable[[int], None]) -> socket.socket:
            ours, theirs = socket.socketpair()
            kernel.register(stack.enter_context(ours).fileno(), callback)
            return stack.enter_context(theirs)

        for _ in range(count):
            connect(lambda _: ends.append(step)).close()
        connect(lambda _: served.append(len(ends))).send(b"request")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.run)
            while len(ends) < count:
                await trio.lowlevel.checkpoint()
                step += 1
            nursery.cancel_scope.cancel()
    assert served[0] < count / 2
    assert max(Counter(ends).values()) <= MAX_HANG_UPS
    assert step > 2 * len(set(ends))


@linux
@pytest.mark.parametrize("first", ["a request", "an end"])
async def test_what_happens_to_a_socket_that_was_closed_is_not_called_back(first: str) -> None:
    """Nor what has happened in the same moment: its number may be another's by then."""
    called = list[int]()
    with closing(EpollKernel()) as kernel, ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(4)]
        numbers = [stack.enter_context(one).fileno() for one, _ in pairs]

        def close_all(number: int, _: int) -> None:
            called.append(number)
            for each in numbers:
                kernel.forget(each)

        for number, (_, peer) in zip(numbers, pairs, strict=True):
            kernel.register(number, partial(close_all, number))
            stack.enter_context(peer)
            if first == "a request" and number == numbers[0]:
                peer.send(b"request")
            else:
                peer.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert called == numbers[:1]
