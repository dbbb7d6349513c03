"""Workers that loky starts, by name: the whole contract, and what is theirs alone."""

import gc
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import starts_late

import sharedtask
from sharedtask import OptionsError, Shared, parallel
from sharedtask.testing import BackendContract, until

pytest.importorskip("loky", reason="it is an optional dependency")

from loky import process_executor

from sharedtask.backends.carried.message import Message
from sharedtask.backends.loky import folder, slots, worker
from sharedtask.backends.loky.backend import LokyBackend

pytestmark = pytest.mark.timeout(60)


class TestLoky(BackendContract):
    """The contract of all backends."""

    @pytest.fixture
    def backend(self) -> str:
        """This one alone."""
        return "loky"


def on_loky(function: Any, **options: Any) -> Any:
    task: Any = parallel(function)
    return task.with_options(backend="loky", workers=2, **options)


def folders() -> list[Path]:
    """The folders of this process."""
    return list(Path("/dev/shm").glob(f"sharedtask-loky-{os.getpid()}-*"))


def values() -> set[str]:
    """The values that are in files now."""
    return {path.name for found in folders() for path in found.glob("value-*")}


def mapped(_x: int, table: Shared[Any]) -> tuple[int, str]:
    """The process, and how the pages of the array are mapped in it."""
    address = table.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(text, 16) for text in line.split()[0].split("-"))
        if low <= address < high:
            return os.getpid(), f"{line.split()[1]} {Path(line.split()[-1]).name}"
    return os.getpid(), "nowhere"


def test_value_is_one_file() -> None:
    """Workers map the same file read-only, a second call finds it, and a change makes another."""
    table, before = np.ones(200_000), values()
    task = on_loky(mapped, chunksize=1)
    first = {how for _, how in task.map(range(4), table=table)}
    (made,) = values() - before
    assert {f"r--s {made}"} == first
    assert first == {how for _, how in task.map(range(4), table=table)}
    table[7] = 3
    ((second),) = {how for _, how in task.map(range(4), table=table)}
    assert {second} != first


def test_value_that_is_over_is_given_back() -> None:
    """The file goes with the caller's value, and idle workers drop it."""
    table, before = np.ones(200_000), values()
    on_loky(mapped).map(range(4), table=table)
    (made,) = values() - before
    pids = set(on_loky(lambda _: os.getpid(), chunksize=1).map(range(4)))
    del table
    gc.collect()
    until(lambda: made not in values())
    until(lambda: not [pid for pid in pids if made in Path(f"/proc/{pid}/maps").read_text()])


def test_value_is_sent_to_a_worker_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones, by their files, and small ones: later chunks bring neither."""
    sent: list[tuple[int, int]] = []
    submit = slots.Slot.submit

    def noted(slot: slots.Slot, function: Any, *args: Any) -> Any:
        if function is worker.run_chunk:
            message = Message.load(args[0])
            assert message is not None
            sent.append((len(message.tokens), len(message.small)))
        return submit(slot, function, *args)

    monkeypatch.setattr(slots.Slot, "submit", noted)
    shares: Any = parallel(shared=["large", "small"])
    task = shares(lambda x, large, small: large.size + small.size + x)
    given = {"large": np.ones(200_000), "small": np.ones(3)}
    for _ in range(3):
        found = task.with_options(backend="loky", workers=1, chunksize=1).map(range(2), **given)
        assert [200_003, 200_004] == found
    assert (1, 3) == sent[0]  # with the function and the settings
    assert [(0, 0)] * 5 == sent[1:]


def test_idle_worker_that_dies_is_replaced() -> None:
    """The next call starts another one, and sends it the values again."""
    table, task = np.ones(200_000), on_loky(mapped, chunksize=1)
    pids = {pid for pid, _ in task.map(range(4), table=table)}
    for pid in pids:
        os.kill(pid, 9)
    again = {pid for pid, _ in task.map(range(4), table=table)}
    assert again
    assert not again & pids


def _end(how: str) -> None:
    if how == "killed":
        os.kill(os.getpid(), 9)
    os._exit(3)


def test_death_tells_how_the_worker_ended() -> None:
    """Its signal, or its exit code."""
    killed, left = on_loky(_end, return_exceptions=True, chunksize=1).map(["killed", "left"])
    assert (9, None) == (killed.signal, killed.exitcode)
    assert (None, 3) == (left.signal, left.exitcode)


@pytest.mark.parametrize("name", ["memory_limit", "tasks_per_worker"])
def test_option_that_is_missing(name: str) -> None:
    """It is refused before anything starts, by its name and that of the backend."""
    with pytest.raises(OptionsError, match=rf"{name}=1000 cannot be kept by backend='loky'"):
        on_loky(abs, **{name: 1000}).map([1])


def test_shutdown_leaves_nothing() -> None:
    """Workers and files are gone, and the next call begins with new ones."""
    (pid,) = set(on_loky(lambda _: os.getpid()).with_options(workers=1).map([0]))
    sharedtask.shutdown()
    assert [] == folders()
    until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))
    assert [1] == on_loky(abs).map([-1])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for folders."""
    monkeypatch.setenv("SHAREDTASK_STORE_DIR", str(tmp_path))
    return tmp_path


