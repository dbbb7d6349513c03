"""Whether two blocks of an array overlap, before any of them is written. Pure.

On every axis an index is an arithmetic progression: start, step, count. In an array whose elements
do not overlap in memory, two blocks share a byte exactly if their progressions meet on every
axis. So everything is decided by arithmetic on indices, without access to a block.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedtask.errors import ArgumentError, OverlapError
from sharedtask.system.records import dataclass

from .partitions import all_ranges, check_base, explained, full_index, index_text, range_on

__all__ = ["check_overlap"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


# ----------------------------------------------------------------------------------- all blocks


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Blocks by their first and last element on each axis; the step of a single one is 0.

    Blocks of different groups are known not to overlap.
    """

    item: Ints  # (blocks,)
    group: Ints  # (blocks,)
    low: Ints  # (axes, blocks)
    high: Ints  # (axes, blocks)
    step: Ints  # (axes, blocks)

    def take(self, which: npt.NDArray[Any]) -> _Blocks:
        return _Blocks(
            self.item[which],
            self.group[which],
            self.low[:, which],
            self.high[:, which],
            self.step[:, which],
        )


def check_overlap(
    base: npt.NDArray[Any],
    indices: Sequence[Any],
    describe: Callable[[int], str],
    parameter: str = "",
) -> None:
    """Check that no two items have a byte of ``base`` in common, before any of them runs.

    Args:
        base: The array that is partitioned.
        indices: The index of every item's block.
        describe: Names the item at a position, as in "item 3"; the index is added.
        parameter: Name of the parameter, for the errors.

    Raises:
        OverlapError: Two blocks overlap. Empty blocks overlap nothing.
        ArgumentError: An index makes a copy or is none, or ``base`` cannot be partitioned.
        IndexError: An int is out of range, or there are too many.
    """
    check_base(base, parameter)
    if len(indices) <= _FEW and base.ndim and _are_rows_apart(base.shape[0], indices):
        return
    blocks = _read(base.shape, indices, describe)
    found = _first_overlap(blocks) if base.nbytes else None
    if found is not None:
        first, second = sorted(found)
        one, other = (f"{describe(at)}, {index_text(indices[at])}" for at in (first, second))
        raise OverlapError(first, second, parameter, (one, other))


# Up to this number, a Python loop takes less time than the first call of numpy.
_FEW = 256


def _are_rows_apart(rows: int, indices: Sequence[Any]) -> bool:
    """Whether all are ranges of rows, and none overlaps another; False for other indices."""
    spans = []
    for index in indices:
        if type(index) is not slice or index.step not in (None, 1):
            return False
        try:
            start, stop, _ = index.indices(rows)
        except TypeError:
            return False
        if start < stop:
            spans.append((start, stop))
    spans.sort()
    return all(one[1] <= other[0] for one, other in pairwise(spans))


def _read(
    shape: tuple[int, ...], indices: Sequence[Any], describe: Callable[[int], str]
) -> _Blocks:
    try:
        columns = _columns(indices, len(shape))
        axes = [_axis(column, length) for column, length in zip(columns, shape, strict=False)]
    except (ArgumentError, IndexError) as error:
        raise _first_error(shape, indices, describe) or error from None
    # An array of shape () is treated as one element on an extra axis.
    axes = axes or [np.tile(np.array([[0], [1], [1]]), len(indices))]
    return _blocks(np.stack(axes, axis=1))


def _first_error(
    shape: tuple[int, ...], indices: Sequence[Any], describe: Callable[[int], str]
) -> ArgumentError | IndexError | None:
    """The error of the first wrong index, with its item."""
    for position, index in enumerate(indices):
        try:
            all_ranges(index, shape)
        except (ArgumentError, IndexError) as error:
            return explained(error, index, shape, describe(position))
    return None


def _columns(indices: Sequence[Any], ndim: int) -> Sequence[Sequence[Any]]:
    """The parts of all indices, axis by axis, up to the last axis that any of them names."""
    kinds = set(map(type, indices))
    if ndim and not any(issubclass(kind, (tuple, EllipsisType)) for kind in kinds):
        return [indices]
    if kinds == {tuple} and len(set(map(len, indices))) == 1:
        columns = list(zip(*indices, strict=True))
        if len(columns) <= ndim and not any(EllipsisType in map(type, c) for c in columns):
            return columns
    return list(zip(*[full_index(index, ndim) for index in indices], strict=True))


