"""Memory that is shared already: the segment or file of an array, and how others map it.

An array over ``empty``, ``zeros`` or ``array``, over ``multiprocessing.Array``, over
``SharedMemory`` or over a mapped file needs no copy to be shared: every process that maps the same
memory sees it, and every write to it, at once. A ``Region`` of a hundred bytes is sent instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.errors import UnshareableError
from sharedtask.system import descriptors, interrupts, libc
from sharedtask.system.descriptors import Descriptor
from sharedtask.system.finalizers import Weak
from sharedtask.system.posix import IS_POSIX
from sharedtask.system.records import dataclass

from . import mapping, proc_maps, segments

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Memory:
    """A whole segment or file, by its descriptor in process ``pid``."""

    pid: int
    fd: int
    device: int
    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Region:
    """An array in such memory: the offset of its first element, and its form."""

    memory: Memory
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, *, private: bool = False, writable: bool = False) -> npt.NDArray[Any]:
        """Map the memory and return the array: read-only, or writable for all, or ``private``."""
        found = mapped(self.memory, private=private, writable=writable)
        return np.ndarray(self.shape, self.dtype, found, self.offset, self.strides)


# ------------------------------------------------------------------------- where it was born


def new(shape: tuple[int, ...], dtype: np.dtype[Any], order: Any) -> npt.NDArray[Any]:
    """An array of zero bytes in a segment of its own; in any memory, where there are none."""
    if not IS_POSIX:
        return np.zeros(shape, dtype, order)
    size = max(math.prod(shape) * dtype.itemsize, 1)
    with interrupts.shield():  # an interrupt would leak the descriptor
        view = adopted(segments.writable(size), size, writable=True)
    return np.ndarray(shape, dtype, view, order=order)


def adopted(fd: int, size: int, *, writable: bool) -> npt.NDArray[np.uint8]:
    """Map memory of a descriptor that we own; each array over it is recognised as shared.

    It lives as long as a view of it; the descriptor is closed with the last one.
    """
    try:
        with segments.translated(size):
            view: npt.NDArray[np.uint8] = mapping.view(fd, size, writable=writable)
        here = Descriptor.of(fd)
    except BaseException:
        os.close(fd)
        raise
    descriptors.closing(view.base, here)
    owner: Any = view.base
    owner.born = Memory(os.getpid(), fd, here.device, here.inode, size)
    return view


@dataclass(frozen=True, slots=True)
class Found:
    """The shared memory of an array, and the object that keeps it mapped."""

    region: Region
    holder: object


def find(array: npt.NDArray[Any]) -> Found | None:
    """The shared memory of an array, None if it is private to this process.

    Raises:
        UnshareableError: The memory was unmapped, or its file made smaller, under the array.
    """
    root: Any = _root(array)
    memory: Memory | None = root.born if type(root) is mapping.Owner else None
    if memory is not None and not Descriptor(memory.fd, memory.device, memory.inode).is_open():
        return None  # the program has closed it: no other process can map it now
    if memory is not None:
        owner: Any = root
        start = mapping.address_of(owner)
        if memory.pid != os.getpid():  # a forked child has it too
            memory = replace(memory, pid=os.getpid())
    elif isinstance(root, (mmap.mmap, ctypes.Array)):
        found = _foreign(array, root)
        if found is None:
            return None
        start, memory = found
    else:
        return None
    offset = mapping.address_of(array) - start
    region = Region(memory, offset, array.dtype, array.shape, array.strides)
    return Found(region, root)


def _root(array: npt.NDArray[Any]) -> Any:
    """The object that keeps an array's memory, at the end of the chain of bases."""
    base: Any = array
    while True:
        if isinstance(base, np.ndarray):
            base = base.base
        elif type(base) is mapping.Owner and base.source is not None:
            base = base.source
        elif isinstance(base, memoryview):
            try:
                base = base.obj
            except ValueError as error:
                raise UnshareableError(_UNMAPPED) from error
        else:
            return base


_UNMAPPED = (
    "the memory of this array was unmapped: its mmap or SharedMemory was closed, or collected, "
    "while the array lives. Keep it open as long as its arrays are used."
)


