"""Tracebacks that begin with the user's own code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sharedtask.errors import SharedTaskError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["shorten", "user_frames"]

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
