"""Background threads for user code that came up in a thread that must not run it.

The I/O thread brings results: were it to run callbacks, unpickle values or write to a stream of the
user's, these could wait for a result that only it can bring.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from . import critical_sections

if TYPE_CHECKING:
    from collections.abc import Callable

_IDLE_SECONDS = 0.5


class Background:
    """Threads that run user code: never fewer than there are pieces of it to run."""

    def __init__(self) -> None:
        self.abandon()
        critical_sections.abandon_in_child(self)

    def abandon(self) -> None:
        """Begin without threads: in a forked child there are none, whatever was counted."""
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        # One entry for each idle thread. No semaphore: its lock is not for code that interrupts
        # its holder, as signal handlers and finalizers do.
        self._idle: queue.SimpleQueue[None] = queue.SimpleQueue()

    def put(self, work: Callable[[], object]) -> None:
        """Have ``work`` done soon; it must not raise."""
        if not self._takes_idle():
            threading.Thread(target=self._serve, name="sharedtask-callbacks", daemon=True).start()
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
                # Take back the word that this thread is idle. Where another was faster, there is
                # work for it.
                if self._takes_idle():
                    return
                continue
            work()
            del work  # what it holds does not wait for the next one
            self._idle.put(None)


_background = Background()
put = _background.put
