"""Log records of a worker, read from the memory that it shares with the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.backends.call_logs import CallLogs, strays
from sharedtask.backends.worker import log_box
from sharedtask.backends.worker.status_page import Word

if TYPE_CHECKING:
    from sharedtask.outcomes import Report

    from .connections import WorkerLink
    from .work_items import OpenCall, WorkItem


def collect(worker: WorkerLink) -> list[tuple[OpenCall, Report]]:
    """Give the records to the calls that have logged them, and report them there.

    The pool's lock is held: nothing of the user's runs here.
    """
    words = worker.status_page.words
    if not log_box.has_news(words):
        return []
    found: dict[int, WorkItem] = {}
    for number, data in log_box.read(words, worker.status_page.log):
        work_item = worker.find(number)
        if work_item is None or work_item.call.closed or work_item.cancelled:
            strays.put(data)
        else:
            found[number] = work_item
            _logs_of(work_item.call).put(data)
    _count_dropped(worker)
    if strays.is_open:
        strays.finish_behind()
    return [(each.call, _logs_of(each.call).report(each.chunk)) for each in found.values()]


def is_due(worker: WorkerLink) -> bool:
    """Whether there is room for records while an item runs."""
    logs = worker.work_items[0].call.logs if worker.work_items else strays
    return logs is None or not logs.is_full


def _logs_of(call: OpenCall) -> CallLogs:
    if call.logs is None:
        call.logs = CallLogs(f"{call.task}()")
    return call.logs


def _count_dropped(worker: WorkerLink) -> None:
    """Add what the worker had no room for to its present call."""
    dropped = worker.status_page.words[Word.LOG_DROPPED]
    new, worker.logs_dropped = dropped - worker.logs_dropped, dropped
    if new > 0:
        call = worker.work_items[0].call if worker.work_items else None
        logs = strays if call is None or call.closed else _logs_of(call)
        logs.dropped += new
