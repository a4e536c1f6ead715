from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import assert_checkpoints, assert_no_checkpoints, wait_all_tasks_blocked

from trio_httptrack import ConnState, ConnTracker

NEW, ACTIVE, IDLE, HIJACKED, CLOSED = ConnState


async def test_wait_returns_at_once_at_zero_and_is_a_checkpoint() -> None:
    """With nothing open there is nothing to wait for, but others may run."""
    conns = ConnTracker()
    with assert_checkpoints():
        await conns.wait()


async def test_every_waiter_wakes_when_the_last_connection_ends() -> None:
    """At zero all waiters return, not before; an upgraded connection counts as ended."""
    conns = ConnTracker()
    woken = []

    async def wait(name: str) -> None:
        await conns.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        for state in (NEW, NEW, ACTIVE, IDLE):
            conns.track("any", state)
        nursery.start_soon(wait, "a")
        nursery.start_soon(wait, "b")
        await wait_all_tasks_blocked()
        conns.track("any", HIJACKED)
        await wait_all_tasks_blocked()
        assert not woken
        conns.track("any", CLOSED)
        await wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]


async def test_it_can_be_used_again() -> None:
    """After zero the next connection makes waiters wait again."""
    conns = ConnTracker()
    for _ in range(2):
        conns.track("any", NEW)
        with trio.move_on_after(0) as scope:
            await conns.wait()
        assert scope.cancelled_caught
        conns.track("any", CLOSED)
        await conns.wait()


async def test_a_cancelled_waiter_leaves_the_others_waiting() -> None:
    """Cancelling one waiter neither wakes nor loses another, nor changes the count."""
    conns = ConnTracker()
    conns.track("any", NEW)
    woken = []

    async def wait() -> None:
        await conns.wait()
        woken.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        async with trio.open_nursery() as cancelled:
            cancelled.start_soon(wait)
            await wait_all_tasks_blocked()
            cancelled.cancel_scope.cancel()
        assert not woken
        assert conns.count == 1
        conns.track("any", CLOSED)
    assert woken == [True]


@pytest.mark.parametrize("state", [HIJACKED, CLOSED])
async def test_a_count_below_zero_is_a_runtime_error_that_names_the_misuse(
    state: ConnState,
) -> None:
    """More ends than beginnings are refused; the count stays zero and works on."""
    conns = ConnTracker()
    with pytest.raises(RuntimeError, match=f"^'c' reported {state}, but no connection is open"):
        conns.track("c", state)
    assert conns.count == 0
    await conns.wait()


async def test_track_is_never_a_checkpoint() -> None:
    """Neither the first connection nor the last lets another task in."""
    conns = ConnTracker()
    with assert_no_checkpoints():
        for state in (NEW, ACTIVE, IDLE, CLOSED):
            conns.track("any", state)


@given(st.lists(st.sampled_from(ConnState)))
def test_the_count_is_beginnings_minus_ends(states: list[ConnState]) -> None:
    """Whatever is reported in whatever order, the count is what a person would count."""
    conns = ConnTracker()
    expected = 0
    for state in states:
        if state.terminal and not expected:
            with pytest.raises(RuntimeError):
                conns.track("any", state)
        else:
            conns.track("any", state)
            expected += (state is NEW) - state.terminal
        assert conns.count == expected
        assert conns._none_open.is_set() == (expected == 0)
