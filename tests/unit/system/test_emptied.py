"""Deques that several threads empty: one of them is faster, and the others go on."""

from collections import deque
from typing import Any

import numpy as np
import pytest

from sharedtask import parallel
from sharedtask.backends import registry
from sharedtask.memory import write_watch
from sharedtask.memory.write_watch import WriteWatch
from sharedtask.system.critical_sections import first_of


class Emptied(deque[Any]):
    """It had something a moment ago, which another thread has taken since."""

    def __bool__(self) -> bool:
        return True


def test_first_is_taken_out_once() -> None:
    """What is there comes in order; then None, without an error."""
    found = deque([1, 2])
    assert [1, 2, None, None] == [first_of(found) for _ in range(4)]


def test_cache_is_swept_by_several_threads() -> None:
    """A thread that comes too late to release a value finds nothing to do."""
    assert [0, 1] == parallel(abs).with_options(backend="process").map(range(2))
    cache: Any = registry.get("process")._cache  # type: ignore[attr-defined]
    kept = cache._dead, cache._lost
    cache._dead, cache._lost = Emptied(), Emptied()
    try:
        cache.sweep()
    finally:
        cache._dead, cache._lost = kept


def test_watches_are_released_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call begins while another one releases the watches that are kept too long."""
    monkeypatch.setattr(write_watch, "_unneeded", Emptied())
    watch = WriteWatch([np.zeros(1 << 17, np.uint8)])
    assert not watch.written()
    watch.close()


def test_calls_are_given_up_by_several_threads() -> None:
    """The loop ends given-up calls that a thread has ended already."""
    task = parallel(abs).with_options(backend="process")
    assert [0, 1] == task.map(range(2))
    pool: Any = registry.get("process").pool  # type: ignore[attr-defined]
    pool._to_cancel = Emptied()
    pool.tick()
    pool._to_cancel = deque()
    assert [0, 1] == task.map(range(2))
