"""What ``submit`` returns: a future of the standard library that can be ended as it runs."""

import asyncio
import concurrent.futures
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from processes import slowness

import sharedtask
from sharedtask import (
    ClosedError,
    Locked,
    Partition,
    Reduction,
    RegionPoisonedError,
    TaskFuture,
    WorkerDiedError,
    parallel,
    zeros,
)
from sharedtask.testing import count_up, counted, until

pytestmark = pytest.mark.timeout(60)

ENDS = pytest.mark.parametrize("backend", ["process", "ray"])
QUEUES = pytest.mark.parametrize("backend", ["thread", "process", "ray"])


@pytest.fixture(autouse=True)
def with_ray(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """Ray, for those tests that name it; no item of a test that fails hangs any longer."""
    params = getattr(getattr(request.node, "callspec", None), "params", {})
    if params.get("backend") == "ray":
        request.getfixturevalue("ray_runtime")
    yield
    (tmp_path / "gate").touch()


# ------------------------------------------------------------------------ tasks and helpers


def hang(name: str, folder: str) -> str:
    """Says that it runs, and does so until there is a gate."""
    Path(folder, f"{name} begins").write_text(str(os.getpid()))
    Path(folder, f"{name} begins").rename(Path(folder, name))  # with its text
    while not Path(folder, "gate").exists():
        time.sleep(0.002)
    count_up(folder, f"{name} ended")
    return name


def square(x: int) -> int:
    return x * x


def nap(seconds: float) -> None:
    time.sleep(seconds)


def set_and_hang(value: float, a: Locked[Any], folder: str) -> None:
    with a.write(0) as row:
        row[...] = value
        hang("in block", folder)


def look(index: int, a: Locked[Any]) -> float:
    with a.read(index) as cell:
        return float(cell)


def tick(_item: int, a: Locked[Any], folder: str) -> None:
    Path(folder, "ticks").touch()
    while True:
        with a.write(0) as cell:
            cell[...] += 1


def cut_and_hang(name: str, folder: str, out: Annotated[Any, Partition(by=len)]) -> None:
    out[...] = 7
    hang(name, folder)


def add_and_hang(name: str, folder: str, out: Annotated[Any, Reduction("sum")]) -> None:
    out += 7
    hang(name, folder)


def on(backend: Any, function: Any, workers: int = 1, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, workers=workers, **options)


def running(backend: Any, folder: Path, name: str = "first", **options: Any) -> Any:
    """The future of an item that is being run."""
    future = on(backend, hang, **options).submit(name, folder=str(folder))
    until((folder / name).exists)
    return future


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]


# -------------------------------------------------------------------------------- its kind


def test_future_is_one_of_the_standard_library(backend: Any) -> None:
    """``submit`` returns a TaskFuture, which is a Future, and works as one."""
    future = on(backend, square).submit(3)
    assert isinstance(future, TaskFuture)
    assert isinstance(future, Future)
    assert ({future}, set()) == concurrent.futures.wait([future], 30)
    assert [future] == list(concurrent.futures.as_completed([future], 30))
    assert 9 == future.result(0)


def test_finished_future_cannot_be_ended(backend: Any) -> None:
    """``kill`` and ``cancel`` of a future that is done change nothing, and say so."""
    future = on(backend, square).submit(3)
    assert 9 == future.result(60)
    assert (False, False) == (future.kill(), future.cancel())
    assert 9 == future.result(0)
    failed = on(backend, square).submit("x")
    assert isinstance(failed.exception(60), TypeError)
    assert not failed.kill()
    assert isinstance(failed.exception(0), TypeError)


# --------------------------------------------------------------------------------- running


@ENDS
def test_kill_ends_what_runs(backend: Any, tmp_path: Path) -> None:
    """A running item is ended with its worker; the future is cancelled, the next call is right."""
    future = running(backend, tmp_path, retries=3)
    pid = int((tmp_path / "first").read_text())
    assert not future.cancel()
    assert future.kill()
    assert future.cancelled()
    with pytest.raises(CancelledError):
        future.result(0)
    if backend == "process":  # at once
        assert is_gone(pid)
    until(lambda: is_gone(pid))
    assert [0, 1, 4] == on(backend, square).map(range(3))
    (tmp_path / "gate").touch()
    assert not (tmp_path / "first ended").exists()


