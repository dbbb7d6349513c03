"""A worker: reads frames, runs items, writes results down.

    ATTACH -> map the segment       CHUNK -> load what the call needs -> unpack the items
                                             -> for each: run, write down -> RESULTS

Nothing here may end the process but STOP, the end of the socket, and what the task itself does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import io
import os
import pickle
import signal
import socket
import sys
import time
import types
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedtask import inside
from sharedtask.errors import SerializationError
from sharedtask.outcomes import RaisedError, readonly_advice
from sharedtask.sharing import codec, functions, segments
from sharedtask.sharing.culprit import culprit
from sharedtask.sharing.segments import Layout
from sharedtask.sharing.stores import BytesStore, SegmentStore, Store

from . import board as boards
from . import calls, results, wire
from .board import Phase, Word
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SLOW_BLOCK_NS, _LARGEST_BLOCK = 100_000, 64
# Decoded values are kept while their pickled heads stay below this; arrays cost nothing here.
_KEEP_HEAD_BYTES = 1 << 29


def main(socket_fd: int, board_fd: int, setting: bytes) -> int:
    """Serve the caller on ``socket_fd`` until it says STOP or is gone; returns the exit code."""
    sock = socket.socket(fileno=socket_fd)
    _settle(sock, setting)
    worker = _Worker(sock, board_fd)
    try:
        worker.serve()
    except (ConnectionError, BrokenPipeError):
        pass  # the caller is gone
    return 0


def _settle(sock: socket.socket, setting: bytes) -> None:
    """Make the forked process a place of its own."""
    inside.enter()
    sys.modules["__main__"] = types.ModuleType("__main__")  # the caller's is not imported here
    sys.argv = [""]
    cwd = pickle.loads(setting)
    try:
        os.chdir(cwd)
    except OSError:
        pass  # the caller's directory is gone; so be it
    import numpy as np

    np.random.seed()  # noqa: NPY002  all workers were forked with one and the same state
    for number, name in ((1, "stdout"), (2, "stderr")):
        relay = _Relay(sock, number)
        stream = io.TextIOWrapper(
            io.BufferedWriter(relay), "utf-8", "backslashreplace", line_buffering=True
        )
        setattr(sys, name, stream)


class _Relay(io.RawIOBase):
    """Sends what is printed to the caller, which may be a notebook or a captured stream."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self._sock = sock
        self._number = number
        self._pid = os.getpid()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any) -> int:
        text = bytes(data)
        if os.getpid() != self._pid:  # a process that the task forked: the socket is not its own
            return os.write(self._number, text)
        wire.send_all(self._sock, Frame(Kind.OUTPUT, first=self._number, body=text))
        return len(text)


