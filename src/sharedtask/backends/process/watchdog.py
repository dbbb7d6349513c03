"""Workers whose item has used up its time or its memory, or was given up.

suspect   stop it            judge   it stands where it was: kill it, and keep the verdict
it has gone on meanwhile: let it go on
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from sharedtask.worker.status_page import Word

from . import clocks, recycling
from .connections import Suspicion

if TYPE_CHECKING:
    from collections.abc import Callable

    from .connections import WorkerLink

# The starter answers within a millisecond when a worker has stopped.
_STOP_SECONDS = 0.5


class Court:
    """Has nobody killed for an item that is done. ``send`` brings a signal to a worker."""

    def __init__(self, send: Callable[[WorkerLink, int], object]) -> None:
        self._send = send

    def check_time(self, worker: WorkerLink, now: float) -> None:
        """Suspect a worker whose item has used up its time."""
        if clocks.is_timed(worker) and clocks.time_left(worker) <= 0:
            number, started = worker.tickets[0].number, worker.board.words[Word.STARTED]
            self.suspect(worker, "timeout", number, started, now)

    def weigh(self, worker: WorkerLink, now: float) -> None:
        """Suspect a worker whose item uses too much memory."""
        if not worker.tickets or worker.tickets[0].call.limits is None:
            return
        number, started = worker.tickets[0].number, worker.board.words[Word.STARTED]
        reached = recycling.excess(worker)
        if reached and started:
            self.suspect(worker, "memory", number, started, now, reached)

    def suspect(
        self,
        worker: WorkerLink,
        reason: str,
        chunk: int,
        started: int | None,
        now: float,
        reached: int = 0,
    ) -> None:
        """Stop the worker first; see ``Suspicion``.

        Killed right away, it might have gone on to the next item, which would pay for what is not
        its fault.
        """
        if worker.suspicion is None and worker.verdict is None:
            worker.suspicion = Suspicion(reason, chunk, started, now + _STOP_SECONDS, reached)
            self._send(worker, signal.SIGSTOP)

    def has_waited(self, worker: WorkerLink, now: float) -> bool:
        """Whether no word of its stop will come: it was stopped already, by somebody else."""
        return worker.suspicion is not None and now > worker.suspicion.until

    def judge(self, worker: WorkerLink) -> bool:
        """The worker stands still; True where it goes on, for it is not where it was."""
        suspicion, worker.suspicion = worker.suspicion, None
        if suspicion is None:
            return False
        if worker.still(suspicion):
            worker.verdict = suspicion
            self._send(worker, signal.SIGKILL)
            return False
        self._send(worker, signal.SIGCONT)
        return True