def test_kill_in_a_thread_throws_the_result_away(tmp_path: Path) -> None:
    """An item that runs in a thread goes on to its end; its future is cancelled at once."""
    future = running("thread", tmp_path)
    assert future.kill()
    with pytest.raises(CancelledError):
        future.result(0)
    (tmp_path / "gate").touch()
    until(lambda: counted(tmp_path).get("first ended"))
    assert future.cancelled()
    assert [0, 1, 4] == on("thread", square).map(range(3))


@QUEUES
def test_kill_of_what_waits(backend: Any, tmp_path: Path) -> None:
    """An item that no worker has is never run, and what runs is not touched."""
    first = running(backend, tmp_path)
    future = on(backend, hang).submit("second", folder=str(tmp_path))
    assert future.kill()
    assert future.cancelled()
    (tmp_path / "gate").touch()
    assert "first" == first.result(60)
    assert 16 == on(backend, square).submit(4).result(60)
    assert not (tmp_path / "second").exists()


@QUEUES
def test_only_one_call_ends_it(backend: Any, tmp_path: Path) -> None:
    """Of many calls of ``kill`` from many threads, one says that it has ended the item."""
    future = running(backend, tmp_path)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda _: future.kill(), range(16)))
    assert 1 == sum(ended)
    assert future.cancelled()
    assert not future.kill()
    assert future.cancel()  # as the standard library: it is cancelled
    (tmp_path / "gate").touch()


@ENDS
def test_kill_harms_nobody_else(backend: Any, tmp_path: Path) -> None:
    """Items of other calls, beside it and behind it, are run once."""
    future = running(backend, tmp_path, workers=2)
    others = [on(backend, square, workers=2).submit(k) for k in range(20)]
    assert future.kill()
    assert [k * k for k in range(20)] == [other.result(30 * slowness()) for other in others]
    assert [k * k for k in range(200)] == on(backend, square, 2, chunksize=1).map(range(200))


@pytest.mark.timeout(120)
def test_kill_at_any_moment() -> None:
    """Whenever it comes, a future is cancelled or has its result, and beside it a map is right."""
    stop = threading.Event()
    found: list[Any] = []

    def maps() -> None:
        while not stop.is_set():
            found.append(on("process", square, 2, chunksize=1).map(range(10)))

    thread = threading.Thread(target=maps)
    thread.start()
    for k in range(150):
        future = on("process", nap, 2).submit(0.002 * (k % 3))
        time.sleep(0.0005 * (k % 11))
        if future.kill():
            assert future.cancelled()
        else:
            assert future.result(0) is None
    stop.set()
    thread.join(60)
    assert found
    assert all(result == [k * k for k in range(10)] for result in found)


@QUEUES
def test_waiting_threads_see_a_kill(backend: Any, tmp_path: Path) -> None:
    """``result``, ``wait``, ``as_completed`` and asyncio wake up, and callbacks are called once."""
    called: list[Any] = []
    future = running(backend, tmp_path)
    future.add_done_callback(called.append)

    async def wait() -> None:
        await asyncio.wrap_future(future)

    ways: list[Callable[[], Any]] = [
        lambda: future.result(60),
        lambda: future.exception(60),
        lambda: next(concurrent.futures.as_completed([future], 30)).result(0),
        lambda: concurrent.futures.wait([future], 30).done.pop().result(0),
    ]
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(way) for way in ways]
        awaits = pool.submit(asyncio.run, wait())
        time.sleep(0.1)
        assert future.kill()
        assert all(isinstance(each.exception(60), CancelledError) for each in waits)
        assert isinstance(awaits.exception(60), asyncio.CancelledError)
    assert [future] == called
    (tmp_path / "gate").touch()


def test_kill_in_callbacks_and_handlers(tmp_path: Path) -> None:
    """A callback may kill another future, and so may a signal handler of the thread that waits."""
    second = running("process", tmp_path, "second", workers=3)
    third = running("process", tmp_path, "third", workers=3)
    first = on("process", square, 3).submit(3)
    first.add_done_callback(lambda _: second.kill())
    with pytest.raises(CancelledError):
        second.result(60)
    old = signal.signal(signal.SIGUSR1, lambda *_: third.kill())
    try:
        threading.Timer(0.2, signal.raise_signal, [signal.SIGUSR1]).start()
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGUSR1]).start()
        with pytest.raises(CancelledError):
            third.result(60)
        time.sleep(0.3)
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_kill_of_a_worker_that_is_stopped(tmp_path: Path) -> None:
    """A worker that somebody has stopped is killed as well."""
    future = running("process", tmp_path)
    pid = int((tmp_path / "first").read_text())
    os.kill(pid, signal.SIGSTOP)
    assert future.kill()
    until(lambda: is_gone(pid))
    assert [9] == on("process", square).map([3])


