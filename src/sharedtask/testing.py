# ruff: noqa: S101 - tests assert; their rule is their docstring
"""A test kit: what every backend promises, fixtures that find leaks, hypothesis strategies.

The contract of a backend is a class. Its tests take the fixture ``backend``, a name::

    from sharedtask.testing import BackendContract, no_leaks  # noqa: F401

    class TestThread(BackendContract):
        @pytest.fixture
        def backend(self) -> str:
            return "thread"

The parts of the contract (``ResultsContract``, ``ErrorsContract`` ...) can be run on their own.
Needs pytest and hypothesis: ``pip install sharedtask[test]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import enum
import functools
import gc
import itertools
import json
import math
import multiprocessing
import operator
import os
import re
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sharedtask import (
    ArgumentError,
    ClosedError,
    CopyOnWrite,
    OverlapError,
    Partition,
    Partitioned,
    Shared,
    SharedTaskError,
    TaskTimeoutError,
    UnshareableError,
    empty,
    parallel,
    partition,
    share,
    shutdown,
    zeros,
)
from sharedtask import array as shared_array
from sharedtask.backends import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt


__all__ = [
    "DTYPES",
    "BackendContract",
    "Belongings",
    "ErrorsContract",
    "FunctionsContract",
    "OptionsContract",
    "PartitionedContract",
    "ResultsContract",
    "SharingContract",
    "StreamsContract",
    "array_of",
    "arrays",
    "assert_nothing_left",
    "assert_same",
    "count_up",
    "counted",
    "forget_publications",
    "nested_values",
    "no_leaks",
    "no_leaks_warm",
    "warm_up",
]

# ------------------------------------------------------------------------------- leaks


@dataclass(frozen=True, slots=True)
class Belongings:
    """What this process holds that could leak, by kind and number.

    Attributes:
        descriptors: Open files by what they are: "socket", "memfd:sharedtask", a path ...
        threads: Threads by name, without numbers.
        children: Processes below this one, zombies included.
        mappings: Mapped segments of ours.
        names: Entries of ``/dev/shm`` that carry our name.
    """

    descriptors: Counter[str]
    threads: Counter[str]
    children: frozenset[int]
    mappings: int
    names: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        """Count everything after a garbage collection."""
        gc.collect()
        return cls(
            _descriptors(),
            Counter(re.sub(r"\d+", "N", thread.name) for thread in threading.enumerate()),
            frozenset(_descendants(os.getpid())),
            _mapped_segments(),
            frozenset(name for name in _listed("/dev/shm") if "sharedtask" in name),  # noqa: S108
        )

    def more_than(self, before: Belongings, *, same_children: bool = False) -> list[str]:
        """Say what is here that was not there before; with ``same_children`` by number only."""
        grown = [
            f"{n} more open: {what}" for what, n in (self.descriptors - before.descriptors).items()
        ]
        grown += [
            f"{n} more threads: {what}" for what, n in (self.threads - before.threads).items()
        ]
        if same_children:
            if len(self.children) > len(before.children):
                grown.append(f"{len(self.children)} child processes, before {len(before.children)}")
        elif self.children - before.children:
            grown.append(f"child processes {sorted(self.children - before.children)}")
        if self.mappings > before.mappings:
            grown.append(f"{self.mappings - before.mappings} more mapped segments")
        if self.names - before.names:
            grown.append(f"names in /dev/shm: {sorted(self.names - before.names)}")
        return grown


def assert_nothing_left(
    before: Belongings, *, same_children: bool = False, seconds: float = 5.0
) -> None:
    """Wait until nothing is held that was not held before; fail with a list of what is."""
    limit = time.monotonic() + seconds
    forget_publications()
    while left := Belongings.now().more_than(before, same_children=same_children):
        assert time.monotonic() < limit, f"left behind: {'; '.join(left)}"
        time.sleep(0.02)


def forget_publications() -> None:
    """Give up what the caches hold for values and functions that are still alive."""
    for backend in registry.running():
        cache = getattr(backend, "_cache", None)
        if cache is not None:
            cache.clear()


def warm_up(workers: int = 2) -> None:
    """Start the pool with this many workers, and all that is made once per process."""
    task = parallel(_nap).with_options(workers=workers, chunksize=1, backend="process")
    big = np.ones(1 << 18)
    limit = time.monotonic() + 10
    while len(set(task.map([0.01] * 2 * workers, big=big))) < workers:
        assert time.monotonic() < limit, f"no {workers} workers came up"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Nothing is left after ``shutdown()`` that was not there before the test."""
    warm_up()
    shutdown()
    before = Belongings.now()
    yield
    shutdown()
    assert_nothing_left(before)


@pytest.fixture
def no_leaks_warm() -> Iterator[None]:
    """After the test a warm pool of two workers holds what it held before."""
    shutdown()
    warm_up()
    forget_publications()
    before = Belongings.now()
    yield
    warm_up()
    assert_nothing_left(before, same_children=True)


