# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Deaths of workers and of callers: what is told, what runs twice, what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import (
    Locked,
    MemoryLimitError,
    OptionsError,
    RegionPoisonedError,
    UnshareableError,
    WorkerDiedError,
)

from .patience import until
from .tasks import count_up, counted, on_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _die_once(x: int, folder: str, bad: Sequence[int], times: int = 100) -> int:
    """End this process without a word, the first ``times`` times at a bad item."""
    if count_up(folder, x) <= times and x in bad:
        _end_process()
    return x


def _end_process() -> None:
    """As the kernel ends a process that takes too much memory."""
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


def _pid(_x: int) -> int:
    return os.getpid()


def _die_holding(x: int, grid: Locked[Any]) -> None:
    with grid.write(x) as row:
        row[...] = 1
        if x == 1:
            _end_process()


def _write(x: int, grid: Locked[Any]) -> int:
    with grid.write(x) as row:
        row[...] += 1
    return x


def _fill(megabytes: int) -> float:
    return float(np.ones(megabytes << 17).sum())


# Each program ends by itself, or is killed while its workers are in the middle of a task.
_PROGRAM = """
import os, sys, time
import numpy as np
from pathlib import Path
from sharedtask import Shared, parallel

backend, folder, seconds = sys.argv[1:]

def stay(x, table: Shared):
    Path(folder, f"pid-{x}.part").write_text(str(os.getpid()))
    os.replace(Path(folder, f"pid-{x}.part"), Path(folder, f"pid-{x}"))
    time.sleep(float(seconds))
    return float(table[x]) * np.ones(100_000)

task = parallel(stay).with_options(backend=backend, workers=2, chunksize=1)
print(sum(found.sum() for found in task.map(range(2), table=np.ones(300_000))))
"""


class FaultsContract:
    """What holds of a backend when its workers die, and when its caller does.

    Serial and thread run tasks in the caller's own process: what would end that is not tried.
    """

    @pytest.fixture
    def has_workers(self, backend: str) -> None:
        """Skips where tasks run in the process of the caller."""
        if os.getpid() in on_backend(backend, _pid).map([0]):
            pytest.skip("tasks run in the process of the caller, which would end")

    @pytest.mark.usefixtures("has_workers")
    @pytest.mark.parametrize("chunksize", [1, 4])
    def test_death_is_an_error_of_its_item(
        self, backend: str, chunksize: int, tmp_path: Path
    ) -> None:
        """The items that die are named, all others have results, and none is entered twice."""
        task = on_backend(backend, _die_once, return_exceptions=True, chunksize=chunksize)
        found = task.map(range(12), folder=str(tmp_path), bad=[2, 7])
        dead = {k: found[k] for k in range(12) if found[k] != k}
        assert [2, 7] == list(dead)
        for index, error in dead.items():
            assert isinstance(error, WorkerDiedError)
            assert (index, index) == (error.index, error.item)
        assert dict.fromkeys(map(str, range(12)), 1) == counted(tmp_path)
        assert [5] == task.map([5], folder=str(tmp_path), bad=[])

    @pytest.mark.usefixtures("has_workers")
    def test_death_ends_a_map(self, backend: str, tmp_path: Path) -> None:
        """Without ``return_exceptions`` it is raised, and the next map is right."""
        task = on_backend(backend, _die_once, workers=2)
        with pytest.raises(WorkerDiedError) as caught:
            task.map(range(4), folder=str(tmp_path), bad=[1])
        assert 1 == caught.value.index
        assert [0, 1, 2] == task.map(range(3), folder=str(tmp_path), bad=[])

    @pytest.mark.usefixtures("has_workers")
    def test_death_is_retried(self, backend: str, tmp_path: Path) -> None:
        """With ``retries`` the item that died is entered again, and no other one is."""
        task = on_backend(backend, _die_once, retries=1, chunksize=3)
        found = task.map(range(9), folder=str(tmp_path), bad=[4], times=1)
        assert list(range(9)) == found
        once = dict.fromkeys(map(str, range(9)), 1)
        assert {**once, "4": 2} == counted(tmp_path)

    @pytest.mark.usefixtures("has_workers")
    def test_death_of_a_submitted_item(self, backend: str, tmp_path: Path) -> None:
        """Its future has the error, and those submitted beside it their results."""
        task = on_backend(backend, _die_once, workers=2)
        futures = [task.submit(k, folder=str(tmp_path), bad=[1]) for k in range(4)]
        assert isinstance(futures[1].exception(60), WorkerDiedError)
        assert [0, 2, 3] == [futures[k].result(60) for k in (0, 2, 3)]
        assert dict.fromkeys("0123", 1) == counted(tmp_path)

    @pytest.mark.usefixtures("has_workers")
    def test_death_in_a_lock(self, backend: str) -> None:
        """A lock ends with its holder, and its region says so; or ``Locked`` is refused."""
        grid = np.zeros((3, 2))
        task = on_backend(backend, _die_holding, return_exceptions=True)
        found = _tried(lambda: task.map(range(3), grid=grid), "'grid'")
        if found is None:
            return
        assert isinstance(found[1], WorkerDiedError)
        after = on_backend(backend, _write, return_exceptions=True).map(range(3), grid=grid)
        assert isinstance(after[1], RegionPoisonedError)
        assert [0, 2] == [after[0], after[2]]

    @pytest.mark.usefixtures("has_workers")
    def test_limit_of_tasks_is_kept_or_refused(self, backend: str) -> None:
        """A worker is replaced after so many items, or the option and the backend are named."""
        _leave_to_ray(backend)
        task = on_backend(backend, _pid, tasks_per_worker=1)
        found = _tried(lambda: task.map(range(3)), "tasks_per_worker", backend)
        assert found is None or 3 == len(set(found))

    @pytest.mark.usefixtures("has_workers")
    def test_limit_of_memory_is_kept_or_refused(self, backend: str) -> None:
        """An item that takes more memory is told, or the option and the backend are named."""
        _leave_to_ray(backend)
        task = on_backend(backend, _fill, memory_limit="250MB", return_exceptions=True)
        found = _tried(lambda: task.map([1, 400]), "memory_limit", backend)
        assert found is None or isinstance(found[1], MemoryLimitError)

    def test_program_that_ends_leaves_nothing(self, backend: str, tmp_path: Path) -> None:
        """No worker, and no file where temporary ones are made."""
        _leave_to_ray(backend)
        folders = _folders(tmp_path)
        ran = _start(backend, folders, 0.0)
        out, err = ran.communicate(timeout=120)
        assert ("200000.0\n", "", 0) == (out, err, ran.returncode)
        _assert_ended(folders[0])
        assert [] == _ours(folders[1])

    def test_program_that_is_killed(self, backend: str, tmp_path: Path) -> None:
        """Its workers end in the middle of a task; what it left the next program removes."""
        _leave_to_ray(backend)
        folders = _folders(tmp_path)
        ran = _start(backend, folders, 600.0)
        until(lambda: list(folders[0].glob("pid-?")), 60.0, told="no task was begun")
        ran.kill()
        ran.communicate()
        _assert_ended(folders[0])
        after = _start(backend, folders, 0.0)
        assert 0 == after.wait(120)
        after.communicate()
        until(lambda: not _ours(folders[1]), told=f"left behind: {_ours(folders[1])}")


