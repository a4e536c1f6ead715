"""Make the settings of connections from a Hypercorn Config, and validate them."""

from __future__ import annotations

import math
from inspect import isroutine
from typing import Any

from hypercorn.config import Config

from .._connection.pace import Rate
from .._connection.settings import Settings
from .setting_types import type_complaint

# The settings that we add to Hypercorn's. drain_new_timeout is that of Go's http.Server.Shutdown,
# min_rate_grace_period that of Kestrel, max_connection_age_jitter that of gRPC, and
# websocket_ping_timeout that of uvicorn.
DEFAULTS: dict[str, float | bool | str | None] = {
    "cancel_on_disconnect": None,
    "drain_idle_timeout": 0.5,
    "drain_new_timeout": 5.0,
    "drain_websocket_code": 1012,
    "h2c_upgrade": True,
    "h2_max_overhead": 2**20,
    "max_connection_age": None,
    "max_connection_age_jitter": 0.1,
    "min_rate_grace_period": 5.0,
    "min_request_body_rate": None,
    "min_response_rate": None,
    "request_timeout": None,
    "runtime_dir": None,
    "tcp_keepalive": 120,
    "websocket_ping_timeout": 20.0,
}
JITTER_STEPS = 16
# grace_timeout is taken for a misspelt graceful_timeout. drain_timeout may be the user's own name.
MIN_SIMILARITY = 0.88
WEBSOCKET_CODES = (1012, 1001)  # Service Restart, Going Away (RFC 6455, 7.4.1, and IANA's list)


class SettingError(ValueError):
    """A setting on a Config cannot be used."""


def settings_of(config: Config) -> Settings:
    """Return the settings of connections, from a Config.

    Raises:
      SettingError: a setting cannot be used.
    """
    _refuse_misspelt(config)
    _refuse_wrong_types(config)
    code: Any = _setting(config, "drain_websocket_code")
    if code not in WEBSOCKET_CODES:
        raise SettingError(f"drain_websocket_code must be 1012 or 1001, not {code!r}")
    h2c: Any = _setting(config, "h2c_upgrade")
    if not isinstance(h2c, bool):
        raise SettingError(f"h2c_upgrade must be True or False, not {h2c!r}")
    overhead: Any = _setting(config, "h2_max_overhead")
    if not isinstance(overhead, int) or isinstance(overhead, bool) or overhead < 0:
        raise SettingError(f"h2_max_overhead must be bytes, 0 or more, not {overhead!r}")
    if config.quic_bind:
        raise SettingError(
            "quic_bind: Hypercorn's HTTP/3 is not tracked, and one bad request over it terminates "
            "its worker; remove quic_bind, and let a proxy such as Caddy serve HTTP/3"
        )
    return Settings(
        keep_alive_timeout=config.keep_alive_timeout,
        handshake_timeout=config.ssl_handshake_timeout,
        read_timeout=config.read_timeout,
        min_request_rate=_rate(config, "min_request_body_rate"),
        min_response_rate=_rate(config, "min_response_rate"),
        request_timeout=_limit(config, "request_timeout", "seconds, more than 0"),
        cancel_on_disconnect=_limit(
            config, "cancel_on_disconnect", "seconds, 0 or more", zero=True
        ),
        max_connection_ages=_ages(config),
        tcp_keepalive=_limit(
            config, "tcp_keepalive", f"seconds, more than 0 and below {2**15}", below=2**15
        ),
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
        websocket_ping_timeout=_limit(config, "websocket_ping_timeout", "seconds, more than 0"),
        root_path=config.root_path,
        server_names=frozenset(config.server_names),
        server_headers=config.response_headers,
    )


def runtime_dir_of(config: Config) -> str | None:
    """Return the directory where workers find each other; None if the Config has none.

    Raises:
      SettingError: it is not a path.
    """
    path: Any = _setting(config, "runtime_dir")
    if path is None or (isinstance(path, str) and path):
        return path
    raise SettingError(f"runtime_dir must be a directory's path, or None, not {path!r}")


def _setting(config: Config, name: str) -> Any:
    return getattr(config, name, DEFAULTS[name])


def _ages(config: Config) -> list[float]:
    """Return the ages at which connections drain; none without a limit. Each connection has one.

    The jitter has a few steps, one timer each. Connections with the same age limit reach it in the
    order of their accept, so they share that timer.
    """
    age = _limit(config, "max_connection_age", "seconds, more than 0")
    jitter = _setting(config, "max_connection_age_jitter")
    if not _is_number(jitter) or not 0 <= jitter < 1:
        raise SettingError(
            "max_connection_age_jitter must be a fraction of the age, from 0 to below 1, "
            f"not {jitter!r}"
        )
    if age is None:
        return []
    steps = JITTER_STEPS if jitter else 1
    return [age * (1 + jitter * (2 * step + 1 - steps) / steps) for step in range(steps)]


def _rate(config: Config, name: str) -> Rate | None:
    grace_period = _number(config, "min_rate_grace_period", "seconds, more than 0")
    rate = _limit(config, name, "bytes a second, more than 0")
    return None if rate is None else Rate(rate, grace_period)


def _seconds(config: Config, name: str) -> float:
    return _number(config, name, "seconds, 0 or more", zero=True)


def _limit(config: Config, name: str, what: str, **allowed: Any) -> float | None:
    if _setting(config, name) is None:
        return None
    return _number(config, name, f"{what}, or None", **allowed)


def _number(
    config: Config, name: str, what: str, *, zero: bool = False, below: float = math.inf
) -> float:
    number = _setting(config, name)
    if not _is_number(number) or not (0 < number < below or (zero and number == 0)):
        raise SettingError(f"{name} must be a number of {what}, not {number!r}")
    return float(number)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_misspelt(config: Config) -> None:
    """Refuse a name that is almost that of a setting. Hypercorn ignores unknown names."""
    known = list(filter(is_setting, {*dir(Config), *Config.__annotations__, *DEFAULTS}))
    for name, value in vars(config).items():
        if name.startswith("_") or callable(value) or is_setting(name):
            continue
        from difflib import get_close_matches  # rarely needed: only for an unknown name

        for meant in get_close_matches(name, known, n=1, cutoff=MIN_SIMILARITY):
            if meant not in vars(config):
                raise SettingError(
                    f"{name}: there is no such setting; did you mean {meant}? "
                    "(A name of your own can begin with _)"
                )


def _refuse_wrong_types(config: Config) -> None:
    for name in filter(is_hypercorn_setting, {*dir(Config), *Config.__annotations__}):
        if hasattr(config, name):  # cert_reqs cannot be read; application_path may not be set
            complaint = type_complaint(name, getattr(config, name))
            if complaint is not None:
                raise SettingError(complaint)


def check_config(config: object) -> None:
    """Raise a TypeError unless it is a Config."""
    if not isinstance(config, Config):
        advice = " (a tracker is tracker=)" if hasattr(config, "track") else ""
        raise TypeError(f"config must be Hypercorn's Config, not {config!r}{advice}")


def is_setting(name: str) -> bool:
    """Return whether this is a setting of Hypercorn's Config, or one of ours."""
    if name == "conn_state" or name in DEFAULTS:
        return True
    return is_hypercorn_setting(name)


def is_hypercorn_setting(name: str) -> bool:
    """Return whether this is a setting of Hypercorn's Config."""
    if name.startswith("_") or name not in {*dir(Config), *Config.__annotations__}:
        return False
    attribute = getattr(Config, name, None)
    return not isroutine(attribute) and getattr(attribute, "fset", True) is not None
