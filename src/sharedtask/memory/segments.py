"""Segments: anonymous memory that is filled once, sealed, and handed to workers by descriptor.

    write(payload)  memfd -> reserve -> fill -> seal -> read-only descriptor -> Segment
    view(...)       (mapping.py) maps it in each process that has the descriptor

A memfd has no name, is not limited by ``/dev/shm`` and is freed with its last holder, even when the
whole process group is killed. Where the system has no memfd (or ``SHAREDTASK_STORE=file`` says
so) the segment is a file in ``SHAREDTASK_STORE_DIR`` (``/dev/shm``), unlinked as soon as it is
open: the same promises, except that only the missing write permission keeps it from changing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import mmap
import os
import stat
import time
from typing import TYPE_CHECKING

from sharedtask.errors import OptionsError, StoreFullError
from sharedtask.system import interrupts, libc
from sharedtask.system.posix import IS_POSIX, fcntl
from sharedtask.system.records import dataclass

from . import capacity, unlinked_files
from .integrity import refused
from .mapping import HUGE, PAGE, address_of, mapped, memory_of, view
from .strided import pieces

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    import numpy as np
    import numpy.typing as npt

    from .payload import Payload

_log = logging.getLogger("sharedtask")
NAME = "sharedtask"  # shown in /proc/PID/maps, so that leak checks can find us

# Below this size write() is as fast, and needs no writable mapping that would delay the seal.
COLLAPSE_FROM = 4 << 20
# write(2) moves at most this much in one call.
_WRITE_MAX = 0x7FFF_F000
# The kernel may have to compact memory to make a huge page. After a few slow ones, stop.
_SLOW_EXTENT_SECONDS, _SLOW_EXTENTS = 0.03, 4

_MFD_NOEXEC_SEAL = 8
_F_ADD_SEALS = getattr(fcntl, "F_ADD_SEALS", 0)
_F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 0)
_SEAL, _SHRINK, _GROW, _WRITE = 1, 2, 4, 8
FIXED_SIZE = _SEAL | _SHRINK | _GROW  # without it a peer's ftruncate kills readers by SIGBUS
FROZEN = FIXED_SIZE | _WRITE


@dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a payload in a segment: ``(offset, length)`` of each, head last."""

    parts: tuple[tuple[int, int], ...]
    size: int

    @classmethod
    def of(cls, payload: Payload) -> Layout:
        """Pack the parts one after the other: bulk data on pages, the rest on cache lines."""
        parts, end = [], 0
        for length in (*(source.nbytes for source in payload.sources), len(payload.head)):
            align = PAGE if length >= 1 << 16 else 64
            start = -(-end // align) * align
            parts.append((start, length))
            end = start + length
        return cls(tuple(parts), end)

    def require_within(self, size: int) -> None:
        """Refuse parts beyond the end of the memory.

        Raises:
            SharedTaskError: A part is, or there is none.
        """
        if not self.parts or any(start < 0 or n < 0 or start + n > size for start, n in self.parts):
            raise refused(f"its parts do not lie within its {size} bytes")

    def split(self, mapped: npt.NDArray[np.uint8]) -> tuple[memoryview, list[memoryview]]:
        """Head and buffers as views of the mapped segment."""
        whole = memory_of(mapped)
        *buffers, head = [whole[start : start + length] for start, length in self.parts]
        return head, buffers


@dataclass(frozen=True, slots=True)
class Segment:
    """Filled memory: its descriptor (the owner closes it) and its layout."""

    fd: int
    layout: Layout

    @property
    def size(self) -> int:
        """Bytes from the first part's start to the last one's end."""
        return self.layout.size

    def close(self) -> None:
        """Close the descriptor; mappings stay valid."""
        os.close(self.fd)


def write(payload: Payload, *, frozen: bool = True) -> Segment:
    """Copy ``payload`` into a new segment.

    ``frozen`` segments are immutable; others stay writable through their
    descriptor (a result belongs to its receiver) but keep their size.

    Raises:
        StoreFullError: No room, no descriptors, or a limit of the process is in the way.
    """
    layout = Layout.of(payload)
    capacity.require(layout.size)
    with interrupts.shield(), translated(layout.size):
        fd = _create()
        try:
            _fill(fd, payload, layout)
            readonly = _finish(fd, frozen=frozen)
        except BaseException:
            os.close(fd)
            raise
        if readonly is None:
            return Segment(fd, layout)
        os.close(fd)
        return Segment(readonly, layout)


def check(fd: int, size: int, *, frozen: bool) -> os.stat_result:
    """Refuse a received descriptor that is no segment; returns the status of its file.

    Raises:
        SharedTaskError: The file is too small, or can still be changed.
    """
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size < size:
        raise refused(f"{size} bytes were announced, and its file has {status.st_size}")
    if uses_memfd() and not is_sealed(fd, FROZEN if frozen else FIXED_SIZE):
        raise refused("it is not sealed")
    return status


def is_sealed(fd: int, wanted: int) -> bool:
    """Whether a file has these seals; only a memfd can have any."""
    if not _F_GET_SEALS:
        return False
    try:
        return fcntl.fcntl(fd, _F_GET_SEALS) & wanted == wanted
    except OSError:
        return False


def scratch(size: int) -> int:
    """A descriptor of ``size`` zero bytes that two processes may both write."""
    with interrupts.shield(), translated(size):
        fd = _create()
        try:
            os.ftruncate(fd, size)
            if uses_memfd():
                fcntl.fcntl(fd, _F_ADD_SEALS, FIXED_SIZE)
            else:
                unlinked_files.reserve(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return fd


def writable(size: int) -> int:
    """A descriptor of ``size`` zero bytes for an array that all processes may write.

    Raises:
        StoreFullError: No room, no descriptors, or a limit of the process is in the way.
    """
    capacity.require(size)
    with interrupts.shield(), translated(size):
        fd = scratch(size)
        try:
            if size >= COLLAPSE_FROM:
                huge = collapse(fd, size)
                if huge is not None:
                    huge.room.close()
        except BaseException:
            os.close(fd)
            raise
        return fd


def protected(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A copy of bytes on pages that the hardware protects from writes.

    Raises:
        StoreFullError: No room, no descriptors, or a limit of the process is in the way.
    """
    if not IS_POSIX:
        return _protected_by_file(data)
    size = max(data.nbytes, 1)
    with interrupts.shield(), translated(size):
        fd = scratch(size)
        try:
            _write_at(fd, memory_of(data), 0)
            copied: npt.NDArray[np.uint8] = view(fd, size)
        finally:
            os.close(fd)
    return copied[: data.nbytes]


def _protected_by_file(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The same where no memory has a descriptor, as on Windows."""
    import tempfile

    import numpy as np

    size = max(data.nbytes, 1)
    with tempfile.TemporaryFile() as file:
        file.write(memory_of(data))
        file.truncate(size)
        file.flush()
        room = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    return np.frombuffer(room, np.uint8)[: data.nbytes]


# ------------------------------------------------------------------------------ creating


def uses_memfd() -> bool:
    """Whether segments are memfds here; not with ``SHAREDTASK_STORE=file``."""
    store = os.environ.get("SHAREDTASK_STORE", "memfd")
    if store not in {"memfd", "file"}:
        msg = f"SHAREDTASK_STORE={store!r} is none of 'memfd' and 'file'."
        raise OptionsError(msg)
    return store == "memfd" and _memfd_works()


@functools.cache
def _memfd_works() -> bool:
    """Tested by use: the kernel's version says nothing about a container's seccomp filter."""
    if hasattr(os, "memfd_create"):
        try:
            os.close(_create_memfd())
        except OSError as error:
            if error.errno not in {errno.ENOSYS, errno.EPERM, errno.EACCES}:
                return True
        else:
            return True
    _log.debug("memfd_create is denied here: shared memory is made of unlinked files instead")
    return False


def _create() -> int:
    return _create_memfd() if uses_memfd() else unlinked_files.create(f"{NAME}-")


def _create_memfd() -> int:
    fd = os.memfd_create(NAME, _memfd_flags())
    os.fchmod(fd, 0o600)  # the default is 0777
    return fd


@functools.cache
def _memfd_flags() -> int:
    """From Linux 6.3 on with the flag against execution, which some hosts require."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        os.close(os.memfd_create(NAME, flags | _MFD_NOEXEC_SEAL))
    except OSError:
        return flags
    return flags | _MFD_NOEXEC_SEAL


def _room() -> int:
    """Bytes that a new segment could take."""
    if uses_memfd():
        return capacity.available()
    return min(unlinked_files.room(), capacity.available())


def _finish(fd: int, *, frozen: bool) -> int | None:
    """Seal; returns a read-only descriptor, without which old kernels cannot map it.

    None if only the writing one exists.
    """
    if uses_memfd():
        fcntl.fcntl(fd, _F_ADD_SEALS, FROZEN if frozen else FIXED_SIZE)
    if not frozen or not os.path.exists("/proc/self/fd"):
        return None
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


# ------------------------------------------------------------------------------- filling


def _fill(fd: int, payload: Payload, layout: Layout) -> None:
    """Fill huge pages, if available, through a mapping; the rest by write().

    Both reserve memory before they write, so a full store is an error, never a SIGBUS.
    """
    huge = collapse(fd, layout.size) if layout.size >= COLLAPSE_FROM else None
    address, ready = (huge.address, huge.ready) if huge else (0, 0)
    try:
        parts: tuple[Iterable[npt.NDArray[np.uint8] | bytes], ...]
        parts = (*map(pieces, payload.sources), (payload.head,))
        for part, (start, _) in zip(parts, layout.parts, strict=True):
            at = start
            for piece in part:
                quick = min(max(ready - at, 0), len(piece))
                if quick:
                    _copy_in(address + at, piece, quick)
                _write_at(fd, memory_of(piece)[quick:], at + quick)
                at += len(piece)
                interrupts.check()
    finally:
        if huge:
            huge.room.close()


def _copy_in(target: int, part: bytes | npt.NDArray[np.uint8], length: int) -> None:
    if isinstance(part, bytes):
        part = _as_array(part)
    libc.memmove(target, address_of(part), length)


def _as_array(data: bytes) -> npt.NDArray[np.uint8]:
    import numpy as np

    return np.frombuffer(data, np.uint8)


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(fd, data[:_WRITE_MAX], offset)
        data, offset = data[written:], offset + written


@dataclass(frozen=True, slots=True)
class Huge:
    """A writable mapping over huge pages: its address, and the bytes in them."""

    address: int
    ready: int
    room: mmap.mmap  # to be closed before the seal, which a writable mapping delays


def collapse(fd: int, size: int) -> Huge | None:
    """Map ``fd`` writable over huge pages.

    Each 2 MiB extent must hold a page before MADV_COLLAPSE (Linux 6.1) makes it huge.
    """
    if not libc.IS_LINUX:
        return None
    whole = size // HUGE * HUGE
    for offset in range(0, whole, HUGE):
        _write_at(fd, memoryview(b"\0"), offset)
    os.ftruncate(fd, size)
    try:
        room, address = mapped(fd, size, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED)
    except OSError:
        return None
    try:
        return Huge(address, _collapsed_bytes(address, whole), room)
    except BaseException:
        room.close()
        raise


def _collapsed_bytes(address: int, whole: int) -> int:
    slow = 0
    for offset in range(0, whole, HUGE):
        before = time.monotonic()
        if not libc.collapse(address + offset, HUGE):
            return offset
        slow += time.monotonic() - before > _SLOW_EXTENT_SECONDS
        if slow > _SLOW_EXTENTS:
            return offset + HUGE
        interrupts.check()  # it may take a second in memory that was never used
    return whole


@contextlib.contextmanager
def translated(size: int) -> Generator[None]:
    """Translate the kernel's errors for "no room" into ours."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOMEM and capacity.has_all_mappings():
            raise StoreFullError(capacity.no_mappings()) from None
        if error.errno in capacity.FULL:
            reason = os.strerror(error.errno)
            raise StoreFullError(capacity.no_room(size, reason, _room())) from None
        if error.errno in capacity.NO_DESCRIPTORS:
            raise StoreFullError(capacity.no_descriptors()) from None
        raise
