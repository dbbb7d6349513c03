"""Access to the parts of containers, and the Python expression of each part.

Containers are dicts, lists, tuples, sets, deques, bytearrays, arrays of objects, the columns of
pandas, and the attributes of objects. Attributes count if pickle takes them, unless they begin with
an underscore or are computed at their first access: those are caches. Code of a user's class runs
only if the class defines its own pickle.
"""

from __future__ import annotations

import array
import contextlib
import copyreg
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MemberDescriptorType
from typing import Any, NamedTuple

import numpy as np

from sharedtask.system.finalizers import Known
from sharedtask.system.records import dataclass

from . import codec, frame_blocks, kinds, libraries, traversal
from .codec import FAILURES
from .diff import first_difference

__all__ = ["FIXED", "LEAVES", "Kind", "is_leaf", "kinds_of"]

_LONGEST_BYTES, _SOME_BYTES = 1 << 20, 10_000

# Classes whose objects have no part that could change.
LEAVES: frozenset[Any] = frozenset(
    {
        *(traversal.ATOMS - {bytearray}),
        *(np.bool_, np.float32, np.float64, np.int32, np.int64, np.str_, np.datetime64),
        *(FunctionType, BuiltinFunctionType, frozenset),
    }
)


class Kind(NamedTuple):
    """Functions that read the containers of a kind.

    ``read`` returns the whole state, ``some`` a sample of a large one: every ``n``-th part, or the
    parts of an earlier sample. ``children`` yields keys and parts, and ``step`` writes a key as
    Python code. ``change`` returns the step to the first part that differs from an earlier state.
    """

    size: Callable[[Any], int]
    read: Callable[[Any], list[Any]]
    some: Callable[[Any, int, list[Any] | None], list[Any]]
    children: Callable[[Any], Iterable[tuple[Any, Any]]]
    step: Callable[[Any], str]
    change: Callable[[Any, list[Any]], str | None]


@dataclass(frozen=True, slots=True)
class _Facts:
    """The facts about a class.

    ``kinds`` read its objects. ``computed`` names the attributes that are computed at their first
    access; ``slots`` reads those in slots; with ``own_state`` the class defines its own pickle.
    """

    kinds: tuple[Kind, ...]
    computed: frozenset[str]
    slots: tuple[tuple[str, MemberDescriptorType], ...]
    own_state: bool


_known: Known[_Facts] = Known()


def _facts(cls: type) -> _Facts:
    found = _known.get(cls)
    if found is None:
        found = _Facts(_kinds(cls), _computed(cls), tuple(_slots(cls)), _has_own_state(cls))
        _known.put(cls, found)
    return found


def is_leaf(value: Any) -> bool:
    """Whether no part of a value can change, or its parts are not checked."""
    cls = type(value)
    if cls in LEAVES or cls in _BY_TYPE:
        return cls in LEAVES
    if cls is np.ndarray:
        return bool(value.dtype != object)
    return not _facts(cls).kinds


def kinds_of(value: Any) -> tuple[Kind, ...]:
    """The kinds of a value; one of a class derived from a container has attributes as well."""
    kind = _BY_TYPE.get(type(value))
    if kind is not None:
        return (kind,)
    return (_OBJECT_ARRAY,) if traversal.is_object_array(value) else _facts(type(value)).kinds


def _kinds(cls: type) -> tuple[Kind, ...]:
    if any(
        base.__name__ == "NDFrame" and base.__module__.startswith("pandas.") for base in cls.__mro__
    ):
        return (_OF_PANDAS,)
    found = tuple(_BY_TYPE[base] for base in _BASES if issubclass(cls, base))[:1]
    is_whole = (
        codec.is_of_the_program(cls) or kinds.takes_apart(cls) or cls in copyreg.dispatch_table
    )
    if is_whole or libraries.is_data_class(cls) or issubclass(cls, np.ndarray):
        return found
    if next(_slots(cls), None) is not None:
        return (*found, _SLOTS)
    return (*found, _ATTRIBUTES) if cls.__dictoffset__ else found


def _slots(cls: type) -> Iterator[tuple[str, MemberDescriptorType]]:
    for base in cls.__mro__:
        for name, found in vars(base).items():
            if type(found) is MemberDescriptorType and found.__objclass__.__module__ != "builtins":
                yield name, found


