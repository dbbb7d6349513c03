# ruff: noqa: S101 - tests assert; their rule is their docstring
"""Resources that a test has left behind: descriptors, threads, processes, mappings, names."""

from __future__ import annotations

import time
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sharedtask import parallel, shutdown
from sharedtask.backends import registry
from sharedtask.testing.resources import Belongings, nap, report

from .patience import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator


def assert_nothing_left(
    before: Belongings, *, same_children: bool = False, seconds: float = 5.0
) -> None:
    """Wait until all new resources are released; fail with a list of the others.

    For so many seconds on an idle machine, and longer on a busy one.
    """
    deadline = Deadline(seconds)
    forget_publications()
    while left := Belongings.now().more_than(before, same_children=same_children):
        assert not deadline.is_over, f"left behind: {'; '.join(left)}"
        time.sleep(0.02)


def forget_publications() -> None:
    """Release cached publications of values and functions that are still alive."""
    for backend in registry.running():
        if backend.publications is not None:
            backend.publications.clear()


def warm_up(workers: int = 2) -> None:
    """Start the pool with this many workers, and all that is created once per process."""
    task = parallel(nap).with_options(workers=workers, chunksize=1, backend="process")
    big = np.ones(1 << 18)
    deadline = Deadline(10.0)
    while len(set(task.map([0.01] * 2 * workers, big=big))) < workers:
        assert not deadline.is_over, f"no {workers} workers came up"


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """``shutdown()`` releases everything that the test has created."""
    warm_up()
    shutdown()
    before = Belongings.now()
    yield
    shutdown()
    assert_nothing_left(before)


@pytest.fixture
def no_leaks_warm() -> Iterator[None]:
    """After the test a warm pool of two workers has the same resources as before."""
    shutdown()
    warm_up()
    forget_publications()
    before = Belongings.now()
    yield
    warm_up()
    assert_nothing_left(before, same_children=True)


# A new pool, with all that its workers import, may take several seconds.
_TIMEOUT_SECONDS = 20.0


@pytest.fixture
def unharmed() -> Iterator[None]:
    """After a fault the same pool runs a right map at once, and nothing is left behind.

    Not in this process, and not in the workers, of which there are as many as before.
    """
    forget_publications()
    resource_tracker.ensure_running()  # one for each process, started by torch's import as well
    in_workers = _in_workers()
    forget_publications()
    before = Belongings.now()
    yield
    try:
        forget_publications()
        deadline = Deadline(_TIMEOUT_SECONDS)
        after = _in_workers()
        assert not deadline.is_over, f"the next map took more than {_TIMEOUT_SECONDS} seconds"
        while left := _grown(in_workers, after):
            assert not deadline.is_over, f"left behind in the workers: {'; '.join(left)}"
            after = _in_workers()
        assert_nothing_left(before, same_children=True)
    except BaseException:
        shutdown()  # the next test has its own chance
        raise


def _in_workers(workers: int = 2) -> list[Belongings]:
    """The resources of each worker, found by maps over a shared value, which must be right."""
    task = parallel(report).with_options(workers=workers, chunksize=1, backend="process")
    deadline = Deadline(_TIMEOUT_SECONDS)
    found: dict[int, Belongings] = {}
    while len(found) < workers:
        assert not deadline.is_over, f"no {workers} workers came up"
        for k, (square, total, pid, held) in enumerate(task.map(range(workers), big=_BIG)):
            assert (k * k, float(_BIG.size)) == (square, total)
            found[pid] = held
    return list(found.values())


_BIG = np.ones(1 << 17)


def _grown(before: list[Belongings], after: list[Belongings]) -> list[str]:
    return [line for held in after for line in held.more_than(before[0])]
