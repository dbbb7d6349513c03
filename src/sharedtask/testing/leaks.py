# ruff: noqa: S101 - tests assert; their rule is their docstring
"""What a test has left behind: descriptors, threads, processes, mappings, names."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sharedtask import Shared, parallel, shutdown
from sharedtask.backends import registry

if TYPE_CHECKING:
    from collections.abc import Iterator


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
