"""Event loop over the workers' sockets, run by a thread that waits for results or the I/O thread.

A waiting thread turns it itself: that saves a switch between threads for every report. Others wait
for their queue meanwhile. The I/O thread takes over whenever something is under way that no waiting
thread sees to, and rests when there is nothing to do.

A thread may be away from the loop for as long as user code takes: it unpickles a result, or a
signal handler has interrupted it while it waits for events. So the events are processed by any
thread, and the I/O thread watches: where chunks are under way and no thread has turned the loop for
a moment, it does. One thread at a time processes events, under a lock, and calls no user code
there. A signal handler or a finalizer that interrupts it is told by ``critical.is_held()``.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from queue import Empty
from typing import TYPE_CHECKING, Any, Protocol

from sharedtask.errors import SharedTaskError
from sharedtask.system import critical_sections, interrupts

from .wire import OwnSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from .connections import Link

# The I/O thread waits this long for more before it rests: being woken twice costs 0.05 ms.
_LINGER_SECONDS = 0.05
# Nobody waits for longer without a look, whatever was closed meanwhile.
_LOOK_SECONDS = 1.0
# With chunks under way a turn takes a fraction of this. Where none has ended, nobody turns.
_STALL_SECONDS = 0.1
# The I/O thread watches for this many looks after the last turn.
_LOOKS = 10


class Duties(Protocol):
    """What has to be done besides reading sockets."""

    def patience(self) -> float:
        """Seconds until something must be looked at; infinite for no hurry."""
        ...

    def tick(self) -> None:
        """Look at what is due."""

    def clean_up(self) -> None:
        """Release what is not needed any more, which may run finalizers of the user's."""

    def is_busy(self) -> bool:
        """Whether something is under way."""
        ...

    def rest_seconds(self) -> float | None:
        """How long the I/O thread may rest when nothing is under way; None for ever."""


