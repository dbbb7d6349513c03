"""``python -m benchmarks.executor_rows``: ``sharedtask.Executor`` beside ``ProcessPoolExecutor``.

Both are in this process, have four workers, and take turns: ratios of turns side by side count,
and the median of them is told.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

from benchmarks.turns import TurnRow, race, told
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


ROWS = (
    TurnRow("submit, there and back", one_by_one, 200, 1.0),
    TurnRow("10,000 submits, then their results", all_then_results, 10_000, 1.0),
    TurnRow("map of 100,000 trivial items", mapped, 100_000, 0.5),
)


def executors() -> Mapping[str, Executor]:
    """Both, by name."""
    import sharedtask

    ours = sharedtask.Executor(WORKERS, backend="process")
    return {"futures": ProcessPoolExecutor(WORKERS), "ours": ours}


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
