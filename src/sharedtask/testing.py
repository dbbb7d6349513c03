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
    Locked,
    LockOrderError,
    OverlapError,
    Partition,
    Partitioned,
    Reduced,
    Reduction,
    Regions,
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
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt


__all__ = [
    "DTYPES",
    "BackendContract",
    "Belongings",
    "ErrorsContract",
    "FunctionsContract",
    "IntoContract",
    "LockedContract",
    "OptionsContract",
    "PartitionedContract",
    "ReducedContract",
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
    "unharmed",
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


@pytest.fixture
def unharmed() -> Iterator[None]:
    """After a fault the same pool runs a right map at once, and nothing is left behind.

    Not in this process, and not in the workers, of which there are as many as before.
    """
    forget_publications()
    in_workers = _in_workers()
    forget_publications()
    before = Belongings.now()
    yield
    try:
        forget_publications()
        limit = time.monotonic() + 5.0
        after = _in_workers()
        assert time.monotonic() < limit, "the next map took longer than 5 seconds"
        while left := _grown(in_workers, after):
            assert time.monotonic() < limit, f"left behind in the workers: {'; '.join(left)}"
            after = _in_workers()
        assert_nothing_left(before, same_children=True)
    except BaseException:
        shutdown()  # the next test has its own chance
        raise


def _in_workers(workers: int = 2) -> list[Belongings]:
    """What each worker holds; they are found by maps over a shared value, which must be right."""
    task = parallel(_report).with_options(workers=workers, chunksize=1, backend="process")
    limit = time.monotonic() + 10
    found: dict[int, Belongings] = {}
    while len(found) < workers:
        assert time.monotonic() < limit, f"no {workers} workers came up"
        for k, (square, total, pid, held) in enumerate(task.map(range(workers), big=_BIG)):
            assert (k * k, float(_BIG.size)) == (square, total)
            found[pid] = held
    return list(found.values())


_BIG = np.ones(1 << 17)


def _report(x: int, big: Shared[Any]) -> tuple[int, float, int, Belongings]:
    time.sleep(0.002)  # the other worker takes the other item
    return x * x, float(big.sum()), os.getpid(), Belongings.now()


def _grown(before: list[Belongings], after: list[Belongings]) -> list[str]:
    return [line for held in after for line in held.more_than(before[0])]


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
    """The bytes of an array, but for those between the fields of a structure: they may be any."""
    if array.dtype.names is None:
        return array.tobytes()
    return [bits_of(array[name]) for name in array.dtype.names]


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


def _count_then_fail(k: int, folder: str, bad: int) -> int:
    count_up(folder, k)
    if k == bad:
        raise KeyError(k)
    return k


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


# ------------------------------------------------------------------------- what is added up


def _add_plain(k: int, total: Any) -> int:
    total += k
    return k


@parallel
def _add_by_word(k: int, total: Reduced[Any]) -> int:
    total += k
    return k


@parallel
def _add_by_rule(k: int, total: Annotated[Any, Reduction("sum")]) -> int:
    total += k
    return k


@parallel
def _add_by_both(k: int, total: Annotated[Reduced[Any], Reduction(np.add)]) -> int:
    total += k
    return k


def _add_if_given(k: int, total: Reduced[Any] | None = None) -> bool:
    del k
    return total is None


SUMS: dict[str, Any] = {
    # the ways to say that items add to "total"
    "word": _add_by_word,
    "rule": _add_by_rule,
    "both": _add_by_both,
    "list": parallel(reduced=["total"])(_add_plain),
    "name": parallel(reduced={"total": "sum"})(_add_plain),
    "ufunc": parallel(reduced={"total": np.add})(_add_plain),
    "dict": parallel(reduced={"total": Reduction("sum", identity=0)})(_add_plain),
}

OPERATIONS: dict[str, tuple[Any, str]] = {
    # what combines, the dtype of the array
    **{f"sum of {t}": ("sum", t) for t in ("i8", "u1", ">i4", "f2", "f4", ">f8", "c8", "m8[s]")},
    **{f"prod of {t}": ("prod", t) for t in ("i8", "f8", "c16", "?")},
    **{f"min of {t}": ("min", t) for t in ("i1", "u8", "f4", "c16", "?", "M8[D]", ">m8[s]")},
    **{f"max of {t}": ("max", t) for t in ("i8", "u2", ">f8", "g", "?", ">M8[ns]", "m8[us]")},
    **{f"any of {t}": ("any", t) for t in ("?", "i4")},
    **{f"all of {t}": ("all", t) for t in ("?", "f8")},
    "logaddexp": (np.logaddexp, "f8"),
    "fmax": (np.fmax, "f8"),
    "fmin": (np.fmin, "M8[s]"),
    "hypot": (np.hypot, "f8"),
    "bitwise_or": (np.bitwise_or, "u1"),
    "bitwise_and": (np.bitwise_and, "i8"),
    "bitwise_xor": (np.bitwise_xor, "i4"),
    "gcd": (np.gcd, "i8"),
    "lcm": (np.lcm, "i8"),
}

_UFUNCS: dict[Any, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "any": np.logical_or,
    "all": np.logical_and,
}


def _rows_of(dtype: str, count: int) -> npt.NDArray[Any]:
    """Rows of small numbers that differ, below and above zero where the dtype has such."""
    numbers = np.random.default_rng(7).integers(1, 7, (count, 5))
    if np.dtype(dtype).kind in "ifcmM":
        numbers[::2, 1:3] *= -1
    if np.dtype(dtype).kind in "?b":
        numbers = numbers % 2
    return numbers.astype(dtype)


def _combine_row(k: int, total: Any, rows: Shared[Any], ufunc: Any) -> int:
    ufunc(total, rows[k], out=total, casting="same_kind")
    return k


def _larger(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(one > other, one, other)


def _larger_in_place(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    one[...] = np.where(one > other, one, other)
    return one


def _count(k: int, hist: Reduced[Any]) -> int:
    hist[k % len(hist)] += 1
    return k


def _add_to_array(_k: int, total: Reduced[np.ndarray[Any, Any]], folder: str) -> None:
    count_up(folder, "entered")
    total += 1


def _add_ramp(k: int, total: Reduced[Any]) -> int:
    total += np.arange(total.size).reshape(total.shape) * k
    return k


def _add_then_fail(k: int, total: Reduced[Any], bad: Any, folder: str = "") -> int:
    if folder:
        count_up(folder, "entered")
    total += k
    if k in bad:
        message = "failed"
        raise ValueError(message)
    total += k
    return k


def _add_then_fail_plain(k: int, total: Any, bad: Any, folder: str = "") -> int:
    return _add_then_fail(k, total, bad, folder)


def _add_at_last(k: int, total: Reduced[Any], folder: str, fails: int) -> int:
    total += 1
    if count_up(folder, k) <= fails * (k % 2):
        message = "again"
        raise ValueError(message)
    return k


def _add_slowly(k: int, total: Reduced[Any], folder: str) -> int:
    total += 1
    count_up(folder, "entered")
    time.sleep(0.02)
    return k


def _add_and_see(
    k: int,
    plain: int,
    low: Annotated[Any, Reduction("min")],
    out: Partitioned[Any],
    total: Reduced[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
) -> float:
    scratch += plain
    out += table[k]
    total += scratch.sum()
    low[...] = np.minimum(low, out)
    return float(scratch.sum())


def _count_nested(k: int, hist: Reduced[Any]) -> list[int]:
    return parallel(_count).map(range(k), hist=hist)


def _wave(k: int, total: Any) -> int:
    # As large as 1e16 and as small as 1: the order in which such numbers are added shows.
    total += np.sin(k + np.arange(3.0)) * 10.0 ** (k % 17)
    return k


_EXACT = Reduction("sum", deterministic=True)
_sum_of_waves = parallel(reduced={"total": _EXACT})(_wave)


class Weight:
    """Its method adds to an array."""

    def __init__(self, by: int) -> None:
        self.by = by

    @parallel
    def add(self, k: int, total: Reduced[Any]) -> int:
        """Add to every element."""
        total += self.by
        return k


# ------------------------------------------------------------------------ what takes turns


def _count_plain(k: int, grid: Any, times: int = 5) -> int:
    for _ in range(times):
        with grid.write(0) as row:
            value = row.copy()
            os.sched_yield()  # gives the others their chance to read the same
            row[...] = value + 1
    return k


def _count_plain_locked(k: int, grid: Locked[Any], times: int = 5) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_by_word(k: int, grid: Locked[Any], times: int = 5) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_by_bare_word(
    k: int,
    grid: Locked,  # type: ignore[type-arg]  # pyright: ignore[reportMissingTypeArgument]  the bare form is under test
    times: int = 5,
) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_in_array(k: int, grid: Locked[np.ndarray[Any, Any]], times: int = 5) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_in_regions(
    k: int, grid: Annotated[Locked[np.ndarray[Any, Any]], Regions(blocks=2)], times: int = 5
) -> int:
    return _count_plain(k, grid, times)


@parallel
def _count_by_rule(k: int, grid: Annotated[Any, Regions(blocks=(1,))], times: int = 5) -> int:
    return _count_plain(k, grid, times)


LOCKINGS: dict[str, Any] = {
    # the ways to say that "grid" is locked
    "word": _count_by_word,
    "bare word": _count_by_bare_word,
    "array": _count_in_array,
    "regions": _count_in_regions,
    "rule": _count_by_rule,
    "list": parallel(locked=["grid"])(_count_plain),
}


def _count_row(k: int, grid: Locked[Any]) -> int:
    with grid.write(k % len(grid.array)) as row:
        row[...] += 1
    return k


def _raise_all(_k: int, grid: Locked[Any]) -> tuple[tuple[int, ...], Any]:
    with grid.write() as whole:
        whole[...] += 1
    return grid.shape, grid.dtype


def _raise_at(index: Any, grid: Locked[Any]) -> Any:
    with grid.write(index) as part:
        seen = part.copy()
        part[...] += 1
    with grid.read(index) as part:
        assert np.array_equal(seen + 1, part)
    return seen


def _raise_in_blocks(index: Any, grid: Annotated[Locked[Any], Regions(blocks=2)]) -> Any:
    return _raise_at(index, grid)


def _raise_in_tiles(_k: int, grid: Annotated[Locked[Any], Regions(blocks=(2, 2))]) -> Any:
    return _raise_at(..., grid)


def _write_what_is_read(k: int, grid: Locked[Any]) -> list[str]:
    refused = []
    for index in (..., k, slice(0, 2), (slice(0, 2), 0)):
        with grid.read(index) as part:
            for write in (_set_all, _make_writable, _write_below):
                try:
                    write(part)
                except (ValueError, AttributeError, TypeError) as error:
                    refused.append(type(error).__name__)
    return refused


def _set_all(part: Any) -> None:
    part[...] = -1


def _make_writable(part: Any) -> None:
    part.flags.writeable = True


def _write_below(part: Any) -> None:
    base = part
    while isinstance(base.base, np.ndarray):
        base = base.base
    base[...] = -1


def _lock_then_fail(k: int, grid: Locked[Any], bad: Any, folder: str = "") -> int:
    if folder:
        count_up(folder, "entered")
    with grid.write(k) as row:
        row[...] += 1
        if k in bad:
            message = "failed"
            raise ValueError(message)
    return k


def _lock_at_last(k: int, grid: Locked[Any], folder: str, fails: int) -> int:
    with grid.write(0) as row:
        row[...] += 1
        if count_up(folder, k) <= fails:
            message = "again"
            raise ValueError(message)
    return k


def _lock_if_given(_k: int, grid: Locked[Any] | None = None) -> Any:
    return grid


def _lock_two(
    _k: int,
    left: Locked[Any],
    right: Locked[Any] | None = None,
    table: Shared[Any] = None,
    out: Partitioned[Any] | None = None,
    total: Reduced[Any] | None = None,
    *,
    folder: str,
) -> None:
    del left, right, table, out, total
    count_up(folder, "entered")


def _enter_two(_k: int, left: Locked[Any], right: Locked[Any], first: Any, second: Any) -> str:
    """Ask for a second lock while the first is held; say what became of it."""
    sides = {"left": left, "right": right}
    try:
        with sides[first[0]].write(first[1]), sides[second[0]].write(second[1]):
            told = "both"
    except LockOrderError as error:
        told = "same" if error.same else "order"
    with left.write() as one, right.write() as other:  # nothing of it is still held
        one[...] += 1
        other[...] += 1
    return told


def _enter_two_cells(
    k: int,
    left: Annotated[Locked[Any], Regions(blocks=1)],
    right: Locked[Any],
    first: Any,
    second: Any,
) -> str:
    return _enter_two(k, left, right, first, second)


ENTERINGS: dict[str, tuple[Any, Any, str]] = {
    # what is entered first, what is asked for then, and what comes of it
    "ascending": (("left", 1), ("left", 2), "both"),
    "descending": (("left", 2), ("left", 1), "order"),
    "the same row": (("left", 2), ("left", 2), "same"),
    "the same row from the end": (("left", -1), ("left", 5), "same"),
    "a row of a slice": (("left", slice(1, 4)), ("left", 3), "same"),
    "the row after a slice": (("left", slice(1, 4)), ("left", 4), "both"),
    "a slice from a row on": (("left", 3), ("left", slice(3, 0, -1)), "same"),
    "all, then a row": (("left", ...), ("left", 0), "same"),
    "a row, then all": (("left", 5), ("left", ...), "same"),
    "nothing in all": (("left", ...), ("left", slice(3, 3)), "both"),
    "as the parameters": (("left", 4), ("right", 1), "both"),
    "against the parameters": (("right", 4), ("left", 5), "order"),
}


def _count_in_maps(k: int, grid: Locked[Any], times: int) -> list[int]:
    inner = _count_by_word.with_options(backend="serial")
    return inner.map(range(k), grid=grid, times=times)


def _all_words_locked(
    k: int,
    plain: int,
    grid: Locked[Any],
    out: Partitioned[Any],
    total: Reduced[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
) -> float:
    scratch += plain
    out[...] = k
    total += 1
    with grid.write(0) as row:
        row[...] += table.sum() + scratch.sum()
    return float(scratch.sum())


class Account:
    """Its method takes turns."""

    def __init__(self, by: int) -> None:
        self.by = by

    @parallel
    def pay(self, k: int, grid: Locked[Any]) -> int:
        """Add to the first row."""
        with grid.write(0) as row:
            row[...] += self.by
        return k


# ------------------------------------------------------------------------ results in an array


def _hundreds(k: int) -> npt.NDArray[Any]:
    return 100 * k + np.arange(10)


def _row_of(k: int, rows: Shared[Any]) -> Any:
    return rows[k]


def _value_of(k: int, values: Any) -> Any:
    return values[k]


def _square_entered(x: int, folder: str, table: Shared[Any] = None) -> int:
    del table
    count_up(folder, "entered")
    return x * x


def _square_into_block(x: int, out: Partitioned[Any], folder: str) -> int:
    del out
    return _square_entered(x, folder)


def _take_out(_k: int, out: int) -> int:
    return out


def _fail_plus_one(x: int, bad: Any) -> int:
    if x in bad:
        message = "failed"
        raise ValueError(message)
    return x + 1


def _sleep_plus_one(x: int, slow: int) -> int:
    if x == slow:
        time.sleep(0.6)
    return x + 1


def _all_words_into(
    k: int,
    plain: int,
    out: Partitioned[Any],
    total: Reduced[Any],
    table: Shared[Any],
    scratch: CopyOnWrite[Any],
    *,
    word: str = "",
) -> float:
    scratch += plain
    out[...] = -k
    total += 1
    return float(scratch.sum() + table[k] + len(word))


def _sum_into_total(k: int, total: Reduced[Any]) -> Any:
    total += 1
    return [1, 2] if k % 3 == 0 else k


FITTING: dict[str, tuple[str, Any]] = {
    # dtype of the array of shape (4, 3), the results
    "floats to ints": ("i4", [[1.7, -1.7, 2.0]] * 4),
    "ints to floats": ("f4", [[1, 2, 3], range(3), (4, 5, 6), np.arange(3, dtype="u1")]),
    "one for a row": ("f8", [1, 2.5, np.float32(3), np.array(4)]),
    "one element": ("i8", [[1], (2,), np.array([3]), np.array([[4]])]),
    "bools": ("?", [[0, 1, 2], True, np.ones(3), 0]),
    "texts": ("U2", [["a", "bc", "def"], "xyz", b"q", 12]),
    "times": ("M8[D]", ["2020-01-02", np.datetime64("2021-01-01T12", "h"), None, "NaT"]),
    "byte order": (">i2", [[1, 2, 3], np.arange(3, dtype="<i8"), 7, np.int8(-1)]),
}

UNFITTING: dict[str, tuple[str, Any]] = {
    # dtype of the array of shape (4, 3), and a result that numpy refuses
    "too long": ("f8", [1, 2, 3, 4]),
    "too short": ("f8", np.arange(2)),
    "no array": ("f8", [1, [2], 3]),
    "too many axes": ("f8", np.zeros((2, 3))),
    "none": ("f8", "abc"),
    "too large": ("u1", 300),
    "dict": ("i8", {}),
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

    def test_nothing_behind_an_error_is_begun(self, backend: str, tmp_path: Path) -> None:
        """Where an item raises, those behind it in its chunk are not run, as in a loop."""
        task = _on(backend, _count_then_fail, chunksize=40)
        with pytest.raises(KeyError):
            task.map(range(40), folder=str(tmp_path), bad=17)
        _on(backend, _count_then_fail).map([99], folder=str(tmp_path), bad=17)
        entered = {int(name) for name in counted(tmp_path)} - {99}
        assert set(range(18)) == entered

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


class ReducedContract:
    """Every successful item adds to the caller's array once, and nothing else does."""

    @pytest.mark.parametrize("name", SUMS)
    def test_way_to_say_it(self, backend: str, name: str) -> None:
        """However it is declared, the array holds what it held and what all items have added."""
        total = np.full(3, 100)
        assert list(range(20)) == _under(backend, SUMS[name]).map(range(20), total=total)
        assert [290] * 3 == total.tolist()

    @pytest.mark.parametrize("name", OPERATIONS)
    def test_operation(self, backend: str, name: str) -> None:
        """Any operation combines what the array held with what the items made, for its dtypes."""
        op, dtype = OPERATIONS[name]
        ufunc: Any = _UFUNCS.get(op, op)
        held, *rows = _rows_of(dtype, 10)
        if name == "fmax":
            rows[3][1], rows[4][2] = np.nan, np.nan
        wanted = functools.reduce(lambda a, b: ufunc(a, b).astype(a.dtype), rows, held)
        task: Any = parallel(reduced={"total": op})(_combine_row)
        task = task.with_options(backend=backend, chunksize=2)
        assert list(range(9)) == task.map(range(9), total=held, rows=np.array(rows), ufunc=ufunc)
        if ufunc in (np.logaddexp, np.hypot):
            np.testing.assert_allclose(held, wanted, rtol=1e-12)
        else:
            assert_same(wanted, held)

    @pytest.mark.parametrize("function", [_larger, _larger_in_place])
    @pytest.mark.parametrize("itemwise", [False, True])
    def test_function_of_two_arrays(self, backend: str, function: Any, itemwise: bool) -> None:
        """A function may return a new array, or write into its first argument and return that."""
        held, *rows = _rows_of("f8", 10)
        wanted = np.max([held, *rows], axis=0)
        task: Any = parallel(reduced={"total": Reduction(function, identity=-np.inf)})(_combine_row)
        task = task.with_options(backend=backend, chunksize=2, return_exceptions=itemwise)
        task.map(range(9), total=held, rows=np.array(rows), ufunc=np.maximum)
        assert_same(wanted, held)

    def test_identity_is_an_array(self, backend: str) -> None:
        """An identity may differ from element to element, and is broadcast."""
        lowest = np.array([1, 2, 3])
        reduction = Reduction("max", identity=lowest)
        task: Any = parallel(reduced={"total": reduction})(_combine_row)
        total, rows = np.zeros((2, 3), "i8"), np.zeros((4, 3), "i8")
        _under(backend, task).map(range(4), total=total, rows=rows, ufunc=np.maximum)
        assert [[1, 2, 3]] * 2 == total.tolist()

    @pytest.mark.parametrize("itemwise", [False, True])
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layout_of_the_total(self, backend: str, name: str, itemwise: bool) -> None:
        """However the array lies in memory, it has the sum and what is beside it is not touched."""
        around, array = LAYOUTS[name]()
        before = around.copy()
        task = _on(backend, _add_ramp, return_exceptions=itemwise)
        assert list(range(7)) == task.map(range(7), total=array)
        assert np.array_equal(np.arange(60).reshape(6, 10) * 22, array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("itemwise", [False, True])
    @pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 0), (4, 5), (2, 3, 4)])
    def test_shape_of_the_total(self, backend: str, shape: tuple[int, ...], itemwise: bool) -> None:
        """Arrays of any number of axes are added to, also those of one element and of none."""
        total = np.ones(shape, "i8")
        _on(backend, _add_ramp, return_exceptions=itemwise).map(range(7), total=total)
        assert shape == total.shape
        assert np.array_equal(1 + 21 * np.arange(total.size).reshape(shape), total)

    def test_large_array(self, backend: str) -> None:
        """An accumulator of 8 MB is exact at both ends and in between."""
        total = np.ones(1 << 20)
        _on(backend, _add_ramp, chunksize=2).map(range(7), total=total)
        assert np.array_equal(1 + 21.0 * np.arange(1 << 20), total)

    @pytest.mark.parametrize(
        "method", ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]
    )
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_every_method_adds_up(self, backend: str, method: str, born_shared: bool) -> None:
        """Whichever way the items are run, all of them are counted at the end."""
        hist = zeros(3, "i8") if born_shared else np.zeros(3, "i8")
        task = _on(backend, _count)
        assert list(range(10)) == sorted(_all_of(task, method, range(10), hist=hist))
        assert [4, 3, 3] == hist.tolist()

    def test_many_items(self, backend: str) -> None:
        """Thousands of items on several workers are each counted once."""
        hist = np.zeros(7, "i8")
        assert list(range(20_000)) == _on(backend, _count).map(range(20_000), hist=hist)
        assert np.bincount(np.arange(20_000) % 7).tolist() == hist.tolist()

    def test_items_that_cannot_be_counted(self, backend: str) -> None:
        """The items may come from anywhere, and need not be counted before."""
        hist = np.zeros(3, "i8")
        assert 1000 == len(_on(backend, _count).map(iter(range(1000)), hist=hist))
        assert [334, 333, 333] == hist.tolist()

    @pytest.mark.parametrize("items", [[], iter([])], ids=["list", "iterator"])
    @pytest.mark.parametrize("method", ["map", "imap"])
    @pytest.mark.parametrize("op", ["sum", "min", _EXACT], ids=["sum", "min", "exact"])
    def test_no_items_add_nothing(self, backend: str, method: str, items: Any, op: Any) -> None:
        """Nothing to do changes nothing."""
        total = np.array([5, -5])
        task = _under(backend, parallel(reduced={"total": op})(_add_plain))
        assert [] == list(getattr(task, method)(items, total=total))
        assert [5, -5] == total.tolist()

    def test_second_map_goes_on(self, backend: str) -> None:
        """What a map adds is added to what the one before has left, and to what was set since."""
        hist = np.zeros(2, "i8")
        task = _on(backend, _count)
        task.map(range(10), hist=hist)
        hist[0] = 100
        task.map(range(11), hist=hist)
        assert [106, 10] == hist.tolist()

    def test_call_gets_the_callers_array(self, backend: str) -> None:
        """Called directly, the function gets its arguments as they are."""
        hist = np.zeros(2, "i8")
        assert 3 == _on(backend, _count)(3, hist)
        assert [0, 1] == hist.tolist()

    def test_no_total(self, backend: str) -> None:
        """A parameter that may be left out, or may be None, is that in every item."""
        task = _on(backend, _add_if_given)
        assert [True] * 3 == task.map(range(3))
        assert [True] * 3 == task.map(range(3), total=None)
        assert [False] * 3 == task.map(range(3), total=np.zeros(1))

    @pytest.mark.parametrize("itemwise", [False, True])
    def test_totals_beside_the_other_words(self, backend: str, itemwise: bool) -> None:
        """Several totals, shared, private, partitioned and plain arguments go together."""
        out, total, low = np.zeros(4), np.array([1.0]), np.full((2, 1), 9.0)
        task = _on(backend, _add_and_see, return_exceptions=itemwise, chunksize=2)
        table, scratch = np.array([7.0, 3.0, 5.0, 4.0]), np.ones(2)
        values = {"low": low, "out": out, "total": total, "table": table, "scratch": scratch}
        assert [6.0] * 4 == task.map(range(4), 2, **values)
        assert [7.0, 3.0, 5.0, 4.0] == out.tolist()
        assert ([25.0], [[3.0], [3.0]]) == (total.tolist(), low.tolist())

    def test_method_of_an_object(self, backend: str) -> None:
        """A method adds like any function."""
        total = np.zeros(2)
        assert [0, 1, 2] == _under(backend, Weight(3).add).map(range(3), total=total)
        assert [9.0, 9.0] == total.tolist()

    @pytest.mark.parametrize(
        "method", ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]
    )
    @pytest.mark.parametrize("retries", [0, 1])
    def test_error_leaves_the_array(self, backend: str, method: str, retries: int) -> None:
        """A call that raises has added nothing, whatever its other items did."""
        total = np.full(2, 5)
        task = _on(backend, _add_then_fail, retries=retries, chunksize=3)
        with pytest.raises(ValueError, match="failed"):
            _all_of(task, method, [7] if method == "submit" else range(20), total=total, bad=[7])
        assert [5, 5] == total.tolist()
        task.map(range(4), total=total, bad=[])
        assert [17, 17] == total.tolist()

    @pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
    @pytest.mark.parametrize("method", ["map", "imap", "imap_unordered"])
    def test_broken_item_source_adds_nothing(
        self, backend: str, method: str, error: type[BaseException]
    ) -> None:
        """Where the items end by an error or by Ctrl-C, nothing is added."""
        hist = np.full(2, 5)
        task = _on(backend, _count, chunksize=2)
        with pytest.raises(error, match="no more"):
            _drain(getattr(task, method)(_broken_source(20, error), hist=hist))
        assert [5, 5] == hist.tolist()
        task.map(range(2), hist=hist)
        assert [6, 6] == hist.tolist()

    @pytest.mark.parametrize("method", ["imap", "imap_unordered", "aimap"])
    def test_stream_that_is_left_early(self, backend: str, method: str) -> None:
        """A stream adds when it has given its last result, and nothing when it is left before."""
        hist = np.zeros(2, "i8")
        task = _on(backend, _count, chunksize=1)
        assert 3 == len(list(_some(getattr(task, method)(range(10), hist=hist), 3)))
        assert [0, 0] == hist.tolist()
        task.map(range(10), hist=hist)
        assert [5, 5] == hist.tolist()

    def test_cancelled_amap_adds_nothing(self, backend: str, tmp_path: Path) -> None:
        """An ``amap`` that is cancelled leaves the array as it was."""
        total = np.zeros(1)
        task = _on(backend, _add_slowly, chunksize=1)

        async def cancelled() -> None:
            running = asyncio.ensure_future(task.amap(range(500), total, folder=str(tmp_path)))
            await asyncio.to_thread(_wait_for_count, tmp_path)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        asyncio.run(asyncio.wait_for(cancelled(), 20))
        assert 0 == total
        assert [0] == task.map([0], total, folder=str(tmp_path))
        assert 1 == total
        assert 500 > counted(tmp_path)["entered"]

    @pytest.mark.parametrize("chunksize", [1, 4, "auto"])
    @pytest.mark.parametrize("op", ["sum", _EXACT], ids=["sum", "exact"])
    def test_failed_item_adds_nothing(self, backend: str, chunksize: Any, op: Any) -> None:
        """With ``return_exceptions`` all but the failed items are counted, as wholes."""
        total, bad = np.zeros(2, "i8"), {0, 3, 4, 11, 19}
        task: Any = parallel(reduced={"total": op})(_add_then_fail_plain)
        task = task.with_options(backend=backend, return_exceptions=True, chunksize=chunksize)
        results = task.map(range(20), total=total, bad=bad)
        assert bad == {k for k, r in enumerate(results) if isinstance(r, ValueError)}
        assert [2 * sum(k for k in range(20) if k not in bad)] * 2 == total.tolist()

    def test_every_item_fails(self, backend: str) -> None:
        """Where no item succeeds, the array is as it was."""
        total = np.full(2, 5)
        task = _on(backend, _add_then_fail, return_exceptions=True, chunksize=3)
        assert 8 == len(task.map(range(8), total=total, bad=range(8)))
        assert [5, 5] == total.tolist()

    @pytest.mark.parametrize("method", ["map", "imap", "submit"])
    def test_retried_item_counts_once(self, backend: str, method: str, tmp_path: Path) -> None:
        """An item that succeeds at a later try is counted for that try alone."""
        total = np.zeros(1, "i8")
        task = _on(backend, _add_at_last, retries=2, chunksize=4)
        values = {"total": total, "folder": str(tmp_path), "fails": 2}
        results = _all_of(task, method, range(10), **values)
        assert list(range(10)) == results
        assert {str(k): 1 + 2 * (k % 2) for k in range(10)} == counted(tmp_path)
        assert 10 == total

    @pytest.mark.parametrize("workers", [1, 2, 3, 5])
    @pytest.mark.parametrize("chunksize", ["auto", 7])
    def test_deterministic_sum(self, backend: str, workers: int, chunksize: Any) -> None:
        """With ``deterministic`` no bit depends on the backend, the workers or their luck."""
        reference = np.zeros(3)
        _sum_of_waves.with_options(backend="serial", workers=1, chunksize=chunksize).map(
            range(500), total=reference
        )
        task = _under(backend, _sum_of_waves.with_options(workers=workers, chunksize=chunksize))
        for items in (range(500), list(range(500))):
            total = np.zeros(3)
            task.map(items, total=total)
            assert reference.tobytes() == total.tobytes()

    def test_deterministic_sum_of_a_stream(self, backend: str) -> None:
        """A small buffer and items that cannot be counted keep the bits, and do not hang."""
        task: Any = _sum_of_waves.with_options(buffersize=5)
        for make in (iter, list):
            reference, total = np.zeros(3), np.zeros(3)
            _drain(_under("serial", task).imap(make(range(200)), total=reference))
            for method in ("imap", "imap_unordered"):
                total[...] = 0
                results = _drain(getattr(_under(backend, task), method)(make(range(200)), total))
                assert 200 == len(results)
                assert reference.tobytes() == total.tobytes()

    def test_threads_add_to_one_array(self, backend: str) -> None:
        """Maps of several threads that add to one array at the same time lose nothing."""
        hist = np.zeros(5, "i8")
        task = _on(backend, _count)
        with ThreadPoolExecutor(4) as pool:
            maps = [pool.submit(task.map, range(500), hist=hist) for _ in range(4)]
            assert [list(range(500))] * 4 == [each.result(30) for each in maps]
        assert [400] * 5 == hist.tolist()

    def test_futures_add_to_one_array(self, backend: str) -> None:
        """Many submits that add to one array at the same time lose nothing."""
        hist = np.zeros(5, "i8")
        futures = [_on(backend, _count).submit(k, hist=hist) for k in range(50)]
        assert list(range(50)) == [future.result(30) for future in futures]
        assert [10] * 5 == hist.tolist()

    def test_map_in_a_task(self, backend: str) -> None:
        """A task may map over what it adds to; the inner map adds to the outer item's array."""
        hist = np.zeros(2, "i8")
        assert [[], [0], [0, 1], [0, 1, 2]] == _on(backend, _count_nested).map(range(4), hist=hist)
        assert [4, 2] == hist.tolist()

    @pytest.mark.parametrize("method", ["map", "imap", "submit"])
    @pytest.mark.parametrize("name", [*REFUSED, "handle", "none"])
    def test_array_that_cannot_be_added_to_is_refused(
        self, backend: str, method: str, name: str, tmp_path: Path
    ) -> None:
        """What cannot take a sum is refused by the parameter's name, and nothing runs."""
        with share(np.zeros(2)) as handle:
            values = {"handle": handle, "none": None}
            value = values[name] if name in values else REFUSED[name]()
            task = _on(backend, _add_to_array)
            with pytest.raises((ArgumentError, UnshareableError), match="'total'"):
                _all_of(task, method, [0], total=value, folder=str(tmp_path))
        assert {} == counted(tmp_path)

    def test_nothing_is_kept(self, backend: str) -> None:
        """``cache_info`` counts what is shared, and what is added up is not kept."""
        hist = np.zeros(1000)
        task = _on(backend, _count)
        before = task.cache_info()
        task.map(range(4), hist=hist)
        task.map(range(4), hist=hist)
        assert before == task.cache_info()


_METHODS = ["map", "starmap", "imap", "imap_unordered", "amap", "aimap", "submit"]


class LockedContract:
    """Tasks take turns in the caller's array; for backends whose workers are on one machine.

    It is no part of ``BackendContract``: others refuse the call.
    """

    @pytest.fixture(params=[False, True], ids=["own", "shared"])
    def make(self, request: pytest.FixtureRequest) -> Any:
        """Arrays of zeros, in the memory of this process alone or in shared memory."""
        return zeros if request.param else np.zeros

    @pytest.mark.parametrize("name", LOCKINGS)
    def test_way_to_lock(self, backend: str, name: str) -> None:
        """However it is declared, items take turns, and the caller's array has what they wrote."""
        grid = np.zeros((3, 2))
        task = _under(backend, LOCKINGS[name]).with_options(chunksize=2)
        assert list(range(20)) == task.map(range(20), grid=grid)
        assert [[100, 100], [0, 0], [0, 0]] == grid.tolist()

    def test_no_update_is_lost(self, backend: str, make: Any) -> None:
        """What four workers read and write back in one row is exact."""
        grid = make((2, 3))
        task = _on(backend, _count_plain_locked, workers=4, chunksize=1)
        task.map(range(40), grid=grid, times=25)
        assert [[1000] * 3, [0] * 3] == grid.tolist()

    @pytest.mark.parametrize("method", _METHODS)
    def test_every_method_takes_turns(self, backend: str, method: str, make: Any) -> None:
        """Whichever way the items are run, what they wrote is in the array at the end."""
        grid = make(2)
        task = _on(backend, _count_plain_locked)
        assert list(range(10)) == sorted(_all_of(task, method, range(10), grid=grid))
        assert [50, 0] == grid.tolist()

    def test_futures_share_the_array(self, backend: str, make: Any) -> None:
        """Submitted items that run at the same time see one and the same array."""
        grid = make(1)
        task = _on(backend, _count_plain_locked)
        for done in range(2):
            futures = [task.submit(k, grid=grid, times=10) for k in range(20)]
            assert list(range(20)) == [future.result(20) for future in futures]
            assert [200 * (done + 1)] == grid.tolist()

    def test_threads_lock_one_array(self, backend: str, make: Any) -> None:
        """Maps of two threads on one array lose nothing of each other."""
        grid = make(1)
        task = _on(backend, _count_plain_locked, chunksize=1)
        with ThreadPoolExecutor(2) as pool:
            maps = [pool.submit(task.map, range(20), grid=grid, times=10) for _ in range(2)]
            assert [list(range(20))] * 2 == [each.result(30) for each in maps]
        assert [400] == grid.tolist()

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layout_of_the_grid(self, backend: str, name: str) -> None:
        """However the array lies in memory, rows are written and what is beside it is not."""
        around, array = LAYOUTS[name]()
        before = around.copy()
        _on(backend, _count_row).map(range(18), grid=array)
        assert np.array_equal(np.arange(60).reshape(6, 10) + 3, array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("shape", [(), (0,), (3,), (4, 0), (4, 5), (5000,), (200_000, 2)])
    def test_shape_of_the_grid(self, backend: str, shape: tuple[int, ...]) -> None:
        """Arrays of any number of axes are locked, also those without elements."""
        grid = np.ones(shape, "i2")
        told = _on(backend, _raise_all, chunksize=1).map(range(6), grid=grid)
        assert [(shape, np.dtype("i2"))] * 6 == told
        assert np.array_equal(np.full(shape, 7), grid)

    @pytest.mark.parametrize("name", BLOCKS)
    @pytest.mark.parametrize("function", [_raise_at, _raise_in_blocks])
    def test_write_reaches_the_index(self, backend: str, name: str, function: Any) -> None:
        """A block shows and changes the elements that numpy's indexing would."""
        shape, items = BLOCKS[name]
        array = np.arange(math.prod(shape)).reshape(shape)
        wanted, seen = array.copy(), []
        for item in items:
            seen.append(wanted[item].copy())
            wanted[item] += 1
        told = _on(backend, function if shape else _raise_at).map(items, grid=array)
        assert [(part.shape, part.tolist()) for part in seen] == [
            (part.shape, part.tolist()) for part in told
        ]
        assert np.array_equal(wanted, array)

    @pytest.mark.parametrize("index", [[0, 1], np.array([0]), True, None, "a", 1.5], ids=repr)
    def test_index_that_would_copy_is_an_error(self, backend: str, index: Any) -> None:
        """An index that is not made of ints and slices is told with its reason."""
        grid = np.zeros(4)
        with pytest.raises(ArgumentError, match=r"of an array of shape \(4,\).*Use ints, slices"):
            _on(backend, _raise_at).map([index], grid=grid)
        assert not grid.any()

    @pytest.mark.parametrize("index", [4, -5, (0, 0), (1, slice(4), 0)], ids=repr)
    def test_index_outside_is_an_error(self, backend: str, index: Any) -> None:
        """An int outside, or one axis too many, is IndexError."""
        with pytest.raises(IndexError, match=r"of an array of shape \(4,\)"):
            _on(backend, _raise_at).map([index], grid=np.zeros(4))

    def test_what_is_read_cannot_be_written(self, backend: str, make: Any) -> None:
        """A view that reads is read-only, cannot be made writable, and nor can what is below."""
        grid = make((4, 3))
        grid[...] = 5
        refused = _on(backend, _write_what_is_read).map(range(4), grid=grid)
        assert [["ValueError"] * 12] * 4 == refused
        assert [[5] * 3] * 4 == grid.tolist()

    @pytest.mark.parametrize("name", ENTERINGS)
    @pytest.mark.parametrize("function", [_enter_two, _enter_two_cells])
    def test_two_locks_of_one_thread(
        self, backend: str, name: str, function: Any, make: Any
    ) -> None:
        """What could wait for ever is LockOrderError at once, and what was held is free again."""
        first, second, wanted = ENTERINGS[name]
        grids = {"left": make(6), "right": make(6)}
        told = _on(backend, function).map(range(3), **grids, first=first, second=second)
        assert [wanted] * 3 == told
        assert [[3] * 6] * 2 == [grid.tolist() for grid in grids.values()]

    def test_error_leaves_what_was_written(self, backend: str, make: Any) -> None:
        """When a map raises, the array has what was written, by the failed item as well."""
        grid = make(6)
        with pytest.raises(ValueError, match="failed"):
            _on(backend, _lock_then_fail, workers=1, chunksize=1).map(range(6), grid=grid, bad=[3])
        assert [1] * 4 == grid[:4].tolist()

    def test_error_in_a_block_leaves_it_whole(self, backend: str, make: Any) -> None:
        """A task that raises inside its block is alive: the region is free, and not poisoned."""
        grid = make(6)
        task = _on(backend, _lock_then_fail, return_exceptions=True, chunksize=2)
        results = task.map([*range(6), *range(6)], grid=grid, bad=[1, 4])
        assert [1, 4, 7, 10] == [k for k, r in enumerate(results) if isinstance(r, ValueError)]
        assert [2] * 6 == grid.tolist()

    def test_retried_item_writes_again(self, backend: str, make: Any, tmp_path: Path) -> None:
        """Each try of an item finds what the tries before it have written."""
        grid = make(1)
        task = _on(backend, _lock_at_last, retries=2, chunksize=3)
        assert list(range(6)) == task.map(range(6), grid=grid, folder=str(tmp_path), fails=2)
        assert [18] == grid.tolist()

    def test_failed_call_is_over(self, backend: str, tmp_path: Path) -> None:
        """A call that raised does not count as running, also while its error is kept."""
        grid = np.zeros(6)
        task = _on(backend, _lock_then_fail)
        with pytest.raises(ValueError, match="failed") as caught:
            task.map([0], grid=grid, bad=[0], folder=str(tmp_path))
        grid[...] = 10
        task.map(range(3), grid=grid[:3], bad=[])
        _on("thread", _lock_then_fail).map(range(6), grid=grid, bad=[])
        assert [12, 12, 12, 11, 11, 11] == grid.tolist()
        assert caught.value.__traceback__ is not None

    def test_what_the_caller_changed_is_seen(self, backend: str, make: Any) -> None:
        """Between two calls the caller may change the array; tasks see its contents."""
        grid = make(2)
        task = _on(backend, _count_row)
        for k in range(3):
            grid[...] = 10 * k
            task.map(range(4), grid=grid)
            assert [10 * k + 2] * 2 == grid.tolist()

    @pytest.mark.parametrize("how", ["positional", "by name", "locked"])
    def test_call_locks(self, backend: str, how: str, make: Any) -> None:
        """Called directly, the function gets its array behind locks as well."""
        grid = make(2)
        task = _on(backend, _count_plain_locked)
        if how == "positional":
            assert 3 == task(3, grid)
        else:
            assert 3 == task(3, grid=Locked(grid) if how == "locked" else grid)
        assert [5, 0] == grid.tolist()

    def test_callers_lock_is_an_argument(self, backend: str, make: Any) -> None:
        """The caller's own Locked may stand for its array."""
        grid = make(2)
        mine = Locked(grid)
        _on(backend, _count_plain_locked).map(range(4), grid=mine)
        with mine.read() as whole:
            assert [20, 0] == whole.tolist()
        assert [20, 0] == grid.tolist()

    def test_locked_or_nothing(self, backend: str) -> None:
        """A parameter that may be left out is its default in every item, or None."""
        task = _on(backend, _lock_if_given)
        assert [None] * 3 == task.map(range(3))
        assert [None] * 3 == task.map(range(3), grid=None)
        assert task(1) is None

    def test_method_takes_turns(self, backend: str, make: Any) -> None:
        """A task may be a method, mapped or called."""
        grid = make(2)
        task = _under(backend, Account(3).pay)
        assert list(range(4)) == task.map(range(4), grid=grid)
        assert 7 == task(7, grid)
        assert [15, 0] == grid.tolist()

    def test_locked_beside_the_other_words(self, backend: str, make: Any) -> None:
        """Locked goes together with every other word."""
        grid, out, total = make(1), np.zeros(4), np.zeros(1)
        told = _on(backend, _all_words_locked).map(
            range(4), 1, grid=grid, out=out, total=total, table=np.ones(3), scratch=np.ones(2)
        )
        assert [4.0] * 4 == told
        assert ([28.0], [0, 1, 2, 3], [4.0]) == (grid.tolist(), out.tolist(), total.tolist())

    def test_locks_of_a_map_in_a_task(self, backend: str, make: Any) -> None:
        """The items of a map inside a task take turns with everybody else's."""
        grid = make(1)
        task = _on(backend, _count_in_maps, workers=4, chunksize=1)
        task.map([3] * 8, grid=grid, times=20)
        assert [480] == grid.tolist()

    @pytest.mark.parametrize("other", ["right", "table", "out", "total"])
    @pytest.mark.parametrize("which", ["same", "view", "wider"])
    def test_memory_of_another_parameter_is_refused(
        self, backend: str, other: str, which: str, make: Any, tmp_path: Path
    ) -> None:
        """The memory of a locked array is that of no other parameter."""
        whole = make(8)
        given: Any = {"same": whole[:4], "view": whole[1:3], "wider": whole}[which]
        with pytest.raises(ArgumentError, match="the same memory") as caught:
            _on(backend, _lock_two).map([0], left=whole[:4], **{other: given}, folder=str(tmp_path))
        assert "'left'" in str(caught.value)
        assert f"'{other}'" in str(caught.value)
        assert {} == counted(tmp_path)

    def test_other_view_of_what_is_locked_is_refused(self, backend: str, make: Any) -> None:
        """While a call locks an array, its memory is not locked as another one; then it is."""
        grid = make(6)
        task = _on(backend, _count_row, chunksize=1)
        stream = task.imap(range(12), grid=grid[:4])
        next(stream)
        with pytest.raises(ArgumentError, match=r"'grid' shares memory.*running"):
            task.map(range(6), grid=grid)
        assert 11 == len(list(stream))
        task.map(range(6), grid=grid)
        assert [4, 4, 4, 4, 1, 1] == grid.tolist()

    @pytest.mark.parametrize("name", [*REFUSED, "handle"])
    def test_array_that_cannot_be_locked_is_refused(
        self, backend: str, name: str, tmp_path: Path
    ) -> None:
        """What cannot be written in turns is refused by the parameter's name; nothing runs."""
        task = _on(backend, _lock_then_fail)
        with share(np.zeros(2)) as handle:
            makers: dict[str, Callable[[], Any]] = {**REFUSED, "handle": lambda: handle}
            with pytest.raises((ArgumentError, UnshareableError), match="'grid'"):
                task.map([0], grid=makers[name](), bad=[], folder=str(tmp_path))
        assert {} == counted(tmp_path)

    def test_regions_that_do_not_fit_are_refused(self, backend: str) -> None:
        """More lengths than the array has axes are refused before anything runs."""
        with pytest.raises(ArgumentError, match=r"Regions.*\(2, 2\).*shape \(4,\)"):
            _on(backend, _raise_in_tiles).map([0], grid=np.zeros(4))
        _on(backend, _raise_in_tiles).map([0], grid=np.zeros((4, 1)))

    def test_what_is_locked_is_not_kept(self, backend: str) -> None:
        """``cache_info`` counts what is shared; what is locked is not."""
        task = _on(backend, _count_row)
        task.map(range(4), grid=np.zeros(100_000))
        assert (0, 0) == task.cache_info()[:2]


class IntoContract:
    """``map_into``: each result stands in its place of the caller's array, and nothing else."""

    @pytest.mark.parametrize("name", LAYOUTS)
    def test_results_stand_in_the_array(self, backend: str, name: str) -> None:
        """However the array lies in memory, its rows are the results, beside it nothing changes."""
        around, array = LAYOUTS[name]()
        before = around.copy()
        assert array is _on(backend, _hundreds, chunksize=2).map_into(array, range(6))
        assert np.array_equal(100 * np.arange(6)[:, None] + np.arange(10), array)
        array[...] = np.arange(60).reshape(6, 10)
        assert np.array_equal(before, around)

    @pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "O"])
    @pytest.mark.parametrize("shape", [(6,), (6, 3)])
    def test_dtype_of_the_results(self, backend: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Numbers, texts, times and records stand there bit by bit."""
        rows = array_of(dtype, shape)
        out = _on(backend, _row_of).map_into(np.zeros_like(rows), range(6), rows=rows)
        assert rows.dtype == out.dtype
        assert np.array_equal(rows, out)  # of a longdouble six bytes say nothing

    @pytest.mark.parametrize("name", FITTING)
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_results_are_assigned(self, backend: str, name: str, born_shared: bool) -> None:
        """A result becomes what ``out[i] = result`` makes of it."""
        dtype, values = FITTING[name]
        wanted = np.zeros((4, 3), dtype)
        for k, value in enumerate(values):
            wanted[k] = value
        out = empty((4, 3), dtype) if born_shared else np.empty((4, 3), dtype)
        _on(backend, _value_of, chunksize=2).map_into(out, range(4), values)
        assert_same(wanted, out)

    @pytest.mark.parametrize("name", UNFITTING)
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_result_that_does_not_fit(self, backend: str, name: str, born_shared: bool) -> None:
        """What numpy does not assign is the error of its item, as numpy raises it."""
        dtype, value = UNFITTING[name]
        out = zeros((4, 3), dtype) if born_shared else np.zeros((4, 3), dtype)
        with pytest.raises((TypeError, ValueError, OverflowError)) as numpys:
            out[2] = value
        out[...] = 9
        with pytest.raises(numpys.type, match=re.escape(str(numpys.value))) as caught:
            _on(backend, _value_of, chunksize=1).map_into(out, range(4), [1, 1, value, 1])
        assert [2] == [note.index for note in _notes(caught.value)]
        assert [9] * 3 == out[2].tolist()

    @pytest.mark.parametrize("chunksize", ["auto", 1, 7, 1000])
    def test_every_result_has_its_place(self, backend: str, chunksize: Any) -> None:
        """Results of many items stand where they belong, however they are cut into chunks."""
        out = zeros(300, "i8")
        _on(backend, _square, chunksize=chunksize).map_into(out, range(300))
        assert [k * k for k in range(300)] == out.tolist()

    def test_results_of_a_generator(self, backend: str) -> None:
        """The items may come from anywhere; they are counted first."""
        out = _on(backend, _square).map_into(np.zeros(5), (k for k in range(5)))
        assert [0, 1, 4, 9, 16] == out.tolist()

    @pytest.mark.parametrize("shape", [(0,), (0, 3)])
    def test_no_results(self, backend: str, shape: tuple[int, ...]) -> None:
        """No items fill an array of no rows."""
        out = np.ones(shape)
        assert out is _on(backend, _square).map_into(out, [])

    def test_rows_without_elements(self, backend: str) -> None:
        """Rows of no elements take results of no elements."""
        out = np.ones((4, 0))
        assert out is _on(backend, _value_of).map_into(out, range(4), [()] * 4)

    @pytest.mark.parametrize("shape", [(3,), (5,), (0,), (), (1, 4)])
    @pytest.mark.parametrize("as_generator", [False, True])
    def test_array_of_another_length_is_refused(
        self, backend: str, shape: tuple[int, ...], as_generator: bool, tmp_path: Path
    ) -> None:
        """There is one place for each item; else nothing runs, and the numbers are told."""
        items = iter(range(4)) if as_generator else range(4)
        with pytest.raises(ArgumentError, match=rf"{re.escape(str(shape))}.*4 items"):
            _on(backend, _square_entered).map_into(np.zeros(shape), items, folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("name", REFUSED)
    def test_array_that_takes_no_results_is_refused(
        self, backend: str, name: str, tmp_path: Path
    ) -> None:
        """What cannot be written by tasks is refused as 'out', and nothing runs."""
        out: Any = REFUSED[name]()
        with pytest.raises((ArgumentError, UnshareableError), match="'out'"):
            _on(backend, _square_entered).map_into(out, range(len(out)), folder=str(tmp_path))
        assert {} == counted(tmp_path)

    @pytest.mark.parametrize("which", ["same", "view", "wider"])
    @pytest.mark.parametrize("role", ["table", "out"])
    @pytest.mark.parametrize("born_shared", [False, True])
    def test_reading_what_takes_results_is_refused(
        self, backend: str, which: str, role: str, born_shared: bool, tmp_path: Path
    ) -> None:
        """The memory that takes the results is that of no shared or partitioned parameter."""
        whole = zeros(20) if born_shared else np.zeros(20)
        given: Any = {"same": whole[:4], "view": whole[3:7], "wider": whole}[which]
        task = _on(backend, _square_entered if role == "table" else _square_into_block)
        with pytest.raises(ArgumentError, match=rf"'out'.*'{role}'.*the same memory"):
            task.map_into(whole[:4], range(4), **{role: given}, folder=str(tmp_path))
        assert {} == counted(tmp_path)

    def test_results_in_half_of_what_is_read(self, backend: str, tmp_path: Path) -> None:
        """Disjoint parts of one array may be read and take results."""
        whole = zeros(20)
        task = _on(backend, _square_entered)
        task.map_into(whole[::2], range(10), table=whole[1::2], folder=str(tmp_path))
        assert [k * k for k in range(10)] == whole[::2].tolist()
        assert not whole[1::2].any()

    @pytest.mark.parametrize("born_shared", [False, True])
    @pytest.mark.parametrize("chunksize", [1, 3])
    def test_failed_map_into(self, backend: str, born_shared: bool, chunksize: int) -> None:
        """An error is raised as by ``map``; each place has its result or is as it was."""
        out = zeros(9) if born_shared else np.zeros(9)
        out[...] = -1
        task = _on(backend, _fail_plus_one, chunksize=chunksize)
        with pytest.raises(ValueError, match="failed") as caught:
            task.map_into(out, range(9), bad=[4])
        assert [4] == [note.index for note in _notes(caught.value)]
        assert {True} == {out[k] in {-1, k + 1} for k in range(9)}
        assert -1 == out[4]
        assert list(range(1, 10)) == task.map_into(out, range(9), bad=[]).tolist()

    @pytest.mark.parametrize("born_shared", [False, True])
    @pytest.mark.parametrize("chunksize", [1, 4])
    def test_errors_come_at_the_end(self, backend: str, born_shared: bool, chunksize: int) -> None:
        """With ``return_exceptions`` all is run, then a group tells what was raised."""
        out = zeros(9) if born_shared else np.zeros(9)
        out[...] = -1
        task = _on(backend, _fail_plus_one, return_exceptions=True, chunksize=chunksize)
        with pytest.raises(ExceptionGroup, match=r"2 of 9 items of _fail_plus_one\(\)") as caught:
            task.map_into(out, range(9), bad=[0, 5])
        assert [ValueError] * 2 == [type(error) for error in caught.value.exceptions]
        assert [[0], [5]] == [
            [note.index for note in _notes(error)] for error in caught.value.exceptions
        ]
        assert [-1, 2, 3, 4, 5, -1, 7, 8, 9] == out.tolist()
        assert out is task.map_into(out, range(9), bad=[])

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_retried_result(self, backend: str, born_shared: bool, tmp_path: Path) -> None:
        """The result of the try that succeeds stands in the item's own place."""
        out = zeros(8) if born_shared else np.zeros(8)
        task = _on(backend, _attempts, retries=2, chunksize=3)
        task.map_into(out, range(8), str(tmp_path), 2, (ValueError, "again"))
        assert list(range(8)) == out.tolist()
        assert {str(k): 3 for k in range(8)} == counted(tmp_path)

    def test_result_after_the_timeout(self, backend: str) -> None:
        """An item that took too long leaves its place as it was."""
        out = np.full(4, -1)
        task = _on(backend, _sleep_plus_one, timeout=0.3, return_exceptions=True, chunksize=1)
        with pytest.raises(ExceptionGroup) as caught:
            task.map_into(out, range(4), slow=1)
        assert [TaskTimeoutError] == [type(error) for error in caught.value.exceptions]
        assert [1, -1, 3, 4] == out.tolist()

    @pytest.mark.parametrize("born_shared", [False, True])
    def test_into_beside_the_other_words(self, backend: str, born_shared: bool) -> None:
        """Shared, private, partitioned, reduced and plain arguments go together with it."""
        out, total = np.zeros(5), np.zeros(1, "i8")
        taken = zeros(5) if born_shared else np.zeros(5)
        task = _on(backend, _all_words_into, chunksize=2)
        task.map_into(
            taken,
            range(5),
            1,
            out=out,
            total=total,
            table=np.arange(5),
            scratch=np.ones(2),
            word="ab",
        )
        assert [6, 7, 8, 9, 10] == taken.tolist()
        assert [0, -1, -2, -3, -4] == out.tolist()
        assert [5] == total.tolist()

    @pytest.mark.parametrize("chunksize", [1, 4])
    def test_item_that_does_not_fit_adds_nothing(self, backend: str, chunksize: int) -> None:
        """An item whose result is refused has failed, for what it added as well."""
        out, total = np.zeros(10), np.zeros(1)
        task = _on(backend, _sum_into_total, return_exceptions=True, chunksize=chunksize)
        with pytest.raises(ExceptionGroup, match="4 of 10"):
            task.map_into(out, range(10), total=total)
        assert [6] == total.tolist()
        assert [0, 1, 2, 0, 4, 5, 0, 7, 8, 0] == out.tolist()

    def test_method_into_an_array(self, backend: str) -> None:
        """A task may be a method."""
        task = _under(backend, Model(np.ones(3), 1.0).scaled)
        assert [1, 7, 13] == task.map_into(np.zeros(3), range(3), by=2).tolist()

    def test_maps_into_halves_at_once(self, backend: str) -> None:
        """Maps of two threads fill two halves of one array."""
        out = np.zeros((2, 100))
        task = _on(backend, _square)
        with ThreadPoolExecutor(2) as pool:
            maps = [pool.submit(task.map_into, half, range(100)) for half in out]
            for each in maps:
                each.result(20)
        assert [[k * k for k in range(100)]] * 2 == out.tolist()

    def test_parameter_may_be_called_out(self, backend: str) -> None:
        """The array is given by position, so a task's own ``out`` is the task's."""
        out = np.zeros(3)
        assert [2, 2, 2] == _on(backend, _take_out).map_into(out, range(3), out=2).tolist()


class BackendContract(
    ResultsContract,
    ErrorsContract,
    SharingContract,
    PartitionedContract,
    ReducedContract,
    IntoContract,
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


def _broken_source(count: int, error: type[BaseException]) -> Iterator[int]:
    yield from range(count)
    message = "no more"
    raise error(message)


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


def _all_of(task: Any, method: str, numbers: Iterable[int], **values: Any) -> list[Any]:
    """The results of some numbers, by any of the methods."""
    if method == "submit":
        futures = [task.submit(k, **values) for k in numbers]
        return [future.result(20) for future in futures]
    items = [(k,) for k in numbers] if method == "starmap" else numbers
    return _drain(getattr(task, method)(items, **values))


def _wait_for_count(folder: Path) -> None:
    """Return when a task has counted something."""
    limit = time.monotonic() + 10
    while not counted(folder):
        assert time.monotonic() < limit
        time.sleep(0.005)


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