class Loop:
    """Sockets, what to do when they are ready, and a thread of last resort."""

    def __init__(self, duties: Duties) -> None:
        self._duties = duties
        self.closed = False
        self._turning = (
            critical_sections.object_lock()
        )  # whose turn it is; user code may run under it
        self._processing = critical_sections.table_lock()
        self._turns = 0
        self._has_come = False  # a thread that waits, though another one turns
        self._waiting: list[SimpleQueue[Any]] = []  # what threads wait for that do not turn
        self._attended = False  # by a thread that waits for results
        self._watched = False  # by the I/O thread, which sees where nobody turns
        self._wanted = False  # the I/O thread is to turn
        self._permit = threading.Lock()
        self._permit.acquire()
        # poll(2), for it has no descriptor of its own, which a program could close. What is
        # registered while somebody waits in it is seen at the next turn.
        self._selector = selectors.PollSelector()
        self._waits = False
        self._waker, self._woken = map(OwnSocket, socket.socketpair())
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        self._thread = threading.Thread(target=self._serve, name="sharedtask-io", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------ sockets

    def register(self, link: Link, on_ready: Callable[[int], None]) -> None:
        """Call ``on_ready(events)`` when the link's socket is readable, or writable if wanted."""
        self._selector.register(link.sock, selectors.EVENT_READ, on_ready)
        self._turn_anew()

    def unregister(self, link: Link) -> None:
        """Forget a link; twice is once."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.sock)

    def watch(self, number: int, on_ready: Callable[[], None]) -> None:
        """Call ``on_ready()`` when a descriptor is readable, or is none any more."""
        self._selector.register(number, selectors.EVENT_READ, lambda _: on_ready())
        self._turn_anew()

    def unwatch(self, number: int) -> None:
        """Forget a descriptor; twice is once."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(number)

    def want_write(self, link: Link) -> None:
        """Ask for a word when the socket has room again, as long as something waits for it."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.writer.pending else 0)
        with contextlib.suppress(KeyError, RuntimeError):  # closed meanwhile, perhaps
            key = self._selector.get_key(link.sock)
            if key.events != events:
                self._selector.modify(link.sock, events, key.data)
                self._turn_anew()

    def is_whole(self) -> bool:
        """False where the program has closed the loop's own descriptors, of which it asks one."""
        return self._woken.is_open()

    # -------------------------------------------------------------------------------- turns

    def wait(self, reports: SimpleQueue[Any], until: float | None, *, leaves: bool) -> Any:
        """The next of ``reports``, or None at the time ``until``, turning the loop meanwhile.

        Who ``leaves`` for longer hands over to the I/O thread.
        """
        self._refuse_inside()
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
                self.hand_over()
        return _next_of(reports, until)

    def _refuse_inside(self) -> None:
        if self._processing._is_owned():
            raise SharedTaskError(INSIDE)

    def hand_over(self) -> None:
        """Leave what is under way to the I/O thread."""
        if self._duties.is_busy():
            self._unpark()

    def attend(self) -> None:
        """Something was begun: see that somebody turns the loop."""
        if not self._attended:
            self._unpark()

    def wake(self) -> None:
        """Have whoever is at it look around. Takes no lock: finalizers call it."""
        self._ring()
        self._unpark()

    def _turn_anew(self) -> None:
        if self._waits:
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            if self._waker.is_open():
                self._waker.send(b"\0")

    def _unpark(self) -> None:
        """Have the I/O thread turn the loop when it has time. Takes no lock."""
        self._wanted = True
        self._permit_it()

    def _watch(self) -> None:
        """Have the I/O thread see that the loop is turned, as long as it is needed."""
        self._watched = True
        self._permit_it()

    def _permit_it(self) -> None:
        with contextlib.suppress(RuntimeError):  # it has a permit already
            self._permit.release()

    def _serve(self) -> None:
        looks = 0
        while not self.closed:
            turns, watched = self._turns, self._watched
            called = self._permit.acquire(timeout=self._rest_seconds())
            rested = not (called or watched)  # long enough to look for what is to be cleaned up
            self._wanted = self._wanted or rested
            if self._wanted or (not called and self._is_stalled(turns)):
                self._take_over()
            looks = 0 if called or self._turns != turns else looks + 1
            self._watched = looks < _LOOKS or self._duties.is_busy()

    def _rest_seconds(self) -> float:
        if self._watched:
            return _STALL_SECONDS
        rest = self._duties.rest_seconds()
        return -1 if rest is None else rest

    def _is_stalled(self, turns: int) -> bool:
        """Whether nobody has turned the loop since that turn, though something is under way."""
        return self._turns == turns and self._duties.is_busy()

    def _take_over(self) -> None:
        """Turn the loop; beside the thread whose turn it is where that one is held up."""
        helps, self._wanted = not self._wanted, False
        patience = _STALL_SECONDS
        while not self.closed:
            turns = self._turns
            if self._turning.acquire(timeout=patience):
                try:
                    self._turn_while_waited_for() if helps else self._turn_while_needed()
                finally:
                    self._turning.release()
                return
            patience = _STALL_SECONDS
            if self._is_stalled(turns):
                self._turn(time.monotonic() + _STALL_SECONDS, beside=True)
                patience = 0.0 if self._turns == turns + 1 else _STALL_SECONDS

    def _turn_while_waited_for(self) -> None:
        """Stay until those who came to wait have something: who comes next turns the loop."""
        self._has_come = bool(self._waiting)
        while not (self.closed or self._wanted) and self._duties.is_busy():
            self._turn(time.monotonic() + _LINGER_SECONDS)
            if self._has_come and not any(reports.empty() for reports in list(self._waiting)):
                return

    def _turn_while_needed(self) -> None:
        """Stay until nothing is under way and nobody has left anything here for a while.

        What others wait for does not count: the next of them turns the loop itself.
        """
        lingers = time.monotonic() + _LINGER_SECONDS
        while not self.closed:
            busy = self._duties.is_busy()
            if not busy and _is_past(lingers):
                return
            self._turn(time.monotonic() + _LINGER_SECONDS if busy else lingers)
            if self._permit.acquire(blocking=False):
                self._wanted = False
                lingers = time.monotonic() + _LINGER_SECONDS

    def _turn(self, until: float | None, *, beside: bool = False) -> None:
        """Wait for news, not longer than ``until``, and see to it."""
        patience = min(self._duties.patience(), _LOOK_SECONDS)
        if until is not None:
            patience = min(until - time.monotonic(), patience)
        events = self._events(max(patience, 0.0), beside=beside)
        if self.closed:  # meanwhile: nobody is left to serve
            return
        with interrupts.firm_shield():
            with self._processing:
                for key, mask in events:
                    key.data(mask)
                self._duties.tick()
            self._turns += 1
            self._duties.clean_up()

    def _events(self, patience: float, *, beside: bool) -> list[Any]:
        """What is ready; ``beside`` a thread that waits for the same, or below it on its stack."""
        if beside or self._waits:
            return self._events_beside(patience)
        self._waits = True
        try:
            ready: list[Any] = interrupts.exposed(self._selector.select, patience)
            return ready
        finally:
            self._waits = False

    def _events_beside(self, patience: float) -> list[Any]:
        """A poll object serves one thread at a time: this is another one of the same sockets."""
        selector = selectors.PollSelector()
        with contextlib.suppress(RuntimeError, KeyError, ValueError):  # they change meanwhile
            for key in list(self._selector.get_map().values()):
                selector.register(key.fileobj, key.events, key.data)
        ready: list[Any] = interrupts.exposed(selector.select, patience)
        return ready

    def _on_wake(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            if self._woken.is_open():
                self._woken.recv(4096)

    # ---------------------------------------------------------------------------------- end

    def stop(self) -> None:
        """Let nobody turn the loop any more, and wait for the I/O thread."""
        self.leave()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def leave(self) -> None:
        """Let nobody turn the loop any more."""
        self.closed = True
        self.wake()

    def close(self) -> None:
        """Give the descriptors back."""
        self.closed = True
        self._selector.close()
        for end in (self._waker, self._woken):
            end.close()


INSIDE = (
    "a signal handler or a finalizer has interrupted the library in the middle of a change, and"
    " asks for results of a call that was begun before, which would never come. Begin a call of its"
    " own there, or note what is to be done and do it later."
)


def _is_past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _next_of(reports: SimpleQueue[Any], until: float | None) -> Any:
    try:
        seconds = None if until is None else max(until - time.monotonic(), 0.0)
        return interrupts.exposed(reports.get, True, seconds)
    except Empty:
        return None