def _nap(seconds: float, big: Shared[Any] = None) -> int:
    del big  # sharing it is the point
    time.sleep(seconds)
    return os.getpid()


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in _listed("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("/proc/"):  # the listing itself
                found[re.sub(r":\[\d+\]$", "", target)] += 1
    return found


def _mapped_segments() -> int:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return sum("sharedtask" in line.partition(" /")[2] for line in file)
    except OSError:
        return 0


def _descendants(pid: int) -> Iterator[int]:
    parents: dict[int, list[int]] = {}
    for name in _listed("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                stat = Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        yield from children
        waiting += children


# --------------------------------------------------------------------------- strategies

DTYPES: tuple[str, ...] = (
    "bool", "int8", "uint16", "int32", "int64", "uint64", ">i4", "float16", "float32", "float64",
    ">f8", "longdouble", "complex64", "complex128", "S5", "U3", "V4", "datetime64[ns]",
    "datetime64[D]", "timedelta64[s]", "i4,f8", "O",
)  # fmt: skip
"""One dtype of every kind, as ``np.dtype`` reads them."""


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
    layout = draw(st.sampled_from(["C", "F", "transposed", "steps", "broadcast"]))
    if layout == "F":
        return np.asfortranarray(array) if array.ndim else array
    if layout == "transposed":
        return array.transpose(draw(st.permutations(range(array.ndim))))
    if layout == "steps" and array.ndim:
        steps = draw(st.tuples(*[st.sampled_from([-2, -1, 1, 2])] * array.ndim))
        return array[tuple(slice(None, None, step) for step in steps)]
    if layout == "broadcast":
        return np.broadcast_to(array, (draw(st.integers(0, 3)), *array.shape))
    return array


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
    return st.one_of(plain, npst.array_dtypes(subtype_strategy=fields, max_size=3))


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


def assert_same(expected: Any, actual: Any, at: str = "value") -> None:
    """Fail unless both have the same types, structure, dtypes, shapes, orders and bits."""
    assert type(expected) is type(actual), f"{at}: {type(expected)} became {type(actual)}"
    if isinstance(expected, np.ndarray):
        assert expected.dtype == actual.dtype, at
        assert expected.shape == actual.shape, at
        if expected.dtype.hasobject:
            assert_same(expected.ravel().tolist(), actual.ravel().tolist(), at)
        else:
            assert expected.tobytes() == actual.tobytes(), at
    elif isinstance(expected, dict):
        assert list(expected) == list(actual), at
        for key, value in expected.items():
            assert_same(value, actual[key], f"{at}[{key!r}]")
    elif isinstance(expected, list | tuple):
        assert len(expected) == len(actual), at
        for position, value in enumerate(expected):
            assert_same(value, actual[position], f"{at}[{position}]")
    elif isinstance(expected, float | complex | np.number):
        assert repr(expected) == repr(actual), at  # NaN equals NaN, and 0.0 is not -0.0
    else:
        assert expected == actual, at


# ------------------------------------------------------------------ helpers of the tasks


def count_up(folder: str | Path, name: object) -> int:
    """Count one more entry under ``name``, from any process; returns the number so far."""
    path = Path(folder, f"count-{name}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, b"x")
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def counted(folder: str | Path) -> dict[str, int]:
    """How often ``count_up`` was called for every name."""
    return {p.name.removeprefix("count-"): p.stat().st_size for p in Path(folder).glob("count-*")}


def _on(backend: str, function: Any, **options: Any) -> Any:
    """A task of a function on a backend; Any, since some tests call it wrongly on purpose."""
    task: Any = parallel(function)
    return task.with_options(backend=backend, **options)


def _under(backend: str, task: Any) -> Any:
    """The same task on a backend."""
    return task.with_options(backend=backend)


def _identity(x: Any) -> Any:
    return x


def _square(x: int) -> int:
    return x * x


def _add_up(x: int, model: Shared[Any]) -> Any:
    return x + _total(model)


def _whole(_x: int, value: Shared[Any]) -> Any:
    return value


def _total(value: Any) -> float:
    """The sum of all numbers in a nested value."""
    if isinstance(value, dict):
        return sum(_total(part) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_total(part) for part in value)
    if isinstance(value, Model):
        return _total(value.weights) + value.bias
    return float(np.asarray(value).sum())


def _fail_on(x: int, bad: Any, error: Any) -> int:
    if x in bad:
        raise _made(error)
    return x


def _made(error: tuple[Any, ...]) -> BaseException:
    """A new exception: one object raised twice would carry the notes of both."""
    made: BaseException = error[0](*error[1:])
    return made


def _interrupt(x: int, bad: int, error: type[BaseException]) -> int:
    if x == bad:
        raise error
    return x


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def _write(_x: int, array: Shared[Any]) -> None:
    array[...] = array[...].copy()


def _write_into(_x: int, value: Shared[Any]) -> None:
    value["inner"][0][0] = 7


def _force_write(_x: int, array: Shared[Any]) -> None:
    array.flags.writeable = True
    array[0] = 0


def _scribble(_x: int, array: CopyOnWrite[Any]) -> float:
    seen = float(array.sum())
    array[...] = -1
    return seen


def _scribble_deep(x: int, value: CopyOnWrite[Any]) -> Any:
    seen = (float(value["rows"].sum()), sorted(value), list(value["names"]))
    value["rows"] += x + 1
    value["names"].append(f"name {x}")
    value[f"key {x}"] = x
    return seen


def _attempts(x: int, folder: str, fails: int, error: Any) -> int:
    if count_up(folder, x) <= fails:
        raise _made(error)
    return x


def _counted_sleep(x: int, folder: str, seconds: float) -> int:
    count_up(folder, x)
    time.sleep(seconds)
    return x


def _extras(x: int, a: int, /, b: int = 2, *args: int, c: int, d: int = 4, **kwargs: int) -> Any:
    return x, a, b, args, c, d, kwargs


def _outer(x: int) -> list[int]:
    return _INNER.map(range(x))


def _outer_shared(x: int, table: Shared[Any]) -> list[float]:
    return _INNER_SHARED.map(range(x), model=table)


@dataclass
class Model:
    """A user's own class: weights, and a number."""

    weights: npt.NDArray[Any]
    bias: float
    parts: list[Any] = field(default_factory=list)

    def predict(self, x: int) -> float:
        """A method that is a plain function."""
        return float(self.weights.sum() * x + self.bias)

    @parallel
    def scaled(self, x: int, by: float = 1.0) -> float:
        """A method that is a task: the object goes along."""
        return float(self.weights.sum() * x * by + self.bias)

    @parallel(shared=["self"])
    def shared_scaled(self, x: int) -> tuple[float, bool]:
        """A method whose object is shared."""
        return float(self.weights.sum() * x + self.bias), self.weights.flags.writeable

    @parallel
    @staticmethod
    def doubled(x: int) -> int:
        """A static method."""
        return 2 * x

    @parallel
    @classmethod
    def named(cls, x: int) -> str:
        """A class method."""
        return f"{cls.__name__} {x}"


class Slots:
    """A class without ``__dict__``."""

    __slots__ = ("rows", "word")

    def __init__(self, rows: npt.NDArray[Any], word: str) -> None:
        self.rows = rows
        self.word = word

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Slots) and self.word == other.word and (self.rows == other.rows).all()
        )

    __hash__ = None  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


class Colour(enum.Enum):
    """Members are found by identity."""

    RED = 1


class Level(enum.IntEnum):
    """Looks like an int and is none."""

    HIGH = 3


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024  # pyright: ignore[reportUntypedNamedTuple]  the plain form is under test


class TwoArgumentsError(Exception):
    """An error that pickle alone cannot rebuild."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.reason = reason


class KeywordOnlyError(Exception):
    """An error whose ``__init__`` takes keywords."""

    def __init__(self, *, place: str) -> None:
        super().__init__()
        self.place = place

    def __str__(self) -> str:
        return f"at {self.place}"


class WithArrayError(ValueError):
    """An error that carries data."""

    def __init__(self, text: str, data: npt.NDArray[Any]) -> None:
        super().__init__(text)
        self.data = data


class LockedError(Exception):
    """An error that holds what cannot travel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


_INNER = parallel(_square)
_INNER_SHARED = parallel(_add_up)

ERRORS: dict[str, Callable[[], Exception]] = {
    "ValueError": lambda: ValueError("wrong", 3),
    "KeyError": lambda: KeyError("name"),
    "OSError": lambda: FileNotFoundError(2, "No such file", "a.txt"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad start"),
    "JSONDecodeError": lambda: json.JSONDecodeError("Expecting value", "{", 1),
    "StopIteration": lambda: StopIteration("done"),
    "RecursionError": lambda: RecursionError("too deep"),
    "MemoryError": lambda: MemoryError("full"),
    "two arguments": lambda: TwoArgumentsError(7, "out of tune"),
    "keyword only": lambda: KeywordOnlyError(place="home"),
    "with array": lambda: WithArrayError("see data", np.arange(3)),
    "group": lambda: ExceptionGroup("several", [ValueError(1), TwoArgumentsError(2, "b")]),
    "long text": lambda: RuntimeError("x" * 10_000),
    "surrogate": lambda: RuntimeError("\ud800 and \U0001f600"),
}

SCALARS: dict[str, Any] = {
    "None": None,
    "True": True,
    "int": -3,
    "large int": 2**200,
    "float": 0.1,
    "-0.0": -0.0,
    "nan": math.nan,
    "inf": -math.inf,
    "complex": 1 - 2j,
    "str": "grün",
    "surrogate": "\ud800x",
    "empty str": "",
    "bytes": b"\0\xff",
    "np.float64": np.float64(0.1),
    "np.float32": np.float32(0.1),
    "np.int64": np.int64(-5),
    "np.bool": np.bool_(1),
    "np.datetime64": np.datetime64("2020-01-02"),
    "np.complex64": np.complex64(1j),
    "np.longdouble": np.longdouble(1) / 3,
    "np.str_": np.str_("text"),
    "Decimal": Decimal("0.10"),
    "Fraction": Fraction(1, 3),
    "Enum": Colour.RED,
    "IntEnum": Level.HIGH,
    "namedtuple": Point(1, 2),
    "Ellipsis": ...,
    "class": Model,
    "nested": [(1, "a"), {"b": {2.5}}, bytearray(b"x")],
    "OrderedDict": OrderedDict(a=1),
    "0-d array": np.array(3.5),
    "empty array": np.zeros((0, 5), "i2"),
    "F order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "large array": np.arange(300_000.0),
}


def _frame() -> Any:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame({"a": np.arange(5.0), "b": list("vwxyz"), "c": np.arange(5)})


def _sparse() -> Any:
    sparse = pytest.importorskip("scipy.sparse", reason="scipy is not installed")
    return sparse.csr_matrix(np.eye(4))


def _classifier() -> Any:
    trees = pytest.importorskip("sklearn.tree", reason="scikit-learn is not installed")
    rows = np.arange(40.0).reshape(20, 2)
    return trees.DecisionTreeClassifier(random_state=0).fit(rows, np.arange(20) % 3)


def _cycle() -> Any:
    value: dict[str, Any] = {"rows": np.arange(4.0)}
    value["me"] = value
    return value


def _in_cycle(value: Any) -> Any:
    return value["me"] is value, value["rows"].tolist()


def _predictions(model: Any) -> Any:
    return model.predict(np.arange(20.0).reshape(10, 2)).tolist()


VALUES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "dict": (lambda: {"a": np.arange(3.0), "b": {"c": [1, 2]}}, _identity),
    "list": (lambda: [np.arange(3), "x", None], _identity),
    "tuple": (lambda: (np.ones(2), (1, (2,))), _identity),
    "set": (lambda: {1, 2, 3}, _identity),
    "str": (lambda: "text" * 1000, _identity),
    "bytes": (lambda: bytes(1000), _identity),
    "None": (lambda: None, _identity),
    "int": (lambda: 12, _identity),
    "function": (lambda: _square, _identity),
    "lambda": (lambda: lambda x: x + 1, lambda f: f(2)),
    "class": (lambda: Model, _identity),
    "0-d array": (lambda: np.array(2.5), _identity),
    "size-0 array": (lambda: np.zeros((0, 5)), _identity),
    "size-0 F array": (lambda: np.zeros((3, 0), order="F"), _identity),
    "empty dict": (dict, _identity),
    "strided array": (lambda: np.arange(24).reshape(4, 6)[::2, ::-3], _identity),
    "broadcast array": (lambda: np.broadcast_to(np.float64(2), (3, 4)), _identity),
    "large array": (lambda: np.arange(300_000.0), _identity),
    "dataclass": (lambda: Model(np.arange(3.0), 0.5, [np.ones(2)]), dataclasses.asdict),
    "slots": (lambda: Slots(np.arange(3), "w"), lambda s: (s.rows.tolist(), s.word)),
    "cycle": (_cycle, _in_cycle),
    "aliases": (lambda: [np.arange(3)] * 2, lambda v: (v[0] is v[1], v[0].tolist())),
    "DataFrame": (_frame, lambda f: (f.to_dict("list"), f.dtypes.astype(str).to_dict())),
    "empty DataFrame": (lambda: _frame().iloc[:0], lambda f: f.to_dict("list")),
    "Series": (lambda: _frame()["a"], lambda s: s.tolist()),
    "sparse matrix": (_sparse, lambda m: m.toarray()),
    "fitted model": (_classifier, _predictions),
}


def _look(_x: int, value: Shared[Any], look: Any) -> Any:
    return look(value)


# -------------------------------------------------------------------- blocks and layouts


@dataclass(frozen=True, slots=True)
class Tile:
    """An item that names its block and carries something else."""

    rows: slice
    value: int


BLOCKS: dict[str, tuple[tuple[int, ...], list[Any]]] = {
    # shape of the array, items
    "ints": ((10,), [0, 3, 9, -2]),
    "numpy ints": ((10,), list(np.arange(2, 7))),
    "slices": ((10,), [slice(0, 3), slice(4, 8)]),
    "open slices": ((10,), [slice(None, 2), slice(-3, None)]),
    "steps": ((10,), [slice(0, None, 2), slice(1, None, 4)]),
    "negative steps": ((10,), [slice(None, None, -2), slice(8, 2, -4)]),
    "empty slices": ((10,), [slice(3, 3), slice(9, 2), slice(3, 5)]),
    "rows": ((4, 6), [0, 2]),
    "row slices": ((6, 4), [slice(0, 2), slice(4, 6)]),
    "columns": ((4, 6), [(slice(None), 1), (slice(None), slice(4, None))]),
    "tiles": ((6, 6), [(slice(a, a + 2), slice(b, b + 3)) for a in (0, 4) for b in (0, 3)]),
    "flipped tiles": ((6, 6), [(slice(2, None, -1), slice(5, 2, -2)), (4, slice(0, 3))]),
    "elements": ((4, 4), [(0, 0), (0, 1), (-1, -1)]),
    "ellipsis": ((3, 4, 5), [(..., 0), (..., slice(3, 5)), (1, ..., 2)]),
    "the whole": ((3, 4), [...]),
    "no axis": ((), [()]),
    "partition": ((11,), partition(11, 3)),
}

OVERLAPS: dict[str, tuple[list[Any], int, int]] = {
    # items, and the positions of those that overlap
    "twice": ([0, 1, 0], 0, 2),
    "from the end": ([1, -7], 0, 1),
    "slices": ([slice(0, 2), slice(4, 6), slice(5, 8)], 1, 2),
    "steps": ([slice(0, None, 2), slice(1, None, 2), slice(3, 4)], 1, 2),
    "tiles": ([(slice(0, 3), slice(0, 3)), (3, 3), (slice(2, 4), slice(2, 3))], 0, 2),
    "the whole": ([(0, 0), ...], 0, 1),
}

REFUSED: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, 2],
    "read-only": lambda: np.broadcast_to(np.zeros(1), (4,)),
    "objects": lambda: np.array([None, "a"]),
    "masked": lambda: np.ma.masked_array([1, 2], [True, False]),
    "on itself": lambda: np.lib.stride_tricks.sliding_window_view(np.zeros(5), 2, writeable=True),
}


