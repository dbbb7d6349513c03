"""The status page: numbers and an outbox in memory that worker and caller share.

It survives a worker's death: how far the worker had come, and the results that it had not sent yet.
The worker writes a result first and then the count, so counted results are complete.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from sharedtask.memory import mapping, segments
from sharedtask.system import critical_sections

OUTBOX_SIZE = 1 << 18
WORDS_SIZE = mmap.ALLOCATIONGRANULARITY
CRASH_SIZE = 1 << 14  # faulthandler's report of a worker that crashes
LOG_SIZE = 1 << 19  # what tasks have logged and the caller has not read: see log_box.py
LOG_AT = WORDS_SIZE + OUTBOX_SIZE
# At the end: a report that is too long is cut off by the end of the memory.
CRASH_AT = LOG_AT + LOG_SIZE
SIZE = CRASH_AT + CRASH_SIZE


class Word:
    """Indices on the status page, each 64 bits, unsigned. Plain numbers, which are faster."""

    CHUNK: Final = 0  # the current chunk; 0 for none
    BASE: Final = 1  # how many of its items have been sent
    COUNT: Final = 2  # how many more are in the outbox
    MODE: Final = 3  # ... and their format, see result_format.py
    PHASE: Final = 4
    STARTED: Final = 5  # begin of the current item, CLOCK_MONOTONIC in ns; if run singly
    REQUEST: Final = 6  # two words, one for each chunk that a worker may have: see below
    # Private memory in bytes, if it is limited.
    FRESH: Final = 8  # before the worker's first item
    BEFORE: Final = 9  # before the current item
    OVER_MEMORY: Final = 10  # the chunk that was ended because memory exceeded the limit
    BEGUN: Final = 11  # how many items of the current chunk may have begun; if run singly
    # Bytes of log records, counted from the worker's start.
    LOGGED: Final = 12  # written by the worker
    LOG_READ: Final = 13  # ... and read by the caller
    LOG_DROPPED: Final = 14  # records for which there was no room


# The caller's request to a worker about a chunk, polled between two items: a number that is raised
# by two to request results, and made odd to give up the chunk.
FLUSH, GIVE_UP = 2, 1


class Phase:
    """What the worker does with the current chunk."""

    IDLE: Final = 0
    LOADING: Final = 1  # the function and the shared values
    UNPACKING: Final = 2  # the items
    RUNNING: Final = 3


_fence = critical_sections.object_lock()


def fence() -> None:
    """Full memory barrier: what is before it comes before what is after it, for the peer as well.

    Python has no barrier but its locks. Giving one back orders what is before that, taking one
    orders what is after that; giving one back and then taking one orders both, so it is taken
    twice. On x86 the first time would do: see decision 36.
    """
    with _fence:
        pass
    with _fence:
        pass


class StatusPage:
    """The caller's side; the worker maps the same descriptor."""

    def __init__(self) -> None:
        self.fd = segments.scratch(SIZE)
        self._view = memoryview(mapping.view(self.fd, SIZE, writable=True))
        self.words = self._view[:WORDS_SIZE].cast("Q")
        self.log = self._view[LOG_AT:CRASH_AT]

    def outbox(self) -> bytes:
        """The results in the outbox of a dead worker."""
        return bytes(self._view[WORDS_SIZE:LOG_AT])

    def crash(self) -> str:
        """The report of faulthandler from the crash of the worker."""
        return bytes(self._view[CRASH_AT:]).rstrip(b"\0").decode("utf-8", "replace")


def open_words(fd: int) -> memoryview:
    """The status page's numbers, in the worker."""
    return memoryview(mmap.mmap(fd, WORDS_SIZE)).cast("Q")


def open_outbox(fd: int) -> mmap.mmap:
    """The outbox, in the worker: a file-like object, whose ``write`` is the fastest way."""
    return mmap.mmap(fd, OUTBOX_SIZE, offset=WORDS_SIZE)


def open_crash_log(fd: int) -> int:
    """A descriptor for faulthandler, in the worker; only its writes use the file's offset."""
    log = os.dup(fd)
    os.lseek(log, CRASH_AT, os.SEEK_SET)
    return log


def open_log(fd: int) -> memoryview:
    """The memory for log records, in the worker."""
    return memoryview(mmap.mmap(fd, LOG_SIZE, offset=LOG_AT))
