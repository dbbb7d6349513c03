import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from light import MB, SlowToLoad, add_up, entered, gorge, hoard, wait_or_die, who

from sharedtask import (
    CopyOnWrite,
    MemoryLimitError,
    Reduction,
    Shared,
    TaskTimeoutError,
    WorkerDiedError,
    array,
    parallel,
    shutdown,
)
from sharedtask.testing import until

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("common_check")]


def on_processes(function: Callable[..., Any], **options: Any) -> Any:
    return parallel(function).with_options(**{"backend": "process", **options})


@pytest.mark.parametrize("chunksize", ["auto", 1, 40])
def test_worker_that_leaks_is_replaced_between_items(chunksize: Any, tmp_path: Path) -> None:
    """Who has passed the limit begins no other item; each item is run once, by some worker."""
    task = on_processes(hoard, memory_limit="150MB", chunksize=chunksize)
    results = task.map(range(40), folder=str(tmp_path), size=20)
    pids = {pid for pid, _ in results}
    assert 40 * 20 / 150 <= len(pids) <= 12
    assert 150 * MB >= max(before for _, before in results)
    assert dict.fromkeys(range(40), 1) == entered(tmp_path)


def test_leak_that_is_seen_while_an_item_runs_is_not_its_fault(tmp_path: Path) -> None:
    """An item that passes the limit because of what others left behind finishes its work."""
    task = on_processes(hoard, memory_limit=150 * MB, chunksize=10)
    results = task.map(range(10), folder=str(tmp_path), size=50, seconds=0.2)
    assert 4 <= len({pid for pid, _ in results})
    assert dict.fromkeys(range(10), 1) == entered(tmp_path)


def test_replaced_worker_is_gone_at_the_end(tmp_path: Path) -> None:
    """A worker that has passed the limit with its last item does not stay as an idle one."""
    shutdown()  # what earlier tests have left in workers
    task = on_processes(hoard, memory_limit="100MB", workers=1)
    (pid, _), last = task.map([0, 1], folder=str(tmp_path), size=60)
    assert pid == last[0]
    wait_until_gone(pid)


def test_worker_filled_by_another_call_is_replaced(tmp_path: Path) -> None:
    """A limit holds for what earlier calls have left behind: a fresh worker runs the items."""
    hoarding = on_processes(hoard, workers=1, chunksize=1)
    ((old, _),) = hoarding.map([0], folder=str(tmp_path), size=200)
    limited = hoarding.with_options(memory_limit="100MB")
    results = [limited.submit(1, folder=str(tmp_path), size=1).result(60)]
    results += limited.map([2, 3], folder=str(tmp_path), size=1)
    assert old not in {pid for pid, _ in results}
    assert dict.fromkeys(range(4), 1) == entered(tmp_path)


@pytest.mark.parametrize("chunksize", [1, 6, 12])
def test_item_that_is_too_large_is_named(chunksize: int, tmp_path: Path) -> None:
    """An item that needs more than the limit is ended and named; all other results arrive."""
    task = on_processes(gorge, memory_limit="200MB", chunksize=chunksize, return_exceptions=True)
    results = task.map(range(12), folder=str(tmp_path), bad=[7])
    error = results.pop(7)
    assert [x for x in range(12) if x != 7] == results
    assert isinstance(error, MemoryLimitError)
    assert (7, 7, signal.SIGKILL, 200 * MB) == (error.index, error.item, error.signal, error.limit)
    assert 100 * MB > error.before > 5 * MB
    assert 200 * MB < error.reached < 500 * MB
    assert dict.fromkeys(range(12), 1) == entered(tmp_path)
    assert f"gorge(), item 7, was ended with worker {error.pid}" in str(error)
    assert "memory_limit is 200.0 MB" in str(error)
    assert not Path(f"/proc/{error.pid}").exists()


def test_item_that_is_too_large_is_raised(tmp_path: Path) -> None:
    """Without ``return_exceptions`` it ends the call, as a worker's death and as MemoryError."""
    task = on_processes(gorge, memory_limit="200MB")
    with pytest.raises(WorkerDiedError) as caught:
        task.map(range(20), folder=str(tmp_path), bad=[3])
    assert isinstance(caught.value, MemoryError)
    assert 3 == caught.value.index
    assert {1} == set(entered(tmp_path).values())


