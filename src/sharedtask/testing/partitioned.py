# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Tasks that write blocks of an array."""

from __future__ import annotations

import math
import operator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pytest

from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    OverlapError,
    Partition,
    Partitioned,
    Shared,
    UnshareableError,
    parallel,
    zeros,
)
from sharedtask.system.posix import IS_POSIX

from .strategies import DTYPES, array_of, assert_same
from .tasks import (
    BLOCKS,
    LAYOUTS,
    REFUSED,
    count_up,
    counted,
    drained,
    identity,
    notes_of,
    on_backend,
    under_backend,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Tile:
    """An item that names its block and carries something else."""

    rows: slice
    value: int


OVERLAPS: dict[str, tuple[list[Any], int, int]] = {
    # items, and the positions of those that overlap
    "twice": ([0, 1, 0], 0, 2),
    "from the end": ([1, -7], 0, 1),
    "slices": ([slice(0, 2), slice(4, 6), slice(5, 8)], 1, 2),
    "steps": ([slice(0, None, 2), slice(1, None, 2), slice(3, 4)], 1, 2),
    "tiles": ([(slice(0, 3), slice(0, 3)), (3, 3), (slice(2, 4), slice(2, 3))], 0, 2),
    "the whole": ([(0, 0), ...], 0, 1),
}


def _make_odd(_index: Any, out: Partitioned[Any]) -> tuple[tuple[int, ...], float]:
    seen = float(out.sum())
    out *= 2
    out += 1
    return out.shape, seen


def _made_odd(array: npt.NDArray[Any], index: Any) -> tuple[tuple[int, ...], float]:
    """The task above, by plain indexing."""
    seen = float(array[index].sum())
    array[index] = array[index] * 2 + 1
    return array[index].shape, seen


def _copy_in(index: Any, out: Partitioned[Any], source: Shared[Any]) -> Any:
    out[...] = source[index]
    return out.dtype.str, out.shape


def _maybe(_index: Any, out: Partitioned[Any] | None = None) -> Any:
    return out


def _fill_plain(_index: Any, out: Any) -> None:
    out[...] = 1


def _fill_whole(_index: Any, out: Partitioned[Any]) -> Any:
    out[...] = 1
    return out.shape


def _add(_index: Any, by: float, out: Partitioned[Any]) -> float:
    out += by
    return float(out.max())


def _count_to(_index: Any, end: int, out: Partitioned[Any]) -> None:
    for _ in range(end):
        out[...] = out + 1  # before numpy 2, += makes an int64 of a block of one uint8


def _touch(index: Any, out: Partitioned[Any], folder: str) -> None:
    count_up(folder, "entered")
    out[...] = 1
    del index


def _sum_into(_index: Any, out: Partitioned[Any], table: Shared[Any], folder: str) -> None:
    count_up(folder, "entered")
    out[...] = table.sum()


def _fill_both(k: int, left: Partitioned[Any], right: Partitioned[Any]) -> int:
    left[...] = k
    right[...] = -k
    return k


def _all_words(
    k: int,
    plain: int,
    out: Partitioned[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
) -> float:
    scratch += plain
    out += table.sum() + scratch.sum() - table[k]
    return float(out)


def _write_then_fail(k: int, out: Partitioned[Any], bad: Any) -> int:
    out[...] = 1
    if k in bad:
        message = "failed"
        raise ValueError(message)
    return k


def _fill_at_last(k: int, out: Partitioned[Any], folder: str, fails: int) -> int:
    done = count_up(folder, k) > fails
    out[...] = k if done else -1
    if not done:
        message = "again"
        raise ValueError(message)
    return k


def _result_of(k: int) -> Any:
    return [k, float(k), "x" * k, None, np.arange(k), {"k": k}][k % 6]


def _mixed(k: int, out: Partitioned[Any]) -> Any:
    out[...] = k
    return _result_of(k)


def _return_block(k: int, out: Partitioned[Any]) -> Any:
    out[...] = k
    return out


@parallel
def _by_attribute(tile: Tile, out: Annotated[Any, Partition(by="rows")]) -> int:
    out[...] = tile.value
    return tile.value


@parallel
def _by_path(tile: Any, out: Annotated[Any, Partition(by="real.rows")]) -> int:
    out[...] = tile.real.value
    return int(tile.real.value)


@parallel
def _by_element(item: Any, out: Annotated[Any, Partition(by=1)]) -> int:
    out[...] = item[0]
    return int(item[0])


@parallel
def _by_key(item: Any, out: Annotated[Any, Partition(by=operator.itemgetter("rows"))]) -> int:
    out[...] = item["value"]
    return int(item["value"])


@parallel
def _by_function(
    value: int, out: Annotated[Any, Partition(by=lambda v: slice(2 * v - 2, 2 * v))]
) -> int:
    out[...] = value
    return value


@dataclass(frozen=True, slots=True)
class Boxed:
    """An item that contains the name of its block."""

    real: Tile


RULES: dict[str, tuple[Any, Callable[[Tile], Any]]] = {
    "attribute": (_by_attribute, identity),
    "dotted attribute": (_by_path, Boxed),
    "element": (_by_element, lambda tile: (tile.value, tile.rows)),
    "function": (_by_key, lambda tile: {"rows": tile.rows, "value": tile.value}),
    "lambda": (_by_function, lambda tile: tile.value),
}


class PartitionedContract:
    """Every item writes its own block of the caller's array, and no other part."""

    @pytest.mark.parametrize("name", BLOCKS)
    def test_blocks_are_written(self, backend: str, name: str) -> None:
        """The caller's array contains the blocks of the items; the rest is unchanged."""
        shape, items = BLOCKS[name]
        array = np.arange(math.prod(shape)).reshape(shape)
        wanted = array.copy()
        seen = [_made_odd(wanted, item) for item in items]
        assert_same(seen, on_backend(backend, _make_odd).map(items, out=array))
        assert_same(wanted, array)

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layout_of_the_array(self, backend: str, name: str) -> None:
        """However the array lies in memory, its blocks are written and nothing else."""
        around, array = LAYOUTS[name]()
        before, items = around.copy(), [(k, slice(1, 9, 2)) for k in range(5)]
        wanted = array.copy()
        seen = [_made_odd(wanted, item) for item in items]
        assert_same(seen, on_backend(backend, _make_odd).map(items, out=array))
        assert np.array_equal(wanted, array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("dtype", [*DTYPES[:-1], "i4,(2,)f8,U3"])
    @pytest.mark.parametrize("cut", ["ints", "slices"])
    def test_dtype_of_the_array(self, backend: str, dtype: str, cut: str) -> None:
        """A block has the dtype of the array, also where it is one element."""
        source = array_of(dtype, (6,)) if "(" not in dtype else np.ones(6, dtype)
        array = np.zeros_like(source)
        items = list(range(6)) if cut == "ints" else [slice(0, 4), slice(4, 6)]
        shapes = on_backend(backend, _copy_in).map(items, out=array, source=source)
        assert np.array_equal(source, array)
        assert shapes == [(source.dtype.str, source[item].shape) for item in items]

    @pytest.mark.parametrize("name", RULES)
    def test_rule_names_the_block(self, backend: str, name: str) -> None:
        """An attribute, an element or a function of the item says which block it writes."""
        task, make = RULES[name]
        array = np.zeros(8)
        tiles = [Tile(slice(2 * k, 2 * k + 2), k + 1) for k in range(4)]
        assert [1, 2, 3, 4] == under_backend(backend, task).map(
            [make(tile) for tile in tiles], out=array
        )
        assert [1, 1, 2, 2, 3, 3, 4, 4] == array.tolist()

    def test_named_in_the_decorator(self, backend: str) -> None:
        """A list in the decorator says the same as the annotation."""
        array = np.zeros(4)
        task = parallel(partitioned=["out"])(_fill_plain)
        assert [None] * 4 == under_backend(backend, task).map(range(4), out=array)
        assert [1.0] * 4 == array.tolist()

    @pytest.mark.parametrize(
        "method", ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]
    )
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_every_method_writes_blocks(self, backend: str, method: str, born_shared: bool) -> None:
        """With every way to run the items, results and blocks arrive together."""
        array = zeros(10) if born_shared else np.zeros(10)
        task = on_backend(backend, _add)
        if method == "submit":
            results = [task.submit(k, k, out=array).result(60) for k in range(10)]
        elif method == "starmap":
            results = task.starmap([(k, k) for k in range(10)], out=array)
        else:
            results = sorted(drained(getattr(task, method)(range(10), 5, out=array)))
        by = [5] * 10 if "map" in method and method != "starmap" else list(range(10))
        assert by == array.tolist()
        assert by == results

    def test_block_is_there_with_its_result(self, backend: str) -> None:
        """A result that a stream has given is already in the array."""
        array = np.zeros(6)
        for k, result in enumerate(
            on_backend(backend, _add, chunksize=1).imap(range(6), 3, out=array)
        ):
            assert result == array[k] == 3

    def test_no_array(self, backend: str) -> None:
        """A parameter that may be left out is its default in every item."""
        assert [None] * 3 == on_backend(backend, _maybe).map(range(3))

    def test_items_of_a_generator(self, backend: str) -> None:
        """The items may be any iterable; all are taken before the first is run."""
        array = np.zeros((10, 2))
        on_backend(backend, _add).map((k for k in range(10)), 7, out=array)
        assert [[7, 7]] * 10 == array.tolist()

    @pytest.mark.parametrize("shape", [(0,), (4,), ()])
    def test_no_items(self, backend: str, shape: tuple[int, ...]) -> None:
        """Nothing to do changes nothing."""
        array = np.ones(shape)
        assert [] == on_backend(backend, _add).map([], 1, out=array)
        assert np.array_equal(np.ones(shape), array)

    @pytest.mark.parametrize("method", ["map", "starmap", "imap", "submit"])
    @pytest.mark.parametrize("index", [[0, 1], np.array([0]), True, None, "a", 1.5], ids=repr)
    def test_index_that_would_copy_is_refused(
        self, backend: str, method: str, index: Any, tmp_path: Path
    ) -> None:
        """An index that is not made of ints and slices is refused, and nothing runs."""
        array = np.zeros(4)
        run = getattr(on_backend(backend, _touch), method)
        items = {"starmap": [(2,), (index,)], "submit": index}.get(method, [2, index])
        with pytest.raises(ArgumentError, match=r"item [01]"):
            drained(run(items, out=array, folder=str(tmp_path)))
        assert {} == counted(tmp_path)
        assert not array.any()

    def test_index_outside_is_refused(self, backend: str, tmp_path: Path) -> None:
        """An int outside the array is IndexError before anything runs."""
        with pytest.raises(IndexError, match="item 1"):
            on_backend(backend, _touch).map([0, 4], out=np.zeros(4), folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("name", REFUSED)
    def test_array_that_cannot_be_written_is_refused(
        self, backend: str, name: str, tmp_path: Path
    ) -> None:
        """A value without writable blocks is refused by the parameter's name, and nothing runs."""
        with pytest.raises((ArgumentError, UnshareableError), match="'out'"):
            on_backend(backend, _touch).map([0], out=REFUSED[name](), folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("method", ["map", "starmap", "imap", "imap_unordered", "amap"])
    @pytest.mark.parametrize("name", OVERLAPS)
    def test_overlap_is_refused(self, backend: str, method: str, name: str, tmp_path: Path) -> None:
        """Items that would write to one element are named, and none of them is entered."""
        items, first, second = OVERLAPS[name]
        array = np.zeros((8, 8))
        given = [(item,) for item in items] if method == "starmap" else items
        with pytest.raises(OverlapError) as caught:
            drained(
                getattr(on_backend(backend, _touch), method)(given, out=array, folder=str(tmp_path))
            )
        assert (first, second, "out") == (
            caught.value.first,
            caught.value.second,
            caught.value.parameter,
        )
        assert {} == counted(tmp_path)
        assert not array.any()

    @pytest.mark.parametrize("other", ["same", "view", "wider"])
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_reading_what_is_written_is_refused(
        self, backend: str, other: str, born_shared: bool, tmp_path: Path
    ) -> None:
        """The memory of a partitioned array must not be that of another shared parameter."""
        whole = zeros(20) if born_shared else np.zeros(20)
        table = {"same": whole[:10], "view": whole[3:5], "wider": whole}[other]
        with pytest.raises(ArgumentError, match=r"'out'.*'table'"):
            on_backend(backend, _sum_into).map(
                [0], out=whole[:10], table=table, folder=str(tmp_path)
            )
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_reading_beside_what_is_written(
        self, backend: str, born_shared: bool, tmp_path: Path
    ) -> None:
        """Disjoint parts of one array may be written and read, interleaved too."""
        whole = zeros(20) if born_shared else np.zeros(20)
        whole[1::2] = 2
        task = on_backend(backend, _sum_into)
        task.map(range(10), out=whole[::2], table=whole[1::2], folder=str(tmp_path))
        assert [20, 2] * 10 == whole.tolist()

    def test_two_partitioned_parameters(self, backend: str) -> None:
        """An item gets its block of each; rows of one go with rows of another."""
        left, right = np.zeros((6, 3)), np.zeros(6, "i8", order="F")
        assert list(range(6)) == on_backend(backend, _fill_both).map(
            range(6), left=left, right=right
        )
        assert [[k] * 3 for k in range(6)] == left.tolist()
        assert [-k for k in range(6)] == right.tolist()

    def test_two_parts_of_one_array(self, backend: str) -> None:
        """Two parameters may be written in disjoint parts of one array."""
        whole = zeros(12, "i8")
        on_backend(backend, _fill_both).map(range(6), left=whole[:6], right=whole[6:])
        assert [0, 1, 2, 3, 4, 5, 0, -1, -2, -3, -4, -5] == whole.tolist()

    def test_beside_the_other_words(self, backend: str) -> None:
        """Shared, private, partitioned and plain arguments go together."""
        out = np.zeros(3)
        task = on_backend(backend, _all_words)
        assert [6.0] * 3 == task.map(range(3), 1, out=out, table=np.ones(3), scratch=np.ones(2))
        assert [6.0] * 3 == out.tolist()

    @pytest.mark.parametrize("chunksize", [1, 4])
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_block_of_a_failed_item(self, backend: str, chunksize: int, born_shared: bool) -> None:
        """Blocks of the others arrive; that of a failed item arrives only where it was written."""
        array = zeros((8, 3)) if born_shared else np.zeros((8, 3))
        task = on_backend(backend, _write_then_fail, return_exceptions=True, chunksize=chunksize)
        results = task.map(range(8), out=array, bad=[2, 5])
        assert [2, 5] == [k for k, r in enumerate(results) if isinstance(r, ValueError)]
        shared = born_shared and IS_POSIX  # elsewhere zeros() makes a plain array
        in_place = backend in {"serial", "thread"} or (backend == "process" and shared)
        left = 1.0 if in_place else 0.0
        assert [[left if k in {2, 5} else 1.0] * 3 for k in range(8)] == array.tolist()

    def test_error_ends_the_map(self, backend: str) -> None:
        """An error is raised as itself, and the next map on the same array is right."""
        array = np.zeros(8)
        task = on_backend(backend, _write_then_fail)
        with pytest.raises(ValueError, match="failed") as caught:
            task.map(range(8), out=array, bad=[3])
        assert [3] == [note.index for note in notes_of(caught.value)]
        assert set(array.tolist()) <= {0.0, 1.0}
        assert list(range(8)) == task.map(range(8), out=array, bad=[])
        assert [1.0] * 8 == array.tolist()

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_retried_item(self, backend: str, born_shared: bool, tmp_path: Path) -> None:
        """An item that succeeds at a later attempt has written its block like any other."""
        array = zeros(6) if born_shared else np.zeros(6)
        task = on_backend(backend, _fill_at_last, retries=2, chunksize=3)
        assert list(range(6)) == task.map(range(6), out=array, folder=str(tmp_path), fails=2)
        assert list(range(6)) == array.tolist()
        assert {str(k): 3 for k in range(6)} == counted(tmp_path)

    def test_neighbours_do_not_disturb_each_other(self, backend: str) -> None:
        """Elements that share a cache line, or a word, are exact with two writers."""
        array = zeros(10_000, "u1")
        task = on_backend(backend, _count_to, workers=2, chunksize=50)
        task.map(range(10_000), 3, out=array)
        assert 10_000 == np.count_nonzero(array == 3)

    def test_results_and_blocks_together(self, backend: str) -> None:
        """Results of any kind arrive in order, together with the blocks."""
        array = np.zeros(9)
        results = on_backend(backend, _mixed, chunksize=4).map(range(9), out=array)
        assert_same([_result_of(k) for k in range(9)], results)
        assert list(range(9)) == array.tolist()

    def test_result_may_be_the_block(self, backend: str) -> None:
        """A block that is returned is a result like any other, and keeps its contents."""
        array = zeros((4, 2))
        results = on_backend(backend, _return_block).map(range(4), out=array)
        assert [[k, k] for k in range(4)] == array.tolist()
        assert [[k, k] for k in range(4)] == [result.tolist() for result in results]

    def test_call_gets_the_whole_array(self, backend: str) -> None:
        """Called directly, the function gets its arguments as they are."""
        array = np.zeros(4)
        assert (4,) == on_backend(backend, _fill_whole)(1, array)
        assert [1.0] * 4 == array.tolist()

    def test_second_map_sees_what_the_first_wrote(self, backend: str) -> None:
        """Between two maps the caller may change the array; the tasks see its contents."""
        array = np.ones(4)
        task = on_backend(backend, _make_odd)
        task.map(range(4), out=array)
        array[0] = 10
        assert [10.0, 3.0, 3.0, 3.0] == [seen for _, seen in task.map(range(4), out=array)]
        assert [21.0, 7.0, 7.0, 7.0] == array.tolist()

    def test_threads_write_one_array(self, backend: str) -> None:
        """Maps of two threads on halves of one array do not disturb each other."""
        array = np.zeros((2, 40))
        task = on_backend(backend, _add)
        with ThreadPoolExecutor(2) as pool:
            maps = [pool.submit(task.map, range(40), k + 1, out=array[k]) for k in range(2)]
            assert [[1] * 40, [2] * 40] == [each.result(60) for each in maps]
        assert [[1] * 40, [2] * 40] == array.tolist()
