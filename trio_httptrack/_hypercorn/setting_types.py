"""What each of Hypercorn's own settings may be.

Hypercorn checks none of them: a ``keep_alive_timeout`` that is a string fails in some connection,
long after the start. Its Config says what it takes, by an annotation or else by the default.
That is the rule here, and ``OVERRIDES`` has the exceptions, because what works must not be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cache
from os import PathLike
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypercorn.config import Config

# For each kind of value: what a message calls it, and whether a value is of it. A bool is an int to
# Python, but whoever writes keep_alive_timeout = true has mistaken the setting for another.
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
            and not isinstance(value, str)  # whose items are strings, too
            and all(isinstance(item, str) for item in value)
        ),
    ),
    callable: ("a function", callable),
    logging.Logger: ("a Logger", lambda value: isinstance(value, logging.Logger)),
    object: ("anything", lambda value: True),  # of what a later Hypercorn may bring
}
# What works though Hypercorn's annotations and defaults do not say so.
OVERRIDES: dict[str, tuple[Any, ...]] = {
    # Fractions, 1e6 and inf, where a number is only compared with others.
    "keep_alive_max_requests": (float,),
    "max_app_queue_size": (float,),
    "max_requests": (float, None),
    "read_timeout": (float, None),
    "websocket_max_message_size": (float,),
    "wsgi_max_body_size": (float,),
    # What can be opened, where a file is.
    "accesslog": (logging.Logger, str, PathLike, False, None),
    "errorlog": (logging.Logger, str, PathLike, False, None),
    "ca_certs": (str, bytes, PathLike, None),
    "certfile": (str, bytes, PathLike, None),
    "keyfile": (str, bytes, PathLike, None),
    "pid_path": (str, bytes, PathLike, None),
    # What makes a password, or a Logger.
    "keyfile_password": (str, bytes, callable, None),
    "logger_class": (callable,),
}


def type_complaint(name: str, value: object) -> str | None:
    """What is wrong with a value for one of Hypercorn's settings, if its type is."""
    kinds = _kinds(name)
    # A bare object() is what Hypercorn's command has for "not given", and leaves as
    # max_requests_jitter where that was given and max_requests was not.
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
        return int  # a member of an enumeration, which a file has as its number
    return kind if kind in KINDS else object
