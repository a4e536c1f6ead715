"""The server's own response headers, such as Date, made once a second."""

from __future__ import annotations

from time import time

from hypercorn.config import Config


def with_cached_headers(config: Config) -> Config:
    """Return a Config with the same settings that caches its response headers for a second.

    Formatting the date for each response takes as long as parsing a request's first line.
    The result shares its attributes with ``config``: a later change to one shows in both.
    """
    config_class = type(config)
    if config_class.response_headers is not Config.response_headers:
        return config  # a subclass may have other headers for each response
    second = 0
    cached: dict[str, list[tuple[bytes, bytes]]] = {}

    class OncePerSecond(config_class):  # type: ignore[misc, valid-type]
        def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
            nonlocal second
            now = int(time())
            if now != second:
                second = now
                cached.clear()
            if protocol not in cached:
                cached[protocol] = super().response_headers(protocol)
            return cached[protocol]

    result = object.__new__(OncePerSecond)
    result.__dict__ = config.__dict__
    return result
