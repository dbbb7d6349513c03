"""Outcomes of a chunk whose Ray task did not return."""

from __future__ import annotations

import contextlib
import re
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sharedtask.backends.worker import call_header
from sharedtask.backends.worker.status_page import Phase, Word
from sharedtask.errors import RemoteTraceback, TaskTimeoutError, WorkerDiedError
from sharedtask.outcomes import written_advice

from . import runtime, status_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.outcomes import Report

    from .status_file import CrashReport
    from .work_items import WorkItem

_LOOK_SECONDS, _LOOKS = 15.0, 3

# faulthandler's messages, at the beginning of its report.
_FATAL = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
_TIMED_OUT = "Timeout ("
_WITHOUT_NODE = (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
_LOST_RESULT = "after it, and its result is lost"
_WITH_NODE = "with its node or after it, and its results are lost"
_WHILE = {
    Phase.LOADING: "while loading the function and the shared values",
    Phase.UNPACKING: "while unpickling the item",
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What to do about a chunk: its report, and whether to give it to Ray again."""

    report: Report | None = None
    again: bool = False
    each: bool = False


def find_crash_report(origin: bytes, number: int) -> tuple[CrashReport | None, frozenset[str]]:
    """The crash report of a worker from any node, and the nodes that answered; 10 ms to 1 s.

    On this node at once: Ray may have to start a process for the task that looks.
    """
    nodes = [node["NodeID"] for node in runtime.all_nodes() if node["Alive"]]
    with contextlib.suppress(OSError):
        found = status_file.find(origin, number)
        if found is not None:
            return found, frozenset(nodes)
    node_of = {_on_node(node, status_file.find, origin, number): node for node in nodes}
    ready, _ = ray.wait(list(node_of), num_returns=len(node_of), timeout=_LOOK_SECONDS)
    answered = set()
    for ref in ready:
        with contextlib.suppress(ray.exceptions.RayError):
            crash_report: Any = ray.get(ref)
            if crash_report is not None:
                return crash_report, frozenset(nodes)
            answered.add(node_of[ref])
    return None, frozenset(answered)


class Stopper:
    """Ends given-up chunks on every node.

    Ray starts a process for a task that needs no CPU if no other process is free. So on this node
    no task does it, and another node gets one such task at a time: else processes that start, each
    for a task that asks again, would take the cores from those that are to run chunks.
    """

    def __init__(self) -> None:
        self._sent: dict[str, Any] = {}  # the last task on each node

    def stop(self, origin: bytes, numbers: tuple[int, ...], *, kill: bool) -> None:
        """End these chunks; returns at once. Ask again for those that run on."""
        here = runtime.this_node() if _reaches(origin, numbers, kill=kill) else None
        for node in (node["NodeID"] for node in runtime.all_nodes() if node["Alive"]):
            if node != here and not self._waits_on(node):
                args = origin, numbers
                self._sent[node] = _on_node(node, status_file.stop, *args, kill=kill)

    def _waits_on(self, node: str) -> bool:
        sent = self._sent.get(node)
        return sent is not None and not ray.wait([sent], timeout=0, fetch_local=False)[0]


def _reaches(origin: bytes, numbers: tuple[int, ...], *, kill: bool) -> bool:
    """Whether this process itself could end these chunks on its node."""
    try:
        return status_file.stop(origin, numbers, kill=kill)
    except OSError:  # the folder belongs to another user
        return False


def _on_node(node: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a task on this node that needs no CPU."""
    options: dict[str, Any] = {
        "num_cpus": 0,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }
    task: Any = ray.remote(**options)(function)
    return task.remote(*args, **kwargs)


def recover_or_fail(work_item: WorkItem, error: BaseException) -> Recovery:
    """Decide about a chunk whose worker, node or answer was lost."""
    if not isinstance(error, _WITHOUT_NODE):
        for _ in range(_LOOKS):  # the process that kills workers may also kill this task's
            crash_report, seen = find_crash_report(work_item.call.origin, work_item.number)
            if crash_report is not None:
                return recovery_of(work_item, crash_report, error)
            if work_item.nodes <= seen:  # it died before it began the chunk
                return Recovery(again=True)
    # The results of the node's workers are lost, and each item may have been begun.
    return Recovery(_all_died(work_item, None, _WITH_NODE, str(error)))


def _all_died(
    work_item: WorkItem, crash_report: CrashReport | None, phase: str, text: str
) -> Report:
    errors = {
        at: _died(work_item, at, crash_report, phase, text)
        for at in range(len(work_item.chunk.items))
    }
    logs = (() if crash_report is None else crash_report.logs), 0
    return work_item.partly_arrived([], len(errors), errors, None, logs)


def recovery_of(work_item: WorkItem, crash_report: CrashReport, error: BaseException) -> Recovery:
    """Keep the worker's results, name the item that it died in; no item is begun twice."""
    phase = crash_report.words[Word.PHASE]
    if phase == Phase.LOADING:
        return Recovery(_all_died(work_item, crash_report, _WHILE[phase], str(error)))
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


def _late(work_item: WorkItem, position: int, crash_report: CrashReport) -> BaseException | None:
    """The error of an item that exceeded its time limit."""
    if not crash_report.text.startswith(_TIMED_OUT):
        return None
    call, index = work_item.call, work_item.chunk.first + position
    item = work_item.chunk.items[position]
    late = TaskTimeoutError(call.task, index, item, call.timeout, crash_report.pid)
    late.__cause__ = RemoteTraceback(crash_report.text)
    return late


def _died(
    work_item: WorkItem, position: int, crash_report: CrashReport | None, phase: str, text: str
) -> BaseException:
    task, index = work_item.call.task, work_item.chunk.first + position
    item = work_item.chunk.items[position]
    pid = None if crash_report is None else crash_report.pid
    crash = "" if crash_report is None else crash_report.text
    error = WorkerDiedError(task, index, item, pid, _signal(crash, text), None, phase)
    written_advice(error, work_item.call.leases.readonly)
    error.__cause__ = RemoteTraceback(crash or text)
    return error


def _signal(crash: str, text: str) -> int | None:
    found = re.search(r"Fatal Python error: (.+)", crash)
    if found:
        numbers = [n for words, n in _FATAL.items() if found[1].startswith(words)]
        return int(numbers[0]) if numbers else None
    return int(signal.SIGKILL) if "memory" in text and "killed" in text else None
