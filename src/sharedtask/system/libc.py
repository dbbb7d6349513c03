"""The few system calls that Python does not wrap, with their argument types."""

from __future__ import annotations

import ctypes
import errno
import mmap as _mmap
import os
import sys
from typing import NoReturn, cast


def _load() -> ctypes.CDLL | None:
    """The C library of this process; None where the system has no such thing."""
    try:
        return ctypes.CDLL(None, use_errno=True)
    except TypeError:
        return None


_FOUND = _load()
# Its functions are called on systems that have it; on others, looking for one finds nothing.
_LIBC = cast("ctypes.CDLL", _FOUND)

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED = 1, 2, 16
MAP_ANONYMOUS: int = getattr(_mmap, "MAP_ANONYMOUS", 0)
_MAP_FAILED = ctypes.c_void_p(-1).value
# On other systems the number may mean something else.
IS_LINUX = sys.platform == "linux" and _FOUND is not None
_MADV_POPULATE_WRITE, _MADV_COLLAPSE = 23, 25
_PIECE = 1 << 20
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
PR_SET_PDEATHSIG, PR_GET_DUMPABLE = 1, 3

if _FOUND is not None:
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    _LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    _LIBC.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    _LIBC.syscall.restype = ctypes.c_long


def mmap(address: int, size: int, prot: int, flags: int, fd: int, offset: int = 0) -> int:
    """Map ``size`` bytes of ``fd`` and return the address; OSError if the kernel refuses."""
    result: int | None = _LIBC.mmap(address, size, prot, flags, fd, offset)
    if result is None or result == _MAP_FAILED:
        _raise()
    return result


def map_again(address: int, size: int, at: int) -> None:
    """Map pages of shared memory a second time, read-only; OSError if that is impossible."""
    if not hasattr(_LIBC, "mremap"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    _LIBC.mremap.restype = ctypes.c_void_p
    # With an old size of 0 the old mapping stays.
    result: int | None = _LIBC.mremap(
        ctypes.c_void_p(address),
        ctypes.c_size_t(0),
        ctypes.c_size_t(size),
        _MREMAP_MAYMOVE | _MREMAP_FIXED,
        ctypes.c_void_p(at),
    )
    if result is None or result == _MAP_FAILED:
        _raise()
    if _LIBC.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(size), PROT_READ):
        _raise()


def munmap(address: int, size: int) -> None:
    """Remove a mapping."""
    _LIBC.munmap(address, size)


def collapse(address: int, size: int) -> bool:
    """True if the kernel has made huge pages of this memory."""
    return IS_LINUX and _LIBC.madvise(address, size, _MADV_COLLAPSE) == 0


def populate_write(address: int, size: int) -> bool:
    """True if the kernel has made all pages of a private mapping this process's own."""
    return IS_LINUX and _LIBC.madvise(address, size, _MADV_POPULATE_WRITE) == 0


def memcmp(left: int, right: int, size: int) -> bool:
    """True if ``size`` bytes at both addresses are equal (the GIL is released meanwhile)."""
    if _FOUND is None:
        return _are_equal(left, right, size)
    result: int = _LIBC.memcmp(left, right, size)
    return result == 0


def _are_equal(left: int, right: int, size: int) -> bool:
    """The same by copies of pieces, where the library has no known name."""
    return all(
        ctypes.string_at(left + at, min(_PIECE, size - at))
        == ctypes.string_at(right + at, min(_PIECE, size - at))
        for at in range(0, size, _PIECE)
    )


def memmove(target: int, source: int, size: int) -> None:
    """Copy ``size`` bytes (the GIL is released meanwhile)."""
    ctypes.memmove(target, source, size)


def prctl(option: int, value: int) -> bool:
    """Set a property of this process; False if the system does not support it."""
    return hasattr(_LIBC, "prctl") and _LIBC.prctl(option, value, 0, 0, 0) == 0


def footprint(pid: int) -> int | None:
    """Private memory of a process in bytes, where macOS tells it; None elsewhere.

    Source:
        ``proc_pid_rusage`` and ``struct rusage_info_v0`` of ``sys/resource.h`` of macOS.
    """
    if not hasattr(_LIBC, "proc_pid_rusage"):
        return None
    usage = (ctypes.c_uint64 * 32)()
    failed = _LIBC.proc_pid_rusage(pid, 0, ctypes.byref(usage))
    return None if failed else int(usage[_PHYS_FOOTPRINT])


_PHYS_FOOTPRINT = 9  # the first two words are a UUID


def is_dumpable() -> bool:
    """Whether other processes of the same user may inspect this one."""
    return not hasattr(_LIBC, "prctl") or bool(_LIBC.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))


def syscall(number: int, *arguments: int) -> int:
    """A raw system call of Linux; OSError if it fails, and on other systems."""
    if not IS_LINUX:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    result: int = _LIBC.syscall(number, *arguments)
    if result < 0:
        _raise()
    return result


def _raise() -> NoReturn:
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))
