"""Contestants of one process that take turns: the median of the ratios of turns counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class TurnRow(Generic[C]):
    """One line of a table: ``run`` increments ``count`` numbers with a contestant and adds them.

    The goal is a ratio to the contestant "futures".
    """

    title: str
    run: Callable[[C, int], int]
    count: int
    goal: float


def timed(row: TurnRow[C], contestant: C, count: int) -> float:
    """Milliseconds of one turn, whose result must be right."""
    began = time.perf_counter()
    found = row.run(contestant, count)
    spent = (time.perf_counter() - began) * 1000
    if found != count * (count + 1) // 2:
        msg = f"{row.title}: {found} is not the sum of the results"
        raise AssertionError(msg)
    return spent


def race(
    row: TurnRow[C], contestants: Mapping[str, C], turns: int, count: int
) -> Mapping[str, list[float]]:
    """The turns of each, side by side; the first one is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):
        for name, contestant in contestants.items():
            spent[name].append(timed(row, contestant, count))
    return {name: turns[1:] for name, turns in spent.items()}


def told(row: TurnRow[C], spent: Mapping[str, list[float]]) -> str:
    """The medians, and the ratio to concurrent.futures beside its goal."""
    cells = "  ".join(f"{name} {median(turns):8.1f} ms" for name, turns in spent.items())
    if not {"ours", "futures"} <= spent.keys():
        return f"{row.title:38} {cells}"
    pairs = zip(spent["ours"], spent["futures"], strict=True)
    ratio = median(mine / theirs for mine, theirs in pairs)
    verdict = "met" if ratio <= row.goal else "not met"
    return f"{row.title:38} {cells}  {ratio:.2f}x (goal {row.goal}x: {verdict})"