# ------------------------------------------------------------------------ how many at once


def stay(_item: int, _extra: int = 0) -> tuple[float, float]:
    """When it began and ended, by a clock of the machine."""
    began = time.monotonic()
    time.sleep(0.05)
    return began, time.monotonic()


class Stays:
    def stay(self, _item: int) -> tuple[float, float]:
        return stay(_item)


def at_once(stays: list[tuple[float, float]]) -> int:
    """How many ran at one time."""
    begins, ends = ([(each[k], sign) for each in stays] for k, sign in ((0, 1), (1, -1)))
    steps = sorted([*begins, *ends])
    return max(itertools.accumulate(change for _, change in steps))


def with_many_workers(backend: Any) -> None:
    """Start more workers than the calls of a test may use."""
    on(backend, stay, 6, chunksize=1).map(range(6))


def test_submits_of_a_task_share_its_limit(backend: Any) -> None:
    """``workers`` bounds what runs at once of all submits of one task, and each is run."""
    with_many_workers(backend)
    task = on(backend, stay, 2)
    stays = [each.result(60) for each in [task.submit(k) for k in range(8)]]
    assert at_once(stays) <= 2


def test_submits_with_other_arguments_share_the_limit(backend: Any) -> None:
    """Submits of one task that differ in their arguments count together."""
    with_many_workers(backend)
    task = on(backend, stay, 2)
    stays = [each.result(60) for each in [task.submit(k, k % 3) for k in range(8)]]
    assert at_once(stays) <= 2


def test_submits_of_a_method_share_the_limit(backend: Any) -> None:
    """The submits of a method count together, whichever objects it is taken from."""

    class Staying(Stays):
        stay = parallel(backend=backend, workers=2)(Stays.stay)

    with_many_workers(backend)
    stays = [each.result(60) for each in [Staying().stay.submit(k) for k in range(8)]]
    assert at_once(stays) <= 2


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_submits_go_on_after_a_shutdown(backend: Any, tmp_path: Path) -> None:
    """What ran when the workers were ended does not count for the next ones."""
    task = on(backend, hang, 2)
    first = [task.submit(f"{k}", folder=str(tmp_path)) for k in range(2)]
    until((tmp_path / "0").exists)
    until((tmp_path / "1").exists)
    sharedtask.shutdown()
    (tmp_path / "gate").touch()
    concurrent.futures.wait(first, 60)
    assert "next" == task.submit("next", folder=str(tmp_path)).result(60)


def test_submits_go_on_in_a_forked_child(run: Callable[..., str]) -> None:
    """What runs in the workers of a parent does not count in its child."""
    assert "9\n" == run(FORK_OF_A_TEAM)


FORK_OF_A_TEAM = """
import os, time
from sharedtask import parallel

task = parallel(lambda x, seconds=0: time.sleep(seconds) or x * x).with_options(workers=1)
first = task.submit(1, 1)
while not first.running():
    time.sleep(0.001)
child = os.fork()
if not child:
    print(task.submit(3).result(60), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
first.result()
"""


# ------------------------------------------------------------------ what it was writing


@pytest.mark.parametrize("make", [np.zeros, zeros], ids=["own", "shared"])
def test_kill_within_a_block(make: Any, tmp_path: Path) -> None:
    """A killed writer is a dead one: its region is poisoned, the others are whole."""
    array = make(3)
    future = on("process", set_and_hang).submit(7.0, a=array, folder=str(tmp_path))
    until((tmp_path / "in block").exists)
    assert future.kill()
    assert [7.0, 0.0, 0.0] == array.tolist()
    with pytest.raises(RegionPoisonedError):
        on("process", look).map([0], a=array)
    assert [0.0] == on("process", look).map([1], a=array)