def _tried(work: Callable[[], list[Any]], *names: str) -> list[Any] | None:
    """What it gives; None where it is refused by an error that has these names in it."""
    try:
        return work()
    except (UnshareableError, OptionsError) as error:
        if all(name in str(error) for name in names):
            return None
        raise


def _leave_to_ray(backend: str) -> None:
    if backend == "ray":
        pytest.skip("Ray has options, processes and files of its own")


def _folders(home: Path) -> tuple[Path, Path]:
    """Where a program tells of itself, and where it has its temporary files."""
    told, temporary = home / "told", home / "temporary"
    told.mkdir()
    temporary.mkdir()
    return told, temporary


def _start(backend: str, folders: tuple[Path, Path], seconds: float) -> subprocess.Popen[str]:
    program = folders[0].parent / "program.py"
    program.write_text(_PROGRAM, "utf-8")
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP", "SHAREDTASK_STORE_DIR"), str(folders[1]))
    return subprocess.Popen(  # noqa: S603  this interpreter
        [sys.executable, str(program), backend, str(folders[0]), str(seconds)],
        env={**os.environ, **places},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _assert_ended(told: Path) -> None:
    """All workers that a program told of end."""
    pids = [int(path.read_text("utf-8")) for path in told.glob("pid-?")]
    assert pids
    until(lambda: not any(map(_is_running, pids)), told=f"of workers {pids} some are running")


def _is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
        stat = Path("/proc", str(pid), "stat").read_text("utf-8", "replace")
    except ProcessLookupError:
        return False
    except OSError:  # it runs, or there is no /proc
        return os.path.exists(f"/proc/{pid}") or not os.path.exists("/proc/self")
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _ours(folder: Path) -> list[str]:
    """What is left in a folder that no other program uses, but for what Python itself keeps."""
    return sorted(path.name for path in folder.iterdir() if "sharedtask" in path.name)
