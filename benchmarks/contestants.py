"""The contestants: one small class each, used the way their own documentation shows.

All have four workers, kept between calls wherever the library can keep them. A contestant maps a
job over a value; those with a ``call`` also send one item there and back.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, Protocol, runtime_checkable

from benchmarks.floor import Floor, FloorOfFutures, publish
from benchmarks.work import WORKERS, Job


class Contestant(Protocol):
    """What the host needs of a library."""

    def map(self, job: Job, value: Any) -> list[Any]:
        """Run the job over ``value`` (None where it shares nothing)."""

    def close(self) -> None:
        """End the workers."""


@runtime_checkable
class Caller(Protocol):
    """A contestant that can also send one item there and back."""

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        """One submit and its result."""


@runtime_checkable
class Publisher(Protocol):
    """A contestant that can put a value where its workers see it, without running anything."""

    def publish(self, value: Any) -> Callable[[], None]:
        """Publish, and return what takes it back."""


def bound(job: Job, value: Any) -> Callable[[Any], Any]:
    """The function with its shared value, as one hands it to a pool: ``functools.partial``."""
    return job.function if job.value is None else partial(job.function, model=value)


def chunksize(job: Job) -> int:
    """Four chunks per worker: what multiprocessing.Pool.map chooses by itself."""
    return max(1, -(-len(job.items) // (4 * WORKERS)))


class Serial:
    """The list comprehension."""

    def map(self, job: Job, value: Any) -> list[Any]:
        return job.serial(value)

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)

    def close(self) -> None: ...


class Pool:
    """multiprocessing.Pool, kept; the value travels in functools.partial, once per chunk."""

    def __init__(self) -> None:
        self.pool = multiprocessing.Pool(WORKERS)

    def map(self, job: Job, value: Any) -> list[Any]:
        return self.pool.map(bound(job, value), job.items)

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.pool.apply(function, (item,))

    def close(self) -> None:
        self.pool.terminate()


class Futures:
    """ProcessPoolExecutor, kept; given Pool's chunk size, since its own is one item."""

    def __init__(self) -> None:
        self.executor = ProcessPoolExecutor(WORKERS)

    def map(self, job: Job, value: Any) -> list[Any]:
        return list(self.executor.map(bound(job, value), job.items, chunksize=chunksize(job)))

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.executor.submit(function, item).result()

    def close(self) -> None:
        self.executor.shutdown(cancel_futures=True)


class Joblib:
    """joblib with loky, all calls inside one ``with Parallel``."""

    def __init__(self) -> None:
        import joblib
        from joblib.externals.loky import get_reusable_executor

        self.delayed = joblib.delayed
        self.executor = partial(get_reusable_executor, WORKERS)
        self.parallel = joblib.Parallel(n_jobs=WORKERS)
        self.parallel.__enter__()

    def map(self, job: Job, value: Any) -> list[Any]:
        call = self.delayed(job.function)
        if job.value is None:
            return list(self.parallel(call(item) for item in job.items))
        return list(self.parallel(call(item, model=value) for item in job.items))

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.executor().submit(function, item).result()

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)


def shared_first(function: Callable[..., Any], model: Any, item: Any) -> Any:
    """Mpire hands the shared object over first."""
    return function(item, model=model)


class Mpire:
    """mpire.WorkerPool made anew for every map: the one way to share another object."""

    def __init__(self) -> None:
        from mpire.pool import WorkerPool

        self.make = partial(WorkerPool, n_jobs=WORKERS)

    def map(self, job: Job, value: Any) -> list[Any]:
        with self.make(shared_objects=value) as pool:
            return self.run(pool, job)

    def run(self, pool: Any, job: Job) -> list[Any]:
        call = job.function if job.value is None else partial(shared_first, job.function)
        return list(pool.map(call, job.items, concatenate_numpy_output=False))

    def close(self) -> None: ...


class MpireKept(Mpire):
    """mpire.WorkerPool kept alive for as long as the shared object stays the same one."""

    def __init__(self) -> None:
        super().__init__()
        self.pool: Any = None
        self.value: Any = None

    def map(self, job: Job, value: Any) -> list[Any]:
        if self.pool is None or value is not self.value:
            self.close()
            self.pool = self.make(shared_objects=value, keep_alive=True)
            self.value = value
        return self.run(self.pool, job)

    def close(self) -> None:
        if self.pool is not None:
            self.pool.terminate()


class ByHand:
    """The floor; its workers come from a fresh process with numpy, as safe ones have to."""

    def __init__(self, starter: bool = True) -> None:
        self.floor = Floor(WORKERS, starter)

    def map(self, job: Job, value: Any) -> list[Any]:
        return self.floor.map(job.function, job.items, value)

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.floor.call(function, item)

    def publish(self, value: Any) -> Callable[[], None]:
        return partial(os.close, publish(value))

    def close(self) -> None:
        self.floor.close()


class ByHandFutures:
    """The floor of a submit that returns a real future."""

    def __init__(self) -> None:
        self.floor = FloorOfFutures()

    def map(self, job: Job, value: Any) -> list[Any]:
        return [self.call(bound(job, value), item) for item in job.items]

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.floor.submit(function, item).result()

    def close(self) -> None:
        self.floor.close()


def ours(**how: Any) -> Contestant:
    """sharedtask itself; imported late, so that the peers run without it."""
    from benchmarks.ours import Ours

    return Ours(**how)


# The order of the table's columns, and of the turns: ours stands beside the floor.
CONTESTANTS: dict[str, Callable[[], Contestant]] = {
    "serial": Serial,
    "pool": Pool,
    "futures": Futures,
    "joblib": Joblib,
    "mpire": Mpire,
    "mpire kept": MpireKept,
    "floor": ByHand,
    "ours": ours,
    "ours identity": partial(ours, verify="identity"),
    "ours share()": partial(ours, handle=True),
    "floor fork": partial(ByHand, starter=False),
    "floor future": ByHandFutures,
}
NEEDS = {"joblib": "joblib", "mpire": "mpire", "ours": "sharedtask"}
IMPORTS = {"joblib": "joblib", "mpire": "mpire.pool", "ours": "benchmarks.ours"}


def missing(name: str) -> bool:
    """True when the contestant's package is not installed."""
    package = NEEDS.get(name.split(maxsplit=1)[0])
    return package is not None and importlib.util.find_spec(package) is None


def load_library(name: str) -> None:
    """Import what the contestant needs, so that no clock sees it."""
    module = IMPORTS.get(name.split(maxsplit=1)[0])
    if module is not None:
        importlib.import_module(module)
