from uuid import uuid4

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from trio_httptrack.opentelemetry import OpenTelemetryTracker

resource = Resource.create({"service.name": "shop", "service.instance.id": str(uuid4())})
reader = PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=10_000)
tracker = OpenTelemetryTracker(meter_provider=MeterProvider([reader], resource))


async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"Hello!"})
