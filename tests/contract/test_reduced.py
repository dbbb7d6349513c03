"""What items add up, on single backends: deaths at any moment, results that are lost, memory."""

import asyncio
import contextlib
import ctypes
import gc
import itertools
import multiprocessing
import os
import random
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
import pytest
from budget import examples, with_long
from hypothesis import given, settings
from hypothesis import strategies as st

import sharedtask
from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    Partitioned,
    Reduced,
    Reduction,
    SerializationError,
    TaskTimeoutError,
    WorkerDiedError,
    parallel,
)
from sharedtask.memory import arrays
from sharedtask.testing import Belongings, count_up, counted, until
from sharedtask.testing.resources import descendants
from sharedtask.writing.handler import Reach, Stage
from sharedtask.writing.reduced.accumulators import AccumulatorLayout, Slot, Slots
from sharedtask.writing.reduced.handler import Reducing
from sharedtask.writing.reduced.operations import Total, operation

pytestmark = pytest.mark.timeout(90)

LARGE = 1 << 20  # float64s: 8 MB


# ------------------------------------------------------------------------ tasks and helpers


def on(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, **options)


def reducing(backend: Any, function: Any, reduced: Any, **options: Any) -> Any:
    return parallel(reduced=reduced)(function).with_options(backend=backend, **options)


def need_ray(backend: str, request: Any) -> None:
    if backend == "ray":
        request.getfixturevalue("ray_runtime")


def add(k: int, total: Reduced[Any]) -> int:
    total += 1
    return k


def count(k: int, hist: Reduced[Any]) -> int:
    hist[k % len(hist)] += 1
    return k


def exact_wave(k: int, total: Any) -> int:
    total += np.sin(k + np.arange(3.0)) * 10.0 ** (k % 17)
    return k


def die(k: int, total: Reduced[Any], bad: Any, folder: str, times: int = 99) -> int:
    """Add, and die of it so many times where the item is bad."""
    total += 1
    if k in bad and count_up(folder, k) <= times:
        os._exit(3)
    total += 1
    return k


def sleep_at_first(k: int, total: Reduced[Any], bad: Any, folder: str, times: int) -> int:
    total += 1
    if k in bad and count_up(folder, k) <= times:
        time.sleep(20)
    return k


def work(k: int, total: Reduced[Any], folder: str) -> int:
    """Add one to every element, for a millisecond; leave a word of where and how often."""
    count_up(folder, f"pid-{os.getpid()}")
    end = time.monotonic() + 0.001
    while time.monotonic() < end:
        total += 1
        total -= 1
    total += 1
    return k


def lost_result(k: int, total: Reduced[Any], bad: Any) -> Any:
    total += 1
    return ctypes.pointer(ctypes.c_int(k)) if k in bad else k


class Deadly:
    """Ends the process that unpickles it."""

    def __init__(self, where: int) -> None:
        self.where = where

    def __setstate__(self, state: Any) -> None:
        if os.getpid() != state["where"]:
            os._exit(3)
        self.__dict__.update(state)


class DeadlyResult:
    """Ends the process that pickles it."""

    def __reduce__(self) -> Any:
        os._exit(3)


def end_by_result(k: int, total: Reduced[Any], bad: Any) -> Any:
    total += 1
    return DeadlyResult() if k in bad else k


def pass_on(item: Any, total: Reduced[Any]) -> Any:
    total += 1
    return ctypes.pointer(ctypes.c_int(0)) if item == "lost" else item


def fussy(one: Any, other: Any) -> Any:
    if (other == 3).any() or (one == 1000).any():
        message = "fussy"
        raise ValueError(message)
    return one + other


def halfway(one: Any, other: Any) -> Any:
    one += other
    if (one >= 1000).any():
        message = "fussy"
        raise ValueError(message)
    return one


@parallel(reduced={"first": "sum", "second": Reduction(fussy, identity=0)})
def add_both(k: int, first: Any, second: Any) -> int:
    first += 1
    second += k
    return k


def fail_first(k: int, total: Any, bad: Any, folder: str) -> int:
    total += np.sin(k + np.arange(3.0)) * 10.0 ** (k % 17)
    if k in bad and count_up(folder, k) == 1:
        message = "again"
        raise ValueError(message)
    return k


