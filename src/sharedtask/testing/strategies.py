# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Arrays and values of all kinds, and what it means that two are the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

if TYPE_CHECKING:
    import numpy.typing as npt


DTYPES: tuple[str, ...] = (
    "bool", "int8", "uint16", "int32", "int64", "uint64", ">i4", "float16", "float32", "float64",
    ">f8", "longdouble", "complex64", "complex128", "S5", "U3", "V4", "datetime64[ns]",
    "datetime64[D]", "timedelta64[s]", "i4,f8", "O",
)  # fmt: skip


"""One dtype of every kind, as ``np.dtype`` reads them."""


def segment_spans() -> list[tuple[int, int]]:
    """The addresses of this process at which segments are mapped: from, and up to."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        lines = [line.split(maxsplit=5) for line in file if "memfd:sharedtask" in line]
    return [(int(low, 16), int(high, 16)) for low, _, high in (w[0].partition("-") for w in lines)]


def in_segment(*addresses: int) -> bool:
    """True where every one of these addresses lies in a mapped segment."""
    spans = segment_spans()
    return all(any(low <= at < high for low, high in spans) for at in addresses)


def array_of(dtype: str, shape: tuple[int, ...] = (6,)) -> npt.NDArray[Any]:
    """A writable array of ``shape`` whose elements differ, where the dtype has several values."""
    count = math.prod(shape)
    if dtype == "O":
        flat = np.empty(count, object)
        flat[:] = [("item", k) for k in range(count)]
    else:
        kind = np.dtype(dtype)
        flat = np.frombuffer(bytes(range(1, 1 + kind.itemsize)) * count, kind).copy()
        if kind.kind in "iufcmM":
            flat = (np.arange(count) % 100).astype(kind)
        elif kind.kind in "bSUV":
            flat = np.zeros(count, kind) if kind.kind != "b" else np.arange(count) % 2 == 0
            if kind.kind in "SU":
                flat[:] = [str(k) for k in range(count)]
    return flat.reshape(shape)


@st.composite
def arrays(draw: st.DrawFn, *, dtypes: st.SearchStrategy[Any] | None = None) -> npt.NDArray[Any]:
    """Arrays of any dtype without objects, any shape of up to 4 axes, strides and order."""
    dtype = draw(dtypes if dtypes is not None else _dtypes())
    shape = draw(npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array = _random_array(draw(st.integers(0, 2**32)), np.dtype(dtype), shape)
    layout = draw(
        st.sampled_from(["C", "F", "transposed", "steps", "block", "windows", "broadcast"])
    )
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array
    if layout == "transposed":
        return array.transpose(draw(st.permutations(range(array.ndim))))
    if layout == "steps" and array.ndim:
        steps = draw(st.tuples(*[st.sampled_from([-2, -1, 1, 2])] * array.ndim))
        return array[tuple(slice(None, None, step) for step in steps)]
    if layout == "block" and array.ndim:
        return array[tuple(slice(*draw(_spans(length))) for length in array.shape)]
    if layout == "windows" and array.ndim and array.shape[-1]:
        width = draw(st.integers(1, array.shape[-1]))
        windows: npt.NDArray[Any]
        windows = np.lib.stride_tricks.sliding_window_view(array, width, axis=-1)
        return windows
    if layout == "broadcast":
        return np.broadcast_to(array, (draw(st.integers(0, 3)), *array.shape))
    return array


def _spans(length: int) -> st.SearchStrategy[tuple[int, int]]:
    ends = st.integers(0, length)
    return st.tuples(ends, ends).map(lambda span: (min(span), max(span)))


@st.composite
def views(draw: st.DrawFn) -> tuple[npt.NDArray[Any], list[npt.NDArray[Any]]]:
    """A table of numbers that all differ, and views of it: blocks, steps, reversed, transposed."""
    shape = draw(npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=7))
    base = np.arange(math.prod(shape), dtype=draw(st.sampled_from(["i8", "f4", "u1", ">i2"])))
    base = base.reshape(shape)
    found = []
    for _ in range(draw(st.integers(1, 5))):
        spans = [draw(_spans(length)) for length in shape]
        view = base[tuple(slice(low, high, draw(st.integers(1, 3))) for low, high in spans)]
        if draw(st.booleans()):
            view = view[tuple(slice(None, None, draw(st.sampled_from([1, -1]))) for _ in shape)]
        found.append(view.T if draw(st.booleans()) else view)
    return base, found


def _random_array(seed: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Any bits at all, as far as the dtype allows any."""
    generator = np.random.default_rng(seed)
    count = math.prod(shape)
    if dtype.kind == "U":
        size = dtype.itemsize // 4
        words = ["".join(map(chr, generator.integers(1, 0xD7FF, size))) for _ in range(count)]
        return np.array(words, dtype).reshape(shape)
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    data = generator.bytes(count * dtype.itemsize)
    return np.ndarray(shape, dtype, bytearray(data) or bytearray(dtype.itemsize or 1))


