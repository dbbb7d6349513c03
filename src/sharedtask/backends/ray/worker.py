"""Ray worker: one ``_CallerWorker`` for each process that sends work to it.

It keeps decoded values between tasks, where Ray would decode a value for every task.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import functools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from sharedtask import context
from sharedtask.backends.worker import envelope, import_path, log_box, process_settings, status_page
from sharedtask.backends.worker.job import Job
from sharedtask.backends.worker.log_hooks import LogHooks
from sharedtask.backends.worker.process_settings import SettingsFollower
from sharedtask.backends.worker.result_writer import Outbox
from sharedtask.backends.worker.runner import Identity, Runner
from sharedtask.backends.worker.status_page import Word
from sharedtask.memory.segments import Layout
from sharedtask.serialization import codec
from sharedtask.store.decoded import Values
from sharedtask.store.stores import ReceivedBytes, SegmentStore, seal
from sharedtask.version import VERSION

from . import numbers, runtime, status_file
from .message import MISSING, MOST_LOGGED, OTHER_VERSION, RAN, UNREADABLE, Answer, Message
from .objects import RayPayload, guarded
from .status_file import StatusFile

if TYPE_CHECKING:
    from collections.abc import Generator

    from sharedtask.backends.worker.call_header import CallHeader, SharedParameter
    from sharedtask.backends.worker.envelope import Envelope
    from sharedtask.backends.worker.result_writer import ResultMessage
    from sharedtask.memory.payload import Payload
    from sharedtask.outcomes import Change

    from .message import Frame
    from .objects import ReceivedPayload

# A value that no task has used for this long is dropped, so that Ray can free it; slower to decode
# means kept longer.
_IDLE_SECONDS, _IDLE_FACTOR = 10.0, 100.0
_LOOK_SECONDS = 1.0
_FORGET_SECONDS = 60.0
_LONGEST_TIMEOUT = 1e9  # in seconds, so that it can be counted in ns

# Length of the caller's identity, which precedes the generation of its modules.
ORIGIN_BYTES = 6

_workers: dict[bytes, _CallerWorker] = {}
_busy = threading.Lock()


def run_chunk(data: bytes, *payloads: ReceivedPayload) -> Any:
    """Run a chunk: this is the body of every Ray task of ours."""
    message = Message.load(data)
    if message is None:
        return Answer(OTHER_VERSION, [], text=VERSION).dump()
    with _busy, _place_kept(), process_settings.restored():
        worker = _worker_for(message.origin)
        if worker.is_given_up(message.number):
            return Answer(RAN, []).dump()
        return worker.run(
            message, payloads[: message.attachments], payloads[message.attachments :]
        ).dump()


def _worker_for(origin: bytes) -> _CallerWorker:
    if not _workers:
        _watch_once()
        runtime.let_references_travel()
    if origin not in _workers:
        _end_earlier(origin)
        _workers[origin] = _CallerWorker(origin)
    return _workers[origin]


def _end_earlier(origin: bytes) -> None:
    """The caller's modules may be in other folders now: import them again."""
    for other in [o for o in _workers if o[:ORIGIN_BYTES] == origin[:ORIGIN_BYTES]]:
        _workers.pop(other).close()
        import_path.forget_modules()


@functools.cache
def _watch_once() -> None:
    threading.Thread(target=_let_go, name="sharedtask-idle", daemon=True).start()
    atexit.register(_close_all)


def _close_all() -> None:
    """Ray ends the worker: close what it has made."""
    while _workers:
        _workers.popitem()[1].close()


def _let_go() -> None:
    """Between the chunks: drop values that no task asks for, and callers that send none."""
    while True:
        time.sleep(_LOOK_SECONDS)
        if _busy.acquire(blocking=False):
            try:
                _drop_idle(time.monotonic())
            finally:
                _busy.release()


def _drop_idle(now: float) -> None:
    newest = max(_workers.values(), key=lambda worker: worker.used, default=None)
    for origin, worker in list(_workers.items()):
        worker.drop_idle(now)
        worker.close_released()
        if worker is not newest and now - worker.used > _FORGET_SECONDS:
            del _workers[origin]
            worker.close()


@contextlib.contextmanager
def _place_kept() -> Generator[None]:
    """Restore the directory and path after our tasks: a Ray worker also runs others."""
    cwd = ""
    with contextlib.suppress(OSError):
        cwd = os.getcwd()
    context.enter()
    try:
        yield
    finally:
        context.leave()
        with contextlib.suppress(OSError):
            os.chdir(cwd)


