"""Trackers stay in the process that made them.

Hypercorn pickles its configuration into each worker process. A pickled tracker
would arrive there as a copy, whose counts nobody reads. So trackers refuse to
be pickled, and the error says what to write instead.
"""

from __future__ import annotations

from typing import Any


class OneLineExit(SystemExit):
    """A mixin for errors: if nothing catches one, its message is printed and the status is 1.

    It is for errors in Hypercorn's command, which catches nothing and would print a traceback of
    its own frames. Code that catches the error catches it as its other base class, such as
    TypeError.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"trio_httptrack: {message}"


class NotPicklableError(OneLineExit, TypeError):
    """An object of this process was about to be pickled for a worker process."""


class ProcessLocal:
    """An object that refuses to be pickled."""

    __slots__ = ()

    def __reduce__(self) -> str | tuple[Any, ...]:
        from multiprocessing.context import get_spawning_popen  # slow to import, rarely needed

        # Only while a process is spawned: elsewhere a pickling error must not exit.
        error = TypeError if get_spawning_popen() is None else NotPicklableError
        raise error(
            f"{self!r} lives in this process and cannot be sent to a worker process; in a "
            "Hypercorn config do not import it, but name it by its import path: "
            "conn_state = hook('myapp:tracker')"
        )


def is_picklable(tracker: object) -> bool:
    """Return whether the tracker's class defines how it is pickled, as a hook's does."""
    return type(tracker).__reduce__ not in (object.__reduce__, ProcessLocal.__reduce__)
