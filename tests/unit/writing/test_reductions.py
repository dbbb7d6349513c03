"""Operations with an identity, without workers: what they accept, and what they make."""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sharedtask import (
    ArgumentError,
    DefinitionError,
    Reduced,
    Reduction,
    Shared,
    parallel,
)
from sharedtask.testing import assert_same
from sharedtask.testing.reduced import OPERATIONS
from sharedtask.writing.reduced.operations import Operation, operation


def made(op: Any, array: Any, **options: Any) -> Operation:
    return operation(Reduction(op, **options), np.asarray(array), "total")


def folded(how: Operation, rows: Any) -> Any:
    """What the rows make together, from nothing."""
    total = np.empty_like(rows[0])
    how.begin(total)
    for row in rows:
        how.combine(total, row, total)
    return total


def keep_larger(one: Any, other: Any) -> Any:
    return np.maximum(one, other)


# ----------------------------------------------------------------------------- the identity


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_identity_changes_nothing(name: str, data: st.DataObject) -> None:
    """What a total begins with leaves every value as it is, also the ends of the dtype."""
    op, dtype = OPERATIONS[name]
    kind = np.dtype(dtype)
    has_nan = name in {"fmax", "max of >f8", "min of f4"}
    ends: Any = {"allow_nan": has_nan} if kind.kind == "f" else {}
    elements = None if kind.kind in "gcmM" or dtype == "g" else npst.from_dtype(kind, **ends)
    values = data.draw(npst.arrays(kind, (4,), elements=elements))
    if kind.kind == "c":
        values = values[np.isfinite(values)]
    if op in (np.gcd, np.lcm, np.hypot):  # of which the sign is lost
        values = np.abs(values)
    if name in {"any of i4", "all of f8"}:
        values = (values != 0).astype(kind)
    with np.errstate(all="ignore"):
        total = folded(made(op, values), [values])
    equal_nan = kind.kind in "fcmM"
    assert np.array_equal(values, total, equal_nan=equal_nan)


ENDS: dict[tuple[str, str], Any] = {
    ("max", "u1"): 0,
    ("min", "u1"): 255,
    ("max", "i2"): -32768,
    ("min", "i8"): 2**63 - 1,
    ("max", "f4"): -np.inf,
    ("min", "f2"): np.inf,
    ("max", "?"): False,
    ("min", "?"): True,
    ("sum", "f8"): 0,
    ("prod", ">i4"): 1,
    ("any", "?"): False,
    ("all", "?"): True,
}


@pytest.mark.parametrize(("op", "dtype"), ENDS)
def test_known_identity(op: str, dtype: str) -> None:
    """The operations with a name have an identity for every dtype of numbers."""
    identity = made(op, np.zeros(3, dtype)).identity
    assert np.dtype(dtype) == identity.dtype
    assert ENDS[op, dtype] == identity


def test_largest_of_dates_is_not_nat() -> None:
    """NaT is the lowest number among dates, and would spoil every maximum."""
    days = np.array(["1970-01-01", "0001-01-01"], "M8[D]")
    assert_same(days, folded(made("max", days), [days]))
    assert_same(days, folded(made("min", days), [days]))


@pytest.mark.parametrize("op", [np.fmax, np.fmin])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "c16", "M8[s]", "m8[D]"])
def test_nan_is_kept_where_there_is_nothing_else(op: Any, dtype: str) -> None:
    """``fmax`` and ``fmin`` pass over NaN where there is a number, and only there."""
    kind = np.dtype(dtype)
    none = "NaT" if kind.kind in "mM" else np.nan
    rows = np.array([[none, none], [none, 1]], kind)
    assert np.array_equal([True, False], np.isnan(folded(made(op, rows[0]), rows)))


@pytest.mark.parametrize("dtype", ["U3", "S3"])
@pytest.mark.parametrize("op", ["sum", "all", "any", "max"])
def test_text_has_no_identity(op: str, dtype: str) -> None:
    """Nothing is known that changes no text: the number 0 is not it."""
    with pytest.raises(ArgumentError, match="'total'"):
        made(op, np.array(["ab"], dtype))


