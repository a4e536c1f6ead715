"""The numbers of two servers in Prometheus and in the servers' own trackers."""

from __future__ import annotations

from collections import defaultdict

import pytest

from .prometheus_server import Prometheus
from .scenario import SCRAPES, Observed, Quiet
from .target import COUNTERS, GAUGES, IDLE, LIVES, as_stats, total


@pytest.fixture(params=["after_load", "after_reload"])
def quiet(request: pytest.FixtureRequest, observed: Observed) -> Quiet:
    """Each of the moments when nothing but scrapes moved the numbers."""
    moment: Quiet = getattr(observed, request.param)
    return moment


async def test_prometheus_has_the_numbers_of_the_trackers(
    prometheus: Prometheus, observed: Observed, quiet: Quiet
) -> None:
    """Each number of each instance, and the sums over both; dead workers still count."""
    each = []
    for instance in (observed.shared, observed.single):
        stats = await prometheus.stats(quiet.at, f'{{instance="{instance}"}}')
        dead = observed.after_load.alive[instance] - quiet.alive[instance]
        logged = [observed.ended[pid] for pid in dead]
        assert stats in [total([noted, *logged]) for noted in quiet.noted[instance]]
        each.append(stats)
    assert await prometheus.stats(quiet.at) == total(each)


async def test_the_gauges_are_what_clients_have_left_open(
    prometheus: Prometheus, quiet: Quiet
) -> None:
    """The scrape itself is active; upgraded connections are none of these."""
    for instance, silent in quiet.silent.items():
        stats = await prometheus.stats(quiet.at, f'{{instance="{instance}"}}')
        assert (stats.accepted, stats.active, stats.idle) == (silent, 1, IDLE)


async def test_every_scrape_of_one_process_is_exact_under_load(
    prometheus: Prometheus, observed: Observed
) -> None:
    """Its tracker had the same numbers at each scrape, in the same order."""
    numbers: dict[float, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for name in (GAUGES, COUNTERS):
        query = f'{name}{{instance="{observed.single}"}}[10m]'
        for series in await prometheus.query(query, observed.after_reload.at):
            for when, value in series.points:
                numbers[when][name][series.labels["state"]] = value
    scraped = [as_stats(numbers[when][GAUGES], numbers[when][COUNTERS]) for when in sorted(numbers)]
    assert len(scraped) > 2 * SCRAPES
    assert max(stats.active for stats in scraped) > 1
    assert scraped == [stats for stats in observed.scrapes if stats in scraped]


async def test_every_accepted_connection_is_somewhere(prometheus: Prometheus, quiet: Quiet) -> None:
    """It is open, was upgraded, or was closed; and those that were closed have had a life."""
    for instance in quiet.silent:
        stats = await prometheus.stats(quiet.at, f'{{instance="{instance}"}}')
        still_open = stats.accepted + stats.active + stats.idle
        assert stats.accepted_total == still_open + stats.hijacked_total + stats.closed_total
        (lives,) = await prometheus.query(f'{LIVES}_count{{instance="{instance}"}}', quiet.at)
        assert lives.value == stats.closed_total > 0
        assert stats.hijacked_total > 2


@pytest.mark.parametrize(
    "name", [COUNTERS, f"{LIVES}_count", f"{LIVES}_sum", f"{LIVES}_bucket{{le='0.05'}}"]
)
async def test_a_reload_lets_no_counter_decrease(
    name: str, prometheus: Prometheus, observed: Observed
) -> None:
    """None was reset, from the first scrape to the last."""
    resets = await prometheus.query(f"resets({name}[10m])", observed.after_reload.at)
    assert {each.labels["instance"] for each in resets} == {observed.shared, observed.single}
    assert not any(each.value for each in resets)


async def test_no_gauge_is_ever_negative(prometheus: Prometheus, observed: Observed) -> None:
    """Not while a worker ends, either."""
    lowest = await prometheus.query(f"min_over_time({GAUGES}[10m])", observed.after_reload.at)
    assert len(lowest) == 6
    assert all(each.value >= 0 for each in lowest)


def test_the_load_got_its_responses(observed: Observed) -> None:
    """Or there would have been little to count."""
    for load in observed.loads:
        assert not load.lost
        assert all(
            load.succeeded[client] > 50
            for client in ("keep-alive", "one-shot", "httpx HTTP/2", "HTTP/2", "WebSocket")
        )
