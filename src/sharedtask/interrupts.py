"""Telling Ctrl-C from a task that raises KeyboardInterrupt."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Count:
    """How many SIGINTs arrived while somebody cared."""

    def __init__(self) -> None:
        self.seen = 0


_count = _Count()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Within this block ``count()`` rises when SIGINT arrives; what it does stays the same."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.getsignal(signal.SIGINT)
    if not callable(old) or getattr(old, "_sharedtask_", False):
        yield
        return
    try:
        signal.signal(signal.SIGINT, _counting(old))
    except ValueError:  # not in the main interpreter
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def count() -> int:
    """SIGINTs noticed so far."""
    return _count.seen


def is_real(error: BaseException, before: int) -> bool:
    """True where ``error`` is a Ctrl-C, ``before`` being the count when the work began."""
    return isinstance(error, KeyboardInterrupt) and _count.seen != before


def _counting(old: Callable[..., Any]) -> Callable[..., Any]:
    def handler(number: int, frame: Any) -> Any:
        _count.seen += 1
        return old(number, frame)

    handler._sharedtask_ = True  # type: ignore[attr-defined]  # noqa: SLF001
    return handler
