"""Whether many objects are the same objects as before, at the speed of comparing memory.

A tuple has the addresses of its items one behind the other. That is tried out once; where it is not
so, the objects are compared one by one.
"""

from __future__ import annotations

import ctypes
from operator import is_
from typing import TYPE_CHECKING, Any

from sharedtask.memory.dirty_pages import same_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Fewer objects are compared one by one, which needs no foreign call.
_MANY = 256
_ADDRESS_BYTES = ctypes.sizeof(ctypes.c_void_p)


def same_objects(known: tuple[Any, ...], values: Iterable[Any]) -> bool:
    """Whether ``values``, of which there are as many, are the known objects.

    RuntimeError if another thread changes a dict meanwhile.
    """
    if len(known) < _MANY:
        return all(map(is_, known, values))
    return _same(known, tuple(values))


def _by_memory(known: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    if len(known) != len(now):
        return False
    start = tuple.__basicsize__
    return same_bytes(id(known) + start, id(now) + start, len(known) * _ADDRESS_BYTES)


def _one_by_one(known: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return len(known) == len(now) and all(map(is_, known, now))


def _has_addresses(of: tuple[Any, ...]) -> bool:
    """Whether the memory of a tuple is laid out as this module expects."""
    end = of.__sizeof__()
    start = tuple.__basicsize__
    if end - start != len(of) * _ADDRESS_BYTES:
        return False
    found = (ctypes.c_size_t * len(of)).from_address(id(of) + start)
    return list(found) == list(map(id, of))


_same: Callable[[tuple[Any, ...], tuple[Any, ...]], bool] = (
    _by_memory if _has_addresses((object(), 1, "a", object())) else _one_by_one
)
