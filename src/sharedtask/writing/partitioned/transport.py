"""Transport of partitioned arrays to workers: each item gets its own block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from sharedtask.memory import arrays, locations
from sharedtask.system.finalizers import Known
from sharedtask.system.records import dataclass
from sharedtask.writing.partitioned.partitions import INTO, TAKEN

from . import partitions

if TYPE_CHECKING:
    import numpy.typing as npt

    from sharedtask.outcomes import Batch
    from sharedtask.writing.partitioned.partitions import Blocks


class Lender(Protocol):
    """A worker's source of the blocks of a partitioned array."""

    comes_back: bool
    """Whether blocks are returned with the results."""

    def lend(self, item: Any, at: int, *, star: bool) -> npt.NDArray[Any]:
        """The block of item ``at``, writable; with ``star`` it is unpacked into arguments."""
        ...


class Taker(Protocol):
    """A worker's sink for the results that go into an array."""

    def take(self, index: int, value: Any) -> Any:
        """Write the result of the item at ``index``, or return the value to be written."""


class InPlace:
    """The array itself, in shared memory: writes take effect at once."""

    comes_back = False

    def __init__(self, region: locations.Region, by: Any, *, is_kept: bool = False) -> None:
        self._region, self._by = region, by
        self.is_kept = is_kept  # across calls
        self._cutter: partitions.Cutter | None = None

    def __reduce__(self) -> Any:
        return _in_place, (self._region, self._by)

    def is_over(self, region: locations.Region, by: Any) -> bool:
        """Whether it provides blocks of this array by this rule."""
        return self._region == region and self._by is by

    def lend(self, item: Any, at: int, *, star: bool) -> npt.NDArray[Any]:
        """A view of the block."""
        del at
        return self._mapped().block(_index(item, self._by, star=star))

    def base(self) -> npt.NDArray[Any]:
        """The whole array."""
        return self._mapped().base

    def _mapped(self) -> partitions.Cutter:
        if self._cutter is None:
            self._cutter = partitions.Cutter(self._region.view(writable=True))
        return self._cutter

    def take(self, index: int, value: Any) -> Any:
        """Write a result; nothing else is returned."""
        self.base()[index] = value
        return TAKEN


def _in_place(region: locations.Region, by: Any) -> InPlace:
    """In a worker, mapped at once, so that an error is attributed to the parameter."""
    lender = InPlace(region, by)
    lender.base()
    return lender


class Here(InPlace):
    """The caller's own array, for tasks in its process."""

    def __init__(self, blocks: Blocks) -> None:
        self._indices, self._own = blocks.indices, partitions.Cutter(blocks.array)

    def lend(self, item: Any, at: int, *, star: bool) -> npt.NDArray[Any]:
        """A view of the block that was found when the call was planned."""
        del item, star
        return self._own.block(self._indices[at])

    def base(self) -> npt.NDArray[Any]:
        """The whole array."""
        return self._own.base


class ByCopy:
    """The array's contents: each block is copied, and returned with the item's result."""

    comes_back = True

    def __init__(self, base: npt.NDArray[Any], by: Any) -> None:
        self._base, self._by = base, by

    def __reduce__(self) -> Any:
        return ByCopy, (self._base, self._by)

    def lend(self, item: Any, at: int, *, star: bool) -> npt.NDArray[Any]:
        """A copy of the block."""
        del at
        index = partitions.with_dots(_index(item, self._by, star=star))
        return np.array(self._base[index], order="K", subok=False)


class Taken:
    """For results if the array is on another machine: they are sent in its dtype."""

    def __init__(self, dtype: Any, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape

    def take(self, index: int, value: Any) -> Any:
        """Convert a result to the dtype and shape of its place in the array."""
        del index
        row = np.empty(self._shape, self._dtype)
        row[...] = value
        return WithBlocks(TAKEN, {INTO: row})


def _index(item: Any, by: Any, *, star: bool) -> Any:
    (index,) = partitions.indices_of([item[0] if star and by is None else item], by)
    return index


class WithBlocks(NamedTuple):
    """A result, and the blocks that the item has written, by parameter."""

    value: Any
    blocks: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Working:
    """A partitioned array of a call: the caller's own in shared memory, or a copy."""

    blocks: Blocks
    array: npt.NDArray[Any]
    region: locations.Region

    @classmethod
    def of(cls, blocks: Blocks) -> Working:
        """The caller's array if it is in shared memory already, else a copy in it."""
        array, found = blocks.array, locations.find(blocks.array)
        if found is None:
            array = arrays.array(array)
            found = locations.find(array)
        assert found is not None  # noqa: S101  it was born there
        return cls(blocks, array, found.region)

    def lender(self) -> InPlace:
        """The object that workers get; the same for each call with the same array."""
        if self.array is not self.blocks.array:
            return InPlace(self.region, self.blocks.by)
        return _kept_lender(self.array, self.region, self.blocks.by)

    def accept(self, batch: Batch) -> None:
        """Copy the blocks of succeeded items into the caller's array."""
        if self.array is self.blocks.array:
            return
        if isinstance(self.blocks.indices, range) and not batch.errors:  # results: all in order
            results = slice(batch.first, batch.first + len(batch.values))
            self.blocks.array[results] = self.array[results]
            return
        for position in range(batch.first, batch.first + len(batch.values)):
            if position - batch.first not in batch.errors:
                index = self.blocks.indices[position]
                self.blocks.array[index] = self.array[index]


# Workers keep a mapping while they get the same object, which lives as long as its array.
_lenders: Known[InPlace] = Known()


def _kept_lender(array: npt.NDArray[Any], region: locations.Region, by: Any) -> InPlace:
    known = _lenders.get(array)
    if known is not None and known.is_over(region, by):
        return known
    lender = InPlace(region, by, is_kept=True)
    _lenders.put(array, lender)
    return lender


def accept_returned(calls_blocks: Any, batch: Batch) -> None:
    """Write the blocks that were returned with the results into the caller's arrays."""
    for offset, result in enumerate(batch.values):
        if isinstance(result, WithBlocks):
            batch.values[offset] = result.value
            for name, content in result.blocks.items():
                blocks = calls_blocks[name]
                blocks.array[blocks.indices[batch.first + offset]] = content
