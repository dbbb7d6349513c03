"""Ctrl-C: raised where a call is ready for it, and distinguished from one that a task raises.

Python runs signal handlers in the main thread between any two instructions, also between those that
belong together. So a call of the library is a ``shield``: a SIGINT is noted, and its handler runs
at the next place where it may raise. So are the other signals whose handlers raise in practice:
alarms, as time limits do, and requests to end.

- in ``exposed``, where the user's code runs (it may raise anything at any time) and where the call
  waits: at once;
- in ``check``, within long operations;
- at the end of the call.

``Leaving`` ensures that a block with a lock is left completely.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import itertools
import opcode
import os
import sys
import threading
import weakref
from collections import deque
from queue import Empty
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

from . import forks
from .forks import Step

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType, TracebackType
else:
    import _signal  # wrapped by ``signal``, whose enumerations cost microseconds per call

P = ParamSpec("P")
R = TypeVar("R")
# Signals whose handlers raise: Ctrl-C first, time limits, what a user sends, requests to end.
_SIGNALS = tuple(
    int(getattr(_signal, name))
    for name in (
        "SIGINT",
        "SIGALRM",
        "SIGVTALRM",
        "SIGPROF",
        "SIGXCPU",
        "SIGUSR1",
        "SIGUSR2",
        "SIGTERM",
        "SIGHUP",
        "SIGQUIT",
    )
    if hasattr(_signal, name)
)
_HOME = os.path.dirname(os.path.dirname(__file__)) + os.sep
_get_ident = threading.get_ident
_getsignal = _signal.getsignal


def _handlers() -> dict[int, Callable[..., Any]]:
    """The handler of each signal that has one."""
    found: dict[int, Callable[..., Any]] = {}
    # None in workers, at each use of a lock; SIGINT's, the first, in most other places.
    if any(map(callable, map(_getsignal, _SIGNALS))):
        for number in _SIGNALS:
            handler: Any = _getsignal(number)
            if callable(handler):
                found[number] = handler
    return found


class _Handler:
    """The handler of each signal within a shield: runs the user's handler, now or later."""

    __slots__ = ("firm", "held", "old", "pending", "raised", "unseen")

    def __init__(self) -> None:
        self.old: dict[int, Callable[..., Any]] = {}  # of each signal that has one
        self.held = 0  # shields around the main thread since it was last exposed
        self.firm = 0  # those of them that expose nothing
        self.pending: list[int] = []
        self.raised: BaseException | None = None
        self.unseen: BaseException | None = None  # raised in our own code, which may catch it

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        # A second interrupt may interrupt the handler of the first.
        while frame is not None and frame.f_code is _HANDLING:
            frame = frame.f_back
        if self.held or (frame is not None and frame.f_code in _ON_THE_WAY):
            if number not in self.pending:
                self.pending.append(number)
            return None
        return self._handle(number, frame)

    def handle_pending(self, frame: FrameType | None) -> None:
        """Run the user's handlers of the signals that came; they may raise."""
        try:
            while self.pending:
                self._handle(self.pending.pop(0), frame)
        finally:
            if self.pending:
                self.handle_pending(frame)

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if number in self.pending:
            self.pending.remove(number)
        try:
            return self.old[number](number, frame)
        except BaseException as error:
            self.raised = error
            self.unseen = error if _is_ours(frame) else None
            raise

    def install(self) -> None:
        """Install it for each signal that has a handler; for none where one raises meanwhile."""
        self.old = _handlers()
        try:
            for number in self.old:
                _signal.signal(number, self)
        except BaseException:
            self.remove()
            self.handle_pending(None)
            raise

    def remove(self) -> None:
        """Restore the handlers; one that is restored may raise before the others are."""
        try:
            for number, old in self.old.items():
                if _signal.getsignal(number) is self:
                    _signal.signal(number, old)
        except BaseException:
            self.remove()
            raise


class _State:
    """The main thread's state of signals."""

    __slots__ = ("handler", "main")

    def __init__(self) -> None:
        self.main = threading.main_thread().ident
        self.handler: _Handler | None = None  # the one in force

    def enter_child(self) -> None:
        """In a forked child the thread that forked is the main one.

        No thread of the child leaves the shields of the parent's main thread.
        """
        if in_main():
            return
        self.main, self.handler = _get_ident(), None
        for number in _SIGNALS:
            handler: Any = _signal.getsignal(number)
            while isinstance(handler, (_Handler, Leaving)):
                handler = handler.old[number]
            if handler is not _signal.getsignal(number):
                _signal.signal(number, handler)


_state = _State()


def in_main() -> bool:
    """Whether this thread is the one in which Python runs signal handlers."""
    return _get_ident() == _state.main


forks.in_child(Step.SIGNALS, _state.enter_child)


