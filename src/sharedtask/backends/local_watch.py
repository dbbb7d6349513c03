"""Local views that all tasks of a call see, watched for changes.

See ``worker/mutation_guard.py`` and ``worker/watching.py``.

Threads that run chunks at the same time have the same views: a change in one is visible to all. The
views belong to one call, so later calls never see the change.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from sharedtask.outcomes import Change
from sharedtask.serialization.container_snapshot import Snapshot
from sharedtask.serialization.snapshot import Original
from sharedtask.system import critical_sections
from sharedtask.worker.mutation_guard import Guard, Lent
from sharedtask.worker.watching import seconds_for

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from sharedtask.outcomes import Batch

    from .base import Call, Chunk
    from .local_views import Twin

# Each call makes its own snapshot, which takes as long as pickling this many containers.
_MOST_CONTAINERS = 300


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


class StrictTwins:
    """Watches views whose change is an error."""

    def __init__(self, twins: Iterable[Twin]) -> None:
        self._crowd = _Crowd()
        self._lent = {twin.name: self._made(twin) for twin in twins}

    def _made(self, twin: Twin) -> Lent:
        value = twin.value()
        lent = Lent(
            twin.name,
            value,
            Original(value, twin.value),
            keep=lambda: None,
            renew=lambda: self._renew(twin, lent),
        )
        return lent

    def _renew(self, twin: Twin, lent: Lent) -> None:
        made = self._made(twin)  # without the lock, since it unpickles
        with self._crowd.lock:
            if self._lent[twin.name] is lent:  # no other thread has done it
                self._lent[twin.name] = made

    @contextlib.contextmanager
    def guarding(self, call: Call, chunk: Chunk, batch: Batch) -> Generator[Guard]:
        """Watch the values while a chunk runs whose results are collected in ``batch``."""
        with self._crowd.entered():
            with self._crowd.lock:
                lent = list(self._lent.values())
            yield Guard(
                call.task,
                range(chunk.first, chunk.first + len(chunk.items)),
                call.stops,
                lent,
                position=lambda: len(batch.values),
                beside=lambda: self._crowd.is_crowded,
            )


class WatchedTwins:
    """Watches views whose change is reported, if the check costs next to nothing."""

    def __init__(self, twins: Iterable[Twin]) -> None:
        self._crowd = _Crowd()
        self._looking = threading.Lock()
        self._twins = list(twins)
        self.values = {twin.name: twin.value() for twin in self._twins}
        self._snapshots = {name: self._taken(value) for name, value in self.values.items()}
        self._since: range | None = None
        self._has_looked = False

    @staticmethod
    def _taken(value: Any) -> Snapshot:
        return Snapshot(value, _MOST_CONTAINERS)

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """Context of a running chunk."""
        return self._crowd.entered()

    def look(self, first: int, done: int, seconds: float) -> Change | None:
        """The change after a chunk, if any. Does not wait for another thread's check."""
        if not done or not self._looking.acquire(blocking=False):
            return None
        try:
            return self._look(range(first, first + done), seconds)
        finally:
            self._looking.release()

    def _look(self, items: range, seconds: float) -> Change | None:
        if self._since is not None:
            items = range(min(items[0], self._since[0]), max(items[-1], self._since[-1]) + 1)
        is_first, self._has_looked = not self._has_looked, True
        self._since, found = None, None
        for twin in self._twins:
            snapshot = self._snapshots[twin.name]
            may = seconds_for(snapshot, seconds, is_first=is_first, trusts=False)
            way = snapshot.change(may) if may else None
            if way is not None:
                self._renew(twin)
                beside, path = self._crowd.is_crowded, twin.name + way
                found = found or Change(twin.name, path, items[0], items[-1], beside)
            elif not (may and snapshot.is_whole):
                self._since = items
        return found

    def _renew(self, twin: Twin) -> None:
        self.values[twin.name] = value = twin.value()
        self._snapshots[twin.name] = self._taken(value)
