"""Find the trackers that a Config's ``conn_state`` names.

``conn_state`` is a tracker, a :func:`hook`, or the path of a hook as a string (in a TOML file). The
worker imports the tracker of a hook when it starts, before it accepts.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from .._states import Conn, ConnState
from .._trackers import Composed, Tracker, check_tracker, compose
from .settings import SettingError


class HookError(SettingError):
    """A Config's ``conn_state`` does not name a tracker."""


class NamedTracker:
    """A tracker that is named by its import path, or by the path of a function that makes it."""

    __slots__ = ("_instance", "path")

    def __init__(self, path: str) -> None:
        module, colon, attribute = path.removesuffix("()").partition(":")
        if not all([*module.split("."), colon, *attribute.split(".")]):
            raise HookError(f"hook({path!r}): write it as 'package.module:attribute'")
        self.path: str = path
        self._instance: Tracker | None = None  # what the function returned

    def track(self, conn: Conn, state: ConnState) -> None:
        self.resolve().track(conn, state)

    def resolve(self) -> Tracker:
        """Import the tracker. An error *inside* the imported module is not a HookError."""
        if self._instance is not None:
            return self._instance
        module_name, _, attribute = self.path.removesuffix("()").partition(":")
        try:
            found: Any = import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise HookError(f"{self!r}: there is no module {error.name!r}") from None
        for name in attribute.split("."):
            try:
                found = getattr(found, name)
            except AttributeError:
                raise HookError(f"{self!r}: {found!r} has no attribute {name!r}") from None
        if self.path.endswith("()"):
            if not callable(found):
                raise HookError(f"{self!r}: {found!r} cannot be called")
            found = found()
        try:
            check_tracker(found)
        except TypeError as error:
            raise HookError(f"{self!r}: {error}") from None
        tracker: Tracker = found
        if self.path.endswith("()"):
            self._instance = tracker
        return tracker

    def __repr__(self) -> str:
        return f"hook({self.path!r})"


def resolve(conn_state: Any) -> Composed:
    """Return the trackers of a Config's ``conn_state``, with each hook's tracker imported."""
    return compose(*_imported(unresolved(conn_state)))


def unresolved(conn_state: Any) -> Composed:
    """Return the trackers and hooks of a ``conn_state``. Nothing is imported."""
    if conn_state is None:
        return compose()
    try:
        return compose(NamedTracker(conn_state) if isinstance(conn_state, str) else conn_state)
    except TypeError as error:
        raise HookError(f"conn_state: {error}") from None


def _imported(tracker: Tracker, *hooks: str) -> Iterator[Tracker]:
    if isinstance(tracker, Composed):
        for part in tracker.trackers:
            yield from _imported(part, *hooks)
    elif isinstance(tracker, NamedTracker):
        if tracker.path in hooks:
            raise HookError(f"{tracker!r} leads to itself: it must name a tracker")
        yield from _imported(tracker.resolve(), tracker.path, *hooks)
    else:
        yield tracker
