"""sharedtask as a contestant: the same work, decorated, through the public API alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import work
from benchmarks.work import WORKERS, Job
from sharedtask import Shared, parallel, share, shutdown


@parallel
def score(index: int, model: Shared[dict[str, Any]]) -> float:
    """One weight of a model, and its bias."""
    return float(model["weights"][index % 10, 0]) + float(model["bias"])


@parallel
def window(index: int, model: Shared[npt.NDArray[np.float64]]) -> float:
    """The sum of a hundred neighbours in a large array."""
    return float(model[index * 100 : index * 100 + 100].sum())


@parallel
def lookup(word: str, model: Shared[dict[str, float]]) -> float:
    """One entry of a large dict."""
    return model[word]


@parallel
def increment(number: int) -> int:
    """The most trivial task there is."""
    return number + 1


@parallel
def block(length: int) -> npt.NDArray[np.float64]:
    """A result of ``8 * length`` bytes."""
    return np.full(length, float(length))


@parallel
def hold(deadline: float, model: Shared[npt.NDArray[np.float64]]) -> float:
    """Read the whole of a large array, then hold it until the clock shows ``deadline``."""
    total = float(model.sum())
    time.sleep(max(0.0, deadline - time.time()))
    return total


@parallel
def look(item: Callable[[Any], Any], model: Shared[Any]) -> Any:
    """Whatever the item does with the value."""
    return item(model)


TASKS: dict[str, Any] = {
    task.__name__: task for task in (score, window, lookup, increment, block, hold, look)
}
# The same with nothing marked as shared.
UNSHARED: dict[str, Any] = {name: parallel(getattr(work, name)) for name in TASKS}


class Ours:
    """Plain ``.map``; or under ``verify="identity"``; over a ``share()`` handle; unshared."""

    def __init__(
        self,
        verify: str = "content",
        handle: bool = False,
        backend: str = "process",
        shared: bool = True,
    ) -> None:
        options: Any = {"backend": backend, "workers": WORKERS, "verify": verify}
        tasks = TASKS if shared else UNSHARED
        self.tasks = {name: task.with_options(**options) for name, task in tasks.items()}
        self.by_handle = handle
        self.handle: Any = None
        self.source: Any = None

    def map(self, job: Job, value: Any) -> list[Any]:
        task = self.tasks[job.function.__name__]
        shared = {} if job.value is None else {"model": self.shared(value)}
        results: list[Any] = task.map(job.items, **shared)
        return results

    def shared(self, value: Any) -> Any:
        """The value itself; or its handle, made when it is another value than last time."""
        if not self.by_handle:
            return value
        if value is not self.source:
            self.release()
            self.handle, self.source = share(value), value
        return self.handle

    def release(self) -> None:
        if self.handle is not None:
            self.handle.close()

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.tasks[function.__name__].submit(item).result()

    def publish(self, value: Any) -> Callable[[], None]:
        close: Callable[[], None] = share(value).close
        return close

    def close(self) -> None:
        self.release()
        shutdown()
