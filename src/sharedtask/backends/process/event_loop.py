"""Event loop over the workers' sockets, run by a thread that waits for results or the I/O thread.

A waiting thread runs the loop itself, which saves a thread switch per report. Other threads wait on
their queues meanwhile. The I/O thread takes over while work is in flight and no waiting thread runs
the loop, and sleeps when there is nothing to do. Most threads that leave work, as ``submit`` does,
wait for it at once, so the I/O thread gives them a moment first.

A thread may be away from the loop as long as user code takes: it unpickles a result, or a signal
handler interrupted it while it waited for events. So any thread can process the events, and the I/O
thread monitors: if chunks are in flight and no thread has run the loop for a moment, it runs the
loop. One thread at a time processes events, under a lock, and calls no user code under it. A signal
handler or a finalizer detects that it interrupted this by ``critical_sections.is_held()``.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from queue import Empty
from typing import TYPE_CHECKING, Any, Protocol

from sharedtask.errors import ClosedError, SharedTaskError
from sharedtask.system import critical_sections, ending, interrupts

from . import reasons
from .wire import OwnSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from .connections import Link

# The I/O thread waits this long for more work before it sleeps: a second wake-up costs 0.05 ms.
_LINGER_SECONDS = 0.05
# Maximal wait without a check, for signals and for descriptors that were closed meanwhile.
_LOOK_SECONDS = interrupts.LATE_SECONDS
# With chunks in flight a turn takes a fraction of this; a longer one means that no thread runs the
# loop.
_STALL_SECONDS = 0.1
# The I/O thread monitors for this many checks after the last turn.
_LOOKS = 10
# Time between checks for work that a thread has left: the I/O thread serves it at the second one,
# unless a thread waits by then. For as many checks it need not be woken for it, which costs 10 us.
_LEFT_SECONDS = 0.001
_LEFT_LOOKS = 20


class Duties(Protocol):
    """Work of the pool that the loop does besides reading sockets."""

    damage: str  # an exception within a callback; from then on the loop only calls ``tick``

    def timeout(self) -> float:
        """Seconds until the next check is due; infinite if there is none."""
        ...

    def tick(self) -> None:
        """Run the checks that are due."""

    def clean_up(self) -> None:
        """Release values that are not needed any more, which may run the user's finalizers."""

    def is_busy(self) -> bool:
        """Whether work is in flight."""
        ...

    def rest_seconds(self) -> float | None:
        """How long the I/O thread may sleep with nothing in flight; None for no limit."""


def _new_selector() -> selectors.BaseSelector:
    """By poll(2), or by select(2), the only one that eventlet leaves to a program."""
    return getattr(selectors, "PollSelector", selectors.SelectSelector)()


