"""Submits of one task that share a session: what waits, travels together, is taken back, dies."""

import asyncio
import concurrent.futures
import gc
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from processes import slowness

import sharedtask
from sharedtask import ClosedError, TaskTimeoutError, WorkerDiedError, parallel
from sharedtask.backends import registry
from sharedtask.backends.base import Chunk
from sharedtask.backends.process import backend as process
from sharedtask.system import background
from sharedtask.task.queued_submit import QueueSink
from sharedtask.testing import count_up, counted, until

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """The items of each chunk that is sent."""
    found: list[list[Any]] = []
    submit = process._ProcessSession.submit

    def noted(self: Any, chunk: Chunk) -> None:
        found.append(list(chunk.items))
        submit(self, chunk)

    monkeypatch.setattr(process._ProcessSession, "submit", noted)
    return found


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch, sent: list[list[Any]]) -> list[list[Any]]:
    """All items count as quick, so that all that wait are sent together."""
    monkeypatch.setattr("sharedtask.task.gathering.QUICK_SECONDS", 1e9)
    monkeypatch.setattr("sharedtask.task.gathering.CHUNK_SECONDS", 1e9)
    monkeypatch.setattr("sharedtask.task.gathering.WORTH_SECONDS", 1e9)
    return sent


# ------------------------------------------------------------------------ tasks and helpers


def stay(name: str, folder: str, how: str = "") -> str:
    """Runs until there is a file for it, then ends in this way."""
    count_up(folder, f"{name} began")
    Path(folder, name).touch()
    while not Path(folder, f"{name} may end").exists():
        time.sleep(0.002)
    if how == f"{name} raises":
        raise KeyError(name)
    if how == f"{name} dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def square(x: int) -> int:
    return x * x


def staying(folder: Path, names: str, how: str = "", **options: Any) -> list[Any]:
    """Futures of items that were sent in one chunk, of which the first one runs.

    They waited for another item, whose future is the last of the list.
    """
    task = parallel(stay).with_options(backend="process", workers=1, **options)
    before = task.submit("before", str(folder), how)
    until((folder / "before").exists)
    futures = [task.submit(name, str(folder), how) for name in names]
    end(folder, "before")
    assert "before" == before.result(60)
    until((folder / names[0]).exists)
    return futures


def end(folder: Path, *names: str) -> None:
    for name in names:
        (folder / f"{name} may end").touch()


def began(folder: Path) -> dict[str, int]:
    return {k.removesuffix(" began"): n for k, n in counted(folder).items() if k != "before began"}


# --------------------------------------------------------------------------------- together


def test_quick_items_travel_together(sent: list[list[Any]]) -> None:
    """Items that come while others run are sent together, and each future has its own result."""
    task = parallel(square).with_options(backend="process", workers=1)
    futures = [task.submit(k) for k in range(2000)]
    assert [k * k for k in range(2000)] == [each.result(60) for each in futures]
    assert list(range(2000)) == sorted(item for items in sent for item in items)
    assert len(sent) < 1000


