"""``python -m benchmarks.executor_rows``: ``sharedtask.Executor`` beside ``ProcessPoolExecutor``.

Both are in this process, have four workers, and take turns: ratios of turns side by side count,
and the median of them is told.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.work import WORKERS, increment

# For the standard library, which sends item by item unless it is told otherwise.
CHUNKSIZE = 1_000


def one_by_one(executor: Executor, count: int) -> int:
    """Each call is submitted when the one before is back."""
    return sum(executor.submit(increment, k).result() for k in range(count))


def all_then_results(executor: Executor, count: int) -> int:
    """All are submitted, then all results are asked for."""
    return sum(each.result() for each in [executor.submit(increment, k) for k in range(count)])


def mapped(executor: Executor, count: int) -> int:
    """One map; the standard library's in chunks, which is its best."""
    sizes = {"chunksize": CHUNKSIZE} if isinstance(executor, ProcessPoolExecutor) else {}
    return sum(executor.map(increment, range(count), **sizes))


@dataclass(frozen=True, slots=True)
class ExecutorRow:
    """One line of the table; the goal is a ratio to ``ProcessPoolExecutor``."""

    title: str
    run: Callable[[Executor, int], int]
    count: int
    goal: float


ROWS = (
    ExecutorRow("submit, there and back", one_by_one, 200, 1.0),
    ExecutorRow("10,000 submits, then their results", all_then_results, 10_000, 1.0),
    ExecutorRow("map of 100,000 trivial items", mapped, 100_000, 0.5),
)


def executors() -> Mapping[str, Executor]:
    """Both, by name."""
    import sharedtask

    ours = sharedtask.Executor(WORKERS, backend="process")
    return {"futures": ProcessPoolExecutor(WORKERS), "ours": ours}


def timed(row: ExecutorRow, executor: Executor, count: int) -> float:
    """Milliseconds of one turn, whose result must be right."""
    began = time.perf_counter()
    found = row.run(executor, count)
    spent = (time.perf_counter() - began) * 1000
    if found != count * (count + 1) // 2:
        msg = f"{row.title}: {found} is not the sum of the results"
        raise AssertionError(msg)
    return spent


def race(
    row: ExecutorRow, contestants: Mapping[str, Executor], turns: int, count: int
) -> Mapping[str, list[float]]:
    """The turns of each, side by side; the first one is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):
        for name, executor in contestants.items():
            spent[name].append(timed(row, executor, count))
    return {name: turns[1:] for name, turns in spent.items()}


def told(row: ExecutorRow, spent: Mapping[str, list[float]]) -> str:
    """The medians, and the ratio beside its goal."""
    cells = "  ".join(f"{name} {median(turns):8.1f} ms" for name, turns in spent.items())
    ratio = median(a / b for a, b in zip(spent["ours"], spent["futures"], strict=True))
    verdict = "met" if ratio <= row.goal else "not met"
    return f"{row.title:36} {cells}  {ratio:.2f}x (goal {row.goal}x: {verdict})"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.executor_rows", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls, to try it")
    asked: Any = parser.parse_args(arguments)
    contestants = executors()
    for row in ROWS:
        count = max(int(row.count * asked.share), 1)
        print(told(row, race(row, contestants, asked.turns, count)), flush=True)
    for executor in contestants.values():
        executor.shutdown()


if __name__ == "__main__":
    main()