def test_folder_is_closed_to_others(home: Path) -> None:
    """Only the caller's user can open the folder with its values, whatever the umask is."""
    umask = os.umask(0)
    try:
        mine = folder.Folder()
    finally:
        os.umask(umask)
    assert 0o700 == stat.S_IMODE(mine.path.stat().st_mode)
    mine.remove()
    assert [] == list(home.iterdir())


def test_folders_of_dead_callers_are_swept(home: Path) -> None:
    """Those of callers that live stay, also where their process id says nothing."""
    living = folder.Folder()
    other = living.path.with_name("sharedtask-loky-1-00ff00ff")
    living.path.rename(other)  # as from another PID namespace
    dead = home / "sharedtask-loky-4194305-00ff00ff"
    dead.mkdir()
    (dead / "owner").touch()
    (dead / "value-1").write_bytes(b"left")
    mine = folder.Folder()
    assert {other, mine.path} == set(home.iterdir())
    mine.remove()
    living.remove()
    assert [other] == list(home.iterdir())
    folder.Folder().remove()
    assert [] == list(home.iterdir())


def test_folders_where_there_are_no_locks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process id tells whether the owner lives."""
    monkeypatch.setattr(folder, "_flock", None)
    for pid in (os.getppid(), 4194305):
        (home / f"sharedtask-loky-{pid}-00ff00ff").mkdir()
    mine = folder.Folder()
    mine.remove()
    assert [f"sharedtask-loky-{os.getppid()}-00ff00ff"] == [path.name for path in home.iterdir()]


def test_file_that_is_in_use_is_removed_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems keep a file as long as it is mapped: each sweep tries again."""
    mine = folder.Folder()
    path = mine.new_path("value")
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: os.rmdir(home / "none"))
        mine.drop(path)
        assert mine.sweep()
    assert path.exists()
    assert not mine.sweep()
    assert not path.exists()
    mine.remove()


MISSING = """
import sys
sys.modules["loky"] = None
from sharedtask import BackendUnavailableError, parallel
try:
    parallel(abs).with_options(backend="loky").map([1])
except BackendUnavailableError as error:
    print(error)
"""


def test_package_that_is_missing(run: Callable[..., str]) -> None:
    """The error says what to install, and what needs no package."""
    told = run(MISSING)
    assert 'pip install "sharedtask[loky]". backend="process" needs no package' in told


KILLED = """
import os, sys, time
from sharedtask import Executor

def stay(path):
    with open(f"{path}-new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}-new", path)
    time.sleep(600)

path, forks = sys.argv[1:]
future = Executor(backend="loky", max_workers=1).submit(stay, path)
while not os.path.exists(path):
    time.sleep(0.01)
if forks == "True" and os.fork() == 0:
    time.sleep(600)  # with all that its parent has open
print("READY", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("forks", [False, True])
def test_worker_ends_with_a_caller_that_is_killed(
    script: Callable[..., Any], tmp_path: Path, forks: bool
) -> None:
    """In the middle of a task, also where a child of the caller goes on."""
    path = tmp_path / "pid"
    # What it leaves is swept by the next such caller: other tests would find it in /dev/shm.
    caller = script(KILLED, path, forks, SHAREDTASK_STORE_DIR=str(tmp_path))
    caller.wait_for("READY")
    pid = int(path.read_text())
    os.kill(caller.pid, 9)
    caller.process.wait()
    until(lambda: not os.path.exists(f"/proc/{pid}/fd/0"))


def test_worker_that_cannot_be_started_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loky would never answer what is given to it afterwards."""

    def refuse(_thread: Any) -> None:
        raise RuntimeError("can't start new thread")

    sharedtask.shutdown()
    task = parallel(abs).with_options(backend="loky", workers=1)
    with monkeypatch.context() as patched:
        patched.setattr(process_executor._ExecutorManagerThread, "start", refuse)
        with pytest.raises(sharedtask.SharedTaskError, match="can't start new thread"):
            task.map([-1])
    assert [2] == task.map([-2])


UNFINISHED = """
import time
from sharedtask import Executor

def slow(x):
    time.sleep(0.2)
    print("done", x, flush=True)

pool = Executor(backend="loky", max_workers=1)
for x in range(3):
    pool.submit(slow, x)
"""


def test_program_that_ends_waits_for_its_submits(
    run: Callable[..., str], script: Callable[..., Any]
) -> None:
    """As with each executor: loky, which takes no more work then, comes later.

    Where Python starts no thread at that time, loky cannot start a worker.
    """
    if not starts_late():
        assert 0 == script(UNFINISHED).end(60)
        return
    assert "done 0\ndone 1\ndone 2\n" == run(UNFINISHED)


def test_backend_that_was_shut_down_is_started_by_a_call_alone() -> None:
    """A look at what it keeps starts no thread and makes no folder."""
    backend = LokyBackend()
    assert backend.publications is None
    assert (0, []) == (backend.limit(), backend.stored([1]))
    assert backend._made is None
