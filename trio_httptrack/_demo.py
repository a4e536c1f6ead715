"""The demo: a small application on a tracked server, with a status page and a LogTracker."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

import trio
from hypercorn.config import Config

from . import LogTracker, tracked_server
from .status import StatusApp

PAGE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Try trio-httptrack</title>
<style>
body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: auto; padding: 1rem }
input, button { font: inherit }
</style>
<h1>Try trio-httptrack</h1>
<p>Open the status page next to this one. Its address is in the server's log. Both show the state
of each connection.</p>
<ul>
<li><a href="/try">this page</a>: active, then idle until the keep-alive timeout
<li><a href="/slow">a slow response</a>: active for three seconds
<li><a href="/stream">a streamed response</a>: active while it lasts
<li><form><label>a WebSocket, hijacked: <input value="hello"></label> <button>send</button>
<output></output></form>
</ul>
<script>
let socket
document.querySelector("form").onsubmit = event => {
  event.preventDefault()
  const send = () => socket.send(document.querySelector("input").value)
  if (socket?.readyState === WebSocket.OPEN) return send()
  socket = new WebSocket(location.origin.replace("http", "ws") + "/ws")
  socket.onopen = send
  socket.onmessage = ({data}) => document.querySelector("output").textContent = "echo: " + data
}
</script>
"""

status: StatusApp = StatusApp()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan" or scope["path"] == "/":
        await status(scope, receive, send)
    elif scope["type"] == "websocket":
        await echo(receive, send)
    else:
        path = scope["path"]
        if path == "/slow":
            await trio.sleep(3)
            await respond(send, b"That took three seconds.\n")
        elif path == "/stream":
            await stream(send)
        elif path == "/try":
            await respond(send, PAGE, content_type=b"text/html")
        else:
            await respond(send, b"There is no such page.\n", status=404)


async def respond(
    send: Any, body: bytes, *, status: int = 200, content_type: bytes = b"text/plain"
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def stream(send: Any) -> None:
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(1, 11):
        line = f"line {number} of 10\n".encode()
        await send({"type": "http.response.body", "body": line, "more_body": True})
        await trio.sleep(0.3)
    await send({"type": "http.response.body"})


async def echo(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"], "bytes": event["bytes"]})


async def serve(bind: str) -> None:
    config = Config()
    config.bind = bind
    config.errorlog = logging.getLogger("hypercorn.error")
    config.keep_alive_timeout = 60  # so that one sees idle connections
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with tracked_server(app, config, tracker=LogTracker()) as server:
            url, token = server.urls[0], status.token
            logging.info("The status page: %s/?token=%s", url, token)
            logging.info("Links to try: %s/try", url)
            await signals.__anext__()


def run(bind: str) -> None:
    """Serve the demo until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        trio.run(serve, bind)
    except (OSError, OverflowError) as error:
        sys.exit(f"Cannot listen on {bind} ({error}): choose another address with --bind")
