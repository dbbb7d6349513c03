"""What this machine is and can do, and what a process and its children occupy."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import mmap
import os
import platform
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HUGE = 2 << 20
MAP_FIXED = 0x10
MADV_COLLAPSE = 25
SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
PACKAGES = (
    *("sharedtask", "numpy", "pydantic", "wrapt", "joblib", "mpire", "ray", "cloudpickle"),
    *("pandas", "polars", "pyarrow", "scipy", "scikit-learn", "torch"),
)


def facts() -> dict[str, Any]:
    """The machine and the versions that stand beside every figure."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE / 2**30, 1),
        "huge_pages_collapse": can_collapse(),
        "write_tracking": can_track_writes(),
        "versions": dict(versions()),
    }


def versions() -> Iterator[tuple[str, str]]:
    """Each package's version, where it is installed."""
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield package, importlib.metadata.version(package)


def can_collapse() -> bool:
    """True when MADV_COLLAPSE makes a huge page of 2 MiB of a memfd, mapped at a 2 MiB boundary."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    fd = os.memfd_create("probe", os.MFD_CLOEXEC)
    os.ftruncate(fd, HUGE)
    reserved = libc.mmap(None, 2 * HUGE, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    at = -(-reserved // HUGE) * HUGE
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    libc.mmap(at, HUGE, writable, mmap.MAP_SHARED | MAP_FIXED, fd, 0)
    ctypes.memset(at, 1, 1)
    collapsed: bool = libc.madvise(at, HUGE, MADV_COLLAPSE) == 0
    libc.munmap(reserved, 2 * HUGE)
    os.close(fd)
    return collapsed


def can_track_writes() -> bool:
    """True when userfaultfd grants asynchronous write-protection (Linux 6.7) to this process."""
    number = SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return False
    fd = ctypes.CDLL(None).syscall(number, os.O_CLOEXEC | 1)
    if fd < 0:
        return False
    api, wp_unpopulated, wp_async = 0xC018AA3F, 1 << 13, 1 << 15
    try:
        fcntl.ioctl(fd, api, bytearray(struct.pack("3Q", 0xAA, wp_async | wp_unpopulated, 0)))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def warm_up(mib: int) -> None:
    """Touch ``mib`` MiB in a process of its own, and give them back at once.

    A virtual machine's memory costs about 5 ms per 2 MiB at its first touch, whoever touches it,
    and again some seconds after it was freed, once the guest has reported it free to its host.
    That belongs to no contestant.
    """
    if mib == 0:
        return
    pages = f"m = mmap.mmap(-1, {mib} << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)"
    touch = "m.madvise(mmap.MADV_HUGEPAGE); m[::4096] = bytes(len(m) >> 12)"
    subprocess.run([sys.executable, "-c", f"import mmap; {pages}; {touch}"], check=True)


def family_of(pid: int) -> list[int]:
    """``pid`` and every living descendant of it."""
    parents = dict(living())
    family = [pid]
    for member in family:  # grows while it is walked: children, then their children
        family.extend(child for child, parent in parents.items() if parent == member)
    return family


def living() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            after_name = (entry / "stat").read_text().rpartition(")")[2]
            yield int(entry.name), int(after_name.split()[1])


def proportional_bytes(pid: int) -> int:
    """The proportional set size of ``pid`` and its descendants: a shared page counts once."""
    total = 0
    for member in family_of(pid):
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text()
            line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
            total += int(line.split()[1]) << 10
    return total
