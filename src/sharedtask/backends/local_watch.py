"""Local views that all tasks of a call see, watched for changes.

See ``backends/worker/mutation_guard.py`` and ``backends/worker/watching.py``.

Threads that run chunks at the same time have the same views: a change in one is visible to all. The
views belong to one call, so later calls never see the change. But large arrays are the caller's own
memory: what bypasses numpy's flag stays there, and is reported.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from sharedtask.backends.worker.mutation_guard import Guard, GuardedValue
from sharedtask.backends.worker.watching import seconds_for
from sharedtask.memory.write_watch import WriteWatch
from sharedtask.outcomes import Change
from sharedtask.serialization.container_snapshot import Snapshot
from sharedtask.serialization.snapshot import Original
from sharedtask.system import critical_sections

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from sharedtask.outcomes import Batch

    from .base import Call, Chunk
    from .local_views import LocalView

# Each call makes its own snapshot, which takes as long as pickling this many containers.
_MOST_CONTAINERS = 300
# The last check of a call is taken where it takes 0.1 ms, as after a chunk of so many seconds.
_LAST_SECONDS = 5e-3


def _memory_of(views: Iterable[LocalView]) -> dict[str, WriteWatch]:
    return {view.name: WriteWatch(view.open) for view in views if view.open}


class _Crowd:
    """Tracks whether chunks run at the same time."""

    def __init__(self) -> None:
        self.lock = critical_sections.object_lock()
        self._open = 0
        self.is_crowded = False

    @contextlib.contextmanager
    def entered(self) -> Generator[None]:
        """Context of a running chunk."""
        with self.lock:
            self._open += 1
            self.is_crowded = self.is_crowded or self._open > 1
        try:
            yield
        finally:
            with self.lock:
                self._open -= 1
                self.is_crowded = self.is_crowded and self._open > 0


class StrictViews:
    """Watches views whose change is an error."""

    def __init__(self, views: Iterable[LocalView]) -> None:
        views = list(views)
        self._crowd = _Crowd()
        self._memory = _memory_of(views)
        self._guarded = {view.name: self._made(view) for view in views}

    def _made(self, view: LocalView) -> GuardedValue:
        value, memory = view.value(), self._memory.get(view.name)
        guarded = GuardedValue(
            view.name,
            value,
            Original(value, view.value),
            keep=lambda: None,
            renew=lambda: self._renew(view, guarded),
            written=bool if memory is None else memory.written,
        )
        return guarded

    def close(self) -> None:
        """End the watch of memory."""
        for memory in self._memory.values():
            memory.close()

    def _renew(self, view: LocalView, guarded: GuardedValue) -> None:
        made = self._made(view)  # without the lock, since it unpickles
        with self._crowd.lock:
            if self._guarded[view.name] is guarded:  # no other thread has done it
                self._guarded[view.name] = made

    @contextlib.contextmanager
    def guarding(self, call: Call, chunk: Chunk, batch: Batch) -> Generator[Guard]:
        """Watch the values while a chunk runs whose results are collected in ``batch``."""
        with self._crowd.entered():
            with self._crowd.lock:
                guarded = list(self._guarded.values())
            yield Guard(
                call.task,
                range(chunk.first, chunk.first + len(chunk.items)),
                call.fail_fast,
                guarded,
                position=lambda: len(batch.values),
                beside=lambda: self._crowd.is_crowded,
            )


class _WatchedView:
    """A view, its snapshot, and the watch of memory that tasks can write but should not.

    ``is_whole``: the last check covered everything.
    """

    def __init__(self, view: LocalView) -> None:
        self.view = view
        self._memory = WriteWatch(view.open) if view.open else None
        self.is_whole = True
        self.renew()

    def renew(self) -> None:
        """Decode the value again."""
        self.value = self.view.value()
        self._snapshot = Snapshot(self.value, _MOST_CONTAINERS)

    def change(self, seconds: float, *, is_first: bool) -> str | None:
        """The path to a change of the objects, after a chunk of so many seconds."""
        snapshot = self._snapshot
        may = seconds_for(snapshot.seconds, seconds, is_first=is_first, trusts=False)
        way = snapshot.change(may) if may else None
        self.is_whole = bool(may) and snapshot.is_whole
        return way

    def is_written(self, seconds: float, *, is_first: bool) -> bool:
        """Whether the memory was written, if a check is due."""
        memory = self._memory
        if memory is None:
            return False
        if not seconds_for(memory.seconds, seconds, is_first=is_first, trusts=False):
            self.is_whole = False
            return False
        return memory.written()

    def close(self) -> None:
        """End the watch of memory."""
        if self._memory is not None:
            self._memory.close()


class WatchedViews:
    """Watches views whose change is reported, if the check costs next to nothing."""

    def __init__(self, views: Iterable[LocalView]) -> None:
        self._crowd = _Crowd()
        self._checking = threading.Lock()
        self._views = list(map(_WatchedView, views))
        self._unchecked: deque[tuple[int, int]] = deque()  # first and last item
        self._has_checked = False

    @property
    def values(self) -> dict[str, Any]:
        """The watched values, by parameter name."""
        return {watched.view.name: watched.value for watched in self._views}

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Context of a running chunk."""
        return self._crowd.entered()

    def close(self) -> None:
        """End the watch of memory."""
        for watched in self._views:
            watched.close()

    def check(self, first: int, done: int, seconds: float) -> Change | None:
        """The change after a chunk, if any. Does not wait for another thread's check."""
        if not done:
            return None
        self._unchecked.append((first, first + done - 1))
        return self._check_if_free(seconds)

    def last_check(self) -> Change | None:
        """The change by chunks that were not checked, at the end of the call."""
        return self._check_if_free(_LAST_SECONDS) if self._unchecked else None

    def _check_if_free(self, seconds: float) -> Change | None:
        if not self._checking.acquire(blocking=False):
            return None
        try:
            return self._check(seconds)
        finally:
            self._checking.release()

    def _check(self, seconds: float) -> Change | None:
        items = [self._unchecked.popleft() for _ in range(len(self._unchecked))]
        if not items:  # another thread has checked meanwhile
            return None
        first, last = min(items)[0], max(end for _, end in items)
        is_first, self._has_checked = not self._has_checked, True
        found = None
        for watched in self._views:
            name, way = watched.view.name, watched.change(seconds, is_first=is_first)
            if way is not None:
                watched.renew()
                found = found or Change(name, name + way, first, last)
            if watched.is_written(seconds, is_first=is_first):
                found = found or Change(name, name, first, last, bypassed=True)
        if found is not None:  # a chunk may have begun since: ask now
            found = found._replace(beside=self._crowd.is_crowded)
        if not all(watched.is_whole for watched in self._views):
            self._unchecked.append((first, last))
        return found
