"""Tracebacks that begin with the user's own code."""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from sharedtask.errors import SharedTaskError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

__all__ = ["SHORTENED", "frame_of_user", "level_of_user", "shorten", "shortened", "user_frames"]

P = ParamSpec("P")
R = TypeVar("R")

_OURS = ("sharedtask.", "concurrent.futures.")

# The exceptions that get shorter tracebacks. Ctrl-C interrupts a wait, whose frames are ours too.
SHORTENED = (Exception, KeyboardInterrupt)


def user_frames(error: BaseException) -> TracebackType | None:
    """The traceback from the first frame that is not ours; None if there is none.

    A Ctrl-C is raised where a handler of ours is called, often within a wait of the standard
    library: its frames are skipped as well.
    """
    interrupts = isinstance(error, KeyboardInterrupt)
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        waits = interrupts and module.partition(".")[0] in sys.stdlib_module_names
        if not (waits or module.startswith(_OURS)):
            break
        trace = trace.tb_next
    return trace


def shorten(error: BaseException) -> None:
    """Remove our frames from the beginning; ``SHAREDTASK_TRACEBACKS=full`` keeps them.

    They tell a user nothing, unless the error is our own fault. A ``raise`` without arguments that
    follows adds no frame.
    """
    trace = user_frames(error)
    known = isinstance(error, (SharedTaskError, KeyboardInterrupt)) or "__notes__" in vars(error)
    if (trace or known) and os.environ.get("SHAREDTASK_TRACEBACKS") != "full":
        BaseException.with_traceback(error, trace)


def shortened(function: Callable[P, R]) -> Callable[P, R]:
    """A function for users whose errors begin with the user's own code."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except SHORTENED as error:
            shorten(error)
            raise

    return run


def frame_of_user() -> FrameType:
    """The nearest frame on the stack that is not ours."""
    return _nearest(sys._getframe(1))[0]


def level_of_user() -> int:
    """How many calls ago the user's own code was: the ``stacklevel`` of a warning."""
    return _nearest(sys._getframe(1))[1]


def _nearest(frame: FrameType) -> tuple[FrameType, int]:
    level = 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OURS):
        level, frame = level + 1, frame.f_back
    return frame, level