def _in_place(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    array[...] = np.arange(60).reshape(6, 10)
    return array, array


def _with_margin(order: Any = "C") -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    around = np.full((9, 14), -1, order=order)
    around[2:8, 3:13] = np.arange(60).reshape(6, 10)
    return around, around[2:8, 3:13]


def _stepped() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    around = np.full((12, 30), -1)
    array = around[::-2, 1::3]
    array[...] = np.arange(60).reshape(6, 10)
    return around, array


def _field() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    records = np.zeros((6, 10), "u1,i8")
    records["f1"] = np.arange(60).reshape(6, 10)
    return records, records["f1"]


def _part_of_ours() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    around = zeros((8, 12), "i8")
    around[1:7, 1:11] = np.arange(60).reshape(6, 10)
    return around, around[1:7, 1:11]


def _raw_array() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return _in_place(np.frombuffer(multiprocessing.RawArray("q", 60), "i8").reshape(6, 10))


LAYOUTS: dict[str, Callable[[], tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {
    # an array of shape (6, 10) that counts from 0 to 59, behind the memory around it
    "C": lambda: _in_place(np.zeros((6, 10), "i8")),
    "F": lambda: _in_place(np.zeros((6, 10), "i8", order="F")),
    "view": _with_margin,
    "view of F": lambda: _with_margin("F"),
    "steps": _stepped,
    "field": _field,
    "byte order": lambda: _in_place(np.zeros((6, 10), ">i8")),
    "empty": lambda: _in_place(empty((6, 10), "i8")),
    "empty F": lambda: _in_place(empty((6, 10), "i8", order="F")),
    "array": lambda: _in_place(shared_array(np.zeros((6, 10), "i8"))),
    "part of ours": _part_of_ours,
    "RawArray": _raw_array,
}


def _make_odd(_index: Any, out: Partitioned[Any]) -> tuple[tuple[int, ...], float]:
    seen = float(out.sum())
    out *= 2
    out += 1
    return out.shape, seen


def _made_odd(array: npt.NDArray[Any], index: Any) -> tuple[tuple[int, ...], float]:
    """What the task above does, by plain indexing."""
    seen = float(array[index].sum())
    array[index] = array[index] * 2 + 1
    return array[index].shape, seen


def _copy_in(index: Any, out: Partitioned[Any], source: Shared[Any]) -> Any:
    out[...] = source[index]
    return out.dtype.str, out.shape


def _maybe(_index: Any, out: Partitioned[Any] | None = None) -> Any:
    return out


def _fill_plain(_index: Any, out: Any) -> None:
    out[...] = 1


def _fill_whole(_index: Any, out: Partitioned[Any]) -> Any:
    out[...] = 1
    return out.shape


def _add(_index: Any, by: float, out: Partitioned[Any]) -> float:
    out += by
    return float(out.max())


def _count_to(_index: Any, end: int, out: Partitioned[Any]) -> None:
    for _ in range(end):
        out += 1


def _touch(index: Any, out: Partitioned[Any], folder: str) -> None:
    count_up(folder, "entered")
    out[...] = 1
    del index


def _sum_into(_index: Any, out: Partitioned[Any], table: Shared[Any], folder: str) -> None:
    count_up(folder, "entered")
    out[...] = table.sum()


def _fill_both(k: int, left: Partitioned[Any], right: Partitioned[Any]) -> int:
    left[...] = k
    right[...] = -k
    return k


def _all_words(
    k: int,
    plain: int,
    out: Partitioned[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
) -> float:
    scratch += plain
    out += table.sum() + scratch.sum() - table[k]
    return float(out)


def _write_then_fail(k: int, out: Partitioned[Any], bad: Any) -> int:
    out[...] = 1
    if k in bad:
        message = "failed"
        raise ValueError(message)
    return k


def _fill_at_last(k: int, out: Partitioned[Any], folder: str, fails: int) -> int:
    done = count_up(folder, k) > fails
    out[...] = k if done else -1
    if not done:
        message = "again"
        raise ValueError(message)
    return k


def _result_of(k: int) -> Any:
    return [k, float(k), "x" * k, None, np.arange(k), {"k": k}][k % 6]


def _mixed(k: int, out: Partitioned[Any]) -> Any:
    out[...] = k
    return _result_of(k)


def _return_block(k: int, out: Partitioned[Any]) -> Any:
    out[...] = k
    return out


@parallel
def _by_attribute(tile: Tile, out: Annotated[Any, Partition(by="rows")]) -> int:
    out[...] = tile.value
    return tile.value


@parallel
def _by_path(tile: Any, out: Annotated[Any, Partition(by="real.rows")]) -> int:
    out[...] = tile.real.value
    return int(tile.real.value)


@parallel
def _by_element(item: Any, out: Annotated[Any, Partition(by=1)]) -> int:
    out[...] = item[0]
    return int(item[0])


@parallel
def _by_key(item: Any, out: Annotated[Any, Partition(by=operator.itemgetter("rows"))]) -> int:
    out[...] = item["value"]
    return int(item["value"])


@parallel
def _by_function(
    value: int, out: Annotated[Any, Partition(by=lambda v: slice(2 * v - 2, 2 * v))]
) -> int:
    out[...] = value
    return value


@dataclass(frozen=True, slots=True)
class Boxed:
    """An item that holds what names its block."""

    real: Tile


RULES: dict[str, tuple[Any, Callable[[Tile], Any]]] = {
    "attribute": (_by_attribute, _identity),
    "dotted attribute": (_by_path, Boxed),
    "element": (_by_element, lambda tile: (tile.value, tile.rows)),
    "function": (_by_key, lambda tile: {"rows": tile.rows, "value": tile.value}),
    "lambda": (_by_function, lambda tile: tile.value),
}


# ----------------------------------------------------------------------------- contract


class ResultsContract:
    """Results are those of a plain loop."""

    @pytest.mark.parametrize("kind", [list, tuple, iter, np.array, dict.fromkeys, range], ids=str)
    def test_map_equals_a_loop(self, backend: str, kind: Any) -> None:
        """A map over any iterable returns what a loop would, in its order."""
        items = kind(100) if kind is range else kind(list(range(100)))
        assert [x * x for x in range(100)] == _on(backend, _square).map(items)

    def test_generator_is_taken_once(self, backend: str) -> None:
        """Every item of a generator is run once, in order."""
        assert list(range(57)) == _on(backend, _identity).map(x for x in range(57))

    @pytest.mark.parametrize("empty", [[], (), range(0), iter(()), np.zeros(0), {}], ids=repr)
    def test_no_items_no_results(self, backend: str, empty: Any) -> None:
        """Nothing to do is an empty list."""
        assert [] == _on(backend, _square).map(empty)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_no_items_in_a_stream(self, backend: str, method: str) -> None:
        """Nothing to do is a stream that ends."""
        assert [] == _drain(getattr(_on(backend, _square), method)([]))

    @pytest.mark.parametrize("method", ["map", "imap", "imap_unordered", "amap", "aimap"])
    def test_every_method_gives_the_same_results(self, backend: str, method: str) -> None:
        """All ways to map give the results of ``map``."""
        results = _drain(getattr(_on(backend, _square), method)(range(200)))
        assert [x * x for x in range(200)] == (
            sorted(results) if method == "imap_unordered" else results
        )

    @pytest.mark.parametrize("name", SCALARS)
    def test_values_arrive_unchanged(self, backend: str, name: str) -> None:
        """An item and a result keep type and value, alone and beside others."""
        value = SCALARS[name]
        task = _on(backend, _identity, chunksize=4)
        assert_same([value], task.map([value]))
        assert_same([1, value, "x", value], task.map([1, value, "x", value]))

    def test_results_of_mixed_kinds_keep_their_places(self, backend: str) -> None:
        """Scalars, arrays and objects may follow each other in one chunk."""
        items = list(SCALARS.values()) * 3
        assert_same(items, _on(backend, _identity, chunksize=50).map(items))

    def test_result_arrays_are_writable(self, backend: str) -> None:
        """A result belongs to the caller, small or large."""
        for result in _on(backend, _ones).map([4, 400_000]):
            np.add(result, 1, out=result)
            assert 2.0 == result[-1]

    @pytest.mark.parametrize("chunksize", [1, 2, 7, 64, 1000, "auto"])
    def test_chunksize_changes_no_result(self, backend: str, chunksize: Any) -> None:
        """However items are cut into chunks, results are the same."""
        task = _on(backend, _square, chunksize=chunksize)
        assert [x * x for x in range(100)] == task.map(range(100))
        assert [x * x for x in range(100)] == list(task.imap(iter(range(100))))

    @pytest.mark.parametrize("workers", [1, 2, 3])
    def test_workers_change_no_result(self, backend: str, workers: int) -> None:
        """However many workers there are, results are the same."""
        assert [x * x for x in range(50)] == _on(backend, _square, workers=workers).map(range(50))

    def test_starmap_fills_the_first_parameters(self, backend: str) -> None:
        """Every item of ``starmap`` is a tuple of arguments."""
        task = _on(backend, _power)
        assert [8, 9, 1] == task.starmap([(2, 3), [3, 2], (5, 0)])
        assert [9, 10] == task.starmap([(2, 3), (3, 2)], plus=1)

    def test_extra_arguments_reach_every_item(self, backend: str) -> None:
        """Positional and keyword arguments arrive as in a call, defaults and variadics included."""
        task = _on(backend, _extras)
        wanted = [_extras(x, 1, 5, 6, 7, c=8, e=9) for x in range(5)]
        assert wanted == task.map(range(5), 1, 5, 6, 7, c=8, e=9)
        assert [_extras(x, 1, c=3) for x in range(5)] == task.map(range(5), 1, c=3)
        assert [_extras(x, 1, b=0, c=3) for x in range(5)] == task.map(range(5), 1, b=0, c=3)

    def test_an_array_argument_is_copied_along(self, backend: str) -> None:
        """A parameter without a role takes any value, large arrays included."""
        table = np.arange(400_000.0)
        assert [0.0, 399_999.0] == _on(backend, _pick).map([0, -1], table)

    def test_call_runs_here(self, backend: str) -> None:
        """A call of the task is a call of the function, in this thread."""
        task = _on(backend, _where)
        assert (os.getpid(), threading.get_ident()) == task(0)

    def test_submit_gives_a_future(self, backend: str) -> None:
        """``submit`` returns a future of one result."""
        futures = [_on(backend, _square).submit(x) for x in range(20)]
        assert all(isinstance(future, Future) for future in futures)
        assert not wait(futures, timeout=10).not_done
        assert [x * x for x in range(20)] == [future.result() for future in futures]

    def test_submit_takes_shared_values_and_extras(self, backend: str) -> None:
        """A submitted item gets the same arguments as a mapped one."""
        assert 6.0 == _on(backend, _add_up).submit(3, model=np.ones(3)).result(10)

    def test_submit_raises_the_tasks_error(self, backend: str) -> None:
        """The future of a failed item holds the exception itself."""
        future = _on(backend, _fail_on).submit(1, bad=[1], error=(TwoArgumentsError, 1, "x"))
        error = future.exception(10)
        assert isinstance(error, TwoArgumentsError)
        assert (1, "x") == (error.code, error.reason)

    def test_amap_leaves_the_loop_free(self, backend: str) -> None:
        """While ``amap`` waits, other coroutines run."""
        if backend == "serial":
            pytest.skip("serial tasks take the time that they take")
        ticks: list[int] = []

        async def both() -> list[Any]:
            async def tick() -> None:
                for k in range(5):
                    ticks.append(k)
                    await asyncio.sleep(0.01)

            results: list[Any]
            results, _ = await asyncio.gather(_on(backend, _sleep).amap([0.15]), tick())
            return results

        assert [0.15] == asyncio.run(both())
        assert 5 == len(ticks)

    def test_two_amaps_at_once(self, backend: str) -> None:
        """Coroutines do not mix up their results."""

        async def both() -> Any:
            task = _on(backend, _square)
            return await asyncio.gather(*(task.amap(range(n)) for n in (10, 20, 30)))

        assert [[x * x for x in range(n)] for n in (10, 20, 30)] == asyncio.run(both())

    def test_threads_at_once(self, backend: str) -> None:
        """Threads that map the same task and value at once get their own results."""
        task, table = _on(backend, _add_up), np.ones(1000)

        def run(start: int) -> list[Any]:
            return list(task.map(range(start, start + 50), model=table))

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(run, range(0, 400, 50)))
        assert [[x + 1000.0 for x in range(s, s + 50)] for s in range(0, 400, 50)] == found

    def test_nested_map(self, backend: str) -> None:
        """A task may map another task."""
        assert [[x * x for x in range(n)] for n in range(5)] == _on(backend, _outer).map(range(5))

    def test_nested_map_with_a_shared_value(self, backend: str) -> None:
        """A shared value may be shared again inside a task."""
        task = _on(backend, _outer_shared)
        assert [[], [4.0], [4.0, 5.0]] == task.map(range(3), table=np.ones(4))

    def test_bad_calls_are_refused_before_anything_runs(self, backend: str, tmp_path: Path) -> None:
        """Missing and extra arguments, text as items and things that do not iterate are refused."""
        task = _on(backend, _counted_sleep)
        folder = str(tmp_path)
        calls: list[Callable[[], Any]] = [
            lambda: task.map([1], folder),
            lambda: task.map([1], folder, 0.0, 1),
            lambda: task.map([1], folder, 0.0, nonsense=1),
            lambda: task.map([1], folder, 0.0, folder=folder),
            lambda: task.map("text", folder, 0.0),
            lambda: task.map(b"bytes", folder, 0.0),
            lambda: task.map(3, folder, 0.0),
            lambda: task.map(None, folder, 0.0),
            lambda: task.submit(1, folder),
        ]
        for call in calls:
            with pytest.raises(ArgumentError):
                call()
        assert {} == counted(tmp_path)

    def test_a_map_needs_items(self, backend: str) -> None:
        """A map without items is a TypeError, as Python's own would be."""
        with pytest.raises(TypeError):
            _on(backend, _square).map()


class ErrorsContract:
    """An error arrives as itself, names its item, and harms no other item."""

    @pytest.mark.parametrize("name", ERRORS)
    def test_error_arrives_as_itself(self, backend: str, name: str) -> None:
        """The caller gets the exception that a loop would raise: class, args, text, attributes."""
        wanted = ERRORS[name]()
        with pytest.raises(Exception) as caught:  # noqa: PT011  the class is compared below
            _on(backend, _raise_named).map(range(8), name=name, bad=5)
        error = caught.value
        assert type(wanted) is type(error)
        assert str(wanted) == str(error)
        assert repr(wanted.args) == repr(error.args)
        assert set(vars(wanted)) <= set(vars(error))

    @pytest.mark.parametrize("method", ["map", "imap", "imap_unordered", "amap", "aimap"])
    @pytest.mark.parametrize("name", ["two arguments", "StopIteration"])
    def test_error_leaves_every_method(self, backend: str, method: str, name: str) -> None:
        """Every way to map raises the error; a generator turns StopIteration into RuntimeError."""
        wanted = (
            (type(ERRORS[name]()), RuntimeError) if name == "StopIteration" else TwoArgumentsError
        )
        with pytest.raises(wanted):
            _drain(getattr(_on(backend, _raise_named), method)(range(8), name=name, bad=5))

    @pytest.mark.parametrize("chunksize", [1, 3, 100, "auto"])
    def test_error_names_its_item(self, backend: str, chunksize: Any) -> None:
        """A note on the exception holds the item's index, however chunks are cut."""
        task = _on(backend, _fail_on, chunksize=chunksize)
        with pytest.raises(KeyError) as caught:
            task.map(range(40), bad=[17], error=(KeyError, "k"))
        assert [17] == [note.index for note in _notes(caught.value)]
        assert "item 17" in str(_notes(caught.value)[0])

    def test_first_of_several_errors_is_raised(self, backend: str) -> None:
        """Where several items fail, the first in the order of the items is reported."""
        task = _on(backend, _fail_on, chunksize=1)
        with pytest.raises(KeyError) as caught:
            task.map(range(40), bad=range(7, 40), error=(KeyError, "k"))
        assert [7] == [note.index for note in _notes(caught.value)]

    def test_cause_shows_where_it_was_raised(self, backend: str) -> None:
        """The traceback of a task that ran elsewhere is the ``__cause__`` of its error."""
        with pytest.raises(TwoArgumentsError) as caught:
            _on(backend, _raise_named).map(range(3), name="two arguments", bad=1)
        told = f"{caught.value.__cause__} {caught.getrepr()}"
        assert "out of tune (7)" in told
        assert "_raise_named" in told or "Traceback" in told

    def test_error_in_place(self, backend: str) -> None:
        """With ``return_exceptions`` an error stands at its item's place, all results beside it."""
        task = _on(backend, _fail_on, return_exceptions=True, chunksize=4)
        results = task.map(range(20), bad=[0, 5, 6, 19], error=(TwoArgumentsError, 3, "c"))
        assert {0, 5, 6, 19} == {
            k for k, r in enumerate(results) if isinstance(r, TwoArgumentsError)
        }
        assert [k for k in range(20) if k not in {0, 5, 6, 19}] == [
            r for r in results if isinstance(r, int)
        ]
        assert [0, 5, 6, 19] == [
            note.index for r in results if isinstance(r, Exception) for note in _notes(r)
        ]

    @pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit], ids=str)
    @pytest.mark.parametrize("method", ["map", "imap", "amap"])
    def test_exit_in_a_task_is_an_error_of_its_item(
        self, backend: str, error: type[BaseException], method: str
    ) -> None:
        """What would end the caller arrives as SharedTaskError with the name of what was raised."""
        task = _on(backend, _interrupt)
        with pytest.raises(SharedTaskError, match=error.__name__) as caught:
            _drain(getattr(task, method)(range(8), bad=5, error=error))
        assert 5 == getattr(caught.value, "index", None)
        assert [0, 1, 2] == task.map(range(3), bad=5, error=error)

    def test_exit_in_place(self, backend: str) -> None:
        """With ``return_exceptions`` an exit harms no other item of its chunk."""
        task = _on(backend, _interrupt, return_exceptions=True, chunksize=8)
        results = task.map(range(8), bad=3, error=SystemExit)
        assert [0, 1, 2, 4, 5, 6, 7] == [r for r in results if isinstance(r, int)]
        assert isinstance(results[3], SharedTaskError)

    def test_error_that_cannot_travel_is_told(self, backend: str) -> None:
        """An exception that holds a lock arrives with its text at its index, whatever its class."""
        results = _on(backend, _raise_closed, return_exceptions=True).map(range(4))
        assert [0, 1, 3] == [r for r in results if isinstance(r, int)]
        assert isinstance(results[2], LockedError | SharedTaskError)
        assert "locked up" in str(results[2])
        assert 2 in {getattr(results[2], "index", None), *(n.index for n in _notes(results[2]))}

    def test_error_of_the_item_source(self, backend: str) -> None:
        """An exception of the iterator itself is raised as it is, and nothing hangs."""

        def source() -> Iterator[int]:
            yield from range(30)
            message = "no more from here"
            raise LookupError(message)

        task = _on(backend, _square)
        with pytest.raises(LookupError, match="no more from here"):
            task.map(source())
        assert [0, 1, 4] == task.map(range(3))

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_stream_error_of_the_item_source(self, backend: str, method: str) -> None:
        """A stream ends with the iterator's exception."""

        def source() -> Iterator[int]:
            yield from range(30)
            raise LookupError

        with pytest.raises(LookupError):
            _drain(getattr(_on(backend, _square), method)(source()))

    def test_starmap_item_of_the_wrong_length(self, backend: str) -> None:
        """An item with too many arguments is a TypeError at its index."""
        task = _on(backend, _power, return_exceptions=True)
        results = task.starmap([(2, 3), (1, 2, 3, 4, 5, 6), (3, 2)])
        assert [8, 9] == [results[0], results[2]]
        assert isinstance(results[1], TypeError)

    def test_unshareable_value_is_refused(self, backend: str) -> None:
        """A lock inside a shared value is named before anything runs."""
        with pytest.raises(UnshareableError, match="inner"):
            _on(backend, _whole).map(range(3), value={"inner": threading.Lock()})

    @pytest.mark.parametrize(
        "value", [threading.Lock(), (x for x in "ab")], ids=["lock", "generator"]
    )
    def test_value_of_one_process_is_refused(self, backend: str, value: Any) -> None:
        """A lock or a generator is refused as a shared value."""
        with pytest.raises(UnshareableError, match="value"):
            _on(backend, _whole).map(range(3), value=value)

    def test_recursion_error_is_an_error_of_its_item(self, backend: str) -> None:
        """A task that recurses too deep fails alone."""
        results = _on(backend, _recurse, return_exceptions=True).map([1, 10**6, 2])
        assert [1, 2] == [results[0], results[2]]
        assert isinstance(results[1], RecursionError)

    def test_stream_gives_the_results_before_its_error(self, backend: str) -> None:
        """``imap`` gives every result that stands before the item that fails."""
        stream = _on(backend, _fail_on, chunksize=1).imap(range(9), bad=[4], error=(KeyError, 4))
        assert [0, 1, 2, 3] == list(itertools.islice(stream, 4))
        with pytest.raises(KeyError):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)


