"""Which exceptions end with their connection, and which go on.

An application's mistake, or a protocol's, ends one request or one connection.
A cancellation, Ctrl-C and ``sys.exit()`` are meant for more than that: they travel.
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

TRAVELLING = (trio.Cancelled, KeyboardInterrupt, SystemExit)


class PeerGone(BrokenPipeError):
    """An application sent when nobody reads its response any more: the connection has ended,
    or this request's stream of it (ASGI asks for an OSError).

    Not an error of the application, so it is not logged as one.
    """

    def __init__(self, conn: Conn) -> None:
        super().__init__(errno.EPIPE, f"the client does not read this response any more ({conn})")


class UnexpectedMessage(RuntimeError):
    """An application sent a message that ASGI does not allow at this point.

    Nothing was sent, and the response goes on as it was.
    """

    def __init__(self, type_: object, state: str) -> None:
        super().__init__(f"{type_!r} cannot be sent {state}")


def split(
    error: BaseException, types: type[BaseException] | tuple[type[BaseException], ...]
) -> tuple[BaseException | None, BaseException | None]:
    """Part an exception, group or not, into what is of ``types`` and the rest."""
    if isinstance(error, BaseExceptionGroup):
        return error.split(types)
    return (error, None) if isinstance(error, types) else (None, error)


@contextmanager
def ungrouped(nurseries: int) -> Iterator[None]:
    """Unwrap an error that is alone in the groups that so many nurseries of ours put around it."""
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
