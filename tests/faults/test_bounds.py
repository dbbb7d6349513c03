import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import Shared, parallel
from sharedtask.testing.strategies import segment_spans

pytestmark = [pytest.mark.timeout(100)]

FEW_DESCRIPTORS = """
import resource

import numpy as np
from sharedtask import Shared, parallel, share

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

@parallel(backend="process", workers=2)
def add(x: int, table: Shared[np.ndarray]) -> float:
    return float(table[x] + table[-1])

tables = [np.full(20_000, float(k)) for k in range(100)]
for _ in range(2):
    for k, table in enumerate(tables):
        assert [2.0 * k] * 3 == add.map(range(3), table=table)

@parallel(backend="process", workers=2)
def add_all(x: int, tables: Shared[dict]) -> float:
    return sum(float(table[x]) for table in tables.values())

assert [sum(range(100))] * 2 == add_all.map(range(2), tables=dict(enumerate(tables)))
results = parallel(lambda x: np.full(200_000, x)).with_options(backend="process").map(range(100))
assert all((result == k).all() for k, result in enumerate(results))
print("all right")
"""


def test_few_descriptors_are_enough(run: Callable[..., str]) -> None:
    """A hundred values are shared in turn and at once where a process may open 64 files."""
    assert "all right" == run(FEW_DESCRIPTORS).strip()


def held(_x: int, table: Shared[Any]) -> dict[str, int]:
    """What this worker has mapped and opened, after a look at the value."""
    status = Path("/proc/self/status").read_text()
    assert table[0] == table[-1]
    return {
        "kB shared": _kilobytes(status, "RssShmem"),
        "kB private": _kilobytes(status, "RssAnon"),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "files": len(os.listdir("/proc/self/fd")),
    }


def _kilobytes(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])


def held_here() -> dict[str, int]:
    return held(0, np.zeros(1))


@pytest.mark.long
def test_hundreds_of_values_in_turn_are_not_kept() -> None:
    """Of values that are gone nothing stays, in no worker and not here."""
    task = parallel(held).with_options(backend="process", workers=2, chunksize=1)
    for k in range(20):
        task.map(range(4), table=np.full(125_000, float(k)))
    before, here, spans = _most(task), held_here(), len(segment_spans())
    for k in range(300):
        told = task.map(range(4), table=np.full(125_000, float(k)))
        assert 30_000 > max(each["kB shared"] for each in told) - before["kB shared"]
    after, now = _most(task), held_here()
    for name, allowed in (
        ("kB shared", 30_000),
        ("kB private", 20_000),
        ("maps", 60),
        ("files", 8),
    ):
        assert allowed > after[name] - before[name], name
        assert allowed > now[name] - here[name], name
    assert spans + 8 > len(segment_spans())
    assert 4 > task.cache_info().currsize


def _most(task: Any) -> dict[str, int]:
    told = task.map(range(8), table=np.zeros(125_000))
    return {name: max(each[name] for each in told) for name in told[0]}


def square(x: int) -> int:
    return x * x


@pytest.mark.long
def test_a_million_items_in_bounded_memory() -> None:
    """A million tiny items of a map take no more memory than their results, here and in workers."""
    task = parallel(square).with_options(backend="process")
    weigh = parallel(held).with_options(backend="process", workers=2, chunksize=1)
    assert [0, 1] == task.map(range(2))
    before, here = _most(weigh), held_here()
    results = task.map(range(1_000_000))
    assert all(x * x == result for x, result in enumerate(results))
    assert 1_000_000 == len(results)
    now, after = held_here(), _most(weigh)
    assert 50_000 > after["kB private"] - before["kB private"]
    assert 8_000 + 36_000 + 60_000 > now["kB private"] - here["kB private"]  # list, numbers, more


GIB = 1 << 30


def available() -> float:
    """Gigabytes of free memory."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return int(found[1]) / 1e6 if found else 0.0


def need(gigabytes: int) -> None:
    if available() < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free memory")


def marks(data: Any) -> list[int]:
    return [int(data[k]) for k in (0, GIB, 4 * GIB, -1)] + [len(data)]


def sent_back(data: Any, returns: bool) -> tuple[list[int], Any]:
    return marks(data), data if returns else None


@pytest.mark.long
@pytest.mark.timeout(400)
def test_argument_of_more_than_four_gigabytes() -> None:
    """An item and a result of 4.1 GiB arrive whole, and their memory is free afterwards.

    Without the result where there is not enough memory for both.
    """
    need(11)
    size, returns = int(4.1 * GIB), available() > 19
    data = np.zeros(size, np.uint8)
    data[[0, GIB, 4 * GIB, size - 1]] = [1, 2, 3, 4]
    task = parallel(sent_back).with_options(backend="process", workers=1)
    weigh = parallel(held).with_options(backend="process", workers=2, chunksize=1)
    before = _most(weigh)
    ((found, result),) = task.map([data], returns=returns)
    assert [1, 2, 3, 4, size] == found
    if returns:
        assert [1, 2, 3, 4, size] == marks(result)
    del data, result
    after = _most(weigh)
    for name in ("kB shared", "kB private"):
        assert 200_000 > after[name] - before[name], name
    assert 300_000 > held_here()["kB private"]
