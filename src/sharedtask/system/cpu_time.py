"""How long cores have worked for this process, and for this thread."""

from __future__ import annotations

import time

from .posix import resource

__all__ = ["spent"]

_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)


def spent() -> tuple[int, int, int, int]:
    """Of the process and of this thread, in ns; how often it left its core; what is unknown is 0.

    The third number counts when the thread left a core to wait for something, the last when others
    wanted it.

    Source:
        ``clock_gettime(2)`` for times: those of ``getrusage(2)`` are as old as the last tick of the
        scheduler, up to 4 ms, and would give a chunk of a millisecond all or nothing.
    """
    process, thread = time.process_time_ns(), time.thread_time_ns()
    if _THREAD is None:
        return process, thread, 0, 0
    used = resource.getrusage(_THREAD)
    return process, thread, used.ru_nvcsw, used.ru_nivcsw
