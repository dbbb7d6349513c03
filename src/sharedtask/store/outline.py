"""Recognises a value of plain containers, atoms and arrays as the published one.

Encoding it takes some microseconds for each array, and 0.2 us for each entry of a dict. In a
fraction of that an outline sees that there are

    containers  of the same types and lengths as before, at the same places
    atoms       the same objects as before: numbers and strings cannot change
    arrays      of the same dtypes and layouts, and, copied one behind the other, the same bytes
    large ones  by their watch, as in any other value

That is exact: an outline is of a copy that no one else has, which is encoded and compared with what
is published, and only of types whose objects have no other state. The user's code is not run.
"""

from __future__ import annotations

from itertools import repeat
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import dirty_pages, mapping
from sharedtask.system.records import dataclass

from .identities import same_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from sharedtask.memory.strided import Source

_ATOMS = frozenset((int, float, complex, bool, str, bytes, type(None)))
_CONTAINERS = frozenset((dict, list, tuple))
# dtypes whose bytes are their values, but for long doubles, which have padding.
_KINDS, _PADDED = frozenset("biufcmMSU"), frozenset("gG")
# A container costs as much as this many entries: where there are more, pickling is as fast.
_ENTRIES = 8
_FEW_CONTAINERS = 64
_DEPTH = 64
# The copy of small arrays is kept, so that there is something to compare with.
_MOST_SMALL_BYTES = 1 << 26


class _Unknown(Exception):  # noqa: N818  never leaves this module
    """The value has something else in it."""


_ARRAY, _CONTAINER = object(), object()  # in the place of an entry that is no atom


@dataclass(frozen=True, slots=True)
class _Node:
    """A container: its atoms, and marks for its arrays and containers."""

    kind: type
    keys: tuple[Any, ...] | None  # of a dict
    entries: tuple[Any, ...]
    only: object  # _ARRAY, or None for atoms, if all entries are; else _CONTAINER

    @classmethod
    def of(cls, value: Any, arrays: list[Any], queue: list[Any]) -> _Node:
        """Describe a container; its arrays and containers are appended."""
        keys = tuple(value) if type(value) is dict else None
        if keys is not None and not _ATOMS.issuperset(map(type, keys)):
            raise _Unknown
        found = tuple(_values(value))
        kinds = set(map(type, found))
        if kinds <= _ATOMS:
            return cls(type(value), keys, found, None)
        if kinds == {np.ndarray}:
            arrays.extend(found)
            return cls(type(value), keys, (_ARRAY,) * len(found), _ARRAY)
        entries = tuple([_entry(each, arrays, queue) for each in found])
        return cls(type(value), keys, entries, _CONTAINER)

    def describes(self, value: Any, arrays: list[Any], queue: list[Any]) -> bool:
        """Whether a container has the same atoms; its arrays and containers are appended."""
        kind: Any = type(value)  # else it is narrowed to object
        if kind is not self.kind or len(value) != len(self.entries):
            return False
        if self.keys is not None and not same_objects(self.keys, value):
            return False
        found = _values(value)
        if self.only is None:
            return same_objects(self.entries, found)
        if self.only is _ARRAY:
            arrays.extend(found)
            return True
        for entry, each in zip(self.entries, found, strict=True):
            if entry is _ARRAY:
                arrays.append(each)
            elif entry is _CONTAINER:
                queue.append(each)
            elif entry is not each:
                return False
        return True


def _values(value: Any) -> Iterable[Any]:
    found: Iterable[Any] = value.values() if type(value) is dict else value
    return found


def _entry(value: Any, arrays: list[Any], queue: list[Any]) -> Any:
    cls = type(value)
    if cls in _ATOMS:
        return value
    if cls is np.ndarray:
        arrays.append(value)
        return _ARRAY
    if cls in _CONTAINERS:
        queue.append(value)
        return _CONTAINER
    raise _Unknown


class Outline:
    """Recognises a value that is the published one.

    Attributes:
        copy: Of the value, with the same atoms and large arrays; to be compared, then dropped.
    """

    def __init__(self, copy: Any) -> None:
        self.copy = copy
        self._nodes, arrays = _walked(copy)
        self._arrays = _Arrays(arrays)

    @classmethod
    def of(cls, value: Any) -> Outline | None:
        """The outline of a value; None if there is none.

        Once its ``copy`` is proved to be what is published, ``confirm`` it.
        """
        try:
            return cls(_copied(value, _DEPTH))
        except (_Unknown, RuntimeError):  # the latter of a dict that another thread changes
            return None

    def confirm(self, sources: Sequence[Source]) -> bool:
        """Its copy makes these sources, which are the published ones; False if that is no use."""
        del self.copy
        return self._arrays.find_large(sources)

    def describes(self, value: Any, passes: Callable[[Any, int], bool]) -> bool:
        """Whether the value is as it was; ``passes`` checks a large array by its buffer."""
        arrays: list[Any] = []
        queue = [value]
        try:
            for node in self._nodes:
                if not node.describes(queue.pop(), arrays, queue):
                    return False
        except (RuntimeError, ValueError):  # another thread changes it
            return False
        return self._arrays.describe(arrays, passes)


