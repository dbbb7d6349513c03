"""The trace of a whole program, which need not know of it.

SHAREDTASK_TRACE=run.html python program.py        sharedtask trace -o run.html program.py
"""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

from sharedtask.errors import SharedTaskError

from .files import replaced
from .trace import Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["VARIABLE", "begin", "begin_from_environment", "check_path", "save"]

VARIABLE = "SHAREDTASK_TRACE"


def begin_from_environment() -> None:
    """Trace this program into the file that the variable names.

    The variable is removed: workers and other programs that this one starts are not traced.
    """
    path = os.environ.pop(VARIABLE, "")
    if not path:
        return
    try:
        begin(path)
    except (SharedTaskError, OSError) as error:  # the program runs all the same
        sys.stderr.write(f"sharedtask: {VARIABLE}={path}: {error} Nothing is traced.\n")


def begin(path: str) -> Trace:
    """Trace this program from now on, and write the file as it ends.

    Raises:
        SharedTaskError: The end of the file's name says no format.
        FileNotFoundError: There is no such folder.
    """
    target = os.path.abspath(path)  # the program may change its folder
    check_path(target)
    run = Trace().of_program()
    pid = os.getpid()

    def finish() -> None:
        if os.getpid() == pid:
            _finish(run, target)

    atexit.register(finish)
    return run


def check_path(path: str) -> None:
    """Refuse a file that could not be written, before the program runs."""
    suffix = os.path.splitext(path)[1]
    if suffix not in _WRITERS:
        known = ", ".join(_WRITERS)
        msg = f"{os.path.basename(path)}: the end of the name says the format, one of {known}."
        raise SharedTaskError(msg)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        msg = f"there is no folder {folder}."
        raise FileNotFoundError(msg)


def save(run: Trace, path: str) -> None:
    """Write a trace in the format that the end of the name says."""
    _WRITERS[os.path.splitext(path)[1]](run, path)


def _finish(run: Trace, path: str) -> None:
    """At exit, after the workers have ended."""
    try:
        run.stop()
        if run.recorded().calls:
            save(run, path)
            sys.stderr.write(f"{run}\n\nsharedtask: the trace is in {path}\n")
        else:
            sys.stderr.write(f"sharedtask: no call of a task was made; {path} is not written.\n")
    except Exception as error:  # noqa: BLE001  the program has ended well
        sys.stderr.write(f"sharedtask: the trace could not be written to {path}: {error}\n")


def _as_text(run: Trace, path: str) -> None:
    replaced(path, f"{run}\n")


_WRITERS: Mapping[str, Callable[[Trace, str], None]] = {
    ".html": Trace.to_html,
    ".json": Trace.to_chrome,
    ".txt": _as_text,
}
