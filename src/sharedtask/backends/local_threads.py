"""The threads of the thread backend, which run chunks of all its sessions."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from sharedtask import context
from sharedtask.errors import ClosedError
from sharedtask.system import background, critical_sections
from sharedtask.system.loading import undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.worker.making import Table

    from .base import Call, Chunk, Concurrency
    from .local_set_up import SetUp

# Time that threads have to close what they have made, when they are ended.
_CLOSE_SECONDS, _LOOK_SECONDS = 1.0, 0.005


class Runs(Protocol):
    """A session whose chunks threads run."""

    concurrency: Concurrency

    @property
    def running(self) -> int:
        """How many of its chunks run now."""
        ...

    def note(self, change: int) -> None:
        """Count a chunk that begins, or ends."""

    def run(self, chunk: Chunk, number: int) -> None:
        """Run a chunk in the thread with this number."""

    def fail(self, chunk: Chunk, error: BaseException) -> None:
        """Report that no item of the chunk was run."""


def set_up_of(call: Call, own_table: Callable[[], Table] | None) -> SetUp:
    """What a call sets up in its workers; the caller's thread is one without ``own_table``."""
    with undisturbed("sharedtask.backends.local_set_up"):  # needed by few calls
        from .local_set_up import SetUp

    return SetUp.opened(call, own_table)


class Threads:
    """Daemon threads that serve all sessions; no session has more of them than it asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition(critical_sections.table_lock())
        self._queue: deque[tuple[Runs, Chunk]] = deque()
        self._count = self._idle = 0
        self._closed = False
        self._tables: dict[int, Table] = {}

    def put(self, session: Runs, chunk: Chunk) -> None:
        with self._changed:
            if self._closed:
                msg = "the thread backend was shut down while this call was running."
                raise ClosedError(msg)
            self._queue.append((session, chunk))
            # A thread that was notified counts as idle until it wakes.
            if len(self._queue) > self._idle and self._count < session.concurrency.workers:
                self._start_thread()
            self._changed.notify()

    def _start_thread(self) -> None:
        """Start one more thread. If none can be started, those that run serve the queue."""
        try:
            critical_sections.reserve_stack()
            name = f"sharedtask-{self._count + 1}"
            serve = threading.Thread(
                target=self._serve, args=(self._count,), name=name, daemon=True
            )
            serve.start()
            self._count += 1
        except RuntimeError:
            if not self._count:
                self._queue.pop()
                raise

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for session, chunk in left:
            session.fail(chunk, ClosedError("the thread backend was shut down."))
        self._await_closing()

    def own_table(self) -> Table:
        """The table of what this thread makes for its tasks."""
        number = threading.get_ident()
        if number not in self._tables:
            from sharedtask.backends.worker.making import Table

            self._tables[number] = Table(self._wake_soon)
        return self._tables[number]

    def _wake_soon(self) -> None:
        """A thread has something to close; this may run in a finalizer, which takes no lock."""
        background.put(self._wake)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def close_made(self) -> None:
        """Have the threads close all that they have made, and wait for that a moment."""
        for table in list(self._tables.values()):
            table.drop_all()
        self._await_closing()

    def _await_closing(self) -> None:
        until = time.monotonic() + _CLOSE_SECONDS
        while not all(table.is_empty for table in list(self._tables.values())):
            if time.monotonic() > until:
                return
            time.sleep(_LOOK_SECONDS)

    def _serve(self, number: int) -> None:
        context.enter_thread()
        while self._serve_one(number):
            self._close_due()
        table = self._tables.get(threading.get_ident())
        if table is not None:
            table.close_all()

    def _close_due(self) -> None:
        table = self._tables.get(threading.get_ident())
        if table is not None:
            table.close_due()

    def _serve_one(self, number: int) -> bool:
        """Run a chunk and keep no reference to it while the thread waits for the next one."""
        work = self._take()
        if work is None:
            return not self._closed
        session, chunk = work
        try:
            if self._tables:
                self._close_due()  # before it makes what replaces that
            session.run(chunk, number)
        finally:
            self._end(session)
        return True

    def _take(self) -> tuple[Runs, Chunk] | None:
        """The next chunk; None if the threads end, or this one has something to close."""
        with self._changed:
            while True:
                work = self._next_work()
                if work is not None or self._closed or self._is_due():
                    return work
                self._idle += 1
                self._changed.wait()
                self._idle -= 1

    def _is_due(self) -> bool:
        table = self._tables.get(threading.get_ident())
        return table is not None and table.is_due

    def _next_work(self) -> tuple[Runs, Chunk] | None:
        """A chunk that may run now. A waiting thread keeps no reference to a session."""
        for work in self._queue:
            session = work[0]
            if session.running < session.concurrency.workers:
                self._queue.remove(work)
                session.note(1)
                return work
        return None

    def _end(self, session: Runs) -> None:
        with self._changed:
            session.note(-1)
            self._changed.notify()
