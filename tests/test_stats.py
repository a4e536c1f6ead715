from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import assert_no_checkpoints

from trio_httptrack import Conn, ConnState, Stats, StatsTracker
from trio_httptrack._states import TRANSITIONS

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState


class Model:
    """A naive model: it keeps every transition, and counts them on request."""

    def __init__(self) -> None:
        self.state: dict[int, ConnState] = {}
        self.accepted = 0
        self.entered: Counter[ConnState] = Counter()

    def track(self, conn: int, state: ConnState) -> None:
        self.accepted += conn not in self.state
        self.entered[state] += 1
        self.state[conn] = state
        if state.terminal:
            del self.state[conn]

    def stats(self) -> Stats:
        now = Counter(self.state.values())
        return Stats(
            accepted=now[NEW],
            active=now[ACTIVE],
            idle=now[IDLE],
            accepted_total=self.accepted,
            active_total=self.entered[ACTIVE],
            idle_total=self.entered[IDLE],
            hijacked_total=self.entered[HIJACKED],
            closed_total=self.entered[CLOSED],
        )


transitions = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(ConnState)))


@given(transitions)
def test_every_sequence_of_transitions_counts_as_the_model_does(
    sequence: list[tuple[int, ConnState]],
) -> None:
    """In any order, possible or not, the numbers are the model's and add up at each step."""
    tracker, model = StatsTracker(), Model()
    for conn, state in sequence:
        tracker.track(conn, state)
        model.track(conn, state)
        stats = tracker.stats()
        assert stats == model.stats()
        assert tracker.connections() == model.state
        assert stats.accepted_total == (
            stats.accepted + stats.active + stats.idle + stats.hijacked_total + stats.closed_total
        )


@given(st.lists(st.lists(st.integers(0, 2)), max_size=5))
def test_what_a_server_may_report_counts_accepted_once_each(
    walks: list[list[int]],
) -> None:
    """Along any path of the state machine, accepted_total is the number of connections."""
    tracker = StatsTracker()
    for conn, walk in enumerate(walks):
        state = NEW
        tracker.track(conn, state)
        for step in walk:
            following = sorted(TRANSITIONS[state])
            if not following:
                break
            state = following[step % len(following)]
            tracker.track(conn, state)
    assert tracker.stats().accepted_total == len(walks)
    assert all(not state.terminal for state in tracker.connections().values())


def test_a_life_with_a_request_and_another_with_a_websocket() -> None:
    """The counters count entries, the gauges what is open; closed connections are forgotten."""
    tracker = StatsTracker()
    for state in (NEW, ACTIVE, IDLE):
        tracker.track("a", state)
    for state in (NEW, ACTIVE, HIJACKED):
        tracker.track("b", state)
    assert tracker.stats() == Stats(
        idle=1, accepted_total=2, active_total=2, idle_total=1, hijacked_total=1
    )
    assert tracker.connections() == {"a": IDLE}


def test_snapshots_do_not_change() -> None:
    """What stats() and connections() returned stays what it was."""
    tracker = StatsTracker()
    conn = Conn()
    tracker.track(conn, NEW)
    stats, connections = tracker.stats(), tracker.connections()
    tracker.track(conn, ACTIVE)
    tracker.track(conn, CLOSED)
    assert stats == Stats(accepted=1, accepted_total=1)
    assert connections == {conn: NEW}
    connections.clear()
    with pytest.raises(FrozenInstanceError):
        stats.active = 5  # type: ignore[misc]


@pytest.mark.parametrize("state", ConnState)
def test_an_unhashable_connection_is_a_type_error_and_changes_nothing(state: ConnState) -> None:
    """What cannot be remembered is not counted either."""
    tracker = StatsTracker()
    tracker.track("a", NEW)
    before = tracker.stats()
    with pytest.raises(TypeError, match="unhashable"):
        tracker.track([], state)  # type: ignore[arg-type]
    assert tracker.stats() == before
    assert tracker.connections() == {"a": NEW}


async def test_track_is_never_a_checkpoint() -> None:
    """Counting lets no other task in."""
    tracker = StatsTracker()
    with assert_no_checkpoints():
        for state in (NEW, ACTIVE, IDLE, CLOSED):
            tracker.track("a", state)


def test_repr_shows_the_numbers() -> None:
    """A person can read a tracker in a debugger."""
    assert repr(StatsTracker()) == (
        "<StatsTracker new 0, active 0, idle 0; "
        "in all: accepted 0, active 0, idle 0, hijacked 0, closed 0>"
    )
