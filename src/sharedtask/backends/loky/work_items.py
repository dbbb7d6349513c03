"""Chunks in flight on loky, and the calls that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.backends.carried import work_items
from sharedtask.system.records import dataclass

from .files import PublishedFile
from .worker import FileValue

if TYPE_CHECKING:
    from .slots import Slot


@dataclass(eq=False, slots=True, kw_only=True)
class OpenCall(work_items.OpenCall):
    """A call whose values are in files."""

    def news(self, known: set[int]) -> tuple[dict[int, FileValue], tuple[Any, ...]]:
        """The values that a worker does not know yet: those in files, and small ones."""
        files: dict[int, FileValue] = {}
        for lease in self.leases.all:
            token, store = lease.publication.token, lease.publication.store
            if token not in known and isinstance(store, PublishedFile):
                files[token] = FileValue(store.path, store.layout.parts, store.layout.size)
        return files, tuple(small for small in self.small() if small[0] not in known)


@dataclass(eq=False, slots=True)
class WorkItem(work_items.WorkItem[OpenCall]):
    """A chunk for loky."""

    ref: Slot | None = None
