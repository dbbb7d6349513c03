"""What an array of the caller must be, so that tasks can write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sharedtask.errors import ArgumentError, UnshareableError
from sharedtask.memory import locations

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

_WORK = 100_000


def check_written(array: Any, name: str) -> None:
    """Refuse arrays that are read-only, or whose memory was freed."""
    check_base(array, name)
    locations.find(array)


def refuse_other_use(
    task: str, name: str, array: npt.NDArray[Any], values: Mapping[str, Any], said: str = ""
) -> None:
    """Refuse memory that tasks write through one parameter and use through another."""
    for other, theirs in values.items():
        if other != name and isinstance(theirs, np.ndarray) and _share_memory(array, theirs):
            msg = (
                f"{task}(): {said or name!r} is written by tasks, and {other!r} is the same memory:"
                " what a task reads there would depend on the others."
                f" Pass {other}={other}.copy()."
            )
            raise ArgumentError(msg)


def _share_memory(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two arrays have a byte in common; True if that is too hard to decide."""
    shares: Any = np.shares_memory  # its types allow only two values of max_work
    try:
        return bool(shares(one, other, max_work=_WORK))
    except np.exceptions.TooHardError:
        return True


def check_base(base: Any, parameter: str = "") -> None:
    """Refuse an array that cannot be written block by block.

    Raises:
        ArgumentError: It is no plain array, read-only, or its elements overlap in memory.
        UnshareableError: It contains Python objects.
    """
    array = f"'{parameter}'" if parameter else "the array"
    if not isinstance(base, np.ndarray):
        raise ArgumentError(f"{array} is of class {type(base).__name__}. Pass a numpy array.")
    if isinstance(base, np.ma.MaskedArray):
        raise ArgumentError(
            f"{array} is masked, and its mask is an array of its own. Pass data and mask as two."
        )
    if base.dtype.hasobject:
        raise UnshareableError(
            f"{array} (dtype {base.dtype}) holds Python objects, which mean nothing in another"
            " process. Use a dtype of numbers or of fixed-size text."
        )
    if not base.flags.writeable:
        raise ArgumentError(f"{array} is read-only, and tasks write to it. Pass a writable array.")
    if _lies_on_itself(base):
        raise ArgumentError(
            f"{array} shows the same bytes at more than one index (shape {base.shape}, strides"
            f" {base.strides}), so no block is apart from the others. Pass array.copy()."
        )


def _lies_on_itself(base: npt.NDArray[Any]) -> bool:
    """Whether a step on some axis is shorter than the extent of the axes with shorter steps.

    Every view that slicing and transposing can make of a dense array passes. To decide the few
    others, interleaved by ``as_strided``, is as hard as any knapsack.
    """
    if not base.size:
        return False
    reach = base.itemsize
    axes = zip(base.strides, base.shape, strict=True)
    for stride, length in sorted((abs(stride), length) for stride, length in axes if length > 1):
        if stride < reach:
            return True
        reach += stride * (length - 1)
    return False
