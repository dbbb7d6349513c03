"""Arrays created in shared memory: plain ``np.ndarray``s that workers map without a copy."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sharedtask.errors import UnshareableError

from . import locations

Shape = int | Sequence[int]
_ORDERS = ("C", "F", "c", "f")


def empty(
    shape: Shape, dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """Return a new array in shared memory.

    It is an ordinary writable array. Tasks get it without a copy: the caller sees writes of tasks
    that may write to it, and tasks see writes of the caller, immediately. The memory is freed with
    the last array over it, including views and arrays in workers.

    Args:
        shape: Length of each axis, or one number for a single axis.
        dtype: Any type without Python objects.
        order: "C" or "F": whether the last or the first axis is contiguous in memory.

    Returns:
        An array of ``shape`` with arbitrary contents (at present zeros).

    Raises:
        UnshareableError: ``dtype`` contains Python objects.
        StoreFullError: There is not enough memory.

    Source:
        Contract of ``numpy.empty``.

    Examples:
        >>> import sharedtask
        >>> grid = sharedtask.empty((2, 3), dtype="float32")
        >>> grid.shape, grid.dtype
        ((2, 3), dtype('float32'))
    """
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.kind in "SU" and not kind.itemsize:  # one character wide, as everywhere in numpy
        kind = np.dtype(f"{kind.kind}1")
    if order not in _ORDERS:
        msg = f"the order of an array is 'C' or 'F', not {order!r}."
        raise ValueError(msg)
    if kind.hasobject:
        msg = f"an array of dtype {kind} holds Python objects, which only one process can have."
        raise UnshareableError(msg)
    lengths = _lengths(shape)
    if any(length < 0 for length in lengths):
        msg = "negative dimensions are not allowed"
        raise ValueError(msg)
    return locations.new(lengths, kind, order)


def zeros(
    shape: Shape, dtype: npt.DTypeLike = float, order: Literal["C", "F"] = "C"
) -> npt.NDArray[Any]:
    """Like ``empty``, filled with zeros.

    Examples:
        >>> import sharedtask
        >>> sharedtask.zeros(3)
        array([0., 0., 0.])
    """
    return empty(shape, dtype, order)  # the kernel provides zeroed memory


def array(value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """Copy ``value`` into a new array in shared memory.

    Args:
        value: An array, or anything that ``numpy.asarray`` accepts.
        dtype: The dtype of the new array; None: that of ``value``.

    Returns:
        An array of the same shape and values; F order is kept.

    Raises:
        UnshareableError: The values are Python objects.
        StoreFullError: There is not enough memory.

    Source:
        Contract of ``numpy.array(value, dtype, order="K")``, for orders "C" and "F".

    Examples:
        >>> import sharedtask
        >>> sharedtask.array([[1, 2], [3, 4]])
        array([[1, 2],
               [3, 4]])
    """
    given = np.asarray(value, dtype)
    fortran = given.flags.f_contiguous and not given.flags.c_contiguous
    made = empty(given.shape, given.dtype, "F" if fortran else "C")
    made[...] = given
    return made


def _lengths(shape: Shape) -> tuple[int, ...]:
    given: Any = shape
    try:
        return (operator.index(given),)
    except TypeError:  # an array of lengths, a list, a tuple
        return tuple(map(operator.index, given))
