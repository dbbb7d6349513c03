"""Locked arrays: who is in at the same time, what deaths leave, where the memory is."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pytest
from budget import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sharedtask import (
    ArgumentError,
    DefinitionError,
    Locked,
    LockOrderError,
    OptionsError,
    RegionPoisonedError,
    Regions,
    TaskTimeoutError,
    WorkerDiedError,
    parallel,
    zeros,
)
from sharedtask.testing import Belongings, Deadline, LockedContract, count_up, counted, until

pytestmark = pytest.mark.timeout(60)

TWO_AT_ONCE = ["thread", "process"]
HERE = ["serial", "thread", "process"]
BANDS, TILES = Regions(blocks=3), Regions(blocks=(4, 4))
MAKERS = pytest.mark.parametrize("make", [np.zeros, zeros], ids=["own", "shared"])


# ------------------------------------------------------------------------ tasks and helpers


def on(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)


def meet(folder: str, name: str, count: int, seconds: float) -> bool:
    """Whether so many are here under this name at the same time, within this time."""
    count_up(folder, name)
    deadline = Deadline(seconds)
    while counted(folder)[name] < count:
        if deadline.is_over:
            return False
        os.sched_yield()
    return True


def meet_inside(index: Any, grid: Locked[Any], folder: str, how: Any = "write") -> bool:
    with getattr(grid, how)(index):
        return meet(folder, "inside", 2, 20)


def meet_in_tiles(index: Any, grid: Annotated[Locked[Any], TILES], folder: str) -> bool:
    return meet_inside(index, grid, folder)


def meet_in_bands(index: Any, grid: Annotated[Locked[Any], BANDS], folder: str) -> bool:
    return meet_inside(index, grid, folder)


def come_in(index: Any, grid: Locked[Any], folder: str, how: Any = "write") -> None:
    with getattr(grid, how)(index):
        count_up(folder, "inside")


def come_in_bands(
    index: Any, grid: Annotated[Locked[Any], BANDS], folder: str, how: Any = "write"
) -> None:
    come_in(index, grid, folder, how)


def come_in_tiles(
    index: Any, grid: Annotated[Locked[Any], TILES], folder: str, how: Any = "write"
) -> None:
    come_in(index, grid, folder, how)


def enter(step: Any, grid: Locked[Any], repair: bool = False) -> int:
    """Enter a row; something may happen when half of it is written."""
    row, how, then = step
    with grid.write(row, repair=repair) if how == "write" else grid.read(row) as cells:
        if how == "write":
            cells[0] += 1
        if then == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if then in {"die", "hang"}:
            time.sleep(30)
        if how == "write":
            cells[1] += 1
    return int(row)


def enter_tolerant(step: Any, grid: Annotated[Locked[Any], Regions(poisoned="continue")]) -> int:
    return enter(step, grid)


def die_once(k: int, grid: Locked[Any], folder: str) -> int:
    first = k == 3 and count_up(folder, "tries") == 1
    return enter((1, "write", "die" if first else ""), grid, repair=True)


WORK, DIE, HANG = (1, "write", ""), (1, "write", "die"), (1, "write", "hang")
LOOK, DIE_LOOKING, WORK_APART = (1, "read", ""), (1, "read", "die"), (2, "write", "")


def add(k: int, grid: Locked[Any]) -> None:
    with grid.write(k % len(grid.array)) as row:
        row[...] += 1


def add_to_all(_k: int, grid: Locked[Any]) -> None:
    with grid.write() as whole:
        whole[...] += 1


def count_entered(_k: int, grid: Locked[Any], folder: str) -> None:
    del grid
    count_up(folder, "entered")


def add_float32(_k: int, grid: Locked[npt.NDArray[np.float32]], folder: str) -> None:
    count_up(folder, "entered")
    add_to_all(_k, grid)


def add_to_both(_k: int, left: Locked[Any], right: Locked[Any]) -> None:
    with left.write(0) as one, right.write(0) as other:
        one[...] += 1
        other[...] += 1


def add_at(index: int, grid: Locked[Any]) -> None:
    with grid.write(index) as row:
        row[...] += 1


def add_slowly(_k: int, grid: Locked[Any]) -> None:
    with grid.write(0) as cell:
        value = float(cell)
        os.sched_yield()  # gives the others their chance to read the same
        cell[...] = value + 1


def add_in_threads(_k: int, grid: Locked[Any]) -> None:
    def work() -> None:
        for _ in range(50):
            add_slowly(0, grid)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result(60)


def move_one(_k: int, grid: Locked[Any]) -> None:
    with grid.write(0) as cell, grid.write(1) as other:
        cell[...] += 1
        os.sched_yield()
        other[...] -= 1


def without_grid(_k: int, grid: Locked[Any] | None = None) -> bool:
    return grid is None


def pick(k: int, grid: Locked[Any]) -> int:
    with grid.read(k) as cell:
        return int(cell)


def inode_in(_k: int, grid: Locked[Any]) -> int:
    with grid.write() as whole:
        whole[...] += 1
        return inode_of(whole)


def inode_of(array: Any) -> int:
    from sharedtask.memory import mapping, proc_maps

    region = proc_maps.region_at(mapping.address_of(array))
    assert region is not None
    return region.inode


def add_slowly_to(grid: Any) -> None:
    add_slowly(0, grid)


def as_any(value: Any) -> Any:
    """The same; the stubs of numpy do not take it for a buffer, which it is."""
    return value


def in_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(60)


@contextlib.contextmanager
def holding(grid: Locked[Any], how: str, index: Any) -> Iterator[None]:
    """Another thread is in this region."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with getattr(grid, how)(index):
            inside.set()
            leave.wait(60)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        assert inside.wait(60)
        try:
            yield
        finally:
            leave.set()
            future.result(60)


