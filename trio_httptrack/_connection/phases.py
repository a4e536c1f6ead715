"""How a connection ends, as data: its phases, and what leads from one to the next.

The states that trackers see (``ConnState``) say what a connection is doing for its client.
These phases say how far its *end* has come, which is another question: an ACTIVE connection
may be draining, or its client may have ended its side. They follow TCP, where each side ends
what it sends, and the socket is closed when both have:

* OPEN: requests are read and responded to.
* DRAINING: the same, but none is to follow those in flight. Responses that begin now say so,
  and whoever rests is given little time.
* HALF_CLOSED: the client has ended its side. Nothing more will be read; responses that are
  owed are still written, because an HTTP/1 client may send its FIN behind its request and
  read on.
* LINGERING: we have ended our side, and the client has not. What it still sends is read and
  discarded. Were the socket closed now, the kernel would answer those bytes with a reset,
  and a reset can overtake the response and destroy it (RFC 9112, 9.6).
* LEAVING: the same in a drain, where there is less time for it.
* CLOSED: the socket is closed. Nothing follows.

The rules for reading the table: a connection is in one phase; ``after(phase, step)`` is the
only way to the next, and raises, without changing anything, where the table has no entry.
What may be done in a phase is said by the phase itself and by nothing else.

What is *not* here: who still works on the connection. Its handlers and its reader are tasks
of its nursery, and the nursery knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """How far a connection's end has come.

    No Enum, because each request asks it several things, and an Enum's hash is Python code.
    """

    name: str

    reads: bool = False
    """Whether requests are read and handled."""

    writes: bool = False
    """Whether responses can be written; elsewhere the peer is gone for the application."""

    discards: bool = False
    """Whether what is read is thrown away."""


class Step(Enum):
    """What brings the end nearer."""

    DRAIN = "drain"
    """The server shuts down, or the connection has had its share of requests."""

    PEER_END = "the peer's end"
    """The client has ended its side, in order: FIN, or TLS's close_notify."""

    OWN_END = "our own end"
    """The last response is written, and the client may still be sending."""

    CLOSE = "close"
    """Both sides are done, or one of them has failed, or time is up."""


class IllegalStep(RuntimeError):
    """A bug of ours: a connection was led where the table has no way."""


OPEN = Phase("open", reads=True, writes=True)
DRAINING = Phase("draining", reads=True, writes=True)
HALF_CLOSED = Phase("half-closed", writes=True)
LINGERING = Phase("lingering", discards=True)
LEAVING = Phase("leaving", discards=True)
CLOSED = Phase("closed")
DRAIN, PEER_END, OWN_END, CLOSE = Step

STEPS: Mapping[Phase, Mapping[Step, Phase]] = {
    OPEN: {DRAIN: DRAINING, PEER_END: HALF_CLOSED, OWN_END: LINGERING, CLOSE: CLOSED},
    DRAINING: {DRAIN: DRAINING, PEER_END: HALF_CLOSED, OWN_END: LEAVING, CLOSE: CLOSED},
    # No OWN_END: when both sides have ended, that is CLOSE.
    HALF_CLOSED: {DRAIN: HALF_CLOSED, CLOSE: CLOSED},
    # No PEER_END, for the same reason.
    LINGERING: {DRAIN: LEAVING, CLOSE: CLOSED},
    LEAVING: {DRAIN: LEAVING, CLOSE: CLOSED},
    CLOSED: {},
}


def after(phase: Phase, step: Step) -> Phase:
    """The phase to which a step leads.

    Raises:
      IllegalStep: it leads nowhere from there.
    """
    try:
        return STEPS[phase][step]
    except KeyError:
        raise IllegalStep(f"no way from {phase.name!r} by {step.value!r}") from None
