"""Chunks in flight in the pool, and the calls that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.backends import encoding, work_items
from sharedtask.backends.worker import call_header, envelope
from sharedtask.backends.worker.envelope import Envelope
from sharedtask.backends.worker.limits import ANY
from sharedtask.outcomes import Batch, Change, Report
from sharedtask.system.records import dataclass, field

from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from sharedtask.backends.base import Chunk, Limits
    from sharedtask.backends.worker.limits import ChunkLimits
    from sharedtask.errors import StoreFullError
    from sharedtask.memory.payload import Payload
    from sharedtask.store.publication import Publication
    from sharedtask.writing.handler import SlotTable


@dataclass(eq=False, slots=True, kw_only=True)
class OpenCall(work_items.OpenCall):
    """A call, and which workers have chunks of it."""

    needs: tuple[tuple[Publication, bool], ...]  # True: with a descriptor for private copies
    limit: int
    limits: Limits | None
    function: Callable[..., Any]
    slot_table: SlotTable | None  # those of a role that needs them
    users: dict[int, int]  # serial of worker -> chunks it has; those of the whole team
    tokens: set[int] = field(init=False)  # of the publications that a worker needs
    pending: int = 0  # chunks in the queue and in workers
    entered: bool = False  # a worker got a chunk: tasks may have written since
    seconds: float | None = None  # how long a chunk takes, smoothed
    stillborn: int = 0  # workers that died loading its values since the last finished chunk
    killed: SimpleQueue[None] | None = None  # set by kill; woken when all chunks have ended
    unreleased: list[bool] = field(default_factory=[True].copy)

    def __post_init__(self) -> None:
        self.tokens = set()
        for publication, _ in self.needs:  # a call less than a comprehension
            self.tokens.add(publication.token)

    def note(self, seconds: float) -> None:
        """Remember how long a chunk took."""
        self.seconds = seconds if self.seconds is None else (self.seconds + seconds) / 2

    def enter(self, serial: int, work_item: WorkItem) -> None:
        """A worker gets a chunk of this call."""
        self.entered = True
        self.users[serial] = self.users.get(serial, 0) + 1
        if self.slot_table is not None:
            work_item.accumulator_slot = self.slot_table.enter(serial, work_item)

    def leave(self, serial: int, work_item: WorkItem) -> None:
        """A worker has one chunk less of this call."""
        if self.slot_table is not None:
            self.slot_table.leave(serial, work_item)
        self.users[serial] -= 1
        if not self.users[serial]:
            del self.users[serial]

    def release(self) -> None:
        """Release the shared values: no chunk needs them any more."""
        try:
            self.unreleased.pop()  # one thread closes the call while another ends its last chunk
        except IndexError:
            return
        self.leases.release()
        self.constants.close()
        if self.killed is not None:
            self.killed.put(None)


@dataclass(eq=False, slots=True)
class WorkItem(work_items.WorkItem[OpenCall]):
    """A chunk for a worker process."""

    request_slot: int = 0  # on the status page, for the caller's requests
    accumulator_slot: int = 0
    chunk_limits: ChunkLimits = ANY
    cancelled: bool = False
    kill_at: float | None = None
    restarts: int = 0  # by workers that died before they began it

    def again(self) -> WorkItem:
        """The same chunk under a new number; its resources pass to the new object."""
        envelope, self.envelope = self.envelope, Envelope(b"")
        return WorkItem(self.call, self.chunk, self.mode, envelope, restarts=self.restarts)

    def frame(self) -> Frame:
        """The chunk as a message."""
        fds = self.call.constants.fds + self.envelope.fds
        header = self.call.header
        may = self.chunk_limits
        prefix = call_header.PREFIX.pack(
            self.mode,
            self.request_slot,
            self.accumulator_slot,
            len(header),
            self.call.number,
            may.memory,
            may.items,
            may.cuts,
        )
        return Frame(
            Kind.CHUNK,
            chunk=self.number,
            first=self.chunk.first,
            items=len(self.chunk.items),
            body=b"".join((prefix, header, self.call.constants.data, self.envelope.data)),
            fds=fds,
        )

    def changed(self, change: Change) -> Report:
        """A report that an item has changed a shared value."""
        report = self.report(Batch(self.chunk.first, []), finished=False)
        report.change = change
        return report


def encode(call: OpenCall, chunk: Chunk) -> WorkItem:
    """Encode a chunk in one piece; raises what pickling an item raises, or StoreFullError."""
    return WorkItem.whole(call, chunk, _pack)


def encode_each(call: OpenCall, chunk: Chunk) -> WorkItem:
    """Encode every item on its own, so that the bad one can be named."""
    return WorkItem.each(call, chunk, _pack)


def encode_small(call: OpenCall, chunk: Chunk, full: StoreFullError) -> WorkItem:
    """Encode a chunk without its large items; raises StoreFullError where it does not fit yet."""
    packed = encoding.pack_small(call.task, chunk.first, chunk.items, _pack, full)
    return WorkItem(call, chunk, *packed)


def _pack(payload: Payload) -> Envelope:
    return envelope.pack(payload, frozen=False)
