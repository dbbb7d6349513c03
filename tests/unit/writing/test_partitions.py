import itertools
import math
import pickle
import types
from dataclasses import FrozenInstanceError
from typing import Any, NamedTuple

import numpy as np
import pytest
from budget import examples
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sharedtask.errors import (
    ArgumentError,
    DefinitionError,
    OverlapError,
    UnshareableError,
)
from sharedtask.writing.partitioned import overlaps
from sharedtask.writing.partitioned.overlaps import check_overlap
from sharedtask.writing.partitioned.partitions import (
    Partition,
    block,
    check_base,
    index_text,
    indices_of,
    partition,
)

pytestmark = pytest.mark.timeout(60)

many = settings(
    deadline=None, max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow]
)

DTYPES = ["u1", "f8", ">i4", "c16", "datetime64[ns]", "S3", "i1,f8", "V5"]


def item(position: int) -> str:
    return f"item {position}"


def overlap(base: Any, indices: Any) -> tuple[int, int] | None:
    """The two positions that the check names, None where it names none."""
    try:
        check_overlap(base, indices, item)
    except OverlapError as error:
        return error.first, error.second
    return None


def as_view(base: Any, index: Any) -> Any:
    """What numpy shows at an index, as an array also where that is one element."""
    index = index if isinstance(index, tuple) else (index,)
    return base[index] if Ellipsis in index else base[(*index, ...)]


def extent(array: Any) -> tuple[int, int]:
    """The address of the first byte, and of the one after the last."""
    first = array.__array_interface__["data"][0]
    reach = [
        (length - 1) * stride for length, stride in zip(array.shape, array.strides, strict=True)
    ]
    last = first + sum(step for step in reach if step > 0) + array.itemsize
    return first + sum(step for step in reach if step < 0), last


@st.composite
def bases(draw: Any, dtypes: list[str] = DTYPES) -> Any:
    """Dense arrays, and views of them: a part, at an offset, with steps, turned, transposed."""
    shape = draw(st.lists(st.integers(0, 8), max_size=3))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = math.prod(shape) * dtype.itemsize
    values = (np.arange(size) % 251).astype(np.uint8).view(dtype)
    base = values.reshape(shape, order=draw(st.sampled_from("CF"))).copy(order="K")
    if draw(st.booleans()):
        base = base.T
    if draw(st.booleans()):
        steps = st.sampled_from([1, 2, 3, -1, -2])
        starts = st.integers(0, 2)
        cuts = (
            slice(None, None, draw(steps)) if draw(st.booleans()) else slice(draw(starts), None)
            for _ in range(base.ndim)
        )
        base = base[(*cuts, ...)]
    return base


@st.composite
def parts_of(draw: Any, length: int) -> Any:
    if length and draw(st.booleans()):
        return draw(st.integers(-length, length - 1))
    bounds = st.none() | st.integers(-length - 2, length + 2)
    steps = st.sampled_from([None, 1, 2, 3, 4, 6, -1, -2, -3])
    return slice(draw(bounds), draw(bounds), draw(steps))


@st.composite
def indices_for(draw: Any, shape: tuple[int, ...]) -> Any:
    """Ints and slices for some axes, on either side of "..."; alone or in a tuple."""
    front = draw(st.integers(0, len(shape)))
    back = draw(st.integers(front, len(shape)))
    index: tuple[Any, ...] = tuple(draw(parts_of(length)) for length in shape[:front])
    if draw(st.booleans()):
        index = (*index, ..., *(draw(parts_of(length)) for length in shape[back:]))
    return index[0] if len(index) == 1 and draw(st.booleans()) else index


@st.composite
def base_and_indices(draw: Any) -> Any:
    base = draw(bases(["u1", "f8"]))
    return base, draw(st.lists(indices_for(base.shape), min_size=2, max_size=6))


# ------------------------------------------------------------------------------------ one block


