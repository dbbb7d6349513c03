"""What a container or a sandbox may lack: a fallback, or an error that says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from sharedtask.memory import unlinked_files

DENIED = Path(__file__).parents[1] / "denied.py"

PROGRAM = """
import numpy as np
from sharedtask import Locked, Partitioned, Reduced, Shared, parallel, share

@parallel(backend="process", workers=2)
def total(_x: int, data: Shared[np.ndarray]) -> float:
    return float(data.sum())

@parallel(backend="process", workers=2)
def double(_x: int, block: Partitioned[np.ndarray]) -> None:
    block *= 2

@parallel(backend="process", workers=2)
def count(x: int, bins: Reduced[np.ndarray]) -> None:
    bins[x % 3] += 1

@parallel(backend="process", workers=2)
def stamp(x: int, grid: Locked[np.ndarray]) -> None:
    with grid.write(x) as row:
        row += 1

def tried(name, work):
    try:
        print(name, work())
    except Exception as error:
        print(name, f"{type(error).__name__}: {error}")

def written(task, array):
    task.map(range(6), array)
    return array.sum()

def by_name():
    with share(data, name="test-denied") as handle:
        return total.map([0], data=handle)

data = np.ones(300_000)
tried("shared", lambda: total.map(range(2), data=data))
data[0] = 2
tried("changed", lambda: total.map([0], data=data))
tried("blocks", lambda: written(double, np.ones(60_000)))
tried("bins", lambda: written(count, np.zeros(3)))
tried("large results", lambda: sum(map(len, parallel(np.ones).map([300_000] * 2))))
tried("name", by_name)
tried("locks", lambda: written(stamp, np.zeros((6, 2))))
tried("limit", lambda: total.with_options(memory_limit="1GiB").map([0], data=data))
"""
RIGHT = {
    "shared": "[300000.0, 300000.0]",
    "changed": "[300001.0]",
    "blocks": "60006.0",
    "bins": "6.0",
    "large results": "600000",
    "name": "[300001.0]",
    "locks": "12.0",
    "limit": "[300001.0]",
}


def said(folder: Path, *command: str) -> dict[str, str]:
    """What the program prints when it is started so, by step; warnings are errors."""
    script = folder / "program.py"
    script.write_text(PROGRAM, "utf-8")
    ran = subprocess.run(
        [*command, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if ran.returncode and ran.stderr.startswith(
        ("unshare:", "mount:", "sh:", "OSError: no filter")
    ):
        pytest.skip(f"it cannot be denied here: {ran.stderr.splitlines()[-1]}")
    assert "" == ran.stderr
    lines = [line for line in ran.stdout.splitlines() if line]
    found = {}
    for line in lines:
        name = next(name for name in RIGHT if line.startswith(f"{name} "))
        found[name] = line.removeprefix(f"{name} ")
    return found


# "bind": this mount alone, and not the file system that all processes see.
READ_ONLY = "mount -o remount,bind,ro /dev/shm && test ! -w /dev/shm"


def in_namespace(mounts: str, *command: str) -> list[str]:
    """A command that sees other mounts than this process."""
    return ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command]


def test_encoding_warnings_are_errors(tmp_path: Path) -> None:
    """No file is read or written in the encoding that the place happens to have."""
    assert said(tmp_path, sys.executable, "-X", "warn_default_encoding") == RIGHT


def test_locks_of_files_are_denied(tmp_path: Path) -> None:
    """Locked says which system call is missing and what to use; all the rest works."""
    found = said(tmp_path, sys.executable, str(DENIED), "locks")
    locks = found.pop("locks")
    assert {name: text for name, text in RIGHT.items() if name != "locks"} == found
    assert locks.startswith("UnshareableError: 'grid' cannot be locked: locks of open files")
    assert "fcntl(F_OFD_SETLK): Invalid argument" in locks
    assert "use Partitioned or Reduced" in locks


def test_memory_without_a_name_is_denied(tmp_path: Path) -> None:
    """Without memfd, and where /dev/shm cannot be written, files go where temporary ones do."""
    command = in_namespace(READ_ONLY, sys.executable, str(DENIED), "memfd")
    assert said(tmp_path, *command) == RIGHT


def test_system_without_proc(tmp_path: Path) -> None:
    """What looks into /proc says so and what to do; all the rest works."""
    found = said(tmp_path, *in_namespace("mount -t tmpfs none /proc", sys.executable))
    name, locks, limit = map(found.pop, ("name", "locks", "limit"))
    assert found == {each: text for each, text in RIGHT.items() if each in found}
    assert 5 == len(found)
    assert locks.startswith(
        "UnshareableError: 'grid' cannot be locked: each thread opens the locks"
    )
    assert name.startswith("SharedTaskError: values have no names here")
    assert "/proc/sys/kernel/random/boot_id" in name
    assert limit.startswith("OptionsError: memory_limit= cannot be kept here")


def test_folder_of_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The folder is the one that is named, else the RAM disk, else that of temporary files."""
    monkeypatch.delenv("SHAREDTASK_STORE_DIR", raising=False)
    monkeypatch.setattr(unlinked_files, "_RAM_DISK", str(tmp_path))
    assert str(tmp_path) == unlinked_files.folder()
    monkeypatch.setattr(unlinked_files, "_RAM_DISK", str(tmp_path / "absent"))
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    assert "/var/tmp" == unlinked_files.folder()
    monkeypatch.setenv("SHAREDTASK_STORE_DIR", "/elsewhere")
    assert "/elsewhere" == unlinked_files.folder()
