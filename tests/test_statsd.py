"""Gauges and counters through Hypercorn's own StatsD logger, to a real UDP socket."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.logging import Logger
from hypercorn.statsd import StatsdLogger
from trio.testing import MockClock

from trio_httptrack import LogTracker, tracked_server
from trio_httptrack._hypercorn.settings import SettingError
from trio_httptrack.testing import memory_server

from .clients import http1
from .hypercorn_process import connect, failing_hypercorn, get, hypercorn
from .support import app

ZEROS = [
    "httptrack.connections.new:0|g",
    "httptrack.connections.active:0|g",
    "httptrack.connections.idle:0|g",
    "httptrack.connection.transitions.new:0|c|@1.0",
    "httptrack.connection.transitions.active:0|c|@1.0",
    "httptrack.connection.transitions.idle:0|c|@1.0",
    "httptrack.connection.transitions.hijacked:0|c|@1.0",
    "httptrack.connection.transitions.closed:0|c|@1.0",
]


class Statsd:
    """What StatsD would have received so far."""

    def __init__(self, socket: socket.socket) -> None:
        self._socket = socket
        self.host = "{}:{}".format(*socket.getsockname())

    def received(self) -> list[str]:
        """All datagrams since the last call, but Hypercorn's own."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._socket.recv(1000).decode())
            except BlockingIOError:
                return [each for each in datagrams if "httptrack" in each]


@pytest.fixture
def statsd() -> Iterator[Statsd]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        yield Statsd(udp)


async def test_every_number_is_sent_each_ten_seconds_zeros_too(
    autojump_clock: MockClock, statsd: Statsd
) -> None:
    """Gauges as they are, counters by what was added since the last time."""
    async with memory_server(app, statsd_host=statsd.host, keep_alive_timeout=15) as server:
        await trio.sleep(1)
        assert statsd.received() == ZEROS
        client = await server.connect()
        await http1(client)
        await trio.sleep(8.5)
        assert statsd.received() == []
        await trio.sleep(1)
        assert statsd.received() == [
            "httptrack.connections.new:0|g",
            "httptrack.connections.active:0|g",
            "httptrack.connections.idle:1|g",
            "httptrack.connection.transitions.new:1|c|@1.0",
            "httptrack.connection.transitions.active:1|c|@1.0",
            "httptrack.connection.transitions.idle:1|c|@1.0",
            "httptrack.connection.transitions.hijacked:0|c|@1.0",
            "httptrack.connection.transitions.closed:0|c|@1.0",
        ]
        await trio.sleep(10)
        assert statsd.received() == [
            *ZEROS[:7],
            "httptrack.connection.transitions.closed:1|c|@1.0",
        ]
        await trio.sleep(10)
        assert statsd.received() == ZEROS


async def test_the_last_numbers_are_sent_when_the_worker_stops(
    autojump_clock: MockClock, statsd: Statsd
) -> None:
    """After the drain, so that no connection is left over in a gauge."""
    async with memory_server(app, statsd_host=statsd.host) as server:
        await trio.sleep(1)
        client = await server.connect()
        await http1(client)
        statsd.received()
    last = statsd.received()
    assert last[:3] == ZEROS[:3]
    assert last[-1] == "httptrack.connection.transitions.closed:1|c|@1.0"


async def test_the_prefix_and_the_tags_are_hypercorns(
    autojump_clock: MockClock, statsd: Statsd
) -> None:
    """``statsd_prefix`` and ``dogstatsd_tags`` hold for these numbers, too."""
    async with memory_server(
        app, statsd_host=statsd.host, statsd_prefix="shop", dogstatsd_tags="env:test"
    ):
        await trio.sleep(1)
        assert statsd.received()[0] == "shop.httptrack.connections.new:0|g|#env:test"


async def test_two_servers_may_have_the_same_config(statsd: Statsd) -> None:
    """One after the other, and one of them cancelled: each sends its own."""
    config = Config.from_mapping(bind="127.0.0.1:0", statsd_host=statsd.host)
    with trio.CancelScope() as scope:
        async with tracked_server(app, config):
            scope.cancel()
            await trio.sleep_forever()
    assert config.log.socket.fileno() == -1
    statsd.received()
    async with tracked_server(app, config) as server:
        await get(server.urls[0])
    assert "httptrack.connection.transitions.closed:1|c|@1.0" in statsd.received()


async def test_the_end_of_one_server_leaves_the_others_socket(
    autojump_clock: MockClock, statsd: Statsd
) -> None:
    """Two that run at the same time with one config have one logger."""
    config = Config.from_mapping(bind="127.0.0.1:0", statsd_host=statsd.host)
    async with tracked_server(app, config):
        async with tracked_server(app, config):
            await trio.sleep(1)
        statsd.received()
        await trio.sleep(10)
        assert statsd.received() == ZEROS
    assert config.log.socket.fileno() == -1


async def test_it_needs_no_stats_tracker(statsd: Statsd) -> None:
    """The server counts by itself, whatever trackers there are, on real sockets, too."""
    config = Config.from_mapping(bind="127.0.0.1:0", statsd_host=statsd.host)
    async with tracked_server(app, config, tracker=LogTracker()) as server:
        await get(server.urls[0])
    assert "httptrack.connection.transitions.closed:1|c|@1.0" in statsd.received()


