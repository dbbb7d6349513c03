"""Background threads for user code, for threads that must not run it themselves.

The I/O thread delivers results: if it ran callbacks, unpickled values or wrote to a user's stream,
these could wait for a result that only it can deliver.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from . import ending, forks

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_SECONDS = 0.5


class Background:
    """Threads that run user code: at least as many as there is work to run."""

    def __init__(self) -> None:
        self.abandon()
        forks.abandon_in_child(self, forks.Step.THREADS)

    def abandon(self) -> None:
        """Start without threads: in a forked child none exist."""
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # One entry for each idle thread. No semaphore: code that interrupts the holder of its
        # lock, as signal handlers and finalizers do, must not use it.
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, work: Callable[[], object]) -> None:
        """Run ``work`` soon in a thread; it must not raise.

        It is run at once where none can be started since the program ends.
        """
        if not self._takes_idle():
            thread = threading.Thread(target=self._serve, name="sharedtask-callbacks", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if not ending.is_refusal(error):
                    raise
                work()
                return
        self._work.put(work)

    def _takes_idle(self) -> bool:
        try:
            self._idle.get_nowait()
        except queue.Empty:
            return False
        return True

    def _serve(self) -> None:
        while True:
            try:
                work = self._work.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                # Take back the entry that this thread is idle. If another thread took it first,
                # there is work for this one.
                if self._takes_idle():
                    return
                continue
            work()
            del work  # free its references before the next wait
            self._idle.put(None)


_background = Background()
put = _background.put
