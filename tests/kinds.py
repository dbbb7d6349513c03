"""One value of every kind, and how to look at it: what ``test_kinds`` runs through."""

import array
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

N = 20_000  # elements: more than what travels inside a message


@dataclass(frozen=True)
class Kind:
    """``look`` says all that has to survive, ``places`` where its memory lies (None: it is copied).

    ``change`` writes into the value, as its owner may; ``write`` as a task may not.
    """

    make: Callable[[], Any]
    look: Callable[[Any], Any]
    places: Callable[[Any], list[int]] | None = None
    change: Callable[[Any], Any] | None = None
    write: Callable[[Any], Any] | None = None


# ---------------------------------------------------------------------------------- numpy


def of_array(found: Any) -> Any:
    """All of an array but its addresses."""
    order = found.flags.c_contiguous, found.flags.f_contiguous
    base = np.asarray(found)
    # The bytes of a long double that say nothing may be any.
    text = base.tolist() if base.dtype.char in "OgG" else base.tobytes()
    return type(found).__name__, base.dtype, base.dtype.type, found.shape, order, text


def at(found: Any) -> list[int]:
    """The address of an array."""
    return [int(np.asarray(found).__array_interface__["data"][0])]


def flip(found: Any) -> None:
    """Change one byte."""
    first = np.asarray(found)[(slice(0, 1),) * found.ndim]
    first[...] = np.asarray(found)[(slice(1, 2),) * found.ndim]


def put(found: Any) -> None:
    """Write an element, with what stands there."""
    found[(0,) * found.ndim] = found[(0,) * found.ndim]


def numpy(make: Callable[[], Any], change: Any = flip) -> Kind:
    return Kind(make, of_array, at, change, put)


def numbers(dtype: Any) -> Any:
    """N different elements, as far as the dtype has them."""
    kind = np.dtype(dtype)
    if kind.kind in "SU":
        return np.array([str(k) for k in range(N)], kind)
    if kind.kind == "V":
        return np.arange(N * kind.itemsize, dtype=np.uint8).view(kind)
    return np.arange(N).astype(kind) if kind.kind != "b" else np.arange(N) % 2 == 1


def table() -> Any:
    return np.arange(400.0 * 300).reshape(400, 300)


class Tagged(np.ndarray[Any, Any]):
    """A subclass as numpy's guide has it: an attribute that every view takes over."""

    unit: Any

    def __array_finalize__(self, source: Any) -> None:
        self.unit = getattr(source, "unit", None)


class Slotted(np.ndarray[Any, Any]):
    """A subclass with a slot."""

    __slots__ = ("unit",)


def tagged(cls: Any) -> Any:
    found = np.arange(float(N)).view(cls)
    found.unit = {"name": "metre", "scale": np.arange(10.0)}
    return found


def with_unit(found: Any) -> Any:
    unit = found.unit
    return of_array(found), unit["name"], unit["scale"].tolist()


def masked(**options: Any) -> Any:
    return np.ma.MaskedArray(np.arange(float(N)), np.arange(N) % 3 == 0, **options)


def of_masked(found: Any) -> Any:
    flags = found.hardmask, found.sharedmask, found.fill_value
    bare = of_array(found.data), np.ma.getmaskarray(found).tobytes(), found.mask is np.ma.nomask
    return type(found).__name__, bare, flags


def at_masked(found: Any) -> list[int]:
    mask = np.ma.getmask(found)
    return [*at(found.data), *([] if mask is np.ma.nomask else at(mask))]


def records() -> Any:
    return np.array([(k, k / 2) for k in range(N)], [("a", "i8"), ("b", "f8")]).view(np.recarray)


def matrix() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asmatrix(table())


STRING: Any = vars(np.dtypes)["StringDType"]()


def texts() -> Any:
    return np.array(["a text", "another"] * 50, STRING)


