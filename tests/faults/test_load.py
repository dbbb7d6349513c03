import asyncio
import ctypes
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import ClosedError, Shared, TaskTimeoutError, parallel, shutdown
from sharedtask.testing import count_up, counted, slowness


def use(x: int, table: Shared[Any]) -> float:
    return float(table[0] + table[-1]) + x


def inner(x: int) -> int:
    return x * x


squares = parallel(inner)


@parallel(backend="process")
def outer(depth: int) -> Any:
    if depth == 0:
        return os.getpid()
    return outer.map([depth - 1] * 2), squares.map(range(3)), squares.submit(4).result()


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from flat(part)
    else:
        yield value


def test_nested_maps_start_no_processes() -> None:
    """Maps inside tasks, three levels deep, run in the worker that the task runs in."""
    before = len(os.listdir("/proc"))
    results = outer.map([3] * 4)
    assert 4 == len(results)
    assert 50 > len(os.listdir("/proc")) - before
    pids = {value for value in flat(results) if value > 1000}
    assert 2 >= len(pids)


@pytest.mark.parametrize(
    "hold", ["sleep", "loop", "swallow", "hold the GIL", "regex", "ignore SIGTERM"]
)
def test_timeout_ends_whatever_hangs(hold: str) -> None:
    """A task that hangs, whatever it hangs in, is ended in time and leaves no zombie."""
    task = parallel(hang).with_options(
        backend="process", timeout=0.5, return_exceptions=True, chunksize=4
    )
    began = time.monotonic()
    results = task.map(range(8), bad=3, how=hold)
    assert 5 * slowness() > time.monotonic() - began
    error = results.pop(3)
    assert [0, 1, 2, 4, 5, 6, 7] == results
    assert isinstance(error, TaskTimeoutError)
    assert (3, 3, 0.5) == (error.index, error.item, error.timeout)
    assert not Path(f"/proc/{error.pid}").exists()


def hang(x: int, bad: int, how: str) -> Any:
    if x != bad:
        return x
    if how == "ignore SIGTERM":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if how in {"sleep", "ignore SIGTERM"}:
        time.sleep(100)
    if how == "hold the GIL":
        ctypes.PyDLL(None).sleep(100)
    if how == "regex":
        re.match(r"(a+)+$", "a" * 64 + "b")
    while True:
        try:
            while how == "loop":
                pass
            time.sleep(0.01)
        except BaseException:
            continue


def test_timeout_on_a_warm_idle_pool() -> None:
    """A time limit counts where no other event wakes anybody."""
    task = parallel(hang).with_options(backend="process", timeout=0.3)
    for _ in range(2):
        task.map([1, 2], bad=0, how="")
        time.sleep(0.6)  # everything is at rest
        began = time.monotonic()
        with pytest.raises(TaskTimeoutError):
            task.submit(0, bad=0, how="sleep").result(60)
        assert 3 * slowness() > time.monotonic() - began


def test_timeout_and_retries(tmp_path: Path) -> None:
    """A task that hangs the first time is run again where ``retries`` says so."""

    def hangs_once(x: int) -> int:
        if count_up(tmp_path, x) == 1 and x == 2:
            time.sleep(100)
        return x

    task = parallel(hangs_once).with_options(
        backend="process", timeout=0.4, retries=1, retry_on=TaskTimeoutError, chunksize=4
    )
    assert [0, 1, 2, 3] == task.map(range(4))
    assert {"0": 1, "1": 1, "2": 2, "3": 1} == counted(tmp_path)


def test_timeout_of_a_stopped_worker() -> None:
    """A worker that stopped itself is ended by the time limit too."""

    def stop(x: int) -> Any:
        if x == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        return x

    task = parallel(stop).with_options(
        backend="process", timeout=0.5, return_exceptions=True, chunksize=1
    )
    results = task.map(range(3))
    assert [0, 2] == [results[0], results[2]]
    assert isinstance(results[1], TaskTimeoutError)


def test_exact_item_is_timed_out(tmp_path: Path) -> None:
    """Items just within the limit are never killed for their neighbours' time."""

    def wait(x: int) -> Any:
        count_up(tmp_path, x)
        time.sleep(5.0 if x == 11 else 0.1)
        return x

    task = parallel(wait).with_options(
        backend="process", timeout=0.6, return_exceptions=True, chunksize=6
    )
    results = task.map(range(12))
    assert list(range(11)) == results[:11]
    assert isinstance(results[11], TaskTimeoutError)
    assert {str(x): 1 for x in range(12)} == counted(tmp_path)


