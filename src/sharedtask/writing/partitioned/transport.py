"""Partitioned arrays on their way to the workers: each item is lent its own block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from sharedtask.memory import arrays, locations
from sharedtask.system.finalizers import Known
from sharedtask.writing.partitioned.partitions import INTO, TAKEN

from . import partitions

if TYPE_CHECKING:
    import numpy.typing as npt

    from sharedtask.outcomes import Batch
    from sharedtask.writing.partitioned.partitions import Blocks


class Lender(Protocol):
    """What a worker has of a partitioned array."""

    comes_back: bool
    """Whether blocks go back with the results."""

    def lend(self, item: Any, *, star: bool) -> npt.NDArray[Any]:
        """The item's block, writable; with ``star`` the item is unpacked into arguments."""
        ...


class Taker(Protocol):
    """What a worker has of an array that takes the results of the items."""

    def take(self, index: int, value: Any) -> Any:
        """Write the result of the item at ``index``, or return what is to be written."""


class InPlace:
    """The array itself, in shared memory: what is written there is written."""

    comes_back = False

    def __init__(self, region: locations.Region, by: Any, *, is_kept: bool = False) -> None:
        self._region, self._by = region, by
        self.is_kept = is_kept  # from one call to the next
        self._cutter: partitions.Cutter | None = None

    def __reduce__(self) -> Any:
        return _in_place, (self._region, self._by)

    def is_over(self, region: locations.Region, by: Any) -> bool:
        """Whether it lends this array by this rule."""
        return self._region == region and self._by is by

    def lend(self, item: Any, *, star: bool) -> npt.NDArray[Any]:
        """A view of the block."""
        return self._mapped().block(_index(item, self._by, star=star))

    def base(self) -> npt.NDArray[Any]:
        """The whole array."""
        return self._mapped().base

    def _mapped(self) -> partitions.Cutter:
        if self._cutter is None:
            self._cutter = partitions.Cutter(self._region.view(writable=True))
        return self._cutter

    def take(self, index: int, value: Any) -> Any:
        """Write a result; nothing else goes back."""
        self.base()[index] = value
        return TAKEN


def _in_place(region: locations.Region, by: Any) -> InPlace:
    """In a worker, where it is mapped at once: what goes wrong then is told of the parameter."""
    lender = InPlace(region, by)
    lender.base()
    return lender


class ByCopy:
    """The array's contents: each block is copied, and goes back with the item's result."""

    comes_back = True

    def __init__(self, base: npt.NDArray[Any], by: Any) -> None:
        self._base, self._by = base, by

    def __reduce__(self) -> Any:
        return ByCopy, (self._base, self._by)

    def lend(self, item: Any, *, star: bool) -> npt.NDArray[Any]:
        """A copy of the block."""
        index = partitions.with_dots(_index(item, self._by, star=star))
        return np.array(self._base[index], order="K", subok=False)


class Taken:
    """For the results of items, where the array is elsewhere: they travel in its dtype."""

    def __init__(self, dtype: Any, shape: tuple[int, ...]) -> None:
        self._dtype, self._shape = dtype, shape

    def take(self, index: int, value: Any) -> Any:
        """Make of a result what will stand in the array."""
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
    """A partitioned array of a call that runs beside the caller's memory, or in it."""

    blocks: Blocks
    array: npt.NDArray[Any]
    region: locations.Region

    @classmethod
    def of(cls, blocks: Blocks) -> Working:
        """The caller's array where it lies in shared memory already, else a copy that does."""
        array, found = blocks.array, locations.find(blocks.array)
        if found is None:
            array = arrays.array(array)
            found = locations.find(array)
        assert found is not None  # noqa: S101  it was born there
        return cls(blocks, array, found.region)

    def lender(self) -> InPlace:
        """What the workers get; the same for each call with an array of the caller's."""
        if self.array is not self.blocks.array:
            return InPlace(self.region, self.blocks.by)
        return _kept_lender(self.array, self.region, self.blocks.by)

    def accept(self, batch: Batch) -> None:
        """Bring the blocks of the items that succeeded into the caller's array."""
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


# Workers keep what they have mapped as long as they are asked for the same lender, which lives as
# long as its array.
_lenders: Known[InPlace] = Known()


def _kept_lender(array: npt.NDArray[Any], region: locations.Region, by: Any) -> InPlace:
    known = _lenders.get(array)
    if known is not None and known.is_over(region, by):
        return known
    lender = InPlace(region, by, is_kept=True)
    _lenders.put(array, lender)
    return lender


def accept_returned(calls_blocks: Any, batch: Batch) -> None:
    """Write the blocks that came back with the results into the caller's arrays."""
    for offset, result in enumerate(batch.values):
        if isinstance(result, WithBlocks):
            batch.values[offset] = result.value
            for name, content in result.blocks.items():
                blocks = calls_blocks[name]
                blocks.array[blocks.indices[batch.first + offset]] = content
