"""Trackers stay in the process that made them.

Hypercorn pickles its configuration into each worker process. A tracker that
travelled along would arrive as a copy that counts unseen by anybody, so it
refuses, and says what to write instead.
"""

from __future__ import annotations

from typing import Any


class OneLineExit(SystemExit):
    """Makes of an error one that prints its message alone, and exits with status 1.

    For errors in Hypercorn's command, which catches nothing, and would bury the message under a
    traceback of its own frames. Whoever catches such an error has what it is besides.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"trio_httptrack: {message}"


class NotPicklableError(OneLineExit, TypeError):
    """An object of this process was about to be sent to a new one."""


class ProcessLocal:
    """Something that cannot be pickled."""

    __slots__ = ()

    def __reduce__(self) -> str | tuple[Any, ...]:
        from multiprocessing.context import get_spawning_popen  # which few processes need

        # Whoever only pickles does not expect that it may end the process.
        error = TypeError if get_spawning_popen() is None else NotPicklableError
        raise error(
            f"{self!r} lives in this process and cannot be sent to a worker process; in a "
            "Hypercorn config do not import it, but name it by its import path: "
            "conn_state = hook('myapp:tracker')"
        )


def is_picklable(tracker: object) -> bool:
    """Whether the tracker's class itself says how it is pickled, as a hook's does."""
    return type(tracker).__reduce__ not in (object.__reduce__, ProcessLocal.__reduce__)