class _Worker:
    def __init__(self, sock: socket.socket, board_fd: int) -> None:
        self._sock = sock
        self._reader = wire.Reader(sock)
        self._words = boards.open_words(board_fd)
        self._outbox = _Outbox(sock, self._words, boards.open_outbox(board_fd))
        with contextlib.suppress(OSError):
            faulthandler.enable(boards.open_crash_log(board_fd))
        os.close(board_fd)
        self._values = _Values()
        self._heads: dict[bytes, calls.CallHead] = {}
        self._blas_threads = 1

    def serve(self) -> None:
        while self._reader.fill():
            for frame in self._reader.frames():
                if frame.kind == Kind.STOP:
                    return
                self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind == Kind.CHUNK:
            self._run(frame)
        elif frame.kind == Kind.ATTACH:
            self._values.attach(frame)
        elif frame.kind == Kind.DROP:
            self._values.drop(frame.chunk)

    # ------------------------------------------------------------------------------ chunks

    def _run(self, frame: Frame) -> None:
        words = self._words
        self._outbox.begin(frame.chunk)
        body = memoryview(frame.body)
        mode, slot, length = calls.PREFIX.unpack_from(body)
        body = body[calls.PREFIX.size :]
        head = self._head(bytes(body[:length]))
        self._outbox.task, self._outbox.index = head.task, frame.first
        fds = iter(frame.fds)
        try:
            words[Word.PHASE] = Phase.LOADING
            self._follow(head)
            caller = self._loaded(head, body[length:], fds)
        except BaseException as error:  # noqa: BLE001  user code: imports, __setstate__, ...
            self._fail_all(error, frame.count)
        else:
            words[Word.PHASE] = Phase.UNPACKING
            self._run_items(frame, mode, slot, caller, fds)
        finally:
            words[Word.PHASE] = Phase.IDLE
            for fd in frame.fds:
                os.close(fd)

    def _head(self, data: bytes) -> calls.CallHead:
        head = self._heads.get(data)
        if head is None:
            if len(self._heads) > 64:  # noqa: PLR2004  calls that are over do not say so
                self._heads.clear()
            head = self._heads[data] = calls.load_head(data)
        return head

    def _follow(self, head: calls.CallHead) -> None:
        """Do as the caller does: the same import path, the BLAS threads of this call."""
        for entry in head.path:
            if entry not in sys.path:
                sys.path.append(entry)
        if head.blas_threads not in (0, self._blas_threads):
            self._blas_threads = head.blas_threads
            _limit_blas(head.blas_threads)

    def _loaded(
        self, head: calls.CallHead, rest: memoryview, fds: Iterator[int]
    ) -> _Caller:
        function = self._values.function(head.function)
        shared = {s.name: self._shared(head, s) for s in head.shared if not s.private}
        bound, args, kwargs, items = _constants(head, rest, fds)
        kwargs.update(shared)
        private = [s for s in head.shared if s.private]
        if head.bound_name in kwargs:
            bound = (kwargs.pop(head.bound_name),)
        renew = functools.partial(self._private, head, private) if private else None
        return _Caller(head, function, calls.Constants(bound, args, kwargs), renew, items)

    def _shared(self, head: calls.CallHead, parameter: calls.SharedParameter) -> Any:
        try:
            return self._values.value(parameter.token)
        except BaseException as error:
            msg = f"{head.task}(): {parameter.name!r} cannot be rebuilt in a worker: {error!r}"
            raise SerializationError(msg) from error

    def _private(
        self, head: calls.CallHead, parameters: list[calls.SharedParameter]
    ) -> dict[str, Any]:
        return {p.name: self._values.private_value(p.token) for p in parameters}

    def _fail_all(self, error: BaseException, count: int) -> None:
        raised = RaisedError.of(error)
        for _ in range(count):
            self._outbox.add_raised(raised)
        self._outbox.flush(finished=True)

    def _run_items(
        self, frame: Frame, mode: int, slot: int, caller: _Caller, fds: Iterator[int]
    ) -> None:
        try:
            items = _unpacked(mode, caller.items, fds)
        except BaseException as error:  # noqa: BLE001  unpickling runs user code
            if frame.count > 1:  # which one it was shows when each comes on its own
                wire.send_all(self._sock, Frame(Kind.FAILED, chunk=frame.chunk))
                return
            self._outbox.add_error(_unreadable(caller.head, frame.first, error))
        else:
            self._loop(frame, items, slot, caller, each=mode == calls.EACH)
        self._outbox.flush(finished=True)

    def _loop(
        self, frame: Frame, items: Sequence[Any], slot: int, caller: _Caller, *, each: bool
    ) -> None:
        """Run the items, in blocks that take some 0.1 ms or one item each."""
        words, outbox, call = self._words, self._outbox, caller.call
        note, timed = Word.NOTE + slot, caller.head.timed
        if each:
            call = functools.partial(_call_unpacked, call, words, caller.head)
            items = [(frame.first + k, item) for k, item in enumerate(items)]
        words[Word.PHASE] = Phase.RUNNING
        seen = words[note] & ~boards.GIVE_UP
        at, size = 0, 1
        while at < len(items):
            if words[note] != seen:
                seen = words[note]
                if seen & boards.GIVE_UP:
                    return
                outbox.flush(finished=False)
            began = time.monotonic_ns()
            if timed:
                words[Word.STARTED] = began
            if not self._run_block(items[at : at + size], call, caller):
                return
            at += size
            if not timed:
                size = _next_size(size, time.monotonic_ns() - began)

    def _run_block(
        self, block: Sequence[Any], call: Callable[[Any], Any], caller: _Caller
    ) -> bool:
        """Run items without a look around; False where the chunk ends here.

        What stands in this loop is paid for every item: 0.15 us besides the call. Each result is
        written down before the next item is begun.
        """
        words, outbox = self._words, self._outbox
        kind, column, count = outbox.kind, outbox.column, words[Word.COUNT]
        for item in block:
            try:
                value = call(item)
            except BaseException as error:  # noqa: BLE001  a task may raise anything
                outbox.add_error(readonly_advice(error, caller.head.task, caller.readonly))
                if caller.head.stops:
                    return False
            else:
                if type(value) is kind:
                    try:
                        column[count] = value
                        count += 1
                        words[2] = count  # Word.COUNT
                        continue
                    except (ValueError, IndexError):  # too large for 64 bits, or the box is full
                        pass
                outbox.add(value)
            kind, column, count = outbox.kind, outbox.column, words[Word.COUNT]
        return True


def _next_size(size: int, elapsed_ns: int) -> int:
    """Larger blocks while they are fast; one by one as soon as they are not."""
    if elapsed_ns > _SLOW_BLOCK_NS:
        return 1
    return min(2 * size, _LARGEST_BLOCK)


def _constants(
    head: calls.CallHead, data: memoryview, fds: Iterator[int]
) -> tuple[Any, Any, dict[str, Any], memoryview]:
    """What every item gets, made anew for each chunk, and the rest of the body: the items."""
    none = calls.NO_CONSTANTS.data
    if data[: len(none)] == none:
        return (), (), {}, data[len(none) :]
    received = wire.unpack(data, fds, private=True)
    try:
        bound, args, kwargs = codec.decode(received.head, received.buffers)
    except BaseException as error:
        msg = f"{head.task}(): an argument cannot be unpickled in a worker: {error!r}"
        raise SerializationError(msg) from error
    return bound, args, kwargs, data[received.end :]


