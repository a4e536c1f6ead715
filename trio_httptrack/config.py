"""A ready-made Hypercorn config that tracks, for an application that knows nothing of it::

    hypercorn -k trio -c python:trio_httptrack.config myapp:app

The totals are logged when the worker ends. An application that wants to know more
imports the trackers of its worker from here:

>>> from trio_httptrack.config import conn_state, conn_tracker, stats_tracker, tracker
>>> conn_tracker.count, stats_tracker.stats().accepted_total
(0, 0)
>>> conn_state, tracker.trackers == (stats_tracker, conn_tracker)
(hook('trio_httptrack.config:tracker'), True)
"""

from ._conns import ConnTracker
from ._hypercorn.hooks import hook
from ._stats import StatsTracker
from ._trackers import Tracker, TrackerFunc, compose

__all__ = ["conn_state", "conn_tracker", "stats_tracker", "tracker"]

stats_tracker: StatsTracker = StatsTracker()
"""This process's :class:`~trio_httptrack.StatsTracker`."""

conn_tracker: ConnTracker = ConnTracker()
"""This process's :class:`~trio_httptrack.ConnTracker`."""

tracker: TrackerFunc = compose(stats_tracker, conn_tracker)
"""Both, in the order in which they are called."""

conn_state: Tracker = hook("trio_httptrack.config:tracker")
"""What Hypercorn reads."""


def __dir__() -> list[str]:
    # Hypercorn makes a setting of every name that it finds here, and pickles them all.
    return ["conn_state"]
