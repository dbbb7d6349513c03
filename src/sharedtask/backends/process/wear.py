"""When a worker has had enough: of memory that it does not give back, or of items.

The worker looks at itself before each item of a call that has limits. Its caller looks at what it
uses while an item runs. All that counts is private memory: pages that are shared with other
processes are not the worker's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedtask.backends.work.board import Phase, Word
from sharedtask.errors import MemoryLimitError

if TYPE_CHECKING:
    from sharedtask.backends.base import Limits

    from .links import WorkerLink
    from .tickets import OpenCall, Ticket

_PAGE = os.sysconf("SC_PAGE_SIZE")


def private_bytes(pid: int | str = "self") -> int | None:
    """Memory that a process has for itself; None where there is no such process.

    Source:
        ``proc(5)``: of statm, resident pages without those of files and of shared memory.
    """
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            _, resident, shared, *_ = file.read().split()
    except (OSError, ValueError):  # it ended, and a process that is ending has no memory to tell of
        return None
    return (int(resident) - int(shared)) * _PAGE


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a chunk may use of its worker; 0 for any amount.

    Where it does not ``cut``, a chunk that was begun is run to its end.
    """

    memory: int = 0
    items: int = 0
    cuts: bool = True


ANY = Allowance()


# ------------------------------------------------------------------------- in the worker


class Wear:
    """Whether this worker may begin another item."""

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self._has_run = False
        words[Word.FRESH] = private_bytes() or 0

    def note_run(self) -> None:
        """A chunk is over: from now on its memory is not that of a fresh worker."""
        self._has_run = True

    def ends(self, allowance: Allowance) -> bool:
        """Called before each item of a chunk."""
        done = self._words[Word.BASE] + self._words[Word.COUNT]
        if allowance.items and done >= allowance.items:
            return True
        return bool(allowance.memory) and self._is_worn(allowance, done)

    def _is_worn(self, allowance: Allowance, done: int) -> bool:
        words, used = self._words, private_bytes() or 0
        words[Word.BEFORE] = used
        if not self._has_run and not done:
            words[Word.FRESH] = used
        if used <= allowance.memory or (done and not allowance.cuts):
            return False
        words[Word.WORN] = words[Word.CHUNK]
        return True


# -------------------------------------------------------------------- in its caller


def allowance(worker: WorkerLink, limits: Limits, *, cuts: bool) -> Allowance:
    """What the next chunk of a call may use of a worker."""
    items = limits.items - worker.ran if limits.items is not None and cuts else 0
    return Allowance(limits.memory or 0, items, cuts)


def suits(worker: WorkerLink, call: OpenCall) -> bool:
    """Whether a worker may still run an item of a call.

    Where items are counted, none wait in its socket: how many it will have run is not known.
    """
    limits = call.limits
    if limits is None or limits.items is None:
        return True
    return not worker.tickets and worker.ran < limits.items


def says_so(worker: WorkerLink, ticket: Ticket) -> bool:
    """Whether the worker ended this chunk because it has too much memory."""
    return worker.board.words[Word.WORN] == ticket.number


def is_worn(worker: WorkerLink, ticket: Ticket) -> bool:
    """Whether another worker should take the place of one that has just ended this chunk."""
    limits = ticket.call.limits
    if limits is None:
        return False
    if limits.items is not None and worker.ran >= limits.items:
        return True
    if limits.memory is None or worker.pid is None:
        return False
    used = private_bytes(worker.pid)
    return says_so(worker, ticket) or (used is not None and used > limits.memory)


def excess(worker: WorkerLink) -> int:
    """How much memory the item in hand has its worker use, where that is too much, else 0.

    It is too much where the item would pass the limit in a fresh worker as well. Where it does so
    because of what earlier items have left behind, it may finish.
    """
    ticket, words = worker.tickets[0], worker.board.words
    limits = ticket.call.limits
    if limits is None or limits.memory is None or worker.pid is None:
        return 0
    if words[Word.CHUNK] != ticket.number or words[Word.PHASE] != Phase.RUNNING:
        return 0
    used = private_bytes(worker.pid) or 0
    grown = used - words[Word.BEFORE]
    is_its_own = words[Word.FRESH] + grown > limits.memory
    return used if used > limits.memory and is_its_own else 0


def too_large(worker: WorkerLink, ticket: Ticket, at: int, reached: int) -> MemoryLimitError:
    """The error of the item at this position of a chunk."""
    limits = ticket.call.limits
    pid, number, exitcode = worker.exit or (worker.pid, None, None)
    return MemoryLimitError(
        ticket.call.task,
        ticket.chunk.first + at,
        ticket.chunk.items[at],
        pid,
        number,
        exitcode,
        "",
        False,
        worker.board.words[Word.BEFORE],
        reached,
        (limits and limits.memory) or 0,
    )
