# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Results that are written into an array."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    Partitioned,
    Reduced,
    Shared,
    TaskTimeoutError,
    UnshareableError,
    empty,
    zeros,
)

from .strategies import DTYPES, array_of, assert_same
from .tasks import (
    LAYOUTS,
    REFUSED,
    Model,
    attempt,
    count_up,
    counted,
    notes_of,
    on_backend,
    square,
    under_backend,
)

if TYPE_CHECKING:
    import numpy.typing as npt


def _hundreds(k: int) -> npt.NDArray[Any]:
    return 100 * k + np.arange(10)


def _row_of(k: int, rows: Shared[Any]) -> Any:
    return rows[k]


def _value_of(k: int, values: Any) -> Any:
    return values[k]


def _square_entered(x: int, folder: str, table: Shared[Any] = None) -> int:
    del table
    count_up(folder, "entered")
    return x * x


def _square_into_block(x: int, out: Partitioned[Any], folder: str) -> int:
    del out
    return _square_entered(x, folder)


def _take_out(_k: int, out: int) -> int:
    return out


def _fail_plus_one(x: int, bad: Any) -> int:
    if x in bad:
        message = "failed"
        raise ValueError(message)
    return x + 1


def _sleep_plus_one(x: int, slow: int) -> int:
    if x == slow:
        time.sleep(0.6)
    return x + 1


