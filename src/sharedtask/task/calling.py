"""Calls of any functions, for adapters to other libraries' interfaces.

``submit`` runs one item of a task. Here several calls are sent together and return in one future,
each with its own outcome: an error names the call, a failed one is retried alone, and calls that a
dead worker had not begun are begun elsewhere.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask.backends import registry
from sharedtask.backends.base import Chunk, Team
from sharedtask.system import background, critical_sections
from sharedtask.system.records import dataclass, field

from .futures import TaskFuture
from .plan import plan_call
from .retries import runs_again
from .submission import Submission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sharedtask.backends.base import Backend, Call
    from sharedtask.options import Options
    from sharedtask.outcomes import Batch, Report

    from .plan import Target


@dataclass(frozen=True, slots=True)
class Facade:
    """The target of calls, with options that were resolved before.

    Large arrays among their arguments are shared, each by itself, for as long as it lives.

    Attributes:
        target: The function, called with the number of the call and the common arguments.
        options: At most ``workers`` calls run at a time.
        shared_from: Arrays of at least this many bytes are shared; None for none.
        inner_threads: Threads of numerical libraries in a worker; None: its share of the CPUs.
    """

    target: Target
    options: Options
    shared_from: int | None = None
    inner_threads: int | None = None
    team: Team = field(default_factory=Team)

    def submit(self, name: str, numbers: range, *args: Any) -> TaskFuture[list[Any]]:
        """Send calls; errors use ``name`` for the function.

        Raises:
            SerializationError: An argument cannot be encoded.
            StoreFullError: An argument does not fit.
        """
        planned = plan_call(self.target, args, {}, self.options, items=numbers)
        call = replace(
            planned,
            task=name,
            capture_from=self.shared_from,
            inner_threads=self.inner_threads,
            team=self.team,
        )
        backend = registry.of(self.options)
        return Several(backend, call, numbers, self.options).future


def failed(error: BaseException) -> TaskFuture[Any]:
    """A future of a call that could not be sent."""
    future: TaskFuture[Any] = TaskFuture()
    future.set_exception(error)
    return future


def when_done(future: TaskFuture[Any], call: Callable[[Any], object]) -> None:
    """Run ``call(future)`` when the future is done, but never within this call.

    It may submit more calls, which may also be done at once.
    """
    entered = [True]

    def run(done: Any) -> None:
        if entered:
            background.put(functools.partial(call, done))
        else:
            call(done)

    future.add_done_callback(run)
    entered.clear()


class Several(Submission):
    """Several items, all results in one future."""

    def __init__(self, backend: Backend, call: Call, numbers: range, options: Options) -> None:
        self._numbered = numbers
        self._found: dict[int, Any] = {}
        self._open_chunks: dict[int, range] = {}
        self._rests: list[range] = []  # calls that workers had not begun at the end of a chunk
        self._unopened = 0  # reports that were received
        self._lock = critical_sections.object_lock()
        super().__init__(backend, call, numbers, options, _count_nothing)

    def _chunk(self) -> Chunk:
        return self._chunk_of(self._numbered)

    def _chunk_of(self, numbers: range) -> Chunk:
        number = next(self._numbers)
        self._open_chunks[number] = numbers
        return Chunk(number, numbers.start, numbers)

    def report(self, report: Report) -> None:
        """Called in the order of arrival; reports are opened in any order."""
        with self._lock:
            self._unopened += report.change is None or bool(report.count)
            if report.finished:
                self._rests.append(self._open_chunks.pop(report.chunk)[report.stop :])
        super().report(report)

    def _take(self, batch: Batch) -> None:
        self._session.accept(batch)
        with self._lock:
            again, error = self._sorted(batch)
            self._unopened -= 1
            if not self._unopened:  # no error ends the submission
                again += filter(None, self._rests)
                self._rests.clear()
            is_over = error is not None or len(self._found) == len(self._numbered)
        if is_over:
            values = None if error is not None else [self._found[k] for k in self._numbered]
            self._finish(values, error)
        elif again:
            # Not in this thread, which may be one that must not wait.
            background.put(functools.partial(self._run_again, again))

    def _sorted(self, batch: Batch) -> tuple[list[range], BaseException | None]:
        """Store the results; returns the calls to retry, and the first error of the submission."""
        again: list[range] = []
        first: BaseException | None = None
        for offset, value in enumerate(batch.values):
            number, error = batch.first + offset, batch.errors.get(offset)
            if error is None:
                self._found[number] = value
            elif runs_again(self._options, self._failures, number, error):
                again.append(range(number, number + 1))
            elif self._options.return_exceptions:
                self._found[number] = error
            elif first is None:
                first = error
        return again, first

    def _run_again(self, parts: Iterable[range]) -> None:
        try:
            for numbers in parts:
                self._session.submit(self._chunk_of(numbers))
                self._session.leave()
        except BaseException as error:  # noqa: BLE001  the pool was shut down meanwhile
            self._finish(None, error)

    def _resolve(self, value: Any, error: BaseException | None) -> None:
        """An error of the submission as a whole belongs to no single call."""
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


def _count_nothing(shares: Any) -> None:
    """These values belong to no task's statistics."""
