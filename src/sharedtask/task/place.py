"""A place in a line: one submitted item, and the future of its outcome; and the line's door."""

from __future__ import annotations

from concurrent.futures._base import PENDING, RUNNING
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from .futures import TaskFuture

if TYPE_CHECKING:
    import queue
    from collections import deque
    from collections.abc import Callable

    from sharedtask.backends.base import Chunk, Session
    from sharedtask.outcomes import Report


class Owner(Protocol):
    """The line of a place."""

    calls: deque[Callable[[], object]]

    def wait(self, place: Place, until: float | None) -> None:
        """Wait for the outcome of a place, and serve the workers meanwhile."""

    def give_up(self, place: Place, *, running: bool) -> bool:
        """Cancel a place, unless it has an outcome, or ``running`` is False and it has begun."""
        ...

    def leave(self) -> None:
        """Ensure that outcomes are delivered without a waiting thread."""

    def begun(self, chunk: int) -> bool:
        """See ``Sink``."""
        ...

    def report(self, report: Report) -> None:
        """See ``Sink``."""


class Place:
    """One submitted item in a line, as its future sees it."""

    __slots__ = ("future", "index", "is_over", "item", "left", "line", "news", "sent", "was_tried")

    def __init__(self, line: Owner, index: int, item: Any, left: int) -> None:
        self.line, self.index, self.item = line, index, item
        self.left = left  # how often it may be tried again
        self.future: TaskFuture[Any] = TaskFuture()
        self.future._submission = self
        self.sent: Sent | None = None  # its chunk in flight
        self.is_over = self.was_tried = False
        self.news: queue.SimpleQueue[bool] | None = None  # wakes the thread that waits for it

    def wait(self, until: float | None) -> None:
        """See ``Pending``."""
        self.line.wait(self, until)

    def give_up(self, *, running: bool) -> bool:
        """See ``Pending``."""
        return self.line.give_up(self, running=running)

    def leave(self) -> None:
        """See ``Pending``."""
        self.line.leave()

    def call_together(self, call: Callable[[], object]) -> None:
        """See ``Pending``."""
        self.line.calls.append(call)

    def wake(self, session: Session) -> None:
        """See ``Pending``."""
        del session
        if self.news is not None:
            self.news.put(True)

    def set_running(self) -> None:
        """Record that it may begin, without waiting for a lock that user code may hold."""
        future: Any = self.future
        if future._condition.acquire(blocking=False):
            if future._state == PENDING:
                future._state = RUNNING
            future._condition.release()


@dataclass(eq=False, slots=True)
class Sent:
    """A chunk in flight; ``covered`` of its items have an outcome."""

    chunk: Chunk
    places: list[Place]
    covered: int = 0
    is_given: bool = False  # to the session
    ended: queue.SimpleQueue[bool] | None = None  # wakes the thread that kills it


class Door:
    """The sink of a line's session; while the line rests, it does not refer to it.

    So a task that is dropped is freed with its line, without a garbage collection.
    """

    __slots__ = ("line",)

    def __init__(self, line: Owner) -> None:
        self.line: Owner | None = line

    def begun(self, chunk: int) -> bool:
        """See ``Sink``."""
        return self.line is not None and self.line.begun(chunk)

    def report(self, report: Report) -> None:
        """See ``Sink``."""
        if self.line is None:
            report.delivery.discard()
        else:
            self.line.report(report)
