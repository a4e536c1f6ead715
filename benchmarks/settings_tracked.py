"""The settings, with a StatsTracker and a ConnTracker."""

from trio_httptrack.config import conn_state as conn_state

from .settings import backlog as backlog
from .settings import keep_alive_max_requests as keep_alive_max_requests
