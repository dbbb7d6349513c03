"""Chunks in flight on Ray, and the calls that they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.backends.carried import work_items
from sharedtask.system.records import dataclass, field

from .store import RayStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.memory.payload import Payload

    from .runtime import Runtime


@dataclass(eq=False, slots=True, kw_only=True)
class OpenCall(work_items.OpenCall):
    """A call, and what its chunks need of Ray.

    ``again`` encodes a value again if its object was lost.
    """

    runtime: Runtime
    remote: Any
    again: dict[int, Callable[[], Payload]]
    alive_nodes: Callable[[], frozenset[str]]

    @property
    def is_alive(self) -> bool:
        return self.runtime.is_alive

    def close(self) -> None:
        work_items.OpenCall.close(self)
        self.again = {}

    def stores(self) -> dict[int, Any]:
        """The values that are passed as arguments, by token."""
        return {
            lease.publication.token: lease.publication.store
            for lease in self.leases.all
            if isinstance(lease.publication.store, RayStore)
        }


@dataclass(eq=False, slots=True)
class WorkItem(work_items.WorkItem[OpenCall]):
    """A chunk for Ray; its ``ref`` is kept until the answer has come, else Ray ends the process."""

    arguments: dict[int, Any] = field(default_factory=dict)  # references of the shared values
    nodes: frozenset[str] = frozenset()  # the nodes that were alive when it was given to Ray
    brings_values: bool = False  # though workers may have them

    def with_values(self) -> WorkItem:
        """The same chunk, for a worker that lacks a value."""
        return WorkItem(
            self.call,
            self.chunk,
            self.mode,
            self.envelope,
            failures=self.failures,
            brings_values=True,
        )
