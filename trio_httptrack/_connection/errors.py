"""Which exceptions stay within their connection, and which propagate.

An error of an application or a protocol terminates one request or one connection.
A cancellation, Ctrl-C and ``sys.exit()`` concern more than that, so they propagate.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from .._states import Conn

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

PROPAGATING = (trio.Cancelled, KeyboardInterrupt, SystemExit)


class ClientDisconnected(BrokenPipeError):
    """An application sent after its client had disconnected: the connection is closed, or this
    request's stream is. (ASGI requires an OSError.)

    This is no error of the application, so it is not logged as one.
    """

    def __init__(self, conn: Conn) -> None:
        super().__init__(errno.EPIPE, f"the client does not read this response any more ({conn})")


class UnexpectedMessage(RuntimeError):
    """An application sent a message that ASGI does not allow at this point.

    Nothing was sent, and the state of the response is unchanged.
    """

    def __init__(self, type_: object, state: str) -> None:
        super().__init__(f"{type_!r} cannot be sent {state}")


def split(
    error: BaseException, types: type[BaseException] | tuple[type[BaseException], ...]
) -> tuple[BaseException | None, BaseException | None]:
    """Split an exception, group or not, into the part that matches ``types`` and the rest."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(types)
    return (error, None) if isinstance(error, types) else (None, error)


@contextmanager
def ungrouped(nurseries: int) -> Iterator[None]:
    """Unwrap a single error from the exception groups that this many nurseries put around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        for _ in range(nurseries):
            if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                error = error.exceptions[0]
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context  # not the group it has just left
