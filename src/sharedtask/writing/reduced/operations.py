"""Reduction operations with an identity, on arrays of any dtype. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sharedtask.annotations import Role
from sharedtask.errors import ArgumentError, DefinitionError
from sharedtask.system.records import dataclass
from sharedtask.text import did_you_mean

__all__ = ["Operation", "Reduction", "Total", "operation"]

Array = npt.NDArray[Any]

_NAMED: Mapping[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "any": np.logical_or,
    "all": np.logical_and,
}


@dataclass(frozen=True, eq=False, slots=True)
class Reduction:
    """How the contributions of tasks are combined: ``Annotated[np.ndarray, Reduction("max")]``.

    Attributes:
        op: "sum", "prod", "min", "max", "any" or "all", a ufunc of two arguments, or a function
            of two arrays that returns their combination. It must be
            commutative and associative.
        identity: The neutral element, ``op(identity, x) == x``: a number, or an
            array. You may omit it for ufuncs that have one.
        deterministic: Whether floating-point results must not depend on the number of
            workers, on their speed, or on the backend. Each item then adds to its
            own array, and these are combined in the order of the items.
    """

    role: ClassVar[Role] = Role.REDUCED

    op: str | np.ufunc | Callable[[Array, Array], Array] = "sum"
    identity: Any = None
    deterministic: bool = False

    def __post_init__(self) -> None:
        op: Any = self.op
        if isinstance(op, str):
            if op not in _NAMED:
                raise DefinitionError(
                    f"Reduction({op!r}) is none of {', '.join(map(repr, _NAMED))}."
                    f"{did_you_mean(op, _NAMED)} Or give a ufunc, or a function of two arrays."
                )
        elif isinstance(op, np.ufunc):
            if (op.nin, op.nout) != (2, 1):
                raise DefinitionError(
                    f"Reduction(np.{op.__name__}): it takes {op.nin} and gives {op.nout} arrays,"
                    " and a reduction takes two and gives one."
                )
        elif not callable(op):
            raise DefinitionError(f"Reduction({op!r}): give a name, a ufunc or a function.")
        elif self.identity is None:
            raise DefinitionError(
                f"Reduction({_name(op)}) needs an identity, with which every sum begins:"
                " Reduction(function, identity=0)."
            )
        deterministic: Any = self.deterministic
        if not isinstance(deterministic, bool):
            raise DefinitionError(
                f"Reduction(deterministic={deterministic!r}) must be True or False."
            )


def _name(op: Any) -> str:
    return getattr(op, "__name__", None) or type(op).__name__


@dataclass(frozen=True, slots=True)
class Operation:
    """A reduction of arrays of one dtype."""

    op: Any
    identity: Array  # 0-d, or as large as the arrays

    def begin(self, total: Array) -> None:
        """Fill ``total`` with the identity."""
        total[...] = self.identity

    @property
    def is_users(self) -> bool:
        """Whether the function is the user's own, with arbitrary effects."""
        return not isinstance(self.op, np.ufunc)

    def combine(self, total: Array, part: Array, out: Array) -> None:
        """Combine ``total`` and ``part`` into ``out``, which may be ``total``.

        Raises:
            ArgumentError: The function returned nothing, or an array that does not fit.
        """
        if isinstance(self.op, np.ufunc):
            self.op(total, part, out=out, casting="same_kind")
            return
        if out is not total:
            out[...] = total
        made = self.op(out, part)  # which may write into its first argument
        if made is out:
            return
        if np.shape(made) != out.shape:
            what = "nothing" if made is None else f"an array of shape {np.shape(made)}"
            raise ArgumentError(
                f"Reduction({_name(self.op)}): the function returned {what}; it must return the"
                f" array of shape {out.shape} that combines its two arguments."
            )
        try:
            np.copyto(out, made, casting="same_kind")
        except TypeError as error:
            raise ArgumentError(
                f"Reduction({_name(self.op)}): what the function returned does not fit an array of"
                f" dtype {out.dtype}: {error}"
            ) from None


@dataclass(frozen=True, slots=True)
class Total:
    """An array of the caller into which the tasks' contributions are combined at the end."""

    array: npt.NDArray[Any]
    operation: Operation


