"""Mean, standard deviation and maximum of two million numbers with four workers.

The numbers stay in shared memory; workers report only a few sums. By hand each worker has its own
slot in a second piece of shared memory, so no lock is needed. With annotations it returns its sums,
or adds them to a ``Reduced`` array. `docs/writing/sums.md` explains.
"""

import multiprocessing
from itertools import pairwise
from multiprocessing.shared_memory import SharedMemory
from typing import Annotated

import numpy as np
from support.table import Way, shown

import sharedtask
from sharedtask import Reduced, Reduction, Shared, parallel, partition

SIZE, WORKERS = 2_000_000, 4
processes = multiprocessing.get_context("fork")
Statistics = tuple[float, float, float]


def combined(sums: np.ndarray, top: float, size: int) -> Statistics:
    """Mean, standard deviation and maximum from the sum, the sum of squares and the maximum."""
    mean, mean_square = sums / size
    return float(mean), float(np.sqrt(mean_square - mean**2)), float(top)


# --- the numbers travel ------------------------------------------------------------------------


def statistics_by_queue(values: np.ndarray) -> Statistics:
    tasks, results = processes.Queue(), processes.Queue()
    workers = [
        processes.Process(target=look_in_queue, args=(tasks, results)) for _ in range(WORKERS)
    ]
    for worker in workers:
        worker.start()
    for block in np.array_split(values, WORKERS):
        tasks.put(block)
    slots = np.array([results.get() for _ in range(WORKERS)])
    for worker in workers:
        worker.join()
    return combined(slots[:, :2].sum(axis=0), slots[:, 2].max(), len(values))


def look_in_queue(tasks: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    block = tasks.get()
    results.put((block.sum(), block @ block, block.max()))


# --- shared memory by hand, one slot for each worker -------------------------------------------


def statistics_by_hand(values: np.ndarray) -> Statistics:
    data = SharedMemory(create=True, size=values.nbytes)
    slots = SharedMemory(create=True, size=WORKERS * 3 * 8)
    try:
        np.ndarray(values.shape, values.dtype, data.buf)[:] = values
        cuts = pairwise(np.linspace(0, len(values), WORKERS + 1, dtype=int))
        workers = [
            processes.Process(
                target=look_by_hand,
                args=(data.name, values.shape, values.dtype.str, slots.name, number, *cut),
            )
            for number, cut in enumerate(cuts)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError("a worker failed")
        results = np.ndarray((WORKERS, 3), np.float64, slots.buf).copy()
    finally:
        for shared in (data, slots):
            shared.close()
            shared.unlink()
    return combined(results[:, :2].sum(axis=0), results[:, 2].max(), len(values))


def look_by_hand(
    name: str, shape: tuple[int], dtype: str, slots: str, number: int, start: int, stop: int
) -> None:
    data, shared_slots = SharedMemory(name), SharedMemory(slots)
    try:
        block = np.ndarray(shape, dtype, data.buf)[start:stop]
        results = np.ndarray((WORKERS, 3), np.float64, shared_slots.buf)
        results[number] = block.sum(), block @ block, block.max()
        del block, results
    finally:
        data.close()
        shared_slots.close()


# --- declared, with return values --------------------------------------------------------------


@parallel(workers=WORKERS)
def look(part: slice, values: Shared[np.ndarray]) -> Statistics:
    block = values[part]
    return float(block.sum()), float(block @ block), float(block.max())


def statistics_returned(values: np.ndarray) -> Statistics:
    slots = np.array(look.map(partition(len(values), WORKERS), values=values))
    return combined(slots[:, :2].sum(axis=0), slots[:, 2].max(), len(values))


# --- declared, with Reduced --------------------------------------------------------------------


@parallel(workers=WORKERS)
def add(
    part: slice,
    values: Shared[np.ndarray],
    sums: Reduced[np.ndarray],
    top: Annotated[np.ndarray, Reduction("max")],
) -> None:
    block = values[part]
    sums += block.sum(), block @ block
    np.maximum(top, block.max(), out=top)


def statistics_reduced(values: np.ndarray) -> Statistics:
    sums, top = np.zeros(2), np.full(1, -np.inf)
    add.map(partition(len(values), WORKERS), values=values, sums=sums, top=top)
    return combined(sums, top[0], len(values))


numbers = np.random.default_rng(0).normal(10, 3, SIZE)
born = sharedtask.array(numbers)  # in shared memory from the start

results = shown(
    f"statistics of {SIZE:,} numbers, {WORKERS} workers",
    [
        Way(
            "Queue",
            (statistics_by_queue, look_in_queue),
            lambda: statistics_by_queue(numbers),
        ),
        Way(
            "SharedMemory by hand, slots",
            (statistics_by_hand, look_by_hand),
            lambda: statistics_by_hand(numbers),
        ),
        Way(
            "Shared, return values",
            (statistics_returned, look),
            lambda: statistics_returned(numbers),
        ),
        Way("Shared and Reduced", (statistics_reduced, add), lambda: statistics_reduced(numbers)),
        Way(
            "both, sharedtask.array",
            (statistics_reduced, add),
            lambda: statistics_reduced(born),
        ),
    ],
)
mean, deviation, top = results[0]
print(f"mean {mean:.4f}, deviation {deviation:.4f}, maximum {top:.4f}")
expected = [numbers.mean(), numbers.std(), numbers.max()]
print(f"all ways agree with numpy: {all(np.allclose(expected, result) for result in results)}")
