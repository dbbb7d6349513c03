import contextlib
import copy
import ctypes
import dataclasses
import gc
import io
import mmap
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedtask import (
    CopyOnWrite,
    Shared,
    SharedTaskError,
    StoreFullError,
    UnshareableError,
    parallel,
    share,
    shutdown,
)
from sharedtask.memory import locations, proc_maps
from sharedtask.memory.arrays import array, empty, zeros
from sharedtask.testing import (
    DTYPES,
    Belongings,
    Deadline,
    array_of,
    arrays,
    assert_nothing_left,
    assert_same,
    until,
)

pytestmark = pytest.mark.timeout(60)

PLAIN_DTYPES = [name for name in DTYPES if name != "O"]
BIG = 1 << 18  # numbers: far above what travels inside a message


# ------------------------------------------------------------------------ tasks and helpers


def total(_x: int, table: Shared[Any], wait: float = 0.0) -> float:
    time.sleep(wait)
    return float(table.sum())


def whole(_x: int, table: Shared[Any]) -> Any:
    return np.array(table)


def itself(_x: int, table: Shared[Any], look: Callable[[Any], Any] = lambda t: t) -> Any:
    return look(table)


def inode(_x: int, table: Shared[Any]) -> int:
    """The file or segment that the array lies in, as the task sees it."""
    return inode_of(table)


def inode_of(table: Any) -> int:
    region = proc_maps.region_at(table.__array_interface__["data"][0])
    return 0 if region is None else region.inode


def write(_x: int, table: Shared[Any]) -> None:
    table[...] = 1


def force(_x: int, table: Shared[Any]) -> None:
    table.flags.writeable = True


def scribble(_x: int, table: CopyOnWrite[Any]) -> float:
    found = float(table.sum())
    table[...] = -1
    return found


def wait_for(_x: int, table: Shared[Any], value: float) -> bool:
    deadline = Deadline(10)
    while table[0] != value and not deadline.is_over:
        time.sleep(0.001)
    return bool(table[0] == value)


def numbers_of(buffer: Any) -> Any:
    """An array of float64 over any buffer."""
    return np.frombuffer(buffer, np.float64)


def mapped_again(table: Any, **how: bool) -> Any:
    """The array as another process would map it; None for one that is not in shared memory."""
    found = locations.find(table)
    return None if found is None else found.region.view(**how)


def on(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)


def busy(seconds: float = 0.2) -> Any:
    """A task of one worker, with more before it than the worker has room for."""
    task = on("process", total, workers=1)
    waiting = np.ones(2)
    for _ in range(4):
        task.submit(0, table=waiting, wait=seconds / 4)
    return task


def is_mapped(number: int) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(int(line.split(maxsplit=5)[4]) == number for line in lines)


def is_open(number: int) -> bool:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.fstat(int(name)).st_ino == number:
                return True
    return False


def assert_gone(number: int, seconds: float = 5) -> None:
    """Fail unless this process gives the memory up within this time."""
    until(
        lambda: not (is_mapped(number) or is_open(number)),
        seconds,
        f"memory {number} is held still",
    )


