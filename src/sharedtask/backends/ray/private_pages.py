"""Results in Ray's object store as the caller's own memory: a page is copied when it is written.

    object store    one file, which the process of the store has open and every process maps
    Ray's mapping   shows each write to all of them, so a result there must not be written
    ours            private: it reads the pages of the store, and a write goes to a copy of the page

The kernel does not copy a page before it is written, so the object must stay as it is while a view
of it lives:

- A view refers to Ray's buffer, for which the store keeps the object.
- ``ray.shutdown()`` closes the connection, and then the store frees what this process used. So
  views keep a second descriptor of that connection open.
- A forked child has the pages, but its parent gives the object up. So all pages are copied before a
  fork.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import stat
import struct
import weakref
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.errors import ClosedError
from sharedtask.memory import mapping, proc_maps
from sharedtask.system import critical_sections, forks, libc
from sharedtask.system.descriptors import Descriptor, closing
from sharedtask.system.finalizers import forgetting
from sharedtask.system.forks import Step
from sharedtask.system.records import dataclass

from . import runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from sharedtask.memory.proc_maps import Region

# A smaller result is copied in less time than it takes to find the store.
_FROM = 4 << 20
# Smaller parts of a result are copied, so that one that is kept does not keep the whole object.
_COPY_BELOW = 1 << 16
# Views may keep so much of the object store, and so many of the mappings that a process may have.
_SHARE, _MOST = 4, 4096
_CREDENTIALS = struct.Struct("3i")
# The store is not found, or Ray was shut down meanwhile and its private parts are gone.
_UNKNOWN = (OSError, LookupError, AttributeError, ClosedError)


def private(buffers: Sequence[memoryview]) -> list[Any] | None:
    """Writable views of the same bytes, which others do not see; None where they must be copied."""
    if sum(buffer.nbytes for buffer in buffers) < _FROM:
        return None
    spans = [_span(buffer) for buffer in buffers if buffer.nbytes]
    low, high = min(low for low, _ in spans), max(high for _, high in spans)
    with contextlib.suppress(*_UNKNOWN):
        with _lock:
            whole = _pages(low, high, buffers)
        return [_part(whole, low, buffer) for buffer in buffers]
    return None


def _span(buffer: memoryview) -> tuple[int, int]:
    return mapping.bounds(np.frombuffer(buffer, np.uint8))


def _part(whole: memoryview, low: int, buffer: memoryview) -> Any:
    if buffer.nbytes < _COPY_BELOW:
        return bytearray(buffer)
    at = _span(buffer)[0] - low
    return whole[at : at + buffer.nbytes]


def _pages(low: int, high: int, buffers: Sequence[memoryview]) -> memoryview:
    store = _store_at(low, high)
    if len(_live) >= _MOST or high - low + _in_use() > store.limit:
        raise OSError
    owner = mapping.private_part(store.file.number, store.offset_of(low), high - low)
    owner.source = store, buffers
    key = id(owner)
    _live[key] = _View(owner, forgetting(_live, key))
    _live[key].size = high - low
    return mapping.memory_of(np.asarray(owner))


class _View(weakref.ref["mapping.PrivatePart"]):
    """A reference to pages that are private, and how many bytes of the store they keep."""

    __slots__ = ("size",)
    size: int


_live: dict[int, _View] = {}
_lock = critical_sections.object_lock()


def _in_use() -> int:
    return sum(map(attrgetter("size"), _live.values()))


# ------------------------------------------------------------------------------- the store


@dataclass(eq=False)
class _Store:
    """The object store of one connection to Ray; its descriptors are closed with the last view."""

    key: str | None
    region: Region  # Ray's mapping, which lasts while a view refers to a buffer in it
    file: Descriptor
    limit: int

    def offset_of(self, address: int) -> int:
        """The place in the file of an address in Ray's mapping."""
        return self.region.offset + address - self.region.start

    def has(self, low: int, high: int) -> bool:
        """Whether this is the mapping around an object, and Ray was not restarted since."""
        region = self.region
        return region.start <= low and high <= region.end and self.key == runtime.current_key()


_known: list[weakref.ref[_Store]] = []


def _store_at(low: int, high: int) -> _Store:
    for reference in _known:
        store = reference()
        if store is not None and store.has(low, high):
            return store
    store = _found(low, high)
    _known[:] = [known for known in _known if known() is not None]
    _known.append(weakref.ref(store))
    return store


def _found(low: int, high: int) -> _Store:
    """Find the store through its socket: its process, and there the file that Ray has mapped."""
    if not (_can_populate() and forks.Known.pid == os.getpid()):
        raise OSError
    region = proc_maps.region_at(low)
    if region is None or high > region.end or "s" not in region.flags:
        raise OSError
    key = runtime.current_key()
    limit = _limit(key)
    connections = list(_connections(runtime.store_socket()))
    try:
        file = _opened(_peer(connections[0]), region)
    except (OSError, LookupError):
        for number in connections:
            os.close(number)
        raise
    store = _Store(key, region, Descriptor.of(file), limit)
    for number in (file, *connections):
        closing(store, Descriptor.of(number))
    return store


@functools.lru_cache(maxsize=1)
def _limit(_key: str | None) -> int:
    """Bytes of the store that views may keep; Ray takes milliseconds to tell, once."""
    return runtime.store_memory() // _SHARE


def _connections(name: str) -> Iterator[int]:
    """New descriptors of the connections that this process has to the socket of this name."""
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                number = os.dup(int(entry))
                with socket.socket(fileno=number) as connection:
                    if connection.getpeername() == name:
                        connection.detach()
                        yield number


def _peer(connection: int) -> int:
    """The process at the other end."""
    with socket.socket(fileno=os.dup(connection)) as opened:
        told = opened.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(told)[0])


def _opened(pid: int, region: Region) -> int:
    """Open the file of a mapping, which has no name any more, as another process has it."""
    folder = f"/proc/{pid}/fd"
    for entry in os.listdir(folder):
        status = os.stat(f"{folder}/{entry}")
        if (status.st_dev, status.st_ino) == (region.device, region.inode):
            return os.open(f"{folder}/{entry}", os.O_RDONLY | os.O_CLOEXEC)
    raise LookupError(region)


# -------------------------------------------------------------------------------- forks


@functools.cache
def _can_populate() -> bool:
    """Whether the kernel copies pages on demand, as of Linux 5.14; then forks are watched."""
    page: npt.NDArray[np.uint8] = np.zeros(2 * mapping.PAGE, np.uint8)
    address = -(-mapping.address_of(page) // mapping.PAGE) * mapping.PAGE
    if not libc.populate_write(address, mapping.PAGE):
        return False
    forks.before(settle)
    forks.in_child(Step.HELD, _live.clear)
    return True


def settle() -> None:
    """Copy all pages of all views, which need the object store no more."""
    with _lock:
        for reference in list(_live.values()):
            owner = reference()
            if owner is not None and owner.settle():
                owner.source = None
                _live.pop(id(owner), None)
