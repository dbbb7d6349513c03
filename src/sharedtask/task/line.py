"""A line: submits of a task that are alike, in one session. Items that cannot run yet wait in it.

    submit -> queue -> (a worker has room) -> chunk -> Session.submit -> report -> futures

While quick items run, those that come meanwhile gather, are sent together, and return together.
Each keeps its own future and outcome: a chunk ends early if one of its items is killed or
cancelled, and what was not begun of it goes back to the front of the queue.

Only numbers, strings and the like wait here. No caller can change those, so they are kept by
reference, and encoding them runs no user code, so any thread may do it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import queue
import time
from collections import deque
from concurrent.futures import InvalidStateError
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask.backends.base import CLOSED_SESSION, Chunk, Limits
from sharedtask.errors import ClosedError, SharedTaskError
from sharedtask.serialization import losses, missing
from sharedtask.system import background, critical_sections, forks, interrupts
from sharedtask.system.forks import Step
from sharedtask.worker.result_format import PLAIN_TYPES

from .futures import TaskFuture, is_past
from .gathering import gathers, next_size
from .place import Door, Place, Sent

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Backend, Call, Session
    from sharedtask.outcomes import Batch, Report

# Handing a chunk over takes microseconds, unless a signal handler has interrupted it.
_GIVEN_SECONDS = 0.1
# A killed worker ends its chunk within milliseconds; the caller waits no longer than this for that.
_KILL_SECONDS = 0.5


def may_wait(call: Call, item: Any) -> bool:
    """Whether an item may wait in a line: no caller can change it, nor what its call brings."""
    if call.shared or call.bound or call.randomness or call.options.strict is True:
        return False
    if Limits.of(call.options) is not None:
        return False
    given = (*call.args, *call.kwargs.values()) if call.args or call.kwargs else ()
    return type(item) in PLAIN_TYPES and PLAIN_TYPES.issuperset(map(type, given))


class Line:
    """Submits in one session. When all have their outcomes, it is closed, or rests if it is light.

    Not while a chunk is in flight, of items that were killed: a line at rest learns of no end.

    ``open``, ``joins`` and ``add`` are called within a shield of ``interrupts``.
    """

    def __init__(self, backend: Backend, call: Call) -> None:
        self._options = call.options
        self._call = call = replace(call, of_submits=True)
        self._door = Door(self)
        self._session: Session = backend.session(call, self._door)
        self._awake = self._session  # also when it is closed: a thread may wait in it
        self._queue: deque[Place] = deque()
        self._sent: dict[int, Sent] = {}
        self._places: dict[int, Place] = {}  # those without an outcome
        self._held = 1  # submits that are about to add a place
        self._numbers = itertools.count(1)
        self._seconds: float | None = None  # of an item, smoothed
        self._sent_at = 0.0  # when the last chunk was sent
        self._is_due = False  # what has gathered is sent soon
        self._waiters = 0  # threads that wait for an outcome: then nothing gathers
        self._may_rest = True
        self.calls: deque[Callable[[], object]] = deque()  # of callbacks, after a batch

    def open(self, on_shares: Callable[[Any], None]) -> None:
        """Open the session; ``add`` must follow."""
        try:
            with losses.noted() as lost:
                self._session.open()
            if lost:
                missing.tell(self._call.task, lost, self._call.named)
        except BaseException:
            self._session.close()
            self._session = CLOSED_SESSION
            raise
        on_shares(self._session.shares)

    def joins(self, call: Call) -> bool:
        """Whether a submit of ``call`` may be added; then ``add`` must follow."""
        with _lock:
            session = self._session
            if session is CLOSED_SESSION:
                return False
            self._held += 1
            self._door.line = self
        joins = False
        try:
            joins = session.serves(call)
        finally:
            if not joins:
                self._may_rest = False
                self._let_go()
        return joins

    def add(self, index: int, item: Any) -> TaskFuture[Any]:
        """Add a place, which ``joins`` or ``open`` has allowed."""
        place = Place(self, index, item, self._options.retries)
        with _lock:
            self._held -= 1
            self._places[index] = place
            self._queue.append(place)
            _lines.add(self)
        self._feed(gathers=True)
        self._session.leave()
        return place.future

    def _let_go(self) -> None:
        with _lock:
            self._held -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        with _lock:
            if self._places or self._held or self._sent:
                return
            _lines.discard(self)
            session = self._session
            if self._may_rest and session.is_light:
                self._door.line = None
                return
            self._session = CLOSED_SESSION
        session.close()

    # ----------------------------------------------------------------------------- sending

    def _feed(self, *, gathers: bool = False) -> None:
        """Send what the workers have room for, soon if others may follow that ``gathers`` with."""
        if gathers and self._gathers():
            return
        while (sent := self._next()) is not None:
            try:
                self._session.submit(sent.chunk)
                sent.is_given = True
            except BaseException as error:  # noqa: BLE001  the pool was shut down
                self._fail(error)
                return

    def _gathers(self) -> bool:
        since = time.monotonic() - self._sent_at
        if self._waiters or not gathers(len(self._queue), since, self._seconds):
            return False
        if not self._is_due:
            self._is_due = True
            self._session.soon(self._send_gathered)
        return True

    def _send_gathered(self) -> None:
        self._is_due = False
        self._feed()

    def _next(self) -> Sent | None:
        with _lock:
            workers = self._session.concurrency.workers
            size = next_size(len(self._queue), len(self._sent), workers, self._seconds)
            if not size:
                return None
            places = [self._queue.popleft()]
            while len(places) < size and self._queue[0].index == places[-1].index + 1:
                places.append(self._queue.popleft())
            items = [place.item for place in places]
            chunk = Chunk(next(self._numbers), places[0].index, items)
            sent = self._sent[chunk.number] = Sent(chunk, places)
            self._sent_at = time.monotonic()
            for place in places:
                place.sent = sent
            return sent

    def begun(self, chunk: int) -> bool:
        """A chunk is handed to a worker."""
        sent = self._sent.get(chunk)
        if sent is None:  # it was taken back
            return False
        for place in sent.places:
            place.set_running()
        return True

    # ----------------------------------------------------------------------------- outcomes

    def report(self, report: Report) -> None:
        """Called by any thread, which may be one that must not run user code, or wait."""
        with _lock:
            places = self._covered(report)
        if not places:
            report.delivery.discard()
        elif report.delivery.is_plain:
            self._open(report, places)
        else:
            background.put(functools.partial(self._open_behind, report, places))
        self._feed(gathers=True)
        if not places:  # else when their outcomes are taken
            self._close_if_done()

    def _covered(self, report: Report) -> list[Place]:
        """The places that a report is about; what a chunk has not begun goes back to the queue."""
        sent = self._sent.get(report.chunk)
        if sent is None:
            return []
        began, sent.covered = sent.covered, sent.covered + report.count
        if report.count:
            seconds = report.seconds / report.count
            known = self._seconds
            self._seconds = seconds if known is None else (known + seconds) / 2
        if report.finished:
            del self._sent[report.chunk]
            self._put_back(sent.places[sent.covered :])
            if sent.ended is not None:
                sent.ended.put(True)
        places = sent.places[began : sent.covered]
        for place in places:
            place.sent = None
        return places

    def _put_back(self, places: list[Place]) -> None:
        again = [place for place in places if not place.is_over]
        for place in again:
            place.sent = None
        self._queue.extendleft(reversed(again))

    def _open_behind(self, report: Report, places: list[Place]) -> None:
        """Take outcomes in another thread than the one that serves the workers, and wake that."""
        self._open(report, places)
        self._awake.wake()

    def _open(self, report: Report, places: list[Place]) -> None:
        """Take outcomes; any error becomes that of their futures."""
        try:
            batch = report.delivery.open()
        except BaseException as error:  # noqa: BLE001
            for place in places:
                self._finish(place, None, error)
        else:
            self._take(batch, places)
        if self.calls:
            background.put(self._call_all)
        self._close_if_done()

    def _call_all(self) -> None:
        while (call := critical_sections.first_of(self.calls)) is not None:
            call()

    def _take(self, batch: Batch, places: list[Place]) -> None:
        again = []
        for offset, place in enumerate(places):
            error = batch.errors.get(offset) if batch.errors else None
            if error is not None and self._may_be_tried(place, error):
                again.append(place)
            else:
                self._finish(place, batch.values[offset], error)
        if again:
            with _lock:
                self._put_back(again)
            self._feed()
            self._session.leave()

    def _may_be_tried(self, place: Place, error: BaseException) -> bool:
        if isinstance(error, ClosedError) or not isinstance(error, self._options.retry_on):
            return False
        place.was_tried = True
        place.left -= 1
        return place.left >= 0 and not place.is_over

    def _finish(self, place: Place, value: Any, error: BaseException | None) -> None:
        if not self._claim(place):
            return
        future = place.future
        try:
            if error is None:
                future.set_result(value)
            elif self._options.return_exceptions:
                future.set_result(error)
            else:
                future.set_exception(error)
        except InvalidStateError:  # resolved by the user
            return

    def _claim(self, place: Place) -> bool:
        """Whether the caller may resolve the future; True for one caller at most."""
        with _lock:
            if place.is_over:
                return False
            place.is_over = True
            del self._places[place.index]
            return True

    def _fail(self, error: BaseException) -> None:
        """No more chunks are accepted."""
        with _lock:
            places = list(self._places.values())
            self._queue.clear()
            self._sent.clear()
        for place in places:
            self._finish(place, None, error)
        self._call_all()
        self._close_if_done()
        self._awake.wake()

    # ------------------------------------------------------------------------ waiting, ending

    def wait(self, place: Place, until: float | None) -> None:
        """Wait for an outcome and serve the workers meanwhile.

        No effect if another thread waits for it already.
        """
        if place.news is not None:
            return
        news: queue.SimpleQueue[bool] = queue.SimpleQueue()
        place.news = news
        self._waiters += 1
        try:
            self._feed()
            while not (place.is_over or is_past(until)):
                self._awake.wait(news, until, leaves=True)
        finally:
            place.news = None
            self._waiters -= 1

    def leave(self) -> None:
        """See ``Pending``."""
        self._session.leave(at_once=True)

    @interrupts.shielded
    def give_up(self, place: Place, *, running: bool) -> bool:
        """See ``Pending``. What a worker has not begun is taken back from it."""
        if place.was_tried and not running:
            return False
        waited = self._take_out(place)
        if not (waited or running) or not self._claim(place):
            return False
        try:
            if not waited:
                self._kill(place)
        finally:
            place.future._set_cancelled()
            self._feed()
            self._close_if_done()
            self._awake.wake()
        return True

    def _take_out(self, place: Place) -> bool:
        """Take an item that has not begun out of the queue, or back from its worker."""
        patience = time.monotonic() + _GIVEN_SECONDS
        while (sent := place.sent) is not None:
            if not (sent.is_given or is_past(patience)):
                time.sleep(0)  # another thread is about to hand it over
                continue
            begun = self._session.withdraw(sent.chunk.number)
            with _lock:
                if place.sent is sent:  # else its chunk has ended meanwhile
                    return self._shorten(sent, begun, place)
        with _lock:
            waits = place in self._queue
            if waits:
                self._queue.remove(place)
        return waits

    def _shorten(self, sent: Sent, begun: int, out: Place) -> bool:
        """Only ``begun`` items of a chunk are run; the others wait again, ``out`` excepted."""
        back, sent.places = sent.places[begun:], sent.places[:begun]
        if not begun:
            self._sent.pop(sent.chunk.number, None)
        self._put_back([place for place in back if place is not out])
        if out not in back:
            return False
        out.sent = None
        return True

    def _kill(self, place: Place) -> None:
        """Kill the worker of an item, unless it is past it, and wait for the end of its chunk."""
        with _lock:
            sent = place.sent
            if sent is None or sent.chunk.number not in self._sent or sent.places[-1] is not place:
                return
            ended: queue.SimpleQueue[bool] = queue.SimpleQueue()
            sent.ended = ended
        self._session.kill_chunk(sent.chunk.number)
        with contextlib.suppress(SharedTaskError):  # this thread must not wait here
            self._session.wait(ended, time.monotonic() + _KILL_SECONDS, leaves=True)

    def leave_to_parent(self) -> None:
        """In a forked child: the workers belong to the parent."""
        for place in list(self._places.values()):
            place.is_over = True
            place.future._leave_to_parent()
        self._places.clear()
        self._session = CLOSED_SESSION


_lock = critical_sections.table_lock()
_lines: set[Line] = set()


def _leave_to_parent() -> None:
    """In a forked child: its parent's futures cannot be resolved here."""
    for line in _lines.copy():
        line.leave_to_parent()
    _lines.clear()


forks.in_child(Step.OUTCOMES, _leave_to_parent)
