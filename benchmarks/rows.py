"""The rows of the first table: which job, which contestants, and how each row is run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from benchmarks.contestants import missing
from benchmarks.measure import (
    CANNOT,
    NOT_INSTALLED,
    SLOW,
    Cell,
    Effort,
    Failure,
    HostError,
    Timing,
    hosting,
    race,
)
from benchmarks.work import jobs

ALL = ("serial", "pool", "futures", "joblib", "mpire", "mpire kept", "floor", "ours")
OURS_TOO = ("ours identity", "ours share()")
CALLERS = ("serial", "pool", "futures", "joblib", "floor", "ours", "floor future")
FROM_NOTHING = ("pool", "futures", "joblib", "mpire", "floor", "ours", "floor fork")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: its cells are keyed by contestant, then by "first" or "repeated"."""

    key: str
    title: str
    job: str
    how: Callable[[Row, Effort, Collection[str]], Cells]
    contestants: tuple[str, ...] = ALL
    warm_mib: int = 0  # what one run of a contestant takes anew
    hopeless: tuple[str, ...] = ()  # these need seconds for each run: not in a quick one

    def run(self, effort: Effort, peers: Collection[str]) -> Cells:
        left_out = () if effort.hopeless else self.hopeless
        names = [name for name in self.contestants if name in peers]
        cells = self.how(self, effort, [name for name in names if name not in left_out])
        slow: Cells = {name: {"repeated": SLOW} for name in names if name in left_out}
        return {**cells, **slow}


Cells = Mapping[str, Mapping[str, Cell]]


def repeated(row: Row, effort: Effort, peers: Collection[str]) -> Cells:
    """The same job over the same value again and again."""
    with race(effort, warm_mib=row.warm_mib) as running:
        for name in peers:
            running.enter(name, row.job)
        return by_phase({"repeated": running.run()})


def first_and_repeated(row: Row, effort: Effort, peers: Collection[str]) -> Cells:
    """The job over values never seen before, then over the last of them again and again."""
    with race(effort) as running:
        for name in peers:
            running.enter(name, row.job)
        first: Mapping[str, Cell] = {**running.checked, **running.cells}
        if effort.firsts:
            running.warm_mib = row.warm_mib
            first = running.run("first", turns=effort.firsts)
            running.warm_mib = 0
        return by_phase({"first": first, "repeated": running.run()})


def there_and_back(row: Row, effort: Effort, peers: Collection[str]) -> Cells:
    """One submit and its result, one after the other."""
    count = len(jobs()[row.job].items)
    with race(effort, calls=True) as running:
        for name in peers:
            running.enter(name, row.job)
        cells = running.run()
    each = {
        name: cell if isinstance(cell, Failure) else cell.per(count) for name, cell in cells.items()
    }
    return by_phase({"repeated": {**dict.fromkeys(ALL, CANNOT), **each}})


def from_nothing(_row: Row, effort: Effort, peers: Collection[str]) -> Cells:
    """The first results of a fresh process, each run in a new one."""
    spent: dict[str, list[tuple[float, ...]]] = {name: [] for name in peers}
    cells: dict[str, Cell] = {name: NOT_INSTALLED for name in peers if missing(name)}
    for _ in range(effort.turns):
        for name in peers:
            if name in cells:
                continue
            try:
                with hosting(name) as host:
                    spent[name].append(tuple(host.ask("fresh", limit=60.0)["ms"]))
            except HostError as error:
                cells[name] = error.failure
    timings = {name: Timing(tuple(turns)) for name, turns in spent.items() if turns}
    return by_phase({"repeated": {**dict.fromkeys(ALL, CANNOT), **timings, **cells}})


def by_phase(phases: Mapping[str, Mapping[str, Cell]]) -> Cells:
    """Turn phase -> contestant -> cell into contestant -> phase -> cell."""
    names = dict.fromkeys(name for cells in phases.values() for name in cells)
    return {
        name: {phase: cells[name] for phase, cells in phases.items() if name in cells}
        for name in names
    }


ROWS = (
    Row("1", "100 items, 8 MB model dict", "model-100", repeated),
    Row("2", "2,000 items, same model", "model-2000", repeated),
    Row(
        "3",
        "32 items, 256 MB array: first / repeated",
        "array",
        first_and_repeated,
        warm_mib=768,
        hopeless=("pool", "futures"),
    ),
    Row(
        "4",
        "200 lookups, dict of 1,000,000: first / repeated",
        "words",
        first_and_repeated,
        (*ALL, *OURS_TOO),
        warm_mib=768,
        hopeless=("pool", "futures", "joblib"),
    ),
    Row("5", "100,000 trivial items", "trivial", repeated),
    Row("6", "50 results of 8 MB", "blocks", repeated, warm_mib=768, hopeless=("pool", "joblib")),
    Row("7", "first result of a fresh process", "first", from_nothing, FROM_NOTHING),
    Row("8", "one submit, there and back", "submit", there_and_back, CALLERS),
)
