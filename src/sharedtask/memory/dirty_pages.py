"""Detects whether memory has changed since it was published.

Two exact methods. A *watch* asks the kernel to note the first write to every page (userfaultfd
write protection in its asynchronous mode, Linux 6.7): a check of 512 MiB then takes 0.05 ms. If
that is unavailable, or the array is small, the bytes are compared with the published copy
(``memcmp``, 18 GB/s, stops at the first difference).

Order matters: **protect, then copy**. A write in between is copied or noted, or both,
but never missed.
"""

from __future__ import annotations

import array
import bisect
import errno
import itertools
import logging
import os
import platform
import struct
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING

from sharedtask.system import critical_sections, libc
from sharedtask.system.posix import fcntl
from sharedtask.system.records import dataclass, field

from . import proc_maps
from .mapping import PAGE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A watch splits the kernel's record of the mapping (65,530 of them at most): not for small arrays,
# and not for all of very many.
WATCH_FROM = 1 << 18
_MOST = 1 << 13
# Asking for a mapping takes some microseconds; listing all takes a millisecond.
_FEW = 64
_log = logging.getLogger("sharedtask")

_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_UFFDIO_WRITEPROTECT = 0xC018AA06
_FEATURES = 1 << 15 | 1 << 13  # WP_ASYNC | WP_UNPOPULATED
_PAGEMAP_SCAN = 0xC0606610
_WP_MATCHING, _CHECK_WPASYNC, _PAGE_IS_WRITTEN = 1, 2, 2
_RUNS = 512  # runs of written pages that the kernel reports per call
_ONE = array.array("Q", bytes(24))  # room for one of them, which is not read
_SCAN = struct.Struct("12Q")
_LOST = {errno.EBADF, errno.ENOTTY}  # the program has closed it; the number may be reused


@dataclass(slots=True, eq=False)
class Watch:
    """A range of whole pages whose next write is detected.

    ``written`` if a write was seen when another watch of the same pages began.
    """

    start: int
    length: int
    tracker: _Tracker = field(repr=False)
    written: bool = False
    question: bytes = field(init=False, repr=False)  # the request, the same at each check

    def __post_init__(self) -> None:
        self.question = _scan(self.start, self.end, 0, _ONE)

    @property
    def end(self) -> int:
        """The address after the last page."""
        return self.start + self.length

    def unchanged(self) -> bool:
        """True where no page of the range was written, freed or moved since the watch began."""
        return self.tracker.unwritten(self)

    def release(self) -> None:
        """Stop watching."""
        self.tracker.release(self)


def watch(address: int, nbytes: int) -> Watch | None:
    """Watch the whole pages inside ``nbytes`` bytes at ``address``; None if that is impossible.

    The first and last page, shared with other data, are left to ``memcmp``.
    """
    return watch_all([(address, nbytes)])[0]


def watch_all(spans: Sequence[tuple[int, int]]) -> list[Watch | None]:
    """Watch each of these, as ``watch`` does, but list the mappings once, which is slow."""
    if max((n for _, n in spans), default=0) < WATCH_FROM or _is_switched_off():
        return [None] * len(spans)
    tracker, private = _the_tracker(), _PrivateMemory()
    return [
        tracker.watch(*_whole_pages(*span), private) if span[1] >= WATCH_FROM else None
        for span in spans
    ]


def _is_switched_off() -> bool:
    return os.environ.get("SHAREDTASK_WATCH") == "off"


