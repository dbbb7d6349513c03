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

if TYPE_CHECKING:
    from collections.abc import Callable
    from queue import SimpleQueue

    from .links import Link

# The I/O thread waits this long for more before it rests: being woken twice costs 0.05 ms.
_LINGER_SECONDS = 0.05


class Duties(Protocol):
    """What has to be done besides reading sockets."""

    def patience(self) -> float | None:
        """Seconds until something must be looked at; None for no hurry."""

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
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        for end in (self._waker, self._woken):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        self._thread = threading.Thread(target=self._serve, name="sharedtask-io", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------ sockets

    def register(self, link: Link, on_ready: Callable[[int], None]) -> None:
        """Call ``on_ready(events)`` when the link's socket is readable, or writable if wanted."""
        self._selector.register(link.sock, selectors.EVENT_READ, on_ready)

    def unregister(self, link: Link) -> None:
        """Forget a link; twice is once."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(link.sock)

    def want_write(self, link: Link) -> None:
        """Ask for a word when the socket has room again, as long as something waits for it."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.writer.pending else 0)
        with contextlib.suppress(KeyError):
            key = self._selector.get_key(link.sock)
            if key.events != events:
                self._selector.modify(link.sock, events, key.data)

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
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")
        self._unpark()

    def _unpark(self) -> None:
        """The I/O thread's permit; it takes it when it has time. Takes no lock."""
        with contextlib.suppress(RuntimeError):  # it has one already
            self._permit.release()

    def _serve(self) -> None:
        while not self.closed:
            rest = self._duties.rest_seconds()
            self._permit.acquire(timeout=-1 if rest is None else rest)
            with self._turning:
                lingers = time.monotonic() + _LINGER_SECONDS
                while not self.closed:
                    self._turn(lingers)
                    if self._duties.is_busy():
                        lingers = time.monotonic() + _LINGER_SECONDS
                    elif _is_past(lingers):
                        break

    def _turn(self, until: float | None) -> None:
        """Wait for news, not longer than ``until``, and see to it."""
        patience = self._duties.patience()
        if until is not None:
            left = until - time.monotonic()
            patience = left if patience is None else min(left, patience)
        try:
            events = self._selector.select(None if patience is None else max(patience, 0.0))
        except (OSError, ValueError):  # closed meanwhile
            return
        with interrupts.shield():
            for key, mask in events:
                key.data(mask)
            self._duties.tick()

    def _on_wake(self, _mask: int) -> None:
        with contextlib.suppress(OSError):
            self._woken.recv(4096)

    # ---------------------------------------------------------------------------------- end

    def stop(self) -> None:
        """Let nobody turn the loop any more, and wait for the I/O thread."""
        self.closed = True
        self.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

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
