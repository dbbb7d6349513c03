"""sharedtask as a contestant of the third table: the same work, decorated."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import sharedtask
from benchmarks.work import WORKERS
from benchmarks.writing_work import BINS, Array, Histogram, Square, Statistics, Writing
from sharedtask import Locked, Partitioned, Reduced, Shared, parallel, partition
from sharedtask.writing.partitioned.overlaps import check_overlap


@parallel
def square(part: slice, out: Partitioned[np.ndarray]) -> None:
    """Every number of this part, in place."""
    out *= out


@parallel
def describe(part: slice, data: Shared[np.ndarray]) -> dict[str, float]:
    """Three numbers about this part."""
    block = data[part]
    return {"mean": float(block.mean()), "std": float(block.std()), "max": float(block.max())}


@parallel
def count(part: slice, pixels: Shared[np.ndarray]) -> Array:
    """How often each value occurs in this part."""
    return np.bincount(pixels[part], minlength=BINS)


@parallel
def add_counts(part: slice, pixels: Shared[np.ndarray], hist: Reduced[np.ndarray]) -> None:
    """The same, added to the histogram of all parts."""
    hist += np.bincount(pixels[part], minlength=BINS)


@parallel
def write_often(times: int, grid: Locked[np.ndarray]) -> float:
    """How many milliseconds it takes to write ten rows so often, with nobody else there."""
    began = time.perf_counter()
    for _ in range(times):
        with grid.write(slice(0, 10)):
            pass
    return (time.perf_counter() - began) * 1000


TASKS: dict[str, Any] = {
    task.__name__: task for task in (square, describe, count, add_counts, write_often)
}


class Ours:
    """Over an array born in shared memory, or a plain one; ``Reduced``, or results added here."""

    def __init__(self, *, born: bool = True, reduced: bool = True) -> None:
        self.make = sharedtask.empty if born else np.empty
        self.reduced = reduced
        options: Any = {"backend": "process", "workers": WORKERS}
        self.tasks = {name: task.with_options(**options) for name, task in TASKS.items()}

    def place(self, work: Writing) -> None:
        self.work, self.data = work, self.make(work.length, work.dtype)
        self.parts = partition(work.length, work.blocks)
        runs: dict[type[Writing], Callable[[], Any]] = {
            Square: self.square,
            Statistics: self.describe,
            Histogram: self.count,
        }
        self.run = runs[type(work)]

    def square(self) -> None:
        self.tasks["square"].map(self.parts, out=self.data)

    def describe(self) -> list[dict[str, float]]:
        found: list[dict[str, float]] = self.tasks["describe"].map(self.parts, data=self.data)
        return found

    def count(self) -> Array:
        if not self.reduced:
            total: Array = np.sum(self.tasks["count"].map(self.parts, pixels=self.data), axis=0)
            return total
        hist = np.zeros(BINS, np.int64)
        self.tasks["add_counts"].map(self.parts, pixels=self.data, hist=hist)
        return hist

    def close(self) -> None:
        sharedtask.shutdown()


def write_under_lock(times: int) -> float:
    """The milliseconds of so many writes, each under its lock, one after the other in a worker."""
    grid = sharedtask.zeros((10, 10))
    task = TASKS["write_often"].with_options(backend="process", workers=WORKERS)
    [spent] = task.map([times], grid=grid)
    return float(spent)


def overlap_check(slices: int = 0, tiles: int = 0) -> Callable[[], None]:
    """What sees that so many slices of an array are apart, or so many tiles of an image."""
    across = round(tiles**0.5)
    base = sharedtask.empty((10 * across, 10 * across) if tiles else 10 * slices)
    indices: list[Any] = partition(len(base), across or slices)
    if tiles:
        indices = [(rows, columns) for rows in indices for columns in indices]
    return partial(check_overlap, base, indices, "item {}".format)
