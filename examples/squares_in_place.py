"""Square a million numbers in place, by four blocks: one declaration, or the whole ceremony.

With ``Partitioned`` each item gets its own block of the array. Below it stands what one writes by
hand with ``multiprocessing.shared_memory``: the name, shape and dtype travel to the workers, each
maps the segment and closes it again, and somebody must unlink it, whatever happens.
"""

import inspect
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.shared_memory import SharedMemory

import numpy as np

import sharedtask
from sharedtask import Partitioned, parallel, partition

SIZE, BLOCKS = 1_000_000, 4


def with_sharedtask(values: np.ndarray) -> np.ndarray:
    square.map(partition(SIZE, BLOCKS), out=values)
    return values


@parallel(workers=BLOCKS)
def square(block: slice, out: Partitioned[np.ndarray]) -> None:  # noqa: ARG001
    out *= out


def by_hand(values: np.ndarray) -> np.ndarray:
    shared = SharedMemory(create=True, size=values.nbytes)
    try:
        numbers = np.ndarray(values.shape, values.dtype, shared.buf)
        numbers[:] = values
        tasks = [
            (shared.name, values.shape, values.dtype.str, start, start + SIZE // BLOCKS)
            for start in range(0, SIZE, SIZE // BLOCKS)
        ]
        with multiprocessing.get_context("fork").Pool(BLOCKS) as pool:
            pool.starmap(square_block, tasks)
        values[:] = numbers
        del numbers  # an array that outlives the segment crashes the program
    finally:
        shared.close()
        shared.unlink()
    return values


def square_block(name: str, shape: tuple, dtype: str, start: int, stop: int) -> None:
    shared = SharedMemory(name=name)
    try:
        numbers = np.ndarray(shape, dtype, shared.buf)
        numbers[start:stop] **= 2  # one wrong index here, and two workers write to one place
        del numbers
    finally:
        shared.close()


def lines(*functions: Callable) -> int:
    texts = [inspect.getsource(function).splitlines() for function in functions]
    return sum(bool(line.strip()) for text in texts for line in text)


def timed(function: Callable, values: np.ndarray) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    result = function(values)
    return time.perf_counter() - began, result


expected = np.arange(SIZE, dtype=float) ** 2

hand_time, by_hand_result = timed(by_hand, np.arange(SIZE, dtype=float))
first_time, first_result = timed(with_sharedtask, np.arange(SIZE, dtype=float))
warm_time, warm_result = timed(with_sharedtask, np.arange(SIZE, dtype=float))

# Born in shared memory: neither copied in nor out.
shared_values = sharedtask.array(np.arange(SIZE, dtype=float))
born_time, born_result = timed(with_sharedtask, shared_values)

ours, theirs = lines(with_sharedtask, square.__wrapped__), lines(by_hand, square_block)
print(f"by hand, shared_memory     {theirs:2} lines  {1000 * hand_time:6.1f} ms")
print(f"Partitioned, first call    {ours:2} lines  {1000 * first_time:6.1f} ms")
print(f"Partitioned, again         {ours:2} lines  {1000 * warm_time:6.1f} ms")
print(f"Partitioned, sharedtask.array         {1000 * born_time:6.1f} ms")
results = [by_hand_result, first_result, warm_result, born_result]
print(f"all squares are right: {all(np.array_equal(expected, result) for result in results)}")


try:
    square.map([slice(0, 10), slice(9, 20)], out=shared_values)
except sharedtask.OverlapError as error:
    print(f"\none wrong index: {error}")
