"""Memory that is shared already: which segment or file an array lies in, and how others map it.

An array over ``empty``, ``zeros`` or ``array``, over ``multiprocessing.Array``, over
``SharedMemory`` or over a mapped file needs no copy to be shared: whoever maps the same memory sees
it, and every write to it, at once. What travels is a ``Region``, a hundred bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import stat
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.sharing import mapfiles, mapping, segments

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Memory:
    """A whole segment or file, by the descriptor that process ``pid`` has of it."""

    pid: int
    fd: int
    device: int
    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Region:
    """An array in such memory: the byte of its first element, and its form."""

    memory: Memory
    offset: int
    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, *, private: bool = False, writable: bool = False) -> npt.NDArray[Any]:
        """Map the memory and show the array: read-only, or writable for all, or ``private``."""
        mapped = _mapped(self.memory, private=private, writable=writable)
        return np.ndarray(self.shape, self.dtype, mapped, self.offset, self.strides)


# ------------------------------------------------------------------------- where it was born


class _Born:
    """Writable segments of this process, by address."""

    def __init__(self) -> None:
        self._memories: dict[int, Memory] = {}

    def new(self, size: int) -> npt.NDArray[np.uint8]:
        fd = segments.writable(size)
        try:
            view: npt.NDArray[np.uint8] = mapping.view(fd, size, writable=True)
        except BaseException:
            os.close(fd)
            raise
        address, status = mapping.address_of(view), os.fstat(fd)
        memory = Memory(os.getpid(), fd, status.st_dev, status.st_ino, size)
        self._memories[address] = memory
        # The memory lives as long as something shows it; the descriptor goes with the last view.
        end = weakref.finalize(view.base, self._forget, address, fd)
        end.atexit = False
        return view

    def _forget(self, address: int, fd: int) -> None:
        """Called in a finalizer: it takes no lock."""
        self._memories.pop(address, None)
        with contextlib.suppress(OSError):
            os.close(fd)

    def find(self, address: int) -> tuple[int, Memory] | None:
        for start, memory in self._memories.copy().items():
            if start <= address < start + memory.size:
                return start, replace(memory, pid=os.getpid())  # a forked child has it too
        return None


_born = _Born()


def new(shape: tuple[int, ...], dtype: np.dtype[Any], order: str) -> npt.NDArray[Any]:
    """An array of zero bytes in a segment of its own."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    fortran: Any = "F" if order == "F" else "C"
    return np.ndarray(shape, dtype, _born.new(max(size, 1)), order=fortran)


def find(array: npt.NDArray[Any]) -> Region | None:
    """The shared memory that an array lies in, None where it is this process's alone."""
    low, high = _bounds(array)
    found = _born.find(low) or _foreign(array, low)
    if found is None:
        return None
    start, memory = found
    if high > start + memory.size:
        return None
    offset = mapping.address_of(array) - start
    return Region(memory, offset, array.dtype, array.shape, array.strides)


def _bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    """The first byte of an array, and the one after its last."""
    low = high = mapping.address_of(array)
    for length, stride in zip(array.shape, array.strides, strict=True):
        if length == 0:
            return low, low
        reach = (length - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize


def _foreign(array: npt.NDArray[Any], address: int) -> tuple[int, Memory] | None:
    """Shared memory that others made: found in the list of mappings, by its open descriptor."""
    if not _is_over_mapping(array):
        return None
    region = mapfiles.region_at(address)
    if region is None or "s" not in region.flags or not region.inode:
        return None
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            status = os.fstat(int(name))
            if status.st_ino == region.inode and stat.S_ISREG(status.st_mode):
                start = region.start - region.offset
                memory = Memory(
                    os.getpid(), int(name), status.st_dev, status.st_ino, status.st_size
                )
                return start, memory
    return None


def _is_over_mapping(array: npt.NDArray[Any]) -> bool:
    """Whether an array shows a mapping, or may do so: asking the system costs 0.1 ms."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return isinstance(base, (mmap.mmap, ctypes.Array))


# ------------------------------------------------------------------------- where it is used

_maps: weakref.WeakValueDictionary[tuple[int, int, bool], Any] = weakref.WeakValueDictionary()


def _mapped(memory: Memory, *, private: bool, writable: bool) -> npt.NDArray[np.uint8]:
    """The whole memory as bytes; one mapping for all arrays in it, private ones apart."""
    key = memory.device, memory.inode, writable
    known = None if private else _maps.get(key)
    if known is not None:
        shared: npt.NDArray[np.uint8] = known
        return shared
    fd = _open(memory, writable=writable)
    try:
        view: npt.NDArray[np.uint8] = mapping.view(
            fd, memory.size, private=private, writable=writable
        )
    finally:
        os.close(fd)
    if not private:
        _maps[key] = view
    return view


def _open(memory: Memory, *, writable: bool) -> int:
    """Open the memory anew: a description of one's own, which nobody else's locks belong to.

    Raises:
        LookupError: The memory is gone, or its number belongs to something else by now.
    """
    path = f"/proc/{memory.pid}/fd/{memory.fd}"
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError as error:
        msg = f"the shared array is gone, or lives on another machine ({path})"
        raise LookupError(msg) from error
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) != (memory.device, memory.inode):
        os.close(fd)
        msg = f"{path} is not the shared array that it was"
        raise LookupError(msg)
    if status.st_size < memory.size:
        os.close(fd)
        msg = f"the file of the shared array was made smaller: {status.st_size} bytes"
        raise LookupError(msg)
    return fd
