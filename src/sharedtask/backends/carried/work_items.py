"""Chunks in flight that another library carries, and the calls that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from sharedtask.backends import work_items
from sharedtask.backends.base import REPORT_SOON_SECONDS
from sharedtask.backends.call_logs import CallLogs, strays
from sharedtask.backends.worker import envelope, result_format
from sharedtask.outcomes import Batch, Change, Report
from sharedtask.serialization import codec
from sharedtask.store.stores import BytesStore
from sharedtask.system.records import dataclass, field
from sharedtask.version import VERSION

from .message import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sharedtask.backends.base import Chunk, Team
    from sharedtask.memory.payload import Payload

    from .boxes import ReceivedPayload
    from .message import Answer, Frame

# A chunk ends after this time, so that results flow and the rest can be distributed.
_CHUNK_SECONDS = 0.2


class _Nobody:
    """The sink of a call that is closed."""

    def begun(self, chunk: int) -> bool:
        del chunk
        return False

    def report(self, report: Report) -> None:
        report.delivery.discard()


@dataclass(eq=False, slots=True, kw_only=True)
class OpenCall(work_items.OpenCall):
    """A call, and what its chunks need of any library that carries them.

    ``limit`` returns how many chunks of its team may be in flight at a time.
    """

    origin: bytes
    limit: Callable[[], int]
    report_soon: bool  # results must not wait for the end of their chunk
    adds: bool  # the totals of a chunk come with its answer, or are lost
    fail_fast: bool
    team: Team
    open_chunks: set[int] = field(default_factory=set)

    @property
    def is_alive(self) -> bool:
        """Whether there is what runs its chunks."""
        return True

    def report(self, report: Report) -> None:
        """Report the outcome of a chunk, once, unless the call is closed."""
        try:
            self.open_chunks.remove(report.chunk)
        except KeyError:  # another thread was faster
            return
        self.sink.report(report)

    def close(self) -> None:
        """Drop references to the caller and its values now, not at a garbage collection."""
        self.closed, self.sink = True, _Nobody()

    def stored(self) -> tuple[int, ...]:
        """The values of which workers make private copies: decoded ones cannot be reused."""
        return tuple(publication.token for publication, copies in self.leases.needs if copies)

    def small(self) -> tuple[tuple[int, bytes, Any], ...]:
        """The values that are sent inside the message."""
        stores = [(lease.publication.token, lease.publication.store) for lease in self.leases.all]
        return tuple(
            (token, store.data, store.layout.parts)
            for token, store in stores
            if isinstance(store, BytesStore)
        )


C = TypeVar("C", bound=OpenCall)


@dataclass(eq=False, slots=True)
class WorkItem(work_items.WorkItem[C], Generic[C]):
    """A chunk. ``ref`` is what the library that carries it knows it by."""

    ref: Any = None
    failures: int = 0
    give_up_at: float | None = None
    is_stopped: bool = False

    @classmethod
    def encode(cls, call: C, chunk: Chunk) -> Self:
        """Encode a chunk in one piece; raises what pickling an item raises."""
        return cls.whole(call, chunk, envelope.pack_attached)

    @classmethod
    def encode_each(cls, call: C, chunk: Chunk) -> Self:
        """Encode every item on its own."""
        return cls.each(call, chunk, envelope.pack_attached)

    def message(
        self,
        released: tuple[int, ...],
        tokens: tuple[int, ...],
        attachments: int,
        small: tuple[tuple[int, bytes, Any], ...],
    ) -> Message:
        """The message to the worker."""
        call, chunk = self.call, self.chunk
        return Message(
            VERSION,
            call.origin,
            self.number,
            chunk.first,
            len(chunk.items),
            self.mode,
            call.header,
            call.constants.data + self.envelope.data,
            small,
            tokens,
            call.stored(),
            released,
            attachments,
            REPORT_SOON_SECONDS if call.report_soon else _CHUNK_SECONDS if call.splits else 0.0,
            call.timeout or 0.0,
            call.number,
        )

    def attachments(self) -> list[Payload]:
        """Payloads that are sent next to the message, in the order of their use."""
        envelopes = (self.call.constants, self.envelope)
        return [envelope.payload for envelope in envelopes if envelope.payload is not None]

    def renumbered(self) -> Self:
        """The same chunk, to be run from its beginning."""
        return type(self)(
            self.call, self.chunk, self.mode, self.envelope, failures=self.failures + 1
        )

    def arrived(self, answer: Answer) -> Report:
        """A report of the results in an answer."""
        count = sum(frame[2] for frame in answer.frames)
        logs = answer.logs, answer.dropped
        report = self.partly_arrived(answer.frames, count, {}, answer.added, logs)
        report.trace = answer.trace
        report.change = None if answer.change is None else Change(*answer.change)
        return report

    @property
    def is_unreported(self) -> bool:
        """Whether the call was closed before its results came."""
        return self.call.closed and self.chunk.number in self.call.open_chunks

    def logged_late(self, answer: Answer) -> None:
        """Have a background thread handle records that come with no results."""
        for record in answer.logs:
            strays.put(record)
        strays.dropped += answer.dropped
        strays.finish_behind()

    def partly_arrived(
        self,
        frames: list[Frame],
        count: int,
        errors: dict[int, BaseException],
        added: Any = None,
        logs: tuple[Sequence[bytes], int] = ((), 0),
    ) -> Report:
        """A report of ``count`` items: results, and errors at the positions that have none."""
        seconds = sum(frame[3] for frame in frames) / 1e9
        first, call = self.chunk.first, self.call
        logged = Logged(call, *logs) if logs[0] else None
        delivery = Arrived(frames, first, count, call.task, errors, added, logged)
        return Report(self.chunk.number, delivery, count, finished=True, seconds=seconds)


@dataclass(slots=True)
class Logged:
    """Records that came with results, not passed on yet; ``dropped``: how many more there were."""

    call: OpenCall
    records: Sequence[bytes]
    dropped: int = 0

    def take(self) -> CallLogs:
        """Pass them on, once, to the logs of their call."""
        if self.call.logs is None:
            self.call.logs = CallLogs(f"{self.call.task}()")
        logs = self.call.logs
        records, self.records = self.records, ()
        for record in records:
            logs.put(record)
        logs.dropped, self.dropped = logs.dropped + self.dropped, 0
        return logs


@dataclass(frozen=True, slots=True)
class Arrived:
    """Results that were received and not decoded yet."""

    frames: list[Frame]
    first: int
    count: int
    task: str
    errors: dict[int, BaseException]
    added: ReceivedPayload | None
    logged: Logged | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing has to be unpickled or retried."""
        if self.added is not None or self.errors or self.logged is not None:
            return False
        return all(result_format.is_plain(frame[0]) for frame in self.frames)

    def open(self) -> Batch:
        """Decode them in the thread that asked for them, each at its position."""
        if self.logged is not None:
            self.logged.take().handle()
        whole = Batch(self.first, [None] * self.count, dict(self.errors))
        for mode, first, items, _, data, opened in self.frames:
            attachments = iter([] if opened is None else [opened])
            part = result_format.load_batch(
                mode, data, items, self.first + first, self.task, attachments
            )
            whole.errors.update({first + k: error for k, error in part.errors.items()})
            whole.values[first : first + items] = part.values
        if self.added is not None:
            whole.partial = codec.decode(*self.added)
        return whole

    def discard(self) -> None:
        """Handle what was logged; memory is freed with the object."""
        if self.logged is not None:
            self.logged.take().finish_behind()
