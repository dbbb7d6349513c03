"""Files without a name: the memory of segments if there is no memfd."""

from __future__ import annotations

import errno
import os
import stat

from sharedtask.errors import SharedTaskError
from sharedtask.system import posix
from sharedtask.system.loading import undisturbed

from . import capacity

_RAM_DISK = "/dev/shm"  # noqa: S108  it is checked, see _require_safe
_O_PATH = getattr(os, "O_PATH", os.O_RDONLY)
_BLOCK = 1 << 20
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | posix.O_NOFOLLOW | posix.O_CLOEXEC


def create(prefix: str) -> int:
    """A descriptor of a new private file, whose name is removed already.

    Raises:
        SharedTaskError: The folder cannot be used, or cannot be trusted.
        OSError: There is no room, or no descriptor.
    """
    where = folder()
    try:
        # All operations are relative to the folder that was checked.
        opened = os.open(where, _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _require_safe(where, os.fstat(opened).st_mode)
            return _create(where, opened, prefix)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno in capacity.FULL | capacity.NO_DESCRIPTORS:
            raise
        raise _refused(where, f"{error.strerror}. {_CURE}") from None


def folder() -> str:
    """The folder of the files: the system's RAM disk, or where temporary files are made."""
    named = os.environ.get("SHAREDTASK_STORE_DIR")
    if named is not None:
        return named
    if os.access(_RAM_DISK, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        return _RAM_DISK
    return os.environ.get("TMPDIR") or "/tmp"  # noqa: S108  it is checked, see _require_safe


def reserve(fd: int, size: int) -> None:
    """Give an empty file so many bytes that are zero and have their place on the disk.

    Without a place, a full disk would be a SIGBUS at the first write into its mapping.

    Raises:
        OSError: There is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    for start in range(0, size, _BLOCK):
        length = min(_BLOCK, size - start)
        if os.pwrite(fd, bytes(length), start) < length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def room() -> int:
    """Free bytes in the folder."""
    status = os.statvfs(folder())
    return status.f_bavail * status.f_frsize


def _create(where: str, opened: int, prefix: str) -> int:
    with undisturbed("secrets"):  # 2 ms of the import, needed only here
        import secrets

    name = prefix + secrets.token_hex(16)
    fd = os.open(name, _NEW, 0o600, dir_fd=opened)
    try:
        os.unlink(name, dir_fd=opened)
        _require_own(where, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _require_safe(where: str, mode: int) -> None:
    """If all users may rename files of others, our unlink() might remove another file."""
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        shown = f"{stat.S_IMODE(mode):o}"
        reason = f"all users may rename and remove files of others there (mode {shown}). {_CURE}"
        raise _refused(where, reason)


def _require_own(where: str, status: os.stat_result) -> None:
    if status.st_nlink or status.st_uid != os.geteuid():
        raise _refused(where, f"a file made there keeps a name, or has another owner. {_CURE}")


def _refused(where: str, reason: str) -> SharedTaskError:
    return SharedTaskError(f"no shared memory can be made in {where}: {reason}")


_CURE = "Name a directory of yours, on a disk of this machine, in SHAREDTASK_STORE_DIR."