def waiting(grid: Locked[Any]) -> bool:
    """Whether somebody waits for a region of this array."""
    return bool(grid._locks().waited_for.any())


def descriptors() -> int:
    gc.collect()
    return sum(Belongings.now().descriptors.values())


class TestLocked(LockedContract):
    """The whole contract on every backend that has locks."""

    @pytest.fixture(params=HERE)
    def backend(self, request: pytest.FixtureRequest) -> str:
        name: str = request.param
        return name


# ------------------------------------------------------------------ who is in at the same time


@pytest.mark.parametrize("backend", TWO_AT_ONCE)
@pytest.mark.parametrize("function", [meet_inside, meet_in_bands, meet_in_tiles])
@MAKERS
def test_writers_apart_are_in_together(
    backend: str, function: Any, make: Any, tmp_path: Path
) -> None:
    """Two writers whose regions have no block in common are inside at the same time."""
    pairs: dict[Any, Any] = {
        meet_inside: [2, 3],
        meet_in_bands: [slice(0, 3), slice(5, 2, -1)],
        meet_in_tiles: [
            (slice(4, 8), slice(0, 4)),
            (slice(2, 7), slice(4, 5)),  # the tiles beside the first, in its rows
        ],
    }
    task = on(backend, function, workers=2, chunksize=1)
    assert [True, True] == task.map(pairs[function], grid=make((8, 8)), folder=str(tmp_path))


@pytest.mark.parametrize("backend", TWO_AT_ONCE)
@pytest.mark.parametrize("index", [..., 2, slice(0, 4)], ids=repr)
def test_readers_are_in_together(backend: str, index: Any, tmp_path: Path) -> None:
    """Two readers of one region are inside at the same time."""
    task = on(backend, meet_inside, workers=2, chunksize=1)
    grid = zeros((6, 2))
    assert [True] * 2 == task.map([index] * 2, grid=grid, folder=str(tmp_path), how="read")


MEETING: dict[str, tuple[Any, Regions, Any, Any]] = {
    # the task, its regions, and two indices that have a block in common
    "the same row": (come_in, Regions(), 3, -5),
    "a row and all": (come_in, Regions(), 7, ...),
    "a row of a slice": (come_in, Regions(), 2, slice(0, 3)),
    "the last of a slice": (come_in, Regions(), slice(1, 6, 4), 5),
    "backwards": (come_in, Regions(), slice(5, 2, -1), 3),
    "columns of one row": (come_in, Regions(), (4, slice(0, 2)), (4, slice(4, 6))),
    "rows of one band": (come_in_bands, BANDS, 3, 5),
    "the first of a band": (come_in_bands, BANDS, slice(0, 4), 5),
    "the last of a band": (come_in_bands, BANDS, slice(2, 3), slice(0, 1)),
    "the last, short band": (come_in_bands, BANDS, 6, 7),
    "one tile": (come_in_tiles, TILES, (4, 4), (7, 7)),
    "corner of four tiles": (come_in_tiles, TILES, (slice(3, 5), slice(3, 5)), (0, 7)),
    "a row of tiles": (come_in_tiles, TILES, 1, (slice(0, 8), 6)),
}


