"""Limits of a worker: it checks its memory and its item count before each item.

Only private memory counts, not pages that are shared with other processes.
"""

from __future__ import annotations

import os

from sharedtask.errors import OptionsError
from sharedtask.system import libc
from sharedtask.system.records import dataclass

from .status_page import Word

_PAGE = os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int | str = "self") -> int | None:
    """Private memory of a process; None if there is no such process, or the system does not tell.

    Source:
        ``proc(5)``: of statm, resident pages minus those of files and of shared memory.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):  # no /proc; or it has ended, or is ending and reports no memory
        return libc.footprint(os.getpid() if isinstance(pid, str) else pid)
    return (int(resident) - int(shared)) * _PAGE


def require_measurable() -> None:
    """Refuse a limit of memory that would never be reached.

    Raises:
        OptionsError: The system does not tell the memory of a process.
    """
    if private_bytes() is None:
        msg = (
            "memory_limit= cannot be kept here: the memory of a worker is read in /proc, which is"
            " not mounted. Mount it, or leave memory_limit= out."
        )
        raise OptionsError(msg)


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """The memory and items that a chunk may use in its worker; 0 for no limit.

    Unless it ``cuts``, a chunk that was begun is run to its end.
    """

    memory: int = 0
    items: int = 0
    cuts: bool = True


ANY = ChunkLimits()


class LimitCheck:
    """Whether this worker has reached the limits of a chunk."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._has_run = False
        words[Word.FRESH] = private_bytes() or 0

    def end_chunk(self) -> None:
        """A chunk is over: from now on the memory is not that of a fresh worker."""
        self._has_run = True

    def is_reached(self, chunk_limits: ChunkLimits) -> bool:
        """Called before each item of a chunk."""
        done = self._words[Word.BASE] + self._words[Word.COUNT]
        if chunk_limits.items and done >= chunk_limits.items:
            return True
        return bool(chunk_limits.memory) and self._exceeds_memory(chunk_limits, done)

    def _exceeds_memory(self, chunk_limits: ChunkLimits, done: int) -> bool:
        words, used = self._words, private_bytes() or 0
        words[Word.BEFORE] = used
        if not self._has_run and not done:
            words[Word.FRESH] = used
        if used <= chunk_limits.memory or (done and not chunk_limits.cuts):
            return False
        words[Word.OVER_MEMORY] = words[Word.CHUNK]
        return True
