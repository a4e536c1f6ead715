"""A pace, beside a naive model of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_httptrack._connection.pace import Pace, Rate

# Powers of two: times and rates are exact then.
RATE = Rate(bytes_per_second=64, grace_period=4)


def test_a_pace_without_a_waiter_is_never_due() -> None:
    """Before its first wait, and while it is paused."""
    pace = Pace(RATE)
    assert pace.due == math.inf
    pace.resume(7)
    pace.pause(7)
    assert pace.due == math.inf


@pytest.mark.parametrize(
    ("moved", "due"), [(0, 14), (256, 14), (257, 10 + 257 / 64), (640, 20), (6400, 110)]
)
def test_a_pace_is_due_after_its_grace_period_or_when_its_bytes_are_used_up(
    moved: int, due: float
) -> None:
    """Whichever is later, from when it was first waited for."""
    pace = Pace(RATE)
    pace.resume(10)
    pace.moved += moved
    assert pace.due == due


def test_the_time_without_a_waiter_does_not_count() -> None:
    """It is due by so much later; to pause, or to resume, again is nothing."""
    pace = Pace(RATE)
    pace.resume(10)
    pace.pause(12)
    pace.pause(13)
    pace.resume(112)
    pace.resume(113)
    assert pace.due == 114


steps = st.lists(
    st.tuples(
        st.sampled_from(["resume", "pause", "move"]),
        st.integers(0, 80).map(lambda eighths: eighths / 8),
        st.integers(0, 2000),
    ),
    max_size=12,
)


@given(steps)
def test_any_sequence_is_due_as_a_stopwatch_says(sequence: list[tuple[str, float, int]]) -> None:
    """The model: a stopwatch that runs while the client is waited for."""
    pace = Pace(RATE)
    now, running, waited, moved = 100.0, False, 0.0, 0
    for step, pause, size in sequence:
        now += pause
        waited += pause * running
        if step == "move":
            pace.moved += size
            moved += size
        else:
            running = step == "resume"
            (pace.resume if running else pace.pause)(now)
        left = max(4, moved / 64) - waited
        assert pace.due == (now + left if running else math.inf)
