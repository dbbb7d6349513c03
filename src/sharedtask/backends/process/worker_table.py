"""The workers of a pool, and the forkserver that forks them: started, written to, dismissed."""

from __future__ import annotations

import functools
import itertools
import signal
import time
from typing import TYPE_CHECKING, Protocol

from sharedtask.serialization import functions
from sharedtask.system import critical_sections, interrupts

from . import attaching
from .connections import ForkserverLink
from .tracker import Tracker
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sharedtask.store.publication import Publication

    from .connections import WorkerLink
    from .event_loop import Loop
    from .work_items import OpenCall, WorkItem

# A worker ends at once when asked to, unless a thread of the task keeps it alive.
_LEAVE_SECONDS = 1.0


class Events(Protocol):
    """Called by the loop when a socket is ready; ``mask`` has the events."""

    def on_forkserver(self, mask: int) -> None:
        """The forkserver's socket is ready."""

    def on_worker(self, worker: WorkerLink, mask: int) -> None:
        """A worker's socket is ready."""


class WorkerTable:
    """The workers by serial number. The pool's lock is held around all methods but ``forget``."""

    def __init__(self, lock: Any, loop: Loop) -> None:
        self.workers: dict[int, WorkerLink] = {}
        self.leaving: list[WorkerLink] = []  # workers that were asked to end
        self.forkserver: ForkserverLink | None = None
        self.closed = ""  # or the reason
        self.events: Events
        self._lock, self._loop = lock, loop
        self._serial = 0
        self._tracker = Tracker(loop.watch, loop.unwatch)

    def spawn(self, call: OpenCall) -> WorkerLink:
        """Start a worker."""
        critical_sections.reserve_stack()
        if self.forkserver is None:
            self.forkserver = ForkserverLink(*_needed_by(call.function))
            self._loop.register(self.forkserver, self.events.on_forkserver)
        self._serial += 1
        worker = self.forkserver.spawn(
            self._serial, self._free_number(), self._tracker.descriptor()
        )
        self.workers[worker.serial] = worker
        self._loop.register(worker, functools.partial(self.events.on_worker, worker))
        self._loop.want_write(self.forkserver)
        return worker

    def _free_number(self) -> int:
        """The lowest number that no worker has; one that is about to end runs no task any more."""
        taken = {w.number for w in self.workers.values() if w.work_items or not w.leaving}
        return next(number for number in itertools.count() if number not in taken)

    def send(self, worker: WorkerLink, work_item: WorkItem) -> None:
        """Give a chunk to a worker, after the published values that it needs."""
        for publication, private in work_item.call.needs:
            if worker.tokens.get(publication.token, -1) < private:
                self._attach(worker, publication, private=private)
        worker.prepare(work_item.request_slot)
        if not worker.writer.send(work_item.frame()):
            self._loop.want_write(worker)

    def _attach(self, worker: WorkerLink, publication: Publication, *, private: bool) -> None:
        worker.tokens[publication.token] = private
        publication.call_on_release(self.forget)
        self._write(worker, attaching.frame_of(publication, private=private))

    def forget(self, token: int) -> None:
        """Ask the workers to forget a published value."""
        with interrupts.shield(), self._lock:
            for worker in self.workers.values():
                if worker.tokens.pop(token, None) is not None:
                    self._write(worker, Frame(Kind.DROP, chunk=token))

    def _write(self, worker: WorkerLink, frame: Frame) -> None:
        if not worker.writer.send(frame):
            self._loop.want_write(worker)

    def dismiss(self, worker: WorkerLink) -> None:
        """Ask a worker to end when it has run its chunks."""
        worker.leaving = True
        if not worker.work_items:
            worker.leave_by = time.monotonic() + _LEAVE_SECONDS
            self.leaving.append(worker)
            self._write(worker, Frame(Kind.STOP))

    def dismiss_all(self) -> None:
        """Ask all workers to end when they have run their chunks."""
        for worker in self.workers.values():
            self.dismiss(worker)

    def kill_overdue(self, now: float) -> None:
        """Kill workers that were asked to end, and have not."""
        for worker in self.leaving:
            if worker.leave_by < now:
                worker.leave_by = now + _LEAVE_SECONDS
                self.kill(worker)

    def kill(self, worker: WorkerLink) -> None:
        """Kill a worker."""
        self.signal(worker, signal.SIGKILL)

    def signal(self, worker: WorkerLink, number: int) -> None:
        """Have the forkserver send a signal to a worker."""
        if self.forkserver is not None:
            self.forkserver.signal(worker.serial, number)
            self._loop.want_write(self.forkserver)

    def remove(self, worker: WorkerLink) -> bool:
        """Take a dead worker out of the table; idempotent: returns whether it was there."""
        if self.workers.pop(worker.serial, None) is None:
            return False
        if worker in self.leaving:
            self.leaving.remove(worker)
        self._loop.unregister(worker)
        return True

    def remove_forkserver(self, link: ForkserverLink) -> bool:
        """Take a dead forkserver out of the table; idempotent: returns whether it was there."""
        if self.forkserver is not link:
            return False
        self.forkserver = None
        self._loop.unregister(link)
        link.end()
        return True

    def remove_all(self) -> tuple[ForkserverLink | None, list[WorkerLink]]:
        """Take out the forkserver and all workers."""
        link, self.forkserver = self.forkserver, None
        workers = list(self.workers.values())
        self.workers.clear()
        return link, workers

    def close(self) -> None:
        """Close the pipe of the resource tracker."""
        self._tracker.close()

    def abandon(self) -> None:
        """In a forked child: close the connections of the parent."""
        for worker in self.workers.values():
            worker.close()
        if self.forkserver is not None:
            self.forkserver.abandon()
        self._tracker.close()


def _needed_by(function: Callable[..., Any]) -> list[str]:
    """Modules of ours that workers will need.

    Loading them once in the forkserver is faster than once in each worker. A module that defines
    tasks imports the whole library.
    """
    if (function.__module__ or "").startswith("sharedtask."):
        return [function.__module__]
    return ["sharedtask.task.decorator"] * functions.is_defined_as_task(function)
