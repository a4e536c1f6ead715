"""The picture: requests per second by the number of connections, as an SVG.

It has a background of its own, because a page may be dark where the reader's system is light. It is
narrow, with its names below, so that its text can be read on a phone.
"""

from __future__ import annotations

import math

from .servers import ASYNCIO, TRACKED, TRIO, UVICORN, UVLOOP

WIDTH, HEIGHT = 420, 440
LEFT, RIGHT, TOP, BOTTOM = 84, 14, 14, 166  # of the plot
LINE = 21  # of the names below it

COLORS = {  # on a light background and on a dark one
    TRACKED: ("#0a7d4b", "#4cc38a"),
    TRIO: ("#b4540a", "#f0924a"),
    ASYNCIO: ("#3b62c4", "#8aa9f5"),
    UVICORN: ("#8a3fa8", "#cf8fe8"),
    UVLOOP: ("#555", "#bbb"),
}
DASHES = {TRIO: "7 4", ASYNCIO: "2 3", UVICORN: "9 3 2 3", UVLOOP: "5 2"}


def colors(which: int) -> str:
    return "".join(
        f".line{number} {{ stroke: {pair[which]}; fill: {pair[which]} }}\n"
        for number, pair in enumerate(COLORS.values())
    )


STYLE = f"""
text {{ font: 13px system-ui, sans-serif; fill: #222 }}
.background {{ fill: #fff }}
.grid {{ stroke: #ddd }}
{colors(0)}
path.line {{ fill: none; stroke-width: 2.5 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #eee }}
.background {{ fill: #16181d }}
.grid {{ stroke: #444 }}
{colors(1)}
}}
"""


def chart(title: str, rates: dict[str, dict[int, float]]) -> str:
    """``rates`` has for each line, by its name, requests per second by connections."""
    connections = sorted({number for line in rates.values() for number in line})
    most = max(rate for line in rates.values() for rate in line.values())
    step = int(10 ** math.floor(math.log10(most)))
    step = step if most / step >= 4 else step // 2
    top = math.ceil(most / step) * step
    first, last = math.log(connections[0]), math.log(connections[-1])
    bottom = HEIGHT - BOTTOM

    def x(number: int) -> float:
        return LEFT + (math.log(number) - first) / (last - first) * (WIDTH - LEFT - RIGHT - 12)

    def y(rate: float) -> float:
        return bottom - rate / top * (bottom - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
        f'<rect class="background" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
    ]
    for rate in range(0, top + 1, step):
        parts.append(
            f'<path class="grid" d="M{LEFT} {y(rate):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 6}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:,}</text>'
        )
    for number in connections:
        parts.append(
            f'<path class="grid" d="M{x(number):.1f} {bottom}v5"/>'
            f'<text x="{x(number):.1f}" y="{bottom + 19}" text-anchor="middle">{number:,}</text>'
        )
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{bottom + 39}" text-anchor="middle">'
        "connections (logarithmic scale)</text>"
        f'<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">'
        "requests per second</text>"
    )
    highest_first = sorted(rates.items(), key=lambda item: -max(item[1].values()))
    for place, (name, line) in enumerate(highest_first):
        kind = f"line{list(COLORS).index(name)}"
        dash = f' stroke-dasharray="{DASHES[name]}"' if name in DASHES else ""
        points = [(f"{x(number):.1f}", f"{y(rate):.1f}") for number, rate in sorted(line.items())]
        path = "L".join(" ".join(point) for point in points)
        parts.append(f'<path class="line {kind}"{dash} d="M{path}"/>')
        parts += [f'<circle class="{kind}" cx="{cx}" cy="{cy}" r="3"/>' for cx, cy in points]
        baseline = bottom + 68 + place * LINE
        parts.append(
            f'<path class="line {kind}"{dash} d="M{LEFT} {baseline - 4}h30"/>'
            f'<text x="{LEFT + 38}" y="{baseline}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])
