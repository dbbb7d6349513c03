"""Servers that fork their workers in C, and do not wait for the threads of the program."""

from __future__ import annotations

import os
import sys
import warnings

from .tracebacks import level_of_user


def warn_before_fork() -> None:
    """Warn if this process of uWSGI forks its workers later: one of our threads may run then.

    Such a worker waits without end for the GIL, which that thread has in its copy of the memory.
    """
    uwsgi = sys.modules.get("uwsgi")  # a module that only the server's own processes have
    if uwsgi is None or uwsgi.worker_id():
        return
    master = uwsgi.masterpid()
    if master == os.getpid() or (not master and uwsgi.numproc > 1):
        warnings.warn(_BEFORE_FORK, RuntimeWarning, stacklevel=level_of_user())


_BEFORE_FORK = (
    "uWSGI forks its workers from this process, and does not wait for the threads that tasks need:"
    " a worker may hang. Call tasks in requests or in a function under @uwsgidecorators.postfork,"
    " or start uWSGI with --lazy-apps."
)
