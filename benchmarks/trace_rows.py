"""``python -m benchmarks.trace_rows``: what an open trace costs, and what a closed one leaves.

The same calls run without a trace, with one, and without again, in turn: ratios of turns side by
side count. The last column shows what is noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from sharedtask import parallel, trace
from sharedtask.system.cpus import available_cpus

MODES = ("off", "on", "off again")


@dataclass(frozen=True, slots=True)
class Row:
    """Some calls, with their goal: times as long with a trace, or so many us more for each item."""

    title: str
    run: Callable[[int], int]
    count: int
    most: float | None = None
    most_us: float | None = None


def same(number: int) -> int:
    return number


def loops(number: int, rounds: int) -> int:
    """Computes for the same time in each call, however long that takes in seconds."""
    for _ in range(rounds):
        pass
    return number


def rounds_of_a_millisecond() -> int:
    """How many rounds take a millisecond here, at the best of some tries."""
    spent = []
    for _ in range(20):
        began = time.perf_counter()
        loops(0, 100_000)
        spent.append(time.perf_counter() - began)
    return round(100_000 * 0.001 / min(spent))


def rows() -> tuple[Row, ...]:
    items = parallel(same).with_options(backend="process", workers=available_cpus())
    chunks = parallel(loops).with_options(backend="process", workers=available_cpus(), chunksize=1)
    rounds = rounds_of_a_millisecond()
    return (
        Row("20 maps of 100 small items", partial(_repeated, items), 20),
        Row("400 chunks of 1 ms", partial(_mapped, chunks, rounds=rounds), 400, most=1.03),
        Row("100,000 small items", partial(_mapped, items), 100_000, most_us=2.0),
    )


def _mapped(task: Any, count: int, **arguments: Any) -> int:
    return sum(task.map(range(count), **arguments))


def _repeated(task: Any, count: int) -> int:
    return sum(sum(task.map(range(100))) for _ in range(count))


def timed(row: Row, mode: str, count: int) -> float:
    """Milliseconds of one turn; the trace is opened before, and read after the clock stops."""
    with trace() if mode == "on" else nullcontext():
        began = time.perf_counter()
        row.run(count)
        return (time.perf_counter() - began) * 1000


def race(row: Row, turns: int, count: int) -> Mapping[str, list[float]]:
    """The turns of each mode, side by side; the first ones are not counted."""
    spent: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(turns + 1):
        for mode in MODES:
            spent[mode].append(timed(row, mode, count))
    return {mode: each[1:] for mode, each in spent.items()}


def told(row: Row, spent: Mapping[str, list[float]], count: int) -> str:
    """The medians, the ratios to the turns before, and what is added to each item."""
    off, on, again = (spent[mode] for mode in MODES)
    ratio, noise = (median(b / a for a, b in zip(off, each, strict=True)) for each in (on, again))
    each = median(b - a for a, b in zip(off, on, strict=True)) * 1000 / count
    goal = ""
    if row.most is not None:
        goal = f" (goal {row.most}x: {_verdict(ratio <= row.most)})"
    elif row.most_us is not None:
        goal = f" (goal {row.most_us} us each: {_verdict(each <= row.most_us)})"
    cells = f"off {median(off):8.1f} ms  on {median(on):8.1f} ms  {ratio:.3f}x  {each:7.2f} us each"
    closed = f"closed {noise:.3f}x (goal 1.01x: {_verdict(noise <= 1.01)})"
    return f"{row.title:28} {cells}{goal}  {closed}"


def _verdict(holds: bool) -> str:
    return "met" if holds else "not met"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trace_rows", description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--share", type=float, default=1.0, help="of the items, to try it")
    asked: Any = parser.parse_args(arguments)
    for row in rows():
        count = max(int(row.count * asked.share), 1)
        print(told(row, race(row, asked.turns, count), count), flush=True)


if __name__ == "__main__":
    main()
