"""The same, tracked with a StatsTracker and a ConnTracker."""

from trio_httptrack.config import conn_state

from .settings import backlog, keep_alive_max_requests, keep_alive_timeout
