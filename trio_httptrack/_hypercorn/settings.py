"""A Hypercorn Config, turned once into the settings that connections read."""

from __future__ import annotations

from inspect import isroutine
from typing import Any

from hypercorn.config import Config

from .._connection.settings import Settings

# Ours, beside Hypercorn's. New connections have as long as in Go's http.Server.Shutdown.
DEFAULTS: dict[str, float | bool] = {
    "drain_idle_timeout": 0.5,
    "drain_new_timeout": 5.0,
    "drain_websocket_code": 1012,
    "h2c_upgrade": True,
    "h2_max_overhead": 2**20,
}
WEBSOCKET_CODES = (1012, 1001)  # Service Restart, Going Away (RFC 6455, 7.4.1, and IANA's list)


class SettingError(ValueError):
    """A setting of ours on a Config cannot be used."""


def settings_of(config: Config) -> Settings:
    """What a Config says to connections.

    Raises:
      SettingError: a setting of ours cannot be used.
    """
    code: Any = _setting(config, "drain_websocket_code")
    if code not in WEBSOCKET_CODES:
        raise SettingError(f"drain_websocket_code must be 1012 or 1001, not {code!r}")
    h2c: Any = _setting(config, "h2c_upgrade")
    if not isinstance(h2c, bool):
        raise SettingError(f"h2c_upgrade must be True or False, not {h2c!r}")
    overhead: Any = _setting(config, "h2_max_overhead")
    if not isinstance(overhead, int) or isinstance(overhead, bool) or overhead < 0:
        raise SettingError(f"h2_max_overhead must be bytes, 0 or more, not {overhead!r}")
    return Settings(
        keep_alive_timeout=config.keep_alive_timeout,
        handshake_timeout=config.ssl_handshake_timeout,
        read_timeout=config.read_timeout,
        drain_idle_timeout=_seconds(config, "drain_idle_timeout"),
        drain_new_timeout=_seconds(config, "drain_new_timeout"),
        drain_websocket_code=int(code),
        keep_alive_max_requests=config.keep_alive_max_requests,
        max_head_size=config.h11_max_incomplete_size,
        raw_header_names=config.h11_pass_raw_headers,
        max_queue_size=config.max_app_queue_size,
        h2c_upgrade=h2c,
        h2_max_streams=config.h2_max_concurrent_streams,
        h2_max_header_list_size=config.h2_max_header_list_size,
        h2_max_frame_size=config.h2_max_inbound_frame_size,
        h2_max_overhead=overhead,
        websocket_max_message_size=config.websocket_max_message_size,
        websocket_ping_interval=config.websocket_ping_interval,
        root_path=config.root_path,
        server_names=frozenset(config.server_names),
        server_headers=config.response_headers,
    )


def _setting(config: Config, name: str) -> Any:
    return getattr(config, name, DEFAULTS[name])


def _seconds(config: Config, name: str) -> float:
    seconds = _setting(config, name)
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
