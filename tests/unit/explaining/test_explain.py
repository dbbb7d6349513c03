"""``explain``: what it says is what encoding does, in bounded time, whatever the value."""

import collections
import functools
import gc
import io
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from budget import examples
from hypothesis import HealthCheck, given, settings

import sharedtask
from sharedtask import (
    ArgumentError,
    CopyOnWrite,
    Explanation,
    Partitioned,
    Reduced,
    Shared,
    UnshareableError,
    explain,
    parallel,
    share,
)
from sharedtask.explaining import advice
from sharedtask.serialization import codec
from sharedtask.serialization.unpicklable import culprit
from sharedtask.testing import nested_values, slowness

pytestmark = pytest.mark.timeout(60)


class Layer:
    def __init__(self, size: int) -> None:
        self.weight = np.ones(size)
        self.name = "layer"


class Model:
    def __init__(self, count: int, size: int) -> None:
        self.layers = [Layer(size) for _ in range(count)]
        self.classes = ["cat", "dog"]


def by_path(told: Explanation) -> dict[str, Any]:
    return {row.path: row for row in told.rows}


# ------------------------------------------------------------------------------- what it says


def test_parts_are_named_as_in_python() -> None:
    """A path is the Python expression that leads to the part."""
    model = Model(2, 10_000)
    value = {"model": model, 3: [b"", (np.ones(9000),)]}
    paths = [row.path for row in explain(value, "cfg").rows]
    assert [
        "cfg['model'].layers[0].weight",
        "cfg['model'].layers[1].weight",
        "cfg[3][1][0]",
    ] == paths[:3]
    for path in paths[:3]:
        assert isinstance(eval(path, {"cfg": value}), np.ndarray)


@pytest.mark.parametrize(
    ("make", "way"),
    [
        (lambda: np.ones(10_000), "zero-copy"),
        (lambda: np.ones((100, 200)).T, "zero-copy"),
        (lambda: [str(n) for n in range(10_000)], "once per worker"),
        (lambda: sharedtask.zeros(10_000), "in place"),
    ],
    ids=["array", "transposed", "texts", "born shared"],
)
def test_way_of_a_value(make: Any, way: str) -> None:
    """Arrays go without a copy, objects in the pickle, and shared memory stays where it is."""
    value = make()
    (row,) = explain(value).rows
    assert way == row.travels
    assert 0 <= row.nbytes - getattr(value, "nbytes", row.nbytes) < 1000


def test_mapped_file_is_in_place(tmp_path: Any) -> None:
    """An ``np.memmap`` is opened by its path, so nothing of it is copied."""
    mapped = np.memmap(tmp_path / "data", "f8", "w+", shape=(10_000,))
    told = explain({"data": mapped})
    assert "in place" == by_path(told)["value['data']"].travels
    assert mapped.nbytes == told.totals.in_place
    assert 100 > told.totals.zero_copy


def test_handle_is_in_place() -> None:
    """What was shared by hand is there already; a closed handle is of no use."""
    with share(np.ones(10_000)) as handle:
        (row,) = explain(handle).rows
        assert ("in place", handle.nbytes) == (row.travels, row.nbytes)
    (row,) = explain(handle).rows
    assert "cannot" == row.travels


@settings(deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
@given(nested_values())
def test_totals_are_those_of_the_codec(value: Any) -> None:
    """Bytes beside the pickle and in it are exactly what encoding gives."""
    told = explain(value)
    payload = codec.encode_shared(value)
    assert sum(buffer.nbytes for buffer in payload.buffers) == told.totals.zero_copy
    assert len(payload.head) == told.totals.once_per_worker


@settings(deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.too_slow])
@given(nested_values())
def test_rows_add_up_to_the_totals(value: Any) -> None:
    """No part is counted twice or left out."""
    told = explain(value)
    whole = told.totals.zero_copy + told.totals.once_per_worker
    assert sum(row.nbytes for row in told.rows) == pytest.approx(whole, rel=0.01, abs=100)


