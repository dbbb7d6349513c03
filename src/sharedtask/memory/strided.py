"""Elements that lie apart in the caller's memory: gathered where they are stored, not before.

A view with many gaps is stored without them. To gather it takes long, and is of no use to who asks
only whether it is still what was stored: for that it is enough to know the place, and that nobody
has written there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from sharedtask.system import libc

from .mapping import address_of, bounds

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    import numpy.typing as npt

    Bytes: TypeAlias = npt.NDArray[np.uint8]
    # What makes a buffer of a payload: memory as it is, or what has to be gathered first.
    Source: TypeAlias = "Bytes | Scattered"

# Bytes that are gathered at a time to compare or to store: they stay in the processor's cache.
_AT_A_TIME = 1 << 18


class Strip(NamedTuple):
    """An array that is gathered: where its first element goes, and its strides there in bytes."""

    array: npt.NDArray[Any]
    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scattered:
    """Strips that make ``nbytes`` bytes together; what none of them covers is zero."""

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
        """What says of which memory it is made, and how: no array is kept by it."""
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
    """The bytes that a source makes: the same memory where nothing has to be gathered."""
    return source.gathered() if isinstance(source, Scattered) else source


def pieces(source: Source) -> Iterable[Bytes]:
    """The same, where no dense copy is needed as a whole."""
    return source.pieces() if isinstance(source, Scattered) else (source,)


def _raw(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Elements of which only the bytes matter: numpy may leave out what pads a structure."""
    return array.view(np.dtype((np.void, array.itemsize)))


def _target(strip: Strip, whole: Bytes) -> npt.NDArray[Any]:
    """The place of a strip among the gathered."""
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
