"""The application of the benchmark, with the exporter that the variable ``EXPORTER`` names."""

from __future__ import annotations

import os
from typing import Any

from trio_httptrack import StatsTracker, compose
from trio_httptrack.config import conn_tracker
from trio_httptrack.status import StatusApp

from .app import app as hello

EXPORTER = os.environ.get("EXPORTER", "")

if EXPORTER.startswith("prometheus"):
    from trio_httptrack.prometheus import MetricsApp, PrometheusTracker

    stats: StatsTracker = PrometheusTracker()
    page: Any = MetricsApp()
elif EXPORTER == "opentelemetry":
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        PeriodicExportingMetricReader,
    )

    from trio_httptrack.opentelemetry import OpenTelemetryTracker

    exporter = ConsoleMetricExporter(open(os.devnull, "w"))  # noqa: SIM115
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1000)
    stats = OpenTelemetryTracker(meter_provider=MeterProvider([reader]))
    page = hello
else:
    stats = StatsTracker()
    page = StatusApp(stats)

tracker = compose(stats, conn_tracker)


async def app(scope: Any, receive: Any, send: Any) -> None:
    watched = scope["type"] == "http" and scope["path"] == "/watched"
    await (page if watched else hello)(scope, receive, send)
