"""Partitioned arrays on single backends: where the memory is, and what faults leave of it."""

import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sharedtask
from sharedtask import (
    DefinitionError,
    OverlapError,
    Partition,
    Partitioned,
    Shared,
    TaskTimeoutError,
    WorkerDiedError,
    parallel,
    partition,
    zeros,
)
from sharedtask.memory import mapping, proc_maps
from sharedtask.testing import Belongings, slowness, until

pytestmark = pytest.mark.timeout(60)

LARGE = 8 << 20  # float64s: 64 MB


# ------------------------------------------------------------------------ tasks and helpers


def on(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)


def add(_index: Any, out: Partitioned[Any], by: float = 1) -> None:
    out += by


def die_on(k: int, out: Partitioned[Any], bad: Any) -> int:
    out[...] = k + 1
    if k in bad:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
    return k


def sleep_on(k: int, out: Partitioned[Any], bad: Any) -> int:
    out[...] = k + 1
    if k in bad:
        time.sleep(10)
    return k


def inode_at(_index: Any, out: Partitioned[Any]) -> int:
    out += 1
    return inode_of(out)


def inode_of(array: Any) -> int:
    region = proc_maps.region_at(mapping.address_of(array))
    assert region is not None
    return region.inode


def held(_index: Any, out: Partitioned[Any], caller: int) -> tuple[int, int]:
    """Bytes of shared memory of ours that the caller has, and private bytes of this process."""
    out += 1
    return shared_bytes(caller), private_bytes()


def shared_bytes(pid: int) -> int:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            if "sharedtask" in os.readlink(path):
                status = os.stat(path)
                found[status.st_ino] = status.st_size
        except OSError:  # closed meanwhile
            continue
    return sum(found.values())


def private_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def as_any(value: Any) -> Any:
    """The same; the stubs of numpy do not take it for a buffer, which it is."""
    return value


def nested(_index: Any, out: Partitioned[Any]) -> None:
    parallel(add).map(partition(len(out), 2), out=out)


class Scale:
    """A task may be a method."""

    def __init__(self, by: float) -> None:
        self.by = by

    @parallel
    def apply(self, _rows: slice, out: Partitioned[Any]) -> None:
        out *= self.by


# ------------------------------------------------------------------------ where the memory is


@pytest.mark.parametrize("backend", ["serial", "thread"])
def test_own_process_writes_the_callers_array(backend: str) -> None:
    """In this process a block is the caller's memory."""
    array = np.zeros(4)
    blocks: list[Any] = []

    def keep(_index: Any, out: Partitioned[Any]) -> None:
        blocks.append(out)

    on(backend, keep).map(range(4), out=array)
    assert [True] * 4 == [np.shares_memory(array, block) for block in blocks]


