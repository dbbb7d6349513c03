"""The annotations of parameters that define how their values are sent."""

import enum
from typing import Annotated, TypeVar

__all__ = ["CopyOnWrite", "Made", "Partitioned", "PerWorker", "Reduced", "Role", "Shared"]

T = TypeVar("T")


class Role(enum.Enum):
    """How the value of a parameter reaches the task; the member's value is the keyword."""

    SHARED = "shared"
    COPY_ON_WRITE = "copy_on_write"
    PARTITIONED = "partitioned"
    REDUCED = "reduced"
    LOCKED = "locked"
    PER_WORKER = "per_worker"

    writes: bool
    """Whether the caller sees what tasks write."""

    def __init__(self, keyword: str) -> None:
        self.writes = keyword in {"partitioned", "reduced", "locked"}

    @property
    def word(self) -> str:
        """The annotation."""
        return "".join(part.capitalize() for part in self.value.split("_"))


class Made(enum.Enum):
    """Arguments that the caller does not pass: they are created for each item."""

    RNG = "rng"


# Plain assignments: type checkers see the bare T, and get_type_hints finds the marker. A ``type``
# statement would hide it.
Shared = Annotated[T, Role.SHARED]
"""Read-only in the task, in shared memory, never copied per item."""

CopyOnWrite = Annotated[T, Role.COPY_ON_WRITE]
"""Scratch memory: its writes are invisible to the caller and to the next item.

Writable in the task and private to its item. For results use Partitioned and Reduced.
"""

Partitioned = Annotated[T, Role.PARTITIONED]
"""Writable in the task: the item's own block of the caller's array, and no other part."""

Reduced = Annotated[T, Role.REDUCED]
"""In the task an array of its worker alone, to add to; all are combined into the caller's array."""

PerWorker = Annotated[T, Role.PER_WORKER]
"""In the task a value that its worker has made for itself and keeps; see ``per_worker``."""
