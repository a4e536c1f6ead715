"""The Tracker protocol, a tracker made of a function, and compose()."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Protocol

from ._conns import ConnTracker
from ._local import ProcessLocal, is_picklable
from ._states import ACTIVE, IDLE, Conn, ConnState

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup


class Tracker(Protocol):
    """Anything with a ``track`` method.

    >>> class Printer:
    ...     def track(self, conn, state):
    ...         print(conn.client, state)
    >>> Printer().track(Conn(("192.0.2.7", 4711)), ConnState.NEW)
    ('192.0.2.7', 4711) new
    """

    def track(self, conn: Conn, state: ConnState, /) -> None:
        """Called once for each transition, in Trio's thread, by the task that causes it.

        That may be the task of a request's handler. ``track`` must not block, and cannot await: do
        slow work in a task of your own. An exception is logged, and affects neither the connection
        nor the other trackers.
        """


class TrackerFunc(ProcessLocal):
    """A :class:`Tracker` that calls a function. It is itself callable, like the function.

    >>> printer = TrackerFunc(lambda conn, state: print(state))
    >>> printer.track(Conn(), ConnState.NEW)
    new

    Raises:
      TypeError: ``func`` is not callable, or is a coroutine function.
    """

    # A slot, not a method: a method would add a frame to each call.
    __slots__ = {"__weakref__": None, "track": "Call the function. Not a checkpoint."}

    if TYPE_CHECKING:  # type checkers would bind a callable in a slot

        def track(self, conn: Conn, state: ConnState, /) -> None: ...

    def __init__(self, func: Callable[[Conn, ConnState], None]) -> None:
        if not callable(func):
            raise TypeError(f"a function of (conn, state) is needed, not {func!r}")
        refuse_coroutine_function(func)
        self.track = func  # type: ignore[method-assign]

    def __call__(self, conn: Conn, state: ConnState) -> None:
        self.track(conn, state)

    def __repr__(self) -> str:
        return f"TrackerFunc({self.track!r})"


class Composed(TrackerFunc):
    """What :func:`compose` returns. ``trackers`` are its parts, in the order of the calls."""

    __slots__ = ("_first", "_only_conn_trackers_follow", "_others", "trackers")

    def __init__(self, trackers: tuple[Tracker, ...]) -> None:
        self.trackers: tuple[Tracker, ...] = trackers
        self._first: Tracker = trackers[0] if trackers else TrackerFunc(lambda conn, state: None)
        self._others = trackers[1:]
        self._only_conn_trackers_follow = all(type(each) is ConnTracker for each in self._others)

    def track(self, conn: Conn, state: ConnState) -> None:
        try:
            self._first.track(conn, state)
        except BaseException as error:  # even a KeyboardInterrupt: the ConnTracker must count
            errors = [error, *self._track_others(conn, state)]
        else:
            if self._only_conn_trackers_follow and (state is ACTIVE or state is IDLE):
                return  # a ConnTracker ignores these two, which are reported for each request
            errors = self._track_others(conn, state)
        if errors:
            raise BaseExceptionGroup("trackers failed", errors)

    def _track_others(self, conn: Conn, state: ConnState) -> list[BaseException]:
        errors: list[BaseException] = []
        for each in self._others:
            try:
                each.track(conn, state)
            except BaseException as error:
                errors.append(error)
        return errors

    def __repr__(self) -> str:
        return f"compose({', '.join(map(repr, self.trackers))})"

    def __reduce__(self) -> str | tuple[Any, ...]:
        if all(map(is_picklable, self.trackers)):
            return compose, self.trackers
        return super().__reduce__()


def compose(*trackers: Tracker) -> Composed:
    """Make one tracker that calls each of ``trackers`` in the order given.

    A composed tracker among them is replaced by its parts. Every :class:`ConnTracker` is
    moved to the end, so that the statistics are complete when its ``wait()`` returns. If
    one tracker raises, the others still run, and all errors are raised together as an
    ``ExceptionGroup``.

    >>> conns = ConnTracker()
    >>> seen = TrackerFunc(lambda conn, state: print(state, conns.count))
    >>> compose(conns, seen).track(Conn(), ConnState.NEW)
    new 0

    Raises:
      TypeError: an argument is not a tracker.
    """
    parts: list[Tracker] = []
    for tracker in trackers:
        check_tracker(tracker)
        parts += tracker.trackers if isinstance(tracker, Composed) else (tracker,)
    parts.sort(key=lambda part: isinstance(part, ConnTracker))  # sort() is stable
    return Composed(tuple(parts))


def check_tracker(tracker: object) -> None:
    """Raise a TypeError unless ``tracker`` is a tracker."""
    if isinstance(tracker, type):
        raise TypeError(f"a tracker is needed, not a class: write {tracker.__name__}()")
    if not callable(getattr(tracker, "track", None)):
        advice = "; wrap a function in TrackerFunc" if callable(tracker) else ""
        raise TypeError(f"{tracker!r} is not a tracker: it has no track(conn, state){advice}")
    refuse_coroutine_function(tracker.track)  # type: ignore[attr-defined]


def refuse_coroutine_function(func: Callable[..., object]) -> None:
    if iscoroutinefunction(func):
        raise TypeError(
            f"{func!r} is async, but track() is called without await and must not block"
        )
