"""Removes caches of pandas objects, which are created by use, from digests.

A frame that was only printed pickles to other bytes than before: the units of its columns were
computed, blocks of equal type were joined, an index knows that its values are unique. For a digest
the frame is its columns, index, names and attributes::

    frame   class, labels, index, each column, attrs, flags, the attributes that it names itself
    series  class, name, index, elements, and so on
    others  their own pickle, without what is in _ATTACHED
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["reduce_lazy"]

_PROTOCOL = 5


def reduce_lazy(value: Any) -> Any:
    """The reduction of a pandas object to its contents; None for all others."""
    cls = type(value)
    try:
        way = _ways[cls]
    except KeyError:
        way = _ways[cls] = _way_of(cls)
    return None if way is None else way(value)


_ways: weakref.WeakKeyDictionary[type, Callable[[Any], Any] | None] = weakref.WeakKeyDictionary()


def _way_of(cls: type) -> Callable[[Any], Any] | None:
    theirs = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "pandas"]
    if not theirs or issubclass(cls, type):
        return None
    for base in theirs:
        if base.__name__ in _FORMS and _pickles_as(cls, base):
            return _FORMS[base.__name__]
    return _without_lazy


def _pickles_as(cls: type, base: type) -> bool:
    """Whether a class does not override how it is pickled."""
    ways = "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"
    return all(getattr(cls, way) is getattr(base, way) for way in ways)


def _of_frame(frame: Any) -> Any:
    columns = [_elements(frame.iloc[:, place]) for place in range(frame.shape[1])]
    return dict, (), (type(frame), frame.columns, frame.index, columns, *_attributes(frame))


def _of_series(series: Any) -> Any:
    held = series.name, series.index, _elements(series)
    return dict, (), (type(series), *held, *_attributes(series))


def _elements(series: Any) -> Any:
    """The elements, as a numpy array if they are one."""
    return series.to_numpy() if isinstance(series.dtype, np.dtype) else series.array


def _attributes(value: Any) -> Iterator[Any]:
    yield value.attrs
    yield value.flags.allows_duplicate_labels
    yield [(name, getattr(value, name, None)) for name in type(value)._metadata if name != "name"]


def _without_lazy(value: Any) -> Any:
    reduced = value.__reduce_ex__(_PROTOCOL)
    if not isinstance(reduced, tuple) or len(reduced) < 3:
        return reduced
    build, args, state, *more = reduced
    if isinstance(state, tuple):
        state = tuple(map(_held, state))
    return build, args, _held(state), *more


def _held(state: Any) -> Any:
    if type(state) is not dict:
        return state
    return {name: value for name, value in state.items() if name not in _ATTACHED}


_ATTACHED = ("_cache", "_readonly")
_FORMS: dict[str, Callable[[Any], Any]] = {"DataFrame": _of_frame, "Series": _of_series}
