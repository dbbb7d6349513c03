"""Memory available for a new segment, and the texts of errors when it is not enough."""

from __future__ import annotations

import errno
import os

from sharedtask.errors import StoreFullError
from sharedtask.system import group_memory
from sharedtask.system.group_memory import UNLIMITED
from sharedtask.system.posix import IS_POSIX, resource
from sharedtask.text import human as human  # noqa: PLC0414  others take it from here

# The kernel's error numbers for "no room" and for "no more open files".
FULL = {errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EFAULT, errno.EDQUOT}
NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}

# Reading the limits costs 50 us: checked for a segment of this size or more.
_ASK_FROM = 32 << 20


def require(size: int) -> None:
    """Refuse a segment that cannot fit, before the kernel kills a process for it.

    Raises:
        StoreFullError: Fewer than ``size`` bytes are available to this process.
    """
    if size >= _ASK_FROM and size > (room := available()):
        raise StoreFullError(no_room(size, "it does not fit in memory", room))


def available() -> int:
    """Bytes available on the machine, within the limits of its control groups."""
    return min(_meminfo("MemAvailable:"), group_memory.available())


def total() -> int:
    """Bytes that this process could use on an empty machine."""
    return min(_meminfo("MemTotal:"), group_memory.limit())


def _meminfo(key: str) -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024
    except (OSError, StopIteration, ValueError):
        return _installed()


def _installed() -> int:
    """The memory of the machine: all that a system without /proc tells."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return UNLIMITED


def _read_number(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return UNLIMITED


def no_room(size: int, reason: str, room: int) -> str:
    """The text of a StoreFullError."""
    return (
        f"{human(size)} needed, {human(room)} available ({reason}). "
        "Share a smaller part of the value, or raise the limit."
    )


def open_files() -> int:
    """How many files this process may have open; no limit where none can be asked for."""
    if not IS_POSIX:
        return UNLIMITED
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def no_descriptors() -> str:
    """The text of a StoreFullError when the process ran out of file descriptors."""
    return (
        f"this process may open {open_files()} files (RLIMIT_NOFILE) and every shared value holds"
        " one. Raise it with `ulimit -n`, or share fewer values."
    )


def has_all_mappings() -> bool:
    """True if this process has reached the kernel's limit of mappings, with memory free or not."""
    limit = _read_number("/proc/sys/vm/max_map_count")
    try:
        with open("/proc/self/maps", "rb", buffering=0) as file:
            lines = sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 16), b""))
    except OSError:
        return False
    return lines + _NEEDED_MAPPINGS > limit


# A mapping with huge pages is cut out of a larger one, which needs a few mappings briefly.
_NEEDED_MAPPINGS = 8


def no_mappings() -> str:
    """The text of a StoreFullError when the process ran out of mappings."""
    limit = _read_number("/proc/sys/vm/max_map_count")
    return (
        f"this process has {limit} memory mappings, and the kernel allows it no more "
        "(vm.max_map_count). Keep fewer arrays mapped at a time, or raise it with "
        "`sysctl vm.max_map_count=1048576`."
    )