@pytest.mark.parametrize("backend", TWO_AT_ONCE)
@pytest.mark.parametrize("name", MEETING)
@pytest.mark.parametrize(
    ("mine", "theirs"), [("write", "write"), ("write", "read"), ("read", "write")]
)
def test_who_meets_waits(backend: str, name: str, mine: str, theirs: str, tmp_path: Path) -> None:
    """Who shares a block with a writer waits for it, and a writer for who reads there."""
    function, rule, one, two = MEETING[name]
    grid, folder = zeros((8, 8)), str(tmp_path)
    held = Locked(grid, rule)
    with holding(held, mine, one):
        future = on(backend, function).submit(two, grid=grid, folder=folder, how=theirs)
        until(lambda: waiting(held) or future.done())
        assert not future.done()
        assert {} == counted(tmp_path)
    future.result(60)
    assert {"inside": 1} == counted(tmp_path)


APART: dict[str, tuple[Any, Regions, Any, Any]] = {
    # the task, its regions, and two indices that have no block in common
    "rows": (come_in, Regions(), 3, 4),
    "a row and the next ones": (come_in, Regions(), -3, slice(6, 8)),
    "slices": (come_in, Regions(), slice(0, 4), slice(7, 3, -1)),
    "nothing of all": (come_in, Regions(), ..., slice(3, 3)),
    "bands": (come_in_bands, BANDS, slice(0, 3), slice(3, 6)),
    "the last, short band": (come_in_bands, BANDS, 5, slice(6, 8)),
    "tiles of a row": (come_in_tiles, TILES, (0, 0), (0, 4)),
    "tiles of a column": (come_in_tiles, TILES, (slice(0, 4), 7), (4, 7)),
    "crosswise": (come_in_tiles, TILES, (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))),
}


@pytest.mark.parametrize("backend", TWO_AT_ONCE)
@pytest.mark.parametrize("name", APART)
def test_who_is_apart_does_not_wait(backend: str, name: str, tmp_path: Path) -> None:
    """Who shares no block with a writer comes in while it is there."""
    function, rule, one, two = APART[name]
    grid, folder = zeros((8, 8)), str(tmp_path)
    with holding(Locked(grid, rule), "write", one):
        on(backend, function).submit(two, grid=grid, folder=folder).result(60)
    with holding(Locked(grid, rule), "write", two):
        on(backend, function).submit(one, grid=grid, folder=folder).result(60)
    assert {"inside": 2} == counted(tmp_path)


@pytest.mark.parametrize("backend", TWO_AT_ONCE)
@MAKERS
def test_many_rows(backend: str, make: Any) -> None:
    """Of more rows than can be locked apart each one is exact."""
    grid = make((200_000, 2), "i4")
    rows = [0, 1, 2, 3, 4, 5, 199_997, 199_998, 199_999, -1] * 30
    on(backend, add_at, workers=4, chunksize=7).map(rows, grid=grid)
    assert [30] * 3 == grid[:3, 0].tolist()
    assert [0, 30, 30, 60] == grid[-4:, 1].tolist()
    assert 300 == grid[:, 0].sum()


@pytest.mark.parametrize("backend", TWO_AT_ONCE)
def test_caller_takes_turns_with_tasks(backend: str) -> None:
    """The caller's Locked reads nothing half done, and what it writes is not lost."""
    grid = np.zeros(2) if backend == "thread" else zeros(2)
    mine = Locked(grid)
    stream = on(backend, move_one, chunksize=1).imap(range(300), grid=grid)
    for _ in stream:
        with mine.read() as now:
            assert now[0] == -now[1]
        with mine.write() as now:
            now += [1, -1]
    assert [600, -600] == grid.tolist()


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("method", ["map", "submit", "imap"])
def test_call_from_inside_a_block_is_refused(backend: str, method: str, tmp_path: Path) -> None:
    """Who holds an array would wait for its own tasks to get it: the call is LockOrderError."""
    grid, folder = zeros(4), str(tmp_path)
    run = getattr(on(backend, count_entered), method)
    with Locked(grid).write(3), pytest.raises(LockOrderError, match="wait for itself"):
        told = run(1 if method == "submit" else [1], grid=grid, folder=folder)
        told.result(60) if method == "submit" else list(told)
    assert {} == counted(tmp_path)
    on(backend, count_entered).map([1], grid=grid, folder=folder)
    assert {"entered": 1} == counted(tmp_path)