# ------------------------------------------------------------------------ where the memory is


@pytest.fixture(params=["RawArray", "Array", "SharedMemory", "memmap"])
def memory_of_others(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """Six floats in memory that was shared by somebody else."""
    kind: str = request.param
    if kind == "SharedMemory":
        segment = SharedMemory(create=True, size=48)
        holder = [np.ndarray(6, float, segment.buf)]
        holder[0][...] = 5
        yield holder[0]
        holder.clear()
        segment.unlink()
        return
    as_any: Any = np.frombuffer
    makers: dict[str, Callable[[], Any]] = {
        "RawArray": lambda: as_any(multiprocessing.RawArray("d", 6)),
        "Array": lambda: as_any(multiprocessing.Array("d", 6).get_obj()),
        "memmap": lambda: np.memmap(tmp_path / "total", float, "w+", shape=6),
    }
    array = makers[kind]()
    array[...] = 5
    yield array


def test_memory_of_others(backend: str, memory_of_others: Any) -> None:
    """Memory of any kind has the sum at the end."""
    on(backend, add).map(range(9), total=memory_of_others)
    assert [14.0] * 6 == memory_of_others.tolist()


def test_file_of_a_memmap_has_the_sum(backend: str, tmp_path: Path) -> None:
    """What is added up in a memory-mapped file, opened for writing, is in the file."""
    path = tmp_path / "total"
    np.arange(4).tofile(path)
    total = np.memmap(path, "i8", "r+")
    on(backend, add).map(range(5), total=total)
    total.flush()
    assert [5, 6, 7, 8] == np.fromfile(path, "i8").tolist()


def test_file_that_is_read_only_is_refused(tmp_path: Path) -> None:
    """A file that was opened for reading takes no sum."""
    path = tmp_path / "total"
    np.arange(4).tofile(path)
    with pytest.raises(ArgumentError, match="'total' is read-only"):
        on("serial", add).map(range(5), total=np.memmap(path, "i8", "r"))


@pytest.mark.parametrize("method", ["map", "imap", "submit"])
def test_array_goes_after_a_call(backend: str, method: str) -> None:
    """When a call is over, the array goes with its last name."""
    total = np.zeros(100)
    there = weakref.ref(total)
    task = on(backend, add)
    if method == "submit":
        task.submit(1, total).result(60)
    else:
        list(getattr(task, method)(range(3), total=total))
    assert [1.0 if method == "submit" else 3.0] * 100 == total.tolist()
    del total
    until(lambda: there() is None)  # a thread may be at the end of its last line


@pytest.mark.usefixtures("no_leaks_warm")
@pytest.mark.parametrize("options", [{}, {"return_exceptions": True}], ids=["stops", "itemwise"])
def test_accumulators_go_with_the_call(options: Any) -> None:
    """Maps, errors and streams that are left leave no memory, descriptor, process or thread."""
    total = np.zeros(LARGE // 8)
    task = on("process", add, chunksize=1, **options)
    for _ in range(5):
        task.map(range(4), total=total)
        stream = task.imap(range(20), total=total)
        next(stream)
        stream.close()
        with pytest.raises(OSError, match="no more"):
            task.map(broken(), total=total)
    assert 20 == total[0]
    del task, total, stream
    gc.collect()


def broken() -> Iterator[int]:
    yield from range(5)
    message = "no more"
    raise OSError(message)


def test_accumulators_of_a_dead_worker_go(unharmed: None) -> None:
    """A death inside a call leaves nothing behind when the call is over."""
    total = np.zeros(LARGE)
    task = on("process", kill_at, return_exceptions=True, chunksize=2)
    assert 1 == sum(isinstance(r, Exception) for r in task.map(range(8), total=total, bad=[3]))
    assert {7.0} == set(total.tolist())
    del total


def kill_at(k: int, total: Reduced[Any], bad: Any) -> int:
    total += 1
    if k in bad:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
    return k


def test_many_calls_keep_nothing(backend: str) -> None:
    """Dozens of calls with arrays of their own leave nothing mapped in this process."""
    task = on(backend, add)
    task.map(range(2), total=np.zeros(20_000))
    before = Belongings.now()
    for _ in range(30):
        task.map(range(2), total=np.zeros(20_000))
    assert [] == [what for what in Belongings.now().more_than(before) if "mapped" in what]


# ------------------------------------------------------------------------------- deaths

# Ray takes a second for each, and how it sums up is ours.
DEATHS = [
    *with_long([("process", False), ("process", True), ("ray", True)], ("ray", True)),
    pytest.param("ray", False, marks=[pytest.mark.long, pytest.mark.besides]),
]


@pytest.mark.parametrize(("backend", "exact"), DEATHS)
def test_dead_worker_with_retries(backend: str, exact: bool, tmp_path: Path, request: Any) -> None:
    """Items whose worker died are counted once, for the try that succeeded, as all others are."""
    need_ray(backend, request)
    total = np.zeros(3, "i8")
    bad, times = ([0, 25], 1) if backend == "ray" else ([0, 7, 8, 25, 39], 2)
    rule = Reduction("sum", deterministic=exact)
    task = reducing(backend, die, {"total": rule}, retries=30, chunksize=5)
    results = task.map(range(40), total=total, bad=bad, folder=str(tmp_path), times=times)
    assert list(range(40)) == results
    assert [80] * 3 == total.tolist()
    assert {str(k) for k in bad} == set(counted(tmp_path))
    assert min(counted(tmp_path).values()) > times


@pytest.mark.parametrize("chunksize", with_long([1, 6, 40], 1, 40))
@pytest.mark.parametrize("exact", [False, True])
def test_dead_worker_takes_its_item_alone(chunksize: int, exact: bool, tmp_path: Path) -> None:
    """Without retries all items but those that died are counted, also the ones before them."""
    total = np.zeros(3, "i8")
    rule = Reduction("sum", deterministic=exact)
    task: Any = parallel(reduced={"total": rule})(die).with_options(
        backend="process", return_exceptions=True, chunksize=chunksize
    )
    bad = [0, 7, 8, 25, 39]
    results = task.map(range(40), total=total, bad=bad, folder=str(tmp_path))
    assert bad == [k for k, r in enumerate(results) if isinstance(r, WorkerDiedError)]
    assert [2 * 35] * 3 == total.tolist()


@pytest.mark.usefixtures("ray_runtime")
def test_dead_worker_of_ray_takes_its_chunk(tmp_path: Path) -> None:
    """On Ray a sum dies with its worker: exactly the items without an error are counted."""
    total = np.zeros(1, "i8")
    task = on("ray", die, return_exceptions=True, chunksize=6)
    results = task.map(range(40), total=total, bad=[8, 20], folder=str(tmp_path))
    died = {k for k, r in enumerate(results) if isinstance(r, WorkerDiedError)}
    assert {8, 20} <= died < set(range(40))
    assert 2 * (40 - len(died)) == total


@pytest.mark.parametrize("backend", ["process", "ray"])
def test_dead_worker_ends_the_map(backend: str, tmp_path: Path, request: Any) -> None:
    """The error is raised, nothing is added, and the next call is right."""
    need_ray(backend, request)
    total = np.full(2, 5)
    task = on(backend, die, chunksize=3)
    with pytest.raises(WorkerDiedError):
        task.map(range(12), total=total, bad=[7], folder=str(tmp_path))
    assert [5, 5] == total.tolist()
    with pytest.raises(WorkerDiedError):
        task.submit(7, total, bad=[7], folder=str(tmp_path)).result(60)
    assert [5, 5] == total.tolist()
    task.map(range(12), total=total, bad=[], folder=str(tmp_path))
    assert [29, 29] == total.tolist()


def killing(folder: Path, seed: int, stop: threading.Event) -> int:
    """Kill some workers at random moments, until told to stop; returns how many."""
    chance, killed = random.Random(seed), 0
    while killed < 6 and not stop.wait(chance.uniform(0.002, 0.05)):
        known = {int(name[4:]) for name in counted(folder) if name.startswith("pid-")}
        alive = sorted(known & set(descendants(os.getpid())))
        if alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(alive), signal.SIGKILL)
                killed += 1
    return killed


@pytest.mark.long
@pytest.mark.parametrize("retried", [True, False])
@pytest.mark.parametrize(("length", "exact"), [(8, False), (8, True), (40_000, False)])
def test_workers_killed_at_random(length: int, retried: bool, exact: bool, tmp_path: Path) -> None:
    """However often workers are killed, every element is the number of successful items."""
    rule = Reduction("sum", deterministic=exact)
    options: Any = {"retries": 10**6} if retried else {"return_exceptions": True}
    task: Any = parallel(reduced={"total": rule})(work).with_options(
        backend="process", workers=3, **options
    )
    kills = more = 0
    for seed in range(20):
        folder, stop, total = tmp_path / str(seed), threading.Event(), np.zeros(length, "i8")
        folder.mkdir()
        with ThreadPoolExecutor(1) as pool:
            killer = pool.submit(killing, folder, seed, stop)
            try:
                results = task.map(range(400), total=total, folder=str(folder))
            finally:
                stop.set()
            kills += killer.result(60)
        failed = [r for r in results if isinstance(r, WorkerDiedError)]
        good = len(results) - len(failed)
        assert good == sum(isinstance(r, int) for r in results)
        assert {good} == set(total.tolist())
        more += sum(counted(folder).values()) - good
        if more and seed > 0:
            break
    assert kills > 0
    assert more > 0  # items were begun, added something, and went with their worker


def test_timed_out_items(tmp_path: Path) -> None:
    """An item that takes too long adds nothing; one that is faster at its next try counts once."""
    total = np.zeros(2, "i8")
    values = {"total": total, "bad": [4, 5], "folder": str(tmp_path), "times": 1}
    late = on("process", sleep_at_first, timeout=0.4, return_exceptions=True, chunksize=3)
    results = late.map(range(9), **values)
    assert [4, 5] == [k for k, r in enumerate(results) if isinstance(r, TaskTimeoutError)]
    assert [7, 7] == total.tolist()
    again = on("process", sleep_at_first, timeout=0.4, retries=3, chunksize=3)
    assert list(range(9)) == again.map(range(9), **{**values, "times": 3})
    assert [16, 16] == total.tolist()
    assert {"4": 4, "5": 4} == counted(tmp_path)


@pytest.mark.parametrize("backend", ["process", "ray"])
@pytest.mark.parametrize("chunksize", [1, 4, 12])
@pytest.mark.parametrize("bad", [[0], [11], [0, 1, 5, 6, 11]], ids=str)
def test_result_that_cannot_be_sent(
    backend: str, chunksize: int, bad: list[int], request: Any
) -> None:
    """An item whose result is lost has failed, and counts nothing."""
    need_ray(backend, request)
    total = np.zeros(2, "i8")
    task = on(backend, lost_result, return_exceptions=True, chunksize=chunksize)
    results = task.map(range(12), total=total, bad=bad)
    assert bad == [k for k, r in enumerate(results) if isinstance(r, SerializationError)]
    assert [12 - len(bad)] * 2 == total.tolist()


@pytest.mark.parametrize(("backend", "exact"), DEATHS)
def test_death_between_the_sum_and_the_result(backend: str, exact: bool, request: Any) -> None:
    """An item that has added its part and dies before its result is there counts nothing."""
    need_ray(backend, request)
    total = np.zeros(2, "i8")
    rule = {"total": Reduction("sum", deterministic=exact)}
    options: Any = {"return_exceptions": True, "chunksize": 4, "workers": 1}
    bad = [0, 6] if backend == "ray" else [0, 5, 6, 11]
    results = reducing(backend, end_by_result, rule, **options).map(range(12), total=total, bad=bad)
    died = {k for k, r in enumerate(results) if isinstance(r, WorkerDiedError)}
    assert {*bad} <= died
    assert backend == "ray" or 4 == len(died)
    assert [12 - len(died)] * 2 == total.tolist()


def test_result_that_cannot_be_sent_before_a_death() -> None:
    """An item that failed by its result does not come back when the next one ends the worker."""
    total = np.zeros(1, "i8")
    task = on("process", pass_on, return_exceptions=True, chunksize=4)
    results = task.map([1, "lost", Deadly(os.getpid()), 2], total=total)
    assert [1, 2] == [results[0], results[3]]
    assert isinstance(results[1], SerializationError)
    assert isinstance(results[2], WorkerDiedError)
    assert 2 == total


# ------------------------------------------------------------------ operations that go wrong


@pytest.mark.parametrize("option", ["return_exceptions", "retries"])
def test_item_counts_in_all_totals_or_in_none(backend: Any, option: str) -> None:
    """Where what an item adds to one array cannot be combined, it adds to none."""
    first, second = np.zeros(1, "i8"), np.zeros(1, "i8")
    options: Any = {"return_exceptions": True, "retries": int(option == "retries")}
    task: Any = add_both.with_options(backend=backend, chunksize=5, **options)
    results = task.map(range(10), first=first, second=second)
    assert [3] == [k for k, r in enumerate(results) if isinstance(r, ValueError)]
    assert (9, 42) == (int(first[0]), int(second[0]))


@pytest.mark.parametrize("method", ["map", "imap", "submit"])
@pytest.mark.parametrize("function", [fussy, halfway])
def test_operation_that_fails_at_the_end(backend: Any, method: str, function: Any) -> None:
    """Where the last step fails, which sees what the arrays held, all of them are as they were."""
    first, second = np.full(2, 5), np.array([1000, 0])
    task: Any = parallel(reduced={"first": "sum", "second": Reduction(function, identity=0)})(
        add_two
    ).with_options(backend=backend)
    with pytest.raises(ValueError, match="fussy"):
        if method == "submit":
            task.submit(1, first, second).result(60)
        else:
            list(getattr(task, method)([1, 2], first, second))
    assert ([5, 5], [1000, 0]) == (first.tolist(), second.tolist())


def add_two(k: int, first: Any, second: Any) -> int:
    first += 1
    second += k
    return k


def test_operation_that_returns_nothing(backend: Any) -> None:
    """A function that forgets its return is named."""
    task: Any = parallel(reduced={"total": Reduction(forgetful, identity=0)})(add)
    total = np.full(2, 5)
    with pytest.raises(ArgumentError, match=r"Reduction\(forgetful\): the function returned"):
        task.with_options(backend=backend).map(range(4), total=total)
    assert [5, 5] == total.tolist()


def forgetful(one: Any, other: Any) -> Any:
    del one, other


# ------------------------------------------------------------------------------- the order


def test_order_of_the_waves_matters() -> None:
    """The sums of the tests below differ in their bits where the order does."""
    parts = [np.sin(k + np.arange(3.0)) * 10.0 ** (k % 17) for k in range(300)]
    there, back = np.zeros(3), np.zeros(3)
    for part in parts:
        there += part
    for part in reversed(parts):
        back += part
    assert there.tobytes() != back.tobytes()
    assert np.allclose(there, back)


def exact(backend: Any, **options: Any) -> Any:
    made: Any = parallel(reduced={"total": Reduction("sum", deterministic=True)})(exact_wave)
    return made.with_options(backend=backend, **options)


def test_deterministic_many_times() -> None:
    """Maps that are run again and again by busy workers are the same in every bit."""
    sums = set()
    for k in range(60):
        total = np.zeros(3)
        exact("process", workers=1 + k % 5).map(range(500), total=total)
        sums.add(total.tobytes())
    assert 1 == len(sums)


def test_deterministic_with_errors(backend: Any, tmp_path: Path) -> None:
    """Where the same items fail, the sum of the others is the same in every bit."""
    sums = set()
    for workers in (1, 2, 5):
        for again in range(2):
            folder = tmp_path / f"{workers}-{again}"
            folder.mkdir()
            total = np.zeros(3)
            task: Any = parallel(reduced={"total": Reduction("sum", deterministic=True)})(
                fail_first
            ).with_options(backend=backend, workers=workers, return_exceptions=True)
            values = {"bad": range(0, 300, 7), "folder": str(folder)}
            results = task.map(range(300), total=total, **values)
            assert 43 == sum(isinstance(r, ValueError) for r in results)
            sums.add(total.tobytes())
    assert 1 == len(sums)


def test_deterministic_with_retries(backend: Any, tmp_path: Path) -> None:
    """Items that are tried again are in the sum, the first of a block too, and none twice."""
    task: Any = parallel(reduced={"total": Reduction("sum", deterministic=True)})(
        add_at_second
    ).with_options(backend=backend, retries=1, chunksize=8)
    total = np.zeros(1, "i8")
    assert list(range(100)) == task.map(range(100), total=total, folder=str(tmp_path))
    assert 100 == total


def add_at_second(k: int, total: Any, folder: str) -> int:
    total += 1
    if k % 5 == 0 and count_up(folder, k) == 1:
        message = "again"
        raise ValueError(message)
    return k


def test_deterministic_futures(backend: str) -> None:
    """A single item has no order, and is counted."""
    total = np.zeros(3)
    exact(backend).submit(5, total).result(60)
    assert (np.sin(5 + np.arange(3.0)) * 1e5).tolist() == total.tolist()


def test_deterministic_under_asyncio(backend: str) -> None:
    """``amap`` and ``aimap`` add in the order of the items as well."""
    reference, total = np.zeros(3), np.zeros(3)
    exact("serial").map(range(200), total=reference)
    asyncio.run(asyncio.wait_for(exact(backend, workers=3).amap(range(200), total=total), 60))
    assert reference.tobytes() == total.tobytes()


# ---------------------------------------------------------------------------------- forms


def test_named_function_of_the_module(backend: Any) -> None:
    """An operation may be a function of the user's, with what it needs around it."""
    limit = 6

    def capped(one: Any, other: Any) -> Any:
        return np.minimum(one + other, limit)

    task: Any = parallel(reduced={"hist": Reduction(capped, identity=0)})(count)
    hist = np.array([0, 5])
    task.with_options(backend=backend, return_exceptions=True).map(range(9), hist=hist)
    assert [5, 6] == hist.tolist()


def test_histogram_of_a_method(backend: Any) -> None:
    """A method with a rule of its own, whose object travels as usual."""
    total = np.zeros(2)
    assert [2, 4, 6] == Model(2).best.with_options(backend=backend).map([1, 2, 3], total=total)
    assert [6.0, 0.0] == total.tolist()


class Model:
    """A task may be a method."""

    def __init__(self, by: int) -> None:
        self.by = by

    @parallel
    def best(self, k: int, total: Annotated[Reduced[Any], Reduction("max")]) -> int:
        """Keep the largest."""
        total[0] = max(total[0], k * self.by)
        return k * self.by


def test_private_values_beside_totals(backend: str) -> None:
    """Blocks, private values and totals of a failed item all go with it."""
    out, total = np.zeros(6), np.zeros(1)
    task = on(backend, write_all, return_exceptions=True, chunksize=3)
    results = task.map(range(6), out=out, total=total, scratch=np.ones(()))
    assert [2] == [k for k, r in enumerate(results) if isinstance(r, ValueError)]
    assert [1.0, 1.0, 1.0, 1.0, 1.0] == [out[k] for k in range(6) if k != 2]
    assert 5 == total


def write_all(k: int, out: Partitioned[Any], total: Reduced[Any], scratch: CopyOnWrite[Any]) -> int:
    out += scratch
    total += scratch
    scratch += 100
    if k == 2:
        message = "failed"
        raise ValueError(message)
    return k


# ------------------------------------------------------------------------------- one slot


def layout_of(length: int, buffers: int = 2) -> AccumulatorLayout:
    array = np.zeros(length, "i8")
    return AccumulatorLayout(
        operation(Reduction(), array, "total"), array.dtype, array.shape, buffers
    )


ITEMS = st.lists(st.sampled_from(["counts", "raises", "refused"]), max_size=8)


@settings(max_examples=examples(300), deadline=None)
@given(chunks=st.lists(ITEMS, min_size=1, max_size=4), data=st.data())
def test_slot_holds_the_recorded_successes(chunks: list[list[str]], data: st.DataObject) -> None:
    """A worker may die between any two steps: what counts is what left a result, no more, no less.

    The steps of an item are: combine into the buffer that does not count, say that it counts, take
    it back where the result was refused, write the result down.
    """
    slot = Slot(layout_of(3), np.zeros(layout_of(3).slot, np.uint8))
    wanted = 0
    for number, items in enumerate(chunks, start=(1 << 32) - 2):  # the number may be too long
        steps = [(k, step) for k in range(len(items)) for step in ("half", "add", "record")]
        end = data.draw(st.one_of(st.none(), st.integers(0, len(steps))))
        recorded = 0
        for k, step in steps[:end]:
            value = 10 ** (k % 3) + k
            if step == "record":
                recorded += 1
                wanted += value if items[k] == "counts" else 0
            elif step == "half" and items[k] != "raises":
                slot.begin()
                other = slot._buffers[1 - (int(slot._words[1]) & 1)]
                other[0] = -(10**9)  # as far as it came
            elif step == "add" and items[k] != "raises":
                slot.add(np.full(3, value), number, k + 1)
                if items[k] == "refused":
                    slot.take_back()
        if end is not None:
            slot.roll_back_to(number, recorded)
        assert [wanted] * 3 == (slot.current().tolist() if slot.is_used else [0] * 3)
        assert [wanted] * 3 == slot.begin().tolist()


def test_slot_settles_for_its_own_chunk_alone() -> None:
    """A worker that died with a later chunk has left the sums of the earlier ones complete."""
    slot = Slot(layout_of(1), np.zeros(layout_of(1).slot, np.uint8))
    slot.add(np.array([7]), 1, 5)
    slot.roll_back_to(2, 0)
    assert [7] == slot.current().tolist()
    slot.roll_back_to(1, 5)
    assert [7] == slot.current().tolist()
    slot.roll_back_to(1, 4)
    assert [0] == slot.current().tolist()


@pytest.mark.parametrize("dtype", ["u1", "f8", "c16", "M8[s]"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (600,), (4, 5)])
def test_slots_do_not_touch_each_other(dtype: str, shape: tuple[int, ...]) -> None:
    """Two accumulators have no cache line in common, and their buffers are aligned."""
    array = np.zeros(shape, dtype)
    how = operation(Reduction("max"), array, "total")
    slots = Slots(AccumulatorLayout(how, array.dtype, shape, 2), 3)
    at = [b.ctypes.data for k in range(3) for b in slots[k]._buffers]
    words = [slots[k]._words.ctypes.data for k in range(3)]
    assert {0} == {address % 64 for address in at + words}
    if array.size:
        taken = sorted((a, a + array.nbytes) for a in at)
        assert all(-(-one[1] // 64) <= other[0] // 64 for one, other in itertools.pairwise(taken))
    assert [] == slots.used()
    slots[1].begin()
    assert 1 == len(slots.used())


class FakeWorkItem:
    """All that a place needs to know of a chunk."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("block", [None, 4])
def test_places_are_given_back(block: int | None) -> None:
    """A call has as many places as it needs at a time, however many workers come and go."""
    array = np.zeros(2)
    totals = {"total": Total(array, operation(Reduction(), array, "total"))}
    reducing = Reducing(totals, block, itemwise=True, final=False)
    reducing.open(Stage("task", Reach.MACHINE, 2))
    places: Any = reducing.slot_table
    for round_ in range(50):
        work_items = [FakeWorkItem(4 * round_ + k) for k in range(4)]
        workers = [2 * round_, 2 * round_, 2 * round_ + 1, 2 * round_ + 1]
        taken = [places.enter(w, t) for w, t in zip(workers, work_items, strict=True)]
        assert (2 if block is None else 4) == len(set(taken))
        for worker, work_item in zip(workers, work_items, strict=True):
            places.leave(worker, work_item)
    assert {} == dict(places._users)


def test_large_totals_that_do_not_fit(monkeypatch: Any) -> None:
    """Where there is no room for the accumulators, the parameter and the reason are named."""

    def full(*_: Any) -> Any:
        message = "12.0 GB are needed"
        raise sharedtask.StoreFullError(message)

    monkeypatch.setattr(arrays, "empty", full)
    with pytest.raises(sharedtask.StoreFullError, match="'total' does not fit once for each"):
        on("process", add).map(range(3), total=np.zeros(4))
