"""The words a parameter is annotated with to say how its value travels."""

import enum
from typing import Annotated, TypeVar

__all__ = ["CopyOnWrite", "Made", "Partitioned", "Reduced", "Role", "Shared"]

T = TypeVar("T")


class Role(enum.Enum):
    """How the value of a parameter reaches the task; the value is the decorator's keyword."""

    SHARED = "shared"
    COPY_ON_WRITE = "copy_on_write"
    PARTITIONED = "partitioned"
    REDUCED = "reduced"
    LOCKED = "locked"

    @property
    def writes(self) -> bool:
        """Whether what tasks write is for the caller to see."""
        return self in (Role.PARTITIONED, Role.REDUCED, Role.LOCKED)


class Made(enum.Enum):
    """What a parameter gets that the caller does not give: it is made for each item."""

    RNG = "rng"


# Plain assignments: type checkers see the bare T, and get_type_hints finds the marker. A ``type``
# statement would hide it.
Shared = Annotated[T, Role.SHARED]
"""Read-only in the task, in shared memory, never copied per item."""

CopyOnWrite = Annotated[T, Role.COPY_ON_WRITE]
"""Scratch: the caller never sees what is written there, nor does the next item.

Writable in the task and private to its item. For results there are Partitioned and Reduced.
"""

Partitioned = Annotated[T, Role.PARTITIONED]
"""Writable in the task: the item's own block of the caller's array, and nothing else of it."""

Reduced = Annotated[T, Role.REDUCED]
"""In the task an array of its worker alone, to add to; all are combined into the caller's array."""
