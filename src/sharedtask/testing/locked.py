# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Tasks that take turns."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pytest

from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    Locked,
    LockOrderError,
    Partitioned,
    Reduced,
    Regions,
    Shared,
    UnshareableError,
    parallel,
    share,
    zeros,
)

from .tasks import BLOCKS, LAYOUTS, REFUSED, all_of, count_up, counted, on_backend, under_backend

if TYPE_CHECKING:
    from collections.abc import Callable


def _count_plain(k: int, grid: Any, times: int = 5) -> int:
    for _ in range(times):
        with grid.write(0) as row:
            value = row.copy()
            os.sched_yield()  # gives the others their chance to read the same
            row[...] = value + 1
    return k


def _count_plain_locked(k: int, grid: Locked[Any], times: int = 5) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_by_word(k: int, grid: Locked[Any], times: int = 5) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_by_bare_word(
    k: int,
    grid: Locked,  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument]  the bare form is under test
    times: int = 5,
) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_in_array(k: int, grid: Locked[np.ndarray[Any, Any]], times: int = 5) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_in_regions(
    k: int, grid: Annotated[Locked[np.ndarray[Any, Any]], Regions(blocks=2)], times: int = 5
) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_by_rule(k: int, grid: Annotated[Any, Regions(blocks=(1,))], times: int = 5) -> int:
    return _count_plain(k, grid, times)


LOCKINGS: dict[str, Any] = {
    # the ways to say that "grid" is locked
    "word": _count_by_word,
    "bare word": _count_by_bare_word,
    "array": _count_in_array,
    "regions": _count_in_regions,
    "rule": _count_by_rule,
    "list": parallel(locked=["grid"])(_count_plain),
}


def _count_row(k: int, grid: Locked[Any]) -> int:
    with grid.write(k % len(grid.array)) as row:
        row[...] += 1
    return k


def _raise_all(_k: int, grid: Locked[Any]) -> tuple[tuple[int, ...], Any]:
    with grid.write() as whole:
        whole[...] += 1
    return grid.shape, grid.dtype


def _raise_at(index: Any, grid: Locked[Any]) -> Any:
    with grid.write(index) as part:
        seen = part.copy()
        part[...] += 1
    with grid.read(index) as part:
        assert np.array_equal(seen + 1, part)
    return seen


def _raise_in_blocks(index: Any, grid: Annotated[Locked[Any], Regions(blocks=2)]) -> Any:
    return _raise_at(index, grid)


def _raise_in_tiles(_k: int, grid: Annotated[Locked[Any], Regions(blocks=(2, 2))]) -> Any:
    return _raise_at(..., grid)


def _write_what_is_read(k: int, grid: Locked[Any]) -> list[str]:
    refused = []
    for index in (..., k, slice(0, 2), (slice(0, 2), 0)):
        with grid.read(index) as part:
            for write in (_set_all, _make_writable, _write_below):
                try:
                    write(part)
                except (ValueError, AttributeError, TypeError) as error:
                    refused.append(type(error).__name__)
    return refused


def _set_all(part: Any) -> None:
    part[...] = -1


def _make_writable(part: Any) -> None:
    part.flags.writeable = True


def _write_below(part: Any) -> None:
    base = part
    while isinstance(base.base, np.ndarray):
        base = base.base
    base[...] = -1


def _lock_then_fail(k: int, grid: Locked[Any], bad: Any, folder: str = "") -> int:
    if folder:
        count_up(folder, "entered")
    with grid.write(k) as row:
        row[...] += 1
        if k in bad:
            message = "failed"
            raise ValueError(message)
    return k


def _lock_at_last(k: int, grid: Locked[Any], folder: str, fails: int) -> int:
    with grid.write(0) as row:
        row[...] += 1
        if count_up(folder, k) <= fails:
            message = "again"
            raise ValueError(message)
    return k


def _lock_if_given(_k: int, grid: Locked[Any] | None = None) -> Any:
    return grid


def _lock_two(
    _k: int,
    left: Locked[Any],
    right: Locked[Any] | None = None,
    table: Shared[Any] = None,
    out: Partitioned[Any] | None = None,
    total: Reduced[Any] | None = None,
    *,
    folder: str,
) -> None:
    del left, right, table, out, total
    count_up(folder, "entered")


