"""Strided arrays: their elements are copied together when they are stored, not before.

A view with many gaps is stored without them. The gathering takes long, and a check whether the view
is unchanged does not need it: the place of the elements, and a watch for writes, are enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from sharedtask.system import libc
from sharedtask.system.records import dataclass

from .mapping import address_of, bounds

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    import numpy.typing as npt

    Bytes: TypeAlias = npt.NDArray[np.uint8]
    # The source of a payload's buffer: memory as it is, or elements to gather first.
    Source: TypeAlias = "Bytes | Scattered"

# Bytes that are gathered at a time to compare or to store: fits into the processor's cache.
_AT_A_TIME = 1 << 18


class Strip(NamedTuple):
    """An array to gather: the target of its first element, and its target strides in bytes."""

    array: npt.NDArray[Any]
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scattered:
    """Strips that make ``nbytes`` bytes together; uncovered bytes are zero."""

    nbytes: int
    strips: tuple[Strip, ...]

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Scattered:
        """One array, to be gathered in C order."""
        strides, step = [], array.itemsize
        for length in reversed(array.shape):
            strides.append(step)
            step *= length
        return cls(array.nbytes, (Strip(array, 0, tuple(reversed(strides))),))

    def place(self) -> Hashable:
        """A key of the memory and layout that it is made of; keeps no array alive."""
        strips = [
            (address_of(array), array.itemsize, array.shape, array.strides, offset, strides)
            for array, offset, strides in self.strips
        ]
        return self.nbytes, tuple(strips)

    def span(self) -> tuple[int, int]:
        """The address of the first byte of all, and of the one after the last."""
        lows, highs = zip(*(bounds(strip.array) for strip in self.strips), strict=True)
        return min(lows), max(highs)

    def gathered(self) -> Bytes:
        """A dense copy."""
        whole: Bytes = np.zeros(self.nbytes, np.uint8)
        for strip in self.strips:
            _target(strip, whole)[...] = _raw(strip.array)
        return whole

    def pieces(self) -> Iterator[Bytes]:
        """The dense copy, a piece at a time, each of which is valid until the next one."""
        first, *others = self.strips
        if others:
            yield self.gathered()
            return
        for (piece,) in _together(_raw(first.array)):
            yield piece.view(np.uint8)

    def equals(self, stored: memoryview) -> bool:
        """Whether a dense copy would be these bytes."""
        whole = np.frombuffer(stored, np.uint8)
        return all(
            libc.memcmp(address_of(new), address_of(old), new.nbytes)
            for strip in self.strips
            for new, old in _together(_raw(strip.array), _target(strip, whole))
        )


def dense(source: Source) -> Bytes:
    """The bytes that a source makes: the same memory if nothing has to be gathered."""
    return source.gathered() if isinstance(source, Scattered) else source


def pieces(source: Source) -> Iterable[Bytes]:
    """The same bytes in pieces, without a whole dense copy."""
    return source.pieces() if isinstance(source, Scattered) else (source,)


def _raw(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Elements as raw bytes: numpy may otherwise leave out a structure's padding."""
    return array.view(np.dtype((np.void, array.itemsize)))


def _target(strip: Strip, whole: Bytes) -> npt.NDArray[Any]:
    """The target of a strip in the gathered bytes."""
    shape, dtype = strip.array.shape, np.dtype((np.void, strip.array.itemsize))
    return np.ndarray(shape, dtype, whole, strip.offset, strip.strides)


def _together(*arrays: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Arrays of one shape in C order, a dense piece of each at a time."""
    whole: Any = ["readonly", "contig"]
    found: Any = np.nditer(
        arrays,
        ["external_loop", "buffered"],
        [whole] * len(arrays),
        order="C",
        buffersize=max(_AT_A_TIME // arrays[0].itemsize, 1),
    )
    return (each if len(arrays) > 1 else (each,) for each in found)
