"""Whether this code runs inside a task: a map within a task runs serially, in its worker."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator


class Place(NamedTuple):
    """Where code runs: the number of the worker, of how many of the call, and the backend."""

    number: int
    of: int
    backend: str


class _Process:
    """This process; plain attributes, for each call asks."""

    is_worker = False
    place: Place | None = None


_process = _Process()
_thread = threading.local()


def enter() -> None:
    """Mark this whole process as a worker."""
    _process.is_worker = True


def leave() -> None:
    """Mark this process as no worker, until it enters again."""
    _process.is_worker = False
    _process.place = None


def set_place(place: Place) -> None:
    """Set the place of all code in this process, which is a worker."""
    _process.place = place


def place() -> Place | None:
    """The place of the calling code; None outside of a worker."""
    return _process.place or getattr(_thread, "place", None)


@contextlib.contextmanager
def placed(place: Place) -> Generator[None]:
    """Set the place of this thread within the block."""
    before = getattr(_thread, "place", None)
    _thread.place = before or place  # code of a worker stays there
    try:
        yield
    finally:
        _thread.place = before


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
