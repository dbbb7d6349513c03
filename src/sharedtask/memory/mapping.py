"""Views of a segment that keep it mapped exactly as long as one of them lives."""

from __future__ import annotations

import ctypes
import mmap
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask.system import libc

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

PAGE = mmap.PAGESIZE
HUGE = 2 << 20

# ``memoryview`` of an array or of bytes: numpy's types declare the buffer of an array only from
# Python 3.12 on.
memory_of = cast("Callable[[npt.NDArray[np.uint8] | bytes], memoryview]", memoryview)
_first_byte = cast("Callable[[npt.NDArray[Any]], ctypes.c_char]", ctypes.c_char.from_buffer)


class Owner:
    """The base object of every view: the memory is unmapped with the last view.

    numpy reads ``__array_interface__`` once and keeps the owner as the array's base. It offers no
    buffer of its own, so ``flags.writeable = True`` on a read-only view is a ValueError and never
    a segmentation fault.
    """

    __slots__ = ("__array_interface__", "__weakref__", "born", "readonly", "room", "source")

    def __init__(
        self,
        address: int,
        size: int,
        *,
        readonly: bool,
        source: object = None,
        room: mmap.mmap | None = None,
    ) -> None:
        self.source, self.readonly = source, readonly
        self.room = room  # unmaps everything mapped in it, when it is freed
        self.born: Any = None  # a Memory if it was created to be shared: see locations.py
        self.__array_interface__ = {
            "data": (address, readonly),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


def view(fd: int, size: int, *, private: bool = False, writable: bool = False) -> Any:
    """Map ``size`` bytes of ``fd`` as a uint8 array.

    Read-only by default; ``private`` gives private copy-on-write pages, ``writable`` shares
    every write with all that map the same file.
    """
    prot = libc.PROT_READ | (libc.PROT_WRITE if private or writable else 0)
    kind = libc.MAP_PRIVATE if private else libc.MAP_SHARED
    room, address = mapped(fd, size, prot, kind)
    owner = Owner(address, size, readonly=not (private or writable), room=room)
    array: npt.NDArray[np.uint8] = np.asarray(owner)
    return array


class _Mirror(Owner):
    """The base object of pages that are mapped a second time; its source keeps them allocated."""

    __slots__ = ()


def mirror(address: int, size: int, source: object) -> npt.NDArray[np.uint8]:
    """The same shared memory through pages that the hardware protects from writes.

    Raises:
        OSError: It is not shared memory, or the kernel cannot map it twice.
    """
    begin = address // PAGE * PAGE
    whole = _pages(address + size - begin)
    room, again = _room(whole)
    libc.map_again(begin, whole, again)
    owner = _Mirror(again + address - begin, size, readonly=True, source=source, room=room)
    return np.asarray(owner)


class PrivatePart(Owner):
    """The base object of pages of a file, each of which is copied when it is written."""

    __slots__ = ("extent",)
    extent: tuple[int, int]

    def settle(self) -> bool:
        """Copy all pages now; False if that fails."""
        return libc.populate_write(*self.extent)


def private_part(fd: int, offset: int, size: int) -> PrivatePart:
    """Map ``size`` bytes of a file, from ``offset`` on; as an array it is writable.

    Raises:
        OSError: The kernel cannot map it.
    """
    begin = offset // PAGE * PAGE
    whole = offset - begin + size
    prot = libc.PROT_READ | libc.PROT_WRITE
    room, address = mapped(fd, whole, prot, libc.MAP_PRIVATE, begin)
    part = PrivatePart(address + offset - begin, size, readonly=False, room=room)
    part.extent = address, _pages(whole)
    return part


def mapped(fd: int, size: int, prot: int, kind: int, offset: int = 0) -> tuple[mmap.mmap, int]:
    """Map ``size`` bytes of ``fd``: the object that unmaps them, and the address."""
    room, address = _room(_pages(size))
    libc.mmap(address, _pages(size), prot, kind | libc.MAP_FIXED, fd, offset)
    return room, address


def _room(size: int) -> tuple[mmap.mmap, int]:
    """Reserve addresses, to be mapped over: an object that frees them, and the first.

    Python's own mmap object is written in C: it has an owner from the first moment on, and no
    interrupt comes between the death of the last view and the unmapping. From 2 MiB on it reserves
    more, so that a mapping can begin at a huge page boundary: attaching 512 MiB of huge pages takes
    2 ms then, 44 ms otherwise.
    """
    reserved = size if size < HUGE else size + HUGE
    room = mmap.mmap(-1, reserved, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS, libc.PROT_NONE)
    address = _address_told(np.frombuffer(room, np.uint8))
    return room, address if size < HUGE else -(-address // HUGE) * HUGE


def window(array: npt.NDArray[np.uint8], *, readonly: bool = False) -> npt.NDArray[np.uint8]:
    """The same memory as another array: never writable, or that appears writable."""
    if not array.nbytes:
        return np.frombuffer(b"" if readonly else bytearray(), np.uint8)
    return np.asarray(Owner(address_of(array), array.nbytes, readonly=readonly, source=array))


def readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array, which cannot be made writable."""
    low, high = bounds(array)
    base = np.asarray(Owner(low, high - low, readonly=True, source=array))
    return np.ndarray(array.shape, array.dtype, base, address_of(array) - low, array.strides)


def is_protected(array: npt.NDArray[Any]) -> bool:
    """True where the memory is a mapping of ours that the hardware protects from writes."""
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if type(base) is _Mirror:
        return True
    return type(base) is Owner and base.source is None and base.readonly


def address_of(array: npt.NDArray[Any]) -> int:
    """The address of an array's first byte."""
    if type(array) is not np.ndarray or not array.flags.carray:
        return _address_told(array)
    try:
        return ctypes.addressof(_first_byte(array))
    except (TypeError, ValueError):  # empty, or of a dtype without buffer support, such as dates
        return _address_told(array)


def _address_told(array: npt.NDArray[Any]) -> int:
    """Three times as slow, since it is a dict that describes the dtype as well."""
    return int(array.__array_interface__["data"][0])


def bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    """The address of the first byte of an array, and the address after its last."""
    low = high = address_of(array)
    if array.flags.c_contiguous:
        return low, low + array.nbytes
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return (low, high + array.itemsize) if array.size else (low, low)


def _pages(size: int) -> int:
    return max(-(-size // PAGE) * PAGE, PAGE)
