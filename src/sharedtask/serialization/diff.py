"""Locates the differences of two values, as Python expressions.

Both are traversed side by side, as pickle does; values without parts are compared by bytes.
No ``__eq__`` of a user's class is called.
"""

from __future__ import annotations

import marshal
from collections import Counter, deque
from functools import partial
from itertools import chain
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import mapping

from . import codec, kinds, libraries, traversal
from .codec import FAILURES

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from .traversal import Part

# The parts at the same step of both values.
Pair = tuple[str, Any, Any]


class _Absent:
    """The part that one of two values lacks."""


_ABSENT = _Absent()


def differences(old: Any, new: Any) -> Iterator[str]:
    """Paths to the parts that differ, in the order of pickle; "" means the whole.

    A set is compared as a whole, and so is a library's value such as an array; a frame by columns.
    """
    met: dict[tuple[int, int], tuple[Any, Any]] = {}  # keeps the objects and so their ids
    todo: list[Pair] = [("", old, new)]
    while todo:  # no recursion: pickle goes deeper than the stack of Python allows
        way, one, other = todo.pop()
        if one is other or (id(one), id(other)) in met:
            continue
        met[id(one), id(other)] = one, other
        pairs = _pairs(one, other)
        if pairs is not None:
            todo.extend((way + step, a, b) for step, a, b in reversed(pairs))
        elif not _are_alike(one, other):
            yield way


def first_difference(old: Any, new: Any) -> str | None:
    """The path to the first part that differs; None if all are equal."""
    return next(differences(old, new), None)


def _pairs(one: Any, other: Any) -> list[Pair] | None:
    """The parts of both; None if they are compared as a whole."""
    cls = type(one)
    if cls is not type(other) or cls in _WHOLE or issubclass(cls, type):
        return None
    if cls in _TAKEN_APART:
        return _TAKEN_APART[cls](one, other)
    if traversal.is_object_array(one):
        return (
            _aligned(traversal.parts(one), traversal.parts(other))
            if _same_form(one, other)
            else None
        )
    if libraries.is_frame(one):
        return _aligned(_of_frame(one), _of_frame(other))
    if libraries.is_data(one) or kinds.takes_apart(cls):
        return None
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _aligned(traversal.parts(one), traversal.parts(other))
    first, second = _of_object(one), _of_object(other)
    if first is None or second is None:
        return None
    entries = _of_dicts(_entries(one), _entries(other)) if issubclass(cls, dict) else []
    return entries + _aligned(first, second)


# ------------------------------------------------------------------------------- with parts


def _aligned(first: Iterable[Part], second: Iterable[Part]) -> list[Pair]:
    """The parts under the same steps together; first those that only one of them has."""
    before, after = list(first), list(second)
    if [step for step, _ in before] == [step for step, _ in after]:
        return [(step, a, b) for (step, a), (_, b) in zip(before, after, strict=True)]
    old, new = dict(before), dict(after)
    gone = [(step, part, _ABSENT) for step, part in before if step not in new]
    come = [(step, _ABSENT, part) for step, part in after if step not in old]
    return gone + come + [(step, old[step], part) for step, part in after if step in old]


def _of_dicts(one: dict[Any, Any], other: dict[Any, Any]) -> list[Pair]:
    if not (_has_plain_keys(one) and _has_plain_keys(other)):  # equal keys may be different objects
        return _aligned(traversal.parts(one), traversal.parts(other))
    before, after = list(one), list(other)
    least = min(len(before), len(after))
    if before[:least] == after[:least]:  # a fast check, and the common case
        gone, come = before[least:], after[least:]
        before, after = before[:least], after[:least]
    else:
        gone = [key for key in before if key not in other]
        come = [key for key in after if key not in one]
        before = [key for key in before if key in other]
        after = [key for key in after if key in one]
    old, new = list(map(one.__getitem__, before)), list(map(other.__getitem__, before))
    found = [(traversal.step_to(before[k]), old[k], new[k]) for k in _unlike(old, new)]
    found += [(traversal.step_to(key), one[key], _ABSENT) for key in gone]
    found += [(traversal.step_to(key), _ABSENT, other[key]) for key in come]
    if before != after or list(map(type, before)) != list(map(type, after)):
        found.append(("", one, _ABSENT))  # in another order; or 1 has become True
    return found


def _entries(value: Any) -> dict[Any, Any]:
    """The items of a dict of another class, in its order."""
    return dict(value.items())


def _has_plain_keys(value: dict[Any, Any]) -> bool:
    return traversal.ATOMS.issuperset(map(type, value)) or all(map(_is_plain, value))


def _is_plain(key: Any) -> bool:
    return type(key) in traversal.ATOMS or (type(key) is tuple and all(map(_is_plain, key)))


def _of_sequences(one: Any, other: Any) -> list[Pair]:
    old, new = list(one), list(other)
    least = min(len(old), len(new))
    found = [(f"[{k}]", old[k], new[k]) for k in _unlike(old[:least], new[:least])]
    found += [(f"[{k}]", old[k], _ABSENT) for k in range(least, len(old))]
    return found + [(f"[{k}]", _ABSENT, new[k]) for k in range(least, len(new))]


