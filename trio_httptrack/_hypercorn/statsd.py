"""Send the gauges and counters to StatsD, if Hypercorn's ``statsd_host`` is set.

Hypercorn's StatsD logger sends them, with its prefix and tags. They are sent every ten seconds,
which is StatsD's own default interval, and once more when the worker stops::

    httptrack.connections.new|active|idle                               gauge
    httptrack.connection.transitions.new|active|idle|hijacked|closed    counter

StatsD adds up the counters of several workers. Of a gauge it keeps only the last value. So with
several workers each has gauges of its own, whose names end with its process ID.
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
    """Hypercorn's StatsD logger, but an unreachable host neither delays nor fails a request.

    The logger sends a counter for each request and each logged error. That must neither fail nor
    wait for a name server. So a message that cannot be sent at once is dropped.
    """

    _users = 0
    _resolved: Any = None
    _failed = False

    async def resolve(self) -> None:
        """Look up the host, so that :meth:`_socket_send` never waits for a name server."""
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
        """Log a failure, once until a message is sent again."""
        if not self._failed and self.error_logger is not None:
            self.error_logger.warning("StatsD at %s: %r", ":".join(self.address), error)
        self._failed = True


class Statsd:
    """Sends one worker's numbers, which its own ``tracker`` counts."""

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
            while isinstance(log, BaseStatsdLogger):  # a logger class of the user
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
        """Send all numbers, even zeros."""
        if not isinstance(self._log, BaseStatsdLogger):
            await trio.lowlevel.checkpoint()
            return
        stats = self.tracker.stats()
        with suppress(OSError):  # from a logger class of the user
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