async def test_each_of_several_workers_has_its_own_gauges(statsd: Statsd) -> None:
    """Or the one that spoke last would speak for all."""
    received: list[str] = []
    async with hypercorn(
        *("-k", "trio", "-w", "2", "-c", "python:trio_httptrack.config"),
        *("--statsd-host", statsd.host, "ways_in.unaware:app"),
    ) as server:
        await get(server.url)
        while len({each for each in received if "connections.new." in each}) < 2:
            received += statsd.received()
            await trio.sleep(0.01)
    received += statsd.received()
    gauges = {each.split(":")[0] for each in received if each.endswith("|g")}
    assert len(gauges) == 6
    assert {gauge.rstrip("0123456789") for gauge in gauges} == {
        f"httptrack.connections.{state}." for state in ("new", "active", "idle")
    }
    assert received.count("httptrack.connection.transitions.closed:1|c|@1.0") == 1


async def test_an_unreachable_host_affects_neither_requests_nor_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither our numbers, nor Hypercorn's own for each request and each error in the log."""

    async def unreachable(*args: Any) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("trio._socket._SocketType.sendto", unreachable)
    config = Config.from_mapping(
        bind="127.0.0.1:0", statsd_host="127.0.0.1:8125", errorlog=logging.getLogger("test")
    )
    async with tracked_server(app, config) as server:
        assert await get(server.urls[0]) == b"/"
        async with await connect(server.urls[0]) as client:
            await client.send_all(b"GET /raise HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert (await client.receive_some()).startswith(b"HTTP/1.1 500")
    warnings = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert warnings == ["StatsD at 127.0.0.1:8125: OSError(101, 'Network is unreachable')"]


async def test_each_outage_is_logged_once(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many numbers are lost in it."""

    async def outages(*args: Any) -> None:
        if 15 < trio.current_time() < 45 or trio.current_time() > 55:
            raise OSError(101, "Network is unreachable")

    monkeypatch.setattr("trio._socket._SocketType.sendto", outages)
    log = logging.getLogger("test")
    async with memory_server(app, statsd_host="127.0.0.1:8125", errorlog=log):
        await trio.sleep(100)
    assert len([each for each in caplog.records if each.levelname == "WARNING"]) == 2


async def test_no_request_waits_for_a_name_server(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is silent, requests get their responses one after the other, and a shutdown ends."""

    async def silent(*args: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("trio.socket.getaddrinfo", silent)
    log = logging.getLogger("test")
    async with memory_server(app, statsd_host="statsd.example:8125", errorlog=log) as server:
        client = await server.connect()
        for _ in range(3):
            assert (await http1(client))[0] == 200
        assert trio.current_time() == 0
        await trio.sleep(7)
        before = trio.current_time()
    assert trio.current_time() < before + 1
    (warning,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert warning.getMessage().startswith("StatsD at statsd.example:8125: TooSlowError")


async def test_a_name_is_looked_up_once_in_ten_seconds(
    autojump_clock: MockClock, statsd: Statsd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not for each datagram."""
    requested = []

    async def getaddrinfo(host: str, port: str, *args: Any) -> Any:
        requested.append(host)
        return [(2, 2, 17, "", ("127.0.0.1", int(port)))]

    monkeypatch.setattr("trio.socket.getaddrinfo", getaddrinfo)
    port = statsd.host.partition(":")[2]
    async with memory_server(app, statsd_host=f"statsd.example:{port}") as server:
        for _ in range(5):
            await http1(await server.connect())
            await trio.sleep(5)
        assert requested == ["statsd.example"] * 3
        assert len(statsd.received()) == 3 * 8


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:", ":8125", "localhost:statsd", "127.0.0.1:99999", "[::1]:8125"],
)
async def test_a_host_without_a_port_is_refused(host: str) -> None:
    """When the server starts, and not with each datagram; nor can it be an IPv6 address."""
    with pytest.raises(SettingError, match=r"statsd_host must be 'HOST:PORT', .*, not '"):
        async with memory_server(app, statsd_host=host):
            pass


@pytest.mark.parametrize("setting", ["statsd_prefix", "dogstatsd_tags"])
async def test_settings_that_cannot_be_sent_are_refused(setting: str) -> None:
    """Hypercorn sends ASCII only."""
    settings: Any = {setting: "l\u00e4den"}
    with pytest.raises(SettingError, match=f"{setting} must be ASCII, not 'l\u00e4den'"):
        async with memory_server(app, statsd_host="127.0.0.1:1", **settings):
            pass


async def test_the_command_says_so_in_one_line() -> None:
    """As for every setting that is wrong."""
    status, stderr = await failing_hypercorn(
        *("-k", "trio", "-w", "0", "-c", "python:trio_httptrack.config"),
        *("--statsd-host", "localhost", "ways_in.unaware:app"),
    )
    assert status == 1
    assert stderr.splitlines()[-1].endswith(
        "statsd_host must be 'HOST:PORT', by name or IPv4 address, not 'localhost'"
    )


async def test_a_logger_of_the_user_is_not_replaced(autojump_clock: MockClock) -> None:
    """It is what Hypercorn takes instead of the StatsD logger."""

    class OwnLogger(Logger):
        pass

    async with memory_server(app, statsd_host="127.0.0.1:8125", logger_class=OwnLogger) as server:
        client = await server.connect()
        assert (await http1(client))[0] == 200
        await trio.sleep(20)


async def test_a_statsd_logger_of_the_user_is_used(
    autojump_clock: MockClock, statsd: Statsd
) -> None:
    """And may fail: that is not the end of the server."""

    class OwnLogger(StatsdLogger):
        async def _socket_send(self, message: bytes) -> None:
            sent.append(message.decode())
            raise OSError("it failed")

    sent: list[str] = []
    async with memory_server(app, statsd_host=statsd.host, logger_class=OwnLogger):
        await trio.sleep(15)
    assert sent == [ZEROS[0]] * 3
