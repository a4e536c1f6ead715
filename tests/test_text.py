"""A view as plain text."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest

from trio_httptrack._monitor.formatting import NOTHING, display_width, truncate
from trio_httptrack._monitor.query import Query
from trio_httptrack._monitor.report import COUNTERS, Group
from trio_httptrack._monitor.text import Line, as_text, rates, table, workers

from .views import request, row, silent, view, worker


def test_a_view_of_a_busy_server() -> None:
    """Workers, numbers, what is listed, and each connection with its requests in flight."""
    per_second = {**dict.fromkeys(COUNTERS, 0.0), "requests": 1203.25, "2xx": 1203.0, "5xx": 0.25}
    text = as_text(
        view(
            row(request()),
            row(
                request(method="POST", path="/report", age=0.4, stream=1),
                request(method="CONNECT", path="/chat", age=0.1, stream=3, phase="streaming"),
                request(path="/after", age=0.1, stream=5, phase="complete"),
                client="[2001:db8::7]:443",
                protocol="h2",
                tls=True,
                in_state=0.4,
                in_flight_count=57,
            ),
            row(client=None, state="new", protocol=None, requests=0, received=None, sent=None),
            workers=[worker(), worker(4022, lag=1.25, draining=True), silent(4023, 3.2)],
            connections={"new": 1, "active": 2, "idle": 0, "hijacked": 7},
            websockets=8,
            per_second=per_second,
            pages=3,
        )
    )
    assert (
        text.replace(NOTHING, "-")
        == """\
web-3  2026-11-27 01:31:00 UTC

Worker  Uptime  Connections  Loop lag
  4021   1h05m            3      2 ms
  4022   1h05m            3     1.2 s  draining
  4023  no response for 3.2 s

Connections of 2 of 3 workers: 1 new, 2 active, 0 idle, 7 hijacked; 8 WebSockets
Per second: 1,203 requests; responses: 2xx 1,203 5xx 0.2

Listed: 3, page 1 of 3; what may be stuck first

State    For Client            Worker ID   Age Reqs HTTP     In Out
active 1m15s 192.0.2.7:51234     4021 17 2m10s    3 1.1   1.2kB  0B
     1m15s waiting   GET /slow
active  0.4s [2001:db8::7]:443   4021 17 2m10s    3 2 TLS 1.2kB  0B
      0.4s waiting   POST /report  stream 1
      0.1s streaming CONNECT /chat  stream 3
      0.1s complete  GET /after  stream 5
          3 of 57 requests in flight
new    1m15s -                   4021 17 2m10s    0           -   -
"""
    )


def styled(lines: list[Line], style: str) -> list[str]:
    return [span.text.strip() for line in lines for span in line if span.style == style]


def test_problems_have_the_style_trouble() -> None:
    """A request that waits for long, a worker that is late or silent, and responses of 500."""
    slow, soon = request(age=10), request(age=9.9)
    streaming = request(age=3600, phase="streaming")
    said = view(
        row(slow, soon, streaming),
        workers=[worker(lag=1.0), worker(lag=0.9), silent(4023, 0.5)],
        per_second={**dict.fromkeys(COUNTERS, 1.0), "requests": 5.0},
    )
    _, rows = table(said, 80)
    assert styled(rows, "trouble") == ["10.0s waiting   GET /slow"]
    assert styled(workers(said), "trouble") == ["1.0 s", "no response for 0.5 s"]
    assert styled(rates(said), "trouble") == ["5xx 1.0"]


def test_the_connections_are_headed() -> None:
    """By a line that a live view can show as one."""
    for query in (Query(), Query(group="client")):
        headings, _ = table(view(row(), query=query), 80)
        assert all(span.style == "heading" for span in headings)


def test_a_view_of_a_server_that_has_just_started() -> None:
    """No rates, because they are not known yet, and no table."""
    assert as_text(view()).splitlines()[5:] == [
        "Connections: 0 new, 1 active, 2 idle, 0 hijacked; 0 WebSockets",
        "",
        "Listed: 0, page 1 of 1; what may be stuck first",
    ]


def test_a_server_that_has_nothing_to_do_has_no_responses() -> None:
    """ "none" is shown."""
    text = as_text(view(per_second=dict.fromkeys(COUNTERS, 0.0)))
    assert "Per second: 0.0 requests; responses: none\n" in text


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (Query(sort="-age"), "Listed: 1, page 1 of 1; by age, greatest first"),
        (Query(sort="stuck"), "Listed: 1, page 1 of 1; by stuck, least first"),
        (
            Query(sort="id", state="new", client="1", path="\n"),
            r"Listed: 1 of 3, page 1 of 1; by id, least first; state new, client 1…, \n in a path",
        ),
    ],
)
def test_the_text_says_what_is_listed(query: Query, line: str) -> None:
    """The order, the page and the filters."""
    assert f"\n{line}\n" in as_text(view(row(), query=query), 200)


def test_connections_grouped_by_client() -> None:
    """A line for each address, with its connections by state."""
    groups = (
        Group(client="192.0.2.7", connections=1200, states={"idle": 1199, "new": 1}, oldest=75),
        Group(client="", connections=1, states={"closed": 1}, oldest=0.5),
    )
    text = as_text(view(query=Query(group="client"), groups=groups, matching=1201))
    assert text.replace(NOTHING, "-").splitlines()[7:] == [
        "Listed: 1,201, page 1 of 1; grouped by client",
        "",
        "Client     Connections  New  Active   Idle  Hijacked  Closed  Oldest",
        "192.0.2.7        1,200    1       0  1,199         0       0   1m15s",
        "-                    1    0       0      0         0       1    0.5s",
    ]


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028\n\r\ud800"


def hostile(value: Any) -> Any:
    """The same with an escape sequence in every text, as another user's process could respond."""
    if isinstance(value, dict):
        return {key: hostile(each) for key, each in value.items()}
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_no_text_of_others_reaches_the_terminal_unescaped() -> None:
    """Neither in a path nor in anything else: the viewer may be root."""
    groups = (Group(client="192.0.2.7", connections=1, states={}, oldest=1),)
    for query in (Query(path=HOSTILE, client=HOSTILE), Query(group="client")):
        said = hostile(view(row(request(stream=1)), groups=groups, query=query))
        said["query"] = asdict(query)
        text = as_text(said, 2000)
        assert all(each.isprintable() or each == "\n" for each in text)
        assert r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u2028\n\r\ud800" in text