def _whole_pages(address: int, nbytes: int) -> tuple[int, int]:
    start = -(-address // PAGE) * PAGE
    return start, (address + nbytes) // PAGE * PAGE - start


def same_bytes(left: int, right: int, nbytes: int) -> bool:
    """True where ``nbytes`` bytes at both addresses are equal."""
    return nbytes == 0 or libc.memcmp(left, right, nbytes)


class _Tracker:
    """This process' userfaultfd.

    A page has one bit, shared by all watches that it is in: one that clears it tells the others.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = critical_sections.table_lock()
        self._watches: list[Watch] = []  # by their addresses
        self._longest = 0
        self._uffd = self._pagemap = -1
        self.lost = False
        try:
            self._open()
        except OSError as error:  # an old kernel, or a container's seccomp filter: use memcmp
            _log.debug("userfaultfd is denied here (%s): changes are found by comparing", error)
            self._close()

    def _open(self) -> None:
        number = _SYS_USERFAULTFD.get(platform.machine())
        if number is None or not hasattr(os, "O_CLOEXEC"):
            raise OSError
        self._uffd = libc.syscall(number, os.O_CLOEXEC | _USER_MODE_ONLY)
        _ioctl(self._uffd, _UFFDIO_API, 0xAA, _FEATURES, 0)
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def _close(self) -> None:
        if self._uffd >= 0:
            os.close(self._uffd)
        self._uffd = -1

    def watch(self, start: int, length: int, private: _PrivateMemory) -> Watch | None:
        if self._uffd < 0 or self._pid != os.getpid() or len(self._watches) >= _MOST:
            return None
        watch = Watch(start, length, self)
        with self._lock:
            if not private.holds(start, length):
                return None
            try:
                _ioctl(self._uffd, _UFFDIO_REGISTER, start, length, 2, 0)
                self._protect(watch)
            except OSError as error:
                self.lost = error.errno in _LOST
                return None
            bisect.insort(self._watches, watch, key=_start)
            self._longest = max(self._longest, length)
            return watch

    def _protect(self, watch: Watch) -> None:
        """Protect its pages; of those in other watches too, only the written ones."""
        others = self._others(watch)
        for start, end in _outside(watch, others):
            _ioctl(self._uffd, _UFFDIO_WRITEPROTECT, start, end - start, 1)
        known = [other.written for other in others]
        for other in others:  # conservative if an interrupt follows
            other.written = True
        runs = self._protect_written(watch) if others else []
        for other, was in zip(others, known, strict=True):
            other.written = was or any(s < other.end and other.start < e for s, e in runs)

    def _others(self, watch: Watch) -> list[Watch]:
        """Watches that overlap this one, in the order of their addresses."""
        first = bisect.bisect_left(self._watches, watch.start - self._longest, key=_start)
        behind = bisect.bisect_left(self._watches, watch.end, key=_start)
        near = self._watches[first:behind]
        return [w for w in near if w is not watch and w.end > watch.start]

    def unwritten(self, watch: Watch) -> bool:
        if self._pid != os.getpid():  # the pages of a forked child are not watched
            return False
        try:
            with self._lock:  # consistent with the notes made when the bit was cleared
                return not watch.written and not self._ask(bytearray(watch.question))
        except OSError:  # EPERM: freed and reallocated, so no longer registered
            return False

    def _protect_written(self, watch: Watch) -> list[tuple[int, int]]:
        """Protect written pages and return their runs, atomically: no write is missed."""
        found, start, runs = [], watch.start, array.array("Q", bytes(24 * _RUNS))
        while start < watch.end:
            request = bytearray(_scan(start, watch.end, _WP_MATCHING, runs))
            count = self._ask(request)
            found += [(runs[3 * k], runs[3 * k + 1]) for k in range(count)]
            (start,) = struct.unpack_from("Q", request, 32)  # where it stopped
        return found

    def _ask(self, request: bytearray) -> int:
        """Scan for runs of written pages; returns their number, and stores where it stopped."""
        count: int = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, request)
        return count

    def release(self, watch: Watch) -> None:
        if self._pid != os.getpid():  # it would end the watch of the parent's memory
            return
        with self._lock:
            others = self._others(watch)
            self._watches.remove(watch)
            for start, end in _outside(watch, others):
                try:
                    request = bytearray(struct.pack("2Q", start, end - start))
                    fcntl.ioctl(self._uffd, _UFFDIO_UNREGISTER, request)
                except OSError:
                    pass  # the memory is freed already, with its registration


_start = attrgetter("start")


def _scan(start: int, end: int, flags: int, runs: array.array[int]) -> bytes:
    """The request for written pages; the kernel returns as many runs as there is room for."""
    where, room = runs.buffer_info()
    words = (_SCAN.size, _CHECK_WPASYNC | flags, start, end, 0, where, room // 3, 0)
    return _SCAN.pack(*words, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN)


def _outside(watch: Watch, others: list[Watch]) -> Iterator[tuple[int, int]]:
    """The parts of a watch that are in none of the others, which come in order."""
    start = watch.start
    for other in others:
        if start < other.start:
            yield start, other.start
        start = max(start, other.end)
    if start < watch.end:
        yield start, watch.end


def _ioctl(fd: int, request: int, *words: int) -> int:
    result: int = fcntl.ioctl(fd, request, bytearray(struct.pack(f"{len(words)}Q", *words)))
    return result


class _PrivateMemory:
    """Memory that is neither a file nor shared: the kernel is asked, or lists it for many.

    Watches miss writes through another mapping of the same pages, so only private memory qualifies.
    Registration succeeds on files and shared memory as well, so it proves nothing.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] | None = None
        self._questions = 0

    def holds(self, start: int, length: int) -> bool:
        self._questions += 1
        known = self._asked(start, start + length) if self._questions <= _FEW else None
        return self._listed(start, length) if known is None else known

    @staticmethod
    def _asked(start: int, end: int) -> bool | None:
        while start < end:
            found = proc_maps.private_end(start)
            if not found:
                return None if found is None else False
            start = found
        return True

    def _listed(self, start: int, length: int) -> bool:
        if self._spans is None:
            self._spans = proc_maps.private_spans()
        at, end = start, start + length
        first = bisect.bisect_right(self._spans, start, key=itemgetter(1))
        for low, high in itertools.islice(self._spans, first, None):
            if low > at or at >= end:
                break
            at = high
        return at >= end


_trackers: list[_Tracker] = []
_trackers_lock = critical_sections.table_lock()


def _the_tracker() -> _Tracker:
    with _trackers_lock:
        if not _trackers or _trackers[0]._pid != os.getpid() or _trackers[0].lost:
            _trackers[:] = [_Tracker()]
        return _trackers[0]
