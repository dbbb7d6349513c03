"""Advice for refused writes into read-only arrays: the likely array, and what to do.

Every library has its own message, and none names the parameter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.outcomes import add_note, text_of
from sharedtask.serialization import traversal
from sharedtask.text import see

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Messages of numpy, memoryview, Cython, pandas and numba; OpenCV; numpy's generators, h5py and
# ctypes; numpy's flags; ``readinto`` and ``pack_into``; xarray. A user's own error about a
# read-only file must not match.
_REFUSED = re.compile(
    r"\b(array|destination|memory|buffer|source|values)\b.*(read-?only|writ(e)?able)"
    r"|read-?only (array|memory|buffer)|marked as readonly|\bset WRITEABLE\b"
    r"|read-write bytes-like|destination is a view",
    re.IGNORECASE | re.DOTALL,
)
_KINDS = (ValueError, TypeError, BufferError, RuntimeError)
# These raise error classes of their own.
_LIBRARIES = ("numba", "cv2")
_DEPTH = 2


def readonly_advice(
    error: BaseException,
    task: str,
    shared: Sequence[str],
    function: Any = None,
    given: Callable[[], Mapping[str, Any]] = dict,
) -> BaseException:
    """The error of a task; with advice if it reports a refused write.

    ``shared`` names the parameters that are Shared; ``given`` are the arguments, Shared or not.
    """
    if not is_refusal(error):
        return error
    if shared:
        add_note(error, _of_shared(task, shared))
    marked = set(map(repr, shared))
    unmarked = [*(name for name in readonly(given()) if name not in marked), *captured(function)]
    if unmarked:
        add_note(error, _of_unmarked(task, unmarked))
    return error


def is_refusal(error: BaseException) -> bool:
    """Whether the error reports a refused write into an array."""
    library = type(error).__module__.partition(".")[0]
    if type(error) not in _KINDS and library not in _LIBRARIES:
        return False
    return _REFUSED.search(text_of(error)) is not None


def _of_shared(task: str, names: Sequence[str]) -> str:
    is_shared = "is" if len(names) == 1 else "are"
    return (
        f"{_listed(map(repr, names))} of {task}() {is_shared} Shared, and what is shared is "
        f"read-only in a task. {_CURES}"
    )


def _of_unmarked(task: str, names: Sequence[str]) -> str:
    is_readonly = "is" if len(names) == 1 else "are"
    return (
        f"{_listed(names)} of {task}() {is_readonly} not marked, and read-only in a task: the "
        f"caller would not see writes to it. {_CURES}"
    )


_CURES = (
    "To fill an array, mark it Partitioned (each item writes its own block) or use map_into() for "
    "what the items return; to add up, mark it Reduced; for scratch that the caller never sees, "
    f"mark it CopyOnWrite, or work on a copy: x = x.copy(). {see('read-only')}"
)


def _listed(names: Any) -> str:
    return " and ".join(names)


def readonly(values: Mapping[str, Any]) -> Iterator[str]:
    """The names of values that contain a read-only array."""
    return (name for name, value in values.items() if _holds_readonly(value, _DEPTH))


def _holds_readonly(value: Any, depth: int) -> bool:
    if isinstance(value, np.ndarray):
        return not value.flags.writeable
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    elif depth and not isinstance(value, type):
        inside = getattr(value, "__dict__", {}).values()
    return bool(depth) and any(_holds_readonly(each, depth - 1) for each in list(inside))


def captured(function: Any) -> Iterator[str]:
    """Names of values that a function of a script or cell captures."""
    if not hasattr(function, "__code__"):
        return
    for how, name, value in traversal.captured(function):
        if _holds_readonly(value, _DEPTH):
            yield f"{name!r} ({how})"
