"""The settings, with a tracker that records when each connection was closed."""

from trio_httptrack import hook

from .settings import backlog as backlog
from .settings import keep_alive_max_requests as keep_alive_max_requests

conn_state = hook("benchmarks.app:closings")
