"""Unmarked values of tasks that run in this process: what is copied, and what is not."""

import enum
import gc
import io
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest

from sharedtask import SerializationError, Shared, multi_process, parallel
from sharedtask.backends import private_copies
from sharedtask.backends.private_copies import copied, is_fixed

pytestmark = pytest.mark.timeout(60)

here = pytest.mark.parametrize("where", ["serial", "thread"])
MISSING = object()


class Colour(enum.Enum):
    RED = 1


class Point(NamedTuple):
    x: Any
    y: int


class Owner:
    """Frees what it has when it goes, and does not say how it is copied."""

    def __init__(self) -> None:
        self.freed: list[int] = []

    def __del__(self) -> None:
        self.freed.append(1)


class Table:
    rows: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.seen: list[int] = []


def given(_x: int, value: Any) -> Any:
    return value


def pair(item: Any, value: Any) -> Any:
    return item, value


def is_missing(_x: int, value: Any, *others: Any) -> bool:
    return value is MISSING and all(each["it"] is MISSING for each in others)


FIXED: list[Any] = [
    None, True, 1, 1.5, 2j, "a", b"b", ..., range(3), np.float32(1), np.int64(2), slice(1, None),
    (1, ("a", None)), frozenset({1, "b"}), len, max, int, Table, os, given, lambda x: x, MISSING,
    parallel(given),
]  # fmt: skip
CHANGING: list[Any] = [
    [], {}, set(), bytearray(b"a"), (1, []), slice([], None), np.zeros(2), Table(), [].append,
    Table().seen.append, Point([], 1), io.BytesIO(b"a"), np.random.default_rng(0),
]  # fmt: skip


@pytest.mark.parametrize("value", FIXED, ids=repr)
def test_what_cannot_change_is_passed_as_it_is(value: Any) -> None:
    """Numbers, texts, functions, classes, modules, tuples of these: no copy is made."""
    assert is_fixed(value)
    assert copied(value) is value
    ((found,),) = [copied([value])]
    assert found is value or found == value


@pytest.mark.parametrize("value", CHANGING, ids=lambda value: type(value).__name__)
def test_what_can_change_is_copied(value: Any) -> None:
    """Containers, arrays and objects are others, of the same kind."""
    assert not is_fixed(value)
    found = copied(value)
    assert found is not value
    assert type(found) is type(value)


@here
def test_sentinels_and_enums_keep_their_identity(where: Any) -> None:
    """``object()`` and what is found by name are what they are, inside other things as well."""
    task = parallel(backend=where)(is_missing)
    assert [True] * 2 == task.map(range(2), MISSING, {"it": MISSING}, {"it": MISSING})
    assert parallel(backend=where)(given).map([1], [Colour.RED])[0][0] is Colour.RED


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    "lock": threading.Lock,
    "generator": lambda: (x for x in range(3)),
    "file": lambda: open(os.devnull),  # noqa: SIM115  the test closes it
    "dict of a lock": lambda: {"lock": threading.Lock(), "seen": []},
    "owner": Owner,
}


@here
@pytest.mark.parametrize("make", UNPICKLABLE.values(), ids=UNPICKLABLE)
def test_what_cannot_be_pickled_is_the_callers_own(where: Any, make: Any) -> None:
    """It is passed as it is, as an argument and as an item; what is beside it is copied."""
    value, beside = make(), [1]
    task = parallel(backend=where)(lambda x, value, beside: (value, beside))
    for got, copy in task.map(range(3), value=value, beside=beside):
        assert got is value
        assert copy is not beside
    kept, other = parallel(backend=where, chunksize=2)(lambda x: x).map([value, beside])
    assert kept is value
    assert (other, beside) == ([1], [1])
    assert other is not beside
    if isinstance(value, Owner):
        assert not value.freed
    if hasattr(value, "close"):
        value.close()


@here
def test_connection_stays_open(where: Any) -> None:
    """No copy of a connection is made, whose end would close the descriptor of both."""
    left, right = multiprocessing.Pipe()
    for value in ({"to": left}, left):
        parallel(backend=where, workers=1)(send).map(range(3), to=value)
        gc.collect()
    assert [0, 1, 2] * 2 == [right.recv() for _ in range(6)]
    left.close()
    right.close()


def send(x: int, to: Any) -> None:
    (to["to"] if isinstance(to, dict) else to).send(x)


