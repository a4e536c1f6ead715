"""A Quart-Trio application, as its documentation begins."""

from __future__ import annotations

from quart_trio import QuartTrio

app = QuartTrio(__name__)


@app.get("/")
async def hello() -> str:
    return "Hello, world!"
