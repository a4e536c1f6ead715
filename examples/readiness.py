import trio


async def app(scope, receive, send):
    assert scope["type"] == "http"
    conn = scope["extensions"]["httptrack"]
    if scope["path"] == "/ready":
        status = 503 if conn.draining.is_set() else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})
    elif scope["path"] == "/events":
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not conn.draining.is_set():
            tick = b"data: %.1f\n\n" % trio.current_time()
            await send({"type": "http.response.body", "body": tick, "more_body": True})
            with trio.move_on_after(15):
                await conn.draining.wait()
        await send({"type": "http.response.body", "body": b"retry: 100\n\n"})