def test_alias_is_shown_once() -> None:
    """What is in two places is counted in the first and named in the second."""
    table = np.ones(10_000)
    told = explain({"a": table, "b": [table, table]}, "cfg")
    rows = by_path(told)
    assert "the same as cfg['a']" == rows["cfg['b'][0]"].kind
    assert 0 == rows["cfg['b'][0]"].nbytes
    assert "cfg['b'][1]" not in rows
    assert 80_000 == told.totals.zero_copy


def test_cycle_ends() -> None:
    """A value that holds itself is told once."""
    model = Model(2, 10_000)
    model.me = [model]  # type: ignore[attr-defined]
    rows = by_path(explain(model, "model"))
    assert "the same as model" == rows["model.me[0]"].kind


def test_small_parts_are_folded() -> None:
    """Parts that are small beside the whole share one row, which counts them."""
    value = {"large": np.ones(100_000), **{f"k{n}": np.ones(10) for n in range(37)}}
    rows = explain(value).rows
    assert ["value['large']", "value"] == [row.path for row in rows]
    assert "and 37 smaller parts" == rows[1].kind


def test_model_of_many_equal_parts_is_one_row() -> None:
    """Where every part is small, the whole is told as what it is."""
    (row,) = explain(Model(2000, 500).layers, "layers").rows
    assert ("layers", "list of 2,000", "zero-copy") == (row.path, row.kind, row.travels)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: [float(n) for n in range(300_000)], "np.array"),
        (lambda: [f"text {n}" for n in range(300_000)], "pyarrow.array"),
        (lambda: {n: str(n) for n in range(300_000)}, "share("),
        (lambda: bytes(2 << 20), "np.frombuffer"),
        (lambda: np.ones((2000, 2000))[:, ::4], "np.ascontiguousarray"),
    ],
    ids=["numbers", "texts", "dict", "bytes", "strided"],
)
def test_advice_where_it_helps(make: Any, word: str) -> None:
    """What is large and travels badly comes with what to do; the advice travels better."""
    value = make()
    row = explain({"it": value}).rows[0]
    assert word in row.advice
    assert row.why


def test_no_advice_where_all_is_well() -> None:
    """A small value, or one of contiguous arrays, is left in peace."""
    assert [""] * 2 == [row.advice for row in explain([np.ones(10_000), list(range(5000))]).rows]


# ------------------------------------------------------------------------------- what cannot


class Owner:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Leaves(Owner):
    def __getstate__(self) -> dict[str, Any]:
        return {"data": vars(self)["data"]}


class Slotted:
    __slots__ = ("lock", "size")

    def __init__(self) -> None:
        self.lock: Any = threading.Lock()


class Kept(dict[str, Any]):
    pass


Pair = collections.namedtuple("Pair", "left right")  # noqa: PYI024
LOCK = threading.Lock()


UNSHAREABLE: dict[str, Callable[[], Any]] = {
    "cfg.pool.lock": lambda: Owner(pool=Owner(lock=LOCK)),
    "cfg['a'][2]": lambda: {"a": [1, 2, (n for n in "ab")]},
    "cfg.data[0]": lambda: Leaves(lock=LOCK, data=[(n for n in "ab")]),
    "cfg.lock": Slotted,
    "cfg.right": lambda: Pair(1, LOCK),
    "cfg['x']": lambda: Kept(x=LOCK),
    "cfg.keys()[0]": lambda: {LOCK: 1},
    "cfg.thread": lambda: Owner(thread=threading.Thread()),
    "cfg[5000]": lambda: [*range(5000), LOCK, 1],
    "cfg[1, 0]": lambda: np.array([[1, 2], [LOCK, 3]], object),
    "cfg.args[0]": lambda: functools.partial(max, LOCK),
    "cfg[<Owner>]": lambda: {Owner(): LOCK},
}


