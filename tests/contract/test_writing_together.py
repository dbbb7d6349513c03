"""What arrays that tasks write must never do: lose an update, write elsewhere, or never return."""

from __future__ import annotations

import threading
import time
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest

from sharedtask import (
    ArgumentError,
    Locked,
    LockOrderError,
    Partitioned,
    Reduced,
    Reduction,
    Regions,
    SharedTaskError,
    UnshareableError,
    attach,
    parallel,
    share,
    zeros,
)

pytestmark = pytest.mark.timeout(60)

by_locks = pytest.mark.parametrize("place", ["serial", "thread", "process"])


@parallel(workers=2, chunksize=1)
def two_totals(_: int, a: Reduced[np.ndarray], b: Reduced[np.ndarray]) -> None:
    """Add to both."""
    a += 1
    b += 10


@parallel(workers=2)
def square(x: float) -> float:
    """The square."""
    return x * x


@parallel(workers=2)
def double(row: Any) -> Any:
    """Twice the row."""
    return 2 * row


@parallel(workers=2, chunksize=1)
def increment(_: int, grid: Locked[np.ndarray]) -> None:
    """Count in row 0."""
    with grid.write(0) as row:
        row[...] += 1


@parallel(workers=2, chunksize=1)
def leaves_a_lock(i: int, grid: Locked[np.ndarray]) -> int:
    """Item 0 enters a block and never leaves it."""
    if i == 0:
        grid.write(0).__enter__()
    return i


@parallel(workers=1)
def adds_and_leaves_a_lock(i: int, grid: Locked[np.ndarray], total: Reduced[np.ndarray]) -> None:
    """Add 1; item 0 enters a block and never leaves it."""
    total += 1
    if i == 0:
        grid.write(0).__enter__()


def refuse_halves(total: Any, part: Any) -> Any:
    """Add whole numbers."""
    if part[0] == 0.5:
        msg = "no halves"
        raise ValueError(msg)
    return total + part


@parallel(workers=1, reduced={"total": Reduction(refuse_halves, identity=0)})
def adds_and_returns(i: int, total: np.ndarray) -> int:
    """Add 1, or a half for item 3, and return the item."""
    total += 0.5 if i == 3 else 1
    return i


@parallel
def fill(rows: slice, out: Partitioned[np.ndarray]) -> None:
    """Write the block."""
    out[...] = rows.start


def test_one_array_for_two_totals_is_refused(backend: Any) -> None:
    """What both add cannot be told apart: an array, or two views that overlap, is not taken."""
    totals = np.zeros(4)
    for a, b in ((totals, totals), (totals[:3], totals[1:])):
        with pytest.raises(ArgumentError, match="the same memory"):
            two_totals.with_options(backend=backend).map(range(3), a=a, b=b)
    assert [0.0] * 4 == totals.tolist()


def test_items_may_lie_where_results_go(backend: Any) -> None:
    """Items that are part of the result are read as they were when the map began."""
    values = np.arange(20_000.0)
    square.with_options(backend=backend).map_into(values, values[::-1])
    assert np.array_equal(np.arange(20_000.0)[::-1] ** 2, values)
    rows = np.arange(40.0).reshape(20, 2)
    double.with_options(backend=backend).map_into(rows, list(rows[::-1]))
    assert np.array_equal(2 * np.arange(40.0).reshape(20, 2)[::-1], rows)


@by_locks
@pytest.mark.parametrize("make", [np.zeros, zeros])
def test_call_within_its_own_lock_is_refused(place: Any, make: Any) -> None:
    """Tasks would wait for the thread that waits for them."""
    grid = make(3)
    task = increment.with_options(backend=place)
    with Locked(grid).write(0):
        for call in (
            lambda: task.map(range(3), grid=Locked(grid)),
            lambda: list(task.imap(range(3), grid=Locked(grid))),
            lambda: task.submit(1, grid=Locked(grid)),
        ):
            with pytest.raises(LockOrderError, match="increment"):
                call()
    task.map(range(3), grid=Locked(grid))
    assert 3.0 == grid[0]


@by_locks
def test_lock_that_an_item_leaves_is_left_for_it(place: Any) -> None:
    """The item fails, and the next ones in the same worker go on."""
    grid = zeros(3)
    task = leaves_a_lock.with_options(backend=place, workers=1, return_exceptions=True)
    results: list[Any] = task.map(range(5), grid=Locked(grid))
    first, *others = results
    assert isinstance(first, SharedTaskError)
    assert "ended within a block that locks [0] of 'grid'" in str(first)
    assert [1, 2, 3, 4] == others


