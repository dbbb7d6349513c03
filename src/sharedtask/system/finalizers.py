"""Actions after an object is freed, protected from Ctrl-C.

Python runs signal handlers in the main thread between any two instructions, including those of
finalizers: an exception of the handler there is printed as ignored and lost, and the rest of the
finalizer is skipped. So nothing here runs Python code in the thread in which an object is freed.
The interpreter calls functions written in C, between whose instructions no handler runs, and a
thread of the library, in which none runs either, does the rest. Workers ignore SIGINT and need no
thread: there the action runs at once.
"""

from __future__ import annotations

import sys
import threading
import weakref
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from sharedtask import context

from . import forks
from .forks import Step

if TYPE_CHECKING:
    from collections.abc import Callable

K = TypeVar("K")
V = TypeVar("V")


class Ending(weakref.ref[Any]):
    """Runs ``work()`` once, soon after ``owner`` is freed; not at the end of the program.

    Args:
        owner: The watched object; ``work`` must not refer to it.
        work: Called in a thread of the library, or by ``now()``.

    Raises:
        TypeError: The owner cannot be referred to weakly.

    Examples:
        >>> ending = Ending(socket, partial(os.close, number))
        >>> ending.now()  # or when the socket is collected
    """

    __slots__ = ("_work",)

    def __new__(cls, owner: Any, work: Callable[[], object]) -> Ending:  # noqa: ARG004, PYI034
        return super().__new__(cls, owner, _when_due())

    def __init__(self, owner: Any, work: Callable[[], object]) -> None:
        super().__init__(owner)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # it takes one
        self._work = work
        _waiting[id(self)] = self

    def now(self) -> None:
        """Run it now; idempotent."""
        if self.cancel():
            self._work()

    def cancel(self) -> bool:
        """Cancel it; False if it was run or cancelled already."""
        return _waiting.pop(id(self), None) is not None


# A weak reference calls back only while it is alive itself.
_waiting: dict[int, Ending] = {}
_Due: TypeAlias = "Ending | Callable[[], object]"


class _Put:
    """Puts an action into the queue of this process; what it calls is a method in C."""

    __slots__ = ()
    if TYPE_CHECKING:  # an annotation `__call__: Callable[...]` ends mypy with a segmentation fault

        def __call__(self, action: _Due, /) -> object: ...


_put = _Put()


def _when_due() -> Callable[[Any], object]:
    """The callback of a reference."""
    if context.a_worker():
        return Ending.now
    if not _thread.runs:
        _thread.start()
    return _put


def post(work: Callable[[], object]) -> Callable[[], object]:
    """A callable for finalizers, safe from interrupts: our thread runs ``work()``."""
    if not _thread.runs:
        if context.a_worker():
            return work
        _thread.start()
    return partial(_put, work)


def wait_until_idle() -> None:
    """Wait, for a second at most, until all actions due now are done."""
    done = threading.Event()
    post(done.set)()
    done.wait(_IDLE_SECONDS)


_IDLE_SECONDS = 1.0


class _Thread:
    """The thread that runs the actions."""

    def __init__(self) -> None:
        self.runs = False
        self._renew_queue()
        forks.in_child(Step.THREADS, self._forget)

    def start(self) -> None:
        """Start it unless it runs; if two threads do so at once, two serve."""
        self.runs = True
        try:
            threading.Thread(target=_serve, name="sharedtask-endings", daemon=True).start()
        except RuntimeError:  # no more threads are allowed: actions run at later opportunities
            self.runs = False
            while not self.due.empty():
                _serve_one()

    def _forget(self) -> None:
        """In a forked child: no thread until one is needed, and a queue at which it can wait.

        Thread 1 puts an action into the queue. Thread 2, ours, is woken, has the lock of the queue
        and waits for the GIL. Thread 1 forks: in the child no thread releases that lock.
        """
        self.runs = False
        before = self.due
        self._renew_queue()
        while not before.empty():
            self.due.put(before.get_nowait())

    def _renew_queue(self) -> None:
        self.due: SimpleQueue[_Due] = SimpleQueue()
        # Callbacks of objects that are there already find it too.
        setattr(_Put, "__call__", staticmethod(self.due.put))  # noqa: B010  mypy refuses "="


def _serve() -> None:
    """Run the actions. One that fails is reported, and those after it run all the same."""
    while True:
        try:
            _serve_one()
        except Exception:  # noqa: BLE001  it may be anything's end
            sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]


def _serve_one() -> None:
    """Run one action and keep no reference to it while the thread waits for the next."""
    due = _thread.due.get()
    if isinstance(due, Ending):
        due.now()
    else:
        due()


_thread = _Thread()


class Weak(Generic[K, V]):
    """Values by key, each for as long as something else refers to it."""

    def __init__(self) -> None:
        self._found: dict[K, weakref.ref[V]] = {}

    def get(self, key: K) -> V | None:
        """The value of a key, if there is one."""
        found = self._found.get(key)
        return None if found is None else found()

    def values(self) -> list[V]:
        """All values that are alive."""
        found = [reference() for reference in self._found.copy().values()]
        return [value for value in found if value is not None]

    def drop(self, key: K) -> None:
        """Remove a key; idempotent."""
        self._found.pop(key, None)

    def clear(self) -> None:
        """Remove all."""
        self._found.clear()

    def put(self, key: K, value: V) -> None:
        """Set the value of a key."""
        self._found[key] = weakref.ref(value, forgetting(self._found, key))


class Known(Generic[V]):
    """Data about objects, by their identity, for as long as they live."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], V]] = {}

    def get(self, owner: Any) -> V | None:
        """The data of an object."""
        found = self._found.get(id(owner))
        return found[1] if found is not None and found[0]() is owner else None

    def put(self, owner: Any, value: V) -> None:
        """Set the data of an object; TypeError if it cannot be referred to weakly."""
        key = id(owner)
        self._found[key] = weakref.ref(owner, forgetting(self._found, key)), value

    def clear(self) -> None:
        """Remove all."""
        self._found.clear()


def forgetting(table: dict[Any, Any], key: object) -> Callable[[object], Any]:
    """A callback for a reference, which ``pop`` takes as its default value."""
    return partial(table.pop, key)
