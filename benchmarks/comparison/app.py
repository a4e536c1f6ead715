"""What every ASGI server of ``benchmarks.comparison`` serves; ``handlers.go`` does the same.

The first part of a path says what the handler does. What it learns of its client goes, as a line
of JSON with the query string, to the file that ``COMPARISON_NOTES`` names.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from typing import Any

import anyio

CHUNK = b"x" * 2**16

if os.path.exists(os.environ["COMPARISON_NOTES"] + ".broken"):
    raise RuntimeError("the new version of this application is broken")


def write_note(tag: bytes, began: float, text: str) -> None:
    note = {"tag": tag.decode(), "after": time.monotonic() - began, "text": text}
    with open(os.environ["COMPARISON_NOTES"], "a") as notes:
        notes.write(f"{json.dumps(note)}\n")


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        write_note(b"lifespan", time.monotonic(), "lifespan")
        for _ in ("startup", "shutdown"):
            await send({"type": (await receive())["type"] + ".complete"})
        return
    note = partial(write_note, scope["query_string"], time.monotonic())
    try:
        if scope["type"] == "websocket":
            await websocket(receive, send, note)
        else:
            _, what, *arguments = scope["path"].split("/")
            await HANDLERS[what](receive, send, note, *arguments)
    except anyio.get_cancelled_exc_class():
        note("cancelled")
        raise


async def websocket(receive: Any, send: Any, note: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        pass
    note(f"{event['type']} {event.get('code')}")


async def respond(send: Any, body: bytes = b"done") -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def wait(receive: Any, send: Any, note: Any, seconds: str) -> None:
    """Respond after a while, without a look at the client."""
    await anyio.sleep(float(seconds))
    await respond(send)


async def gone(receive: Any, send: Any, note: Any) -> None:
    """Work for a second, then find out whether the client is still there."""
    await receive()  # the request's own event
    await anyio.sleep(1)
    with anyio.move_on_after(0.2) as scope:
        note(f"receive: {(await receive())['type']}")
    if scope.cancelled_caught:
        note("receive: waits")
    try:
        await respond(send)
    except Exception as error:
        note(
            f"send: {type(error).__name__}, {'an' if isinstance(error, OSError) else 'no'} OSError"
        )
        raise
    note("send: no error")


async def receiving(receive: Any, send: Any, note: Any) -> None:
    """Read everything, as an upload does, and then wait for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass
    note("http.disconnect")


async def stream(receive: Any, send: Any, note: Any) -> None:
    """Send a little, again and again."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        for _ in range(30):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await anyio.sleep(0.1)
    except Exception as error:
        note(f"send: {type(error).__name__}")
        raise
    note("send: no error")


async def flood(receive: Any, send: Any, note: Any, mebibytes: str) -> None:
    """Send much."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(int(mebibytes) * 16):
        note(f"{number / 16:.0f}")
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body"})


HANDLERS: dict[str, Any] = {
    "wait": wait,
    "gone": gone,
    "receive": receiving,
    "stream": stream,
    "flood": flood,
}
