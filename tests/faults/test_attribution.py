import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from light import enter, entered, linger, poisoned

from sharedtask import WorkerDiedError, parallel
from sharedtask.system.cgroups import MEMBERSHIP, MOUNT, directories
from sharedtask.system.oom_events import OutOfMemoryKills
from sharedtask.testing import Deadline
from sharedtask.testing.resources import Belongings

pytestmark = [pytest.mark.timeout(60)]
checked = pytest.mark.usefixtures("common_check")


def on_processes(function: Callable[..., Any], **options: Any) -> Any:
    return parallel(function).with_options(**{"backend": "process", **options})


# ---------------------------------------------------------------------- who ran out of memory


LAYOUTS: dict[str, tuple[str, str, str]] = {
    # membership, the file that counts, one that does not
    "version 2": ("0::/a/b\n", "a/b/memory.events", "a/memory.events"),
    "version 2, not controlled here": ("0::/a/b\n", "a/memory.events", "memory.events"),
    "version 2 in a container": ("0::/docker/77\n", "memory.events", "other/memory.events"),
    "version 1": (
        "5:cpu:/c\n4:memory:/a/b\n0::/\n",
        "memory/a/b/memory.oom_control",
        "memory/memory.oom_control",
    ),
    "version 1 in a container": (
        "4:memory:/docker/77\n",
        "memory/memory.oom_control",
        "cpu/memory.oom_control",
    ),
    "hybrid": ("4:memory:/a\n0::/a\n", "memory/a/memory.oom_control", "unified/a/memory.stat"),
}


def write_count(file: Path, count: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"low 0\noom 9\noom_kill {count}\noom_group_kill 0\n")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kills_are_counted_in_the_nearest_group(layout: str, tmp_path: Path) -> None:
    """Each kill that the kernel counts in our group is claimed once, by one dead worker."""
    membership, counting, other = LAYOUTS[layout]
    (tmp_path / "cgroup").write_text(membership)
    for name in (counting, other):
        write_count(tmp_path / "mount" / name, 7)
    machine = tmp_path / "vmstat"
    machine.write_text("oom_kill 3\n")
    kills = OutOfMemoryKills(tmp_path / "cgroup", tmp_path / "mount", machine)
    assert not kills.claim()
    write_count(tmp_path / "mount" / other, 20)
    machine.write_text("oom_kill 30\n")
    assert not kills.claim()
    write_count(tmp_path / "mount" / counting, 9)
    assert [True, True, False] == [kills.claim() for _ in range(3)]


@pytest.mark.parametrize("membership", [None, "", "0::/a\n", "not a line\n"])
def test_kills_of_the_machine_count_where_there_are_no_groups(
    membership: str | None, tmp_path: Path
) -> None:
    """Where memory is in no control group, what the kernel counts for the machine counts."""
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership)
    machine = tmp_path / "vmstat"
    machine.write_text("nr_free 1\noom_kill 3\n")
    kills = OutOfMemoryKills(tmp_path / "cgroup", tmp_path / "mount", machine)
    assert not kills.claim()
    machine.write_text("nr_free 1\noom_kill 4\n")
    assert [True, False] == [kills.claim(), kills.claim()]
    machine.unlink()
    assert not kills.claim()


def test_no_counts_at_all(tmp_path: Path) -> None:
    """Where nothing is counted, nothing is claimed."""
    nowhere = tmp_path / "nowhere"
    assert not OutOfMemoryKills(nowhere, nowhere, nowhere).claim()


def test_texts_of_a_kill() -> None:
    """The error says out of memory where the kernel does, and asks where it does not."""
    known = WorkerDiedError("f", 3, 3, 77, signal.SIGKILL, None, "", True)
    assert "f(), item 3. The kernel was out of memory." in str(known)
    assert "memory_limit=" in str(known)
    assert "If memory ran out" in str(WorkerDiedError("f", 3, 3, 77, signal.SIGKILL))


@checked
def test_kill_by_hand_is_no_lack_of_memory(tmp_path: Path) -> None:
    """Who is killed by another process is not said to have run out of memory."""
    task = on_processes(poisoned, return_exceptions=True)
    (error,) = task.map([0], folder=str(tmp_path), bad=[0])
    assert not error.out_of_memory
    assert "If memory ran out" in str(error)


