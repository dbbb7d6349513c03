"""Makes a worker a child process of its caller for ``multiprocessing``, also at its exit."""

from __future__ import annotations

import atexit
import functools
import sys
import threading
from typing import Any

from sharedtask.system.loading import when_loaded
from sharedtask.system.records import dataclass
from sharedtask.version import VERSION

from .lifeline import Lifeline


@dataclass(frozen=True, slots=True)
class Birth:
    """The caller's facts that a forked worker gets; relative paths start at ``cwd``."""

    serial: int
    caller: int
    caller_name: str
    cwd: str
    number: int  # counted from 0, unique among the workers that live
    version: str = VERSION  # of the library that the caller has imported


def refuse_other_version(birth: Birth) -> None:
    """End a worker whose caller has imported another version of the library.

    The library on disk was replaced while the program runs, and the two would misread each other.
    """
    theirs = getattr(birth, "version", "an older version")
    if theirs != VERSION:
        msg = (
            f"sharedtask was replaced by {VERSION} while this program runs, which has imported"
            f" {theirs}: start it again."
        )
        raise ImportError(msg)


def introduce(birth: Birth, tracker: int, lifeline: Lifeline) -> None:
    """Set this process's name, its parent, and the caller's resource tracker (``tracker``)."""
    when_loaded("multiprocessing.process", lambda module: _name(module, birth, lifeline))
    when_loaded("multiprocessing.resource_tracker", lambda module: _track(module, tracker))


def name_of(serial: int) -> str:
    """The ``multiprocessing`` name of a worker."""
    return f"SharedtaskWorker-{serial}"


def _name(module: Any, birth: Birth, lifeline: Lifeline) -> None:
    me = module._current_process
    me._name, me._identity = name_of(birth.serial), (birth.serial,)
    me._parent_pid = birth.caller

    class Caller(module._ParentProcess):  # type: ignore[misc]
        """The caller; its sentinel, readable when it ends, is opened on first use."""

        @functools.cached_property
        def _sentinel(self) -> int:
            return lifeline.sentinel(birth.caller)

    caller = module._parent_process = Caller(birth.caller_name, birth.caller, None)
    del caller._sentinel  # which is None, set by its class


def _track(module: Any, tracker: int) -> None:
    module._resource_tracker._fd = tracker


def caller_name() -> str:
    """The ``multiprocessing`` name of the caller's process."""
    module = sys.modules.get("multiprocessing.process")
    return "MainProcess" if module is None else str(module.current_process().name)


def run_exit_functions() -> None:
    """Run an interpreter's exit steps: join threads, then call the registered functions."""
    threading._shutdown()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