def _dtypes() -> st.SearchStrategy[Any]:
    plain = st.one_of(
        npst.scalar_dtypes(),
        st.sampled_from([np.dtype(name) for name in ("longdouble", "V4", "S1", "U1")]),
    )
    fields = st.one_of(npst.integer_dtypes(), npst.floating_dtypes(), npst.datetime64_dtypes())
    made = npst.array_dtypes(subtype_strategy=fields, max_size=3)
    return st.one_of(plain, made, st.sampled_from(list(STRUCTURES.values())))


STRUCTURES: dict[str, np.dtype[Any]] = {
    "packed": np.dtype([("a", "i1"), ("b", "f8")]),
    "aligned": np.dtype([("a", "i1"), ("b", "f8"), ("c", "i2")], align=True),
    "padded": np.dtype(
        {"names": ["a", "b"], "formats": ["i1", "f8"], "offsets": [3, 16], "itemsize": 40}
    ),
    "overlapping": np.dtype({"names": ["a", "b"], "formats": ["u4", "u1"], "offsets": [0, 1]}),
    "subarray": np.dtype([("a", "f4", (2, 3)), ("b", "M8[us]")]),
    "titles": np.dtype([(("a long title", "a"), "i4"), (("b title", "b"), ">f4")]),
    "nested": np.dtype([("a", [("x", "i2"), ("y", "S3")]), ("b", "?")]),
}


"""Structured dtypes of every make."""


def nested_values(leaves: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """Dicts, lists and tuples of plain values and arrays, a few levels deep."""
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=8),
    )
    return st.recursive(
        st.one_of(plain, leaves if leaves is not None else arrays()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.tuples(inner, inner),
            st.dictionaries(st.text(max_size=4), inner, max_size=4),
        ),
        max_leaves=8,
    )


def bits_of(array: npt.NDArray[Any]) -> Any:
    """The bytes of an array but for those between fields and behind long doubles."""
    if array.dtype.names is not None:
        return [bits_of(array[name]) for name in array.dtype.names]
    if array.dtype.type not in {np.longdouble, np.clongdouble}:
        return array.tobytes()
    numbers = np.frombuffer(array.tobytes(), np.uint8).reshape(-1, np.dtype("g").itemsize)
    return numbers[:, :_LONG_DOUBLE].tobytes()


# Intel's has 80 bits, in 16 bytes.
_LONG_DOUBLE = 10 if np.finfo(np.longdouble).nmant == 63 else np.dtype("g").itemsize


_PLAIN = frozenset({int, str, bytes, bool, type(None)})


def assert_same(expected: Any, actual: Any, at: str = "value") -> None:
    """Fail unless both have the same types, structure, dtypes, shapes, orders and bits."""
    assert type(expected) is type(actual), f"{at}: {type(expected)} became {type(actual)}"
    if isinstance(expected, np.ndarray):
        assert expected.dtype == actual.dtype, at
        assert expected.shape == actual.shape, at
        if expected.dtype.hasobject:
            assert_same(expected.ravel().tolist(), actual.ravel().tolist(), at)
        else:
            assert bits_of(expected) == bits_of(actual), at
    elif isinstance(expected, dict):
        assert list(expected) == list(actual), at
        for key, value in expected.items():
            assert_same(value, actual[key], f"{at}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(actual), at
        for position, (value, found) in enumerate(zip(expected, actual, strict=True)):
            # Most are plain, and there may be many: no text of where each of them stands.
            if type(value) not in _PLAIN or type(value) is not type(found) or value != found:
                assert_same(value, found, f"{at}[{position}]")
    elif isinstance(expected, float | complex | np.number):
        assert repr(expected) == repr(actual), at  # NaN equals NaN, and 0.0 is not -0.0
    else:
        assert expected == actual, at
