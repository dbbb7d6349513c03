"""``sharedtask bench``: what a call costs on this machine, and where a loop is faster."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.annotations import Shared
from sharedtask.store.handles import share
from sharedtask.system.cpus import available_cpus
from sharedtask.task.decorator import parallel
from sharedtask.task.shutdown import shutdown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Constants", "measured", "run", "work_needed"]

REPEATS = 30
MANY = 100_000  # items
LARGE = 256  # megabytes


@dataclass(frozen=True, slots=True)
class Constants:
    """What a map costs besides its work, in seconds."""

    start: float  # of the workers, once
    call: float
    item: float
    put: float  # of a megabyte, the first time
    again: float  # of a megabyte that is unchanged
    submit: float  # round trip

    def of_map(self, items: int, *, first: bool = False) -> float:
        """What a map of so many items costs."""
        return self.call + items * self.item + (self.start if first else 0.0)


@parallel(backend="process")
def nothing(item: int, table: Shared[Any] = None) -> int:  # noqa: ARG001 - it is only shared
    """A task that does as little as a task can."""
    return item


def run() -> Iterator[str]:
    """Measure, and yield what was found, line by line."""
    workers = available_cpus()
    yield f"measuring with {workers} workers, about twenty seconds on a quiet machine ..."
    yield from told(measured(), workers)


def measured(repeats: int = REPEATS, many: int = MANY, large: int = LARGE) -> Constants:
    """Measure each constant: medians of calls that do nothing."""
    start = _starting()
    call = _median(repeats, lambda: nothing.map(range(4)))
    item = max(_median(3, lambda: nothing.map(range(many))) - call, 0.0) / many
    submit = _median(repeats, lambda: nothing.submit(0).result())
    table = np.ones(large * 125_000)
    put = _median(3, lambda: share(table).close()) / large
    nothing.map(range(4), table=table)
    unchanged = _median(repeats, lambda: nothing.map(range(4), table=table))
    return Constants(start, call, item, put, max(unchanged - call, 0.0) / large, submit)


def _starting() -> float:
    shutdown()
    began = time.perf_counter()
    nothing.map(range(4))
    return time.perf_counter() - began


def _median(repeats: int, work: Callable[[], object]) -> float:
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return median(spent)


def work_needed(cost: float, workers: int) -> float | None:
    """Seconds of a loop above which ``workers`` are faster by more than ``cost``; None for one."""
    return cost / (1 - 1 / workers) if workers > 1 else None


def told(found: Constants, workers: int) -> Iterator[str]:
    """The constants, and from how much work on a map is worth it."""
    yield f"start of the workers, once  {_shown(found.start)}"
    yield f"a call                      {_shown(found.call)}"
    yield f"an item                     {_shown(found.item)}"
    yield f"a submit, round trip        {_shown(found.submit)}"
    yield f"a GB shared, first          {_shown(1000 * found.put)}"
    yield f"a GB unchanged, again       {_shown(1000 * found.again)}"
    yield ""
    if workers == 1:
        yield "With one CPU a loop is always faster: there is nothing to run beside it."
        return
    yield f"With {workers} workers a map is faster than a loop that takes longer than"
    for items in (10, 1_000, 100_000):
        again, first = (
            _shown(work_needed(found.of_map(items, first=first), workers) or 0.0)
            for first in (False, True)
        )
        yield f"{items:>9,} items  {again} ({first} for the first call of a program)"


def _shown(seconds: float) -> str:
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
