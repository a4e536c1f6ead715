"""An application that sends the second part of its response when it has the whole request."""

import os
from typing import Any

from trio_httptrack import StatsTracker

tracker = StatsTracker()


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    first, second = b"%d." % os.getpid(), b"done"
    headers = [(b"content-length", b"%d" % len(first + second))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": first, "more_body": True})
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.body", "body": second})