def test_submitted_item_that_is_too_large(tmp_path: Path) -> None:
    """The future of an item that is too large has the error; others on the pool have results."""
    task = on_processes(gorge, memory_limit="200MB")
    futures = [task.submit(x, folder=str(tmp_path), bad=[1]) for x in range(3)]
    assert isinstance(futures[1].exception(60), MemoryLimitError)
    assert [0, 2] == [futures[0].result(60), futures[2].result(60)]


def test_retries_of_an_item_that_is_too_large(tmp_path: Path) -> None:
    """With ``retries`` it is tried in other workers, and no other item is run again."""
    task = on_processes(gorge, memory_limit="200MB", retries=2, return_exceptions=True)
    results = task.map(range(8), folder=str(tmp_path), bad=[5])
    assert isinstance(results[5], MemoryLimitError)
    assert {**dict.fromkeys(range(8), 1), 5: 3} == entered(tmp_path)


@pytest.mark.parametrize("retries", [0, 1])
def test_limit_below_a_fresh_worker(retries: int, tmp_path: Path) -> None:
    """A limit that no worker can hold is an error of the items, none of which is begun."""
    task = on_processes(hoard, memory_limit="1MB", retries=retries)
    text = r"was not begun: a fresh worker has \d+\.\d MB .* memory_limit is 1\.0 MB"
    with pytest.raises(MemoryLimitError, match=text) as one:
        task.map(range(9), folder=str(tmp_path), size=1)
    assert 0 == one.value.index
    told = task.with_options(return_exceptions=True).map(range(9), folder=str(tmp_path), size=1)
    assert list(range(9)) == [error.index for error in told]
    assert isinstance(task.submit(0, folder=str(tmp_path), size=1).exception(60), MemoryLimitError)
    assert not entered(tmp_path)


def total(_x: int, table: Shared[Any], scratch: CopyOnWrite[Any] = None) -> float:
    if scratch is not None:
        scratch[0] = 1
    time.sleep(0.06)
    return float(table.sum())


