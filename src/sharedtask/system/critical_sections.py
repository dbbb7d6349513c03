"""The library's locks, as seen by code that interrupts their holder, and by forked children.

A signal handler runs between any two instructions of the main thread, and a garbage collection runs
finalizers in any thread. Either may call the library while its own thread holds a lock of the
library and has changed a table halfway. So the locks are reentrant, which prevents a deadlock with
itself, and ``is_held()`` tells such a call not to use the tables: it runs serially.

A fork copies locks that other threads hold, but not the threads: in the child all are reset.
"""

from __future__ import annotations

import functools
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, TypeVar

from . import forks
from .forks import Step

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable

T = TypeVar("T")

# The class of ``threading.RLock()``. ``_is_owned`` and ``_at_fork_reinit`` are what the standard
# library itself uses in ``threading.Condition``.
Lock = type(threading.RLock())

_tables: list[weakref.ref[Any]] = []  # locks of tables of the whole process
_entered: list[Any] = []  # locks of single objects, while a thread changes one
# By identity. A WeakSet would run Python code when a lock is freed, which Ctrl-C could interrupt.
_all: dict[int, weakref.ref[Any]] = {}


def reserve_stack(frames: int = 60) -> None:
    """Raise the RecursionError here rather than within a change that is about to begin.

    Raises:
        RecursionError: There is no room for so many more calls on this thread's stack.
    """
    try:
        sys._getframe(max(sys.getrecursionlimit() - frames, 0))
    except ValueError:  # the stack is not as deep as that
        return
    msg = f"maximum recursion depth exceeded: the library needs room for {frames} more calls"
    raise RecursionError(msg)


def first_of(found: deque[T]) -> T | None:
    """The first of a deque, taken out; None if another thread that empties it was faster."""
    try:
        return found.popleft()
    except IndexError:
        return None


def table_lock() -> Any:
    """A lock of a table that the whole process uses; known to ``is_held``."""
    lock = object_lock()
    _tables[:] = [known for known in _tables if known() is not None]
    _tables.append(weakref.ref(lock))
    return lock


def object_lock() -> Any:
    """A lock of a single object; known to ``is_held`` between ``enter`` and ``leave``."""
    lock = Lock()
    _all[id(lock)] = weakref.ref(lock, functools.partial(_all.pop, id(lock)))
    return lock


def enter(lock: Any) -> None:
    """Called before a thread takes the lock of a single object to change its state."""
    _entered.append(lock)


def leave(lock: Any) -> None:
    """Called after the lock was released."""
    _entered.remove(lock)


def is_held() -> bool:
    """Whether this thread holds a lock of the library: it was interrupted in a critical section."""
    for reference in _tables:
        lock = reference()
        if lock is not None and lock._is_owned():
            return True
    return bool(_entered) and _is_any_owned(tuple(_entered))


def _is_any_owned(locks: Iterable[Any]) -> bool:
    return any(lock._is_owned() for lock in locks)


def _reset() -> None:
    for reference in list(_all.values()):
        lock = reference()
        if lock is not None:
            lock._at_fork_reinit()
    _entered.clear()


forks.in_child(Step.LOCKS, _reset)
