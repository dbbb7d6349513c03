"""Maps that a task makes inside its worker process, noted for the trace of the outer call.

They run serially within the worker. Each is told with its task, its time and its number of items.
Backends are above this module, which does not know their types.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from sharedtask.system.callers import caller_since

__all__ = ["InnerCalls"]

_MOST = 32  # of a chunk; further ones are counted


class InnerCalls:
    """The observer of a chunk; see ``observing.Observer``. A trace of the task's takes its place.

    ``made`` are (task, method, place, begin and end in ns, items) of the first calls; ``more`` is
    the number of the others.
    """

    def __init__(self) -> None:
        self.made: list[tuple[str, str, str, int, int, int]] = []
        self.more = 0
        self._starts = threading.local()

    def clear(self) -> None:
        """The calls were told."""
        self.made, self.more = [], 0

    def call_begins(self) -> None:
        """See ``Observer``."""
        self._starts.at = time.monotonic()

    def traced(self, backend: Any) -> Any:
        """See ``Observer``."""
        return _Backend(backend, self)

    def evicted(self, key: int, nbytes: int) -> None:
        """See ``Observer``."""

    def worker_started(self, backend: str, pid: int) -> None:
        """See ``Observer``."""

    def worker_ended(self, pid: int, how: str, *, expected: bool) -> None:
        """See ``Observer``."""

    def begun(self) -> float:
        """When this thread began the call that opens a session now."""
        began, self._starts.at = getattr(self._starts, "at", None), None
        return began or time.monotonic()

    def note(self, call: tuple[str, str, str, int, int, int]) -> None:
        """A call has ended."""
        if len(self.made) < _MOST:
            self.made.append(call)
        else:
            self.more += 1


class _Backend:
    """A backend whose sessions are noted."""

    def __init__(self, backend: Any, calls: InnerCalls) -> None:
        self._real, self._calls = backend, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def session(self, call: Any, sink: Any) -> Any:
        return _Session(self._real.session(call, sink), call.task, self._calls)


class _Session:
    """A session that counts its items, and is noted when it is closed."""

    def __init__(self, session: Any, task: str, calls: InnerCalls) -> None:
        self._session, self._task, self._calls = session, task, calls
        self._caller = caller_since(calls.begun())
        self._items = 0
        self._is_open = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def submit(self, chunk: Any) -> None:
        self._items += len(chunk.items)
        self._session.submit(chunk)

    def close(self) -> None:
        self._session.close()
        self._end()

    def kill(self) -> None:
        self._session.kill()
        self._end()

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            who, now = self._caller, time.monotonic_ns()
            began = int(who.began * 1e9)
            self._calls.note((self._task, who.method, who.place, began, now, self._items))
