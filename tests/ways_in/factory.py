"""Its tracker is made by a function, in each worker."""

from trio_httptrack import StatsTracker

made: list[StatsTracker] = []
number = 5


def make() -> StatsTracker:
    made.append(StatsTracker())
    return made[-1]


def make_nothing() -> None:
    return None
