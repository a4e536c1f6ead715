from hypercorn.middleware.dispatcher import TrioDispatcherMiddleware

from trio_httptrack.status import StatusApp


async def shop(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": f"{event['type']}.complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"Hello!"})


app = TrioDispatcherMiddleware({"/status": StatusApp(), "": shop})
