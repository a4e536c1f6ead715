"""The directive ``state-diagram``: the state machine as a picture, drawn from ``TRANSITIONS``.

A state has its place here; the arrows are the table's. A page's own colours are used, so that
the picture is as light or dark as the page, and a table says the same to who cannot see it.
"""

from __future__ import annotations

from math import hypot

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from trio_httptrack import ConnState
from trio_httptrack._states import TRANSITIONS

CENTRES = {  # in pixels
    ConnState.NEW: (75, 60),
    ConnState.ACTIVE: (300, 60),
    ConnState.IDLE: (525, 60),
    ConnState.HIJACKED: (300, 220),
    ConnState.CLOSED: (525, 220),
}
WIDTH, HEIGHT = 120, 44  # of a state
APART = 9  # from the middle, where an arrow has one that goes back beside it


def svg() -> str:
    """The picture."""
    arrows = "".join(
        arrow(state, following)
        for state, all_following in TRANSITIONS.items()
        for following in sorted(all_following)
    )
    label = "; ".join(map(sentence, TRANSITIONS))
    return f"""<svg viewBox="0 0 600 260" role="img" aria-label="{label}" class="state-diagram">
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
orient="auto"><path d="M0 0 8 4 0 8z" fill="currentColor"/></marker></defs>
{arrows}{"".join(map(box, TRANSITIONS))}</svg>"""


def sentence(state: ConnState) -> str:
    following = " or ".join(map(str, sorted(TRANSITIONS[state])))
    return f"{state} is followed by {following}" if following else f"{state} is the end"


def box(state: ConnState) -> str:
    x, y = CENTRES[state]
    kind = "terminal" if state.terminal else "state"
    return (
        f'<g class="{kind}"><rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" '
        f'height="{HEIGHT}" rx="8"/><text x="{x}" y="{y + 5}">{state.name}</text></g>\n'
    )


def arrow(state: ConnState, following: ConnState) -> str:
    (x1, y1), (x2, y2) = CENTRES[state], CENTRES[following]
    dx, dy = (x2 - x1) / hypot(x2 - x1, y2 - y1), (y2 - y1) / hypot(x2 - x1, y2 - y1)
    if state in TRANSITIONS[following]:  # there is an arrow back: each keeps to its right
        x1, y1, x2, y2 = x1 - APART * dy, y1 + APART * dx, x2 - APART * dy, y2 + APART * dx
    out = min(
        (WIDTH / 2) / abs(dx) if dx else float("inf"),
        (HEIGHT / 2) / abs(dy) if dy else float("inf"),
    )
    start, end = out, hypot(x2 - x1, y2 - y1) - out
    return (
        f'<path d="M{x1 + dx * start:.1f} {y1 + dy * start:.1f} L{x1 + dx * end:.1f} '
        f'{y1 + dy * end:.1f}" marker-end="url(#tip)"/>\n'
    )


class StateDiagram(Directive):
    def run(self) -> list[nodes.Node]:
        rows = "".join(
            f"<tr><td><code>{state.name}</code></td><td>"
            + (
                ", ".join(f"<code>{each.name}</code>" for each in sorted(TRANSITIONS[state]))
                or "none"
            )
            + "</td></tr>\n"
            for state in TRANSITIONS
        )
        table = (
            '<div class="table-wrapper"><table class="docutils"><thead><tr><th>state</th>'
            f"<th>may be followed by</th></tr></thead><tbody>\n{rows}</tbody></table></div>"
        )
        return [nodes.raw("", f"{svg()}\n{table}", format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("state-diagram", StateDiagram)
    return {"parallel_read_safe": True}
