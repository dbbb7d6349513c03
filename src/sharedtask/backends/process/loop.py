"""The loop that reads the workers' sockets, and the question of who turns it.

A thread that waits for results turns it itself: that saves a switch between threads for every
report. A lock says who is at it; others only wait for their queue. The I/O thread takes over
whenever something is under way that no waiting thread sees to, and rests when there is nothing to
do.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from queue import Empty
from typing import TYPE_CHECKING, Any, Protocol

from sharedtask import interrupts

from .wire import OwnSocket

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from .links import Link

# The I/O thread waits this long for more before it rests: being woken twice costs 0.05 ms.
_LINGER_SECONDS = 0.05
# Nobody waits for longer without a look, whatever was closed meanwhile.
_LOOK_SECONDS = 1.0


class Duties(Protocol):
    """What has to be done besides reading sockets."""

    def patience(self) -> float:
        """Seconds until something must be looked at; infinite for no hurry."""
        ...

    def tick(self) -> None:
        """Look at what is due."""

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
        self._turning = threading.Lock()
        self._attended = False  # by a thread that waits for results
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
        if not self._turning.acquire(blocking=False):
            return _next_of(reports, until)
        try:
            self._attended = True
            while reports.empty() and not self.closed and not _is_past(until):
                self._turn(until)
        finally:
            self._attended = False
            self._turning.release()
            if leaves:
                self.hand_over()
        return _next_of(reports, until)

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
        """The I/O thread's permit; it takes it when it has time. Takes no lock."""
        with contextlib.suppress(RuntimeError):  # it has one already
            self._permit.release()

    def _serve(self) -> None:
        while not self.closed:
            rest = self._duties.rest_seconds()
            self._permit.acquire(timeout=-1 if rest is None else rest)
            with self._turning:
                self._turn_while_needed()

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
                lingers = time.monotonic() + _LINGER_SECONDS

    def _turn(self, until: float | None) -> None:
        """Wait for news, not longer than ``until``, and see to it."""
        patience = min(self._duties.patience(), _LOOK_SECONDS)
        if until is not None:
            patience = min(until - time.monotonic(), patience)
        self._waits = True
        try:
            events = self._selector.select(max(patience, 0.0))
        finally:
            self._waits = False
        if self.closed:  # meanwhile: nobody is left to serve
            return
        with interrupts.shield():
            for key, mask in events:
                key.data(mask)
            self._duties.tick()

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


def _is_past(until: float | None) -> bool:
    return until is not None and time.monotonic() >= until


def _next_of(reports: SimpleQueue[Any], until: float | None) -> Any:
    try:
        return reports.get(timeout=None if until is None else max(until - time.monotonic(), 0.0))
    except Empty:
        return None
