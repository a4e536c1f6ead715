"""The application that every server of the benchmark serves."""

from __future__ import annotations

import json
import time
from typing import Any

from trio_httptrack import Conn, ConnState

HELLO = b"Hello, world!"
CHUNK = b"x" * 1024
MEGABYTE = b"x" * 2**20


class Closings:
    """A tracker that records when each connection was closed, by the client's port."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def track(self, conn: Conn, state: ConnState) -> None:
        if state is ConnState.CLOSED and conn.client is not None:
            self.times[conn.client[1]] = time.monotonic()


closings = Closings()


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
    elif scope["path"] == "/closings":
        await respond(send, json.dumps(closings.times).encode())
    elif scope["path"] == "/wait":
        while (await receive())["type"] != "http.disconnect":
            pass
    elif scope["path"] == "/megabyte":
        await respond(send, MEGABYTE)
    else:
        if scope["method"] == "POST":
            while (await receive())["more_body"]:
                pass
        await respond(send, HELLO)


async def respond(send: Any, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
