"""Outcomes of a chunk whose Ray task did not return."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sharedtask.backends.carried.recovery import Recovery, all_died, recovery_of

from . import runtime, status_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.carried.status_file import CrashReport

    from .work_items import WorkItem

_LOOK_SECONDS, _LOOKS = 15.0, 3

_WITHOUT_NODE = (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError)
_WITH_NODE = "with its node or after it, and its results are lost"


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
    return Recovery(all_died(work_item, None, _WITH_NODE, str(error)))