@pytest.mark.parametrize("path", UNSHAREABLE)
def test_path_is_that_of_the_error(path: str) -> None:
    """What cannot be pickled is named by explain as by the error of a call."""
    value = UNSHAREABLE[path]()
    (row,) = [row for row in explain(value, "cfg").rows if row.travels == "cannot"]
    assert path == row.path
    assert row.why
    assert row.advice
    with pytest.raises(UnshareableError) as caught:
        share(value)
    assert f"{path.replace('cfg', 'value', 1)} is a {row.kind}" in str(caught.value)


def test_every_part_that_cannot_is_told() -> None:
    """All of them at once, so that they can be mended at once."""
    with open("/dev/null") as file:
        told = explain([LOCK, 1, io.StringIO(), file, {"a": (n for n in "a")}])
    bad = [row.path for row in told.rows if row.travels == "cannot"]
    assert ["value[0]", "value[3]", "value[4]['a']"] == bad
    assert told.put_seconds is None


BESIDE: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "list": (lambda: [threading.Lock(), threading.Lock()], ["v[0]", "v[1]"]),
    "same": (lambda: [LOCK, 1, LOCK], ["v[0]", "v[2]"]),
    "long list": (
        lambda: [LOCK, *range(5000), threading.Lock(), threading.Lock()],
        ["v[0]", "v[5001]", "v[5002]"],
    ),
    "objects": (lambda: np.array([LOCK, 1, threading.Lock()], object), ["v[0]", "v[2]"]),
    "keys": (lambda: {LOCK: 1, threading.Lock(): 2}, ["v.keys()[0]", "v.keys()[1]"]),
    "many": (lambda: [threading.Lock() for _ in range(20)], [f"v[{k}]" for k in range(20)]),
    "slots": (lambda: [Slotted(), Slotted()], ["v[0].lock", "v[1].lock"]),
    "refuses": (
        lambda: [Owner(a=Refuses(ValueError()), b=Refuses(TypeError()))],
        ["v[0].a", "v[0].b"],
    ),
    "function": (lambda: [bind(LOCK, threading.Lock())], ["v[0]: captured a", "v[0]: captured b"]),
}


def bind(a: Any, b: Any) -> Any:
    return lambda: (a, b)


@pytest.mark.parametrize("name", BESIDE)
def test_parts_that_cannot_are_told_side_by_side(name: str) -> None:
    """All of them, of equal kinds too, and wherever they lie beside each other."""
    make, paths = BESIDE[name]
    rows = [row for row in explain(make(), "v").rows if row.travels == "cannot"]
    assert paths == [row.path for row in rows]
    assert all(row.why and row.advice for row in rows)


def test_error_of_a_bare_value_has_its_cure() -> None:
    """What cannot be shared comes with what to do, as in the table."""
    (row,) = [row for row in explain({"a": LOCK}, "value").rows if row.travels == "cannot"]
    assert "needs no lock" in row.advice
    with pytest.raises(UnshareableError) as caught:
        share({"a": LOCK})
    assert f"value['a'] is a _thread.lock: {row.advice}." in str(caught.value)
    task = parallel(shared=["model"])(lambda _, model: 0).with_options(backend="serial")
    with pytest.raises(UnshareableError) as caught:
        task.map([1], model={"a": LOCK})
    assert f"model['a'] is a _thread.lock: {row.advice}." in str(caught.value)


def test_register_is_named_where_it_is_the_cure() -> None:
    """A class that cannot be pickled, or packs itself in bytes, can be registered."""
    (row,) = explain([Refuses(ValueError("no"))]).rows[:1]
    assert row.advice.startswith("sharedtask.register(Refuses, ...)")
    (row, *_) = explain({"net": Packed()}).rows
    assert "value['net'].__getstate__()" == row.path
    assert "sharedtask.register(Packed, ...)" in row.advice