@many
@given(st.data())
def test_block_is_what_the_index_shows(data: Any) -> None:
    """A block has the shape, the dtype, the memory and the values of ``base[index]``."""
    base = data.draw(bases())
    index = data.draw(indices_for(base.shape))
    expected, found = as_view(base, index), block(base, index)
    assert expected.shape == found.shape
    assert expected.dtype == found.dtype
    assert expected.tobytes() == found.tobytes()
    assert type(found) is np.ndarray
    assert found.flags.writeable
    if expected.nbytes:
        assert np.shares_memory(expected, found)
        assert expected.__array_interface__["data"] == found.__array_interface__["data"]


@many
@given(st.data())
def test_block_takes_writes(data: Any) -> None:
    """What is written to a block is in the base, and nothing else in it changes."""
    base = data.draw(bases(["u1", "f8", "c16", "S3"]))
    index = data.draw(indices_for(base.shape))
    expected = base.copy()
    expected[index] = 7
    block(base, index)[...] = 7
    assert expected.tobytes() == base.tobytes()


@many
@given(st.data())
def test_block_exposes_nothing_else(data: Any) -> None:
    """No array behind a block reaches before its first byte or after its last."""
    found: Any = block(base := data.draw(bases()), data.draw(indices_for(base.shape)))
    first, last = extent(found) if found.nbytes else (0, 0)
    behind = found.base
    while isinstance(behind, np.ndarray):
        if found.nbytes:
            assert first <= extent(behind)[0]
            assert extent(behind)[1] <= last
        assert not behind.nbytes or not np.shares_memory(behind, base) or found.nbytes
        behind = behind.base


def test_int_gives_an_array() -> None:
    """An int on an array of one axis gives a view of shape (), which can be written to."""
    base = np.zeros(4)
    one = block(base, np.int64(-1))
    one[...] = 5
    assert () == one.shape
    assert [0, 0, 0, 5] == base.tolist()


class Cut(NamedTuple):
    rows: slice
    columns: slice


def test_subclasses() -> None:
    """A tuple with names is an index; a subclass of ndarray is cut like any array."""
    base = np.arange(16).reshape(4, 4).view(np.recarray)
    assert [[5, 6]] == block(base, Cut(slice(1, 2), slice(1, 3))).tolist()
    assert type(block(base, 0)) is np.ndarray
    assert (0, 2) == overlap(base, [Cut(slice(2), slice(2)), 3, Cut(slice(1, 2), slice(1, 2))])


def test_block_keeps_its_memory() -> None:
    """A block is usable when the array it was cut from is gone."""
    found = block(np.arange(100_000), slice(10, 13))
    other = np.zeros(100_000)
    assert [10, 11, 12] == found.tolist()
    del other


FANCY = {
    "None": (None, "adds an axis"),
    "new axis in a tuple": ((0, None), "adds an axis"),
    "bool": (True, "a bool is a mask"),
    "numpy bool": (np.True_, "a bool is a mask"),
    "list": ([0, 1], "indexing with this list makes a copy"),
    "list in a tuple": ((slice(None), [0]), "indexing with this list makes a copy"),
    "array": (np.array([0, 1]), "indexing with this ndarray makes a copy"),
    "mask": (np.ones(3, bool), "indexing with this ndarray makes a copy"),
    "range": (range(2), "indexing with this range makes a copy"),
    "field": ("x", "a str names no position"),
    "float": (1.0, "a float names no block"),
    "float in a slice": (slice(0, 1.5), "slice indices must be integers"),
    "step of zero": (slice(0, 2, 0), "slice step cannot be zero"),
}


@pytest.mark.parametrize("case", FANCY)
def test_fancy_index_is_refused(case: str) -> None:
    """An index that makes a copy, or is none, is refused with the reason and its item."""
    index, reason = FANCY[case]
    base = np.zeros((3, 3))
    with pytest.raises(ArgumentError, match=reason) as alone:
        block(base, index)
    with pytest.raises(ArgumentError, match=reason) as among_others:
        check_overlap(base, [0, index], item)
    assert f"item 1, {alone.value}" == str(among_others.value)
    assert "of an array of shape (3, 3)" in str(alone.value)