class SharingContract:
    """Shared values: equal, read-only, private where asked for, never stale."""

    @pytest.mark.parametrize("name", VALUES)
    def test_shared_value_is_equal(self, backend: str, name: str) -> None:
        """Whatever is shared, every task sees an equal value."""
        make, look = VALUES[name]
        value = make()
        results = _on(backend, _look).map(range(3), value=value, look=look)
        assert_same([look(value)] * 3, results)

    def test_identity_within_a_value_is_kept(self, backend: str) -> None:
        """Two references to one object stay references to one object."""
        rows = np.arange(4.0)
        task = _on(backend, _look)
        assert [True] == task.map([0], value={"a": rows, "b": rows}, look=_is_one)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_shared_array_is_read_only(self, backend: str, dtype: str) -> None:
        """A write into a shared array is numpy's own error with our note, for every dtype."""
        array = array_of(dtype)
        before = array.tolist()
        with pytest.raises(ValueError, match="read-only") as caught:
            _on(backend, _write).map(range(3), array=array)
        advice = " ".join(caught.value.__notes__)
        assert "'array'" in advice
        assert "CopyOnWrite" in advice
        assert before == array.tolist()
        assert array.flags.writeable

    @pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (2, 3), (300_000,)], ids=str)
    def test_every_shape_is_read_only(self, backend: str, shape: tuple[int, ...]) -> None:
        """Small, large, empty and 0-d arrays arrive with their shape and read-only."""
        results = _on(backend, _look).map([0], value=np.ones(shape), look=_shape_and_flag)
        assert [(shape, False)] == results

    def test_array_inside_a_value_is_read_only(self, backend: str) -> None:
        """Arrays inside dicts and lists are read-only as well, with the same note."""
        with pytest.raises(ValueError, match="read-only") as caught:
            _on(backend, _write_into).map(range(2), value={"inner": [np.ones(3)]})
        assert "CopyOnWrite" in " ".join(caught.value.__notes__)

    def test_read_only_cannot_be_switched_off(self, backend: str) -> None:
        """``flags.writeable = True`` on a shared array is a ValueError, never a crash."""
        array = np.ones(300_000)
        with pytest.raises(ValueError, match="WRITEABLE"):
            _on(backend, _force_write).map(range(2), array=array)
        assert 300_000.0 == array.sum()

    @pytest.mark.parametrize("size", [5, 300_000])
    def test_copy_on_write_is_private_to_the_item(self, backend: str, size: int) -> None:
        """Every item sees the original and may write; nobody else sees what it wrote."""
        array = np.ones(size)
        task = _on(backend, _scribble, chunksize=5)
        assert [float(size)] * 10 == task.map(range(10), array=array)
        assert float(size) == array.sum()

    def test_copy_on_write_of_a_read_only_array(self, backend: str) -> None:
        """A copy-on-write parameter is writable even where the caller's own array is not."""
        array = np.ones(300_000)
        array.flags.writeable = False
        assert [300_000.0] * 4 == _on(backend, _scribble).map(range(4), array=array)
        assert [6.0] * 4 == _on(backend, _scribble).map(range(4), array=np.broadcast_to(1.0, (6,)))

    def test_copy_on_write_of_a_nested_value(self, backend: str) -> None:
        """Dicts and lists in a copy-on-write value are private to the item too."""
        value = {"rows": np.zeros(3), "names": ["a"]}
        results = _on(backend, _scribble_deep, chunksize=4).map(range(8), value=value)
        assert [(0.0, ["names", "rows"], ["a"])] * 8 == results
        assert_same({"rows": np.zeros(3), "names": ["a"]}, value)

    @pytest.mark.parametrize("size", [4, 400_000])
    def test_change_in_place_is_seen(self, backend: str, size: int) -> None:
        """A value that changed between two maps is shared anew."""
        array = np.zeros(size)
        task = _on(backend, _add_up)
        assert [0.0, 1.0] == task.map(range(2), model=array)
        array[-1] = 5
        assert [5.0, 6.0] == task.map(range(2), model=array)
        array[0] = 1
        assert [6.0, 7.0] == task.map(range(2), model=array)

    def test_change_in_a_nested_value_is_seen(self, backend: str) -> None:
        """New keys, changed arrays and changed numbers inside a dict are seen."""
        value: dict[str, Any] = {"a": np.zeros(3), "b": [1]}
        task = _on(backend, _add_up)
        assert [1.0] == task.map([0], model=value)
        value["a"][1] = 2
        assert [3.0] == task.map([0], model=value)
        value["b"][0] = 5
        assert [7.0] == task.map([0], model=value)
        value["c"] = 10
        assert [17.0] == task.map([0], model=value)

    def test_handle_stands_for_its_value(self, backend: str) -> None:
        """A handle is passed where its value would stand, as often as one likes."""
        with share({"a": np.ones(3)}) as handle:
            task = _on(backend, _add_up)
            assert [3.0, 4.0] == task.map(range(2), model=handle)
            assert [3.0, 4.0] == task.map(range(2), model=handle)

    def test_handle_is_a_snapshot(self, backend: str) -> None:
        """What changes after ``share()`` is not seen through the handle."""
        array = np.ones(400_000)
        with share(array) as handle:
            array[:] = 0
            assert [400_000.0] == _on(backend, _add_up).map([0], model=handle)

    def test_handle_is_read_only(self, backend: str) -> None:
        """A value that is shared by handle is read-only like any other."""
        with share(np.ones(4)) as handle, pytest.raises(ValueError, match="read-only"):
            _on(backend, _write).map(range(2), array=handle)

    def test_handle_for_copy_on_write(self, backend: str) -> None:
        """A handle may be given to a copy-on-write parameter."""
        with share(np.ones(4)) as handle:
            assert [4.0] * 6 == _on(backend, _scribble, chunksize=3).map(range(6), array=handle)
            assert 4.0 == handle.value.sum()

    def test_closed_handle_is_refused(self, backend: str) -> None:
        """A map over a closed handle is ClosedError before anything runs."""
        handle = share(np.ones(4))
        handle.close()
        with pytest.raises(ClosedError):
            _on(backend, _add_up).map(range(2), model=handle)

    def test_result_may_be_the_shared_value(self, backend: str) -> None:
        """A shared array, or a view of it, may be returned and stays right afterwards."""
        array = np.arange(300_000.0)
        task = _on(backend, _whole)
        results = task.map(range(2), value=array)
        view = _on(backend, _look).map([0], value=array, look=_first_rows)
        task.cache_clear()
        del task
        gc.collect()
        assert_same([array.copy()] * 2, results)
        assert_same([array[:3].copy()], [np.ascontiguousarray(v) for v in view])

    def test_several_shared_values(self, backend: str) -> None:
        """Two parameters may be shared, and may even be the same object."""
        rows = np.arange(5.0)
        task = _on(backend, _both)
        assert [20.0, 20.0] == task.map(range(2), left=rows, right=rows)
        assert [15.0, 15.0] == task.map(range(2), left=rows, right=np.ones(5))

    def test_shared_value_has_a_default(self, backend: str) -> None:
        """A shared parameter with a default may be left out."""
        assert [0, 0] == _on(backend, _with_default).map(range(2))
        assert [3, 3] == _on(backend, _with_default).map(range(2), table=[1, 2, 3])


