# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Arguments, items and bound objects that are not marked: copies, on every backend."""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from sharedtask import IncompleteValueWarning, SerializationError, parallel, zeros
from sharedtask.system.posix import IS_POSIX

from .strategies import assert_same
from .tasks import all_of, on_backend, under_backend

IN_CALLER = ("serial", "thread")
STREAMS = ("imap", "imap_unordered")


def _count(_x: int, seen: Any) -> int:
    seen.append(1)
    return len(seen)


def _set(x: int, values: Any) -> float:
    values[0] += x
    return float(values[0])


def _fill(i: int, out: Any) -> None:
    out[i] = 1


def _first_and_one(row: Any) -> float:
    row += 1
    return float(row[0])


def _collect(x: int, seen: list[int]) -> list[int]:
    seen.append(x)
    return seen


def _view(x: int, values: Any) -> Any:
    values[:] = x
    return values[:2]


def _are_one(_x: int, one: Any, other: Any, *rest: Any) -> bool:
    return one is other["it"] and all(each is one for each in rest)


def _grow(item: list[int]) -> int:
    item.append(1)
    return len(item)


def _grow_both(item: list[int], other: list[int]) -> int:
    item.append(1)
    other.append(1)
    return len(item) + len(other)


def _call(x: int, function: Any, kind: Any) -> Any:
    return function(x), isinstance(Counter(), kind), kind.__name__


def _hold(_x: int, lock: Any) -> bool:
    with lock:
        return True


def _draw(_x: int, generator: np.random.Generator) -> float:
    return float(generator.random())


def _defaulted(_x: int, seen: Any = ()) -> int:
    return len(seen)


@dataclass
class Counter:
    """An object with a method that changes it."""

    seen: list[int] = field(default_factory=list)
    rows: Any = None
    total: int = 0

    @parallel
    def add(self, x: int) -> int:
        """Remember an item."""
        self.seen.append(x)
        self.total += 1
        return len(self.seen)

    @parallel
    def shares(self, _: int, seen: list[int]) -> bool:
        """Whether an argument is a part of the object."""
        return seen is self.seen

    @parallel
    def write(self, x: int) -> float:
        """Write into an array of the object."""
        self.rows[0] += x
        return float(self.rows[0])


