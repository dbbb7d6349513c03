"""All of Ray's contestants in one process, over one Ray that is started here and ended with it.

Several Rays side by side would disturb each other even when idle; so here the contestants of a row
take their turns in the same process and on the same workers.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from typing import Any

import numpy as np
import ray

from benchmarks.contestants import Contestant
from benchmarks.host import WARM, Host, serve
from benchmarks.machine import family_of
from benchmarks.ray_contestants import RAY_CONTESTANTS
from benchmarks.work import WORKERS, Job, jobs, same

STORE = 4 << 30  # bytes
BLOCK_MIB = 256
REHEARSAL, CALM = 1.5, 3.0  # seconds


def start_ray(tiny: bool) -> None:
    """A quiet Ray of four CPUs, whatever the machine has."""
    warnings.simplefilter("ignore", FutureWarning)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=WORKERS,
        object_store_memory=STORE // (16 if tiny else 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


class RayHost(Host):
    """The same commands; ``choose`` says whom the next ones mean."""

    def __init__(self, tiny: bool) -> None:
        self.tiny = tiny
        self.jobs = jobs(tiny)
        self.loaded = ""
        self.made: dict[str, Contestant] = {}

    def start(self) -> dict[str, Any]:
        """Start Ray."""
        start_ray(self.tiny)
        return {}

    def choose(self, name: str, job: str) -> dict[str, Any]:
        """Whom and which job the next commands mean; workers are started at the first time."""
        if name not in self.made:
            self.contestant = self.made[name] = RAY_CONTESTANTS[name]()
            self.contestant.map(WARM, None)
        self.contestant = self.made[name]
        if job and job != self.loaded:
            self.load(job)
            self.loaded = job
        return {}

    def open(self) -> dict[str, Any]:
        """Nothing: ``choose`` has done it."""
        return {}

    def settle(self) -> dict[str, Any]:
        """A run whose time does not count, after somebody else has brought another value."""
        answer = self.check()
        return {**answer, "ms": [answer["ms"]]}

    def touch(self, mib: int) -> dict[str, Any]:
        """Use that much of the object store and give it back: the first use of a page is slow."""
        blocks = [ray.put(np.ones(BLOCK_MIB << 17)) for _ in range(0, mib, BLOCK_MIB)]
        del blocks
        return {}

    def memory(self, seconds: float) -> dict[str, Any]:
        """As ever, once each worker has had a small value and Ray has ended those it can spare."""
        small = np.ones(8)
        rehearsal = Job(self.job.function, [time.time() + REHEARSAL] * WORKERS, lambda: small)
        self.contestant.map(rehearsal, small)
        self.settle_down()
        return super().memory(seconds)

    def settle_down(self) -> None:
        """Wait until no process has come or gone for a while."""
        family, since = family_of(os.getpid()), time.monotonic()
        patience = since + 10 * CALM
        while time.monotonic() < min(since + CALM, patience):
            time.sleep(0.2)
            if (now := family_of(os.getpid())) != family:
                family, since = now, time.monotonic()

    def from_nothing(self, name: str) -> dict[str, Any]:
        """How long Ray takes to start, and then the first results."""
        began = time.perf_counter()
        start_ray(self.tiny)
        started = time.perf_counter()
        self.contestant = self.made[name] = RAY_CONTESTANTS[name]()
        results = self.contestant.map(self.jobs["first"], None)
        ended = time.perf_counter()
        equal = same(self.jobs["first"].serial(None), results)
        spent = [(started - began) * 1000, (ended - started) * 1000]
        return {"equal": equal, "ms": spent}

    def close(self) -> dict[str, Any]:
        """End the contestants, then Ray."""
        for contestant in self.made.values():
            contestant.close()
        ray.shutdown()
        return {}


if __name__ == "__main__":
    serve(lambda _, tiny: RayHost(tiny))
