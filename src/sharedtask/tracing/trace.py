"""``trace``: records the calls of tasks while it is open."""

from __future__ import annotations

import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Self

from sharedtask import observing
from sharedtask.backends.worker.inner_calls import InnerCalls
from sharedtask.errors import SharedTaskError

from .recorder import Recorder
from .records import Recorded

if TYPE_CHECKING:
    import os

    from .advising import Advice
    from .records import Call, Chunk, Item, Worker

__all__ = ["Trace", "trace"]

_lock = threading.Lock()
_of_program: list[Recorder] = []  # a trace of the whole program gives way to others


class Trace:
    """Records the time and bytes of calls; made by ``trace()``.

    While it is open, it records every call of this process, in all threads and on all backends,
    and the times that workers report. ``print`` shows one screen.

    Examples:
        >>> from sharedtask import parallel, trace
        >>> double = parallel(lambda x: 2 * x)
        >>> with trace() as run:
        ...     _ = double.with_options(backend="serial").map(range(100))
        >>> run.calls[0].items
        100
    """

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._stopped: float | None = None

    def start(self) -> Self:
        """Start to record; earlier records are dropped.

        Raises:
            SharedTaskError: Another trace is open.

        Examples:
            >>> from sharedtask import trace
            >>> run = trace().start()
            >>> run.stop().calls
            ()
        """
        with _lock:
            found = observing.recorder
            if not (found is None or found in _of_program or isinstance(found, InnerCalls)):
                msg = "a trace is open already, and one process has one at a time: stop() it first."
                raise SharedTaskError(msg)
            observing.recorder = self._recorder = Recorder()
            self._stopped = None
        return self

    def of_program(self) -> Self:
        """Record the whole program, except calls in traces that the program opens itself."""
        self.start()
        with _lock:
            if self._recorder is not None:
                _of_program.append(self._recorder)
        return self

    def stop(self) -> Self:
        """End the recording; calls that are still running are recorded as unfinished. Idempotent.

        Warns:
            RuntimeWarning: An error occurred in recording; the calls were not affected.
        """
        recorder = self._recorder
        if recorder is None or self._stopped is not None:
            return self
        with _lock:
            self._stopped = time.monotonic()
            if recorder in _of_program:
                _of_program.remove(recorder)
            if observing.recorder is recorder:
                observing.recorder = _of_program[0] if _of_program else None
        problems = self.recorded().problems
        if problems:
            msg = f"the trace is incomplete: {problems[0]} (and {len(problems) - 1} more)"
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_open(self) -> bool:
        """Whether it records now."""
        return self._recorder is not None and self._stopped is None

    def recorded(self) -> Recorded:
        """Return all records so far."""
        recorder = self._recorder
        return Recorded() if recorder is None else recorder.recorded(self._stopped)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls, ordered by their start."""
        return self.recorded().calls

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The processes and threads that ran items."""
        return self.recorded().workers

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The chunks, ordered by their end."""
        return self.recorded().chunks

    @property
    def items(self) -> tuple[Item, ...]:
        """Single items: all items of small chunks; of larger ones a sample, with the slowest."""
        return self.recorded().items

    @property
    def advice(self) -> tuple[Advice, ...]:
        """Advice, with the most expensive problem first; empty if there is none.

        Examples:
            >>> from sharedtask import trace
            >>> with trace() as run:
            ...     pass
            >>> run.advice
            ()
        """
        from .advising import advise

        return advise(self.recorded())

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one page: timeline, memory, calls, workers, advice. It needs no network.

        Raises:
            OSError: The file cannot be written.

        Examples:
            >>> from sharedtask import trace
            >>> with trace() as run:
            ...     pass
            >>> run.to_html("/tmp/run.html")
        """
        from .files import replaced
        from .showing.page import page

        replaced(path, page(self.recorded()))

    def show(self) -> None:
        """Print the trace; in colours on a terminal if the package rich is installed.

        Examples:
            >>> from sharedtask import trace
            >>> with trace() as run:
            ...     pass
            >>> run.show() is None
            True
        """
        from .showing.terminal import show

        show(str(self), self.advice)

    def _repr_html_(self) -> str:
        """Return the page in a frame, for notebooks."""
        from .showing.page import inline

        return inline(self.recorded())

    def to_chrome(self, path: str | os.PathLike[str]) -> None:
        """Write a file for Perfetto or ``chrome://tracing``, in the trace-event format.

        Examples:
            >>> from sharedtask import trace
            >>> with trace() as run:
            ...     pass
            >>> run.to_chrome("/tmp/run.json")
        """
        from .chrome import write

        write(self.recorded(), path)

    def to_pandas(self) -> Any:
        """Return the chunks as a ``pandas.DataFrame``: one row each, with the name of the task.

        Raises:
            ModuleNotFoundError: pandas is not installed.

        Examples:
            >>> from sharedtask import trace
            >>> with trace() as run:
            ...     pass
            >>> len(run.to_pandas())
            0
        """
        from .frames import chunks_of

        return chunks_of(self.recorded())

    def __str__(self) -> str:
        from .plain import screen

        return screen(self.recorded())

    def __repr__(self) -> str:
        state = "open" if self.is_open else "not started" if self._recorder is None else "stopped"
        return f"<Trace, {state}>"


def trace() -> Trace:
    """Return a trace, which records calls of tasks. Open it with ``with`` or ``start()``.

    Without an open trace nothing is recorded, and calls are not slower.

    Examples:
        >>> from sharedtask import parallel, trace
        >>> square = parallel(lambda x: x * x)
        >>> with trace() as run:
        ...     _ = square.with_options(backend="serial").map(range(10))
        >>> [(call.task, call.items) for call in run.calls]
        [('<lambda>', 10)]
    """
    return Trace()
