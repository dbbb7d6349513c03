"""Which file, and which bytes of it, an ``np.memmap`` shows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A dense array inside a file, starting ``offset`` bytes from its beginning."""

    path: str
    device: int
    inode: int
    offset: int
    order: str


def source_of(array: np.memmap[Any, Any]) -> FileSlice | None:
    """Where ``array`` stands in its file, or None where only a copy tells the truth.

    A copy is needed for ``mode="c"`` (the file does not have the private changes), for strided
    views, and where the path now names another file than the one that is mapped.
    """
    order = _order(array)
    if order is None or array.mode not in ("r", "r+", "w+") or array.filename is None:
        return None
    path = os.path.abspath(os.fspath(array.filename))
    region = region_at(_address(array))
    try:
        status = os.stat(path)
    except OSError:
        return None
    if region is None or region.inode != status.st_ino or array.nbytes == 0:
        return None
    offset = region.offset + _address(array) - region.start
    return FileSlice(path, status.st_dev, status.st_ino, offset, order)


def _order(array: np.memmap[Any, Any]) -> str | None:
    if array.flags.c_contiguous:
        return "C"
    return "F" if array.flags.f_contiguous else None


def _address(array: np.memmap[Any, Any]) -> int:
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


def regions() -> list[Region]:
    """The mappings of this process in ascending order; none where there is no ``/proc``."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return [_parse(line) for line in file]
    except OSError:
        return []


def region_at(address: int) -> Region | None:
    """The mapping that holds ``address``."""
    return next((r for r in regions() if r.start <= address < r.end), None)


def _parse(line: str) -> Region:
    span, flags, offset, device, inode, *_ = line.split(maxsplit=5)
    start, end = (int(word, 16) for word in span.split("-"))
    major, minor = (int(word, 16) for word in device.split(":"))
    return Region(start, end, flags, int(offset, 16), os.makedev(major, minor), int(inode))
