"""Results received from a worker, or read from the status page of a dead one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sharedtask.backends.worker import result_format
from sharedtask.backends.worker.status_page import Word
from sharedtask.outcomes import Batch, Report
from sharedtask.system.finalizers import Ending

from .wire import close_all

if TYPE_CHECKING:
    from . import stdio
    from .connections import WorkerLink
    from .wire import Frame
    from .work_items import OpenCall, WorkItem


class SentResults:
    """The body of a RESULTS frame, decoded when it is opened."""

    __slots__ = ("__weakref__", "_close", "_first", "_frame", "_logs", "_mode", "_prints", "_task")

    def __init__(
        self, mode: int, frame: Frame, first: int, call: OpenCall, prints: stdio.Prints
    ) -> None:
        self._mode, self._frame, self._first, self._task = mode, frame, first, call.task
        self._prints, self._logs = prints, call.logs
        # The waiting thread may be interrupted after taking this and before opening it.
        close = partial(close_all, frame.fds)
        self._close = Ending(self, close).now if frame.fds else close

    @property
    def is_plain(self) -> bool:
        if self._logs is not None and self._logs.pending:
            return False
        return result_format.is_plain(self._mode) and not self._prints.pending

    def open(self) -> Batch:
        if self._logs is not None:
            self._logs.handle()
        if self._prints.pending:
            self._prints.wait()
        frame = self._frame
        body, fds = memoryview(frame.body)[1:], iter(frame.fds)
        try:
            return result_format.load_batch(
                self._mode, body, frame.items, self._first, self._task, fds
            )
        finally:
            self._close()

    def discard(self) -> None:
        self._close()


class SavedResults:
    """Results from a dead worker's outbox, without the first ``skip``, which were received."""

    __slots__ = ("_count", "_data", "_first", "_mode", "_skip", "_task")

    def __init__(self, worker: WorkerLink, work_item: WorkItem, skip: int) -> None:
        words = worker.status_page.words
        self._mode = words[Word.MODE]
        self._data = worker.status_page.outbox()
        self._count, self._skip = words[Word.COUNT], skip
        self._first, self._task = work_item.chunk.first + words[Word.BASE], work_item.call.task

    @property
    def is_plain(self) -> bool:
        return result_format.is_plain(self._mode)

    def open(self) -> Batch:
        skip = self._skip
        batch = result_format.load_batch(
            self._mode, self._data, self._count, self._first, self._task, iter(())
        )
        errors = {offset - skip: e for offset, e in batch.errors.items() if offset >= skip}
        return Batch(self._first + skip, batch.values[skip:], errors)

    def discard(self) -> None:
        pass


def saved_results(worker: WorkerLink, work_item: WorkItem) -> Report | None:
    """A report of the results in the outbox that were never sent, or None.

    A crash may have overwritten the status page: impossible counts are ignored.
    """
    words = worker.status_page.words
    if words[Word.BASE] + words[Word.COUNT] > len(work_item.chunk.items):
        return None
    skip = max(work_item.received - words[Word.BASE], 0)
    count = words[Word.COUNT] - skip
    if count <= 0:
        return None
    saved = SavedResults(worker, work_item, skip)
    first = words[Word.BASE] + skip
    return Report(work_item.chunk.number, saved, count, finished=False, first=first)
