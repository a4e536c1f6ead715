"""A view: the reports of all workers, merged for one viewer.

It can be sent as JSON: the status page serves it, and ``httptrack top`` reads it there.
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
    """The time in UTC, in the format of ISO 8601."""

    workers: list[Worker]
    connections: dict[str, int]
    """The number of connections in each state."""

    websockets: int
    totals: dict[str, int]
    """Counts since the workers' starts: how often each state was entered, requests, and responses
    by status class."""

    per_second: dict[str, float] | None
    """The rates of these counts over the last ten seconds; None if not known yet."""

    history: dict[str, list[int | None]]
    """The number of connections in each state in the last minutes, one value a second."""

    query: dict[str, Any]
    matching: int
    """How many connections pass the filters."""

    pages: int
    """The number of pages, at most ten. A page has a hundred rows, or groups."""

    rows: list[Row]
    groups: list[Group]


def view_of(query: Query, reports: list[Report], silent: Iterable[Worker] = ()) -> View:
    """Merge the reports of workers.

    Args:
      query: what the viewer wants to see.
      reports: the workers' reports for this query.
      silent: the workers that did not respond.
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
    """Return how many workers have responded, as text; empty if all have."""
    known = sum(worker["silent"] is None for worker in view["workers"])
    number = len(view["workers"])
    return "" if known == number else f" of {known:,} of {number:,} workers"


def total(names: Iterable[str], numbers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    counted: Counter[str] = Counter()
    for each in numbers:
        counted.update(each)
    return {name: round(counted[name], 3) for name in names}


def summed(lines: list[list[int | None]]) -> list[int | None]:
    """Add up histories, aligned at their ends: some workers are younger than others."""
    backwards = zip_longest(*(reversed(line) for line in lines))
    sums = [
        None if all(each is None for each in second) else sum(filter(None, second))
        for second in backwards
    ]
    return sums[::-1]


def merged_groups(groups: Iterable[list[Group]]) -> list[Group]:
    """Merge the workers' groups by client, the client with the most connections first."""
    merged: dict[str, Group] = {}
    for group in (group for each in groups for group in each):
        client = group["client"]
        known = merged.setdefault(client, Group(client=client, connections=0, states={}, oldest=0))
        known["connections"] += group["connections"]
        known["states"] = Counter(known["states"]) + Counter(group["states"])
        known["oldest"] = max(known["oldest"], group["oldest"])
    return sorted(merged.values(), key=lambda each: (-each["connections"], -each["oldest"]))
