"""Calls of 16 threads at once: of maps, streams, submits, cancels, the cache and handles.

With a GIL a few rounds do; without one, where threads meet between any two instructions, many.
"""

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import as_completed, wait
from typing import Annotated, Any

import numpy as np
import pytest

from sharedtask import Executor, Partitioned, Reduced, Reduction, Shared, Task, parallel, share
from sharedtask.testing import until

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()
ROUNDS = int(os.environ.get("STRESS_ROUNDS", "2" if HAS_GIL else "30"))
THREADS = 16

pytestmark = pytest.mark.timeout(60 if HAS_GIL else 300)


@pytest.fixture(params=["thread", "process"])
def backend(request: pytest.FixtureRequest) -> Any:
    """Where tasks run without a GIL: threads, or processes where an option asks for them."""
    return request.param


def at_once(work: Callable[[int], object], threads: int = THREADS) -> None:
    """Run ``work(number)`` in that many threads, ``ROUNDS`` times; raises what one has raised."""
    begin, errors = threading.Barrier(threads), list[BaseException]()

    def run(number: int) -> None:
        try:
            begin.wait()
            for _ in range(ROUNDS):
                work(number)
        except BaseException as error:
            errors.append(error)

    numbers = [(number,) for number in range(threads)]
    running = [threading.Thread(target=run, args=args, daemon=True) for args in numbers]
    for each in running:
        each.start()
    until(lambda: not any(each.is_alive() for each in running) or bool(errors), 200)
    if errors:
        raise errors[0]


@parallel(workers=4)
def total(x: int, table: Shared[Any], scale: int = 1) -> float:
    """A number that tells which table it was."""
    return float(table[0]) * scale + x


def on(task: Any, backend: str) -> Any:
    """The task on a backend."""
    made: Task[..., Any] = task.with_options(backend=backend)
    return made


def test_maps_of_one_task_are_each_their_own(backend: Any) -> None:
    """Each thread has its own values and items, and gets its own results."""
    task, common = on(total, backend), np.full(20_000, 0.5)

    def work(number: int) -> None:
        own = np.full(20_000, float(number))
        assert [number * 2 + x for x in range(9)] == task.map(range(9), table=own, scale=2)
        assert [0.5 + x for x in range(5)] == task.map(range(5), table=common)
        assert [number + x for x in range(4)] == list(task.imap(range(4), table=own))

    at_once(work)


def test_a_cache_that_is_cleared_serves_all(backend: Any) -> None:
    """Values of the cache, hits, misses, and its clearing at any time: no result is another's."""
    task, tables = on(total, backend), [[float(k)] * 3 for k in range(5)]

    def work(number: int) -> None:
        for k, table in enumerate(tables):
            assert [k + 7.0] == task.map([7], table=table)
        if number % 5 == 0:
            task.cache_clear()
        info = task.cache_info()
        assert min(info.hits, info.misses, info.currsize, info.nbytes) >= 0

    at_once(work)


def test_streams_that_are_left_early_end(backend: Any) -> None:
    """Streams of many threads, read to the end or left in the middle."""
    task, table = on(total, backend), [1.0]

    def work(number: int) -> None:
        stream = task.imap_unordered(range(30), table=table)
        assert next(stream) >= 1.0
        if number % 2:
            stream.close()
        else:
            assert 29 == len(list(stream))

    at_once(work)


def test_submits_of_many_threads_have_their_own_results(backend: Any) -> None:
    """Each future has the result of its item; two threads may wait for the same one."""
    task, table = on(total, backend), [1.0]
    lent: list[Any] = [task.submit(5, table=table)]

    def work(number: int) -> None:
        futures = [task.submit(number * 100 + k, table=table) for k in range(6)]
        lent.append(futures[-1])
        assert lent[-2].result(60) >= 1.0
        assert [number * 100 + k + 1.0 for k in range(6)] == [each.result(60) for each in futures]

    at_once(work)


def test_futures_are_resolved_and_tell_once(backend: Any) -> None:
    """Futures that are cancelled, killed and awaited at once end, and call back once."""
    task, table, told = on(total, backend), [1.0], Counter[int]()
    lock = threading.Lock()

    def tell(future: Any) -> None:
        with lock:
            told[id(future)] += 1

    kept: list[Any] = []

    def work(number: int) -> None:
        futures = [task.submit(k, table=table) for k in range(6)]
        kept.extend(futures)
        for future in futures:
            future.add_done_callback(tell)
        futures[number % 6].cancel()
        if number % 8 == 0:
            futures[-1].kill()
        assert not wait(futures, timeout=60).not_done
        for k, future in enumerate(futures):
            assert future.cancelled() or k + 1.0 == future.result(0)
        assert 6 == len(list(as_completed(futures, timeout=60)))

    at_once(work)
    assert until(lambda: len(kept) == len(told))
    assert {1} == set(told.values())


def test_one_executor_serves_all(backend: Any) -> None:
    """Submits and maps of an executor that all threads have."""
    with Executor(max_workers=3, backend=backend) as executor:

        def work(number: int) -> None:
            futures = [executor.submit(pow, number, k) for k in range(4)]
            assert [number, number + 1] == list(executor.map(abs, [-number, -number - 1]))
            assert [number**k for k in range(4)] == [each.result(60) for each in futures]

        at_once(work)


def test_handles_are_shared_and_closed(backend: Any) -> None:
    """Handles that threads make and close, and one that all of them use."""
    task, rows = on(total, backend), np.arange(30_000.0) + 3
    with share(rows) as common:

        def work(number: int) -> None:
            with share([float(number)] * 3) as own:
                assert [number + 1.0] == task.map([1], table=own)
                assert [3.0, 4.0] == task.map(range(2), table=common)

        at_once(work)


@parallel(workers=4)
def count(x: int, cells: Partitioned[Any], sums: Annotated[Reduced[Any], Reduction("sum")]) -> None:
    """Writes in both manners."""
    cells += x
    sums += x


def test_what_tasks_write_is_whole(backend: Any) -> None:
    """Blocks and sums of calls at the same time: nothing is lost, nothing is counted twice."""
    task = on(count, backend)

    def work(number: int) -> None:
        cells, sums = np.full(12, float(number)), np.zeros(2)
        task.map(range(12), cells=cells, sums=sums)
        assert [number + k for k in range(12)] == cells.tolist()
        assert [66.0, 66.0] == sums.tolist()

    at_once(work, threads=6)
