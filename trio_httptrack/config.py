"""A ready-made Hypercorn config that tracks the connections of any application::

    hypercorn -k trio -c python:trio_httptrack.config myapp:app

The worker logs the totals when it stops. An application can import its worker's
trackers from here:

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
"""Both trackers, in the order in which they are called."""

conn_state: Tracker = hook("trio_httptrack.config:tracker")
"""The setting that Hypercorn reads: a hook that names ``tracker``."""


def __dir__() -> list[str]:
    # Hypercorn makes every name of a config module a setting, and pickles them all.
    return ["conn_state"]
