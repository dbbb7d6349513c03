"""A worker's status page as a file, which can be read after the worker's death.

The parent of such a worker belongs to another library, and passes no memory of ours. So the status
page that a worker of our own pool shares with its caller is a file here. Results that left the
outbox during a chunk are appended to it. It belongs to one worker process and one caller.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from sharedtask.backends.worker import log_box, status_page
from sharedtask.backends.worker.status_page import Word

if TYPE_CHECKING:
    from pathlib import Path

# Further words: bytes in the log, the chunk that must stop, and the process.
_LOGGED, STOP, PID = 20, 21, 22
WORDS_BYTES = 64 * 8
_FRAME = struct.Struct("<QQQQQ")
_MAX_LOG = 1 << 26
_READ_AND_WRITE = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class CrashReport(NamedTuple):
    """Data of a dead worker: status page words, recorded results, crash report."""

    pid: int
    words: list[int]
    frames: list[Any]
    text: str
    logs: list[bytes] = []  # noqa: RUF012  never changed


class StatusFile:
    """The worker's side of a file of ``status_page.SIZE`` bytes."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, _READ_AND_WRITE)
        self.words = status_page.open_words(self._fd)
        self.outbox = status_page.open_outbox(self._fd)
        self.log_ring = status_page.open_log(self._fd)
        # Opened on its own: only faulthandler uses its offset.
        self.crash_log = os.open(path, _READ_AND_WRITE)
        os.lseek(self.crash_log, status_page.CRASH_AT, os.SEEK_SET)
        self.words[PID] = os.getpid()

    def close(self) -> None:
        """Close the file."""
        os.close(self.crash_log)
        os.close(self._fd)

    @property
    def is_stopped(self) -> bool:
        """Whether the caller gave up the current chunk."""
        return self.words[STOP] == self.words[Word.CHUNK]

    def begin(self) -> None:
        """A chunk begins: the log is empty."""
        self.words[_LOGGED] = 0

    def log(self, mode: int, first: int, items: int, elapsed: int, data: bytes) -> bool:
        """Record results that left the outbox in the middle of a chunk; False if it is full."""
        at = self.words[_LOGGED]
        record = _FRAME.pack(mode, first, items, elapsed, len(data)) + data
        if at + len(record) > _MAX_LOG:
            return False
        os.lseek(self._fd, status_page.SIZE + at, os.SEEK_SET)
        os.write(self._fd, record)
        self.words[_LOGGED] = at + len(record)
        return True


def words_of(data: bytes) -> memoryview:
    """The words at the beginning of a status file."""
    return memoryview(data[:WORDS_BYTES]).cast("Q")


def read(data: bytes) -> CrashReport:
    """What a worker left in its status file."""
    whole, words = memoryview(data), words_of(data)
    frames = list(_logged(whole[status_page.SIZE : status_page.SIZE + words[_LOGGED]]))
    ring = whole[status_page.LOG_AT : status_page.LOG_AT + status_page.LOG_SIZE]
    outbox = bytes(whole[status_page.WORDS_SIZE : status_page.LOG_AT])
    frames.append((words[Word.MODE], words[Word.BASE], words[Word.COUNT], 0, outbox, None))
    crash = bytes(whole[status_page.CRASH_AT : status_page.SIZE])
    text = crash.rstrip(b"\0").decode("utf-8", "replace")
    logged = [record for _, record in log_box.unread(words, ring, words[Word.LOGGED])]
    return CrashReport(words[PID], list(words[:16]), frames, text, logged)


def _logged(log: memoryview) -> Any:
    while log:
        mode, first, items, elapsed, length = _FRAME.unpack_from(log)
        data = bytes(log[_FRAME.size : _FRAME.size + length])
        yield mode, first, items, elapsed, data, None
        log = log[_FRAME.size + length :]
