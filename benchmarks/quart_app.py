"""The first example of Quart-Trio's documentation."""

from __future__ import annotations

from quart_trio import QuartTrio

app = QuartTrio(__name__)


@app.get("/")
async def hello() -> str:
    return "Hello, world!"
