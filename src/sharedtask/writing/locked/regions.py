"""The regions of an array that can be locked separately: rows or blocks, numbered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from sharedtask.annotations import Role
from sharedtask.errors import ArgumentError, DefinitionError
from sharedtask.system.records import dataclass
from sharedtask.writing.partitioned import partitions

from .rwlock import Span

__all__ = ["Cells", "Regions"]

# This many rows can be locked separately by default; if there are more, they are grouped.
_ROWS = 1 << 16
_MOST_CELLS = 1 << 20


@dataclass(frozen=True, slots=True)
class Regions:
    """Regions to lock together: ``Annotated[Locked[np.ndarray], Regions(blocks=(64, 64))]``.

    Attributes:
        blocks: Lengths of the blocks that are locked as a whole, along the first axes. None: rows,
            or groups of rows if there are more than 65,536. The cost of an index grows
            with the number of rows of blocks that it touches.
        poisoned: What happens in a region whose writer died: "raise" RegionPoisonedError until
            a block repairs it, or "continue" without an error.
    """

    role: ClassVar[Role] = Role.LOCKED

    blocks: int | tuple[int, ...] | None = None
    poisoned: Literal["raise", "continue"] = "raise"

    def __post_init__(self) -> None:
        given: Any = self.blocks
        blocks = given if isinstance(given, tuple) else (1 if given is None else given,)
        if not blocks or not all(type(length) is int and length > 0 for length in blocks):
            raise DefinitionError(f"Regions(blocks={self.blocks!r}): lengths are 1 or more.")
        if self.poisoned not in ("raise", "continue"):
            raise DefinitionError(f"Regions(poisoned={self.poisoned!r}) is 'raise' or 'continue'.")

    def lengths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths for an array of this shape, for each of its first axes.

        Raises:
            ArgumentError: There are more lengths than axes, or too many blocks.
        """
        if self.blocks is None:
            return (max(-(-shape[0] // _ROWS), 1),) if shape else ()
        blocks = (self.blocks,) if isinstance(self.blocks, int) else self.blocks
        if len(blocks) > len(shape):
            raise ArgumentError(f"Regions(blocks={blocks}) do not fit an array of shape {shape}.")
        return blocks


class Cells:
    """The regions of an array that can be locked separately, numbered in C order."""

    def __init__(self, shape: tuple[int, ...], lengths: tuple[int, ...]) -> None:
        self.shape, self.lengths = shape, lengths
        self._counts = tuple(
            max(-(-extent // length), 1) for extent, length in zip(shape, lengths, strict=False)
        )
        self.count = math.prod(self._counts)
        self.whole = (Span(0, self.count),)
        if self.count > _MOST_CELLS:
            raise ArgumentError(
                f"an array of shape {shape} has {self.count:,} blocks of {lengths}; at most"
                f" {_MOST_CELLS:,} can be locked apart. Lock larger ones: Regions(blocks=...)."
            )

    def spans(self, index: Any) -> Sequence[Span]:
        """The regions that an index touches, ascending.

        Raises:
            ArgumentError: The index makes a copy or is none.
            IndexError: An int is out of range, or there are too many.
        """
        if len(self.lengths) == 1 and type(index) in (int, slice):  # usually: 1 us instead of 5
            quick = self._quick(index, self.shape[0], self.lengths[0])
            if quick is not None:
                return (quick,)
        extents = []
        for axis, length in zip(
            partitions.ranges_of(index, self.shape), self.lengths, strict=False
        ):
            touched = range(*axis)
            if not touched:
                return ()
            low, high = sorted((touched[0] // length, touched[-1] // length))
            extents.append((low, high + 1))
        return tuple(self._rows(extents))

    def _quick(self, index: int | slice, rows: int, length: int) -> Span | None:
        """The span of a row, or of rows in ascending order; None for other cases."""
        if isinstance(index, slice):
            start, stop, step = index.indices(rows)
            if step == 1 and start < stop:
                return Span(start // length, (stop - 1) // length + 1)
        elif -rows <= index < rows:
            cell = index % rows // length
            return Span(cell, cell + 1)
        return None

    def _rows(self, extents: Sequence[tuple[int, int]]) -> list[Span]:
        """One span for each row of a box of cells; adjacent rows are joined."""
        if not extents:
            return [Span(0, 1)]
        *outer, (low, high) = extents
        spans: list[Span] = []
        for place in itertools.product(*(range(*extent) for extent in outer)):
            row = 0
            for at, count in zip((*place, 0), self._counts, strict=True):
                row = row * count + at
            if spans and spans[-1].stop == row + low:
                spans[-1] = Span(spans[-1].start, row + high)
            else:
                spans.append(Span(row + low, row + high))
        return spans
