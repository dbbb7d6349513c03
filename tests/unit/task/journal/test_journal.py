import asyncio
import contextlib
import functools
import gc
import importlib
import importlib.util
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from budget import with_long

import sharedtask
from sharedtask import (
    CopyOnWrite,
    JournalError,
    JournalWarning,
    Locked,
    OptionsError,
    Partitioned,
    Reduced,
    Rng,
    SerializationError,
    Shared,
    parallel,
    share,
    zeros,
)
from sharedtask.backends import fingerprints
from sharedtask.serialization import hashing
from sharedtask.task.journal import database, recovery
from sharedtask.task.journal.lock import Lock
from sharedtask.testing import Belongings, assert_nothing_left, assert_same, until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Where the journal is to be."""
    return str(tmp_path / "run.sqlite")


@pytest.fixture
def log(tmp_path: Path) -> Any:
    """The items whose bodies were entered since it was last asked; tasks write to ``log.path``."""
    path = tmp_path / "log"

    def entered() -> list[int]:
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return sorted(map(int, text.split()))

    entered.path = str(path)  # type: ignore[attr-defined]
    return entered


def enter(log: str, item: object) -> None:
    fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{item}\n".encode())
    os.close(fd)


@parallel
def logged(x: int, log: str, factor: int = 1) -> int:
    enter(log, x)
    return x * factor


@parallel
def fails_at(x: int, log: str, marker: str) -> int:
    enter(log, x)
    if x == 30 and os.path.exists(marker):
        raise ValueError(x)
    return x * x


@parallel
def weighed(x: int, table: Shared[Any], log: str) -> float:
    enter(log, x)
    return float(table["rows"][x % 3].sum())


def recorded(file: str) -> list[tuple[str, int]]:
    return [(told.row.task, told.recorded) for told in database.reading(file)]


# ------------------------------------------------------------------------------------- resume


def test_second_call_runs_nothing(backend: Any, file: str, log: Any) -> None:
    """The same call again returns the recorded results and runs no item."""
    task = logged.with_options(backend=backend, journal=file)
    assert list(range(50)) == task.map(range(50), log=log.path)
    assert list(range(50)) == log()
    assert list(range(50)) == task.map(range(50), log=log.path)
    assert [] == log()
    assert [("logged", 50)] == recorded(file)


def test_after_an_exception_only_the_rest_runs(
    backend: Any, file: str, log: Any, tmp_path: Path
) -> None:
    """What was finished before an error is recorded; the item that failed runs again."""
    marker = tmp_path / "bad"
    marker.touch()
    task = fails_at.with_options(backend=backend, journal=file, chunksize=4)
    with pytest.raises(ValueError, match="30") as caught:
        task.map(range(40), log=log.path, marker=str(marker))
    assert ["in fails_at(), item 30"] == caught.value.__notes__
    first = log()
    marker.unlink()
    there = recorded(file)[0][1]
    assert there >= 28
    assert [x * x for x in range(40)] == task.map(range(40), log=log.path, marker=str(marker))
    # A chunk of the first call that was on its way may end only now: its items enter twice.
    assert 40 - there == len(set(log()))
    assert 30 in first


def test_a_backend_resumes_what_another_recorded(backend: Any, file: str, log: Any) -> None:
    """The key does not depend on where tasks run."""
    table = {"rows": np.arange(6.0).reshape(3, 2)}
    serial = weighed.with_options(backend="serial", journal=file)
    expected = serial.map(range(10), table=table, log=log.path)
    log()
    task = weighed.with_options(backend=backend, journal=file)
    assert expected == task.map(range(10), table=table, log=log.path)
    assert [] == log()


def test_longer_list_runs_what_is_new(backend: Any, file: str, log: Any) -> None:
    """Items behind those that are recorded run, with their own indices."""
    task = logged.with_options(backend=backend, journal=file)
    task.map(range(10), log=log.path)
    log()
    assert list(range(25)) == task.map(range(25), log=log.path)
    assert list(range(10, 25)) == log()


def test_strict_tasks(backend: Any, file: str, log: Any) -> None:
    """strict=True and a journal go together: results are recorded, and found again without it."""
    task = weighed.with_options(backend=backend, journal=file, strict=True)
    table = {"rows": np.arange(6.0).reshape(3, 2)}
    expected = [1.0, 5.0, 9.0, 1.0]
    assert expected == task.map(range(4), table=table, log=log.path)
    log()
    assert expected == task.with_options(strict=False).map(range(4), table=table, log=log.path)
    assert [] == log()


def test_results_between_gaps_keep_their_places(backend: Any, file: str, log: Any) -> None:
    """Any pattern of recorded and missing items gives the results of the items, in order."""
    task = logged.with_options(backend=backend, journal=file)
    task.map(range(60), log=log.path)
    log()
    chosen = random.Random(7).sample(range(60), 25)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.executemany("DELETE FROM results WHERE place = ?", [(k,) for k in chosen])
    assert list(range(60)) == task.map(range(60), log=log.path)
    assert sorted(chosen) == log()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.executemany("DELETE FROM results WHERE place = ?", [(k,) for k in chosen])
    assert list(range(60)) == sorted(task.imap_unordered(range(60), log=log.path))
    assert sorted(chosen) == log()


@parallel
def raises(x: int, log: str) -> Any:
    enter(log, x)
    if x % 3 == 0:
        raise ValueError(x)
    return x


def test_exceptions_are_not_recorded(backend: Any, file: str, log: Any) -> None:
    """With return_exceptions the items that failed run again at the next call, and no others."""
    task = raises.with_options(backend=backend, journal=file, return_exceptions=True)
    for expected in (list(range(9)), [0, 3, 6]):
        results = task.map(range(9), log=log.path)
        assert [1, 2, 4, 5, 7, 8] == [r for r in results if isinstance(r, int)]
        assert [0, 3, 6] == [r.args[0] for r in results if isinstance(r, ValueError)]
        assert [f"in raises(), item {k}" for k in (0, 3, 6)] == [
            r.__notes__[0] for r in results if isinstance(r, ValueError)
        ]
        assert expected == log()
    assert "unfinished" == state(file)


@parallel(retries=1)
def second_time(x: int, log: str) -> int:
    enter(log, x)
    with open(log, encoding="utf-8") as file:
        if file.read().split().count(str(x)) == 1:
            raise ValueError(x)
    return x


def test_a_retry_that_succeeds_is_recorded(backend: Any, file: str, log: Any) -> None:
    """What an item returned at its second try counts as its result."""
    task = second_time.with_options(backend=backend, journal=file)
    assert list(range(5)) == task.map(range(5), log=log.path)
    assert sorted([*range(5), *range(5)]) == log()
    assert list(range(5)) == task.map(range(5), log=log.path)
    assert [] == log()


@parallel
def power(base: int, exponent: int, log: str) -> Any:
    enter(log, base)
    return base**exponent


def test_starmap(backend: Any, file: str, log: Any) -> None:
    """A starmap is recorded under its tuples."""
    task = power.with_options(backend=backend, journal=file)
    pairs = [(2, 3), (3, 2), (4, 1)]
    assert [8, 9, 4] == task.starmap(pairs, log=log.path)
    log()
    assert [8, 9, 4, 5] == task.starmap([*pairs, (5, 1)], log=log.path)
    assert [5] == log()


def test_endless_items(backend: Any, file: str, log: Any) -> None:
    """A stream over endless items goes on where it was left, and takes items only as needed."""
    task = logged.with_options(backend=backend, journal=file, buffersize=8)
    with contextlib.closing(task.imap(itertools.count(), log=log.path)) as stream:
        assert list(range(20)) == list(itertools.islice(stream, 20))
    once = log()
    assert 0 <= len(once) - 20 <= 8
    numbers = itertools.count()
    with contextlib.closing(task.imap(numbers, log=log.path)) as stream:
        assert list(range(30)) == list(itertools.islice(stream, 30))
    assert next(numbers) <= 39
    assert not set(range(20)) & set(log())
    assert [("logged", True)] == [(task, n >= 30) for task, n in recorded(file)]


def test_amap_and_aimap(backend: Any, file: str, log: Any) -> None:
    """Coroutines record and resume."""
    task = logged.with_options(backend=backend, journal=file)

    async def both() -> list[int]:
        await task.amap(range(5), log=log.path)
        return [x async for x in task.aimap(range(8), log=log.path)]

    assert list(range(8)) == asyncio.run(both())
    assert list(range(8)) == log()


def test_no_items(file: str, log: Any) -> None:
    """A map over nothing is a finished run of nothing."""
    assert [] == logged.with_options(backend="serial", journal=file).map([], log=log.path)
    assert [("logged", 0)] == recorded(file)
    assert "finished" == state(file)


def state(file: str) -> str:
    (told,) = database.reading(file)
    return "finished" if told.row.finished else "unfinished"


# --------------------------------------------------------------------------------- the results


@parallel
def result_of(name: str) -> Any:
    return make(name)


def make(name: str) -> Any:
    return {
        "none": None,
        "large int": 1 << 100,
        "nan": float("nan"),
        "text": "\ud800",
        "array": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.ones((3, 4))),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "float32": np.float32(0.1),
        "time": np.datetime64("2020-01-01"),
        "nested": {"a": [np.ones(3), (1, {2, 3})]},
        "large": np.ones(1 << 18),
        "exception": ValueError("returned, not raised"),
        "class": Path,
        "bytes": bytes(100_000),
    }[name]


RESULTS = (
    "none", "large int", "nan", "text", "array", "fortran", "objects", "float32", "time", "nested",
    "large", "class", "bytes",
)  # fmt: skip


def test_results_of_every_kind(backend: Any, file: str) -> None:
    """A recorded result is equal to the one that was returned, arrays are writable."""
    task = result_of.with_options(backend=backend, journal=file)
    first = task.map(RESULTS)
    again = task.map(RESULTS)
    for one, other, name in zip(first, again, RESULTS, strict=True):
        assert_same(one, other)
        assert_same(make(name), other)
    again[RESULTS.index("array")][0, 0] = 7


def test_returned_exception_is_a_result(backend: Any, file: str) -> None:
    """An exception that a task returns is recorded like any other result."""
    task = result_of.with_options(backend=backend, journal=file)
    for _ in range(2):
        (result,) = task.map(["exception"])
        assert (ValueError, ("returned, not raised",)) == (type(result), result.args)


@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")
def test_data_frames(file: str) -> None:
    """A DataFrame is recorded."""
    import pandas as pd

    task = parallel(lambda x: pd.DataFrame({"a": [x, x + 1], "b": ["u", "v"]}))
    task = task.with_options(backend="process", journal=file)
    first, again = task.map(range(2)), task.map(range(2))
    assert all(one.equals(other) for one, other in zip(first, again, strict=True))


OWN_CLASSES = """
import dataclasses, enum, sys
from sharedtask import parallel

