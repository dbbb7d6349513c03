"""``submit``: one item, its outcome in a future.

Outcomes arrive in any thread, such as the I/O thread, which opens only those that run no user code.
Others are opened by the thread that waits for the future, or else by a background thread: opening
unpickles the result, may run a reduction's function, and may pickle the item again.
"""

from __future__ import annotations

import functools
import itertools
import queue
import threading
from collections import deque
from concurrent.futures import InvalidStateError
from typing import TYPE_CHECKING, Any

from sharedtask.backends.base import CLOSED_SESSION, Chunk
from sharedtask.outcomes import add_note
from sharedtask.serialization import losses, missing
from sharedtask.system import background, critical_sections, forks, interrupts
from sharedtask.system.forks import Step

from .futures import TaskFuture, is_past
from .retries import runs_again

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Backend, Call, Session
    from sharedtask.errors import ChangedValueWarning
    from sharedtask.options import Options
    from sharedtask.outcomes import Batch, Change, Report

    from .callsite import Callsite


class Submission:
    """One item, its outcome in a future."""

    def __init__(
        self,
        backend: Backend,
        call: Call,
        item: Any,
        options: Options,
        on_shares: Callable[[Any], None],
        callsite: Callsite | None = None,
    ) -> None:
        self._callsite, self._task = callsite, call.task
        self._change: Change | None = None
        self.future: TaskFuture[Any] = TaskFuture()
        self._options = options
        self._failures: dict[int, int] = {}
        self._item = item
        self._numbers = itertools.count(1)  # of its attempts, each its own chunk
        self._arrived: deque[Report] = deque()
        self._waiting = threading.Lock()  # held by the one thread that waits for reports
        self._waiter = 0  # that thread
        self._news: queue.SimpleQueue[bool] = queue.SimpleQueue()  # wakes it
        self._in_caller = backend.in_caller
        # Opening writes such results into the caller's arrays.
        self._writes = bool(call.handlers)
        self._session = backend.session(call, self)
        self._began = self._is_over = False
        try:
            self._begin(call, on_shares)
        except BaseException:
            self.give_up(running=True)
            raise

    @interrupts.shielded
    def _begin(self, call: Call, on_shares: Callable[[Any], None]) -> None:
        with losses.collected() as lost:
            self._session.open()
        if lost:
            missing.warn(call.task, lost, call.named)
        on_shares(self._session.shares)
        self.future._submission = self
        _pending.add(self)
        with losses.collected() as lost:
            self._session.submit(self._chunk())
        if lost:
            missing.warn_of_items(call.task, 0, [self._item], lost)
        self._session.leave()

    def _chunk(self) -> Chunk:
        """The chunk to run, at first and at each retry."""
        return Chunk(next(self._numbers), 0, [self._item])

    def begun(self, chunk: int) -> bool:  # noqa: ARG002  a Sink's
        """False for a future that was cancelled in the queue."""
        with _claiming:
            begins = not (self._began or self._is_over)
            self._began = self._began or begins
        if begins:
            self._if_free(self._set_running)
        return not self._is_over

    def report(self, report: Report) -> None:
        """Called from any thread, which may be one that must not run user code, or wait."""
        if report.change is not None:
            self._change = report.change
            if not report.count:
                return
        if self._in_caller:
            self._open(report)
            return
        if self._is_at_once(report) and self._if_free(functools.partial(self._open, report)):
            return
        self._arrived.append(report)
        if self._waiting.locked():
            self._news.put(True)
        else:
            background.put(self._open_all)

    def _is_at_once(self, report: Report) -> bool:
        is_plain = report.delivery.is_plain and self._change is None
        return is_plain and not self._writes and not self._waiting.locked()

    def _set_running(self) -> None:
        if not self.future.done():  # another thread may have killed it since
            self.future.set_running_or_notify_cancel()

    def _if_free(self, action: Callable[[], object]) -> bool:
        """Run the action without the lock of the future, which user code may hold."""
        condition = self.future._condition
        if not condition.acquire(blocking=False):
            return False
        try:
            action()
        finally:
            condition.release()
        return True

    # --------------------------------------------------------------------- opening of reports

    @interrupts.shielded  # a report that was taken is opened or passed on
    def wait(self, until: float | None) -> None:
        """Open reports until the future is done or the time is ``until``.

        No effect if another thread waits already, which then resolves the future.
        """
        critical_sections.reserve_stack()
        if not self._waiting.acquire(blocking=False):
            return
        self._waiter = threading.get_ident()
        try:
            while True:
                if self._arrived:
                    self._open_here(is_limited=until is not None)
                if self.future._submission is None or is_past(until):
                    return
                self._session.wait(self._news, until, leaves=True)
        finally:
            self._waiter = 0
            self._waiting.release()
            # Thread 1 reports and then checks whether a thread waits; thread 2 leaves and then
            # checks for reports. One of them sees the other.
            if self._arrived:
                background.put(self._open_all)

    def _open_here(self, *, is_limited: bool) -> None:
        """Open the reports that a waiting thread may open.

        User code may take longer than that thread wants to wait, and in the main thread a Ctrl-C
        would interrupt it, and the outcome be lost.
        """
        while (report := self._next()) is not None:
            if report.delivery.is_plain or not (is_limited or interrupts.in_main()):
                self._open(report)
            else:
                background.put(functools.partial(self._open, report))

    def _open_all(self) -> None:
        while (report := self._next()) is not None:
            self._open(report)

    def _next(self) -> Report | None:
        return critical_sections.first_of(self._arrived) if self._arrived else None

    def wake(self, session: Session) -> None:
        """Wake a waiting thread to see that the future is done."""
        if self._waiting.locked() and self._waiter != threading.get_ident():
            self._news.put(True)
            session.wake()

    def call_together(self, call: Callable[[], object]) -> None:
        """See ``Pending``: it has one future."""
        background.put(call)

    def leave(self) -> None:
        """Ensure that the outcome is delivered without a waiting thread, for callbacks."""
        self._session.leave(at_once=True)

    # ------------------------------------------------------------------------------ outcomes

    def _open(self, report: Report) -> None:
        """Take an outcome; any error becomes that of the future."""
        if self._is_over:
            report.delivery.discard()
            return
        try:
            self._take(report.delivery.open())
        except BaseException as error:  # noqa: BLE001
            self._finish(None, error)

    def _take(self, batch: Batch) -> None:
        if batch.values and not self._is_tried_again(batch):
            self._finish(batch.values[0], batch.errors.get(0))

    def _is_tried_again(self, batch: Batch) -> bool:
        if self._writes:
            self._session.accept(batch)
        error = batch.errors.get(0)
        if error is None:
            return False
        if self._is_over or not runs_again(self._options, self._failures, 0, error):
            return False
        self._session.submit(self._chunk())
        self._session.leave()
        return True

    def give_up(self, *, running: bool) -> bool:
        """Cancel the future, unless it has an outcome, or ``running`` is False and it runs."""
        if not self._claim(running=running):
            return False
        session, end = self._session, _kill if self._began else _close
        try:
            self._end(end)
        finally:
            self.future._set_cancelled()
            session.wake()  # a thread that waits may be running the loop of the backend
        return True

    def _claim(self, *, running: bool) -> bool:
        """Whether the caller may resolve the future; True for one caller at most."""
        with _claiming:
            if self._is_over or (self._began and not running):
                return False
            self._is_over = True
            return True

    def _end(self, end: Callable[[Session], None]) -> None:
        session, self._session = self._session, CLOSED_SESSION
        _pending.discard(self)
        end(session)

    def _finish(self, value: Any, error: BaseException | None) -> None:
        if not self._claim(running=True):
            return
        session = self._session
        if self._change is not None and self._callsite is not None:
            error = self._warned(self._callsite, self._change.warning(self._task), error)
        try:
            self._end(_finish_and_close if error is None and self._writes else _close)
        except BaseException as raised:  # noqa: BLE001  it becomes the outcome of the future
            error = raised
        self._resolve(value, error)
        self.wake(session)

    def _warned(
        self, callsite: Callsite, warning: ChangedValueWarning, error: BaseException | None
    ) -> BaseException | None:
        """Warn of a change; if a filter makes that an error, it is the outcome."""
        try:
            callsite.warn(warning)
        except Exception as raised:  # noqa: BLE001  it may also be of the user's showwarning
            if error is None:
                return raised
            add_note(error, f"Besides: {raised}")
        return error

    def _resolve(self, value: Any, error: BaseException | None) -> None:
        try:
            if error is None:
                self.future.set_result(value)
            elif self._options.return_exceptions:
                self.future.set_result(error)
            else:
                self.future.set_exception(error)
        except InvalidStateError:  # resolved by the user
            return

    def abandon(self) -> None:
        """In a forked child: the workers belong to the parent."""
        self._is_over = True
        self.future._abandon()


def _kill(session: Session) -> None:
    session.kill()


def _close(session: Session) -> None:
    session.close()


def _finish_and_close(session: Session) -> None:
    """Complete the caller's totals, which may run the user's function."""
    try:
        session.finish()
    finally:
        session.close()


_claiming = critical_sections.table_lock()  # held to begin or resolve a future
_pending: set[Submission] = set()  # submissions whose futures have no outcome yet


def _abandon() -> None:
    """In a forked child: its parent's futures cannot be resolved here."""
    for submission in _pending.copy():
        submission.abandon()
    _pending.clear()


forks.in_child(Step.OUTCOMES, _abandon)
