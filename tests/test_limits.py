"""ConnLimit: which connections it admits, how it refuses others, and what it counts."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from hypercorn.config import Config
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_httptrack import (
    Conn,
    ConnLimit,
    ConnState,
    ConnTracker,
    HijackTracker,
    StatsTracker,
    Tracker,
    compose,
    tracked_server,
)
from trio_httptrack.testing import ClientStream, memory_server

from .clients import http1, read_to_end
from .support import Recorder, app, problems, reset, socket_server
from .test_faults import handshake

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState
TOTAL, CLIENT = "max_concurrent_connections_exceeded", "max_client_connections_exceeded"
ONE, OTHER = ("192.0.2.1", 1), ("192.0.2.2", 1)


def refusals(limits: ConnLimit) -> tuple[int, int]:
    refused = limits.refused
    return refused["total"], refused["per_client"]


# Who is who


def admitted(limits: ConnLimit, *hosts: str | None) -> list[bool]:
    """Whether each was let in, while those before it stay."""
    conns = [Conn(None if host is None else (host, 4711)) for host in hosts]
    for conn in conns:
        limits.track(conn, NEW)
    return [conn.state is NEW for conn in conns]


@pytest.mark.parametrize(
    ("prefix", "first", "second", "same"),
    [
        ((32, 64), "192.0.2.1", "192.0.2.1", True),
        ((32, 64), "192.0.2.1", "192.0.2.2", False),
        ((24, 64), "192.0.2.1", "192.0.2.254", True),
        ((24, 64), "192.0.2.1", "192.0.3.1", False),
        ((0, 64), "192.0.2.1", "203.0.113.9", True),
        ((32, 64), "2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ((32, 64), "2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ((32, 56), "2001:db8:1:2::1", "2001:db8:1:3::1", True),
        ((32, 128), "2001:db8::1", "2001:db8::2", False),
        ((32, 64), "::ffff:192.0.2.1", "192.0.2.1", True),
        ((32, 64), "::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ((32, 64), "fe80::1%eth0", "fe80::2%eth0", True),
        ((32, 0), "2001:db8::1", "fe80::1", True),
        ((0, 0), "0.0.0.1", "::1", False),
    ],
)
def test_clients_are_distinguished_by_their_prefix(
    prefix: tuple[int, int], first: str, second: str, same: bool
) -> None:
    """An IPv4 address in an IPv6 one is an IPv4 address; the two families never meet."""
    limits = ConnLimit(per_client=1, prefix=prefix)
    assert admitted(limits, first, second) == [True, not same]


def test_an_exempt_client_is_neither_counted_nor_refused() -> None:
    """By network or address, of either family."""
    limits = ConnLimit(total=1, per_client=1, exempt=["10.0.0.0/8", "::1", "2001:db8::/32"])
    exempt = ["10.1.2.3", "10.1.2.3", "::1", "2001:db8::5", "::ffff:10.9.9.9"]
    assert admitted(limits, *exempt) == [True] * 5
    assert limits.count == 0
    assert admitted(limits, "192.0.2.1", "::2") == [True, False]


def test_a_client_without_an_address_counts_for_the_total_only() -> None:
    """As a client through a Unix socket."""
    assert admitted(ConnLimit(per_client=1), None, None) == [True, True]
    assert admitted(ConnLimit(total=1), None, None) == [True, False]


def test_a_client_over_its_own_limit_is_not_counted_for_the_total() -> None:
    """The reason of a refusal is the limit of the client, and not the total."""
    limits = ConnLimit(total=2, per_client=1)
    assert admitted(limits, "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3") == [
        *(True, False, True, False, False)
    ]
    assert refusals(limits) == (1, 2)
    assert limits.count == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, TypeError, "a ConnLimit needs total=, per_client=, or both"),
        ({"total": 0}, ValueError, "total must be 1 or more, not 0"),
        ({"total": "9"}, TypeError, "total must be a number of connections, not '9'"),
        ({"per_client": True}, TypeError, "per_client must be a number of connections, not True"),
        ({"per_client": 1, "prefix": (33, 64)}, ValueError, r"prefix must be at most \(32, 128\)"),
        ({"per_client": 1, "prefix": (32, -1)}, ValueError, r"prefix must be at most \(32, 128\)"),
        ({"per_client": 1, "prefix": ("", 1)}, TypeError, "prefix must be two numbers of bits"),
        ({"total": 1, "exempt": "::1"}, TypeError, r"write exempt=\['::1'\]"),
        ({"total": 1, "exempt": ["10.0.0.1/8"]}, ValueError, "exempt: 10.0.0.1/8 has host bits"),
        ({"total": 1, "exempt": ["a"]}, ValueError, "exempt: 'a' does not appear to be"),
    ],
)
def test_invalid_limits_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    """Each with what is wrong."""
    with pytest.raises(error, match=message):
        ConnLimit(**arguments)


def test_its_repr_shows_its_limits_and_its_count() -> None:
    """Its limits and its count."""
    assert repr(ConnLimit(total=5, per_client=2)) == "<ConnLimit total=5 per_client=2 count=0>"
    assert repr(ConnLimit(per_client=2)) == "<ConnLimit per_client=2 count=0>"


# Turned away


async def test_beyond_its_limit_a_client_gets_a_429(autojump_clock: MockClock) -> None:
    """Whole, before it has sent anything, and with the connection's end behind it."""
    limits, recorder = ConnLimit(per_client=1), Recorder()
    async with memory_server(app, tracker=compose(limits, recorder)) as server:
        first = await server.connect(client=ONE)
        refused = await server.connect(client=(ONE[0], 2))
        response = await read_to_end(refused)
        head, _, body = response.partition(b"\r\n\r\n")
        status, *fields = head.lower().split(b"\r\n")
        assert (status, body) == (b"http/1.1 429 ", b"")
        assert {b"connection: close", b"retry-after: 5", b"content-length: 0"} < set(fields)
        assert any(field.startswith(b"date: ") for field in fields)
        await refused.aclose()
        await refused.conn.wait_closed()
        assert refused.conn.close_reason == CLIENT
        assert await http1(first) == (200, b"/")
        assert await http1(await server.connect(client=OTHER)) == (200, b"/")
    assert recorder.sequences() == ["NAIC", "NC", "NAIC"]
    assert refusals(limits) == (0, 1)