class FunctionsContract:
    """Whatever can be called can be a task."""

    def test_lambda(self, backend: str) -> None:
        """A lambda is a task."""
        assert [1, 2, 3] == _on(backend, lambda x: x + 1).map(range(3))

    def test_closure(self, backend: str) -> None:
        """A function brings along what it captured, as it is at the time of the call."""
        offset = 10

        def shifted(x: int) -> int:
            return x + offset

        task = _on(backend, shifted)
        assert [10, 11] == task.map(range(2))
        offset = 20
        assert [20, 21] == task.map(range(2))

    def test_captured_array_changes(self, backend: str) -> None:
        """A captured array that changed in place between two maps is seen changed."""
        table = np.zeros(200_000)
        task = _on(backend, lambda x: float(table[x]))
        assert [0.0, 0.0] == task.map([0, -1])
        table[-1] = 1
        assert [0.0, 1.0] == task.map([0, -1])

    def test_local_recursion(self, backend: str) -> None:
        """A nested function may call itself."""

        def factorial(x: int) -> int:
            return 1 if x < 2 else x * factorial(x - 1)

        assert [1, 1, 2, 6, 24] == _on(backend, factorial).map(range(5))

    def test_method(self, backend: str) -> None:
        """A method that is a task takes its object along."""
        model = Model(np.ones(3), 0.5)
        task = _under(backend, model.scaled)
        assert [0.5, 3.5, 6.5] == task.map(range(3))
        assert [0.5, 6.5] == task.map(range(2), by=2.0)

    def test_method_sees_the_changed_object(self, backend: str) -> None:
        """The object of a method is sent as it is at the time of the call."""
        model = Model(np.ones(3), 0.5)
        task = _under(backend, model.scaled)
        assert [0.5, 3.5] == task.map(range(2))
        model.bias = 1.0
        assert [1.0, 4.0] == task.map(range(2))

    def test_method_with_a_shared_object(self, backend: str) -> None:
        """``shared=["self"]`` shares the object: its arrays are read-only in the task."""
        model = Model(np.ones(300_000), 0.5)
        task = _under(backend, model.shared_scaled)
        assert [(0.5, False), (300_000.5, False)] == task.map(range(2))

    def test_bound_method_of_a_plain_class(self, backend: str) -> None:
        """A bound method can be made a task."""
        model = Model(np.ones(3), 0.5)
        assert [0.5, 3.5] == _on(backend, model.predict).map(range(2))

    def test_static_and_class_methods(self, backend: str) -> None:
        """Static and class methods are tasks, from the class and from an object."""
        model = Model(np.ones(1), 0.0)
        assert [0, 2] == _under(backend, Model.doubled).map(range(2))
        assert [0, 2] == _under(backend, model.doubled).map(range(2))
        for named in (Model.named, model.named):
            assert ["Model 0", "Model 1"] == _under(backend, named).map(range(2))

    def test_partial(self, backend: str) -> None:
        """A partial is a task of what is left of its signature."""
        assert [1, 8, 27] == _on(backend, functools.partial(_power, exponent=3)).map([1, 2, 3])

    def test_callable_object(self, backend: str) -> None:
        """An object with ``__call__`` is a task."""
        assert [5, 6] == _on(backend, _Adder(5)).map(range(2))

    def test_task_as_an_argument(self, backend: str) -> None:
        """A task can be given to a task."""
        assert [0, 1, 4] == _on(backend, _apply).map(range(3), function=_INNER)


