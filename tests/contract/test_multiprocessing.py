"""Workers are children of the caller to ``multiprocessing``, and what tasks use of it works."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Manager, current_process, get_context, parent_process, shared_memory
from pathlib import Path
from typing import Any

import pytest

import sharedtask
from sharedtask import parallel

Run = Callable[..., str]


def identity(_: int) -> tuple[str, int | None, str | None, bool]:
    parent = parent_process()
    told = (None, None, False) if parent is None else (parent.pid, parent.name, parent.is_alive())
    return current_process().name, *told


def test_worker_has_a_name_and_a_parent() -> None:
    """Each worker has a name of its own, and its parent is the caller."""
    task = parallel(identity).with_options(backend="process", workers=2, tasks_per_worker=1)
    found = task.map(range(4))
    assert 4 == len({name for name, *_ in found})
    me = current_process()
    assert {(me.pid, me.name, True)} == {tuple(told) for _, *told in found}


def use_all(x: int, queue: Any, table: Any, lock: Any, event: Any) -> int:
    with lock:
        table[x] = x * x
    queue.put(x)
    event.set()
    return x


def test_proxies_of_a_manager() -> None:
    """Queue, dict, lock and event of a manager work as arguments, as items and captured."""
    with Manager() as manager:
        queue, table, lock, event = manager.Queue(), manager.dict(), manager.Lock(), manager.Event()
        task = parallel(use_all).with_options(backend="process")
        assert [0, 1, 2] == task.map(range(3), queue, table, lock, event)
        assert ({0: 0, 1: 1, 2: 4}, 3, True) == (dict(table), queue.qsize(), event.is_set())
        length = parallel(lambda proxy: len(proxy.keys())).with_options(backend="process")
        assert [3] == length.map([table])
        assert [3] == parallel(lambda _: len(table)).with_options(backend="process").map([0])


def first_byte(name: str) -> int:
    segment = shared_memory.SharedMemory(name)
    try:
        return bytes(segment.buf or b"")[0]
    finally:
        segment.close()


def test_segment_that_tasks_open_outlives_the_workers() -> None:
    """A ``SharedMemory`` that tasks open by name is there when their workers have ended."""
    segment = shared_memory.SharedMemory(create=True, size=10)
    assert segment.buf is not None
    segment.buf[0] = 7
    try:
        task = parallel(first_byte).with_options(backend="process", tasks_per_worker=1)
        assert [7] * 4 == task.map([segment.name] * 4)
        sharedtask.shutdown()
        assert 7 == first_byte(segment.name)
    finally:
        segment.close()
        segment.unlink()


MADE_BY_ANOTHER = """
import os, subprocess, sys, time
from pathlib import Path
from sharedtask import parallel, shutdown

def first_byte(name):
    from multiprocessing import shared_memory
    segment = shared_memory.SharedMemory(name)
    found = segment.buf[0]
    segment.close()
    return found

path = Path("/dev/shm/sharedtask-test-%d" % os.getpid())
path.write_bytes(b"7")
try:
    assert "multiprocessing.resource_tracker" not in sys.modules
    task = parallel(first_byte).with_options(workers=2, tasks_per_worker=1)
    assert [ord("7")] * 4 == task.map([path.name] * 4)
    shutdown()
    time.sleep(0.2)
    assert path.exists()
    print("OK", end="")
finally:
    path.unlink()
    # What tasks have opened is noted; the note is taken back, as who removes the segment does.
    from multiprocessing import resource_tracker
    resource_tracker.unregister(f"/{path.name}", "shared_memory")
"""


def test_segment_of_a_program_that_does_not_use_them(run: Run) -> None:
    """The tracker is the caller's even where the caller itself has never loaded the module."""
    assert "OK" == run(MADE_BY_ANOTHER)


