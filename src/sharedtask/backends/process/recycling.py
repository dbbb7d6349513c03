"""When a worker is replaced: its memory grew beyond the limit, or it has run its count of items.

The worker checks its own memory before each item; see ``worker/limits.py``. The caller
checks the memory that it uses while an item runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sharedtask.backends.worker.limits import ChunkLimits, private_bytes
from sharedtask.backends.worker.status_page import Phase, Word
from sharedtask.errors import MemoryLimitError

if TYPE_CHECKING:
    from collections import deque

    from sharedtask.backends.base import Limits

    from .connections import WorkerLink
    from .work_items import OpenCall, WorkItem


class Used(Protocol):
    """A worker's chunks, and how many items it has run."""

    ran: int
    work_items: deque[WorkItem]


def chunk_limits(worker: Used, limits: Limits, *, cuts: bool) -> ChunkLimits:
    """The memory and items that the next chunk of a call may use in a worker."""
    items = limits.items - worker.ran if limits.items is not None and cuts else 0
    return ChunkLimits(limits.memory or 0, items, cuts)


def can_run(worker: Used, call: OpenCall) -> bool:
    """Whether a worker may still run an item of a call.

    If items are counted, no chunk is queued in its socket: the count after it would be unknown.
    """
    limits = call.limits
    if limits is None or limits.items is None:
        return True
    return not worker.work_items and worker.ran < limits.items


def reports_over_memory(worker: WorkerLink, work_item: WorkItem) -> bool:
    """Whether the worker ended this chunk because it uses too much memory."""
    return worker.status_page.words[Word.OVER_MEMORY] == work_item.number


def is_used_up(worker: WorkerLink, work_item: WorkItem) -> bool:
    """Whether to replace a worker that has just ended this chunk; notes why."""
    limits = work_item.call.limits
    if limits is None:
        return False
    if limits.items is not None and worker.ran >= limits.items:
        worker.used_up = "tasks_per_worker"
    elif limits.memory is not None and worker.pid is not None:
        used = private_bytes(worker.pid)
        if reports_over_memory(worker, work_item) or (used is not None and used > limits.memory):
            worker.used_up = "memory_limit"
    return bool(worker.used_up)


def excess(worker: WorkerLink) -> int:
    """Bytes that the current item makes its worker use, if that is too much, else 0.

    It is too much if the item would exceed the limit in a fresh worker as well. If it exceeds the
    limit because of memory that earlier items left, it may finish.
    """
    work_item, words = worker.work_items[0], worker.status_page.words
    limits = work_item.call.limits
    if limits is None or limits.memory is None or worker.pid is None:
        return 0
    if words[Word.CHUNK] != work_item.number or words[Word.PHASE] != Phase.RUNNING:
        return 0
    used = private_bytes(worker.pid) or 0
    grown = used - words[Word.BEFORE]
    is_its_own = words[Word.FRESH] + grown > limits.memory
    return used if used > limits.memory and is_its_own else 0


def too_large(worker: WorkerLink, work_item: WorkItem, at: int, reached: int) -> MemoryLimitError:
    """The error of the item at this position of a chunk."""
    limits = work_item.call.limits
    pid, number, exitcode = worker.exit or (worker.pid, None, None)
    return MemoryLimitError(
        work_item.call.task,
        work_item.chunk.first + at,
        work_item.chunk.items[at],
        pid,
        number,
        exitcode,
        "",
        False,
        worker.status_page.words[Word.BEFORE],
        reached,
        (limits and limits.memory) or 0,
    )
