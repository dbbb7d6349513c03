"""A check that does not come to its end, or does not pass, is made again by the next call."""

import contextlib
import fcntl
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from users import in_child

from sharedtask import Shared, StoreFullError, array, parallel, share
from sharedtask.memory import dirty_pages
from sharedtask.memory.strided import Scattered
from sharedtask.store import stores
from sharedtask.store.cache import ShareCache

pytestmark = pytest.mark.timeout(60)

COUNT = 1 << 18  # float64: 2 MiB, watched where the kernel can
PLACES = (0, COUNT // 2, -1)


@pytest.fixture(params=["watched", "compared"], autouse=True)
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to find changes; the answers are the same."""
    name: str = request.param
    monkeypatch.setenv("SHAREDTASK_WATCH", "off" if name == "compared" else "on")
    return name


@pytest.fixture
def caches() -> Iterator[list[ShareCache]]:
    """Caches without workers: what processes and Ray have one of each."""
    made = [ShareCache(limit=1 << 30) for _ in range(3)]
    yield made
    for cache in made:
        cache.clear()


class Interruption:
    """Interrupts, in place of returning or before it starts, the call with this number."""

    def __init__(self, at: int, *, error: Any = KeyboardInterrupt) -> None:
        self.left, self.error = at, error

    @property
    def came(self) -> bool:
        return self.left < 0

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return function(*args, **kwargs)

        return interrupted

    def after(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*args: Any, **kwargs: Any) -> Any:
            found = function(*args, **kwargs)
            self.count()
            return found

        return interrupted

    def count(self) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error


def published(cache: ShareCache, value: Any) -> Any:
    """What workers would get of a value now."""
    lease = cache.lease(value)
    try:
        return lease.publication.private_value()
    finally:
        lease.release()


def interrupted(cache: ShareCache, value: Any, interruption: Interruption, patch: Any) -> None:
    """Look for changes, and be interrupted by the comparison."""
    with patch.context() as patched, contextlib.suppress(KeyboardInterrupt, StoreFullError):
        same = interruption.before(dirty_pages.same_bytes)
        patched.setattr(dirty_pages, "same_bytes", same)
        patched.setattr(Scattered, "equals", interruption.before(Scattered.equals))
        published(cache, value)


LOOKS: dict[str, Callable[[Any], Any]] = {
    "array": lambda b: b,
    "view": lambda b: b[3:-5],
    "gaps": lambda b: np.repeat(b, 4)[::4],
    "two": lambda b: [b.copy(), b],
    "many": lambda b: {k: b[k * 20_000 :] for k in range(5)},
    "overlapping": lambda b: (b[: COUNT // 2 + 9], b[COUNT // 2 - 9 :], b),
}


def numbers(value: Any) -> list[Any]:
    """The arrays of a value."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    return [*value.values()] if isinstance(value, dict) else list(parts)


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_interrupted_comparison_is_made_again(
    look: Any, at: int, caches: Any, monkeypatch: Any
) -> None:
    """A change that an interrupted comparison did not find is found by the next one."""
    cache = caches[0]
    for place in PLACES:
        value = look(np.zeros(COUNT))
        arrays = numbers(value)
        published(cache, value)
        arrays[-1][place] = 1
        for _ in range(2):
            interrupted(cache, value, Interruption(at), monkeypatch)
        found = numbers(published(cache, value))
        assert [True] * len(arrays) == list(map(np.array_equal, arrays, found))


@pytest.mark.parametrize("at", range(5))
def test_interrupt_between_two_arrays(at: int, caches: Any, monkeypatch: Any) -> None:
    """Of arrays that all were written each is compared in the end, those before and behind."""
    value = [np.zeros(COUNT) for _ in range(5)]
    cache = caches[0]
    published(cache, value)
    for n in range(1, 5):
        for each in value[:-1]:
            each[7] = each[7]  # written, not changed
        value[-1][8] = n
        interrupted(cache, value, Interruption(at), monkeypatch)
        assert [n] == [each[8] for each in published(cache, value)[-1:]]
        assert [0.0] * 4 == [each[8] for each in published(cache, value)[:-1]]


class Part:
    """A part that cannot always be pickled."""

    def __init__(self) -> None:
        self.refusals: Iterator[bool] = iter(())

    def __getstate__(self) -> Any:
        if next(self.refusals, False):
            raise ZeroDivisionError
        return {"refusals": iter(())}


@pytest.mark.parametrize("refusals", list(itertools.product([False, True], repeat=2)), ids=str)
def test_part_that_cannot_be_pickled_once(refusals: Any, caches: Any) -> None:
    """Where pickling fails, to compare or to publish, the change is published by the next call."""
    part = Part()
    value = {"rows": np.zeros(COUNT), "part": part}
    cache = caches[0]
    published(cache, value)
    for n in range(1, 7):
        value["rows"][n] = n  # type: ignore[index]
        part.refusals = iter(refusals)
        for _ in range(3):
            with contextlib.suppress(ZeroDivisionError):
                assert n == published(cache, value)["rows"][n]
        assert n == published(cache, value)["rows"][n]


@pytest.mark.parametrize("error", [StoreFullError("full"), MemoryError(), KeyboardInterrupt()])
def test_publication_that_fails_once(error: Any, caches: Any, monkeypatch: Any) -> None:
    """Where a changed value cannot be stored, it is stored by the next call."""
    table = np.zeros(COUNT)
    cache = caches[0]
    cache._keep = lambda payload: stores.keep(payload)  # noqa: PLW0108  as patched below
    published(cache, table)
    for n in range(1, 7):
        table[n] = n
        failing = Interruption(0, error=error)
        with monkeypatch.context() as patched, pytest.raises(type(error)):
            patched.setattr(stores, "keep", failing.before(stores.keep))
            published(cache, table)
        assert n == published(cache, table)[n]


def test_value_that_is_as_it_was_again(caches: Any, monkeypatch: Any) -> None:
    """A change that was taken back before a comparison came to its end is none."""
    table = np.zeros(COUNT)
    cache = caches[0]
    published(cache, table)
    table[5] = 1
    interrupted(cache, table, Interruption(0), monkeypatch)
    table[5] = 0
    lease = cache.lease(table)
    assert lease.hit
    lease.release()
    table[5] = 1
    assert 1 == published(cache, table)[5]


@pytest.mark.parametrize("first", range(3))
def test_one_check_leaves_the_others_their_changes(
    first: int, caches: Any, monkeypatch: Any
) -> None:
    """Whatever looks at pages, interrupted or not: what else is published of them is compared."""
    base = np.zeros(COUNT)
    values = [base, base[100:], {"a": base[:-100]}]
    for cache in caches:
        for value in values:
            published(cache, value)
    order = [*range(first, 3), *range(first)]
    for n in range(1, 6):
        base[COUNT // 2] = n
        for k in order:
            interrupted(caches[k], values[k], Interruption(0), monkeypatch)
        for cache, value in itertools.product(caches, values):
            (found,) = numbers(published(cache, value))
            assert n == found[COUNT // 2 - (100 if value is values[1] else 0)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupt_while_pages_are_watched(when: str, caches: Any, monkeypatch: Any) -> None:
    """An interrupt between any two requests to the kernel loses no change, here or beside."""
    base = np.zeros(COUNT)
    values: list[Any] = [base, base[1000:]]
    for at in range(12):
        for cache in caches:
            for value in values:
                published(cache, value)
        base[COUNT // 2] += 1
        interruption = Interruption(at)
        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(fcntl, "ioctl", getattr(interruption, when)(fcntl.ioctl))
            published(caches[0], base)
        for cache in caches:
            assert base[-1] == published(cache, values[1])[-1]
            assert base[COUNT // 2] == published(cache, base)[COUNT // 2]
            assert base[COUNT // 2] == published(cache, values[1])[COUNT // 2 - 1000]


def test_fork_after_an_unfinished_check(caches: Any, monkeypatch: Any) -> None:
    """Both the child and the parent find what an interrupted comparison did not."""
    table = np.zeros(COUNT)
    cache = caches[0]
    published(cache, table)
    for n in range(1, 4):
        table[9] = n
        interrupted(cache, table, Interruption(0), monkeypatch)
        told = in_child(lambda: published(cache, table)[9])
        assert f"np.float64({n}.0)" == told
        assert n == published(cache, table)[9]


def test_threads_publish_and_check_at_once(caches: Any) -> None:
    """While one thread publishes what overlaps, another one misses no change of its own."""
    base = np.zeros(COUNT)
    stop = threading.Event()

    def publish() -> None:
        while not stop.is_set():
            cache = ShareCache(limit=1 << 30)
            for start in (0, 10, 5000):
                published(cache, base[start:])
            cache.clear()

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for n in range(1, 60):
            base[COUNT // 3] = n
            assert n == published(caches[n % 2], base)[COUNT // 3]
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# ------------------------------------------------------------------------------ by a call


def total(_x: int, table: Shared[Any]) -> float:
    return float(table["rows"].sum())


@pytest.mark.parametrize("where", ["process", "ray"])
@pytest.mark.parametrize("by", ["comparison", "pickling", "store"])
def test_call_after_one_that_failed_sees_the_change(
    where: Any, by: str, request: Any, monkeypatch: Any
) -> None:
    """A call that is interrupted, or cannot share a changed value, leaves it to the next one."""
    if where == "ray":
        request.getfixturevalue("ray_runtime")
    task: Any = parallel(backend=where)(total)
    part = Part()
    table: Any = {"rows": np.zeros(COUNT), "part": part, "born here": array(np.ones(3))}
    assert [0.0] == task.map([0], table=table)
    for n in range(1, 7):
        table["rows"][0] = n
        with monkeypatch.context() as patched:
            interruption = Interruption(0)
            if by == "comparison":
                same = interruption.before(dirty_pages.same_bytes)
                patched.setattr(dirty_pages, "same_bytes", same)
            elif by == "pickling":
                part.refusals = iter((True,))
            else:
                refuse_to_store(where, interruption, patched)
            with pytest.raises((KeyboardInterrupt, ZeroDivisionError, TypeError)):
                task.map([0], table=table)
        assert [float(n)] == task.map([0], table=table)


def refuse_to_store(where: str, interruption: Interruption, patched: Any) -> None:
    """Interrupt what would store the changed value."""
    if where == "process":
        from sharedtask.memory import segments

        patched.setattr(segments, "write", interruption.before(segments.write))
    else:
        import ray

        patched.setattr(ray, "put", interruption.before(ray.put))


def test_handle_and_captured_array_over_the_same_pages(monkeypatch: Any) -> None:
    """A check that was interrupted for a parameter has lost nothing of what is captured."""
    rows = np.zeros(COUNT)

    def captured(x: int) -> float:
        return float(rows[x])

    on_process = parallel(backend="process")
    reads, adds = on_process(captured), on_process(total)
    table = {"rows": rows}
    with share(rows) as handle:
        for n in range(5):
            rows[3] = n
            interruption = Interruption(0)
            with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
                same = interruption.before(dirty_pages.same_bytes)
                patched.setattr(dirty_pages, "same_bytes", same)
                adds.map([0], table=table)
            assert [float(n)] == reads.map([3])
            assert [float(n)] == adds.map([0], table=table)
        assert 0.0 == handle.value[3]


SIGINT = """
import contextlib, os, signal
import numpy as np
from sharedtask import Shared, parallel
from sharedtask.system import libc

signal.signal(signal.SIGINT, signal.default_int_handler)
memcmp, interrupts = libc.memcmp, []

def interrupted(*args):
    if interrupts:
        os.kill(os.getpid(), interrupts.pop())
    return memcmp(*args)

libc.memcmp = interrupted

@parallel(backend="process", workers=2)
def last(_, table: Shared) -> float:
    return float(table[-1])

table = np.zeros(8 << 20)
assert last.map([0], table=table) == [0.0]
for n in range(1, 9):
    table[-1] = n
    interrupts.append(signal.SIGINT)
    try:
        last.map([0], table=table)
    except KeyboardInterrupt:
        print("interrupted")
    assert last.map([0], table=table) == [float(n)]
"""


def test_ctrl_c_in_the_middle_of_a_comparison(run: Callable[..., str], watch: str) -> None:
    """SIGINT while a changed array is compared: the next call sees the change."""
    assert (
        8 * ["interrupted"] == run(SIGINT, SHAREDTASK_WATCH=os.environ["SHAREDTASK_WATCH"]).split()
    )
    assert watch
