import ctypes
import faulthandler
import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import with_long

from sharedtask import Shared, WorkerDiedError, parallel
from sharedtask.testing import count_up, counted, until

WAYS: dict[str, tuple[int | None, int | None]] = {
    # how it dies: signal, exit code
    "SIGKILL": (signal.SIGKILL, None),
    "SIGSEGV": (signal.SIGSEGV, None),
    "SIGABRT": (signal.SIGABRT, None),
    "SIGTERM": (signal.SIGTERM, None),
    "os._exit(0)": (None, 0),
    "os._exit(3)": (None, 3),
    "exit() of C": (None, 4),
}


def die(how: str) -> None:
    if how == "SIGSEGV":
        faulthandler.disable()
        ctypes.string_at(0)
    elif how == "os._exit(0)":
        os._exit(0)
    elif how == "os._exit(3)":
        os._exit(3)
    elif how == "exit() of C":
        ctypes.CDLL(None).exit(4)
    else:
        os.kill(os.getpid(), getattr(signal, how))
    time.sleep(10)


@parallel(backend="process", return_exceptions=True)
def risky(x: int, bad: Any, how: str, folder: str, size: int = 0) -> Any:
    count_up(folder, x)
    if x in bad:
        die(how)
    return np.full(size, x) if size else x


def same(expected: Any, actual: Any) -> bool:
    return bool(np.array_equal(expected, actual))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("chunksize", with_long([1, 4], 1))
def test_dead_worker_is_an_error_of_its_item(how: str, chunksize: Any, tmp_path: Path) -> None:
    """However a worker dies, its error names item, pid and cause; every other result arrives."""
    task = risky.with_options(chunksize=chunksize)
    results = task.map(range(12), bad=[5], how=how, folder=str(tmp_path))
    error = results.pop(5)
    assert [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11] == results
    assert isinstance(error, WorkerDiedError)
    assert (5, 5, *WAYS[how]) == (error.index, error.item, error.signal, error.exitcode)
    assert error.pid is not None
    assert f"worker {error.pid}" in str(error)
    assert "risky(), item 5" in str(error)
    assert {str(x): 1 for x in range(12)} == counted(tmp_path)


@pytest.mark.parametrize("how", ["SIGKILL", "os._exit(0)"])
@pytest.mark.parametrize("at", [0, 25, 49])
@pytest.mark.parametrize("size", with_long([0, 3_000, 200_000], 3_000))
def test_no_item_of_a_chunk_is_lost_or_entered_twice(
    how: str, at: int, size: int, tmp_path: Path
) -> None:
    """A death inside a chunk of 50 takes one result along; no item's body is entered twice."""
    task = risky.with_options(chunksize=50)
    results = task.map(range(50), bad=[at], how=how, folder=str(tmp_path), size=size)
    wanted = [np.full(size, x) if size else x for x in range(50)]
    assert [at] == [k for k in range(50) if not same(wanted[k], results[k])]
    assert isinstance(results[at], WorkerDiedError)
    assert at == results[at].index
    assert {str(x): 1 for x in range(50)} == counted(tmp_path)