def _foreign(array: npt.NDArray[Any], root: Any) -> tuple[int, Memory] | None:
    """Shared memory of other libraries: found in the list of mappings, by its descriptor."""
    if isinstance(root, mmap.mmap) and root.closed:
        raise UnshareableError(_UNMAPPED)
    low, high = mapping.bounds(array)
    region = proc_maps.region_at(low)
    if region is None or "s" not in region.flags or not region.inode:
        return None
    start = region.start - region.offset
    # Of several descriptors the last is most likely the mapping's own, which lives as long.
    for number in sorted(map(int, os.listdir("/proc/self/fd")), reverse=True):
        with contextlib.suppress(OSError):
            status = os.fstat(number)
            if (status.st_dev, status.st_ino) != (region.device, region.inode):
                continue
            if high > start + status.st_size:
                msg = (
                    f"the file behind this array was made smaller: it has {status.st_size} bytes, "
                    f"and the array needs {high - start}."
                )
                raise UnshareableError(msg)
            size = status.st_size
            return start, Memory(os.getpid(), number, status.st_dev, status.st_ino, size)
    return None


# ------------------------------------------------------------------------- where it is used

_maps: Weak[tuple[int, int, bool], Any] = Weak()


def mapped(memory: Memory, *, private: bool, writable: bool) -> npt.NDArray[np.uint8]:
    """The whole memory as bytes; one mapping for all its arrays, except private ones.

    Raises:
        LookupError: The memory is freed, too small, or may not be opened.
    """
    with _opened(memory, writable=writable) as fd:
        key = memory.device, memory.inode, writable
        known = None if private else _maps.get(key)
        if known is not None and known.nbytes >= memory.size:
            shared: npt.NDArray[np.uint8] = known
            return shared
        view: npt.NDArray[np.uint8] = mapping.view(
            fd, memory.size, private=private, writable=writable
        )
        if not private:
            _maps.put(key, view)
        return view


@contextlib.contextmanager
def _opened(memory: Memory, *, writable: bool) -> Generator[int]:
    """A descriptor of the memory, checked to be the right one.

    In its own process it is not reopened: closing any descriptor of a file drops the locks that
    this process may have on it.
    """
    at_hand = _at_hand(memory)
    if at_hand is not None:
        _check(memory, at_hand)
        yield at_hand
        return
    fd = reopened(memory, writable=writable)
    try:
        yield fd
    finally:
        os.close(fd)


def reopened(memory: Memory, *, writable: bool) -> int:
    """A descriptor of the memory with an open file of its own; the caller closes it.

    Raises:
        LookupError: The memory is freed, too small, or may not be opened.
    """
    at_hand = _at_hand(memory)
    owner, number = (memory.pid, memory.fd) if at_hand is None else ("self", at_hand)
    path = f"/proc/{owner}/fd/{number}"
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        msg = f"the shared array cannot be mapped here: {error.strerror} ({path})"
        raise LookupError(msg) from error
    try:
        _check(memory, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(memory: Memory, fd: int) -> None:
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise LookupError(_GONE) from error
    if (status.st_dev, status.st_ino) != (memory.device, memory.inode):
        raise LookupError(_GONE)
    if status.st_size < memory.size:
        msg = f"the file of the shared array was made smaller: {status.st_size} bytes"
        raise LookupError(msg)


_GONE = "the shared array is not there any more: its descriptor was closed. Share it again"


# ----------------------------------------------------------- where /proc does not lead to others


def is_reachable() -> bool:
    """Whether another process of this user can use this one's descriptors in /proc.

    Not if /proc is not mounted or is that of another PID namespace, nor if this process is not
    dumpable (PR_SET_DUMPABLE). Then descriptors have to be sent.
    """
    try:
        return os.readlink("/proc/self") == str(os.getpid()) and libc.is_dumpable()
    except OSError:
        return False


class Received:
    """A descriptor received from the process that has the memory; open as long as this lives."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        here = Descriptor.of(fd)
        descriptors.closing(self, here)
        _received.put((here.device, here.inode), self)


_received: Weak[tuple[int, int], Received] = Weak()


def _at_hand(memory: Memory) -> int | None:
    """A descriptor of the memory in this process."""
    if memory.pid == os.getpid():
        return memory.fd
    received = _received.get((memory.device, memory.inode))
    return None if received is None else received.fd
