"""One array in several uses, one after the other: shared, captured, unmarked, in self, an item."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from budget import with_long

from sharedtask import CopyOnWrite, Shared, parallel, share
from sharedtask.serialization import codec
from sharedtask.store import decoded
from sharedtask.store.decoded import Values
from sharedtask.store.stores import BytesStore

pytestmark = pytest.mark.timeout(90)

COUNT = 1 << 18  # float64: 2 MiB, as captured arrays are shared from 1 MiB on


def shared(x: int, table: Shared[Any]) -> tuple[float, bool]:
    return float(table[x]), bool(table.flags.writeable)


def private(x: int, table: CopyOnWrite[Any]) -> float:
    table[x] += 1
    return float(table[x])


def unmarked(x: int, table: Any) -> tuple[float, bool]:
    return float(table[x]), bool(table.flags.writeable)


def both(x: int, table: Shared[Any], other: Any) -> tuple[float, float]:
    return float(table[x]), float(other[x])


def whole(table: Any) -> float:
    table[1] += 1
    return float(table[1])


class Model:
    def __init__(self, table: Any) -> None:
        self.table = table

    @parallel
    def look(self, x: int) -> tuple[float, bool]:
        return float(self.table[x]), bool(self.table.flags.writeable)


def by_parameter(where: Any, table: Any) -> None:
    assert [(table[x], False) for x in range(4)] == parallel(backend=where)(shared).map(
        range(4), table=table
    )


def by_strict(where: Any, table: Any) -> None:
    task = parallel(backend=where, strict=True)(shared)
    assert [(table[x], False) for x in range(4)] == task.map(range(4), table=table)


def by_strict_that_captures(where: Any, table: Any) -> None:
    def twice(x: int, value: Shared[Any]) -> float:
        return float(table[x] + value[x])

    task = parallel(backend=where, strict=True)(twice)
    assert [2 * table[x] for x in range(4)] == task.map(range(4), value=table)


def by_handle(where: Any, table: Any) -> None:
    with share(table) as handle:
        by_parameter(where, table)
        assert [(table[1], False)] == parallel(backend=where)(shared).map([1], table=handle)


def by_copy(where: Any, table: Any) -> None:
    assert [table[x] + 1 for x in range(4)] == parallel(backend=where)(private).map(
        range(4), table=table
    )


def by_argument(where: Any, table: Any) -> None:
    task = parallel(backend=where, chunksize=1)(unmarked)
    assert [(table[1], False)] * 4 == task.map([1] * 4, table=table)


def by_capture(where: Any, table: Any) -> None:
    def read(x: int) -> float:
        return float(table[x])

    assert [table[x] for x in range(4)] == parallel(backend=where)(read).map(range(4))


def by_self(where: Any, table: Any) -> None:
    task = Model(table).look.with_options(backend=where, chunksize=1)
    assert [(table[1], False)] * 4 == task.map([1] * 4)


def by_item(where: Any, table: Any) -> None:
    assert [table[1] + 1] * 2 == parallel(backend=where)(whole).map([table.copy(), table.copy()])


def by_two(where: Any, table: Any) -> None:
    task = parallel(backend=where, chunksize=1)(both)
    assert [(table[1], table[1])] * 4 == task.map([1] * 4, table=table, other=table)


def by_submit(where: Any, table: Any) -> None:
    task = parallel(backend=where)(unmarked)
    futures = [task.submit(1, table=table) for _ in range(3)]
    assert [(table[1], False)] * 3 == [future.result() for future in futures]


USES: dict[str, Callable[[Any, Any], None]] = {
    "shared": by_parameter,
    "strict": by_strict,
    "strict, captured": by_strict_that_captures,
    "handle": by_handle,
    "copied": by_copy,
    "unmarked": by_argument,
    "captured": by_capture,
    "self": by_self,
    "item": by_item,
    "two": by_two,
    "submit": by_submit,
}
in_workers = pytest.mark.parametrize("where", ["process", "ray"])


@pytest.fixture(autouse=True)
def ray_where_asked(request: pytest.FixtureRequest) -> None:
    if "ray" in request.node.name:
        request.getfixturevalue("ray_runtime")


@in_workers
@pytest.mark.parametrize("second", USES)
@pytest.mark.parametrize("first", with_long(USES, *(set(USES) - {"shared", "unmarked"})))
def test_one_use_after_another(where: Any, first: str, second: str) -> None:
    """Workers that have an array for one use have it for any other, changed or not."""
    table = np.arange(float(COUNT))
    for each in (first, first, second, second, first):
        USES[each](where, table)
    table[1] += 100
    for each in (second, first):
        USES[each](where, table)


@in_workers
def test_one_use_after_another_when_it_was_given_up(where: Any) -> None:
    """So it is when the value was cleared from the cache between two uses."""
    table = np.arange(float(COUNT))
    for first, second in itertools.permutations(("shared", "unmarked", "captured", "self"), 2):
        USES[first](where, table)
        parallel(backend=where)(shared).cache_clear()
        USES[second](where, table)


def test_value_that_a_chunk_needs_is_not_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large what is decoded: what the chunk in hand needs stays."""
    monkeypatch.setattr(decoded, "_KEEP_HEAD_BYTES", 0)
    known = Values()
    for token in range(4):
        known.attach(token, BytesStore.of(codec.encode([token])))
    assert [0] == known.value(0)
    known.stores.pop(0).close()
    known.held = frozenset({0})
    assert [[1], [2], [3], [0]] == [known.value(token) for token in (1, 2, 3, 0)]
    known.held = frozenset()
    assert [[1], [2], [3]] == [known.value(token) for token in (1, 2, 3)]
    assert 0 not in known.decoded


@pytest.mark.parametrize("where", ["process", "loky", "ray"])
def test_what_a_task_keeps_is_told_and_forgotten(where: Any) -> None:
    """By ``cache_info`` and ``cache_clear``: the same on each backend that keeps values."""
    pytest.importorskip(where if where != "process" else "sharedtask")
    table = np.zeros(COUNT)
    task = parallel(backend=where, workers=1)(shared)
    task.map([0], table=table)
    known = task.cache_info()
    assert (1, True, True) == (known.currsize, known.nbytes >= table.nbytes, known.maxsize > 0)
    task.cache_clear()
    assert (0, 0) == (task.cache_info().currsize, task.cache_info().nbytes)
