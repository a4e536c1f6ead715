from __future__ import annotations

import logging

import pytest

from trio_httptrack import Conn, ConnState, LogTracker


def test_a_line_names_the_connection_and_its_new_state(caplog: pytest.LogCaptureFixture) -> None:
    """By default transitions go to the logger trio_httptrack, at INFO."""
    conn = Conn(("192.0.2.7", 4711))
    with caplog.at_level(logging.INFO, "trio_httptrack"):
        LogTracker().track(conn, ConnState.NEW)
    assert caplog.record_tuples == [
        ("trio_httptrack", logging.INFO, f"conn {conn.id} 192.0.2.7:4711 new")
    ]


def test_the_last_line_has_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that did not end normally is logged with its reason; logger and level count."""
    conn = Conn()
    conn.close_reason = "keep_alive_timeout"
    LogTracker(logging.getLogger("mine"), logging.WARNING).track(conn, ConnState.CLOSED)
    assert caplog.record_tuples == [
        ("mine", logging.WARNING, f"conn {conn.id} - closed (keep_alive_timeout)")
    ]


def test_anything_may_stand_for_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    """As with the other trackers, the connection need not be a Conn."""
    LogTracker(level=logging.WARNING).track("me", ConnState.CLOSED)
    assert caplog.messages == ["me closed"]


def test_a_record_has_the_connections_fields(caplog: pytest.LogCaptureFixture) -> None:
    """For a formatter, such as one that writes JSON."""
    conn = Conn(("2001:db8::7", 4711), opened_at=5)
    conn.protocol, conn.requests, conn.state_since = "h2", 3, 12.3456
    conn.close_reason = "keep_alive_timeout"
    names = ("id", "client", "protocol", "state", "reason", "age", "requests")
    with caplog.at_level(logging.INFO, "trio_httptrack"):
        for state in (ConnState.IDLE, ConnState.CLOSED):
            LogTracker().track(conn, state)
        LogTracker().track("me", ConnState.NEW)
    idle, closed, other = caplog.records
    common = conn.id, "[2001:db8::7]:4711", "h2"
    assert [getattr(idle, name) for name in names] == [*common, "idle", None, 7.346, 3]
    assert [getattr(closed, name) for name in names] == [
        *(*common, "closed", "keep_alive_timeout", 7.346, 3)
    ]
    assert other.state == "new"  # type: ignore[attr-defined]


def test_a_level_that_is_off_costs_no_record(caplog: pytest.LogCaptureFixture) -> None:
    """Nor are fields put together for it."""
    with caplog.at_level(logging.WARNING, "trio_httptrack"):
        LogTracker().track(Conn(), ConnState.NEW)
    assert not caplog.records


def test_an_adapter_is_a_logger(caplog: pytest.LogCaptureFixture) -> None:
    """Such as one that adds something to each line."""
    adapter = logging.LoggerAdapter(logging.getLogger("trio_httptrack"), {"worker": 1})
    with caplog.at_level(logging.INFO):
        LogTracker(adapter).track(Conn(), ConnState.NEW)
    assert caplog.records[0].message.endswith(" new")


def test_an_invalid_logger_or_level_is_refused_at_once() -> None:
    """A name would fail with every transition, and nowhere else."""
    with pytest.raises(TypeError, match=r"logger must be a Logger, .* not 'myapp'"):
        LogTracker("myapp")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"level must be a number, .* not 'INFO'"):
        LogTracker(level="INFO")  # type: ignore[arg-type]
