"""Results of a worker: recorded on the status page, then sent."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sharedtask.errors import IncompleteValueWarning, SerializationError
from sharedtask.memory.room import needed_for
from sharedtask.outcomes import RaisedError
from sharedtask.serialization import codec, losses, missing
from sharedtask.serialization.unpicklable import culprit

from . import envelope, result_format, status_page
from .status_page import Word

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.memory.payload import Payload
    from sharedtask.observing import Clock
    from sharedtask.outcomes import Change

    from .envelope import Envelope


class ResultMessage(NamedTuple):
    """Results of some items from position ``first`` of a chunk on, in the format ``mode``.

    ``elapsed`` is how long they took, in ns; ``envelope`` is sent with ``data``. ``trace`` tells
    the times of the chunk, with its last results.
    """

    chunk: int
    first: int
    items: int
    mode: int
    elapsed: int
    finished: bool
    data: bytes
    envelope: Envelope | None = None
    trace: bytes = b""


class ResultChannel(Protocol):
    """Sends the results of a worker."""

    def pack(self, payload: Payload) -> Envelope:
        """Make an envelope for a large result; raises StoreFullError."""
        ...

    def send(self, message: ResultMessage) -> None:
        """Send results, which then survive the worker's death, or are read from the status page."""

    def report_change(self, chunk: int, change: Change) -> None:
        """Report that an item has changed a shared value."""


