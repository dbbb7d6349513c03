"""A worker: reads frames, runs items, writes results down.

    ATTACH -> map the segment       CHUNK -> load what the call needs -> unpack the items
                                             -> for each: run, write down -> RESULTS

Nothing here may end the process but STOP, the end of the socket, and what the task itself does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import os
import pickle
import socket
import sys
import time
import types
from typing import TYPE_CHECKING, Any

from sharedtask import inside
from sharedtask.errors import SerializationError
from sharedtask.outcomes import RaisedError, readonly_advice

from . import blas, calls, invocation, wire
from . import board as boards
from .board import Phase, Word
from .invocation import Caller
from .outbox import Outbox
from .relay import redirect_prints
from .values import Values
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_SLOW_BLOCK_NS, _LARGEST_BLOCK = 100_000, 64
_MAX_HEADS = 64


def main(socket_fd: int, board_fd: int, setting: bytes) -> int:
    """Serve the caller on ``socket_fd`` until it says STOP or is gone; returns the exit code."""
    sock = socket.socket(fileno=socket_fd)
    _settle(sock, setting)
    worker = _Worker(sock, board_fd)
    with contextlib.suppress(ConnectionError):  # the caller is gone
        worker.serve()
    return 0


def _settle(sock: socket.socket, setting: bytes) -> None:
    """Make the forked process a place of its own."""
    inside.enter()
    sys.modules["__main__"] = types.ModuleType("__main__")  # the caller's is not imported here
    sys.argv = [""]
    with contextlib.suppress(OSError):  # the caller's directory may be gone
        os.chdir(pickle.loads(setting))
    if "numpy.random" in sys.modules:  # all workers were forked with one and the same state
        sys.modules["numpy.random"].seed()
    redirect_prints(sock)


class _Worker:
    def __init__(self, sock: socket.socket, board_fd: int) -> None:
        self._sock = sock
        self._reader = wire.Reader(sock)
        self._words = boards.open_words(board_fd)
        self._outbox = Outbox(sock, self._words, boards.open_outbox(board_fd))
        with contextlib.suppress(OSError):
            faulthandler.enable(boards.open_crash_log(board_fd))
        os.close(board_fd)
        self._values = Values()
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
            self._fail_all(error, frame.items)
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
            if len(self._heads) > _MAX_HEADS:  # calls that are over do not say so
                self._heads.clear()
            head = self._heads[data] = calls.load_head(data)
        return head

    def _follow(self, head: calls.CallHead) -> None:
        """Do as the caller does: its directory, its import path, the BLAS threads of this call."""
        with contextlib.suppress(OSError):
            if os.getcwd() != head.cwd:  # the caller went elsewhere, or an earlier task did
                os.chdir(head.cwd)
        for entry in head.path:
            if entry not in sys.path:
                sys.path.append(entry)
        if head.blas_threads not in (0, self._blas_threads):
            self._blas_threads = head.blas_threads
            blas.limit(head.blas_threads)

    def _loaded(self, head: calls.CallHead, rest: memoryview, fds: Iterator[int]) -> Caller:
        function = self._values.function(head.function)
        shared = {s.name: self._shared(head, s) for s in head.shared if not s.private}
        bound, args, kwargs, items = invocation.constants(head, rest, fds)
        kwargs.update(shared)
        private = [s for s in head.shared if s.private]
        if head.bound_name in kwargs:
            bound = (kwargs.pop(head.bound_name),)
        renew = functools.partial(self._private, private) if private else None
        return Caller(head, function, calls.Constants(bound, args, kwargs), renew, items)

    def _shared(self, head: calls.CallHead, parameter: calls.SharedParameter) -> Any:
        try:
            return self._values.value(parameter.token)
        except BaseException as error:
            msg = f"{head.task}(): {parameter.name!r} cannot be rebuilt in a worker: {error!r}"
            raise SerializationError(msg) from error

    def _private(self, parameters: list[calls.SharedParameter]) -> dict[str, Any]:
        return {p.name: self._values.private_value(p.token) for p in parameters}

    def _fail_all(self, error: BaseException, count: int) -> None:
        raised = RaisedError.of(error)
        for _ in range(count):
            self._outbox.add_raised(raised)
        self._outbox.flush(finished=True)

    def _run_items(
        self, frame: Frame, mode: int, slot: int, caller: Caller, fds: Iterator[int]
    ) -> None:
        try:
            items = invocation.unpacked(mode, caller.items, fds)
        except BaseException as error:  # noqa: BLE001  unpickling runs user code
            if frame.items > 1:  # which one it was shows when each comes on its own
                wire.send_all(self._sock, Frame(Kind.FAILED, chunk=frame.chunk))
                return
            self._outbox.add_error(invocation.unreadable(caller.head, frame.first, error))
        else:
            self._loop(frame, items, slot, caller, each=mode == calls.EACH)
        self._outbox.flush(finished=True)

    def _loop(
        self, frame: Frame, items: Sequence[Any], slot: int, caller: Caller, *, each: bool
    ) -> None:
        """Run the items, in blocks that take some 0.1 ms or one item each."""
        words, outbox, call = self._words, self._outbox, caller.call
        note, timed = Word.NOTE + slot, caller.head.timed
        if each:
            call = functools.partial(invocation.call_unpacked, call, words, caller.head)
            items = [(frame.first + k, item) for k, item in enumerate(items)]
        words[Word.PHASE] = Phase.RUNNING
        boards.fence()  # that this chunk is in hand was written in begin(): see Pool._relieve
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

    def _run_block(self, block: Sequence[Any], call: Callable[[Any], Any], caller: Caller) -> bool:
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
