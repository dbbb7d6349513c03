"""A worker process: reads frames, runs chunks.

    ATTACH -> map the segment       CHUNK -> run its items (worker/runner.py) -> RESULTS

Only STOP, the end of the socket, and the task itself may end the process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import marshal
import os
import pickle
import socket
import sys
import types
from typing import TYPE_CHECKING

from sharedtask import context
from sharedtask.backends.worker import call_header, envelope, result_format, status_page
from sharedtask.backends.worker.job import Job
from sharedtask.backends.worker.limits import ChunkLimits, LimitCheck
from sharedtask.backends.worker.log_box import LogWriter
from sharedtask.backends.worker.log_hooks import LogHooks
from sharedtask.backends.worker.process_settings import SettingsFollower
from sharedtask.backends.worker.result_writer import Outbox, ResultMessage
from sharedtask.backends.worker.runner import Identity, Runner
from sharedtask.backends.worker.status_page import Word
from sharedtask.store.decoded import Values

from . import attaching, child, wire
from .stdio import redirect_prints
from .wire import Frame, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.memory.payload import Payload
    from sharedtask.outcomes import Change

    from .lifeline import Lifeline


def main(socket_fd: int, status_fd: int, tracker_fd: int, birth: bytes, lifeline: Lifeline) -> int:
    """Serve the caller on ``socket_fd`` until STOP or its end; returns the exit code."""
    with _crashes_logged(status_fd):
        sock = wire.without_signal(socket.socket(fileno=socket_fd))
        sender = wire.Sender(sock)
        born: child.Birth = pickle.loads(birth)
        _detach(sender, born, tracker_fd, lifeline)
        worker = _Worker(sock, sender, status_fd, born)
        with contextlib.suppress(ConnectionError):  # the caller is gone
            if worker.serve():
                worker.close()
                child.run_exit_functions()
    return 0


@contextlib.contextmanager
def _crashes_logged(status_fd: int) -> Generator[None]:
    """Write what ends the worker, an exception of ours too, where the caller finds it."""
    log = status_page.open_crash_log(status_fd)
    faulthandler.enable(log)
    try:
        yield
    except BaseException:
        import traceback  # which no worker needs that ends as it should

        os.write(log, traceback.format_exc().encode()[-status_page.CRASH_SIZE :])
        raise


def _detach(sender: wire.Sender, birth: child.Birth, tracker_fd: int, lifeline: Lifeline) -> None:
    """Detach the forked process from the forkserver's state."""
    child.refuse_other_version(birth)
    context.enter()
    sys.modules["__main__"] = types.ModuleType("__main__")  # the caller's is not imported here
    with contextlib.suppress(OSError):  # the caller's directory may be gone
        os.chdir(birth.cwd)
    child.introduce(birth, tracker_fd, lifeline)
    lifeline.follow()
    if "numpy.random" in sys.modules:  # all workers were forked with the same state
        sys.modules["numpy.random"].seed()
    redirect_prints(sender)


class _SocketChannel:
    """Sends results as RESULTS frames, large ones in segments."""

    def __init__(self, sender: wire.Sender) -> None:
        self._sender = sender

    def pack(self, payload: Payload) -> Envelope:
        return envelope.pack(payload, frozen=False)

    def send(self, message: ResultMessage) -> None:
        flag = result_format.FINISHED if message.finished else 0
        mode = message.mode | flag
        if message.trace:
            body = wire.with_trace(mode, message.trace, message.data)
        else:
            body = bytes((mode,)) + message.data
        frame = Frame(
            Kind.RESULTS,
            chunk=message.chunk,
            first=message.first,
            items=message.items,
            elapsed=message.elapsed,
            body=body,
            fds=() if message.envelope is None else message.envelope.fds,
        )
        self._sender.send(frame)

    def report_change(self, chunk: int, change: Change) -> None:
        self._sender.send(Frame(Kind.CHANGED, chunk=chunk, body=marshal.dumps(tuple(change))))


class _Worker:
    def __init__(
        self, sock: socket.socket, sender: wire.Sender, status_fd: int, born: child.Birth
    ) -> None:
        self._sender = sender
        self._reader = wire.Reader(sock)
        self._words = status_page.open_words(status_fd)
        self._outbox = Outbox(
            _SocketChannel(sender), self._words, status_page.open_outbox(status_fd)
        )
        log = LogWriter(
            self._words, status_page.open_log(status_fd), lambda: sender.send(Frame(Kind.LOGS))
        )
        hooks = LogHooks(log.write, born.serial, child.name_of(born.serial))
        hooks.install()
        os.close(status_fd)
        self._values = Values()
        self._limit_check = LimitCheck(self._words)
        self._follower, identity = SettingsFollower(), Identity("process", born.number)
        self._runner = Runner(
            self._words, self._outbox, self._values, self._follower, hooks, identity
        )

    def serve(self) -> bool:
        """Process frames; returns whether STOP ended the loop."""
        while self._reader.fill():
            for frame in self._reader.frames():
                if frame.kind == Kind.STOP:
                    return True
                self._handle(frame)
            self._follower.look_ahead()
        return False

    def _handle(self, frame: Frame) -> None:
        if frame.kind == Kind.CHUNK:
            self._run(frame)
        elif frame.kind == Kind.ATTACH:
            self._values.attach(frame.chunk, *attaching.stores_of(frame))
        elif frame.kind == Kind.DROP:
            self._runner.drop(frame.chunk)

    def close(self) -> None:
        """The worker ends: close what it has made for its tasks."""
        self._runner.close()

    def _run(self, frame: Frame) -> None:
        body = memoryview(frame.body)
        prefix = call_header.PREFIX.unpack_from(body)
        mode, request_slot, slot, length, call, memory, most, cuts = prefix
        body = body[call_header.PREFIX.size :]
        request = Word.REQUEST + request_slot
        poll_cancel = functools.partial(self._poll_cancel, request, [self._words[request]])
        is_limited = bool(memory or most)
        if is_limited:
            poll_cancel = functools.partial(
                self._poll_limits, poll_cancel, ChunkLimits(memory, most, bool(cuts))
            )
        job = Job(
            frame.chunk,
            frame.first,
            frame.items,
            mode,
            bytes(body[:length]),
            body[length:],
            iter(frame.fds),
            poll_cancel,
            slot,
            singly=is_limited,
            call=call,
            within=call,
        )
        try:
            if not self._runner.run(job):
                self._sender.send(Frame(Kind.FAILED, chunk=frame.chunk))
        finally:
            self._limit_check.end_chunk()
            for fd in frame.fds:
                os.close(fd)

    def _poll_limits(self, poll_cancel: Callable[[], bool], chunk_limits: ChunkLimits) -> bool:
        """Check this worker's limits as well, in a call that has limits."""
        return poll_cancel() or self._limit_check.is_reached(chunk_limits)

    def _poll_cancel(self, request: int, seen: list[int]) -> bool:
        """Poll the caller's request about the chunk: True if it is given up."""
        word = self._words[request]
        if word & status_page.GIVE_UP:
            return True
        if word != seen[0]:
            seen[0] = word
            self._outbox.flush(finished=False)
        return False
