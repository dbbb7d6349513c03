"""The tables in plain text, and the same as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.goals import Goal, Results
from benchmarks.kinds_rows import COLUMNS as KINDS_COLUMNS
from benchmarks.kinds_rows import KIND_ROWS, KindRow, KindsResults, Network
from benchmarks.kinds_work import left_out
from benchmarks.measure import Cell, Failure, Timing, ratio
from benchmarks.ray_rows import BY_HAND, COLUMNS, MEMORY_MIB, RAY_ROWS, RayRow
from benchmarks.rows import ALL, ROWS, Cells, Row
from benchmarks.writing_rows import BY_HAND as WRITTEN_BY_HAND
from benchmarks.writing_rows import COLUMNS as WRITERS
from benchmarks.writing_rows import (
    MEMORY_JOBS,
    TRAVELS,
    WRITING_ROWS,
    Growth,
    WritingResults,
    WritingRow,
)

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
    yield from side_by_side("milliseconds, 4 workers", columns, ROWS, results.rows, ALL)


def ray_table(results: Results) -> Iterator[str]:
    """The same for the rows on Ray."""
    head = "milliseconds, Ray, 4 workers"
    yield from side_by_side(head, COLUMNS, RAY_ROWS, results.ray, COLUMNS)


def writing_table(results: Results) -> Iterator[str]:
    """The same for the rows in which tasks write."""
    head = "milliseconds, 4 workers, writing"
    yield from side_by_side(head, WRITERS, WRITING_ROWS, results.writing.rows, WRITERS)


def kinds_table(results: Results) -> Iterator[str]:
    """The same for the kinds of values; and by how much a worker grows that holds one."""
    found, head = results.kinds, "milliseconds, 4 workers, first / repeated"
    yield from side_by_side(head, KINDS_COLUMNS, KIND_ROWS, found.rows, KINDS_COLUMNS)
    if found.private:
        yield ""
        yield from aligned(list(private_lines(found)))
        yield from left_out()


def private_lines(found: KindsResults) -> Iterator[list[str]]:
    present = {name for each in found.private.values() for name in each}
    names = [name for name in KINDS_COLUMNS if name in present]
    yield ["a worker's own memory, MB more", *(HEADS.get(name, name) for name in names)]
    for row in KIND_ROWS:
        if row.key in found.private:
            grown = found.private[row.key]
            yield [row.title, *(megabytes(grown[n]) if n in grown else "-" for n in names)]


def megabytes(value: float | Failure) -> str:
    return value.word if isinstance(value, Failure) else f"{max(value, 0.0) / 1e6:.1f}"


def kinds_extras(results: Results) -> Iterator[str]:
    """The network of torch."""
    ran = results.kinds.network
    if isinstance(ran, Failure):
        yield f"torch network of 200 MB: {ran.word}"
    elif isinstance(ran, Network):
        bits = "the same bits" if ran.bits else "other bits"
        yield (
            f"torch network of 200 MB in 4 workers: memory grows by {ran.grows:.2f} of that; "
            f"{bits} as serial with one thread, {ran.relative:.1g} of the largest result apart "
            "from all threads"
        )


def side_by_side(
    head: str,
    columns: Sequence[str],
    rows: Iterable[Row | RayRow | WritingRow | KindRow],
    found: Mapping[str, Cells],
    known: Collection[str],
) -> Iterator[str]:
    """The rows that were found, and below them the contestants that have no column."""
    lines = [[head, *(HEADS.get(name, name) for name in columns)]]
    notes = []
    for row in rows:
        if row.key not in found:
            continue
        cells = found[row.key]
        names = (joined(cells[name]) if name in cells else "-" for name in columns)
        lines.append([f"{row.key} {row.title}", *names])
        others = [name for name in cells if name not in known]
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


def ray_extras(results: Results) -> Iterator[str]:
    """What sharing brings on Ray, Ray's start, memory."""
    mine = results.cell("ray1", "ours")
    for name in ("by value", "ours by value"):
        times = ratio(results.cell("ray1", name), mine)
        if times is not None:
            yield f"ray1: {name} takes {times:.3g} times as long as ours"
    for row in results.ray:
        best = results.fastest(row, BY_HAND)
        times = ratio(results.cell(row, "ours"), results.cell(row, best))
        if times is not None:
            yield f"{row}: ours takes {times:.3g} times as long as the best by hand, {best}"
    if results.ray_start:
        init, *firsts = (f"{name} {shown(cell)} ms" for name, cell in results.ray_start.items())
        yield f"start of Ray: {init}; then the first four results: " + ", ".join(firsts)
    if results.ray_memory:
        grown = (f"{name} {grows(value)}" for name, value in results.ray_memory.items())
        over = f"memory while 4 workers of Ray hold {MEMORY_MIB} MB, over those {MEMORY_MIB} MB: "
        yield over + "; ".join(grown)


