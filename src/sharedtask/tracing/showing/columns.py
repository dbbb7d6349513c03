"""Bars as paths: time is cut into columns, each stacks the phases by the share that they took.

A bar that is wider than a column is a block of its phases side by side; where a column has many
bars it shows what they did, so that a hundred thousand look right. ``page.js`` does the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from .lanes import Bar
from .palette import in_order

HEIGHT = 100  # of a full column


def paths(bars: Sequence[Bar], seconds: float, columns: int) -> dict[str, str]:
    """The ``d`` of a path for each phase; x is the number of the column."""
    shares = _shares(bars, seconds, columns)
    tops = [0.0] * columns
    return {phase: _path(shares[phase], tops) for phase in in_order(shares)}


def _shares(bars: Iterable[Bar], seconds: float, columns: int) -> dict[str, list[float]]:
    """Of each phase, its share of each column."""
    found: dict[str, list[float]] = {}
    scale = columns / seconds if seconds else 0.0
    for bar in bars:
        for phase, start, stop, weight in _pieces(bar):
            shares = found.setdefault(phase, [0.0] * columns)
            _add(shares, start * scale, stop * scale, weight)
    return found


def _pieces(bar: Bar) -> Iterator[tuple[str, float, float, float]]:
    """Phase, start, stop, and what part of that time it took."""
    at = bar.start
    for phase, seconds in bar.phases:
        if bar.parts == 1:
            yield phase, at, at + seconds, 1.0
            at += seconds
        elif bar.stop > bar.start:
            yield phase, bar.start, bar.stop, seconds / (bar.stop - bar.start)


def _add(shares: list[float], start: float, stop: float, weight: float) -> None:
    last = len(shares) - 1
    for column in range(max(int(start), 0), min(int(stop), last) + 1):
        shares[column] += weight * max(min(stop, column + 1) - max(start, column), 0.0)


def _path(shares: list[float], tops: list[float]) -> str:
    """Rectangles on top of what is stacked already; equal neighbours are one."""
    found: list[str] = []
    begun, drawn = 0, (0, 0)
    for column, share in enumerate([*shares, 0.0]):
        box = (0, 0)
        if column < len(tops):
            low, high = tops[column], min(tops[column] + share, 1.0)
            tops[column] = high
            box = round(low * HEIGHT), round(high * HEIGHT)
        if box == drawn and column < len(shares):
            continue
        if drawn[1] > drawn[0]:
            found.append(_box(begun, column, *drawn))
        begun, drawn = column, box
    return "".join(found)


def _box(left: int, right: int, low: int, high: int) -> str:
    return f"M{left} {HEIGHT - high}h{right - left}v{high - low}h{left - right}z"