class _BoxStore:
    """A value in the object store; private copies come from a segment, made once per worker."""

    def __init__(self, opened: ReceivedPayload) -> None:
        self.nbytes = sum(memoryview(part).nbytes for part in (opened.head, *opened.buffers))
        self._opened: ReceivedPayload | None = opened
        self._segment: SegmentStore | None = None
        self.used = time.monotonic()

    @property
    def is_copied(self) -> bool:
        """Whether the value is in a segment of this worker as well."""
        return self._segment is not None

    def parts(self) -> tuple[memoryview, list[memoryview]]:
        if self._opened is None:
            return self._copy().parts()
        return self._opened.head, self._opened.buffers

    def value(self) -> Any:
        head, buffers = self.parts()
        return codec.decode(head, buffers if self._opened is None else guarded(buffers))

    def private_value(self) -> Any:
        self.used = time.monotonic()
        return self._copy().private_value()

    def _copy(self) -> SegmentStore:
        if self._segment is None:
            assert self._opened is not None  # noqa: S101  one of the two is there
            self._segment = seal(self._opened.payload())
            self._opened = None
        return self._segment

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()


class _StatusChannel:
    """Collects results to return them together, and logs them until then."""

    def __init__(self, status_file: StatusFile) -> None:
        self._status_file = status_file
        self.frames: list[Frame] = []
        self.is_full = False  # the chunk ends, to return results that could not be logged
        self.change: tuple[Any, ...] | None = None
        self.trace = b""

    def begin(self) -> None:
        self.frames, self.is_full, self.change, self.trace = [], False, None, b""
        self._status_file.begin()

    def pack(self, payload: Payload) -> Envelope:
        return envelope.pack_attached(payload)

    def report_change(self, chunk: int, change: Change) -> None:
        del chunk
        self.change = tuple(change)

    def send(self, message: ResultMessage) -> None:
        box = None
        if message.envelope is not None and message.envelope.payload is not None:
            box, self.is_full = RayPayload(message.envelope.payload), True
        elif not message.finished:
            fields = message.mode, message.first, message.items, message.elapsed, message.data
            self.is_full = not self._status_file.log(*fields) or self.is_full
        self.trace = message.trace
        if message.items:
            self.frames.append(
                (message.mode, message.first, message.items, message.elapsed, message.data, box)
            )


class _Logs:
    """Records of a chunk, kept in the status file and returned with its results."""

    def __init__(self, status_file: StatusFile, worker: str) -> None:
        self._words, self._ring = status_file.words, status_page.open_log(status_file.fd)
        writer = log_box.LogWriter(self._words, self._ring, self._take)
        self.hooks = LogHooks(writer.write, worker, "RayWorker", apart="ray")
        self._found: list[bytes] = []
        self._dropped = 0

    def _take(self) -> None:
        for _, data in log_box.read(self._words, self._ring):
            if len(self._found) < MOST_LOGGED:
                self._found.append(data)
            else:
                self._dropped += 1

    @contextlib.contextmanager
    def hooked(self) -> Generator[None]:
        """Take what is logged within this block."""
        self.hooks.install()
        try:
            yield
        finally:
            self.hooks.remove()

    def taken(self) -> tuple[tuple[bytes, ...], int]:
        """The records since the last time, and how many more there were."""
        self._take()
        found, dropped = tuple(self._found), self._dropped
        self._found.clear()
        self._dropped = 0
        return found, dropped


