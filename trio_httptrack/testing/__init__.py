"""Deterministic tests: a real Hypercorn on an in-memory network, with Trio's mock clock."""

from ._client import ClientStream
from ._recording import RecordingTracker, Transition
from ._server import MemoryServer, memory_server

__all__ = ["ClientStream", "MemoryServer", "RecordingTracker", "Transition", "memory_server"]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where users import it from
del _name
