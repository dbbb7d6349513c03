"""The kinds of values that are shared: how one is made, and how a task looks at it.

Libraries are imported where a value is made; a task needs none of them by name.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.work import WORKERS, Job, look

MIB = 64  # of each value
SMALL_KB = 256  # of the one that comes before it, so that its library is loaded
ITEMS = 8  # two for each worker
PLAIN = "array"  # the kind that the others are compared with
MLP, MLP_MIB = "mlp", 200  # a network that is run, beside the kinds that are looked at


@dataclass(frozen=True, slots=True)
class Kind:
    """``make(n)`` gives a value of about ``n`` bytes; ``at(value, k)`` a number that lies in it.

    ``why`` says what a reader may ask: why it is copied, or what is not as it was.
    """

    title: str
    make: Callable[[int], Any]
    at: Callable[[Any, int], float]
    zero_copy: bool = True
    needs: str = ""
    why: str = ""


def installed(kind: Kind) -> bool:
    """Whether the library is there that the kind comes from."""
    return not kind.needs or importlib.util.find_spec(kind.needs) is not None


# ------------------------------------------------------------------------------ the items


@dataclass(frozen=True, slots=True)
class Look:
    """An item: the first one looks at the value, the others have it.

    What a library takes to give one element is no price of sharing: half a millisecond of pandas in
    every worker would hide what is compared here.
    """

    kind: str
    number: int

    def __call__(self, value: Any) -> float:
        return float(KINDS[self.kind].at(value, ITEMS // 2)) if not self.number else 0.0


@dataclass(frozen=True, slots=True)
class Weigh:
    """An item: look at the value, hold it until all workers do, say what this process occupies."""

    kind: str
    until: float

    def __call__(self, value: Any) -> tuple[int, int]:
        KINDS[self.kind].at(value, 1)
        time.sleep(max(0.0, self.until - time.time()))
        return os.getpid(), private_bytes()


@dataclass(frozen=True, slots=True)
class Forward:
    """An item: send some rows through a network, then hold it until the clock shows ``until``."""

    number: int
    until: float = 0.0
    threads: int = 1  # as many as a worker has, when four share two cores

    def __call__(self, value: Any) -> Any:
        import torch

        torch.set_num_threads(self.threads)
        width = value[0].in_features
        rows = np.random.default_rng(self.number).normal(size=(8, width)).astype(np.float32)
        with torch.inference_mode():
            found = value(torch.from_numpy(rows)).numpy()
        time.sleep(max(0.0, self.until - time.time()))
        return found


def private_bytes() -> int:
    """The bytes of memory that belong to this process alone, by the kernel's count.

    Anonymous pages: what it has allocated, and what it has written to a private mapping. Pages of
    files and of shared memory are not among them, whoever else maps them.
    """
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(rollup.partition("\nAnonymous:")[2].split()[0]) << 10


def weighing(kind: str, seconds: float) -> list[Weigh]:
    """Items that keep every worker busy for so long."""
    return [Weigh(kind, time.time() + seconds)] * WORKERS


def kind_jobs(tiny: bool = False) -> dict[str, Job]:
    """A job for each kind whose library is installed."""
    nbytes = (SMALL_KB << 10) if tiny else (MIB << 20)
    jobs = {
        key: Job(look, [Look(key, n) for n in range(ITEMS)], functools.partial(kind.make, nbytes))
        for key, kind in KINDS.items()
        if installed(kind)
    }
    if installed(KINDS["module"]):
        make = functools.partial(layers, nbytes if tiny else MLP_MIB << 20)
        jobs[MLP] = Job(look, [Forward(n) for n in range(WORKERS)], make)
    return jobs


# ------------------------------------------------------------------------------ the values


def floats(nbytes: int) -> Any:
    return np.arange(nbytes // 8, dtype=np.float64)


def element(value: Any, k: int) -> float:
    return float(value[k])


def row(value: Any, k: int) -> float:
    return float(value[k].sum())


def seconds_of(value: Any, k: int) -> float:
    return float(value[k].astype(np.int64))


def structured(nbytes: int) -> Any:
    made = np.zeros(nbytes // 16, [("a", "i8"), ("b", "f8")])
    made["a"] = np.arange(len(made))
    return made


def masked(nbytes: int) -> Any:
    values = floats(nbytes * 8 // 9)
    return np.ma.MaskedArray(values, np.arange(len(values)) % 3 == 2)


def matrix(nbytes: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asmatrix(floats(nbytes).reshape(-1, 64))


class Measured(np.ndarray[Any, Any]):
    """A subclass as numpy's guide has it: with an attribute."""

    unit: Any

    def __array_finalize__(self, source: Any) -> None:
        self.unit = getattr(source, "unit", None)


