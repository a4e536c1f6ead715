from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from priority.priority import DeadlockError, MissingStreamError, PriorityTree

from trio_httptrack._hypercorn.http2_output import RoundRobin

calls = st.lists(
    st.tuples(
        st.sampled_from(["insert_stream", "block", "unblock", "remove_stream"]),
        st.integers(1, 4),
    )
)


@given(calls)
def test_whose_turns_come_are_those_of_hypercorns_tree(sequence: list[tuple[str, int]]) -> None:
    """After any calls that Hypercorn may make, as many turns go to the same streams."""
    tree, turns = PriorityTree(), RoundRobin()
    present: set[int] = set()
    for call, stream in sequence:
        if (stream in present) == (call == "insert_stream"):
            continue
        for each in (tree, turns):
            getattr(each, call)(stream)
            if call == "insert_stream":
                each.block(stream)  # as Hypercorn does
                present.add(stream)
            elif call == "remove_stream":
                present.discard(stream)
    try:
        expected = Counter(next(tree) for _ in range(24))
    except DeadlockError:
        with pytest.raises(DeadlockError):
            next(turns)
    else:
        assert Counter(next(turns) for _ in range(24)) == expected


def test_each_has_its_turn() -> None:
    """One after the other, whoever came when."""
    turns = RoundRobin()
    for stream in (1, 3, 5):
        turns.insert_stream(stream)
        turns.unblock(stream)
    assert [next(turns) for _ in range(6)] == [1, 3, 5, 1, 3, 5]
    turns.block(3)
    turns.unblock(1)
    assert [next(turns) for _ in range(4)] == [1, 5, 1, 5]


def test_a_stream_that_is_gone_is_missing() -> None:
    """Hypercorn, which may write to it, takes it for that."""
    turns = RoundRobin()
    turns.insert_stream(1)
    turns.remove_stream(1)
    turns.remove_stream(1)
    with pytest.raises(MissingStreamError):
        turns.unblock(1)
