"""One contestant in a process of its own: answers one JSON line to each JSON line it reads.

A process each keeps the contestants apart: none forks another's threads, none warms another's
caches, and one that hangs or dies takes nobody along. The conductor (``measure.py``) speaks to
them in turns, so that all see the same machine.
"""

from __future__ import annotations

import copy
import ctypes
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.contestants import CONTESTANTS, Caller, Contestant, Publisher, load_library
from benchmarks.machine import proportional_bytes
from benchmarks.work import Job, increment, jobs, same, window

RUNS_PER_TURN = 25
WARM = Job(increment, range(64))
MEMORY_SETTLES = 0.5  # seconds before the deadline: by then all four workers hold the value


def milliseconds(call: Callable[[], Any]) -> float:
    """How long the call takes; its result is freed after the clock has stopped."""
    began = time.perf_counter()
    result = call()
    spent = time.perf_counter() - began
    del result
    return spent * 1000


class Host:
    """The commands, one method each; every answer is a dict that JSON can carry."""

    def __init__(self, name: str, tiny: bool) -> None:
        self.name = name
        self.make = CONTESTANTS[name]
        self.jobs = jobs(tiny)
        self.contestant: Contestant

    def open(self) -> dict[str, Any]:
        """Start the workers and let each work once."""
        self.contestant = self.make()
        self.contestant.map(WARM, None)
        return {}

    def load(self, job: str) -> dict[str, Any]:
        """Build the job's shared value and serial's answer."""
        self.job = self.jobs[job]
        self.value = self.job.value() if self.job.value else None
        self.expected = self.job.serial(self.value)
        return {}

    def check(self, calls: bool = False) -> dict[str, Any]:
        """The first run: compared with serial, and timed for those too slow for a second."""
        began = time.perf_counter()
        results = self.run(calls)
        spent = (time.perf_counter() - began) * 1000
        return {"equal": same(self.expected, results), "ms": spent}

    def run(self, calls: bool = False) -> list[Any]:
        """The job once: mapped, or item by item there and back."""
        if not calls:
            return self.contestant.map(self.job, self.value)
        assert isinstance(self.contestant, Caller)
        return [self.contestant.call(self.job.function, item) for item in self.job.items]

    def turn(self, budget: float, calls: bool = False) -> dict[str, Any]:
        """Run again and again until ``budget`` milliseconds have passed."""
        spent: list[float] = []
        while not spent or (sum(spent) < budget and len(spent) < RUNS_PER_TURN):
            spent.append(milliseconds(lambda: self.run(calls)))
        return {"ms": spent}

    def first(self) -> dict[str, Any]:
        """The job over a value that was never seen before: an equal copy, made untimed."""
        self.value = copy.copy(self.value)
        return {"ms": [milliseconds(self.run)]}

    def fresh(self) -> dict[str, Any]:
        """From nothing to the first results; the library is imported, nothing is started."""
        load_library(self.name)
        began = time.perf_counter()
        self.contestant = self.make()
        results = self.contestant.map(self.jobs["first"], None)
        spent = (time.perf_counter() - began) * 1000
        return {"equal": same(self.jobs["first"].serial(None), results), "ms": [spent]}

    def publish(self, mib: int) -> dict[str, Any]:
        """Publish an array that was never seen before."""
        assert isinstance(self.contestant, Publisher)
        value = np.arange((mib << 20) // 8, dtype=np.float64)
        began = time.perf_counter()
        take_back = self.contestant.publish(value)
        spent = (time.perf_counter() - began) * 1000
        take_back()
        return {"ms": [spent]}

    def memory(self, seconds: float) -> dict[str, Any]:
        """By how many bytes this process and its descendants grow to hold the value."""
        before = proportional_bytes(os.getpid())
        deadline = time.time() + seconds
        during: list[int] = []

        def sample() -> None:
            time.sleep(seconds - MEMORY_SETTLES)
            during.append(proportional_bytes(os.getpid()))

        sampler = threading.Thread(target=sample)
        sampler.start()
        job = Job(self.job.function, self.until(deadline), self.job.value)
        results = self.contestant.map(job, self.value)
        sampler.join()
        return {"equal": same(self.expected, results), "bytes": during[0] - before}

    def until(self, deadline: float) -> Sequence[Any]:
        """Items that hold the value until then."""
        return [deadline] * len(self.job.items)

    def unchanged(self, mib: int, repeats: int) -> dict[str, Any]:
        """What an unchanged array adds to a map of four trivial items, beside one memcmp of it."""
        array = np.arange((mib << 20) // 8, dtype=np.float64)
        other = array.copy()
        over, without = Job(window, range(4), lambda: array), Job(increment, range(4))
        self.contestant.map(over, array)
        compare = ctypes.CDLL(None).memcmp
        pointers = [ctypes.c_void_p(each.ctypes.data) for each in (array, other)]
        with_array, plain, memcmp = [], [], []
        for _ in range(repeats):
            with_array.append(milliseconds(lambda: self.contestant.map(over, array)))
            plain.append(milliseconds(lambda: self.contestant.map(without, None)))
            memcmp.append(milliseconds(lambda: compare(*pointers, ctypes.c_size_t(mib << 20))))
        return {"check": median(with_array) - median(plain), "memcmp": median(memcmp)}

    def close(self) -> dict[str, Any]:
        """End the workers."""
        self.contestant.close()
        return {}


def serve(make: Callable[[str, bool], Host]) -> None:
    """Serve until standard input closes. The real standard output carries answers only."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    host = make(sys.argv[1], sys.argv[2:] == ["tiny"])
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(host, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001  whatever a peer raises is its cell in the table
            traceback.print_exc()
            answer = {"error": type(error).__name__, "detail": str(error)}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(Host)