class Packed:
    """Keeps its numbers in a string of bytes."""

    def __getstate__(self) -> bytes:
        return bytes(3 << 20)

    def __setstate__(self, state: bytes) -> None:
        pass


def test_state_that_is_left_out_is_not_blamed() -> None:
    """A lock that ``__getstate__`` leaves out harms no one."""
    told = explain(Leaves(lock=LOCK, data=np.ones(1000)))
    assert "cannot" not in {row.travels for row in told.rows}


def test_captured_lock_is_named() -> None:
    """The error of a function says how it has what cannot be sent."""
    lock = threading.Lock()
    assert "f: captured lock is a _thread.lock" == culprit(lambda: lock, "f")
    assert "f: default key is a _thread.lock" == culprit(lambda key=lock: key, "f")
    assert "f: global LOCK is a _thread.lock" == culprit(lambda: LOCK, "f")
    assert "f.args[0]: captured lock is a _thread.lock" == culprit(
        functools.partial(max, lambda: lock), "f"
    )


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_culprit_lets_no_error_of_the_value_out(error: type[BaseException]) -> None:
    """Whatever pickling raises, the search for the culprit ends with a name."""
    assert f"v[0] is a {__name__}.Refuses" == culprit([Refuses(error())], "v")


def test_culprit_among_many_is_found_fast() -> None:
    """The last of 200,000 items does not cost a pickler for each before it."""
    before = time.monotonic()
    assert "v[200000] is a _thread.lock" == culprit([*range(200_000), LOCK], "v")
    assert 5 * slowness() > time.monotonic() - before


# ------------------------------------------------------------------------------- odd values


class Hostile:
    """Everything about it raises but what pickle needs."""

    touched: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        vars(self)["data"] = [1]

    def __repr__(self) -> str:
        self.touched.append("repr")
        raise ValueError

    def __len__(self) -> int:
        self.touched.append("len")
        raise ValueError

    def __eq__(self, other: object) -> bool:
        self.touched.append("eq")
        raise ValueError

    __hash__ = object.__hash__

    @property
    def nbytes(self) -> int:
        self.touched.append("nbytes")
        raise ValueError

    @property
    def shape(self) -> int:
        self.touched.append("shape")
        raise ValueError


