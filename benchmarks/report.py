"""The tables in plain text, and the same as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.goals import Goal, Results
from benchmarks.measure import Cell, Failure, Timing
from benchmarks.rows import ALL, ROWS

HEADS = {"ours": "[ours]", "pool": "mp.Pool", "futures": "c.futures"}
VERDICTS = {True: "met", False: "NOT met", None: "-"}


def number(ms: float) -> str:
    """Three digits, whatever the size."""
    if ms >= 100:
        return f"{ms:,.0f}"
    return f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}" if ms >= 0.1 else f"{ms:.3f}"


def shown(cell: Cell) -> str:
    """One cell: the median, with an asterisk where a single run had to do."""
    if isinstance(cell, Failure):
        return cell.word
    return number(cell.median) + "*" * cell.single


def joined(phases: Mapping[str, Cell]) -> str:
    """All phases of a contestant in one row: "first / repeated"; once where they do not differ."""
    return " / ".join(dict.fromkeys(shown(cell) for cell in phases.values()))


def aligned(lines: Sequence[Sequence[str]]) -> Iterator[str]:
    """Pad every column to its widest cell; the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        padded = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *padded)).rstrip()


def table(results: Results, peers: Iterable[str]) -> Iterator[str]:
    """The rows that were run, one column for each contestant, and the odd ones below."""
    columns = [name for name in ALL if name in set(peers)]
    lines = [["milliseconds, 4 workers", *(HEADS.get(name, name) for name in columns)]]
    notes = []
    for row in ROWS:
        if row.key not in results.rows:
            continue
        cells = results.rows[row.key]
        names = (joined(cells[name]) if name in cells else "-" for name in columns)
        lines.append([f"{row.key} {row.title}", *names])
        others = [name for name in cells if name not in ALL]
        notes += [f"  row {row.key}, {name}: {joined(cells[name])}" for name in others]
    if len(lines) > 1:
        yield from aligned(lines)
        yield from notes


def extras(results: Results) -> Iterator[str]:
    """Imports, publishing, the check of an unchanged array, memory."""
    if results.imports:
        base, mine = (shown(results.imports[name]) for name in ("base", "ours"))
        yield f"import numpy, pydantic, wrapt: {base} ms; import sharedtask: {mine} ms"
    for mib, cells in results.publishing.items():
        each = (f"{name} {shown(cell)} ms{speed(mib, cell)}" for name, cell in cells.items())
        yield f"publish {mib} MB: " + "; ".join(each)
    if isinstance(results.unchanged, Failure):
        yield f"unchanged 512 MB array: {results.unchanged.word}"
    elif results.unchanged:
        check, memcmp = (number(results.unchanged[name]) for name in ("check", "memcmp"))
        yield f"unchanged 512 MB array: the check adds {check} ms; memcmp of it {memcmp} ms"
    if results.memory:
        grown = (f"{name} {grows(value)}" for name, value in results.memory.items())
        yield "memory while 4 workers hold 256 MB, over those 256 MB: " + "; ".join(grown)


def speed(mib: int, cell: Cell) -> str:
    """Bytes per second, in brackets, where there is a time."""
    if isinstance(cell, Failure):
        return ""
    return f" ({(mib << 20) / cell.median / 1e6:.1f} GB/s)"


def grows(value: float | Failure) -> str:
    return value.word if isinstance(value, Failure) else f"{value:.2f}x"


def verdicts(goals: Sequence[Goal]) -> Iterator[str]:
    """One line for each goal."""
    yield from aligned(
        [
            ["goal", "", "measured", ""],
            *(
                [f"{goal.work}: {goal.goal}", "", goal.measured, VERDICTS[goal.met]]
                for goal in goals
            ),
        ]
    )


def failures(results: Results) -> Iterator[str]:
    """What lies behind each error in a cell."""
    for row, cells in results.rows.items():
        for name, phases in cells.items():
            for cell in dict.fromkeys(phases.values()):
                if isinstance(cell, Failure) and cell.detail:
                    yield f"row {row}, {name}: {cell.word}: {cell.detail.splitlines()[0]}"


def as_json(results: Results, goals: Sequence[Goal], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, versions and all figures; milliseconds unless the name says otherwise."""
    titles = {row.key: row.title for row in ROWS}
    return {
        "machine": dict(machine),
        "seconds": round(results.seconds, 1),
        "rows": {
            row: {"title": titles[row], **{name: figures(each) for name, each in cells.items()}}
            for row, cells in results.rows.items()
        },
        "imports": figures(results.imports),
        "publish": {str(mib): figures(cells) for mib, cells in results.publishing.items()},
        "unchanged_512_mb": plain(results.unchanged),
        "memory_over_256_mb": {name: plain(value) for name, value in results.memory.items()},
        "goals": [asdict(goal) for goal in goals],
    }


def figures(cells: Mapping[str, Cell]) -> dict[str, Any]:
    return {name: plain(cell) for name, cell in cells.items()}


def plain(value: Any) -> Any:
    """A timing as its median, least and runs; a failure as its words; the rest as it is."""
    if isinstance(value, Timing):
        runs = [[round(ms, 4) for ms in turn] for turn in value.turns]
        return {"median": round(value.median, 4), "least": round(value.least, 4), "turns": runs}
    if isinstance(value, Failure):
        return {"failed": value.word, "detail": value.detail}
    return value
