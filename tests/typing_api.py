"""The whole public interface as a user's program has it, for type checkers.

Nothing here is run: mypy and pyright read it, both strictly, and ``test_house`` looks that no
public name is missing.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Any

import httpx
import trio
from hypercorn.config import Config
from opentelemetry.metrics import MeterProvider
from prometheus_client import CollectorRegistry
from quart_trio import QuartTrio
from starlette.applications import Starlette

import trio_httptrack.config
from trio_httptrack import (
    Conn,
    ConnLimit,
    ConnState,
    ConnTracker,
    HijackTracker,
    LogTracker,
    RequestInFlight,
    ShutdownReport,
    Stats,
    StatsTracker,
    TrackedServer,
    Tracker,
    TrackerFunc,
    compose,
    hook,
    install,
    tracked_server,
    wrap,
)
from trio_httptrack.opentelemetry import OpenTelemetryTracker
from trio_httptrack.prometheus import MetricsApp, PrometheusTracker
from trio_httptrack.status import StatusApp
from trio_httptrack.testing import (
    ClientStream,
    MemoryServer,
    RecordingTracker,
    Transition,
    memory_server,
)

if sys.version_info >= (3, 11):
    from typing import assert_type
else:
    from typing_extensions import assert_type


# Applications, as people type theirs.


async def dict_app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    conn = scope["extensions"]["httptrack"]
    assert isinstance(conn, Conn)
    assert_type(conn.draining, trio.Event)
    with conn.cancel_on_disconnect(scope, 3) as cancel_scope:
        assert_type(cancel_scope, trio.CancelScope)
        await conn.draining.wait()


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


starlette_app = Starlette()
quart_app = QuartTrio(__name__)


# Trackers of one's own: a class, a class for whatever stands for a connection, a function.


class Longest:
    def __init__(self) -> None:
        self.seconds = 0.0

    def track(self, conn: Conn, state: ConnState) -> None:
        if state is ConnState.CLOSED:
            self.seconds = max(self.seconds, conn.state_since - conn.opened_at)


class Seen:
    def track(self, conn: Hashable, state: ConnState) -> None:
        self.last = (conn, state)


def report(conn: Conn, state: ConnState) -> None:
    if state.terminal:
        logging.info("%s %s", conn, state)


own: list[Tracker] = [Longest(), Seen(), TrackerFunc(report)]


def connection(conn: Conn) -> None:
    assert_type(conn.id, int)
    assert_type(conn.client, tuple[str, int] | None)
    assert_type(conn.server, tuple[str, int] | None)
    assert_type(conn.tls, bool)
    assert_type(conn.protocol, str | None)
    assert_type(conn.requests, int)
    assert_type(conn.path, str | None)
    assert_type(conn.opened_at, float)
    assert_type(conn.state, ConnState)
    assert_type(conn.state_since, float)
    assert_type(conn.close_reason, str | None)
    assert_type(conn.state < ConnState.IDLE, bool)
    assert_type([ConnState.NEW, ConnState.ACTIVE, ConnState.HIJACKED], list[ConnState])
    assert_type(ConnState(3).terminal, bool)
    assert_type({conn: str(conn.state)}, dict[Conn, str])
    assert_type(Conn(("192.0.2.7", 4711), ("192.0.2.1", 443), tls=True, opened_at=0.0), Conn)
    assert_type(conn.drain(), None)
    assert_type(conn.close("banned"), None)


def in_flight(conn: Conn) -> None:
    assert_type(conn.exchanges, tuple[RequestInFlight, ...])
    for request in conn.exchanges:
        assert_type(request.method + request.path, str)
        assert_type(request.started_at, float)
        assert_type(request.stream_id, int | None)
        assert_type(request.response_begun or request.response_complete, bool)


def numbers(stats: Stats) -> None:
    assert_type(stats.accepted + stats.active + stats.idle, int)
    assert_type(stats.accepted_total + stats.active_total + stats.idle_total, int)
    assert_type(stats.hijacked_total + stats.closed_total, int)
    assert_type(stats.gauges, dict[ConnState, int])
    assert_type(stats.counters, dict[ConnState, int])


async def trackers(conn: Conn) -> None:
    stats = StatsTracker()
    assert_type(stats.stats(), Stats)
    assert_type(stats.connections(), dict[Hashable, ConnState])

    conns = ConnTracker()
    assert_type(conns.count, int)
    assert_type(await conns.wait(), None)

    hijacks = HijackTracker()
    assert_type(hijacks.count, int)
    assert_type(hijacks.connections(), list[Conn])
    assert_type(await hijacks.wait(), None)

    limits = ConnLimit(total=1000, per_client=10, prefix=(32, 56), exempt=["10.0.0.0/8"])
    assert_type(limits.count, int)
    assert_type(limits.refused, dict[str, int])

    logs = LogTracker(logging.getLogger("connections"), logging.DEBUG)
    composed = compose(limits, stats, hijacks, logs, *own, conns)
    as_function: TrackerFunc = composed
    as_function.track(conn, ConnState.NEW)
    as_function(conn, ConnState.CLOSED)
    hijacks.track(conn, ConnState.HIJACKED)
    await conn.wait_closed()


def configured() -> Config:
    config = Config()
    install()
    assert_type(wrap(config, hook("myapp:tracker")), Tracker | str | None)
    named: Tracker = hook("myapp:tracker")
    wrap(config, compose(named, StatsTracker()))
    assert_type(trio_httptrack.config.stats_tracker, StatsTracker)
    assert_type(trio_httptrack.config.conn_tracker, ConnTracker)
    assert_type(trio_httptrack.config.tracker, TrackerFunc)
    assert_type(trio_httptrack.config.conn_state, Tracker)
    return config


async def serving() -> None:
    for app in dict_app, starlette_app, quart_app:
        async with tracked_server(app) as server:
            assert_type(server, TrackedServer)
    async with tracked_server(wsgi_app, configured(), tracker=own[0]) as server:
        assert_type(server.urls, list[str])
        assert_type(server.stats(), Stats)
        assert_type(server.connections(), dict[Conn, ConnState])
        assert_type(server.conn_tracker, ConnTracker)
        assert_type(await server.shutdown(), ShutdownReport)


def shut_down(report: ShutdownReport) -> None:
    assert_type(report.finished + report.forced, int)
    assert_type(report.seconds, float)


def exporters(provider: MeterProvider) -> None:
    registry = CollectorRegistry()
    prometheus: StatsTracker = PrometheusTracker(registry)
    telemetry: StatsTracker = OpenTelemetryTracker(meter_provider=provider)
    compose(prometheus, telemetry, PrometheusTracker(), OpenTelemetryTracker())
    apps = (
        MetricsApp(registry),
        StatusApp(allow=["::1", "unix"]),
    )
    starlette_app.mount("/metrics", apps[0])
    starlette_app.mount("/status", apps[1])
    assert_type(apps[1].token, str)


async def tests() -> None:
    tracker = RecordingTracker()
    async with memory_server(dict_app, Config(), tracker=tracker, keep_alive_timeout=300) as server:
        assert_type(server, MemoryServer)
        base: TrackedServer = server
        assert base
        stream = await server.connect(tls=True, alpn=["h2"], client=("192.0.2.7", 4711))
        assert_type(stream, ClientStream)
        half: trio.abc.HalfCloseableStream = stream
        await half.send_all(b"GET / HTTP/1.1\r\n")
        assert_type(stream.conn, Conn)
        assert_type(stream.alpn, str | None)
        assert_type(await stream.receive_some(10), bytes | bytearray)
        await stream.wait_send_all_might_not_block()
        await stream.send_eof()
        await stream.aclose()
        stream.reset()
        silent = await server.connect(tls=True, handshake=False)
        transition = await tracker.wait_for(ConnState.NEW, conn=silent.conn, times=1)
        assert_type(transition, Transition)
        assert_type(transition.conn, Conn)
        assert_type(transition.state, ConnState)
        assert_type(transition.time, float)
        assert_type(tracker.events, list[Transition])
        assert_type(tracker.conns, list[Conn])
        assert_type(tracker.states(silent.conn), list[ConnState])
        async with httpx.AsyncClient(
            transport=server.httpx_transport(http1=False, http2=True)
        ) as client:
            await client.get(server.urls[0])
