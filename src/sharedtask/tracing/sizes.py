"""Sizes and texts of users' values, without running their code."""

from __future__ import annotations

import reprlib
import sys
from typing import Any

import numpy as np

__all__ = ["describe", "size_of", "sizes_of"]

_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_NUMBERS = (int, float, bool, type(None))
_CONTAINERS: tuple[type, ...] = (tuple, list, dict, set, frozenset)
_MOST = 60
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _MOST


def describe(value: object) -> str:
    """A short repr; of an object of any other class its name alone, for its own may do anything."""
    if type(value) in _NUMBERS:
        return _number(value)
    if isinstance(value, np.ndarray) and type(value) is np.ndarray:
        return f"array of {value.dtype}, shape {value.shape}"
    if _is_plain(value, 2):
        text = _repr.repr(value)
        return text if len(text) <= _MOST else f"{text[: _MOST - 3]}..."
    return f"<{type(value).__qualname__}>"


def _number(value: Any) -> str:
    """Python refuses to write very long integers down."""
    bits = value.bit_length() if type(value) is int else 0
    return repr(value) if bits < 150 else f"<int of {bits} bits>"


def _is_plain(value: object, depth: int) -> bool:
    if type(value) in _PLAIN:
        return True
    if type(value) not in _CONTAINERS or not depth:
        return False
    parts: Any = value
    if len(parts) > 100:
        return False
    keys = [*parts.keys(), *parts.values()] if type(value) is dict else parts
    return all(_is_plain(part, depth - 1) for part in keys)


def size_of(value: object) -> int | None:
    """Bytes of a value whose size its type tells; None for others."""
    if type(value) in _PLAIN:
        return sys.getsizeof(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.nbytes
    return None


def sizes_of(values: list[Any], total: int) -> list[int]:
    """Bytes of each of the values that take ``total`` together, but for larger ones.

    Those whose types do not tell share what is left.
    """
    known = [size_of(value) for value in values]
    unknown = known.count(None)
    if not unknown:
        return [each or 0 for each in known]
    left = max(total - sum(each for each in known if each is not None and each <= total), 0)
    return [left // unknown if each is None else each for each in known]
