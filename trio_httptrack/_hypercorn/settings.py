"""What a Config says to a tracked server, beside what it says to Hypercorn."""

from __future__ import annotations

from inspect import isroutine
from typing import Any

from hypercorn.config import Config

# New ones are given as long as Go's http.Server.Shutdown gives them.
DEFAULTS: dict[str, float] = {
    "drain_idle_timeout": 0.5,
    "drain_new_timeout": 5.0,
    "drain_websocket_code": 1012,
}
WEBSOCKET_CODES = (1012, 1001)  # Service Restart, Going Away (RFC 6455, 7.4.1, and IANA's list)


class SettingError(ValueError):
    """A setting of ours on a Config cannot be used."""


class Grace:
    """What a Config grants its connections in a drain."""

    def __init__(self, config: Config) -> None:
        self.idle = self._seconds(config, "drain_idle_timeout")
        self.new = self._seconds(config, "drain_new_timeout")
        code: Any = getattr(config, "drain_websocket_code", DEFAULTS["drain_websocket_code"])
        if code not in WEBSOCKET_CODES:
            raise SettingError(f"drain_websocket_code must be 1012 or 1001, not {code!r}")
        self.websocket_code = int(code)

    @staticmethod
    def _seconds(config: Config, name: str) -> float:
        seconds: Any = getattr(config, name, DEFAULTS[name])
        if not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise SettingError(f"{name} must be a number of seconds, 0 or more, not {seconds!r}")
        return seconds


def check_config(config: object) -> None:
    """Raise a TypeError unless it is a Config."""
    if not isinstance(config, Config):
        advice = " (a tracker is tracker=)" if hasattr(config, "track") else ""
        raise TypeError(f"config must be Hypercorn's Config, not {config!r}{advice}")


def is_setting(name: str) -> bool:
    """Whether Hypercorn's Config, or we, know a setting of this name."""
    if name == "conn_state" or name in DEFAULTS:
        return True
    if name.startswith("_") or name not in {*dir(Config), *Config.__annotations__}:
        return False
    attribute = getattr(Config, name, None)
    return not isroutine(attribute) and getattr(attribute, "fset", True) is not None