class _CallerWorker:
    def __init__(self, origin: bytes) -> None:
        self.used = time.monotonic()
        self._status_file = StatusFile(origin)
        self._channel = _StatusChannel(self._status_file)
        self._values = Values()
        outbox = Outbox(self._channel, self._status_file.words, self._status_file.outbox)
        follower = SettingsFollower(elsewhere=True)
        identity = Identity("ray", numbers.claim(origin[:ORIGIN_BYTES]))
        self._is_released = status_file.releases(origin[:ORIGIN_BYTES])
        self._name = ray.get_runtime_context().get_worker_id()
        self._logs = logs = _Logs(self._status_file, self._name)
        words = self._status_file.words
        self._runner = Runner(words, outbox, self._values, follower, logs.hooks, identity)
        self._until = self._seconds = self._timeout = 0.0

    def is_given_up(self, number: int) -> bool:
        """Whether the caller gave the chunk up before it arrived."""
        return self._status_file.is_given_up(number)

    def run(
        self,
        message: Message,
        attachments: tuple[ReceivedPayload, ...],
        payloads: tuple[ReceivedPayload, ...],
    ) -> Answer:
        if not self._receive(message, payloads):
            return Answer(MISSING, [], self._name)
        faulthandler.enable(
            self._status_file.crash_log
        )  # another _CallerWorker may have enabled it
        self._channel.begin()
        self._until, self._seconds = 0.0, message.seconds
        self._timeout = min(message.timeout, _LONGEST_TIMEOUT)
        job = Job(
            message.number,
            message.first,
            message.items,
            message.mode,
            message.header,
            memoryview(message.body),
            iter(attachments),
            self._poll_cancel,
            within=message.call,
        )
        try:
            with self._logs.hooked():
                ran = self._runner.run(job)
        finally:
            if message.timeout:
                faulthandler.cancel_dump_traceback_later()
            self._put_away()
            self.used = time.monotonic()
        status = RAN if ran else UNREADABLE
        added, change = self._added(), self._channel.change
        logs, dropped = self._logs.taken()
        frames, name = self._channel.frames, self._name
        trace = self._channel.trace
        return Answer(status, frames, name, "", added, change, logs, dropped, trace)

    def _added(self) -> RayPayload | None:
        partial = self._runner.take_partial()
        return None if partial is None else RayPayload(codec.encode(partial, back=True))

    def _receive(self, message: Message, payloads: tuple[ReceivedPayload, ...]) -> bool:
        """Store the values that were sent; False if a value is missing."""
        values = self._values
        values.held = frozenset(message.tokens)
        for token in message.released:
            self._runner.drop(token)
        for token, data, parts in message.small:
            if token not in values.stores:
                values.attach(token, ReceivedBytes(data, Layout(parts, len(data))))
        for token, opened in zip(message.tokens, payloads, strict=False):
            if token not in values.stores:
                values.attach(token, _BoxStore(opened))
        header = self._runner.header(message.header)
        self._runner.check_earlier(header, None)
        fresh = {p.token for p in header.shared if self._is_made_anew(header, p)}.union(
            message.stored
        )
        return all(
            token in values.stores or (token in values.decoded and token not in fresh)
            for token in message.tokens
        )

    def _is_made_anew(self, header: CallHeader, parameter: SharedParameter) -> bool:
        """Whether a value that must be watched was used by others since it was decoded.

        A function that is not decoded yet counts: it may have captured the value.
        """
        if not (header.strict and parameter.is_readonly):
            return False
        values = self._values
        if header.strict == "auto":
            decoded = values.decoded.get(parameter.token)
            return decoded is not None and decoded.watch is None
        return header.function not in values.decoded or not values.can_take(parameter.token)

    def _put_away(self) -> None:
        """Drop the values of this task; their decoded forms are kept."""
        stores = self._values.stores
        for token, store in list(stores.items()):
            if not (isinstance(store, _BoxStore) and store.is_copied):
                del stores[token]

    def _poll_cancel(self) -> bool:
        """Called between two items: whether the chunk ends here."""
        if self._channel.is_full or self._status_file.is_stopped:
            return True
        if self._seconds and self._is_time_up():
            return True
        if self._timeout:
            # Its own thread needs no GIL, so native code cannot delay it.
            faulthandler.dump_traceback_later(
                self._timeout, exit=True, file=self._status_file.crash_log
            )
        return False

    def _is_time_up(self) -> bool:
        """Whether items have run for the time of a chunk; loading is not counted."""
        now = time.monotonic()
        self._until = self._until or now + self._seconds
        words = self._status_file.words
        return now > self._until and words[Word.BASE] + words[Word.COUNT] > 0

    def close(self) -> None:
        """The caller has ended or uses other workers: drop all of its state."""
        self._runner.close()
        self._status_file.close()

    def close_released(self) -> None:
        """Close what was made for tasks that the caller has dropped."""
        self._runner.drop_those(self._is_released)

    def drop_idle(self, now: float) -> None:
        """Drop the values that were not used lately."""
        values = self._values
        for token, found in list(values.decoded.items()):
            if now - found.used > max(_IDLE_SECONDS, _IDLE_FACTOR * found.seconds):
                values.drop(token)
        for token, store in list(values.stores.items()):
            if isinstance(store, _BoxStore) and now - store.used > _IDLE_SECONDS:
                values.drop(token)
