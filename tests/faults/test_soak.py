"""Thousands of calls: nothing grows, neither here nor in the workers."""

import os
import threading
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import CopyOnWrite, Partitioned, Reduced, Shared, parallel
from sharedtask.testing import forget_publications

# Anonymous memory may be fragmented; what leaks in each of thousands of calls is more than this.
SLACK_BYTES = 8_000_000


@dataclass(frozen=True)
class Size:
    """What a process has."""

    descriptors: int
    mappings: int
    threads: int
    memory: int

    @classmethod
    def now(cls) -> "Size":
        status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
        return cls(
            len(os.listdir("/proc/self/fd")),
            len(Path("/proc/self/maps").read_text().splitlines()),
            threading.active_count(),
            int(status.split()[0]) * 1024,
        )


def square(x: int) -> int:
    return x * x


def use(x: int, table: Shared[Any]) -> float:
    return float(table[0]) + x


def scribble(x: int, table: CopyOnWrite[Any]) -> float:
    table[0] += x
    return float(table[0])


def fill(x: int, out: Partitioned[Any]) -> None:
    out[...] = x


def add(x: int, total: Reduced[Any]) -> None:
    total += x


def fail(x: int) -> int:
    return 1 // x


def give(x: int) -> Any:
    return np.full(150_000, x)


def size_here(_: int) -> tuple[int, Size]:
    return os.getpid(), Size.now()


def sizes() -> list[Size]:
    """Of this process and of the largest worker."""
    forget_publications()
    task = parallel(size_here).with_options(backend="process", workers=2, chunksize=1)
    held = [size for _, size in task.map(range(8))]
    return [Size.now(), Size(*map(max, zip(*map(astuple, held), strict=True)))]


def call(k: int, table: Any) -> None:
    """One of many kinds of calls."""
    kind = k % 8
    options: Any = {"backend": "process", "workers": 2}
    if kind in (0, 1):
        assert [0, 1, 4, 9] == parallel(square).with_options(**options).map(range(4))
    elif kind == 2:
        assert [table[0], table[0] + 1] == parallel(use).with_options(**options).map(
            range(2), table=table
        )
    elif kind == 3:
        fresh = np.full(20_000, float(k))
        assert [k, k + 1.0] == parallel(use).with_options(**options).map(range(2), table=fresh)
    elif kind == 4:
        assert [table[0] + 1] == parallel(scribble).with_options(**options).map([1], table=table)
    elif kind == 5:
        out, total = np.zeros(4), np.zeros(1)
        parallel(fill).with_options(**options).map(range(4), out=out)
        parallel(add).with_options(**options).map(range(4), total=total)
        assert [0, 1, 2, 3, 6] == [*out, *total]
    elif kind == 6:
        with pytest.raises(ZeroDivisionError):
            parallel(fail).with_options(**options).map([1, 0])
        next(parallel(square).with_options(**options).imap(iter(range(99))))
    else:
        assert k == parallel(give).with_options(**options).submit(k).result(60)[-1]


def soak(calls: int) -> None:
    table = np.ones(50_000)
    for k in range(max(calls // 4, 200)):  # everything is warm
        call(k, table)
    before = sizes()
    for k in range(calls):
        call(k, table)
    for old, new in zip(before, sizes(), strict=True):
        # A mapping or two may be the allocator's own; a background thread or two come and go.
        assert old.descriptors == new.descriptors
        assert abs(new.threads - old.threads) < 3
        assert abs(new.mappings - old.mappings) < 30
        assert new.memory - old.memory < SLACK_BYTES


def test_hundreds_of_calls() -> None:
    """After hundreds of calls of all kinds no process has more of anything."""
    soak(600)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_thousands_of_calls() -> None:
    """The same for three thousand; ``SHAREDTASK_TEST_CALLS`` says for how many others."""
    soak(int(os.environ.get("SHAREDTASK_TEST_CALLS", "3000")))
