"""The numbers for OpenTelemetry, in memory and over the wire."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
import trio
from opentelemetry import metrics
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from trio.testing import MockClock, assert_no_checkpoints

from trio_httptrack import Conn, ConnState, tracked_server
from trio_httptrack._stats import BUCKETS
from trio_httptrack.opentelemetry import OpenTelemetryTracker
from trio_httptrack.testing import memory_server

from .clients import Http2, http1
from .support import app as support_app

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState


def read(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The instruments by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert scope.scope.name == "trio_httptrack"
    assert scope.scope.version
    return {metric.name: metric for metric in scope.metrics}


def gauges(found: dict[str, Any]) -> dict[str, int]:
    return {
        point.attributes["http.connection.state"]: point.value
        for point in found["http.server.open_connections"].data.data_points
    }


def durations(found: dict[str, Any]) -> list[tuple[dict[str, str], float]]:
    return [
        (dict(point.attributes), point.sum)
        for point in found["http.server.connection.duration"].data.data_points
    ]


async def test_the_instruments_are_those_of_the_conventions(autojump_clock: MockClock) -> None:
    """Names, units and attributes; gauges go down again."""
    reader = InMemoryMetricReader()
    tracker = OpenTelemetryTracker(meter_provider=MeterProvider([reader]))
    async with memory_server(support_app, tracker=tracker, keep_alive_timeout=40) as server:
        silent = await server.connect()
        await http1(await server.connect())
        found = read(reader)
        assert found.keys() == {"http.server.open_connections"}
        open_connections = found["http.server.open_connections"]
        assert open_connections.unit == "{connection}"
        assert open_connections.data.is_monotonic is False
        assert gauges(found) == {"new": 1, "active": 0, "idle": 1}
        begun = trio.current_time()
        await silent.aclose()
        await silent.conn.wait_closed()
        await trio.sleep_until(begun + 60)
        found = read(reader)
        assert gauges(found) == {"new": 0, "active": 0, "idle": 0}
        duration = found["http.server.connection.duration"]
        assert duration.unit == "s"
        assert duration.data.data_points[0].explicit_bounds == BUCKETS
        assert durations(found) == [
            ({}, begun),
            (
                {
                    "network.protocol.name": "http",
                    "network.protocol.version": "1.1",
                    "error.type": "keep_alive_timeout",
                },
                40,
            ),
        ]


async def test_http2_is_version_2(autojump_clock: MockClock) -> None:
    """As the conventions spell it."""
    reader = InMemoryMetricReader()
    tracker = OpenTelemetryTracker(meter_provider=MeterProvider([reader]))
    async with memory_server(support_app, tracker=tracker) as server:
        client = Http2(await server.connect(tls=True, alpn=["h2"]))
        await client.start()
        await client.get()
        await client.stream.aclose()
    ((attributes, _),) = durations(read(reader))
    assert attributes == {"network.protocol.name": "http", "network.protocol.version": "2"}


async def test_an_upgraded_connection_has_no_duration() -> None:
    """It leaves HTTP, and goes on; nothing here is a checkpoint."""
    reader = InMemoryMetricReader()
    tracker = OpenTelemetryTracker(meter_provider=MeterProvider([reader]))
    conn = Conn()
    with assert_no_checkpoints():
        for state in (NEW, ACTIVE, HIJACKED):
            tracker.track(conn, state)
    assert read(reader).keys() == {"http.server.open_connections"}
    assert tracker.stats().hijacked_total == 1


def test_the_global_provider_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is set before the tracker is made or, as the API promises, after."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
    tracker = OpenTelemetryTracker()
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER_SET_ONCE._done", False)
    metrics.set_meter_provider(provider)
    tracker.track(Conn(), NEW)
    assert gauges(read(reader)) == {"new": 1, "active": 0, "idle": 0}


class Receiver:
    """What a collector does with the first hop: it decodes what exporters post."""

    def __init__(self) -> None:
        self.requests: list[ExportMetricsServiceRequest] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await support_app(scope, receive, send)
            return
        assert (scope["method"], scope["path"]) == ("POST", "/v1/metrics")
        headers = dict(scope["headers"])
        assert headers[b"content-type"] == b"application/x-protobuf"
        body, more = b"", True
        while more:
            event = await receive()
            body += event["body"]
            more = event["more_body"]
        if headers.get(b"content-encoding") == b"gzip":
            body = gzip.decompress(body)
        self.requests.append(ExportMetricsServiceRequest.FromString(body))
        response = ExportMetricsServiceResponse().SerializeToString()
        fields = [
            (b"content-type", b"application/x-protobuf"),
            (b"content-length", b"%d" % len(response)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": response})


async def test_a_collector_can_read_and_add_up_what_is_exported() -> None:
    """Two processes' exports over OTLP/HTTP are distinguished by ``service.instance.id``."""
    receiver = Receiver()
    async with tracked_server(receiver) as collector:
        trackers, providers = [], []
        for name in ("one", "two"):
            reader = PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=f"{collector.urls[0]}/v1/metrics"),
                export_interval_millis=float("inf"),
            )
            resource = Resource({"service.name": "shop", "service.instance.id": name})
            providers.append(MeterProvider([reader], resource))
            trackers.append(OpenTelemetryTracker(meter_provider=providers[-1]))
        for tracker, number in zip(trackers, (1, 2), strict=True):
            for _ in range(number):
                tracker.track(Conn(), NEW)
            closed = Conn()
            tracker.track(closed, NEW)
            closed.state_since = 7.0
            closed.close_reason = "connection_reset"
            tracker.track(closed, CLOSED)
        for provider in providers:
            await trio.to_thread.run_sync(provider.force_flush)
            await trio.to_thread.run_sync(provider.shutdown)

    totals: dict[str, int] = {}
    for request, instance in zip(receiver.requests, ("one", "two"), strict=True):
        (resource_metrics,) = request.resource_metrics
        attributes = {
            each.key: each.value.string_value for each in resource_metrics.resource.attributes
        }
        assert attributes["service.instance.id"] == instance
        (scope_metrics,) = resource_metrics.scope_metrics
        found = {metric.name: metric for metric in scope_metrics.metrics}
        open_connections = found["http.server.open_connections"]
        duration = found["http.server.connection.duration"]
        assert open_connections.sum.is_monotonic is False
        assert (
            open_connections.sum.aggregation_temporality
            == AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        )
        for point in open_connections.sum.data_points:
            (state,) = point.attributes
            assert state.key == "http.connection.state"
            name = state.value.string_value
            totals[name] = totals.get(name, 0) + point.as_int
        assert (open_connections.unit, duration.unit) == ("{connection}", "s")
        (observed,) = duration.histogram.data_points
        assert list(observed.explicit_bounds) == list(BUCKETS)
        assert (observed.count, observed.sum) == (1, 7)
        assert observed.bucket_counts[BUCKETS.index(10)] == 1
        (error,) = observed.attributes
        assert (error.key, error.value.string_value) == ("error.type", "connection_reset")
    assert totals == {"new": 3, "active": 0, "idle": 0}
