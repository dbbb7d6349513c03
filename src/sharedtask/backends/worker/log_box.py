"""Log records in the memory that worker and caller share: a ring that one writes and one reads.

    worker   record -> room in the ring? -> bytes, then Word.LOGGED
    caller   Word.LOGGED -> bytes, then Word.LOG_READ

What a worker has written survives its death. A worker that finds no room waits for the caller to
read, for a small share of its time at most. Then it drops the record; the dropped ones are counted.
"""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from .status_page import LOG_SIZE, Word, fence

if TYPE_CHECKING:
    from collections.abc import Callable

_HEADER = struct.Struct("<IQ")  # the length of the record, and the chunk that has logged it
# A record of more bytes is shortened by its author, or dropped.
LARGEST = LOG_SIZE // 4
_HALF = LOG_SIZE // 2
# A flood slows a worker down by so many seconds, and by this share of its time.
_MOST_SECONDS, _SHARE = 1.0, 0.02
_LOOK_SECONDS = 0.001


class LogWriter:
    """The worker's side; any thread of the task may write."""

    def __init__(
        self, words: memoryview, ring: memoryview, on_half: Callable[[], object] = bool
    ) -> None:
        """``on_half`` is called when half of the room is taken: the caller should read."""
        self._words, self._ring, self._on_half = words, ring, on_half
        self._lock = threading.RLock()
        self._writes = False
        self._later: deque[bytes] = deque()  # what a signal handler logs while a record is written
        self._seconds, self._counted = _MOST_SECONDS, time.monotonic()  # it may wait so long

    def write(self, data: bytes) -> None:
        """Write a record; a signal handler that logs in the middle of this is served after it."""
        with self._lock:
            if self._writes:
                self._later.append(data)
                return
            self._writes = True
            try:
                self._write(data)
                while self._later:
                    self._write(self._later.popleft())
            finally:
                self._writes = False

    def _write(self, data: bytes) -> None:
        # Each line here costs every record.
        words = self._words
        record = _HEADER.pack(len(data), words[Word.CHUNK]) + data
        size, end = len(record), words[Word.LOGGED]
        taken = end - words[Word.LOG_READ] + size
        if taken > LOG_SIZE and not (size <= LARGEST + _HEADER.size and self._waited_for(size)):
            words[Word.LOG_DROPPED] += 1
            return
        at = end % LOG_SIZE
        if at + size <= LOG_SIZE:
            self._ring[at : at + size] = record
        else:
            fits = LOG_SIZE - at
            self._ring[at:], self._ring[: size - fits] = record[:fits], record[fits:]
        fence()
        words[Word.LOGGED] = end + size
        if taken >= _HALF > taken - size:
            self._on_half()

    def _waited_for(self, size: int) -> bool:
        """Wait for room as long as the worker may."""
        began = time.monotonic()
        self._seconds = min(self._seconds + (began - self._counted) * _SHARE, _MOST_SECONDS)
        now = self._counted = began
        while self._room() < size and now < began + self._seconds:
            self._on_half()
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
        self._seconds -= now - began
        self._counted = now
        return self._room() >= size

    def _room(self) -> int:
        return LOG_SIZE - (self._words[Word.LOGGED] - self._words[Word.LOG_READ])


def has_news(words: memoryview) -> bool:
    """Whether there are records that were not read."""
    unread: bool = words[Word.LOGGED] != words[Word.LOG_READ]
    return unread


def read(words: memoryview, ring: memoryview) -> list[tuple[int, bytes]]:
    """The unread records, which are read then."""
    end = words[Word.LOGGED]
    fence()
    found = unread(words, ring, end)
    fence()  # the worker may overwrite them once it sees the next line
    words[Word.LOG_READ] = end
    return found


def unread(words: memoryview, ring: memoryview, end: int) -> list[tuple[int, bytes]]:
    """All records up to ``end`` that were not read, each with the number of its chunk.

    A crash may have overwritten any of it: what makes no sense is left out.
    """
    start = words[Word.LOG_READ]
    return _cut(_copy(ring, start, end)) if 0 < end - start <= LOG_SIZE else []


def _copy(ring: memoryview, start: int, end: int) -> bytes:
    first, length = start % LOG_SIZE, end - start
    part = bytes(ring[first : first + length])
    return part + bytes(ring[: length - len(part)])


def _cut(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at + _HEADER.size <= len(data):
        length, chunk = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if at + length > len(data):
            break
        found.append((chunk, data[at : at + length]))
        at += length
    return found
