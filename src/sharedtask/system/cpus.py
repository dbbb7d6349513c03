"""The number of CPUs that this process may use."""

from __future__ import annotations

import functools
import math
import os
from typing import TYPE_CHECKING

from .cgroups import MEMBERSHIP, MOUNT, directories

if TYPE_CHECKING:
    from pathlib import Path


def available_cpus() -> int:
    """Return how many CPUs this process may use, at least 1.

    Source:
        The smaller of the affinity mask and the CPU quota of the control group, rounded up.
    """
    quota = _quota_of_this_process()
    return max(1, _affinity() if quota is None else min(_affinity(), math.ceil(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _quota_of_this_process() -> float | None:
    # Read once: it takes a dozen system calls, and a quota rarely changes under a live process.
    return cpu_quota(MEMBERSHIP, MOUNT)


def cpu_quota(membership: Path, mount: Path) -> float | None:
    """Return the CPUs that control groups allow, None if they set no limit.

    Args:
        membership: File in the form of ``/proc/self/cgroup``.
        mount: Directory in the form of ``/sys/fs/cgroup``, version 1, 2 or hybrid.

    Source:
        ``cgroups(7)``; ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` of version 1. The tightest
        limit on the way up to the root counts.
    """
    limits = map(_limit, directories("cpu", membership, mount))
    return min((limit for limit in limits if limit is not None), default=None)


def _limit(directory: Path) -> float | None:
    try:
        if (directory / "cpu.max").exists():
            quota, period = (directory / "cpu.max").read_text("utf-8").split()
        else:
            quota = (directory / "cpu.cfs_quota_us").read_text("utf-8")
            period = (directory / "cpu.cfs_period_us").read_text("utf-8")
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