async def test_beyond_the_total_a_client_gets_a_503(autojump_clock: MockClock) -> None:
    """Any client; and when another client has left there is room again."""
    limits = ConnLimit(total=1)
    async with memory_server(app, tracker=limits) as server:
        first = await server.connect(client=ONE)
        refused = await server.connect(client=OTHER)
        assert (await read_to_end(refused)).startswith(b"HTTP/1.1 503 ")
        await first.aclose()
        await first.conn.wait_closed()
        assert await http1(await server.connect(client=OTHER)) == (200, b"/")
        assert refused.conn.close_reason == TOTAL
    assert refusals(limits) == (1, 0)
    assert limits.count == 0


async def test_a_request_that_comes_late_does_not_destroy_the_refusal(
    autojump_clock: MockClock,
) -> None:
    """On this network a reset always destroys what was not read: there must be none."""
    async with memory_server(app, tracker=ConnLimit(total=1)) as server:
        await server.connect()
        refused = await server.connect()
        for _ in range(20):
            await refused.send_all(b"x" * 10_000)
            await wait_all_tasks_blocked()
        assert (await read_to_end(refused)).startswith(b"HTTP/1.1 503 ")


async def test_a_refused_client_that_stays_is_closed_after_a_second(
    autojump_clock: MockClock,
) -> None:
    """It must not keep a socket by doing nothing."""
    async with memory_server(app, tracker=ConnLimit(total=1)) as server:
        await server.connect()
        refused = await server.connect()
        await refused.conn.wait_closed()
        assert trio.current_time() == 1


async def test_only_so_many_refused_clients_are_waited_for(autojump_clock: MockClock) -> None:
    """The others' sockets are closed at once, but with their response."""
    limits = ConnLimit(total=1)
    async with memory_server(app, tracker=limits) as server:
        await server.connect()
        refused = [await server.connect() for _ in range(100)]
        assert sum(stream.conn.state is CLOSED for stream in refused) == 100 - 64
        for stream in refused:
            assert (await read_to_end(stream)).startswith(b"HTTP/1.1 503 ")
    assert refusals(limits) == (100, 0)


async def test_a_refused_client_that_resets_is_gone_at_once(autojump_clock: MockClock) -> None:
    """Without a task that could notice."""
    async with memory_server(app, tracker=ConnLimit(total=1)) as server:
        await server.connect()
        refused = await server.connect()
        assert refused.conn.state is NEW
        reset(refused)
        await wait_all_tasks_blocked()
        assert (refused.conn.state, refused.conn.close_reason) == (CLOSED, TOTAL)