@pytest.fixture(params=["zeros", "view", "RawArray", "Array", "SharedMemory", "memmap"])
def in_shared_memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Six zeros in shared memory, ours and that of others."""
    kind: str = request.param
    if kind == "SharedMemory":
        segment = SharedMemory(create=True, size=48)
        holder = [np.ndarray(6, float, segment.buf)]
        yield holder[0]
        holder.clear()
        del request
        segment.unlink()
        return
    makers: dict[str, Callable[[], Any]] = {
        "zeros": lambda: zeros(6),
        "view": lambda: zeros((8, 3))[1:7, 1],
        "RawArray": lambda: np.frombuffer(as_any(multiprocessing.RawArray("d", 6))),
        "Array": lambda: np.frombuffer(as_any(multiprocessing.Array("d", 6).get_obj())),
        "memmap": lambda: np.memmap(tmp_path / "out", float, "w+", shape=6),
    }
    yield makers[kind]()


def test_shared_memory_is_written_where_it_lies(in_shared_memory: Any) -> None:
    """A worker maps the very memory of an array that is in shared memory already."""
    inodes = on("process", inode_at).map(range(6), out=in_shared_memory)
    assert [inode_of(in_shared_memory)] * 6 == inodes
    assert [1.0] * 6 == in_shared_memory.tolist()


def test_shared_memory_on_every_backend(backend: str, in_shared_memory: Any) -> None:
    """Memory of any kind holds the blocks at the end."""
    on(backend, add).map(partition(6, 4), out=in_shared_memory, by=2)
    assert [2.0] * 6 == in_shared_memory.tolist()


def test_file_of_a_memmap_holds_the_blocks(backend: str, tmp_path: Path) -> None:
    """What tasks write into a memory-mapped file is in the file."""
    path = tmp_path / "out"
    out = np.memmap(path, "i4", "w+", shape=(4, 3))
    on(backend, add).map(range(4), out=out, by=5)
    out.flush()
    assert [5] * 12 == np.fromfile(path, "i4").tolist()


def test_memory_of_zeros_is_there_once() -> None:
    """An array that was born in shared memory is copied neither here nor in a worker."""
    task = on("process", held, workers=1, chunksize=1)
    (_, before), *_ = task.map(range(2), out=zeros(2), caller=os.getpid())
    out = zeros(LARGE)
    others = shared_bytes(os.getpid()) - out.nbytes
    for shared, private in task.map(partition(LARGE, 4), out=out, caller=os.getpid()):
        assert 8_000_000 > shared - others - out.nbytes
        assert 8_000_000 > private - before
    assert LARGE == out.sum()


def test_memory_of_the_copy_goes_with_the_call() -> None:
    """An ordinary array is copied once for a call, and the copy is gone when it is over."""
    task = on("process", held, workers=1, chunksize=1)
    task.map(range(2), out=zeros(2), caller=os.getpid())
    gc.collect()
    before = shared_bytes(os.getpid())
    out = np.zeros(LARGE // 4)
    for shared, _ in task.map(partition(len(out), 4), out=out, caller=os.getpid()):
        assert out.nbytes <= shared - before < 1.5 * out.nbytes
    # The last word of the worker may come after its results.
    until(lambda: shared_bytes(os.getpid()) <= before + 1_000_000)


@pytest.mark.parametrize("method", ["map", "imap", "submit"])
@pytest.mark.parametrize("make", [np.zeros, zeros])
def test_array_goes_after_a_call(backend: str, method: str, make: Any) -> None:
    """When a call is over, the array goes with its last name, and not with the next collection."""
    out = make(100)
    there = weakref.ref(out)
    run = getattr(on(backend, add), method)
    gc.disable()
    try:
        if method == "submit":
            run(slice(0, 50), out=out).result(60)
        else:
            list(run(partition(100, 2), out=out))
        del out
        until(lambda: there() is None)
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_leaks_warm")
@pytest.mark.parametrize("make", [np.zeros, zeros])
def test_nothing_is_left(make: Any) -> None:
    """After maps, overlaps and errors no memory, descriptor or thread is left."""
    task = on("process", add)
    for _ in range(3):
        out = make((100, 1000))
        task.map(range(100), out=out)
        with pytest.raises(OverlapError):
            task.map([0, 0], out=out)
        with pytest.raises(TypeError):
            task.map(range(100), out=out, by="text")
        next(task.imap([slice(0, 50), slice(50, 100)], out=out), None)


def test_blocks_are_no_shared_values(backend: str) -> None:
    """``cache_info`` counts what is shared, and a partitioned array is not kept."""
    task = on(backend, add)
    task.map(range(4), out=np.zeros(4))
    assert (0, 0) == task.cache_info()[:2]


@pytest.mark.parametrize("count", [1, 3])
def test_array_that_is_dropped_in_a_stream(backend: str, count: int) -> None:
    """A stream keeps the array it writes, whatever else lets it go."""
    out = zeros(8)
    stream = on(backend, add, chunksize=1).imap(range(8), out=out)
    for _ in range(count):
        next(stream)
    del out
    assert 8 - count == len(list(stream))


def test_stream_that_is_left_early(backend: str) -> None:
    """The blocks of the results that were given are in the array, and the pool goes on."""
    out = np.zeros(100)
    stream = on(backend, add, chunksize=1).imap(range(100), out=out)
    for _ in range(3):
        next(stream)
    stream.close()
    assert [1.0] * 3 == out[:3].tolist()
    assert set(out.tolist()) <= {0.0, 1.0}
    on(backend, add).map(range(100), out=out, by=-1)
    assert [0.0] * 3 == out[:3].tolist()


# ------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("backend", ["process", "ray"])
@pytest.mark.parametrize("make", [np.zeros, zeros])
def test_dead_worker(backend: str, make: Any, request: Any) -> None:
    """When a worker dies in an item, the blocks of all others arrive; the same call works after."""
    if backend == "ray":
        request.getfixturevalue("ray_runtime")
    out = make((8, 2), "i8")
    task = on(backend, die_on, return_exceptions=True, chunksize=4)
    results = task.map(range(8), out=out, bad=[2])
    error = results.pop(2)
    assert isinstance(error, WorkerDiedError)
    assert ("die_on", 2, 2) == (error.function, error.index, error.item)
    assert [0, 1, 3, 4, 5, 6, 7] == results
    is_in_place = backend == "process" and make is zeros
    assert [3 if is_in_place else 0] * 2 == out[2].tolist()
    assert [[k + 1] * 2 for k in range(8) if k != 2] == [
        out[k].tolist() for k in range(8) if k != 2
    ]
    assert list(range(8)) == task.map(range(8), out=out, bad=[])
    assert [[k + 1] * 2 for k in range(8)] == out.tolist()


@pytest.mark.parametrize("make", [np.zeros, zeros])
def test_dead_worker_ends_the_map(make: Any) -> None:
    """The error is raised, the block of its item is not half copied, and the next call is right."""
    out = make(12)
    task = on("process", die_on, chunksize=3)
    with pytest.raises(WorkerDiedError) as caught:
        task.map(range(12), out=out, bad=[7])
    assert 7 == caught.value.index
    assert {True} == {out[k] in {0, k + 1} for k in range(12)}
    assert (8 if make is zeros else 0) == out[7]
    assert list(range(12)) == task.map(range(12), out=out, bad=[])
    assert [k + 1.0 for k in range(12)] == out.tolist()


def test_timed_out_item() -> None:
    """An item that takes too long leaves an ordinary array's block as it was."""
    out = np.zeros(6)
    task = on("process", sleep_on, timeout=0.3, return_exceptions=True)
    results = task.map(range(6), out=out, bad=[4])
    assert [4] == [k for k, r in enumerate(results) if isinstance(r, TaskTimeoutError)]
    assert [1, 2, 3, 4, 0, 6] == out.tolist()


