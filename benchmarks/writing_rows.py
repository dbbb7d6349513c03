"""The rows of the third table: sharedtask beside what one writes by hand, where tasks write."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from benchmarks.contestants import missing
from benchmarks.measure import (
    MEMORY,
    NOT_INSTALLED,
    SLOW,
    Cell,
    Effort,
    Failure,
    Host,
    HostError,
    Race,
    Timing,
)
from benchmarks.rows import Cells, by_phase
from benchmarks.writing_contestants import NAMED

BY_HAND = ("Pool.map", "Pool kept", "mp.Array", "shared_memory")
SENDERS = ("Queue", *BY_HAND, "ours plain", "ours")
COLUMNS = ("serial", *SENDERS)
ROUNDS = 3  # times the turns of the first table: a tenth more or less is what is asked
LOCKS = 10_000  # taken in one turn
BLOCKS = {"100,000 slices": {"slices": 100_000}, "10,000 tiles": {"tiles": 10_000}}
TRAVELS = {"square-1m": "squares of 8 MB", "statistics": "statistics of 16 MB"}
MEMORY_JOBS = {
    "square-100m": "squares of 800 MB",
    "statistics-256mb": "statistics of 256 MB",
    "histogram-256mb": "histogram of 256 MB",
}
WRITING_EXTRAS = ("writing5", "writing6", "writingtravel", "writingmemory")


class Room(Host):
    """A contestant's process; what it leaves in shared memory goes with it."""

    def __init__(self, name: str, *, tiny: bool = False) -> None:
        super().__init__(name, tiny=tiny, module="benchmarks.writing_host")

    def close(self, *, politely: bool = True) -> None:
        super().close(politely=politely)
        for block in MEMORY.glob(NAMED.format(pid=self.process.pid) + "*"):
            block.unlink(missing_ok=True)


@contextlib.contextmanager
def room(name: str, *, tiny: bool = False) -> Generator[Room]:
    """A contestant's process for the length of a ``with``."""
    host = Room(name, tiny=tiny)
    try:
        yield host
    except BaseException:
        host.close(politely=False)
        raise
    host.close()


@dataclass(frozen=True, slots=True)
class Growth:
    """How much all processes together grow with an array, in its sizes."""

    stays: float  # after some runs
    during: float  # while they run; the median, since no look sees all processes at one moment


@dataclass(slots=True)
class WritingResults:
    """Everything that this table and the lines below it are made of."""

    rows: dict[str, Cells] = field(default_factory=dict)
    travel: dict[str, Mapping[str, float | Failure]] = field(default_factory=dict)
    memory: dict[str, Mapping[str, Growth | Failure]] = field(default_factory=dict)
    locks: Mapping[str, Cell] = field(default_factory=dict)
    overlaps: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WritingRow:
    """One line of the table."""

    key: str
    title: str
    job: str
    contestants: tuple[str, ...] = COLUMNS
    needs_gib: int = 0  # of memory, for all contestants together
    hopeless: tuple[str, ...] = ()  # these need seconds for each run: not in a quick one

    def run(self, effort: Effort) -> Cells:
        """Give everybody their turns, side by side."""
        if os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < self.needs_gib << 30:
            too_little = Failure("memory", f"this row needs {self.needs_gib} GiB")
            return by_phase({"repeated": dict.fromkeys(self.contestants, too_little)})
        rounds = ROUNDS if effort.hopeless else 1
        race = Race(replace(effort, turns=effort.turns * rounds), host=Room)
        try:
            for name in self.runners(effort):
                race.enter(name, self.job)
            cells = race.run()
        finally:
            race.close()
        left_out: dict[str, Cell] = {n: SLOW for n in self.contestants if n not in cells}
        return by_phase({"repeated": {**left_out, **cells}})

    def runners(self, effort: Effort) -> list[str]:
        left_out = () if effort.hopeless else self.hopeless
        return [name for name in self.contestants if name not in left_out]


def travel(job: str) -> Mapping[str, float | Failure]:
    """How many bytes pass between the caller and its workers in one run."""
    return {name: asked(name, job, "travel", lambda found: found["bytes"]) for name in SENDERS}


def memory(effort: Effort, job: str) -> Mapping[str, Growth | Failure]:
    """How much each contestant's processes grow with the array."""
    seconds = 2.0 if effort.hopeless else 0.5
    names = SENDERS if effort.hopeless else ("shared_memory", "ours")
    return {
        name: asked(name, job, "memory", lambda found: Growth(**found), seconds=seconds)
        for name in names
    }


T = TypeVar("T")


def asked(name: str, job: str, do: str, read: Callable[[Any], T], **arguments: Any) -> T | Failure:
    """One command in a room of its own; a failure where there is no answer."""
    if missing(name):
        return NOT_INSTALLED
    try:
        with room(name) as host:
            host.ask("open")
            host.ask("load", job=job)
            return read(host.ask(do, **arguments))
    except HostError as error:
        return error.failure


def locks(effort: Effort) -> Mapping[str, Cell]:
    """One lock of multiprocessing, and one write under ours, with nobody else there."""
    spent: dict[str, list[tuple[float, ...]]] = {"mp.Lock": [], "ours": []}
    with room("ours") as host:
        host.ask("open")
        for _ in range(effort.turns + 1):
            for name, command in (("mp.Lock", "by_lock"), ("ours", "by_locked")):
                spent[name].append(tuple(host.ask(command, times=LOCKS)["ms"]))
    return {name: Timing(tuple(turns[1:])) for name, turns in spent.items()}


def overlaps(effort: Effort) -> Mapping[str, Cell]:
    """To see that so many blocks are apart."""
    with room("ours") as host:
        host.ask("open")
        found = {what: host.ask("overlap", turns=effort.turns, **n) for what, n in BLOCKS.items()}
    return {what: Timing(tuple((ms,) for ms in each["ms"])) for what, each in found.items()}


WRITING_ROWS = (
    WritingRow("writing1", "squares in place, 1,000,000 float64 (8 MB)", "square-1m"),
    WritingRow(
        "writing2",
        "squares in place, 100,000,000 float64 (800 MB)",
        "square-100m",
        needs_gib=12,
        hopeless=("Queue",),
    ),
    WritingRow("writing3", "mean, std, max of 2,000,000 float64, 4 parts", "statistics"),
    WritingRow(
        "writing4",
        "histogram of 8,000,000 pixels, 64 parts",
        "histogram",
        (*COLUMNS, "at once", "lock", "ours returned"),
    ),
)
