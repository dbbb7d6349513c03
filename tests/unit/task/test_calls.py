"""What a warm call costs its thread in calls of Python functions, on a busy machine as well.

Which functions these are is printed where there are more of them.
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import Shared, parallel
from sharedtask.backends.process.event_loop import Loop

SOURCES = Path(sharedtask.__file__).parent

MODEL = {"weights": np.ones((100, 1024))}


@parallel(backend="process", workers=1, chunksize=100)
def classify(number: int, model: Shared[dict[str, Any]], threshold: float = 0.5) -> bool:
    return bool(model["weights"][number].mean() > threshold)


@parallel(backend="process", workers=1)
def double(number: int) -> int:
    return 2 * number


def map_with_model() -> None:
    classify.map(range(100), model=MODEL)


def map_nothing() -> None:
    double.map([])


def submit() -> None:
    double.submit(1).result()


class Calls:
    """Counts the calls in this thread, but for turns of the loop: their number is up to chance."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self._turns = 0

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        code = frame.f_code
        if code is Loop._turn.__code__:
            self._turns += {"call": 1, "return": -1}.get(event, 0)
        elif event == "call" and not self._turns and code.co_filename != __file__:
            file = Path(code.co_filename)
            where = file.relative_to(SOURCES) if file.is_relative_to(SOURCES) else file.name
            self.found[f"{where}: {code.co_qualname}"] += 1


def calls_of(call: Callable[[], None]) -> Counter[str]:
    counted = Calls()
    sys.setprofile(counted)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counted.found


@pytest.mark.parametrize(
    ("call", "most"), [(map_with_model, 320), (map_nothing, 190), (submit, 175)]
)
def test_warm_call_makes_few_calls(call: Callable[[], None], most: int) -> None:
    """A warm call does not look twice at what it knows."""
    for _ in range(10):
        call()
    found = min((calls_of(call) for _ in range(5)), key=Counter.total)
    listed = "\n".join(f"{count:3} {name}" for name, count in found.most_common())
    assert found.total() <= most, f"{found.total()} calls:\n{listed}"
