"""Whether this code runs inside a task: a map within a task runs serially, in its worker."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

_process = threading.Event()
_thread = threading.local()


def enter() -> None:
    """From now on this whole process is a worker."""
    _process.set()


def leave() -> None:
    """This process is a worker no longer: it may be one again, or do other things."""
    _process.clear()


def enter_thread() -> None:
    """From now on this thread is a worker."""
    _thread.worker = True


def a_worker() -> bool:
    """True where this whole process is a worker: if it dies, nobody's program does."""
    return _process.is_set()


def a_task() -> bool:
    """True in a worker."""
    return _process.is_set() or getattr(_thread, "worker", False)


@contextlib.contextmanager
def recorded() -> Generator[None]:
    """Within this block this thread runs items whose results are recorded."""
    before = a_recorded_task()
    _thread.recorded = True
    try:
        yield
    finally:
        _thread.recorded = before


def a_recorded_task() -> bool:
    """True in an item that is run by the thread which asked for it, and recorded."""
    return getattr(_thread, "recorded", False)