@dataclasses.dataclass
class Point:
    x: int
    class Inner(enum.Enum):
        A = 1

@parallel(journal=sys.argv[1], backend=sys.argv[2])
def f(x: int) -> object:
    return Point(x), Point.Inner.A, Point
for point, inner, cls in f.map(range(3)):
    assert type(point) is Point and inner is Point.Inner.A and cls is Point
print(f.map(range(3))[2][0])
"""


def test_results_of_the_scripts_own_classes(backend: Any, run: Any, file: str) -> None:
    """An instance of a class of ``__main__`` comes back as one of the class of the later run."""
    if backend == "ray":
        pytest.skip("the same as a process, and starts a Ray of its own")
    for _ in range(2):
        assert "Point(x=2)\n" == run(OWN_CLASSES, file, backend)
    assert [3] == [n for _, n in recorded(file)]


def test_result_that_cannot_be_pickled(backend: Any, file: str) -> None:
    """Such a result is a SerializationError of its item on every backend; the others are kept."""
    task = parallel(lambda x: threading.Lock() if x == 2 else x)
    task = task.with_options(backend=backend, journal=file, return_exceptions=True)
    results = task.map(range(4))
    assert [0, 1, 3] == [r for r in results if isinstance(r, int)]
    assert isinstance(results[2], SerializationError)
    assert "the result of item 2 cannot be pickled" in str(results[2])
    assert [3] == [n for _, n in recorded(file)]


def test_item_that_cannot_be_pickled(backend: Any, file: str) -> None:
    """Such an item is a SerializationError that names it, on every backend."""
    task = parallel(lambda x: 1).with_options(backend=backend, journal=file, return_exceptions=True)
    results: list[Any] = task.map([0, threading.Lock(), 2])
    assert [1, 1] == [results[0], results[2]]
    assert isinstance(results[1], SerializationError)
    assert "item 1 cannot be pickled" in str(results[1])
    assert "item 1" in results[1].__notes__[0]


def test_argument_that_cannot_be_pickled(file: str) -> None:
    """Such an argument is refused by name, before anything runs."""
    task = parallel(lambda x, lock: x).with_options(backend="thread", journal=file)
    with pytest.raises(SerializationError, match="the argument 'lock' cannot be recorded"):
        task.map(range(3), lock=threading.Lock())


# ------------------------------------------------------------------------------------- the key


def define(body: str, **names: Any) -> Callable[..., Any]:
    """The function ``f`` of a piece of source code, which is in no file."""
    space: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(textwrap.dedent(body), f"<{random.random()}>", "exec"), space)
    function: Callable[..., Any] = space["f"]
    return function


BASE = "def f(x):\n    return x"
CHANGES = {
    "the code of f()": ("def f(x):\n    return x + 1", BASE),
    "a default of f()": ("def f(x, y=1):\n    return x * y", "def f(x, y=2):\n    return x * y"),
    "the code of g()": (
        "def g(x): return x\ndef f(x): return g(x)",
        "def g(x): return -x\ndef f(x): return g(x)",
    ),
    "the code of C()": (
        "class C:\n  def g(self, x): return x\ndef f(x): return C().g(x)",
        "class C:\n  def g(self, x): return 2 * x\ndef f(x): return C().g(x)",
    ),
    "the global 'A'": ("A = 1\ndef f(x): return x + A", "A = 2\ndef f(x): return x + A"),
    "the global 'D'": (
        "D = {'a': [1]}\ndef f(x): return x + D['a'][0]",
        "D = {'a': [2]}\ndef f(x): return x + D['a'][0]",
    ),
    "'k', which f() captures": (
        "def outer(k):\n  def f(x): return x + k\n  return f\nf = outer(1)",
        "def outer(k):\n  def f(x): return x + k\n  return f\nf = outer(2)",
    ),
    "the module 'm'": (
        "import math as m\ndef f(x): return m.e",
        "import cmath as m\ndef f(x): return m.e",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_function_is_another_run(what: str, file: str) -> None:
    """A change of the function is said in a warning; old results are neither used nor lost."""
    old, new = (parallel(define(source)) for source in CHANGES[what])
    expected = [old(x) for x in range(3)]
    old, new = (task.with_options(backend="serial", journal=file) for task in (old, new))
    old.map(range(3))
    with pytest.warns(JournalWarning) as caught:
        assert [new(x) for x in range(3)] == new.map(range(3))
    assert 1 == len(caught)
    text = str(caught[0].message)
    assert what in text
    assert "3 recorded results are not used" in text
    assert __file__ == caught[0].filename
    assert new.map(range(3)) == [new(x) for x in range(3)]
    assert expected == old.map(range(3))
    assert [3, 3] == [n for _, n in recorded(file)]


SAME = {
    "lines": "\n\n\n# a comment\ndef f(x):\n\n    return x",
    "documentation": 'def f(x):\n    "It says something."\n    return x',
    "annotations": "def f(x: int) -> int:\n    return x",
    "another file": BASE,
}


@pytest.mark.parametrize("how", SAME)
def test_what_is_no_change(how: str, file: str) -> None:
    """Lines, comments, annotations and the file's name do not decide about results."""
    first, other = BASE, SAME[how]
    if how == "documentation":
        first = first.replace("return", '"It says nothing."\n    return')
    for source in (first, other):
        parallel(define(source)).with_options(backend="serial", journal=file).map(range(3))
    assert [3] == [n for _, n in recorded(file)]


