"""The blocks of a pandas frame or series, and the first column that differs.

See ``containers.Kind``. pandas need not be imported: its manager of blocks is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import traversal
from .diff import first_difference

__all__ = ["change", "read", "size", "some"]


def size(value: Any) -> int:
    """The number of blocks and of objects in them."""
    held: list[Any] = value._mgr.arrays
    return len(held) + sum(int(each.size) for each in held if each.dtype == object)


def read(value: Any) -> list[Any]:
    """Labels, then for each block the places of its columns, its values, and their objects."""
    found = list(value._mgr.axes)
    for block in value._mgr.blocks:
        found += block.mgr_locs, block.values, getattr(block.values, "_pa_array", None)
        if block.values.dtype == object:
            found += np.asarray(block.values).flat
    return found


def some(value: Any, stride: int, before: list[Any] | None) -> list[Any]:
    """The same with every ``stride``-th object."""
    del before
    found = list(value._mgr.axes)
    for held in value._mgr.arrays:
        found += (held, *(np.asarray(held).ravel("K")[::stride] if held.dtype == object else ()))
    return found


def change(value: Any, known: list[Any]) -> str | None:
    """The first column that differs."""
    labels, now = value._mgr.axes, read(value)
    if len(labels) == 1:
        return first_difference(*(list(_columns(each, 1).values()) for each in (known, now))) and ""
    names, before = list(labels[0]), list(known[0])
    if names != before:
        other = [name for name in names if name not in before] + [
            n for n in before if n not in names
        ]
        return traversal.step_to(other[0]) if other and type(other[0]) in traversal.ATOMS else ""
    if labels[1] is not known[1] and first_difference(known[1], labels[1]) is not None:
        return ".index"
    old, new = _columns(known, 2), _columns(now, 2)
    unlike = (n for n in sorted(new) if first_difference(old.get(n), new[n]) is not None)
    place = next(unlike, None)
    if place is None:
        return None
    return traversal.step_to(names[place]) if type(names[place]) is str else f".iloc[:, {place}]"


def _columns(known: list[Any], axes: int) -> dict[int, Any]:
    """The contents of each column, by its place, from the result of ``read``."""
    found: dict[int, Any] = {}
    at = axes
    while at < len(known):
        places, values, inner = known[at : at + 3]
        at += 3
        if values.dtype == object:
            held = np.empty(values.size, object)
            held[:] = known[at : at + values.size]
            at, values, inner = at + values.size, held.reshape(values.shape), None
        for row, place in enumerate(places):
            column = values if values.ndim == 1 else values[row]
            found[place] = column if inner is None else inner.combine_chunks()
    return found