class Refuses:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class Lying:
    @property  # type: ignore[misc]  # that it may not be one is the point
    def __class__(self) -> Any:
        raise RuntimeError

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def deep(levels: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return inner


ODD: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "empty": lambda: [{}, [], (), set(), "", np.zeros(0), np.zeros((0, 3), object)],
    "hostile": lambda: {Hostile(): Hostile()},
    "refuses": lambda: [Refuses(ValueError("no")), Refuses(SystemExit(1))],
    "lying": lambda: [Lying(), {"a": Lying()}],
    "deep": lambda: deep(100_000),
    "type": lambda: [int, Hostile, Any, sys, len, open],
    "numpy": lambda: [np.float64(1), np.random.default_rng(0), np.dtype("f8"), np.ma.masked],
    "views": lambda: [np.broadcast_to(np.ones(3), (10, 3)), np.ones(5)[::-1], np.array(1.0)],
    "text": lambda: ["\ud800" * 2000, "ü" * 5000, b"\0" * 5000, {"\ud800\n": np.ones(1000)}],
    "task": lambda: [parallel(lambda x: x), functools.partial(print, 1)],
    "structured": lambda: np.zeros(1000, [("a", "f8"), ("b", "i4")]),
    "queue": lambda: [collections.deque([1] * 5000), collections.Counter("abc"), range(10)],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_value_is_explained(name: str) -> None:
    """Whatever a value does when it is touched, there is an explanation, in lines that fit."""
    value = ODD[name]()
    told = explain(value)
    assert told.rows
    assert 100 >= max(map(len, str(told).splitlines()))
    str(told).encode()
    while name == "deep" and value:  # freed level by level: all at once is too deep for Python
        value = value.pop()


def test_nothing_but_what_pickle_takes_is_touched() -> None:
    """No repr, no length, no property of a user's object is asked."""
    Hostile.touched.clear()
    explain([Hostile(), {"a": Hostile()}, {Hostile()}])
    assert [] == Hostile.touched


def test_value_is_neither_changed_nor_kept() -> None:
    """Afterwards the value is as it was, and goes with its last user."""
    layer = Layer(10_000)
    layer.weight.flags.writeable = False
    told = explain([layer])
    assert {"weight", "name"} == set(vars(layer))
    assert (10_000, False) == (layer.weight.sum(), layer.weight.flags.writeable)
    gone = weakref.ref(layer)
    del layer
    gc.collect()
    assert gone() is None
    assert told.rows


@pytest.mark.parametrize(
    "make",
    [
        lambda: {f"key {n}": f"text {n}" for n in range(1_000_000)},
        lambda: [[[n] * 3 for n in range(1000)] for _ in range(1000)],
        pytest.param(lambda: [Layer(1) for _ in range(100_000)], marks=pytest.mark.long),
        pytest.param(lambda: np.ones((8000, 8000))[:, ::4], marks=pytest.mark.long),
    ],
    ids=["dict", "nested", "objects", "strided"],
)
def test_large_values_are_told_from_a_sample(make: Any) -> None:
    """However large a value is, its explanation takes seconds and comes near the truth."""
    value = make()
    before = time.monotonic()
    told = explain(value)
    assert 20 * slowness() > time.monotonic() - before
    payload = codec.encode_shared(value)
    totals = told.totals
    assert payload.nbytes == pytest.approx(totals.zero_copy + totals.once_per_worker, rel=0.5)


SAME = np.ones(100_000)
LOCKED = threading.Lock()  # beside it nothing is encoded as a whole, so that sizes are estimates


def texts_of_two_lengths() -> Any:
    """Every tenth is long: a sample of every hundredth would see the long ones alone."""
    return ["x" * 2000 + str(n) if n % 10 == 0 else f"y{n}" for n in range(100_000)]


SAMPLED: dict[str, Callable[[], Any]] = {
    "periodic": texts_of_two_lengths,
    "periodic dict": lambda: dict(enumerate(texts_of_two_lengths())),
    "periodic objects": lambda: np.array(texts_of_two_lengths(), object),
    "same dict again": lambda: [{"a": 1, "b": "some text" * 10}] * 100_000,
    "same array again": lambda: [Owner(a=SAME) for _ in range(10_000)],
    "few texts again": lambda: [("red", "green", "blue")[n % 3] * 30 for n in range(100_000)],
    "interned": lambda: [sys.intern(f"a text of some length {n % 7}") for n in range(100_000)],
    "set": lambda: {f"text {n}" * 10 for n in range(20_000)},
    "deque": lambda: collections.deque({"n": n} for n in range(20_000)),
    "tuples": lambda: [(n, str(n), float(n)) for n in range(50_000)],
    "small arrays": lambda: {n: np.ones(n % 50) for n in range(20_000)},
    "numbers": lambda: list(range(1_000_000)),
    "growing": lambda: ["x" * (n // 100) for n in range(20_000)],
}


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_size_is_near_the_truth(name: str) -> None:
    """Of large containers a sample tells the size within a factor of 1.5."""
    value = SAMPLED[name]()
    told = explain([value, LOCKED]).totals
    said = told.zero_copy + told.once_per_worker
    true = codec.encode([value]).nbytes
    assert true / 1.5 <= said <= true * 1.5


# ------------------------------------------------------------------------------- a task


TABLE = np.ones(50_000)


def make_task() -> Any:
    words = {str(n): n for n in range(20_000)}

    @parallel
    def score(
        row: int,
        table: Shared[np.ndarray],
        scratch: CopyOnWrite[Any] = None,
        out: Partitioned[Any] = None,
        total: Reduced[Any] = None,
        extra: Any = None,
        scale: float = 1.0,
    ) -> Any:
        return table[row] * len(words) * TABLE[row]

    return score


def test_task_tells_roles_and_captured() -> None:
    """Each argument stands under its role; what the function brings along has its section."""
    told = make_task().explain(
        table=np.ones(100_000),
        scratch={"a": np.ones(100_000), "b": [str(n) for n in range(100_000)]},
        out=np.ones(100_000),
        total=np.ones(100_000),
        extra=np.ones(100_000),
        scale=2.0,
    )
    transfers = {(row.section, row.path): row.travels for row in told.rows}
    captured = "captured by the function"
    assert {
        ("Shared", "table"): "zero-copy",
        ("CopyOnWrite", "scratch['a']"): "zero-copy",
        ("CopyOnWrite", "scratch['b']"): "copied",
        ("Partitioned", "out"): "copied",
        ("Reduced", "total"): "copied",
        ("not marked", "extra"): "copied",
        ("not marked", "scale"): "copied",
        (captured, "words"): "once per worker",
        (captured, "TABLE"): "zero-copy",
    } == transfers
    advice = {row.path: row.advice for row in told.rows}
    assert "mark it: extra: Shared[...]" == advice["extra"]
    assert "sharedtask.zeros" in advice["out"]
    assert "marked Shared" in advice["TABLE"]
    assert "" == advice["scale"] == advice["table"]
    assert 100 >= max(map(len, str(told).splitlines()))


def test_partitioned_array_in_shared_memory_is_in_place() -> None:
    """An array that was born shared is written where it lies."""
    told = make_task().explain(out=sharedtask.zeros(100_000))
    assert ("in place", "") == (told.rows[0].travels, told.rows[0].advice)


def test_bound_task_tells_self() -> None:
    """The object of a method is an argument like the others."""

    class Bound:
        def __init__(self) -> None:
            self.table = np.ones(100_000)

        @parallel
        def look(self, row: int) -> float:
            return float(self.table[row])

    told = Bound().look.explain()
    assert ("self.table", "copied") == (told.rows[0].path, told.rows[0].travels)


def test_same_array_in_two_unmarked_arguments_travels_once() -> None:
    """Arguments that are not marked are encoded together."""
    task, table = parallel(lambda row, a, b: row), np.ones(100_000)
    told = task.explain(a=table, b={"t": table})
    assert "the same as a" == by_path(told)["b['t']"].kind
    assert 900_000 > told.totals.copied


def test_large_unmarked_array_is_stored_by_itself() -> None:
    """Arrays of 1 MiB or more are not copied though nothing is marked, unless an option says so."""
    task, table = parallel(lambda row, extra: row), np.ones(1 << 17)
    told = task.explain(extra={"t": table})
    assert ("zero-copy", "") == (told.rows[0].travels, told.rows[0].advice)
    assert table.nbytes == told.totals.zero_copy
    told = task.with_options(captured="copy").explain(extra={"t": table})
    assert "copied" == told.rows[0].travels
    assert table.nbytes < told.totals.copied


def test_unknown_argument_is_refused() -> None:
    """A misspelt name is an error, as in a call."""
    with pytest.raises(ArgumentError, match="Did you mean 'table'"):
        make_task().explain(tabel=1)


def test_explaining_publishes_nothing(no_leaks: None) -> None:
    """No shared memory is left, and the task has shared nothing."""
    task = make_task()
    task.explain(table=np.ones(5_000_000))
    assert 0 == task.cache_info().misses


# ------------------------------------------------------------------------------- how it is shown


def test_text_is_a_table() -> None:
    """Printed, it is plain text: a heading, a line for each row, the totals."""
    text = str(explain({"weights": np.ones((1000, 512), "f4"), "lock": LOCK}, "model"))
    lines = text.splitlines()
    assert ["PATH", "KIND", "BYTES", "TRAVELS"] == lines[1].split()
    assert "model['weights']  float32 array (1000, 512)  2.0 MB  zero-copy" == lines[2]
    assert "needs no lock" in text
    assert "\x1b" not in text


def test_notebook_gets_a_table_without_markup_of_the_user() -> None:
    """In a notebook it is HTML, in which names stand as they are."""
    page = explain({"<b>": np.ones(1000)})._repr_html_()
    assert page.startswith("<table>")
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_show_is_plain_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """Into a pipe ``show()`` writes what ``print`` does."""
    told = explain([1])
    told.show()
    assert f"{told}\n" == capsys.readouterr().out


def test_show_uses_rich_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal with rich installed the same table is drawn by it."""
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    explain({"table": np.ones(1000), "lock": LOCK}, "cfg").show()
    shown = capsys.readouterr().out
    assert "cfg['table']" in shown
    assert "cannot" in shown


def test_notes_say_what_is_exact() -> None:
    """An estimate is not called exact."""
    large = {n: str(n) for n in range(10_000)}
    assert "Totals are exact. Large" in str(explain([large, 1]))
    assert "sample" not in str(explain(large))
    assert "Bytes are estimates: large" in str(explain([large, LOCK]))
    assert "Bytes are estimates: the whole" in str(explain([1, LOCK]))


def test_times_say_how_they_were_found() -> None:
    """Times come with whether they were measured."""
    small, large = explain(np.ones(1000)), explain(np.ones(4_000_000))
    assert "a usual figure; decoding tried here once" in small.notes[-1]
    assert "measured now" in large.notes[-1]
    assert 0 < (large.put_seconds or 0)
    assert 0 < (large.attach_seconds or 0)


def test_nothing_is_imported_to_explain() -> None:
    """Neither rich nor any library of data is loaded."""
    code = (
        "import sharedtask, sys, numpy\n"
        "told = sharedtask.explain([numpy.ones(1000)])\n"
        "str(told), told.show()\n"
        "loaded = {'rich', 'pandas', 'pyarrow', 'polars', 'torch', 'ray'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)


def test_explanation_is_frozen_and_pickles() -> None:
    """An explanation is a value like any other."""
    told = explain([np.ones(1000)])
    again = codec.decode(codec.encode_inband(told))
    assert told == again
    with pytest.raises(AttributeError):
        told.title = ""  # type: ignore[misc]


@dataclass
class Point:
    x: np.ndarray[Any, Any]


def test_frame_is_told_by_columns() -> None:
    """Of a DataFrame the columns have rows, numbers and texts apart."""
    pandas = pytest.importorskip("pandas")
    texts = np.array([f"text {n}" for n in range(10_000)], object)
    frame = pandas.DataFrame({"a": np.ones(10_000)})
    frame["b"] = pandas.Series(texts, dtype=object)
    rows = by_path(explain(Point(frame), "p"))
    assert "zero-copy" == rows["p.x['a']"].travels
    assert 80_000 == pytest.approx(rows["p.x['a']"].nbytes, rel=0.01)
    whole = codec.encode(frame["b"]).nbytes
    assert whole == pytest.approx(rows["p.x['b']"].nbytes, rel=0.2)


def test_column_is_weighed_without_its_index() -> None:
    """A MultiIndex is one row, and no part of each column of objects."""
    pandas = pytest.importorskip("pandas")
    index = pandas.MultiIndex.from_product([range(100), [f"name {k}" for k in range(100)]])
    texts = np.array([f"text {n}" for n in range(10_000)], object)
    frame = pandas.DataFrame({"a": pandas.Series(texts, dtype=object)})
    bare = by_path(explain([frame, LOCK], "v"))["v[0]['a']"].nbytes
    frame.index = index
    rows = by_path(explain([frame, LOCK], "v"))
    assert bare == pytest.approx(rows["v[0]['a']"].nbytes, rel=0.02)
    assert codec.encode(texts).nbytes == pytest.approx(bare, rel=0.2)
    assert "v[0].index" in rows


def test_subclass_of_a_frame_is_told_by_columns() -> None:
    """A class derived from DataFrame shows its columns too."""
    pandas = pytest.importorskip("pandas")
    cls: Any = type("Table", (pandas.DataFrame,), {"_constructor": property(lambda _: cls)})
    rows = by_path(explain(cls({"a": np.ones(10_000), "b": np.ones(10_000)}), "v"))
    assert {"v['a']", "v['b']"} <= rows.keys()


@pytest.mark.parametrize("package", ["sklearn.neighbors", "scipy.spatial"])
def test_tree_is_weighed_by_what_it_costs(package: str) -> None:
    """Of a k-d tree the nodes count as well as the points, each in its row."""
    tree = pytest.importorskip(package).KDTree(np.random.default_rng(0).random((50_000, 3)), 2)
    told = explain([tree, LOCK])
    payload = codec.encode([tree])
    outside = sum(buffer.nbytes for buffer in payload.buffers)
    assert outside == pytest.approx(told.totals.zero_copy, rel=0.05)
    whole = told.totals.zero_copy + told.totals.once_per_worker
    assert sum(row.nbytes for row in told.rows) == pytest.approx(whole, rel=0.05)


def test_advice_fits_the_task() -> None:
    """A lambda has no annotations, and what is in ``**kwargs`` no parameter of its own."""
    table = np.ones(100_000)
    told = parallel(lambda row, table: row).explain(table=table)
    assert "mark it: @parallel(shared=['table'])" == told.rows[0].advice

    @parallel
    def loose(row: int, **rest: Any) -> int:
        return row

    told = loose.explain(table=table)
    assert "give it a parameter of its own, table: Shared[...]" == told.rows[0].advice


def test_bound_object_has_advice_that_can_be_followed() -> None:
    """``self`` is marked by its name."""

    class Bound:
        def __init__(self) -> None:
            self.table = np.ones(100_000)

        @parallel
        def look(self, row: int) -> float:
            return float(self.table[row])

    told = Bound().look.explain()
    assert "mark it: @parallel(shared=['self'])" == told.rows[0].advice


def test_no_advice_on_the_inside_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another class keeps in its state the user cannot make into an array."""
    (row, *_) = explain({"it": Listed()}).rows
    assert "np.array" not in row.advice
    assert "sharedtask.register(Listed, ...)" in row.advice


class Listed:
    def __getstate__(self) -> Any:
        return [float(n) for n in range(300_000)]

    def __setstate__(self, state: Any) -> None:
        pass


def test_arrow_is_advised_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not, there is other advice."""
    monkeypatch.setattr(advice, "find_spec", lambda _: None)
    (row,) = explain([f"text {n}" for n in range(300_000)]).rows
    assert "arrow" not in row.advice
    assert "share(...)" in row.advice


def test_repr_is_the_table() -> None:
    """At a prompt the explanation is shown as ``print`` shows it."""
    told = explain([np.ones(1000)])
    assert str(told) == repr(told)


def test_gathering_is_told_where_it_is_done() -> None:
    """A view with more gaps than elements is stored without them; one with fewer is not."""
    base = np.zeros((4000, 400))
    for view, is_gathered in [(base[:, ::2], False), (base[:, :300], False), (base[:, ::4], True)]:
        (row,) = sharedtask.explain(view).rows
        assert is_gathered == ("gathered" in (row.why or ""))


def test_explaining_a_large_view_gathers_nothing() -> None:
    """Its bytes are told from its shape, and how long to gather them will take."""
    view = np.zeros(4 * 70 << 17)[::4]
    tracemalloc.start()
    try:
        told = sharedtask.explain(view)
        assert tracemalloc.get_traced_memory()[1] < view.nbytes // 2
    finally:
        tracemalloc.stop()
    assert view.nbytes == told.totals.zero_copy
