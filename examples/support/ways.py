"""Ways to do one job side by side: the first call, the next one, and memory.

With ``EXAMPLES_SMALL=1`` two workers do it over the small value, and the figures say little.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from joblib import Parallel, delayed
from support.measure import memory, watching

from sharedtask import shutdown

SMALL = bool(os.environ.get("EXAMPLES_SMALL"))
WORKERS = 2 if SMALL else 4


@dataclass(frozen=True, slots=True)
class Way:
    """``run`` maps over a value, ``close`` ends the workers."""

    name: str
    run: Callable[[Any], Any]
    close: Callable[[], Any] = lambda: None


def side_by_side(small: Any, make: Callable[[], Any], ways: Iterable[Way]) -> list[Any]:
    """Print a table; what each way returned."""
    print(f"{'':28}{'first call':>12}{'next call':>12}{'memory':>12}")
    results = []
    for way in ways:
        way.run(small)  # starts the workers, and loads their libraries
        grown = growth(way, small if SMALL else make())
        value = small if SMALL else make()
        first, _ = timed(way, value)
        again, result = timed(way, value)
        del value
        way.close()
        results.append(result)
        print(f"{way.name:28}{first:10.2f} s{again:10.2f} s{grown / 1e6:9.0f} MB")
    return results


def growth(way: Way, value: Any) -> int:
    """The most bytes that all processes together had more while it ran: a run of its own.

    To look so often takes time, which is not to be counted as the way's.
    """
    before = memory()
    peak = [before]
    with watching(peak, every=0.01):
        way.run(value)
    return peak[0] - before


def timed(way: Way, value: Any) -> tuple[float, Any]:
    """Seconds, and the result."""
    began = time.perf_counter()
    result = way.run(value)
    return time.perf_counter() - began, result


def by_pool(pool: Any, function: Callable[..., Any], items: Iterable[Any], name: str) -> Way:
    """Map with multiprocessing.Pool: the value in a partial."""
    return Way(
        "multiprocessing.Pool",
        lambda value: pool.map(partial(function, **{name: value}), items),
        pool.terminate,
    )


def by_joblib(function: Callable[..., Any], items: Iterable[Any], name: str) -> Way:
    """Map with joblib: the value is an argument of each call."""
    call, run = delayed(function), Parallel(n_jobs=WORKERS)
    run.__enter__()
    return Way(
        "joblib",
        lambda value: run(call(item, **{name: value}) for item in items),
        lambda: run.__exit__(None, None, None),
    )


def by_task(title: str, task: Any, items: Iterable[Any], name: str) -> Way:
    """A task of sharedtask."""
    run = task.with_options(workers=WORKERS)
    return Way(title, lambda value: run.map(items, **{name: value}), shutdown)


def forked_pool(initializer: Callable[[], Any] | None = None) -> Any:
    """Workers of multiprocessing: to be started before this program has any thread."""
    return multiprocessing.get_context("fork").Pool(WORKERS, initializer)
