"""The view as HTML: the whole page, and the parts of it that change while somebody looks.

Nothing is loaded from anywhere: the style and the script are in the page, and by their hashes the
policy allows these two and nothing else. All that a peer has said is escaped, and what cannot be
seen of it is spelled out.
"""

from __future__ import annotations

import json
import math
import os
import platform
from base64 import b64encode
from datetime import datetime, timezone
from hashlib import sha256
from html import escape
from pathlib import Path

from .._monitor.monitor import INTERVAL, LENGTH, RATES_OVER
from .._monitor.query import ORDERS, Query
from .._monitor.report import Row
from .._monitor.view import View
from .._states import PATH_LENGTH, ConnState

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
    "connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# What each state's gauge says, and what it means where it stays high.
ABOUT = {
    ConnState.NEW: ("nothing that is HTTP yet", "clients are silent or too slow"),
    ConnState.ACTIVE: ("a request in flight", "requests come in faster than they are answered"),
    ConnState.IDLE: ("between two requests", "many clients that ask seldom"),
    ConnState.HIJACKED: ("WebSockets over HTTP/1.1", "clients that stay"),
}
COUNTED = {
    ConnState.NEW: "accepted",
    ConnState.ACTIVE: "became active",
    ConnState.IDLE: "became idle",
    ConnState.HIJACKED: "hijacked",
    ConnState.CLOSED: "closed",
}
TITLES = {
    "id": "No.",
    "client": "Client",
    "protocol": "Protocol",
    "tls": "TLS",
    "state": "State",
    "in_state": "In state for",
    "age": "Age",
    "requests": "Requests",
    "path": "Last path",
}
GAP = 2.5 * INTERVAL
NOTHING = "\N{EN DASH}"
NUMBERS = {"id", "in_state", "age", "requests"}


