"""Chunks in flight and the calls that they belong to: what holds for workers and for Ray."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sharedtask.outcomes import Batch, Known, Report
from sharedtask.system.records import dataclass, field

from . import encoding

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.memory.payload import Payload

    from .base import Chunk, Sink
    from .call_logs import CallLogs
    from .leasing import Leases

numbers = itertools.count(1)
"""Numbers of calls and of chunks in flight; workers see no number twice."""


@dataclass(eq=False, slots=True, kw_only=True)
class OpenCall:
    """The state that all chunks of a call share.

    If it ``splits``, chunks may be ended early, and their rest cut again.
    """

    task: str
    header: bytes
    constants: Envelope
    leases: Leases
    timeout: float | None
    splits: bool
    sink: Sink
    closed: bool = False
    number: int = field(default_factory=numbers.__next__)
    pack_items: Callable[..., tuple[int, Envelope]] = encoding.pack_items
    logs: CallLogs | None = None  # from the first record on
    trace: Any = None  # as in ``Call``


C = TypeVar("C", bound=OpenCall)


@dataclass(eq=False, slots=True)
class WorkItem(Generic[C]):
    """A chunk, encoded. It keeps its items until it is done: they may have to be resent.

    ``received`` is how many of its items have an outcome.
    """

    call: C
    chunk: Chunk
    mode: int
    envelope: Envelope
    number: int = field(default_factory=numbers.__next__)
    received: int = 0

    @classmethod
    def whole(cls, call: C, chunk: Chunk, pack: Callable[[Payload], Envelope]) -> Self:
        """Encode a chunk in one piece; raises what pickling an item raises, or StoreFullError."""
        made = cls(call, chunk, *call.pack_items(chunk.items, pack))
        if call.trace is not None:
            call.trace.encoded(chunk.number, made.envelope)
        return made

    @classmethod
    def each(cls, call: C, chunk: Chunk, pack: Callable[[Payload], Envelope]) -> Self:
        """Encode every item on its own, so that the bad one can be named."""
        return cls(call, chunk, *encoding.pack_each(call.task, chunk.first, chunk.items, pack))

    def report(self, batch: Batch, *, finished: bool, seconds: float = 0.0) -> Report:
        """A report of outcomes that the caller's process knows, the last that were received."""
        count = len(batch.values)
        first = self.received - count
        return Report(self.chunk.number, Known(batch), count, finished, seconds, first=first)

    def failed(self, error: BaseException, *, finished: bool = True) -> Report:
        """A report that the next item ended with ``error``."""
        batch = Batch(self.chunk.first + self.received, [None], {0: error})
        self.received += 1
        return self.report(batch, finished=finished)

    def all_failed(self, error_at: Callable[[int], BaseException]) -> Report:
        """A report that every item without an outcome failed, with an error by its position."""
        at = range(self.received, len(self.chunk.items))
        errors = {k: error_at(position) for k, position in enumerate(at)}
        batch = Batch(self.chunk.first + self.received, [None] * len(at), errors)
        self.received += len(at)
        return self.report(batch, finished=True)
