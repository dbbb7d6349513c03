"""A table of a million words as a dict, a list, and as arrays: what sharing each costs.

All answer the same questions. Each worker builds a dict or a list once; arrays are shared without
a copy. Pass another number of words as an argument.
"""

import importlib.util
import os
import statistics
import sys
import time
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np

from sharedtask import Shared, parallel, share, shutdown

SIZE = int(sys.argv[1]) if sys.argv[1:] else 1_000_000
WORKERS, REPEATS = 4, 5


@parallel
def in_dict(word: str, table: Shared[dict]) -> float:
    return table[word]


@parallel
def in_list(word: str, table: Shared[list]) -> float:
    return table[bisect_left(table, (word,))][1]


@parallel
def in_arrays(word: str, table: Shared[tuple]) -> float:
    words, values = table  # the words are sorted
    return float(values[np.searchsorted(words, word.encode())])


@parallel
def in_arrow(word: str, table: Shared[object]) -> float:
    words, values = table["word"].chunk(0), table["value"]  # the words are sorted
    at = bisect_left(range(len(words)), word, key=lambda n: words[n].as_py())
    return values[at].as_py()


@parallel(workers=WORKERS, chunksize=1)
def own_memory(until: float, table: Shared[object]) -> tuple[int, int]:  # noqa: ARG001
    """The process, and the bytes that it has for itself alone, while all workers hold the table."""
    time.sleep(max(0.0, until - time.time()))
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return os.getpid(), int(rollup.partition("\nAnonymous:")[2].split()[0]) * 1024


def names(size: int) -> list[str]:
    return [f"word {n:07}" for n in range(size)]


def arrow_table(size: int) -> object:
    import pyarrow as pa

    return pa.table({"word": names(size), "value": np.arange(size, dtype=float)})


WAYS = {
    "dict": (in_dict, lambda n: dict(zip(names(n), map(float, range(n)), strict=True))),
    "list of tuples": (in_list, lambda n: list(zip(names(n), map(float, range(n)), strict=True))),
    "two arrays": (in_arrays, lambda n: (np.array(names(n), "S"), np.arange(n, dtype=float))),
    "Arrow table": (in_arrow, arrow_table),
}
if importlib.util.find_spec("pyarrow") is None:
    del WAYS["Arrow table"]


def milliseconds(task: Any, table: object) -> float:
    began = time.perf_counter()
    task.map(asked, table=table)
    return 1000 * (time.perf_counter() - began)


def again(task: Any, table: object) -> float:
    return statistics.median(milliseconds(task, table) for _ in range(REPEATS))


def holding(table: object) -> dict[int, int]:
    """The private memory of each worker while it holds the table."""
    return dict(own_memory.map([time.time() + 1.0] * WORKERS, table=table))


asked = [f"word {n * 7919 % SIZE:07}" for n in range(200)]
print(f"{len(asked)} look-ups in a table of {SIZE:,}, {WORKERS} workers, milliseconds")
print(f"{'':20}{'first':>9}{'again':>9}{'identity':>10}{'share()':>9}{'MB a worker':>13}")
answers = []
for name, (plain_task, make) in WAYS.items():
    task, small, table = plain_task.with_options(workers=WORKERS), make(SIZE // 50), make(SIZE)
    task.map([names(1)[0]] * WORKERS, table=small)  # starts the workers, and loads their libraries
    before = holding(small)
    first = milliseconds(task, table)
    memory = max(now - before[pid] for pid, now in holding(table).items() if pid in before) / 1e6
    times = [again(task, table), again(task.with_options(verify="identity"), table)]
    with share(table) as handle:
        task.map(asked, table=handle)
        times.append(again(task, handle))
    answers.append(task.map(asked, table=table))
    print(f"{name:20}{first:9.0f}{times[0]:9.1f}{times[1]:10.1f}{times[2]:9.1f}{memory:13.1f}")
    shutdown()
print(f"all give the same: {all(answers[0] == other for other in answers)}")
