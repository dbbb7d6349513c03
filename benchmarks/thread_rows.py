"""``python -m benchmarks.thread_rows``: pure Python on one thread and on two, without a GIL.

One and two workers take turns. Other programs on the machine make both slower, and two more than
one, so CPU seconds are measured as well: what two threads spend more than one is what they cost
each other. ``at best`` is the speed-up that this leaves where each thread has a core: twice the
CPU seconds of one by those of two.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from sharedtask import Shared, parallel

ITEMS = 24


def loop(n: int) -> int:
    """Numbers alone."""
    total = 0
    for k in range(n):
        total += k & 3
    return total


def look_up(n: int, table: Shared[dict[str, Any]]) -> int:
    """Each step reads a shared dict and a list in it."""
    total = 0
    for k in range(n):
        total += table["rows"][k & 3]
    return total


def make(n: int, table: Shared[dict[str, Any]]) -> int:
    """Each step makes small objects."""
    return sum(len([k, table["rows"]]) + len(str(k)) for k in range(n // 4))


TABLE = {"rows": [1, 2, 3, 4], "data": np.ones(100_000)}
ROWS: tuple[tuple[Callable[..., int], dict[str, Any]], ...] = (
    (loop, {}),
    (look_up, {"table": TABLE}),
    (make, {"table": TABLE}),
)


def spent(task: Any, workers: int, steps: int, named: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a map, by the wall and of CPU."""
    mapped = task.with_options(backend="thread", workers=workers, chunksize=1)
    mapped.map([10] * 4, **named)
    wall, cpu = time.perf_counter(), time.process_time()
    mapped.map([steps] * ITEMS, **named)
    return time.perf_counter() - wall, time.process_time() - cpu


def row(function: Callable[..., int], named: dict[str, Any], steps: int, turns: int) -> str:
    """One line of the table."""
    task, ones, twos = parallel(function), [], []
    for _ in range(turns):
        ones.append(spent(task, 1, steps, named))
        twos.append(spent(task, 2, steps, named))
    wall = median(one[0] / two[0] for one, two in zip(ones, twos, strict=True))
    best = median(2 * one[1] / two[1] for one, two in zip(ones, twos, strict=True))
    return f"{function.__name__:8} by the wall {wall:.2f}, at best {best:.2f}"


def main() -> None:
    """Print the rows, and the load of the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300_000)
    given = parser.parse_args()
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, GIL {'on' if gil else 'off'}, {os.cpu_count()} CPUs")
    for function, named in ROWS:
        print(row(function, named, given.steps, given.turns), flush=True)
    print("load", *(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
