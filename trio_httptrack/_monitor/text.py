"""A view as plain text, for a terminal or a log.

A view becomes lines, and each line consists of spans with a style, such as ``"trouble"``. Plain
text leaves the styles out, and ``httptrack top`` gives each a colour. So both show the same.

Text in a span contains no control characters. It may come from clients or from processes of other
users, and the viewer may be root: an escape sequence could attack the terminal.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

from .._states import ConnState
from .formatting import (
    NOTHING,
    SLOW,
    display_width,
    duration,
    lateness,
    rounded,
    size,
    truncate,
    visible,
)
from .monitor import BLOCKED_AFTER
from .query import DEFAULTS, Query
from .report import GAUGES, MAX_LISTED, STATUS_CLASSES, Group, Request, Row, Worker
from .view import View, responding_share

WIDTH = 80  # columns

Style = Literal["", "strong", "weak", "trouble", "heading"]


class Span(NamedTuple):
    """Text of one style within a line. It has no control characters."""

    text: str
    style: Style = ""


Line = list[Span]

STATES: dict[str, Style] = {"active": "strong", "idle": "weak", "closed": "weak"}


def as_text(view: View, width: int = WIDTH) -> str:
    """Return everything in a view, in lines of at most ``width`` columns."""
    headings, rows = table(view, width)
    parts: list[list[Line]] = [
        [title(view)],
        workers(view),
        [numbers(view), *rates(view)],
        [selection(view)],
        [headings, *rows] if rows else [],
    ]
    paragraphs = ["\n".join(plain(line, width) for line in part) for part in parts if part]
    return "\n\n".join(paragraphs) + "\n"


def plain(line: Line, width: int) -> str:
    return "".join(span.text for span in cut_to_width(line, width)).rstrip()


def cut_to_width(line: Line, width: int) -> Line:
    """Return a line without what exceeds the width."""
    fits: Line = []
    for span in line:
        text = truncate(span.text, width)
        fits.append(span._replace(text=text))
        width -= display_width(text)
        if text != span.text:
            break
    return fits


def title(view: View) -> Line:
    time = safe(view["time"]).replace("T", " ").replace("Z", " UTC")
    return [Span(safe(view["host"]), "strong"), Span(f"  {time}")]


def workers(view: View) -> list[Line]:
    """Return the table of workers, with its headings."""
    lines = columns(
        [
            [Span(each, "weak") for each in ("Worker", "Uptime", "Connections", "Loop lag")],
            *map(_worker, view["workers"]),
        ],
        range(4),
    )
    for line, worker in zip(lines[1:], view["workers"], strict=True):
        if worker["silent"] is not None:
            line[2:] = [Span(f"  no response for {duration(worker['silent'])}", "trouble")]
        elif worker["draining"]:
            line.append(Span("  draining", "strong"))
    return lines


def heading_cells(*titles: str) -> list[Span]:
    return [Span(title, "heading") for title in titles]


def _worker(worker: Worker) -> list[Span]:
    pid, uptime, lag = Span(safe(worker["pid"])), worker["uptime"], worker["lag"]
    if uptime is None or lag is None:  # it does not respond
        return [pid]
    return [
        pid,
        Span(brief(uptime)),
        Span(f"{worker['connections']:,}"),
        Span(
            lateness(lag),
            "trouble" if lag >= BLOCKED_AFTER else "",
        ),
    ]


def numbers(view: View) -> Line:
    """Return how many connections are in each state, of the workers that respond."""
    states = (f"{view['connections'][state]:,} {state}" for state in GAUGES)
    numbers = f"{', '.join(states)}; {view['websockets']:,} WebSockets"
    return [Span(f"Connections{responding_share(view)}: {numbers}")]


def rates(view: View) -> list[Line]:
    """Return the rates per second; no line if they are not known yet."""
    found = view["per_second"]
    if found is None:
        return []
    line = [Span(f"Per second: {rounded(found['requests'])} requests; responses:")]
    for each in STATUS_CLASSES:
        if found[each]:
            line.append(Span(f" {each} {rounded(found[each])}", "trouble" if each == "5xx" else ""))
    return [line if len(line) > 1 else [*line, Span(" none")]]


def selection(view: View) -> Line:
    """Return which connections are listed, and in which order."""
    query = Query(**view["query"])
    matching = view["matching"]
    total = sum(view["connections"].values())
    filters = [
        *([f"state {query.state}"] if query.state else []),
        *([f"client {safe(query.client)}\N{HORIZONTAL ELLIPSIS}"] if query.client else []),
        *([f"{safe(query.path)} in a path"] if query.path else []),
    ]
    found = f"{matching:,} of {total:,}" if filters else f"{matching:,}"
    parts = [
        f"Listed: {found}, page {query.page:,} of {view['pages']:,}",
        "grouped by client" if query.group else order(query),
        *([", ".join(filters)] if filters else []),
    ]
    return [Span("; ".join(parts))]


def order(query: Query) -> str:
    """
    >>> order(Query()), order(Query(sort="in_state"))
    ('what may be stuck first', 'by in_state, least first')
    """
    if query.sort == DEFAULTS["sort"]:
        return "what may be stuck first"
    return f"by {query.order}, {'greatest' if query.descending else 'least'} first"


def table(view: View, width: int, listed: int = MAX_LISTED) -> tuple[Line, list[Line]]:
    """Return the headings and the lines of the table: connections with their requests, or clients.

    Args:
      view: what to show.
      width: the columns of the terminal. If it is too narrow, table columns are left out from the
        right. Then the client is cut.
      listed: how many requests are listed of each connection at most.
    """
    if view["query"]["group"]:
        headings, *lines = columns([GROUP, *map(_group, view["groups"])], range(1, len(GROUP)))
        return headings, lines
    rows = view["rows"]
    headings, *lines = columns(fit_columns([ROW, *map(_row, rows)], width), RIGHT_ALIGNED, gap=" ")
    lines_out: list[Line] = []
    for row, line in zip(rows, lines, strict=True):
        lines_out += [line, *requests(row, width, listed)]
    return headings, lines_out


def fit_columns(rows: list[list[Span]], width: int) -> list[list[Span]]:
    """Return rows of cells that fit into a terminal, with a blank between two cells."""
    widths = column_widths(rows)
    while len(widths) > MIN_COLUMNS and sum(widths) + len(widths) - 1 > width:
        widths.pop()
    client_width = width - (sum(widths) - widths[CLIENT]) - (len(widths) - 1)
    client_width = max(client_width, MIN_CLIENT_WIDTH)
    return [
        [
            Span(truncate(cell.text, client_width), cell.style) if number == CLIENT else cell
            for number, cell in enumerate(row[: len(widths)])
        ]
        for row in rows
    ]


ROW = heading_cells("State", "For", "Client", "Worker", "ID", "Age", "Reqs", "HTTP", "In", "Out")
CLIENT = 2  # the index of the column that is cut to fit
MIN_CLIENT_WIDTH = 12  # the least width of that column
MIN_COLUMNS = 5  # the number of columns that are never left out
RIGHT_ALIGNED = {1, 3, 4, 5, 6, 8, 9}


def _row(row: Row) -> list[Span]:
    protocol = {None: "", "http/1.1": "1.1", "h2": "2"}.get(row["protocol"], row["protocol"])
    state = safe(row["state"])
    style = STATES.get(state, "")
    texts = [
        state,
        brief(row["in_state"]),
        safe(row["client"] or NOTHING),
        safe(row["worker"]),
        safe(row["id"]),
        brief(row["age"]),
        f"{row['requests']:,}",
        f"{safe(protocol)} TLS" if row["tls"] else safe(protocol),
        brief_size(row["received"]),
        brief_size(row["sent"]),
    ]
    return [Span(text, style) for text in texts]


def requests(row: Row, width: int, listed: int) -> list[Line]:
    """Return the lines of a connection's requests in flight, the oldest first."""
    shown = row["in_flight"][:listed]
    lines = [_request(request, width) for request in shown]
    count = row["in_flight_count"]
    if count > len(shown):
        lines.append([Span(f"{'':10}{len(shown)} of {count:,} requests in flight", "weak")])
    return lines


