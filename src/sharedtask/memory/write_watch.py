"""Detects writes to memory that cannot be protected: arrays of the caller, in the caller's process.

    record -> (tasks run) -> has it changed since?

The kernel notes writes to large arrays page by page: see ``dirty_pages``. Its watch is kept for the
next call, so that a call over the same array takes some microseconds. Of other arrays a digest is
compared: of all bytes if they are few, else of a sample.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict, deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.system import critical_sections

from . import dirty_pages, mapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from .dirty_pages import Watch
    from .strided import Bytes

# Of more buffers than this the largest are looked at. Of one that is not watched, this many bytes.
_MOST_BUFFERS, _MOST_BYTES = 16, 1 << 18
_SAMPLE, _ENDS = 1024, 512
# Words in a row of the digest: a prime, so that writes at round distances do not cancel out.
_ROW = 61
_WATCH_SECONDS, _DIGEST_SECONDS, _BYTES_PER_SECOND = 3e-6, 1e-5, 2e10
# An array that the caller has changed between this many calls is not watched any more: after each
# of them the first write to every page takes ten times as long.
_CHANGES_WATCHED, _MOST_KEPT = 2, 64


class WriteWatch:
    """Detects writes to some buffers from its creation on, until ``close()``.

    ``seconds`` is the approximate time of a check.
    """

    def __init__(self, buffers: Sequence[Bytes]) -> None:
        _tidy()
        largest = sorted(buffers, key=attrgetter("nbytes"), reverse=True)[:_MOST_BUFFERS]
        self._checks = [_check_of(buffer) for buffer in largest]
        self.seconds = sum(check.seconds for check in self._checks)
        self._lock = critical_sections.object_lock()
        self._is_closed = False

    def written(self) -> bool:
        """Whether a buffer was written since the last check; of samples, most writes are found."""
        with self._lock:
            return self._written() and not self._is_closed

    def _written(self) -> bool:
        found = False
        for number, check in enumerate(self._checks):
            if check.is_written():
                self._checks[number] = _Digest(check.buffer)
                check.close(is_written=True)
                found = True
        return found

    def close(self) -> None:
        """Leave the watches to the next call. Takes no lock: it may run in a finalizer."""
        self._is_closed = True  # first: a watch may be released by the call that takes it over
        for check in self._checks:
            check.close()


class _Digest:
    """The digest of a buffer, or of a sample of it."""

    __slots__ = ("_known", "buffer", "seconds")

    def __init__(self, buffer: Bytes) -> None:
        self.buffer = buffer
        nbytes = min(buffer.nbytes, _MOST_BYTES)
        self.seconds = _DIGEST_SECONDS + nbytes / _BYTES_PER_SECOND
        self._known = _digest(buffer)

    def is_written(self) -> bool:
        return _digest(self.buffer) != self._known

    def close(self, *, is_written: bool = False) -> None:
        """Nothing to close."""


class _Pages:
    """A watch of the whole pages of a buffer, and the bytes around them."""

    __slots__ = ("_edges", "_kept", "buffer", "seconds")

    def __init__(self, buffer: Bytes, kept: _Kept, watch: Watch) -> None:
        self.buffer, self.seconds = buffer, _WATCH_SECONDS
        self._kept: _Kept | None = kept
        begin = watch.start - mapping.address_of(buffer)
        parts = buffer[:begin], buffer[begin + watch.length :]
        self._edges = [(part, part.tobytes()) for part in parts]

    def is_written(self) -> bool:
        kept = self._kept
        if kept is None or kept.watch is None:
            return False
        return not kept.watch.unchanged() or any(p.tobytes() != was for p, was in self._edges)

    def close(self, *, is_written: bool = False) -> None:
        """Keep the watch for the next call; idempotent."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.is_spent = is_written
            _keep(self.buffer, kept)


class _Kept:
    """A watch between two calls, and how often it was found written then.

    ``is_spent`` if the last call has found it written. ``owner`` refers to the array whose memory
    it is: another one may get the same place later.
    """

    __slots__ = ("changes", "is_spent", "owner", "watch")

    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner)
        self.watch: Watch | None = None
        self.changes = 0
        self.is_spent = False

    def renew(self, address: int, nbytes: int) -> Watch | None:
        """A watch that has seen no write, if there can be one."""
        if self.watch is not None and self.watch.unchanged():
            return self.watch
        if self.watch is not None:
            self.changes += not self.is_spent
            self.is_spent = False
            self.watch.release()
        wanted = self.changes < _CHANGES_WATCHED
        self.watch = dirty_pages.watch(address, nbytes) if wanted else None
        return self.watch


# Of this process, by place. A call takes an entry out, so that no two calls have the same watch.
_kept: OrderedDict[tuple[int, int, int], _Kept] = OrderedDict()
_unneeded: deque[_Kept] = deque()


def _check_of(buffer: Bytes) -> _Digest | _Pages:
    if buffer.nbytes < dirty_pages.WATCH_FROM:
        return _Digest(buffer)
    kept, owner = _kept.pop(_key(buffer), None), _owner(buffer)
    if kept is None or kept.owner() is not owner:
        if kept is not None:
            _unneeded.append(kept)
        kept = _Kept(owner)
    watch = kept.renew(mapping.address_of(buffer), buffer.nbytes)
    if watch is not None:
        return _Pages(buffer, kept, watch)
    _keep(buffer, kept)
    return _Digest(buffer)


def _owner(buffer: Any) -> Any:
    """The array whose memory it is, which lives from call to call."""
    while isinstance(buffer.base, np.ndarray):
        buffer = buffer.base
    if isinstance(buffer.base, mapping.Owner) and isinstance(buffer.base.source, list):
        return _owner(buffer.base.source[0])
    return buffer


def _key(buffer: Bytes) -> tuple[int, int, int]:
    return os.getpid(), mapping.address_of(buffer), buffer.nbytes


def _keep(buffer: Bytes, kept: _Kept) -> None:
    left = _kept.pop(_key(buffer), None)  # of a call at the same time
    if left is not None:
        _unneeded.append(left)
    _kept[_key(buffer)] = kept


def _tidy() -> None:
    """Release what is kept too long, or twice."""
    while len(_kept) > _MOST_KEPT:
        _unneeded.append(_kept.popitem(last=False)[1])
    while _unneeded and (kept := critical_sections.first_of(_unneeded)) is not None:
        if kept.watch is not None:
            kept.watch.release()


def _digest(buffer: Bytes) -> bytes:
    words = buffer[: buffer.nbytes // 8 * 8].view(np.uint64)
    if buffer.nbytes <= _MOST_BYTES:
        return _sums(words) + buffer[words.nbytes :].tobytes()
    stride = words.size // _SAMPLE
    ends = words[:_ENDS].tobytes() + words[-_ENDS:].tobytes() + buffer[words.nbytes :].tobytes()
    return words[::stride].tobytes() + ends


def _sums(words: npt.NDArray[np.uint64]) -> bytes:
    """The sums of the columns, which is much faster than a hash."""
    rows = words.size // _ROW
    whole = words[: rows * _ROW].reshape(rows, _ROW)
    return bytes(np.add.reduce(whole, axis=0)) + words[rows * _ROW :].tobytes()
