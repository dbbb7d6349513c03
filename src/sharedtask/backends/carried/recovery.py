"""Outcomes of a chunk whose worker died, from the status file that it left."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker import call_header
from sharedtask.backends.worker.status_page import Phase, Word
from sharedtask.errors import RemoteTraceback, TaskTimeoutError, WorkerDiedError
from sharedtask.outcomes import written_advice
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    from sharedtask.outcomes import Report

    from .status_file import CrashReport
    from .work_items import WorkItem

# faulthandler's messages, at the beginning of its report.
_FATAL = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": getattr(signal, "SIGBUS", 7),
    "Floating": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
_TIMED_OUT = "Timeout ("
_KILLED = 9  # SIGKILL, which not every system has by name
_LOST_RESULT = "after it, and its result is lost"
_WHILE = {
    Phase.LOADING: "while loading the function and the shared values",
    Phase.UNPACKING: "while unpickling the item",
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What to do about a chunk: its report, and whether to run it again."""

    report: Report | None = None
    again: bool = False
    each: bool = False


def all_died(
    work_item: WorkItem[Any], crash_report: CrashReport | None, phase: str, text: str
) -> Report:
    """A report that each item of a chunk died."""
    errors = {
        at: _died(work_item, at, crash_report, phase, text)
        for at in range(len(work_item.chunk.items))
    }
    logs = (() if crash_report is None else crash_report.logs), 0
    return work_item.partly_arrived([], len(errors), errors, None, logs)


def recovery_of(
    work_item: WorkItem[Any], crash_report: CrashReport, error: BaseException
) -> Recovery:
    """Keep the worker's results, name the item that it died in; no item is begun twice."""
    phase = crash_report.words[Word.PHASE]
    if phase == Phase.LOADING:
        return Recovery(all_died(work_item, crash_report, _WHILE[phase], str(error)))
    if (
        phase == Phase.UNPACKING
        and work_item.mode != call_header.EACH
        and len(work_item.chunk.items) > 1
    ):
        return Recovery(again=True, each=True)
    done = crash_report.words[Word.BASE] + crash_report.words[Word.COUNT]
    begun = min(done + (phase != Phase.IDLE), len(work_item.chunk.items))
    fails_anyway = work_item.call.fail_fast and begun > done
    # What items added was lost with the worker, so their results are dropped too.
    frames = [] if work_item.call.adds and not fails_anyway else crash_report.frames
    kept = {at for frame in frames for at in range(frame[1], frame[1] + frame[2])}
    # A large result is sent only with the answer, and is lost if that did not come.
    errors = {
        at: _died(work_item, at, crash_report, _LOST_RESULT, str(error))
        for at in range(done)
        if at not in kept
    }
    if begun > done:
        errors[done] = _late(work_item, done, crash_report) or _died(
            work_item, done, crash_report, _WHILE.get(phase, ""), str(error)
        )
    logs = crash_report.logs, 0
    return Recovery(work_item.partly_arrived(frames, begun, errors, None, logs))


def _late(
    work_item: WorkItem[Any], position: int, crash_report: CrashReport
) -> BaseException | None:
    """The error of an item that exceeded its time limit."""
    if not crash_report.text.startswith(_TIMED_OUT):
        return None
    call, index = work_item.call, work_item.chunk.first + position
    item = work_item.chunk.items[position]
    late = TaskTimeoutError(call.task, index, item, call.timeout, crash_report.pid)
    late.__cause__ = RemoteTraceback(crash_report.text)
    return late


def _died(
    work_item: WorkItem[Any], position: int, crash_report: CrashReport | None, phase: str, text: str
) -> BaseException:
    task, index = work_item.call.task, work_item.chunk.first + position
    item = work_item.chunk.items[position]
    pid = None if crash_report is None else crash_report.pid
    crash = "" if crash_report is None else crash_report.text
    signal_, exitcode = _end_told(text)
    killed_by = _signal(crash, text) or signal_
    error = WorkerDiedError(task, index, item, pid, killed_by, exitcode, phase)
    written_advice(error, work_item.call.leases.readonly)
    error.__cause__ = RemoteTraceback(crash or text)
    return error


def _end_told(text: str) -> tuple[int | None, int | None]:
    """The signal that ended the worker, or its exit code, where the library tells it.

    loky writes "{SIGKILL(-9)}" or "{EXIT(3)}" into its error.
    """
    found = re.search(r"{\w+\((-?\d+)\)}", text)
    code = int(found[1]) if found else 0
    return (-code, None) if code < 0 else (None, code or None)


def _signal(crash: str, text: str) -> int | None:
    found = re.search(r"Fatal Python error: (.+)", crash)
    if found:
        numbers = [n for words, n in _FATAL.items() if found[1].startswith(words)]
        return int(numbers[0]) if numbers else None
    return _KILLED if "memory" in text and "killed" in text else None