def test_threads_futures_and_a_loop_on_one_pool() -> None:
    """Maps of several threads, futures and coroutines at once are right, each for itself."""
    tables = [np.full(300_000, float(k)) for k in range(4)]
    task = parallel(use).with_options(backend="process")

    def by_map(k: int) -> Any:
        return [task.map(range(20), table=tables[k]) for _ in range(5)]

    async def by_loop(k: int) -> Any:
        return list(
            await asyncio.gather(*(task.amap(range(20), table=tables[k]) for _ in range(5)))
        )

    def by_future(k: int) -> Any:
        return [
            [future.result(60) for future in [task.submit(x, table=tables[k]) for x in range(20)]]
            for _ in range(5)
        ]

    with ThreadPoolExecutor(6) as threads:
        found = [
            (k, threads.submit(how, k))
            for k in range(4)
            for how in (by_map, by_future, lambda k: asyncio.run(by_loop(k)))
        ]
        for k, future in found:
            assert [[2.0 * k + x for x in range(20)]] * 5 == future.result(60)


def resident() -> int:
    """Private memory of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.long
def test_hundreds_of_thousands_of_items_in_a_stream() -> None:
    """So many tiny items pass in order, in bounded memory, without new descriptors."""
    task = squares.with_options(backend="process")
    assert 3 == sum(1 for _ in task.imap(iter(range(3))))
    memory, files = resident(), len(os.listdir("/proc/self/fd"))
    for expected, result in enumerate(task.imap(iter(range(300_000)))):
        assert expected * expected == result
    assert 100_000_000 > resident() - memory
    assert files + 5 >= len(os.listdir("/proc/self/fd"))


def test_a_hundred_thousand_items_in_a_map() -> None:
    """So many tiny items give as many results in order; a million: ``test_bounds.py``."""
    task = squares.with_options(backend="process")
    assert [x * x for x in range(100_000)] == task.map(range(100_000))


GIB = 1 << 30


def need(gigabytes: int) -> None:
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    if found is None or int(found[1]) < gigabytes * 1_000_000:
        pytest.skip(f"needs {gigabytes} GB of free memory")


def marked(size: int) -> Any:
    data = np.zeros(size, np.uint8)
    data[[0, GIB, size // 2, size - 1]] = [1, 2, 3, 4]
    return data


def marks(data: Any) -> list[int]:
    return [int(data[k]) for k in (0, GIB, len(data) // 2, -1)] + [len(data)]


def shared_marks(_x: int, data: Shared[Any]) -> list[int]:
    return marks(data)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_large_shared_value() -> None:
    """A shared value of more than 4 GiB arrives whole."""
    size = 4 * GIB + 7
    need(12)
    task = parallel(shared_marks).with_options(backend="process")
    data = marked(size)
    assert [[1, 2, 3, 4, size]] * 2 == task.map(range(2), data=data)
    data[-1] = 9
    assert [[1, 2, 3, 9, size]] == task.map([0], data=data)


def test_source_that_raises_half_way() -> None:
    """The source's exception is raised at once, and what was running has an end."""

    def source() -> Iterator[float]:
        yield from [0.2] * 5
        raise LookupError

    began = time.monotonic()
    with pytest.raises(LookupError):
        parallel(nap).with_options(backend="process").map(source())
    assert 3 * slowness() > time.monotonic() - began


def nap(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_break_in_the_middle_frees_the_workers() -> None:
    """Leaving an endless stream stops tasks of a minute; the next map starts at once."""
    task = parallel(nap).with_options(backend="process", chunksize=1)
    for result in task.imap(itertools.chain([0.0], itertools.repeat(60.0))):
        assert result
        break
    began = time.monotonic()
    assert 4 == len(task.map([0.0] * 4))
    assert 8 * slowness() > time.monotonic() - began


def test_error_in_the_middle_frees_the_workers() -> None:
    """A map that ends by an error stops tasks that would take a minute."""

    def fail_or_nap(x: int) -> int:
        if x == 0:
            raise KeyError
        time.sleep(60)
        return x

    task = parallel(fail_or_nap).with_options(backend="process", chunksize=1)
    began = time.monotonic()
    with pytest.raises(KeyError):
        task.map(range(8))
    assert 4 == len(parallel(nap).with_options(backend="process").map([0.0] * 4))
    assert 8 * slowness() > time.monotonic() - began


@pytest.mark.parametrize("size", [10, 300_000])
def test_cancelled_results_are_freed(size: int) -> None:
    """Large results that no one takes, of a stream that was left, do not stay."""
    task = parallel(ones)
    for _ in range(10):
        stream = task.with_options(backend="process").imap(itertools.repeat(size))
        next(stream)
        stream.close()


def ones(size: int) -> Any:
    return np.ones(size)


def test_shutdown_while_a_map_runs() -> None:
    """``shutdown()`` of another thread ends a map with ClosedError; the next one starts again."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            parallel(nap).with_options(backend="process", chunksize=1).map([30.0] * 8)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.4)
    shutdown()
    thread.join(60)
    assert not thread.is_alive()
    assert [ClosedError] == [type(error) for error in errors]
