"""Why a part of a value is sent as it is, and how it could be sent better."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.serialization.libraries import package
from sharedtask.system.records import dataclass

from .sizes import is_strided

if TYPE_CHECKING:
    from .sizes import Weight

# Smaller parts make no noticeable difference: a megabyte of pickle takes 10 ms per worker.
LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Tip:
    """A remark about a part."""

    why: str = ""
    advice: str = ""

    def of_the_inside(self, owner: type) -> Tip:
        """The same of what lies in the state of a class that only its author can change."""
        if not self.advice or self.advice == _SHARE:
            return self
        advice = f"sharedtask.register({owner.__name__}, ...) can hand over arrays in its place"
        return Tip(self.why, advice)


def tip_for(value: Any, weight: Weight) -> Tip:
    """The remark about a value of this weight."""
    if issubclass(type(value), np.memmap) and weight.placed:
        return Tip("a mapped file; each worker maps it too")
    if weight.placed and not weight.outside:
        return Tip("lies in shared memory already")
    if issubclass(type(value), np.ndarray) and value.dtype != object:
        return _of_array(value, weight)
    if weight.inside < LARGE:
        return Tip()
    return _of_pickled(value)


def _of_array(array: Any, weight: Weight) -> Tip:
    if array.nbytes < LARGE or not is_strided(array) or weight.outside < array.nbytes:
        return Tip()
    why = "its elements are not contiguous: gathered to store them, and to compare after a write"
    return Tip(why, "np.ascontiguousarray(...) once, before the first call")


def _of_pickled(value: Any) -> Tip:
    cls = type(value)
    if cls in (list, tuple):
        return _of_sequence(value)
    if cls in (set, frozenset, dict):
        return Tip(_MANY, _SHARE)
    if cls in (bytes, bytearray):
        return Tip("bytes own their memory", "np.frombuffer(..., np.uint8) is not copied")
    if cls is str:
        return Tip("text owns its memory", _SHARE)
    if package(value) == "pandas":
        return Tip("each text is a Python object", _with_arrow(_ARROW))
    if issubclass(cls, np.ndarray):
        return Tip("Python objects have no bytes to share", _with_arrow(f"{_TEXT}; or {_SHARE}"))
    return Tip()


def _of_sequence(value: Any) -> Tip:
    kinds = set(map(type, islice(value, 1000)))
    if kinds <= {int, float, bool, complex}:
        return Tip("each number is a Python object", "np.array(...) of it is not copied")
    if kinds == {str}:
        return Tip("each text is a Python object", _with_arrow(f"{_TEXT}; or {_SHARE}"))
    return Tip(_MANY, _SHARE)


def _with_arrow(advice: str) -> str:
    """The advice, where pyarrow is installed."""
    return advice if find_spec("pyarrow") is not None else _SHARE


_MANY = "many small objects: compared at each call, unpickled once in each worker"
_SHARE = "share(...) once, or verify='identity', spares the comparison"
_ARROW = "dtype='string[pyarrow]' keeps text in one piece"
_TEXT = "pyarrow.array(...) keeps text in one piece"