def _axis(column: Sequence[Any], length: int) -> Ints:
    """Starts, stops and steps on one axis, as rows."""
    kinds = set(map(type, column))
    with contextlib.suppress(OverflowError, TypeError, ValueError):
        if kinds == {slice}:
            return _slices(column, length)
        if not kinds & {bool} and all(issubclass(kind, (int, np.integer)) for kind in kinds):
            return _positions(column, length)
    bounds = [range_on(part, length) for part in column]
    return np.array(bounds, np.int64).reshape(-1, 3).T


def _slices(column: Sequence[slice], length: int) -> Ints:
    bounds = map(operator.methodcaller("indices", length), column)
    start, stop, step = np.fromiter(chain.from_iterable(bounds), np.int64).reshape(-1, 3).T
    return np.stack([start, stop, step.clip(-max(length, 1), max(length, 1))])


def _positions(column: Sequence[int], length: int) -> Ints:
    at = np.fromiter(column, np.int64, len(column))
    if at.size and not -length <= at.min() <= at.max() < length:
        raise IndexError("an int is out of range.")
    at = np.where(at < 0, at + length, at)
    return np.stack([at, at + 1, np.ones_like(at)])


def _blocks(bounds: Ints) -> _Blocks:
    """From starts, stops and steps on each axis (3, axes, blocks); empty blocks are left out."""
    start, stop, step = bounds
    count = np.maximum((stop - start + step - np.sign(step)) // step, 0)
    last = start + (count - 1) * step
    items = np.arange(start.shape[1])
    blocks = _Blocks(
        items,
        np.zeros_like(items),
        np.minimum(start, last),
        np.maximum(start, last),
        np.where(count > 1, np.abs(step), 0),
    )
    return blocks.take(np.flatnonzero((count > 0).all(axis=0)))


# ---------------------------------------------------------------------------------- the search


def _first_overlap(blocks: _Blocks) -> tuple[int, int] | None:
    """The items of two blocks that overlap, None where there are none.

    Sorting separates most blocks: see ``_separate``. Among the remaining ones, pairs are checked,
    thousands at a time, until two overlap.
    """
    blocks = _separate(blocks)
    for first, second in _candidates(blocks):
        for one, other in _hits(blocks, first, second):
            return int(blocks.item[one]), int(blocks.item[other])
    return None


# Each round costs a sort per axis. Grids, residues and guillotine cuts need a few; a spiral of
# strips, which separates one block per round, is better checked by pairs.
_ROUNDS = 32


def _separate(blocks: _Blocks) -> _Blocks:
    """Split groups along one axis after the other until nothing splits; drop single blocks."""
    axes = len(blocks.low)
    settled = 0
    for turn in range(_ROUNDS * axes):
        if settled == axes or not blocks.item.size:
            break
        blocks, changed = _split(blocks, turn % axes)
        settled = 0 if changed else settled + 1
    return blocks


def _split(blocks: _Blocks, axis: int) -> tuple[_Blocks, bool]:
    """Split every group at gaps that no block crosses, then by residues of the common step."""
    near, far = _line(blocks, axis)
    blocks = blocks.take(order := np.argsort(near, kind="stable"))
    near, far = near[order], far[order]
    before = int(np.count_nonzero(np.diff(blocks.group))) + 1
    gaps = near[1:] > np.maximum.accumulate(far)[:-1]
    blocks = replace(blocks, group=np.concatenate([[0], np.cumsum(gaps)]))
    blocks, divided = _by_residue(blocks, axis)
    changed = divided or int(blocks.group.max()) >= before
    return blocks.take(np.flatnonzero(np.bincount(blocks.group)[blocks.group] > 1)), changed


def _line(blocks: _Blocks, axis: int) -> tuple[Ints, Ints]:
    """First and last elements on an axis, with the groups one behind the other on one line."""
    offset = blocks.group * (blocks.high[axis].max() + 1)
    return blocks.low[axis] + offset, blocks.high[axis] + offset


def _by_residue(blocks: _Blocks, axis: int) -> tuple[_Blocks, bool]:
    """Divide an axis by the common divisor of each group's steps; different remainders part.

    ``a[0::3]``, ``a[1::3]`` and ``a[5]`` become group 0, group 1, and element 1 of group 2. The
    groups are in order.
    """
    if not blocks.step[axis].any():
        return blocks, False
    starts = np.flatnonzero(np.diff(blocks.group, prepend=-1))
    common = np.maximum(np.gcd.reduceat(blocks.step[axis], starts), 1)[blocks.group]
    if not (common > 1).any():
        return blocks, False
    residue = blocks.low[axis] % common
    _, group = np.unique(blocks.group * common.max() + residue, return_inverse=True)
    low, high, step = blocks.low.copy(), blocks.high.copy(), blocks.step.copy()
    for values in (low, high, step):
        values[axis] //= common
    return _Blocks(blocks.item, group, low, high, step), True


_PAIRS = 1 << 16


def _candidates(blocks: _Blocks) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of one group whose extents overlap on an axis: the axis that gives the fewest."""
    if not blocks.item.size:
        return
    sweeps = [_sweep(*_line(blocks, axis)) for axis in range(len(blocks.low))]
    order, counts = min(sweeps, key=lambda sweep: int(sweep[1].sum()))
    total = np.concatenate([[0], np.cumsum(counts)])
    row = 0
    while row < len(counts):
        end = max(int(np.searchsorted(total, total[row] + _PAIRS, "right")) - 1, row + 1)
        first = np.repeat(np.arange(row, end), counts[row:end])
        ahead = np.arange(total[row], total[end]) - total[first]
        yield order[first], order[first + 1 + ahead]
        row = end


def _sweep(near: Ints, far: Ints) -> tuple[Ints, Ints]:
    """The order by first elements, and how many of those behind each begin before it ends."""
    order = np.argsort(near, kind="stable")
    ends = np.searchsorted(near[order], far[order], "right")
    return order, ends - np.arange(len(order)) - 1


def _hits(blocks: _Blocks, first: Ints, second: Ints) -> Iterator[tuple[int, int]]:
    """The pairs that have an element in common."""
    for test in (_reach, _agree):
        for axis in range(len(blocks.low)):
            one, other = (
                (blocks.low[axis, side], blocks.high[axis, side], blocks.step[axis, side])
                for side in (first, second)
            )
            kept = test(one, other)
            first, second = first[kept], second[kept]
    bounds = blocks.low, blocks.high, blocks.step
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        if all(
            _meet(*(values[axis, [one, other]].tolist() for values in bounds))
            for axis in range(len(blocks.low))
        ):
            yield one, other


_Progressions = tuple[Ints, Ints, Ints]  # first elements, last elements, steps


def _reach(one: _Progressions, other: _Progressions) -> Mask:
    """Whether the extents overlap."""
    overlap: Mask = np.maximum(one[0], other[0]) <= np.minimum(one[1], other[1])
    return overlap


def _agree(one: _Progressions, other: _Progressions) -> Mask:
    """Whether two have one residue, and each an element in the common extent.

    If one step divides the other this is sufficient; else ``_meet`` decides.
    """
    start, end = np.maximum(one[0], other[0]), np.minimum(one[1], other[1])
    met: Mask = (one[0] - other[0]) % np.maximum(np.gcd(one[2], other[2]), 1) == 0
    for low, _, step in (one, other):
        met &= start + (low - start) % np.maximum(step, 1) <= end
    return met


def _meet(low: list[int], high: list[int], steps: list[int]) -> bool:
    """Whether two progressions have an element in common, by the Chinese remainder theorem."""
    one, other = (max(step, 1) for step in steps)
    common = math.gcd(one, other)
    times, rest = divmod(low[1] - low[0], common)
    if rest:
        return False
    modulus = other // common
    shared = low[0] + one * (times * pow(one // common, -1, modulus) % modulus)
    # ``shared`` is the least common element from low[0] on, if both were infinite.
    period = one * modulus
    missing = max(low[1] - shared, 0)
    return shared + -(-missing // period) * period <= min(high)