@here
def test_strict_names_what_cannot_be_pickled(where: Any) -> None:
    """With ``strict`` it is refused before anything runs, by its name and the way into it."""
    ran: list[int] = []
    task = parallel(backend=where, strict=True)(lambda x, beside, cfg: ran.append(x))
    with pytest.raises(SerializationError, match=r"cfg\['lock'\].*strict"):
        task.map(range(3), beside=[1], cfg={"lock": threading.Lock()})
    assert not ran


class Once:
    """Can be pickled, and not always made again."""

    left = 0

    def __reduce__(self) -> Any:
        return make_once, ()


def make_once() -> Once:
    Once.left -= 1
    if Once.left < 0:
        raise LookupError
    return Once()


@here
def test_what_cannot_be_made_again(where: Any) -> None:
    """What can be pickled alone is passed as it is; what fails later is the error of its items."""
    value = Once()
    Once.left = 0
    assert [value] == parallel(backend=where)(given).map([1], value)
    Once.left = 1
    task = parallel(backend=where, chunksize=1, return_exceptions=True)
    found = task(lambda x, value: x).map(range(3), value=value)
    assert 0 == found[0] or where == "thread"
    assert 2 == sum(isinstance(each, LookupError) for each in found)


@here
def test_classes_are_not_set_back(where: Any) -> None:
    """A copy is of the program's own class, whose attributes stay what they are meanwhile."""
    Table.rows = []

    def look(x: int, table: Any) -> bool:
        type(table).rows.append(x)
        return type(table) is Table

    assert [True] * 4 == parallel(backend=where, chunksize=1)(look).map(range(4), Table())
    assert {0, 1, 2, 3} == set(Table.rows)


@here
@pytest.mark.parametrize("captured", ["share", "copy"])
def test_memory_of_large_arrays_is_given_back(where: Any, captured: Any) -> None:
    """The copy that a call has made of a large array goes with the call and its results."""
    left_by_others = segments()
    table = np.ones(1 << 19)
    task = parallel(backend=where, captured=captured)(given)
    results = task.map(range(3), value={"table": table, "again": table})
    for each in results:
        assert each["table"] is each["again"]
        assert each["table"] is not table
    assert [float(len(table))] * 3 == [each["table"].sum() for each in results]
    before = segments()
    del results, each
    gc.collect()
    assert before == left_by_others or segments() < before
    assert segments() <= left_by_others


def segments() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:sharedtask")


@here
def test_full_store_is_told(where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for a copy, that is the error, and not a value that all share."""

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(private_copies, "Publication", full)
    with pytest.raises(MemoryError):
        parallel(backend=where)(given).map([1], value=np.ones(1 << 19))


@here
def test_map_while_a_copy_is_made(where: Any) -> None:
    """Unpickling may map by itself: each map has its own copies."""
    table = Nested([1, 2])
    found = parallel(backend=where, chunksize=1)(lambda x, value: value.sums).map(range(2), table)
    assert [[1, 2]] * 2 == found


class Nested:
    def __init__(self, sums: list[int]) -> None:
        self.sums = sums

    def __setstate__(self, state: Any) -> None:
        inner = parallel(backend="serial")(lambda x, seen: (seen.append(x), sum(seen))[1])
        assert [1, 2] == inner.with_options(chunksize=1).map([1, 2], seen=[])
        self.__dict__.update(state)


@pytest.mark.parametrize("where", ["seq", "threadpool"])
def test_multi_process_in_threads_hands_the_very_objects_on(where: Any) -> None:
    """A plain loop, and a plain pool of threads, copy nothing."""
    value, item = [1], [2]
    found = multi_process(pair, [item] * 3, backend=where, progress=False, value=value)
    for each in found:
        assert each[0] is item
        assert each[1] is value


@here
def test_shared_values_beside_are_not_copied(where: Any) -> None:
    """What is marked is treated as ever: one array for all items, read-only, over its memory."""
    table = np.ones(10_000)

    def look(_x: int, rows: Shared[Any], seen: Any) -> tuple[int, bool]:
        seen.append(1)
        return rows.__array_interface__["data"][0], rows.flags.writeable

    found = parallel(backend=where)(look).map(range(3), rows=table, seen=[])
    assert [(table.__array_interface__["data"][0], False)] * 3 == found


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Iterator[None]:
    """No test leaves the table of another."""
    yield
    Table.rows = []