def _enter_two(_k: int, left: Locked[Any], right: Locked[Any], first: Any, second: Any) -> str:
    """Ask for a second lock while the first is held; return the outcome."""
    sides = {"left": left, "right": right}
    try:
        with sides[first[0]].write(first[1]), sides[second[0]].write(second[1]):
            told = "both"
    except LockOrderError as error:
        told = "same" if error.same else "order"
    with left.write() as one, right.write() as other:  # nothing of it is still held
        one[...] += 1
        other[...] += 1
    return told


def _enter_two_cells(
    k: int,
    left: Annotated[Locked[Any], Regions(blocks=1)],
    right: Locked[Any],
    first: Any,
    second: Any,
) -> str:
    return _enter_two(k, left, right, first, second)


ENTERINGS: dict[str, tuple[Any, Any, str]] = {
    # what is entered first, what is asked for then, and what comes of it
    "ascending": (("left", 1), ("left", 2), "both"),
    "descending": (("left", 2), ("left", 1), "order"),
    "the same row": (("left", 2), ("left", 2), "same"),
    "the same row from the end": (("left", -1), ("left", 5), "same"),
    "a row of a slice": (("left", slice(1, 4)), ("left", 3), "same"),
    "the row after a slice": (("left", slice(1, 4)), ("left", 4), "both"),
    "a slice from a row on": (("left", 3), ("left", slice(3, 0, -1)), "same"),
    "all, then a row": (("left", ...), ("left", 0), "same"),
    "a row, then all": (("left", 5), ("left", ...), "same"),
    "nothing in all": (("left", ...), ("left", slice(3, 3)), "both"),
    "as the parameters": (("left", 4), ("right", 1), "both"),
    "against the parameters": (("right", 4), ("left", 5), "order"),
}


def _count_in_maps(k: int, grid: Locked[Any], times: int) -> list[int]:
    inner = _count_by_word.with_options(backend="serial")
    return inner.map(range(k), grid=grid, times=times)


def _all_words_locked(
    k: int,
    plain: int,
    grid: Locked[Any],
    out: Partitioned[Any],
    total: Reduced[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
) -> float:
    scratch += plain
    out[...] = k
    total += 1
    with grid.write(0) as row:
        row[...] += table.sum() + scratch.sum()
    return float(scratch.sum())


class Account:
    """Its method takes turns."""

    def __init__(self, by: int) -> None:
        self.by = by

    @parallel
    def pay(self, k: int, grid: Locked[Any]) -> int:
        """Add to the first row."""
        with grid.write(0) as row:
            row[...] += self.by
        return k


_METHODS = ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]


