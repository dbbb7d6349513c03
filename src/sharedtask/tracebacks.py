"""Tracebacks that begin with the user's own code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from sharedtask.errors import SharedTaskError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["level_of_user", "shorten", "user_frames"]

_OURS = ("sharedtask.", "concurrent.futures.")


def user_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the first frame that is not ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(_OURS):
        trace = trace.tb_next
    return trace


def shorten(error: BaseException) -> None:
    """Remove our frames from the beginning; ``SHAREDTASK_TRACEBACKS=full`` keeps them.

    They tell a user nothing, unless the error is our own fault. A ``raise`` without arguments that
    follows adds no frame.
    """
    trace = user_frames(error)
    is_explained = trace or isinstance(error, SharedTaskError) or "__notes__" in vars(error)
    if is_explained and os.environ.get("SHAREDTASK_TRACEBACKS") != "full":
        BaseException.with_traceback(error, trace)


def level_of_user() -> int:
    """How many calls ago the user's own code was: the ``stacklevel`` of a warning."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return level
