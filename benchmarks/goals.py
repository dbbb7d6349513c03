"""The goals that the library answers to: each with what was measured, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.kinds_rows import (
    ALLOWANCE,
    BESIDE,
    KIND_ROWS,
    OURS,
    SIZE,
    KindRow,
    KindsResults,
    Network,
)
from benchmarks.measure import Cell, Failure, Timing, ratio
from benchmarks.ray_rows import BY_HAND, CHUNKED
from benchmarks.rows import Cells
from benchmarks.writing_rows import BLOCKS, MEMORY_JOBS, Growth, WritingResults
from benchmarks.writing_rows import BY_HAND as WRITTEN_BY_HAND

WARM_ROWS = {"1": "100 items", "2": "2,000 items", "3": "256 MB array"}
WARM_POOL = "Pool kept"
WARM = f"multiprocessing.Pool over shared_memory ({WARM_POOL})"
WRITTEN = {"writing1": "8 MB squared", "writing2": "800 MB squared", "writing3": "statistics"}
RAY_ARRAYS = {"ray1": "100 items", "ray2": "2,000 items", "ray3": "256 MB array"}


@dataclass(slots=True)
class Results:
    """Everything one run has measured."""

    rows: dict[str, Cells] = field(default_factory=dict)
    imports: Mapping[str, Cell] = field(default_factory=dict)
    publishing: Mapping[int, Mapping[str, Cell]] = field(default_factory=dict)
    unchanged: Mapping[str, float] | Failure | None = None
    memory: dict[str, float | Failure] = field(default_factory=dict)
    ray: dict[str, Cells] = field(default_factory=dict)
    ray_start: Mapping[str, Cell] = field(default_factory=dict)
    ray_memory: Mapping[str, float | Failure] = field(default_factory=dict)
    writing: WritingResults = field(default_factory=WritingResults)
    kinds: KindsResults = field(default_factory=KindsResults)
    seconds: float = 0.0

    @property
    def tables(self) -> Mapping[str, Cells]:
        """The rows of all tables."""
        return {**self.rows, **self.ray, **self.writing.rows, **self.kinds.rows}

    def cell(self, row: str, name: str, phase: str = "repeated") -> Cell:
        missing: Cell = Failure("not run")
        return self.tables.get(row, {}).get(name, {}).get(phase, missing)

    def fastest(self, row: str, names: Iterable[str], phase: str = "repeated") -> str:
        """Who has the least median of these; "" where nobody has any."""
        cells = {name: self.cell(row, name, phase) for name in names}
        times = {name: cell.median for name, cell in cells.items() if isinstance(cell, Timing)}
        return min(times, key=times.__getitem__, default="")


@dataclass(frozen=True, slots=True)
class Goal:
    """One line: ``met`` is None where nothing was measured, and ``measured`` says why."""

    work: str
    goal: str
    measured: str
    met: bool | None


def at_most(work: str, goal: str, value: float | None, limit: float, unit: str = "x") -> Goal:
    """A goal met by a value no larger than ``limit``."""
    if value is None:
        return Goal(work, goal, "not measured", None)
    return Goal(work, goal, f"{value:.3g}{unit}", value <= limit)


def at_least(work: str, goal: str, value: float | None, limit: float, unit: str = "x") -> Goal:
    """A goal met by a value no smaller than ``limit``."""
    if value is None:
        return Goal(work, goal, "not measured", None)
    return Goal(work, goal, f"{value:.3g}{unit}", value >= limit)


def goals(results: Results, machine: Mapping[str, Any]) -> Iterator[Goal]:
    """Every goal, in the order of the design."""
    yield from warm_maps(results)
    yield from words(results)
    yield from trivial(results)
    yield from submits(results)
    yield from starts(results)
    yield from publishes(results, collapse=machine["huge_pages_collapse"])
    yield from unchanged(results, tracking=machine["write_tracking"])
    yield held(results)
    yield from ray_arrays(results)
    yield from ray_words(results)
    yield from written(results)
    yield from written_memory(results.writing)
    yield from locked_and_apart(results.writing)
    for row in KIND_ROWS:
        if row.key in results.kinds.rows and row.kind.zero_copy:
            yield from without_copy(row, results)
    yield from network(results.kinds)


def warm_maps(results: Results) -> Iterator[Goal]:
    for row, title in WARM_ROWS.items():
        work = f"warm map, {title}"
        mine = results.cell(row, "ours")
        yield at_most(work, "<= 2x floor", ratio(mine, results.cell(row, "floor")), 2)
        joblib, kept = results.cell(row, "joblib"), results.cell(row, "mpire kept")
        yield at_least(work, ">= 15x faster than joblib", ratio(joblib, mine), 15)
        yield at_least(work, ">= 5x faster than mpire, pool kept", ratio(kept, mine), 5)


def words(results: Results) -> Iterator[Goal]:
    work, floor = "dict of 1,000,000, repeated", results.cell("4", "floor")
    for name, how in (("ours share()", "share() handle"), ("ours identity", "identity")):
        mine = results.cell("4", name)
        yield at_most(work, f"{how}: <= 2x floor", ratio(mine, floor), 2)
    mine = results.cell("4", "ours")
    yield at_most(work, "content verified: <= 300 ms", milliseconds(mine), 300, " ms")


def trivial(results: Results) -> Iterator[Goal]:
    work, mine = "100,000 trivial items", results.cell("5", "ours")
    yield at_most(work, "<= 1.5x Pool.map", ratio(mine, results.cell("5", "pool")), 1.5)
    yield at_least(work, ">= 10x faster than joblib", ratio(results.cell("5", "joblib"), mine), 10)


def submits(results: Results) -> Iterator[Goal]:
    work, mine = "one submit, there and back", results.cell("8", "ours")
    yield at_most(work, "<= 2x floor", ratio(mine, results.cell("8", "floor")), 2)
    futures, promised = results.cell("8", "futures"), results.cell("8", "floor future")
    yield at_most(work, "<= 2x floor with a future", ratio(mine, promised), 2)
    yield at_least(work, "faster than concurrent.futures", ratio(futures, mine), 1)


def starts(results: Results) -> Iterator[Goal]:
    mine, floor = results.cell("7", "ours"), results.cell("7", "floor")
    yield at_most("first result, fresh process", "<= 1.5x floor", ratio(mine, floor), 1.5)
    work, goal = "import sharedtask", "<= numpy + pydantic + wrapt + 30 ms"
    base, full = (milliseconds(results.imports.get(name)) for name in ("base", "ours"))
    more = None if base is None or full is None else full - base
    yield at_most(work, goal, more, 30, " ms more")


def publishes(results: Results, *, collapse: bool) -> Iterator[Goal]:
    for mib, cells in results.publishing.items():
        work = f"publish {mib} MB"
        mine = cells.get("ours", Failure("not run"))
        slower = ratio(mine, cells.get("floor", Failure("not run")))
        yield at_most(work, "never slower than pwrite: <= 1x its time", slower, 1)
        spent = milliseconds(mine)
        speed = None if spent is None else (mib << 20) / spent / 1e6
        if collapse:
            yield at_least(work, ">= 4 GB/s", speed, 4, " GB/s")


def unchanged(results: Results, *, tracking: bool) -> Iterator[Goal]:
    work, found = "unchanged 512 MB, content verified", results.unchanged
    check = found["check"] if isinstance(found, Mapping) else None
    if tracking:
        yield at_most(work, "<= 2 ms with write tracking", check, 2, " ms")
        return
    share = found["check"] / found["memcmp"] if isinstance(found, Mapping) else None
    yield at_most(work, "<= 1.3x memcmp", share, 1.3)


def held(results: Results) -> Goal:
    mine = results.memory.get("ours")
    value = mine if isinstance(mine, float) else None
    return at_most("256 MB in 4 workers", "memory grows by <= 1.05x", value, 1.05)


def ray_arrays(results: Results) -> Iterator[Goal]:
    for row, title in RAY_ARRAYS.items():
        for phase in ("first", "repeated") if row == "ray3" else ("repeated",):
            best = results.fastest(row, BY_HAND, phase)
            value = ratio(results.cell(row, "ours", phase), results.cell(row, best, phase))
            work = f"Ray, {title}, {phase}"
            yield at_most(work, f"<= 1x the best by hand ({best or '-'})", value, 1)


def ray_words(results: Results) -> Iterator[Goal]:
    work, best = "Ray, dict of 1,000,000, repeated", results.fastest("ray4", CHUNKED)
    by_hand = results.cell("ray4", best)
    for name, how in (("ours share()", "share() handle"), ("ours identity", "identity")):
        value = ratio(by_hand, results.cell("ray4", name))
        goal = f"{how}: >= 100x faster than tasks by hand ({best or '-'})"
        yield at_least(work, goal, value, 100)


def written(results: Results) -> Iterator[Goal]:
    for row, work in WRITTEN.items():
        best = results.fastest(row, WRITTEN_BY_HAND)
        for goal, beside in ((WARM, WARM_POOL), (f"the best by hand ({best or '-'})", best)):
            value = ratio(results.cell(row, "ours"), results.cell(row, beside))
            yield at_most(work, f"<= 1.1x {goal}", value, 1.1)


def written_memory(found: WritingResults) -> Iterator[Goal]:
    for job, work in MEMORY_JOBS.items():
        mine = found.memory.get(job, {}).get("ours")
        value = mine.stays if isinstance(mine, Growth) else None
        yield at_most(work, "the array once: memory grows by <= 1.05x", value, 1.05)


def locked_and_apart(found: WritingResults) -> Iterator[Goal]:
    spent = milliseconds(found.locks.get("ours"))
    micros = None if spent is None else 1000 * spent
    yield at_most("one write under a lock nobody wants", "<= 10 us", micros, 10, " us")
    for what in BLOCKS:
        check = milliseconds(found.overlaps.get(what))
        yield at_most(f"{what} are apart", "<= 100 ms", check, 100, " ms")


def without_copy(row: KindRow, results: Results) -> Iterator[Goal]:
    work, grown = f"64 MB, {row.title}", results.kinds.private[row.key].get(OURS)
    share = 100 * max(0.0, grown - ALLOWANCE) / SIZE if isinstance(grown, float) else None
    yield at_most(work, "a worker's own memory: <= 1 % + 200 kB", share, 1, " %")
    times = ratio(results.cell(row.key, OURS), results.cell(row.key, BESIDE))
    yield at_most(work, "repeated: <= 2x a plain array", times, 2)


def network(found: KindsResults) -> Iterator[Goal]:
    work = "torch network of 200 MB, 4 workers"
    ran = found.network if isinstance(found.network, Network) else None
    yield at_most(work, "one copy: memory grows by <= 1.05x", ran and ran.grows, 1.05)
    if ran is not None:
        yield Goal(work, "results are serial's, bit for bit", "yes" if ran.bits else "no", ran.bits)


def milliseconds(cell: Cell | None) -> float | None:
    """The median, where there is one."""
    return cell.median if isinstance(cell, Timing) else None
