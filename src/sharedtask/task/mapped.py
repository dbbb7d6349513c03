"""A map that goes on by itself: a thread drives its run, and its results wait for the caller."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from sharedtask.errors import InitializerError
from sharedtask.system import interrupts
from sharedtask.system.records import dataclass

from .run import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sharedtask.backends.base import Backend
    from sharedtask.outcomes import Batch


@dataclass(frozen=True, slots=True)
class _Raised:
    """The error of an item in the place of its result."""

    error: BaseException


class LastingRun(Run):
    """A run that goes on after errors of items; each is raised when the caller comes to it.

    Its options have ``return_exceptions``; if it ``returns`` errors, they are results as they are.
    """

    returns = False
    on_broken: Callable[[InitializerError], object] = staticmethod(bool)

    def _in_place(self, error: BaseException) -> Any:
        if isinstance(error, InitializerError):
            self.on_broken(error)
        return error if self.returns else _Raised(error)


class Mapped:
    """A map of an executor; ``kept`` lives at least as long as this."""

    def __init__(self, kept: object) -> None:
        self._kept = kept
        self._run: Run | None = None
        self._pieces: queue.SimpleQueue[list[Batch] | BaseException | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._error: Exception | None = None  # for who asks for further results

    @interrupts.shielded
    def begin(self, run: Run, backend: Backend) -> None:
        """Open the run, and drive it in a thread, or here if its tasks run in the caller's."""
        self._run = run
        try:
            run.open()
            if not backend.in_caller:
                threading.Thread(target=self._drive, name="sharedtask-map", daemon=True).start()
        except BaseException:
            self._end()
            raise
        if backend.in_caller:
            self._drive()

    @interrupts.shielded
    def _drive(self) -> None:
        run = self._run
        assert run is not None  # noqa: S101  only ``_end`` sets it so
        try:
            while (pieces := run.advance()) is not None:
                self._pieces.put(pieces)
                del pieces
            run.raise_failure()
        except BaseException as error:  # noqa: BLE001  it is the caller's
            self._pieces.put(error)
        finally:
            self._end()

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.close()
        if self._error is not None:
            self._pieces.put(self._error)
        self._pieces.put(None)
        self._ended.set()

    def wait(self) -> None:
        """Wait for its end."""
        while not self._ended.wait(interrupts.LATE_SECONDS):
            pass  # see ``next_of`` there

    def end(self, error: Exception) -> None:
        """End it; who asks for further results gets the error."""
        if not self._ended.is_set():
            self._error = error
            self._stop()

    def _stop(self) -> None:
        run = self._run
        if run is not None:
            run.stop()

    def results(self, until: float | None) -> Generator[Any, None, None]:
        """The results in the order of the items. Leaving the loop ends the map.

        Raises:
            TimeoutError: The next one was not there at the time ``until``.
        """
        ready: dict[int, list[Any]] = {}
        turn = 0
        try:
            while (pieces := self._next(until)) is not None:
                while pieces:
                    piece = pieces.pop()
                    ready[piece.first] = piece.values
                    del piece
                while turn in ready:
                    values = ready.pop(turn)
                    turn += len(values)
                    values.reverse()
                    while values:  # keeps no result that the caller has
                        yield _result(values.pop())
        finally:
            self._stop()

    def _next(self, until: float | None) -> list[Batch] | None:
        found: list[Batch] | BaseException | None
        try:
            found = interrupts.next_of(self._pieces, until)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(found, BaseException):
            raise found
        return found


def _result(value: Any) -> Any:
    if type(value) is _Raised:
        raise value.error
    return value