def test_pickled_locked_locks_the_same(tmp_path: Path) -> None:
    """A Locked over shared memory travels: the other is behind the same locks."""
    grid = zeros((4, 2))
    mine = Locked(grid, Regions(blocks=2))
    other = pickle.loads(pickle.dumps(mine))
    assert ((4, 2), np.dtype(float)) == (other.shape, other.dtype)
    with mine.write(2), pytest.raises(LockOrderError) as caught, other.write(3):
        pass
    assert caught.value.same
    with other.write(3) as row:
        row[...] += 1
    assert [1, 1] == grid[3].tolist()


@MAKERS
def test_locked_as_an_item(make: Any) -> None:
    """As an item it goes to a worker where it can, and is refused with a sentence where not."""
    grid = make(2)
    task: Any = on("process", add_slowly_to, workers=4, chunksize=1)
    mine = Locked(grid)
    if make is zeros:
        task.map([mine] * 20)
        assert [20, 0] == grid.tolist()
        return
    with pytest.raises(ArgumentError, match="a parameter that is marked"):
        pickle.dumps(mine)
    with pytest.raises(Exception, match="a parameter that is marked"):
        task.map([mine])


@pytest.mark.parametrize("backend", HERE)
@MAKERS
def test_threads_of_a_task_have_locks_of_their_own(backend: str, make: Any) -> None:
    """A Locked may be used by several threads of one task: they exclude one another."""
    grid = make(1)
    on(backend, add_in_threads).map(range(2), grid=grid)
    assert [400] == grid.tolist()


def test_forked_child_takes_turns(run: Callable[..., str]) -> None:
    """After a fork, child and parent go on with the same Locked, each with locks of its own."""
    assert "2000.0 0.0\n" == run(FORKS)


FORKS = """
import os
from sharedtask import Locked, zeros

grid = zeros(2)
mine = Locked(grid)
with mine.write(1):  # the child inherits this thread's opening, and is not in this block
    child = os.fork()
    if not child:
        with mine.write(0) as cell:
            cell += 1
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
child = os.fork()
for _ in range(999 if child else 1000):
    with mine.write(0) as cell:
        value = float(cell)
        os.sched_yield()
        cell[...] = value + 1
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(*grid)
"""


@pytest.mark.parametrize("backend", HERE)
def test_swapped_arrays_do_not_wait_for_ever(backend: str) -> None:
    """Calls with two arrays in each other's parameters could deadlock: one is refused."""
    one, other = zeros(1), zeros(1)
    task = on(backend, add_to_both, workers=2, chunksize=1)
    stream = task.imap(range(8), left=one, right=other)
    next(stream)
    with pytest.raises(ArgumentError, match=r"'left' and 'right' are locked in another order"):
        task.map(range(8), left=other, right=one)
    task.map(range(8), left=one, right=other)
    task.map(range(8), left=one, right=zeros(1))
    assert 7 == len(list(stream))
    task.map(range(8), left=other, right=one)
    assert [32, 24] == [one[0], other[0]]


