"""Draw the four ways to use one array together: ``python patterns.py out.svg``."""

import sys
from pathlib import Path

FIRST, SECOND, BOTH, PLAIN = "#80cbc4", "#ffd54f", "#ef9a9a", "#eceff1"
CELLS, CELL, PANEL = 8, 22, 236


def cells(x: float, y: float, colours: list[str], size: float = CELL) -> str:
    """A row of cells."""
    return "".join(
        f'<rect x="{x + k * size:g}" y="{y:g}" width="{size:g}" height="{size:g}"'
        f' fill="{colour}" stroke="#607d8b"/>'
        for k, colour in enumerate(colours)
    )


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line with a tip at its end."""
    return f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" class="line" marker-end="url(#tip)"/>'


def text(x: float, y: float, words: str, kind: str = "small") -> str:
    """Words, centred."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{words}</text>'


def worker(x: float, colour: str, below: str) -> str:
    """A worker, and what it does."""
    box = f'<rect x="{x - 40:g}" y="150" width="80" height="34" rx="6" fill="{colour}"'
    return f'{box} stroke="#455a64"/>' + text(x, 172, "worker") + text(x, 204, below)


def panel(number: int, name: str, colours: list[str], parts: list[str], rule: str) -> str:
    """One way: its name, the array, the workers, and the rule below."""
    body = text(103, 28, name, "name") + cells(15, 48, colours) + "".join(parts)
    return f'<g transform="translate({20 + PANEL * number} 12)">{body}{text(103, 240, rule)}</g>\n'


LEFT, RIGHT = 50, 156
SHARED = [
    arrow(80, 74, LEFT, 144),
    arrow(126, 74, RIGHT, 144),
    worker(LEFT, FIRST, "reads"),
    worker(RIGHT, SECOND, "reads"),
]
PARTITIONED = [
    arrow(LEFT, 148, 59, 76),
    arrow(RIGHT, 148, 147, 76),
    worker(LEFT, FIRST, "writes its own"),
    worker(RIGHT, SECOND, "writes its own"),
]
REDUCED = [
    cells(15, 116, [FIRST] * 8, 8.75),
    cells(121, 116, [SECOND] * 8, 8.75),
    arrow(LEFT, 148, LEFT, 130),
    arrow(RIGHT, 148, RIGHT, 130),
    arrow(LEFT, 112, 92, 76),
    arrow(RIGHT, 112, 114, 76),
    text(103, 104, "+", "name"),
    worker(LEFT, FIRST, "adds to its own"),
    worker(RIGHT, SECOND, "adds to its own"),
]
PADLOCK = (
    '<rect x="94" y="104" width="18" height="14" rx="2" fill="#455a64"/>'
    '<path d="M98 104v-5a5 5 0 0 1 10 0v5" class="line"/>'
)
LOCKED = [
    arrow(LEFT, 148, 81, 76),
    arrow(RIGHT, 148, 125, 76),
    PADLOCK,
    worker(LEFT, FIRST, "write()"),
    worker(RIGHT, SECOND, "write()"),
]

PANELS = [
    panel(0, "Shared", [PLAIN] * 8, SHARED, "no task writes"),
    panel(1, "Partitioned", [FIRST] * 4 + [SECOND] * 4, PARTITIONED, "no overlap, no lock"),
    panel(2, "Reduced", [PLAIN] * 8, REDUCED, "combined at the end"),
    panel(3, "Locked", [FIRST] * 2 + [BOTH] * 4 + [SECOND] * 2, LOCKED, "overlap: in turns"),
]

Path(sys.argv[1]).write_text(f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 272" font-family="system-ui, sans-serif"
     role="img" aria-labelledby="title">
<title id="title">Shared, Partitioned, Reduced and Locked: which task may write where</title>
<defs>
<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7"
        orient="auto">
<path d="M0 0 10 5 0 10z" fill="#455a64"/></marker>
<style>
.small {{ font-size: 13px; fill: #455a64; text-anchor: middle; }}
.name {{ font-size: 16px; font-weight: 600; text-anchor: middle; }}
.line {{ stroke: #455a64; fill: none; }}
</style>
</defs>
<rect width="960" height="272" rx="10" fill="#fafafa"/>
{"".join(PANELS)}</svg>
""")