def operation(reduction: Reduction, array: Array, parameter: str) -> Operation:
    """The operation for an array of the caller.

    Raises:
        ArgumentError: The operation has no identity, or none for this dtype, or its result does
            not fit into it.
    """
    op: Any = reduction.op
    ufunc = _NAMED[op] if isinstance(op, str) else op
    said = _said(reduction)
    identity = _identity(ufunc, reduction.identity, array, f"'{parameter}', {said}")
    made = Operation(ufunc, identity)
    if isinstance(ufunc, np.ufunc):
        try:
            sound = _is_sound(made, array.dtype)
        except (TypeError, ValueError) as error:
            raise ArgumentError(
                f"'{parameter}', {said}: it does not work on dtype {array.dtype}: {error}"
            ) from None
        if not sound:
            raise ArgumentError(
                f"'{parameter}', {said}: the order of its two arguments matters, or combining"
                f" identity={identity.flat[0]} with itself changes it, so the result would depend"
                ' on the workers. To subtract, use Reduction("sum") and subtract in the task.'
            )
    return made


def _is_sound(made: Operation, dtype: np.dtype[Any]) -> bool:
    """Whether the operation is commutative, and keeps the identity."""
    identity = np.array(made.identity.flat[:1] if made.identity.size else np.zeros(1, dtype))
    other = np.full(1, 2).astype(dtype)
    results = [np.empty(1, dtype) for _ in range(3)]
    pairs = (identity, other), (other, identity), (identity, identity)
    with np.errstate(all="ignore"):
        for (left, right), out in zip(pairs, results, strict=True):
            made.combine(left, right, out)
    return _same(results[0], results[1]) and _same(results[2], identity)


def _same(one: Array, other: Array) -> bool:
    return bool(((one == other) | ((one != one) & (other != other))).all())  # noqa: PLR0124  NaN


def _said(reduction: Reduction) -> str:
    return f"Reduction({reduction.op!r})" if isinstance(reduction.op, str) else _named(reduction)


def _named(reduction: Reduction) -> str:
    return f"Reduction({_name(reduction.op)})"


def _identity(op: Any, given: Any, array: Array, about: str) -> Array:
    if given is None:
        given = _known_identity(op, array.dtype)
        if given is None:
            raise ArgumentError(
                f"{about}: the identity for dtype {array.dtype} is not known."
                " Give it: Reduction(..., identity=...)."
            )
        with contextlib.suppress(FloatingPointError):  # then the operation does not fit either
            return _fitted(given, array)
        return np.zeros((), array.dtype)
    return _given_identity(given, array, about)


def _given_identity(given: Any, array: Array, about: str) -> Array:
    try:
        identity = _fitted(given, array)
        np.broadcast_to(identity, array.shape)
        changed = bool(np.any((identity != given) & (given == given)))  # noqa: PLR0124  NaN stays
    except (TypeError, ValueError, FloatingPointError) as error:
        raise ArgumentError(
            f"{about}: identity={given!r} does not fit an array of shape {array.shape} and dtype"
            f" {array.dtype}: {error}."
        ) from None
    if changed:
        raise ArgumentError(f"{about}: identity={given!r} is another value as {array.dtype}.")
    return identity


def _fitted(given: Any, array: Array) -> Array:
    with np.errstate(all="raise"):
        return np.asarray(given).astype(array.dtype)


def _known_identity(op: np.ufunc, dtype: np.dtype[Any]) -> Any:
    if dtype.kind in "SUV":
        return None
    if op in (np.fmax, np.fmin) and dtype.kind in "fcmM":  # they prefer any number to NaN
        return np.array("NaT", dtype) if dtype.kind in "mM" else np.nan
    if op in (np.maximum, np.fmax):
        return _end_of(dtype, lowest=True)
    if op in (np.minimum, np.fmin):
        return _end_of(dtype, lowest=False)
    if op is np.lcm:
        return 1
    return op.identity


def _end_of(dtype: np.dtype[Any], *, lowest: bool) -> Any:
    """The lowest or the highest value of a dtype."""
    if dtype.kind in "iu":
        ends = np.iinfo(dtype)
        return ends.min if lowest else ends.max
    if dtype.kind in "mM":  # the very lowest is NaT
        ends = np.iinfo(np.int64)
        return np.array(ends.min + 1 if lowest else ends.max).view(dtype.newbyteorder("="))
    infinite = -np.inf if lowest else np.inf
    return {"b": not lowest, "f": infinite, "c": complex(infinite, infinite)}.get(dtype.kind)
