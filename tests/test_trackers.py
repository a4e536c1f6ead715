from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from hypercorn.config import Config

from trio_httptrack import (
    Conn,
    ConnState,
    ConnTracker,
    LogTracker,
    StatsTracker,
    Tracker,
    TrackerFunc,
    compose,
    hook,
    wrap,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

NEW = ConnState.NEW


@dataclass(eq=False)
class Named:
    name: str
    calls: list[str]

    def track(self, conn: Conn, state: ConnState) -> None:
        self.calls.append(self.name)


class NamedConnTracker(ConnTracker):
    def __init__(self, name: str, calls: list[str]) -> None:
        super().__init__()
        self.name = name
        self.calls = calls

    def track(self, conn: Any, state: ConnState) -> None:
        self.calls.append(self.name)


def test_a_function_is_a_tracker_and_still_a_function() -> None:
    """TrackerFunc calls its function by track() and by being called."""
    calls = []
    tracker = TrackerFunc(lambda conn, state: calls.append((conn, state)))
    conn = Conn()
    tracker.track(conn, NEW)
    tracker(conn, ConnState.CLOSED)
    assert calls == [(conn, NEW), (conn, ConnState.CLOSED)]


def test_compose_calls_each_in_the_order_given() -> None:
    """The order of the arguments is the order of the calls."""
    calls: list[str] = []
    compose(*(Named(name, calls) for name in "abc")).track(Conn(), NEW)
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize("state", ConnState)
def test_compose_calls_each_for_every_state(state: ConnState) -> None:
    """Also a ConnTracker of the user's own, wherever it stands."""
    calls: list[str] = []
    a, b, z = Named("a", calls), Named("b", calls), NamedConnTracker("z", calls)
    compose(a, b, ConnTracker()).track(Conn(), NEW)
    compose(a, z).track(Conn(), state)
    compose(ConnTracker(), z, a).track(Conn(), NEW)
    compose(z).track(Conn(), state)
    compose(a, b).track(Conn(), state)
    assert "".join(calls) == "ab" + "az" + "az" + "z" + "ab"


def test_compose_of_nothing_does_nothing() -> None:
    """No trackers are fine too."""
    for state in ConnState:
        compose().track(Conn(), state)


def test_compose_flattens_and_puts_every_conn_tracker_last_in_their_order() -> None:
    """Nested composes are replaced by their parts; ConnTrackers move behind all, stably."""
    calls: list[str] = []
    a, b, c = (Named(name, calls) for name in "abc")
    y, z = (NamedConnTracker(name, calls) for name in "yz")
    compose(y, compose(a, compose(z, b)), c).track(Conn(), NEW)
    assert calls == ["a", "b", "c", "y", "z"]


def test_wrap_puts_conn_trackers_last_too() -> None:
    """A ConnTracker that was on the Config first still runs last."""
    calls: list[str] = []
    config: Any = Config()
    config.conn_state = NamedConnTracker("z", calls)
    wrap(config, Named("a", calls))
    config.conn_state.track(Conn(), NEW)
    assert calls == ["a", "z"]


def test_one_that_raises_does_not_keep_the_others_from_running() -> None:
    """All run, and what they raised leaves together."""
    calls: list[str] = []

    def fail(conn: Conn, state: ConnState) -> None:
        raise ValueError(str(state))

    failing = TrackerFunc(fail)
    conns = ConnTracker()
    tracker = compose(failing, Named("a", calls), failing, conns)
    with pytest.raises(ExceptionGroup) as raised:
        tracker.track(Conn(), NEW)
    assert [repr(error) for error in raised.value.exceptions] == ["ValueError('new')"] * 2
    assert calls == ["a"]
    assert conns.count == 1


def test_ctrl_c_in_a_tracker_still_reaches_the_conn_tracker() -> None:
    """KeyboardInterrupt is no reason to miscount; it leaves as what it is."""

    def interrupted(conn: Conn, state: ConnState) -> None:
        raise KeyboardInterrupt

    conns = ConnTracker()
    with pytest.raises(BaseExceptionGroup) as raised:
        compose(TrackerFunc(interrupted), conns).track(Conn(), NEW)
    assert not isinstance(raised.value, Exception)
    assert conns.count == 1


async def coroutine_function(conn: Conn, state: ConnState) -> None: ...


class AsyncTracker:
    async def track(self, conn: Conn, state: ConnState) -> None: ...


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        (StatsTracker, r"write StatsTracker\(\)"),
        (lambda conn, state: None, "wrap a function in TrackerFunc"),
        (5, r"5 is not a tracker: it has no track\(conn, state\)$"),
        (AsyncTracker(), "is async"),
    ],
)
def test_what_is_not_a_tracker_is_refused_with_advice(tracker: Any, message: str) -> None:
    """The errors of compose and wrap say what to write instead; a refused wrap changes nothing."""
    with pytest.raises(TypeError, match=message):
        compose(tracker)
    config = Config()
    with pytest.raises(TypeError, match=message):
        wrap(config, tracker)
    assert not hasattr(config, "conn_state")


@pytest.mark.parametrize(
    ("func", "message"), [("no function", "'no function'"), (coroutine_function, "is async")]
)
def test_tracker_func_refuses_what_it_could_not_call(func: Any, message: str) -> None:
    """Neither something that is not callable nor a coroutine function is accepted."""
    with pytest.raises(TypeError, match=message):
        TrackerFunc(func)


@pytest.mark.parametrize(
    "tracker",
    [
        StatsTracker(),
        ConnTracker(),
        LogTracker(),
        TrackerFunc(print),
        compose(Named("a", [])),
        compose(hook("a:b"), StatsTracker()),
    ],
    ids=repr,
)
def test_a_tracker_refuses_to_be_pickled_and_names_the_hook(tracker: Tracker) -> None:
    """A copy in another process would count unseen, so there is none."""
    with pytest.raises(TypeError, match=r"import path: conn_state = hook\('myapp:tracker'\)"):
        pickle.dumps(tracker)


def test_hooks_travel_also_composed() -> None:
    """What names its trackers by import path arrives as the same names."""
    tracker = compose(hook("a:b"), hook("c.d:e.f"))
    assert repr(pickle.loads(pickle.dumps(tracker))) == "compose(hook('a:b'), hook('c.d:e.f'))"


def test_reprs_show_what_is_in_them() -> None:
    """A person can see how trackers are composed."""
    assert repr(compose(ConnTracker(), TrackerFunc(len))) == (  # type: ignore[arg-type]
        "compose(TrackerFunc(<built-in function len>), <ConnTracker count=0>)"
    )
