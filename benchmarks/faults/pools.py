"""The contestants: two workers, kept between maps, called in the way that tells most of a fault.

``map`` gives seven results in order, with an exception in place of a result where the library
says which item it belongs to; where it does not, ``map`` raises as the library does.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import multiprocessing
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from benchmarks.faults.limits import NoAnswerError

WORKERS = 2
Task = Callable[..., Any]
Table = np.ndarray | None


class Pool(Protocol):
    """What the driver needs of a library."""

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        """Run the task over the items, over ``table`` where it shares one."""

    def close(self) -> None:
        """End the workers the way the library's documentation does."""


def bound(task: Task, table: Any) -> Task:
    """The task with its array, as one hands it to a pool."""
    return task if table is None else partial(task, table=table)


def tried(call: Callable[[], Any]) -> Any:
    """What the call gives, or its exception in place of it."""
    try:
        return call()
    except NoAnswerError:
        raise
    except BaseException as error:  # noqa: BLE001  SystemExit, too, may come back from a worker
        return error


def gathered(
    submit: Callable[[Any], Any], fetch: Callable[[Any], Any], items: Iterable[Any]
) -> list[Any]:
    """Submit every item, then fetch every result; each has its own exception in its place."""
    handles = [tried(partial(submit, item)) for item in items]
    return [
        each if isinstance(each, BaseException) else tried(partial(fetch, each)) for each in handles
    ]


class Ours:
    """``task.map`` with errors in place of results."""

    def __init__(self, table: Table) -> None:
        import sharedtask

        self.library = sharedtask

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        shared = {} if table is None else {"table": table}
        parallel = self.library.parallel(
            backend="process", workers=WORKERS, return_exceptions=True, shared=[*shared]
        )
        limit = {} if timeout is None else {"timeout": timeout}
        return list(parallel(task).with_options(**limit).map(items, **shared))

    def close(self) -> None:
        self.library.shutdown()


class Joblib:
    """One ``with Parallel``; the array among the arguments, which joblib maps from a file."""

    def __init__(self, table: Table) -> None:
        import joblib

        self.delayed = joblib.delayed
        self.parallel = joblib.Parallel(n_jobs=WORKERS)
        self.parallel.__enter__()

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        self.parallel.timeout = timeout
        call, shared = self.delayed(task), {} if table is None else {"table": table}
        return list(self.parallel(call(item, **shared) for item in items))

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)


def shared_first(task: Task, needs: bool, table: np.ndarray, item: Any) -> Any:
    """Mpire hands the shared object over first, wanted or not."""
    return task(item, table=table) if needs else task(item)


@functools.cache
def taking_table(task: Task, needs: bool) -> Task:
    """The same object for the same task: to mpire another one is another function."""
    return partial(shared_first, task, needs)


class Mpire:
    """One ``WorkerPool(keep_alive=True)``; the array is its ``shared_objects``."""

    def __init__(self, table: Table) -> None:
        from mpire import WorkerPool

        self.shares = table is not None
        self.pool = WorkerPool(WORKERS, shared_objects=table, keep_alive=True)

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        call = taking_table(task, table is not None) if self.shares else task
        return list(self.pool.map(call, [(item,) for item in items], task_timeout=timeout))

    def close(self) -> None:
        self.pool.__exit__(None, None, None)


class MpireApply(Mpire):
    """The same with ``apply_async`` for each item."""

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        call = taking_table(task, table is not None) if self.shares else task
        submit = partial(self.pool.apply_async, call, task_timeout=timeout)
        return gathered(lambda item: submit((item,)), lambda handle: handle.get(), items)


class Futures:
    """``submit`` for each item, ``result`` of each future."""

    def __init__(self, table: Table) -> None:
        self.executor = ProcessPoolExecutor(WORKERS)

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        submit = partial(self.executor.submit, bound(task, table))
        return gathered(submit, lambda future: future.result(timeout), items)

    def close(self) -> None:
        self.executor.shutdown()


class StandardPool:
    """``multiprocessing.Pool``: ``apply_async`` for each item, ``get`` of each."""

    def __init__(self, table: Table, limit: float | None = None) -> None:
        self.limit = limit
        self.pool = multiprocessing.Pool(WORKERS)

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        submit = partial(self.pool.apply_async, bound(task, table))
        limit = timeout or self.limit
        return gathered(lambda item: submit((item,)), lambda handle: handle.get(limit), items)

    def close(self) -> None:
        self.pool.__exit__(None, None, None)
        self.pool.join()


class Ray:
    """One remote task for each item, never run again; ``ray.get`` of each."""

    def __init__(self, table: Table) -> None:
        import ray

        warnings.simplefilter("ignore", FutureWarning)
        self.ray = ray
        ray.init(
            address="local",
            num_cpus=WORKERS,
            object_store_memory=256 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )

    def map(
        self, task: Task, items: list[Any], timeout: float | None = None, table: Table = None
    ) -> list[Any]:
        remote = self.ray.remote(max_retries=0)(task)
        shared = {} if table is None else {"table": self.ray.put(table)}
        fetch = partial(self.fetch, timeout=timeout)
        return gathered(lambda item: remote.remote(item, **shared), fetch, items)

    def fetch(self, handle: Any, timeout: float | None) -> Any:
        """The result; a task that takes too long is cancelled, as Ray's documentation shows."""
        try:
            return self.ray.get(handle, timeout=timeout)
        except self.ray.exceptions.GetTimeoutError:
            self.ray.cancel(handle, force=True)
            raise

    def close(self) -> None:
        self.ray.shutdown()


@dataclass(frozen=True, slots=True)
class Contestant:
    """How a column is headed, which package it needs, how it is made for the rows' array."""

    head: str
    package: str
    make: Callable[[Table], Pool]
    starts: float = 30.0  # seconds that its workers may take to be warm


CONTESTANTS: dict[str, Contestant] = {
    "ours": Contestant("sharedtask", "sharedtask", Ours),
    "joblib": Contestant("joblib", "joblib", Joblib),
    "mpire": Contestant("mpire map", "mpire", Mpire),
    "mpire apply": Contestant("mpire apply", "mpire", MpireApply),
    "futures": Contestant("c.futures", "", Futures),
    "pool": Contestant("mp.Pool", "", StandardPool),
    "pool limit": Contestant("mp.Pool 2 s", "", partial(StandardPool, limit=2.0)),
    "ray": Contestant("Ray", "ray", Ray, starts=90.0),
}


def missing(name: str) -> bool:
    """True when the contestant's package is not installed."""
    package = CONTESTANTS[name].package
    return bool(package) and importlib.util.find_spec(package) is None
