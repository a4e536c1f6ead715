"""Hooks that lead to hooks."""

from trio_httptrack import ConnTracker, StatsTracker, compose, hook

tracker = compose(hook("tests.ways_in.chained:inner"), ConnTracker())
inner = hook("tests.ways_in.chained:innermost")
innermost = StatsTracker()
loop = compose(hook("tests.ways_in.chained:again"))
again = hook("tests.ways_in.chained:loop")
