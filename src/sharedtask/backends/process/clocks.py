"""The time that a worker's current item has left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sharedtask.backends.worker.status_page import Phase, Word

if TYPE_CHECKING:
    from .connections import WorkerLink


def is_timed(worker: WorkerLink) -> bool:
    """Whether the first of its chunks has a time limit that was not enforced yet."""
    return (
        bool(worker.work_items)
        and worker.work_items[0].call.timeout is not None
        and worker.stop_reason is None
        and worker.kill_reason is None
    )


def time_left(worker: WorkerLink) -> float:
    """Seconds until the current item has used up its time."""
    work_item, words = worker.work_items[0], worker.status_page.words
    timeout = work_item.call.timeout or 0.0
    if words[Word.CHUNK] != work_item.number or not words[Word.STARTED]:
        return max(timeout / 2, 0.01)  # not begun yet: check again
    if words[Word.PHASE] not in (Phase.RUNNING, Phase.UNPACKING):
        return max(timeout / 2, 0.01)
    return timeout - (time.monotonic_ns() - words[Word.STARTED]) / 1e9
