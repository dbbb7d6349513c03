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
    """A new array in shared memory.

    It is an ordinary writable array. Passed to a task it is not copied, and writes of the caller,
    or of a task that may write it, are visible to the other at once. The memory is freed with the
    last array over it, including views and those in workers.

    Args:
        shape: Length of every axis, or the length of the only one.
        dtype: Any type without Python objects.
        order: "C" or "F": whether the last or the first axis is dense in memory.

    Returns:
        An array of ``shape``; its contents are zeros at present, which is not promised.

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
        dtype: The type of the new array; None: that of ``value``.

    Returns:
        An array of the same shape and values; F order stays F order.

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
