"""Slots: in each one an executor of loky with a single worker.

So a death breaks one slot, and is that of the chunk that it had.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from loky import ProcessPoolExecutor
from loky.backend.context import LokyContext

from sharedtask.backends.carried import status_file
from sharedtask.backends.carried.status_file import PID, STOP
from sharedtask.backends.worker import status_page

from . import worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from sharedtask.backends.carried.status_file import CrashReport

    from .folder import Folder

# loky replaces workers that grow by this much, and mapped values count: so it never does.
_NEVER = {"LOKY_MAX_MEMORY_LEAK_SIZE": str(1 << 62)}
_SOFT_SECONDS, _HARD_SECONDS = 5.0, 5.0


class Slot:
    """A place for a worker; ``number`` is that of the worker.

    ``known`` are the tokens of the values that the worker was sent, ``released`` those of them that
    are over and that it was not told of.
    """

    def __init__(self, folder: Folder, backend: str, number: int) -> None:
        self._folder, self._named, self.number = folder, backend, number
        self.known: set[int] = set()
        self.released: list[int] = []
        self._executor: Any = None
        self._status = folder.new_path("status")

    @property
    def is_started(self) -> bool:
        """Whether there is a worker; it may have died since."""
        return self._executor is not None

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call a function in the worker; raises what loky does if it has died."""
        future: Future[Any] = self._executor.submit(function, *args)
        return future

    def start(self) -> None:
        """Start a worker with the first ``submit``."""
        self._status = self._folder.new_path("status")
        with self._status.open("xb") as file:
            file.write(bytes(status_page.SIZE))
        with self._status.open("r+b") as file:
            self._words = memoryview(mmap.mmap(file.fileno(), status_page.WORDS_SIZE)).cast("Q")
        theirs, self._caller = multiprocessing.Pipe(duplex=False)
        birth = worker.Birth(self._named, self.number, str(self._status))
        self._executor = ProcessPoolExecutor(
            1,
            # Not the one of this name: joblib's own copy of loky takes that over when it is loaded.
            context=LokyContext(),
            initializer=worker.begin,
            initargs=(birth, theirs),
            env=_NEVER,
        )

    def ask_to_stop(self, number: int) -> None:
        """Have the worker end this chunk after the current item."""
        self._words[STOP] = number

    def kill(self) -> None:
        """Kill the worker."""
        pid = self._words[PID] if self.is_started else 0
        if pid:
            with contextlib.suppress(OSError):
                # Where there is no SIGKILL, the other one ends a process as hard.
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def crash_report(self) -> CrashReport:
        """What the worker left."""
        return status_file.read(self._status.read_bytes())

    def take_released(self) -> tuple[int, ...]:
        """The values to tell the worker of."""
        released, self.released = tuple(self.released), []
        return released

    def note_release(self, token: int) -> None:
        """A value is over."""
        if token in self.known:
            self.known.discard(token)
            self.released.append(token)

    def discard(self) -> None:
        """Give up the worker, which has died or is about to."""
        executor, self._executor = self._executor, None
        self.known.clear()
        self.released.clear()
        if executor is not None:
            executor.shutdown(wait=False)
            self._caller.close()
            self._folder.drop(self._status)


def end_all(slots: Iterable[Slot]) -> None:
    """End all workers: those that idle softly, and whatever does not end so."""
    ending = [(slot, _begin_end(slot._executor)) for slot in slots if slot.is_started]
    for wait, kills in ((_SOFT_SECONDS, True), (_HARD_SECONDS, False)):
        until = time.monotonic() + wait
        for slot, manager in ending:
            if manager is not None:
                manager.join(max(until - time.monotonic(), 0.0))
            if kills and (manager is None or manager.is_alive()):
                slot.kill()
    for slot, _ in ending:
        slot.discard()


def _begin_end(executor: Any) -> threading.Thread | None:
    """Have an executor end; its thread ends after the worker."""
    manager = getattr(executor, "_executor_manager_thread", None)
    executor.shutdown(wait=False)
    return manager