async def test_a_shutdown_does_not_wait_for_refused_clients(autojump_clock: MockClock) -> None:
    """Nor is there anything to drain."""
    async with memory_server(app, tracker=ConnLimit(total=1)) as server:
        first = await server.connect()
        refused = await server.connect()
        await first.aclose()
        await first.conn.wait_closed()
        report = await server.shutdown()
        assert (report.finished, report.forced, report.seconds) == (1, 0, 0)
        assert refused.conn.state is CLOSED


async def test_under_tls_there_is_no_handshake(autojump_clock: MockClock) -> None:
    """It would cost more than all the rest."""
    async with memory_server(app, tracker=ConnLimit(total=1)) as server:
        await server.connect()
        refused = await server.connect(tls=True, handshake=False)
        assert (refused.conn.state, refused.conn.close_reason) == (CLOSED, TOTAL)
        assert await refused.receive_some() == b""


async def test_no_task_is_started_for_a_refused_connection(autojump_clock: MockClock) -> None:
    """However many they are."""
    async with memory_server(app, tracker=ConnLimit(total=1)) as server:
        await server.connect()
        await wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        async with AsyncExitStack() as clients:
            for _ in range(50):
                await clients.enter_async_context(await server.connect())
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == tasks


# Beside other trackers


@pytest.mark.parametrize("place", range(4))
async def test_it_may_stand_anywhere(
    place: int, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The other trackers see a refused connection's states in order, and once."""
    limits, recorder, stats, conns = ConnLimit(total=1), Recorder(), StatsTracker(), ConnTracker()
    others: list[Tracker] = [recorder, stats, HijackTracker()]
    others.insert(place, limits)
    async with memory_server(app, tracker=compose(*others, conns)) as server:
        await server.connect()
        for tls in (True, False):
            refused = await server.connect(tls=tls, handshake=False)
            await refused.aclose()
            await refused.conn.wait_closed()
        assert (conns.count, stats.stats().accepted, stats.stats().closed_total) == (1, 1, 2)
    assert recorder.sequences() == ["NC", "NC", "NC"]
    assert not problems(caplog)


@pytest.mark.parametrize("first", ["total", "per_client"])
async def test_two_limits_refuse_once(first: str, autojump_clock: MockClock) -> None:
    """The first one refuses; and neither counts what the other has refused."""
    total, per_client = ConnLimit(total=1), ConnLimit(per_client=1)
    both = (total, per_client) if first == "total" else (per_client, total)
    async with memory_server(app, tracker=compose(*both)) as server:
        await server.connect(client=ONE)
        refused = await server.connect(client=(ONE[0], 2), tls=True, handshake=False)
        other = await server.connect(client=(ONE[0], 3))
        assert (await read_to_end(other))[9:12] == (b"503" if first == "total" else b"429")
        await other.aclose()
        await wait_all_tasks_blocked()
        assert refused.conn.state is CLOSED
        assert (total.count, per_client.count) == (1, 1)
    assert (total.count, per_client.count) == (0, 0)
    assert sum(refusals(total)) + sum(refusals(per_client)) == 2


async def test_a_limit_that_is_named_twice_counts_once(autojump_clock: MockClock) -> None:
    """As where it is on the config, and given to the server, too."""
    limits, recorder = ConnLimit(per_client=2), Recorder()
    async with memory_server(app, tracker=compose(limits, limits, recorder)) as server:
        client = await server.connect()
        assert limits.count == 1
        assert await http1(client) == (200, b"/")
        await client.aclose()
        await client.conn.wait_closed()
        assert limits.count == 0
    assert recorder.sequences() == ["NAIC"]


async def test_a_connection_that_a_tracker_has_closed_does_not_count(
    autojump_clock: MockClock,
) -> None:
    """It would count for ever: its end has come before it could be waited for."""

    class Closer:
        def track(self, conn: Conn, state: ConnState) -> None:
            if state is NEW:
                conn.close("not_today")

    limits = ConnLimit(total=1)
    async with memory_server(app, tracker=compose(Closer(), limits)) as server:
        for _ in range(3):
            assert (await server.connect()).conn.close_reason == "not_today"
        assert limits.count == 0


async def test_an_upgraded_connection_counts_until_its_socket_closes(
    autojump_clock: MockClock,
) -> None:
    """HIJACKED is the end of the states, but not of the socket."""
    limits = ConnLimit(total=1)
    async with memory_server(app, tracker=limits) as server:
        upgraded = await server.connect()
        await upgraded.send_all(handshake())
        await upgraded.receive_some()
        assert upgraded.conn.state is HIJACKED
        refused = await server.connect()
        assert (await read_to_end(refused)).startswith(b"HTTP/1.1 503 ")
        await upgraded.aclose()
        await upgraded.conn.wait_closed()
        assert limits.count == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", None]), st.booleans())
    ),
    st.integers(1, 4) | st.none(),
    st.integers(1, 3),
)
def test_it_counts_as_a_naive_model_does(
    steps: list[tuple[str | None, bool]], total: int | None, per_client: int
) -> None:
    """Connections come, and the oldest of a client goes, in any order."""
    limits = ConnLimit(total=total, per_client=per_client)
    open_conns: list[Conn] = []
    expected: Counter[str] = Counter()
    for host, comes in steps:
        if not comes:
            leaving = [conn for conn in open_conns if (conn.client and conn.client[0]) == host]
            if leaving:
                open_conns.remove(leaving[0])
                leaving[0].close("gone")
            continue
        same = [conn for conn in open_conns if host and conn.client and conn.client[0] == host]
        conn = Conn(None if host is None else (host, 1))
        limits.track(conn, NEW)
        if len(same) >= per_client:
            expected["per_client"] += 1
            assert conn.close_reason == CLIENT
        elif total is not None and len(open_conns) >= total:
            expected["total"] += 1
            assert conn.close_reason == TOTAL
        else:
            open_conns.append(conn)
            assert conn.state is NEW
        assert limits.count == len(open_conns)
    assert limits.refused == {"total": 0, "per_client": 0} | expected
    for conn in open_conns:
        conn.close("gone")
    assert not limits._clients  # not even a zero for each address that there ever was