def test_shared_memory_does_not_count() -> None:
    """What lies in shared memory is no one's own, whichever process reads it."""
    task = on_processes(total, memory_limit="200MB", return_exceptions=True)
    table = np.ones(300 * MB // 8)
    assert [float(table.size)] * 6 == task.map(range(6), table=table)
    assert [float(table.size)] * 6 == task.map(range(6), table=array(table))
    assert [float(table.size)] * 6 == task.map(range(6), table=table, scratch=table)


@pytest.mark.parametrize("options", [{"memory_limit": "60MB"}, {"tasks_per_worker": 3}])
@pytest.mark.parametrize("how", ["plain", "itemwise", "deterministic"])
def test_totals_of_replaced_workers(options: Any, how: str, tmp_path: Path) -> None:
    """What a worker has added counts once, also where another takes its place."""
    rule = Reduction("sum", deterministic=how == "deterministic")
    task: Any = parallel(reduced={"tally": rule})(add_up)
    task = task.with_options(backend="process", return_exceptions=how == "itemwise")
    alone, tally = np.zeros(3), np.zeros(3)
    task.map(range(30), tally=alone, folder=str(tmp_path))
    pids = task.with_options(**options).map(range(30), tally=tally, folder=str(tmp_path))
    assert 3 < len(set(pids))
    assert np.allclose(alone, tally)
    if how == "deterministic":
        assert alone.tolist() == tally.tolist()
    assert dict.fromkeys(range(30), 2) == entered(tmp_path)


def test_worker_that_does_not_leave_is_killed() -> None:
    """A worker that is to be replaced and cannot end by itself, for whatever reason, is ended."""
    shutdown()
    plain = on_processes(who, workers=1)
    (old,) = plain.map([0])
    os.kill(old, signal.SIGSTOP)
    (new,) = plain.with_options(tasks_per_worker=1).map([0])
    assert old != new
    wait_until_gone(old)


def wait_until_gone(pid: int) -> None:
    until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("lifespan", [1, 3, 7])
@pytest.mark.parametrize("chunksize", ["auto", 5, 50])
def test_worker_is_replaced_after_so_many_items(
    lifespan: int, chunksize: Any, tmp_path: Path
) -> None:
    """No worker runs more items than it may, nearly all run as many, and each item runs once."""
    task = on_processes(who, tasks_per_worker=lifespan, chunksize=chunksize)
    ran = Counter(task.map(range(50), folder=str(tmp_path)))
    assert lifespan >= max(ran.values())
    assert dict.fromkeys(range(50), 1) == entered(tmp_path)
    # Workers of earlier tests had fewer left, and at the end there are two.
    assert sum(count < lifespan for count in ran.values()) <= 4


def test_items_count_from_call_to_call() -> None:
    """What a worker has run counts over calls, also those without the option."""
    shutdown()  # two workers of earlier tests would take turns
    plain = on_processes(who, workers=1)
    pids = plain.map(range(20))
    limited = plain.with_options(tasks_per_worker=4)
    pids += [pid for _ in range(6) for pid in limited.map(range(2))]
    pids += [limited.submit(1).result(60) for _ in range(4)]
    assert {20: 1, 4: 4} == Counter(Counter(pids).values())


WAYS: dict[str, Callable[[Any, str], Any]] = {
    "imap": lambda task, folder: list(task.imap(iter(range(30)), folder=folder)),
    "imap_unordered": lambda task, folder: list(task.imap_unordered(range(30), folder=folder)),
    "starmap": lambda task, folder: task.starmap(((x,) for x in range(30)), folder=folder),
    "amap": lambda task, folder: asyncio.run(task.amap(range(30), folder=folder)),
    "submit": lambda task, folder: [
        future.result(60) for future in [task.submit(x, folder=folder) for x in range(30)]
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_workers_are_replaced_in_every_way_to_map(way: str, tmp_path: Path) -> None:
    """Streams, coroutines and futures replace their workers as a map does."""
    ran = Counter(WAYS[way](on_processes(who, tasks_per_worker=4), str(tmp_path)))
    assert 4 >= max(ran.values())
    assert 30 == sum(ran.values())
    assert dict.fromkeys(range(30), 1) == entered(tmp_path)


def test_limits_beside_calls_without(tmp_path: Path) -> None:
    """Threads that share the pool, some with limits: every item runs once."""
    (tmp_path / "plain").mkdir()
    (tmp_path / "limited").mkdir()

    def run(name: str, options: Any) -> None:
        task = on_processes(who, **options)
        for _ in range(5):
            assert 40 == len(task.map(range(40), folder=str(tmp_path / name)))

    limits = {"tasks_per_worker": 3, "memory_limit": "500MB"}
    threads = [
        threading.Thread(target=run, args=args)
        for args in (("plain", {}), ("limited", limits), ("plain", {"workers": 1}))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict.fromkeys(range(40), 10) == entered(tmp_path / "plain")
    assert dict.fromkeys(range(40), 5) == entered(tmp_path / "limited")


def test_limits_beside_deaths_and_timeouts(tmp_path: Path) -> None:
    """With limits a killed worker and one that hangs are errors of their items as without."""
    task = on_processes(
        wait_or_die,
        tasks_per_worker=4,
        memory_limit="500MB",
        timeout=0.5,
        return_exceptions=True,
        chunksize=8,
    )
    results = task.map(range(20), folder=str(tmp_path))
    assert isinstance(results[11], TaskTimeoutError)
    assert type(results[5]) is WorkerDiedError
    assert [x for x in range(20) if x not in (5, 11)] == [r for r in results if isinstance(r, int)]
    assert dict.fromkeys(range(20), 1) == entered(tmp_path)


def test_time_limit_does_not_count_what_was_before() -> None:
    """An item that is slow to unpickle is not blamed for the time since the item before it."""
    task = on_processes(lambda _: 1, timeout=1.0, workers=1)
    assert [1] == task.map([0])
    time.sleep(1.2)
    assert [1] == task.map([SlowToLoad()])
