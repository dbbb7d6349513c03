# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Tasks that add up."""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pytest

from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    Partitioned,
    Reduced,
    Reduction,
    Shared,
    UnshareableError,
    parallel,
    share,
    zeros,
)

from .patience import until
from .strategies import assert_same
from .tasks import (
    LAYOUTS,
    REFUSED,
    all_of,
    count_up,
    counted,
    drained,
    on_backend,
    some_of,
    under_backend,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt


def _add_plain(k: int, total: Any) -> int:
    total += k
    return k


@parallel
def _add_by_word(k: int, total: Reduced[Any]) -> int:
    total += k
    return k


@parallel
def _add_by_rule(k: int, total: Annotated[Any, Reduction("sum")]) -> int:
    total += k
    return k


@parallel
def _add_by_both(k: int, total: Annotated[Reduced[Any], Reduction(np.add)]) -> int:
    total += k
    return k


def _add_if_given(k: int, total: Reduced[Any] | None = None) -> bool:
    del k
    return total is None


SUMS: dict[str, Any] = {
    # the ways to say that items add to "total"
    "word": _add_by_word,
    "rule": _add_by_rule,
    "both": _add_by_both,
    "list": parallel(reduced=["total"])(_add_plain),
    "name": parallel(reduced={"total": "sum"})(_add_plain),
    "ufunc": parallel(reduced={"total": np.add})(_add_plain),
    "dict": parallel(reduced={"total": Reduction("sum", identity=0)})(_add_plain),
}


OPERATIONS: dict[str, tuple[Any, str]] = {
    # what combines, the dtype of the array
    **{f"sum of {t}": ("sum", t) for t in ("i8", "u1", ">i4", "f2", "f4", ">f8", "c8", "m8[s]")},
    **{f"prod of {t}": ("prod", t) for t in ("i8", "f8", "c16", "?")},
    **{f"min of {t}": ("min", t) for t in ("i1", "u8", "f4", "c16", "?", "M8[D]", ">m8[s]")},
    **{f"max of {t}": ("max", t) for t in ("i8", "u2", ">f8", "g", "?", ">M8[ns]", "m8[us]")},
    **{f"any of {t}": ("any", t) for t in ("?", "i4")},
    **{f"all of {t}": ("all", t) for t in ("?", "f8")},
    "logaddexp": (np.logaddexp, "f8"),
    "fmax": (np.fmax, "f8"),
    "fmin": (np.fmin, "M8[s]"),
    "hypot": (np.hypot, "f8"),
    "bitwise_or": (np.bitwise_or, "u1"),
    "bitwise_and": (np.bitwise_and, "i8"),
    "bitwise_xor": (np.bitwise_xor, "i4"),
    "gcd": (np.gcd, "i8"),
    "lcm": (np.lcm, "i8"),
}


_UFUNCS: dict[Any, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "any": np.logical_or,
    "all": np.logical_and,
}


def _rows_of(dtype: str, count: int) -> npt.NDArray[Any]:
    """Rows of small numbers that differ, below and above zero where the dtype has such."""
    numbers = np.random.default_rng(7).integers(1, 7, (count, 5))
    if np.dtype(dtype).kind in "ifcmM":
        numbers[::2, 1:3] *= -1
    if np.dtype(dtype).kind in "?b":
        numbers = numbers % 2
    return numbers.astype(dtype)


def _combine_row(k: int, total: Any, rows: Shared[Any], ufunc: Any) -> int:
    ufunc(total, rows[k], out=total, casting="same_kind")
    return k


def _larger(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(one > other, one, other)


def _larger_in_place(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    one[...] = np.where(one > other, one, other)
    return one


def _count(k: int, hist: Reduced[Any]) -> int:
    hist[k % len(hist)] += 1
    return k


def _add_to_array(_k: int, total: Reduced[np.ndarray[Any, Any]], folder: str) -> None:
    count_up(folder, "entered")
    total += 1


def _add_ramp(k: int, total: Reduced[Any]) -> int:
    total += np.arange(total.size).reshape(total.shape) * k
    return k


def _add_then_fail(k: int, total: Reduced[Any], bad: Any, folder: str = "") -> int:
    if folder:
        count_up(folder, "entered")
    total += k
    if k in bad:
        message = "failed"
        raise ValueError(message)
    total += k
    return k


def _add_then_fail_plain(k: int, total: Any, bad: Any, folder: str = "") -> int:
    return _add_then_fail(k, total, bad, folder)


def _add_at_last(k: int, total: Reduced[Any], folder: str, fails: int) -> int:
    total += 1
    if count_up(folder, k) <= fails * (k % 2):
        message = "again"
        raise ValueError(message)
    return k


def _add_slowly(k: int, total: Reduced[Any], folder: str) -> int:
    total += 1
    count_up(folder, "entered")
    time.sleep(0.02)
    return k


def _add_and_see(
    k: int,
    plain: int,
    low: Annotated[Any, Reduction("min")],
    out: Partitioned[Any],
    total: Reduced[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
) -> float:
    scratch += plain
    out += table[k]
    total += scratch.sum()
    low[...] = np.minimum(low, out)
    return float(scratch.sum())


def _count_nested(k: int, hist: Reduced[Any]) -> list[int]:
    return parallel(_count).map(range(k), hist=hist)


def _wave(k: int, total: Any) -> int:
    # As large as 1e16 and as small as 1: the order in which such numbers are added shows.
    total += np.sin(k + np.arange(3.0)) * 10.0 ** (k % 17)
    return k


_EXACT = Reduction("sum", deterministic=True)


_sum_of_waves = parallel(reduced={"total": _EXACT})(_wave)


class Weight:
    """Its method adds to an array."""

    def __init__(self, by: int) -> None:
        self.by = by

    @parallel
    def add(self, k: int, total: Reduced[Any]) -> int:
        """Add to every element."""
        total += self.by
        return k


class ReducedContract:
    """Every successful item adds to the caller's array exactly once."""

    @pytest.mark.parametrize("name", SUMS)
    def test_way_to_say_it(self, backend: str, name: str) -> None:
        """However it is declared, the array has its old contents plus all contributions."""
        total = np.full(3, 100)
        assert list(range(20)) == under_backend(backend, SUMS[name]).map(range(20), total=total)
        assert [290] * 3 == total.tolist()

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_operation(self, backend: str, name: str) -> None:
        """Any operation combines the array's contents with the items' values, for its dtypes."""
        op, dtype = OPERATIONS[name]
        ufunc: Any = _UFUNCS.get(op, op)
        held, *rows = _rows_of(dtype, 10)
        if name == "fmax":
            rows[3][1], rows[4][2] = np.nan, np.nan
        wanted = functools.reduce(lambda a, b: ufunc(a, b).astype(a.dtype), rows, held)
        task: Any = parallel(reduced={"total": op})(_combine_row)
        task = task.with_options(backend=backend, chunksize=2)
        assert list(range(9)) == task.map(range(9), total=held, rows=np.array(rows), ufunc=ufunc)
        if ufunc in (np.logaddexp, np.hypot):
            np.testing.assert_allclose(held, wanted, rtol=1e-12)
        else:
            assert_same(wanted, held)

    @pytest.mark.parametrize("function", [_larger, _larger_in_place])
    @pytest.mark.parametrize("itemwise", [False, True])
    def test_function_of_two_arrays(self, backend: str, function: Any, itemwise: bool) -> None:
        """A function may return a new array, or write into its first argument and return that."""
        held, *rows = _rows_of("f8", 10)
        wanted = np.max([held, *rows], axis=0)
        task: Any = parallel(reduced={"total": Reduction(function, identity=-np.inf)})(_combine_row)
        task = task.with_options(backend=backend, chunksize=2, return_exceptions=itemwise)
        task.map(range(9), total=held, rows=np.array(rows), ufunc=np.maximum)
        assert_same(wanted, held)

    def test_identity_is_an_array(self, backend: str) -> None:
        """An identity may differ from element to element, and is broadcast."""
        lowest = np.array([1, 2, 3])
        reduction = Reduction("max", identity=lowest)
        task: Any = parallel(reduced={"total": reduction})(_combine_row)
        total, rows = np.zeros((2, 3), "i8"), np.zeros((4, 3), "i8")
        under_backend(backend, task).map(range(4), total=total, rows=rows, ufunc=np.maximum)
        assert [[1, 2, 3]] * 2 == total.tolist()

    @pytest.mark.parametrize("itemwise", [False, True])
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layout_of_the_total(self, backend: str, name: str, itemwise: bool) -> None:
        """However the array lies in memory, it has the sum and nothing else changes."""
        around, array = LAYOUTS[name]()
        before = around.copy()
        task = on_backend(backend, _add_ramp, return_exceptions=itemwise)
        assert list(range(7)) == task.map(range(7), total=array)
        assert np.array_equal(np.arange(60).reshape(6, 10) * 22, array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("itemwise", [False, True])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 0), (4, 5), (2, 3, 4)])
    def test_shape_of_the_total(self, backend: str, shape: tuple[int, ...], itemwise: bool) -> None:
        """Arrays of any number of axes are added to, also those of one element and of none."""
        total = np.ones(shape, "i8")
        on_backend(backend, _add_ramp, return_exceptions=itemwise).map(range(7), total=total)
        assert shape == total.shape
        assert np.array_equal(1 + 21 * np.arange(total.size).reshape(shape), total)

    def test_large_array(self, backend: str) -> None:
        """An accumulator of 8 MB is exact at both ends and in between."""
        total = np.ones(1 << 20)
        on_backend(backend, _add_ramp, chunksize=2).map(range(7), total=total)
        assert np.array_equal(1 + 21.0 * np.arange(1 << 20), total)

    @pytest.mark.parametrize(
        "method", ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]
    )
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_every_method_adds_up(self, backend: str, method: str, born_shared: bool) -> None:
        """With every way to run the items, all of them are counted at the end."""
        hist = zeros(3, "i8") if born_shared else np.zeros(3, "i8")
        task = on_backend(backend, _count)
        assert list(range(10)) == sorted(all_of(task, method, range(10), hist=hist))
        assert [4, 3, 3] == hist.tolist()

    def test_many_items(self, backend: str) -> None:
        """Thousands of items on several workers are each counted once."""
        hist = np.zeros(7, "i8")
        assert list(range(20_000)) == on_backend(backend, _count).map(range(20_000), hist=hist)
        assert np.bincount(np.arange(20_000) % 7).tolist() == hist.tolist()

    def test_items_that_cannot_be_counted(self, backend: str) -> None:
        """The items may come from anywhere, and need not be counted before."""
        hist = np.zeros(3, "i8")
        assert 1000 == len(on_backend(backend, _count).map(iter(range(1000)), hist=hist))
        assert [334, 333, 333] == hist.tolist()

    @pytest.mark.parametrize("items", [[], iter([])], ids=["list", "iterator"])
    @pytest.mark.parametrize("method", ["map", "imap"])
    @pytest.mark.parametrize("op", ["sum", "min", _EXACT], ids=["sum", "min", "exact"])
    def test_no_items_add_nothing(self, backend: str, method: str, items: Any, op: Any) -> None:
        """Nothing to do changes nothing."""
        total = np.array([5, -5])
        task = under_backend(backend, parallel(reduced={"total": op})(_add_plain))
        assert [] == list(getattr(task, method)(items, total=total))
        assert [5, -5] == total.tolist()

    def test_second_map_goes_on(self, backend: str) -> None:
        """A map adds to the result of the previous one, and to values set since."""
        hist = np.zeros(2, "i8")
        task = on_backend(backend, _count)
        task.map(range(10), hist=hist)
        hist[0] = 100
        task.map(range(11), hist=hist)
        assert [106, 10] == hist.tolist()

    def test_call_gets_the_callers_array(self, backend: str) -> None:
        """Called directly, the function gets its arguments as they are."""
        hist = np.zeros(2, "i8")
        assert 3 == on_backend(backend, _count)(3, hist)
        assert [0, 1] == hist.tolist()

    def test_no_total(self, backend: str) -> None:
        """A parameter that may be left out, or may be None, is that in every item."""
        task = on_backend(backend, _add_if_given)
        assert [True] * 3 == task.map(range(3))
        assert [True] * 3 == task.map(range(3), total=None)
        assert [False] * 3 == task.map(range(3), total=np.zeros(1))

    @pytest.mark.parametrize("itemwise", [False, True])
    def test_totals_beside_the_other_words(self, backend: str, itemwise: bool) -> None:
        """Several totals, shared, private, partitioned and plain arguments go together."""
        out, total, low = np.zeros(4), np.array([1.0]), np.full((2, 1), 9.0)
        task = on_backend(backend, _add_and_see, return_exceptions=itemwise, chunksize=2)
        table, scratch = np.array([7.0, 3.0, 5.0, 4.0]), np.ones(2)
        values = {"low": low, "out": out, "total": total, "table": table, "scratch": scratch}
        assert [6.0] * 4 == task.map(range(4), 2, **values)
        assert [7.0, 3.0, 5.0, 4.0] == out.tolist()
        assert ([25.0], [[3.0], [3.0]]) == (total.tolist(), low.tolist())

    def test_method_of_an_object(self, backend: str) -> None:
        """A method adds like any function."""
        total = np.zeros(2)
        assert [0, 1, 2] == under_backend(backend, Weight(3).add).map(range(3), total=total)
        assert [9.0, 9.0] == total.tolist()

    @pytest.mark.parametrize(
        "method", ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]
    )
    @pytest.mark.parametrize("retries", [0, 1])
    def test_error_leaves_the_array(self, backend: str, method: str, retries: int) -> None:
        """A call that raises has added nothing, whatever its other items did."""
        total = np.full(2, 5)
        task = on_backend(backend, _add_then_fail, retries=retries, chunksize=3)
        with pytest.raises(ValueError, match="failed"):
            all_of(task, method, [7] if method == "submit" else range(20), total=total, bad=[7])
        assert [5, 5] == total.tolist()
        task.map(range(4), total=total, bad=[])
        assert [17, 17] == total.tolist()

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    @pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
    def test_broken_item_source_adds_nothing(
        self, backend: str, method: str, error: type[BaseException]
    ) -> None:
        """Where the items end by an error or by Ctrl-C, nothing is added."""
        hist = np.full(2, 5)
        task = on_backend(backend, _count, chunksize=2)
        with pytest.raises(error, match="no more"):
            drained(getattr(task, method)(_broken_source(20, error), hist=hist))
        assert [5, 5] == hist.tolist()
        task.map(range(2), hist=hist)
        assert [6, 6] == hist.tolist()

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_stream_that_is_left_early(self, backend: str, method: str) -> None:
        """A stream adds when it has given its last result, and nothing when it is left before."""
        hist = np.zeros(2, "i8")
        task = on_backend(backend, _count, chunksize=1)
        assert 3 == len(list(some_of(getattr(task, method)(range(10), hist=hist), 3)))
        assert [0, 0] == hist.tolist()
        task.map(range(10), hist=hist)
        assert [5, 5] == hist.tolist()

    def test_cancelled_amap_adds_nothing(self, backend: str, tmp_path: Path) -> None:
        """An ``amap`` that is cancelled leaves the array as it was."""
        total = np.zeros(1)
        task = on_backend(backend, _add_slowly, chunksize=1)

        async def cancelled() -> None:
            running = asyncio.ensure_future(task.amap(range(500), total, folder=str(tmp_path)))
            await asyncio.to_thread(_wait_for_count, tmp_path)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        asyncio.run(asyncio.wait_for(cancelled(), 60))
        assert 0 == total
        assert [0] == task.map([0], total, folder=str(tmp_path))
        assert 1 == total
        assert 500 > counted(tmp_path)["entered"]

    @pytest.mark.parametrize("chunksize", [1, 4, "auto"])
    @pytest.mark.parametrize("op", ["sum", _EXACT], ids=["sum", "exact"])
    def test_failed_item_adds_nothing(self, backend: str, chunksize: Any, op: Any) -> None:
        """With ``return_exceptions`` all but the failed items are counted, as wholes."""
        total, bad = np.zeros(2, "i8"), {0, 3, 4, 11, 19}
        task: Any = parallel(reduced={"total": op})(_add_then_fail_plain)
        task = task.with_options(backend=backend, return_exceptions=True, chunksize=chunksize)
        results = task.map(range(20), total=total, bad=bad)
        assert bad == {k for k, r in enumerate(results) if isinstance(r, ValueError)}
        assert [2 * sum(k for k in range(20) if k not in bad)] * 2 == total.tolist()

    def test_every_item_fails(self, backend: str) -> None:
        """Where no item succeeds, the array is as it was."""
        total = np.full(2, 5)
        task = on_backend(backend, _add_then_fail, return_exceptions=True, chunksize=3)
        assert 8 == len(task.map(range(8), total=total, bad=range(8)))
        assert [5, 5] == total.tolist()

    @pytest.mark.parametrize("method", ["map", "imap", "submit"])
    def test_retried_item_counts_once(self, backend: str, method: str, tmp_path: Path) -> None:
        """An item that succeeds at a later attempt is counted for that attempt only."""
        total = np.zeros(1, "i8")
        task = on_backend(backend, _add_at_last, retries=2, chunksize=4)
        values = {"total": total, "folder": str(tmp_path), "fails": 2}
        results = all_of(task, method, range(10), **values)
        assert list(range(10)) == results
        assert {str(k): 1 + 2 * (k % 2) for k in range(10)} == counted(tmp_path)
        assert 10 == total

    @pytest.mark.parametrize("workers", [1, 2, 3, 5])
    @pytest.mark.parametrize("chunksize", ["auto", 7])
    def test_deterministic_sum(self, backend: str, workers: int, chunksize: Any) -> None:
        """With ``deterministic`` no bit depends on the backend, the workers or their luck."""
        reference = np.zeros(3)
        _sum_of_waves.with_options(backend="serial", workers=1, chunksize=chunksize).map(
            range(500), total=reference
        )
        task = under_backend(
            backend, _sum_of_waves.with_options(workers=workers, chunksize=chunksize)
        )
        for items in (range(500), list(range(500))):
            total = np.zeros(3)
            task.map(items, total=total)
            assert reference.tobytes() == total.tobytes()

    def test_deterministic_sum_of_a_stream(self, backend: str) -> None:
        """A small buffer and items that cannot be counted keep the bits, and do not hang."""
        task: Any = _sum_of_waves.with_options(buffersize=5)
        for make in (iter, list):
            reference, total = np.zeros(3), np.zeros(3)
            drained(under_backend("serial", task).imap(make(range(200)), total=reference))
            for method in ("imap", "imap_unordered"):
                total[...] = 0
                results = drained(
                    getattr(under_backend(backend, task), method)(make(range(200)), total)
                )
                assert 200 == len(results)
                assert reference.tobytes() == total.tobytes()

    def test_threads_add_to_one_array(self, backend: str) -> None:
        """Maps of several threads that add to one array at the same time lose nothing."""
        hist = np.zeros(5, "i8")
        task = on_backend(backend, _count)
        with ThreadPoolExecutor(4) as pool:
            maps = [pool.submit(task.map, range(500), hist=hist) for _ in range(4)]
            assert [list(range(500))] * 4 == [each.result(60) for each in maps]
        assert [400] * 5 == hist.tolist()

    def test_futures_add_to_one_array(self, backend: str) -> None:
        """Many submits that add to one array at the same time lose nothing."""
        hist = np.zeros(5, "i8")
        futures = [on_backend(backend, _count).submit(k, hist=hist) for k in range(50)]
        assert list(range(50)) == [future.result(60) for future in futures]
        assert [10] * 5 == hist.tolist()

    def test_map_in_a_task(self, backend: str) -> None:
        """A task may map over what it adds to; the inner map adds to the outer item's array."""
        hist = np.zeros(2, "i8")
        assert [[], [0], [0, 1], [0, 1, 2]] == on_backend(backend, _count_nested).map(
            range(4), hist=hist
        )
        assert [4, 2] == hist.tolist()

    @pytest.mark.parametrize("method", ["map", "imap", "submit"])
    @pytest.mark.parametrize("name", [*REFUSED, "handle", "none"])
    def test_array_that_cannot_be_added_to_is_refused(
        self, backend: str, method: str, name: str, tmp_path: Path
    ) -> None:
        """An array that cannot take a sum is refused by the parameter's name; nothing runs."""
        with share(np.zeros(2)) as handle:
            values = {"handle": handle, "none": None}
            value = values[name] if name in values else REFUSED[name]()
            task = on_backend(backend, _add_to_array)
            with pytest.raises((ArgumentError, UnshareableError), match="'total'"):
                all_of(task, method, [0], total=value, folder=str(tmp_path))
        assert {} == counted(tmp_path)

    def test_nothing_is_kept(self, backend: str) -> None:
        """``cache_info`` counts shared values, not accumulators."""
        hist = np.zeros(1000)
        task = on_backend(backend, _count)
        before = task.cache_info()
        task.map(range(4), hist=hist)
        task.map(range(4), hist=hist)
        assert before == task.cache_info()


def _broken_source(count: int, error: type[BaseException]) -> Iterator[int]:
    yield from range(count)
    message = "no more"
    raise error(message)


def _wait_for_count(folder: Path) -> None:
    """Return when a task has counted something."""
    until(lambda: counted(folder))