def _computed(cls: type) -> frozenset[str]:
    """Cached properties, and other descriptors that set an attribute of their own name."""
    members = {
        name: type(found) for base in reversed(cls.__mro__) for name, found in vars(base).items()
    }
    return frozenset(name for name, kind in members.items() if _sets_its_name(kind))


def _sets_its_name(kind: type) -> bool:
    computes = hasattr(kind, "__get__") and not hasattr(kind, "__set__")
    return computes and not issubclass(kind, (FunctionType, staticmethod, classmethod))


def _has_own_state(cls: Any) -> bool:
    ways, plain = (cls.__reduce_ex__, cls.__reduce__), (object.__reduce_ex__, object.__reduce__)
    return ways != plain or cls.__getstate__ not in {
        object.__getstate__,
        traversal.FIELDS_IN_ORDER,
    }


# ------------------------------------------------------------------------------- each kind


def _entries_of(value: dict[Any, Any]) -> list[Any]:
    return [*dict.keys(value), *dict.values(value)]


def _some_entries(value: dict[Any, Any], stride: int, before: list[Any] | None) -> list[Any]:
    """The values of some keys: those that are found without user code."""
    if before is None:
        keys = [k for k in islice(dict.keys(value), 0, None, stride) if type(k) in traversal.ATOMS]
    else:
        keys = before[: len(before) // 2]
    return [*keys, *map(partial(dict.get, value), keys)]


def _some_elements(value: set[Any], stride: int, before: list[Any] | None) -> list[Any]:
    if before is None:
        return [e for e in islice(value, 0, None, stride) if type(e) in traversal.ATOMS]
    return [element for element in before if element in value]


def _some_items(value: Any, stride: int, before: list[Any] | None) -> list[Any]:
    del before
    return list(islice(value, 0, None, stride))


def _ordered_entries_of(value: OrderedDict[Any, Any]) -> list[Any]:
    keys = list(OrderedDict.__iter__(value))
    return [*keys, *(dict.get(value, key) for key in keys)]


def _as_dict(known: list[Any]) -> dict[Any, Any]:
    half = len(known) // 2
    return dict(zip(known[:half], known[half:], strict=True))


def _change_of_dict(value: dict[Any, Any], known: list[Any]) -> str | None:
    return first_difference(_as_dict(known), _as_dict(_entries_of(value)))


def _change_of_ordered_dict(value: OrderedDict[Any, Any], known: list[Any]) -> str | None:
    return first_difference(_as_dict(known), _as_dict(_ordered_entries_of(value)))


def _change_of_list(value: Any, known: list[Any]) -> str | None:
    return first_difference(known, list(value))


def _change_of_set(value: Any, known: list[Any]) -> str | None:
    return first_difference(set(known), set(value))


def _change_of_bytes(value: Any, known: list[Any]) -> str | None:
    return None if _bytes_of(value) == known else ""


def _change_of_array(value: Any, known: list[Any]) -> str | None:
    for place, (was, now) in enumerate(zip(known, value.flat, strict=True)):
        if was is not now and (way := first_difference(was, now)) is not None:
            return _step_of_array(np.unravel_index(place, value.shape)) + way
    return None


def _bytes_of(value: Any) -> list[Any]:
    """The bytes, or of many a sample."""
    view = memoryview(value).cast("B")
    stride = 1 if view.nbytes <= _LONGEST_BYTES else view.nbytes // _SOME_BYTES
    return [bytes(view[::stride])]


def _fields_of_tuple(value: tuple[Any, ...]) -> Iterable[tuple[Any, Any]]:
    names = getattr(type(value), "_fields", None)
    held = tuple.__iter__(value)
    return enumerate(held) if names is None else zip(names, held, strict=False)


def _step_of_sequence(key: Any) -> str:
    return f"[{key}]" if isinstance(key, int) else f".{key}"


def _step_of_array(index: Any) -> str:
    return f"[{', '.join(map(str, index))}]"


def _children_of_array(value: Any) -> Iterator[tuple[Any, Any]]:
    return zip(np.ndindex(value.shape), value.flat, strict=True)


def _by_number(value: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    return enumerate(value)


# ------------------------------------------------------------------------------- attributes


def _attributes_of(value: Any) -> list[Any]:
    """All attributes: leaving some out would take longer than comparing them."""
    own: dict[str, Any] = object.__getattribute__(value, "__dict__")
    return [*own, *own.values()]


def _slots_of(value: Any) -> list[Any]:
    found: dict[str, Any] = {}
    with contextlib.suppress(AttributeError):
        found |= object.__getattribute__(value, "__dict__")
    for name, slot in _facts(type(value)).slots:
        with contextlib.suppress(AttributeError):  # a slot without a value
            found[name] = slot.__get__(value)
    return [*found, *found.values()]


def _raw(value: Any) -> list[Any]:
    return (_slots_of if _facts(type(value)).slots else _attributes_of)(value)


def _fields(value: Any) -> dict[str, Any]:
    """The attributes that count: those that pickle takes, without private and computed ones."""
    fields = _counted(type(value), _raw(value))
    if not _facts(type(value)).own_state:
        return fields
    state = _state(value)
    return {name: part for name, part in fields.items() if state.get(name, state) is part}


def _counted(cls: type, known: list[Any]) -> dict[str, Any]:
    computed = _facts(cls).computed
    return {
        name: part
        for name, part in _as_dict(known).items()
        if type(name) is str and not name.startswith("_") and name not in computed
    }


def _state(value: Any) -> dict[str, Any]:
    """The state of an object for pickle."""
    try:
        state = codec.reduced(value)[2]
    except FAILURES:
        return {}
    halves = state if type(state) is tuple else (state,)
    return {name: part for half in halves if isinstance(half, dict) for name, part in half.items()}


def _change_of_attributes(value: Any, known: list[Any]) -> str | None:
    was, now = _counted(type(value), known), _fields(value)
    for name in {**was, **now}:
        if name in was and name in now:
            way = first_difference(was[name], now[name])
            if way is not None:
                return f".{name}{way}"
        elif name in now or not _facts(type(value)).own_state:  # else it was never pickled
            return f".{name}"
    return None


# ------------------------------------------------------------------------------- all of them

_DICT = Kind(
    dict.__len__, _entries_of, _some_entries, dict.items, traversal.step_to, _change_of_dict
)
_ORDERED = _DICT._replace(read=_ordered_entries_of, change=_change_of_ordered_dict)
_LIST = Kind(
    list.__len__,
    list,
    lambda v, n, _: list.__getitem__(v, slice(None, None, n)),
    _by_number,
    _step_of_sequence,
    _change_of_list,
)
_DEQUE = _LIST._replace(size=deque.__len__, some=_some_items)
_SET = _LIST._replace(
    size=len,
    some=_some_elements,
    step=lambda _: "",
    change=_change_of_set,
)
# A tuple cannot change; its parts may.
FIXED = _LIST._replace(
    size=tuple.__len__, some=lambda v, n, _: list(v[::n]), children=_fields_of_tuple
)
_BYTES = _LIST._replace(
    size=len,
    read=_bytes_of,
    some=lambda v, *_: _bytes_of(v),
    children=lambda _: (),
    change=_change_of_bytes,
)
_OBJECT_ARRAY = Kind(
    lambda v: v.size,
    lambda v: list(v.flat),
    lambda v, n, _: list(v.flat[::n]),
    _children_of_array,
    _step_of_array,
    _change_of_array,
)
_OF_PANDAS = Kind(
    frame_blocks.size,
    frame_blocks.read,
    frame_blocks.some,
    lambda _: (),
    traversal.step_to,
    frame_blocks.change,
)
_ATTRIBUTES = Kind(
    lambda v: len(object.__getattribute__(v, "__dict__")),
    _attributes_of,
    lambda v, *_: _attributes_of(v),
    lambda v: _fields(v).items(),
    traversal.attribute_step,
    _change_of_attributes,
)
_SLOTS = _ATTRIBUTES._replace(size=lambda _: 0, read=_slots_of, some=lambda v, *_: _slots_of(v))
_BY_TYPE: dict[type, Kind] = {
    dict: _DICT,
    OrderedDict: _ORDERED,
    list: _LIST,
    tuple: FIXED,
    set: _SET,
    deque: _DEQUE,
    bytearray: _BYTES,
    array.array: _BYTES,
}
_BASES = (OrderedDict, *(cls for cls in _BY_TYPE if cls is not OrderedDict))
