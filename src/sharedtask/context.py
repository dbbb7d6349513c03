"""Whether this code runs inside a task: a map within a task runs serially, in its worker."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


class _Process:
    """This process; a plain attribute, for each call asks."""

    is_worker = False


_process = _Process()
_thread = threading.local()


def enter() -> None:
    """Mark this whole process as a worker."""
    _process.is_worker = True


def leave() -> None:
    """Mark this process as no worker, until it enters again."""
    _process.is_worker = False


def enter_thread() -> None:
    """Mark this thread as a worker."""
    _thread.worker = True


def a_worker() -> bool:
    """True if this whole process is a worker, so that its death ends no user's program."""
    return _process.is_worker


def a_task() -> bool:
    """True in a worker."""
    return _process.is_worker or getattr(_thread, "worker", False)


@contextlib.contextmanager
def recorded() -> Generator[None]:
    """Mark this thread within the block: it runs items whose results are recorded."""
    before = a_recorded_task()
    _thread.recorded = True
    try:
        yield
    finally:
        _thread.recorded = before


def a_recorded_task() -> bool:
    """True in a recorded item that the calling thread runs itself."""
    return getattr(_thread, "recorded", False)
