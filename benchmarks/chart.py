"""The picture: requests per second over the number of connections, as an SVG."""

from __future__ import annotations

import math

WIDTH, HEIGHT = 690, 360
LEFT, RIGHT, TOP, BOTTOM = 64, 180, 24, 44

COLORS = {  # of a light page and of a dark one
    "tracked": ("#0a7d4b", "#4cc38a"),
    "plain trio": ("#b4540a", "#f0924a"),
    "plain asyncio": ("#3b62c4", "#8aa9f5"),
    "uvicorn h11": ("#8a3fa8", "#cf8fe8"),
    "uvicorn httptools+uvloop": ("#666", "#aaa"),
}


def colors(which: int) -> str:
    return "".join(
        f".line{number} {{ stroke: {pair[which]}; fill: {pair[which]} }}\n"
        for number, pair in enumerate(COLORS.values())
    )


STYLE = f"""
text {{ font: 13px system-ui, sans-serif; fill: #333 }}
.grid {{ stroke: #ddd }}
{colors(0)}
path.line {{ fill: none; stroke-width: 2.5 }}
text.label {{ stroke: none }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #ddd }}
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

    def x(number: int) -> float:
        return LEFT + (math.log(number) - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - rate / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{title}</title><style>{STYLE}</style>",
    ]
    for rate in range(0, top + 1, step):
        parts.append(
            f'<path class="grid" d="M{LEFT} {y(rate):.1f}H{WIDTH - RIGHT}"/>'
            f'<text x="{LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:,}</text>'
        )
    for number in connections:
        parts.append(
            f'<text x="{x(number):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">'
            f"{number:,}</text>"
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        "connections (requests per second, HTTP/1.1 keep-alive)</text>"
    )
    taken: list[float] = []
    for name, line in sorted(rates.items(), key=lambda item: -item[1][connections[-1]]):
        kind = f"line{list(COLORS).index(name)}"
        points = [f"{x(number):.1f} {y(rate):.1f}" for number, rate in sorted(line.items())]
        label = y(line[connections[-1]]) + 4
        while any(abs(label - other) < 16 for other in taken):
            label += 1
        taken.append(label)
        parts.append(f'<path class="line {kind}" d="M{"L".join(points)}"/>')
        parts += [
            f'<circle class="{kind}" cx="{point.split()[0]}" cy="{point.split()[1]}" r="3"/>'
            for point in points
        ]
        parts.append(
            f'<text class="label {kind}" x="{WIDTH - RIGHT + 10}" y="{label:.1f}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])