def test_identity_that_is_given() -> None:
    """A number or an array, of the same values in the dtype of the total."""
    assert 0 == made(np.maximum, np.zeros(3, "i8"), identity=0).identity
    assert np.isnan(made("max", np.zeros(3), identity=np.nan).identity)
    day = np.datetime64("1999-01-01")
    assert day == made("max", np.zeros(3, "M8[D]"), identity=day).identity
    total = np.empty((2, 3))
    made(keep_larger, total, identity=[1, 2, 3]).begin(total)
    assert [[1.0, 2.0, 3.0]] * 2 == total.tolist()


MISFITS: dict[str, tuple[Any, str]] = {
    # an identity, the dtype of an array of shape (2, 4)
    "too large": (300, "u1"),
    "below zero": (-1, "u2"),
    "a fraction": (0.5, "i8"),
    "infinite": (np.inf, "i4"),
    "text": ("a", "f8"),
    "too long": ([1, 2, 3], "f8"),
    "too many axes": (np.zeros((1, 2, 4)), "f8"),
    "a number for dates": (0, "M8[D]"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_identity_that_does_not_fit(name: str) -> None:
    """An identity that would be another value, or of another shape, is refused as it was given."""
    identity, dtype = MISFITS[name]
    with pytest.raises(ArgumentError, match=r"'total', Reduction\('max'\): identity=") as caught:
        made("max", np.zeros((2, 4), dtype), identity=identity)
    assert repr(identity) in str(caught.value)
    assert str(np.dtype(dtype)) in str(caught.value)


@pytest.mark.parametrize("op", [np.subtract, np.arctan2, np.greater, np.matmul], ids=str)
def test_ufunc_without_identity(op: Any) -> None:
    """A ufunc of which nothing is known asks for its identity."""
    with pytest.raises(ArgumentError, match=rf"'total', Reduction\({op.__name__}\).*identity=\.\."):
        made(op, np.zeros((2, 2)))


UNFIT: dict[str, tuple[Any, str]] = {
    "sum of dates": ("sum", "M8[s]"),
    "product of durations": ("prod", "m8[s]"),
    "bits of floats": (np.bitwise_or, "f8"),
    "sum of records": ("sum", "i4,f8"),
    "sum of bytes": ("sum", "V3"),
    "logarithms of ints": (np.logaddexp, "i8"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_operation_that_does_not_fit(name: str) -> None:
    """What the operation cannot do, or has no room for, is refused with the dtype's name."""
    op, dtype = UNFIT[name]
    with pytest.raises(ArgumentError, match="'total', Reduction") as caught:
        made(op, np.zeros(3, dtype))
    assert str(np.dtype(dtype)) in str(caught.value)


# ------------------------------------------------------------------------------ combining


def test_combined_beside_the_two() -> None:
    """A result may be written to a third array; the two that make it are not touched."""
    for how in (made("sum", np.zeros(2)), made(keep_larger, np.zeros(2), identity=-np.inf)):
        one, other, out = np.array([1.0, 5.0]), np.array([3.0, 2.0]), np.zeros(2)
        how.combine(one, other, out)
        assert ([1.0, 5.0], [3.0, 2.0]) == (one.tolist(), other.tolist())
        assert out.tolist() in ([4.0, 7.0], [3.0, 5.0])
        how.combine(one, other, one)
        assert out.tolist() == one.tolist()


def write_in_place(one: Any, other: Any) -> Any:
    one += other
    return one


def write_in_a_view(one: Any, other: Any) -> Any:
    one += other
    return one[:]


@pytest.mark.parametrize("function", [np.add, write_in_place, write_in_a_view, lambda a, b: a + b])
def test_function_may_write_into_its_first_argument(function: Any) -> None:
    """What a function returns counts, be it new, its first argument, or a view of that."""
    how = made(function, np.zeros(2), identity=0)
    one, other, out = np.array([1.0, 5.0]), np.array([3.0, 2.0]), np.full(2, 9.0)
    how.combine(one, other, out)
    assert [[1.0, 5.0], [3.0, 2.0], [4.0, 7.0]] == [one.tolist(), other.tolist(), out.tolist()]
    how.combine(one, other, one)
    assert [[3.0, 2.0], [4.0, 7.0]] == [other.tolist(), one.tolist()]


RETURNS: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "nothing": (lambda a, b: None, "nothing"),
    "a part": (lambda a, b: a[:1], r"shape \(1,\)"),
    "a number": (lambda a, b: 0, r"shape \(\)"),
    "both": (lambda a, b: [a, b], r"shape \(2, 3\)"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_function_that_returns_something_else(name: str) -> None:
    """A function must return one array of the same shape; the error says what it returned."""
    function, said = RETURNS[name]
    total = np.zeros(3)
    with pytest.raises(ArgumentError, match=rf"Reduction\(<lambda>\).*{said}.*\(3,\)"):
        made(function, total, identity=0).combine(total, total, total)


def test_function_that_returns_another_kind() -> None:
    """Floats are not cut to ints without a word."""
    total = np.zeros(3, "i8")
    with pytest.raises(TypeError):
        made(lambda a, b: a + 0.5, total, identity=0).combine(total, total, total)


# ------------------------------------------------------------------------------ definition

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "misspelt": (lambda: Reduction("summ"), "Did you mean 'sum'"),
    "unknown": (lambda: Reduction("xyz"), "'xyz' is none|none of 'sum', 'prod'"),
    "one argument": (lambda: Reduction(np.sin), "np.sin.*takes 1"),
    "two results": (lambda: Reduction(np.divmod), "np.divmod.*gives 2"),
    "a number": (lambda: Reduction(3), r"Reduction\(3\)"),  # type: ignore[arg-type]
    "no identity": (lambda: Reduction(keep_larger), "keep_larger.*needs an identity"),
    "a flag that is none": (
        lambda: Reduction("sum", deterministic=1),  # type: ignore[arg-type]
        "deterministic=1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_reduction_that_cannot_be(name: str) -> None:
    """What combines nothing is refused where it is written down, with the cure."""
    make, words = WRONG[name]
    with pytest.raises(DefinitionError, match=words):
        make()


def plain(k: int, total: Any) -> None:
    del k, total


REFUSED_LISTS: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt parameter": ({"reduced": ["totl"]}, "Did you mean 'total'"),
    "misspelt operation": ({"reduced": {"total": "summ"}}, "Did you mean 'sum'"),
    "the item": ({"reduced": ["k"]}, "k"),
    "two roles": ({"reduced": ["total"], "shared": ["total"]}, "total"),
    "no identity": ({"reduced": {"total": keep_larger}}, "identity"),
}


@pytest.mark.parametrize("name", REFUSED_LISTS)
def test_list_that_cannot_be(name: str) -> None:
    """The decorator refuses names and operations that mean nothing."""
    lists, words = REFUSED_LISTS[name]
    with pytest.raises(DefinitionError, match=words):
        parallel(**lists)(plain)


def test_annotations_that_cannot_be() -> None:
    """A rule for another role, and two rules for one parameter, are refused at the decorator."""
    with pytest.raises(DefinitionError, match="total"):

        @parallel
        def shared_sum(k: int, total: Annotated[Shared[Any], Reduction("sum")]) -> None:
            del k, total

    with pytest.raises(DefinitionError, match="total"):

        @parallel(reduced={"total": "max"})
        def said_twice(k: int, total: Annotated[Any, Reduction("sum")]) -> None:
            del k, total


def test_list_beside_a_bare_annotation() -> None:
    """``Reduced[T]`` says that it is added to, and the decorator may say how."""

    @parallel(reduced={"total": "max"}, backend="serial")
    def largest(k: int, total: Reduced[Any]) -> None:
        np.maximum(total, k, out=total)

    total = np.array([3])
    largest.map(range(9), total=total)
    assert 8 == total


def test_repr_can_be_read() -> None:
    """A reduction shows what it is made of."""
    assert "Reduction(op='max', identity=0, deterministic=True)" == repr(Reduction("max", 0, True))