def test_fancy_index_is_told_what_to_use() -> None:
    """The whole sentence for a list."""
    with pytest.raises(ArgumentError) as caught:
        block(np.zeros(5), [0, 2])
    assert (
        "index [[0, 2]] of an array of shape (5,): indexing with this list makes a copy, and what a"
        " task writes to a copy would be lost. Use ints, slices and '...': a slice where the"
        " elements are evenly spaced, else one item for each element."
    ) == str(caught.value)


OUTSIDE = {
    "too high": (3, "3 is outside an axis of 3 elements"),
    "too low": (-4, "-4 is outside an axis of 3 elements"),
    "on the other axis": ((0, 5), "5 is outside an axis of 5 elements"),
    "beyond 64 bits": (1 << 70, "is outside an axis of 3 elements"),
    "too many": ((0, 0, 0), "more parts than the array has axes (2)"),
    "two ellipses": ((..., 0, ...), "'...' occurs more than once"),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_index_outside(case: str) -> None:
    """An index out of range is an IndexError that names index, shape and item."""
    index, reason = OUTSIDE[case]
    base = np.zeros((3, 5))
    with pytest.raises(IndexError) as alone:
        block(base, index)
    assert f"index {index_text(index)} of an array of shape (3, 5): " in str(alone.value)
    assert reason in str(alone.value)
    with pytest.raises(IndexError) as among_others:
        check_overlap(base, [0, 1, index], item)
    assert f"item 2, {alone.value}" == str(among_others.value)


def read_only() -> Any:
    array = np.zeros(3)
    array.flags.writeable = False
    return array


BAD_BASES: dict[str, Any] = {
    "list": ([0, 1], ArgumentError, "'out' is of class list"),
    "objects": (np.array([None]), UnshareableError, "holds Python objects"),
    "objects in a field": (np.zeros(2, "i4,O"), UnshareableError, "holds Python objects"),
    "masked": (np.ma.masked_array([1, 2], [False, True]), ArgumentError, "is masked"),
    "read-only": (read_only(), ArgumentError, "is read-only"),
    "broadcast": (
        np.lib.stride_tricks.as_strided(np.zeros(3), (2, 3), (0, 8)),
        ArgumentError,
        "the same bytes at more than one index (shape (2, 3), strides (0, 8))",
    ),
    "sliding": (
        np.lib.stride_tricks.sliding_window_view(np.zeros(5), 3, writeable=True),
        ArgumentError,
        "the same bytes at more than one index",
    ),
}


@pytest.mark.parametrize("case", BAD_BASES)
def test_base_that_cannot_be_cut(case: str) -> None:
    """An array whose blocks cannot be written apart is refused with the reason."""
    base, error, reason = BAD_BASES[case]
    with pytest.raises(error) as caught:
        check_overlap(base, [0], item, "out")
    assert reason in str(caught.value)
    with pytest.raises(error):
        block(base, 0)


@many
@given(bases())
def test_every_view_can_be_cut(base: Any) -> None:
    """Views made by slicing and transposing do not lie on themselves."""
    check_base(base)


SPARSE: dict[str, Any] = {
    "diagonal": np.lib.stride_tricks.as_strided(np.zeros((3, 4, 3)), (4, 3), (24, 104)),
    "field": np.zeros(5, "i1,f8")["f1"],
    "field, two axes": np.zeros((4, 4), "f8,f8")["f1"],
    "turned": np.zeros((1, 3))[:, ::-1],
    "one row without stride": np.lib.stride_tricks.as_strided(np.zeros(3), (1, 3), (0, 8)),
    "other byte order, transposed": np.zeros((3, 4), ">u2").T,
}


@pytest.mark.parametrize("case", SPARSE)
def test_sparse_base_can_be_cut(case: str) -> None:
    """Elements with gaps between them do not lie on one another."""
    base = SPARSE[case]
    check_overlap(base, list(np.ndindex(base.shape)), item)
    for at in np.ndindex(base.shape):
        block(base, at)[...] = sum(at)
    assert [sum(at) for at in np.ndindex(base.shape)] == base.ravel().tolist()


# ----------------------------------------------------------------------------------- all blocks


def brute(base: Any, indices: Any) -> set[tuple[int, int]]:
    views = [as_view(base, index) for index in indices]
    return {
        (one, other)
        for one, other in itertools.combinations(range(len(views)), 2)
        if np.shares_memory(views[one], views[other])
    }


@settings(many, max_examples=examples(500))
@given(base_and_indices())
@example((np.zeros(30, "u1"), [slice(0, None, 6), slice(1, None, 10), slice(5, None, 15)]))
@example((np.zeros(40, "u1"), [slice(0, 21, 4), slice(2, None, 6), slice(24, 31, 3)]))
@example((np.zeros((), "u1"), [(), ...]))
@example((np.zeros((2, 0), "u1"), [0, 0]))
def test_overlap_is_exact(case: Any) -> None:
    """The check names a pair that shares a byte, and exactly if there is one."""
    base, indices = case
    expected, found = brute(base, indices), overlap(base, indices)
    assert bool(expected) == (found is not None)
    assert found is None or found in expected


@many
@given(st.data(), st.integers(0, 3))
def test_overlap_without_sorting_apart(data: Any, rounds: int) -> None:
    """However little the sorting tells apart, the pairs decide."""
    base, indices = data.draw(base_and_indices())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlaps, "_ROUNDS", rounds)
        patch.setattr(overlaps, "_PAIRS", 2)
        found = overlap(base, indices)
    assert bool(brute(base, indices)) == (found is not None)