def _large_after_a_while(x: int) -> Any:
    if x == 0:
        time.sleep(0.2)
    return np.full(200_000, x)


class StreamsContract:
    """Streams take items as fast as their results are taken."""

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    @pytest.mark.parametrize("buffersize", [1, 5, 40])
    def test_stream_takes_no_more_than_its_buffer(
        self, backend: str, method: str, buffersize: int
    ) -> None:
        """Never more than ``buffersize`` items are taken beyond the results that were taken."""
        taken: list[int] = []
        stream = getattr(_on(backend, _square, buffersize=buffersize), method)(_noted(taken))
        ahead = [len(taken) - given for given, _ in enumerate(_some(stream, 200), start=1)]
        assert buffersize >= max(ahead)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_stream_of_large_results_is_whole(self, backend: str, method: str) -> None:
        """Results that travel by themselves all arrive, though the first is ready last."""
        task = _on(backend, _large_after_a_while, workers=4, chunksize=1)
        results = [int(array[0]) for array in _some(getattr(task, method)(range(12)), 12)]
        assert list(range(12)) == sorted(results)
        if method != "imap_unordered":
            assert list(range(12)) == results

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_nothing_runs_before_the_first_result_is_asked_for(
        self, backend: str, method: str
    ) -> None:
        """A stream that nobody reads takes no item."""
        taken: list[int] = []
        stream = getattr(_on(backend, _square), method)(_noted(taken))
        assert [] == taken
        next(stream)
        assert taken

    def test_stream_checks_its_arguments_at_once(self, backend: str) -> None:
        """A wrong call of a stream is refused where it is written, not where it is read."""
        with pytest.raises(ArgumentError):
            _on(backend, _square).imap(3)
        with pytest.raises(ArgumentError):
            _on(backend, _square).imap(range(3), nonsense=1)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_endless_input(self, backend: str, method: str) -> None:
        """The input may be endless; leaving early ends the run, and the next one is right."""
        task = _on(backend, _square)
        results = list(_some(getattr(task, method)(itertools.count()), 500))
        assert 500 == len(set(results))
        if method != "imap_unordered":
            assert [x * x for x in range(500)] == results
        assert [0, 1, 4] == task.map(range(3))

    def test_a_slow_first_item_bounds_the_buffer(self, backend: str) -> None:
        """While the first item is slow, an endless input is not read without bound."""
        taken: list[int] = []
        task = _on(backend, _slow_zero)
        stream = task.imap(_noted(taken), seconds=0.5)
        assert 0 == next(stream)
        assert 50_000 > len(taken)
        stream.close()

    def test_unordered_stream_gives_what_is_ready(self, backend: str) -> None:
        """``imap_unordered`` does not wait for a slow item where several run at once."""
        if backend == "serial":
            pytest.skip("one thing after the other")
        task = _on(backend, _sleep, chunksize=1)
        assert 0.5 == list(task.imap_unordered([0.5, 0.0, 0.01, 0.02]))[-1]

    def test_unordered_stream_with_errors_in_place(self, backend: str) -> None:
        """Errors come as results where ``return_exceptions`` says so."""
        task = _on(backend, _fail_on, return_exceptions=True)
        results = list(task.imap_unordered(range(20), bad=[3], error=(KeyError, 3)))
        assert 20 == len(results)
        assert 1 == sum(isinstance(result, KeyError) for result in results)

    def test_two_streams_at_once(self, backend: str) -> None:
        """Two streams that are read in turn do not mix up their results."""
        task = _on(backend, _square)
        pairs = zip(task.imap(range(100)), task.imap(range(100, 200)), strict=True)
        assert [(x * x, (x + 100) ** 2) for x in range(100)] == list(pairs)

    def test_map_between_two_results(self, backend: str) -> None:
        """While a stream is open, the same task can be mapped."""
        task = _on(backend, _square)
        stream = task.imap(itertools.count())
        assert 0 == next(stream)
        assert [0, 1, 4] == task.map(range(3))
        assert 1 == next(stream)
        stream.close()

    def test_a_stream_of_a_slow_source(self, backend: str) -> None:
        """Results come while the source is still making items."""
        order: list[str] = []

        def source() -> Iterator[int]:
            for k in range(6):
                order.append(f"item {k}")
                yield k

        stream = _on(backend, _identity, buffersize=2).imap(source())
        order.extend(f"result {result}" for result in stream)
        assert order.index("result 0") < order.index("item 5")


