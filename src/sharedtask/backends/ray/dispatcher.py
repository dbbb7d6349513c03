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
from .objects import Box
from .runtime import SHUT_DOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from .deaths import Verdict
    from .work_items import OpenCall, Ticket

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
        self._queue: deque[Ticket] = deque()
        self._flying: dict[int, Ticket] = {}
        self._released: deque[int] = deque(maxlen=_RELEASED_KEPT)
        self._reason = ""  # the reason of its end
        threading.Thread(target=self._serve, name="sharedtask-ray", daemon=True).start()

    # ------------------------------------------------------------------- from any thread

    def submit(self, ticket: Ticket) -> None:
        """Give a chunk to Ray as soon as the limit of its call allows."""
        self._inbox.put(lambda: self._accept(ticket))
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
            for ticket in [*self._flying.values(), *self._queue]:
                self._fail(ticket, error)
            self._flying.clear()
            self._queue.clear()

    def _note_release(self, token: int) -> None:
        self._released.append(token)
        self._holders.forget(token)

    def _accept(self, ticket: Ticket) -> None:
        if self._reason:
            self._fail(ticket, ClosedError(self._reason))
        elif not ticket.call.closed:
            self._queue.append(ticket)

    def _launch_queued(self) -> None:
        """Give chunks to Ray up to the limit of each team, which also limits all together."""
        held: list[Ticket] = []
        while self._queue:
            ticket = self._queue.popleft()
            if ticket.call.closed:
                continue
            if len(self._flying) >= self._limit_with(ticket):
                held.append(ticket)
                break
            if self._flying_of(ticket.call) >= ticket.call.limit():
                held.append(ticket)
            else:
                self._launch(ticket)
        self._queue.extendleft(reversed(held))

    def _limit_with(self, ticket: Ticket) -> int:
        others = (flying.call.limit() for flying in self._flying.values())
        return max(ticket.call.limit(), *others, 0)

    def _flying_of(self, call: OpenCall) -> int:
        return sum(ticket.call.team is call.team for ticket in self._flying.values())

    def _launch(self, ticket: Ticket) -> None:
        call = ticket.call
        if not call.sink.begun(ticket.chunk.number):
            call.close()
            call.leases.release()
            return
        self._flying[ticket.number] = ticket
        try:
            ticket.ref = self._start(ticket)
        except BaseException as error:  # noqa: BLE001  Ray leaves a thread by SystemExit as it ends
            del self._flying[ticket.number]
            self._fail(ticket, error)
            return
        ticket.ref.future().add_done_callback(lambda future: self._hear(ticket, future))

    def _hear(self, ticket: Ticket, future: Any) -> None:
        """Called by Ray's own thread: pass results on at once, the rest to the dispatcher."""
        call = ticket.call
        try:
            if future.exception() is None:
                answer = Answer.load(future.result())
                if answer.status == RAN and not call.closed:
                    call.report(ticket.arrived(answer))
        finally:  # Ray would only log our error, and the dispatcher block
            self._inbox.put(lambda: self._answered(ticket.number, future))

    def _start(self, ticket: Ticket) -> Any:
        """One Ray task. The values are arguments, so that Ray transfers them to its node.

        They are left out if enough workers have decoded them already.
        """
        call = ticket.call
        if not call.runtime.is_alive:  # Ray would restart by itself
            raise ClosedError(SHUT_DOWN)
        stores = call.stores()
        ticket.arguments = {token: store.ref for token, store in stores.items()}
        ticket.nodes = call.alive_nodes()
        beside = [Box(payload) for payload in ticket.beside()]
        message = ticket.message(tuple(self._released), tuple(stores), len(beside))
        lean = not ticket.brings_values and self._holders.enough_have(stores, len(self._flying))
        given = () if lean else ticket.arguments.values()
        return call.remote.remote(message.dump(), *beside, *given)

    # ------------------------------------------------------------------------- answers

    def _answered(self, number: int, future: Any) -> None:
        ticket = self._flying.get(number)
        if ticket is None:
            return
        error = future.exception()
        if error is None:
            del self._flying[number]
            self._take(ticket, future.result())
        elif ticket.call.closed:
            del self._flying[number]
            _see(ticket.ref)
        else:
            _see(ticket.ref)
            self._failed(ticket, error)

    def _take(self, ticket: Ticket, answer: Any) -> None:
        loaded = Answer.load(answer)
        status, worker = loaded.status, loaded.worker
        if status == MISSING:
            self._holders.note_missing(worker, ticket.arguments)
        elif worker:
            self._holders.note(worker, ticket.arguments)
        if ticket.call.closed:
            return
        if status == UNREADABLE:
            self._encode_again(ticket)
        elif status == MISSING:
            self._queue.appendleft(ticket.with_values())
        elif status == OTHER_VERSION:
            self._fail(ticket, BackendUnavailableError(_other_version(loaded.text)))
        else:
            ticket.call.report(ticket.arrived(loaded))

    def _encode_again(self, ticket: Ticket) -> None:
        """Encode each item on its own. In another thread, since pickling runs user code."""

        def encode() -> None:
            again = work_items.encode_each(ticket.call, ticket.chunk)
            self._inbox.put(lambda: self._accept(again))

        background.put(encode)

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
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
            self._look_into(ticket, lambda: self._died(ticket, error))
        elif isinstance(error, _LOST) and _is_argument(ticket, error):
            self._look_into(ticket, lambda: self._put_again(ticket, error))
        elif isinstance(error, _LOST):
            self._look_into(ticket, lambda: self._died(ticket, error))
        else:
            del self._flying[ticket.number]
            self._fail(ticket, error)

    def _look_into(self, ticket: Ticket, work: Callable[[], Callable[[], None]]) -> None:
        def run() -> None:
            try:
                then = work()
            except BaseException as error:  # noqa: BLE001  Ray may end meanwhile, by SystemExit
                failure = error
                self._inbox.put(lambda: self._settle_failed(ticket, failure))
            else:
                self._inbox.put(then)

        threading.Thread(target=run, name="sharedtask-ray-look", daemon=True).start()

    def _died(self, ticket: Ticket, error: BaseException) -> Callable[[], None]:
        verdict = deaths.look_and_judge(ticket, error)
        return lambda: self._settle(ticket, verdict, error)

    def _put_again(self, ticket: Ticket, error: BaseException) -> Callable[[], None]:
        """A shared value was lost from the object store: the caller still has it."""
        call = ticket.call
        with self._putting:  # several chunks may report the same loss
            for token, store in call.stores().items():
                lost = ticket.arguments[token]
                if lost.hex() in str(error) and store.ref == lost:
                    store.put_again(call.again[token]())
        verdict = deaths.Verdict(again=True)
        return lambda: self._settle(ticket, verdict, error)

    def _settle(self, ticket: Ticket, verdict: Verdict, error: BaseException) -> None:
        if self._flying.pop(ticket.number, None) is None or ticket.call.closed:
            return
        if verdict.report is not None:
            ticket.call.report(verdict.report)
        elif verdict.each:
            self._encode_again(ticket)
        elif ticket.failures < _MAX_FAILURES:
            self._queue.appendleft(ticket.renumbered())
        else:
            self._fail(ticket, error)

    def _settle_failed(self, ticket: Ticket, error: BaseException) -> None:
        if self._flying.pop(ticket.number, None) is not None:
            self._fail(ticket, error)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        told = translated(ticket, error)
        ticket.call.report(ticket.all_failed(lambda _: told))

    # ---------------------------------------------------------------------- ends

    def _close_call(self, call: OpenCall, *, kill: bool) -> None:
        call.leases.release()
        self._queue = deque(t for t in self._queue if t.call is not call)
        mine = [ticket for ticket in self._flying.values() if ticket.call is call]
        for ticket in mine:
            ticket.is_stopped = kill  # skip the request to stop
            ticket.give_up_at = time.monotonic() + _CANCEL_AFTER_SECONDS
        if kill and mine:
            self._stop(mine)

    def _tick(self) -> None:
        for ticket in list(self._flying.values()):
            if not ticket.call.runtime.is_alive:
                del self._flying[ticket.number]
                runtime.bury(ticket.ref, *ticket.arguments.values())
                self._fail(ticket, ClosedError(SHUT_DOWN))
        now = time.monotonic()
        self._stop([t for t in self._flying.values() if t.give_up_at and now > t.give_up_at])

    def _stop(self, late: list[Ticket]) -> None:
        """End given-up chunks after the current item, or, later, in the middle of it."""
        for kill in (False, True):
            numbers = tuple(t.number for t in late if t.is_stopped is kill)
            if numbers:
                self._stopper.stop(late[0].call.origin, numbers, kill=kill)
        for ticket in late:
            ticket.is_stopped = True
            ticket.give_up_at = time.monotonic() + _GRACE_SECONDS

    def _end(self, reason: str) -> None:
        left = [*self._flying.values(), *self._queue]
        self._free_workers([t for t in self._flying.values() if t.call.runtime.outlives_us])
        self._flying.clear()
        self._queue.clear()
        for ticket in left:
            if not ticket.call.runtime.is_alive:
                runtime.bury(ticket.ref, *ticket.arguments.values())
            self._fail(ticket, ClosedError(reason))
        self._reason = reason

    def _free_workers(self, running: list[Ticket]) -> None:
        """A cluster that we did not start goes on after us: cancel our tasks there."""
        if running:
            numbers = tuple(ticket.number for ticket in running)
            with contextlib.suppress(BaseException):  # Ray may end at the same moment
                self._stopper.stop(running[0].call.origin, numbers, kill=True)


def _see(ref: Any) -> None:
    """Mark the error as retrieved; Ray prints the others."""
    with contextlib.suppress(BaseException):
        ray.get(ref, timeout=0)


def _is_argument(ticket: Ticket, error: BaseException) -> bool:
    return any(ref.hex() in str(error) for ref in ticket.arguments.values())


def translated(ticket: Ticket, error: BaseException) -> BaseException:
    """Ray's error as one of ours."""
    task, first = ticket.call.task, ticket.chunk.first
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
