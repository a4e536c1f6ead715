"""The Grafana dashboard, with each of its queries run as Grafana runs it."""

from __future__ import annotations

import json
import math
import re
from itertools import combinations
from pathlib import Path

import pytest

from .prometheus_server import JOB, Prometheus, Series
from .scenario import Observed

PATH = Path(__file__).parents[2] / "examples" / "grafana-dashboard.json"
DASHBOARD = json.loads(PATH.read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}
PER_INSTANCE = ", per instance"
SUMMED = [title for title in PANELS if not title.endswith(PER_INSTANCE)]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
QUERIES = [
    pytest.param(title, target["refId"], id=f"{title}, {target['legendFormat']}")
    for title in SUMMED
    for target in PANELS[title]["targets"]
]


def test_every_panel_has_its_own_id_and_place() -> None:
    """No two panels overlap, and none is wider than Grafana's 24 columns."""
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(PANELS) == len(places)
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_every_panel_has_a_description_and_a_unit() -> None:
    """In its description, and its unit; both are the same where it is per instance."""
    assert len(SUMMED) == 5
    for title in SUMMED:
        panels = [PANELS[title], PANELS[title + PER_INSTANCE]]
        assert "ersistently" in panels[0]["description"]
        assert panels[0]["description"] == panels[1]["description"]
        units = [panel["fieldConfig"]["defaults"]["unit"] for panel in panels]
        assert units[0] == units[1] != ""


def test_every_query_uses_the_chosen_data_source() -> None:
    """And of the jobs and instances that are chosen."""
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    for name in ("job", "instance"):
        assert variables[name]["datasource"] == SOURCE
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == SOURCE
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == SOURCE
            selectors = re.findall(r"\{(.*?)\}", target["expr"])
            assert selectors
            assert all(each.endswith('job=~"$job",instance=~"$instance"') for each in selectors)


async def query_panel(
    prometheus: Prometheus, observed: Observed, title: str, ref: str, instances: list[str]
) -> list[Series]:
    """What a panel shows of the chosen instances, right after the load."""
    (query,) = [each["expr"] for each in PANELS[title]["targets"] if each["refId"] == ref]
    for variable, values in (("$instance", instances), ("$job", [JOB])):
        query = query.replace(variable, f"({'|'.join(map(escaped, values))})")
    query = query.replace("$__rate_interval", "15s")
    assert "$" not in query
    found = await prometheus.query(query, observed.after_load.at)
    assert found
    assert not any(math.isnan(series.value) for series in found)
    return found


def escaped(value: str) -> str:
    """As Grafana writes a value into a regular expression in a string of PromQL."""
    return value.replace(".", r"\\.")


@pytest.mark.parametrize(("title", "ref"), QUERIES)
async def test_each_query_agrees_with_itself_per_instance(
    title: str, ref: str, prometheus: Prometheus, observed: Observed
) -> None:
    """Numbers and rates are the instances' sums; shares and quantiles lie between them."""
    both = [observed.shared, observed.single]
    summed = await query_panel(prometheus, observed, title, ref, both)
    each = await query_panel(prometheus, observed, title + PER_INSTANCE, ref, both)
    for series in summed:
        parts = [one.value for one in each if series.labels.items() <= one.labels.items()]
        assert len(parts) == 2
        if PANELS[title]["fieldConfig"]["defaults"]["unit"] in ("short", "cps"):
            assert series.value == pytest.approx(sum(parts))
        else:
            assert min(parts) - 1e-9 <= series.value <= max(parts) + 1e-9
    assert len(each) == 2 * len(summed)
    assert {series.labels["instance"] for series in each} == set(both)
    assert any(series.value > 0 for series in summed)


@pytest.mark.parametrize(("title", "ref"), QUERIES)
async def test_one_instance_can_be_chosen(
    title: str, ref: str, prometheus: Prometheus, observed: Observed
) -> None:
    """Then the sum is its own number."""
    chosen = [observed.single]
    summed = await query_panel(prometheus, observed, title, ref, chosen)
    each = await query_panel(prometheus, observed, title + PER_INSTANCE, ref, chosen)
    assert {series.labels["instance"] for series in each} == set(chosen)
    assert sorted(series.value for series in summed) == sorted(series.value for series in each)


async def test_the_share_is_0_where_nothing_is_open(
    prometheus: Prometheus, observed: Observed
) -> None:
    """And not a division by zero."""
    (query,) = [
        each["expr"] for each in PANELS["Share of open connections stuck in new"]["targets"]
    ]
    nothing = re.sub(r"httptrack_connections\{.*?\}", "vector(0)", query)
    (series,) = await prometheus.query(nothing, observed.after_load.at)
    assert series.value == 0
