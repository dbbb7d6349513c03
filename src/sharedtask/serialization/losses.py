"""What a value leaves behind as it is pickled: noted where that happens, told by whom it concerns.

with noted() as losses:     the thread that begins a call
    encode(value)           reducers note what their way of pickling loses
tell(losses)                names the parameter, where it is known
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

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


@contextlib.contextmanager
def noted(*, wanted: bool = True) -> Generator[list[Loss]]:
    """Collect what is lost by what this thread encodes; not ``wanted``: let nobody know."""
    found: list[Loss] = []
    before = getattr(_thread, "found", None)
    _thread.found = found if wanted else None
    try:
        yield found
    finally:
        _thread.found = before
