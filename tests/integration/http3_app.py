"""An application behind a proxy, which notes each request that it has read whole.

The response to ``/draining`` comes when its worker drains.
"""

import os
import random
from typing import Any

import trio

from trio_httptrack import StatsTracker

tracker = StatsTracker()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            await send({"type": (await receive())["type"] + ".complete"})
    length, more = 0, True
    while more:
        event = await receive()
        length, more = length + len(event["body"]), event["more_body"]
    note(f"{scope['method']} {scope['path']} {scope['http_version']} {length}\n")
    pause = 0.02
    if scope["path"] == "/draining":
        pause = 0
        await scope["extensions"]["httptrack"].draining.wait()
    await trio.sleep(random.uniform(0, pause))
    worker, path = b"worker %d " % os.getpid(), scope["path"].encode()
    headers = [(b"content-length", b"%d" % len(worker + path))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": worker, "more_body": True})
    await trio.sleep(random.uniform(0, pause))
    await send({"type": "http.response.body", "body": path})


def note(line: str) -> None:
    """Append a line to the file that all workers have, the old ones and the new ones."""
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(line)
