"""A Flask application, as its documentation begins: WSGI, so each request has a thread."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello() -> str:
    return "Hello, world!"
