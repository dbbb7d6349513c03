"""Who makes a call: the line of the user's code, the method, the thread. Read from the stack."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from .records import dataclass

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["Caller", "caller_since"]

_OURS = "sharedtask."
# The generators that run in the caller's loop.
_METHODS = {"in_order": "imap", "as_completed": "imap_unordered"}
_LIBRARIES = {"sharedtask.joblib.backend": "joblib", "sharedtask.task.executor": "executor"}
_WRAPS = "sharedtask.system.tracebacks"


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller; ``began`` is when it made the call."""

    began: float
    method: str
    place: str
    thread: str


def caller_since(began: float) -> Caller:
    """The caller of the library, on this stack."""
    frame: FrameType | None = sys._getframe(1)
    outermost: FrameType | None = None
    homes: set[str] = set()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        home = frame.f_globals["__name__"]
        homes.add(home)
        if home != _WRAPS:
            outermost = frame
        frame = frame.f_back
    place = ""
    if frame is not None:
        place = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
    method = _method(homes, "" if outermost is None else outermost.f_code.co_name)
    return Caller(began, method, place, threading.current_thread().name)


def _method(homes: set[str], outermost: str) -> str:
    for home, method in _LIBRARIES.items():
        if home in homes:
            return method
    return _METHODS.get(outermost, outermost)
