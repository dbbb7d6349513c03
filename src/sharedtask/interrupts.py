"""Ctrl-C: told from a task that raises KeyboardInterrupt, and kept out of critical sections.

Python runs signal handlers in the main thread between any two instructions. Within ``shield`` a
SIGINT is noted and handled when the block ends, so that tables that several threads use are never
left half changed; ``Leaving`` sees to it that a block with a lock is left in full. A handler for
another signal that raises is the user's own risk.
"""

from __future__ import annotations

import opcode
import os
import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator
    from types import CodeType, TracebackType
else:
    import _signal  # what ``signal`` wraps: making enumerations costs it microseconds at each call

_SIGINT = int(_signal.SIGINT)
_main = threading.main_thread().ident


def _note_main() -> None:
    """In a forked child: the thread that forked is its main one.

    What the parent's main thread was in at that moment, no thread of the child will ever leave.
    """
    global _main  # noqa: PLW0603  a process has one
    if in_main():
        return
    _main = threading.get_ident()
    _state.holding, _state.pending = 0, False
    handler: Any = _signal.getsignal(_SIGINT)
    ours = handler
    while isinstance(handler, (_Handler, Leaving)):
        handler = handler.old
    if handler is not ours:
        _signal.signal(_SIGINT, handler)


os.register_at_fork(after_in_child=_note_main)


def in_main() -> bool:
    """Whether this thread is the one in which Python runs signal handlers."""
    return threading.get_ident() == _main


class _State:
    """What the main thread knows of SIGINT."""

    def __init__(self) -> None:
        self.seen = 0
        self.holding = 0
        self.pending = False


_state = _State()


class noticed:  # noqa: N801  used as a block, like contextlib.suppress
    """Within this block ``count()`` rises when SIGINT arrives; what it does stays the same.

    In threads other than the main one, where no handler runs, it does nothing.
    """

    __slots__ = ("_old",)

    def __enter__(self) -> Self:
        self._old: Callable[..., Any] | None = None
        if in_main():
            old = _signal.getsignal(_SIGINT)
            if callable(old) and type(old) is not _Handler and _installed(_Handler(old)):
                self._old = old
        return self

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            _signal.signal(_SIGINT, self._old)


class shield(noticed):  # noqa: N801  see above
    """Within this block SIGINT waits: its handler runs at the end."""

    __slots__ = ("_holds",)

    def __enter__(self) -> Self:
        super().__enter__()
        self._holds = in_main()
        _state.holding += self._holds
        return self

    def __exit__(self, *_: object) -> None:
        if not self._holds:
            return
        _state.holding -= 1
        super().__exit__()
        if _state.pending and not _state.holding:
            _state.pending = False
            _handle_now()


def count() -> int:
    """SIGINTs noticed so far."""
    return _state.seen


def is_real(error: BaseException, before: int) -> bool:
    """True where ``error`` is a Ctrl-C, ``before`` being the count when the work began."""
    return isinstance(error, KeyboardInterrupt) and _state.seen != before


def came_from_outside(error: BaseException, before: int) -> bool:
    """True where ``error`` is a Ctrl-C, or was raised by the handler of a signal.

    Where nothing counts, a KeyboardInterrupt in the main thread is a Ctrl-C unless a ``raise`` in
    Python is where it comes from: the usual handler is C code.
    """
    if not in_main():
        return False
    if is_real(error, before) or _raised_by_handler(error):
        return True
    counts = isinstance(_signal.getsignal(_SIGINT), _Handler)
    return isinstance(error, KeyboardInterrupt) and not counts and not _raised_by_python(error)


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


class _Handler:
    """Counts, then does what the user's handler does."""

    def __init__(self, old: Callable[..., Any]) -> None:
        self.old = old

    def __call__(self, number: int, frame: Any) -> Any:
        _state.seen += 1
        if _state.holding:
            _state.pending = True
            return None
        return self.old(number, frame)


def _installed(handler: _Handler) -> bool:
    try:
        _signal.signal(_SIGINT, handler)
    except ValueError:  # not the main interpreter
        return False
    return True


def _handle_now() -> None:
    handler = _signal.getsignal(_SIGINT)
    old = handler.old if isinstance(handler, _Handler) else handler
    if callable(old):
        old(_SIGINT, None)


# --------------------------------------------------------------------------- leaving a block


class Leaving:
    """SIGINT's handler while the main thread is in a block, so that leaving is done in full.

    Python runs the handler between two instructions, and before the first of ``__exit__``, where
    ``__exit__`` cannot have done anything about it yet. The frame tells that this is the place:
    ``code`` is the method's. From then on it is ``busy``, until ``remove``.
    """

    __slots__ = ("_code", "_over", "_pending", "busy", "old")

    def __init__(self, old: Callable[..., Any], code: CodeType) -> None:
        self.old, self._code = old, code
        self.busy = self._over = self._pending = False

    def __call__(self, number: int, frame: Any) -> Any:
        # A second interrupt may find the handler of the first at work.
        while frame is not None and frame.f_code is _CALL:
            frame = frame.f_back
        leaves = self.busy or (frame is not None and frame.f_code is self._code)
        if leaves and not self._over:
            self._pending = True
            return None
        return self.old(number, frame)

    def install(self) -> None:
        """SIGINT is asked here first."""
        _signal.signal(_SIGINT, self)

    def remove(self) -> None:
        """The handler that was there is back, and hears of what came meanwhile."""
        current: Any = _signal.getsignal(_SIGINT)
        if current is self:
            _signal.signal(_SIGINT, self.old)
        # It may stay for a while below another that is removed later. Not said before: an interrupt
        # would be raised here, and the handler would stay for ever.
        self._over = True
        if self._pending:
            self.old(_SIGINT, None)


_CALL = Leaving.__call__.__code__


def leaving(code: CodeType) -> Leaving | None:
    """A handler for a block that ``code`` leaves; None where SIGINT cannot get in the way."""
    if not in_main():
        return None
    handler: Any = _signal.getsignal(_SIGINT)
    return Leaving(handler, code) if callable(handler) else None
