"""Ray worker: one ``_CallerWorker`` for each process that sends work to it.

It keeps decoded values between tasks, where Ray would decode a value for every task.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from sharedtask import context
from sharedtask.backends.carried.message import OTHER_VERSION, RAN, Answer, Message
from sharedtask.backends.carried.worker import CallerWorker
from sharedtask.backends.worker import import_path, process_settings
from sharedtask.backends.worker.log_hooks import LogHooks
from sharedtask.backends.worker.process_settings import SettingsFollower
from sharedtask.backends.worker.runner import Identity
from sharedtask.serialization import codec
from sharedtask.store.stores import SegmentStore, seal
from sharedtask.version import VERSION

from . import numbers, runtime, status_file
from .objects import RayPayload, guarded
from .status_file import RayStatusFile

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from sharedtask.backends.carried.boxes import ReceivedPayload
    from sharedtask.backends.worker.call_header import CallHeader, SharedParameter

# A value that no task has used for this long is dropped, so that Ray can free it; slower to decode
# means kept longer.
_IDLE_SECONDS, _IDLE_FACTOR = 10.0, 100.0
_LOOK_SECONDS = 1.0
_FORGET_SECONDS = 60.0

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
        return worker.run(message, payloads).dump()


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


class _CallerWorker(CallerWorker):
    def __init__(self, origin: bytes) -> None:
        status, name = RayStatusFile(origin), ray.get_runtime_context().get_worker_id()
        super().__init__(
            status,
            Identity("ray", numbers.claim(origin[:ORIGIN_BYTES])),
            SettingsFollower(elsewhere=True),
            lambda write: LogHooks(write, name, "RayWorker", apart="ray"),
            RayPayload,
            name,
        )
        self.is_given_up = status.is_given_up
        self._is_released = status_file.releases(origin[:ORIGIN_BYTES])

    def receive(self, message: Message, values: Sequence[ReceivedPayload]) -> bool:
        known = self.values
        known.held = frozenset(message.tokens)
        for token, opened in zip(message.tokens, values, strict=False):
            if token not in known.stores:
                known.attach(token, _BoxStore(opened))
        header = self.runner.header(message.header)
        self.runner.check_earlier(header, None)
        fresh = {p.token for p in header.shared if self._is_made_anew(header, p)}.union(
            message.stored
        )
        return all(
            token in known.stores or (token in known.decoded and token not in fresh)
            for token in message.tokens
        )

    def _is_made_anew(self, header: CallHeader, parameter: SharedParameter) -> bool:
        """Whether a value that must be watched was used by others since it was decoded.

        A function that is not decoded yet counts: it may have captured the value.
        """
        if not (header.strict and parameter.is_readonly):
            return False
        values = self.values
        if header.strict == "auto":
            decoded = values.decoded.get(parameter.token)
            return decoded is not None and decoded.watch is None
        return header.function not in values.decoded or not values.can_take(parameter.token)

    def put_away(self) -> None:
        """Drop the values of this task; their decoded forms are kept."""
        stores = self.values.stores
        for token, store in list(stores.items()):
            if not (isinstance(store, _BoxStore) and store.is_copied):
                del stores[token]

    def close_released(self) -> None:
        """Close what was made for tasks that the caller has dropped."""
        self.runner.drop_those(self._is_released)

    def drop_idle(self, now: float) -> None:
        """Drop the values that were not used lately."""
        values = self.values
        for token, found in list(values.decoded.items()):
            if now - found.used > max(_IDLE_SECONDS, _IDLE_FACTOR * found.seconds):
                values.drop(token)
        for token, store in list(values.stores.items()):
            if isinstance(store, _BoxStore) and now - store.used > _IDLE_SECONDS:
                values.drop(token)
