"""A block in a cancel scope, with something done before it and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class ScopedBlock:
    """Run a block in a cancel scope: call ``enter`` with the scope first, and ``leave`` at the end.

    A generator with ``@contextmanager`` is shorter, but since Python 3.12 each exception that it
    swallows stays in a reference cycle with the frame of ``contextlib`` (python/cpython#129280).
    The traceback of a ``Cancelled`` that ends here holds the connection and its handler, which
    would all wait for the garbage collector.
    """

    __slots__ = ("_enter", "_leave", "_scope")

    def __init__(
        self,
        enter: Callable[[trio.CancelScope], object],
        leave: Callable[[trio.CancelScope], object],
    ) -> None:
        self._enter, self._leave = enter, leave
        self._scope = trio.CancelScope()

    def __enter__(self) -> trio.CancelScope:
        self._enter(self._scope)  # may cancel it at once
        return self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._leave(self._scope)
        return self._scope.__exit__(kind, error, traceback)
