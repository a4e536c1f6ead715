"""The phases of a connection's close, as data, and the steps from one to the next.

The states that trackers see (``ConnState``) say what a connection does for its client. A phase
says how far the connection is on its way to being closed. The two are independent: an ACTIVE
connection may be draining, or its client may have sent EOF. The phases follow TCP: each side
closes its own direction, and the socket is closed when both directions are.

* OPEN: requests are read and responded to.
* DRAINING: as OPEN, but no request is expected after those in flight. A response that begins
  now announces the close, and an idle connection gets a shorter timeout.
* HALF_CLOSED: the client has sent EOF. Nothing more is read. Pending responses are still
  written, because an HTTP/1 client may send FIN after its request and read on.
* LINGERING: we have sent EOF, and the client has not. Its input is read and discarded. If we
  closed the socket now, the kernel would respond to that input with a reset, and a reset can
  overtake the response and destroy it (RFC 9112, 9.6).
* LINGERING_IN_DRAIN: as LINGERING, with a shorter timeout.
* CLOSED: the socket is closed. No step follows.

A connection is in one phase. ``after(phase, step)`` is the only way to the next. Where the table
has no entry it raises, and changes nothing. The phase alone says what may be done in it.

The tasks of a connection are *not* described here. Its reader and its handlers run in its
nursery, and the nursery keeps track of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True, eq=False)
class Phase:
    """How far a connection is on its way to being closed.

    This is no Enum: each request reads several of these fields, and an Enum's hash is slow
    Python code.
    """

    name: str

    reads: bool = False
    """Whether requests are read and handled."""

    writes: bool = False
    """Whether responses can be written. Where they cannot, the application sees a disconnect."""

    discards: bool = False
    """Whether input is read and discarded."""


class Step(Enum):
    """An event that moves a connection towards its close."""

    DRAIN = "drain"
    """The server shuts down, or the connection has reached a limit of its own."""

    PEER_EOF = "the peer's EOF"
    """The client has closed its direction properly: FIN, or TLS's close_notify."""

    OWN_EOF = "our own EOF"
    """The last response is written, and the client may still be sending."""

    CLOSE = "close"
    """Both sides have sent EOF, or one of them has failed, or a timeout has expired."""


class IllegalStep(RuntimeError):
    """A bug in this package: the table does not allow this step in this phase."""


OPEN = Phase("open", reads=True, writes=True)
DRAINING = Phase("draining", reads=True, writes=True)
HALF_CLOSED = Phase("half-closed", writes=True)
LINGERING = Phase("lingering", discards=True)
LINGERING_IN_DRAIN = Phase("lingering in a drain", discards=True)
CLOSED = Phase("closed")
DRAIN, PEER_EOF, OWN_EOF, CLOSE = Step

STEPS: Mapping[Phase, Mapping[Step, Phase]] = {
    OPEN: {DRAIN: DRAINING, PEER_EOF: HALF_CLOSED, OWN_EOF: LINGERING, CLOSE: CLOSED},
    DRAINING: {DRAIN: DRAINING, PEER_EOF: HALF_CLOSED, OWN_EOF: LINGERING_IN_DRAIN, CLOSE: CLOSED},
    # No OWN_EOF: the second EOF is a CLOSE.
    HALF_CLOSED: {DRAIN: HALF_CLOSED, CLOSE: CLOSED},
    # No PEER_EOF, for the same reason.
    LINGERING: {DRAIN: LINGERING_IN_DRAIN, CLOSE: CLOSED},
    LINGERING_IN_DRAIN: {DRAIN: LINGERING_IN_DRAIN, CLOSE: CLOSED},
    CLOSED: {},
}


def after(phase: Phase, step: Step) -> Phase:
    """Return the phase that follows ``phase`` after ``step``.

    Raises:
      IllegalStep: the table does not allow this step in this phase.
    """
    try:
        return STEPS[phase][step]
    except KeyError:
        raise IllegalStep(f"{step.value!r} is illegal in the phase {phase.name!r}") from None
