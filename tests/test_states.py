from __future__ import annotations

from copy import deepcopy

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from trio_httptrack import Conn, ConnState
from trio_httptrack._states import TRANSITIONS


def test_numbers_and_names_are_those_of_net_http() -> None:
    """The values are Go's, and a state prints as its name in lower case."""
    assert [(int(state), str(state)) for state in ConnState] == [
        (0, "new"),
        (1, "active"),
        (2, "idle"),
        (3, "hijacked"),
        (4, "closed"),
    ]
    assert f"{ConnState.IDLE:>6}" == "  idle"


def test_nothing_follows_a_terminal_state_and_nothing_leads_back_to_new() -> None:
    """The table of transitions keeps its two promises for every state."""
    for state in ConnState:
        assert state.terminal == (not TRANSITIONS[state])
        assert state not in TRANSITIONS[state]
        assert ConnState.NEW not in TRANSITIONS[state]


def test_a_conn_begins_new_and_unknown() -> None:
    """A connection is NEW since it was opened, with no protocol and no reason to be closed."""
    conn = Conn(("192.0.2.7", 4711), ("192.0.2.1", 80), opened_at=3.5)
    assert (conn.state, conn.state_since, conn.opened_at) == (ConnState.NEW, 3.5, 3.5)
    assert (conn.protocol, conn.close_reason, conn.tls) == (None, None, False)


def test_conns_are_counted_and_never_equal() -> None:
    """Two of the same peer that were made by hand differ, in identity and in number."""
    one, two = Conn(("192.0.2.7", 4711)), Conn(("192.0.2.7", 4711))
    assert two.id == one.id + 1
    assert len({one, two}) == 2


@pytest.mark.parametrize(
    ("client", "peer"),
    [(("192.0.2.7", 80), "192.0.2.7:80"), (("2001:db8::7", 80), "[2001:db8::7]:80"), (None, "-")],
)
def test_a_conn_prints_its_peer(client: tuple[str, int] | None, peer: str) -> None:
    """A connection prints its number, its peer and, once known, its protocol and state."""
    conn = Conn(client)
    assert str(conn) == f"conn {conn.id} {peer}"
    conn.protocol = "h2"
    assert repr(conn) == f"<Conn {conn.id} {peer} h2 new>"


def test_a_conn_is_small() -> None:
    """A connection has no dictionary."""
    with pytest.raises(AttributeError):
        Conn().colour = "red"  # type: ignore[attr-defined]


async def test_wait_closed_wakes_every_waiter_and_only_then() -> None:
    """It returns when the socket is closed, and not before."""
    conn = Conn()
    woken = []

    async def wait(name: str) -> None:
        await conn.wait_closed()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "a")
        nursery.start_soon(wait, "b")
        await wait_all_tasks_blocked()
        assert not woken
        conn._mark_closed()
    assert sorted(woken) == ["a", "b"]


async def test_wait_closed_of_a_closed_conn_is_a_checkpoint() -> None:
    """It returns at once, but lets others run."""
    conn = Conn()
    conn._mark_closed()
    with assert_checkpoints():
        await conn.wait_closed()


def test_a_copy_of_a_scope_has_the_same_connection() -> None:
    """A middleware may copy it as deeply as it likes."""
    conn = Conn()
    assert deepcopy({"extensions": {"httptrack": conn}})["extensions"]["httptrack"] is conn


def test_a_connection_keeps_no_long_path() -> None:
    """It may be idle for hours, and there may be thousands of them."""
    conn = Conn()
    conn._count_request("/" + "x" * 10_000)
    assert conn.path == "/" + "x" * 199
    assert conn.requests == 1