# ---------------------------------------------------------------------------------- indices


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Any index of ints, slices and at most one ``...``."""
    parts = []
    for length in shape[: draw(st.integers(0, len(shape)))]:
        ints = st.integers(-length, length - 1) if length else st.nothing()
        parts.append(draw(st.one_of(st.slices(length), ints)))
    if draw(st.booleans()) and len(parts) == len(shape):
        parts.insert(draw(st.integers(0, len(parts))), ...)
    elif draw(st.booleans()):
        parts.append(...)
    return parts[0] if len(parts) == 1 and draw(st.booleans()) else tuple(parts)


@st.composite
def regions(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    lengths = draw(st.lists(st.integers(1, 4), max_size=len(shape)))
    return Regions(tuple(lengths) or None)


shapes = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7)


@settings(deadline=None, max_examples=examples(150))
@given(data=st.data(), shape=shapes)
def test_write_is_an_assignment_of_numpy(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """A write through ``grid.write(index)`` is ``array[index] = value``, and a read its value."""
    index = data.draw(indices(shape))
    array = np.arange(float(np.prod(shape, dtype=int))).reshape(shape)
    wanted = array.copy()
    wanted[index] = -1 - wanted[index]
    grid = Locked(array, data.draw(regions(shape)))
    with grid.write(index) as part:
        assert np.shape(array[index]) == part.shape
        part[...] = -1 - part
    assert np.array_equal(wanted, array)
    with grid.read(index) as part:
        assert np.array_equal(wanted[index], part)
        assert not (part.size and part.flags.writeable)


def blocks_of(index: Any, shape: tuple[int, ...], lengths: tuple[int, ...]) -> set[Any]:
    """The blocks of the box that the selected elements span."""
    chosen = np.zeros(shape, bool)
    chosen[index] = True
    places = np.argwhere(chosen)[:, : len(lengths)] // lengths
    box = tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    grid = np.indices([b.stop for b in box]).reshape(len(lengths), -1).T
    return {tuple(map(int, p)) for p in grid if (p >= places.min(0)).all()}


@settings(deadline=None, max_examples=examples(200))
@given(data=st.data(), shape=npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
def test_blocks_in_common_are_noticed(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """Two indices exclude each other where the boxes of their blocks meet, and only there."""
    lengths = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=len(shape))))
    one, other = data.draw(indices(shape)), data.draw(indices(shape))
    for index in (one, other):
        chosen = np.zeros(shape, bool)
        chosen[index] = True
        assume(chosen.any())
    common = blocks_of(one, shape, lengths) & blocks_of(other, shape, lengths)
    grid, meets = Locked(np.zeros(shape), Regions(blocks=lengths)), False
    with grid.write(one):
        try:
            with grid.write(other):
                pass
        except LockOrderError as error:
            meets = error.same
    assert bool(common) == meets


@pytest.mark.parametrize("blocks", [0, -1, (2, 0), 1.5, True, (2, "a")], ids=repr)
def test_lengths_that_are_none_are_refused(blocks: Any) -> None:
    """A length of a block is an int of 1 or more."""
    with pytest.raises(DefinitionError, match=r"Regions\(blocks=.*1 or more"):
        Regions(blocks=blocks)


def test_word_for_poisoned_is_one_of_two() -> None:
    """What happens after a death is "raise" or "continue"."""
    word: Any = "ignore"
    with pytest.raises(DefinitionError, match="'raise' or 'continue'"):
        Regions(poisoned=word)


def test_too_many_blocks_are_refused() -> None:
    """There is a limit to the blocks, and it is told with what to do."""
    with pytest.raises(ArgumentError, match=r"4,000,000 blocks.*Regions\(blocks=...\)"):
        Locked(np.zeros((2000, 2000), "i1"), Regions(blocks=(1, 1)))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", ["f8", "i4", ">f8", "f4", None])
def test_dtype_of_the_annotation_is_checked(backend: str, dtype: Any, tmp_path: Path) -> None:
    """``Locked[npt.NDArray[np.float32]]`` takes an array of float32, bare or behind its locks."""
    grid: Any = None if dtype is None else np.zeros(2, dtype)
    task = on(backend, add_float32)
    if dtype == "f4":
        task.map([0], grid=grid, folder=str(tmp_path))
        task.map([0], grid=Locked(grid), folder=str(tmp_path))
        assert [2, 2] == grid.tolist()
        return
    for given_ in [grid] if dtype is None else [grid, Locked(grid)]:
        with pytest.raises(ArgumentError, match=r"'grid' must be ndarray of float32, got"):
            task.map([0], grid=given_, folder=str(tmp_path))
    assert {} == counted(tmp_path)


# ----------------------------------------------------------------------------------- deaths


def steps_of(*steps: Any, **options: Any) -> Any:
    """Run the steps one after the other in one worker, errors in place."""
    task = on("process", enter, workers=1, chunksize=1, return_exceptions=True)
    return task.map(steps, **options)


def assert_poisoned(error: Any, pid: int | None) -> None:
    assert isinstance(error, RegionPoisonedError)
    assert ("grid", "[1]", pid) == (error.parameter, error.region, error.pid)
    assert f"the region [1] of 'grid' was being written when worker {pid} died" in str(error)
    assert "grid.write(..., repair=True)" in str(error)


@pytest.mark.usefixtures("unharmed")
@MAKERS
def test_death_while_writing_is_told(make: Any) -> None:
    """Who enters what a dead worker was writing is told, later as well, until it is repaired."""
    grid = make((3, 2))
    results = steps_of(WORK, DIE, WORK, LOOK, WORK_APART, grid=grid)
    assert 1 == results[0]
    assert isinstance(results[1], WorkerDiedError)
    dead = results[1].pid
    assert_poisoned(results[2], dead)
    assert_poisoned(results[3], dead)
    assert 2 == results[4]
    assert [[0, 0], [2, 1], [1, 1]] == grid.tolist()

    for error in steps_of(WORK, LOOK, grid=grid):
        assert_poisoned(error, dead)
    with pytest.raises(RegionPoisonedError) as caught, Locked(grid).read():
        pass
    assert dead == caught.value.pid
    assert [1] == steps_of(WORK, grid=grid, repair=True)
    assert [1, 1] == steps_of(WORK, LOOK, grid=grid)
    assert [[0, 0], [4, 3], [1, 1]] == grid.tolist()


@pytest.mark.usefixtures("unharmed")
@MAKERS
def test_caller_repairs(make: Any) -> None:
    """The caller may write the region again, and then all is well; reading alone heals nothing."""
    grid = make((3, 2))
    steps_of(DIE, grid=grid)
    mine = Locked(grid)
    with pytest.raises(RegionPoisonedError), mine.write(slice(0, 2)):
        pass
    with mine.write(slice(2, 3)):
        pass
    with pytest.raises(ZeroDivisionError), mine.write(1, repair=True):
        raise ZeroDivisionError  # not written anew
    with pytest.raises(RegionPoisonedError), mine.write(1):
        pass
    with mine.write(1, repair=True) as row:
        row[...] = 7
    assert [1] == steps_of(WORK, grid=grid)
    assert [8, 8] == grid[1].tolist()


@pytest.mark.usefixtures("unharmed")
@MAKERS
def test_death_while_reading_spoils_nothing(make: Any) -> None:
    """A reader that dies lets the region free, and no one is told anything."""
    grid = make((3, 2))
    results = steps_of(WORK, DIE_LOOKING, WORK, LOOK, grid=grid)
    assert isinstance(results.pop(1), WorkerDiedError)
    assert [1, 1, 1] == results
    assert [2, 2] == grid[1].tolist()


@pytest.mark.usefixtures("unharmed")
@MAKERS
def test_death_that_ends_the_map(make: Any) -> None:
    """When the map raises, the array has what was written, also by the worker that died."""
    grid = make((3, 2))
    with pytest.raises(WorkerDiedError):
        on("process", enter, workers=1, chunksize=1).map([WORK, WORK_APART, DIE], grid=grid)
    assert [[0, 0], [2, 1], [1, 1]] == grid.tolist()
    with pytest.raises(RegionPoisonedError):
        on("process", enter).map([WORK], grid=grid)


@pytest.mark.usefixtures("unharmed")
@MAKERS
def test_timeout_while_writing_is_told(make: Any) -> None:
    """A worker that is ended for its timeout leaves its region as a dead one does."""
    grid = make((3, 2))
    task = on("process", enter, timeout=1.5, workers=1, chunksize=1, return_exceptions=True)
    results = task.map([WORK, HANG, WORK, WORK_APART], grid=grid)
    assert [[0, 0], [2, 1], [1, 1]] == grid.tolist()  # it was in the block when it was ended
    assert [1, 2] == [results[0], results[3]]
    assert isinstance(results[1], TaskTimeoutError)
    assert_poisoned(results[2], results[1].pid)


@pytest.mark.usefixtures("unharmed")
@MAKERS
def test_tolerant_regions(make: Any) -> None:
    """With ``poisoned="continue"`` who enters goes on with what is there."""
    grid = make((3, 2))
    options: Any = {"workers": 1, "chunksize": 1, "return_exceptions": True}
    results = on("process", enter_tolerant, **options).map([DIE, WORK, LOOK], grid=grid)
    assert isinstance(results.pop(0), WorkerDiedError)
    assert [1, 1] == results
    assert [2, 1] == grid[1].tolist()


@pytest.mark.usefixtures("unharmed")
def test_retry_after_a_death(tmp_path: Path) -> None:
    """An item whose worker died may be tried again, and writes the region again."""
    grid = np.zeros((3, 2))
    task = on("process", die_once, retries=1, workers=1, chunksize=2)
    assert [1] * 6 == task.map(range(6), grid=grid, folder=str(tmp_path))
    assert [[0, 0], [7, 6], [0, 0]] == grid.tolist()


# ----------------------------------------------------------------------- where the memory is


@pytest.fixture(params=["zeros", "view", "RawArray", "Array", "SharedMemory", "memmap"])
def in_shared_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Six zeros in shared memory, ours and that of others."""
    kind: str = request.param
    if kind == "SharedMemory":
        segment = SharedMemory(create=True, size=48)
        holder = [np.ndarray(6, float, segment.buf)]
        yield holder[0]
        holder.clear()
        gc.collect()
        segment.close()
        segment.unlink()
        return
    makers: dict[str, Callable[[], Any]] = {
        "zeros": lambda: zeros(6),
        "view": lambda: zeros((8, 3))[1:7, 1],
        "RawArray": lambda: np.frombuffer(as_any(multiprocessing.RawArray("d", 6))),
        "Array": lambda: np.frombuffer(as_any(multiprocessing.Array("d", 6).get_obj())),
        "memmap": lambda: np.memmap(tmp_path / "grid", float, "w+", shape=6),
    }
    yield makers[kind]()