HUNGRY = """
import sys
import time
from pathlib import Path

group = Path(sys.argv[1])
(group / "cgroup.procs").write_text("0")

import numpy as np
from sharedtask import parallel

def eat(x):
    if x == 3:
        data = [np.ones(1 << 20) for _ in range(500)]
        time.sleep(20)
    return x

task = parallel(eat).with_options(backend="process", workers=2, return_exceptions=True, chunksize=2)
results = task.map(range(8))
error = results.pop(3)
assert [0, 1, 2, 4, 5, 6, 7] == results, results
print(type(error).__name__, error.index, error.signal, error.out_of_memory)
print(error)
"""


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of at most 300 MB of memory."""
    name = f"sharedtask-test-{uuid.uuid4().hex[:8]}"
    found = directories("memory", MEMBERSHIP, MOUNT)
    files = {"memory.limit_in_bytes": "memory.oom_control", "memory.max": "memory.events"}
    for parent in (each for each in found if each.is_dir()):
        if not any((parent / counts).exists() for counts in files.values()):
            continue
        group = parent / name
        with contextlib.suppress(OSError):
            group.mkdir()
        limit = next((group / limit for limit in files if (group / limit).exists()), None)
        try:
            if limit is None:
                continue
            limit.write_text("300000000")
            for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
                if (group / swap).exists():
                    (group / swap).write_text("300000000" if "memsw" in swap else "0")
            yield group
            return
        except OSError as error:
            pytest.skip(f"the control group {group} cannot be limited: {error}")
        finally:
            _remove(group)
    pytest.skip("no control group of memory can be made here")


def _remove(group: Path) -> None:
    limit = time.monotonic() + 5
    while group.is_dir() and time.monotonic() < limit:
        try:
            group.rmdir()
        except OSError:  # its last process is being taken down
            time.sleep(0.01)


def test_kernel_that_is_out_of_memory_is_named(memory_group: Path, tmp_path: Path) -> None:
    """A worker that the kernel ends for lack of memory is told from one that was killed."""
    script = tmp_path / "hungry.py"
    script.write_text(HUNGRY)
    ran = subprocess.run(
        [sys.executable, script, memory_group],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "" == ran.stderr
    first, text = ran.stdout.splitlines()
    assert f"WorkerDiedError 3 {int(signal.SIGKILL)} True" == first
    assert "The kernel was out of memory" in text


LARGE = """
import sys
from pathlib import Path

group = Path(sys.argv[1])
(group / "cgroup.procs").write_text("0")

import numpy as np
from sharedtask import Shared, StoreFullError, parallel

def total(x, data: Shared[np.ndarray]):
    return float(data.sum())