class Outbox:
    """Records results on the status page and sends them: on request, when full, when done.

    The number of results in the outbox is stored only on the status page. Within a chunk their
    format only becomes more general: a column of numbers, scalars, records.
    """

    def __init__(self, channel: ResultChannel, words: memoryview, box: Any) -> None:
        self._channel, self._words, self._box = channel, words, box
        self._columns = {kind: memoryview(box).cast(c) for kind, c in result_format.COLUMNS.items()}
        self._since = 0
        self.kind: type | None = None  # values of this type are written into the column directly
        self.column: Any = ()
        self.task, self.index = "", 0
        self.clock: Clock | None = None  # of the current chunk, if it is traced
        # Called before the error of a result that cannot be sent is recorded instead of it.
        self.on_refusal: Callable[[], object] = lambda: None

    def begin(self, chunk: int) -> None:
        """A chunk begins, without results."""
        self._since = time.monotonic_ns()
        words = self._words
        words[Word.COUNT] = words[Word.BASE] = words[Word.BEGUN] = 0
        self._set_mode(result_format.NOTHING)
        words[Word.CHUNK] = chunk

    def start_clock(self) -> None:
        """Items run from now on; the time of loading does not count."""
        self._since = time.monotonic_ns()

    def exclude(self, seconds: float) -> None:
        """Exclude this time from that of the items."""
        self._since += int(seconds * 1e9)

    def _set_mode(self, mode: int, kind: type | None = None) -> None:
        """Set the format; the outbox is empty at that time."""
        self._words[Word.MODE] = mode
        self.kind = kind
        self.column = () if kind is None else self._columns[kind]
        self._box.seek(0)

    def add(self, value: Any) -> None:
        """Record the result of the next item, of any kind."""
        mode, wanted = self._words[Word.MODE], result_format.mode_of(value)
        if mode == result_format.NOTHING and wanted in result_format.COLUMN_MODES:
            self._set_mode(wanted, type(value))
        elif wanted != mode and (mode < wanted or wanted in result_format.COLUMN_MODES):
            self._raise_mode(max(mode, wanted, result_format.SCALARS))
        self._write(value)

    def _raise_mode(self, mode: int) -> None:
        if mode != self._words[Word.MODE]:
            if self._words[Word.COUNT]:
                self.flush(finished=False)
            self._set_mode(mode)

    def _write(self, value: Any) -> None:
        mode = self._words[Word.MODE]
        if mode in result_format.COLUMN_MODES:
            self._write_number(value)
        elif mode == result_format.RECORDS:
            self._add_value(value)
        else:
            data = result_format.dump_scalar(value)
            if len(data) > status_page.OUTBOX_SIZE:
                self._add_value(value)
            else:
                self._write_down(data)

    def _write_number(self, value: Any) -> None:
        """Write a number that the loop could not: the column is full, or the number too large."""
        self.flush(finished=False)  # of a chunk's first item the prints
        try:
            self.column[0] = value
        except ValueError:
            self._set_mode(result_format.SCALARS)
            self._write(value)
        else:
            self._words[Word.COUNT] = 1

    def _write_down(self, data: bytes) -> None:
        try:
            self._box.write(data)
        except ValueError:
            self.flush(finished=False)
            self._box.write(data)
        self._words[Word.COUNT] += 1

    def _add_value(self, value: Any) -> None:
        try:
            with losses.collected() as lost:
                payload = codec.encode(value, back=True)
            if lost:
                missing.warn_of_result(self.task, self._next_index(), value, lost)
        except IncompleteValueWarning as error:  # warnings are errors
            self.add_error(error)
            return
        except BaseException as error:  # noqa: BLE001  pickling runs user code
            self.on_refusal()
            self.add_error(_unsendable(self.task, self._next_index(), value, error))
            return
        if payload.nbytes >= envelope.SEGMENT_FROM:
            self._send_large(payload)
        else:
            self._add_record(result_format.record(result_format.OK, envelope.pack_inline(payload)))

    def _next_index(self) -> int:
        return self.index + self.position

    @property
    def position(self) -> int:
        """The place in the chunk of the item that has no result yet."""
        return self._words[Word.BASE] + self._words[Word.COUNT]

    def add_error(self, error: BaseException) -> None:
        """Record the error of the next item."""
        self.add_raised(RaisedError.of(error))

    def add_raised(self, raised: RaisedError) -> None:
        self._add_record(result_format.raised_record(raised))

    def _add_record(self, record: bytes) -> None:
        self._raise_mode(result_format.RECORDS)
        if len(record) > status_page.OUTBOX_SIZE:
            self.flush(finished=False)
            self._send(record, 1)
        else:
            self._write_down(record)

    def _send_large(self, payload: Payload) -> None:
        """Send a large result at once, so that it survives the worker's death."""
        try:
            with needed_for(self.task, f"the result of item {self._next_index()} does not fit"):
                packed = self._channel.pack(payload)
        except Exception as error:  # noqa: BLE001  the store is full
            self.on_refusal()
            self.add_error(error)
            return
        self._raise_mode(result_format.RECORDS)
        self.flush(finished=False)
        self._send(result_format.record(result_format.OK, packed), 1, packed)
        packed.close()

    def report_change(self, change: Change) -> None:
        """Report that an item of this chunk has changed a shared value."""
        self._channel.report_change(self._words[Word.CHUNK], change)

    def flush(self, *, finished: bool) -> None:
        """Send the recorded results."""
        _flush_prints()
        count = self._words[Word.COUNT]
        if not count and not finished:
            return
        box, mode = self._box, self._words[Word.MODE]
        used = (
            box.tell()
            if mode not in result_format.COLUMN_MODES
            else result_format.WIDTHS[mode] * count
        )
        data = box[:used]
        box.seek(0)
        self._send(data, count, finished=finished)

    def _send(
        self, data: bytes, count: int, packed: Envelope | None = None, *, finished: bool = False
    ) -> None:
        words, now = self._words, time.monotonic_ns()
        chunk, first, mode = words[Word.CHUNK], words[Word.BASE], words[Word.MODE]
        trace = b"" if self.clock is None else self._timed(self.clock, data, packed, finished)
        self._channel.send(
            ResultMessage(
                chunk, first, count, mode, now - self._since, finished, data, packed, trace
            )
        )
        self._since = now
        # If the worker dies before the next line, the caller gets these results twice, as sent and
        # in the outbox; their position shows that they are known.
        words[Word.COUNT] = 0
        words[Word.BASE] += count

    def _timed(self, clock: Clock, data: bytes, packed: Envelope | None, finished: bool) -> bytes:
        """Count the bytes of results; what the clock tells, with the last ones."""
        clock.sent(len(data), 0 if packed is None else packed.nbytes_beside)
        return clock.told() if finished else b""


def _flush_prints() -> None:
    """Flush the task's output; the task may have closed or replaced the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  a block would make two calls of it, twice a chunk
            stream.flush()
        except Exception:  # noqa: BLE001, S110
            pass


def _unsendable(task: str, index: int, value: Any, error: BaseException) -> SerializationError:
    where = culprit(value, "result")
    problem = SerializationError(
        f"{task}(): the result of item {index} cannot be pickled: {where}. ({error})"
    )
    problem.__cause__ = error
    return problem
