"""An application with a tracker of its own."""

from trio_httptrack import StatsTracker

from .stats_app import stats_app

tracker = StatsTracker()
app = stats_app(tracker)