NUMPY = {
    "array": numpy(table),
    "array in F order": numpy(lambda: np.asfortranarray(table())),
    "slice": numpy(lambda: table()[100:200]),
    "transposed": numpy(lambda: table().T),
    "reversed": numpy(lambda: table()[::-1]),
    "0-d": Kind(lambda: np.array(2.5), of_array),
    "size 1": Kind(lambda: np.array([[2.5]]), of_array),
    "empty": Kind(lambda: np.zeros((0, 5), ">i2"), of_array),
    "windows": Kind(
        lambda: np.lib.stride_tricks.sliding_window_view(np.arange(float(N)), 3), of_array, at
    ),
    "recarray": numpy(records),
    "matrix": numpy(matrix),
    "chararray": numpy(lambda: np.char.array(["abc", "de"] * N)),
    "subclass": Kind(lambda: tagged(Tagged), with_unit, at, flip, put),
    "subclass with slots": Kind(lambda: tagged(Slotted), with_unit, at, flip, put),
    "masked": Kind(masked, of_masked, at_masked, flip, put),
    "masked, hard": Kind(
        lambda: masked(fill_value=7, hard_mask=True), of_masked, at_masked, flip, put
    ),
    "masked, view": Kind(lambda: masked()[10:], of_masked, at_masked, flip, put),
    "masked, no mask": Kind(lambda: np.ma.MaskedArray(table()), of_masked, at_masked, flip, put),
    "masked records": Kind(
        lambda: np.ma.MaskedArray(records(), mask=(True, False)), of_masked, at_masked, flip
    ),
    "objects": Kind(lambda: np.array([{"a": 1}, None, "x"] * 100, object), of_array),
    "StringDType": Kind(texts, lambda v: (v.tolist(), v.dtype == STRING)),
    **{
        f"dtype {dtype}": numpy(functools.partial(numbers, dtype))
        for dtype in (
            "bool", "i1", "u4", ">i8", "f2", "longdouble", "c8", ">c16", "S7", "U5", ">U5", "V6",
            "M8[D]", "M8[25ns]", ">M8[us]", "m8[s]",
        )
    },
}  # fmt: skip


def of_view(found: Any) -> Any:
    return found.format, found.shape, found.tobytes()


def write_view(found: Any) -> None:
    found[(0,) * found.ndim] = found[(0,) * found.ndim]


PYTHON = {
    "memoryview": Kind(lambda: memoryview(table()), of_view, at, flip, write_view),
    "memoryview of bytes": Kind(lambda: memoryview(bytes(N * 8)), of_view, at, None, write_view),
    "memoryview, cast": Kind(
        lambda: memoryview(bytearray(range(250)) * 640).cast("i", (N, 2)),
        of_view,
        at,
        flip,
        write_view,
    ),
    "memoryview, steps": Kind(lambda: memoryview(numbers("f4"))[::-2], of_view, at),
    "memoryview, big-endian": Kind(lambda: memoryview(numbers(">i4")), of_view, at),
    "bytes": Kind(lambda: bytes(range(250)) * 400, lambda v: (type(v), v)),
    "bytearray": Kind(
        lambda: bytearray(N * 5), lambda v: (type(v), bytes(v)), change=lambda v: v.extend(b"x")
    ),
    "array.array": Kind(
        lambda: array.array("d", range(N)),
        lambda v: (type(v), v.typecode, v.tolist()),
        change=lambda v: v.append(1),
    ),
}


# --------------------------------------------------------------------------- pandas, Arrow


def pandas() -> Any:
    return pytest.importorskip("pandas", reason="pandas is not installed")


def arrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed")


def polars() -> Any:
    return pytest.importorskip("polars", reason="polars is not installed")


def frame() -> Any:
    pd = pandas()
    found = pd.DataFrame({"a": np.arange(float(N)), "b": np.arange(N), "c": np.arange(N) % 2 == 0})
    found.attrs["made"] = "here"
    found.index.name = "row"
    return found


def of_frame(found: Any) -> Any:
    values = {name: column.tolist() for name, column in found.items()}
    index = found.index.tolist(), found.index.names, type(found.index).__name__
    return values, found.dtypes.tolist(), index, found.attrs


def of_series(found: Any) -> Any:
    return repr(found.tolist()), found.dtype, found.name, type(found.index).__name__


