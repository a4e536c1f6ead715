"""The gauges and counters to StatsD, where Hypercorn's ``statsd_host`` is set.

They go through Hypercorn's own StatsD logger, with its prefix and tags, each as often as
StatsD itself reports (every ten seconds by default), and once more at the worker's end::

    httptrack.connections.new|active|idle                               gauge
    httptrack.connection.transitions.new|active|idle|hijacked|closed    counter

StatsD adds up the counters of several workers, but of a gauge it knows only who spoke last. So
each of several workers has gauges of its own, whose names end with its process's number.
"""

from __future__ import annotations

import os

import trio
from hypercorn.config import Config
from hypercorn.trio.statsd import StatsdLogger as HypercornStatsdLogger

from .._states import ConnState
from .._stats import StatsTracker
from .errors import SettingError

INTERVAL = 10.0  # seconds
LAST_TIMEOUT = 1.0  # seconds; a name server that does not answer holds up no shutdown for longer


class StatsdLogger(HypercornStatsdLogger):
    """Hypercorn's, but a host that cannot be reached harms nobody.

    Each error that is logged is counted in StatsD, too. Whoever logs must not fail by that.
    """

    _failed = False

    async def _socket_send(self, message: bytes) -> None:
        if self.socket.fileno() == -1:  # another server with the same Config has ended
            self.socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await super()._socket_send(message)
        except OSError as error:
            if not self._failed and self.error_logger is not None:
                self.error_logger.warning("StatsD at %s: %s", ":".join(self.address), error)
            self._failed = True
        else:
            self._failed = False


class Statsd:
    """One worker's share of the numbers, counted by its own ``tracker``."""

    def __init__(self, config: Config) -> None:
        host, _, port = str(config.statsd_host).rpartition(":")
        if not host or not port.isdecimal():
            raise SettingError(f"statsd_host must be 'HOST:PORT', not {config.statsd_host!r}")
        config.set_statsd_logger_class(StatsdLogger)
        self.tracker = StatsTracker()
        self._log = config.log
        self._sent = dict.fromkeys(ConnState, 0)
        self._whose = f".{os.getpid()}" if config.workers > 1 else ""

    async def run(self) -> None:
        try:
            while True:
                await self.send()
                await trio.sleep(INTERVAL)
        finally:
            if isinstance(self._log, StatsdLogger):
                self._log.socket.close()

    async def finish(self) -> None:
        """Send what happened last."""
        with trio.move_on_after(LAST_TIMEOUT):
            await self.send()

    async def send(self) -> None:
        """Send all of them, zeros too."""
        if not isinstance(self._log, HypercornStatsdLogger):
            await trio.lowlevel.checkpoint()
            return
        stats = self.tracker.stats()
        for state, number in stats.gauges.items():
            await self._log.gauge(f"httptrack.connections.{state}{self._whose}", number)
        for state, number in stats.counters.items():
            more = number - self._sent[state]
            self._sent[state] = number
            await self._log.increment(f"httptrack.connection.transitions.{state}", more)
