# ruff: noqa: S101 - tests assert; their rule is their docstring
"""How long tests wait for what takes milliseconds where nothing is wrong: for longer under load."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def slowness() -> float:
    """How much longer than on an idle machine things take: processes that want a core, per core.

    In the last minute or at this moment: the average is low while a load begins.
    """
    wanting = max(os.getloadavg()[0], _running())
    return min(max(wanting / (os.cpu_count() or 1), 1.0), 8.0)


def _running() -> float:
    """How many processes want a core now, where the system tells."""
    try:
        return float(Path("/proc/loadavg").read_text("utf-8").split()[3].partition("/")[0])
    except OSError:
        return 0.0


class Deadline:
    """So many seconds from now on an idle machine, and later on a busy one."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._began = seconds, time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether it has passed, as busy as the machine is now."""
        waited = time.monotonic() - self._began
        return waited > self._seconds and waited > self._seconds * slowness()


def until(is_so: Callable[[], Any], seconds: float = 20.0, told: str = "it never was so") -> Any:
    """Come back as soon as it is so, with what it gives; fail where it is not within this time."""
    deadline = Deadline(seconds)
    while not (found := is_so()):
        assert not deadline.is_over, told
        time.sleep(0.002)
    return found