class OptionsContract:
    """Retries, time limits and the rest mean the same everywhere."""

    def test_retries_run_a_failed_item_again(self, backend: str, tmp_path: Path) -> None:
        """A failed item is tried again up to ``retries`` times, and only that item."""
        task = _on(backend, _attempts, retries=2, chunksize=3)
        folder = str(tmp_path)
        results = task.map(range(5), folder=folder, fails=2, error=(ValueError, "again"))
        assert list(range(5)) == results
        assert {str(x): 3 for x in range(5)} == counted(tmp_path)

    def test_retries_come_to_an_end(self, backend: str, tmp_path: Path) -> None:
        """After the last try the error is raised, naming the item."""
        task = _on(backend, _attempts, retries=2)
        with pytest.raises(ValueError, match="again") as caught:
            task.map([7], folder=str(tmp_path), fails=99, error=(ValueError, "again"))
        assert [0] == [note.index for note in _notes(caught.value)]
        assert {"7": 3} == counted(tmp_path)

    def test_retry_on_chooses_errors(self, backend: str, tmp_path: Path) -> None:
        """Only errors of the classes in ``retry_on`` are tried again."""
        task = _on(backend, _attempts, retries=3, retry_on=(OSError,))
        with pytest.raises(ValueError, match="no"):
            task.map([1], folder=str(tmp_path), fails=1, error=(ValueError, "no"))
        assert [2] == task.map([2], folder=str(tmp_path), fails=1, error=(FileNotFoundError, "yes"))
        assert {"1": 1, "2": 2} == counted(tmp_path)

    def test_nothing_is_run_twice_without_retries(self, backend: str, tmp_path: Path) -> None:
        """Without ``retries`` no item is run again, failed or not."""
        task = _on(backend, _attempts, return_exceptions=True, chunksize=4)
        results = task.map(range(12), folder=str(tmp_path), fails=1, error=(KeyError, "x"))
        assert 12 == sum(isinstance(result, KeyError) for result in results)
        assert {str(x): 1 for x in range(12)} == counted(tmp_path)

    def test_retries_of_a_submitted_item(self, backend: str, tmp_path: Path) -> None:
        """``submit`` honours ``retries``."""
        task = _on(backend, _attempts, retries=1)
        future = task.submit(4, folder=str(tmp_path), fails=1, error=(ValueError, "again"))
        assert 4 == future.result(10)

    @pytest.mark.parametrize("method", ["imap", "imap_unordered"])
    def test_retries_in_a_stream(self, backend: str, method: str, tmp_path: Path) -> None:
        """Streams honour ``retries`` and keep every result."""
        task = _on(backend, _attempts, retries=1, chunksize=4)
        stream = getattr(task, method)(
            range(20), folder=str(tmp_path), fails=1, error=(ValueError, "again")
        )
        assert list(range(20)) == sorted(stream)

    def test_timeout_is_an_error_of_its_item(self, backend: str) -> None:
        """An item that takes longer than ``timeout`` is TaskTimeoutError; the others arrive."""
        task = _on(backend, _sleep, timeout=0.15, return_exceptions=True, chunksize=4)
        results = task.map([0.0, 0.01, 0.6, 0.02])
        error = results[2]
        assert [0.0, 0.01, 0.02] == [results[0], results[1], results[3]]
        assert isinstance(error, TaskTimeoutError)
        assert isinstance(error, TimeoutError)
        assert (2, 0.6, 0.15) == (error.index, error.item, error.timeout)

    def test_timeout_is_raised(self, backend: str) -> None:
        """Without ``return_exceptions`` the timeout ends the map, and the next one is right."""
        task = _on(backend, _sleep, timeout=0.1)
        with pytest.raises(TaskTimeoutError) as caught:
            task.map([0.4, 0.0])
        assert 0 == caught.value.index
        assert [0.0] == task.map([0.0])

    def test_timeout_is_for_one_item(self, backend: str) -> None:
        """A map of many items may take longer than ``timeout``."""
        task = _on(backend, _sleep, timeout=0.4, chunksize=8)
        assert [0.06] * 8 == task.map([0.06] * 8)

    def test_timeout_of_a_submitted_item(self, backend: str) -> None:
        """``submit`` honours ``timeout``."""
        future = _on(backend, _sleep, timeout=0.1).submit(0.4)
        assert isinstance(future.exception(10), TaskTimeoutError)

    def test_users_timeout_is_the_users(self, backend: str) -> None:
        """A keyword of a map always belongs to the user's function."""
        assert [3, 3] == _on(backend, _with_timeout).map(range(2), timeout=3)

    def test_submit_with_return_exceptions(self, backend: str) -> None:
        """With ``return_exceptions`` a future's result is the exception."""
        task = _on(backend, _fail_on, return_exceptions=True)
        assert isinstance(task.submit(1, bad=[1], error=(KeyError, 1)).result(10), KeyError)

    def test_defaults_reach_the_map(self, backend: Any) -> None:
        """Options of an enclosing ``defaults`` block hold for tasks that set none."""
        from sharedtask import defaults

        task = parallel(_fail_on)
        with defaults(backend=backend, return_exceptions=True):
            results: list[Any] = task.map(range(3), bad=[1], error=(KeyError, 1))
        assert isinstance(results[1], KeyError)

    def test_cancelled_future_is_not_run(self, backend: str, tmp_path: Path) -> None:
        """A future that is cancelled in the queue never runs."""
        if backend == "serial":
            pytest.skip("a submitted item is done before anyone could cancel it")
        task = _on(backend, _counted_sleep, workers=1)
        busy = [task.submit(k, folder=str(tmp_path), seconds=0.2) for k in range(3)]
        late = task.submit(99, folder=str(tmp_path), seconds=0.0)
        assert late.cancel()
        with pytest.raises(CancelledError):
            late.result()
        assert [0, 1, 2] == [future.result(10) for future in busy]
        assert [5] == task.map([5], folder=str(tmp_path), seconds=0.0)
        assert {"0": 1, "1": 1, "2": 1, "5": 1} == counted(tmp_path)


