"""A short description of a value: ``float32 array (512, 512)``, ``dict of 1,000,000``.

No method of a user's class is called, neither ``__repr__`` nor ``__len__``.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from sharedtask.serialization.libraries import is_data, is_frame, is_tensor
from sharedtask.serialization.traversal import count, is_object_array
from sharedtask.store.handles import Handle, kind_of

_SHORT = 100


def description(value: Any) -> str:
    """The description of a value."""
    cls = type(value)
    if issubclass(cls, np.ndarray):
        return _of_array(value)
    if issubclass(cls, Handle):
        return f"handle of a {kind_of(value)}"
    number = count(value)
    if number is not None:
        return f"{cls.__name__} of {number:,}"
    if cls in (str, bytes, bytearray):
        return cls.__name__ if len(value) < _SHORT else f"{cls.__name__} of {len(value):,}"
    if cls is types.FunctionType:
        return "function"
    if is_data(value) or is_frame(value):
        return _of_data(value)
    return f"class {value.__name__}" if issubclass(cls, type) else cls.__name__


def _of_array(array: np.ndarray[Any, Any]) -> str:
    cls = type(array)
    word = "array" if cls is np.ndarray else cls.__name__
    if is_object_array(array):
        return f"{word} of {array.size:,} objects"
    dtype = "structured" if array.dtype.names else str(array.dtype)
    return f"{dtype} {word} {array.shape}"


def _of_data(value: Any) -> str:
    name = type(value).__name__
    try:
        shape = tuple(value.shape)
        dtype = f"{value.dtype} ".removeprefix("torch.") if is_tensor(value) else ""
    except Exception:  # noqa: BLE001  scalars, types, what else these libraries have
        return name
    return f"{dtype}{name} {shape}" if shape else name