REGISTERS = """
import atexit, os, sys, tempfile, warnings, weakref
from sharedtask import parallel, shutdown

warnings.simplefilter("ignore", ResourceWarning)  # of a folder that is cleaned up at the end

@parallel(workers=1)
def register(path):
    global kept
    kept = tempfile.TemporaryDirectory(), open(path, "a", buffering=1)
    atexit.register(kept[1].write, "atexit\\n")
    weakref.finalize(kept[1], print, "printed", end=" ")
    return kept[0].name

(folder,) = register.map(["told.txt"])
assert os.path.isdir(folder)
if sys.argv[1:] == ["shutdown"]:
    shutdown()
    assert open("told.txt").read() == "atexit\\n" and not os.path.exists(folder)
atexit.register(lambda: None)
"""


@pytest.mark.parametrize("end", ["shutdown", "exit"])
def test_what_a_task_registers_for_the_end_is_run(run: Run, tmp_path: Path, end: str) -> None:
    """A worker that ends with its program runs exit functions and finalizers, prints included."""
    assert "printed " == run(REGISTERS, end)
    assert "atexit\n" == (tmp_path / "told.txt").read_text()


def test_exit_function_that_hangs() -> None:
    """A worker whose exit functions take long is killed: no one waits for it."""

    @parallel(backend="process", workers=1)
    def register(_: int) -> None:
        import atexit

        atexit.register(time.sleep, 60)

    register.map([0])
    began = time.monotonic()
    sharedtask.shutdown()
    assert time.monotonic() - began < 30


def double_all(count: int) -> list[int]:
    return parallel(lambda x: 2 * x).with_options(backend="process").map(range(count))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_map_in_a_worker_of_another_pool(method: str) -> None:
    """A map works in a worker of a pool of the standard library, however that was started."""
    if method == "fork" and sys.version_info >= (3, 12):
        pytest.skip("a fork of a process with threads is a DeprecationWarning there")
    with ProcessPoolExecutor(1, get_context(method)) as pool:
        assert [0, 2, 4] == pool.submit(double_all, 3).result()


POOLS_OF_A_SCRIPT = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from sharedtask import parallel, shutdown

@dataclass
class Point:
    x: int

def move(point):
    return Point(point.x + 1)

def moved(count):
    found = parallel(move).map([Point(k) for k in range(count)])
    shutdown()
    return all(type(p) is Point for p in found), [p.x for p in found]

def with_pool(count):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return [p.x for p in pool.map(move, [Point(k) for k in range(count)])]

if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context(sys.argv[1])) as pool:
        assert (True, [1, 2, 3]) == pool.submit(moved, 3).result()
    print("OK", end="")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_map_of_a_script_in_a_worker_of_another_pool(run: Run, method: str) -> None:
    """Classes of the script, which is ``__mp_main__`` there, keep their identity."""
    assert "OK" == run(POOLS_OF_A_SCRIPT, method)


POOL_IN_A_TASK = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from sharedtask import parallel

def double(x):
    return 2 * x

@parallel(backend="process", workers=1)
def doubles(x):
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(double, x).result()

try:
    doubles.map([1])
except Exception as error:
    print(type(error).__name__, *error.__notes__, sep="|", end="")
"""


def test_pool_in_a_task_does_not_find_what_the_script_has(run: Run) -> None:
    """Its error says why, and what to do."""
    name, *notes = run(POOL_IN_A_TASK).split("|")
    assert "PicklingError" == name
    assert any("Move them to a module, or use a task's own map()" in note for note in notes)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_joblib_in_a_task(n_jobs: int, run: Run) -> None:
    """A call of joblib inside a task gives its results, and is silent when the program ends."""
    text = f"""
from joblib import Parallel, delayed
from sharedtask import parallel

@parallel(workers=2)
def roots(x):
    from math import sqrt
    return Parallel(n_jobs={n_jobs})(delayed(sqrt)(k) for k in range(x))

assert [[0.0, 1.0]] * 3 == roots.map([2] * 3)
print("OK", end="")
"""
    assert "OK" == run(text)