@pytest.fixture(params=["memfd", "file"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both kinds of memory."""
    name: str = request.param
    monkeypatch.setenv("SHAREDTASK_STORE", name)
    return name


# ----------------------------------------------------------------------- what numpy promises


@pytest.mark.parametrize("order", ["C", "F"])
def test_zeros_is_what_numpy_makes(order: Any) -> None:
    """Shape, dtype, strides and contents are those of ``numpy.zeros``; it is writable."""
    for dtype in PLAIN_DTYPES:
        expected, made = np.zeros((3, 4), dtype, order), zeros((3, 4), dtype, order)
        assert_same(expected, made, dtype)
        assert (expected.strides, True) == (made.strides, made.flags.writeable)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1,), (3, 2), (70_000,)], ids=str)
def test_every_kind_and_shape(shape: tuple[int, ...]) -> None:
    """A copy in shared memory has the bits of the original, and so has who maps it."""
    for dtype in PLAIN_DTYPES:
        original = array_of(dtype, shape)
        made = array(original)
        assert_same(original, made, dtype)
        assert_same(original, mapped_again(made), dtype)


@pytest.mark.parametrize("make", [empty, zeros])
@pytest.mark.parametrize(
    "shape",
    [
        3,
        np.int64(3),
        np.uint8(3),
        (),
        [2, 3],
        (np.int32(2), 3),
        np.array([2, 3]),
        range(1, 3),
    ],
    ids=repr,
)
def test_lengths_as_numpy_takes_them(make: Any, shape: Any) -> None:
    """Lengths may be numbers of Python or numpy, in a tuple, a list or an array."""
    assert np.zeros(shape).shape == make(shape).shape


@pytest.mark.parametrize("shape", [-1, (2, -1), (-1, -1), 2.0, "3", (2, 2.0), [[2]], 1j])
def test_lengths_as_numpy_refuses_them(shape: Any) -> None:
    """What is no length for numpy is none here, by the same class of error."""
    with pytest.raises((TypeError, ValueError)) as expected:
        np.zeros(shape)
    with pytest.raises(type(expected.value)):
        zeros(shape)


@pytest.mark.parametrize("order", ["C", "F", "c", "f"])
def test_order_as_numpy_takes_it(order: Any) -> None:
    """The order may be written small, too."""
    assert np.empty((2, 3), order=order).strides == empty((2, 3), order=order).strides


@pytest.mark.parametrize("order", ["X", ""])
def test_order_as_numpy_refuses_it(order: Any) -> None:
    """An order that numpy does not know is a ValueError, not C."""
    with pytest.raises(ValueError, match="order"):
        empty((2, 3), order=order)


@pytest.mark.parametrize(
    "dtype", ["S", "U", "f4", int, bool, "(2,)i4", [("a", "i4"), ("b", "2f8")]]
)
def test_dtype_as_numpy_takes_it(dtype: Any) -> None:
    """Strings without a length have one letter, and dtypes with a shape add axes, as in numpy."""
    expected, made = np.zeros((2, 3), dtype), zeros((2, 3), dtype)
    assert (expected.dtype, expected.shape) == (made.dtype, made.shape)


VALUES: list[Any] = [
    1.5, True, "abc", b"xy", [], [[]], [[1, 2], [3, 4]], [1, 2.5, 1j], (1, 2), range(4),
    np.float32(2), np.datetime64("2020-01-01"), np.arange(6)[::-1], np.arange(4.0).reshape(2, 2).T,
    np.zeros((2, 3, 4)).transpose(1, 2, 0), np.broadcast_to(1.0, (3,)), np.array(["a", "bbb"]),
    np.arange(3, dtype=">i4"), np.rec.array([(1, 2.0)], "i4,f8"), np.ma.arange(3),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda v: f"{type(v).__name__} {v!r:.20}")
def test_array_is_what_numpy_makes(value: Any) -> None:
    """``array`` makes of a value what ``numpy.array`` makes of it."""
    expected, made = np.array(value), array(value)
    assert_same(expected, made)
    assert (np.ndarray, True) == (type(made), made.flags.writeable)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1.5, int),
        ([1, 2], "f4"),
        (["1", "2"], float),
        ("2020-01-01", "M8"),
        (["2020", "2021-05-01"], "M8[D]"),
        (["abc", "d"], "S2"),
        ([1, 22], str),
        (np.arange(3), np.float64),
        ([(1, 2.5)], "i4,f8"),
        (np.arange(3), None),
    ],
)
def test_array_of_a_dtype(value: Any, dtype: Any) -> None:
    """A dtype that is given is the dtype of the array; None keeps that of the value."""
    assert_same(np.array(value, dtype), array(value, dtype))


def test_array_is_a_copy() -> None:
    """Later changes of the original are not seen, nor the other way round."""
    original = np.arange(5.0)
    made, again = array(original), array(array(original))
    original[0], made[1], again[2] = 9, 9, 9
    assert [9, 1, 2, 3, 4] == original.tolist()
    assert [0, 9, 2, 3, 4] == made.tolist()
    assert [0, 1, 9, 3, 4] == again.tolist()


def test_fortran_order_stays() -> None:
    """F order stays F order; a copy that is no longer dense becomes C order."""
    rows = np.arange(6.0).reshape(2, 3)
    assert array(rows.T).flags.f_contiguous
    assert array(rows).flags.c_contiguous
    assert array(rows[:, ::2]).flags.c_contiguous


@pytest.mark.parametrize(
    "make",
    [
        lambda: zeros(3, object),
        lambda: empty(3, [("a", "i4"), ("b", object)]),
        lambda: array(cast("Any", [object()])),
        lambda: array(cast("Any", [1, None])),
        lambda: array([1, 2], object),
    ],
)
def test_objects_are_refused(make: Callable[[], Any]) -> None:
    """Python objects cannot lie in shared memory."""
    with pytest.raises(UnshareableError, match="Python objects"):
        make()


@given(arrays())
@settings(max_examples=examples(150), deadline=None)
def test_any_array_is_kept_bit_by_bit(value: Any) -> None:
    """Over dtypes, shapes, orders and strides: the copy equals, and is found and mapped again."""
    made = array(value)
    assert_same(np.array(value), made)
    assert_same(np.array(value), mapped_again(made))
    assert_same(np.array(value), mapped_again(made, private=True))


@given(st.data())
@settings(max_examples=examples(150), deadline=None)
def test_any_view_is_found(data: st.DataObject) -> None:
    """Whatever slice of an array is looked for, the same slice is mapped."""
    made = array(np.arange(4 * 5 * 6).reshape(4, 5, 6))
    steps = st.integers(-3, 3).filter(bool)
    ends = st.none() | st.integers(-7, 7)
    slices = [data.draw(st.builds(slice, ends, ends, steps)) for _ in range(3)]
    view = made[tuple(slices)].transpose(data.draw(st.permutations(range(3))))
    again = mapped_again(view)
    assert_same(view, again)
    assert view.strides == again.strides


# ------------------------------------------------------------------------- seen by every task


@pytest.mark.parametrize("dtype", ["f8", "c16", "datetime64[s]", "S3", "i4,f8", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 5), (3, 2), (9000,)], ids=str)
def test_tasks_see_it(backend: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Every backend's tasks see an equal array."""
    table = array(array_of(dtype, shape))
    (result,) = on(backend, whole).map([0], table=table)
    assert_same(np.array(table), np.asarray(result))


@pytest.mark.parametrize("name", ["zeros", "row", "steps", "transposed", "flipped", "tile"])
def test_publishing_costs_nothing(store: str, name: str) -> None:
    """Neither bytes nor descriptors: the worker maps the very memory of the array."""
    del store
    made = array(np.arange(2.0 * BIG).reshape(2, -1))
    view = VIEWS[name](made)
    task = on("process", inode)
    task.map(range(4), table=np.ones(2))
    before = Belongings.now()
    assert [inode_of(made)] * 4 == task.map(range(4), table=view)
    assert [] == Belongings.now().more_than(before, same_children=True)
    assert 10_000 > task.cache_info().nbytes


VIEWS: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda t: t,
    "row": lambda t: t[1],
    "head": lambda t: t[:, :7],
    "steps": lambda t: t[:, 1::3],
    "transposed": lambda t: t.T,
    "flipped": lambda t: t[::-1, ::-1],
    "reshaped": lambda t: t.reshape(-1, 4, 2),
    "tile": lambda t: t[:1, 5:9],
    "element": lambda t: t[1, 5:6].reshape(()),
    "bytes": lambda t: t.view(np.uint8)[:, 3:],
    "broadcast": lambda t: np.broadcast_to(t[0, :3], (4, 3)),
    "record": lambda t: t.view("f4,i4")["f1"],
}


@pytest.mark.parametrize("name", VIEWS)
def test_view_of_it(backend: str, name: str) -> None:
    """A view is that view in the task."""
    view = VIEWS[name](array(np.arange(2.0 * 1200).reshape(2, -1)))
    (result,) = on(backend, whole).map([0], table=view)
    assert_same(np.array(view), np.asarray(result))


def anonymous_memory(_x: int, table: Shared[Any]) -> tuple[int, int]:
    table.sum()
    status = Path("/proc/self/status").read_text()
    return os.getpid(), int(status.partition("RssAnon:")[2].split()[0])


def test_worker_needs_no_memory_of_its_own() -> None:
    """The private memory of a worker does not grow by the value."""
    task = on("process", anonymous_memory, workers=1, chunksize=1)
    before = dict(task.map(range(3), table=np.ones(2)))
    after = dict(task.map(range(3), table=zeros(8 << 20)))
    assert before.keys() == after.keys()
    for pid, kilobytes in after.items():
        assert 8_000 > kilobytes - before[pid]


def test_writes_are_seen_by_the_next_map(backend: str) -> None:
    """What the caller writes between two maps is seen, and costs no publication."""
    table = zeros(BIG)
    task = on(backend, total)
    for value in range(1, 4):
        table[-1] = value
        assert [value] * 2 == task.map(range(2), table=table)
    if backend == "process":
        assert (2, 1) == task.cache_info()[:2]


@pytest.mark.parametrize("backend", ["thread", "process"])
@pytest.mark.parametrize("size", [3, BIG])
def test_writes_are_seen_at_once(backend: str, size: int) -> None:
    """What the caller writes while a task runs is seen by it."""
    table = zeros(size)
    future = on(backend, wait_for).submit(0, table=table, value=7.0)
    time.sleep(0.02)
    table[0] = 7
    assert future.result(60)


@dataclasses.dataclass
class Model:
    """A value with an array in it."""

    name: str
    weights: Any


@pytest.mark.parametrize(
    ("wrap", "unwrap"),
    [
        (lambda t: {"a": 1, "rows": t}, lambda v: v["rows"]),
        (lambda t: [t, "x"], lambda v: v[0]),
        (lambda t: (0, {"deep": [t]}), lambda v: v[1]["deep"][0]),
        (lambda t: Model("m", t), lambda v: v.weights),
    ],
    ids=["dict", "list", "deep", "dataclass"],
)
def test_inside_a_value(backend: str, wrap: Any, unwrap: Any) -> None:
    """Arrays inside a value are seen, read-only, and not copied on this machine."""

    def look(_x: int, value: Shared[Any]) -> Any:
        found = unwrap(value)
        return float(found.sum()), found.flags.writeable, inode_of(found)

    table = zeros(BIG)
    table[5] = 3
    value = wrap(table)
    task = on(backend, look)
    ((sum_, writable, number),) = task.map([0], value=value)
    assert (3.0, False) == (sum_, writable)
    if backend != "ray":
        assert inode_of(table) == number
    table[6] = 4
    assert 7.0 == task.map([0], value=value)[0][0]


def test_subclass_over_it(backend: str) -> None:
    """A record array and a masked array over shared memory keep their class and are not copied."""

    def look(_x: int, table: Shared[Any]) -> Any:
        return type(table).__name__, float(table["f0"].sum()), inode_of(table)

    table = zeros(BIG, "f8,i4")
    table["f0"][3] = 2
    for value in (table.view(np.recarray), np.ma.MaskedArray(table, copy=False)):
        ((name, sum_, number),) = on(backend, look).map([0], table=value)
        assert (type(value).__name__, 2.0) == (name, sum_)
        if backend != "ray":
            assert inode_of(table) == number


def test_same_array_twice(backend: str) -> None:
    """One array in two parameters, and twice in a value, is the same memory."""

    def both(_x: int, left: Shared[Any], right: Shared[Any]) -> Any:
        one = left["a"] is left["b"]
        shares = np.shares_memory(left["a"], right)
        return one, float(left["a"].sum() + right.sum()), shares

    table = zeros(BIG)
    table[0] = 2
    ((one, sum_, shares),) = on(backend, both).map([0], left={"a": table, "b": table}, right=table)
    assert (True, 4.0) == (one, sum_)
    if backend != "ray":
        assert shares


def test_write_is_refused(backend: str) -> None:
    """A write is numpy's error with the note that every shared array has, big or small."""
    ordinary = np.zeros(9)
    with pytest.raises(ValueError, match="read-only") as expected:
        on(backend, write).map([0], table=ordinary)
    for table in (zeros(9), zeros(BIG), zeros((2, 9))[:, ::2]):
        with pytest.raises(ValueError, match="read-only") as caught:
            on(backend, write).map([0], table=table)
        assert str(expected.value) == str(caught.value)
        assert expected.value.__notes__ == caught.value.__notes__
        assert 0 == table.sum()
        assert table.flags.writeable


def test_read_only_cannot_be_switched_off(backend: str) -> None:
    """``flags.writeable = True`` is a ValueError, never a crash."""
    with pytest.raises(ValueError, match="WRITEABLE"):
        on(backend, force).map([0], table=zeros(BIG))


@pytest.mark.parametrize("size", [5, BIG])
def test_copy_on_write_is_private(backend: str, size: int) -> None:
    """Every item has its own, and the original stays as it was; the caller's writes are seen."""
    table = zeros(size)
    task = on(backend, scribble, chunksize=3)
    for value in (1.0, 2.0):
        table[0] = value
        assert [value] * 6 == task.map(range(6), table=table)
        assert value == table.sum()


def test_copy_on_write_of_a_view(backend: str) -> None:
    """A strided view is private to the item as well."""
    table = array(np.ones((4, 1000)))
    assert [2000.0] * 4 == on(backend, scribble).map(range(4), table=table[::-2].T)
    assert 4000.0 == table.sum()


@pytest.mark.parametrize(
    "look",
    [lambda t: t, lambda t: t[::2], lambda t: {"a": t[1:], "b": [t.T]}, lambda t: t[3:4]],
    ids=["itself", "steps", "inside", "slice"],
)
@pytest.mark.parametrize("size", [40, BIG])
def test_result_outlives_the_array(backend: str, look: Any, size: int) -> None:
    """A result that is such an array, or a view of one, is right when the array is long gone."""
    table = array(np.arange(float(size)))
    expected = look(np.arange(float(size)))
    (result,) = on(backend, itself).map([0], table=table, look=look)
    del table
    others = [array(np.full(size, -1.0)) for _ in range(4)]
    assert_same(expected, result)
    del others


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
def test_array_made_in_a_task(backend: str) -> None:
    """A task may make such an array and return it."""

    def make(x: int) -> Any:
        made = zeros(BIG)
        made[x] = x
        return made

    assert [0.0, 1.0, 2.0] == [float(made.sum()) for made in on(backend, make).map(range(3))]


def test_handle_is_live(backend: str) -> None:
    """What is shared already stays live behind a handle, which keeps it as long as it is open."""
    table = zeros(BIG)
    with share(table) as handle:
        assert [0.0] == on(backend, total).map([0], table=handle)
        table[0] = 3
        assert 3.0 == handle.value.sum()
        assert not handle.value.flags.writeable
        if backend != "ray":
            assert [3.0] == on(backend, total).map([0], table=handle)
            assert 10_000 > handle.nbytes
        del table
        gc.collect()
        assert 3.0 == handle.value.sum()


def test_arrays_that_come_and_go(backend: str) -> None:
    """Arrays that come and go at the same address and descriptor are never taken for each other."""
    task = on(backend, total)
    for value in range(20):
        assert [100.0 * value] * 2 == task.map(range(2), table=array(np.full(100, float(value))))


def test_handle_of_a_temporary_array(backend: str) -> None:
    """A handle keeps the memory of an array that no one else has."""
    with share({"rows": array(np.arange(4.0))}) as handle:
        other = array(np.full(4, -1.0))  # where the memory would be, were it free

        def look(_x: int, value: Shared[Any]) -> Any:
            return value["rows"].tolist()

        assert [[0, 1, 2, 3]] == on(backend, look).map([0], value=handle)
        assert [0, 1, 2, 3] == handle.value["rows"].tolist()
        number = inode_of(handle.value["rows"])
    del handle
    shutdown()
    assert_gone(number)
    assert -4.0 == other.sum()


# --------------------------------------------------------------------------- how long it lives


def test_it_goes_with_its_last_view() -> None:
    """The memory and its descriptor live as long as a view, and no longer."""
    table = array(np.arange(1000.0))
    number = inode_of(table)
    views: list[Any] = [
        table[3:5],
        table[::-1].T,
        memoryview(cast("Any", table)),
        table.view(np.uint8),
    ]
    del table
    gc.collect()
    assert is_open(number)
    assert [3.0, 4.0] == views[0].tolist()
    while views:
        assert is_mapped(number)
        views.pop()
    assert_gone(number)


def test_it_goes_after_a_map(backend: str) -> None:
    """An array that was mapped is given back when the caller lets go of it."""
    table = zeros(BIG)
    number = inode_of(table)
    assert [0.0] * 3 == on(backend, total).map(range(3), table=table)
    del table
    assert_gone(number)


def test_worker_gives_it_back() -> None:
    """The workers let go of an array that the caller has let go of."""

    def maps(_x: int, number: int) -> bool:
        return is_mapped(number)

    table = zeros(BIG)
    number = inode_of(table)
    task = on("process", maps, workers=1)
    on("process", total, workers=1).map([0], table=table)
    assert [True] == task.map([0], number=number)
    del table
    assert_gone(number)
    until(lambda: [True] != task.map([0], number=number))


def test_it_lives_while_a_worker_uses_it() -> None:
    """A running task keeps the memory, whatever the caller does."""
    table = array(np.ones(BIG))
    future = on("process", total).submit(0, table=table, wait=0.2)
    time.sleep(0.05)
    del table
    gc.collect()
    assert BIG == future.result(60)


def test_it_lives_until_the_last_item_has_run(store: str) -> None:
    """Temporary arrays of items that wait are kept, and descriptor numbers are not mixed up."""
    del store
    task = busy()
    futures = [task.submit(k, table=array(np.full(100, float(k)))) for k in range(12)]
    gc.collect()
    others = [array(np.full(100, -1.0)) for _ in range(12)]
    assert [100.0 * k for k in range(12)] == [future.result(60) for future in futures]
    del others


def test_another_file_at_its_descriptor(tmp_path: Path) -> None:
    """Files that are opened while an item waits are never taken for its array."""
    task = busy()
    future = task.submit(0, table=array(np.ones(512)))
    gc.collect()
    path = tmp_path / "other"
    np.full(512, 2.0).tofile(path)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(path.open("rb"))
        assert 512.0 == future.result(60)


def test_temporary_array_in_a_stream(backend: str) -> None:
    """A stream keeps the array that it was given."""
    stream = on(backend, total).imap(range(6), table=array(np.arange(10.0)))
    gc.collect()
    assert [45.0] * 6 == list(stream)


def test_it_outlives_the_pool() -> None:
    """After ``shutdown()`` the array is as it was, and the next pool maps it again."""
    table = zeros(BIG)
    task = on("process", total)
    task.map([0], table=table)
    shutdown()
    table[0] = 4
    assert 4.0 == table.sum()
    assert [4.0] == task.map([0], table=table)


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left(store: str) -> None:
    """Arrays, views, maps, handles, errors: nothing stays behind."""
    del store
    for size in (0, 5, BIG):
        table = zeros(size)
        on("process", total).map(range(3), table=table)
        on("process", scribble).map(range(3), table=table[::2])
        on("serial", total).map(range(3), table={"rows": table}["rows"])
        with share(table) as handle:
            on("process", total).map(range(3), table=handle)
        with pytest.raises(ValueError, match="read-only"):
            on("process", write).map([0], table=zeros(3))
    with pytest.raises(StoreFullError):
        zeros(1 << 50)
    with pytest.raises(ValueError, match="negative"):
        zeros(-1)


def test_many_at_once(backend: str) -> None:
    """Three hundred of them in one value."""

    def sums(_x: int, tables: Shared[Any]) -> list[float]:
        return [float(table.sum()) for table in tables]

    tables = [array([k, k]) for k in range(300)]
    expected = [[2.0 * k for k in range(300)]] * 2
    assert expected == on(backend, sums).map(range(2), tables=tables)


def test_many_do_not_slow_others_down() -> None:
    """Encoding ordinary arrays takes no longer for all the arrays that lie in shared memory."""
    from sharedtask.serialization import codec

    def seconds() -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            codec.encode_shared(ordinary)
            times.append(time.perf_counter() - began)
        return min(times)

    ordinary = [np.zeros(3) for _ in range(500)]
    alone = seconds()
    born = [zeros(1) for _ in range(2000)]
    assert 4 * alone > seconds()
    del born


def test_few_descriptors(run: Callable[..., str]) -> None:
    """Under ``ulimit -n 64`` one array too many is StoreFullError, and the others go on."""
    text = """
import resource, sharedtask
from sharedtask import StoreFullError, parallel
from sharedtask.memory.arrays import array
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
task = parallel(lambda x, tables: sum(int(t.sum()) for t in tables), shared=["tables"])
task = task.with_options(backend="process")
print(task.map(range(3), tables=[array([1])]))
tables = []
try:
    for k in range(300):
        tables.append(array([1]))
except StoreFullError as error:
    assert "RLIMIT_NOFILE" in str(error), error
del tables[30:]
print(len(tables), task.map(range(3), tables=tables))
for k in range(300):
    assert [k] * 2 == task.map(range(2), tables=[array([k])])
"""
    assert "[1, 1, 1]\n30 [30, 30, 30]\n" == run(text)


def test_few_addresses(run: Callable[..., str]) -> None:
    """Where no address is free for it, an array is StoreFullError, and nothing stays open."""
    text = """
import os, resource
from sharedtask import StoreFullError
from sharedtask.memory.arrays import zeros
first = zeros(10)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
before = os.listdir("/proc/self/fd")
for size in (50 << 20, 1 << 30):
    try:
        zeros(size, "u1")
    except StoreFullError as error:
        print(type(error).__name__)
assert before == os.listdir("/proc/self/fd")
"""
    assert "StoreFullError\n" * 2 == run(text)


def test_too_large(store: str) -> None:
    """What does not fit is StoreFullError that says how much was needed."""
    del store
    before = Belongings.now()
    makes: list[Any] = [zeros, empty, lambda n: array(np.broadcast_to(1.0, (n,)))]
    for make in makes:
        with pytest.raises(StoreFullError, match=r"8\.8 TB needed"):
            make(1_100_000_000_000)
    assert [] == Belongings.now().more_than(before)


def test_full_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With ``SHAREDTASK_STORE=file`` a folder that cannot be written is an error of ours."""
    monkeypatch.setenv("SHAREDTASK_STORE", "file")
    monkeypatch.setenv("SHAREDTASK_STORE_DIR", str(tmp_path / "missing"))
    with pytest.raises(SharedTaskError, match="missing"):
        zeros(3)


# ------------------------------------------------------------------- forks, threads, other uses


def test_forked_child_uses_it(run: Callable[..., str]) -> None:
    """A forked child sees it, writes it, and shares it with workers of its own."""
    text = """
import os, sys, warnings
import numpy as np, sharedtask
from sharedtask import parallel
from sharedtask.memory.arrays import array, zeros
warnings.simplefilter("ignore", DeprecationWarning)  # fork while threads run
task = parallel(lambda x, t: float(t.sum()), shared=["t"]).with_options(backend="process")
table, inherited = zeros(100_000), array(np.ones(10))
table[0] = 1
assert [1.0, 1.0] == task.map(range(2), t=table)
pid = os.fork()
if pid == 0:
    code = 1
    try:
        table[1] = 2
        assert [3.0, 3.0] == task.map(range(2), t=table)
        del inherited
        own = array(np.full(100_000, 2.0))
        assert [200_000.0] == task.map([0], t=own)
        sharedtask.shutdown()
        code = 0
    finally:
        os._exit(code)
assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert 3.0 == table.sum()
assert [3.0] == task.map([0], t=table) and [10.0] == task.map([0], t=inherited)
print("done")
"""
    assert "done\n" == run(text)


def test_forked_child_writes_and_the_parent_reads() -> None:
    """``multiprocessing`` with fork shares it, too: it is ordinary shared memory."""
    table = zeros(3)
    reader, writer = os.pipe()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_fill, args=(table, writer))
    process.start()
    assert b"x" == os.read(reader, 1)
    process.join()
    os.close(reader)
    os.close(writer)
    assert [5.0, 5.0, 5.0] == table.tolist()


def _fill(table: Any, writer: int) -> None:
    table[:] = 5
    os.write(writer, b"x")


@pytest.mark.parametrize(
    "duplicate",
    [
        lambda t: t.copy(),
        copy.copy,
        copy.deepcopy,
        lambda t: pickle.loads(pickle.dumps(t)),
        lambda t: pickle.loads(pickle.dumps(t, 2)),
        lambda t: copy.deepcopy({"t": t})["t"],
        lambda t: t + 0,
        np.array,
    ],
    ids=["copy()", "copy.copy", "deepcopy", "pickle", "pickle 2", "inside", "sum", "np.array"],
)
def test_copies_are_ordinary(duplicate: Callable[[Any], Any]) -> None:
    """Copies by any way are ordinary arrays of their own."""
    table = array([[1.0, 2.0], [3.0, 4.0]])
    twin = duplicate(table)
    assert mapped_again(twin) is None
    table[0, 0] = 9
    assert [[1.0, 2.0], [3.0, 4.0]] == twin.tolist()


def test_files_of_it(tmp_path: Path) -> None:
    """Functions of numpy save, load and read into it as ever."""
    table = array(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "a.npy", table)
    assert_same(np.array(table), np.load(tmp_path / "a.npy"))
    file = io.BytesIO()
    np.savez(file, table=table)
    file.seek(0)
    with np.load(file) as loaded:
        assert_same(np.array(table), loaded["table"])
    table.tofile(tmp_path / "a.dat")
    into = zeros((2, 3))
    with (tmp_path / "a.dat").open("rb") as source:
        assert 48 == source.readinto(memoryview(cast("Any", into)).cast("B"))
    assert_same(np.array(table), into)
    np.multiply(table, 2, out=into)
    assert 30.0 == into.sum()


@pytest.mark.usefixtures("no_leaks")
def test_threads_make_them_at_once() -> None:
    """Arrays of several threads do not mix, nor do those that die meanwhile."""

    def work(seed: int) -> int:
        kept = []
        for k in range(150):
            made = array(np.full(50, seed * 1000.0 + k))
            assert made.tolist() == mapped_again(made).tolist()
            if k % 3 == 0:
                kept.append((seed * 1000.0 + k, made))
        assert all(50 * value == made.sum() for value, made in kept)
        return len({made.ctypes.data for _, made in kept})

    with ThreadPoolExecutor(4) as threads:
        assert [50] * 4 == list(threads.map(work, range(4)))


def test_collections_during_maps() -> None:
    """Garbage collections at any moment change nothing."""
    stop = threading.Event()

    def collect() -> None:
        while not stop.wait(0.001):
            gc.collect(0)

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        task = on("process", itself)
        for k in range(40):
            ring: dict[str, Any] = {"rows": array(np.full(9000, float(k)))}
            ring["self"] = ring
            results = task.map(range(4), table=ring, look=_sum_of_rows)
            assert [9000.0 * k] * 4 == results
    finally:
        stop.set()
        collector.join()


def _sum_of_rows(value: Any) -> float:
    return float(value["rows"].sum())


def test_address_that_is_used_again() -> None:
    """An ordinary array where a shared one has been is an ordinary array."""
    for _ in range(50):
        table = zeros(BIG)
        address = table.ctypes.data
        del table
        ordinary = np.full(BIG, 3.0)
        assert mapped_again(ordinary) is None, (address, ordinary.ctypes.data)
        assert 3.0 == ordinary[0]


# ----------------------------------------------------------------- memory that others have made


def shared_memory(stack: contextlib.ExitStack) -> Any:
    segment = SharedMemory(create=True, size=8 * 1000)
    stack.callback(_let_go, segment)
    return np.ndarray((1000,), np.float64, segment.buf)


def _let_go(segment: SharedMemory) -> None:
    segment.unlink()
    segment.close()


def attached(stack: contextlib.ExitStack) -> Any:
    made = SharedMemory(create=True, size=8 * 1000)
    stack.callback(_let_go, made)
    other = SharedMemory(made.name)
    stack.callback(other.close)
    return np.ndarray((1000,), np.float64, other.buf)


def unlinked(stack: contextlib.ExitStack) -> Any:
    segment = SharedMemory(create=True, size=8 * 1000)
    segment.unlink()
    stack.callback(segment.close)
    return np.ndarray((1000,), np.float64, segment.buf)


def file_mapping(stack: contextlib.ExitStack, **how: Any) -> Any:
    fd = os.memfd_create("file")
    os.write(fd, bytes(mmap.ALLOCATIONGRANULARITY + 8000))
    mapped = mmap.mmap(fd, 8000, offset=mmap.ALLOCATIONGRANULARITY, **how)
    os.close(fd)
    del stack
    return numbers_of(mapped)


OTHERS: dict[str, Callable[[contextlib.ExitStack], Any]] = {
    "Array": lambda _: numbers_of(multiprocessing.Array("d", 1000).get_obj()),
    "Array without lock": lambda _: numbers_of(multiprocessing.Array("d", 1000, lock=False)),
    "RawArray": lambda _: numbers_of(multiprocessing.RawArray("d", 1000)),
    "as_array": lambda _: np.ctypeslib.as_array(multiprocessing.RawArray("d", 1000)),
    "memoryview": lambda _: np.asarray(memoryview(multiprocessing.RawArray(ctypes.c_double, 1000))),
    "SharedMemory": shared_memory,
    "SharedMemory by name": attached,
    "SharedMemory unlinked": unlinked,
    "mmap": file_mapping,
}


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """An array of 1000 zeros in shared memory that others have made; all else has gone."""
    stack = contextlib.ExitStack()
    yield [OTHERS[request.param](stack)]
    stack.close()


def test_memory_of_others_is_seen(backend: str, other: list[Any]) -> None:
    """It is seen by every backend, and so is what is written to it afterwards."""
    table = other.pop()
    task = on(backend, total)
    assert [0.0] == task.map([0], table=table)
    table[-1] = 3
    assert [3.0] * 2 == task.map(range(2), table=table)


def test_memory_of_others_is_not_copied(other: list[Any]) -> None:
    """The worker maps the very memory, a view of it too, and sees writes while it runs."""
    table = other.pop()
    task = on("process", inode)
    for view in (table, table[10:], table[::-3], table.reshape(10, 100).T):
        assert [inode_of(table)] == task.map([0], table=view)
    assert 10_000 > task.cache_info().nbytes
    future = on("process", wait_for).submit(0, table=table, value=2.0)
    table[0] = 2
    assert future.result(60)


def test_memory_of_others_keeps_the_rules(other: list[Any]) -> None:
    """Shared is read-only, CopyOnWrite is private, and the original stays as it was."""
    table = other.pop()
    with pytest.raises(ValueError, match="read-only") as caught:
        on("process", write).map([0], table=table)
    assert "CopyOnWrite" in " ".join(caught.value.__notes__)
    assert [0.0] * 3 == on("process", scribble).map(range(3), table=table)
    assert 0.0 == table.sum()
    with share(table[500:]) as handle:
        table[-1] = 6
        assert [6.0] == on("process", total).map([0], table=handle)


def test_lock_may_be_held_meanwhile() -> None:
    """A map over a ``multiprocessing.Array`` does not ask for its lock."""
    numbers = multiprocessing.Array("d", range(5))
    with numbers.get_lock():
        table = numbers_of(numbers.get_obj())
        assert [10.0] == on("process", total).map([0], table=table)
    numbers[0] = 1
    assert [11.0] == on("process", total).map([0], table=table)


def test_two_arrays_in_one_segment(backend: str) -> None:
    """Arrays at different offsets of one segment are told apart."""

    def look(_x: int, left: Shared[Any], right: Shared[Any]) -> Any:
        return left.tolist(), right.tolist()

    segment = SharedMemory(create=True, size=100)
    left: Any = np.ndarray((3,), "i4", segment.buf, 4)
    right: Any = np.ndarray((2,), "f8", segment.buf, 17)  # not aligned
    left[:], right[:] = [1, 2, 3], [4, 5]
    assert [([1, 2, 3], [4.0, 5.0])] == on(backend, look).map([0], left=left, right=right)
    right[1] = 6
    assert [([1, 2, 3], [4.0, 6.0])] == on(backend, look).map([0], left=left, right=right)
    del left, right
    _let_go(segment)


def test_temporary_arrays_of_multiprocessing() -> None:
    """Blocks of its heap that are used again are never taken for the array of an item that waits.

    The heap gives the block of an array that died to the next one: the same file, the same offset.
    """

    def make(value: float) -> Any:
        table = numbers_of(multiprocessing.RawArray("d", 1000))
        table[:] = value
        return table

    task = busy()
    futures = [task.submit(0, table=make(k)) for k in range(6)]
    assert [1000.0 * k for k in range(6)] == [future.result(60) for future in futures]


def test_descriptor_that_is_closed_after_mapping() -> None:
    """The caller's own descriptor of the file may be closed while an item waits."""
    fd = os.memfd_create("file")
    os.write(fd, np.ones(1000).tobytes())
    table = numbers_of(mmap.mmap(fd, 8000))
    future = busy().submit(0, table=table)
    os.close(fd)
    assert 1000.0 == future.result(60)


@pytest.mark.parametrize("how", [{"access": mmap.ACCESS_READ}, {"access": mmap.ACCESS_COPY}, {}])
def test_kinds_of_mappings(backend: str, how: dict[str, Any], tmp_path: Path) -> None:
    """Read-only, private and writable mappings are seen as they are here."""
    path = tmp_path / "numbers"
    np.ones(1000).tofile(path)
    with path.open("r+b") as file:
        table = numbers_of(mmap.mmap(file.fileno(), 8000, **how))
    task = on(backend, total)
    assert [1000.0] == task.map([0], table=table)
    if table.flags.writeable:
        table[0] = 5
        assert [1004.0] == task.map([0], table=table)
    on_disk = 1004.0 if how == {} else 1000.0
    assert on_disk == np.fromfile(path).sum()


def test_mapping_without_a_file(backend: str) -> None:
    """Anonymous shared memory has nothing that a worker could open: it is copied."""
    table = numbers_of(mmap.mmap(-1, 8 * BIG))
    task = on(backend, total)
    assert [0.0] == task.map([0], table=table)
    table[0] = 3
    assert [3.0] == task.map([0], table=table)
    if backend == "process":
        assert 8 * BIG <= task.cache_info().nbytes


def test_plain_view_of_a_memmap(backend: str, tmp_path: Path) -> None:
    """``np.asarray`` of a mapped file is shared by the file; of a private mapping it is copied."""
    path = tmp_path / "numbers"
    np.ones(1000).tofile(path)
    modes: list[tuple[Any, float]] = [("c", 1000.0), ("r+", 1004.0)]
    for mode, on_disk in modes:
        mapped = np.memmap(path, np.float64, mode)
        table = np.asarray(mapped)
        assert [1000.0] == on(backend, total).map([0], table=table)
        mapped[0] = 5
        assert [1004.0] == on(backend, total).map([0], table=table)
        assert on_disk == np.fromfile(path).sum()


@pytest.mark.parametrize("unlink", [False, True])
def test_file_that_is_replaced(unlink: bool, tmp_path: Path) -> None:
    """What is mapped here is what tasks see, whatever is at the path by then."""
    path = tmp_path / "numbers"
    np.ones(1000).tofile(path)
    with path.open("r+b") as file:
        table = numbers_of(mmap.mmap(file.fileno(), 8000))
    path.unlink()
    if not unlink:
        np.zeros(1000).tofile(path)
    assert [1000.0] == on("process", total).map([0], table=table)


def test_file_that_grows() -> None:
    """Arrays over a file that has grown since it was first mapped are seen whole."""
    fd = os.memfd_create("file")
    os.write(fd, np.ones(1000).tobytes())
    small = numbers_of(mmap.mmap(fd, 8000))
    task = on("process", total, workers=1)
    assert [1000.0] == task.map([0], table=small)
    os.write(fd, np.full(100_000, 2.0).tobytes())
    large = numbers_of(mmap.mmap(fd, 808_000))[50_000:]
    os.close(fd)
    assert [102_000.0] == task.map([0], table=large)
    assert [1000.0] == task.map([0], table=small)


def test_file_that_shrinks_while_an_item_waits() -> None:
    """A file that was cut off is an error of ours, not a dead worker."""
    fd = os.memfd_create("file")
    os.truncate(fd, 1 << 20)
    table = numbers_of(mmap.mmap(fd, 1 << 20))
    future = busy().submit(0, table=table)
    os.truncate(fd, 0)
    error = future.exception(60)
    os.close(fd)
    assert isinstance(error, SharedTaskError)
    assert "smaller" in str(error)


def test_file_that_shrinks_while_a_worker_has_it() -> None:
    """What a worker has mapped already is asked for again: cut off meanwhile, it is an error."""
    fd = os.memfd_create("file")
    os.truncate(fd, 1 << 20)
    table = numbers_of(mmap.mmap(fd, 1 << 20))
    task = on("process", total, workers=1)
    assert [0.0] == task.map([0], table=table)
    os.truncate(fd, 4096)
    with pytest.raises(SharedTaskError, match="smaller"):
        task.map([0], table=table[:100_000])
    assert [0.0] == task.map([0], table=table[:512])
    os.close(fd)


LOST = """
import mmap, os, sys
import numpy as np
from multiprocessing.shared_memory import SharedMemory
from sharedtask import SharedTaskError, parallel
task = parallel(lambda x, table: float(table.sum()), shared=["table"])
task = task.with_options(backend=sys.argv[1])

def closed():
    segment = SharedMemory(create=True, size=1 << 20)
    table = np.ndarray((1 << 17,), buffer=segment.buf)
    segment.close()
    segment.unlink()
    return table

def collected():
    segment = SharedMemory(create=True, size=1 << 20)
    segment.unlink()
    return np.ndarray((1 << 17,), buffer=segment.buf)

def released():
    table = np.frombuffer(mmap.mmap(-1, 1 << 20))
    return np.ndarray((1 << 17,), buffer=(made := mmap.mmap(-1, 1 << 20))), made.close()

def cut():
    fd = os.memfd_create("file")
    os.truncate(fd, 1 << 20)
    table = np.frombuffer(mmap.mmap(fd, 1 << 20))
    os.truncate(fd, 0)
    return table

for make in (closed, collected, released, cut):
    table = make()
    table = table[0] if isinstance(table, tuple) else table
    for value in (table, table[::2], {"rows": table}):
        try:
            print(task.map([0], table=value))
        except SharedTaskError as error:
            print(type(error).__name__)
"""


@pytest.mark.parametrize("where", ["serial", "thread", "process"])
def test_memory_that_is_lost(run: Callable[..., str], where: str) -> None:
    """An array whose memory was unmapped or cut off is an error: no crash, no other values."""
    assert "UnshareableError\n" * 12 == run(LOST, where)


COLLIDING = """
import ctypes, mmap, os, sys
import numpy as np
from sharedtask import parallel
libc = ctypes.CDLL(None, use_errno=True)
files = []
for k, folder in enumerate(sys.argv[1:]):
    if libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, None):
        raise SystemExit(77)
    files.append(open(os.path.join(folder, "file"), "w+b"))
    files[-1].write(np.full(1000, float(k)).tobytes())
    files[-1].flush()
assert len({os.fstat(file.fileno()).st_ino for file in files}) == 1
task = parallel(lambda x, table: float(table[0]), shared=["table"]).with_options(backend="process")
tables = [np.frombuffer(mmap.mmap(file.fileno(), 8000)) for file in files]
print([task.map([0], table=table) for table in tables])
"""


def test_same_inode_number_on_two_file_systems(tmp_path: Path) -> None:
    """Files of one inode number on different file systems are told apart."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    command = shutil.which("unshare")
    if command is None:
        pytest.skip("there is no unshare to mount file systems with")
    script = tmp_path / "script.py"
    script.write_text(COLLIDING)
    ran = subprocess.run(
        [command, "-rm", sys.executable, str(script), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip("nothing may be mounted here")
    assert ("[[0.0], [1.0]]\n", "") == (ran.stdout, ran.stderr)


def test_locks_of_the_file_stay(tmp_path: Path) -> None:
    """A record lock that this process holds on the file is held after a map in this process."""
    import fcntl

    path = tmp_path / "numbers"
    np.ones(1000).tofile(path)
    with path.open("r+b") as file:
        table = numbers_of(mmap.mmap(file.fileno(), 8000))
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert [1000.0] == on("serial", total).map([0], table=table)
        with share(table) as handle:
            assert 1000.0 == handle.value.sum()
        probe = (
            "import fcntl, sys\n"
            "try: fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except OSError: print('locked')\n"
        )
        ran = subprocess.run(
            [sys.executable, "-S", "-c", probe, str(path)],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    assert "locked\n" == ran.stdout


def test_nothing_of_others_is_left() -> None:
    """Maps leave no descriptor, mapping or name behind that was not there before."""

    def use_all() -> None:
        for make in OTHERS.values():
            with contextlib.ExitStack() as stack:
                table = make(stack)
                task.map(range(3), table=table)
                task.map(range(3), table=table[::2])
                del table
        shutdown()

    task = on("process", total)
    use_all()  # multiprocessing keeps a tracker process, and what its heap once had
    before = Belongings.now()
    use_all()
    assert_nothing_left(before)
