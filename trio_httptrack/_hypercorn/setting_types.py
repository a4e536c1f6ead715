"""The types that each of Hypercorn's own settings may have.

Hypercorn does not check them: a ``keep_alive_timeout`` that is a string fails in some connection,
long after the start. The type of a setting is that of its annotation in Config, or else of its
default. ``OVERRIDES`` has the exceptions, because a value that works must not be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cache
from os import PathLike
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypercorn.config import Config

# For each type: its name in a message, and a check of a value. A bool is an int in Python, but
# keep_alive_timeout = true must be a mistake.
KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    None: ("None", lambda value: value is None),
    False: ("False", lambda value: value is False),
    bool: ("True or False", lambda value: isinstance(value, int) and value in (0, 1)),
    int: ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: (
        "a number",
        lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    ),
    str: ("a string", lambda value: isinstance(value, str)),
    bytes: ("bytes", lambda value: isinstance(value, bytes)),
    PathLike: ("a path", lambda value: isinstance(value, PathLike)),
    dict: ("a dict", lambda value: isinstance(value, dict)),
    list: (
        "a list of strings",
        lambda value: (
            isinstance(value, Collection)
            and not isinstance(value, str)  # the items of a string are strings, too
            and all(isinstance(item, str) for item in value)
        ),
    ),
    callable: ("a function", callable),
    logging.Logger: ("a Logger", lambda value: isinstance(value, logging.Logger)),
    object: ("anything", lambda value: True),  # for types that a later Hypercorn may add
}
# Types that work, although Hypercorn's annotations and defaults do not have them.
OVERRIDES: dict[str, tuple[Any, ...]] = {
    # Numbers that Hypercorn only compares: fractions, 1e6 and inf work.
    "keep_alive_max_requests": (float,),
    "max_app_queue_size": (float,),
    "max_requests": (float, None),
    "read_timeout": (float, None),
    "websocket_max_message_size": (float,),
    "wsgi_max_body_size": (float,),
    # Files: anything that open() takes.
    "accesslog": (logging.Logger, str, PathLike, False, None),
    "errorlog": (logging.Logger, str, PathLike, False, None),
    "ca_certs": (str, bytes, PathLike, None),
    "certfile": (str, bytes, PathLike, None),
    "keyfile": (str, bytes, PathLike, None),
    "pid_path": (str, bytes, PathLike, None),
    # Functions that return a password, or a Logger.
    "keyfile_password": (str, bytes, callable, None),
    "logger_class": (callable,),
}


def type_complaint(name: str, value: object) -> str | None:
    """Return an error message if a value of one of Hypercorn's settings has the wrong type."""
    kinds = _kinds(name)
    # Hypercorn's command uses a bare object() for "not given". It leaves one in
    # max_requests_jitter if that was given and max_requests was not.
    if type(value) is object or any(KINDS[kind][1](value) for kind in kinds):
        return None
    *others, last = [KINDS[kind][0] for kind in kinds]
    allowed = f"{', '.join(others)} or {last}" if others else last
    return f"{name} must be {allowed}, not {value!r}"


@cache
def _kinds(name: str) -> tuple[Any, ...]:
    if name in OVERRIDES:
        return OVERRIDES[name]
    default = getattr(Config, name, None)
    if isinstance(default, property):
        hint = get_type_hints(default.fset)["value"]
    else:
        hint = get_type_hints(Config).get(name, type(default))
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(map(_kind, hints))


def _kind(hint: Any) -> Any:
    kind = get_origin(hint) or hint
    if kind is type(None):
        return None
    if kind is not bool and isinstance(kind, type) and issubclass(kind, int):
        return int  # an enumeration: in a config file its member is a number
    return kind if kind in KINDS else object
