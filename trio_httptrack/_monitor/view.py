"""What all workers are doing, as one viewer wants to see it: several reports as one.

It is JSON, too: the status page responds with it, and ``httptrack top`` reads it there.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime, timezone
from itertools import zip_longest
from typing import Any, TypedDict

from .query import MAX_PAGES, ROWS_PER_PAGE, Query
from .report import COUNTERS, GAUGES, Group, Report, Row, Worker


class View(TypedDict):
    """All workers at one time."""

    host: str
    time: str
    """UTC, as in ISO 8601."""

    workers: list[Worker]
    connections: dict[str, int]
    """How many are in each state."""

    websockets: int
    totals: dict[str, int]
    """Since the workers' starts: how often each state was entered, requests, and responses by
    status class."""

    per_second: dict[str, float] | None
    """The same, over the last ten seconds."""

    history: dict[str, list[int | None]]
    """How many connections were in each state in the last minutes, one number a second."""

    query: dict[str, Any]
    matching: int
    """How many connections pass the filters."""

    pages: int
    """Ten at most; a page has a hundred rows, or groups."""

    rows: list[Row]
    groups: list[Group]


def view_of(query: Query, reports: list[Report], silent: Iterable[Worker] = ()) -> View:
    """Put together what the workers say.

    Args:
      query: what was asked.
      reports: what was answered.
      silent: the workers that have not.
    """
    groups = merged_groups(report["groups"] for report in reports)
    matching = sum(report["matching"] for report in reports)
    found = len(groups) if query.group else matching
    pages = min(max(1, -(-found // ROWS_PER_PAGE)), MAX_PAGES)
    page = min(query.page, pages)
    shown = slice((page - 1) * ROWS_PER_PAGE, page * ROWS_PER_PAGE)
    keyed = [pair for each in reports for pair in zip(each["keys"], each["rows"], strict=True)]
    keyed.sort(key=lambda pair: pair[0], reverse=query.descending)
    known = [report["rates"] for report in reports]
    rates = [each for each in known if each is not None]
    workers = [*(report["worker"] for report in reports), *silent]
    return View(
        host=platform.node(),
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        workers=sorted(workers, key=lambda worker: (worker["pid"], worker["name"])),
        connections=total(GAUGES, (report["gauges"] for report in reports)),
        websockets=sum(report["websockets"] for report in reports),
        totals=total(COUNTERS, (report["counters"] for report in reports)),
        per_second=total(COUNTERS, rates) if rates else None,
        history={
            name: summed([each["history"].get(name, []) for each in reports]) for name in GAUGES
        },
        query={**asdict(query), "page": page},
        matching=matching,
        pages=pages,
        rows=[row for _, row in keyed[shown]],
        groups=groups[shown],
    )


def responding_share(view: View) -> str:
    """Of how many workers the view is, where that is not all of them."""
    known = sum(worker["silent"] is None for worker in view["workers"])
    number = len(view["workers"])
    return "" if known == number else f" of {known:,} of {number:,} workers"


def total(names: Iterable[str], numbers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    counted: Counter[str] = Counter()
    for each in numbers:
        counted.update(each)
    return {name: round(counted[name], 3) for name in names}


def summed(lines: list[list[int | None]]) -> list[int | None]:
    """Second by second, from now backwards: some workers are younger than others."""
    backwards = zip_longest(*(reversed(line) for line in lines))
    sums = [
        None if all(each is None for each in second) else sum(filter(None, second))
        for second in backwards
    ]
    return sums[::-1]


def merged_groups(groups: Iterable[list[Group]]) -> list[Group]:
    """The same clients' connections of all workers, the busiest first."""
    merged: dict[str, Group] = {}
    for group in (group for each in groups for group in each):
        client = group["client"]
        known = merged.setdefault(client, Group(client=client, connections=0, states={}, oldest=0))
        known["connections"] += group["connections"]
        known["states"] = Counter(known["states"]) + Counter(group["states"])
        known["oldest"] = max(known["oldest"], group["oldest"])
    return sorted(merged.values(), key=lambda each: (-each["connections"], -each["oldest"]))
