"""A view as HTML: the whole page, and the parts of it that are updated.

The page loads nothing: it contains its style and its script. The content security policy has the
hashes of these two, and forbids everything else. Text from clients is escaped, and so are invisible
characters in it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from itertools import groupby
from pathlib import Path
from urllib.parse import urlencode

from .._monitor.formatting import NOTHING, SLOW, duration, lateness, rounded, size, visible
from .._monitor.monitor import BLOCKED_AFTER, HISTORY_LENGTH, RATE_WINDOW
from .._monitor.query import LARGEST_FIRST, MAX_FILTER_LENGTH, Query
from .._monitor.report import GAUGES, STATUS_CLASSES, Group, Request, Row, Worker
from .._monitor.view import View, responding_share
from .._states import ConnState

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

ALWAYS_SHOWN = 3  # requests of a connection; the others can be unfolded

MEANINGS = {
    "new": "no request yet",
    "active": "requests in flight",
    "idle": "between two requests",
    "hijacked": "WebSockets, HTTP/1.1",
}
RATES = {
    "new": "accepted",
    "closed": "closed",
    "requests": "requests",
    **{kind: kind for kind in STATUS_CLASSES[1:]},
}

# The columns of the connections, each with the sort orders that its heading links to.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "state": {"state": "State"},
    "in_state": {"in_state": "In state for"},
    "client": {"client": "Client"},
    "request": {"stuck": "Oldest request", "path": "Path"},
    "protocol": {"protocol": "Protocol", "tls": "TLS"},
    "requests": {"requests": "Requests"},
    "received": {"": "Received"},
    "sent": {"": "Sent"},
    "age": {"age": "Age"},
    "worker": {"": "Worker"},
    "id": {"id": "ID"},
}
ORDER_TITLES = {
    "-stuck": "the oldest request first",
    "stuck": "the oldest request last",
    **{
        f"{sign}{order}": f"by {title}, {direction}"
        for titles in COLUMNS.values()
        for order, title in titles.items()
        if order not in ("", "stuck")
        for sign, direction in (("", "ascending"), ("-", "descending"))
    },
}


def page(view: View, token: str | None) -> str:
    """Return the whole page. Each link and form has the token, if there is one."""
    shown = Page(view, token)
    changing = shown.parts()
    host = escape(visible(view["host"]))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Connections on {host}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{host}</h1>
<p id="time">{changing["time"]}</p>
<p class="live" hidden><span id="live" role="status"></span>
<button type="button" id="pause">Pause</button></p>
</header>
<main>
<section class="workers">
<h2>Workers</h2>
<table>
<thead><tr><th scope="col">PID</th><th scope="col">Uptime</th><th scope="col">Connections</th>\
<th scope="col">Loop lag</th><th scope="col">Status</th></tr></thead>
<tbody id="workers">{changing["workers"]}</tbody>
</table>
</section>
<section class="states">
<h2>States, over the last {HISTORY_LENGTH // 60} minutes</h2>
<ul id="states">{changing["states"]}</ul>
</section>
<section class="rates">
<h2>Rates over the last {RATE_WINDOW} seconds, and totals</h2>
<dl id="rates">{changing["rates"]}</dl>
</section>
<section id="connections">
<h2>Connections</h2>
{shown.form()}
<div id="found">{changing["found"]}</div>
<table{' class="groups"' if shown.query.group else ""}>
<thead><tr>{shown.headings()}</tr></thead>
<tbody id="rows">{changing["rows"]}</tbody>
</table>
</section>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def update(view: View, token: str | None) -> str:
    """Return the parts that change as JSON, by the ID of their elements."""
    return json.dumps(Page(view, token).parts(), ensure_ascii=False)


class Page:
    """The HTML of one view."""

    def __init__(self, view: View, token: str | None) -> None:
        self.view = view
        self.query = Query(**view["query"])
        self._token = token

    def parts(self) -> dict[str, str]:
        view = self.view
        rows = map(self._group, view["groups"]) if self.query.group else map(_row, view["rows"])
        return {
            "time": f'<time datetime="{view["time"]}">{view["time"][11:19]} UTC</time>',
            "workers": "".join(map(_worker, view["workers"])),
            "states": "".join(map(self._state, GAUGES)),
            "rates": f"<div><dt>WebSockets</dt> <dd>{view['websockets']:,}</dd> "
            f'<dd class="total">open</dd></div>{"".join(map(self._rate, RATES))}',
            "found": self._summary_line(),
            "rows": "".join(rows),
        }

    def _link(self, text: str, attributes: str = "", **changes: object) -> str:
        """Return a link to the same page with another query."""
        query = self.query.link(**changes)
        if self._token is not None:
            query += f"{'&' if query != '?' else ''}{urlencode({'token': self._token})}"
        return f'<a href="{escape(query)}#connections"{attributes}>{text}</a>'

    def _state(self, state: str) -> str:
        history = self.view["history"][state][-HISTORY_LENGTH:]
        numbers = [number for number in history if number is not None]
        least, peak = min(numbers, default=0), max(numbers, default=0)
        now = self.view["connections"][state]
        label = (
            f"{state}: between {least:,} and {peak:,} in the last {HISTORY_LENGTH // 60} minutes"
        )
        link = self._link(state, state=state, page=1)
        return (
            f'<li class="{state}"><h3>{link}</h3> <p class="number">{now:,}</p> '
            f'<svg viewBox="0 0 {HISTORY_LENGTH} 100" preserveAspectRatio="none" role="img" '
            f'aria-label="{label}"><path d="{_chart(history, peak)}"/></svg> '
            f'<p class="about">{MEANINGS[state]}</p> <p class="peak">peak {peak:,}</p></li>'
        )

    def _rate(self, counter: str) -> str:
        rates = self.view["per_second"]
        rate = NOTHING if rates is None else f"{rounded(rates[counter])}/s"
        failing = ' class="bad"' if counter == "5xx" and rates and rates[counter] else ""
        return (
            f"<div><dt>{RATES[counter]}</dt> <dd{failing}>{rate}</dd> "
            f'<dd class="total">{self.view["totals"][counter]:,}</dd></div>'
        )

    def form(self) -> str:
        """Return the form of filters. It is not updated, because a viewer may be filling it in."""
        query = self.query
        states = "".join(
            f"<option{' selected' if state == query.state else ''}>{state}</option>"
            for state in map(str, ConnState)
        )
        kept = {"token": self._token, "sort": query.sort}
        hidden = "".join(
            f'<input type="hidden" name="{name}" value="{escape(value)}">'
            for name, value in kept.items()
            if value is not None
        )
        text = f'autocapitalize="none" spellcheck="false" maxlength="{MAX_FILTER_LENGTH}"'
        unfolded = " open" if query.filters or query.group else ""
        return f"""<details{unfolded}><summary>Filter or group</summary>
