"""An application that looks at the trackers of the ready-made config."""

from trio_httptrack.config import stats_tracker

from .stats_app import stats_app

app = stats_app(stats_tracker)
