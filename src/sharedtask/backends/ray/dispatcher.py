"""Gives chunks to Ray and takes answers back: one thread, which alone tracks tasks in flight.

    submit -> queue -> Ray -> answer -> report      close -> wait -> ask to stop -> wait -> kill

Other threads put their requests into the inbox, and none waits for a lock: a finalizer must not,
and Ray's own thread must not be blocked.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import ray
import ray.exceptions

from sharedtask import context
from sharedtask.errors import (
    BackendUnavailableError,
    ClosedError,
    SerializationError,
    StoreFullError,
)
from sharedtask.system import background, critical_sections
from sharedtask.version import VERSION

from . import deaths, runtime, work_items
from .locality import Holders
from .message import MISSING, OTHER_VERSION, RAN, UNREADABLE, Answer
from .objects import RayPayload
from .runtime import SHUT_DOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.call_logs import CallLogs

    from .deaths import Recovery
    from .work_items import OpenCall, WorkItem

_TICK_SECONDS, _SWEEP_SECONDS = 0.25, 0.5
# Most given-up chunks end soon; the others are asked to end, and then killed.
_CANCEL_AFTER_SECONDS, _GRACE_SECONDS = 0.3, 0.5
_MAX_FAILURES = 3  # before the first item
_RELEASED_KEPT = 256

_LOST = (
    ray.exceptions.ObjectLostError,
    ray.exceptions.ObjectFetchTimedOutError,
    ray.exceptions.ReferenceCountingAssertionError,
)


class Dispatcher:
    """The thread and its tables."""

    def __init__(self, sweep: Callable[[], bool]) -> None:
        """Start. ``sweep`` releases unused values and returns whether to call it again."""
        self._sweep = sweep
        self._swept = self._ticked = time.monotonic()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._holders = Holders()
        self._stopper = deaths.Stopper()
        self._putting = critical_sections.object_lock()
        self._queue: deque[WorkItem] = deque()
        self._flying: dict[int, WorkItem] = {}
        self._released: deque[int] = deque(maxlen=_RELEASED_KEPT)
        self._reason = ""  # the reason of its end
        threading.Thread(target=self._serve, name="sharedtask-ray", daemon=True).start()

    # ------------------------------------------------------------------- from any thread

    def submit(self, work_item: WorkItem) -> None:
        """Give a chunk to Ray as soon as the limit of its call allows."""
        self._inbox.put(lambda: self._accept(work_item))
        if self._reason:
            self._drain()

    def close_call(self, call: OpenCall, *, kill: bool = False) -> None:
        """Give up the chunks of a call; with ``kill`` without waiting for the end of an item."""
        self._inbox.put(lambda: self._close_call(call, kill=kill))

    def wake(self) -> None:
        """A value may have been freed: sweep soon."""
        self._inbox.put(lambda: None)

    def note_release(self, token: int) -> None:
        """A value is not needed any more; workers are told with their next chunk."""
        self._inbox.put(lambda: self._note_release(token))

    def leave(self, logs: CallLogs) -> None:
        """A call is over, and not all of what its tasks have logged was handled."""
        self._inbox.put(logs.finish_behind)

    def end(self, reason: str) -> None:
        """Fail calls in flight, and end the thread."""
        self._inbox.put(lambda: self._end(reason))

    def in_flight(self) -> list[Any]:
        """References of the tasks that Ray has now."""
        return [t.ref for t in list(self._flying.values()) if t.ref is not None]

    # ---------------------------------------------------------------------- in the thread

    def _serve(self) -> None:
        # A user's finalizer that maps may run here: it would wait for this very thread.
        context.enter_thread()
        keeps = due = False
        while not self._reason:
            busy = bool(self._flying or self._queue)
            pause = _TICK_SECONDS if busy else _SWEEP_SECONDS if keeps or due else None
            with contextlib.suppress(queue.Empty):
                self._do(self._inbox.get(timeout=pause))
                due = True  # the request may have been about a freed value
            now = time.monotonic()
            if now > self._ticked + _TICK_SECONDS:
                self._ticked = now
                self._do(self._tick)
            if now > self._swept + _SWEEP_SECONDS:
                self._swept, due = now, False
                keeps = self._sweep()
            self._do(self._launch_queued)
        self._drain()

    def _drain(self) -> None:
        """After the end: answer the remaining requests."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._do(self._inbox.get_nowait())

    def _do(self, word: Callable[[], None]) -> None:
        try:
            word()
        except Exception as error:  # noqa: BLE001  a call that fails is better than one that hangs
            for work_item in [*self._flying.values(), *self._queue]:
                self._fail(work_item, error)
            self._flying.clear()
            self._queue.clear()

    def _note_release(self, token: int) -> None:
        self._released.append(token)
        self._holders.forget(token)

    def _accept(self, work_item: WorkItem) -> None:
        if self._reason:
            self._fail(work_item, ClosedError(self._reason))
        elif not work_item.call.closed:
            self._queue.append(work_item)

    def _launch_queued(self) -> None:
        """Give chunks to Ray up to the limit of each team, which also limits all together."""
        held: list[WorkItem] = []
        while self._queue:
            work_item = self._queue.popleft()
            if work_item.call.closed:
                continue
            if len(self._flying) >= self._limit_with(work_item):
                held.append(work_item)
                break
            if self._flying_of(work_item.call) >= work_item.call.limit():
                held.append(work_item)
            else:
                self._launch(work_item)
        self._queue.extendleft(reversed(held))

    def _limit_with(self, work_item: WorkItem) -> int:
        others = (flying.call.limit() for flying in self._flying.values())
        return max(work_item.call.limit(), *others, 0)

    def _flying_of(self, call: OpenCall) -> int:
        return sum(work_item.call.team is call.team for work_item in self._flying.values())

    def _launch(self, work_item: WorkItem) -> None:
        call = work_item.call
        if not call.sink.begun(work_item.chunk.number):
            call.close()
            call.leases.release()
            return
        self._flying[work_item.number] = work_item
        try:
            work_item.ref = self._start(work_item)
        except BaseException as error:  # noqa: BLE001  Ray leaves a thread by SystemExit as it ends
            del self._flying[work_item.number]
            self._fail(work_item, error)
            return
        work_item.ref.future().add_done_callback(
            lambda future: self._take_answer(work_item, future)
        )

    def _take_answer(self, work_item: WorkItem, future: Any) -> None:
        """Called by Ray's own thread: pass results on at once, the rest to the dispatcher."""
        call = work_item.call
        try:
            if future.exception() is None:
                answer = Answer.load(future.result())
                if answer.status == RAN and not call.closed:
                    call.report(work_item.arrived(answer))
        finally:  # Ray would only log our error, and the dispatcher block
            self._inbox.put(lambda: self._answered(work_item.number, future))

    def _start(self, work_item: WorkItem) -> Any:
        """One Ray task. The values are arguments, so that Ray transfers them to its node.

        They are left out if enough workers have decoded them already.
        """
        call = work_item.call
        if not call.runtime.is_alive:  # Ray would restart by itself
            raise ClosedError(SHUT_DOWN)
        stores = call.stores()
        work_item.arguments = {token: store.ref for token, store in stores.items()}
        work_item.nodes = call.alive_nodes()
        attachments = [RayPayload(payload) for payload in work_item.attachments()]
        message = work_item.message(tuple(self._released), tuple(stores), len(attachments))
        lean = not work_item.brings_values and self._holders.enough_have(stores, len(self._flying))
        given = () if lean else work_item.arguments.values()
        return call.remote.remote(message.dump(), *attachments, *given)

    # ------------------------------------------------------------------------- answers

    def _answered(self, number: int, future: Any) -> None:
        work_item = self._flying.get(number)
        if work_item is None:
            return
        error = future.exception()
        if error is None:
            del self._flying[number]
            self._take(work_item, future.result())
        elif work_item.call.closed:
            del self._flying[number]
            _see(work_item.ref)
        else:
            _see(work_item.ref)
            self._failed(work_item, error)

    def _take(self, work_item: WorkItem, answer: Any) -> None:
        loaded = Answer.load(answer)
        status, worker = loaded.status, loaded.worker
        if status == MISSING:
            self._holders.note_missing(worker, work_item.arguments)
        elif worker:
            self._holders.note(worker, work_item.arguments)
        if loaded.logs and (work_item.is_unreported or status != RAN):
            work_item.logged_late(loaded)
        if work_item.call.closed:
            return
        if status == UNREADABLE:
            self._encode_again(work_item)
        elif status == MISSING:
            self._queue.appendleft(work_item.with_values())
        elif status == OTHER_VERSION:
            self._fail(work_item, BackendUnavailableError(_other_version(loaded.text)))
        else:
            work_item.call.report(work_item.arrived(loaded))

    def _encode_again(self, work_item: WorkItem) -> None:
        """Encode each item on its own. In another thread, since pickling runs user code."""

        def encode() -> None:
            again = work_items.encode_each(work_item.call, work_item.chunk)
            self._inbox.put(lambda: self._accept(again))

        background.put(encode)

    def _failed(self, work_item: WorkItem, error: BaseException) -> None:
        """The task did not return: another thread does whatever takes time."""
        crashed = isinstance(
            error,
            (
                ray.exceptions.WorkerCrashedError,
                ray.exceptions.OutOfMemoryError,
                ray.exceptions.NodeDiedError,
            ),
        )
        if crashed:
            self._holders.forget_workers()
            self._investigate(work_item, lambda: self._died(work_item, error))
        elif isinstance(error, _LOST) and _is_argument(work_item, error):
            self._investigate(work_item, lambda: self._put_again(work_item, error))
        elif isinstance(error, _LOST):
            self._investigate(work_item, lambda: self._died(work_item, error))
        else:
            del self._flying[work_item.number]
            self._fail(work_item, error)

    def _investigate(self, work_item: WorkItem, work: Callable[[], Callable[[], None]]) -> None:
        def run() -> None:
            try:
                then = work()
            except BaseException as error:  # noqa: BLE001  Ray may end meanwhile, by SystemExit
                failure = error
                self._inbox.put(lambda: self._fail_unknown(work_item, failure))
            else:
                self._inbox.put(then)

        threading.Thread(target=run, name="sharedtask-ray-look", daemon=True).start()

    def _died(self, work_item: WorkItem, error: BaseException) -> Callable[[], None]:
        recovery = deaths.recover_or_fail(work_item, error)
        return lambda: self._recover(work_item, recovery, error)

    def _put_again(self, work_item: WorkItem, error: BaseException) -> Callable[[], None]:
        """A shared value was lost from the object store: the caller still has it."""
        call = work_item.call
        with self._putting:  # several chunks may report the same loss
            for token, store in call.stores().items():
                lost = work_item.arguments[token]
                if lost.hex() in str(error) and store.ref == lost:
                    store.put_again(call.again[token]())
        recovery = deaths.Recovery(again=True)
        return lambda: self._recover(work_item, recovery, error)

    def _recover(self, work_item: WorkItem, recovery: Recovery, error: BaseException) -> None:
        if self._flying.pop(work_item.number, None) is None or work_item.call.closed:
            return
        if recovery.report is not None:
            work_item.call.report(recovery.report)
        elif recovery.each:
            self._encode_again(work_item)
        elif work_item.failures < _MAX_FAILURES:
            self._queue.appendleft(work_item.renumbered())
        else:
            self._fail(work_item, error)

    def _fail_unknown(self, work_item: WorkItem, error: BaseException) -> None:
        if self._flying.pop(work_item.number, None) is not None:
            self._fail(work_item, error)

    def _fail(self, work_item: WorkItem, error: BaseException) -> None:
        told = translated(work_item, error)
        work_item.call.report(work_item.all_failed(lambda _: told))

    # ---------------------------------------------------------------------- ends

    def _close_call(self, call: OpenCall, *, kill: bool) -> None:
        call.leases.release()
        self._queue = deque(t for t in self._queue if t.call is not call)
        mine = [work_item for work_item in self._flying.values() if work_item.call is call]
        for work_item in mine:
            work_item.is_stopped = kill  # skip the request to stop
            work_item.give_up_at = time.monotonic() + _CANCEL_AFTER_SECONDS
        if kill and mine:
            self._stop(mine)

    def _tick(self) -> None:
        for work_item in list(self._flying.values()):
            if not work_item.call.runtime.is_alive:
                del self._flying[work_item.number]
                runtime.keep_alive(work_item.ref, *work_item.arguments.values())
                self._fail(work_item, ClosedError(SHUT_DOWN))
        now = time.monotonic()
        self._stop([t for t in self._flying.values() if t.give_up_at and now > t.give_up_at])

    def _stop(self, late: list[WorkItem]) -> None:
        """End given-up chunks after the current item, or, later, in the middle of it."""
        for kill in (False, True):
            numbers = tuple(t.number for t in late if t.is_stopped is kill)
            if numbers:
                self._stopper.stop(late[0].call.origin, numbers, kill=kill)
        for work_item in late:
            work_item.is_stopped = True
            work_item.give_up_at = time.monotonic() + _GRACE_SECONDS

    def _end(self, reason: str) -> None:
        left = [*self._flying.values(), *self._queue]
        self._free_workers([t for t in self._flying.values() if t.call.runtime.outlives_us])
        self._flying.clear()
        self._queue.clear()
        for work_item in left:
            if not work_item.call.runtime.is_alive:
                runtime.keep_alive(work_item.ref, *work_item.arguments.values())
            self._fail(work_item, ClosedError(reason))
        self._reason = reason

    def _free_workers(self, running: list[WorkItem]) -> None:
        """A cluster that we did not start goes on after us: cancel our tasks there."""
        if running:
            numbers = tuple(work_item.number for work_item in running)
            with contextlib.suppress(BaseException):  # Ray may end at the same moment
                self._stopper.stop(running[0].call.origin, numbers, kill=True)