class PartitionedContract:
    """Every item writes its own block of the caller's array, and nothing else of it."""

    @pytest.mark.parametrize("name", BLOCKS)
    def test_blocks_are_written(self, backend: str, name: str) -> None:
        """The caller's array holds what the items made of their blocks; the rest is as it was."""
        shape, items = BLOCKS[name]
        array = np.arange(math.prod(shape)).reshape(shape)
        wanted = array.copy()
        seen = [_made_odd(wanted, item) for item in items]
        assert_same(seen, _on(backend, _make_odd).map(items, out=array))
        assert_same(wanted, array)

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layout_of_the_array(self, backend: str, name: str) -> None:
        """However the array lies in memory, its blocks are written and what is beside it is not."""
        around, array = LAYOUTS[name]()
        before, items = around.copy(), [(k, slice(1, 9, 2)) for k in range(5)]
        wanted = array.copy()
        seen = [_made_odd(wanted, item) for item in items]
        assert_same(seen, _on(backend, _make_odd).map(items, out=array))
        assert np.array_equal(wanted, array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("dtype", [*DTYPES[:-1], "i4,(2,)f8,U3"])
    @pytest.mark.parametrize("cut", ["ints", "slices"])
    def test_dtype_of_the_array(self, backend: str, dtype: str, cut: str) -> None:
        """A block has the dtype of the array, also where it is one element."""
        source = array_of(dtype, (6,)) if "(" not in dtype else np.ones(6, dtype)
        array = np.zeros_like(source)
        items = list(range(6)) if cut == "ints" else [slice(0, 4), slice(4, 6)]
        shapes = _on(backend, _copy_in).map(items, out=array, source=source)
        assert np.array_equal(source, array)
        assert shapes == [(source.dtype.str, source[item].shape) for item in items]

    @pytest.mark.parametrize("name", RULES)
    def test_rule_names_the_block(self, backend: str, name: str) -> None:
        """An attribute, an element or a function of the item says which block it writes."""
        task, make = RULES[name]
        array = np.zeros(8)
        tiles = [Tile(slice(2 * k, 2 * k + 2), k + 1) for k in range(4)]
        assert [1, 2, 3, 4] == _under(backend, task).map([make(tile) for tile in tiles], out=array)
        assert [1, 1, 2, 2, 3, 3, 4, 4] == array.tolist()

    def test_named_in_the_decorator(self, backend: str) -> None:
        """A list in the decorator says the same as the annotation."""
        array = np.zeros(4)
        task = parallel(partitioned=["out"])(_fill_plain)
        assert [None] * 4 == _under(backend, task).map(range(4), out=array)
        assert [1.0] * 4 == array.tolist()

    @pytest.mark.parametrize(
        "method", ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]
    )
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_every_method_writes_blocks(self, backend: str, method: str, born_shared: bool) -> None:
        """Whichever way the items are run, results and blocks arrive together."""
        array = zeros(10) if born_shared else np.zeros(10)
        task = _on(backend, _add)
        if method == "submit":
            results = [task.submit(k, k, out=array).result(10) for k in range(10)]
        elif method == "starmap":
            results = task.starmap([(k, k) for k in range(10)], out=array)
        else:
            results = sorted(_drain(getattr(task, method)(range(10), 5, out=array)))
        by = [5] * 10 if "map" in method and method != "starmap" else list(range(10))
        assert by == array.tolist()
        assert by == results

    def test_block_is_there_with_its_result(self, backend: str) -> None:
        """A result that a stream has given is already in the array."""
        array = np.zeros(6)
        for k, result in enumerate(_on(backend, _add, chunksize=1).imap(range(6), 3, out=array)):
            assert result == array[k] == 3

    def test_no_array(self, backend: str) -> None:
        """A parameter that may be left out is its default in every item."""
        assert [None] * 3 == _on(backend, _maybe).map(range(3))

    def test_items_of_a_generator(self, backend: str) -> None:
        """The items may come from anywhere; all are taken before the first is run."""
        array = np.zeros((10, 2))
        _on(backend, _add).map((k for k in range(10)), 7, out=array)
        assert [[7, 7]] * 10 == array.tolist()

    @pytest.mark.parametrize("shape", [(0,), (4,), ()])
    def test_no_items(self, backend: str, shape: tuple[int, ...]) -> None:
        """Nothing to do changes nothing."""
        array = np.ones(shape)
        assert [] == _on(backend, _add).map([], 1, out=array)
        assert np.array_equal(np.ones(shape), array)

    @pytest.mark.parametrize("method", ["map", "starmap", "imap", "submit"])
    @pytest.mark.parametrize("index", [[0, 1], np.array([0]), True, None, "a", 1.5], ids=repr)
    def test_index_that_would_copy_is_refused(
        self, backend: str, method: str, index: Any, tmp_path: Path
    ) -> None:
        """An index that is not made of ints and slices is refused, and nothing runs."""
        array = np.zeros(4)
        run = getattr(_on(backend, _touch), method)
        items = {"starmap": [(2,), (index,)], "submit": index}.get(method, [2, index])
        with pytest.raises(ArgumentError, match=r"item [01]"):
            _drain(run(items, out=array, folder=str(tmp_path)))
        assert {} == counted(tmp_path)
        assert not array.any()

    def test_index_outside_is_refused(self, backend: str, tmp_path: Path) -> None:
        """An int outside the array is IndexError before anything runs."""
        with pytest.raises(IndexError, match="item 1"):
            _on(backend, _touch).map([0, 4], out=np.zeros(4), folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("name", REFUSED)
    def test_array_that_cannot_be_written_is_refused(
        self, backend: str, name: str, tmp_path: Path
    ) -> None:
        """What has no blocks to write is refused by the parameter's name, and nothing runs."""
        with pytest.raises((ArgumentError, UnshareableError), match="'out'"):
            _on(backend, _touch).map([0], out=REFUSED[name](), folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("method", ["map", "starmap", "imap", "imap_unordered", "amap"])
    @pytest.mark.parametrize("name", OVERLAPS)
    def test_overlap_is_refused(self, backend: str, method: str, name: str, tmp_path: Path) -> None:
        """Items that would write to one element are named, and none of them is entered."""
        items, first, second = OVERLAPS[name]
        array = np.zeros((8, 8))
        given = [(item,) for item in items] if method == "starmap" else items
        with pytest.raises(OverlapError) as caught:
            _drain(getattr(_on(backend, _touch), method)(given, out=array, folder=str(tmp_path)))
        assert (first, second, "out") == (
            caught.value.first,
            caught.value.second,
            caught.value.parameter,
        )
        assert {} == counted(tmp_path)
        assert not array.any()

    @pytest.mark.parametrize("other", ["same", "view", "wider"])
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_reading_what_is_written_is_refused(
        self, backend: str, other: str, born_shared: bool, tmp_path: Path
    ) -> None:
        """The memory of a partitioned array is that of no other shared parameter."""
        whole = zeros(20) if born_shared else np.zeros(20)
        table = {"same": whole[:10], "view": whole[3:5], "wider": whole}[other]
        with pytest.raises(ArgumentError, match=r"'out'.*'table'"):
            _on(backend, _sum_into).map([0], out=whole[:10], table=table, folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_reading_beside_what_is_written(
        self, backend: str, born_shared: bool, tmp_path: Path
    ) -> None:
        """Disjoint parts of one array may be written and read, interleaved too."""
        whole = zeros(20) if born_shared else np.zeros(20)
        whole[1::2] = 2
        task = _on(backend, _sum_into)
        task.map(range(10), out=whole[::2], table=whole[1::2], folder=str(tmp_path))
        assert [20, 2] * 10 == whole.tolist()

    def test_two_partitioned_parameters(self, backend: str) -> None:
        """An item gets its block of each; rows of one go with rows of another."""
        left, right = np.zeros((6, 3)), np.zeros(6, "i8", order="F")
        assert list(range(6)) == _on(backend, _fill_both).map(range(6), left=left, right=right)
        assert [[k] * 3 for k in range(6)] == left.tolist()
        assert [-k for k in range(6)] == right.tolist()

    def test_two_parts_of_one_array(self, backend: str) -> None:
        """Two parameters may be written in disjoint parts of one array."""
        whole = zeros(12, "i8")
        _on(backend, _fill_both).map(range(6), left=whole[:6], right=whole[6:])
        assert [0, 1, 2, 3, 4, 5, 0, -1, -2, -3, -4, -5] == whole.tolist()

    def test_beside_the_other_words(self, backend: str) -> None:
        """Shared, private, partitioned and plain arguments go together."""
        out = np.zeros(3)
        task = _on(backend, _all_words)
        assert [6.0] * 3 == task.map(range(3), 1, out=out, table=np.ones(3), scratch=np.ones(2))
        assert [6.0] * 3 == out.tolist()

    @pytest.mark.parametrize("chunksize", [1, 4])
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_block_of_a_failed_item(self, backend: str, chunksize: int, born_shared: bool) -> None:
        """Blocks of the others arrive; that of a failed item arrives only where it was written."""
        array = zeros((8, 3)) if born_shared else np.zeros((8, 3))
        task = _on(backend, _write_then_fail, return_exceptions=True, chunksize=chunksize)
        results = task.map(range(8), out=array, bad=[2, 5])
        assert [2, 5] == [k for k, r in enumerate(results) if isinstance(r, ValueError)]
        in_place = backend in {"serial", "thread"} or (backend == "process" and born_shared)
        left = 1.0 if in_place else 0.0
        assert [[left if k in {2, 5} else 1.0] * 3 for k in range(8)] == array.tolist()

    def test_error_ends_the_map(self, backend: str) -> None:
        """An error is raised as itself, and the next map on the same array is right."""
        array = np.zeros(8)
        task = _on(backend, _write_then_fail)
        with pytest.raises(ValueError, match="failed") as caught:
            task.map(range(8), out=array, bad=[3])
        assert [3] == [note.index for note in _notes(caught.value)]
        assert set(array.tolist()) <= {0.0, 1.0}
        assert list(range(8)) == task.map(range(8), out=array, bad=[])
        assert [1.0] * 8 == array.tolist()

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_retried_item(self, backend: str, born_shared: bool, tmp_path: Path) -> None:
        """An item that succeeds at a later try has written its block like any other."""
        array = zeros(6) if born_shared else np.zeros(6)
        task = _on(backend, _fill_at_last, retries=2, chunksize=3)
        assert list(range(6)) == task.map(range(6), out=array, folder=str(tmp_path), fails=2)
        assert list(range(6)) == array.tolist()
        assert {str(k): 3 for k in range(6)} == counted(tmp_path)

    def test_neighbours_do_not_disturb_each_other(self, backend: str) -> None:
        """Elements that share a cache line, or a word, are exact with two writers."""
        array = zeros(10_000, "u1")
        task = _on(backend, _count_to, workers=2, chunksize=50)
        task.map(range(10_000), 3, out=array)
        assert 10_000 == np.count_nonzero(array == 3)

    def test_results_and_blocks_together(self, backend: str) -> None:
        """Results of any kind arrive in order beside the blocks."""
        array = np.zeros(9)
        results = _on(backend, _mixed, chunksize=4).map(range(9), out=array)
        assert_same([_result_of(k) for k in range(9)], results)
        assert list(range(9)) == array.tolist()

    def test_result_may_be_the_block(self, backend: str) -> None:
        """A block that is returned is a result like any other, and keeps its contents."""
        array = zeros((4, 2))
        results = _on(backend, _return_block).map(range(4), out=array)
        assert [[k, k] for k in range(4)] == array.tolist()
        assert [[k, k] for k in range(4)] == [result.tolist() for result in results]

    def test_call_gets_the_whole_array(self, backend: str) -> None:
        """Called directly, the function gets its arguments as they are."""
        array = np.zeros(4)
        assert (4,) == _on(backend, _fill_whole)(1, array)
        assert [1.0] * 4 == array.tolist()

    def test_second_map_sees_what_the_first_wrote(self, backend: str) -> None:
        """Between two maps the caller may change the array; the tasks see its contents."""
        array = np.ones(4)
        task = _on(backend, _make_odd)
        task.map(range(4), out=array)
        array[0] = 10
        assert [10.0, 3.0, 3.0, 3.0] == [seen for _, seen in task.map(range(4), out=array)]
        assert [21.0, 7.0, 7.0, 7.0] == array.tolist()

    def test_threads_write_one_array(self, backend: str) -> None:
        """Maps of two threads on halves of one array do not disturb each other."""
        array = np.zeros((2, 40))
        task = _on(backend, _add)
        with ThreadPoolExecutor(2) as pool:
            maps = [pool.submit(task.map, range(40), k + 1, out=array[k]) for k in range(2)]
            assert [[1] * 40, [2] * 40] == [each.result(20) for each in maps]
        assert [[1] * 40, [2] * 40] == array.tolist()


class BackendContract(
    ResultsContract,
    ErrorsContract,
    SharingContract,
    PartitionedContract,
    FunctionsContract,
    StreamsContract,
    OptionsContract,
):
    """All that a backend promises."""


# ----------------------------------------------------------------- more tasks and helpers


def _ones(n: int) -> npt.NDArray[Any]:
    return np.ones(n)


def _power(base: int, exponent: int, plus: int = 0) -> int:
    return int(base**exponent) + plus


def _pick(x: int, table: npt.NDArray[Any]) -> float:
    return float(table[x])


def _where(_x: int) -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _raise_named(x: int, name: str, bad: int) -> int:
    if x == bad:
        error = ERRORS[name]()
        raise error
    return x


def _raise_closed(x: int) -> int:
    if x == 2:
        message = "locked up"
        raise LockedError(message)
    return x


def _recurse(x: int) -> int:
    return x if x < 100 else 1 + _recurse(x - 1)


def _is_one(value: Any) -> bool:
    return value["a"] is value["b"]


def _shape_and_flag(array: Any) -> Any:
    return array.shape, array.flags.writeable


def _first_rows(array: Any) -> Any:
    return array[:3]


def _both(_x: int, left: Shared[Any], right: Shared[Any]) -> float:
    return float(left.sum() + right.sum())


def _with_default(_x: int, table: Shared[Any] = ()) -> int:
    return len(table)


def _with_timeout(_x: int, timeout: int) -> int:
    return timeout


def _slow_zero(x: int, seconds: float) -> int:
    if x == 0:
        time.sleep(seconds)
    return x


def _apply(x: int, function: Any) -> Any:
    return function(x)


class _Adder:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return x + self.by


def _noted(taken: list[int]) -> Iterator[int]:
    for k in itertools.count():
        taken.append(k)
        yield k


def _notes(error: BaseException) -> list[Any]:
    return [
        note
        for note in getattr(error, "__notes__", ())
        if hasattr(note, "index") and "item" in note
    ]


def _drain(results: Any) -> list[Any]:
    """What any of the map methods gives, as a list."""
    if hasattr(results, "__aiter__") or hasattr(results, "__await__"):
        return asyncio.run(asyncio.wait_for(_gathered(results), 10))
    return list(results)


async def _gathered(results: Any) -> list[Any]:
    if hasattr(results, "__await__"):
        return list(await results)
    return [result async for result in results]


def _some(stream: Any, count: int) -> Iterator[Any]:
    """The first results of a stream, which is closed afterwards."""
    if not hasattr(stream, "__aiter__"):
        try:
            yield from itertools.islice(stream, count)
        finally:
            stream.close()
        return
    loop = asyncio.new_event_loop()
    try:
        for _ in range(count):
            yield loop.run_until_complete(anext(stream))
    finally:
        loop.run_until_complete(stream.aclose())
        loop.close()
