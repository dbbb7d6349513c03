"""Ctrl-C: told from a task that raises KeyboardInterrupt, and kept out of critical sections.

Python runs signal handlers in the main thread between any two instructions. Within ``shield`` a
SIGINT is noted and handled when the block ends, so that tables that several threads use are never
left half changed. A handler for another signal that raises is the user's own risk.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
else:
    import _signal  # what ``signal`` wraps: making enumerations costs it microseconds at each call

_SIGINT = int(_signal.SIGINT)
_MAIN = threading.main_thread()


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
        if threading.current_thread() is _MAIN:
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
        self._holds = threading.current_thread() is _MAIN
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
