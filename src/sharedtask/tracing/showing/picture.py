"""A timeline as a picture of its own: SVG for pages, light or dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from sharedtask.text import duration
from sharedtask.tracing.records import Recorded

from . import columns
from .lanes import Lane, lanes
from .palette import Shade, in_order, shade

LEFT, WIDTH, STEP, TALL, KEY = 110, 680, 24, 18, 118  # pixels
INK = {"light": ("#263238", "#607d8b", "#f2f5f6"), "dark": ("#eceff1", "#b0bec5", "#263038")}
MARKS = {"death": "#e53935", "timeout": "#e53935", "error": "#e53935"}
OTHER_MARK = "#f9a825"


def timeline(recorded: Recorded, scheme: str, seconds: float | None = None) -> str:
    """The timeline of a run, over so many seconds, which makes two runs comparable."""
    whole = seconds or recorded.seconds
    shown = lanes(recorded)[1:]
    phases = in_order(p for lane in shown for bar in lane.bars for p, spent in bar.phases if spent)
    text, faint, _ground = INK[scheme]
    rows = -(-len(phases) // _in_a_row())
    height = STEP * (len(shown) + 1) + 20 * rows + 12
    told = f"{duration(recorded.in_calls)} in calls, efficiency {recorded.efficiency:.0%}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 10} {height}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img" fill="{faint}">'
    )
    parts = [
        head,
        f"<title>{escape(told)}</title>",
        f'<text x="{LEFT}" y="14" fill="{text}" font-weight="600">{escape(told)}</text>',
        f'<text x="{LEFT + WIDTH}" y="14" text-anchor="end">0 to {duration(whole)}</text>',
        *(line for at, lane in enumerate(shown) for line in _row(lane, at, whole, scheme)),
        *_legend(phases, STEP * (len(shown) + 1) + 14, scheme),
        "</svg>",
        "",
    ]
    return "\n".join(parts)


def _row(lane: Lane, at: int, seconds: float, scheme: str) -> Iterator[str]:
    y = STEP * (at + 1)
    yield f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(lane.name)}</text>'
    ground = INK[scheme][2]
    yield f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{TALL}" fill="{ground}"/>'
    scale = TALL / columns.HEIGHT
    yield f'<g transform="translate({LEFT} {y}) scale(1 {scale})">'
    for phase, d in columns.paths(lane.bars, seconds, WIDTH).items():
        if d:
            yield f'<path fill="{_colour(shade(phase), scheme)}" d="{d}"/>'
    yield "</g>"
    for mark in lane.marks:
        x = LEFT + mark.time / seconds * WIDTH
        fill = MARKS.get(mark.kind, OTHER_MARK)
        yield f'<path fill="{fill}" d="M{x - 4:.1f} {y}h8l-3 6v{TALL - 6}h-2v-{TALL - 6}z"/>'


def _in_a_row() -> int:
    return WIDTH // KEY


def _legend(phases: Sequence[str], top: float, scheme: str) -> Iterator[str]:
    for at, phase in enumerate(phases):
        x, y = LEFT + KEY * (at % _in_a_row()), top + 20 * (at // _in_a_row())
        colour = _colour(shade(phase), scheme)
        yield f'<rect x="{x}" y="{y - 10}" width="11" height="11" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 16}" y="{y}">{escape(phase)}</text>'


def _colour(shown: Shade, scheme: str) -> str:
    return shown.dark if scheme == "dark" else shown.light
