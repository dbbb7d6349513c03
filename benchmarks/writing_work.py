"""The work of the third table: arrays that tasks write together, or tell a little about.

Whatever the contestant, a job cuts its array into parts, and does the same numpy calls with each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.work import WORKERS

Array = npt.NDArray[Any]
PERIOD = 1000  # the values repeat after so many elements; every length is a multiple
PATTERN = np.arange(PERIOD) % 251
BINS = 256


def cut(part: slice, count: int) -> list[slice]:
    """``count`` slices of nearly equal length, one behind the other."""
    start, length = part.start, part.stop - part.start
    bounds = [start + length * number // count for number in range(count + 1)]
    return [slice(*pair) for pair in pairwise(bounds)]


@dataclass(frozen=True, slots=True)
class Writing:
    """A job over an array of ``length`` elements, in ``blocks`` parts."""

    length: int
    dtype: str = "float64"
    blocks: int = WORKERS

    @property
    def nbytes(self) -> int:
        return self.length * np.dtype(self.dtype).itemsize

    @property
    def parts(self) -> list[slice]:
        """What is handed out where everything is handed out."""
        return cut(slice(0, self.length), self.blocks)

    def body(self, block: Array) -> Any:
        """What is done with one part."""
        raise NotImplementedError

    def over(self, data: Array, part: slice) -> Any:
        """What a worker does who is told its share once: the parts of ``part``, as one result."""
        return self.body(data[part])

    def combine(self, results: Sequence[Any]) -> Any:
        """The answer, from the results of all parts."""
        return list(results)

    def fill(self, data: Array) -> None:
        """The contents that the first run starts from."""
        data.reshape(-1, PERIOD)[...] = PATTERN

    def steady(self, data: Array) -> None:
        """Contents that stay as they are however often the job is run."""

    def is_right(self, data: Array, answer: Any) -> bool:
        """Whether the first run has left this in the array, and given this answer."""
        raise NotImplementedError


class Square(Writing):
    """Every number is squared in place; nothing comes back."""

    def body(self, block: Array) -> None:
        block *= block

    def combine(self, results: Sequence[Any]) -> None: ...

    def steady(self, data: Array) -> None:
        data[...] = 1.0

    def is_right(self, data: Array, answer: Any) -> bool:
        return bool((data.reshape(-1, PERIOD) == PATTERN.astype(self.dtype) ** 2).all())


class Statistics(Writing):
    """Three numbers about each part come back, in a dict."""

    def body(self, block: Array) -> dict[str, float]:
        return {"mean": float(block.mean()), "std": float(block.std()), "max": float(block.max())}

    def is_right(self, data: Array, answer: Any) -> bool:
        expected = [self.body(data[part]) for part in self.parts]
        found, wanted = ([list(each.values()) for each in side] for side in (answer, expected))
        return np.shape(found) == np.shape(wanted) and np.allclose(found, wanted)


class Histogram(Writing):
    """How often each of 256 values occurs: one array of counts, over all parts."""

    def body(self, block: Array) -> Array:
        return np.bincount(block, minlength=BINS)

    def over(self, data: Array, part: slice) -> Array:
        return self.combine([self.body(data[block]) for block in self.share(part)])

    def share(self, part: slice) -> list[slice]:
        """The blocks of one worker's share."""
        return cut(part, self.blocks // WORKERS)

    def combine(self, results: Sequence[Any]) -> Array:
        total: Array = np.sum(results, axis=0)
        return total

    def is_right(self, data: Array, answer: Any) -> bool:
        counts = np.bincount(PATTERN, minlength=BINS) * (self.length // PERIOD)
        return np.array_equal(counts, answer)


def writings(tiny: bool = False) -> dict[str, Writing]:
    """Every job by name; ``tiny`` has the same shapes at sizes fit for a test."""
    by = 100 if tiny else 1
    return {
        "square-1m": Square(1_000_000 // by),
        "square-100m": Square(100_000_000 // by // by),
        "statistics": Statistics(2_000_000 // by),
        "histogram": Histogram(8_000_000 // by, "uint8", blocks=64),
        # Large enough that an interpreter's own coming and going is no part of the figure.
        "statistics-256mb": Statistics(32_000_000 // by // by),
        "histogram-256mb": Histogram(256_000_000 // by // by, "uint8", blocks=1024),
    }