class UnmarkedContract:
    """An unmarked value is a private copy of the chunk, as it was when the call was made."""

    @pytest.mark.parametrize("method", ["map", "starmap", "imap", "imap_unordered", "amap"])
    def test_argument_is_its_chunks_own(self, backend: str, method: str) -> None:
        """An append of a task to a list stays in its chunk, which a stream may make shorter."""
        seen: list[int] = []
        task = on_backend(backend, _count, chunksize=2)
        counts = sorted(all_of(task, method, range(4), seen=seen))
        assert counts == [1, 1, 2, 2] or (method in STREAMS and {1, 2} >= set(counts))
        assert not seen

    def test_argument_of_a_single_item(self, backend: str) -> None:
        """``submit`` gives each item copies of its own, also by position."""
        seen: list[int] = []
        task = on_backend(backend, _count)
        futures = [task.submit(k, seen) for k in range(4)]
        assert [1] * 4 == [future.result(60) for future in futures]
        assert not seen

    @pytest.mark.parametrize("size", [5, 100_000])
    def test_array_argument_is_its_chunks_own(self, backend: str, size: int) -> None:
        """An array, small or large, is writable, and the caller's stays as it is."""
        values = np.zeros(size)
        task = on_backend(backend, _set, chunksize=2)
        for start in (0.0, 5.0):
            values[0] = start
            found = task.map([1] * 4, values=values)
            assert [start + 1, start + 2, start + 1, start + 2] == found
            assert start == values[0]

    @pytest.mark.parametrize("size", [5, 100_000])
    def test_bound_object_is_its_chunks_own(self, backend: str, size: int) -> None:
        """A method's change of its object stays in its chunk."""
        counter = Counter(rows=np.zeros(size))
        add: Any = under_backend(backend, counter.add)
        write: Any = under_backend(backend, counter.write)
        assert [1, 2, 1, 2] == add.with_options(chunksize=2).map(range(4))
        assert [1, 2, 1, 2] == write.with_options(chunksize=2).map([1] * 4)
        assert ([], 0, 0.0) == (counter.seen, counter.total, counter.rows[0])

    @pytest.mark.parametrize("born", [False, True])
    def test_results_written_into_what_is_not_marked(self, backend: str, born: bool) -> None:
        """A write into a large array, or one born shared, would be lost, and is refused."""
        out = zeros((10, 4)) if born and IS_POSIX else np.zeros((400_000,))
        with pytest.raises(ValueError, match="read-only") as caught:
            on_backend(backend, _fill).map(range(10), out=out)
        advice = " ".join(caught.value.__notes__)
        for word in ("'out'", "not marked", "Partitioned", "map_into", "CopyOnWrite"):
            assert word in advice
        counter: Any = under_backend(backend, Counter(rows=out).write)
        with pytest.raises(ValueError, match="read-only") as caught:
            counter.map(range(3))
        assert "'self'" in " ".join(caught.value.__notes__)
        assert 0.0 == out.sum()
        out[0] = 1
        assert out.flags.writeable

    def test_what_arguments_have_in_common(self, backend: str) -> None:
        """An object that is met twice, in arguments or in ``self``, is one object in the task."""
        one: list[int] = []
        counter = Counter()
        task = on_backend(backend, _are_one)
        assert [True] * 2 == task.map(range(2), one, {"it": one}, one, one)
        shares = under_backend(backend, counter.shares)
        assert [True] * 2 == shares.map(range(2), counter.seen)

    @pytest.mark.parametrize("size", [1, 100_000])
    def test_open_stream_has_what_the_call_was_given(self, backend: str, size: int) -> None:
        """The caller's changes while a stream is open are invisible to its later items."""
        seen, values = [1], np.ones(size)
        counts = on_backend(backend, _defaulted, chunksize=1, buffersize=1).imap(range(20), seen)
        sums = on_backend(backend, _set, chunksize=1, buffersize=1).imap([0] * 20, values)
        assert (1, 1.0) == (next(counts), next(sums))
        seen.append(2)
        values[0] = 7
        assert {1} == set(counts)
        assert {1.0} == set(sums)

    def test_next_call_sees_changes(self, backend: str) -> None:
        """The caller's changes since the last call are visible."""
        task, seen = on_backend(backend, _defaulted), [1]
        assert [1] == task.map([0], seen=seen)
        seen.append(2)
        assert [2] == task.map([0], seen=seen)

    def test_item_is_a_copy(self, backend: str) -> None:
        """A task's changes of its item are invisible to the caller."""
        items: list[list[int]] = [[], [1], []]
        assert [1, 2, 1] == on_backend(backend, _grow).map(items)
        assert [2, 3, 2] == on_backend(backend, _grow_both).starmap([(i, []) for i in items])
        assert 1 == on_backend(backend, _grow).submit(items[0]).result(60)
        assert [[], [1], []] == items

    def test_item_that_comes_twice_in_a_chunk(self, backend: str) -> None:
        """Items of one chunk keep their common parts."""
        item: list[int] = []
        assert [1, 2, 1, 2] == on_backend(backend, _grow, chunksize=2).map([item] * 4)
        assert not item

    def test_rows_are_copies(self, backend: str) -> None:
        """So are rows of an array of items."""
        rows = np.zeros((4, 3))
        assert [1.0] * 4 == on_backend(backend, _first_and_one).map(rows)
        assert not rows.any()

    def test_result_is_as_it_was_returned(self, backend: str) -> None:
        """A result that is an argument, or shows a part of it, is not changed by later items."""
        collected = on_backend(backend, _collect, chunksize=2).map(range(4), seen=[])
        assert [[0], [0, 1], [2], [2, 3]] == collected
        views = on_backend(backend, _view, chunksize=3).map(range(3), values=np.zeros(5))
        assert_same([np.full(2, k, float) for k in range(3)], views)

    def test_random_numbers_of_an_argument(self, backend: str) -> None:
        """A generator in an argument begins at the same place in each chunk, which is told once."""
        generator = np.random.default_rng(7)
        wanted = np.random.default_rng(7).random(2).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteValueWarning)
            drawn = on_backend(backend, _draw, chunksize=2).map(range(4), generator=generator)
        assert wanted * 2 == drawn
        assert wanted[0] == generator.random()

    def test_functions_and_classes_are_arguments(self, backend: str) -> None:
        """Functions, lambdas and classes are used as they are."""
        task = on_backend(backend, _call)
        assert [(1, True, "Counter")] == task.map([-1], function=abs, kind=Counter)
        assert [(0, True, "Counter")] == task.map([-1], lambda x: x + 1, Counter)

    def test_argument_that_cannot_be_pickled(self, backend: str) -> None:
        """Where tasks run in the caller, it is passed as it is; elsewhere it is an error."""
        task, lock = on_backend(backend, _hold), threading.Lock()
        if backend in IN_CALLER:
            assert [True] * 3 == task.map(range(3), lock=lock)
        else:
            with pytest.raises(SerializationError, match="lock"):
                task.map(range(3), lock=lock)

    def test_strict_refuses_what_cannot_be_pickled(self, backend: str) -> None:
        """With ``strict`` it is an error everywhere."""
        task = on_backend(backend, _hold, strict=True)
        with pytest.raises(SerializationError, match="lock"):
            task.map(range(3), lock=threading.Lock())

    def test_caller_keeps_what_a_function_captures(self, backend: str) -> None:
        """Captured values are the program's own in the caller, and copies elsewhere."""
        _seen: list[int] = []  # without the underscore the task would be warned of

        def remember(x: int) -> int:
            _seen.append(x)
            return x

        assert [0, 1, 2] == on_backend(backend, remember).map(range(3))
        assert (3 if backend in IN_CALLER else 0) == len(_seen)
