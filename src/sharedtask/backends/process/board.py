"""The board: a page of numbers and an outbox in memory that a worker and its caller both see.

A worker that dies takes nothing with it that stands here: how far it had come, and the results that
it had not sent yet. It writes a result first and then the count, so what is counted is whole.
"""

from __future__ import annotations

import enum
import mmap

from sharedtask.sharing import mapping, segments

OUTBOX_SIZE = 1 << 18
_WORDS_SIZE = mmap.ALLOCATIONGRANULARITY
SIZE = _WORDS_SIZE + OUTBOX_SIZE


class Word(enum.IntEnum):
    """Places on the board, each an unsigned number of 64 bits."""

    CHUNK = 0  # the chunk in hand; 0 for none
    BASE = 1  # how many of its items have been sent
    COUNT = 2  # how many more lie in the outbox
    BYTES = 3  # ... and their length there
    SCALARS = 4  # ... and whether they are scalars (1) or records (0)
    PHASE = 5
    STARTED = 6  # when the item in hand was begun, CLOCK_MONOTONIC in ns; only under a timeout
    CANCEL = 7  # this and the next: the caller writes the number of a chunk to be given up
    NUMPY = 9  # whether some of the scalars are numpy's


class Phase(enum.IntEnum):
    """What the worker is doing with the chunk in hand."""

    IDLE = 0
    LOADING = 1  # the function and the shared values
    UNPACKING = 2  # the items
    RUNNING = 3


class Board:
    """The caller's side; the worker maps the same descriptor."""

    def __init__(self) -> None:
        self.fd = segments.scratch(SIZE)
        self._view = memoryview(mapping.view(self.fd, SIZE, writable=True))
        self.words = self._view[:_WORDS_SIZE].cast("Q")

    def outbox(self) -> bytes:
        """The results that lie in the outbox of a dead worker."""
        return bytes(self._view[_WORDS_SIZE : _WORDS_SIZE + self.words[Word.BYTES]])


def open_words(fd: int) -> memoryview:
    """The board's numbers, in the worker."""
    return memoryview(mmap.mmap(fd, _WORDS_SIZE)).cast("Q")


def open_outbox(fd: int) -> mmap.mmap:
    """The outbox, in the worker: a file-like object, whose ``write`` is the fastest there is."""
    return mmap.mmap(fd, OUTBOX_SIZE, offset=_WORDS_SIZE)
