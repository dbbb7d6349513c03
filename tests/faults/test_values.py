import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import with_long

from sharedtask import Shared, parallel, share, shutdown
from sharedtask.testing import Belongings, assert_nothing_left, forget_publications, until

_KEPT: list[Any] = []


def keep(x: int, table: Shared[Any]) -> float:
    _KEPT.append(table[: 10 + x])
    return float(table.sum())


def kept(_x: int) -> list[float]:
    return [float(view.sum()) for view in _KEPT]


def total(x: int, table: Shared[Any]) -> float:
    time.sleep(0.05)
    return float(table[0] + table[-1]) + x


def through(_x: int, table: Shared[Any]) -> Any:
    return table


def row(x: int, table: Shared[Any]) -> Any:
    return table[x : x + 1]


sums = parallel(total).with_options(backend="process", chunksize=1)


def test_view_kept_in_a_worker_outlives_its_value() -> None:
    """A view that a task kept in a global stays valid when its value is gone."""
    task = parallel(keep).with_options(backend="process", workers=1)
    look = parallel(kept).with_options(backend="process", workers=1)
    table = np.ones(1_000_000)
    assert [1e6, 1e6] == task.map(range(2), table=table)
    task.cache_clear()
    del table
    gc.collect()
    for k in range(3):  # other values may come to stand where it stood
        assert [k * 1e6] == task.map([0], table=np.full(1_000_000, float(k)))
    assert [10.0, 11.0] == look.map([0])[0][:2]
    shutdown()  # what the task keeps goes with its worker


@pytest.mark.parametrize("how", ["drop", "close", "clear", "collect", "shared anew", "unlink"])
def test_value_dropped_while_tasks_run(how: str) -> None:
    """A value, handle or cache entry that goes while tasks run is there for them to the end."""
    table = np.ones(500_000)
    handle = share(table, name=f"goes-{os.getpid()}" if how == "unlink" else None)
    shared: Any = handle if how in {"close", "collect", "unlink"} else table
    stream = sums.imap(range(20), table=shared)
    results = [next(stream)]
    if how == "close":
        handle.close()
    elif how == "unlink":
        handle.unlink()
    elif how == "clear":
        sums.cache_clear()
    elif how == "shared anew":
        table[:] = 5
        assert [10.0] == sums.map([0], table=table)
    del table, handle, shared
    gc.collect()
    results += stream
    assert [2.0 + x for x in range(20)] == results


def test_submitted_value_dropped() -> None:
    """A future needs nothing of its caller's: the value may go right after ``submit``."""
    futures = [sums.submit(x, table=np.full(300_000, 3.0)) for x in range(8)]
    gc.collect()
    assert [6.0 + x for x in range(8)] == [future.result(60) for future in futures]


def test_result_is_the_shared_array() -> None:
    """A shared array that a task returns is right after the value was released, and writable."""
    table = np.arange(300_000.0)
    task = parallel(through).with_options(backend="process")
    (result,) = task.map([0], table=table)
    task.cache_clear()
    del table
    gc.collect()
    assert np.array_equal(np.arange(300_000.0), result)
    result += 1


def test_view_of_one_row_does_not_bring_its_base() -> None:
    """A view of one row of a shared array comes back as one row."""
    table = np.arange(3_000_000.0).reshape(1000, 3000)
    task = parallel(row).with_options(backend="process")
    results = task.map(range(3), table=table)
    assert np.array_equal(table[:3], np.concatenate(results))
    for result in results:
        base = result
        while isinstance(getattr(base, "base", None), np.ndarray):
            base = base.base
        assert 200_000 > base.nbytes


def test_change_during_a_map_is_for_the_next() -> None:
    """A map works on the value as it was when the map began; the next map sees the change."""
    table = np.ones(500_000)
    stream = sums.imap(range(12), table=table)
    results = [next(stream)]
    table[:] = 7
    results += stream
    assert [2.0 + x for x in range(12)] == results
    assert [14.0, 15.0] == sums.map(range(2), table=table)


def agree(_x: int, table: Shared[Any]) -> tuple[float, float]:
    return float(table.min()), float(table.max())


@pytest.mark.parametrize("size", [1000, 2_000_000])
def test_writer_beside_many_maps(size: int) -> None:
    """Whatever a thread writes meanwhile, a map after its last write sees exactly that."""
    table, task = np.zeros(size), parallel(agree).with_options(backend="process")
    stop = threading.Event()
    pause = threading.Event()
    paused = threading.Event()

    def write() -> None:
        while not stop.is_set():
            if pause.is_set():
                paused.set()
                time.sleep(0.001)
                continue
            paused.clear()
            table[:] += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(15):
            task.map(range(2), table=table)  # beside the writer: any mix, but nothing breaks
            pause.set()
            assert paused.wait(60)
            now = float(table[0])
            assert [(now, now)] * 2 == task.map(range(2), table=table)
            paused.clear()
            pause.clear()
    finally:
        stop.set()
        writer.join()


def test_two_equal_arrays_are_two_values() -> None:
    """Two arrays of equal contents are shared apart: a change of one is not seen in the other."""
    left, right = np.zeros(200_000), np.zeros(200_000)
    assert [0.0] == sums.map([0], table=left)
    assert [0.0] == sums.map([0], table=right)
    left[0] = 1
    assert [1.0] == sums.map([0], table=left)
    assert [0.0] == sums.map([0], table=right)


def pair(_x: int, left: Shared[Any], right: Shared[Any]) -> tuple[float, float, bool]:
    return float(left.sum()), float(right.sum()), left.flags.writeable or right.flags.writeable


def test_overlapping_values() -> None:
    """Parameters that overlap in one base are both right and read-only."""
    base = np.arange(400_000.0)
    task = parallel(pair).with_options(backend="process")
    for left, right in ((base, base[100:]), (base[::2], base[::-1]), (base, base)):
        wanted = (float(left.sum()), float(right.sum()), False)
        assert [wanted] * 2 == task.map(range(2), left=left, right=right)
    base[200] = -1
    wanted = (float(base.sum()), float(base[100:].sum()), False)
    assert [wanted] == task.map([0], left=base, right=base[100:])


@pytest.mark.parametrize("size", with_long([1000, 400_000], 1000))
def test_many_values_in_turn_leave_nothing(size: int) -> None:
    """Many different values in turn are given back, here and in the workers."""
    forget_publications()
    sums_now = parallel(pair).with_options(backend="process")
    before = Belongings.now()
    for k in range(40):
        left, right = np.full(size, float(k)), {"a": np.ones(size)}
        assert [k * 2.0] == sums.with_options(chunksize="auto").map([0], table=left)
        assert [(k * size, 1.0 * size, False)] == sums_now.map([0], left=left, right=right["a"])
    del left, right
    assert_nothing_left(before, same_children=True)


def mapped_here(_x: int) -> int:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:sharedtask" in line for line in maps)


def test_workers_give_back_what_is_forgotten() -> None:
    """After a value has died the workers do not keep it mapped."""
    look = parallel(mapped_here).with_options(backend="process", chunksize=1)
    before = max(look.map(range(6)))
    for k in range(30):
        sums.map(range(2), table=np.full(200_000, float(k)))
    gc.collect()
    until(lambda: max(look.map(range(6))) <= before + 4)
