"""The work itself: what every contestant runs, over which items and which shared value.

Every function takes one item and, where something is shared, the keyword ``model``. They do next
to nothing: what is measured is the cost of getting the work to four workers and back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

WORKERS = 4


def score(index: int, model: dict[str, Any]) -> float:
    """One weight of a model, and its bias."""
    return float(model["weights"][index % 10, 0]) + float(model["bias"])


def window(index: int, model: npt.NDArray[np.float64]) -> float:
    """The sum of a hundred neighbours in a large array."""
    return float(model[index * 100 : index * 100 + 100].sum())


def lookup(word: str, model: dict[str, float]) -> float:
    """One entry of a large dict."""
    return model[word]


def increment(number: int) -> int:
    """The most trivial task there is."""
    return number + 1


def block(length: int) -> npt.NDArray[np.float64]:
    """A result of ``8 * length`` bytes."""
    return np.full(length, float(length))


def hold(deadline: float, model: npt.NDArray[np.float64]) -> float:
    """Read the whole of a large array, then hold it until the clock shows ``deadline``."""
    total = float(model.sum())
    time.sleep(max(0.0, deadline - time.time()))
    return total


def look(item: Callable[[Any], Any], model: Any) -> Any:
    """Whatever the item does with the value."""
    return item(model)


@dataclass(frozen=True, slots=True)
class Job:
    """A function, its items, and how to build what it shares (None: it shares nothing)."""

    function: Callable[..., Any]
    items: Sequence[Any]
    value: Callable[[], Any] | None = None

    def serial(self, value: object) -> list[Any]:
        """The answer that every contestant must give."""
        if self.value is None:
            return [self.function(item) for item in self.items]
        return [self.function(item, model=value) for item in self.items]


def model_of(length: int) -> Callable[[], dict[str, Any]]:
    """Build a model dict around ``8 * length`` bytes of weights."""
    return lambda: {
        "weights": np.random.default_rng(0).random((10, length // 10)),
        "bias": 0.5,
        "names": [f"class {index}" for index in range(10)],
    }


def array_of(length: int) -> Callable[[], npt.NDArray[np.float64]]:
    """Build an array of ``8 * length`` bytes, every page touched."""
    return lambda: np.arange(length, dtype=np.float64)


def words_of(length: int) -> Callable[[], dict[str, float]]:
    """Build a dict of ``length`` entries."""
    return lambda: {f"word {index}": float(index) for index in range(length)}


def jobs(tiny: bool = False) -> dict[str, Job]:
    """Every job by name; ``tiny`` has the same shapes at sizes fit for a test."""
    by = 1000 if tiny else 1
    words = 1_000_000 // by
    keys = [f"word {index * 7919 % words}" for index in range(200)]
    blocks = range(1_000_000 // by, 1_000_000 // by + (5 if tiny else 50))
    return {
        "model-100": Job(score, range(100), model_of(1_000_000 // by)),
        "model-2000": Job(score, range(2_000 // (10 if tiny else 1)), model_of(1_000_000 // by)),
        "array": Job(window, range(32), array_of((256 << 20) // 8 // by)),
        "words": Job(lookup, keys, words_of(words)),
        "trivial": Job(increment, range(100_000 // by)),
        "trivial-1000": Job(increment, range(1_000 // (10 if tiny else 1))),
        "blocks": Job(block, blocks),
        "first": Job(increment, range(WORKERS)),
        "submit": Job(increment, range(5 if tiny else 50)),
        "memory": Job(hold, [0.0] * WORKERS, array_of((256 << 20) // 8 // by)),
        "memory-32": Job(hold, [0.0] * WORKERS, array_of((32 << 20) // 8 // by)),
    }


def same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """True when two lists of results are equal, arrays included."""
    return len(left) == len(right) and all(map(np.array_equal, left, right))
