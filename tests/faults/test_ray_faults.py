"""Faults on Ray: the cases that all backends share are in the contract, these are Ray's own."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sharedtask
from sharedtask import (
    ClosedError,
    SerializationError,
    Shared,
    SharedTaskError,
    UnshareableError,
    WorkerDiedError,
    parallel,
)
from sharedtask.testing import Deadline, slowness, until

pytestmark = [pytest.mark.timeout(90), pytest.mark.usefixtures("right_again")]

Start = Callable[..., Any]


@pytest.fixture
def right_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a fault the same Ray runs a right map."""
    yield
    if "ray_runtime" in request.fixturenames:
        assert [0, 1, 4, 9] == parallel(backend="ray")(lambda x: x * x).map(range(4))


ours = pytest.mark.usefixtures("ray_runtime")


def enter(folder: str | Path, name: object) -> int:
    """Note that an item was begun; returns how often it was so far."""
    fd = os.open(Path(folder, str(name)), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(fd, b"x")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def entered(folder: str | Path) -> dict[int, int]:
    """How often each item was begun; one that was killed before its note was not."""
    sizes = {int(path.name): path.stat().st_size for path in Path(folder).iterdir()}
    return {item: size for item, size in sizes.items() if size}


def once(items: Any) -> dict[int, int]:
    return dict.fromkeys(items, 1)


def die(how: str) -> None:
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "os._exit(3)":
        os._exit(3)
    else:
        os.kill(os.getpid(), getattr(signal, how))
    time.sleep(10)


@parallel(backend="ray", return_exceptions=True)
def risky(x: int, bad: Any, how: str, folder: str, size: int = 0) -> Any:
    enter(folder, x)
    if x in bad:
        die(how)
    return bytes(size) if size else x


# -------------------------------------------------------------------------------- deaths

WAYS = {
    # how it dies: the signal that can be known
    "SIGKILL": None,
    "os._exit(3)": None,
    "segfault": signal.SIGSEGV,
    "SIGABRT": signal.SIGABRT,
}


@ours
@pytest.mark.parametrize("how", WAYS)
def test_dead_worker_is_an_error_of_its_item(how: str, tmp_path: Path) -> None:
    """However a worker dies, its error names the item and the pid; every other result arrives."""
    task = risky.with_options(chunksize=4)
    results = task.map(range(12), bad=[5], how=how, folder=str(tmp_path))
    error = results.pop(5)
    assert [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11] == results
    assert isinstance(error, WorkerDiedError)
    assert (5, 5, WAYS[how]) == (error.index, error.item, error.signal)
    assert error.pid not in (None, os.getpid())
    assert f"worker {error.pid}" in str(error)
    assert "risky(), item 5" in str(error)
    assert once(range(12)) == entered(tmp_path)


@ours
def test_segmentation_fault_shows_its_line(tmp_path: Path) -> None:
    """The error of a segmentation fault says what may be wrong, and where it happened."""
    error = risky.map([1], bad=[1], how="segfault", folder=str(tmp_path))[0]
    assert "SIGSEGV" in str(error)
    assert "Segmentation fault" in str(error.__cause__)
    assert "in die" in str(error.__cause__)


@ours
@pytest.mark.parametrize("at", [0, 49])
@pytest.mark.parametrize("size", [0, 3_000])
def test_no_item_of_a_chunk_is_lost_or_entered_twice(at: int, size: int, tmp_path: Path) -> None:
    """A death inside a chunk of 50 takes one result along; no item's body is entered twice."""
    task = risky.with_options(chunksize=50)
    results = task.map(range(50), bad=[at], how="SIGKILL", folder=str(tmp_path), size=size)
    wanted = [bytes(size) if size else x for x in range(50)]
    assert [at] == [k for k in range(50) if wanted[k] != results[k]]
    assert at == results[at].index
    assert once(range(50)) == entered(tmp_path)


@ours
def test_many_results_before_a_death(tmp_path: Path) -> None:
    """Many megabytes of results that were made before a death are neither lost nor made twice."""
    task = risky.with_options(chunksize=1_000)
    results = task.map(range(1_000), bad=[900], how="SIGKILL", folder=str(tmp_path), size=100_000)
    assert [900] == [k for k, r in enumerate(results) if not isinstance(r, bytes)]
    assert 900 == results[900].index
    assert once(range(1_000)) == entered(tmp_path)


@ours
def test_large_results_before_a_death(tmp_path: Path) -> None:
    """Results of some megabytes that were returned before a death in the same chunk arrive."""
    task = risky.with_options(chunksize=8)
    results = task.map(range(8), bad=[5], how="SIGKILL", folder=str(tmp_path), size=3_000_000)
    assert [5] == [k for k, r in enumerate(results) if r != bytes(3_000_000)]
    assert once(range(8)) == entered(tmp_path)


@ours
def test_many_deaths_in_one_map(tmp_path: Path) -> None:
    """Of several deaths each names itself, all other results arrive, and no item runs twice."""
    bad = [0, 9, 10, 15]
    task = risky.with_options(chunksize=10)
    results = task.map(range(20), bad=bad, how="SIGKILL", folder=str(tmp_path))
    assert bad == [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert [x for x in range(20) if x not in bad] == [r for r in results if isinstance(r, int)]
    assert once(range(20)) == entered(tmp_path)


@ours
def test_all_workers_killed_at_once(tmp_path: Path) -> None:
    """When all workers die at the same moment, each item in hand fails once, with its own index."""

    def wait_then(x: int, folder: str) -> int:
        count = enter(folder, x)
        if x < 2 and count == 1:
            Path(folder, str(100 + x)).write_text(str(os.getpid()))
            time.sleep(20)
        return x

    task = parallel(wait_then).with_options(backend="ray", chunksize=5, return_exceptions=True)
    folder = str(tmp_path)
    with ThreadPoolExecutor() as pool:
        mapped = pool.submit(task.with_options(chunksize=1).map, range(6), folder=folder)
        pids = [int(written(tmp_path / name)) for name in ("100", "101")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        results: Any = mapped.result(60)
    assert [0, 1] == [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert pids == [r.pid for r in results[:2]]
    assert [2, 3, 4, 5] == results[2:]
    for name in ("100", "101"):
        (tmp_path / name).unlink()
    assert once(range(6)) == entered(tmp_path)


def written(path: Path) -> str:
    """What somebody else writes into a file."""
    until(lambda: path.exists() and path.stat().st_size)
    return path.read_text()


@ours
def test_death_is_raised(tmp_path: Path) -> None:
    """Without ``return_exceptions`` the death ends the map, and no item has been entered twice."""
    task = risky.with_options(return_exceptions=False, chunksize=5)
    with pytest.raises(WorkerDiedError) as caught:
        task.map(range(40), bad=[17], how="SIGKILL", folder=str(tmp_path))
    assert 17 == caught.value.index
    assert {1} == set(entered(tmp_path).values())


@ours
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_death_in_a_stream(method: str, tmp_path: Path) -> None:
    """A stream gives every other result and goes on."""
    stream = getattr(risky, method)(range(20), bad=[7], how="os._exit(3)", folder=str(tmp_path))
    results = list(stream)
    assert 20 == len(results)
    assert [x for x in range(20) if x != 7] == sorted(r for r in results if isinstance(r, int))
    assert once(range(20)) == entered(tmp_path)


@ours
def test_death_of_a_submitted_item(tmp_path: Path) -> None:
    """The future of an item whose worker died holds WorkerDiedError; its neighbours are done."""
    task = risky.with_options(return_exceptions=False)
    kwargs: Any = {"bad": [3], "how": "SIGKILL", "folder": str(tmp_path)}
    futures = [task.submit(x, **kwargs) for x in range(8)]
    assert isinstance(futures[3].exception(60), WorkerDiedError)
    assert [0, 1, 2, 4, 5, 6, 7] == [f.result(60) for k, f in enumerate(futures) if k != 3]
    assert once(range(8)) == entered(tmp_path)


@ours
@pytest.mark.parametrize("chunksize", [1, 6])
def test_retries_after_a_death(chunksize: int, tmp_path: Path) -> None:
    """``retries`` runs the item whose worker died again, and no other."""

    def dies_once(x: int) -> int:
        if enter(tmp_path, x) == 1 and x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    task = parallel(dies_once).with_options(retries=1, chunksize=chunksize, backend="ray")
    assert list(range(6)) == task.map(range(6))
    assert {**once(range(6)), 3: 2} == entered(tmp_path)


# ------------------------------------------------------------------------------ pickling


class Grenade:
    """Misbehaves when it is pickled, or unpickled in a worker or in the caller."""

    def __init__(self, when: str, how: str, caller: int = 0) -> None:
        self.parts = (when, how, caller or os.getpid())

    def __reduce__(self) -> Any:
        if self.parts[0] == "pickle":
            raise ArithmeticError("it will not")
        return pull, self.parts


def pull(when: str, how: str, caller: int) -> Grenade:
    if (when == "worker") == (os.getpid() != caller):
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError("it will not")
    return Grenade(when, how, caller)


@parallel(backend="ray", return_exceptions=True)
def look(x: Any, folder: str = "", extra: Any = None) -> str:
    if folder:
        enter(folder, x if isinstance(x, int) else 99)
    return type(x).__name__


@parallel(backend="ray", return_exceptions=True)
def use(x: int, value: Shared[Any]) -> int:
    return x


@ours
@pytest.mark.parametrize("when", ["pickle", "worker"])
def test_item_that_will_not_travel(when: str, tmp_path: Path) -> None:
    """An item that cannot be pickled or unpickled is SerializationError at its index, alone."""
    items = [0, 1, 2, Grenade(when, "raise"), 4, 5, 6]
    results: Any = look.with_options(chunksize=7).map(items, folder=str(tmp_path))
    assert ["int"] * 6 == results[:3] + results[4:]
    assert isinstance(results[3], SerializationError)
    assert "item 3" in str(results[3])
    assert once([0, 1, 2, 4, 5, 6]) == entered(tmp_path)


@ours
@pytest.mark.parametrize("chunksize", [1, 7])
def test_item_whose_unpickling_kills_the_worker(chunksize: int, tmp_path: Path) -> None:
    """An item that crashes the worker as it is unpickled is WorkerDiedError at its index, alone."""
    items = [0, 1, 2, Grenade("worker", "kill"), 4, 5, 6]
    results: Any = look.with_options(chunksize=chunksize).map(items, folder=str(tmp_path))
    assert ["int"] * 6 == results[:3] + results[4:]
    assert isinstance(results[3], WorkerDiedError)
    assert 3 == results[3].index
    assert once([0, 1, 2, 4, 5, 6]) == entered(tmp_path)


@ours
@pytest.mark.parametrize("when", ["pickle", "caller"])
def test_result_that_will_not_travel(when: str) -> None:
    """A result that cannot be pickled or unpickled is SerializationError at its index, alone."""

    def give(x: int, caller: int = os.getpid()) -> Any:
        return Grenade(when, "raise", caller) if x == 2 else x

    task = parallel(give).with_options(backend="ray", return_exceptions=True, chunksize=5)
    results = task.map(range(5))
    assert [0, 1, 3, 4] == results[:2] + results[3:]
    assert isinstance(results[2], SerializationError)
    assert "item 2" in str(results[2])


@ours
def test_function_that_will_not_travel() -> None:
    """A function that holds a lock is SerializationError before anything runs."""
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        parallel(backend="ray")(lambda x: (lock, x)).map([1])


@ours
def test_argument_that_will_not_travel() -> None:
    """An argument that cannot be pickled, or unpickled, is an error of ours."""
    task = look.with_options(return_exceptions=False)
    with pytest.raises(SerializationError, match="extra"):
        task.map([1], extra={"deep": [threading.Lock()]})
    with pytest.raises(SharedTaskError):
        task.map(range(4), extra=Grenade("worker", "raise"))


@ours
def test_shared_value_that_will_not_travel() -> None:
    """A shared value that fails as it is pickled or unpickled is an error that names it."""
    with pytest.raises(UnshareableError, match=r"value\['deep'\]\[0\]"):
        use.map(range(3), value={"deep": [threading.Lock()]})
    errors: Any = use.map(range(3), value=[Grenade("worker", "raise")])
    for error in errors:
        assert isinstance(error, SerializationError)
        assert "'value'" in str(error)


@ours
def test_shared_value_that_kills_every_worker() -> None:
    """A shared value whose unpickling kills the worker is WorkerDiedError, and comes to an end."""
    errors: Any = use.with_options(chunksize=2).map(range(4), value=[Grenade("worker", "kill")])
    assert [WorkerDiedError] * 4 == [type(error) for error in errors]
    assert "while loading the function and the shared values" in str(errors[0])


# -------------------------------------------------------------------------- given up, ended


def gone_within(seconds: float, pid: int) -> bool:
    deadline = Deadline(seconds)
    while Path(f"/proc/{pid}").exists():
        if deadline.is_over:
            return False
        time.sleep(0.02)
    return True


@ours
def test_stream_left_early_stops_its_worker(tmp_path: Path) -> None:
    """Leaving a stream ends the item that no one wants any more, however long it takes."""

    def slow(x: int) -> int:
        if x:
            enter(tmp_path, os.getpid())
            time.sleep(60)
        return x

    stream = parallel(slow).with_options(backend="ray", chunksize=1).imap(range(3))
    assert 0 == next(stream)
    until(lambda: entered(tmp_path))
    (pid, *_) = entered(tmp_path)
    stream.close()
    assert gone_within(10, pid)


@ours
def test_given_up_items_are_ended_without_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this node no Ray task ends them: Ray would start a process for each that waits."""
    from sharedtask.backends.ray import deaths

    sent: list[str] = []
    monkeypatch.setattr(deaths, "_on_node", lambda node, *_, **__: sent.append(node))

    def slow(x: int) -> int:
        if x:
            enter(tmp_path, os.getpid())
            time.sleep(600)
        return x

    stream = parallel(slow).with_options(backend="ray", chunksize=1).imap(range(8))
    assert 0 == next(stream)
    until(lambda: entered(tmp_path))
    (pid, *_) = entered(tmp_path)
    stream.close()
    assert gone_within(20, pid)
    assert [] == sent


@ours
def test_other_node_gets_one_task_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that has not done what it was asked is not asked again: it would start processes."""
    import ray

    from sharedtask.backends.ray import deaths, runtime

    here = ray.get_runtime_context().get_node_id()
    nodes = [{"NodeID": here, "Alive": True}, {"NodeID": "other", "Alive": True}]
    monkeypatch.setattr(runtime, "all_nodes", lambda: nodes)
    sent: list[Any] = []

    @ray.remote(num_cpus=0)
    def until(over: Path) -> None:
        while not over.exists():
            time.sleep(0.01)

    def send(node: str, _: object, origin: bytes, *__: object, **___: object) -> Any:
        task = until.remote(tmp_path / "over")
        if origin == b"no origin":  # chunks of a test before this one may still be ended
            assert "other" == node
            sent.append(task)
        return task

    monkeypatch.setattr(deaths, "_on_node", send)
    stopper = deaths.Stopper()
    for _ in range(3):
        stopper.stop(b"no origin", (1,), kill=True)
    assert 1 == len(sent)
    (tmp_path / "over").touch()
    ray.get(sent)
    stopper.stop(b"no origin", (1,), kill=True)
    assert 2 == len(sent)


@ours
def test_shutdown_in_mid_call(tmp_path: Path) -> None:
    """``shutdown()`` ends calls and their items, and leaves a Ray that the user started alone."""
    import ray

    def slow(x: int) -> int:
        enter(tmp_path, os.getpid())
        time.sleep(60)
        return x

    task = parallel(slow).with_options(backend="ray", chunksize=1)
    with ThreadPoolExecutor() as pool:
        calls: list[Any] = [pool.submit(task.map, [1]), pool.submit(lambda: list(task.imap([1])))]
        until(lambda: len(entered(tmp_path)) >= 2)
        calls.append(task.submit(1))  # waits for a worker
        sharedtask.shutdown()
        assert [ClosedError] * 3 == [type(call.exception(60)) for call in calls]
    assert ray.is_initialized()
    assert all(gone_within(10, pid) for pid in entered(tmp_path))


HEAD = """\
import logging, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import ray
import sharedtask
from sharedtask import parallel

def nap(x, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return x

def use(x, table):
    return float(table.sum()) + x

task = parallel(nap).with_options(backend="ray", chunksize=1)

def init(**kwargs):
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR, **kwargs)
"""


@pytest.mark.long
def test_ray_is_shut_down_by_the_user(script: Start) -> None:
    """``ray.shutdown()`` in mid-call is ClosedError for every kind of call; the next one works."""
    ran = script(
        f"""{HEAD}
init()
table = np.ones(400_000)
use = parallel(shared=["table"], backend="ray")(use)
print(use.map([1], table=table))
with ThreadPoolExecutor() as pool:
    ways = [lambda: task.map(range(2)), lambda: list(task.imap(range(2))),
            lambda: task.submit(1).result(), lambda: list(task.imap_unordered(range(9)))]
    calls = [pool.submit(way) for way in ways]
    time.sleep(1)  # Ray knows nothing that tells when they run
    ray.shutdown()
    began = time.monotonic()
    for call in calls:
        print(type(call.exception(60)).__name__, call.exception())
    print(time.monotonic() - began < 25)
print(use.map([2], table=table), use.cache_info().misses)
""",
        RAY_AUTH_MODE="disabled",
    )
    assert (0, "") == (ran.end(60), ran.err)
    lines = ran.out.splitlines()
    assert "[400001.0]" == lines[0]
    assert ["ClosedError"] * 4 == [line.partition(" ")[0] for line in lines[1:5]]
    assert all("Ray was shut down" in line for line in lines[1:5])
    assert ["True", "[400002.0] 2"] == lines[5:]
    ran.assert_gone(5)


@pytest.mark.long
def test_ctrl_c(script: Start) -> None:
    """Ctrl-C is a KeyboardInterrupt; the next map is right; uncaught it ends the program."""
    ran = script(
        f"""{HEAD}
task.map(range(4), seconds=0.0)
for way in (lambda: task.map(range(8)), lambda: list(task.imap(range(8))),
            lambda: task.submit(1).result()):
    threading.Timer(0.5, lambda: print("STARTED", flush=True)).start()
    try:
        way()
    except KeyboardInterrupt:
        print("CAUGHT", flush=True)
print("AGAIN", task.map(range(4), seconds=0.0), flush=True)
threading.Timer(0.5, lambda: print("STARTED", flush=True)).start()
task.map(range(8))
"""
    )
    for _ in range(3):
        ran.wait_for("STARTED")
        sent = time.monotonic()
        os.kill(ran.pid, signal.SIGINT)
        ran.wait_for("CAUGHT")
        assert 5 * slowness() > time.monotonic() - sent
    assert "[0, 1, 2, 3]" == ran.wait_for("AGAIN")
    ran.wait_for("STARTED")
    os.killpg(ran.pid, signal.SIGINT)  # as a terminal sends it
    assert ran.end(20) in (1, -signal.SIGINT)  # 1 where Ray is initialised, whoever did it
    assert 1 == ran.err.count("Traceback")
    assert ran.err.rstrip().endswith("KeyboardInterrupt")
    ran.assert_gone(10)


def is_agent(pid: int) -> bool:
    """Whether this is one of Ray's two helpers, which notice the end of their Ray much later."""
    with contextlib.suppress(OSError):
        return b"Agent" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


@pytest.mark.long
def test_death_of_the_caller(script: Start) -> None:
    """When the caller is killed in mid-map, the Ray that it started ends, with everything in it."""
    ran = script(
        f"""{HEAD}
task.map(range(4), seconds=0.0)
threading.Timer(0.5, lambda: print("STARTED", flush=True)).start()
task.map(range(8))
"""
    )
    ran.wait_for("STARTED")
    assert 4 < len(ran.survivors())
    os.kill(ran.pid, signal.SIGKILL)
    assert -signal.SIGKILL == ran.end()
    until(lambda: all(map(is_agent, ran.survivors())), 30, "processes of it still live")


# --------------------------------------------------------------------------- a full store


@pytest.fixture
def small_disk() -> Iterator[str]:
    """A folder with room for 200 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system of 200 MB")
    folder = tempfile.mkdtemp(prefix="st-")  # Ray's sockets have short paths
    mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "sharedtask-test", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        os.rmdir(folder)
        pytest.skip("this container may not mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_full_object_store(script: Start, small_disk: str) -> None:
    """What does not fit Ray's store is StoreFullError with both sizes; other things still fit."""
    ran = script(
        f"""{HEAD}
init(object_store_memory=100_000_000, _plasma_directory={small_disk!r}, _temp_dir={small_disk!r})
use = parallel(shared=["table"], backend="ray")(use)
big = np.ones(300_000_000, np.uint8)
try:
    use.map([1], table=big)
except sharedtask.StoreFullError as error:
    print("PUT", error, flush=True)
del big
small = np.ones(1_000_000, np.uint8)
print("SMALL", use.map([1], table=small), flush=True)

@parallel(backend="ray", return_exceptions=True, chunksize=1)
def make(x):
    return np.ones(300_000_000 if x == 1 else 10, np.uint8)

found = make.map(range(3))
print("RESULTS", [type(r).__name__ for r in found], flush=True)
print("RESULT", str(found[1]).replace(chr(10), " "), flush=True)
print("SMALL", use.map([1], table=small), flush=True)
ray.shutdown()
""",
        RAY_AUTH_MODE="disabled",
    )
    told = ran.wait_for("PUT")
    assert "'table' does not fit" in told
    assert "no room for 300.0 MB" in told
    assert "object_store_memory=100.0 MB" in told
    assert "[1000001.0]" == ran.wait_for("SMALL")
    assert "['ndarray', 'StoreFullError', 'ndarray']" == ran.wait_for("RESULTS")
    assert "object_store_memory" in ran.wait_for("RESULT")
    assert "[1000001.0]" == ran.wait_for("SMALL")
    assert (0, "") == (ran.end(30), ran.err)


def judged(*, adds: bool, fail_fast: bool) -> Any:
    """The outcomes of a chunk of six items whose worker died in the fifth."""
    from types import SimpleNamespace

    from sharedtask.backends.base import Chunk
    from sharedtask.backends.carried import recovery, status_file, work_items
    from sharedtask.backends.worker import call_header, result_format
    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.backends.worker.status_page import Phase, Word

    call: Any = SimpleNamespace(
        task="f", timeout=None, adds=adds, fail_fast=fail_fast, leases=SimpleNamespace(readonly=())
    )
    work_item = work_items.WorkItem(
        call, Chunk(1, 10, list(range(6))), call_header.SCALARS, Envelope(b"")
    )
    words = [0] * 16
    words[Word.BASE], words[Word.COUNT], words[Word.PHASE] = 3, 1, Phase.RUNNING
    # Item 0 was never written down; 3 stands in the log and, not yet counted there, in the outbox.
    column = [7, 8, 9]
    frames: Any = [
        (result_format.INTS, 1, 3, 0, memoryview(array("q", column)).tobytes(), None),
        (result_format.INTS, 3, 1, 0, memoryview(array("q", [9])).tobytes(), None),
    ]
    crash_report = status_file.CrashReport(4127, words, frames, "")
    report = recovery.recovery_of(work_item, crash_report, RuntimeError("gone")).report
    assert report is not None
    batch = report.delivery.open()
    assert (5, 10) == (report.count, batch.first)
    return batch


@pytest.mark.parametrize(("adds", "fail_fast"), [(False, False), (False, True), (True, True)])
def test_results_of_a_dead_worker_keep_their_places(adds: bool, fail_fast: bool) -> None:
    """What a dead worker left goes to its own items, and each one between has its own error."""
    batch = judged(adds=adds, fail_fast=fail_fast)
    assert [7, 8, 9] == batch.values[1:4]
    assert {0: (10, 0), 4: (14, 4)} == {at: (e.index, e.item) for at, e in batch.errors.items()}


def test_results_without_what_they_add_are_lost() -> None:
    """Where items add up, and the call goes on, what the worker had added died with it."""
    batch = judged(adds=True, fail_fast=False)
    assert list(range(10, 15)) == [batch.errors[at].index for at in range(5)]


NEW_SESSION = """
import logging, numpy as np, ray, sharedtask
from sharedtask import Shared, parallel, share
from sharedtask.backends import registry
from sharedtask.options import Options

def start():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
             logging_level=logging.ERROR, object_store_memory=100_000_000)

@parallel
def total(i, table: Shared[np.ndarray]): return float(table.sum())

on_ray = total.with_options(backend="ray")
table, handle = np.ones(20_000), share(np.ones(30_000))
print(on_ray.map([0], table=table), on_ray.map([0], table=handle))  # on a Ray of ours
ray.shutdown()
start()
print(registry.of(Options()).name)
print(on_ray.map([0], table=table), on_ray.map([0], table=handle))
print(on_ray.map([0], table=np.full(20_000, 2.0)), on_ray.map([0], table=table))
sharedtask.shutdown()
print(ray.is_initialized())
"""


@pytest.mark.long
def test_another_session_is_another_connection(script: Start) -> None:
    """After ray.shutdown() and ray.init() values are put again, and the new Ray is the user's."""
    ran = script(NEW_SESSION)
    assert (0, "") == (ran.end(60), ran.err)
    assert [
        "[20000.0] [30000.0]",
        "ray",
        "[20000.0] [30000.0]",
        "[40000.0] [20000.0]",
        "True",
    ] == ran.out.splitlines()
