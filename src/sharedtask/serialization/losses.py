"""Losses of a value in its own pickle: noted by reducers, collected by the call that encodes it.

The thread that begins a call collects the notes of the reducers, and warns the user::

    with collected() as losses:
        encode(value)
    tell(losses)
"""

from __future__ import annotations

import threading
from typing import Any

from sharedtask.system.records import dataclass

__all__ = ["Loss", "add", "collected"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A part of a value that is not sent.

    Attributes:
        part: The object that is sent without it.
        says: What happens to it: "arrives without its frames".
        cure: What the user can do, as a sentence.
        whole: It matters only if the object itself was given to the call, not inside another.
    """

    part: Any
    says: str
    cure: str
    whole: bool = False


_thread = threading.local()


def add(part: object, says: str, cure: str, *, whole: bool = False) -> None:
    """Record a loss, if this thread collects them."""
    found: list[Loss] | None = getattr(_thread, "found", None)
    if found is not None:
        found.append(Loss(part, says, cure, whole))


class collected:  # noqa: N801  used as a function, and entered for each chunk: a generator takes longer
    """Collect the losses of the values that this thread encodes within the block.

    Examples:
        >>> with collected() as losses:
        ...     add([1], "arrives without its first element", "Take it out.")
        >>> losses[0].part
        [1]
    """

    __slots__ = ("_before",)

    def __enter__(self) -> list[Loss]:
        self._before = getattr(_thread, "found", None)
        found: list[Loss] = []
        _thread.found = found
        return found

    def __exit__(self, *_: object) -> None:
        _thread.found = self._before
