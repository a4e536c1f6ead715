"""OpenTelemetryTracker: the states of connections as OpenTelemetry metrics.

The gauges are read when they are exported, so they cost a request nothing. A
connection's duration is recorded when it closes. Each process exports its own numbers.
The backend adds them up.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata

from ._extra import require_extra
from ._states import CLOSED, Conn, ConnState
from ._stats import BUCKETS, StatsTracker

with require_extra("trio_httptrack.opentelemetry", extra="opentelemetry"):
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter

__all__ = ["OpenTelemetryTracker"]

VERSIONS: dict[str | None, str] = {"http/1.1": "1.1", "h2": "2"}


class OpenTelemetryTracker(StatsTracker):
    """A :class:`~trio_httptrack.StatsTracker` that OpenTelemetry exports.

    ``http.server.open_connections``
        UpDownCounter, ``{connection}``: open connections, by ``http.connection.state``
        (``new``, ``active``, ``idle``).
    ``http.server.connection.duration``
        Histogram, ``s``: the duration of closed connections. It has ``network.protocol.name`` and
        ``network.protocol.version`` if they are known, and ``error.type`` if the connection has a
        :attr:`~trio_httptrack.Conn.close_reason`. Upgraded connections are not included: their
        last state is ``hijacked``.

    Args:
      meter_provider: the provider that exports the metrics; by default the global one. Make only
        one tracker for a provider: of two, OpenTelemetry would export the gauges of one only.

    Raises:
      ModuleNotFoundError: on import, without the extra ``opentelemetry``.

    >>> from opentelemetry.sdk.metrics import MeterProvider
    >>> from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    >>> from trio_httptrack import Conn, ConnState
    >>> reader = InMemoryMetricReader()
    >>> tracker = OpenTelemetryTracker(meter_provider=MeterProvider([reader]))
    >>> tracker.track(Conn(), ConnState.NEW)
    >>> metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    >>> [(point.attributes["http.connection.state"], point.value)
    ...  for point in metrics[0].data.data_points]
    [('new', 1), ('active', 0), ('idle', 0)]
    """

    __slots__ = ("_duration",)

    def __init__(self, *, meter_provider: MeterProvider | None = None) -> None:
        super().__init__()
        meter = get_meter("trio_httptrack", metadata.version("trio-httptrack"), meter_provider)
        meter.create_observable_up_down_counter(
            "http.server.open_connections",
            [self._observe],
            unit="{connection}",
            description="Open connections by state.",
        )
        self._duration = meter.create_histogram(
            "http.server.connection.duration",
            unit="s",
            description="From accept to close.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def track(self, conn: Conn, state: ConnState) -> None:  # type: ignore[override]
        """Count one transition."""
        super().track(conn, state)
        if state is CLOSED:
            attributes = {}
            version = VERSIONS.get(conn.protocol)
            if version is not None:
                attributes["network.protocol.name"] = "http"
                attributes["network.protocol.version"] = version
            if conn.close_reason is not None:
                attributes["error.type"] = conn.close_reason
            self._duration.record(conn.state_since - conn.opened_at, attributes)

    def _observe(self, options: CallbackOptions) -> Iterator[Observation]:
        """Called from the exporter's thread."""
        for state, number in self.stats().gauges.items():
            yield Observation(number, {"http.connection.state": str(state)})