def _copied(value: Any, depth: int) -> Any:
    """A copy of the containers and small arrays of a value."""
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if kind is np.ndarray:
        return _copied_array(value)
    if kind not in _CONTAINERS or not depth:
        raise _Unknown
    if _ATOMS.issuperset(map(type, _values(value))):
        return value.copy() if kind is dict else kind(value)
    if kind is dict:
        return {key: _copied(each, depth - 1) for key, each in value.copy().items()}
    return kind([_copied(each, depth - 1) for each in kind(value)])


def _copied_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    dtype = array.dtype
    is_value = dtype.kind in _KINDS and dtype.char not in _PADDED
    if not (is_value and dtype.isnative and not dtype.metadata and array.flags.forc):
        raise _Unknown
    if array.nbytes < dirty_pages.WATCH_FROM:
        return array.copy(order="K")
    if not array.flags.c_contiguous:
        raise _Unknown
    return array


def _walked(value: Any) -> tuple[list[_Node], list[npt.NDArray[Any]]]:
    """The containers of a value, and its arrays, in the order in which they are met."""
    if type(value) not in _CONTAINERS:
        raise _Unknown
    nodes: list[_Node] = []
    arrays: list[Any] = []
    queue, entries = [value], 0
    while queue:
        nodes.append(_Node.of(queue.pop(), arrays, queue))
        entries += len(nodes[-1].entries)
    if len(nodes) > _FEW_CONTAINERS and len(nodes) * _ENTRIES > entries:
        raise _Unknown
    return nodes, arrays


@dataclass(frozen=True, slots=True)
class _Group:
    """Small arrays of one dtype: which of all they are, and their bytes one behind the other."""

    numbers: Sequence[int] | None  # None: all
    packed: npt.NDArray[Any]

    def describes(self, arrays: list[Any]) -> bool:
        """Whether the arrays still have these bytes."""
        chosen = arrays if self.numbers is None else [arrays[k] for k in self.numbers]
        now = np.concatenate(chosen, axis=None)
        at = mapping.address_of
        same = now.dtype == self.packed.dtype and now.nbytes == self.packed.nbytes
        return same and dirty_pages.same_bytes(at(now), at(self.packed), now.nbytes)


class _Arrays:
    """The arrays of a value, each with its memory to itself."""

    def __init__(self, arrays: list[Any]) -> None:
        self._shapes = [each.shape for each in arrays]
        self._strides = [each.strides for each in arrays]
        self._dtypes = [each.dtype for each in arrays]
        large = {k: a for k, a in enumerate(arrays) if a.nbytes >= dirty_pages.WATCH_FROM}
        self._addresses = {k: mapping.address_of(array) for k, array in large.items()}
        self._large: dict[int, int] = {}  # number of an array -> number of its published buffer
        small = [k for k in range(len(arrays)) if k not in large]
        if sum(arrays[k].nbytes for k in small) > _MOST_SMALL_BYTES:
            raise _Unknown
        self._groups = _grouped(arrays, small)

    def find_large(self, sources: Sequence[Source]) -> bool:
        """Find the large arrays among the published ones; False if one is not there as it is."""
        places = {
            mapping.address_of(source): k
            for k, source in enumerate(sources)
            if isinstance(source, np.ndarray) and source.nbytes >= dirty_pages.WATCH_FROM
        }
        self._large = {k: places.get(address, -1) for k, address in self._addresses.items()}
        return -1 not in self._large.values()

    def describe(self, arrays: list[Any], passes: Callable[[Any, int], bool]) -> bool:
        """Whether the arrays are as they were."""
        if not arrays:
            return not self._shapes
        if len(arrays) != len(self._shapes) or not _are_apart(arrays):
            return False
        if not (
            [each.shape for each in arrays] == self._shapes
            and [each.strides for each in arrays] == self._strides
            and [each.dtype for each in arrays] == self._dtypes
        ):
            return False
        if not all(passes(_bytes_of(arrays[k]), buffer) for k, buffer in self._large.items()):
            return False
        return all(group.describes(arrays) for group in self._groups)


def _are_apart(arrays: list[Any]) -> bool:
    """Whether all are plain arrays, and none shows memory that another one shows."""
    if arrays and set(map(type, arrays)) != {np.ndarray}:
        return False
    bases = [each.base for each in arrays]
    if all(map(is_, bases, repeat(None))):  # most arrays have memory of their own
        owners = arrays
    else:
        pairs = zip(arrays, bases, strict=True)
        owners = [array if base is None else base for array, base in pairs]
        if not all(type(each) is np.ndarray and each.base is None for each in owners):
            return False
    return len(set(map(id, owners))) == len(owners)


def _bytes_of(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _grouped(arrays: list[Any], small: list[int]) -> list[_Group]:
    """The small arrays by their dtypes, with their bytes."""
    by_dtype: dict[Any, list[int]] = {}
    for k in small:
        by_dtype.setdefault(arrays[k].dtype, []).append(k)
    return [
        _Group(
            None if len(numbers) == len(arrays) else numbers,
            np.concatenate([arrays[k] for k in numbers], axis=None),
        )
        for numbers in by_dtype.values()
    ]
