"""A block in a cancel scope, with something before it and after it."""

from __future__ import annotations

import gc

import pytest
import trio

from trio_httptrack._scoped import ScopedBlock


async def test_a_block_is_entered_and_left_with_its_scope() -> None:
    """However it ends: by itself, by a cancellation, or by an error, which is not swallowed."""
    calls = list[tuple[str, trio.CancelScope]]()

    def block() -> ScopedBlock:
        return ScopedBlock(
            lambda scope: calls.append(("enter", scope)),
            lambda scope: calls.append(("leave", scope)),
        )

    with block() as by_itself:
        pass
    with block() as cancelled:
        cancelled.cancel()
        await trio.sleep_forever()
    with pytest.raises(KeyError), block() as failed:
        raise KeyError
    assert calls == [
        (name, scope) for scope in (by_itself, cancelled, failed) for name in ("enter", "leave")
    ]
    assert cancelled.cancelled_caught


async def test_a_block_that_is_cancelled_when_it_begins_stops_at_its_first_checkpoint() -> None:
    with ScopedBlock(trio.CancelScope.cancel, lambda _: None) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_a_cancelled_block_leaves_nothing_to_the_garbage_collector() -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with ScopedBlock(trio.CancelScope.cancel, lambda _: None):
                await trio.sleep_forever()
        assert gc.collect() == 0
    finally:
        gc.enable()