<form action="#connections">{hidden}
<label>State <select name="state"><option value="">any</option>{states}</select></label>
<label>Client begins with <input name="client" value="{escape(query.client)}" {text}></label>
<label>Path contains <input name="path" value="{escape(query.path)}" {text}></label>
<label><input type="checkbox" name="group" value="client"\
{" checked" if query.group else ""}> Group by client</label>
<button>Apply</button>
</form>
</details>"""

    def _summary_line(self) -> str:
        """Return the number of connections, the filters, the order, and links to other pages."""
        view, query = self.view, self.query
        opened = sum(view["connections"].values())
        number = f"{view['matching']:,}"
        if query.filters:
            number += f" of {opened:,}"
        filters = {
            "state": query.state,
            "client begins with": query.client,
            "path contains": query.path,
        }
        only = ", ".join(
            f"{name} <b>{escape(visible(value))}</b>" for name, value in filters.items() if value
        )
        if only:
            none = self._link(
                "remove filters", ' data-key="none"', state="", client="", path="", page=1
            )
            only = f": {only} ({none})"
        order = "the busiest client first" if query.group else ORDER_TITLES[query.sort]
        pages = "".join(
            " " + self._link(f"{name} page", f' rel="{rel}" data-key="{rel}"', page=number)
            for name, rel, number in (
                ("Previous", "prev", query.page - 1),
                ("Next", "next", query.page + 1),
            )
            if 1 <= number <= view["pages"]
        )
        found = f"{number} connections{responding_share(view)}{only}"
        page = f"Page {query.page:,} of {view['pages']:,}{pages}" if view["pages"] > 1 else ""
        return f"<p>{found}. Sorted: {order}.</p> <p>{page}</p>"

    def headings(self) -> str:
        if self.query.group:
            titles = ("Client", "Connections", *GAUGES, "Oldest")
            return "".join(
                f'<th scope="col" class="{title.lower()}">{title}</th>' for title in titles
            )
        return "".join(map(self._heading, COLUMNS))

    def _heading(self, column: str) -> str:
        query, links, sorted_ = self.query, [], ""
        for order, title in COLUMNS[column].items():
            if not order:
                links.append(title)
                continue
            current = ""
            # A second click reverses the order.
            descending = order in LARGEST_FIRST
            if order == query.order:
                descending = not query.descending
                direction = "descending" if query.descending else "ascending"
                sorted_, current = f' aria-sort="{direction}"', ' aria-current="true"'
            sort = f"{'-' * descending}{order}"
            links.append(self._link(title, current, sort=sort, page=1))
        return f'<th scope="col" class="{column}"{sorted_}>{" ".join(links)}</th>'

    def _group(self, group: Group) -> str:
        client = group["client"]
        # With the colon before the port: 192.0.2.7 is also the beginning of 192.0.2.70.
        begin = f"[{client}]:" if ":" in client else f"{client}:"
        name = escape(visible(client))
        cells = {
            "client": self._link(name, client=begin, group="", page=1) if client else NOTHING,
            "connections": f"{group['connections']:,}",
            **{state: f"{group['states'].get(state, 0):,}" for state in GAUGES},
            "oldest": duration(group["oldest"]),
        }
        return f'<tr data-key="{name}">{_cells(cells)}</tr>'


def _cells(cells: Mapping[str, str]) -> str:
    return "".join(f'<td class="{name}">{cell}</td>' for name, cell in cells.items())


def _worker(worker: Worker) -> str:
    begin = f'<tr data-key="{escape(worker["name"])}"'
    uptime, connections, lag = worker["uptime"], worker["connections"], worker["lag"]
    if worker["silent"] is not None:
        status, kind = f"no response for {duration(worker['silent'])}", ' class="bad"'
    else:
        status, kind = "draining" if worker["draining"] else "serving", ""
    late = ' class="bad"' if lag is not None and lag >= BLOCKED_AFTER else ""
    return (
        f'{begin}{kind}><th scope="row">{worker["pid"]}</th>'
        f"<td>{NOTHING if uptime is None else duration(uptime)}</td>"
        f"<td>{NOTHING if connections is None else f'{connections:,}'}</td>"
        f"<td{late}>{NOTHING if lag is None else lateness(lag)}</td>"
        f"<td>{status}</td></tr>"
    )


def _chart(history: Iterable[int | None], peak: int) -> str:
    """Return the path of a step chart, one step a second, with gaps where values are unknown."""
    history = list(history)
    scale = 96 / max(peak, 1)
    at, known, path = HISTORY_LENGTH - len(history), False, ""
    for number, same in groupby(history):
        if number is not None:
            path += "" if known else f"M{at} 100"
            path += f"V{100 - number * scale:.4g}"
        elif known:
            path += "V100"
        at += len(list(same))
        known = number is not None
        path += f"H{at}" if known else ""
    return f"{path}V100" if known else path


def _row(row: Row) -> str:
    in_state = duration(row["in_state"])
    host, colon, port = escape(row["client"] or NOTHING).rpartition(":")
    cells = {
        "state": row["state"],
        "in_state": in_state,
        "client": f"{host}<small>{colon}{port}</small>" if colon else port,
        "request": _requests(row) if row["in_flight"] else _last_request(row["path"], in_state),
        "protocol": f"{escape(row['protocol'] or NOTHING)}{' TLS' if row['tls'] else ''}",
        "requests": f"{row['requests']:,}",
        "received": size(row["received"]),
        "sent": size(row["sent"]),
        "age": duration(row["age"]),
        "worker": str(row["worker"]),
        "id": str(row["id"]),
    }
    long = " long" if row["state"] == "new" and row["in_state"] >= SLOW else ""
    begin = f'<tr data-key="{row["worker"]}-{row["id"]}" class="{row["state"]}{long}">'
    return f"{begin}{_cells(cells)}</tr>"


def _requests(row: Row) -> str:
    """Return the requests in flight, the oldest first."""
    requests = list(map(_request, row["in_flight"]))
    oldest, others = "".join(requests[:ALWAYS_SHOWN]), "".join(requests[ALWAYS_SHOWN:])
    if not others:
        return oldest
    listed, count = len(requests), row["in_flight_count"]
    left_out = f", {listed:,} of {count:,}" if count > listed else ""
    summary = f"{listed - ALWAYS_SHOWN} more{left_out}"
    return f"{oldest}<details><summary>{summary}</summary>{others}</details>"


def _request(request: Request) -> str:
    phase = request["phase"]
    long = " long" if phase == "waiting" and request["age"] >= SLOW else ""
    stream = "" if request["stream"] is None else f" <small>stream {request['stream']}</small>"
    what = f"<b>{escape(visible(request['method']))}</b> {_path(request['path'])}{stream}"
    return _line(f"{phase}{long}", duration(request["age"]), phase, what)


def _last_request(path: str | None, in_state: str) -> str:
    """Return the last request of a connection that has none in flight."""
    if path is None:
        return _line("last", in_state, "", NOTHING)
    return _line("last", in_state, "last", _path(path))


def _line(kind: str, age: str, phase: str, what: str) -> str:
    return (
        f'<p class="{kind}"><span class="age">{age}</span> <span class="phase">{phase}</span> '
        f"<span>{what}</span></p>"
    )


def _path(path: str) -> str:
    return f"<bdi>{escape(visible(path))}</bdi>"