def at_series(found: Any) -> list[int]:
    return at_extension(found.array)


def at_extension(values: Any) -> list[int]:
    """The addresses of the arrays that a column of pandas is made of."""
    if isinstance(values, np.ndarray):
        return at(values)
    if hasattr(values, "_pa_array"):
        return at_arrow(values._pa_array)
    parts = (
        getattr(values, name, None)
        for name in ("_ndarray", "_data", "_mask", "_codes", "_left", "_right", "_sparse_values")
    )
    return [where for part in parts if part is not None for where in at_extension(part)]


def series(make: Callable[[Any], Any]) -> Kind:
    return Kind(lambda: pandas().Series(make(pandas()), name="s"), of_series, at_series)


def indexed() -> Any:
    pd = pandas()
    index = pd.MultiIndex.from_product([range(N // 10), list("abcdefghij")], names=["x", "y"])
    return pd.DataFrame(table().reshape(-1)[:N], index=index, columns=["v"])


PANDAS = {
    "DataFrame": Kind(
        frame,
        of_frame,
        lambda f: [where for name in f for where in at_series(f[name])],
        lambda f: f.__setitem__("a", f["a"] + 1),
        lambda f: f.loc.__setitem__((3, "a"), 7.0),
    ),
    "DataFrame, part": Kind(lambda: frame()[["b"]].iloc[5:-5], of_frame, lambda f: at_series(f.b)),
    "DataFrame, MultiIndex": Kind(indexed, of_frame, lambda f: at_series(f.v)),
    "DatetimeIndex": Kind(
        lambda: pandas().date_range("2020", periods=N, freq="h", tz="Europe/Berlin"),
        lambda v: (v.tolist(), v.dtype, v.freq, v.name),
        lambda v: at(v.asi8),
    ),
    "nullable": series(lambda pd: pd.array(range(N), "Int64")),
    "nullable bool": series(lambda pd: pd.array([True, None] * N, "boolean")),
    "categorical": series(lambda pd: pd.Categorical(np.array([*"abc"])[np.arange(N) % 3])),
    "datetime": series(lambda pd: pd.date_range("2020", periods=N, freq="s")),
    "datetime with zone": series(lambda pd: pd.date_range("2020", periods=N, freq="s", tz="UTC")),
    "timedelta": series(lambda pd: pd.to_timedelta(np.arange(N), "s")),
    "period": series(lambda pd: pd.period_range("1900", periods=N, freq="D")),
    "interval": series(lambda pd: pd.interval_range(0, N)),
    "sparse": series(lambda pd: pd.arrays.SparseArray(np.arange(3 * N) % 3 * 1.0, fill_value=0)),
    "strings of python": Kind(
        lambda: pandas().Series(["a", None] * 99, dtype=pandas().StringDtype("python")), of_series
    ),
    "strings of pyarrow": series(lambda pd: words(pd.StringDtype("pyarrow"))),
    "Arrow-backed": series(lambda pd: arrow() and pd.array(range(N), "int64[pyarrow]")),
}


def words(dtype: Any) -> Any:
    arrow()
    return pandas().array([f"word {k}" if k % 7 else None for k in range(N)], dtype)


def at_arrow(found: Any) -> list[int]:
    """The addresses of all buffers, but for those of a dictionary."""
    if hasattr(found, "chunks"):
        return [where for chunk in found.chunks for where in at_arrow(chunk)]
    if hasattr(found, "itercolumns"):
        return [where for column in found.itercolumns() for where in at_arrow(column)]
    return [b.address for b in found.buffers() if b is not None and b.size]


def of_arrow(found: Any) -> Any:
    found.validate(full=True)
    return found.to_pylist(), str(getattr(found, "type", "")), len(found)


def arrow_kind(make: Callable[[Any], Any]) -> Kind:
    return Kind(lambda: make(arrow()), of_arrow, at_arrow)


def arrow_table(pa: Any) -> Any:
    columns = {name: ARROW_ARRAYS[name](pa) for name in ("int", "text", "list")}
    return pa.table(columns).replace_schema_metadata({"made": "here"})


def _some(value: Callable[[int], Any]) -> list[Any]:
    return [value(k) if k % 5 else None for k in range(N)]


ARROW_ARRAYS: dict[str, Callable[[Any], Any]] = {
    "int": lambda pa: pa.array(range(N)),
    "int, nulls": lambda pa: pa.array(_some(lambda k: k)),
    "bool": lambda pa: pa.array([k % 3 == 0 for k in range(40 * N)]),
    "decimal": lambda pa: pa.array(range(N), pa.decimal128(10)),
    "time": lambda pa: pa.array(range(N), pa.timestamp("us", "UTC")),
    "fixed binary": lambda pa: pa.array([b"abcd"] * N, pa.binary(4)),
    "text": lambda pa: pa.array(_some(lambda k: f"word {k}")),
    "large text": lambda pa: pa.array(_some(lambda k: f"word {k}"), pa.large_string()),
    "text view": lambda pa: pa.array(_some(lambda k: f"a text that is long {k}"), pa.string_view()),
    "binary": lambda pa: pa.array(_some(lambda k: b"x" * (k % 9))),
    "list": lambda pa: pa.array(_some(lambda k: [k, None])),
    "large list": lambda pa: pa.array(_some(lambda k: [k]), pa.large_list(pa.int32())),
    "list of texts": lambda pa: pa.array(_some(lambda k: [f"t{k}"] * (k % 3))),
    "list of one length": lambda pa: pa.array(_some(lambda k: [k, 1]), pa.list_(pa.int64(), 2)),
    "list view": lambda pa: pa.array(_some(lambda k: [k]), pa.list_view(pa.int64())),
    "struct": lambda pa: pa.array(_some(lambda k: {"a": k, "b": f"x{k}"})),
    "nested": lambda pa: pa.array(_some(lambda k: {"l": [{"z": f"{k}"}], "m": k})),
    "dictionary": lambda pa: pa.array([f"k{k % 9}" for k in range(N)]).dictionary_encode(),
    "map": lambda pa: pa.array([[("k", k)] for k in range(N)], pa.map_(pa.string(), pa.int64())),
    "extension": lambda pa: pa.ExtensionArray.from_storage(
        pa.uuid(), pa.array([bytes([k % 256]) * 16 for k in range(N)], pa.binary(16))
    ),
}

ARROW = {
    **{f"Arrow {name}": arrow_kind(make) for name, make in ARROW_ARRAYS.items()},
    "Arrow ChunkedArray": arrow_kind(lambda pa: pa.chunked_array([range(N), range(N)])),
    "Arrow Table": arrow_kind(arrow_table),
    "Arrow RecordBatch": arrow_kind(lambda pa: arrow_table(pa).to_batches()[0]),
    "Arrow Buffer": Kind(
        lambda: arrow().py_buffer(bytes(N * 8)), lambda v: v.to_pybytes(), lambda v: [v.address]
    ),
    "Arrow Scalar": Kind(lambda: arrow().scalar([1, 2]), lambda v: (v.as_py(), str(v.type))),
}


# ------------------------------------------------------------------------------- polars


def of_polars(found: Any) -> Any:
    if hasattr(found, "columns"):
        return found.rows(), dict(found.schema)
    return repr(found.to_list()), found.dtype, found.name, found.flags["SORTED_ASC"]


def at_polars(found: Any) -> list[int]:
    arrow()
    whole = found if hasattr(found, "columns") else found.to_frame()
    return at_arrow(whole.to_arrow(compat_level=polars().CompatLevel.newest()))


def polars_frame() -> Any:
    return polars().DataFrame({name: make(polars()) for name, make in POLARS_SERIES.items()})


def polars_series(make: Callable[[Any], Any]) -> Kind:
    return Kind(lambda: polars().Series("s", make(polars())), of_polars, at_polars)


@functools.cache
def pairs(pl: Any) -> Any:
    """Slow to make, and never written."""
    return pl.Series(_some(lambda k: [k, k]))


POLARS_SERIES: dict[str, Callable[[Any], Any]] = {
    "float": lambda pl: pl.Series(np.arange(float(N))[::-1]),
    "sorted": lambda pl: pl.Series(np.arange(N)).sort(),
    "bool": lambda pl: pl.Series(np.arange(N) % 3 == 0),
    "nulls": lambda pl: pl.Series(_some(lambda k: k)),
    "text": lambda pl: pl.Series(_some(lambda k: f"a text that is rather long {k}")),
    "date": lambda pl: pl.Series(np.arange(N)).cast(pl.Int32).cast(pl.Date),
    "datetime": lambda pl: pl.Series(np.arange(N)).cast(pl.Datetime("us", "Europe/Berlin")),
    "duration": lambda pl: pl.Series(np.arange(N)).cast(pl.Duration("ms")),
    "list": lambda pl: pairs(pl),  # noqa: PLW0108
    "array": lambda pl: pairs(pl).list.to_array(2),
    "struct": lambda pl: pl.DataFrame({"a": range(N), "b": range(0, 2 * N, 2)}).to_struct(),
}

POLARS = {
    **{f"polars {name}": polars_series(make) for name, make in POLARS_SERIES.items()},
    "polars categorical": Kind(
        lambda: polars().Series("s", ["a", "b", "c"] * N, dtype=polars().Categorical), of_polars
    ),
    "polars enum": Kind(
        lambda: polars().Series("s", ["a", "b"] * N, dtype=polars().Enum(["a", "b"])), of_polars
    ),
    "polars wide integer": Kind(
        lambda: polars().Series("s", range(99)).cast(polars().Int128), of_polars
    ),
    "polars DataFrame": Kind(
        polars_frame, of_polars, at_polars, lambda f: f.__setitem__((0, "float"), -1.0)
    ),
    "polars DataFrame, empty": Kind(lambda: polars_frame()[:0], of_polars),
    "polars DataFrame, no columns": Kind(lambda: polars().DataFrame(), of_polars),
    "polars LazyFrame": Kind(
        lambda: polars_frame()[["float"]].lazy().filter(polars().col("float") > 3),
        lambda v: v.collect().rows(),
    ),
}


# ------------------------------------------------------------------------ scipy, sklearn


def sparse(name: str) -> Any:
    module = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    rows, band = np.arange(N) % 2000, np.arange(N) // 2000
    made = module.coo_array((np.arange(1.0, N + 1), (rows, (rows + band) % 2000)))
    return getattr(module, name)(made)


def of_sparse(found: Any) -> Any:
    return type(found).__name__, found.dtype, found.shape, found.toarray().tobytes()


def at_sparse(found: Any) -> list[int]:
    names = ("data", "indices", "indptr", "offsets")
    parts = [getattr(found, name) for name in names if hasattr(found, name)]
    return [where for part in parts for where in at(part)]


SPARSE = {
    name: Kind(
        functools.partial(sparse, name),
        of_sparse,
        at_sparse,
        lambda m: flip(m.data),
        lambda m: put(m.data),
    )
    for name in (
        "csr_array", "csc_array", "coo_array", "bsr_array", "dia_array", "csr_matrix", "coo_matrix",
    )
} | {
    name: Kind(functools.partial(sparse, name), of_sparse) for name in ("dok_array", "lil_array")
}  # fmt: skip


def fitted(module: str, name: str, **options: Any) -> Any:
    library = pytest.importorskip(f"sklearn.{module}", reason="scikit-learn is not installed")
    return getattr(library, name)(**options).fit(*samples())


def samples() -> Any:
    rows = np.random.default_rng(0).normal(size=(600, 20))
    return rows, (rows[:, 0] > 0).astype(int)


def pipeline() -> Any:
    made = pytest.importorskip("sklearn.pipeline", reason="scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    return made.make_pipeline(StandardScaler(), LogisticRegression()).fit(*samples())


def predictions(model: Any) -> Any:
    return type(model).__name__, model.predict(samples()[0]).tolist()


SKLEARN = {
    "forest": Kind(
        lambda: fitted("ensemble", "RandomForestClassifier", n_estimators=10), predictions
    ),
    "boosting": Kind(
        lambda: fitted("ensemble", "HistGradientBoostingRegressor", max_iter=10), predictions
    ),
    "neighbours": Kind(
        lambda: fitted("neighbors", "KNeighborsClassifier", algorithm="kd_tree"),
        predictions,
        lambda model: at(model._fit_X),
    ),
    "neighbours, ball tree": Kind(
        lambda: fitted("neighbors", "KNeighborsClassifier", algorithm="ball_tree"), predictions
    ),
    "linear model": Kind(lambda: fitted("linear_model", "LogisticRegression"), predictions),
    "pipeline": Kind(pipeline, predictions),
}


# -------------------------------------------------------------------------------- torch


def torch() -> Any:
    return pytest.importorskip("torch", reason="torch is not installed")


def net() -> Any:
    """Layers with tied weights, a buffer, and a normalisation that behaves differently in eval."""
    nn = torch().nn
    torch().manual_seed(0)
    made = nn.Sequential(nn.Embedding(500, 64), nn.BatchNorm1d(64), nn.Linear(64, 500, bias=False))
    made[2].weight = made[0].weight
    made.register_buffer("steps", torch().arange(10))
    return made.eval()


def of_net(model: Any) -> Any:
    tied = model[0].weight is model[2].weight
    kinds = [(name, type(p).__name__, p.requires_grad) for name, p in model.named_parameters()]
    found = model(torch().arange(20)).detach().tolist()
    return found, tied, kinds, model.training, model.steps.tolist()


def of_tensor(tensor: Any) -> Any:
    numbers = tensor.detach().to_dense().to(torch().complex128).tolist()
    return type(tensor).__name__, str(tensor.dtype), numbers, tensor.requires_grad, tensor.shape


def tensor(make: Callable[[Any], Any]) -> Kind:
    def change(found: Any) -> None:
        with torch().no_grad():
            found[0] = found[1]

    return Kind(lambda: make(torch()), of_tensor, lambda t: [t.data_ptr()], change, change)


def plain(tc: Any) -> Any:
    return tc.arange(float(N)).reshape(200, -1)


TORCH = {
    "tensor": tensor(plain),
    "tensor, part": tensor(lambda tc: tc.arange(4.0 * N).reshape(200, -1)[50:]),
    "tensor, transposed": tensor(lambda tc: plain(tc).T),
    "tensor, column": tensor(lambda tc: tc.arange(3.0 * N).reshape(N, 3)[:, 1]),
    "tensor, requires grad": tensor(lambda tc: plain(tc).requires_grad_()),
    "Parameter": tensor(lambda tc: tc.nn.Parameter(plain(tc))),
    "tensor bfloat16": tensor(lambda tc: tc.arange(2.0 * N).bfloat16()),
    "tensor bool": tensor(lambda tc: tc.arange(8 * N) % 2 == 0),
    "tensor complex64": tensor(lambda tc: plain(tc) * (1 + 2j)),
    "tensor int8": tensor(lambda tc: tc.arange(8 * N).to(tc.int8)),
    "tensor expanded": Kind(
        lambda: torch().ones(1).expand(100, 100), lambda t: (of_tensor(t), t.stride())
    ),
    "tensor 0-d": Kind(lambda: torch().tensor(1.5), of_tensor),
    "tensor empty": Kind(lambda: torch().zeros(0, 5), of_tensor),
    "tensor sparse": Kind(
        lambda: plain(torch()).to_sparse(), of_tensor, lambda t: [t._values().data_ptr()]
    ),
    "module": Kind(
        net,
        of_net,
        lambda m: [m[0].weight.data_ptr()],
        lambda m: m[0].weight.data.__setitem__(0, 1.0),
    ),
}

KINDS: dict[str, Kind] = {
    **NUMPY, **PYTHON, **PANDAS, **ARROW, **POLARS, **SPARSE, **SKLEARN, **TORCH,
}  # fmt: skip