def writing_extras(results: Results) -> Iterator[str]:
    """Ours beside the best by hand, what travels, memory, locks, the check for overlap."""
    found = results.writing
    for row in found.rows:
        best = results.fastest(row, WRITTEN_BY_HAND)
        times = ratio(results.cell(row, "ours"), results.cell(row, best))
        if times is not None:
            yield f"{row}: ours takes {times:.3g} times as long as the best by hand, {best}"
    for job, each in found.travel.items():
        sent = (f"{name} {size_of(value)}" for name, value in each.items())
        yield f"bytes that travel, {TRAVELS[job]}: " + "; ".join(sent)
    yield from writing_memory(found)
    if found.locks:
        taken = (f"{name} {micros(cell)} us" for name, cell in found.locks.items())
        yield "one lock that nobody else wants: " + "; ".join(taken)
    if found.overlaps:
        seen = (f"{what} {shown(cell)} ms" for what, cell in found.overlaps.items())
        yield "to see that blocks are apart: " + "; ".join(seen)


def writing_memory(found: WritingResults) -> Iterator[str]:
    """Of each contestant, how much memory it took."""
    for job, each in found.memory.items():
        grown = (f"{name} {grows_to(value)}" for name, value in each.items())
        over = f"memory, {MEMORY_JOBS[job]}, over that size, while it runs / for good: "
        yield over + "; ".join(grown)


def grows_to(value: Growth | Failure) -> str:
    if isinstance(value, Failure):
        return value.word
    return f"{value.during:.2f}x / {value.stays:.2f}x"


def size_of(value: float | Failure) -> str:
    return value.word if isinstance(value, Failure) else f"{value:,.0f}"


def micros(cell: Cell) -> str:
    return cell.word if isinstance(cell, Failure) else number(1000 * cell.median)


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
    for row, cells in results.tables.items():
        for name, phases in cells.items():
            for cell in dict.fromkeys(phases.values()):
                if isinstance(cell, Failure) and cell.detail:
                    yield f"row {row}, {name}: {cell.word}: {cell.detail.splitlines()[0]}"


def as_json(results: Results, goals: Sequence[Goal], machine: Mapping[str, Any]) -> dict[str, Any]:
    """Machine, versions and all figures; milliseconds unless the name says otherwise."""
    rows = (*ROWS, *RAY_ROWS, *WRITING_ROWS, *KIND_ROWS)
    titles = {row.key: row.title for row in rows}
    return {
        "machine": dict(machine),
        "seconds": round(results.seconds, 1),
        "rows": {
            row: {"title": titles[row], **{name: figures(each) for name, each in cells.items()}}
            for row, cells in results.tables.items()
        },
        "ray_start": figures(results.ray_start),
        "ray_memory_over_32_mb": {n: plain(value) for n, value in results.ray_memory.items()},
        "imports": figures(results.imports),
        "publish": {str(mib): figures(cells) for mib, cells in results.publishing.items()},
        "unchanged_512_mb": plain(results.unchanged),
        "memory_over_256_mb": {name: plain(value) for name, value in results.memory.items()},
        "writing": writing_json(results.writing),
        "kinds": kinds_json(results.kinds),
        "goals": [asdict(goal) for goal in goals],
    }


def writing_json(found: WritingResults) -> dict[str, Any]:
    """What stands below the third table; memory in sizes of the array."""
    return {
        "bytes": {job: dict(plain_all(each)) for job, each in found.travel.items()},
        "memory": {job: dict(plain_all(each)) for job, each in found.memory.items()},
        "locks": figures(found.locks),
        "overlap": figures(found.overlaps),
    }


def kinds_json(found: KindsResults) -> dict[str, Any]:
    """Bytes of a worker's own memory, and the network of torch."""
    ran = found.network
    return {
        "private": {key: dict(plain_all(each)) for key, each in found.private.items()},
        "network": asdict(ran) if isinstance(ran, Network) else plain(ran),
    }


def plain_all(each: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in each.items():
        yield name, asdict(value) if isinstance(value, Growth) else plain(value)


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
