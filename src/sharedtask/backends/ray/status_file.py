"""A worker's status page as a file, readable on its node after the worker's death.

No parent of ours can map the memory of a Ray worker, so the status page that a local worker shares
with its caller is a file in the session's folder here. Results that left the outbox during a chunk
are appended to it. It belongs to one worker process and one caller. At its start a worker removes
the files of dead ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.backends.worker import log_box, status_page
from sharedtask.backends.worker.status_page import Phase, Word
from sharedtask.memory import unlinked_files

from . import runtime

if TYPE_CHECKING:
    from collections.abc import Callable

_FOLDER = "sharedtask"
# Further words: bytes in the log, and the chunk that must stop.
_LOGGED, _STOP = 20, 21
_OLD_SECONDS = 600.0
_STOP_SECONDS = 0.5
_FRAME = struct.Struct("<QQQQQ")
_MAX_LOG = 1 << 26


class CrashReport(NamedTuple):
    """Data of a dead worker: status page words, recorded results, crash report."""

    pid: int
    words: list[int]
    frames: list[Any]
    text: str
    logs: list[bytes] = []  # noqa: RUF012  never changed


class StatusFile:
    """The worker's side of the file."""

    def __init__(self, origin: bytes) -> None:
        folder = _folder()
        _sweep(folder)
        self._path = folder / f"{os.getpid()}-{_started(os.getpid())}-{origin.hex()}"
        self._given_up = folder / _given_up_name(origin, 0)[:-1]
        self.fd = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        unlinked_files.reserve(self.fd, status_page.SIZE)
        self.words = status_page.open_words(self.fd)
        self.outbox = status_page.open_outbox(self.fd)
        self.crash_log = status_page.open_crash_log(self.fd)

    def close(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
        os.close(self.crash_log)
        os.close(self.fd)

    @property
    def is_stopped(self) -> bool:
        """Whether the caller gave up the current chunk."""
        return self.words[_STOP] == self.words[Word.CHUNK]

    def is_given_up(self, number: int) -> bool:
        """Whether the caller gave up a chunk that had not been begun anywhere."""
        return os.path.exists(f"{self._given_up}{number}")

    def begin(self) -> None:
        """A chunk begins: the log is empty."""
        self.words[_LOGGED] = 0

    def log(self, mode: int, first: int, items: int, elapsed: int, data: bytes) -> bool:
        """Record results that left the outbox in the middle of a chunk; False if it is full."""
        at = self.words[_LOGGED]
        record = _FRAME.pack(mode, first, items, elapsed, len(data)) + data
        if at + len(record) > _MAX_LOG:
            return False
        os.pwrite(self.fd, record, status_page.SIZE + at)
        self.words[_LOGGED] = at + len(record)
        return True


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
            words = memoryview(file.read(64 * 8)).cast("Q")
            if words[Word.CHUNK] not in numbers or words[Word.PHASE] == Phase.IDLE:
                continue
            if kill:
                reaches = _kill_at(path, words[Word.CHUNK]) and reaches
            os.pwrite(file.fileno(), words[Word.CHUNK].to_bytes(8, sys.byteorder), 8 * _STOP)
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
        words = memoryview(path.read_bytes()[: 64 * 8]).cast("Q")
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
            data = memoryview(path.read_bytes())
            words = data[: 64 * 8].cast("Q")
            if words[Word.CHUNK] == number:
                return _read(path, data, words)
    return None


def _read(path: Path, data: memoryview, words: memoryview) -> CrashReport:
    size = status_page.SIZE - status_page.CRASH_SIZE
    frames = list(_logged(data[status_page.SIZE : status_page.SIZE + words[_LOGGED]]))
    ring = data[status_page.LOG_AT : status_page.LOG_AT + status_page.LOG_SIZE]
    outbox = bytes(data[status_page.WORDS_SIZE : status_page.LOG_AT])
    frames.append((words[Word.MODE], words[Word.BASE], words[Word.COUNT], 0, outbox, None))
    crash = bytes(data[size : status_page.SIZE]).rstrip(b"\0").decode("utf-8", "replace")
    logged = [record for _, record in log_box.unread(words, ring, words[Word.LOGGED])]
    return CrashReport(_pid_of(path), list(words[:16]), frames, crash, logged)


def _logged(log: memoryview) -> Any:
    while log:
        mode, first, items, elapsed, length = _FRAME.unpack_from(log)
        data = bytes(log[_FRAME.size : _FRAME.size + length])
        yield mode, first, items, elapsed, data, None
        log = log[_FRAME.size + length :]


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
