"""A table of ways to do one job: lines of code, time, bytes that pass between the processes."""

import inspect
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from support.traffic import counted

REPEATS = 5


@dataclass(frozen=True, slots=True)
class Way:
    """One way to do the job: its name, the functions it is made of, and the call that does it."""

    name: str
    code: tuple[Callable[..., Any], ...]
    run: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None  # before each run, not timed

    def lines(self) -> int:
        """Lines of its functions, blank ones not counted."""
        texts = [inspect.getsource(inspect.unwrap(function)) for function in self.code]
        return sum(bool(line.strip()) for text in texts for line in text.splitlines())


@dataclass(frozen=True, slots=True)
class Row:
    """What one way gave and cost: seconds of its first call, of the later ones, and bytes."""

    way: Way
    result: Any
    first: float
    later: float
    traffic: int

    def __str__(self) -> str:
        first, later = 1000 * self.first, 1000 * self.later
        return (
            f"{self.way.name:32}{self.way.lines() or '':5}{first:9.1f} ms{later:9.1f} ms"
            f"{self.traffic:13,} bytes"
        )


HEADER = f"{'':32}{'lines':>5}{'first':>12}{'again':>12}{'sent and received':>20}"


def measured(way: Way) -> Row:
    """Do it once, some times again, and once more with the bytes counted."""
    first = timed(way)
    later = statistics.median(timed(way) for _ in range(REPEATS))
    way.prepare()
    with counted() as traffic:
        result = way.run()
    return Row(way, result, first, later, traffic.total)


def timed(way: Way) -> float:
    """Seconds of one run."""
    way.prepare()
    began = time.perf_counter()
    way.run()
    return time.perf_counter() - began


def shown(title: str, ways: list[Way]) -> list[Any]:
    """Print the table; what each way returned."""
    print(f"{title} on {len(os.sched_getaffinity(0))} cores")
    print(HEADER)
    rows = []
    for way in ways:
        rows.append(measured(way))
        print(rows[-1])
    return [row.result for row in rows]
