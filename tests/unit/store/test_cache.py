import copy
import ctypes
import gc
import mmap
import os
import pickle
import resource
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import ClosedError, CopyOnWrite, Shared, UnshareableError, parallel, share, shutdown
from sharedtask.memory import capacity, dirty_pages
from sharedtask.serialization import codec
from sharedtask.store.cache import ShareCache
from sharedtask.store.publication import Publication
from sharedtask.testing import until

pytestmark = pytest.mark.timeout(60)

PAGE = 4096
BIG = 3_000_001  # bytes: watched where the kernel can, and no multiple of a page


@pytest.fixture(params=["watched", "compared"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to find changes; the answers are the same."""
    name: str = request.param
    if name == "compared":
        monkeypatch.setenv("SHAREDTASK_WATCH", "off")
    else:
        monkeypatch.delenv("SHAREDTASK_WATCH", raising=False)
    return name


@parallel(backend="process")
def read(places: Any, table: Shared[Any]) -> list[int]:
    return [int(table[k]) for k in places]


@parallel(backend="process")
def look(_x: int, value: Shared[Any]) -> Any:
    return value


@parallel(backend="process")
def first(_x: int, table: Shared[Any]) -> float:
    return float(table.reshape(-1)[0])


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Counts of the tasks above begin at zero."""
    for task in (read, look, first):
        task.cache_clear()


@pytest.fixture
def cache() -> Iterator[ShareCache]:
    """A cache without workers."""
    made = ShareCache(limit=1 << 30)
    yield made
    made.clear()


def hit(cache: ShareCache, value: Any, **options: Any) -> bool:
    lease = cache.lease(value, **options)
    try:
        return lease.hit
    finally:
        lease.release()


def change(table: Any, place: int, how: str) -> None:
    """Change one byte in one of many ways."""
    if how == "item":
        table[place] += 1
    elif how == "view":
        view = table[::-1][: len(table)]
        view[len(table) - 1 - place % len(table)] += 1
    elif how == "memoryview":
        memoryview(table)[place] = int(table[place]) + 1
    elif how == "C code":
        ctypes.memset(table.ctypes.data + place % len(table), int(table[place]) + 1, 1)
    elif how == "readv":
        read_end, write_end = os.pipe()
        os.write(write_end, bytes([int(table[place]) + 1]))
        at = place % len(table)
        os.readv(read_end, [memoryview(table)[at : at + 1]])
        os.close(read_end)
        os.close(write_end)
    elif how == "thread":
        thread = threading.Thread(target=change, args=(table, place, "item"))
        thread.start()
        thread.join()
    elif how == "out=":
        np.add(table, 1, out=table)


PLACES = [0, -1, 1, PAGE - 1, PAGE, PAGE + 1, BIG // 2, BIG - PAGE, 2 * PAGE * 100 - 1]
HOWS = ["item", "view", "memoryview", "C code", "readv", "thread", "out="]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [2 * PAGE * 100 + 10, BIG], ids=["small", "big"])
def test_changed_byte_is_seen_wherever_it_is(size: int, place: int, watch: str) -> None:
    """One changed byte, first, last, at an edge of a page or inside, is shared again."""
    if place >= size:
        pytest.skip("outside of this array")
    table = np.zeros(size, np.uint8)
    assert [[0]] == read.map([[place]], table=table)
    for value in (1, 2, 3, 4):  # beyond the changes after which watching is given up
        change(table, place, "item")
        assert [[value]] == read.map([[place]], table=table)
    assert (0, 5) == read.cache_info()[:2]
    assert [[4]] == read.map([[place]], table=table)
    assert 1 == read.cache_info().hits


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("offset", [0, 1, 100])
def test_change_is_seen_however_it_was_made(how: str, offset: int, watch: str) -> None:
    """A byte that a view, C code, the kernel or another thread changed is seen."""
    base = np.zeros(BIG + offset, np.uint8)
    table = base[offset:]
    assert [[0, 0, 0]] == read.map([[0, BIG // 2, -1]], table=table)
    for n, place in enumerate((0, BIG // 2, -1), start=1):
        change(table, place, how)
        assert [[int(table[k]) for k in (0, BIG // 2, -1)]] == read.map(
            [[0, BIG // 2, -1]], table=table
        )
        assert int(table[place]) in {1, n}


def test_change_by_a_forked_child_is_not_ours(watch: str) -> None:
    """What a forked child writes into its copy changes nothing here."""
    cache = ShareCache(limit=1 << 30)
    table = np.zeros(BIG, np.uint8)
    assert not hit(cache, table)
    pid = os.fork()
    if pid == 0:
        table[:] = 1
        os._exit(0)
    os.waitpid(pid, 0)
    assert hit(cache, table)
    cache.clear()


def test_unchanged_value_is_not_sent_again(watch: str) -> None:
    """A second call with the same value is a hit, whatever the task."""
    table = np.zeros(BIG, np.uint8)
    read.map([[0]], table=table)
    read.map([[0]], table=table)
    look.map([0], value=table)
    assert (1, 1) == read.cache_info()[:2]
    assert (1, 0) == look.cache_info()[:2]


def test_write_of_the_same_value_changes_nothing() -> None:
    """A write that leaves the bytes as they were gives the same results."""
    table = np.zeros(BIG, np.uint8)
    for _ in range(4):
        assert [[0]] == read.map([[5]], table=table)
        table[5] = 0


def test_verify_identity_trusts_the_caller() -> None:
    """With ``verify="identity"`` a change in place is not looked for."""
    table = np.zeros(100, np.uint8)
    trusting = read.with_options(verify="identity")
    assert [[0]] == trusting.map([[0]], table=table)
    table[0] = 7
    assert [[0]] == trusting.map([[0]], table=table)
    assert [[7]] == read.map([[0]], table=table)


def test_verify_compare_sees_what_the_kernel_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``verify="compare"`` memory that hardware writes, past every watch, is compared."""
    table = np.zeros(BIG, np.uint8)
    assert [[0]] == read.map([[5]], table=table)  # watched from here on, where the kernel can
    monkeypatch.setattr(dirty_pages.Watch, "unchanged", lambda _: True)
    comparing = read.with_options(verify="compare")
    for value in (1, 2, 3, 0):
        table[5] = value
        assert [[value]] == comparing.map([[5]], table=table)
    assert [[0]] == comparing.map([[5]], table=table)
    assert 1 <= read.cache_info().hits


@pytest.mark.parametrize("how", ["share", "copy"])
def test_verify_compare_watches_nothing(how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``verify="compare"`` no pages are watched, of shared arrays and of captured ones."""
    monkeypatch.setattr(dirty_pages, "watch_all", lambda spans: 1 / 0)
    monkeypatch.setattr(dirty_pages, "watch", lambda *span: 1 / 0)
    table = np.zeros(BIG, np.uint8)
    comparing = read.with_options(verify="compare")
    capturing = parallel(lambda k: [int(table[k])])
    capturing = capturing.with_options(backend="process", verify="compare", captured=how)
    for value in (0, 1, 1, 2):
        table[5] = value
        assert [[value]] == comparing.map([[5]], table=table)
        assert [[value]] == capturing.map([5])


def test_reused_id_never_hits(watch: str) -> None:
    """An object at the address and id of a dead one is another value."""
    same_id = 0
    seen: set[int] = set()
    for k in range(200):
        table = np.full(50, k % 250, np.uint8)
        same_id += id(table) in seen
        seen.add(id(table))
        assert [[k % 250]] == read.map([[0]], table=table)
        del table
    assert 0 < same_id


@pytest.mark.parametrize("make", [dict, list], ids=["dict", "list"])
def test_reused_id_of_a_container_never_hits(make: Callable[[Any], Any]) -> None:
    """The same holds for values without weak references."""
    for k in range(100):
        value = make([("a", k)])
        assert [make([("a", k)])] == look.map([0], value=value)
        del value


@pytest.mark.parametrize("size", [BIG, 40_000_000])
def test_same_address_other_contents(size: int, watch: str) -> None:
    """An array that was allocated where a dead one was is shared again."""
    addresses = set()
    for k in range(8):
        table = np.full(size, k, np.uint8)
        addresses.add(table.ctypes.data)
        assert [[k, k]] == read.map([[0, -1]], table=table)
        del table
    assert 8 > len(addresses)  # else this test has tested nothing


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
def test_array_header_over_other_memory(watch: str) -> None:
    """A view object is one thing, the memory that it shows another: both are checked."""
    base = np.zeros((4, BIG), np.uint8)
    for k in range(4):
        base[k] = k
    table = base[0]
    assert [[0]] == read.map([[0]], table=table)
    table.shape = (BIG,)
    base[0] = 9
    assert [[9]] == read.map([[0]], table=table)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_changed_dtype_and_shape_are_seen() -> None:
    """The same bytes under another shape or dtype are another value."""
    table: Any = np.arange(24, dtype=np.int32)
    assert ["(24,) int32"] == parallel(describe).map([0], table=table)
    table.shape = (4, 6)
    assert ["(4, 6) int32"] == parallel(describe).map([0], table=table)
    table.dtype = np.float32
    assert ["(4, 6) float32"] == parallel(describe).map([0], table=table)


def describe(_x: int, table: Shared[Any]) -> str:
    return f"{table.shape} {table.dtype}"


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v.update(new=1),
        lambda v: v.pop("word"),
        lambda v: v.update(word="other"),
        lambda v: v["list"].append(3),
        lambda v: v["list"].__setitem__(0, 1.0),
        lambda v: v["list"].__setitem__(0, True),
        lambda v: v["rows"].__setitem__(0, 5),
        lambda v: v.update(rows=v["rows"] + 1),
        lambda v: v.update(word=v.pop("word")),
        lambda v: v["deep"][0]["x"].add(9),
    ],
    ids=["new", "no", "text", "append", "1.0", "True", "array", "other array", "order", "set"],
)  # fmt: skip
def test_every_change_of_a_nested_value_is_seen(edit: Callable[[Any], Any]) -> None:
    """Keys, their order, types and numbers: any change of a nested value is shared again."""
    value = {"list": [1, 2], "word": "w", "rows": np.zeros(300_000), "deep": [{"x": {1}}]}
    assert [spell(0, value)] == spelled.map([0], value=value)
    assert [spell(0, value)] == spelled.map([0], value=value)
    before = spell(0, value)
    edit(value)
    assert before != spell(0, value)
    assert [spell(0, value)] == spelled.map([0], value=value)


def spell(_x: int, value: Shared[Any]) -> str:
    return repr({k: v.tolist()[:3] if hasattr(v, "tolist") else v for k, v in value.items()})


spelled = parallel(spell).with_options(backend="process")


class Box:
    """A user's class with a weak reference."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.word = "a"


def test_object_that_changes_is_seen() -> None:
    """An attribute of an object that changed is seen."""
    box = Box(np.zeros(10))
    assert ["a"] == [b.word for b in look.map([0], value=box)]
    box.word = "b"
    assert ["b"] == [b.word for b in look.map([0], value=box)]
    box.rows[3] = 4
    assert [4.0] == [b.rows[3] for b in look.map([0], value=box)]


# --------------------------------------------------------------------------- what it holds


def segments() -> int:
    """Segments of our own that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum("memfd:sharedtask" in line for line in lines)


def test_value_that_dies_is_freed() -> None:
    """When the last reference to an array goes, its shared memory goes without another call."""
    table = np.zeros(BIG, np.uint8)
    read.map([[0]], table=table)
    before = segments()
    assert 1 == read.cache_info().currsize
    del table
    until(lambda: read.cache_info().currsize == 0)
    until(lambda: segments() < before)


@pytest.mark.parametrize(
    "make", [lambda a: {"a": a}, lambda a: [a], lambda a: (a, 1)], ids=["dict", "list", "tuple"]
)
def test_container_that_dies_is_freed(make: Callable[[Any], Any]) -> None:
    """A dict, list or tuple, which cannot be referred to weakly, is found dead by sweeping."""
    value = make(np.zeros(BIG, np.uint8))
    parallel(ignore).with_options(backend="process").map([0, 1], value=value)
    before = segments()
    del value
    until(lambda: segments() < before)


def ignore(_x: int, value: Shared[Any]) -> None:
    """Takes a value."""


def test_value_is_not_kept_alive() -> None:
    """The cache keeps neither an array nor a dict alive for long."""
    table, box = np.zeros(BIG, np.uint8), Box(np.zeros(5))
    inner = np.zeros(BIG, np.uint8)
    value = {"inner": inner}
    references: list[weakref.ref[Any]] = [weakref.ref(each) for each in (table, box, inner)]
    for each in (table, box, value):
        parallel(ignore).with_options(backend="process").map([0], value=each)
    del table, box, inner, value, each
    until(lambda: all(reference() is None for reference in references))


def test_bound_in_bytes() -> None:
    """The oldest values are given up when there is more than the bound; results stay right."""
    cache = ShareCache(limit=1_000_000)
    values = [np.full(300_000, k, np.uint8) for k in range(6)]
    for value in values:
        assert not hit(cache, value)
        assert 1_000_000 >= sum(p.nbytes for p in cache.publications())
    assert [False, True] == [hit(cache, values[0]), hit(cache, values[5])]
    cache.clear()


def test_least_recently_used_goes_first() -> None:
    """A value that was used lately stays."""
    cache = ShareCache(limit=1_000_000)
    a, b, c, d = (np.full(300_000, k, np.uint8) for k in range(4))
    for value in (a, b, c, a, d):
        hit(cache, value)
    assert [True, False] == [hit(cache, a), hit(cache, b)]
    cache.clear()


def test_value_larger_than_the_bound() -> None:
    """A value that is larger than the bound is used all the same, and is there while it is used."""
    cache = ShareCache(limit=1000)
    big = np.ones(200_000)
    lease = cache.lease(big)
    assert 200_000.0 == lease.publication.value().sum()
    other = cache.lease(np.zeros(200_000))
    assert not lease.publication.released
    lease.release()
    other.release()
    cache.clear()


def test_value_in_use_is_not_evicted(cache: ShareCache) -> None:
    """A lease keeps its memory whatever happens to the cache."""
    table = np.ones(200_000)
    lease = cache.lease(table)
    cache.clear()
    del table
    gc.collect()
    cache.sweep()
    assert 200_000.0 == lease.publication.value().sum()
    lease.release()
    assert lease.publication.released
    lease.release()


def test_change_while_the_old_one_is_in_use(cache: ShareCache) -> None:
    """A value that changed is published again; who uses the old one keeps it."""
    table = np.zeros(200_000)
    old = cache.lease(table)
    table[0] = 1
    new = cache.lease(table)
    assert [0.0, 1.0] == [old.publication.value()[0], new.publication.value()[0]]
    old.release()
    assert old.publication.released
    assert not new.publication.released
    new.release()


def test_threads_that_bring_the_same_value(cache: ShareCache) -> None:
    """Two threads with the same new value publish it once."""
    table = np.zeros(BIG, np.uint8)
    leases: list[Any] = []
    barrier = threading.Barrier(4)

    def bring() -> None:
        barrier.wait()
        leases.append(cache.lease(table))

    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 == len({lease.publication.token for lease in leases})
    assert 3 == sum(lease.hit for lease in leases)
    for lease in leases:
        lease.release()


def test_cache_info_counts() -> None:
    """``cache_info`` tells hits, misses, the bound, the number of values and their bytes."""
    table = np.zeros(BIG, np.uint8)
    other = {"a": np.zeros(BIG, np.uint8)}
    assert (0, 0, 0, 0) == tuple(look.cache_info()[k] for k in (0, 1, 3, 4))
    for value in (table, other, table, other, table):
        look.map([], value=value)
    info = look.cache_info()
    assert (3, 2) == (info.hits, info.misses)
    assert 2 == info.currsize
    assert 2 * BIG <= info.nbytes <= 2 * BIG + 100_000
    assert info.maxsize > 1 << 20
    assert ("hits", "misses", "maxsize", "currsize", "nbytes") == info._fields


def test_cache_clear_gives_the_memory_back() -> None:
    """``cache_clear`` frees the values of this task and starts the counts again."""
    table = np.zeros(BIG, np.uint8)
    read.map([[0]], table=table)
    before = segments()
    read.cache_clear()
    assert (0, 0, 0, 0) == tuple(read.cache_info()[k] for k in (0, 1, 3, 4))
    until(lambda: segments() < before)
    assert [[0]] == read.map([[0]], table=table)
    assert 1 == read.cache_info().misses


def test_cache_clear_leaves_other_tasks_alone() -> None:
    """What another task published is still there."""
    mine, theirs = np.zeros(BIG, np.uint8), np.ones(BIG, np.uint8)
    read.map([[0]], table=mine)
    first.map([0], table=theirs)
    read.cache_clear()
    assert 1 == first.cache_info().currsize
    first.map([0], table=theirs)
    assert 1 == first.cache_info().hits


def test_options_share_one_cache() -> None:
    """A task under other options finds what the first one published."""
    table = np.zeros(BIG, np.uint8)
    read.map([[0]], table=table)
    read.with_options(chunksize=1).map([[0]], table=table)
    assert 1 == read.cache_info().hits


def test_shared_and_copy_on_write_share_one_publication() -> None:
    """A value is published once for both roles."""

    def scribble(_x: int, table: CopyOnWrite[Any]) -> float:
        table[0] = 9
        return float(table[0])

    table = np.zeros(BIG, np.uint8)
    task = parallel(scribble).with_options(backend="process")
    first.map([0], table=table)
    assert [9.0] == task.map([0], table=table)
    assert (1, 0) == task.cache_info()[:2]
    assert [0.0] == first.map([0], table=table)


def test_shutdown_forgets_and_starts_anew() -> None:
    """After ``shutdown()`` the same value is published again."""
    table = np.ones(BIG, np.uint8)
    read.map([[0]], table=table)
    shutdown()
    assert 0 == read.cache_info().currsize
    assert [[1]] == read.map([[0]], table=table)


@pytest.mark.usefixtures("no_leaks")
def test_nothing_is_left_after_shutdown() -> None:
    """Descriptors, threads, processes and mappings are as before once all is shut down."""
    tables = [np.full(BIG, k, np.uint8) for k in range(5)]
    for table in tables:
        read.map([[0], [1]], table=table)
        list(look.imap([0, 1], value={"t": table}))


@pytest.mark.usefixtures("no_leaks_warm")
def test_nothing_piles_up_in_a_warm_pool() -> None:
    """A hundred calls with values that die leave nothing behind in a warm pool."""
    for k in range(100):
        read.map([[0], [1]], table=np.full(BIG // 10, k, np.uint8))
        look.map([0], value=[k])


# ---------------------------------------------------------------------------------- watching


def test_watch_is_used_here_or_cannot_be() -> None:
    """Where the kernel can watch memory, a large private array is watched."""
    table = np.zeros(BIG, np.uint8)
    watch = dirty_pages.watch(table.ctypes.data, table.nbytes)
    if watch is None:
        pytest.skip("userfaultfd is not to be had here")
    assert watch.unchanged()
    table[BIG // 2] = 1
    assert not watch.unchanged()
    watch.release()


@pytest.fixture
def needs_watches() -> None:
    table = np.zeros(BIG, np.uint8)
    watch = dirty_pages.watch(table.ctypes.data, table.nbytes)
    if watch is None:
        pytest.skip("userfaultfd is not to be had here")
    watch.release()


def test_each_of_many_is_watched_by_itself(needs_watches: None) -> None:
    """A write is noted by the watch over it and by no other, in whatever order they go."""
    whole = np.zeros(16 * dirty_pages.WATCH_FROM, np.uint8)
    parts = np.split(whole, 16)
    order = [3, 0, 15, 7, 1, 2, *range(8, 15), 4, 5, 6]
    spans = [(parts[n].ctypes.data, parts[n].nbytes) for n in order]
    watches = [watch for watch in dirty_pages.watch_all(spans) if watch is not None]
    assert 16 == len(watches)
    parts[7][len(parts[7]) // 2] = 1
    assert [n != 7 for n in order] == [watch.unchanged() for watch in watches]
    for watch in watches[::2]:
        watch.release()
    parts[0][len(parts[0]) // 2] = 1
    assert [n not in (0, 7) for n in order[1::2]] == [w.unchanged() for w in watches[1::2]]
    for watch in watches[1::2]:
        watch.release()


def test_small_ones_and_too_many_are_compared(needs_watches: None, monkeypatch: Any) -> None:
    """The kernel's record of mappings is not filled with watches."""
    monkeypatch.setattr(dirty_pages, "_MOST", len(dirty_pages._the_tracker()._watches) + 2)
    sizes = [100, *[dirty_pages.WATCH_FROM + (1 << 13)] * 3, dirty_pages.WATCH_FROM - 1]
    tables = [np.zeros(size, np.uint8) for size in sizes]
    watches = dirty_pages.watch_all([(table.ctypes.data, table.nbytes) for table in tables])
    assert [False, True, True, False, False] == [watch is not None for watch in watches]
    for watch in watches:
        if watch is not None:
            watch.release()


@pytest.mark.parametrize("at", [0, 5000, -1], ids=["first byte", "inside", "last byte"])
@pytest.mark.parametrize("n", [1, 100, 16_383, 16_384, 300_001, BIG])
def test_every_byte_counts_whatever_the_size(n: int, at: int) -> None:
    """A write anywhere in an array is seen, and so is the old value when it is written back."""
    table = np.zeros(n, np.uint8)
    place = at if at < n else n // 2
    publication = Publication(codec.encode(table), watched=True)
    assert publication.matches(codec.encode(table))
    table[place] = 1
    assert not publication.matches(codec.encode(table))
    table[place] = 0
    assert publication.matches(codec.encode(table))
    publication.release()


def test_shared_pages_are_never_watched(tmp_path: Path) -> None:
    """Memory that others may write through another mapping is compared, not watched."""
    shared = mmap.mmap(-1, 4 << 20)
    array = np.frombuffer(shared, np.uint8)
    assert dirty_pages.watch(array.ctypes.data, array.nbytes) is None
    path = tmp_path / "file"
    path.write_bytes(bytes(4 << 20))
    mapped = np.memmap(path, np.uint8, "c")
    assert dirty_pages.watch(mapped.ctypes.data, mapped.nbytes) is None


def test_array_over_shared_memory_is_seen_changed() -> None:
    """A write by another process into shared pages under an array is seen."""
    pages = mmap.mmap(-1, 4 << 20)
    table = np.frombuffer(pages, np.uint8)
    assert [[0]] == read.map([[3_000_000]], table=table)
    pid = os.fork()
    if pid == 0:
        pages[3_000_000] = 5
        os._exit(0)
    os.waitpid(pid, 0)
    assert [[5]] == read.map([[3_000_000]], table=table)


def test_two_values_over_the_same_memory(watch: str) -> None:
    """Two arrays that overlap are both seen changed, whichever was published first."""
    base = np.zeros(BIG, np.uint8)
    left, right = base[:-100], base[100:]
    for k in range(1, 5):
        base[BIG // 2] = k
        assert [[k]] == read.map([[BIG // 2]], table=left)
        assert [[k]] == read.map([[BIG // 2 - 100]], table=right)


# ------------------------------------------------------------------------------------ handles


def test_handle_is_a_context_manager() -> None:
    """A handle is open inside ``with`` and closed after it."""
    with share(np.ones(10)) as handle:
        assert 10.0 == handle.value.sum()
        assert 80 <= handle.nbytes
        assert not handle.closed
    assert [True] == [handle.closed]
    uses: list[Callable[[], Any]] = [
        lambda: handle.value,
        handle.__enter__,
        lambda: first.map([0], table=handle),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="closed"):
            use()
    handle.close()
    assert "closed" in repr(handle)


def test_value_of_a_handle_is_read_only_and_decoded_once() -> None:
    """The value of a handle is the workers' value: read-only, and one object."""
    with share({"rows": np.ones(300_000)}) as handle:
        assert handle.value is handle.value
        with pytest.raises(ValueError, match="read-only"):
            handle.value["rows"][0] = 2


def test_value_of_a_closed_handle_stays_valid() -> None:
    """What was taken from a handle may be used after it is closed."""
    with share(np.ones(300_000)) as handle:
        rows = handle.value
    assert 300_000.0 == rows.sum()


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_copy_of_a_handle_is_the_handle(twin: Callable[[Any], Any]) -> None:
    """Copies of a handle are the handle itself."""
    with share(np.ones(10)) as handle:
        assert twin(handle) is handle


def test_handle_is_not_pickled() -> None:
    """A handle says that it refers to memory of this process, and how to pass it."""
    with share(np.ones(10)) as handle:
        with pytest.raises(UnshareableError, match="Shared"):
            pickle.dumps(handle)
        with pytest.raises(UnshareableError):
            codec.encode({"h": handle})


def test_handle_inside_a_value_is_refused() -> None:
    """A handle inside a shared dict is an error before anything runs."""
    with share(np.ones(10)) as handle, pytest.raises(UnshareableError):
        look.map([0], value={"h": handle})


def test_what_cannot_be_shared_by_hand() -> None:
    """``share()`` of a value that holds a lock says where it is."""
    with pytest.raises(UnshareableError, match=r"\['a'\]"):
        share({"a": threading.Lock()})


def test_handle_that_is_dropped_gives_its_memory_back() -> None:
    """A handle that no one closed is closed by the collector."""
    before = segments()
    handle = share(np.ones(1_000_000))
    assert segments() > before or handle.nbytes
    files = len(os.listdir("/proc/self/fd"))
    del handle
    gc.collect()
    until(lambda: segments() == before)
    until(lambda: len(os.listdir("/proc/self/fd")) < files)


def test_threads_close_one_handle() -> None:
    """Closing from several threads while maps start is one closing; maps finish or are refused."""
    for _ in range(5):
        handle = share(np.ones(300_000))
        outcomes: list[Any] = []

        def use(handle: Any = handle, outcomes: list[Any] = outcomes) -> None:
            try:
                outcomes.append(first.map(range(4), table=handle))
            except ClosedError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=use) for _ in range(3)]
        threads += [threading.Thread(target=handle.close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 3 == len(outcomes)
        assert all(isinstance(o, ClosedError) or o == [1.0] * 4 for o in outcomes)


def test_reference_counts_are_kept() -> None:
    """Sharing a value does not change how often it is referred to, once all is done."""
    table = np.zeros(BIG, np.uint8)
    value = {"t": table}
    before = sys.getrefcount(table)
    read.map([[0]], table=table)
    parallel(ignore).with_options(backend="process").map([0], value=value)
    read.cache_clear()
    gc.collect()
    until(lambda: sys.getrefcount(table) <= before)


def test_bound_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that hold a descriptor each are given up, the oldest first, before there are none."""
    monkeypatch.setattr(capacity, "open_files", lambda: 40)
    cache = ShareCache(limit=1 << 30)
    values = [np.full(300_000, k, np.uint8) for k in range(60)]
    small = [np.full(3, k, np.uint8) for k in range(60)]
    for value in (*small, *values):
        assert not hit(cache, value)
    assert [True] * 20 == [hit(cache, value) for value in values[40:]]
    assert [True] * 60 == [hit(cache, value) for value in small]
    assert not hit(cache, values[39])
    cache.clear()


def test_files_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many files may be open as one likes, values are kept."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert 1 << 30 < capacity.open_files()