def test_shared_memory_is_locked_where_it_lies(in_shared_memory: Any) -> None:
    """A worker maps the very memory of an array that is in shared memory already."""
    inodes = on("process", inode_in).map(range(6), grid=in_shared_memory)
    assert [inode_of(in_shared_memory)] * 6 == inodes
    assert [6] * 6 == in_shared_memory.tolist()


def test_file_of_a_memmap_holds_what_was_written(tmp_path: Path) -> None:
    """What tasks write into a file that is mapped with "r+" is in the file."""
    path = tmp_path / "grid"
    np.zeros(8, "i4").tofile(path)
    grid = np.memmap(path, "i4", "r+", offset=8)
    on("process", add).map(range(12), grid=grid)
    assert [0, 0, 2, 2, 2, 2, 2, 2] == np.fromfile(path, "i4").tolist()


@pytest.mark.parametrize("backend", HERE)
@MAKERS
@pytest.mark.parametrize("method", ["map", "submit", "imap"])
def test_array_goes_after_a_call(backend: str, method: str, make: Any) -> None:
    """When a call is over, nothing but the caller keeps its array."""
    grid = make(4)
    there = weakref.ref(grid)
    run = getattr(on(backend, add), method)
    if method == "submit":
        run(1, grid=grid).result(60)
    else:
        list(run(range(4), grid=grid))
    del grid
    until(lambda: gc.collect() is not None and there() is None)