def test_result_that_will_not_travel() -> None:
    """An item whose result is lost has failed, and its block does not arrive."""

    def lost(k: int, out: Partitioned[Any]) -> Any:
        out[...] = 1
        return (lambda: k) if k == 2 else (ctypes.pointer(ctypes.c_int(k)) if k == 1 else k)

    out = np.zeros(4)
    results = on("process", lost, return_exceptions=True).map(range(4), out=out)
    assert isinstance(results[1], sharedtask.SerializationError)
    assert [1, 0, 1, 1] == out.tolist()


# ------------------------------------------------------------------------------------- forms


def test_method(backend: Any) -> None:
    """A method writes blocks like any function."""
    out = np.ones(7)
    Scale(3).apply.with_options(backend=backend).map(partition(7, 3), out=out)
    assert [3.0] * 7 == out.tolist()


def test_map_in_a_task(backend: str) -> None:
    """A task may cut its block further and map over the parts."""
    out = np.zeros((3, 8))
    on(backend, nested).map(range(3), out=out)
    assert [[1.0] * 8] * 3 == out.tolist()


def test_many_blocks() -> None:
    """Fifty thousand slices are checked and written in seconds."""
    out = zeros(100_000, "i8")
    began = time.monotonic()
    on("process", add).map(partition(100_000, 50_000), out=out)
    assert 10 * slowness() > time.monotonic() - began
    assert 100_000 == out.sum() == out.max() * 100_000


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_tiling_gives_the_same_everywhere(data: st.DataObject) -> None:
    """Tiles of any shape, in any order, give what a loop gives, on threads and processes."""
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    cuts = [partition(length, data.draw(st.integers(1, 4))) for length in shape]
    steps = data.draw(st.sampled_from([1, -1]))
    turned = [(s if steps == 1 else reverse(s, shape[0])) for s in cuts[0]]
    tiles = data.draw(st.permutations([(a, b) for a in turned for b in cuts[1]]))
    wanted = np.zeros(shape)
    for tile in tiles:
        wanted[tile] += 3
    for backend in ("thread", "process"):
        out = np.asfortranarray(np.zeros(shape)) if data.draw(st.booleans()) else np.zeros(shape)
        on(backend, add).map(tiles, out=out, by=3)
        assert np.array_equal(wanted, out)


def reverse(part: slice, length: int) -> slice:
    """The same elements from the last to the first."""
    before = part.start - 1
    return slice(part.stop - 1, before if before >= 0 else -length - 1, -1)


def test_overlap_error_travels_and_says_what_to_do() -> None:
    """The message names both items, their indices and the array; pickled, it stays the same."""
    with pytest.raises(OverlapError) as caught:
        on("serial", add).map([slice(0, 3), 5, slice(2, 4)], out=np.zeros(8))
    text = str(caught.value)
    assert "item 0, [0:3], and item 2, [2:4], would write to the same elements of 'out'" in text
    assert text == str(pickle.loads(pickle.dumps(caught.value)))
    assert isinstance(caught.value, ValueError)


def test_definitions_that_cannot_be() -> None:
    """A misspelt name, two roles for one parameter and a rule that is none are refused at once."""
    with pytest.raises(DefinitionError, match="Did you mean 'out'"):

        @parallel(partitioned=["uot"])
        def misspelt(index: int, out: Any) -> None:
            del index, out

    with pytest.raises(DefinitionError, match="out"):

        @parallel(shared=["out"], partitioned=["out"])
        def twice(index: int, out: Any) -> None:
            del index, out

    with pytest.raises(DefinitionError, match="out"):

        @parallel
        def both(index: int, out: Annotated[Shared[Any], Partition(by=0)]) -> None:
            del index, out

    with pytest.raises(DefinitionError, match="no rule"):
        Partition(by=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_type_of_the_array_is_checked() -> None:
    """``Partitioned[T]`` asks for a T, like every annotation."""
    import numpy.typing as npt

    def halve(index: int, out: Partitioned[npt.NDArray[np.float64]]) -> None:
        out /= 2
        del index

    with pytest.raises(sharedtask.ArgumentError, match="out"):
        on("serial", halve).map(range(3), out=np.zeros(3, "i8"))
    with pytest.raises(sharedtask.ArgumentError, match="out"):
        on("serial", halve).map(range(3), out=[1.0, 2.0, 3.0])


def test_publications_are_not_kept(backend: str) -> None:
    """Hundreds of calls with arrays of their own leave nothing in this process."""
    task = on(backend, add)
    task.map(range(2), out=np.zeros(2))
    before = Belongings.now()
    for _ in range(50):
        task.map(range(2), out=np.zeros(2))
    grown = [what for what in Belongings.now().more_than(before) if "mapped" in what]
    assert [] == grown