# Real sockets


async def test_ten_thousand_connections_of_one_client_are_nothing_to_another(
    autojump_clock: MockClock,
) -> None:
    """Each of its requests has its response, while the flood goes on."""
    limits = ConnLimit(per_client=20)
    async with memory_server(app, tracker=limits) as server:
        bystander = await server.connect(client=OTHER)
        flood: list[ClientStream] = []
        for number in range(10_000):
            flood.append(await server.connect(client=(ONE[0], number)))
            if number % 100 == 0:
                assert await http1(bystander) == (200, b"/")
        assert refusals(limits) == (0, 10_000 - 20)
        assert await http1(bystander) == (200, b"/")


async def test_real_clients_see_the_refusal(certificate: Path) -> None:
    """httpx, over real sockets; a hundred times, for a reset would come now and then."""
    limits = ConnLimit(total=1)
    # The first client's connection stays, however long the others take.
    config = Config.from_mapping(bind="127.0.0.1:0", keep_alive_timeout=1000)
    async with tracked_server(app, config, tracker=limits) as server:
        url = server.urls[0]
        async with httpx.AsyncClient() as first:
            assert (await first.get(url)).status_code == 200
            for _ in range(100):
                async with httpx.AsyncClient() as refused:
                    response = await refused.post(url, content=b"x" * 1000)
                    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert refusals(limits) == (100, 0)


async def test_a_client_that_has_gone_before_it_is_refused_is_refused_all_the_same(
    certificate: Path,
) -> None:
    """It has connected and reset the connection before the server accepts it."""
    limits, recorder = ConnLimit(total=1), Recorder()
    async with socket_server(app, certificate, tracker=compose(limits, recorder)) as server:
        await server.connect()
        await recorder.wait_states("N")
        gone = socket.create_connection(("127.0.0.1", server._ports[False]))
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.close()
        while len(recorder.conns) < 2 or recorder.conns[1].state is not CLOSED:
            await recorder._changed.park()
    assert recorder.conns[1].close_reason == TOTAL
    assert refusals(limits) == (1, 0)


async def test_clients_are_distinguished_by_the_addresses_of_their_sockets(
    certificate: Path,
) -> None:
    """Over real sockets, of which a machine has more than one address."""
    limits, recorder = ConnLimit(per_client=1), Recorder()
    async with socket_server(app, certificate, tracker=compose(limits, recorder)) as server:
        port = server._ports[False]
        async with AsyncExitStack() as clients:

            async def connect(address: str) -> trio.SocketStream:
                stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=address)
                return await clients.enter_async_context(stream)

            for address in ("127.0.0.1", "127.0.0.2"):
                assert await http1(await connect(address)) == (200, b"/")
                assert (await read_to_end(await connect(address))).startswith(b"HTTP/1.1 429 ")
    assert sorted(recorder.sequences()) == ["NAIC", "NAIC", "NC", "NC"]