@pytest.mark.usefixtures("no_leaks_warm")
@MAKERS
def test_nothing_is_left(make: Any) -> None:
    """After maps, futures, streams and errors no memory, descriptor or thread is left."""
    task = on("process", add)
    for _ in range(3):
        grid = make((100, 10))
        task.map(range(200), grid=grid)
        task.submit(3, grid=grid).result(60)
        with pytest.raises(ArgumentError):
            task.map([0], grid=[1])
        with pytest.raises(TypeError):
            task.map([None], grid=grid)
        next(task.imap(range(5), grid=grid))
        with Locked(grid).write(1) as row:
            row[...] += 1


@pytest.mark.usefixtures("no_leaks")
@MAKERS
def test_nothing_is_left_after_a_death(make: Any) -> None:
    """A poisoned array goes like any other, and so does all that was known of it."""
    grid = make((3, 2))
    steps_of(WORK, DIE, WORK, grid=grid)
    del grid


@pytest.mark.long
@pytest.mark.parametrize("backend", HERE)
@MAKERS
def test_one_table_for_an_array(backend: str, make: Any) -> None:
    """The locks of an array are made once, and go with its memory and no later."""
    task = on(backend, add)
    task.map(range(4), grid=make(4))
    before = descriptors()
    grid = make(4)
    task.map(range(4), grid=grid)
    until(lambda: descriptors() <= before + 2)  # the array's own memory, and its locks
    most = descriptors()
    for k in range(10):
        task.map(range(4), grid=grid)
        task.map(range(2), grid=grid[k % 2 :][:2])  # other views take the place of those before
        task.map(range(4), grid=grid)
        with Locked(grid).write():
            pass
    until(lambda: descriptors() <= most)
    del grid
    until(lambda: descriptors() <= before)


@pytest.mark.parametrize("backend", HERE)
def test_locks_stay_with_the_memory(backend: str) -> None:
    """Another object for the same array finds its locks; another view is refused meanwhile."""
    whole = np.zeros(8)
    mine = Locked(whole[2:6])
    with mine.write(1), pytest.raises(LockOrderError), Locked(whole[2:6]).read(1):
        pass
    with pytest.raises(ArgumentError, match=r"shares memory.*Locked\(\.\.\.\) that is alive"):
        Locked(whole[2:5])
    Locked(whole[6:])
    del mine
    Locked(whole[2:5])
    on(backend, add).map(range(4), grid=whole[2:6])
    assert [0, 0, 1, 1, 1, 1, 0, 0] == whole.tolist()