def _unlike(old: list[Any], new: list[Any]) -> Iterator[int]:
    """Indices at which two lists have different objects, unless equal numbers or strings."""
    for start in range(0, len(old), _TOGETHER):
        ones, others = old[start : start + _TOGETHER], new[start : start + _TOGETHER]
        if not _are_same_atoms(ones, others):
            pairs = zip(ones, others, strict=True)
            yield from (start + k for k, (a, b) in enumerate(pairs) if not _is_same_atom(a, b))


# Most are equal, and so many at a time take 0.03 us each instead of 0.3.
_TOGETHER = 1000
_MARSHALLED = {int, float, bool, str, bytes, type(None)}
_MARSHAL_VERSION = 2  # without references, and so without identities


def _are_same_atoms(ones: list[Any], others: list[Any]) -> bool:
    if not _MARSHALLED.issuperset(map(type, chain(ones, others))):
        return False
    return marshal.dumps(ones, _MARSHAL_VERSION) == marshal.dumps(others, _MARSHAL_VERSION)


def _of_frame(frame: Any) -> Iterator[Part]:
    yield ".attrs", frame.attrs
    yield ".index", frame.index
    yield from traversal.columns(frame)  # which both have
    yield ".columns", frame.columns


def _of_object(value: Any) -> list[Part] | None:
    """The parts that pickle would write of an object; None if it is not taken apart."""
    try:
        reduced = value.__reduce_ex__(codec.PROTOCOL)
        if not isinstance(reduced, tuple):
            return None
        build, args, state, items, pairs, put = (*reduced, None, None, None, None)[:6]
        return [
            *traversal.state_parts(state, type(value)),
            *traversal.sequence_parts(items or ()),
            *((traversal.step_to(key), item) for key, item in pairs or ()),
            *((f".__reduce__()[1][{place}]", part) for place, part in enumerate(args or ())),
            (".__reduce__()", (build, put)),
        ]
    except FAILURES:
        return None


def _by_parts(one: Any, other: Any) -> list[Pair]:
    return _aligned(traversal.parts(one), traversal.parts(other))


_TAKEN_APART: dict[type, Callable[[Any, Any], list[Pair]]] = {
    dict: _of_dicts,
    list: _of_sequences,
    tuple: _of_sequences,
    deque: _of_sequences,
    MethodType: _by_parts,
    partial: _by_parts,
}

# ------------------------------------------------------------------------------- as a whole

_SETS = (set, frozenset)
_WHOLE = {
    *traversal.ATOMS,
    *_SETS,
    _Absent,
    FunctionType,
    BuiltinFunctionType,
    ModuleType,
}
# Their ``==`` is exact once the types are the same.
_EXACT = {int, bool, str, bytes, bytearray, type(None), type(...), range}


def _are_alike(one: Any, other: Any) -> bool:
    cls = type(one)
    if cls is not type(other):
        return False
    if cls in _SETS:
        return Counter(map(_element, one)) == Counter(map(_element, other))
    if cls is np.ndarray or issubclass(cls, np.generic):
        return _same_form(one, other) and _same_contents(one, other)
    return (
        _is_same_atom(one, other) or _have_equal_payloads(one, other) or _encode_equal(one, other)
    )


def _is_same_atom(one: Any, other: Any) -> bool:
    cls = type(one)
    if cls is not type(other):
        return False
    if cls is float:
        return bool(one.hex() == other.hex())  # distinguishes -0.0 from 0.0, and nan equals nan
    return cls in _EXACT and bool(one == other)


def _element(element: Any) -> Hashable:
    """A key for an element of a set, whose hash may be its identity."""
    return (type(element), element) if type(element) in _EXACT else _encoding(element)


def _same_form(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.shape == other.shape)


def _same_contents(one: Any, other: Any) -> bool:
    if one.dtype.hasobject:
        return _encode_equal(one, other)
    return _same_place(one, other) or bool(one.tobytes() == other.tobytes())


def _same_place(one: Any, other: Any) -> bool:
    if not isinstance(one, np.ndarray) or one.strides != other.strides:
        return False
    return mapping.address_of(one) == mapping.address_of(other)


def _have_equal_payloads(one: Any, other: Any) -> bool:
    """Whether both have equal payloads: a tensor has no other comparable bytes."""
    try:
        first, second = codec.encode(one), codec.encode(other)
    except FAILURES:
        return False
    if first.head != second.head or len(first.sources) != len(second.sources):
        return False
    return all(map(np.array_equal, first.buffers, second.buffers))


def _encode_equal(one: Any, other: Any) -> bool:
    return _encoding(one) == _encoding(other)


def _encoding(value: Any) -> bytes | None:
    """The bytes of a value, arrays included; None if it cannot be encoded."""
    try:
        return codec.encode_inband(value)
    except FAILURES:
        return None
