"""The application that every server of the benchmark serves."""

from __future__ import annotations

from typing import Any

HELLO = b"Hello, world!"
CHUNK = b"x" * 1024
MEGABYTE = b"x" * 2**20


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": event["text"]})
    elif scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
        await send({"type": "http.response.body"})
    elif scope["path"] == "/megabyte":
        await answer(send, MEGABYTE)
    else:
        if scope["method"] == "POST":
            while (await receive())["more_body"]:
                pass
        await answer(send, HELLO)


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
