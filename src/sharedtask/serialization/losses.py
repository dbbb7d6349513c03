"""What a value leaves behind as it is pickled: noted where that happens, told by whom it concerns.

The thread that begins a call collects what reducers note of it, and tells the user::

    with noted() as losses:
        encode(value)
    tell(losses)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Loss", "note", "noted"]


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that stays behind.

    Attributes:
        part: The object that loses it.
        says: What happens to it: "arrives without its frames".
        cure: What to do, as a sentence.
        whole: It matters only where the object is itself what the call was given.
    """

    part: Any
    says: str
    cure: str
    whole: bool = False


_thread = threading.local()


def note(part: object, says: str, cure: str, *, whole: bool = False) -> None:
    """Note a loss, if anybody in this thread wants to know."""
    found: list[Loss] | None = getattr(_thread, "found", None)
    if found is not None:
        found.append(Loss(part, says, cure, whole))


class noted:  # noqa: N801  used as a function, and entered for each chunk: a generator takes longer
    """Collect what is lost by what this thread encodes within the block.

    Example:
        >>> with noted() as losses:
        ...     note([1], "arrives without its first element", "Take it out.")
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
