"""Views of a segment that keep it mapped exactly as long as one of them lives."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import weakref
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask import interrupts
from sharedtask.sharing import libc

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

PAGE = mmap.PAGESIZE
HUGE = 2 << 20

# ``memoryview`` of an array or of bytes: numpy says only from Python 3.12 on that an array is a
# buffer.
memory_of = cast("Callable[[npt.NDArray[np.uint8] | bytes], memoryview]", memoryview)
_first_byte = cast("Callable[[npt.NDArray[Any]], ctypes.c_char]", ctypes.c_char.from_buffer)


class Owner:
    """The base object of every view: when the last view is gone, the memory is unmapped.

    numpy reads ``__array_interface__`` once and keeps the owner as the array's base. It offers no
    buffer of its own, so ``flags.writeable = True`` on a read-only view is a ValueError and never
    a segmentation fault.
    """

    __slots__ = ("__array_interface__", "__weakref__", "readonly", "source")

    def __init__(self, address: int, size: int, *, readonly: bool, source: object = None) -> None:
        self.source, self.readonly = source, readonly
        self.__array_interface__ = {
            "data": (address, readonly),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


class _Mapped(weakref.ref[Owner]):
    """Tells when the owner of a mapping is gone, and what there is to unmap."""

    __slots__ = ("address", "size")
    address: int
    size: int


def _unmap(mapped: Any) -> None:
    """Called when the last view is gone, at any moment: it takes no lock."""
    found = _live.pop(id(mapped), None)
    if found is not None:
        libc.munmap(found.address, found.size)


# By the identity of the reference, not by the address: that may be mapped anew, by another thread,
# between the death of a view and the call that says so.
_live: dict[int, _Mapped] = {}
_views = itertools.count(1)
_LOOK_EVERY = 64


def _unmap_forgotten() -> None:
    """A Ctrl-C that arrives as ``_unmap`` begins is ignored, and so is the rest of ``_unmap``."""
    for mapped in list(_live.values()):
        if mapped() is None:
            _unmap(mapped)


def view(fd: int, size: int, *, private: bool = False, writable: bool = False) -> Any:
    """Map ``size`` bytes of ``fd`` as a uint8 array.

    Read-only by default; ``private`` gives copy-on-write pages of one's own, ``writable`` shares
    every write with whoever maps the same file.
    """
    prot = libc.PROT_READ | (libc.PROT_WRITE if private or writable else 0)
    if next(_views) % _LOOK_EVERY == 0:
        _unmap_forgotten()
    kind = libc.MAP_PRIVATE if private else libc.MAP_SHARED
    with interrupts.shield():  # a mapping without an owner would stay for ever
        address = map_aligned(fd, size, prot, kind)
        owner = Owner(address, size, readonly=not (private or writable))
        _unmap_with(owner, address, _pages(size))
    array: npt.NDArray[np.uint8] = np.asarray(owner)
    return array


def _unmap_with(owner: Owner, address: int, size: int) -> None:
    mapped = _Mapped(owner, _unmap)
    mapped.address, mapped.size = address, size
    _live[id(mapped)] = mapped


class _Mirror(Owner):
    """The base object of pages that are mapped a second time; its source keeps them in place."""

    __slots__ = ()


def mirror(address: int, size: int, source: object) -> npt.NDArray[np.uint8]:
    """The same shared memory through pages that the hardware keeps from being written.

    Raises:
        OSError: It is not shared memory, or the system cannot map it twice.
    """
    begin = address // PAGE * PAGE
    whole = _pages(address + size - begin)
    with interrupts.shield():  # as in view()
        again = libc.mapped_again(begin, whole)
        owner = _Mirror(again + address - begin, size, readonly=True, source=source)
        _unmap_with(owner, again, whole)
    return np.asarray(owner)


def window(array: npt.NDArray[np.uint8], *, readonly: bool = False) -> npt.NDArray[np.uint8]:
    """The same memory as another array: one that cannot be made writable, or that seems to be."""
    if not array.nbytes:
        return np.frombuffer(b"" if readonly else bytearray(), np.uint8)
    return np.asarray(Owner(address_of(array), array.nbytes, readonly=readonly, source=array))


def readonly(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same array as one that cannot be made writable."""
    low, high = bounds(array)
    base = np.asarray(Owner(low, high - low, readonly=True, source=array))
    return np.ndarray(array.shape, array.dtype, base, address_of(array) - low, array.strides)


def is_protected(array: npt.NDArray[Any]) -> bool:
    """True where the memory is a mapping of ours that the hardware keeps from being written."""
    base: Any = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if type(base) is _Mirror:
        return True
    return type(base) is Owner and base.source is None and base.readonly


def map_aligned(fd: int, size: int, prot: int, kind: int) -> int:
    """Map at an address that huge pages can use: a reader gains only if its mapping is aligned.

    Attaching 512 MiB of huge pages takes 2 ms through an aligned mapping, 44 ms otherwise.
    """
    size = _pages(size)
    if size < HUGE:
        return libc.mmap(0, size, prot, kind, fd)
    base = libc.mmap(0, size + HUGE, libc.PROT_NONE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS, -1)
    at = -(-base // HUGE) * HUGE
    try:
        libc.mmap(at, size, prot, kind | libc.MAP_FIXED, fd)
    except OSError:
        libc.munmap(base, size + HUGE)
        raise
    if at > base:
        libc.munmap(base, at - base)
    if at < base + HUGE:
        libc.munmap(at + size, base + HUGE - at)
    return at


def address_of(array: npt.NDArray[Any]) -> int:
    """The address of an array's first byte."""
    if type(array) is not np.ndarray or not array.flags.carray:
        return _address_told(array)
    try:
        return ctypes.addressof(_first_byte(array))
    except (TypeError, ValueError):  # empty, or of a dtype that buffers do not know, as dates
        return _address_told(array)


def _address_told(array: npt.NDArray[Any]) -> int:
    """Three times as slow: it is a dict, which says all of the dtype as well."""
    return int(array.__array_interface__["data"][0])


def bounds(array: npt.NDArray[Any]) -> tuple[int, int]:
    """The address of the first byte that an array shows, and of the one after its last."""
    low = high = address_of(array)
    if array.flags.c_contiguous:
        return low, low + array.nbytes
    for length, stride in zip(array.shape, array.strides, strict=True):
        reach = (length - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return (low, high + array.itemsize) if array.size else (low, low)


def _pages(size: int) -> int:
    return max(-(-size // PAGE) * PAGE, PAGE)
