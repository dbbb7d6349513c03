"""``python -m benchmarks.submit_rows``: submits here, beside concurrent.futures and loky.

All executors are in this process, have four workers, and take turns: ratios of turns side by side
count, and the median of them is told.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

from benchmarks.turns import TurnRow, race, told
from benchmarks.work import WORKERS, increment

Submit = Callable[[int], "Future[int]"]
EXECUTORS = ("futures", "loky", "ours")


def one_by_one(submit: Submit, count: int) -> int:
    """Each item is submitted when the one before is back."""
    return sum(submit(k).result() for k in range(count))


def all_then_results(submit: Submit, count: int) -> int:
    """All are submitted, then all results are asked for."""
    return sum(each.result() for each in [submit(k) for k in range(count)])


def completed(submit: Submit, count: int) -> int:
    """All are submitted, and taken as they are completed."""
    return sum(each.result() for each in as_completed([submit(k) for k in range(count)]))


def awaited(submit: Submit, count: int) -> int:
    """All are awaited together under asyncio."""

    async def gathered() -> int:
        return sum(await asyncio.gather(*(asyncio.wrap_future(submit(k)) for k in range(count))))

    return asyncio.run(gathered())


ROWS = (
    TurnRow("one submit, there and back", one_by_one, 200, 0.9),
    TurnRow("3,000 submits, then their results", all_then_results, 3_000, 0.4),
    TurnRow("3,000 submits, as they are completed", completed, 3_000, 0.4),
    TurnRow("1,000 submits, awaited", awaited, 1_000, 0.6),
)


def submits(names: tuple[str, ...] = EXECUTORS) -> Mapping[str, Submit]:
    """What submits one item, by executor."""
    made: dict[str, Submit] = {}
    if "futures" in names:
        made["futures"] = partial(ProcessPoolExecutor(WORKERS).submit, increment)
    if "loky" in names:
        from joblib.externals.loky import get_reusable_executor

        made["loky"] = partial(get_reusable_executor(WORKERS).submit, increment)
    if "ours" in names:
        from sharedtask import parallel

        made["ours"] = parallel(increment).with_options(backend="process", workers=WORKERS).submit
    return made


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submit_rows", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peers", default=",".join(EXECUTORS))
    asked: Any = parser.parse_args(arguments)
    contestants = submits(tuple(asked.peers.split(",")))
    for row in ROWS:
        print(told(row, race(row, contestants, asked.turns, row.count)), flush=True)


if __name__ == "__main__":
    main()
