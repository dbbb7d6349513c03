"""One program for one machine and for a cluster: environment variables decide where it runs.

On worker processes, on a Ray of this machine, and on the Ray cluster at an address:

    python examples/cluster.py
    SHAREDTASK_BACKEND=ray python examples/cluster.py
    RAY_ADDRESS=host:6379 SHAREDTASK_BACKEND=ray python examples/cluster.py

A permutation test: how strong is the strongest correlation that chance alone finds between a trait
of 2,000 people and any of 4,000 markers? Every item shuffles the trait again. All items need the
table of markers, 32 MB, which is shared.
"""

import os
import socket
import time

import numpy as np

from sharedtask import Shared, parallel


@parallel
def by_chance(seed: int, markers: Shared[np.ndarray], trait: np.ndarray) -> tuple[float, str, int]:
    """The strongest correlation after a shuffle; the machine and the process that found it."""
    shuffled = np.random.default_rng(seed).permutation(trait)
    strongest = float(np.abs(shuffled @ markers).max()) / len(trait)
    return strongest, socket.gethostname(), os.getpid()


def standardised(values: np.ndarray) -> np.ndarray:
    return ((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32)


rng = np.random.default_rng(4)
markers = standardised(rng.integers(0, 3, size=(2_000, 4_000)))
trait = standardised(rng.normal(size=2_000))

for call in ("first call", "again"):
    start = time.perf_counter()
    found = by_chance.map(range(200), markers=markers, trait=trait)
    print(f"{call:12}{time.perf_counter() - start:6.2f} s")

strongest, machines, pids = zip(*found, strict=True)
processes = set(zip(machines, pids, strict=True))
print(f"1 in 20 shuffles finds a correlation above {np.quantile(strongest, 0.95):.3f}")
print(f"workers: {len(processes)}, machines: {len(set(machines))}")