def page(view: View, token: str | None) -> str:
    changing = parts(view)
    headings = "".join(_heading(column, view.query) for column in COLUMNS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Connections</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>Connections</h1>
<p id="process">{changing["process"]}</p>
<p class="live" hidden><span id="live" role="status"></span>
<button type="button" id="pause">Pause</button></p>
</header>
<main>
<section>
<div id="states" class="states">{changing["states"]}</div>
</section>
<section>
<h2>Since the start</h2>
<p class="about">Per second, over the last {RATES_OVER} seconds.</p>
<dl id="totals" class="totals">{changing["totals"]}</dl>
</section>
<section>
<h2 id="connections-heading">Open now</h2>
<div id="pages-above">{changing["pages-above"]}</div>
<div class="scroll" role="region" aria-label="Table of connections" tabindex="0">
<table role="table">
<thead role="rowgroup"><tr role="row">{headings}</tr></thead>
<tbody role="rowgroup" id="rows">{changing["rows"]}</tbody>
</table>
</div>
</section>
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def update(view: View, token: str | None) -> str:
    """The changing parts, each by the id of its element."""
    return json.dumps(parts(view), ensure_ascii=False)


def parts(view: View) -> dict[str, str]:
    time = datetime.now(timezone.utc)
    history = view.history()
    return {
        # A worker knows its own only, and who listens may get to another after a reload.
        "process": f"Process {os.getpid()} on {escape(platform.node())}, "
        f'<time datetime="{time:%Y-%m-%dT%H:%M:%SZ}">{time:%H:%M:%S} UTC</time>',
        "states": "".join(
            _state(state, number, history[state]) for state, number in view.gauges.items()
        ),
        "totals": "".join(_total(state, view) for state in COUNTED),
        "pages-above": _pages(view),
        "rows": "".join(map(_row, view.rows)),
    }


def _state(state: ConnState, number: int, history: list[tuple[float, int]]) -> str:
    what, high = ABOUT[state]
    numbers = [each for _, each in history]
    least, most = min(numbers), max(numbers)
    minutes = LENGTH // 60
    label = f"{state}: between {least:,} and {most:,} in the last {minutes} minutes"
    return f"""<article class="{state}">
<h2>{state}</h2> <p class="number">{number:,}</p>
<svg viewBox="0 0 {LENGTH} 100" preserveAspectRatio="none" role="img" aria-label="{label}">
<path d="{_chart(history, most)}"/></svg>
<p class="axis">
<span>\N{MINUS SIGN}{minutes} min</span> <span>most {most:,}</span> <span>now</span>
</p>
<p class="about">{what}. Persistently high: {high}.</p>
</article>
"""


def _chart(history: list[tuple[float, int]], most: int) -> str:
    """Areas in steps: between two samples it is as it was at the first of them, and where there
    were none for longer, nobody knows."""
    scale = 96 / max(most, 1)
    path = ""
    last = math.inf
    for ago, number in history:
        if last - ago > GAP:
            end = f"H{LENGTH - last + INTERVAL:.4g}V100" if path else ""
            path += f"{end}M{LENGTH - ago:.4g} 100"
        path += f"H{LENGTH - ago:.4g}V{100 - number * scale:.4g}"
        last = ago
    return f"{path}V100"


def _total(state: ConnState, view: View) -> str:
    rate = "" if view.rates is None else f"{view.rates[state]:,.1f}/s"
    return (
        f"<div><dt>{COUNTED[state]}</dt> <dd>{view.counters[state]:,}</dd> "
        f'<dd class="rate">{rate}</dd></div>'
    )


def _pages(view: View) -> str:
    if not view.counters[ConnState.NEW]:
        return "<p>The tracker was told of no connection: is it on the config's conn_state?</p>"
    if not view.connections:
        return "<p>None.</p>"
    query = view.query
    links = []
    for name, number in (("previous", query.page - 1), ("next", query.page + 1)):
        if 1 <= number <= view.pages:
            links.append(f'<a rel="{name[:4]}" href="{_link(query, page=number)}">{name} page</a>')
    order = "descending" if query.descending else "ascending"
    return (
        f"<p>{view.connections:,}, sorted by “{TITLES[query.column]}”, {order}; "
        f"page {query.page:,} of {view.pages:,} {' '.join(links)}</p>"
    )


def _heading(column: str, query: Query) -> str:
    by_this = column == query.column
    # What takes long is what one looks for, and a second click turns the order round.
    descending = not query.descending if by_this else column in NUMBERS - {"id"}
    link = _link(query, sort=f"{'-' * descending}{column}", page=1)
    order = f' aria-sort="{"de" if query.descending else "a"}scending"' if by_this else ""
    return (
        f'<th role="columnheader" scope="col" class="{column}"{order}>'
        f'<a href="{link}">{TITLES[column]}</a></th>'
    )


def _link(query: Query, **changes: object) -> str:
    return escape(query.link(**changes)) + "#connections-heading"


def _row(row: Row) -> str:
    cells = {
        "id": str(row.id),
        "client": escape(row.client or NOTHING),
        "protocol": escape(row.protocol or NOTHING),
        "tls": "TLS" if row.tls else NOTHING,
        "state": row.state,
        "in_state": duration(row.in_state),
        "age": duration(row.age),
        "requests": f"{row.requests:,}",
        "path": NOTHING if row.path is None else f"<bdi>{escape(visible(row.path))}</bdi>",
    }
    tds = "".join(
        f'<td role="cell" class="{column}" data-title="{TITLES[column]}">{cell}</td>'
        for column, cell in cells.items()
    )
    return f'<tr role="row" class="{row.state}">{tds}</tr>\n'


def duration(seconds: float) -> str:
    """
    >>> [duration(seconds) for seconds in (0, 9.26, 75, 3900, 180000)]
    ['0.0 s', '9.3 s', '1 min 15 s', '1 h 05 min', '2 d 02 h']
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24:,} d {hours % 24:02} h"


def visible(text: str) -> str:
    """Spell out what cannot be seen, or would change how the rest is read.

    >>> print(visible("/a b\\n\\u202e"))
    /a b\\n\\u202e
    """
    shown = "".join(each if each.isprintable() and each != "\\" else spelled(each) for each in text)
    return shown if len(shown) <= PATH_LENGTH else f"{shown[:PATH_LENGTH]}\N{HORIZONTAL ELLIPSIS}"


def spelled(character: str) -> str:
    return character.encode("unicode-escape", "surrogatepass").decode("ascii")
