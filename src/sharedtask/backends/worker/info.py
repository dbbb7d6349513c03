"""``worker_info()``: which worker runs this code."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from sharedtask import context


class WorkerInfo(NamedTuple):
    """A worker.

    Attributes:
        number: From 0 up; unique among the workers of the program that run on this
            node. A worker keeps its number, and its replacement gets the same one.
        count: How many items of the current call may run at once. A worker that was started for
            another call, with more workers, may have a ``number`` of ``count`` or more.
        backend: "process", "ray", "loky", "thread" or "serial".
        pid: The process.
        node: The host name of the machine.
    """

    number: int
    count: int  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleMethodOverride]
    backend: str
    pid: int
    node: str


def worker_info() -> WorkerInfo | None:
    """Return the worker that runs the calling code; None outside of a worker.

    Use it to choose resources for each worker: ``cuda:1``, a file, a range of ports. On
    ``backend="serial"`` the calling thread counts as the only worker while items run. A map within
    a task runs in the worker of the task.

    Examples:
        >>> from sharedtask import parallel, worker_info
        >>> @parallel(backend="serial")
        ... def device(_: int) -> str:
        ...     info = worker_info()
        ...     return "cpu" if info is None else f"cuda:{info.number % 2}"
        >>> device.map(range(2))
        ['cuda:0', 'cuda:0']
        >>> device(0)
        'cpu'
    """
    place = context.place()
    return None if place is None else WorkerInfo(*place, os.getpid(), platform.node())