def test_items_that_gather_need_no_thread_that_waits(
    together: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some milliseconds after the last submit what has gathered is sent, also with nothing else."""
    monkeypatch.setattr("sharedtask.task.gathering.GATHER_SECONDS", 1e9)
    task = parallel(square).with_options(backend="process", workers=2)
    assert [0, 1] == [task.submit(k).result() for k in range(2)]
    before = len(together)
    futures = [task.submit(k) for k in range(40)]
    done, _ = concurrent.futures.wait(futures, timeout=40)
    assert set(futures) == done
    assert [k * k for k in range(40)] == [future.result() for future in futures]
    assert list(range(40)) == [item for chunk in together[before:] for item in chunk]


@pytest.mark.usefixtures("together")
def test_queue_that_is_closed_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue that is closed with its last outcome asks for no later look, and the pool lives."""
    monkeypatch.setattr("sharedtask.task.gathering.GATHER_SECONDS", 1e9)
    heavy = "x" * (1 << 17)  # its session does not stay open
    task = parallel(lambda x: x + len(heavy)).with_options(backend="process", workers=2)
    backend: Any = registry.get("process")
    pool = backend.pool
    for k in range(3):
        future = task.submit(k)
        assert {future} == concurrent.futures.wait([future], timeout=40).done
        assert k + len(heavy) == future.result()
    assert pool is backend.pool


def test_shutdown_ends_what_gathers(
    together: list[list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items that were not sent yet when the pool ends have its error, and nothing waits."""
    monkeypatch.setattr("sharedtask.task.gathering.GATHER_SECONDS", 1e9)
    monkeypatch.setattr("sharedtask.backends.process.due._SOON_SECONDS", 1e9)
    task = parallel(stay).with_options(backend="process", workers=2)
    end(tmp_path, "before")
    assert "before" == task.submit("before", str(tmp_path)).result(60)
    futures = [task.submit(name, str(tmp_path)) for name in "abcd"]
    until((tmp_path / "a").exists)
    assert [["before"], ["a"]] == together  # the first is sent at once
    sharedtask.shutdown()
    assert set(futures) == concurrent.futures.wait(futures, timeout=10).done
    assert [ClosedError] * 3 == [type(future.exception()) for future in futures[1:]]


def test_awaits_of_items_that_travel_together_wake_the_loop_once(
    together: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asyncio's callbacks of one batch run in one background thread, one after the other."""
    put, batches = background.put, []

    def noted(work: Callable[[], object]) -> None:
        batches.append(work)
        put(work)

    async def main() -> list[int]:
        futures = [task.submit(k) for k in range(200)]
        return await asyncio.gather(*map(asyncio.wrap_future, futures))

    task = parallel(square).with_options(backend="process", workers=1)
    assert 4 == task.submit(2).result(60)
    monkeypatch.setattr(background, "put", noted)
    assert [k * k for k in range(200)] == asyncio.run(main())
    assert len(batches) <= len(together) < 150


def test_slow_items_travel_one_by_one(sent: list[list[Any]], tmp_path: Path) -> None:
    """No item that takes long waits in a worker behind another one that does."""
    task = parallel(stay).with_options(backend="process", workers=1)
    first = task.submit("a", str(tmp_path))
    until((tmp_path / "a").exists)
    time.sleep(0.05)
    end(tmp_path, *"abcdef")
    assert "a" == first.result(60)
    assert list("bcdef") == [task.submit(name, str(tmp_path)).result(60) for name in "bcdef"]
    assert all(1 == len(items) for items in sent)


def test_each_keeps_its_type_and_value(together: list[list[Any]], tmp_path: Path) -> None:
    """Items and arguments that are equal, but of another type or sign, are not confused."""
    values: list[Any] = [1, True, 1.0, -0.0, 0.0, 0, False, None, "", b"", 1j, "x" * 2_000_000]
    task = parallel(lambda x, y: (repr(x)[:9], repr(y)[:9])).with_options(backend="process")
    futures = [task.submit(x, y) for x in values for y in values]
    wanted = [(repr(x)[:9], repr(y)[:9]) for x in values for y in values]
    assert wanted == [each.result(60) for each in futures]


# ------------------------------------------------------------------------------- never stale


def seen(_item: int, name: str = "") -> tuple[Any, ...]:
    return os.environ.get("SEEN"), os.path.basename(os.getcwd()), name


def test_each_submit_is_as_its_caller_was(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, folder and arguments are those at the time of ``submit``, also of what waits."""
    if backend == "ray":
        pytest.skip("a worker of Ray has its folder from its node")
    if backend in ("serial", "thread"):
        pytest.skip("it is the caller's process")
    busy = parallel(stay).with_options(backend=backend, workers=1).submit("busy", str(tmp_path))
    until((tmp_path / "busy").exists)
    task = parallel(seen).with_options(backend=backend, workers=1)
    futures, wanted = [], []
    for k in range(30):
        folder = tmp_path / f"f{k // 2}"
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SEEN", str(k // 3))
        futures.append(task.submit(k, str(k // 5)))
        wanted.append((str(k // 3), folder.name, str(k // 5)))
    end(tmp_path, "busy")
    assert wanted == [each.result(60) for each in futures]
    assert "busy" == busy.result(60)


def test_function_that_changes_between_submits(backend: Any) -> None:
    """What a function reads is that of the time of ``submit``."""
    if backend == "thread":
        pytest.skip("threads share the caller's cells")
    step = 0

    def plus(x: int) -> int:
        return x + step

    task = parallel(plus).with_options(backend=backend, workers=1)
    futures = []
    for k in range(40):
        step = 1000 * (k // 4)
        futures.append(task.submit(k))
    assert [k + 1000 * (k // 4) for k in range(40)] == [each.result(60) for each in futures]


def leave_traces(step: int) -> tuple[Any, ...]:
    """What it finds of the settings, which it then changes."""
    found = os.environ.get("TRACE"), os.path.basename(os.getcwd()), sys.getrecursionlimit()
    os.environ["TRACE"] = str(step)
    os.chdir("/")
    sys.setrecursionlimit(5000 + step)
    return found


def test_each_submit_begins_as_a_call_does(together: list[list[Any]], tmp_path: Path) -> None:
    """What an item changes of its worker's settings is restored before the next one."""
    task = parallel(leave_traces).with_options(backend="process", workers=1)
    futures = [task.submit(k) for k in range(30)]
    wanted = (None, Path.cwd().name, sys.getrecursionlimit())
    assert {wanted} == {each.result(60) for each in futures}
    assert len(together) < 30


# ------------------------------------------------------------------------------- taken back


def test_cancel_of_what_waits_in_a_worker(together: list[list[Any]], tmp_path: Path) -> None:
    """An item that has not begun is cancelled, though a worker has it; the others are run once."""
    a, b, c, d = staying(tmp_path, "abcd")
    assert ["before", *"abcd"] == [item for items in together for item in items]
    assert (False, True) == (a.cancel(), c.cancel())
    end(tmp_path, *"abcd")
    assert ["a", "b", "d"] == [each.result(60) for each in (a, b, d)]
    assert c.cancelled()
    assert {"a": 1, "b": 1, "d": 1} == began(tmp_path)


def test_kill_of_what_waits_in_a_worker(together: list[list[Any]], tmp_path: Path) -> None:
    """It is never run, and what runs before it in that worker is not touched."""
    a, b, c = staying(tmp_path, "abc")
    assert b.kill()
    end(tmp_path, *"abc")
    assert ["a", "c"] == [each.result(60) for each in (a, c)]
    with pytest.raises(CancelledError):
        b.result(0)
    assert {"a": 1, "c": 1} == began(tmp_path)


def test_kill_of_what_runs_with_others_behind_it(together: list[list[Any]], tmp_path: Path) -> None:
    """Its worker ends, and the items behind it are run once, elsewhere."""
    a, b, c = staying(tmp_path, "abc")
    assert a.kill()
    assert a.cancelled()
    end(tmp_path, *"abc")
    assert ["b", "c"] == [each.result(60) for each in (b, c)]
    assert {"a": 1, "b": 1, "c": 1} == began(tmp_path)


@pytest.mark.parametrize(
    ("how", "error"), [("a raises", KeyError), ("a dies", WorkerDiedError)], ids=["error", "death"]
)
def test_failure_is_of_its_own_item(
    together: list[list[Any]], how: str, error: type[Exception], tmp_path: Path
) -> None:
    """An item that fails, or ends its worker, fails alone; the others are run once."""
    a, b, c = staying(tmp_path, "abc", how)
    end(tmp_path, *"abc")
    assert isinstance(a.exception(60), error)
    assert ["b", "c"] == [each.result(60) for each in (b, c)]
    assert {"a": 1, "b": 1, "c": 1} == began(tmp_path)


def test_failed_item_is_tried_again(together: list[list[Any]], tmp_path: Path) -> None:
    """``retries`` counts for each item, and only what failed is run again."""
    a, b, c = staying(tmp_path, "abc", "b raises", retries=2)
    end(tmp_path, *"abc")
    assert isinstance(b.exception(60), KeyError)
    assert ["a", "c"] == [each.result(60) for each in (a, c)]
    assert {"a": 1, "b": 3, "c": 1} == began(tmp_path)


def test_timeout_is_of_its_own_item(together: list[list[Any]], tmp_path: Path) -> None:
    """The time of an item begins when it begins, not with those that travel with it."""
    a, b, c = staying(tmp_path, "abc", timeout=1.0 * slowness())
    end(tmp_path, *"bc")
    assert isinstance(a.exception(60), TaskTimeoutError)
    assert ["b", "c"] == [each.result(60) for each in (b, c)]


def test_shutdown_ends_what_waits(together: list[list[Any]], tmp_path: Path) -> None:
    """All that was sent, or waits, is done, and the next submit runs in a new pool."""
    futures = staying(tmp_path, "abc")
    task = parallel(square).with_options(backend="process", workers=1)
    futures += [task.submit(k) for k in range(20)]
    sharedtask.shutdown()
    assert set(futures) == concurrent.futures.wait(futures, 60).done
    assert all(isinstance(each.exception(0), ClosedError) for each in futures)
    assert 9 == task.submit(3).result(60)


def test_dropped_futures_and_tasks_leave_nothing() -> None:
    """Futures that are dropped are run, and a task that is dropped is freed with its queue."""
    task = parallel(square).with_options(backend="process", workers=2)
    for k in range(50):
        task.submit(k)
    assert 2500 == task.submit(50).result(60)
    submits: Any = task._submits()
    queue = weakref.ref(submits._last.queue)
    gc.disable()
    try:
        del task, submits
        until(lambda: queue() is None)
    finally:
        gc.enable()


def nap(item: int, folder: str) -> int:
    count_up(folder, str(item))
    time.sleep(0.001 * (item % 4))
    return item


@pytest.mark.timeout(150)
def test_kill_at_any_moment_runs_nothing_twice(together: list[list[Any]], tmp_path: Path) -> None:
    """Items that are killed or cancelled are run once at most, and each other one is run once."""
    task = parallel(nap).with_options(backend="process", workers=2)
    random_, futures = random.Random(3), []
    ended: list[int] = []
    for k in range(200):
        futures.append(task.submit(k, str(tmp_path)))
        if not k % 5:
            victim = random_.randrange(len(futures))
            end_it = random_.choice([futures[victim].kill, futures[victim].cancel])
            ended += [victim] * end_it()
    for k, future in enumerate(futures):
        if k in ended:
            assert future.cancelled()
        else:
            assert k == future.result(60)
    runs = counted(tmp_path)
    assert all(1 == runs[str(k)] for k in range(200) if k not in ended)
    assert all(1 >= runs.get(str(k), 0) for k in ended)


def test_killed_item_that_ends_late_holds_up_no_other(
    together: list[list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue does not rest while a chunk is in flight: it would never learn of its end."""
    monkeypatch.setattr(
        "sharedtask.task.submit_queue._KILL_SECONDS", 0.0
    )  # as on a very busy machine
    task = parallel(stay).with_options(backend="process", workers=2)
    killed = task.submit("killed", str(tmp_path))
    until((tmp_path / "killed").exists)
    ended: list[Any] = []
    report = QueueSink.report

    def noted(*given: Any) -> None:
        report(*given)
        ended.append(given)

    monkeypatch.setattr(QueueSink, "report", noted)
    assert killed.kill()
    until(lambda: ended)
    for k in range(5):
        (tmp_path / f"{k} may end").touch()
        assert str(k) == task.submit(str(k), str(tmp_path)).result(60)


def test_threads_submit_together(together: list[list[Any]]) -> None:
    """Threads may submit to one queue, wait for each other's futures, and get each its own."""
    task = parallel(square).with_options(backend="process", workers=2)
    found: dict[int, list[int]] = {}

    def submit(number: int) -> None:
        futures = [task.submit(1000 * number + k) for k in range(100)]
        found[number] = [each.result(60) for each in futures]

    threads = [threading.Thread(target=submit, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(80)
    assert {n: [(1000 * n + k) ** 2 for k in range(100)] for n in range(4)} == found