@by_locks
def test_item_that_leaves_a_lock_adds_nothing(place: Any) -> None:
    """It has failed, and the contributions of a failed item do not count."""
    total = np.zeros(1)
    task = adds_and_leaves_a_lock.with_options(backend=place, return_exceptions=True)
    results: list[Any] = task.map(range(5), grid=Locked(zeros(3)), total=total)
    assert [SharedTaskError, *[type(None)] * 4] == list(map(type, results))
    assert 4.0 == total[0]


def test_item_whose_contribution_fails_writes_no_result(backend: Any) -> None:
    """The place of a failed item is unchanged, whatever it failed by."""
    out, total = np.full(5, -1), np.zeros(1)
    task = adds_and_returns.with_options(backend=backend, return_exceptions=True)
    with pytest.raises(ExceptionGroup) as caught:
        task.map_into(out, range(5), total=total)
    assert ["no halves"] == [str(error) for error in caught.value.exceptions]
    assert ([0, 1, 2, -1, 4], 4.0) == (out.tolist(), total[0])


@pytest.mark.parametrize("place", ["thread", "process"])
def test_memory_that_is_mapped_twice_has_one_table(place: Any) -> None:
    """Two calls that reach one memory by two mappings exclude each other."""
    grid = zeros(2)
    task = increment.with_options(backend=place)
    with share(grid, name="twice"), attach("twice", writable=True) as other:
        ways = (grid, other.value)
        calls = [
            threading.Thread(target=task.map, args=(range(200),), kwargs={"grid": way})
            for way in ways
        ]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
    assert 400.0 == grid[0]


@by_locks
def test_living_handle_with_other_regions_is_noticed(place: Any) -> None:
    """A handle whose locks say nothing to those of a call would exclude no one."""
    grid = zeros(4)
    handle = Locked(grid, Regions(blocks=2))
    with pytest.raises(ArgumentError, match="alive"):
        increment.with_options(backend=place).map(range(3), grid=Locked(grid[:2]))
    del handle
    increment.with_options(backend=place).map(range(3), grid=Locked(grid))
    assert 3.0 == grid[0]


def test_memory_that_is_gone_is_refused(backend: Any) -> None:
    """An array over a SharedMemory that was closed is not written, on any backend."""
    memory = SharedMemory(create=True, size=4096)
    gone: Any = np.ndarray((4,), float, memory.buf)
    memory.unlink()
    memory.close()
    for call in (
        lambda: two_totals.with_options(backend=backend).map([1], a=gone, b=np.zeros(1)),
        lambda: fill.with_options(backend=backend).map([slice(0, 2)], out=gone),
        lambda: square.with_options(backend=backend).map_into(gone, [1.0, 2.0, 3.0, 4.0]),
    ):
        with pytest.raises(UnshareableError, match="was unmapped"):
            call()


@pytest.mark.parametrize("place", ["thread", "process"])
def test_earlier_item_keeps_its_retries(place: Any, tmp_path: Any) -> None:
    """The error of a later item that has none left does not take them from an earlier one."""

    def fails(i: int) -> int:
        if i == 20:
            tried = tmp_path / "tried"
            (tmp_path / "late" if tried.exists() else tried).touch()
            raise ValueError(i)
        if i == 3 and not (tmp_path / "late").exists():
            while not (tmp_path / "late").exists():
                time.sleep(0.001)
            time.sleep(0.1)  # the other error is known by now
            raise KeyError(i)
        return i

    task = parallel(backend=place, workers=2, chunksize=1, retries=1)(fails)
    with pytest.raises(ValueError, match="20"):
        task.map(range(40))


# ------------------------------------------------------------------------ small promises


def shape_of(index: int, grid: Locked[Any]) -> tuple[int, tuple[int, ...], str]:
    return len(grid), grid.shape, grid.dtype.str


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
def test_locked_array_tells_its_form(backend: Any) -> None:
    """Length, shape and dtype of a locked array are known without a lock."""
    task: Any = parallel(shape_of).with_options(backend=backend)
    assert [(3, (3, 5), "<i4")] == task.map([0], grid=np.zeros((3, 5), "<i4"))


def add_and_return(k: int, total: Reduced[Any]) -> Any:
    total += k
    return total


def test_returned_accumulator_is_a_result_of_its_own(backend: Any, request: Any) -> None:
    """A task may return what it adds to: neither changes the other."""
    if backend == "ray":
        request.getfixturevalue("ray_runtime")
    total = np.zeros(3)
    task = parallel(add_and_return).with_options(backend=backend, workers=1)
    results = task.map([1, 2, 3], total=total)
    assert [6.0] * 3 == total.tolist()
    seen = [result.tolist() for result in results]
    total += 100
    task.map([4], total=np.zeros(3))
    assert seen == [result.tolist() for result in results]
    for result in filter(lambda each: each.flags.writeable, results):
        result[...] = 0
    assert [106.0] * 3 == total.tolist()
