"""The file, and the bytes of it, that an ``np.memmap`` maps."""

from __future__ import annotations

import os
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.system.finalizers import Known
from sharedtask.system.posix import fcntl
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class MappedFile:
    """``nbytes`` bytes of a file, starting ``offset`` bytes from its beginning."""

    path: str
    device: int
    inode: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FileView:
    """An array in a mapped file: its first element is ``offset`` bytes into the mapping."""

    file: MappedFile
    offset: int


def source_of(array: np.memmap[Any, Any]) -> FileView | None:
    """The place of ``array`` in its file, or None if a copy is needed.

    A copy is needed for ``mode="c"`` (the file does not have the private changes), if the path now
    names another file than the mapped one, and if it names a descriptor, which is another file in
    another process.
    """
    if array.mode not in ("r", "r+", "w+") or array.filename is None or array.nbytes == 0:
        return None
    mapped: Any = array
    whole = np.frombuffer(mapped._mmap, np.uint8)
    path = os.path.abspath(os.fspath(array.filename))
    if path.startswith(("/proc/", "/dev/fd/", "/dev/std")):
        return None
    region = _region_of(mapped._mmap, _address(whole), whole.nbytes)
    try:
        status = os.stat(path)
    except OSError:
        return None
    if region is None or region.inode != status.st_ino:
        return None
    offset = region.offset + _address(whole) - region.start
    file = MappedFile(path, status.st_dev, status.st_ino, offset, whole.nbytes)
    return FileView(file, _address(array) - _address(whole))


# Reading the list of all mappings takes longer than the rest of a call. The mapping of an object
# does not change unless it is resized.
_seen: Known[tuple[int, int, Region | None]] = Known()


def _region_of(mapping: Any, address: int, nbytes: int) -> Region | None:
    known = _seen.get(mapping)
    if known is None or known[:2] != (address, nbytes):
        known = address, nbytes, region_at(address)
        _seen.put(mapping, known)
    return known[2]


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


@dataclass(frozen=True, slots=True)
class Region:
    """One line of ``/proc/self/maps``."""

    start: int
    end: int
    flags: str
    offset: int
    device: int
    inode: int


_PROCMAP_QUERY, _QUERY_SIZE = 0xC0686611, 104  # Linux 6.11
_QUERY = struct.Struct("3Q")  # its size, no flags, the address
_ANSWER = struct.Struct("24x6Q")
# The permissions rw-p, of these and those that are executable or shared.
_RW, _RWXS = 3, 15


def private_end(address: int) -> int | None:
    """The end of the writable private memory that is no file, around ``address``; 0 for other.

    None if the kernel does not tell: use ``private_spans``, which takes a hundred times as long.
    """
    question = bytearray(_QUERY_SIZE)
    _QUERY.pack_into(question, 0, _QUERY_SIZE, 0, address)
    try:
        with open("/proc/self/maps", "rb", buffering=0) as file:
            fcntl.ioctl(file, _PROCMAP_QUERY, question)
    except (OSError, MemoryError):
        return None
    _, end, flags, _, _, inode = _ANSWER.unpack_from(question)
    return end if flags & _RWXS == _RW and inode == 0 else 0


def private_spans() -> list[tuple[int, int]]:
    """Ranges of this process's writable private memory that is no file, in ascending order.

    None if they cannot be listed: there is no ``/proc``, or no memory for the list.
    """
    try:
        with open("/proc/self/maps", "rb") as file:
            return [(int(low, 16), int(high, 16)) for low, high in _PRIVATE.findall(file.read())]
    except (OSError, MemoryError):
        return []


# Of the 1,500 lines of a process that has loaded some libraries, most are files.
_PRIVATE = re.compile(rb"^(\w+)-(\w+) rw-p \w+ [\w:]+ 0\b", re.MULTILINE)


def region_at(address: int) -> Region | None:
    """The mapping that contains ``address``."""
    for line in _maps():  # only one of a thousand lines is parsed fully
        if address < int(line[line.index("-") + 1 : line.index(" ")], 16):
            region = _parse(line)
            return region if region.start <= address else None
    return None


def _maps() -> list[str]:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except (OSError, MemoryError):
        return []


def _parse(line: str) -> Region:
    span, flags, offset, device, inode, *_ = line.split(maxsplit=5)
    start, end = (int(word, 16) for word in span.split("-"))
    major, minor = (int(word, 16) for word in device.split(":"))
    return Region(start, end, flags, int(offset, 16), os.makedev(major, minor), int(inode))
