"""Run a program under a seccomp filter, as containers do, in which some system calls fail.

    python tests/denied.py memfd,locks program.py

Source: ``seccomp(2)``, ``linux/filter.h``; numbers of system calls for x86-64 and aarch64.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_NUMBER, _SECOND_ARGUMENT = 0, 24  # offsets in struct seccomp_data

_AARCH64 = platform.machine() == "aarch64"
_MEMFD_CREATE, _FCNTL = (279, 25) if _AARCH64 else (319, 72)


# System calls of x86-64. What Docker's default profile denies of those that a library may use; what
# Linux 4.19 does not have: process descriptors, close_range, statx by older C libraries.
_DOCKER = (323, 438, 310, 311, 440, 312, 101, 298, 321, 272, 308, 165, 250, 248, 249, 425, 237, 238)
_NEWER = (434, 424, 436, 435, 439, 440, 448, 323, 437)
_PROFILES = {
    "docker": dict.fromkeys((*_DOCKER, 239, 279, 304, 212), errno.EPERM),
    "old": dict.fromkeys(_NEWER, errno.ENOSYS),
}


def _fail(number: int, code: int) -> list[tuple[int, int, int, int]]:
    return [
        (_LOAD, 0, 0, _NUMBER),
        (_EQUAL, 0, 1, number),
        (_RETURN, 0, 0, _FAIL | code),
    ]


def _steps(what: str) -> list[tuple[int, int, int, int]]:
    """The steps of a filter: what to do, where to jump to if so and if not, and with which word."""
    if what == "memfd":
        return _fail(_MEMFD_CREATE, errno.ENOSYS)
    if what in _PROFILES:
        return [step for number, code in _PROFILES[what].items() for step in _fail(number, code)]
    assert "locks" == what
    return [
        step
        for command in (36, 37, 38)  # F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW
        for step in (
            (_LOAD, 0, 0, _NUMBER),
            (_EQUAL, 0, 3, _FCNTL),
            (_LOAD, 0, 0, _SECOND_ARGUMENT),
            (_EQUAL, 0, 1, command),
            (_RETURN, 0, 0, _FAIL | errno.EINVAL),
        )
    ]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


def deny(*names: str) -> None:
    """Have these calls fail in this process and in all that it starts."""
    steps = [step for name in names for step in _steps(name)] + [(_RETURN, 0, 0, _ALLOW)]
    packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        sys.exit("OSError: no filter of system calls can be set here")


if __name__ == "__main__":
    deny(*sys.argv[1].split(","))
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