@pytest.mark.parametrize("make", [np.zeros, zeros], ids=["own", "shared"])
def test_nothing_is_written_after_a_kill(make: Any, tmp_path: Path) -> None:
    """When ``kill`` returns, the array is the caller's alone."""
    array = make(3)
    future = on("process", tick).submit(0, a=array, folder=str(tmp_path))
    until((tmp_path / "ticks").exists)
    assert future.kill()
    array[0] = -1.0
    time.sleep(0.2)
    assert -1.0 == array[0]


@pytest.mark.parametrize("task", [cut_and_hang, add_and_hang])
def test_kill_of_a_writer(task: Any, tmp_path: Path) -> None:
    """What a killed item has added, or written into a copy of its block, is not the caller's."""
    array = np.zeros(10)
    future = on("process", task).submit("first", folder=str(tmp_path), out=array)
    until((tmp_path / "first").exists)
    assert future.kill()
    assert [0.0] * 10 == array.tolist()


# ------------------------------------------------------------------------- what is given up


@QUEUES
def test_shutdown_resolves_every_future(backend: Any, tmp_path: Path) -> None:
    """Futures of a pool that is shut down are done soon, whether their items run or wait."""
    if backend == "ray":
        pytest.skip("it would end the Ray of all tests; see test_ray_faults.py")
    first = running(backend, tmp_path)
    waits = [on(backend, square).submit(k) for k in range(5)]
    sharedtask.shutdown()
    (tmp_path / "gate").touch()
    assert {first, *waits} == concurrent.futures.wait([first, *waits], 30).done
    assert all(isinstance(each.exception(0), ClosedError) for each in waits)
    assert not any(each.kill() for each in (first, *waits))


def test_dead_workers_and_forkserver_resolve_every_future(tmp_path: Path) -> None:
    """Futures whose worker is killed, or all workers with their forkserver, are done."""
    from sharedtask.backends import registry

    first = running("process", tmp_path)
    waits = [on("process", square).submit(k) for k in range(5)]
    pool: Any = registry.get("process")
    forkserver = pool.pool._table.forkserver._process.pid
    os.kill(forkserver, signal.SIGKILL)
    assert isinstance(first.exception(60), WorkerDiedError)
    assert [0, 1, 4, 9, 16] == [each.result(60) for each in waits]


def test_kill_after_shutdown(tmp_path: Path) -> None:
    """A future of a pool that is gone can be killed without harm to the next pool."""
    future = running("process", tmp_path)
    sharedtask.shutdown()
    assert not future.kill()
    assert isinstance(future.exception(0), ClosedError)
    assert [9] == on("process", square).map([3])


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_futures_of_a_forked_child(backend: str, run: Callable[..., str]) -> None:
    """In a forked child, futures of its parent are done, with an error that says why."""
    told = run(FORKS, backend)
    assert "False ClosedError this call was begun in the process that was forked" in told
    assert told.endswith("[]\n3 [1]\n")


FORKS = """
import concurrent.futures, os, sys, time
from sharedtask import parallel

called = []
nap = parallel(lambda seconds: time.sleep(seconds)).with_options(backend=sys.argv[1], workers=1)
running, waits = nap.submit(1), nap.submit(0)
both = [running, waits]
for future in both:
    future.add_done_callback(lambda _: called.append(1))
while not running.running():
    time.sleep(0.001)
child = os.fork()
if not child:
    assert not concurrent.futures.wait(both, 60).not_done
    error = waits.exception()
    print(running.kill(), type(error).__name__, error)
    print(called, flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
concurrent.futures.wait(both)
time.sleep(0.5)
print(sum(map(bool, [f.exception() is None for f in both])) + 1, called[:1])
"""


def test_kill_at_the_end_of_the_program(run: Callable[..., str]) -> None:
    """A handler at exit may kill what runs, before and after the pool is gone, and wait for it."""
    assert "late ClosedError\nlate True True\nearly True True\n" == "".join(
        sorted(run(AT_EXIT).splitlines(keepends=True), key=lambda line: line[0] != "l")
    )


AT_EXIT = """
import atexit, time

def late():
    try:
        futures[1].result()
    except Exception as error:
        print("late", type(error).__name__)
    print("late", futures[2].kill(), futures[2].cancelled(), flush=True)

atexit.register(late)
from sharedtask import parallel

nap = parallel(lambda seconds: time.sleep(seconds)).with_options(workers=4)
futures = [nap.submit(60) for _ in range(3)]
time.sleep(0.3)
atexit.register(lambda: print("early", futures[0].kill(), futures[0].cancelled(), flush=True))
"""