data = np.ones(180_000_000 // 8)
task = parallel(total).with_options(backend="process", workers=2)
try:
    task.map(range(4), data=data)
except StoreFullError as error:
    print(error)
del data
print(task.map(range(2), data=np.ones(1_000_000)))
"""


def test_value_that_a_group_has_no_room_for(memory_group: Path, tmp_path: Path) -> None:
    """The program has an error and goes on, where the kernel would have ended it."""
    script = tmp_path / "large.py"
    script.write_text(LARGE)
    command = [sys.executable, str(script), str(memory_group)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "" == ran.stderr
    refused, results = ran.stdout.splitlines()
    assert re.fullmatch(r".*180\.0 MB needed, [\d.]+ MB available \(it does not fit.*", refused)
    assert "[1000000.0, 1000000.0]" == results


# ------------------------------------------------------------------- who is blamed, how often


@checked
@pytest.mark.parametrize("chunksize", ["auto", 1, 7, 40])
def test_poison_is_kept_apart(chunksize: Any, tmp_path: Path) -> None:
    """Items that kill their worker are errors at their places, and all others are run, once."""
    task = on_processes(poisoned, return_exceptions=True, chunksize=chunksize)
    results = task.map(range(40), folder=str(tmp_path), bad=[0, 13, 14, 39])
    dead = {k: error for k, error in enumerate(results) if isinstance(error, WorkerDiedError)}
    assert [0, 13, 14, 39] == list(dead) == [error.index for error in dead.values()]
    assert [x for x in range(40) if x not in dead] == [r for r in results if isinstance(r, int)]
    assert dict.fromkeys(range(40), 1) == entered(tmp_path)


@checked
@pytest.mark.parametrize("chunksize", ["auto", 1, 7])
def test_poison_is_blamed(chunksize: Any, tmp_path: Path) -> None:
    """Without ``return_exceptions`` the error names the poison, and nothing is run twice."""
    task = on_processes(poisoned, chunksize=chunksize)
    with pytest.raises(WorkerDiedError) as caught:
        task.map(range(40), folder=str(tmp_path), bad=[13])
    assert (13, 13) == (caught.value.index, caught.value.item)
    assert {1} == set(entered(tmp_path).values())


@checked
@pytest.mark.parametrize("chunksize", ["auto", 1, 7])
def test_poison_is_tried_as_often_as_asked(chunksize: Any, tmp_path: Path) -> None:
    """With ``retries=2`` poison is entered three times, and every other item once."""
    task = on_processes(poisoned, return_exceptions=True, retries=2, chunksize=chunksize)
    results = task.map(range(30), folder=str(tmp_path), bad=[13, 20])
    assert [13, 20] == [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert {**dict.fromkeys(range(30), 1), 13: 3, 20: 3} == entered(tmp_path)


@checked
@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("chunksize", [1, 5])
def test_killed_while_a_result_is_sent(retries: int, chunksize: int, tmp_path: Path) -> None:
    """A worker that dies while it sends a large result has run its item: only retries run it."""
    task = on_processes(
        poisoned, return_exceptions=True, retries=retries, chunksize=chunksize, workers=2
    )
    results = task.map(range(20), folder=str(tmp_path), bad=[3, 11], size=60_000_000)
    assert [x for x in range(20) if x not in (3, 11)] == [r for r in results if isinstance(r, int)]
    tries = 1 + retries
    assert {**dict.fromkeys(range(20), 1), 3: tries, 11: tries} == entered(tmp_path)


@checked
@pytest.mark.parametrize("retries", [0, 1])
def test_all_workers_killed_by_another_process(retries: int, tmp_path: Path) -> None:
    """However often a child of the caller kills all workers, no item is run twice unasked."""
    task = on_processes(
        linger, return_exceptions=True, retries=retries, retry_on=WorkerDiedError, chunksize=6
    )
    killer = threading.Thread(target=_kill_all, args=(tmp_path, 5))
    killer.start()
    results = task.map(range(60), folder=str(tmp_path), seconds=0.03)
    killer.join()
    died = [r.index for r in results if isinstance(r, WorkerDiedError)]
    assert [x for x in range(60) if x not in died] == [r for r in results if isinstance(r, int)]
    ran = entered(tmp_path)
    assert set(range(60)) - set(died) <= set(ran)
    assert 1 + retries >= max(ran.values())
    if not retries:
        assert 0 < len(died) <= 10
    else:
        assert 10 >= sum(count > 1 for count in ran.values()) > 0


def _kill_all(folder: Path, times: int) -> None:
    """Have a process that is no worker kill those that have entered items, some items apart."""
    begun = 0
    for _ in range(times):
        deadline = Deadline(20)
        while sum(entered(folder).values()) < begun + 4 and not deadline.is_over:
            time.sleep(0.005)
        begun = sum(entered(folder).values())
        pids = {int(line.split()[1]) for line in (folder / "entered").read_text().splitlines()}
        alive = pids & Belongings.now().children  # a dead one's number may be somebody else's
        subprocess.run(["kill", "-9", *map(str, alive)], capture_output=True, check=False)


@checked
def test_submitted_poison(tmp_path: Path) -> None:
    """A future's item is entered as often as ``retries`` says."""
    for retries in (0, 2):
        task = on_processes(poisoned, retries=retries)
        future = task.submit(retries, folder=str(tmp_path), bad=[retries])
        assert isinstance(future.exception(60), WorkerDiedError)
        assert 1 + retries == entered(tmp_path)[retries]


def test_every_entry_is_counted(tmp_path: Path) -> None:
    """The counter of these tests counts: twice entered is two, by this process as by others."""
    assert [1, 2] == [enter(str(tmp_path), 5), enter(str(tmp_path), 5)]
    assert {5: 2} == entered(tmp_path)
    assert os.getpid() == int((tmp_path / "entered").read_text().split()[-1])
