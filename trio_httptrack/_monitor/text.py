"""A view as plain text, for a terminal."""

from __future__ import annotations

from .view import View


def as_text(view: View) -> str:
    return str(view)
