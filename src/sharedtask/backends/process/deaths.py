"""What the death of a worker is to the items that it had."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sharedtask.errors import RemoteTraceback, TaskTimeoutError, WorkerDiedError

from . import wear

if TYPE_CHECKING:
    from collections.abc import Callable

    from .links import WorkerLink
    from .tickets import Ticket

# When it died, where that was not in the task.
LOADING = "while loading the function and the shared values"
UNPACKING = "while unpickling the item"


def cause(
    worker: WorkerLink, ticket: Ticket, when: str, *, starved: bool
) -> Callable[[int], BaseException]:
    """A function that gives the error of the item at a position of the chunk.

    ``starved`` says that the kernel had no memory left.
    """
    call, chunk, verdict = ticket.call, ticket.chunk, worker.verdict
    pid, number, exitcode = worker.exit or (worker.pid, None, None)
    if exitcode is not None and exitcode < 0:
        when = f"for the system forked none: {os.strerror(-exitcode)} (see `ulimit -u`)"
        pid = exitcode = None
    crash = worker.board.crash()

    def error_at(position: int) -> BaseException:
        index, item = chunk.first + position, chunk.items[position]
        if verdict is not None and verdict.reason == "timeout":
            return TaskTimeoutError(call.task, index, item, call.timeout, pid)
        if verdict is not None and verdict.reason == "memory":
            return wear.too_large(worker, ticket, position, verdict.reached)
        error = WorkerDiedError(call.task, index, item, pid, number, exitcode, when, starved)
        if crash:
            error.__cause__ = RemoteTraceback(crash)
        return error

    return error_at
