"""``python -m benchmarks.loky_rows``: processes that loky starts, beside our own.

The same warm maps on both, in turns: a busy machine makes both slower. ``ratio`` is the median of
their ratios; the goal is at most 3. Then how much memory a value of ``--mib`` takes in caller and
workers together, beside its own size: 1 is one copy.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from sharedtask import Shared, parallel

BACKENDS = ("process", "loky")


def add(x: int, model: Shared[np.ndarray]) -> float:
    """Next to nothing."""
    return float(model[x]) + x


def search(x: int, model: Shared[np.ndarray]) -> float:
    """About a millisecond over a part of the shared array."""
    return float(np.abs(model[: 1 << 18] - x).min())


def touch(_x: int, model: Shared[np.ndarray]) -> tuple[int, int]:
    """Read all of it: the process, and its share of what it has mapped, in kB."""
    assert model.sum()
    time.sleep(0.2)
    return os.getpid(), proportional(os.getpid())


def proportional(pid: int) -> int:
    """Memory of a process in kB, with shared pages divided among their users."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


def seconds(task: Any, items: int, model: Any) -> float:
    """Of one map."""
    began = time.perf_counter()
    task.map(range(items), model=model)
    return time.perf_counter() - began


def row(function: Any, items: int, model: Any, turns: int) -> str:
    """One line of the table."""
    tasks = [parallel(function).with_options(backend=b, workers=2) for b in BACKENDS]
    for task in tasks * 3:
        task.map(range(items), model=model)
    pairs = [[seconds(task, items, model) for task in tasks] for _ in range(turns)]
    own, other = (median(column) * 1e3 for column in zip(*pairs, strict=True))
    ratio = median(theirs / ours for ours, theirs in pairs)
    name = f"{items} x {function.__name__}"
    return f"{name:14} process {own:8.2f} ms, loky {other:8.2f} ms, ratio {ratio:.2f}"


def copies(backend: str, mib: int) -> float:
    """Memory that a value takes in the workers, beside its own size."""
    task = parallel(touch).with_options(backend=backend, workers=2, chunksize=1)
    small, large = np.ones(1 << 14), np.ones(mib << 17)
    before = dict(task.map(range(4), model=small))
    after = dict(task.map(range(4), model=large))
    grown = sum(after[pid] - before[pid] for pid in after if pid in before)
    return grown / 1024 / mib


def main() -> None:
    """Print the rows, and the load of the machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--mib", type=int, default=200)
    given = parser.parse_args()
    model = np.ones(1 << 20)
    for function, items in ((add, 100), (add, 2000), (search, 100)):
        print(row(function, items, model, given.turns), flush=True)
    for backend in BACKENDS:
        print(
            f"copies of {given.mib} MiB in the workers, {backend}: {copies(backend, given.mib):.2f}"
        )
    print("load", *(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
