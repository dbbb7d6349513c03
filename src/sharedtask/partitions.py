"""Which block of an array an index names, and whether two blocks overlap. Pure.

On every axis an index is an arithmetic progression: start, step, count. In an array whose elements
do not lie on one another, two blocks share a byte exactly if their progressions meet on every
axis. So everything is decided by arithmetic on indices; no block is touched.
"""

from __future__ import annotations

import contextlib
import math
import operator
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sharedtask.annotations import Role
from sharedtask.errors import (
    ArgumentError,
    DefinitionError,
    ItemNote,
    OverlapError,
    UnshareableError,
)
from sharedtask.sharing import mapping

__all__ = [
    "Partition",
    "block",
    "check_base",
    "check_overlap",
    "index_text",
    "indices_of",
    "partition",
    "ranges_of",
]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


# ------------------------------------------------------------------------------ the public words


@dataclass(frozen=True, slots=True)
class Partition:
    """How an item names its block: ``Annotated[np.ndarray, Partition(by="rows")]``.

    Attributes:
        by: An attribute of the item (dots reach further: "tile.rows"), an element of it (an int),
            or a function of it. None: the item is the index itself.
    """

    role: ClassVar[Role] = Role.PARTITIONED

    by: str | int | Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        by: Any = self.by
        if isinstance(by, bool) or not (by is None or isinstance(by, (str, int)) or callable(by)):
            raise DefinitionError(
                f"Partition(by={by!r}) is no rule. Name an attribute of the item (a str), an"
                " element of it (an int), or give a function of it."
            )


