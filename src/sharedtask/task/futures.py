"""The future that ``submit`` returns: one of the standard library that can be killed."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sharedtask.backends.base import CLOSED_SESSION, FORKED
from sharedtask.errors import ClosedError
from sharedtask.system import background, critical_sections, interrupts
from sharedtask.system.tracebacks import SHORTENED, shorten

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Session

R = TypeVar("R")

_log = logging.getLogger("concurrent.futures")

# Interval of checks for an interrupt while another thread opens the outcome.
_LOOK_SECONDS = 0.1
_SOON_SECONDS = 0.001


class Pending(Protocol):
    """A submitted item without an outcome, as its future sees it."""

    def wait(self, until: float | None) -> None:
        """Wait for the outcome, and open it in this thread, or until another thread does."""
        ...

    def give_up(self, *, running: bool) -> bool:
        """Cancel the future, unless it has an outcome, or ``running`` is False and it runs."""
        ...

    def leave(self) -> None:
        """Ensure that the outcome is delivered without a waiting thread, for callbacks."""
        ...

    def wake(self, session: Session) -> None:
        """Wake a waiting thread to see that the future is done."""
        ...

    def call_together(self, call: Callable[[], object]) -> None:
        """Call this soon in a background thread, with those of other futures: it waits for none."""
        ...


class TaskFuture(Future[R]):
    """The result of ``submit``: a standard library future with a ``kill()`` that ends its item.

    ``concurrent.futures.wait``, ``as_completed`` and ``asyncio.wrap_future`` accept it.
    It always gets a result or an error, even if the pool is shut down, workers and forkserver
    are killed, or Ray ends.

    Examples:
        >>> import time
        >>> from sharedtask import parallel
        >>> nap = parallel(lambda seconds: time.sleep(seconds))
        >>> future = nap.submit(60)
        >>> future.kill()
        True
        >>> future.cancelled()
        True
    """

    # The waiting thread opens the outcome; callbacks run in background threads.

    def __init__(self) -> None:
        super().__init__()
        self._submission: Pending | None = None
        self._callbacks: deque[Callable[[Future[R]], object]] = deque()
        self._canceller = 0  # the thread that has cancelled it
        self._calling = 0  # the thread that calls its callbacks
        self._kept: object = None  # lives at least as long as this

    # Each of these takes the future's lock by instructions of Python: an interrupt between those
    # and the block that gives the lock back would leave it locked.
    cancelled = interrupts.shielded(Future.cancelled)
    running = interrupts.shielded(Future.running)
    done = interrupts.shielded(Future.done)
    __repr__ = interrupts.shielded(Future.__repr__)

    def result(self, timeout: float | None = None) -> R:
        """See ``concurrent.futures.Future``."""
        try:
            with interrupts.shield():
                self._wait(timeout)
                return super().result(0)
        except SHORTENED as error:
            shorten(error)
            raise

    @interrupts.shielded
    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See ``concurrent.futures.Future``."""
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        """Wait for the outcome and open it, or wait until another thread has opened it."""
        until = None if timeout is None else time.monotonic() + timeout
        submission = self._submission
        if submission is not None:
            submission.wait(until)
        while not self.done() and not is_past(until):
            left = _LOOK_SECONDS if until is None else until - time.monotonic()
            with self._condition:
                if not self.done():
                    self._condition.wait(max(min(left, _LOOK_SECONDS), 0.0))
            interrupts.check()

    @interrupts.shielded
    def cancel(self) -> bool:
        """Cancel the item if no worker has started it; see ``concurrent.futures.Future``.

        Returns:
            Whether the future is cancelled. If so, its call has released the caller's arrays.
        """
        submission = self._submission
        if submission is None:
            self._canceller = threading.get_ident()
            return super().cancel()
        submission.give_up(running=False)
        return self.cancelled()

    @interrupts.shielded
    def kill(self) -> bool:
        """End the item, queued or running; the future is cancelled.

        Its worker is killed and replaced; the items of other calls are unaffected, and a killed one
        is not retried. A region of a ``Locked`` array that it was writing counts as one whose
        writer died. It may be called by any thread, by callbacks, and several times.

        - process: the item has ended when this returns, unless another process has stopped the
          worker.
        - ray: the worker is killed on its node, after this has returned.
        - thread: an item that has begun cannot be ended. It runs on in its thread, and its result
          is discarded.
        - serial: the item has been run when ``submit`` returns.

        Returns:
            Whether this call has ended it. False if the future was done already.

        Examples:
            >>> from sharedtask import parallel
            >>> future = parallel(lambda x: 2 * x).submit(21)
            >>> future.result()
            42
            >>> future.kill()
            False
        """
        submission = self._submission
        return submission is not None and submission.give_up(running=True)

    def add_done_callback(self, fn: Callable[[Future[R]], object]) -> None:
        """See ``concurrent.futures.Future``."""
        self._callbacks.append(fn)
        submission = self._submission
        if self.done():
            self._call_back()
        elif submission is not None:
            submission.leave()

    def _invoke_callbacks(self) -> None:
        """Called by the standard library's methods when the state is final.

        Callbacks may wait for other futures, and this thread may be the one that delivers those. A
        callback added from now on finds the future done, and runs in the thread that adds it.
        """
        submission, self._submission = self._submission, None
        if self._canceller == threading.get_ident():
            self._call_back()
        elif self._callbacks:
            is_quick = submission is not None and all(map(_waits_for_none, tuple(self._callbacks)))
            call_soon = submission.call_together if submission and is_quick else background.put
            call_soon(self._call_back)
        if submission is not None:
            submission.wake(CLOSED_SESSION)

    def _set_cancelled(self) -> None:
        """Cancel, also while running, for which the standard library has no transition.

        Callbacks are called by this thread, as in ``cancel``.
        """
        private: Any = self
        self._canceller = threading.get_ident()
        with private._condition:
            private._state = CANCELLED_AND_NOTIFIED
            for waiter in private._waiters:
                waiter.add_cancelled(self)
            private._condition.notify_all()
        private._invoke_callbacks()

    def _abandon(self) -> None:
        """In a forked child: the threads that deliver the outcome and wait for it do not exist."""
        private: Any = self
        private._condition = threading.Condition()  # a thread of the parent may have held it
        for waiting in (private._waiters, private._done_callbacks, self._callbacks):
            waiting.clear()
        self._submission = None
        self.set_exception(ClosedError(FORKED))

    def _call_back(self) -> None:
        self._calling = threading.get_ident()
        try:
            while (call := critical_sections.first_of(self._callbacks)) is not None:
                try:
                    interrupts.exposed(call, self)
                except Exception:  # noqa: BLE001  logged, as the standard library does
                    _log.exception("exception calling callback for %r", self)
        finally:
            self._calling = 0

    def settle(self) -> None:
        """Wait until it is done and its callbacks were called, unless one of them calls this."""
        self._wait(None)
        here = threading.get_ident()
        while self._calling != here and (self._callbacks or self._calling):
            time.sleep(_SOON_SECONDS)


def _waits_for_none(callback: Callable[..., object]) -> bool:
    """Whether a callback is asyncio's own, which only wakes its event loop."""
    return getattr(callback, "__module__", None) == "asyncio.futures"


def is_past(until: float | None) -> bool:
    """Whether the time has come; None: never."""
    return until is not None and time.monotonic() >= until
