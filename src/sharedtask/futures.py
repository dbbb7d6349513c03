"""``submit``: one item, its outcome in a future."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from sharedtask.backends.base import OVER, Chunk, Session
from sharedtask.tracebacks import shorten

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Backend, Call
    from sharedtask.options import Options
    from sharedtask.outcomes import Report


class Promise(Future[Any]):
    """A future that knows whether somebody wants to be called when it is done."""

    calls_back = False
    session: Session | None = None

    def result(self, timeout: float | None = None) -> Any:
        """See ``concurrent.futures.Future``."""
        self._help(timeout)
        try:
            return super().result(timeout)
        except Exception as error:
            shorten(error)
            raise

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See ``concurrent.futures.Future``."""
        self._help(timeout)
        return super().exception(timeout)

    def _help(self, timeout: float | None) -> None:
        session = self.session
        if session is not None and not self.done():
            session.while_waiting(self, timeout)

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """See ``concurrent.futures.Future``."""
        self.calls_back = True
        super().add_done_callback(fn)


class Submission:
    """One item, its outcome in a future."""

    only_notes = False  # see base.Sink

    def __init__(
        self,
        backend: Backend,
        call: Call,
        item: Any,
        options: Options,
        on_shares: Callable[[Any], None],
    ) -> None:
        self.future = Promise()
        self._options = options
        self._left = options.retries
        self._item = item
        self._session = backend.session(call, self)
        self._began = False
        try:
            self._session.open()
            on_shares(self._session.shares)
            self.future.session = self._session
            self._session.submit(Chunk(1, 0, [item]))
            self._session.leave()
        except BaseException:
            self._session.close()
            raise

    def begun(self, chunk: int) -> bool:  # noqa: ARG002  a Sink's
        """A future that was cancelled in the queue is not run."""
        if self._began:
            return True
        self._began = self.future.set_running_or_notify_cancel()
        return self._began

    def report(self, report: Report) -> None:
        """Called from any thread."""
        batch = report.delivery.open()
        if not batch.values:
            return
        self._session.accept(batch)
        error = batch.errors.get(0)
        if error is not None and self._left and isinstance(error, self._options.retry_on):
            self._left -= 1
            self._session.submit(Chunk(1, 0, [self._item]))
            self._session.leave()
            return
        session, self._session = self._session, OVER
        error = error or self._finished(session)
        session.close()
        self.future.session = None
        if self.future.calls_back:
            # Callbacks are the user's code. They may wait for other futures, and this thread may be
            # the one that would bring them.
            resolvers.put(lambda: self._resolve(batch.values[0], error))
        else:
            self._resolve(batch.values[0], error)

    def _finished(self, session: Session) -> BaseException | None:
        """Complete the caller's totals, by a function that may be the user's."""
        try:
            session.finish()
        except BaseException as error:  # noqa: BLE001  it becomes the outcome of the future
            return error
        return None

    def _resolve(self, value: Any, error: BaseException | None) -> None:
        if error is None:
            self.future.set_result(value)
        elif self._options.return_exceptions:
            self.future.set_result(error)
        else:
            self.future.set_exception(error)


class _Resolvers:
    """Threads that run the callbacks of futures: never fewer than there are callbacks to run."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def put(self, work: Callable[[], None]) -> None:
        """Have ``work`` done soon."""
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=self._serve, name="sharedtask-callbacks", daemon=True).start()
        self._work.put(work)

    def _serve(self) -> None:
        while True:
            try:
                self._work.get(timeout=_RESOLVER_SECONDS)()
            except queue.Empty:
                # Take back the word that this thread is idle. Where somebody was faster, there is
                # work for it.
                if self._idle.acquire(blocking=False):
                    return
            else:
                self._idle.release()


_RESOLVER_SECONDS = 0.5
resolvers = _Resolvers()
