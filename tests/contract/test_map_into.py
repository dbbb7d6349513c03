"""``map_into`` on single backends: what travels, what deaths leave, what type checkers see."""

import os
import signal
import time
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pytest
from budget import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    Locked,
    Reduced,
    Shared,
    WorkerDiedError,
    empty,
    parallel,
    zeros,
)
from sharedtask.backends.worker import result_format
from sharedtask.testing import arrays, count_up

pytestmark = pytest.mark.timeout(60)

MAKERS = pytest.mark.parametrize("make", [np.zeros, zeros], ids=["own", "shared"])
LARGE = 1 << 20  # float64s: 8 MB


# ------------------------------------------------------------------------ tasks and helpers


def on(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)


def square(x: int) -> int:
    return x * x


def large_row(k: int) -> npt.NDArray[Any]:
    return np.full(LARGE, k, float)


def row_of(k: int, rows: Any) -> Any:
    return rows[k]


def die_on(k: int, bad: Any, folder: str = "") -> int:
    if k in bad and (not folder or count_up(folder, k) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(30)
    return k + 1


def die_and_add(k: int, total: Reduced[Any], folder: str) -> int:
    total += 1
    return die_on(k, [2, 5], folder)


def lock_too(k: int, grid: Locked[Any]) -> int:
    with grid.write(0) as cell:
        cell[...] += 1
    return k


def fill_own(k: int, scratch: CopyOnWrite[Any], table: Shared[Any]) -> Any:
    scratch += table[k]
    return scratch


def unreadable(k: int) -> Any:
    return k if k != 2 else {"a": 1}


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each message of results from a worker, and -1 for each descriptor beside it."""
    seen: list[int] = []
    load = result_format.load_batch

    def counting(mode: int, body: Any, items: int, first: int, task: str, fds: Any) -> Any:
        beside = list(fds)
        seen.extend([len(body), *[-1] * len(beside)])
        return load(mode, body, items, first, task, iter(beside))

    monkeypatch.setattr(result_format, "load_batch", counting)
    return seen


# ------------------------------------------------------------------------------ what travels


@MAKERS
def test_large_results_do_not_travel(make: Any, traffic: list[int]) -> None:
    """A worker writes its results where they belong: the caller hears of each and gets none."""
    out = on("process", large_row, chunksize=1).map_into(make((4, LARGE)), range(4))
    assert [0, 1, 2, 3] == out.mean(axis=1).tolist()
    assert traffic
    assert -1 not in traffic
    assert 4096 > sum(traffic)
    traffic.clear()
    on("process", large_row, chunksize=1).map(range(4))
    assert 4 == traffic.count(-1)  # without it each is a segment


@MAKERS
def test_small_results_do_not_travel(make: Any, traffic: list[int]) -> None:
    """Nothing of thousands of small results comes back but that they are there."""
    out = on("process", square).map_into(make(10_000), range(10_000))
    assert [k * k for k in range(10_000)] == out.tolist()
    assert 20_000 > sum(traffic)  # a number for each would be 80,000


def test_results_on_ray_travel_in_the_arrays_dtype(ray_runtime: None) -> None:
    """Where the array is elsewhere, what travels is what will stand in it."""
    out = on("ray", large_row).map_into(np.zeros((2, LARGE), "f4"), range(2))
    assert [0, 1] == out.mean(axis=1).tolist()


@pytest.mark.usefixtures("no_leaks_warm")
@MAKERS
def test_nothing_is_left(make: Any) -> None:
    """After maps, errors and refusals no memory, descriptor or thread is left."""
    for _ in range(3):
        out = make((4, 1000))
        on("process", row_of).map_into(out, range(4), np.ones((4, 1000)))
        with pytest.raises(ValueError, match="broadcast"):
            on("process", row_of).map_into(out, range(4), np.ones((4, 999)))
        with pytest.raises(ArgumentError):
            on("process", square).map_into(out, range(5))


# ----------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize("backend", ["process", "ray"])
@MAKERS
def test_death_leaves_the_place(backend: str, make: Any, request: pytest.FixtureRequest) -> None:
    """The place of an item whose worker died is as it was, those of all others are written."""
    if backend == "ray":
        request.getfixturevalue("ray_runtime")
    out = make(8)
    out[...] = -1
    task = on(backend, die_on, return_exceptions=True, chunksize=4)
    with pytest.raises(ExceptionGroup, match="1 of 8") as caught:
        task.map_into(out, range(8), bad=[2])
    (error,) = caught.value.exceptions
    assert isinstance(error, WorkerDiedError)
    assert 2 == error.index
    assert [1, 2, -1, 4, 5, 6, 7, 8] == out.tolist()
    assert list(range(1, 9)) == task.map_into(out, range(8), bad=[]).tolist()


@MAKERS
def test_death_ends_the_map(make: Any) -> None:
    """Without ``return_exceptions`` the error is raised; each place is written or as it was."""
    out = make(12)
    out[...] = -1
    with pytest.raises(WorkerDiedError) as caught:
        on("process", die_on, chunksize=3).map_into(out, range(12), bad=[7])
    assert 7 == caught.value.index
    assert -1 == out[7]
    assert {True} == {out[k] in {-1, k + 1} for k in range(12)}


@pytest.mark.parametrize("backend", ["process", "ray"])
@MAKERS
def test_death_and_retry(
    backend: str, make: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An item that is run again after its worker died has its result in its own place."""
    if backend == "ray":
        request.getfixturevalue("ray_runtime")
    out = make(8)
    task = on(backend, die_on, retries=1, chunksize=4)
    assert out is task.map_into(out, range(8), bad=[0, 5], folder=str(tmp_path))
    assert list(range(1, 9)) == out.tolist()


def test_death_and_retry_beside_reduced(tmp_path: Path) -> None:
    """Each item counts once and is in its place, also where workers die in between."""
    out, total = np.zeros(8), np.zeros(1)
    task = on("process", die_and_add, retries=1, chunksize=4)
    task.map_into(out, range(8), total=total, folder=str(tmp_path))
    assert list(range(1, 9)) == out.tolist()
    assert [8] == total.tolist()


# --------------------------------------------------------------------------- other words


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
@MAKERS
def test_beside_locked(backend: str, make: Any) -> None:
    """Results have their places while items take turns elsewhere."""
    grid, out = make(1), make(20)
    on(backend, lock_too).map_into(out, range(20), grid=grid)
    assert list(range(20)) == out.tolist()
    assert [20] == grid.tolist()


@pytest.mark.parametrize("backend", ["serial", "thread", "process"])
def test_memory_of_locked_is_refused(backend: str) -> None:
    """The array that is locked does not take the results."""
    whole = zeros(8)
    with pytest.raises(ArgumentError, match=r"'out'.*'grid'.*the same memory"):
        on(backend, lock_too).map_into(whole[:4], range(4), grid=whole)


def test_private_array_as_a_result(backend: str) -> None:
    """What an item made of its own copy may be its result; the next starts from the original."""
    out = np.zeros((3, 4))
    scratch, table = np.ones(4), np.arange(3)
    on(backend, fill_own, chunksize=3).map_into(out, range(3), scratch=scratch, table=table)
    assert [[1] * 4, [2] * 4, [3] * 4] == out.tolist()
    assert [1] * 4 == scratch.tolist()


def test_result_of_another_kind(backend: str) -> None:
    """A result that is no number is its item's error, and the others are written."""
    out = np.zeros(4)
    task = on(backend, unreadable, return_exceptions=True)
    with pytest.raises(ExceptionGroup, match="1 of 4") as caught:
        task.map_into(out, range(4))
    assert [TypeError] == [type(error) for error in caught.value.exceptions]
    assert [0, 1, 0, 3] == out.tolist()


def test_memmap_holds_the_results(backend: str, tmp_path: Path) -> None:
    """Results may stand in a file that is mapped."""
    path = tmp_path / "out"
    out = np.memmap(path, "i4", "w+", shape=(5,))
    assert out is on(backend, square).map_into(out, range(5))
    out.flush()
    assert [0, 1, 4, 9, 16] == np.fromfile(path, "i4").tolist()


@settings(deadline=None, max_examples=examples(60))
@given(data=st.data(), rows=arrays(dtypes=npst.scalar_dtypes()))
@pytest.mark.parametrize("backend", ["serial", "process"])
def test_map_into_is_assignment(backend: str, data: st.DataObject, rows: Any) -> None:
    """For any array of results, ``out`` has what a loop of assignments makes of them."""
    if not rows.ndim:
        rows = rows.reshape(1)
    layout = data.draw(st.sampled_from(["C", "F", "shared", "reversed"]))
    makers: dict[str, Any] = {
        "C": lambda: np.zeros(rows.shape, rows.dtype),
        "F": lambda: np.zeros(rows.shape, rows.dtype, order="F"),
        "shared": lambda: empty(rows.shape, rows.dtype),
        "reversed": lambda: np.zeros((2 * len(rows), *rows.shape[1:]), rows.dtype)[::-2],
    }
    wanted, out = np.zeros(rows.shape, rows.dtype), makers[layout]()
    for k in range(len(rows)):
        wanted[k] = rows[k]
    on(backend, row_of).map_into(out, range(len(rows)), rows=rows)
    assert wanted.tobytes() == out.tobytes()


# ------------------------------------------------------------------------------------ types


def test_type_is_that_of_the_array() -> None:
    """Type checkers know the result as what was given."""
    task = parallel(square).with_options(backend="serial")
    out: npt.NDArray[np.float32] = np.zeros(3, np.float32)
    assert_type(task.map_into(out, range(3)), npt.NDArray[np.float32])
    mapped: np.memmap[Any, np.dtype[np.float32]] = out.view(np.memmap)
    assert_type(task.map_into(mapped, range(3)), "np.memmap[Any, np.dtype[np.float32]]")
    assert [0, 1, 4] == out.tolist()
