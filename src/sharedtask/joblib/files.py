"""Mapped files that calls write, as in joblib: ``np.memmap`` with mode "r+" or "w+"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.memory import proc_maps
from sharedtask.serialization import reducers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .batches import AnyCall

# Longer lists are not searched for mapped files.
_FEW = 64


def opened_for_writing(calls: Sequence[AnyCall]) -> list[AnyCall]:
    """The calls, with their files mapped for writing in the worker.

    They are found among the arguments, and in a short list, tuple or dict there.
    """
    return [
        (function, tuple(map(_found, args)), {k: _found(v) for k, v in kwargs.items()})
        for function, args, kwargs in calls
    ]


def _found(value: Any) -> Any:
    cls = type(value)
    if cls is np.memmap:
        return _stand_in(value)
    if cls in (list, tuple) and len(value) <= _FEW and _has_file(value):
        return cls(map(_stand_in, value))
    if cls is dict and len(value) <= _FEW and _has_file(value.values()):
        return {key: _stand_in(each) for key, each in value.items()}
    return value


def _has_file(values: Any) -> bool:
    return any(type(value) is np.memmap for value in values)


def _stand_in(value: Any) -> Any:
    if type(value) is not np.memmap or value.mode not in ("r+", "w+"):
        return value
    view = proc_maps.source_of(value)
    return value if view is None else _Written(value, view)


class _Written:
    """Unpickles as an array over the same file, whose writes are visible to all."""

    def __init__(self, array: np.memmap[Any, Any], view: proc_maps.FileView) -> None:
        self._array, self._view = array, view

    def __reduce__(self) -> Any:
        array = self._array
        dtype = reducers.dtype_key(array.dtype)
        return opened, (self._view, dtype, array.shape, array.strides)


def opened(view: proc_maps.FileView, dtype: Any, shape: Any, strides: Any) -> Any:
    """Map the file for writing."""
    file = view.file
    home = np.memmap(file.path, np.uint8, "r+", file.offset, (file.nbytes,))
    reducers.require_same_file(file)
    return reducers.show_memmap(home, view.offset, dtype, shape, strides)