def test_changed_values_and_arguments(backend: Any, file: str, log: Any) -> None:
    """A changed shared value or argument is another run, and the warning names it."""
    task = weighed.with_options(backend=backend, journal=file)
    table = {"rows": np.ones((3, 2))}
    assert [2.0] * 4 == task.map(range(4), table=table, log=log.path)
    table["rows"][1, 1] = 5.0
    with pytest.warns(JournalWarning, match=r"weighed\(\): the value of 'table' differs from"):
        assert [2.0, 6.0, 2.0, 2.0] == task.map(range(4), table=table, log=log.path)
    table["rows"][1, 1] = 1.0
    assert [2.0] * 4 == task.map(range(4), table=table, log=log.path)
    other = f"{log.path}2"
    with pytest.warns(JournalWarning, match="the argument 'log' differs from"):
        task.map(range(4), table=table, log=other)
    assert 8 == len(log())
    assert [4, 4, 4] == [n for _, n in recorded(file)]


def test_changed_items_run(backend: Any, file: str, log: Any) -> None:
    """An item that is another one than was recorded at its place runs, and no others."""
    task = logged.with_options(backend=backend, journal=file)
    task.map([0, 1, 2, 3], log=log.path)
    log()
    assert [0, 10, 2, 3] == task.map([0, 10, 2, 3], log=log.path)
    assert [10] == log()
    assert [1, 0, 2, 3] == task.map([1, 0, 2, 3], log=log.path)
    assert [0, 1] == log()
    assert [0, 1, 2, 3] == task.map([0, 1, 2, 3], log=log.path)
    assert [] == log()


def test_equal_numbers_of_other_types_are_other_items(file: str, log: Any) -> None:
    """1, 1.0 and True are three items: a task can tell them apart."""
    task = parallel(lambda x: type(x).__name__).with_options(backend="serial", journal=file)
    for item in (1, 1.0, True, np.int64(1)):
        assert [type(item).__name__] == task.map([item])


def test_array_items(backend: Any, file: str) -> None:
    """Arrays as items are told apart by their contents."""
    task = parallel(lambda row: float(row.sum())).with_options(backend=backend, journal=file)
    rows = np.arange(12.0).reshape(4, 3)
    expected = rows.sum(axis=1).tolist()
    assert expected == task.map(rows)
    assert expected == task.map(list(rows.copy()))
    rows[2] = 0
    assert [3.0, 12.0, 0.0, 30.0] == task.map(rows)
    assert [4] == [n for _, n in recorded(file)]


class Scaler:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @parallel
    def scale(self, x: int) -> int:
        return x * self.factor

    @parallel(shared=["self"])
    def scale_shared(self, x: int) -> int:
        return x * self.factor


