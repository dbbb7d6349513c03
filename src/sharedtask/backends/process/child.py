"""A worker is a child of its caller to ``multiprocessing``, and ends as its children do."""

from __future__ import annotations

import atexit
import functools
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

from sharedtask.system.loading import when_loaded


@dataclass(frozen=True, slots=True)
class Birth:
    """What a worker is told when it is forked; ``cwd`` is where relative paths start."""

    serial: int
    caller: int
    caller_name: str
    cwd: str


def introduce(birth: Birth, tracker: int) -> None:
    """Give this process a name and a parent, and the caller's resource tracker (``tracker``)."""
    when_loaded("multiprocessing.process", lambda module: _name(module, birth))
    when_loaded("multiprocessing.resource_tracker", lambda module: _track(module, tracker))


def _name(module: Any, birth: Birth) -> None:
    me = module._current_process
    me._name, me._identity = f"SharedtaskWorker-{birth.serial}", (birth.serial,)
    me._parent_pid = birth.caller

    class Caller(module._ParentProcess):  # type: ignore[misc]
        """The caller. What becomes readable when it ends is opened for those who wait for that."""

        @functools.cached_property
        def _sentinel(self) -> int:
            return os.pidfd_open(birth.caller)

    caller = module._parent_process = Caller(birth.caller_name, birth.caller, None)
    del caller._sentinel  # which is None, set by its class


def _track(module: Any, tracker: int) -> None:
    module._resource_tracker._fd = tracker


def caller_name() -> str:
    """What the caller calls itself."""
    module = sys.modules.get("multiprocessing.process")
    return "MainProcess" if module is None else str(module.current_process().name)


def run_exit_functions() -> None:
    """Do what an interpreter does when it ends: wait for threads, then call what was registered."""
    threading._shutdown()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