class shield:  # noqa: N801  used as a block, like contextlib.suppress
    """Within this block signals wait: their handlers run at the end, or in ``exposed``.

    No effect in threads other than the main one, where no handler runs, nor on a signal that is
    ignored or has the default action.
    """

    __slots__ = ("_handler", "_is_first")
    _firm = 0
    _later: list[int] | None = None  # takes the signals, in place of their handlers

    # A signal within these two methods is noted as long as ours is its handler. Before and after
    # that it may raise: the block has not begun yet, or is left already.

    def __enter__(self) -> Self:
        self._handler: _Handler | None = None
        self._is_first = False
        if _get_ident() != _state.main:
            return self
        handler = _state.handler
        if handler is None:
            handler = _Handler()
            try:
                handler.install()
            except ValueError as error:
                if _raised_by_handler(error):
                    raise
                return self  # not the main interpreter
            if not handler.old:
                return self
            _state.handler = handler
            self._is_first = True
        handler.held += 1
        handler.firm += self._firm
        self._handler = handler
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        handler = self._handler
        if handler is None:
            return
        handler.held -= 1
        handler.firm -= self._firm
        if self._is_first:
            _state.handler = None
            try:
                handler.remove()
            finally:
                if handler.pending:
                    self._end(handler)
        elif not handler.held and handler.pending:
            self._end(handler)
        if handler.held:
            return
        if isinstance(error, _Passing):
            error.reraise()

    def _end(self, handler: _Handler) -> None:
        if self._later is None:
            handler.handle_pending(sys._getframe(1))
        else:
            self._later.extend(handler.pending)
            handler.pending.clear()


