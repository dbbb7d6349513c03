"""The picture of the landing page: time and memory of one job, a bar for each way to do it.

``python -m benchmarks.picture`` draws ``docs/img/main-light.svg`` and ``main-dark.svg`` from
``benchmarks/results/main.json``. ``--check`` only tells whether they are up to date. ``--figures
FILE`` takes new results from ``python -m benchmarks --rows 3,ray3,memory,raymemory --json FILE``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "main.json"
PICTURE = str(ROOT / "docs" / "img" / "main-{}.svg")

# In the picture from top to bottom; Ray by hand: one put, the best number of chunks.
WAYS = {
    "pool": "multiprocessing.Pool",
    "futures": "concurrent.futures",
    "joblib": "joblib",
    "mpire kept": "mpire, forked",
    "ray": "Ray, by hand",
    "ours": "sharedtask",
}
SCHEMES = {
    "light": {"text": "#263238", "faint": "#607d8b", "line": "#cfd8dc", "bar": "#90a4ae"},
    "dark": {"text": "#eceff1", "faint": "#b0bec5", "line": "#455a64", "bar": "#78909c"},
}
OURS = {"light": "#00796b", "dark": "#4db6ac"}
LEFT, TOP, STEP, WIDTH, GAP = 170, 62, 30, 200, 70  # pixels
LEAST, DECADES = 0.1, 6  # the first axis: from 0.1 ms to 100 s
MOST = 6.0  # the second axis: sizes of the value


def condensed(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Of what ``python -m benchmarks --json`` has measured, what the picture shows."""
    times = {name: repeated(cell) for name, cell in figures["rows"]["3"].items() if name in WAYS}
    by_hand = [
        found
        for name, cell in figures["rows"]["ray3"].items()
        if name not in ("title", "by value") and not name.startswith("ours")
        if isinstance(found := repeated(cell), float)
    ]
    memory = dict(figures["memory_over_256_mb"])
    memory["ray"] = figures["ray_memory_over_32_mb"].get("4 chunks")
    kept = ("date", "cpus", "python")
    return {
        "machine": {key: figures["machine"][key] for key in kept},
        "ms": {**times, "ray": min(by_hand, default=None)},
        "memory": {name: plain(memory.get(name)) for name in WAYS},
    }


def repeated(cell: Mapping[str, Any]) -> float | None:
    found: float | None = cell["repeated"].get("median")
    return found


def plain(value: Any) -> float | None:
    return max(round(value, 2), 0.0) if isinstance(value, float) else None


def drawn(results: Mapping[str, Any], scheme: str) -> str:
    """The picture, for a light or a dark page."""
    ink = SCHEMES[scheme]
    width, height = LEFT + 2 * WIDTH + GAP + 40, TOP + STEP * len(WAYS) + 40
    title = "; ".join(spoken(results))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" role="img" aria-labelledby="title">'
    )
    return "\n".join(
        [
            head,
            f'  <title id="title">{title}</title>',
            text(LEFT, 20, "time of a repeated call", ink["text"], weight=600),
            text(LEFT, 40, "logarithmic", ink["faint"], size=12),
            text(LEFT + WIDTH + GAP, 20, "memory of all processes", ink["text"], weight=600),
            text(LEFT + WIDTH + GAP, 40, "growth, in sizes of the value", ink["faint"], size=12),
            *(line for at, name in enumerate(WAYS) for line in row(results, name, at, scheme)),
            text(LEFT, height - 12, footnote(results), ink["faint"], size=12),
            "</svg>",
            "",
        ]
    )


def row(results: Mapping[str, Any], name: str, place: int, scheme: str) -> Iterator[str]:
    """A way: its name and its two bars."""
    ink, y = SCHEMES[scheme], TOP + STEP * place
    ours = name == "ours"
    bar = OURS[scheme] if ours else ink["bar"]
    weight = 700 if ours else 400
    yield text(LEFT - 10, y + 14, WAYS[name], ink["text"], weight=weight, anchor="end")
    for left, long, told in (
        (LEFT, time_bar(results["ms"][name]), time(results["ms"][name])),
        (LEFT + WIDTH + GAP, memory_bar(results["memory"][name]), size(results["memory"][name])),
    ):
        yield f'  <rect x="{left}" y="{y}" width="{long:.1f}" height="20" rx="2" fill="{bar}"/>'
        yield text(left + long + 6, y + 15, told, ink["text"], weight=weight, size=13)


def time_bar(ms: float | None) -> float:
    return 0.0 if ms is None else WIDTH * math.log10(ms / LEAST) / DECADES


def memory_bar(sizes: float | None) -> float:
    return WIDTH * max(sizes or 0.0, 0.0) / MOST


def time(ms: float | None) -> str:
    if ms is None:
        return "not measured"
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.2g} ms"


def size(sizes: float | None) -> str:
    return "not measured" if sizes is None else f"{sizes:.2f}x"


def spoken(results: Mapping[str, Any]) -> Iterator[str]:
    """The picture in words, for readers who do not see it."""
    for name, way in WAYS.items():
        yield f"{way}: {time(results['ms'][name])}, memory {size(results['memory'][name])}"


def footnote(results: Mapping[str, Any]) -> str:
    work = "32 items over an array of 256 MB (Ray's memory: 32 MB)"
    return f"{work}, 4 workers on {results['machine']['cpus']} cores"


def text(
    x: float,
    y: float,
    words: str,
    fill: str,
    *,
    weight: int = 400,
    size: int = 14,
    anchor: str = "",
) -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    return (
        f'  <text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-weight="{weight}" '
        f'font-size="{size}"{where}>{words}</text>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, tell")
    parser.add_argument("--figures", type=Path, metavar="FILE", help="new results, as JSON")
    asked = parser.parse_args()
    if asked.figures:
        found = condensed(json.loads(asked.figures.read_text()))
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    results = json.loads(RESULTS.read_text())
    for scheme in SCHEMES:
        path, picture = Path(PICTURE.format(scheme)), drawn(results, scheme)
        if asked.check and path.read_text() != picture:
            sys.exit(f"{path.name} is behind {RESULTS.name}")
        path.write_text(picture)


if __name__ == "__main__":
    main()