# --------------------------------------------------------------------- what cannot be locked


@pytest.mark.parametrize("method", ["map", "starmap", "imap", "submit"])
@MAKERS
def test_ray_says_what_to_use(method: str, make: Any, ray_runtime: None, tmp_path: Path) -> None:
    """On Ray, where workers may be on other machines, a call that locks is refused."""
    run = getattr(on("ray", count_entered), method)
    items = {"submit": 0, "starmap": [(0,)]}.get(method, [0])
    with pytest.raises(OptionsError, match=r"count_entered\(\): 'grid' is Locked") as caught:
        told = run(items, grid=make(3), folder=str(tmp_path))
        told.result(60) if method == "submit" else list(told)
    for word in ("no other machine", "backend='process'", "Partitioned", "Reduced", "actor"):
        assert word in str(caught.value)
    assert {} == counted(tmp_path)


def test_ray_runs_what_locks_nothing(ray_runtime: None) -> None:
    """A task whose locked parameter is left out runs there as well."""
    assert [True] * 3 == on("ray", without_grid).map(range(3))
    assert 1 == on("ray", pick)(1, np.arange(3))


def test_own_array_of_another_backend_is_refused() -> None:
    """While threads lock an array that other processes cannot see, a call to those is refused."""
    grid = np.zeros(4)
    stream = on("thread", add, chunksize=1).imap(range(8), grid=grid)
    next(stream)
    with pytest.raises(
        ArgumentError, match=r"'grid' is locked by a call in this process.*array\(\)"
    ):
        on("process", add).map(range(4), grid=grid)
    assert 7 == len(list(stream))
    assert [2] * 4 == grid.tolist()


def test_threads_and_processes_take_turns() -> None:
    """An array in shared memory may be locked by calls of two backends at the same time."""
    grid = zeros(1)
    with ThreadPoolExecutor(2) as pool:
        maps = [
            pool.submit(on(backend, add_slowly, chunksize=1).map, range(200), grid=grid)
            for backend in TWO_AT_ONCE
        ]
        for each in maps:
            each.result(60)
    assert [400] == grid.tolist()


@parallel
def pay(step: int, bank: Locked[np.ndarray], folder: str) -> None:
    """Move one from one account to the other; step 2 fails as soon as another one is within."""
    if step == 2:
        until(lambda: os.listdir(folder))
        raise ValueError(step)
    with bank.write() as accounts:
        accounts[0] -= 1
        Path(folder, str(step)).touch()
        time.sleep(0.05)
        accounts[1] += 1


def test_call_that_fails_leaves_no_half_of_a_block(tmp_path: Path) -> None:
    """Of what was in hand when a map raised, the caller's array has all or nothing."""
    for turn in range(3):
        folder = tmp_path / str(turn)
        folder.mkdir()
        bank = np.full(2, 100.0)
        with pytest.raises(ValueError, match="2"):
            pay.with_options(backend="process", workers=3, chunksize=1).map(
                range(20), bank=Locked(bank), folder=str(folder)
            )
        assert 200.0 == bank.sum()


@parallel
def dies_within(_: int, bank: Locked[np.ndarray]) -> None:
    """End the worker while it writes row 1."""
    with bank.write(1):
        os.kill(os.getpid(), signal.SIGKILL)


@parallel
def looks(_: int, bank: Locked[np.ndarray]) -> float:
    """Read all of it."""
    with bank.read() as accounts:
        return float(accounts.sum())


@pytest.mark.parametrize("make", [np.zeros, zeros])
def test_dead_writer_is_known_to_another_view(make: Any) -> None:
    """Locking a part of an array does not forget who died writing it; repairing the whole does."""
    bank = make(4)
    with pytest.raises(WorkerDiedError):
        dies_within.with_options(backend="process").map([0], bank=Locked(bank))
    part = bank[:2]
    with pytest.raises(RegionPoisonedError, match="'bank' was being written"):
        looks.with_options(backend="process").map([0], bank=part)
    with Locked(bank).write(1, repair=True) as account:
        account[...] = 0
    assert [0.0] == looks.with_options(backend="process").map([0], bank=part)
