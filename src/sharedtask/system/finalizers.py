"""What is to be done when an object is gone, out of reach of Ctrl-C.

Python runs signal handlers in the main thread between any two instructions, those of finalizers
included: what a handler raises there is printed as ignored and lost, and the rest of the finalizer
is skipped. So nothing here runs Python code in the thread in which an object dies. The interpreter
calls functions that are written in C, between whose instructions no handler runs, and a thread of
ours, in which none runs either, does the rest. Workers ignore SIGINT and stay without a thread:
there it is done at once.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sharedtask import context

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")


class Ending(weakref.ref[Any]):
    """Has ``work()`` done soon after ``owner`` is gone, once; not at the end of the program.

    Args:
        owner: What is watched; ``work`` must not refer to it.
        work: Called in a thread of ours, or by ``now()``.

    Raises:
        TypeError: The owner cannot be referred to weakly.

    Example:
        >>> ending = Ending(socket, partial(os.close, number))
        >>> ending.now()  # or when the socket is collected
    """

    __slots__ = ("_work",)

    def __new__(cls, owner: Any, work: Callable[[], object]) -> Ending:  # noqa: ARG004, PYI034
        return super().__new__(cls, owner, _when_due())

    def __init__(self, owner: Any, work: Callable[[], object]) -> None:
        super().__init__(owner, _when_due())  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # it takes both
        self._work = work
        _waiting[id(self)] = self

    def now(self) -> None:
        """Do it now; twice is once."""
        if self.cancel():
            self._work()

    def cancel(self) -> bool:
        """Have nothing done; False where it is done or cancelled already."""
        return _waiting.pop(id(self), None) is not None


# A weak reference tells of a death only as long as it lives itself.
_waiting: dict[int, Ending] = {}
_due: SimpleQueue[Ending | Callable[[], object]] = SimpleQueue()


def _when_due() -> Callable[[Any], object]:
    """What a reference calls with itself."""
    if context.a_worker():
        return Ending.now
    if not _thread.runs:
        _thread.start()
    return _due.put


def post(work: Callable[[], object]) -> Callable[[], object]:
    """What a finalizer may call, however it is interrupted: ``work()`` is done by our thread."""
    if context.a_worker():
        return work
    if not _thread.runs:
        _thread.start()
    return partial(_due.put, work)


def settle() -> None:
    """Wait, for a second at most, until what is due now is done."""
    done = threading.Event()
    post(done.set)()
    done.wait(_SETTLE_SECONDS)


_SETTLE_SECONDS = 1.0


class _Thread:
    """The thread that does what is to be done."""

    def __init__(self) -> None:
        self.runs = False
        os.register_at_fork(after_in_child=self._forget)

    def start(self) -> None:
        """Start it, where it does not run; where two threads do so at once, two serve."""
        self.runs = True
        try:
            threading.Thread(target=_serve, name="sharedtask-endings", daemon=True).start()
        except RuntimeError:  # there may be no more threads: what is due is done from time to time
            self.runs = False
            while not _due.empty():
                _serve_one()

    def _forget(self) -> None:
        """A forked child has none, until it needs one."""
        self.runs = False


def _serve() -> None:
    while True:
        _serve_one()


def _serve_one() -> None:
    """Nothing of it stays here while the thread waits for the next one."""
    due = _due.get()
    if isinstance(due, Ending):
        due.now()
    else:
        due()


_thread = _Thread()


class Weak(Generic[K, V]):
    """Values by their keys, each for as long as something else holds it."""

    def __init__(self) -> None:
        self._found: dict[K, weakref.ref[V]] = {}

    def get(self, key: K) -> V | None:
        """The value of a key, where there is one."""
        found = self._found.get(key)
        return None if found is None else found()

    def values(self) -> list[V]:
        """All that are held now."""
        found = [reference() for reference in self._found.copy().values()]
        return [value for value in found if value is not None]

    def drop(self, key: K) -> None:
        """Have no value for a key; twice is once."""
        self._found.pop(key, None)

    def clear(self) -> None:
        """Have none."""
        self._found.clear()

    def put(self, key: K, value: V) -> None:
        """Have a value for a key from now on."""
        self._found[key] = weakref.ref(value, forgetting(self._found, key))


class Known(Generic[V]):
    """What is known of objects, by their identity, for as long as they live."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], V]] = {}

    def get(self, owner: Any) -> V | None:
        """What is known of an object."""
        found = self._found.get(id(owner))
        return found[1] if found is not None and found[0]() is owner else None

    def put(self, owner: Any, value: V) -> None:
        """Know this of an object from now on; TypeError where it cannot be referred to weakly."""
        key = id(owner)
        self._found[key] = weakref.ref(owner, forgetting(self._found, key)), value

    def clear(self) -> None:
        """Know nothing of any."""
        self._found.clear()


def forgetting(table: dict[Any, Any], key: object) -> Callable[[object], Any]:
    """Called with a reference; ``pop`` takes it for what is given where there is nothing."""
    return partial(table.pop, key)
