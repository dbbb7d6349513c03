"""Gives chunks to the library that carries them and takes answers back: one thread.

    submit -> queue -> start -> answer -> report      close -> wait -> ask to stop -> wait -> kill

It alone tracks chunks in flight. Other threads put their requests into the inbox, and none waits
for a lock: a finalizer must not, and the library's own thread must not be blocked.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sharedtask import context
from sharedtask.errors import BackendUnavailableError, ClosedError
from sharedtask.system import background
from sharedtask.version import VERSION

from .message import OTHER_VERSION, RAN, UNREADABLE, Answer
from .work_items import OpenCall, WorkItem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sharedtask.backends.call_logs import CallLogs

    from .recovery import Recovery

_TICK_SECONDS, _SWEEP_SECONDS = 0.25, 0.5
# Most given-up chunks end soon; the others are asked to end, and killed half a second after all.
_CANCEL_AFTER_SECONDS, _GRACE_SECONDS = 0.1, 0.4
_MAX_FAILURES = 3  # before the first item

T = TypeVar("T", bound=WorkItem[Any])


class Dispatcher(ABC, Generic[T]):
    """The thread and its tables."""

    def __init__(self, library: str, sweep: Callable[[], bool]) -> None:
        """Start. ``sweep`` releases unused values and returns whether to call it again."""
        self._library = library
        self._sweep = sweep
        self._swept = self._ticked = time.monotonic()
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._queue: deque[T] = deque()
        self._flying: dict[int, T] = {}
        self._end_at = math.inf  # when the next given-up chunk is to be ended
        self._reason = ""  # the reason of its end
        threading.Thread(target=self._serve, name=f"sharedtask-{library}", daemon=True).start()

    # --------------------------------------------------------------- what a library decides

    @abstractmethod
    def _start(self, work_item: T) -> Any:
        """Give a chunk to the library; returns a future of the bytes of its ``Answer``."""

    @abstractmethod
    def _failed(self, work_item: T, error: BaseException) -> None:
        """The future of a chunk in flight has an error, which is not to be raised here."""

    @abstractmethod
    def _end_chunks(self, work_items: Sequence[T], *, kill: bool) -> None:
        """End given-up chunks after the current item, or at once."""

    @abstractmethod
    def _translated(self, work_item: T, error: BaseException) -> BaseException:
        """The library's error as one of ours."""

    def _note_release(self, token: int) -> None:
        """A value is not needed any more."""

    def _see(self, work_item: T) -> None:
        """The error of a chunk was retrieved."""

    def _answer_came(self, work_item: T, answer: Answer) -> bool:
        """An answer came; False if it is none, and the chunk is to be run again."""
        del work_item, answer
        return True

    def _abandon(self, work_items: Sequence[T]) -> None:
        """The dispatcher ends with these chunks in flight."""

    def _over(self) -> None:
        """The thread ends."""

    # ------------------------------------------------------------------- from any thread

    def submit(self, work_item: T) -> None:
        """Start a chunk as soon as the limit of its call allows."""
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

    # ---------------------------------------------------------------------- in the thread

    def _serve(self) -> None:
        # A user's finalizer that maps may run here: it would wait for this very thread.
        context.enter_thread()
        keeps = due = False
        while not self._reason:
            busy = bool(self._flying or self._queue)
            pause = _SWEEP_SECONDS if keeps or due else None
            if busy:
                pause = max(min(_TICK_SECONDS, self._end_at - time.monotonic()), 0.0)
            with contextlib.suppress(queue.Empty):
                self._do(self._inbox.get(timeout=pause))
                due = True  # the request may have been about a freed value
            now = time.monotonic()
            if now > self._ticked + _TICK_SECONDS or now >= self._end_at:
                self._ticked = now
                self._do(self._tick)
            if now > self._swept + _SWEEP_SECONDS:
                self._swept, due = now, False
                keeps = self._sweep()
            self._do(self._launch_queued)
        self._drain()
        self._over()

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

    def _accept(self, work_item: T) -> None:
        if self._reason:
            self._fail(work_item, ClosedError(self._reason))
        elif not work_item.call.closed:
            self._queue.append(work_item)

    def _launch_queued(self) -> None:
        """Start chunks up to the limit of each team, which also limits all together."""
        held: list[T] = []
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

    def _limit_with(self, work_item: T) -> int:
        calls: list[OpenCall] = [each.call for each in (work_item, *self._flying.values())]
        return max(call.limit() for call in calls)

    def _flying_of(self, call: OpenCall) -> int:
        return sum(work_item.call.team is call.team for work_item in self._flying.values())

    def _launch(self, work_item: T) -> None:
        call = work_item.call
        if not call.sink.begun(work_item.chunk.number):
            call.close()
            call.leases.release()
            return
        self._flying[work_item.number] = work_item
        try:
            future = self._start(work_item)
        except BaseException as error:  # noqa: BLE001  Ray leaves a thread by SystemExit as it ends
            del self._flying[work_item.number]
            self._fail(work_item, error)
            return
        future.add_done_callback(lambda future: self._take_answer(work_item, future))

    def _take_answer(self, work_item: T, future: Any) -> None:
        """Called by the library's own thread: pass results on at once, the rest to ours."""
        call = work_item.call
        try:
            if future.exception() is None:
                answer = Answer.load(future.result())
                if answer.status == RAN and not call.closed:
                    call.report(work_item.arrived(answer))
        finally:  # the library would only log our error, and the dispatcher block
            self._inbox.put(lambda: self._answered(work_item.number, future))

    # ------------------------------------------------------------------------- answers

    def _answered(self, number: int, future: Any) -> None:
        work_item = self._flying.get(number)
        if work_item is None:
            return
        error = future.exception()
        if error is None:
            del self._flying[number]
            self._take(work_item, Answer.load(future.result()))
        elif work_item.call.closed:
            del self._flying[number]
            self._see(work_item)
        else:
            self._see(work_item)
            self._failed(work_item, error)

    def _take(self, work_item: T, answer: Answer) -> None:
        is_one = self._answer_came(work_item, answer)
        if answer.logs and (work_item.is_unreported or answer.status != RAN):
            work_item.logged_late(answer)
        if work_item.call.closed or not is_one:
            return
        if answer.status == UNREADABLE:
            self._encode_again(work_item)
        elif answer.status == OTHER_VERSION:
            self._fail(work_item, BackendUnavailableError(_other_version(answer.text)))
        else:
            work_item.call.report(work_item.arrived(answer))

    def _encode_again(self, work_item: T) -> None:
        """Encode each item on its own. In another thread, since pickling runs user code."""

        def encode() -> None:
            again = type(work_item).encode_each(work_item.call, work_item.chunk)
            self._inbox.put(lambda: self._accept(again))

        background.put(encode)

    def _investigate(self, work_item: T, work: Callable[[], Callable[[], None]]) -> None:
        """Find out in another thread what became of a chunk, and go on in this one."""

        def run() -> None:
            try:
                then = work()
            except BaseException as error:  # noqa: BLE001  Ray may end meanwhile, by SystemExit
                failure = error
                self._inbox.put(lambda: self._fail_unknown(work_item, failure))
            else:
                self._inbox.put(then)

        name = f"sharedtask-{self._library}-look"
        threading.Thread(target=run, name=name, daemon=True).start()

    def _recover(self, work_item: T, recovery: Recovery, error: BaseException) -> None:
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

    def _fail_unknown(self, work_item: T, error: BaseException) -> None:
        if self._flying.pop(work_item.number, None) is not None:
            self._fail(work_item, error)

    def _fail(self, work_item: T, error: BaseException) -> None:
        told = self._translated(work_item, error)
        work_item.call.report(work_item.all_failed(lambda _: told))

    # ---------------------------------------------------------------------- ends

    def _close_call(self, call: OpenCall, *, kill: bool) -> None:
        call.leases.release()
        self._queue = deque(t for t in self._queue if t.call is not call)
        mine = [work_item for work_item in self._flying.values() if work_item.call is call]
        for work_item in mine:
            work_item.is_stopped = kill  # skip the request to stop
            work_item.give_up_at = time.monotonic() + _CANCEL_AFTER_SECONDS
            self._end_at = min(self._end_at, work_item.give_up_at)
        if kill and mine:
            self._stop(mine)

    def _tick(self) -> None:
        now = time.monotonic()
        self._stop([t for t in self._flying.values() if t.give_up_at and now >= t.give_up_at])
        ends = (work_item.give_up_at for work_item in self._flying.values())
        self._end_at = min(filter(None, ends), default=math.inf)

    def _stop(self, late: list[T]) -> None:
        """End given-up chunks after the current item, or, later, in the middle of it."""
        for kill in (False, True):
            chosen = [t for t in late if t.is_stopped is kill]
            if chosen:
                self._end_chunks(chosen, kill=kill)
        for work_item in late:
            work_item.is_stopped = True
            work_item.give_up_at = time.monotonic() + _GRACE_SECONDS

    def _end(self, reason: str) -> None:
        flying, left = list(self._flying.values()), list(self._queue)
        self._abandon(flying)
        self._flying.clear()
        self._queue.clear()
        for work_item in [*flying, *left]:
            self._fail(work_item, ClosedError(reason))
        self._reason = reason


def caused(error: BaseException, cause: BaseException) -> BaseException:
    """The error, with its cause."""
    error.__cause__ = cause
    return error


def _other_version(theirs: str) -> str:
    return (
        f"this process has sharedtask {VERSION} and a node of the cluster {theirs}. "
        "Install the same version on all of them."
    )