def _unpacked(mode: int, data: memoryview, fds: Iterator[int]) -> Sequence[Any]:
    if mode == calls.SCALARS:
        return results.load_items(data)
    received = wire.unpack(data, fds, private=False)
    items: Sequence[Any] = codec.decode(received.head, received.buffers)
    return items


def _call_unpacked(
    call: Callable[[Any], Any], words: memoryview, head: calls.CallHead, item: tuple[int, Any]
) -> Any:
    return call(_unpacked_one(words, head, *item))


def _unpacked_one(words: memoryview, head: calls.CallHead, index: int, data: Any) -> Any:
    if isinstance(data, tuple):  # the caller could not pickle this one
        error = RaisedError(*data).unpacked()
        raise SerializationError(data[1]) if error is None else error
    words[Word.PHASE] = Phase.UNPACKING
    try:
        return codec.decode(data)
    except BaseException as error:
        raise _unreadable(head, index, error) from error
    finally:
        words[Word.PHASE] = Phase.RUNNING


def _unreadable(head: calls.CallHead, index: int, error: BaseException) -> SerializationError:
    msg = f"{head.task}(): item {index} cannot be unpickled in a worker: {error!r}"
    problem = SerializationError(msg)
    problem.__cause__ = error
    return problem


@dataclass(frozen=True, slots=True)
class _Caller:
    """How the function is called for an item."""

    head: calls.CallHead
    function: Callable[..., Any]
    constants: calls.Constants
    renew: Callable[[], dict[str, Any]] | None
    items: memoryview

    @property
    def readonly(self) -> list[str]:
        """The parameters whose arrays a task must not write."""
        return [shared.name for shared in self.head.shared if not shared.private]

    @property
    def call(self) -> Callable[[Any], Any]:
        """A function of the item alone, as direct as the case allows."""
        bound, args, kwargs = self.constants.parts()
        if self.renew is not None:
            return self._call_renewed
        if self.head.star or args:
            return self._call_general
        if bound or kwargs:
            return functools.partial(self.function, *bound, **kwargs)
        return self.function

    def _call_general(self, item: Any) -> Any:
        bound, args, kwargs = self.constants.parts()
        items = item if self.head.star else (item,)
        return self.function(*bound, *items, *args, **kwargs)

    def _call_renewed(self, item: Any) -> Any:
        assert self.renew is not None  # noqa: S101  chosen above
        bound, args, kwargs = self.constants.parts()
        own = self.renew()
        if self.head.bound_name in own:
            bound = (own.pop(self.head.bound_name),)
        items = item if self.head.star else (item,)
        return self.function(*bound, *items, *args, **{**kwargs, **own})


# -------------------------------------------------------------------------------- results


class _Outbox:
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
            count=count,
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


# --------------------------------------------------------------------------------- values


class _Values:
    """Segments that are mapped here, and what was decoded from them: once, then kept."""

    def __init__(self) -> None:
        self._stores: dict[int, Store] = {}
        self._decoded: OrderedDict[int, Any] = OrderedDict()

    def attach(self, frame: Frame) -> None:
        """Map a segment; the descriptor stays open where private copies will be asked for."""
        layout, private, data = pickle.loads(frame.body)
        if data is not None:
            self._stores[frame.chunk] = BytesStore(data, Layout(*layout))
            return
        (fd,) = frame.fds
        segments.check(fd, layout[1], frozen=True)
        store = SegmentStore(fd, Layout(*layout))
        if not private:
            store.close_descriptor()
        self._stores[frame.chunk] = store

    def drop(self, token: int) -> None:
        """Forget a value; its memory goes when the last view of it does."""
        self._decoded.pop(token, None)
        store = self._stores.pop(token, None)
        if store is not None:
            store.close()

    def value(self, token: int) -> Any:
        """The value, decoded at its first use."""
        if token in self._decoded:
            self._decoded.move_to_end(token)
            return self._decoded[token]
        value = self._stores[token].value()
        self._decoded[token] = value
        self._trim()
        return value

    def function(self, token: int) -> Callable[..., Any]:
        """The function, imported or rebuilt at its first use."""
        loaded = self.value(token)
        if isinstance(loaded, functions.NamedFunction):
            loaded = self._decoded[token] = functions.load_function(loaded)
        function: Callable[..., Any] = loaded
        return function

    def private_value(self, token: int) -> Any:
        """The value over copy-on-write pages that nobody else has."""
        return self._stores[token].private_value()

    def _trim(self) -> None:
        """Let go of the values used longest ago while their private parts are too large."""
        total = sum(self._head_bytes(token) for token in self._decoded)
        while total > _KEEP_HEAD_BYTES and len(self._decoded) > 2:  # noqa: PLR2004  in use now
            token, _ = self._decoded.popitem(last=False)
            total -= self._head_bytes(token)

    def _head_bytes(self, token: int) -> int:
        return self._stores[token].layout.parts[-1][1]


def _limit_blas(threads: int) -> None:
    """Libraries that are loaded obey at once, those that come later read the environment."""
    import threadpoolctl

    for name in BLAS_VARIABLES:
        os.environ[name] = str(threads)
    threadpoolctl.threadpool_limits(threads)


BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


def ignore_interrupt() -> None:
    """Ctrl-C is the caller's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