def shielded(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose calls are shielded."""

    @functools.wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        with shield():
            return function(*args, **kwargs)

    return within


class firm_shield(shield):  # noqa: N801  see above
    """A shield within which nothing is exposed."""

    __slots__ = ()
    _firm = 1


class _postponing(shield):  # noqa: N801  see above
    """A shield that keeps the signals which came."""

    __slots__ = ("_later",)

    def __init__(self, later: list[int]) -> None:
        self._later = later


class Afterwards:
    """Calls a function, and raises the signals that came meanwhile again as soon as it is freed.

    For the end of a generator that is dropped: what a handler raises in there is printed and lost.
    Its frame frees this object after its last instruction, so the handler runs in the caller. Made
    beforehand, since in the generator's end each instruction may be interrupted.
    """

    __slots__ = ("__weakref__", "_function", "_signals")

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self._signals: list[int] = []
        _forget_called()
        # All of it in C, between whose instructions no handler runs; ``fromkeys`` takes the steps.
        interrupt: Any = _thread.interrupt_main
        number = next(_numbers)
        steps = itertools.chain(map(interrupt, self._signals), map(_called.append, (number,)))
        _dropped[number] = weakref.ref(self, functools.partial(dict.fromkeys, steps))

    def __call__(self, *args: Any) -> None:
        """Call the function. A Ctrl-C may also come before the signals are kept."""
        try:
            with _postponing(self._signals):
                self._function(*args)
        except KeyboardInterrupt:
            if _getsignal(_signal.SIGINT) is not _signal.default_int_handler:
                raise
            self._signals.append(_signal.SIGINT)
            self(*args)  # once more if it has ended: it ends what is still open


# A weak reference calls back only while it is alive itself, and must be until it has called.
_dropped: dict[int, weakref.ref[Afterwards]] = {}
_called: deque[int] = deque()
_numbers = itertools.count()


def _forget_called() -> None:
    with contextlib.suppress(IndexError):
        while True:
            del _dropped[_called.popleft()]


class _Passing(BaseException):
    """Carries an error of a signal's handler through a call that catches errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error
        self.context = error.__context__

    def reraise(self) -> NoReturn:
        """Raise the original error at the end of the call."""
        try:
            raise self.error
        finally:
            self.error.__context__ = self.context


def exposed(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function that may be interrupted at any moment: user code, or a wait.

    Its result is lost if an interrupt comes at its end. What a handler raises while code of ours
    runs within the call, a reducer for example, ends it in any case: a time limit's TimeoutError is
    an OSError, which that code may take for one of a system call.
    """
    handler = _state.handler
    if handler is None or handler.firm or _get_ident() != _state.main:
        return function(*args)
    held = handler.held
    handler.held = 0
    try:
        if handler.pending:
            handler.handle_pending(sys._getframe())
        result = function(*args)
    except BaseException as error:
        unseen, handler.unseen = handler.unseen, None
        if not (unseen is None or error is unseen or isinstance(error, _Passing)):
            raise _passing(unseen) from None
        if isinstance(error, Exception) and error is handler.raised:
            raise _Passing(error) from None
        raise
    finally:
        handler.held = held
    if handler.unseen is not None:
        unseen, handler.unseen = handler.unseen, None
        raise _passing(unseen)
    return result


def _passing(error: BaseException) -> BaseException:
    """What carries an error of a handler through a call."""
    return _Passing(error) if isinstance(error, Exception) else error


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(_HOME)


def check() -> None:
    """A place within a shield where an interrupt may raise."""
    handler = _state.handler
    if handler is not None and handler.pending:
        exposed(_nothing)


def _nothing() -> None:
    pass


def acquire(lock: Any) -> None:
    """Acquire a lock that may be held for long: an interrupt raises only before that."""
    while not lock.acquire(timeout=_LOOK_SECONDS):
        check()


_LOOK_SECONDS = 0.1


def next_of(queue: Any, until: float | None) -> Any:
    """The next of a queue; an interrupt may raise at any moment until then.

    A signal may come just before the main thread sleeps, while another thread has the GIL, or the
    kernel gives it to another thread: then Python notes it, and does not wake the main thread. So
    this looks for signals every ``LATE_SECONDS``.

    Raises:
        Empty: There was none at the time ``until``.
    """
    if not in_main():
        return queue.get(True, None if until is None else max(until - monotonic(), 0.0))
    while True:
        left = LATE_SECONDS if until is None else max(until - monotonic(), 0.0)
        found = exposed(_next_within, queue, min(left, LATE_SECONDS))
        if found is not _NOTHING:
            return found
        if until is not None and monotonic() >= until:
            raise Empty


def _next_within(queue: Any, seconds: float) -> Any:
    """No error at the end of the time, which would be the context of what a handler raises."""
    try:
        return queue.get(True, seconds)
    except Empty:
        return _NOTHING


# How late a signal is noticed that has not woken the main thread.
LATE_SECONDS = 0.5
_NOTHING = object()


def is_real(error: BaseException) -> bool:
    """True if a signal's handler raised this in the current call of the main thread.

    An exception of user code becomes the outcome of an item, or is attributed to a value; this one
    is neither.
    """
    handler = _state.handler
    return isinstance(error, _Passing) or (handler is not None and error is handler.raised)


def came_from_outside(error: BaseException) -> bool:
    """True if ``error`` is a Ctrl-C, or was raised by the handler of a signal.

    Outside of a shield, a KeyboardInterrupt in the main thread is a Ctrl-C unless a ``raise`` in
    Python is its origin: the default handler is C code.
    """
    if not in_main():
        return False
    if is_real(error) or _raised_by_handler(error):
        return True
    outside = _state.handler is None
    return isinstance(error, KeyboardInterrupt) and outside and not _raised_by_python(error)


def _raised_by_handler(error: BaseException) -> bool:
    handlers = map(_signal.getsignal, _signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(trace.tb_frame.f_code in codes for trace in _traces(error))


def _raised_by_python(error: BaseException) -> bool:
    *_, last = _traces(error)
    instruction = last.tb_frame.f_code.co_code[last.tb_lasti]
    return bool(instruction == opcode.opmap["RAISE_VARARGS"])


def _traces(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


_HANDLING = _Handler.__call__.__code__
_ON_THE_WAY = {
    function.__code__
    for function in (
        shield.__enter__,
        shield.__exit__,
        shield._end,
        _Handler.install,
        _Handler.remove,
    )
}


# --------------------------------------------------------------------------- leaving a block


class Leaving:
    """The signals' handler while the main thread is in a block, so that it is left completely.

    Python runs the handler between two instructions, and before the first of ``__exit__``, where
    ``__exit__`` cannot have taken measures yet. The frame shows that this is the place: ``code`` is
    the method's. From then on the block is ``busy``, until ``remove``.
    """

    __slots__ = ("_code", "_over", "_pending", "busy", "old")

    def __init__(self, old: dict[int, Callable[..., Any]], code: CodeType) -> None:
        self.old, self._code = old, code
        self.busy = self._over = False
        self._pending: list[int] = []

    def __call__(self, number: int, frame: Any) -> Any:
        # A second interrupt may interrupt the handler of the first.
        while frame is not None and frame.f_code is _CALL:
            frame = frame.f_back
        leaves = self.busy or (frame is not None and frame.f_code is self._code)
        if leaves and not self._over:
            self._pending.append(number)
            return None
        return self.old[number](number, frame)

    def install(self) -> None:
        """Install this as the handler of each signal that has one."""
        for number in self.old:
            _signal.signal(number, self)

    def remove(self) -> None:
        """Restore the previous handlers, and pass on signals that came meanwhile."""
        try:
            self._put_back()
        finally:
            # It may stay for a while below another that is removed later. Set only here: before, an
            # interrupt would be raised here, and the handler would never be removed.
            self._over = True
            self._run_pending()

    def _put_back(self) -> None:
        try:
            for number, old in self.old.items():
                if _signal.getsignal(number) is self:
                    _signal.signal(number, old)
        except BaseException:  # a restored handler has raised; restore the others as well
            self._put_back()
            raise

    def _run_pending(self) -> None:
        try:
            while self._pending:
                number = self._pending.pop(0)
                self.old[number](number, None)
        finally:
            if self._pending:
                self._run_pending()


_CALL = Leaving.__call__.__code__


def leaving(code: CodeType) -> Leaving | None:
    """A handler for a block that ``code`` leaves; None if no signal can interfere."""
    if not in_main():
        return None
    old = _handlers()
    return Leaving(old, code) if old else None
