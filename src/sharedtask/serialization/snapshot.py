"""Snapshot of a freshly decoded value, and the first part that differs from it later.

It is a digest of the re-encoded value, not of the published bytes, from which the re-encoding of an
unchanged value may differ in the order and the identity of small objects. Read-only memory is
represented by its address alone, so that gigabytes of arrays take no time.
"""

from __future__ import annotations

import contextlib
from itertools import chain
from typing import TYPE_CHECKING, Any

from sharedtask.memory import mapping, proc_maps
from sharedtask.system.loading import undisturbed
from sharedtask.system.records import dataclass

from . import codec, reducers
from .codec import FAILURES
from .diff import differences

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

# Looking up the mapping of memory takes about as long as the digest of this many bytes.
_LARGE = 1 << 18
_TIMES = 3


class Original:
    """The snapshot of a value. ``decode`` makes an equal value.

    If a value pickles differently each time, the parts that pickling itself changes are ignored;
    the rest is compared part by part.
    """

    __slots__ = ("_decode", "_noise", "_print")

    def __init__(self, value: Any, decode: Callable[[], Any]) -> None:
        self._decode = decode
        self._print = _steady_print(value)
        self._noise: frozenset[str] | None = None
        if self._print is None:
            with contextlib.suppress(*FAILURES):
                self._noise = frozenset(differences(decode(), value))

    def change(self, value: Any) -> str | None:
        """The path to the first change, "" if no path is found; None for an equal value."""
        if self._print is None:
            return self._change_of_unsteady(value)
        now = _print_or_none(value)
        if now is not None and now.digest == self._print.digest:
            return None
        try:
            way = self._way(value)
        except FAILURES:  # another thread is changing it
            return ""
        if way is None and now is not None:
            self._print = now  # restored to an equal value, of other objects
        return way

    def _way(self, value: Any) -> str | None:
        """The first difference that two freshly decoded values do not have as well."""
        fresh = self._decode()
        ways = differences(fresh, value)
        first = next(ways, None)
        if first is None:
            return None
        noise = set(differences(fresh, self._decode()))
        return next((way for way in chain((first,), ways) if way not in noise), None)

    def _change_of_unsteady(self, value: Any) -> str | None:
        """A difference that is found twice, and that was absent in the beginning."""
        if self._noise is None:
            return None
        try:
            fresh = self._decode()
            found = set(differences(fresh, value)) - self._noise
            return next((way for way in differences(fresh, value) if way in found), None)
        except FAILURES:
            return None


@dataclass(frozen=True, slots=True)
class _Print:
    """The digest of an encoding. ``held`` keeps memory alive whose address is in it."""

    digest: bytes
    held: tuple[npt.NDArray[Any], ...]


def _steady_print(value: Any) -> _Print | None:
    """The digest that repeated encodings of a value have in common, None if there is none.

    The first encoding may fill caches of the value.
    """
    known = _print_or_none(value)
    for _ in range(_TIMES - 1):
        if known is None:
            return None
        again = _print_or_none(value)
        if again is not None and again.digest == known.digest:
            return again
        known = again
    return None


def _print_or_none(value: Any) -> _Print | None:
    try:
        return _print(value)
    except FAILURES:
        return None


def _print(value: Any) -> _Print:
    with undisturbed("hashlib"):  # 3 ms to load, needed by watched values only
        import hashlib

    held: list[npt.NDArray[Any]] = []

    def refer(array: npt.NDArray[Any]) -> Any:
        if array.flags.writeable or array.dtype.hasobject:
            return None
        held.append(array)
        place = mapping.address_of(array), array.shape, array.strides
        return _stands_for, (*place, reducers.dtype_key(array.dtype))

    payload = codec.encode(value, refer=refer)
    digest = hashlib.sha256(payload.head, usedforsecurity=False)
    for buffer in payload.buffers:
        if _is_fixed(buffer):
            held.append(buffer)
            digest.update(b"%d %d" % (mapping.address_of(buffer), buffer.nbytes))
        else:
            digest.update(mapping.memory_of(buffer))
    return _Print(digest.digest(), tuple(held))


def _stands_for(*place: Any) -> None:
    """Named in a print, never called."""


def _is_fixed(buffer: npt.NDArray[Any]) -> bool:
    """Whether this memory is read-only for all."""
    base: Any = buffer.base
    # Memory that several arrays share is in a window, whose flags do not describe them.
    if not buffer.flags.writeable and type(base) is not mapping.Owner:
        return True
    if buffer.nbytes < _LARGE:
        return False
    region = proc_maps.region_at(mapping.address_of(buffer))
    return region is not None and "w" not in region.flags
