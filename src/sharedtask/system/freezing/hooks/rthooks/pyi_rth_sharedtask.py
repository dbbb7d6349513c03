"""Runs in a frozen program before its script: it is a forkserver if the library has started it."""

import os
import sys

setattr(sys, "_sharedtask_can_start", True)  # noqa: B010  type checkers know no such name
if "SHAREDTASK_START" in os.environ:
    from sharedtask.backends.process import forkserver

    forkserver.become(os.environ.pop("SHAREDTASK_START"))