class Loop:
    """Sockets, their callbacks, and the I/O thread that runs the loop as a fallback."""

    def __init__(self, duties: Duties) -> None:
        self._duties = duties
        self.closed = False
        # Held by the thread that runs the loop; user code may run under it.
        self._turning = critical_sections.object_lock()
        self._processing = critical_sections.table_lock()
        self._turns = 0
        self._has_come = False  # a thread waits while another one runs the loop
        self._waiting: list[SimpleQueue[Any]] = []  # queues of the threads that only wait
        self._attended = False  # by a thread that waits for results
        self._watched = False  # by the I/O thread, which detects that no thread runs the loop
        self._wanted = False  # the I/O thread should run the loop
        self._left = False  # work, by a thread that goes on to other things
        # The turns there had been when work was found left, with no thread that waits for it.
        self._alone_at: int | None = None
        self._near = False  # the I/O thread checks for such work every millisecond
        self._serves = False  # the I/O thread runs the loop
        self._permit = threading.Lock()
        self._permit.acquire()
        # poll(2), because it needs no descriptor of its own, which a program could close. A socket
        # registered while a thread waits in it is included from the next turn on.
        self._selector = _new_selector()
        self._waits = False
        self._waker, self._woken = map(OwnSocket, socket.socketpair())
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        self._thread = threading.Thread(target=self._serve, name="sharedtask-io", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._waker.close()
            self._woken.close()
            if ending.is_refusal(error):
                raise ClosedError(f"the program ends: {error}") from error
            raise

    # ------------------------------------------------------------------------------ sockets

    def register(self, link: Link, on_ready: Callable[[int], None]) -> None:
        """Call ``on_ready(events)`` when the link's socket is readable, or writable if wanted."""
        self._selector.register(link.sock, selectors.EVENT_READ, on_ready)
        self._turn_anew()

    def unregister(self, link: Link) -> None:
        """Forget a link; idempotent."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.sock)

    def watch(self, number: int, on_ready: Callable[[], None]) -> None:
        """Call ``on_ready()`` when a descriptor is readable or was closed."""
        self._selector.register(number, selectors.EVENT_READ, lambda _: on_ready())
        self._turn_anew()

    def unwatch(self, number: int) -> None:
        """Forget a descriptor; idempotent."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(number)

    def want_write(self, link: Link) -> None:
        """Request a callback when the socket has room, as long as data waits for it."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.writer.pending else 0)
        with contextlib.suppress(KeyError, RuntimeError):  # it may have been closed meanwhile
            key = self._selector.get_key(link.sock)
            if key.events != events:
                self._selector.modify(link.sock, events, key.data)
                self._turn_anew()

    def is_whole(self) -> bool:
        """False if the program closed the loop's own descriptors; checks one of them."""
        return self._woken.is_open()

    # -------------------------------------------------------------------------------- turns

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """The next of ``reports``, or None at the time ``until``; runs the loop meanwhile.

        A caller that ``leaves`` for longer hands the loop over to the I/O thread.
        """
        if self._processing._is_owned():
            raise SharedTaskError(reasons.INSIDE)
        critical_sections.reserve_stack(40)
        if not self._turning.acquire(blocking=False):
            self._has_come = True
            self._waiting.append(reports)
            try:
                return _next_of(reports, until)
            finally:
                self._waiting.remove(reports)
        was_attended, self._attended = self._attended, True
        if not self._watched:
            self._watch()
        try:
            while reports.empty() and not self.closed and not _is_past(until):
                self._turn(until)
        finally:
            self._attended = was_attended  # by this thread, which a signal handler interrupted
            self._turning.release()
            if leaves:
                self.attend()
        return _next_of(reports, until)

    def attend(self, *, at_once: bool = False) -> None:
        """Work is in flight, and this thread goes on: ensure that some thread runs the loop.

        ``at_once`` if the waiter will not run the loop, such as an asyncio event loop.
        """
        if self._attended:
            return
        # Thread 1 sets ``_left``, then reads ``_near``. The I/O thread clears ``_near``, then reads
        # ``_left``. One of them sees the other.
        self._left = True
        if self._serves:
            return
        if at_once:
            self._unpark()
        elif not self._near:
            self._near = True
            self._permit_it()

    def wake(self) -> None:
        """Wake the thread that runs the loop. Takes no lock: finalizers call it."""
        self._ring()
        self._unpark()

    def turn_soon(self) -> None:
        """Something is due earlier than the thread that runs the loop may know."""
        self._ring()
        self.attend()

    def _turn_anew(self) -> None:
        if self._waits:
            self._ring()

    def _ring(self) -> None:
        try:
            if self._waker.is_open():
                self._waker.send(b"\0")
        except OSError:
            pass

    def _unpark(self) -> None:
        """Ask the I/O thread to run the loop. Takes no lock."""
        self._wanted = True
        self._permit_it()

    def _watch(self) -> None:
        """Ask the I/O thread to monitor that the loop runs, as long as it is needed."""
        self._watched = True
        self._permit_it()

    def _permit_it(self) -> None:
        try:  # noqa: SIM105  a block would make three calls of it
            self._permit.release()
        except RuntimeError:  # it has a permit already
            pass

    def _serve(self) -> None:
        looks = looks_near = 0
        while not self.closed:
            turns, watched, near = self._turns, self._watched, self._near
            called = self._permit.acquire(timeout=self._rest_seconds())
            if near and not called:
                left = self._take_left_work(last=looks_near >= _LEFT_LOOKS)
                looks_near = 0 if left else looks_near + 1
                if not self._wanted:
                    continue
            looks_near = 0
            rested = not (called or watched)  # long enough to check for values to release
            self._wanted = self._wanted or rested
            if self._wanted or (not called and self._is_stalled(turns)):
                self._take_over()
            looks = 0 if called or self._turns != turns else looks + 1
            self._watched = looks < _LOOKS or self._duties.is_busy()

    def _take_left_work(self, *, last: bool) -> bool:
        """Whether work is left; if none has come for it since the last check, request this thread.

        The first check may come at any moment: Python gives this thread its turn while the other
        one sends the work, and that one would wait for it right after.
        """
        left, self._left = self._left or self._alone_at is not None, False
        self._near = left or not last
        before, self._alone_at = self._alone_at, None
        if left and not self._attended and self._duties.is_busy():
            self._alone_at = self._turns
            if before == self._turns:
                self._wanted, self._alone_at = True, None
        return left

    def _rest_seconds(self) -> float:
        if self._near:
            return _LEFT_SECONDS
        if self._watched:
            return _STALL_SECONDS
        rest = self._duties.rest_seconds()
        return -1 if rest is None else rest

    def _is_stalled(self, turns: int) -> bool:
        """Whether no thread has run the loop since that turn although work is in flight."""
        return self._turns == turns and self._duties.is_busy()

    def _take_over(self) -> None:
        """Run the loop; concurrently with the thread that holds it if that one is blocked."""
        helps, self._wanted = not self._wanted, False
        timeout = _STALL_SECONDS
        while not self.closed:
            turns = self._turns
            if self._turning.acquire(timeout=timeout):
                try:
                    self._turn_while_waited_for() if helps else self._turn_while_needed()
                finally:
                    self._turning.release()
                    # More may be in flight, and a thread may have begun to wait a moment ago.
                    self._near = self._left = True
                return
            timeout = _STALL_SECONDS
            if self._is_stalled(turns):
                self._turn(time.monotonic() + _STALL_SECONDS, concurrently=True)
                timeout = 0.0 if self._turns == turns + 1 else _STALL_SECONDS

    def _turn_while_waited_for(self) -> None:
        """Run until the threads that wait have results; the next one to wait runs the loop."""
        self._has_come = bool(self._waiting)
        while not (self.closed or self._wanted) and self._duties.is_busy():
            self._turn(time.monotonic() + _LINGER_SECONDS)
            if self._have_what_they_wait_for():
                return

    def _turn_while_needed(self) -> None:
        """Run until nothing is in flight and no thread has handed over work for a while.

        A thread that begins to wait gets its report here, and runs the loop itself from then on.
        """
        self._serves, self._has_come = True, bool(self._waiting)
        lingers = time.monotonic() + _LINGER_SECONDS
        try:
            while not self.closed:
                busy = self._duties.is_busy()
                if not busy and _is_past(lingers):
                    return
                self._turn(time.monotonic() + _LINGER_SECONDS if busy else lingers)
                if self._have_what_they_wait_for():
                    return
                called = self._permit.acquire(blocking=False)
                if called:
                    self._wanted = False
                if called or self._left:
                    self._left = False
                    lingers = time.monotonic() + _LINGER_SECONDS
        finally:
            self._serves = False

    def _have_what_they_wait_for(self) -> bool:
        """Whether threads wait, and each has a report."""
        return self._has_come and not any(reports.empty() for reports in list(self._waiting))

    def _turn(self, until: float | None, *, concurrently: bool = False) -> None:
        """Wait for events until ``until`` at most, and process them."""
        timeout = min(self._duties.timeout(), _LOOK_SECONDS)
        if until is not None:
            timeout = min(until - time.monotonic(), timeout)
        events = self._events(max(timeout, 0.0), concurrently=concurrently)
        if self.closed:  # closed meanwhile: there is nothing to serve
            return
        with interrupts.firm_shield():
            with self._processing:
                try:
                    if not self._duties.damage:
                        for key, mask in events:
                            key.data(mask)
                    self._duties.tick()
                except BaseException as error:
                    self._duties.damage = type(error).__name__
                    if threading.current_thread() is not self._thread:
                        raise
                    self._unpark()  # it ends the pool in its next turn
            self._turns += 1
            self._duties.clean_up()

    def _events(self, timeout: float, *, concurrently: bool) -> list[Any]:
        """Ready events; ``concurrently``: another thread, or a frame below, waits for the same."""
        if concurrently or self._waits:
            return self._events_concurrently(timeout)
        self._waits = True
        try:
            ready: list[Any] = interrupts.exposed(self._selector.select, timeout)
            return ready
        finally:
            self._waits = False

    def _events_concurrently(self, timeout: float) -> list[Any]:
        """A poll object serves one thread at a time: this makes a second for the sockets."""
        selector = _new_selector()
        with contextlib.suppress(RuntimeError, KeyError, ValueError):  # they change meanwhile
            for key in list(self._selector.get_map().values()):
                selector.register(key.fileobj, key.events, key.data)
        ready: list[Any] = interrupts.exposed(selector.select, timeout)
        return ready

    def _on_wake(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            if self._woken.is_open():
                self._woken.recv(4096)

    # ---------------------------------------------------------------------------------- end

    def stop(self) -> None:
        """End the loop for all threads, and wait for the I/O thread."""
        self.leave()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def leave(self) -> None:
        """End the loop for all threads."""
        self.closed = True
        self.wake()

    def close(self) -> None:
        """Close the descriptors."""
        self.closed = True
        self._selector.close()
        for end in (self._waker, self._woken):
            end.close()


def _is_past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _next_of(reports: SimpleQueue[Any], until: float | None) -> Any:
    if not reports.empty():
        return reports.get_nowait()  # only one thread takes them
    try:
        return interrupts.next_of(reports, until)
    except Empty:
        return None