@pytest.mark.parametrize("name", ["scale", "scale_shared"])
def test_methods(name: str, backend: Any, file: str) -> None:
    """What a method's object contains is a part of the key, shared or not."""
    for factor in (2, 3):
        task = getattr(Scaler(factor), name).with_options(backend=backend, journal=file)
        told = pytest.warns(JournalWarning, match="the value of 'self'")
        with told if factor == 3 else contextlib.nullcontext():
            assert [0, factor] == task.map(range(2))
        assert [0, factor] == task.map(range(2))
    assert [2, 2] == [n for _, n in recorded(file)]


def test_warning_can_be_an_error(file: str) -> None:
    """Where the warning is an error nothing runs, at every try."""
    parallel(lambda x: x).with_options(backend="serial", journal=file).map([1])
    other = parallel(lambda x: -x).with_options(backend="serial", journal=file)
    for _ in range(2):
        with pytest.raises(JournalWarning):
            other.map([1])
    assert [1] == [n for _, n in recorded(file)]


def test_a_value_is_digested_once(
    file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Calls that find a value published find its digest there; a changed one is digested again."""
    seen = mock.Mock(wraps=hashing.fingerprint)
    monkeypatch.setattr(hashing, "fingerprint", seen)
    task = parallel(shared=["t"])(lambda x, t: float(t[x]))
    task = task.with_options(backend="process", journal=file)
    table = np.ones(200_000)
    for _ in range(3):
        task.map(range(3), t=table)
    assert 1 == seen.call_count
    table[0] = 2
    with pytest.warns(JournalWarning):
        assert [2.0, 1.0, 1.0] == task.map(range(3), t=table)
    assert 2 == seen.call_count


def test_written_arrays_are_digested_each_time(backend: Any, file: str) -> None:
    """An array that was born in shared memory is never stale: writes to it make another run."""
    task = parallel(shared=["t"])(lambda x, t: float(t[x])).with_options(
        backend=backend, journal=file
    )
    table = zeros(1000)
    assert [0.0, 0.0] == task.map(range(2), t=table)
    table[1] = 4
    with pytest.warns(JournalWarning):
        assert [0.0, 4.0] == task.map(range(2), t=table)


def test_handles_have_the_digest_of_their_value(backend: Any, file: str, log: Any) -> None:
    """A handle refers to its value in the key as well."""
    table = {"rows": np.ones((3, 2))}
    task = weighed.with_options(backend=backend, journal=file)
    task.map(range(4), table=table, log=log.path)
    log()
    with share(table) as handle:
        assert [2.0] * 4 == task.map(range(4), table=handle, log=log.path)
    assert [] == log()


def test_captured_arrays_are_digested_once(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large array in the closure has a publication of its own, and its digest there."""
    big = np.ones(1 << 18)
    task = parallel(lambda x: float(big[x])).with_options(backend="process", journal=file)
    asked: list[bytes | None] = []
    original = fingerprints.of_captured

    def noted(leases: Any, array: Any) -> bytes | None:
        asked.append(original(leases, array))
        return asked[-1]

    monkeypatch.setattr(fingerprints, "of_captured", noted)
    task.map(range(2))
    assert any(asked)
    big[1] = 3
    with pytest.warns(JournalWarning, match="'big', which <lambda>"):
        assert [1.0, 3.0] == task.map(range(2))


def test_captured_arrays_are_the_same_on_all_backends(backend: Any, file: str) -> None:
    """Whether a captured array is published, or only read, its digest is one."""
    big = np.ones(1 << 18)
    parallel(lambda x: float(big[x])).with_options(backend="serial", journal=file).map(range(2))
    ((_, before),) = recorded(file)
    big = big.copy()
    task = parallel(lambda x: float(big[x])).with_options(backend=backend, journal=file)
    assert [1.0, 1.0, 1.0] == task.map(range(3))
    assert (2, [("<lambda>", 3)]) == (before, recorded(file))


def test_copy_on_write_is_recorded(backend: Any, file: str) -> None:
    """What a task writes into its private copy is its own; its result is recorded."""

    def add(x: int, data: CopyOnWrite[np.ndarray]) -> float:
        data += x
        return float(data.sum())

    task = parallel(add).with_options(backend=backend, journal=file)
    data = np.zeros(4)
    assert [0.0, 4.0, 8.0] == task.map(range(3), data=data)
    assert [0.0, 4.0, 8.0] == task.map(range(3), data=data)
    assert [3] == [n for _, n in recorded(file)]


# ---------------------------------------------------------------------------- what is refused


def test_written_arrays_are_refused(file: str) -> None:
    """What tasks write into arrays is not in the results, so a journal is refused by name."""

    def into(x: int, out: Any) -> None: ...

    array = np.zeros(4)
    for annotation in (Partitioned[np.ndarray], Reduced[np.ndarray], Locked[np.ndarray]):
        into.__annotations__["out"] = annotation
        task = parallel(into).with_options(backend="serial", journal=file)
        with pytest.raises(OptionsError, match="what they write into 'out'"):
            task.map(range(4), out=array)
        with pytest.raises(OptionsError, match="what they write into 'out'"):
            task.imap(range(4), out=array)
    square = parallel(lambda x: x * x).with_options(backend="serial", journal=file)
    with pytest.raises(OptionsError, match=r"'out' of map_into\(\)"):
        square.map_into(array, range(4))
    assert not os.path.exists(file)


def test_lazy_output_is_refused(file: str) -> None:
    """Files of results and a journal are two ways to the same."""
    with sharedtask.defaults(journal=file), pytest.raises(OptionsError, match="lazy_output"):
        sharedtask.multi_process(len, ["a"], lazy_output=True, progress=False)


def test_multi_process_records_by_default_options(file: str, log: Any) -> None:
    """``defaults(journal=...)`` counts for multi_process too."""
    with sharedtask.defaults(journal=file):
        for backend in ("mp", "seq"):
            assert [0, 2] == sharedtask.multi_process(
                logged, range(2), log=log.path, factor=2, progress=False, backend=backend
            )
    assert [0, 1] == log()


def test_submit_is_not_recorded(backend: Any, file: str) -> None:
    """A single submit runs each time, and makes no journal."""
    task = parallel(lambda x: x).with_options(backend=backend, journal=file)
    assert 3 == task.submit(3).result()
    assert not os.path.exists(file)


@parallel
def nested(x: int) -> list[int]:
    return parallel(lambda y: x * y).map(range(3))


def test_map_within_a_task_is_not_recorded(
    backend: Any, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map inside a task is a part of that task's result: the variable does not count for it."""
    monkeypatch.setenv("SHAREDTASK_JOURNAL", file)
    task = nested.with_options(backend=backend)
    assert [[0, 0, 0], [0, 1, 2]] == task.map(range(2))
    assert [("nested", 2)] == recorded(file)


# ----------------------------------------------------------------------------------- the file


def test_file_is_private_and_alone(file: str, tmp_path: Path) -> None:
    """Only its user may read a journal, and nothing stands beside it after a call."""
    parallel(lambda x: x).with_options(backend="serial", journal=file).map(range(3))
    assert 0o600 == os.stat(file).st_mode & 0o777
    assert ["run.sqlite"] == os.listdir(tmp_path)


def test_path_objects_and_links(tmp_path: Path) -> None:
    """A journal is named by a text or a path, also through a link."""
    (tmp_path / "link").symlink_to(tmp_path / "run.sqlite")
    for name in (tmp_path / "link", str(tmp_path / "run.sqlite")):
        parallel(lambda x: x).with_options(backend="serial", journal=name).map(range(3))
    assert [3] == [n for _, n in recorded(str(tmp_path / "link"))]
    assert (tmp_path / "link").is_symlink()


def test_empty_file_is_filled(file: str) -> None:
    """A file without contents, as ``tempfile`` makes it, becomes a journal."""
    Path(file).touch()
    parallel(lambda x: x).with_options(backend="serial", journal=file).map(range(3))
    assert [3] == [n for _, n in recorded(file)]


def other_database(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE mine (x)")
        db.execute("INSERT INTO mine VALUES (1)")
        db.commit()


FOREIGN: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("a,b\n1,2\n"),
    "short": lambda path: path.write_bytes(b"SQLite format 3\0"),
    "database": other_database,
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_file_is_refused_and_left_alone(kind: str, file: str, tmp_path: Path) -> None:
    """What is no journal is refused in words, and not a byte of it is touched."""
    path = Path(file)
    FOREIGN[kind](path)
    before = path.read_bytes() if path.is_file() else None, os.stat(path).st_mtime_ns
    task = parallel(lambda x: x).with_options(backend="serial", journal=file)
    with pytest.raises(JournalError, match="this is") as caught:
        task.map(range(3))
    assert file == caught.value.path
    after = path.read_bytes() if path.is_file() else None, os.stat(path).st_mtime_ns
    assert before == after
    assert ["run.sqlite"] == os.listdir(tmp_path)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that is missing or closed is a JournalError, before anything runs."""
    ran: list[int] = []
    task = parallel(ran.append)
    with pytest.raises(JournalError, match="No such file"):
        task.with_options(backend="serial", journal=tmp_path / "no" / "run").map([1])
    if os.geteuid():
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o500)
        with pytest.raises(JournalError, match="Permission denied"):
            task.with_options(backend="serial", journal=closed / "run").map([1])
    with pytest.raises(JournalError):
        task.with_options(backend="serial", journal="/proc/run.sqlite").map([1])
    assert [] == ran


@pytest.mark.parametrize(
    ("version", "said"),
    [(1, "format 1, of sharedtask before 0.1.0, and this"), (3, "format 3, and this")],
)
def test_other_format_is_refused(file: str, version: int, said: str) -> None:
    """A journal of another format is left to the version that wrote it, which is named."""
    task = parallel(lambda x: x).with_options(backend="serial", journal=file)
    task.map(range(3))
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(JournalError, match=said):
        task.map(range(3))


def test_no_descriptors_are_left(file: str, log: Any) -> None:
    """Success, failure and a stream that is left give everything back."""
    task = logged.with_options(backend="thread", journal=file)
    task.map(range(3), log=log.path)
    before = Belongings.now()
    for _ in range(3):
        task.map(range(5), log=log.path)
        next(task.imap(range(9), log=log.path))
        gc.collect()
        with pytest.raises(TypeError):
            parallel(lambda x: x + "").with_options(backend="thread", journal=file).map([1])
    os.unlink(file)
    Path(file).write_text("no journal")
    for _ in range(3):
        with pytest.raises(JournalError):
            task.map(range(5), log=log.path)
    assert_nothing_left(before)


# ---------------------------------------------------------------------------------- at once


def test_two_calls_at_once(backend: Any, file: str, log: Any) -> None:
    """A second call on a journal in use is refused and says where it is used."""
    task = logged.with_options(backend=backend, journal=file)
    with contextlib.closing(task.imap(itertools.count(), log=log.path)) as stream:
        next(stream)
        with pytest.raises(JournalError, match="another call of this process"):
            task.map(range(3), log=log.path)
    assert [0, 1, 2] == task.map(range(3), log=log.path)


HOLDER = """
import sys, itertools
from sharedtask import parallel
task = parallel(lambda x: x).with_options(backend="serial", journal=sys.argv[1])
stream = task.imap(itertools.count())
next(stream)
print("ready", flush=True)
sys.stdin.read()
import signal; signal.pause()
"""


def test_two_processes_at_once(script: Any, file: str, log: Any) -> None:
    """Another process that has the journal is named; when it is killed the journal is free."""
    holder = script(HOLDER, file)
    holder.wait_for("ready")
    task = logged.with_options(backend="serial", journal=file)
    with pytest.raises(JournalError, match=f"in use by process {holder.pid}"):
        task.map(range(3), log=log.path)
    assert [("<lambda>", 1)] == [(task, min(n, 1)) for task, n in recorded(file)]
    os.kill(holder.pid, signal.SIGKILL)
    holder.process.wait()
    assert [0, 1, 2] == task.map(range(3), log=log.path)


FORKS = HOLDER.replace(
    'print("ready"',
    """
import os, time
if not os.fork():
    time.sleep(60)
    os._exit(0)
print("ready\"""",
)


@pytest.mark.parametrize("ends", ["closed", "dropped"])
def test_database_is_closed_with_its_journal(file: str, ends: str) -> None:
    """Not by the collector, which warns of it from Python 3.13 on."""
    journal = database.Journal(file)
    connection = journal._db
    if ends == "closed":
        journal.close()
    del journal
    until(lambda: not os.path.exists(f"{file}-lock"))
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_lock_is_not_inherited(script: Any, file: str, log: Any) -> None:
    """A process that was forked during a run does not hold the journal when its parent is gone."""
    holder = script(FORKS, file)
    holder.wait_for("ready")
    os.kill(holder.pid, signal.SIGKILL)
    holder.process.wait()
    assert 1 == len(holder.survivors())
    task = logged.with_options(backend="serial", journal=file)
    assert [0, 1] == task.map(range(2), log=log.path)


def test_lock_whose_file_goes_at_that_moment(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 1 opens the file, process 2 gives its lock back and removes it: 1 makes another."""
    take, tries = Lock._take, []

    def take_late(self: Lock, number: int) -> None:
        tries.append(number)
        if len(tries) == 1:
            os.unlink(f"{file}-lock")
        take(self, number)

    monkeypatch.setattr(Lock, "_take", take_late)
    lock = Lock(file)
    assert 2 == len(tries)
    assert lock.file is not None
    assert lock.file.inode == os.stat(f"{file}-lock").st_ino
    lock.release()
    assert not os.path.exists(f"{file}-lock")


def test_lock_of_a_parent_keeps_its_file(file: str) -> None:
    """A child gives up its copy of the descriptor, and no more."""
    lock = Lock(file)
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.path.exists(f"{file}-lock")
    lock.release()


def test_lock_whose_descriptor_the_program_has_closed(file: str) -> None:
    """The file is that of the next holder by then."""
    lock = Lock(file)
    assert lock.file is not None
    os.close(lock.file.number)
    with open(os.devnull, "rb") as next_one:  # has its number now
        assert lock.file.number == next_one.fileno()
        other = Lock(file)
        lock.release()
        assert os.path.exists(f"{file}-lock")
        other.release()


def test_run_that_is_dropped_gives_the_lock_back(file: str, log: Any) -> None:
    """Where no one closes a run, the journal is free again when the run is collected."""
    task = logged.with_options(backend="serial", journal=file)
    start, _ = task._prepare(range(3), (), {"log": log.path})
    run = start()
    run.open()
    with pytest.raises(JournalError):
        task.map(range(2), log=log.path)
    del run
    gc.collect()
    assert [0, 1] == task.map(range(2), log=log.path)


def test_lock_that_is_a_link(file: str, log: Any, tmp_path: Path) -> None:
    """What a link in the lock's place leads to is not opened, and not emptied."""
    other = tmp_path / "other"
    other.write_text("precious")
    os.symlink(other, f"{file}-lock")
    task = logged.with_options(backend="serial", journal=file)
    with pytest.raises(JournalError, match=r"-lock' is a link\. Look who made it"):
        task.map(range(2), log=log.path)
    assert "precious" == other.read_text()


def _make_for_all(lock: str, _: Path) -> None:
    Path(lock).touch()
    os.chmod(lock, 0o666)


LOCKS_OF_OTHERS: dict[str, tuple[Callable[[str, Path], object], str]] = {
    "hard link": (lambda lock, other: os.link(other, lock), "has another name as well"),
    "pipe": (lambda lock, _: os.mkfifo(lock, 0o600), "is no file"),
    "writable": (_make_for_all, "mode 666"),
}


@pytest.mark.parametrize("kind", LOCKS_OF_OTHERS)
def test_lock_that_is_not_ours(file: str, log: Any, tmp_path: Path, kind: str) -> None:
    """A lock that others may write, or that is another file as well, is refused."""
    make, said = LOCKS_OF_OTHERS[kind]
    other = tmp_path / "other"
    other.write_text("precious")
    make(f"{file}-lock", other)
    task = logged.with_options(backend="serial", journal=file)
    with pytest.raises(JournalError, match=said):
        task.map(range(2), log=log.path)
    assert "precious" == other.read_text()


# ---------------------------------------------------------------------------------- deaths

MAPS = """
import os, sys, time
from sharedtask import Shared, parallel
import numpy as np

@parallel(journal=sys.argv[1], backend=sys.argv[3], workers=2)
def slow(x: int, words: Shared[set], log: str) -> tuple[int, str]:
    with open(log, "a") as file:
        file.write(f"{x}\\n")
    time.sleep(0.02)
    return x, sorted(words)[x % 3]

print("mapping", flush=True)
words = {"one", "two", "three"}
results = slow.map(range(int(sys.argv[4])), words=words, log=sys.argv[2])
assert results == [(x, sorted(words)[x % 3]) for x in range(int(sys.argv[4]))]
print("done", len(results), flush=True)
"""


def wait_for_items(log: Any, count: int) -> None:
    """Until so many items of another process are entered."""
    until(lambda: os.path.exists(log.path) and len(Path(log.path).read_text().split()) >= count)


@pytest.mark.parametrize("backend", with_long(["serial", "thread", "process"], "serial"))
def test_kill_loses_only_what_is_in_hand(
    backend: Any, script: Any, run: Any, file: str, log: Any
) -> None:
    """After ``kill -9`` no recorded item runs again, in a process with other hashes.

    What ran twice was under way or younger than a tenth of a second.
    """
    first = script(MAPS, file, log.path, backend, 100, PYTHONHASHSEED="1")
    first.wait_for("mapping")
    wait_for_items(log, 40)
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait()
    first.assert_gone(10)
    entered = log()
    ((_, there),) = recorded(file)
    assert there >= len(entered) - 15
    assert "done 100\n" == run(MAPS, file, log.path, backend, 100, PYTHONHASHSEED="2")[-9:]
    again = log()
    assert 100 - there == len(again)
    assert [("slow", 100)] == recorded(file)
    assert set(range(100)) == set(entered) | set(again)


def test_slow_items_do_not_wait_for_their_chunk(backend: Any, file: str, log: Any) -> None:
    """Though many items travel together, each is recorded when it is done, and not their last."""

    @parallel(backend=backend, journal=file, chunksize=50, workers=1)
    def waits(x: int, log: str, file: str) -> int:
        enter(log, x)
        if x == 4:  # what was returned a while ago must be there
            limit = time.monotonic() + 20
            while sum(n for _, n in recorded(file)) < 3 and time.monotonic() < limit:
                time.sleep(0.02)
            return sum(n for _, n in recorded(file))
        time.sleep(0.07)
        return x

    results = waits.map(range(6), log=log.path, file=file)
    assert 3 <= results[4] <= 4


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_kill_at_any_moment(seed: int, script: Any, run: Any, file: str, log: Any) -> None:
    """Killed five times at random, a journal is never damaged, and no recorded item runs."""
    dice = random.Random(seed)
    done = 0
    for _ in range(5):
        first = script(MAPS, file, log.path, dice.choice(["thread", "process"]), 200)
        first.wait_for("mapping")
        time.sleep(dice.random())
        with contextlib.suppress(ProcessLookupError):
            os.kill(first.pid, signal.SIGKILL)
        first.process.wait()
        first.assert_gone(10)
        if os.path.exists(file):
            there = sum(n for _, n in recorded(file))
            assert there >= done
            done = there
    log()
    assert "done 200\n" == run(MAPS, file, log.path, "thread", 200)[-9:]
    assert 200 - done == len(log())


def test_interrupt_keeps_what_was_finished(script: Any, file: str, log: Any) -> None:
    """Ctrl-C ends the run; what was finished is there."""
    first = script(MAPS, file, log.path, "process", 100)
    first.wait_for("mapping")
    wait_for_items(log, 30)
    os.kill(first.pid, signal.SIGINT)
    assert 0 != first.end()
    assert "KeyboardInterrupt" in first.err
    ((_, there),) = recorded(file)
    assert there >= len(log()) - 10
    assert ["run.sqlite"] == [n for n in os.listdir(os.path.dirname(file)) if "sqlite" in n]


FULL = """
import resource, sys
from sharedtask import JournalError, parallel
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
task = parallel(lambda x: bytes(2000) + bytes([x])).with_options(
    backend=sys.argv[3], journal=sys.argv[1], chunksize=1)
try:
    task.map(range(200))
except JournalError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
"""


@pytest.mark.parametrize("room", [0, 3000, 30_000, 200_000])
def test_full_disk(room: int, run: Any, file: str) -> None:
    """Where a journal cannot grow the call ends in words, and what was recorded stays."""
    told = run(FULL, file, room, "thread")
    assert told.startswith(f"journal '{file}': it cannot be")
    there = sum(n for _, n in recorded(file)) if os.path.exists(file) else 0
    assert (there > 0) == (room > 50_000)
    task = parallel(lambda x: bytes(2000) + bytes([x])).with_options(backend="thread", journal=file)
    assert 200 == len(task.map(range(200)))


# ---------------------------------------------------------------------------------- damage


def filled(file: str, count: int = 300) -> Any:
    """A journal of several pages, and the task that it belongs to."""
    task = parallel(lambda x: (x, "some text" * (x % 7), bytes(x * 40)))
    task = task.with_options(backend="serial", journal=file)
    task.map(range(count))
    return task


def right(results: list[Any]) -> bool:
    return results == [(x, "some text" * (x % 7), bytes(x * 40)) for x in range(len(results))]


def test_damaged_value_is_named(file: str) -> None:
    """A result that does not fit its checksum is refused with file, run, item and what to do."""
    task = filled(file, 5)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("UPDATE results SET value = zeroblob(10) WHERE place = 3")
    with pytest.raises(JournalError, match=r"item 3 of <lambda>\(\), run .*--recover") as caught:
        task.map(range(5))
    assert file == caught.value.path


def test_undecodable_value_is_named(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result whose class is gone is refused with its item, and stays."""
    (tmp_path / "passing_by.py").write_text("class Result: pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        module = importlib.import_module("passing_by")
        task = parallel(lambda x: sys.modules["passing_by"].Result())
        task = task.with_options(backend="serial", journal=file)
        task.map(range(2))
    kept = sys.modules.pop("passing_by")
    with pytest.raises(JournalError, match=r"item 0 of <lambda>\(\), run .*, cannot be rebuilt"):
        task.map(range(2))
    sys.modules["passing_by"] = kept
    assert [True, True] == [type(r) is module.Result for r in task.map(range(2))]
    del sys.modules["passing_by"]
    assert [2] == [n for _, n in recorded(file)]


def test_damage_is_seen_or_harmless(file: str, tmp_path: Path) -> None:
    """Whatever bytes are flipped, a call gives right results or a JournalError.

    Recovery then finds nearly all of them, and the copy is resumed.
    """
    task = filled(file)
    whole = Path(file).read_bytes()
    dice = random.Random(1)
    pages = len(whole) // database.PAGE
    refused = said_so = 0
    for place in (0, 1, 18, 28, 60, 68, 100, 103, 4096, 4099, *(
        page * database.PAGE + dice.choice([0, 3, 5, 8, 12, 200, dice.randrange(database.PAGE)])
        for page in dice.sample(range(pages), 50)
    )):  # fmt: skip
        broken = bytearray(whole)
        broken[place] ^= dice.choice([0xFF, 0x01, 0x80])
        Path(file).write_bytes(broken)
        try:
            assert right(task.map(range(300)))
        except JournalError as error:
            refused += 1
            said_so += "--recover" in str(error)
        new = str(tmp_path / "new.sqlite")
        found = recovery.recover(file, new)
        assert found.results >= 300 - 120
        again = task.with_options(journal=new)
        assert right(again.map(range(300)))
        os.unlink(new)
    assert 10 < refused < 60
    assert refused == said_so


def test_damage_of_one_value_costs_one_value(file: str, tmp_path: Path) -> None:
    """Recovery leaves out the result that is damaged and nothing else."""
    filled(file)
    whole = bytearray(Path(file).read_bytes())
    at = whole.index(b"some textsome textsome text")
    whole[at] ^= 1
    Path(file).write_bytes(whole)
    assert 299 == recovery.recover(file, str(tmp_path / "new.sqlite")).results


@pytest.mark.parametrize("left", [1, 99, 100, 4096, 5000, 0.3, 0.9])
def test_truncated_file(left: float, file: str, tmp_path: Path) -> None:
    """A file that was cut is refused; what is in the rest can be had."""
    task = filled(file)
    whole = Path(file).read_bytes()
    size = int(left if left >= 1 else left * len(whole))
    Path(file).write_bytes(whole[:size])
    with pytest.raises(JournalError, match="--recover"):
        task.map(range(300))
    found = recovery.recover(file, str(tmp_path / "new.sqlite"))
    assert (size > 8192) == (found.results > 0)


def test_recovery_reads_what_was_not_checkpointed(
    script: Any, file: str, tmp_path: Path, log: Any
) -> None:
    """What a killed process left in the -wal file is recovered too."""
    first = script(MAPS, file, log.path, "thread", 100)
    first.wait_for("mapping")
    wait_for_items(log, 40)
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait()
    assert os.path.getsize(f"{file}-wal") > 0
    found = recovery.recover(file, str(tmp_path / "new.sqlite"))
    assert (1, sum(n for _, n in recorded(file))) == (found.runs, found.results)


def test_results_outlive_what_is_said_of_their_run(file: str) -> None:
    """Where the row of a run is lost its results still are those of its key."""
    task = filled(file, 10)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("DELETE FROM runs")
    ran: list[int] = []
    assert right(task.map(range(10)))
    assert [] == ran
    assert [10] == [n for _, n in recorded(file)]


def test_recovery_overwrites_nothing(file: str, tmp_path: Path) -> None:
    """The new journal must not exist."""
    filled(file, 3)
    (tmp_path / "new").write_text("mine")
    with pytest.raises(JournalError, match="already"):
        recovery.recover(file, str(tmp_path / "new"))
    assert "mine" == (tmp_path / "new").read_text()


def test_rest_of_a_deleted_journal_is_not_taken_over(file: str, log: Any) -> None:
    """Who deletes a journal begins again, though a killed run left files beside it."""
    stream = logged.with_options(backend="serial", journal=file).imap(range(3), log=log.path)
    next(stream)
    left = Path(f"{file}-wal").read_bytes()
    stream.close()
    os.unlink(file)
    log()
    Path(f"{file}-wal").write_bytes(left)
    task = logged.with_options(backend="serial", journal=file)
    assert [0, 1, 2] == task.map(range(3), log=log.path)
    assert [0, 1, 2] == log()


# -------------------------------------------------------------------------------- progress


def test_bar_begins_at_what_was_recorded(
    file: str, log: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Recorded items are on the bar from its beginning, and its end is all items."""
    task = logged.with_options(backend="serial", journal=file)
    task.map(range(10), log=log.path)
    capfd.readouterr()
    task.with_options(progress=True).map(range(12), log=log.path)
    bars = capfd.readouterr().err
    assert "10/12" in bars
    assert "12/12" in bars
    assert " 5/12" not in bars


# ------------------------------------------------------------------------------ command line


def said(*arguments: str, code: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sharedtask", "journal", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert code == ran.returncode, ran.stderr
    assert (not ran.stderr) == (not code)
    return ran.stdout or ran.stderr


def test_command_line(file: str, log: Any) -> None:
    """``sharedtask journal FILE`` writes one line for each run, with tabs; ``--json`` all."""
    task = logged.with_options(backend="serial", journal=file)
    task.map(range(10), log=log.path)
    next(power.with_options(backend="serial", journal=file).imap(range(4), 2, log=log.path))
    gc.collect()
    lines = [line.split("\t") for line in said(file).splitlines()]
    assert ["logged", "power"] == [line[1] for line in lines]
    assert ["10", "10"] == lines[0][4:6]
    assert ["finished", "unfinished"] == [line[7] for line in lines]
    assert "the code of logged() " in lines[0][8]
    assert "the argument 'log' " in lines[0][8]
    assert '"recorded": 10' in said(file, "--json")


def test_command_line_refuses(tmp_path: Path, file: str) -> None:
    """What cannot be shown or recovered is one line and exit code 1."""
    assert "there is no such file" in said(file, code=1)
    Path(file).write_text("text")
    assert 1 == said(file, code=1).count("\n")
    new = str(tmp_path / "new")
    assert f"{new}: 0 results of 0 runs.\n" == said(file, "--recover", new)
    assert "already" in said(file, "--recover", new, code=1)


def test_command_line_recovers(file: str, tmp_path: Path) -> None:
    """``--recover NEW`` makes a journal that the same call resumes."""
    task = filled(file)
    whole = bytearray(Path(file).read_bytes())
    whole[0] ^= 1
    Path(file).write_bytes(whole)
    new = str(tmp_path / "new.sqlite")
    assert f"{new}: 300 results of 1 runs.\n" == said(file, "--recover", new)
    assert right(task.with_options(journal=new).map(range(300)))


def test_import_stays_light() -> None:
    """Without a journal neither SQLite nor a digest is loaded."""
    code = """
import sys
from sharedtask import parallel
import numpy as np
parallel(shared=["t"])(lambda x, t: t[x]).map(range(3), t=np.ones(5))
journal = "sharedtask.task.journal.database"
print({"sqlite3", "_sqlite3", journal, "sharedtask.serialization.hashing"}
      & set(sys.modules))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "set()\n" == ran.stdout


def test_partial_functions(file: str) -> None:
    """The arguments in a partial count like any others."""
    for factor in (2, 3):
        task = parallel(functools.partial(multiplied, factor=factor))
        task = task.with_options(backend="serial", journal=file)
        told = pytest.warns(JournalWarning)
        with told if factor == 3 else contextlib.nullcontext():
            assert [0, factor] == task.map(range(2))


def multiplied(x: int, factor: int) -> int:
    return x * factor


# ------------------------------------------------------------------------------- random numbers


@parallel
def draw(x: int, log: str, rng: Rng) -> float:
    enter(log, x)
    return float(rng.random()) + x


def test_random_numbers_do_not_depend_on_the_interruption(
    backend: Any, file: str, log: Any
) -> None:
    """What runs after a resume draws the numbers that it would have drawn before."""
    task: Any = draw.with_options(backend=backend, seed=7)
    expected = task.map(range(20), log=log.path)
    log()
    recorded_task = task.with_options(journal=file)
    assert expected[:8] == recorded_task.map(range(8), log=log.path)
    log()
    assert expected == recorded_task.map(range(20), log=log.path)
    assert list(range(8, 20)) == log()


def test_another_seed_is_another_run(file: str, log: Any) -> None:
    """Results of one seed are not given for another, and the warning names it."""
    task: Any = draw.with_options(backend="serial", seed=7, journal=file)
    first = task.map(range(3), log=log.path)
    with pytest.warns(JournalWarning, match="the option 'seed' differs"):
        assert first != task.with_options(seed=8).map(range(3), log=log.path)


def test_a_journal_of_random_numbers_needs_a_seed(file: str, log: Any) -> None:
    """Without a seed each run would draw others: that is refused before anything runs."""
    task: Any = draw.with_options(backend="serial", journal=file)
    with pytest.raises(OptionsError, match="'rng' must be the same in every run: give seed="):
        task.map(range(3), log=log.path)
    assert [] == log()
    assert not os.path.exists(file)