def test_many_deaths_in_one_map(tmp_path: Path) -> None:
    """Every third item kills its worker: each names itself, all others arrive, none runs twice."""
    bad = range(0, 30, 3)
    task = risky.with_options(chunksize=10)
    results = task.map(range(30), bad=bad, how="SIGKILL", folder=str(tmp_path))
    assert list(bad) == [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert [x for x in range(30) if x % 3] == [r for r in results if isinstance(r, int)]
    assert {str(x): 1 for x in range(30)} == counted(tmp_path)


def test_death_is_raised(tmp_path: Path) -> None:
    """Without ``return_exceptions`` the death ends the map, and no item has been entered twice."""
    task = risky.with_options(return_exceptions=False, chunksize=5)
    with pytest.raises(WorkerDiedError) as caught:
        task.map(range(100), bad=[17], how="SIGKILL", folder=str(tmp_path))
    assert 17 == caught.value.index
    # The items that ran beside it are given up and may not have come as far as their count.
    assert 1 == max(counted(tmp_path).values())


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_death_in_a_stream(method: str, tmp_path: Path) -> None:
    """A stream gives every other result and goes on."""
    stream = getattr(risky, method)(range(20), bad=[7], how="SIGKILL", folder=str(tmp_path))
    results = list(stream)
    assert 20 == len(results)
    assert [x for x in range(20) if x != 7] == sorted(r for r in results if isinstance(r, int))
    assert {str(x): 1 for x in range(20)} == counted(tmp_path)


def test_death_of_a_submitted_item(tmp_path: Path) -> None:
    """The future of an item whose worker died holds WorkerDiedError; its neighbours are done."""
    task = risky.with_options(return_exceptions=False)
    kwargs: Any = {"bad": [3], "how": "SIGKILL", "folder": str(tmp_path)}
    futures = [task.submit(x, **kwargs) for x in range(8)]
    assert isinstance(futures[3].exception(60), WorkerDiedError)
    assert [0, 1, 2, 4, 5, 6, 7] == [f.result(60) for k, f in enumerate(futures) if k != 3]
    assert {str(x): 1 for x in range(8)} == counted(tmp_path)


@pytest.mark.parametrize("chunksize", [1, 6])
def test_retries_after_a_death(chunksize: int, tmp_path: Path) -> None:
    """``retries`` runs the item whose worker died again, and no other."""

    def dies_once(x: int) -> int:
        if count_up(tmp_path, x) == 1 and x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    task = parallel(dies_once).with_options(retries=1, chunksize=chunksize, backend="process")
    assert list(range(6)) == task.map(range(6))
    assert {**{str(x): 1 for x in range(6)}, "3": 2} == counted(tmp_path)


def test_segmentation_fault_is_named(tmp_path: Path) -> None:
    """The error of a segmentation fault says so, and nothing of memory that is not shared."""
    error = risky.map([1], bad=[1], how="SIGSEGV", folder=str(tmp_path))[0]
    assert "SIGSEGV" in str(error)
    assert "read-only" not in f"{error} {getattr(error, '__notes__', '')}"


def test_segmentation_fault_shows_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Where the crash happened is told: faulthandler's text reaches stderr or the error."""
    task = parallel(lambda x: ctypes.string_at(0)).with_options(
        backend="process", return_exceptions=True
    )
    error: Any = task.map([1])[0]
    assert isinstance(error, WorkerDiedError)
    told = capfd.readouterr().err + "".join(getattr(error, "__notes__", [])) + str(error.__cause__)
    assert "Segmentation fault" in told


def overwrite(_x: int, table: Shared[Any]) -> Any:
    if _x == 1:
        ctypes.memset(table.ctypes.data, 0, table.nbytes)
    return float(table.sum())


@pytest.mark.parametrize("size", [10, 400_000])
def test_native_write_into_a_shared_array(size: int) -> None:
    """Native code that writes through the pointer dies; no other's data is harmed."""
    table = np.ones(size)
    task = parallel(overwrite).with_options(backend="process", return_exceptions=True, chunksize=1)
    results = task.map(range(4), table=table)
    assert [float(size)] * 3 == [results[0], *results[2:]]
    assert isinstance(results[1], WorkerDiedError)
    assert signal.SIGSEGV == results[1].signal
    assert "'table' is read-only" in results[1].__notes__[-1]
    assert float(size) == table.sum()


def draw_into(x: int, table: Shared[Any]) -> float:
    if x == 1:
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.from_numpy(table).add_(1)
    return float(table.sum())


def test_write_through_another_library_into_a_small_array() -> None:
    """So does a tensor over a small shared array."""
    pytest.importorskip("torch")
    table = np.ones(10)
    task = parallel(draw_into).with_options(backend="process", return_exceptions=True, chunksize=1)
    results = task.map(range(3), table=table)
    error: Any = results.pop(1)
    assert [10.0] * 2 == results
    assert isinstance(error, WorkerDiedError)


def pid_after(seconds: float) -> Any:
    time.sleep(seconds)
    return os.getpid()


pids = parallel(pid_after).with_options(backend="process", chunksize=1)


def workers() -> set[int]:
    found: set[int] = set()
    while len(found) < 2:
        found = set(pids.map([0.05] * 4))
    return found


def wait_until_dead(pid: int) -> None:
    until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("count", [1, 2])
def test_idle_worker_killed_between_two_maps(count: int) -> None:
    """A worker that dies while it has nothing to do is replaced without a word."""
    victims = sorted(workers())[:count]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
        wait_until_dead(pid)
    found = set(pids.map([0.02] * 6))
    assert found
    assert found.isdisjoint(victims)


def test_idle_worker_killed_at_the_very_start_of_a_map() -> None:
    """A worker that is killed as the map begins costs at most one clear error, never a hang."""
    for _ in range(5):
        (victim, *_others) = workers()
        os.kill(victim, signal.SIGKILL)
        task = pids.with_options(return_exceptions=True)
        results = task.map([0.0] * 6)
        assert 1 >= sum(isinstance(result, WorkerDiedError) for result in results)
        assert all(isinstance(result, int | WorkerDiedError) for result in results)


def kill_soon(victims: set[int], seconds: float = 0.2) -> threading.Thread:
    def kill() -> None:
        time.sleep(seconds)  # the map has begun by then; if it has not, the test means less
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_all_workers_killed_in_mid_map() -> None:
    """When all workers die at once, the items in their hands fail and all others arrive."""
    victims = workers()
    killer = kill_soon(victims)
    results = pids.with_options(return_exceptions=True).map([0.6, 0.6, 0.0, 0.0])
    killer.join()
    assert [0, 1] == [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert all(isinstance(result, int) for result in results[2:])
    assert victims.isdisjoint(results[2:])


def forkserver() -> int:
    (worker, *_) = workers()
    stat = Path(f"/proc/{worker}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def test_forkserver_killed_in_mid_map() -> None:
    """When the process above the workers is killed, running items fail and the rest arrives."""
    killer = kill_soon({forkserver()})
    results = pids.with_options(return_exceptions=True).map([0.6, 0.6, 0.0, 0.0])
    killer.join()
    assert [0, 1] == [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert all(isinstance(result, int) for result in results[2:])


def test_forkserver_killed_between_two_maps() -> None:
    """When the process above the workers dies while they are idle, a new one is started."""
    victim = forkserver()
    os.kill(victim, signal.SIGKILL)
    time.sleep(0.1)
    assert 4 == len(pids.map([0.0] * 4))


class KillsWhileSent:
    """Encoding it takes a while, and its worker is killed in the middle of it."""

    def __init__(self, delay: float, size: int) -> None:
        self.delay = delay
        self.data = np.ones(size)

    def __reduce__(self) -> Any:
        threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return KillsWhileSent, (0.0, 1), {"data": self.data}


@pytest.mark.parametrize("delay", [0.0, 0.03, 0.06])
def test_killed_while_sending_a_large_result(delay: float) -> None:
    """A worker killed while it writes 400 MB names its item; what it had written is freed."""

    def make(x: int) -> Any:
        return KillsWhileSent(delay, 50_000_000) if x == 1 else x

    task = parallel(make).with_options(backend="process", return_exceptions=True, chunksize=3)
    results = task.map(range(3))
    assert [0, 2] == [results[0], results[2]]
    assert isinstance(results[1], WorkerDiedError)
    assert (1, signal.SIGKILL) == (results[1].index, results[1].signal)


def test_worker_that_closes_its_socket(tmp_path: Path) -> None:
    """A task that closes every descriptor is an error of an item, not a hang."""

    def close_all(x: int) -> Any:
        if x == 1:
            os.closerange(3, 256)
        return x

    task = parallel(close_all).with_options(backend="process", return_exceptions=True, chunksize=1)
    results = task.map(range(4))
    assert [0, 2, 3] == [results[0], *results[2:]]
    assert isinstance(results[1], WorkerDiedError) or results[1] == 1


def test_stopped_worker_is_not_taken_for_dead() -> None:
    """A worker that is stopped for a while finishes its item when it goes on."""
    (victim, *_) = workers()
    future = pids.with_options(workers=1).submit(0.3)
    os.kill(victim, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(victim, signal.SIGCONT)
    assert isinstance(future.result(60), int)
