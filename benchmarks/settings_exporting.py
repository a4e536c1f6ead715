"""The same, tracked with an exporter."""

import os as _os

from trio_httptrack import hook

from .settings import backlog as backlog
from .settings import keep_alive_max_requests as keep_alive_max_requests

conn_state = hook("benchmarks.exporting:tracker")

if _os.environ["EXPORTER"] == "statsd":
    statsd_host = "127.0.0.1:9"
elif _os.environ["EXPORTER"] == "hypercorn's statsd":
    from hypercorn.trio.statsd import StatsdLogger as _StatsdLogger

    class logger_class(_StatsdLogger):
        """Hypercorn's own numbers without ours."""

        def __init__(self, config):  # type: ignore[no-untyped-def]
            config.statsd_host = "127.0.0.1:9"
            super().__init__(config)
            config.statsd_host = None
