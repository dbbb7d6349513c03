"""A submit in a queue: one submitted item and its future; and the sink of the queue's session."""

from __future__ import annotations

from concurrent.futures._base import PENDING, RUNNING
from typing import TYPE_CHECKING, Any, Protocol

from sharedtask.system.records import dataclass

from .futures import TaskFuture

if TYPE_CHECKING:
    import queue
    from collections import deque
    from collections.abc import Callable

    from sharedtask.backends.base import Chunk, Session
    from sharedtask.outcomes import Report


class QueueOwner(Protocol):
    """The queue of a submit."""

    calls: deque[Callable[[], object]]

    def wait(self, submit: QueuedSubmit, until: float | None) -> None:
        """Wait for the outcome of a submit, and serve the workers meanwhile."""

    def give_up(self, submit: QueuedSubmit, *, running: bool) -> bool:
        """Cancel a submit, unless it has an outcome, or ``running`` is False and it has begun."""
        ...

    def leave(self) -> None:
        """Ensure that outcomes are delivered without a waiting thread."""

    def begun(self, chunk: int) -> bool:
        """See ``Sink``."""
        ...

    def report(self, report: Report) -> None:
        """See ``Sink``."""


class QueuedSubmit:
    """One submitted item in a queue, as its future sees it."""

    __slots__ = (
        *("future", "index", "is_over", "item", "name", "news", "owner", "sent"),
        "was_tried",
    )

    def __init__(self, owner: QueueOwner, index: int, item: Any, name: str) -> None:
        self.owner, self.index, self.item = owner, index, item
        self.name = name  # of the function that errors name, if the item is a packed call
        self.future: TaskFuture[Any] = TaskFuture()
        self.future._submission = self
        self.sent: SentChunk | None = None  # its chunk in flight
        self.is_over = self.was_tried = False
        self.news: queue.SimpleQueue[bool] | None = None  # wakes the thread that waits for it

    def wait(self, until: float | None) -> None:
        """See ``Pending``."""
        self.owner.wait(self, until)

    def give_up(self, *, running: bool) -> bool:
        """See ``Pending``."""
        return self.owner.give_up(self, running=running)

    def leave(self) -> None:
        """See ``Pending``."""
        self.owner.leave()

    def call_together(self, call: Callable[[], object]) -> None:
        """See ``Pending``."""
        self.owner.calls.append(call)

    def wake(self, session: Session) -> None:
        """See ``Pending``."""
        del session
        news = self.news  # read once: the thread that waits may end its wait now
        if news is not None:
            news.put(True)

    def set_running(self) -> None:
        """Record that it may begin, without waiting for a lock that user code may hold."""
        future: Any = self.future
        if future._condition.acquire(blocking=False):
            if future._state == PENDING:
                future._state = RUNNING
            future._condition.release()


@dataclass(eq=False, slots=True)
class SentChunk:
    """A chunk in flight."""

    chunk: Chunk
    submits: list[QueuedSubmit]
    is_given: bool = False  # to the session
    ended: queue.SimpleQueue[bool] | None = None  # wakes the thread that kills it


class QueueSink:
    """The sink of a queue's session; while the queue rests, it does not refer to it.

    So a task that is dropped is freed with its queue, without a garbage collection.
    """

    __slots__ = ("owner",)

    def __init__(self, owner: QueueOwner) -> None:
        self.owner: QueueOwner | None = owner

    def begun(self, chunk: int) -> bool:
        """See ``Sink``."""
        return self.owner is not None and self.owner.begun(chunk)

    def report(self, report: Report) -> None:
        """See ``Sink``."""
        if self.owner is None:
            report.delivery.discard()
        else:
            self.owner.report(report)
