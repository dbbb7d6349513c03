"""Ray's contestants: the ways to map over one large value with Ray, and sharedtask on Ray.

All run on the one Ray that their host has started, with four CPUs. What is put into the object
store is put once and its reference kept, for as long as the value is the same object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray
from ray.util.multiprocessing import Pool

from benchmarks.contestants import Contestant, ours
from benchmarks.work import WORKERS, Job


class Kept:
    """The value that was put last, and its reference."""

    def __init__(self) -> None:
        self.value: Any = None
        self.ref: Any = None

    def put(self, value: Any) -> Any:
        if self.ref is None or value is not self.value:
            self.ref = None  # first frees the old one
            self.ref, self.value = ray.put(value), value
        return self.ref


class ByValue:
    """One task per item, the value among its arguments: Ray puts it anew for each."""

    def __init__(self) -> None:
        self.remotes: dict[Callable[..., Any], Any] = {}

    def map(self, job: Job, value: Any) -> list[Any]:
        remote = self.remote(job.function)
        shared = {} if job.value is None else {"model": self.argument(value)}
        return list(ray.get([remote.remote(item, **shared) for item in job.items]))

    def argument(self, value: Any) -> Any:
        return value

    def remote(self, function: Callable[..., Any]) -> Any:
        """The function as a Ray task, made once."""
        if function not in self.remotes:
            self.remotes[function] = ray.remote(self.body(function))
        return self.remotes[function]

    def body(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return ray.get(self.remote(function).remote(item))

    def close(self) -> None: ...


class PerItem(ByValue):
    """One task per item, the value put once and handed over by its reference."""

    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def argument(self, value: Any) -> Any:
        return self.kept.put(value)


class Chunked(PerItem):
    """A fixed number of tasks with many items each, the value by its reference: the best of Ray."""

    def __init__(self, kept: Kept, chunks: int) -> None:
        super().__init__(kept)
        self.chunks = chunks

    def map(self, job: Job, value: Any) -> list[Any]:
        remote = self.remote(job.function)
        shared = {} if job.value is None else {"model": self.argument(value)}
        size = -(-len(job.items) // self.chunks)
        chunks = [job.items[at : at + size] for at in range(0, len(job.items), size)]
        results = ray.get([remote.remote(chunk, **shared) for chunk in chunks])
        return [result for chunk in results for result in chunk]

    def body(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(items: Sequence[Any], **shared: Any) -> list[Any]:
            return [function(item, **shared) for item in items]

        return run

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return ray.get(self.remote(function).remote([item]))[0]


held: list[Any] = []


def hold_model(ref: Any) -> None:
    """Be the initializer of a pool: keep the value in the actor."""
    held[:] = [ray.get(ref)]


def over_held(function: Callable[..., Any], item: Any) -> Any:
    return function(item, model=held[0])


class RayPool:
    """ray.util.multiprocessing.Pool, kept for as long as the value its initializer got is."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.pool: Any = None
        self.value: Any = None

    def map(self, job: Job, value: Any) -> list[Any]:
        over = job.value is not None
        if self.pool is None or (over and value is not self.value):
            self.close()
            initializer, initargs = (hold_model, (self.kept.put(value),)) if over else (None, ())
            self.pool = Pool(WORKERS, initializer, initargs)
            self.value = value
        function = partial(over_held, job.function) if over else job.function
        return list(self.pool.map(function, job.items))

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.pool.apply(function, (item,))

    def close(self) -> None:
        if self.pool is not None:
            self.pool.terminate()
            self.pool = None


# The order of the table's columns. The hand-written ones keep one reference among them.
_kept = Kept()
RAY_CONTESTANTS: dict[str, Callable[[], Contestant]] = {
    "by value": ByValue,
    "per item": partial(PerItem, _kept),
    "1 chunk": partial(Chunked, _kept, 1),
    "2 chunks": partial(Chunked, _kept, 2),
    "4 chunks": partial(Chunked, _kept, 4),
    "8 chunks": partial(Chunked, _kept, 8),
    "Pool": partial(RayPool, _kept),
    "ours by value": partial(ours, backend="ray", shared=False),
    "ours": partial(ours, backend="ray"),
    "ours identity": partial(ours, backend="ray", verify="identity"),
    "ours share()": partial(ours, backend="ray", handle=True),
}
