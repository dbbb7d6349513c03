"""The status files of Ray workers, in the folder of Ray's session on their node.

At its start a worker removes the files of dead ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sharedtask.backends.carried import status_file
from sharedtask.backends.carried.status_file import STOP, WORDS_BYTES, words_of
from sharedtask.backends.worker import status_page
from sharedtask.backends.worker.status_page import Phase, Word
from sharedtask.memory import unlinked_files

from . import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.carried.status_file import CrashReport

_FOLDER = "sharedtask"
_OLD_SECONDS = 600.0
_STOP_SECONDS = 0.5


class RayStatusFile(status_file.StatusFile):
    """A file with the worker's pid in its name, that the worker makes and removes."""

    def __init__(self, origin: bytes) -> None:
        folder = _folder()
        _sweep(folder)
        self._path = folder / f"{os.getpid()}-{_started(os.getpid())}-{origin.hex()}"
        self._given_up = folder / _given_up_name(origin, 0)[:-1]
        fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            unlinked_files.reserve(fd, status_page.SIZE)
        finally:
            os.close(fd)
        super().__init__(self._path)

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
        super().close()

    def is_given_up(self, number: int) -> bool:
        """Whether the caller gave up a chunk that had not been begun anywhere."""
        return os.path.exists(f"{self._given_up}{number}")


def stop(origin: bytes, numbers: tuple[int, ...], *, kill: bool) -> bool:
    """Make workers of this node end these chunks after the current item, or at once.

    False if one of these workers is dead, or in a PID namespace that this process does not see.

    Not by Ray's cancellation: if the task ends by itself at the same moment, that ends the whole
    process of the caller (ray-project/ray, pull request 54785).
    """
    folder, reaches = _folder(), True
    for number in numbers:
        (folder / _given_up_name(origin, number)).touch()
    for path in folder.glob(f"[0-9]*-{origin.hex()}"):
        with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:
            words = words_of(file.read(WORDS_BYTES))
            if words[Word.CHUNK] not in numbers or words[Word.PHASE] == Phase.IDLE:
                continue
            if kill:
                reaches = _kill_at(path, words[Word.CHUNK]) and reaches
            os.pwrite(file.fileno(), words[Word.CHUNK].to_bytes(8, sys.byteorder), 8 * STOP)
    return reaches


def _kill_at(path: Path, number: int) -> bool:
    """Kill a worker at a chunk. Stop it first: by now it may be at a chunk of another call."""
    pid, then = _pid_of(path), signal.SIGCONT
    if path.name.split("-")[1] != str(_started(pid)):
        return False  # it is dead or in another namespace: the pid means another process
    os.kill(pid, signal.SIGSTOP)
    try:
        limit = time.monotonic() + _STOP_SECONDS
        while not _has_stopped(pid) and time.monotonic() < limit:
            time.sleep(0.001)
        words = words_of(path.read_bytes())
        if words[Word.CHUNK] == number and words[Word.PHASE] != Phase.IDLE:
            then = signal.SIGKILL
    finally:
        os.kill(pid, then)
    return True


def _has_stopped(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[0]
    return state in "TtZX"


def note_release(origin: bytes, token: int) -> None:
    """Tell workers of this node that what they made by a recipe is not needed any more."""
    with contextlib.suppress(OSError):  # the session's folder is gone, and the workers with it
        (_folder() / _release_name(origin, token)).touch()


def releases(origin: bytes) -> Callable[[object], bool]:
    """A function that tells whether the recipe with this token was released."""
    folder = _folder()
    return lambda token: os.path.exists(folder / _release_name(origin, token))


def _release_name(origin: bytes, token: object) -> str:
    return f"release-{origin.hex()}-{token}"


def _given_up_name(origin: bytes, number: int) -> str:
    return f"stop-{origin.hex()}-{number}"


def _pid_of(path: Path) -> int:
    return int(path.name.partition("-")[0])


def find(origin: bytes, number: int) -> CrashReport | None:
    """Data that the worker of this chunk left on this node; None if it was not here."""
    for path in _folder().glob(f"[0-9]*-{origin.hex()}"):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            if words_of(data)[Word.CHUNK] == number:
                return status_file.read(data)
    return None


def _folder() -> Path:
    """A private folder of this user in the session's folder."""
    node = getattr(runtime.internal("_private.worker").global_worker, "node", None)
    base = node.get_session_dir_path() if node is not None else tempfile.gettempdir()
    folder = Path(base) / f"{_FOLDER}-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or not folder.is_dir() or folder.is_symlink():
        msg = f"{folder} belongs to another user"
        raise PermissionError(msg)
    return folder


def _sweep(folder: Path) -> None:
    """Remove expired files: of dead workers and of given-up chunks.

    A caller may still read the file of a dead worker. So the file is first marked as dead, by its
    mode and time, and removed when the mark is old enough.
    """
    for path in folder.iterdir():
        found = re.fullmatch(r"(\d+)-(\d+)-[0-9a-f]+", path.name)
        with contextlib.suppress(OSError):
            status = path.stat()
            if found and status.st_mode & 0o200:
                if str(_started(int(found[1]))) != found[2]:
                    os.utime(path)
                    path.chmod(0o400)
            elif status.st_mtime < time.time() - _OLD_SECONDS:
                path.unlink()


def _started(pid: int) -> int:
    """When the process started, in ticks since the machine did; 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
