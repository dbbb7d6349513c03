"""``python -m benchmarks.submit_rows``: submits here, beside concurrent.futures and loky.

All executors are in this process, have four workers, and take turns: ratios of turns side by side
count, and the median of them is told.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

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


@dataclass(frozen=True, slots=True)
class SubmitRow:
    """One line of the table; the goal is a ratio to concurrent.futures."""

    title: str
    run: Callable[[Submit, int], int]
    count: int
    goal: float


ROWS = (
    SubmitRow("one submit, there and back", one_by_one, 200, 0.9),
    SubmitRow("3,000 submits, then their results", all_then_results, 3_000, 0.4),
    SubmitRow("3,000 submits, as they are completed", completed, 3_000, 0.4),
    SubmitRow("1,000 submits, awaited", awaited, 1_000, 0.6),
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


def timed(row: SubmitRow, submit: Submit, count: int) -> float:
    """Milliseconds of one turn, whose result must be right."""
    began = time.perf_counter()
    found = row.run(submit, count)
    spent = (time.perf_counter() - began) * 1000
    if found != count * (count + 1) // 2:
        msg = f"{row.title}: {found} is not the sum of the results"
        raise AssertionError(msg)
    return spent


def race(
    row: SubmitRow, contestants: Mapping[str, Submit], turns: int, count: int
) -> Mapping[str, list[float]]:
    """The turns of each, side by side; the first one is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):
        for name, submit in contestants.items():
            spent[name].append(timed(row, submit, count))
    return {name: turns[1:] for name, turns in spent.items()}


def told(row: SubmitRow, spent: Mapping[str, list[float]]) -> str:
    """The medians, and the ratio to concurrent.futures beside its goal."""
    cells = "  ".join(f"{name} {median(turns):8.1f} ms" for name, turns in spent.items())
    if not {"ours", "futures"} <= spent.keys():
        return f"{row.title:38} {cells}"
    pairs = zip(spent["ours"], spent["futures"], strict=True)
    ratio = median(mine / theirs for mine, theirs in pairs)
    verdict = "met" if ratio <= row.goal else "not met"
    return f"{row.title:38} {cells}  {ratio:.2f}x (goal {row.goal}x: {verdict})"


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
