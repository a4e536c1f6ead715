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
from contextlib import suppress
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.statsd import StatsdLogger as BaseStatsdLogger
from hypercorn.trio.statsd import StatsdLogger as HypercornStatsdLogger

from .._states import ConnState
from .._stats import StatsTracker
from .settings import SettingError

INTERVAL = 10.0  # seconds
RESOLVE_TIMEOUT = 5.0  # seconds


class StatsdLogger(HypercornStatsdLogger):
    """Hypercorn's, but a host that cannot be reached harms nobody.

    Each request, and each error that is logged, is counted in StatsD, too. Who does so must
    neither fail by that nor wait for a name server: what cannot be sent at once is dropped.
    """

    _users = 0
    _resolved: Any = None
    _failed = False

    async def resolve(self) -> None:
        """Look the host up, which :meth:`_socket_send` does not."""
        host, port = self.address
        family, kind = trio.socket.AF_INET, trio.socket.SOCK_DGRAM
        try:
            with trio.fail_after(RESOLVE_TIMEOUT):
                found = await trio.socket.getaddrinfo(host, port, family, kind)
            self._resolved = found[0][4]
        except (OSError, trio.TooSlowError) as error:
            self.fail(error)

    def open(self) -> None:
        if not self._users and self.socket.fileno() == -1:
            self.socket = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        self._users += 1

    def close(self) -> None:
        self._users -= 1
        if not self._users:
            self.socket.close()

    async def _socket_send(self, message: bytes) -> None:
        if self._resolved is None or self.socket.fileno() == -1:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self.socket.sendto(message, self._resolved)
        except OSError as error:
            self.fail(error)
        else:
            self._failed = False

    def fail(self, error: Exception) -> None:
        """Say so, once."""
        if not self._failed and self.error_logger is not None:
            self.error_logger.warning("StatsD at %s: %r", ":".join(self.address), error)
        self._failed = True


class Statsd:
    """One worker's share of the numbers, counted by its own ``tracker``."""

    def __init__(self, config: Config) -> None:
        check(config)
        config.set_statsd_logger_class(StatsdLogger)
        self.tracker = StatsTracker()
        self._log = config.log
        self._sent = dict.fromkeys(ConnState, 0)
        self._suffix = f".{os.getpid()}" if config.workers > 1 else ""

    async def run(self) -> None:
        log = self._log
        if not isinstance(log, StatsdLogger):
            while isinstance(log, BaseStatsdLogger):  # of the user's own
                await self.send()
                await trio.sleep(INTERVAL)
            return
        log.open()
        try:
            while True:
                await log.resolve()
                await self.send()
                await trio.sleep(INTERVAL)
        finally:
            log.close()

    async def send(self) -> None:
        """Send all of them, zeros too."""
        if not isinstance(self._log, BaseStatsdLogger):
            await trio.lowlevel.checkpoint()
            return
        stats = self.tracker.stats()
        with suppress(OSError):  # of a logger of the user's own
            for state, number in stats.gauges.items():
                await self._log.gauge(f"httptrack.connections.{state}{self._suffix}", number)
            for state, number in stats.counters.items():
                increase = number - self._sent[state]
                self._sent[state] = number
                await self._log.increment(f"httptrack.connection.transitions.{state}", increase)


def check(config: Config) -> None:
    host, _, port = str(config.statsd_host).rpartition(":")
    if not host or ":" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise SettingError(
            f"statsd_host must be 'HOST:PORT', by name or IPv4 address, not {config.statsd_host!r}"
        )
    for name in ("statsd_prefix", "dogstatsd_tags"):
        if not getattr(config, name).isascii():
            raise SettingError(f"{name} must be ASCII, not {getattr(config, name)!r}")
