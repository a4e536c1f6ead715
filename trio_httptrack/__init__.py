"""Connection states for Hypercorn's trio worker: graceful shutdown, statistics, logs."""

from ._connection.shutdown_report import ShutdownReport
from ._conns import ConnTracker
from ._hijacks import HijackTracker
from ._hypercorn.hooks import hook, wrap
from ._hypercorn.install import install
from ._limits import ConnLimit
from ._logs import LogTracker
from ._server import TrackedServer, tracked_server
from ._states import Conn, ConnState, RequestInFlight
from ._stats import Stats, StatsTracker
from ._trackers import Tracker, TrackerFunc, compose

__all__ = [
    "Conn",
    "ConnLimit",
    "ConnState",
    "ConnTracker",
    "HijackTracker",
    "LogTracker",
    "RequestInFlight",
    "ShutdownReport",
    "Stats",
    "StatsTracker",
    "TrackedServer",
    "Tracker",
    "TrackerFunc",
    "compose",
    "hook",
    "install",
    "tracked_server",
    "wrap",
]

for _name in __all__:
    globals()[_name].__module__ = __name__  # where users import it from
del _name