def _all_words_into(
    k: int,
    plain: int,
    out: Partitioned[Any],
    total: Reduced[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
    *,
    word: str = "",
) -> float:
    scratch += plain
    out[...] = -k
    total += 1
    return float(scratch.sum() + table[k] + len(word))


def _sum_into_total(k: int, total: Reduced[Any]) -> Any:
    total += 1
    return [1, 2] if k % 3 == 0 else k


FITTING: dict[str, tuple[str, Any]] = {
    # dtype of the array of shape (4, 3), the results
    "floats to ints": ("i4", [[1.7, -1.7, 2.0]] * 4),
    "ints to floats": ("f4", [[1, 2, 3], range(3), (4, 5, 6), np.arange(3, dtype="u1")]),
    "one for a row": ("f8", [1, 2.5, np.float32(3), np.array(4)]),
    "one element": ("i8", [[1], (2,), np.array([3]), np.array([[4]])]),
    "bools": ("?", [[0, 1, 2], True, np.ones(3), 0]),
    "texts": ("U2", [["a", "bc", "def"], "xyz", b"q", 12]),
    "times": ("M8[D]", ["2020-01-02", np.datetime64("2021-01-01T12", "h"), None, "NaT"]),
    "byte order": (">i2", [[1, 2, 3], np.arange(3, dtype="<i8"), 7, np.int8(-1)]),
}


UNFITTING: dict[str, tuple[str, Any]] = {
    # dtype of the array of shape (4, 3), and a result that numpy refuses
    "too long": ("f8", [1, 2, 3, 4]),
    "too short": ("f8", np.arange(2)),
    "no array": ("f8", [1, [2], 3]),
    "too many axes": ("f8", np.zeros((2, 3))),
    "none": ("f8", "abc"),
    "too large": ("i8", 10**30),
    "dict": ("i8", {}),
}


class IntoContract:
    """``map_into``: each result is in its place of the caller's array, and nothing else changes."""

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_results_stand_in_the_array(self, backend: str, name: str) -> None:
        """However the array lies in memory, its rows are the results, nothing else changes."""
        around, array = LAYOUTS[name]()
        before = around.copy()
        assert array is on_backend(backend, _hundreds, chunksize=2).map_into(array, range(6))
        assert np.array_equal(100 * np.arange(6)[:, None] + np.arange(10), array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "O"])
    @pytest.mark.parametrize("shape", [(6,), (6, 3)])
    def test_dtype_of_the_results(self, backend: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Numbers, strings, times and records are written exactly."""
        rows = array_of(dtype, shape)
        out = on_backend(backend, _row_of).map_into(np.zeros_like(rows), range(6), rows=rows)
        assert rows.dtype == out.dtype
        assert np.array_equal(rows, out)  # of a longdouble six bytes say nothing

    @pytest.mark.parametrize("name", FITTING)
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_results_are_assigned(self, backend: str, name: str, born_shared: bool) -> None:
        """A result is converted as by ``out[i] = result``."""
        dtype, values = FITTING[name]
        wanted = np.zeros((4, 3), dtype)
        for k, value in enumerate(values):
            wanted[k] = value
        out = empty((4, 3), dtype) if born_shared else np.empty((4, 3), dtype)
        on_backend(backend, _value_of, chunksize=2).map_into(out, range(4), values=values)
        assert_same(wanted, out)

    @pytest.mark.parametrize("name", UNFITTING)
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_result_that_does_not_fit(self, backend: str, name: str, born_shared: bool) -> None:
        """A result that numpy cannot assign is numpy's error at its item."""
        dtype, value = UNFITTING[name]
        out = zeros((4, 3), dtype) if born_shared else np.zeros((4, 3), dtype)
        with pytest.raises((TypeError, ValueError, OverflowError)) as numpys:
            out[2] = value
        out[...] = 9
        with pytest.raises(numpys.type, match=re.escape(str(numpys.value))) as caught:
            on_backend(backend, _value_of, chunksize=1).map_into(
                out, range(4), values=[1, 1, value, 1]
            )
        assert [2] == [note.index for note in notes_of(caught.value)]
        assert [9] * 3 == out[2].tolist()

    @pytest.mark.parametrize("chunksize", ["auto", 1, 7, 1000])
    def test_every_result_has_its_place(self, backend: str, chunksize: Any) -> None:
        """Results of many items are in their places, however they are cut into chunks."""
        out = zeros(300, "i8")
        on_backend(backend, square, chunksize=chunksize).map_into(out, range(300))
        assert [k * k for k in range(300)] == out.tolist()

    def test_results_of_a_generator(self, backend: str) -> None:
        """The items may be any iterable; they are counted first."""
        out = on_backend(backend, square).map_into(np.zeros(5), (k for k in range(5)))
        assert [0, 1, 4, 9, 16] == out.tolist()

    @pytest.mark.parametrize("shape", [(0,), (0, 3)])
    def test_no_results(self, backend: str, shape: tuple[int, ...]) -> None:
        """No items fill an array of no rows."""
        out = np.ones(shape)
        assert out is on_backend(backend, square).map_into(out, [])

    def test_rows_without_elements(self, backend: str) -> None:
        """Rows of no elements take results of no elements."""
        out = np.ones((4, 0))
        assert out is on_backend(backend, _value_of).map_into(out, range(4), values=[()] * 4)

    @pytest.mark.parametrize("shape", [(3,), (5,), (0,), (), (1, 4)])
    @pytest.mark.parametrize("as_generator", [False, True])
    def test_array_of_another_length_is_refused(
        self, backend: str, shape: tuple[int, ...], as_generator: bool, tmp_path: Path
    ) -> None:
        """Without one place for each item nothing runs, and the error has both numbers."""
        items = iter(range(4)) if as_generator else range(4)
        with pytest.raises(ArgumentError, match=rf"{re.escape(str(shape))}.*4 items"):
            on_backend(backend, _square_entered).map_into(
                np.zeros(shape), items, folder=str(tmp_path)
            )
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("name", REFUSED)
    def test_array_that_takes_no_results_is_refused(
        self, backend: str, name: str, tmp_path: Path
    ) -> None:
        """An array that tasks cannot write is refused as 'out', and nothing runs."""
        out: Any = REFUSED[name]()
        with pytest.raises((ArgumentError, UnshareableError), match="'out'"):
            on_backend(backend, _square_entered).map_into(
                out, range(len(out)), folder=str(tmp_path)
            )
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("which", ["same", "view", "wider"])
    @pytest.mark.parametrize("role", ["table", "out"])
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_reading_what_takes_results_is_refused(
        self, backend: str, which: str, role: str, born_shared: bool, tmp_path: Path
    ) -> None:
        """The memory for the results must not overlap a shared or partitioned parameter."""
        whole = zeros(20) if born_shared else np.zeros(20)
        given: Any = {"same": whole[:4], "view": whole[3:7], "wider": whole}[which]
        task = on_backend(backend, _square_entered if role == "table" else _square_into_block)
        with pytest.raises(ArgumentError, match=rf"'out'.*'{role}'.*the same memory"):
            task.map_into(whole[:4], range(4), **{role: given}, folder=str(tmp_path))
        assert {} == counted(tmp_path)

    def test_results_in_half_of_what_is_read(self, backend: str, tmp_path: Path) -> None:
        """Disjoint parts of one array may be read and take results."""
        whole = zeros(20)
        task = on_backend(backend, _square_entered)
        task.map_into(whole[::2], range(10), table=whole[1::2], folder=str(tmp_path))
        assert [k * k for k in range(10)] == whole[::2].tolist()
        assert not whole[1::2].any()

    @pytest.mark.parametrize("born_shared", [False, True])
    @pytest.mark.parametrize("chunksize", [1, 3])
    def test_failed_map_into(self, backend: str, born_shared: bool, chunksize: int) -> None:
        """An error is raised as by ``map``; each place has its result or is as it was."""
        out = zeros(9) if born_shared else np.zeros(9)
        out[...] = -1
        task = on_backend(backend, _fail_plus_one, chunksize=chunksize)
        with pytest.raises(ValueError, match="failed") as caught:
            task.map_into(out, range(9), bad=[4])
        assert [4] == [note.index for note in notes_of(caught.value)]
        assert {True} == {out[k] in {-1, k + 1} for k in range(9)}
        assert -1 == out[4]
        assert list(range(1, 10)) == task.map_into(out, range(9), bad=[]).tolist()

    @pytest.mark.parametrize("born_shared", [False, True])
    @pytest.mark.parametrize("chunksize", [1, 4])
    def test_errors_come_at_the_end(self, backend: str, born_shared: bool, chunksize: int) -> None:
        """With ``return_exceptions`` all items run, then a group has the exceptions."""
        out = zeros(9) if born_shared else np.zeros(9)
        out[...] = -1
        task = on_backend(backend, _fail_plus_one, return_exceptions=True, chunksize=chunksize)
        with pytest.raises(ExceptionGroup, match=r"2 of 9 items of _fail_plus_one\(\)") as caught:
            task.map_into(out, range(9), bad=[0, 5])
        assert [ValueError] * 2 == [type(error) for error in caught.value.exceptions]
        assert [[0], [5]] == [
            [note.index for note in notes_of(error)] for error in caught.value.exceptions
        ]
        assert [-1, 2, 3, 4, 5, -1, 7, 8, 9] == out.tolist()
        assert out is task.map_into(out, range(9), bad=[])

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_retried_result(self, backend: str, born_shared: bool, tmp_path: Path) -> None:
        """The result of the successful attempt is in the item's own place."""
        out = zeros(8) if born_shared else np.zeros(8)
        task = on_backend(backend, attempt, retries=2, chunksize=3)
        task.map_into(out, range(8), str(tmp_path), 2, (ValueError, "again"))
        assert list(range(8)) == out.tolist()
        assert {str(k): 3 for k in range(8)} == counted(tmp_path)

    def test_result_after_the_timeout(self, backend: str) -> None:
        """An item that took too long leaves its place unchanged."""
        out = np.full(4, -1)
        task = on_backend(
            backend, _sleep_plus_one, timeout=0.3, return_exceptions=True, chunksize=1
        )
        with pytest.raises(ExceptionGroup) as caught:
            task.map_into(out, range(4), slow=1)
        assert [TaskTimeoutError] == [type(error) for error in caught.value.exceptions]
        assert [1, -1, 3, 4] == out.tolist()

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_into_beside_the_other_words(self, backend: str, born_shared: bool) -> None:
        """Shared, private, partitioned, reduced and plain arguments can be combined with it."""
        out, total = np.zeros(5), np.zeros(1, "i8")
        taken = zeros(5) if born_shared else np.zeros(5)
        task = on_backend(backend, _all_words_into, chunksize=2)
        task.map_into(
            taken,
            range(5),
            1,
            out=out,
            total=total,
            table=np.arange(5),
            scratch=np.ones(2),
            word="ab",
        )
        assert [6, 7, 8, 9, 10] == taken.tolist()
        assert [0, -1, -2, -3, -4] == out.tolist()
        assert [5] == total.tolist()

    @pytest.mark.parametrize("chunksize", [1, 4])
    def test_item_that_does_not_fit_adds_nothing(self, backend: str, chunksize: int) -> None:
        """An item whose result is refused has failed, and its contributions do not count."""
        out, total = np.zeros(10), np.zeros(1)
        task = on_backend(backend, _sum_into_total, return_exceptions=True, chunksize=chunksize)
        with pytest.raises(ExceptionGroup, match="4 of 10"):
            task.map_into(out, range(10), total=total)
        assert [6] == total.tolist()
        assert [0, 1, 2, 0, 4, 5, 0, 7, 8, 0] == out.tolist()

    def test_method_into_an_array(self, backend: str) -> None:
        """A task may be a method."""
        task = under_backend(backend, Model(np.ones(3), 1.0).scaled)
        assert [1, 7, 13] == task.map_into(np.zeros(3), range(3), by=2).tolist()

    def test_maps_into_halves_at_once(self, backend: str) -> None:
        """Maps of two threads fill two halves of one array."""
        out = np.zeros((2, 100))
        task = on_backend(backend, square)
        with ThreadPoolExecutor(2) as pool:
            maps = [pool.submit(task.map_into, half, range(100)) for half in out]
            for each in maps:
                each.result(60)
        assert [[k * k for k in range(100)]] * 2 == out.tolist()

    def test_parameter_may_be_called_out(self, backend: str) -> None:
        """The array is given by position, so a task's own ``out`` is the task's."""
        out = np.zeros(3)
        assert [2, 2, 2] == on_backend(backend, _take_out).map_into(out, range(3), out=2).tolist()
