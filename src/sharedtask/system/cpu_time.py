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
        ``getrusage(2)``.
    """
    if _THREAD is None:
        return time.process_time_ns(), time.thread_time_ns(), 0, 0
    used = resource.getrusage(_THREAD)
    own = int((used.ru_utime + used.ru_stime) * 1e9)
    return time.process_time_ns(), own, used.ru_nvcsw, used.ru_nivcsw
