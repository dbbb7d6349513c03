"""Workers use the ``multiprocessing`` resource tracker of the caller.

A name that a task opens (``SharedMemory``) is written to a pipe, and the process that reads it
removes the name when all holders of the pipe have ended. If each worker had its own tracker, the
end of one would remove names that others still use. Most programs need no tracker: so the pipe
exists from the start, and its reader is started at the first write.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING, Any

from sharedtask.system.descriptors import Descriptor
from sharedtask.system.loading import when_loaded

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULE = "multiprocessing.resource_tracker"
_PROGRAM = f"from {_MODULE} import main; main({{}})"


class Tracker:
    """The pipe of a tracker that is started on demand, or of the one that runs already.

    ``watch(descriptor, action)`` must call the action when there is something to read, until
    ``unwatch(descriptor)``.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
    ) -> None:
        self._watch, self._unwatch = watch, unwatch
        self._ends: tuple[Descriptor, Descriptor] | None = None

    def descriptor(self) -> int:
        """The pipe end to which workers write the names to remove."""
        module = sys.modules.get(_MODULE)
        if module is not None and (self._ends is None or not self._ends[1].is_open()):
            number: int = module.getfd()
            return number
        if self._ends is None:
            read, write = os.pipe()
            self._ends = Descriptor.of(read), Descriptor.of(write)
            here = weakref.ref(self)
            when_loaded(_MODULE, lambda module: _start(here(), module))
            self._watch(read, _need)
        return self._ends[1].number

    def start(self, tracker: Any) -> None:
        """Start the process that reads the pipe; it is the tracker of this process then."""
        ends, self._ends = self._ends, None
        if ends is None:
            return
        read, write = ends
        self._unwatch(read.number)  # before another file gets the number
        if tracker._fd is not None or not read.is_open():
            read.close()
            write.close()
            return
        with _signals_blocked():
            process = subprocess.Popen(  # noqa: S603  our own interpreter
                [sys.executable, "-c", _PROGRAM.format(read.number)],
                stdin=subprocess.DEVNULL,
                pass_fds=(read.number,),
            )
        read.close()
        process.returncode = 0  # it ends by itself, when all who write have ended
        tracker._fd, tracker._pid = write.number, process.pid

    def close(self) -> None:
        """Close the pipe if nothing was written to it."""
        ends, self._ends = self._ends, None
        if ends is not None:
            self._unwatch(ends[0].number)
        for end in ends or ():
            end.close()


def _need() -> None:
    """A worker has written something: loading the module starts the tracker."""
    importlib.import_module(_MODULE)


def _start(tracker: Tracker | None, module: Any) -> None:
    if tracker is not None:
        tracker.start(module._resource_tracker)


@contextlib.contextmanager
def _signals_blocked() -> Any:
    """The mask is inherited: Ctrl-C cannot end the tracker before it ignores SIGINT."""
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