def _see(ref: Any) -> None:
    """Mark the error as retrieved; Ray prints the others."""
    with contextlib.suppress(BaseException):
        ray.get(ref, timeout=0)


def _is_argument(work_item: WorkItem, error: BaseException) -> bool:
    return any(ref.hex() in str(error) for ref in work_item.arguments.values())


def translated(work_item: WorkItem, error: BaseException) -> BaseException:
    """Ray's error as one of ours."""
    task, first = work_item.call.task, work_item.chunk.first
    if isinstance(error, (ClosedError, BackendUnavailableError)):
        return error
    text = str(error)
    if "No module named 'sharedtask'" in text:
        return _caused(BackendUnavailableError(_NOT_INSTALLED), error)
    if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
        msg = f"{task}(): Ray cannot set up the environment of its workers: {text}"
        return _caused(BackendUnavailableError(msg), error)
    if isinstance(error, (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError)):
        msg = f"{task}(): Ray's object store is full; see object_store_memory= of ray.init. {text}"
        return _caused(StoreFullError(msg), error)
    if isinstance(error, (SystemExit, ray.exceptions.RaySystemError)):
        return _caused(ClosedError(f"{SHUT_DOWN} {text}"), error)
    if isinstance(error, ray.exceptions.RayTaskError):
        msg = f"{task}(): the chunk from item {first} on failed outside of the task: {text}"
        return _caused(SerializationError(msg), error)
    if isinstance(error, ray.exceptions.RayError):
        msg = f"{task}(): Ray could not run the chunk from item {first} on: {text}"
        return _caused(BackendUnavailableError(msg), error)
    return error


def _caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _other_version(theirs: str) -> str:
    return (
        f"this process has sharedtask {VERSION} and a node of the cluster {theirs}. "
        "Install the same version on all of them."
    )


_NOT_INSTALLED = (
    "sharedtask is not installed on a node of the Ray cluster. Install it there, or have Ray do "
    'it: ray.init(runtime_env={"pip": ["sharedtask"]}).'
)