class LockedContract:
    """Tasks take turns in the caller's array; for backends whose workers are on one machine.

    It is no part of ``BackendContract``: others refuse the call.
    """

    @pytest.fixture(params=[False, True], ids=["own", "shared"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        """Arrays of zeros, in the memory of this process alone or in shared memory."""
        return zeros if request.param else np.zeros

    @pytest.mark.parametrize("name", LOCKINGS)
    def test_way_to_lock(self, backend: str, name: str) -> None:
        """However it is declared, items take turns, and the caller's array has their writes."""
        grid = np.zeros((3, 2))
        task = under_backend(backend, LOCKINGS[name]).with_options(chunksize=2)
        assert list(range(20)) == task.map(range(20), grid=grid)
        assert [[100, 100], [0, 0], [0, 0]] == grid.tolist()

    def test_no_update_is_lost(self, backend: str, make: Any) -> None:
        """Concurrent updates of one row by four workers are exact."""
        grid = make((2, 3))
        task = on_backend(backend, _count_plain_locked, workers=4, chunksize=1)
        task.map(range(40), grid=grid, times=25)
        assert [[1000] * 3, [0] * 3] == grid.tolist()

    @pytest.mark.parametrize("method", _METHODS)
    def test_every_method_takes_turns(self, backend: str, method: str, make: Any) -> None:
        """With every way to run the items, their writes are in the array at the end."""
        grid = make(2)
        task = on_backend(backend, _count_plain_locked)
        assert list(range(10)) == sorted(all_of(task, method, range(10), grid=grid))
        assert [50, 0] == grid.tolist()

    def test_futures_share_the_array(self, backend: str, make: Any) -> None:
        """Submitted items that run at the same time see one and the same array."""
        grid = make(1)
        task = on_backend(backend, _count_plain_locked)
        for done in range(2):
            futures = [task.submit(k, grid=grid, times=10) for k in range(20)]
            assert list(range(20)) == [future.result(60) for future in futures]
            assert [200 * (done + 1)] == grid.tolist()

    def test_threads_lock_one_array(self, backend: str, make: Any) -> None:
        """Maps of two threads on one array lose no updates."""
        grid = make(1)
        task = on_backend(backend, _count_plain_locked, chunksize=1)
        with ThreadPoolExecutor(2) as pool:
            maps = [pool.submit(task.map, range(20), grid=grid, times=10) for _ in range(2)]
            assert [list(range(20))] * 2 == [each.result(60) for each in maps]
        assert [400] == grid.tolist()

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layout_of_the_grid(self, backend: str, name: str) -> None:
        """However the array lies in memory, its rows are written and nothing else."""
        around, array = LAYOUTS[name]()
        before = around.copy()
        on_backend(backend, _count_row).map(range(18), grid=array)
        assert np.array_equal(np.arange(60).reshape(6, 10) + 3, array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 0), (4, 5), (5000,), (200_000, 2)])
    def test_shape_of_the_grid(self, backend: str, shape: tuple[int, ...]) -> None:
        """Arrays of any number of axes are locked, also those without elements."""
        grid = np.ones(shape, "i2")
        told = on_backend(backend, _raise_all, chunksize=1).map(range(6), grid=grid)
        assert [(shape, np.dtype("i2"))] * 6 == told
        assert np.array_equal(np.full(shape, 7), grid)

    @pytest.mark.parametrize("name", BLOCKS)
    @pytest.mark.parametrize("function", [_raise_at, _raise_in_blocks])
    def test_write_reaches_the_index(self, backend: str, name: str, function: Any) -> None:
        """A block shows and changes the elements that numpy's indexing would."""
        shape, items = BLOCKS[name]
        array = np.arange(math.prod(shape)).reshape(shape)
        wanted, seen = array.copy(), []
        for item in items:
            seen.append(wanted[item].copy())
            wanted[item] += 1
        told = on_backend(backend, function if shape else _raise_at).map(items, grid=array)
        assert [(part.shape, part.tolist()) for part in seen] == [
            (part.shape, part.tolist()) for part in told
        ]
        assert np.array_equal(wanted, array)

    @pytest.mark.parametrize("index", [[0, 1], np.array([0]), True, None, "a", 1.5], ids=repr)
    def test_index_that_would_copy_is_an_error(self, backend: str, index: Any) -> None:
        """An index that is not made of ints and slices is refused with its reason."""
        grid = np.zeros(4)
        with pytest.raises(ArgumentError, match=r"of an array of shape \(4,\).*Use ints, slices"):
            on_backend(backend, _raise_at).map([index], grid=grid)
        assert not grid.any()

    @pytest.mark.parametrize("index", [4, -5, (0, 0), (1, slice(4), 0)], ids=repr)
    def test_index_outside_is_an_error(self, backend: str, index: Any) -> None:
        """An int outside, or one axis too many, is IndexError."""
        with pytest.raises(IndexError, match=r"of an array of shape \(4,\)"):
            on_backend(backend, _raise_at).map([index], grid=np.zeros(4))

    def test_what_is_read_cannot_be_written(self, backend: str, make: Any) -> None:
        """A view that reads is read-only, cannot be made writable, nor can its base."""
        grid = make((4, 3))
        grid[...] = 5
        refused = on_backend(backend, _write_what_is_read).map(range(4), grid=grid)
        assert [["ValueError"] * 12] * 4 == refused
        assert [[5] * 3] * 4 == grid.tolist()

    @pytest.mark.parametrize("name", ENTERINGS)
    @pytest.mark.parametrize("function", [_enter_two, _enter_two_cells])
    def test_two_locks_of_one_thread(
        self, backend: str, name: str, function: Any, make: Any
    ) -> None:
        """A possible deadlock is LockOrderError at once, and held locks are released."""
        first, second, wanted = ENTERINGS[name]
        grids = {"left": make(6), "right": make(6)}
        told = on_backend(backend, function).map(range(3), **grids, first=first, second=second)
        assert [wanted] * 3 == told
        assert [[3] * 6] * 2 == [grid.tolist() for grid in grids.values()]

    def test_error_leaves_what_was_written(self, backend: str, make: Any) -> None:
        """When a map raises, the array has all writes, also of the failed item."""
        grid = make(6)
        with pytest.raises(ValueError, match="failed"):
            on_backend(backend, _lock_then_fail, workers=1, chunksize=1).map(
                range(6), grid=grid, bad=[3]
            )
        assert [1] * 4 == grid[:4].tolist()

    def test_error_in_a_block_leaves_it_whole(self, backend: str, make: Any) -> None:
        """A task that raises inside its block is alive: the region is free, and not poisoned."""
        grid = make(6)
        task = on_backend(backend, _lock_then_fail, return_exceptions=True, chunksize=2)
        results = task.map([*range(6), *range(6)], grid=grid, bad=[1, 4])
        assert [1, 4, 7, 10] == [k for k, r in enumerate(results) if isinstance(r, ValueError)]
        assert [2] * 6 == grid.tolist()

    def test_retried_item_writes_again(self, backend: str, make: Any, tmp_path: Path) -> None:
        """Each attempt of an item sees the writes of earlier attempts."""
        grid = make(1)
        task = on_backend(backend, _lock_at_last, retries=2, chunksize=3)
        assert list(range(6)) == task.map(range(6), grid=grid, folder=str(tmp_path), fails=2)
        assert [18] == grid.tolist()

    def test_failed_call_is_over(self, backend: str, tmp_path: Path) -> None:
        """A call that raised does not count as running, also while its error is kept."""
        grid = np.zeros(6)
        task = on_backend(backend, _lock_then_fail)
        with pytest.raises(ValueError, match="failed") as caught:
            task.map([0], grid=grid, bad=[0], folder=str(tmp_path))
        grid[...] = 10
        task.map(range(3), grid=grid[:3], bad=[])
        on_backend("thread", _lock_then_fail).map(range(6), grid=grid, bad=[])
        assert [12, 12, 12, 11, 11, 11] == grid.tolist()
        assert caught.value.__traceback__ is not None

    def test_what_the_caller_changed_is_seen(self, backend: str, make: Any) -> None:
        """Between two calls the caller may change the array; tasks see its contents."""
        grid = make(2)
        task = on_backend(backend, _count_row)
        for k in range(3):
            grid[...] = 10 * k
            task.map(range(4), grid=grid)
            assert [10 * k + 2] * 2 == grid.tolist()

    @pytest.mark.parametrize("how", ["positional", "by name", "locked"])
    def test_call_locks(self, backend: str, how: str, make: Any) -> None:
        """Called directly, the function gets its array behind locks as well."""
        grid = make(2)
        task = on_backend(backend, _count_plain_locked)
        if how == "positional":
            assert 3 == task(3, grid)
        else:
            assert 3 == task(3, grid=Locked(grid) if how == "locked" else grid)
        assert [5, 0] == grid.tolist()

    def test_callers_lock_is_an_argument(self, backend: str, make: Any) -> None:
        """The caller's own Locked may replace its array."""
        grid = make(2)
        mine = Locked(grid)
        on_backend(backend, _count_plain_locked).map(range(4), grid=mine)
        with mine.read() as whole:
            assert [20, 0] == whole.tolist()
        assert [20, 0] == grid.tolist()

    def test_locked_or_nothing(self, backend: str) -> None:
        """A parameter that may be left out is its default in every item, or None."""
        task = on_backend(backend, _lock_if_given)
        assert [None] * 3 == task.map(range(3))
        assert [None] * 3 == task.map(range(3), grid=None)
        assert task(1) is None

    def test_method_takes_turns(self, backend: str, make: Any) -> None:
        """A task may be a method, mapped or called."""
        grid = make(2)
        task = under_backend(backend, Account(3).pay)
        assert list(range(4)) == task.map(range(4), grid=grid)
        assert 7 == task(7, grid)
        assert [15, 0] == grid.tolist()

    def test_locked_beside_the_other_words(self, backend: str, make: Any) -> None:
        """Locked can be combined with every other role."""
        grid, out, total = make(1), np.zeros(4), np.zeros(1)
        told = on_backend(backend, _all_words_locked).map(
            range(4), 1, grid=grid, out=out, total=total, table=np.ones(3), scratch=np.ones(2)
        )
        assert [4.0] * 4 == told
        assert ([28.0], [0, 1, 2, 3], [4.0]) == (grid.tolist(), out.tolist(), total.tolist())

    def test_locks_of_a_map_in_a_task(self, backend: str, make: Any) -> None:
        """The items of a map inside a task take turns with all others."""
        grid = make(1)
        task = on_backend(backend, _count_in_maps, workers=4, chunksize=1)
        task.map([3] * 8, grid=grid, times=20)
        assert [480] == grid.tolist()

    @pytest.mark.parametrize("other", ["right", "table", "out", "total"])
    @pytest.mark.parametrize("which", ["same", "view", "wider"])
    def test_memory_of_another_parameter_is_refused(
        self, backend: str, other: str, which: str, make: Any, tmp_path: Path
    ) -> None:
        """The memory of a locked array must not be that of another parameter."""
        whole = make(8)
        given: Any = {"same": whole[:4], "view": whole[1:3], "wider": whole}[which]
        with pytest.raises(ArgumentError, match="the same memory") as caught:
            on_backend(backend, _lock_two).map(
                [0], left=whole[:4], **{other: given}, folder=str(tmp_path)
            )
        assert "'left'" in str(caught.value)
        assert f"'{other}'" in str(caught.value)
        assert {} == counted(tmp_path)

    def test_other_view_of_what_is_locked_is_refused(self, backend: str, make: Any) -> None:
        """While a call locks an array, its memory is not locked as another one; then it is."""
        grid = make(6)
        task = on_backend(backend, _count_row, chunksize=1)
        stream = task.imap(range(12), grid=grid[:4])
        next(stream)
        with pytest.raises(ArgumentError, match=r"'grid' shares memory.*running"):
            task.map(range(6), grid=grid)
        assert 11 == len(list(stream))
        task.map(range(6), grid=grid)
        assert [4, 4, 4, 4, 1, 1] == grid.tolist()

    @pytest.mark.parametrize("name", [*REFUSED, "handle"])
    def test_array_that_cannot_be_locked_is_refused(
        self, backend: str, name: str, tmp_path: Path
    ) -> None:
        """A value that cannot be locked is refused by the parameter's name; nothing runs."""
        task = on_backend(backend, _lock_then_fail)
        with share(np.zeros(2)) as handle:
            makers: dict[str, Callable[[], Any]] = {**REFUSED, "handle": lambda: handle}
            with pytest.raises((ArgumentError, UnshareableError), match="'grid'"):
                task.map([0], grid=makers[name](), bad=[], folder=str(tmp_path))
        assert {} == counted(tmp_path)

    def test_regions_that_do_not_fit_are_refused(self, backend: str) -> None:
        """More lengths than the array has axes are refused before anything runs."""
        with pytest.raises(ArgumentError, match=r"Regions.*\(2, 2\).*shape \(4,\)"):
            on_backend(backend, _raise_in_tiles).map([0], grid=np.zeros(4))
        on_backend(backend, _raise_in_tiles).map([0], grid=np.zeros((4, 1)))

    def test_what_is_locked_is_not_kept(self, backend: str) -> None:
        """``cache_info`` counts shared values, not locked ones."""
        task = on_backend(backend, _count_row)
        task.map(range(4), grid=np.zeros(100_000))
        assert (0, 0) == task.cache_info()[:2]
