"""Bytes of a value by the way they are sent: measured by encoding it, or a part of it.

This module does not know which kinds of values the codec shares without a copy; it measures the
output: the head is the pickle, buffers are not copied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import mapping
from sharedtask.memory.strided import Scattered
from sharedtask.serialization import buffers, codec
from sharedtask.serialization.codec import FAILURES
from sharedtask.serialization.traversal import SCANNED, spread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sharedtask.memory.payload import Payload

# Bytes and texts above this size are not encoded if that copies them.
_COPIED_UP_TO = 64 << 20
# Elements that are not contiguous.
_GATHERED_PER_SECOND = 5e8
# A million objects are further apart in memory than the thousand of a sample.
_FAR_APART = 1.5
_PART = 4 << 20
_MARKS = 64
_SAMPLE, _SAMPLE_SECONDS = 1000, 0.2


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes by the way they are sent, and the seconds of their encoding.

    Attributes:
        inside: Bytes of the pickle.
        outside: Bytes of buffers outside of it.
        placed: Bytes of memory that is shared already.
        apart: Bytes of large unmarked arrays that are stored by themselves.
        seconds: Time of encoding and gathering in the caller, measured or extrapolated.
    """

    inside: int = 0
    outside: int = 0
    placed: int = 0
    apart: int = 0
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.inside + self.outside + self.placed + self.apart

    def __add__(self, other: Weight) -> Weight:
        return Weight(
            self.inside + other.inside,
            self.outside + other.outside,
            self.placed + other.placed,
            self.apart + other.apart,
            self.seconds + other.seconds,
        )

    def times(self, factor: float) -> Weight:
        """The weight of ``factor`` such values."""
        placed, seconds = round(self.placed * factor), self.seconds * factor
        return replace(self.scaled(factor, factor), placed=placed, seconds=seconds)

    def scaled(self, inside: float, outside: float) -> Weight:
        """The same with other numbers of bytes in the pickle and in buffers."""
        return replace(
            self, inside=round(self.inside * inside), outside=round(self.outside * outside)
        )


def weigh(value: Any, *, in_place: bool = True, alone: bool = False) -> Weight:
    """Encode a value, as a part of another or ``alone``; encoding errors propagate."""
    if issubclass(type(value), np.ndarray) and value.dtype != object:
        alone = True  # a list around it would weigh more than the rest
    if type(value) in (bytes, bytearray, str) and len(value) > _COPIED_UP_TO:
        # A part shows how the whole is sent.
        return weigh(value[:_PART], alone=alone).times(len(value) / _PART)
    began = time.perf_counter()
    payload = codec.encode(value if alone else [value], in_place=in_place)
    return of_payload(payload, value, time.perf_counter() - began)


def of_payload(payload: Payload, value: Any, seconds: float) -> Weight:
    """The weight of an encoded value."""
    inside, outside = len(payload.head), sum(s.nbytes for s in payload.sources)
    apart = sum(s.nbytes for s in payload.sources if isinstance(s, Scattered))
    seconds += apart / _GATHERED_PER_SECOND
    # Memory that workers reopen leaves only a mark outside of the pickle.
    opened = (payload.held or issubclass(type(value), np.memmap)) and outside <= _MARKS
    return Weight(inside, outside, _nbytes(value) if opened else 0, seconds=seconds)


def weigh_sample(value: Any, total: int, *, in_place: bool = True) -> Weight:
    """The weight of a container of ``total`` parts, from a thousand of them.

    From fewer if these take long to encode.
    """
    began, rest = time.perf_counter(), iter(_sample(value))
    found, seen, size = Weight(), 0, 16
    fastest = float("inf")  # the first batches include one-time costs
    while batch := list(islice(rest, size)):
        weight = weigh(batch, in_place=in_place)
        fastest = min(fastest, weight.seconds / len(batch))
        found += weight
        seen += len(batch)
        size *= 2
        if time.perf_counter() - began > _SAMPLE_SECONDS:
            break
    if not seen:
        return found
    return replace(found.times(total / seen), seconds=fastest * total * _FAR_APART)


def is_strided(array: np.ndarray[Any, Any]) -> bool:
    """Whether the elements are not contiguous, so that they have to be gathered."""
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    dense = array.transpose(axes)
    if dense.flags.c_contiguous or buffers.is_flipped(dense):
        return False
    return not buffers.keeps_gaps(array, mapping.bounds(array))


def _sample(value: Any) -> Iterator[Any]:
    """Evenly spaced parts of a container; of a dict with their keys."""
    if type(value) is not dict:
        return (part for _, part in spread(value, _SAMPLE))
    step = max(len(value) // _SAMPLE, 1)
    return islice(value.items(), 0, min(len(value), SCANNED), step)


def _nbytes(value: Any) -> int:
    try:
        return int(value.nbytes)
    except FAILURES:
        return 0