def test_ids_that_are_no_numbers_are_made_visible_too() -> None:
    """What a socket sends may have other types than a report."""
    said = row(request(stream=HOSTILE), id=HOSTILE, worker=HOSTILE)
    text = as_text(view(said, workers=[worker(pid=HOSTILE)]), 2000)  # type: ignore[arg-type]
    assert all(each.isprintable() or each == "\n" for each in text)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 132])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Whatever is in it, and however wide its characters are."""
    long = "日本語/" * 60
    query = Query(path=long[:200])
    text = as_text(
        view(
            row(request(path=long, stream=2**31 - 1), client="[2001:db8:1:2:3:4:5:6]:65535"),
            row(request(path="/a" * 100), id=10**9, requests=10**9, worker=4194304, tls=True),
            query=query,
        ),
        width,
    )
    assert max(display_width(line) for line in text.splitlines()) == width


def test_a_long_path_is_cut_and_its_stream_is_not() -> None:
    """With an ellipsis."""
    text = as_text(view(row(request(path=f"/{'a' * 100}", stream=7))))
    line = next(line for line in text.splitlines() if "GET" in line)
    assert re.fullmatch(r" +1m15s waiting   GET /a+…  stream 7", line)
    assert len(line) == 80


@pytest.mark.parametrize(
    ("width", "headings"),
    [
        (80, "State For Client Worker ID Age Reqs HTTP In Out"),
        (60, "State For Client Worker ID Age Reqs HTTP In"),
        (40, "State For Client Worker ID"),
        (30, "State For Client"),
    ],
)
def test_a_narrow_terminal_has_fewer_columns(width: int, headings: str) -> None:
    """They go from the right."""
    text = as_text(view(row(request())), width)
    (line,) = (line for line in text.splitlines() if line.startswith("State"))
    assert " ".join(line.split()).startswith(headings)
    assert line.split()[-1] in headings or line.endswith("…")


def test_an_address_is_cut_at_its_end() -> None:
    """It is what one recognises."""
    text = as_text(view(row(client="[2001:db8:1111:2222:3333:4444:5555:6666]:65535")), 60)
    assert re.search(r"^idle +1m15s \[2001:db8:1111:2222:3333:4444:\S*… +4021 17$", text, re.M)


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("e\u0301tage", 3, "e\u0301t…"),
    ],
)
def test_wide_characters_take_two_columns(text: str, width: int, expected: str) -> None:
    """And accents none."""
    assert truncate(text, width) == expected


def test_a_long_path_is_cut_in_one_go() -> None:
    """A client's path must not keep the event loop busy."""
    with_width_two = "\u65e5" * 200_000
    assert truncate(with_width_two, 7) == "\u65e5" * 3 + "\N{HORIZONTAL ELLIPSIS}"
    for width in range(8):
        assert display_width(truncate("\u65e5\u672ce\u0301x", width)) <= width
    assert truncate("\u65e5\u672ce\u0301x", 6) == "\u65e5\u672ce\u0301x"
