"""The grey levels of eight million pixels: all workers add to one histogram.

By hand that needs a lock, or a slot for each worker and a sum at the end. A ``Reduced`` array
provides the slots and the sum. ``python histogram.py out.svg`` draws the histogram.
"""

import multiprocessing
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from support.picture import save_bars
from support.table import Way, shown

from sharedtask import Reduced, Shared, array, parallel, partition

WORKERS, BLOCKS, LEVELS = 4, 64, 256
processes = multiprocessing.get_context("fork")


# --- by hand, one lock for all workers ---------------------------------------------------------


def counted_with_a_lock(pixels: np.ndarray) -> np.ndarray:
    data = SharedMemory(create=True, size=pixels.nbytes)
    counts = SharedMemory(create=True, size=LEVELS * 8)
    lock = processes.Lock()
    try:
        np.ndarray(pixels.shape, pixels.dtype, data.buf)[:] = pixels
        np.ndarray(LEVELS, np.int64, counts.buf)[:] = 0
        workers = [
            processes.Process(
                target=count_with_a_lock,
                args=(data.name, pixels.shape, pixels.dtype.str, counts.name, lock, blocks),
            )
            for blocks in np.array_split(partition(len(pixels), BLOCKS), WORKERS)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise RuntimeError("a worker failed")
        return np.ndarray(LEVELS, np.int64, counts.buf).copy()
    finally:
        for shared in (data, counts):
            shared.close()
            shared.unlink()


def count_with_a_lock(
    name: str,
    shape: tuple[int],
    dtype: str,
    counts: str,
    lock: multiprocessing.Lock,
    blocks: list[slice],
) -> None:
    data, shared_counts = SharedMemory(name), SharedMemory(counts)
    try:
        pixels = np.ndarray(shape, dtype, data.buf)
        histogram = np.ndarray(LEVELS, np.int64, shared_counts.buf)
        for block in blocks:
            found = np.bincount(pixels[block], minlength=LEVELS)
            with lock:  # without it, additions are lost; a worker that dies here stops all others
                histogram += found
        del pixels, histogram
    finally:
        data.close()
        shared_counts.close()


# --- declared ----------------------------------------------------------------------------------


@parallel(workers=WORKERS)
def count(block: slice, pixels: Shared[np.ndarray], histogram: Reduced[np.ndarray]) -> None:
    histogram += np.bincount(pixels[block], minlength=LEVELS)


def counted_declared(pixels: np.ndarray) -> np.ndarray:
    histogram = np.zeros(LEVELS, np.int64)
    count.map(partition(len(pixels), BLOCKS), pixels=pixels, histogram=histogram)
    return histogram


rng = np.random.default_rng(0)
digits = load_digits().images[rng.integers(0, 1797, 125_000)]
noisy = digits * 13 + 24 + rng.normal(0, 8, digits.shape)
pixels = array(np.clip(noisy, 0, 255).astype(np.uint8).ravel())

results = shown(
    f"histogram of {len(pixels):,} pixels, {WORKERS} workers",
    [
        Way(
            "one process, numpy.bincount",
            (),
            lambda: np.bincount(pixels, minlength=LEVELS),
        ),
        Way(
            "SharedMemory and a lock by hand",
            (counted_with_a_lock, count_with_a_lock),
            lambda: counted_with_a_lock(pixels),
        ),
        Way("Shared and Reduced", (counted_declared, count), lambda: counted_declared(pixels)),
    ],
)
print(f"all three agree: {all(np.array_equal(results[0], result) for result in results)}")

if len(sys.argv) > 1:
    save_bars(Path(sys.argv[1]), results[-1], f"Grey levels of {len(pixels):,} pixels")