@many
@given(st.data())
def test_disjoint_blocks_pass(data: Any) -> None:
    """Blocks of which each is disjoint from those before are never refused."""
    base, candidates = data.draw(base_and_indices())
    kept: list[Any] = []
    for index in candidates:
        if not brute(base, [*kept, index]):
            kept.append(index)
    check_overlap(base, kept, item)


@many
@given(
    st.integers(1, 40),
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([1, -1]),
    st.randoms(use_true_random=False),
)
def test_nested_residues_pass(length: int, steps: list[int], sign: int, random: Any) -> None:
    """Classes of remainders, split again and again, do not overlap; one more element does."""
    classes = [(0, 1)]
    for step in steps:
        start, stride = classes.pop(random.randrange(len(classes)))
        classes += [(start + k * stride, stride * step) for k in range(step)]
    taken = [range(start, length, stride) for start, stride in classes if start < length]
    indices = [as_slice(values[::sign]) for values in taken]
    random.shuffle(indices)
    base = np.zeros(length)
    check_overlap(base, indices, item)
    first, second = overlap(base, [*indices, random.randrange(length)]) or (None, None)
    assert len(indices) == second
    assert first is not None


def as_slice(values: range) -> slice:
    return slice(values.start, None if values.stop < 0 else values.stop, values.step)


DISJOINT: dict[str, Any] = {
    "interleaved": ((10,), [slice(0, None, 2), slice(1, None, 2)]),
    "turned": ((10,), [slice(None, 4, -1), slice(4, None, -1)]),
    "2-D tiles": ((4, 6), [(slice(i, i + 2), slice(j, j + 3)) for i in (0, 2) for j in (0, 3)]),
    "rows and a part of the last": ((3, 4), [0, 1, (2, slice(0, 2)), (-1, slice(2, None))]),
    "columns": ((3, 4), [(..., j) for j in range(4)]),
    "a header, then interleaved": (
        (20,), [slice(0, 4), *(slice(4 + k, None, 3) for k in range(3))],
    ),
    "bodies between marks": (
        (20,), [slice(0, None, 5), *(slice(k, k + 4) for k in (1, 6, 11, 16))],
    ),
    "pinwheel": (
        (3, 3),
        [
            (slice(0, 1), slice(0, 2)), (slice(0, 2), slice(2, 3)), (slice(2, 3), slice(1, 3)),
            (slice(1, 3), slice(0, 1)), (1, 1),
        ],
    ),
    "coprime steps that never meet": ((20,), [slice(0, 5, 2), slice(3, 19, 5)]),
    "steps that met before the second began": ((20,), [slice(0, 5, 2), slice(3, None, 3)]),
    "the same empty block twice": ((4,), [slice(2, 2), slice(2, 2)]),
    "an empty block inside another": ((4,), [slice(0, 4), slice(2, 2)]),
    "an axis without elements": ((4, 0), [0, 0, slice(None)]),
    "a step longer than 64 bits": ((4,), [slice(0, None, 1 << 70), slice(1, None, 1 << 62)]),
    "no items": ((4,), []),
    "one item": ((4,), [...]),
}  # fmt: skip


