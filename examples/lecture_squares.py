"""Square a million numbers in place with four workers: by hand in three ways, and declared.

The first way sends the numbers through queues. The next two share memory by hand and send only its
location. With ``Partitioned`` one annotation does this, and a wrong cut is an error before any item
runs. `lecture_mistakes.py` shows what can go wrong by hand, and `docs/writing/squares.md` explains
both programs.
"""

import ctypes
import multiprocessing
import textwrap
from itertools import pairwise
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.sharedctypes import RawArray

import numpy as np
from support.table import Way, shown

import sharedtask
from sharedtask import OverlapError, Partitioned, parallel, partition

SIZE, WORKERS = 1_000_000, 4
processes = multiprocessing.get_context("fork")


# --- the numbers travel ------------------------------------------------------------------------


def squares_by_queue(values: np.ndarray) -> None:
    tasks, results = processes.Queue(), processes.Queue()
    workers = [
        processes.Process(target=square_from_queue, args=(tasks, results)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for number, block in enumerate(np.array_split(values, WORKERS)):
        tasks.put((number, block))
    blocks = dict(results.get() for _ in range(WORKERS))
    for worker in workers:
        worker.join()
    values[:] = np.concatenate([blocks[number] for number in range(WORKERS)])


def square_from_queue(tasks: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    number, block = tasks.get()
    results.put((number, block**2))


# --- shared memory by hand ---------------------------------------------------------------------


def squares_by_hand(values: np.ndarray) -> None:
    shared = SharedMemory(create=True, size=values.nbytes)
    try:
        numbers = np.ndarray(values.shape, values.dtype, shared.buf)
        numbers[:] = values
        cuts = np.linspace(0, len(values), WORKERS + 1, dtype=int)
        workers = [
            processes.Process(
                target=square_slice,
                args=(shared.name, values.shape, values.dtype.str, start, stop),
            )
            for start, stop in pairwise(cuts)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError("a worker failed")
        values[:] = numbers
        del numbers
    finally:
        shared.close()
        shared.unlink()


def square_slice(name: str, shape: tuple[int, ...], dtype: str, start: int, stop: int) -> None:
    shared = SharedMemory(name=name)
    try:
        numbers = np.ndarray(shape, dtype, shared.buf)
        numbers[start:stop] **= 2
        del numbers
    finally:
        shared.close()


# --- multiprocessing.Array and numpy.frombuffer ------------------------------------------------


def squares_by_ctypes(values: np.ndarray) -> None:
    shared = RawArray(ctypes.c_double, len(values))
    numbers = np.frombuffer(shared, dtype=np.float64)
    numbers[:] = values
    cuts = np.linspace(0, len(values), WORKERS + 1, dtype=int)
    workers = [
        processes.Process(target=square_ctypes, args=(shared, start, stop))
        for start, stop in pairwise(cuts)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a worker failed")
    values[:] = numbers


def square_ctypes(shared: ctypes.Array, start: int, stop: int) -> None:
    numbers = np.frombuffer(shared, dtype=np.float64)
    numbers[start:stop] **= 2


# --- declared ----------------------------------------------------------------------------------


@parallel(workers=WORKERS)
def square(block: slice, out: Partitioned[np.ndarray]) -> None:  # noqa: ARG001
    out **= 2


def squares_declared(values: np.ndarray) -> None:
    square.map(partition(len(values), WORKERS), out=values)


WAYS = {
    "Queue": (squares_by_queue, square_from_queue),
    "SharedMemory by hand": (squares_by_hand, square_slice),
    "RawArray by hand": (squares_by_ctypes, square_ctypes),
    "Partitioned, any array": (squares_declared, square),
    "Partitioned, sharedtask.empty": (squares_declared, square),
}
arrays = {name: np.empty(SIZE) for name in WAYS}
arrays["Partitioned, sharedtask.empty"] = born = sharedtask.empty(SIZE)
numbers = np.arange(SIZE, dtype=float)


def way(name: str) -> Way:
    """How it is measured: each run finds the numbers from 0 up in its array."""
    array, functions = arrays[name], WAYS[name]
    return Way(name, functions, lambda: functions[0](array), lambda: np.copyto(array, numbers))


shown(f"{SIZE:,} squares in place, {WORKERS} workers", [way(name) for name in WAYS])
right = [np.array_equal(numbers**2, array) for array in arrays.values()]
print(f"all squares are right: {all(right)}")

born[:] = numbers
try:
    square.map([slice(0, 500_000), slice(499_999, SIZE)], out=born)
except OverlapError as error:
    print(textwrap.fill(f"one index is wrong: {error}", 98))
print(f"nothing was written: {np.array_equal(numbers, born)}")
