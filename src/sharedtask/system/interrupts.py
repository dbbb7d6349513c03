"""Ctrl-C: raised where a call is ready for it, and distinguished from one that a task raises.

Python runs signal handlers in the main thread between any two instructions, also between those that
belong together. So a call of the library is a ``shield``: a SIGINT is noted, and its handler runs
at the next place where it may raise:

- in ``exposed``, where the user's code runs (it may raise anything at any time) and where the call
  waits: at once;
- in ``check``, within long operations;
- at the end of the call.

``Leaving`` ensures that a block with a lock is left completely. A handler for another signal that
raises is the user's own risk.
"""

from __future__ import annotations

import functools
import opcode
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType, TracebackType
else:
    import _signal  # wrapped by ``signal``, whose enumerations cost microseconds per call

P = ParamSpec("P")
R = TypeVar("R")
_SIGINT = int(_signal.SIGINT)
_get_ident = threading.get_ident


class _Handler:
    """SIGINT's handler within a shield: runs the user's handler, now or later."""

    __slots__ = ("firm", "held", "old", "pending", "raised")

    def __init__(self, old: Callable[..., Any]) -> None:
        self.old = old
        self.held = 0  # shields around the main thread since it was last exposed
        self.firm = 0  # those of them that expose nothing
        self.pending = False
        self.raised: BaseException | None = None

    def __call__(self, number: int, frame: FrameType | None) -> Any:
        # A second interrupt may interrupt the handler of the first.
        while frame is not None and frame.f_code is _HANDLING:
            frame = frame.f_back
        if self.held or (frame is not None and frame.f_code in _ON_THE_WAY):
            self.pending = True
            return None
        return self.handle(number, frame)

    def handle(self, number: int, frame: FrameType | None) -> Any:
        """Run the user's handler, also for earlier interrupts; it may raise."""
        self.pending = False
        try:
            return self.old(number, frame)
        except BaseException as error:
            self.raised = error
            raise


class _State:
    """The main thread's state of SIGINT."""

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
        handler: Any = _signal.getsignal(_SIGINT)
        while isinstance(handler, (_Handler, Leaving)):
            handler = handler.old
        if handler is not _signal.getsignal(_SIGINT):
            _signal.signal(_SIGINT, handler)


_state = _State()


def in_main() -> bool:
    """Whether this thread is the one in which Python runs signal handlers."""
    return _get_ident() == _state.main


os.register_at_fork(after_in_child=_state.enter_child)


class shield:  # noqa: N801  used as a block, like contextlib.suppress
    """Within this block SIGINT waits: its handler runs at the end, or in ``exposed``.

    No effect in threads other than the main one, where no handler runs, nor if SIGINT is ignored or
    has the default action.
    """

    __slots__ = ("_handler", "_is_first")
    _firm = 0

    # An interrupt within these two methods is noted as long as ours is SIGINT's handler. Before and
    # after that it may raise: the block has not begun yet, or is left already.

    def __enter__(self) -> Self:
        self._handler: _Handler | None = None
        self._is_first = False
        if _get_ident() != _state.main:
            return self
        handler = _state.handler
        if handler is None:
            old = _signal.getsignal(_SIGINT)
            if not callable(old):
                return self
            handler = _Handler(old)
            try:
                _signal.signal(_SIGINT, handler)
            except ValueError:  # not the main interpreter
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
            _restore(handler)
        if handler.held:
            return
        if handler.pending:
            handler.handle(_SIGINT, sys._getframe())
        if isinstance(error, _Passing):
            error.reraise()


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


class _Passing(BaseException):
    """Carries an error of SIGINT's handler through a call that catches errors."""

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

    Its result is lost if an interrupt comes at its end.
    """
    handler = _state.handler
    if handler is None or handler.firm or _get_ident() != _state.main:
        return function(*args)
    held = handler.held
    handler.held = 0
    try:
        if handler.pending:
            handler.handle(_SIGINT, sys._getframe())
        return function(*args)
    except Exception as error:
        if error is handler.raised:
            raise _Passing(error) from None
        raise
    finally:
        handler.held = held


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


def is_real(error: BaseException) -> bool:
    """True if SIGINT's handler raised this in the current call of the main thread.

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


def _restore(handler: _Handler) -> None:
    if _signal.getsignal(_SIGINT) is handler:
        _signal.signal(_SIGINT, handler.old)


_HANDLING = _Handler.__call__.__code__
_ON_THE_WAY = {shield.__enter__.__code__, shield.__exit__.__code__, _restore.__code__}


# --------------------------------------------------------------------------- leaving a block


class Leaving:
    """SIGINT's handler while the main thread is in a block, so that it is left completely.

    Python runs the handler between two instructions, and before the first of ``__exit__``, where
    ``__exit__`` cannot have taken measures yet. The frame shows that this is the place: ``code`` is
    the method's. From then on the block is ``busy``, until ``remove``.
    """

    __slots__ = ("_code", "_over", "_pending", "busy", "old")

    def __init__(self, old: Callable[..., Any], code: CodeType) -> None:
        self.old, self._code = old, code
        self.busy = self._over = self._pending = False

    def __call__(self, number: int, frame: Any) -> Any:
        # A second interrupt may interrupt the handler of the first.
        while frame is not None and frame.f_code is _CALL:
            frame = frame.f_back
        leaves = self.busy or (frame is not None and frame.f_code is self._code)
        if leaves and not self._over:
            self._pending = True
            return None
        return self.old(number, frame)

    def install(self) -> None:
        """Install this as SIGINT's handler."""
        _signal.signal(_SIGINT, self)

    def remove(self) -> None:
        """Restore the previous handler, and pass on interrupts that came meanwhile."""
        current: Any = _signal.getsignal(_SIGINT)
        if current is self:
            _signal.signal(_SIGINT, self.old)
        # It may stay for a while below another that is removed later. Set only here: before, an
        # interrupt would be raised here, and the handler would never be removed.
        self._over = True
        if self._pending:
            self.old(_SIGINT, None)


_CALL = Leaving.__call__.__code__


def leaving(code: CodeType) -> Leaving | None:
    """A handler for a block that ``code`` leaves; None if SIGINT cannot interfere."""
    if not in_main():
        return None
    handler: Any = _signal.getsignal(_SIGINT)
    return Leaving(handler, code) if callable(handler) else None
