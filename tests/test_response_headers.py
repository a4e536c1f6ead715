from __future__ import annotations

import pytest
from hypercorn.config import Config

from trio_httptrack._hypercorn import response_headers
from trio_httptrack._hypercorn.response_headers import with_cached_headers


def test_the_headers_of_a_second_are_made_once_for_each_protocol(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And anew in the next second, when the date and the settings may be others."""
    now = 1_000_000.0
    monkeypatch.setattr(response_headers, "time", lambda: now)
    config = Config()
    view = with_cached_headers(config)
    headers = view.response_headers("h11")
    config.alt_svc_headers = ['h3=":443"']
    now += 0.9
    assert view.response_headers("h11") is headers
    assert dict(view.response_headers("h2"))[b"server"] == b"hypercorn-h2"
    now += 0.1
    assert (b"alt-svc", b'h3=":443"') in view.response_headers("h11")


def test_a_setting_that_is_changed_is_changed_for_both() -> None:
    """A server does not keep what its Config was when it began."""
    config = Config()
    view = with_cached_headers(config)
    config.keep_alive_max_requests = 5
    view.read_timeout = 7
    assert view.keep_alive_max_requests == 5
    assert config.read_timeout == 7
    assert isinstance(view, Config)


def test_a_config_with_headers_of_its_own_is_called_for_each_response() -> None:
    """They may be others for each response."""

    class Numbered(Config):
        number = 0

        def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
            self.number += 1
            return [(b"x-number", b"%d" % self.number)]

    view = with_cached_headers(Numbered())
    assert view.response_headers("h11") == [(b"x-number", b"1")]
    assert view.response_headers("h11") == [(b"x-number", b"2")]
