"""How workers end with the forkserver, also if it is killed while they run a task.

Linux sends them SIGKILL (PR_SET_PDEATHSIG). Elsewhere they share a pipe, whose other end the
forkserver alone has open: a thread of each worker waits for its end. It cannot run while a task
keeps the GIL in a long call.
"""

from __future__ import annotations

import os
import signal
import threading

from sharedtask.system import libc


class Lifeline:
    """Made by the forkserver; ``hold`` and ``follow`` are called in each worker."""

    def __init__(self) -> None:
        # No effect but the answer: nothing is sent to the forkserver itself.
        self._is_told = libc.prctl(libc.PR_SET_PDEATHSIG, 0)
        self._ends = None if self._is_told else os.pipe()

    def hold(self) -> None:
        """First of all, in a forked worker: the death of its parent is noticed from now on."""
        if self._ends is None:
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        else:
            os.close(self._ends[1])

    def follow(self) -> None:
        """In a worker: end with the forkserver, unless the kernel sees to it."""
        if self._ends is not None:
            threading.Thread(target=self._wait, name="sharedtask-lifeline", daemon=True).start()

    def _wait(self) -> None:
        if self._ends is not None:
            os.read(self._ends[0], 1)
            os.kill(os.getpid(), signal.SIGKILL)

    def sentinel(self, caller: int) -> int:
        """A descriptor that is readable when the caller has ended."""
        return os.pidfd_open(caller) if self._ends is None else os.dup(self._ends[0])
