from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_httptrack._connection.timeouts import Timeout


class Waiter:
    """Keeps when it has waited too long."""

    def __init__(self) -> None:
        self.expired: list[float] = []

    def expire(self) -> None:
        self.expired.append(trio.current_time())


@asynccontextmanager
async def running(seconds: float = 5) -> AsyncIterator[Timeout[Waiter]]:
    timeout = Timeout(seconds, Waiter.expire)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timeout.run)
        yield timeout
        nursery.cancel_scope.cancel()


async def test_a_waiter_expires_once_and_exactly_at_its_time(autojump_clock: MockClock) -> None:
    """Each at its own time, and never again."""
    async with running() as timeout:
        first, second = Waiter(), Waiter()
        timeout.start(first, trio.current_time())
        await trio.sleep(2)
        timeout.start(second, trio.current_time())
        await trio.sleep(100)
    assert (first.expired, second.expired) == ([5], [7])


async def test_a_waiter_that_begins_again_has_its_full_time(autojump_clock: MockClock) -> None:
    """It expires after those that began before it."""
    async with running() as timeout:
        eager, other = Waiter(), Waiter()
        timeout.start(eager, trio.current_time())
        timeout.start(other, trio.current_time())
        await trio.sleep(4)
        timeout.start(eager, trio.current_time())
        await trio.sleep(100)
    assert (eager.expired, other.expired) == ([9], [5])


async def test_a_waiter_that_has_ended_does_not_expire(autojump_clock: MockClock) -> None:
    """To end what has not begun is nothing."""
    async with running() as timeout:
        waiter = Waiter()
        timeout.cancel(waiter)
        timeout.start(waiter, trio.current_time())
        timeout.cancel(waiter)
        await trio.sleep(100)
    assert waiter.expired == []


steps = st.lists(
    st.tuples(st.sampled_from(["begin", "end"]), st.integers(0, 3), st.integers(0, 7)),
    max_size=20,
)


@given(steps)
def test_any_sequence_expires_as_one_deadline_each_would(
    sequence: list[tuple[str, int, int]],
) -> None:
    """The model: for each waiter one deadline, set and cleared."""

    seconds = 5.25  # so that nobody is due in the same moment in which a step is taken

    async def main() -> None:
        waiters = [Waiter() for _ in range(4)]
        deadlines: list[float | None] = [None] * 4
        expected: list[list[float]] = [[] for _ in range(4)]
        async with running(seconds) as timeout:
            for step, number, pause in [*sequence, ("end", 0, 100)]:
                if step == "begin":
                    timeout.start(waiters[number], trio.current_time())
                    deadlines[number] = trio.current_time() + seconds
                else:
                    timeout.cancel(waiters[number])
                    deadlines[number] = None
                await trio.sleep(pause + 0.5)
                for each, deadline in enumerate(deadlines):
                    if deadline is not None and deadline <= trio.current_time():
                        expected[each].append(deadline)
                        deadlines[each] = None
        assert [waiter.expired for waiter in waiters] == expected

    trio.run(main, clock=MockClock(autojump_threshold=0))
