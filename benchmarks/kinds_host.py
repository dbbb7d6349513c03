"""One contestant in a process of its own, over the kinds of values; see ``host.py``."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.host import Host, milliseconds, serve
from benchmarks.kinds_work import KINDS, SMALL_KB, forget_files, kind_jobs, weighing
from benchmarks.work import Job, same

BUSY = 0.4  # seconds in which every worker gets its item


class OverKinds(Host):
    """The commands that the kinds need beside the others, or in another way."""

    job_name: str

    def load(self, job: str) -> dict[str, Any]:
        """A small value of the same kind first: libraries are loaded, workers have their size."""
        self.job, self.job_name = self.jobs[job], job
        self.value = None
        small = KINDS.get(job, KINDS["module"]).make(SMALL_KB << 10)
        self.weigh(small)  # the first time, libraries are loaded
        self.before = self.weigh(small)
        return super().load(job)

    def weigh(self, value: Any) -> dict[int, int]:
        """The private bytes of every worker that holds the value."""
        items = weighing(self.job_name if self.job_name in KINDS else "module", BUSY)
        weighed = self.contestant.map(Job(self.job.function, items, self.job.value), value)
        return dict(weighed)

    def private(self) -> dict[str, Any]:
        """By how many bytes a worker grows that holds the value; of all workers the most."""
        after = self.weigh(self.value)
        grown = [now - self.before[pid] for pid, now in after.items() if pid in self.before]
        return {"bytes": max(grown)}

    def first(self) -> dict[str, Any]:
        """The job over a value that was never seen before, made untimed."""
        assert self.job.value is not None
        self.value = None
        gc.collect()
        self.value = self.job.value()
        return {"ms": [milliseconds(self.run)]}

    def until(self, deadline: float) -> list[Any]:
        return [replace(item, until=deadline) for item in self.job.items]

    def spread(self) -> dict[str, Any]:
        """Whether the results of all workers are serial's bit for bit, and how far from those of
        one process with all its threads, which may add in another order."""
        results = self.run()
        threads = len(os.sched_getaffinity(0))
        others = [replace(item, threads=threads)(self.value) for item in self.job.items]
        least = max(float(np.abs(other).max()) for other in others)
        apart = max(float(np.abs(a - b).max()) for a, b in zip(results, others, strict=True))
        return {"bits": same(self.expected, results), "relative": apart / least}

    def close(self) -> dict[str, Any]:
        forget_files()
        return super().close()


class KindsHost(OverKinds):
    """One contestant; "ours array" is ours as well, beside which it is given a plain array."""

    def __init__(self, name: str, tiny: bool) -> None:
        super().__init__(name.split(maxsplit=1)[0], tiny)
        self.jobs = kind_jobs(tiny)


if __name__ == "__main__":
    serve(KindsHost)