def _request(request: Request, width: int) -> Line:
    stream = request["stream"]
    phase = safe(request["phase"])
    slow = phase == "waiting" and request["age"] >= SLOW
    prefix = f"{brief(request['age']):>10} {phase:<9} "
    suffix = "" if stream is None else f"  stream {safe(stream)}"
    what = f"{safe(request['method'])} {safe(request['path'])}"
    what = truncate(what, width - display_width(prefix) - display_width(suffix))
    return [Span(f"{prefix}{what}", "trouble" if slow else ""), Span(suffix, "weak")]


GROUP = heading_cells("Client", "Connections", *(str(s).title() for s in ConnState), "Oldest")


def _group(group: Group) -> list[Span]:
    return [
        Span(safe(group["client"] or NOTHING), "strong"),
        Span(f"{group['connections']:,}"),
        *(Span(f"{group['states'].get(str(state), 0):,}") for state in ConnState),
        Span(brief(group["oldest"])),
    ]


def columns(rows: Sequence[list[Span]], right: Container[int], gap: str = "  ") -> list[Line]:
    """Return rows of cells as lines. The columns in ``right`` are right-aligned."""
    widths = column_widths(rows)
    return [
        [
            Span(f"{gap if number else ''}{pad(cell.text, width, number in right)}", cell.style)
            for number, (cell, width) in enumerate(zip(row, widths, strict=False))
        ]
        for row in rows
    ]


def column_widths(rows: Sequence[list[Span]]) -> list[int]:
    """Return the width of each column. A row may lack the last columns."""
    return [
        max(map(display_width, column)) for column in zip_longest(*map(texts, rows), fillvalue="")
    ]


def texts(row: list[Span]) -> list[str]:
    return [cell.text for cell in row]


def pad(text: str, width: int, right: bool) -> str:
    blanks = " " * (width - display_width(text))
    return f"{blanks}{text}" if right else f"{text}{blanks}"


def brief(seconds: float) -> str:
    """
    >>> [brief(seconds) for seconds in (9.26, 75, 3900, 180000)]
    ['9.3s', '1m15s', '1h05m', '2d02h']
    """
    return duration(seconds).replace("min", "m").replace(" ", "")


def brief_size(number: int | None) -> str:
    """
    >>> brief_size(12_345)
    '12.3kB'
    """
    return size(number).replace(" ", "")


def safe(value: Any) -> str:
    """Return a value of another process or a client as a string without control characters."""
    return visible(str(value))