@pytest.mark.parametrize("case", DISJOINT)
@pytest.mark.parametrize("order", ["C", "F"])
def test_disjoint(case: str, order: Any) -> None:
    """Blocks side by side and inside one another's gaps pass."""
    shape, indices = DISJOINT[case]
    check_overlap(np.zeros(shape, order=order), indices, item)


OVERLAPPING: dict[str, Any] = {
    "the same int": ((5,), [0, 1, 2, 1], (1, 3)),
    "an int from either end": ((5,), [4, 0, -1], (0, 2)),
    "an int inside a slice": ((5,), [slice(0, 3), 2], (0, 1)),
    "neighbours": ((20,), [slice(0, 10), slice(15, 20), slice(9, 12)], (0, 2)),
    "row and column": ((3, 3), [(0, ...), (..., 0)], (0, 1)),
    "tiles with a border": (
        (9, 9), [(slice(0, 4), slice(0, 4)), (slice(3, 6), slice(3, 6))], (0, 1),
    ),
    "all twice": ((3,), [..., ()], (0, 1)),
    "steps that meet once": ((20,), [slice(0, 11, 5), slice(1, None, 3)], (0, 1)),
    "one element": ((), [(), ()], (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("case", OVERLAPPING)
@pytest.mark.parametrize("order", ["C", "F"])
def test_overlapping(case: str, order: Any) -> None:
    """Blocks that share an element are refused, and the two items named."""
    shape, indices, pair = OVERLAPPING[case]
    assert pair == overlap(np.zeros(shape, order=order), indices)


def test_overlap_says_what_to_do() -> None:
    """The error names the array and both items with their indices, and points to the cure."""
    tiles = [(slice(0, 4), 0), (slice(4, 8), 0), (slice(7, None, 2), ...)]
    with pytest.raises(OverlapError) as caught:
        check_overlap(np.zeros((8, 8)), tiles, item, "out")
    assert (
        "item 1, [4:8, 0], and item 2, [7::2, ...], would write to the same elements of 'out'."
        " Cut blocks that do not overlap. Or mark it Reduced, where all add to it, or Locked,"
        " where they take turns."
    ) == str(caught.value)
    assert (1, 2, "out") == (caught.value.first, caught.value.second, caught.value.parameter)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(caught.value) == str(again)
    assert (1, 2, "out") == (again.first, again.second, again.parameter)


def test_overlap_error_without_words() -> None:
    """The error has a text where nothing but the positions is known."""
    assert "item 3, and item 5, would write to the same elements of the array." in str(
        OverlapError(3, 5)
    )


def test_elements_of_no_bytes() -> None:
    """Elements without bytes are never written twice."""
    check_overlap(np.zeros(3, "V0"), [0, 0], item)
    assert (2,) == block(np.zeros(3, "V0"), slice(0, 2)).shape


# -------------------------------------------------------------------------- from item to index

TILE = types.SimpleNamespace(rows=slice(2, 4), at=types.SimpleNamespace(x=1), wrong=[1, 2])


@pytest.mark.parametrize(
    ("by", "items", "expected"),
    [
        (None, [3, slice(1)], [3, slice(1)]),
        ("rows", [TILE], [slice(2, 4)]),
        ("at.x", [TILE], [1]),
        (1, [("a", 5), ("b", ...)], [5, ...]),
        (-1, [("a", (1, 2))], [(1, 2)]),
        (len, ["four", ""], [4, 0]),
    ],
)
def test_indices_by_rule(by: Any, items: Any, expected: Any) -> None:
    """The index is the item, an attribute, an element or a function of it."""
    assert expected == indices_of(items, by)


@pytest.mark.parametrize(
    ("by", "second", "words"),
    [
        ("row", TILE, ["item 1", "Partition(by='row') finds nothing", "no attribute 'row'"]),
        ("wrong", TILE, ["item 1: Partition(by='wrong') gave [[1, 2]]: indexing with this list"]),
        (3, ("a", 5), ["item 1, ('a', 5): Partition(by=3) finds nothing", "out of range"]),
        (0, 5, ["item 1, 5: Partition(by=0) finds nothing", "not subscriptable"]),
        (0, {"x": 1}, ["item 1", "Partition(by=0) finds nothing (0)"]),
        (str, 5, ["item 1: Partition(by=str) gave ['5']: a str names no position"]),
        (lambda item: (0, None), 5, ["item 1: Partition(by=", "gave [0, None]: None adds an axis"]),
    ],
)  # fmt: skip
def test_rule_without_an_index(by: Any, second: Any, words: list[str]) -> None:
    """A rule that finds no index names the item, itself, and what it gave."""
    good = types.SimpleNamespace(row=1, wrong=1) if isinstance(by, str) else (1, 1, 1, 1)
    first = [] if callable(by) else [good]
    with pytest.raises(ArgumentError) as caught:
        indices_of([*first, second], by)
    for word in words:
        assert word.replace("item 1", f"item {len(first)}") in str(caught.value)


def test_rule_that_raises() -> None:
    """An exception of the user's function comes as itself, with a note of the item."""

    def rows(item: int) -> int:
        return 1 // item

    with pytest.raises(ZeroDivisionError) as caught:
        indices_of([1, 0], rows)
    note: Any = caught.value.__notes__[0]
    assert note.startswith("in Partition(by=test_rule_that_raises")
    assert note.endswith("item 1")
    assert 1 == note.index


def test_partition_marker() -> None:
    """The marker is frozen, compares by its rule, and can be pickled."""
    assert Partition(by="rows") == pickle.loads(pickle.dumps(Partition("rows")))
    assert Partition().by is None
    marker: Any = Partition()
    with pytest.raises(FrozenInstanceError):
        marker.by = 1


@pytest.mark.parametrize("by", [True, 1.5, ["rows"]])
def test_partition_marker_refuses(by: Any) -> None:
    """What is no rule is refused where it is written."""
    with pytest.raises(DefinitionError, match="is no rule"):
        Partition(by=by)


def test_index_text() -> None:
    """An index is written as in source."""
    assert "[0:10, ::2, 3, ..., -1]" == index_text(
        (slice(0, 10), slice(None, None, 2), np.int8(3), ..., -1)
    )
    assert "[:]" == index_text(slice(None))
    assert "[()]" == index_text(())
    assert len(index_text(list(range(1000)))) < 100
    assert "\n" not in index_text(np.zeros((3, 3)))


# ------------------------------------------------------------------------------------ partition


@given(st.integers(0, 300), st.integers(1, 400))
def test_partition_covers(n: int, parts: int) -> None:
    """Every element once, in order, in slices whose lengths differ by one at most."""
    slices = partition(n, parts)
    assert list(range(n)) == [k for cut in slices for k in range(n)[cut]]
    assert min(n, parts) == len(slices)
    lengths = {cut.stop - cut.start for cut in slices}
    assert not lengths or max(lengths) - min(lengths) <= 1
    check_overlap(np.zeros(n), slices, item)


@pytest.mark.parametrize(
    ("n", "parts", "word"), [(-1, 2, "n=-1"), (3, -2, "parts=-2"), (3, 0, "parts=0")]
)
def test_partition_refuses(n: int, parts: int, word: str) -> None:
    """A negative number of elements, and less than one part, are refused."""
    with pytest.raises(ValueError) as caught:
        partition(n, parts)
    assert word in str(caught.value)
