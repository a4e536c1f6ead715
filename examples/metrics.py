from trio_httptrack.prometheus import MetricsApp, PrometheusTracker

tracker = PrometheusTracker()
metrics = MetricsApp()


async def app(scope, receive, send):
    if scope["type"] == "lifespan" or scope["path"] == "/metrics":
        await metrics(scope, receive, send)
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"Hello!"})
