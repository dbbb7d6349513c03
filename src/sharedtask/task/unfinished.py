"""What executors have begun, and is finished at the end of the interpreter."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Protocol

from sharedtask.errors import InitializerError
from sharedtask.system import ending
from sharedtask.system.ending import Step
from sharedtask.system.finalizers import Weak

if TYPE_CHECKING:
    from .futures import TaskFuture

_LOOK_SECONDS = 0.001


class Mapping(Protocol):
    """A map of an executor that goes on by itself."""

    def wait(self) -> None:
        """Wait for its end."""

    def end(self, error: Exception) -> None:
        """End it; who asks for further results gets the error."""


class Unfinished:
    """The futures and maps of one executor.

    Each of them refers to this, not the other way round: so results that are dropped are freed,
    and what a dropped executor has begun is still found here.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.is_shut = False
        self.broken: InitializerError | None = None
        self._futures: Weak[int, TaskFuture[Any]] = Weak()
        self._maps: Weak[int, Mapping] = Weak()
        self._entering: list[int] = []  # threads that are about to begin a call
        _all.put(id(self), self)

    def enter(self) -> None:
        """A call is about to begin: ``leave`` follows.

        Raises:
            RuntimeError: The executor, or the interpreter, is shut down.
            InitializerError: The executor is broken.
        """
        if self.broken is not None:
            raise again(self.broken)
        self._entering.append(threading.get_ident())  # before the look: see ``wait``
        if self.is_shut or _ended:
            self.leave()
            what = "shutdown" if self.is_shut else "interpreter shutdown"
            raise RuntimeError(f"cannot schedule new futures after {what}")

    def leave(self) -> None:
        """The call was begun, or could not be."""
        self._entering.remove(threading.get_ident())

    def add(self, future: TaskFuture[Any]) -> None:
        """A call was begun."""
        future._kept = self
        self._futures.put(id(future), future)

    def add_map(self, mapping: Mapping) -> None:
        """A map was begun, which refers to this."""
        self._maps.put(id(mapping), mapping)

    def cancel(self) -> None:
        """Cancel what has not begun."""
        for mapping in self._maps.values():
            mapping.end(CancelledError())
        for future in self._futures.values():
            future.cancel()

    def break_off(self, error: InitializerError) -> None:
        """The initializer has failed: what has no outcome gets the error."""
        if self.broken is None:
            self.broken = error
            for mapping in self._maps.values():
                mapping.end(again(error))

    def wait(self) -> None:
        """Wait for all that has begun; in a forked child that is the parent's."""
        if self.pid != os.getpid():
            return
        while self._enters_elsewhere():
            time.sleep(_LOOK_SECONDS)
        for future in self._futures.values():
            future.settle()
        for mapping in self._maps.values():
            mapping.wait()

    def _enters_elsewhere(self) -> bool:
        """Whether another thread begins a call, which it may have done before the shutdown."""
        here = threading.get_ident()
        return any(thread != here for thread in tuple(self._entering))


def again(error: InitializerError) -> InitializerError:
    """The same error, to be raised in another place."""
    made = InitializerError(*error.args)
    made.__cause__ = error.__cause__
    return made


_all: Weak[int, Unfinished] = Weak()
_ended: list[bool] = []


def _finish() -> None:
    _ended.append(True)
    for each in _all.values():
        each.wait()


# As the executors of the standard library do.
ending.before_threads(Step.UNFINISHED, _finish)
