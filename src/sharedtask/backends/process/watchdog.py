"""Stops workers whose item exceeded its time or memory limit, or was given up.

stop   send SIGSTOP        confirm   it is still at this item: kill it, and record the reason
                                     it is at another item: continue it
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from sharedtask.backends.worker.status_page import Word

from . import clocks, recycling
from .connections import StopReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connections import WorkerLink

# The forkserver reports within a millisecond that a worker has stopped.
_STOP_SECONDS = 0.5


class Watchdog:
    """Ensures that no worker is killed after its item finished. ``send`` sends a signal."""

    def __init__(self, send: Callable[[WorkerLink, int], object]) -> None:
        self._send = send

    def check_time(self, worker: WorkerLink, now: float) -> None:
        """Stop a worker whose item exceeded its time limit."""
        if clocks.is_timed(worker) and clocks.time_left(worker) <= 0:
            number, started = worker.work_items[0].number, worker.status_page.words[Word.STARTED]
            self.stop(worker, "timeout", number, started, now)

    def check_memory(self, worker: WorkerLink, now: float) -> None:
        """Stop a worker whose item uses too much memory."""
        if not worker.work_items or worker.work_items[0].call.limits is None:
            return
        number, started = worker.work_items[0].number, worker.status_page.words[Word.STARTED]
        reached = recycling.excess(worker)
        if reached and started:
            self.stop(worker, "memory", number, started, now, reached)

    def stop(
        self,
        worker: WorkerLink,
        cause: str,
        chunk: int,
        started: int | None,
        now: float,
        reached: int = 0,
    ) -> None:
        """Stop the worker first; see ``StopReason``.

        If it were killed right away, it might have begun the next item, which would fail for the
        fault of the previous one.
        """
        if worker.stop_reason is None and worker.kill_reason is None:
            worker.stop_reason = StopReason(cause, chunk, started, now + _STOP_SECONDS, reached)
            self._send(worker, signal.SIGSTOP)

    def has_waited(self, worker: WorkerLink, now: float) -> bool:
        """Whether its stop will not be reported, since another process had stopped it already."""
        return worker.stop_reason is not None and now > worker.stop_reason.until

    def confirm(self, worker: WorkerLink) -> bool:
        """The worker has stopped: kill it, or return True if it may continue at another item."""
        reason, worker.stop_reason = worker.stop_reason, None
        if reason is None:
            return False
        if worker.still(reason):
            worker.kill_reason = reason
            self._send(worker, signal.SIGKILL)
            return False
        self._send(worker, signal.SIGCONT)
        return True
