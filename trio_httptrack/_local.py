"""Trackers stay in the process that made them.

Hypercorn pickles its configuration into each worker process. A tracker that
travelled along would arrive as a copy that counts unseen by anybody, so it
refuses, and says what to write instead.
"""

from __future__ import annotations

from typing import Any


class ProcessLocal:
    """Something that cannot be pickled."""

    __slots__ = ()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            f"{self!r} lives in this process and cannot be sent to a worker process; in a "
            "Hypercorn config name it by its import path: conn_state = hook('myapp:tracker')"
        )


def can_travel(tracker: object) -> bool:
    """Whether the tracker's class itself says how it is pickled, as a hook's does."""
    return type(tracker).__reduce__ not in (object.__reduce__, ProcessLocal.__reduce__)
