"""The worker's end of the way back: results are written down on the board, then sent."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from sharedtask.errors import SerializationError
from sharedtask.outcomes import RaisedError
from sharedtask.sharing import codec
from sharedtask.sharing.culprit import culprit

from . import board as boards
from . import results, wire
from .board import Word
from .wire import Frame, Kind

if TYPE_CHECKING:
    import socket


class Outbox:
    """Writes results down on the board and sends them: when told to, when full, when done.

    How many results lie in the box stands on the board and nowhere else. How they are written only
    ever gets more general within a chunk: a column of numbers, scalars, records.
    """

    def __init__(self, sock: socket.socket, words: memoryview, box: Any) -> None:
        self._sock, self._words, self._box = sock, words, box
        self._columns = {kind: memoryview(box).cast(c) for kind, c in results.COLUMNS.items()}
        self._since = 0
        self.kind: type | None = None  # values of this type go straight into the column
        self.column: Any = ()
        self.task, self.index = "", 0

    def begin(self, chunk: int) -> None:
        """A chunk begins; nothing is known of its results."""
        self._since = time.monotonic_ns()
        words = self._words
        words[Word.COUNT] = words[Word.BASE] = 0
        self._set_mode(results.NOTHING)
        words[Word.CHUNK] = chunk

    def _set_mode(self, mode: int, kind: type | None = None) -> None:
        """The box is empty when the mode changes."""
        self._words[Word.MODE] = mode
        self.kind = kind
        self.column = () if kind is None else self._columns[kind]
        self._box.seek(0)

    def add(self, value: Any) -> None:
        """Write the result of the next item down, whatever it is."""
        mode, wanted = self._words[Word.MODE], results.mode_of(value)
        if mode == results.NOTHING and wanted in results.COLUMN_MODES:
            self._set_mode(wanted, type(value))
        elif wanted != mode and (mode < wanted or wanted in results.COLUMN_MODES):
            self._raise_mode(max(mode, wanted, results.SCALARS))
        self._write(value)

    def _raise_mode(self, mode: int) -> None:
        if mode != self._words[Word.MODE]:
            self.flush(finished=False)
            self._set_mode(mode)

    def _write(self, value: Any) -> None:
        mode = self._words[Word.MODE]
        if mode in results.COLUMN_MODES:
            self._write_number(value)
        elif mode == results.RECORDS:
            self._add_value(value)
        else:
            data = results.dump_scalar(value)
            if len(data) > boards.OUTBOX_SIZE:
                self._add_value(value)
            else:
                self._write_down(data)

    def _write_number(self, value: Any) -> None:
        """A number that the loop could not write: the column is full, or the number too large."""
        self.flush(finished=False)
        try:
            self.column[0] = value
        except ValueError:
            self._set_mode(results.SCALARS)
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
            payload = codec.encode(value)
        except BaseException as error:  # noqa: BLE001  pickling runs user code
            self.add_error(_unsendable(self.task, self._next_index(), value, error))
            return
        if payload.nbytes >= wire.SEGMENT_FROM:
            self._send_segment(payload)
        else:
            self._add_record(results.record(results.OK, wire.pack(payload, frozen=False)))

    def _next_index(self) -> int:
        return self.index + self._words[Word.BASE] + self._words[Word.COUNT]

    def add_error(self, error: BaseException) -> None:
        """Write down what the next item raised."""
        self.add_raised(RaisedError.of(error))

    def add_raised(self, raised: RaisedError) -> None:
        self._add_record(results.raised_record(raised))

    def _add_record(self, record: bytes) -> None:
        self._raise_mode(results.RECORDS)
        if len(record) > boards.OUTBOX_SIZE:
            self.flush(finished=False)
            self._send(record, 1)
        else:
            self._write_down(record)

    def _send_segment(self, payload: codec.Payload) -> None:
        """A large result goes at once: what the socket holds outlives the worker."""
        try:
            parcel = wire.pack(payload, frozen=False)
        except Exception as error:  # noqa: BLE001  the store is full
            self.add_error(error)
            return
        self._raise_mode(results.RECORDS)
        self.flush(finished=False)
        self._send(results.record(results.OK, parcel), 1, (parcel.fd or 0,))
        parcel.close()

    def flush(self, *, finished: bool) -> None:
        """Send what is written down."""
        sys.stdout.flush()
        sys.stderr.flush()
        count = self._words[Word.COUNT]
        if not count and not finished:
            return
        box, mode = self._box, self._words[Word.MODE]
        used = box.tell() if mode not in results.COLUMN_MODES else results.WIDTHS[mode] * count
        data = box[:used]
        box.seek(0)
        self._send(data, count, finished=finished)

    def _send(
        self, data: bytes, count: int, fds: tuple[int, ...] = (), *, finished: bool = False
    ) -> None:
        words, now = self._words, time.monotonic_ns()
        flag = results.FINISHED if finished else 0
        frame = Frame(
            Kind.RESULTS,
            chunk=words[Word.CHUNK],
            first=words[Word.BASE],
            items=count,
            elapsed=now - self._since,
            body=bytes((words[Word.MODE] | flag,)) + data,
            fds=fds,
        )
        wire.send_all(self._sock, frame)
        self._since = now
        # Should we die before the next line, the caller finds these results twice, in the frame and
        # in the outbox; it knows by their position that it has seen them.
        words[Word.COUNT] = 0
        words[Word.BASE] += count


def _unsendable(task: str, index: int, value: Any, error: BaseException) -> SerializationError:
    where = culprit(value, "result")
    problem = SerializationError(
        f"{task}(): the result of item {index} cannot be pickled: {where}. ({error})"
    )
    problem.__cause__ = error
    return problem
