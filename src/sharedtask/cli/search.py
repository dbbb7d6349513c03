"""Nearest neighbours of query vectors in a large matrix that every call needs."""

from __future__ import annotations

import importlib
import importlib.util
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.annotations import Shared
from sharedtask.task.decorator import parallel
from sharedtask.task.shutdown import shutdown

from .measure import Cost, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

ROWS, COLUMNS, QUERIES, ITEMS, TOP = 200_000, 128, 120, 12, 5


def search(queries: npt.NDArray[Any], matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each query the rows of the matrix with the highest scores, best first."""
    found = np.empty((len(queries), TOP), np.intp)
    for index, query in enumerate(queries):
        scores = matrix @ query
        best = np.argpartition(scores, -TOP)[-TOP:]
        found[index] = best[np.argsort(-scores[best])]
    return found


@parallel
def shared_search(queries: Any, matrix: Shared[Any]) -> Any:
    """The same; the matrix is shared."""
    return search(queries, matrix)


def run(rows: int = ROWS) -> Iterator[str]:
    """Do the job in all ways and yield lines of a table, each when it is known."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(rows, COLUMNS)).astype(np.float32)
    items = list(matrix[:QUERIES].reshape(ITEMS, -1, COLUMNS))
    size = f"{rows:,} vectors ({matrix.nbytes / 1e6:.0f} MB)"
    yield f"{QUERIES} queries in {size}, {workers()} workers"
    yield f"{'':24}{'time':>10}{'memory added':>16}"
    expected = None
    for name, work in ways(items, matrix):
        cost = measure(work)
        expected = cost.result if expected is None else expected
        if not np.array_equal(expected, cost.result):
            message = f"{name} gives other results than a loop"
            raise RuntimeError(message)
        yield line(name, cost)
    shutdown()
    if not has_joblib():
        yield "joblib is not installed: pip install joblib shows it beside the others."
    yield "All ways gave the same results. Memory is what all processes added (PSS)."


def ways(items: list[Any], matrix: npt.NDArray[Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The usual ways, and the library: its first call and the next."""
    work = partial(search, matrix=matrix)
    yield "a loop", lambda: [work(item) for item in items]
    yield "concurrent.futures", lambda: with_futures(work, items)
    if has_joblib():
        yield "joblib", lambda: with_joblib(work, items)
    yield "sharedtask, first call", lambda: shared_search.map(items, matrix=matrix)
    yield "sharedtask, again", lambda: shared_search.map(items, matrix=matrix)


def with_futures(work: Callable[..., Any], items: list[Any]) -> list[Any]:
    """The matrix is pickled into every task, as any argument is."""
    with ProcessPoolExecutor(workers()) as pool:
        return list(pool.map(work, items))


def with_joblib(work: Callable[..., Any], items: list[Any]) -> list[Any]:
    """Large arrays go into a mapped file by themselves."""
    joblib: Any = importlib.import_module("joblib")
    results: list[Any] = joblib.Parallel(workers())(joblib.delayed(work)(item) for item in items)
    joblib.externals.loky.get_reusable_executor().shutdown()
    return results


def has_joblib() -> bool:
    """Whether joblib is installed."""
    return importlib.util.find_spec("joblib") is not None


def workers() -> int:
    """As many as there are CPUs for this process."""
    return len(os.sched_getaffinity(0))


def line(name: str, cost: Cost) -> str:
    """A row of the table."""
    return f"{name:24}{cost.seconds:8.2f} s{cost.memory / 1e6:13.0f} MB"
