"""The block of an array that an index names, and its view for a task. Pure."""

from __future__ import annotations

import contextlib
import operator
import reprlib
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sharedtask.annotations import Role
from sharedtask.errors import ArgumentError, DefinitionError, ItemNote
from sharedtask.memory import mapping
from sharedtask.system.records import dataclass
from sharedtask.writing.checks import check_base

__all__ = [
    "INTO",
    "TAKEN",
    "Blocks",
    "Cutter",
    "Partition",
    "block",
    "check_base",
    "index_text",
    "indices_of",
    "partition",
    "ranges_of",
]


# The name under which ``Call.blocks`` has the array that takes the results themselves: no function
# can have a parameter of that name.
INTO = "map_into()"
# The value among the results for one that was written there: a bool is sent fastest.
TAKEN = True

# -------------------------------------------------------------------------- the public annotations


@dataclass(frozen=True, slots=True)
class Partition:
    """How an item names its block: ``Annotated[np.ndarray, Partition(by="rows")]``.

    Attributes:
        by: An attribute of the item (also nested: "tile.rows"), an element of it (an
            int), or a function of it. None: the item itself is the index.
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


@dataclass(frozen=True, slots=True)
class Blocks:
    """A partitioned array of the caller: ``indices[k]`` names the block of item k.

    ``by`` is the rule from an item to its index.
    """

    array: npt.NDArray[Any]
    by: Any
    indices: Sequence[Any]


def partition(n: int, parts: int) -> list[slice]:
    """Cut ``n`` elements into slices of nearly equal length, in order.

    Args:
        n: Number of elements.
        parts: Number of slices; if greater than ``n``, there are ``n``.

    Returns:
        Slices that cover every element once; their lengths differ by one at most, none is empty.

    Raises:
        ValueError: ``n`` is negative, or ``parts`` is less than one.

    Examples:
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
        ArgumentError: An item lacks the attribute or element, or its value is no index.
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
    """An index as Python code: "[0:10, ::2, 3]"."""
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
    """Why a part of an index cannot name a block, "" if it can."""
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


def full_index(index: Any, ndim: int) -> tuple[Any, ...]:
    """One int or slice for each axis."""
    parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    dots = [axis for axis, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("'...' occurs more than once.")
    missing = ndim - len(parts) + len(dots)
    if missing < 0:
        raise IndexError(f"it has more parts than the array has axes ({ndim}).")
    at = dots[0] if dots else len(parts)
    return (*parts[:at], *(slice(None),) * missing, *parts[at + 1 :])


def range_on(part: Any, length: int) -> tuple[int, int, int]:
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


def all_ranges(index: Any, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Start, stop and step on every axis; see ``ranges_of``."""
    return [
        range_on(part, length)
        for part, length in zip(full_index(index, len(shape)), shape, strict=True)
    ]


def explained(
    error: ArgumentError | IndexError, index: Any, shape: tuple[int, ...], item: str = ""
) -> ArgumentError | IndexError:
    """The same error, with the index, the shape and the item."""
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
        return all_ranges(index, shape)
    except (ArgumentError, IndexError) as error:
        raise explained(error, index, shape) from None


def with_dots(index: Any) -> tuple[Any, ...]:
    """The same index, which gives an array also for a single element."""
    parts: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    for part in parts:
        if part is Ellipsis:
            return parts
    return (*parts, ...)


def block(base: npt.NDArray[Any], index: Any, *, readonly: bool = False) -> npt.NDArray[Any]:
    """A view of ``base[index]`` that exposes nothing else of ``base``.

    Args:
        base: A writable array without Python objects, of any dtype, order and strides.
        index: Ints, slices and ``...``, or a tuple of them. An int for every axis gives an array
            of shape ``()``, not a scalar.
        readonly: Whether it cannot be written, nor be made writable.

    Returns:
        Array with the shape of ``base[index]``. No array in its chain of ``.base`` contains a byte
        before the block's first or after its last.

    Raises:
        ArgumentError: The index makes a copy (a list, an array, a mask) or is none, or ``base``
            cannot be partitioned.
        IndexError: An int is out of range, or there are too many.
    """
    return Cutter(base, readonly=readonly).block(index)


class Cutter:
    """Creates views of the blocks of one array, which is checked once; see ``block``."""

    def __init__(self, base: npt.NDArray[Any], *, readonly: bool = False) -> None:
        check_base(base)
        self.base, self._readonly = base, readonly
        self._plain = np.asarray(base)  # a matrix has indexing rules of its own

    def block(self, index: Any) -> npt.NDArray[Any]:
        """See the function ``block``."""
        seen = self._seen(index)
        if not seen.nbytes:
            return np.empty(seen.shape, seen.dtype)
        below, size = _reach(seen)
        extent = mapping.Owner(
            mapping.address_of(seen) - below, size, readonly=self._readonly, source=self.base
        )
        return np.ndarray(seen.shape, seen.dtype, np.asarray(extent), below, seen.strides)

    def _seen(self, index: Any) -> npt.NDArray[Any]:
        """``base[index]``, whose base is the whole array."""
        parts = with_dots(index)
        if not any(map(_complaint, parts)):
            with contextlib.suppress(IndexError, TypeError, ValueError):
                seen: npt.NDArray[Any] = self._plain[parts]
                return seen
        ranges_of(index, self.base.shape)  # raises the specific error
        raise IndexError(f"index {index_text(index)} names no block.")


def _reach(array: npt.NDArray[Any]) -> tuple[int, int]:
    """The bytes of an array below its first element, and its whole extent in bytes."""
    if array.flags.c_contiguous:
        return 0, array.nbytes
    # A negative step reaches down from the first element.
    steps = [(count - 1) * stride for count, stride in zip(array.shape, array.strides, strict=True)]
    below = -sum(step for step in steps if step < 0)
    return below, below + sum(step for step in steps if step > 0) + array.itemsize
