"""The board: a page of numbers and an outbox in memory that a worker and its caller both see.

A worker that dies takes nothing with it that stands here: how far it had come, and the results that
it had not sent yet. It writes a result first and then the count, so what is counted is whole.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

from sharedtask.memory import mapping, segments
from sharedtask.system import critical_sections

OUTBOX_SIZE = 1 << 18
WORDS_SIZE = mmap.ALLOCATIONGRANULARITY
CRASH_SIZE = 1 << 14  # the last words of a worker that crashes, written by faulthandler
_CRASH_AT = WORDS_SIZE + OUTBOX_SIZE
SIZE = _CRASH_AT + CRASH_SIZE


class Word:
    """Places on the board, each 64 bits, unsigned. Plain numbers, because they are used often."""

    CHUNK: Final = 0  # the chunk in hand; 0 for none
    BASE: Final = 1  # how many of its items have been sent
    COUNT: Final = 2  # how many more lie in the outbox
    MODE: Final = 3  # ... and how they are written, see results.py
    PHASE: Final = 4
    STARTED: Final = 5  # when the item in hand was begun, CLOCK_MONOTONIC in ns; where timed
    NOTE: Final = 6  # this and the next, one for each chunk that a worker may have: see below
    # Private memory in bytes, where it is limited.
    FRESH: Final = 8  # before the worker's first item
    BEFORE: Final = 9  # before the item in hand
    WORN: Final = 10  # the chunk that was ended because it was too much


# The caller's word to a worker about a chunk, looked at between two items: a number that is raised
# by two when results should be sent, and made odd when the chunk is given up.
HURRY, GIVE_UP = 2, 1


class Phase:
    """What the worker is doing with the chunk in hand."""

    IDLE: Final = 0
    LOADING: Final = 1  # the function and the shared values
    UNPACKING: Final = 2  # the items
    RUNNING: Final = 3


_fence = critical_sections.object_lock()


def fence() -> None:
    """What was written before is seen by the other side before what is read hereafter is read.

    Taking a lock is the full memory barrier that Python has.
    """
    with _fence:
        pass


class Board:
    """The caller's side; the worker maps the same descriptor."""

    def __init__(self) -> None:
        self.fd = segments.scratch(SIZE)
        self._view = memoryview(mapping.view(self.fd, SIZE, writable=True))
        self.words = self._view[:WORDS_SIZE].cast("Q")

    def outbox(self) -> bytes:
        """The results that lie in the outbox of a dead worker."""
        return bytes(self._view[WORDS_SIZE:_CRASH_AT])

    def crash(self) -> str:
        """What faulthandler wrote when the worker crashed."""
        return bytes(self._view[_CRASH_AT:]).rstrip(b"\0").decode("utf-8", "replace")


def open_words(fd: int) -> memoryview:
    """The board's numbers, in the worker."""
    return memoryview(mmap.mmap(fd, WORDS_SIZE)).cast("Q")


def open_outbox(fd: int) -> mmap.mmap:
    """The outbox, in the worker: a file-like object, whose ``write`` is the fastest there is."""
    return mmap.mmap(fd, OUTBOX_SIZE, offset=WORDS_SIZE)


def open_crash_log(fd: int) -> int:
    """A descriptor for faulthandler, in the worker: with a place of its own in the same memory."""
    log = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    os.lseek(log, _CRASH_AT, os.SEEK_SET)
    return log