def partition(n: int, parts: int) -> list[slice]:
    """Cut ``n`` elements into slices of nearly equal length, in order.

    Args:
        n: Number of elements.
        parts: Number of slices; where it is greater than ``n``, there are ``n``.

    Returns:
        Slices that cover every element once; their lengths differ by one at most, none is empty.

    Raises:
        ValueError: ``n`` is negative, or ``parts`` is less than one.

    Example:
        >>> partition(10, 3)
        [slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
    """
    n, parts = operator.index(n), operator.index(parts)
    if n < 0:
        raise ValueError(f"partition() got n={n}. A number of elements is 0 or more.")
    if parts < 1:
        raise ValueError(f"partition() got parts={parts}. Cut into 1 or more.")
    count = min(n, parts)
    return [slice(n * part // count, n * (part + 1) // count) for part in range(count)]


# -------------------------------------------------------------------------- from item to index


def indices_of(
    items: Sequence[Any], by: str | int | Callable[[Any], Any] | None = None
) -> list[Any]:
    """The index of every item's block, by the rule of ``Partition``.

    Raises:
        ArgumentError: An item lacks the attribute or element, or what it gives is no index.
    """
    if by is None:
        return list(items)
    find = _finder(by)
    return [_index_of(position, item, find, by) for position, item in enumerate(items)]


def _finder(by: str | int | Callable[[Any], Any]) -> Callable[[Any], Any]:
    if isinstance(by, str):
        return operator.attrgetter(by)
    return operator.itemgetter(by) if isinstance(by, int) else by


def _index_of(position: int, item: Any, find: Callable[[Any], Any], by: Any) -> Any:
    try:
        index = find(item)
    except (AttributeError, LookupError, TypeError) as error:
        if find is by:
            error.add_note(_note(by, position))
            raise
        raise ArgumentError(
            f"item {position}, {reprlib.repr(item)}: {_rule_text(by)} finds nothing ({error})."
        ) from error
    except Exception as error:  # the user's function, or a property
        error.add_note(_note(by, position))
        raise
    for part in index if isinstance(index, tuple) else (index,):
        if complaint := _complaint(part):
            raise ArgumentError(
                f"item {position}: {_rule_text(by)} gave {index_text(index)}: {complaint}"
            )
    return index


def _note(by: Any, position: int) -> ItemNote:
    return ItemNote(f"in {_rule_text(by)}, item {position}", position)


def _rule_text(by: Any) -> str:
    name = getattr(by, "__qualname__", None) or reprlib.repr(by)
    return f"Partition(by={name})"


# -------------------------------------------------------------------------- from index to ranges


def index_text(index: Any) -> str:
    """An index as one writes it: "[0:10, ::2, 3]"."""
    parts = index if isinstance(index, tuple) else (index,)
    return f"[{', '.join(map(_part_text, parts)) or '()'}]"


def _part_text(part: Any) -> str:
    if isinstance(part, slice):
        start, stop, step = (
            "" if bound is None else str(bound) for bound in (part.start, part.stop, part.step)
        )
        return f"{start}:{stop}:{step}" if step else f"{start}:{stop}"
    if part is Ellipsis:
        return "..."
    if isinstance(part, np.integer):
        return str(int(part))
    return " ".join(reprlib.repr(part).split())


_ALLOWED = "Use ints, slices and '...'"
_LOST = "makes a copy, and what a task writes to a copy would be lost"


def _complaint(part: Any) -> str:
    """Why a part of an index cannot name a block, "" where it can."""
    if isinstance(part, (bool, np.bool_)):
        return f"a bool is a mask, which {_LOST}. {_ALLOWED}."
    if isinstance(part, (int, np.integer, slice, EllipsisType)):
        return ""
    if part is None:
        return f"None adds an axis, and a block has those of the array. {_ALLOWED}."
    kind = type(part).__name__
    if isinstance(part, (str, bytes)):
        return f"a {kind} names no position; for a field, pass array['field'] itself. {_ALLOWED}."
    if isinstance(part, (np.ndarray, Sequence)):
        return (
            f"indexing with this {kind} {_LOST}. {_ALLOWED}: a slice where the elements are evenly"
            " spaced, else one item for each element."
        )
    return f"a {kind} names no block. {_ALLOWED}."


def _full(index: Any, ndim: int) -> tuple[Any, ...]:
    """One int or slice for each axis."""
    parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    dots = [axis for axis, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("'...' stands more than once.")
    missing = ndim - len(parts) + len(dots)
    if missing < 0:
        raise IndexError(f"it has more parts than the array has axes ({ndim}).")
    at = dots[0] if dots else len(parts)
    return (*parts[:at], *(slice(None),) * missing, *parts[at + 1 :])


def _range(part: Any, length: int) -> tuple[int, int, int]:
    """Start, stop and step on an axis; a longer step than the axis takes one element as well."""
    if complaint := _complaint(part):
        raise ArgumentError(complaint)
    if isinstance(part, slice):
        try:
            start, stop, step = part.indices(length)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"{error}.") from None
        longest = max(length, 1)
        return start, stop, max(-longest, min(step, longest))
    at = int(part)
    if not -length <= at < length:
        raise IndexError(f"{at} is outside an axis of {length} elements.")
    at %= length
    return at, at + 1, 1


def _ranges(index: Any, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    return [
        _range(part, length) for part, length in zip(_full(index, len(shape)), shape, strict=True)
    ]


def _explained(
    error: ArgumentError | IndexError, index: Any, shape: tuple[int, ...], item: str = ""
) -> ArgumentError | IndexError:
    """The same error, with the index, the shape and the item it is about."""
    about = f"{item}, " if item else ""
    return type(error)(f"{about}index {index_text(index)} of an array of shape {shape}: {error}")


# ------------------------------------------------------------------------------------ one block


def ranges_of(index: Any, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Start, stop and step of an index on each axis of an array.

    Raises:
        ArgumentError: The index makes a copy or is none.
        IndexError: An int is out of range, or there are too many.
    """
    try:
        return _ranges(index, shape)
    except (ArgumentError, IndexError) as error:
        raise _explained(error, index, shape) from None


def with_dots(index: Any) -> tuple[Any, ...]:
    """The same index, which gives an array also where it names a single element."""
    parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    return parts if any(part is Ellipsis for part in parts) else (*parts, ...)


def block(base: npt.NDArray[Any], index: Any, *, readonly: bool = False) -> npt.NDArray[Any]:
    """A view of ``base[index]`` that exposes nothing else of ``base``.

    Args:
        base: A writable array without Python objects, of any dtype, order and strides.
        index: Ints, slices and ``...``, or a tuple of them. An int for every axis gives an array
            of shape ``()``, not a scalar.
        readonly: Whether it cannot be written, nor be made writable.

    Returns:
        Array with the shape of ``base[index]``. No array in its chain of ``.base`` shows a byte
        before the block's first or after its last.

    Raises:
        ArgumentError: The index makes a copy (a list, an array, a mask) or is none, or ``base``
            cannot be partitioned.
        IndexError: An int is out of range, or there are too many.
    """
    check_base(base)
    ranges = ranges_of(index, base.shape)
    parts = _full(index, base.ndim)
    axes = [
        (len(range(*bounds)), bounds[2] * stride, isinstance(part, slice))
        for bounds, stride, part in zip(ranges, base.strides, parts, strict=True)
    ]
    at = sum(bounds[0] * stride for bounds, stride in zip(ranges, base.strides, strict=True))
    shape = tuple(count for count, _, kept in axes if kept)
    if not base.itemsize or not all(count for count, *_ in axes):
        return np.empty(shape, base.dtype)
    # A negative step reaches down from the first element.
    below = sum(min((count - 1) * stride, 0) for count, stride, _ in axes)
    above = sum(max((count - 1) * stride, 0) for count, stride, _ in axes) + base.itemsize
    strides = tuple(stride for _, stride, kept in axes if kept)
    extent = _bytes_of(base, at + below, above - below, readonly=readonly)
    return np.ndarray(shape, base.dtype, extent, -below, strides)


def _bytes_of(base: npt.NDArray[Any], offset: int, size: int, *, readonly: bool) -> Any:
    """Some bytes of an array, which is kept alive but cannot be reached by ``.base``."""
    address = mapping.address_of(base) + offset
    return np.asarray(mapping.Owner(address, size, readonly=readonly, source=base))


def check_base(base: Any, parameter: str = "") -> None:
    """Refuse an array that cannot be written block by block.

    Raises:
        ArgumentError: It is no plain array, read-only, or its elements lie on one another.
        UnshareableError: It holds Python objects.
    """
    array = f"'{parameter}'" if parameter else "the array"
    if not isinstance(base, np.ndarray):
        raise ArgumentError(f"{array} is of class {type(base).__name__}. Pass a numpy array.")
    if isinstance(base, np.ma.MaskedArray):
        raise ArgumentError(
            f"{array} is masked, and its mask is an array of its own. Pass data and mask as two."
        )
    if base.dtype.hasobject:
        raise UnshareableError(
            f"{array} (dtype {base.dtype}) holds Python objects, which mean nothing in another"
            " process. Use a dtype of numbers or of fixed-size text."
        )
    if not base.flags.writeable:
        raise ArgumentError(f"{array} is read-only, and tasks write to it. Pass a writable array.")
    if _lies_on_itself(base):
        raise ArgumentError(
            f"{array} shows the same bytes at more than one index (shape {base.shape}, strides"
            f" {base.strides}), so no block is apart from the others. Pass array.copy()."
        )


def _lies_on_itself(base: npt.NDArray[Any]) -> bool:
    """Whether a step on some axis is shorter than what the axes with shorter steps reach over.

    Every view that slicing and transposing can make of a dense array passes. To decide the few
    others, interleaved by ``as_strided``, is as hard as any knapsack.
    """
    if not base.size:
        return False
    reach = base.itemsize
    axes = zip(base.strides, base.shape, strict=True)
    for stride, length in sorted((abs(stride), length) for stride, length in axes if length > 1):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False


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


# Up to here looking at one after the other takes less time than the first call of numpy.
_FEW = 256


def _are_rows_apart(rows: int, indices: Sequence[Any]) -> bool:
    """Whether all are ranges of rows, and none meets another; False where that is not so simple."""
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
    # An array of shape () is one element long on an axis that nobody sees.
    axes = axes or [np.tile(np.array([[0], [1], [1]]), len(indices))]
    return _blocks(np.stack(axes, axis=1))


def _first_error(
    shape: tuple[int, ...], indices: Sequence[Any], describe: Callable[[int], str]
) -> ArgumentError | IndexError | None:
    """What is wrong with the first wrong index, and whose it is."""
    for position, index in enumerate(indices):
        try:
            _ranges(index, shape)
        except (ArgumentError, IndexError) as error:
            return _explained(error, index, shape, describe(position))
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
    return list(zip(*[_full(index, ndim) for index in indices], strict=True))


def _axis(column: Sequence[Any], length: int) -> Ints:
    """Starts, stops and steps on one axis, as rows."""
    kinds = set(map(type, column))
    with contextlib.suppress(OverflowError, TypeError, ValueError):
        if kinds == {slice}:
            return _slices(column, length)
        if not kinds & {bool} and all(issubclass(kind, (int, np.integer)) for kind in kinds):
            return _positions(column, length)
    bounds = [_range(part, length) for part in column]
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

    Sorting tells most blocks apart: see ``_separate``. Of what it leaves together, pairs are
    looked at, thousands at a time, until two meet.
    """
    blocks = _separate(blocks)
    for first, second in _candidates(blocks):
        for one, other in _hits(blocks, first, second):
            return int(blocks.item[one]), int(blocks.item[other])
    return None


# Each round costs a sort per axis. Grids, residues and guillotine cuts need a few; a spiral of
# strips, which gives away one block per round, is better left to the pairs.
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
    """Split every group where no block crosses a gap, then by residues of the common step."""
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
    groups stand in order.
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
    """Whether two have one residue, and each an element where both extents are.

    Where one step divides the other this is all there is to ask; elsewhere ``_meet`` decides.
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
    # ``shared`` is the least common element from low[0] on, if both went on for ever.
    period = one * modulus
    missing = max(low[1] - shared, 0)
    return shared + -(-missing // period) * period <= min(high)
