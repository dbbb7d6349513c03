"""Bytes of a value by the way they are sent: measured by encoding it, or a part of it.

This module does not know which kinds of values the codec shares without a copy; it measures the
output: the head is the pickle, buffers are not copied.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import mapping
from sharedtask.memory.strided import Scattered
from sharedtask.serialization import buffers, codec
from sharedtask.serialization.codec import FAILURES
from sharedtask.serialization.traversal import count, is_object_array
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
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
# Going through a dict or a set takes 10 ns for each item that is left out.
_SCANNED = 20_000_000


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes by the way they are sent, and the seconds of their encoding.

    Attributes:
        inside: Bytes of the pickle.
        outside: Bytes of buffers outside of it.
        placed: Bytes of memory that is shared already.
        captured: Bytes of large unmarked arrays that are stored by themselves.
        seconds: Time of encoding and gathering in the caller, measured or extrapolated.
    """

    inside: int = 0
    outside: int = 0
    placed: int = 0
    captured: int = 0
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """All bytes."""
        return self.inside + self.outside + self.placed + self.captured

    def __add__(self, other: Weight) -> Weight:
        return Weight(
            self.inside + other.inside,
            self.outside + other.outside,
            self.placed + other.placed,
            self.captured + other.captured,
            self.seconds + other.seconds,
        )

    def beyond(self, less: Weight) -> Weight:
        """What it has more than another."""
        return Weight(
            max(self.inside - less.inside, 0),
            max(self.outside - less.outside, 0),
            max(self.placed - less.placed, 0),
            max(self.captured - less.captured, 0),
            max(self.seconds - less.seconds, 0.0),
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
    scattered = sum(s.nbytes for s in payload.sources if isinstance(s, Scattered))
    seconds += scattered / _GATHERED_PER_SECOND
    # Memory that workers reopen leaves only a mark outside of the pickle.
    opened = (payload.held or issubclass(type(value), np.memmap)) and outside <= _MARKS
    return Weight(inside, outside, _nbytes(value) if opened else 0, seconds=seconds)


def weigh_sample(value: Any, total: int, *, in_place: bool = True) -> Weight:
    """The weight of a container of ``total`` parts, from a thousand of them.

    Where these take long to encode, from fewer. Each time twice as many are encoded, in one piece:
    what they have in common weighs once, and by so much as the last half adds, all others add.
    """
    began, parts = time.perf_counter(), _sample(value)
    less, more = (0, Weight()), (0, Weight())
    size, fastest = 16, float("inf")  # the first batches pay for what all of them need
    while more[0] < len(parts):
        weight = weigh(parts[:size], in_place=in_place)
        less, more = more, (min(size, len(parts)), weight)
        fastest = min(fastest, weight.seconds / more[0])
        size *= 2
        if time.perf_counter() - began > _SAMPLE_SECONDS:
            break
    if not more[0]:
        return more[1]
    found = _extrapolated(less, more, total)
    return replace(found, seconds=fastest * total * _FAR_APART)


def weigh_column(values: Any, rows: int) -> Weight:
    """The weight of a column of pandas, from about so many rows of it."""
    if len(values) <= rows:
        return weigh(values)
    some = values[:: len(values) // rows]
    half = some[::2]
    return _extrapolated((len(half), weigh(half)), (len(some), weigh(some)), len(values))


def _extrapolated(less: tuple[int, Weight], more: tuple[int, Weight], total: int) -> Weight:
    """The weight of ``total`` parts, of which fewer and more were weighed."""
    factor = (total - more[0]) / (more[0] - less[0])
    return more[1] + more[1].beyond(less[1]).times(factor)


def is_strided(array: np.ndarray[Any, Any]) -> bool:
    """Whether the elements are not contiguous, so that they have to be gathered."""
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    dense = array.transpose(axes)
    if dense.flags.c_contiguous or buffers.is_flipped(dense):
        return False
    return not buffers.keeps_gaps(array, mapping.bounds(array))


def _sample(value: Any) -> list[Any]:
    """Parts from all over a container, in any order; of a dict with their keys.

    Not at even distances: what comes again and again might come at these.
    """
    total = min(count(value) or 0, _SCANNED)
    if not total:
        return []
    chance = np.random.default_rng(0)
    places = np.unique(chance.integers(0, total, _SAMPLE)) if total > _SAMPLE else np.arange(total)
    found = _at(value, places.tolist())
    return [found[k] for k in chance.permutation(len(found))]


def _at(value: Any, places: list[int]) -> list[Any]:
    if type(value) is list or type(value) is tuple:
        return [value[k] for k in places]
    if is_object_array(value):
        return [value.flat[k] for k in places]
    parts = iter(value.items() if type(value) is dict else value)
    gaps = (k - before for before, k in zip([-1, *places], places, strict=False))
    return [next(islice(parts, gap - 1, None)) for gap in gaps]


def _nbytes(value: Any) -> int:
    try:
        return int(value.nbytes)
    except FAILURES:
        return 0