def measured(nbytes: int) -> Any:
    made = floats(nbytes).view(Measured)
    made.unit = "metre"
    return made


def mapped(nbytes: int) -> Any:
    # Beside what the libraries leave behind: it is removed with that.
    number, path = tempfile.mkstemp(dir=os.environ.get("JOBLIB_TEMP_FOLDER"), suffix=".dat")
    os.close(number)
    floats(nbytes).tofile(path)
    made = np.memmap(path, np.float64, "r")
    _FILES.append(path)
    return made


_FILES: list[str] = []


def forget_files() -> None:
    """Remove the files of mapped arrays."""
    while _FILES:
        Path(_FILES.pop()).unlink(missing_ok=True)


def series(make: Callable[[Any, int], Any]) -> Callable[[int], Any]:
    """A pandas Series of what ``make(pandas, n)`` gives."""

    def made(nbytes: int) -> Any:
        import pandas as pd

        return pd.Series(make(pd, nbytes))

    return made


def frame(nbytes: int) -> Any:
    import pandas as pd

    return pd.DataFrame(floats(nbytes).reshape(-1, 8), columns=list("abcdefgh"))


def labels(pd: Any, nbytes: int) -> Any:
    codes = (np.arange(nbytes // 2) % 1000).astype(np.int16)
    return pd.Categorical.from_codes(codes, np.arange(1000))


def texts(nbytes: int) -> list[str]:
    """Texts of eight letters."""
    return [f"{k:08}" for k in range(nbytes // 16)]


def text_at(value: Any, k: int) -> float:
    return float(value.iloc[k])


def value_at(value: Any, k: int) -> float:
    return float(value.iloc[k])


def code_at(value: Any, k: int) -> float:
    return float(value.array.codes[k])


def stamp_at(value: Any, k: int) -> float:
    return float(value.iloc[k].timestamp())


def arrow_table(nbytes: int) -> Any:
    import pyarrow as pa

    words = pa.array(texts(nbytes * 16 // 28))
    a, b = floats(16 * len(words)).reshape(2, -1)
    return pa.table({"a": a, "b": b, "t": words})


def arrow_slice(nbytes: int) -> Any:
    import pyarrow as pa

    parent = pa.table({"a": floats(4 * nbytes)})
    return parent.slice(len(parent) // 2, len(parent) // 4)


def cell_at(value: Any, k: int) -> float:
    return float(value["a"][k].as_py())


def polars_frame(nbytes: int) -> Any:
    import polars as pl

    return pl.DataFrame(dict(zip("abcd", floats(nbytes).reshape(4, -1), strict=True)))


def polars_at(value: Any, k: int) -> float:
    return float(value["a"][k])


def sparse(name: str) -> Callable[[int], Any]:
    """A matrix with eight numbers in each row, at random places."""

    def made(nbytes: int) -> Any:
        module = importlib.import_module("scipy.sparse")
        count = nbytes // (16 if name == "coo_array" else 12) // 8 * 8
        where = np.random.default_rng(0).integers(0, 10_000, count, dtype=np.int32)
        starts = np.arange(0, count + 1, 8, dtype=np.int32)
        shape = count // 8, 10_000
        rows = module.csr_array((floats(8 * count), where, starts), shape)
        return rows if name == "csr_array" else getattr(module, name)(rows)

    return made


def stored_at(value: Any, k: int) -> float:
    return float(value.data[k])


def copied(fit: Callable[[int], Any]) -> Callable[[int], Any]:
    """A copy of what was fitted once: another object, as every value has to be."""
    fitted = functools.cache(fit)
    return lambda nbytes: copy.deepcopy(fitted(nbytes))


@copied
def ridge(nbytes: int) -> Any:
    """A linear model for many targets: its coefficients are one array."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    return Ridge().fit(rng.normal(size=(4, 64)), rng.normal(size=(4, nbytes // 8 // 64)))


@copied
def forest(nbytes: int) -> Any:
    """Trees of about 8,000 leaves."""
    from sklearn.ensemble import ExtraTreesRegressor

    rng = np.random.default_rng(0)
    rows = min(8_000, nbytes // 144)
    data, truth = rng.normal(size=(rows, 4)), rng.normal(size=rows)
    trees = max(1, round(nbytes / (rows * 144)))  # two nodes of 72 bytes for each row
    return ExtraTreesRegressor(trees, max_features=1, random_state=0).fit(data, truth)


@copied
def neighbours(nbytes: int) -> Any:
    """The rows, and a tree over them."""
    from sklearn.neighbors import KNeighborsRegressor

    rows = np.random.default_rng(0).normal(size=(nbytes // 90, 8))
    return KNeighborsRegressor(1, algorithm="kd_tree").fit(rows, np.arange(float(len(rows))))


def predicted(width: int) -> Callable[[Any, int], float]:
    """What a fitted model makes of a row of ``width`` numbers."""

    def at(value: Any, k: int) -> float:
        return float(np.ravel(value.predict(np.full((1, width), k / ITEMS)))[0])

    return at


def tensor(nbytes: int) -> Any:
    import torch

    return torch.arange(nbytes // 4, dtype=torch.float32)


def layers(nbytes: int) -> Any:
    """Layers of 2,048 neurons (16 MB), a ReLU between them; less for a small value."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    width = min(2048, int((nbytes // 4) ** 0.5))
    count = max(1, round(nbytes / 4 / width**2))
    both = ((nn.Linear(width, width), nn.ReLU()) for _ in range(count))
    return nn.Sequential(*(part for layer in both for part in layer)).eval()


def weight_at(value: Any, k: int) -> float:
    return float(value[0].weight[0, k].item())


def nested(nbytes: int) -> Any:
    parts = floats(nbytes).reshape(4, -1)
    return {"layers": [{"w": part.copy(), "name": f"layer {k}"} for k, part in enumerate(parts)]}


@dataclass(slots=True)
class Index:
    """An object with slots."""

    keys: Any
    numbers: Any
    names: list[str] = field(default_factory=list)


def index(nbytes: int) -> Any:
    return Index(floats(nbytes // 2), floats(nbytes // 2), ["a", "b"])


KINDS: dict[str, Kind] = {
    "array": Kind("array in C order", floats, element),
    "strided": Kind(
        "strided view, `[::2]`",
        lambda n: floats(2 * n)[::2],
        element,
        why="with its gaps, which are no larger than its elements",
    ),
    "sparse-view": Kind(
        "strided view, `[::4]`",
        lambda n: floats(4 * n)[::4],
        element,
        why="without its gaps: made contiguous when stored, compared after a write to its pages",
    ),
    "reversed": Kind("reversed view, `[::-1]`", lambda n: floats(n)[::-1], element),
    "broadcast": Kind(
        "broadcast array",
        lambda n: np.broadcast_to(np.arange(1024.0), (n >> 13, 1024)),
        row,
        why="only the row that is repeated",
    ),
    "datetime64": Kind("datetime64", lambda n: np.arange(n // 8).astype("M8[s]"), seconds_of),
    "structured": Kind("structured array", structured, lambda v, k: v[k]["a"]),
    "recarray": Kind("recarray", lambda n: structured(n).view(np.recarray), lambda v, k: v.a[k]),
    "masked": Kind("masked array", masked, lambda v, k: v.data[k], why="its mask as well"),
    "matrix": Kind("`np.matrix`", matrix, row),
    "subclass": Kind(
        "subclass of `ndarray`", measured, element, why="its attributes are in the pickle"
    ),
    "memmap": Kind(
        "`np.memmap`", mapped, element, why="each worker opens the file; nothing is copied"
    ),
    "memoryview": Kind("memoryview", lambda n: memoryview(floats(n)), element),
    "bytes": Kind(
        "bytes",
        lambda n: np.arange(n, dtype=np.uint8).tobytes(),
        element,
        zero_copy=False,
        why="bytes own their memory: one copy in each worker, made once",
    ),
    "frame": Kind(
        "pandas DataFrame of numbers", frame, lambda v, k: v["b"].iloc[k], needs="pandas"
    ),
    "nullable": Kind(
        "pandas nullable Int64",
        series(lambda pd, n: pd.array(np.arange(n // 9), "Int64")),
        value_at,
        needs="pandas",
        why="its mask as well",
    ),
    "categorical": Kind(
        "pandas categorical",
        series(labels),
        code_at,
        needs="pandas",
        why="its codes, and its 1,000 labels",
    ),
    "datetime": Kind(
        "pandas datetime with time zone",
        series(lambda pd, n: pd.date_range("2020", periods=n // 8, freq="s", tz="UTC")),
        stamp_at,
        needs="pandas",
    ),
    "string": Kind(
        "pandas string",
        series(lambda pd, n: pd.array(texts(n), pd.StringDtype("pyarrow"))),
        text_at,
        needs="pyarrow",
        why="strings of pyarrow, the default of pandas 3",
    ),
    "arrow-backed": Kind(
        "pandas, Arrow-backed",
        series(lambda pd, n: pd.array(np.arange(n // 8), "int64[pyarrow]")),
        value_at,
        needs="pyarrow",
    ),
    "arrow": Kind("Arrow table", arrow_table, cell_at, needs="pyarrow"),
    "arrow-slice": Kind(
        "Arrow slice of a table of four times its size",
        arrow_slice,
        cell_at,
        needs="pyarrow",
        why="without the rest of the table",
    ),
    "polars": Kind(
        "polars DataFrame",
        polars_frame,
        polars_at,
        needs="polars",
        why="through Arrow, where pyarrow is installed",
    ),
    "csr": Kind("scipy CSR", sparse("csr_array"), stored_at, needs="scipy"),
    "csc": Kind("scipy CSC", sparse("csc_array"), stored_at, needs="scipy"),
    "coo": Kind("scipy COO", sparse("coo_array"), stored_at, needs="scipy"),
    "ridge": Kind(
        "scikit-learn, plain arrays (Ridge)", ridge, lambda v, k: v.coef_[k, 0], needs="sklearn"
    ),
    "forest": Kind(
        "scikit-learn forest",
        forest,
        predicted(4),
        zero_copy=False,
        needs="sklearn",
        why="its trees copy their tables when they are loaded: once in each worker",
    ),
    "neighbours": Kind(
        "scikit-learn k-d tree",
        neighbours,
        lambda v, k: v._fit_X[k, 0],
        needs="sklearn",
        why="the rows, and the tables of the tree",
    ),
    "tensor": Kind("torch tensor", tensor, lambda v, k: v[k].item(), needs="torch"),
    "module": Kind(
        "torch module",
        layers,
        weight_at,
        needs="torch",
        why="each call pickles its objects to compare them: about 0.04 ms for a layer",
    ),
    "nested": Kind("dict of lists of dicts", nested, lambda v, k: v["layers"][1]["w"][k]),
    "slots": Kind("dataclass with slots", index, lambda v, k: v.numbers[k]),
}


def left_out() -> Iterator[str]:
    """A line for each library that is missing, with the kinds that need it."""
    missing: dict[str, list[str]] = {}
    for kind in KINDS.values():
        if not installed(kind):
            missing.setdefault(kind.needs, []).append(kind.title)
    for package, titles in missing.items():
        yield f"left out, {package} is not installed: {', '.join(titles)}"
