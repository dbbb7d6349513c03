"""Limits of the system: address space, mappings, descriptors, processes."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import Shared, SharedTaskError, StoreFullError, parallel, shutdown

Run = Callable[..., str]

HEAD = """\
import ctypes, mmap, os, resource, sys
import numpy as np
import sharedtask
from sharedtask import Shared, SharedTaskError, StoreFullError, parallel, share, zeros

def use(x, table: Shared):
    return float(table[0] + table[-1]) + x

def make(n):
    return np.ones(n)

small = np.ones(300)
task = parallel(use).with_options(backend="process", workers=2, return_exceptions=True)
made = parallel(make).with_options(backend="process", workers=2, return_exceptions=True)

def read(path):
    with open(path) as file:
        return file.read()

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def right():
    assert task.map(range(4), table=small) == [2.0, 3.0, 4.0, 5.0]
    assert [len(r) for r in made.map([3, 200_000, 5])] == [3, 200_000, 5]
"""


@pytest.fixture
def new_workers() -> Iterator[None]:
    """The limits of this test's workers go with them."""
    shutdown()
    yield
    shutdown()


def limit_addresses(megabytes: int) -> int:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    size = pages * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))
    return os.getpid()


def limit_files(spare: int) -> int:
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, 4096))
    return os.getpid()


def limit_every_worker(limit: Any, number: int) -> None:
    task = parallel(limit).with_options(backend="process", workers=2, chunksize=1)
    pids: set[int] = set()
    while len(pids) < 2:
        pids |= set(task.map([number] * 4))


def total(x: int, table: Shared[Any]) -> float:
    return float(table[0]) + x


@pytest.mark.usefixtures("new_workers")
def test_address_space_of_a_worker() -> None:
    """Where a task gets no memory that is MemoryError at its item, and the worker lives on."""
    limit_every_worker(limit_addresses, 200)
    task = parallel(np.ones).with_options(
        backend="process", workers=2, return_exceptions=True, chunksize=2
    )
    results: Any = task.map([10, 1_000_000_000, 20, 30])
    assert [10, 20, 30] == [len(results[k]) for k in (0, 2, 3)]
    assert isinstance(results[1], MemoryError)


@pytest.mark.usefixtures("new_workers")
def test_value_that_a_worker_cannot_map() -> None:
    """A value, an item or a result that does not fit a worker is right elsewhere, or an error."""
    limit_every_worker(limit_addresses, 60)
    table = np.ones(20_000_000)
    shared = parallel(total).with_options(
        backend="process", workers=2, return_exceptions=True, chunksize=1
    )
    results: Any = shared.map(range(4), table=table)
    for x, result in enumerate(results):
        assert isinstance(result, SharedTaskError | MemoryError) or result == 1.0 + x
    echo = parallel(len).with_options(
        backend="process", workers=2, return_exceptions=True, chunksize=1
    )
    for item in (bytes(100_000_000), table):
        found: Any
        for found in echo.map([item, item[:5]]):
            assert isinstance(found, SharedTaskError | MemoryError) or found in {len(item), 5}
    big = parallel(np.ones).with_options(
        backend="process", workers=2, return_exceptions=True, chunksize=1
    )
    made: Any = big.map([20_000_000, 5])
    for result in made:
        assert isinstance(result, SharedTaskError | MemoryError) or len(result) in {20_000_000, 5}


def test_address_space_of_the_caller(run: Run) -> None:
    """Under RLIMIT_AS a value that does not fit is an error, and the next call is right."""
    text = f"""{HEAD}
right()
big = np.ones(25_000_000)
size = int(read("/proc/self/statm").split()[0]) * mmap.PAGESIZE
resource.setrlimit(resource.RLIMIT_AS, (size + 100_000_000, resource.RLIM_INFINITY))
for _ in range(3):
    for call in (lambda: task.map([0], table=big), lambda: share(big), lambda: zeros(25_000_000)):
        try:
            call()
        except StoreFullError as error:
            assert "200.0 MB needed" in str(error), error
        else:
            raise SystemExit("no error")
    right()
print("OK")
"""
    assert "OK\n" == run(text)


def test_limit_that_workers_inherit(run: Run) -> None:
    """Under ``ulimit -v`` from the start everything works as far as memory goes."""
    text = f"""{HEAD}
resource.setrlimit(resource.RLIMIT_AS, (4_000_000_000, 4_000_000_000))
right()
found = made.map([10, 1_000_000_000, 20])
assert [len(found[0]), len(found[2])] == [10, 20]
assert isinstance(found[1], MemoryError), found[1]
right()
print("OK")
"""
    assert "OK\n" == run(text)


def test_all_mappings_are_used(run: Run) -> None:
    """Where the kernel gives no more mappings, that is StoreFullError that names its limit."""
    with open("/proc/sys/vm/max_map_count") as file:
        if int(file.read()) > 300_000:
            pytest.skip("so many mappings take too long to make")
    text = f"""{HEAD}
right()
big = np.ones(300_000)
count = int(read("/proc/sys/vm/max_map_count"))
c = ctypes.CDLL(None)
room = mmap.mmap(-1, 2 * count * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
page = ctypes.c_size_t(mmap.PAGESIZE)
k = 1
while c.mprotect(ctypes.c_void_p(start + k * mmap.PAGESIZE), page, 1) == 0:
    k += 2
for call in (lambda: task.map([0], table=big), lambda: share(big)):
    try:
        call()
    except StoreFullError as error:
        assert "vm.max_map_count" in str(error), error
    except MemoryError:  # Python's own, whose arenas are mappings too
        continue
    else:
        raise SystemExit("no error")
assert task.map(range(2), table=small) == [2.0, 3.0]
for j in range(1, k, 2):
    c.mprotect(ctypes.c_void_p(start + j * mmap.PAGESIZE), page, 3)
assert task.map(range(2), table=big) == [2.0, 3.0]
right()
print("OK")
"""
    assert "OK\n" == run(text)


@pytest.mark.parametrize("spare", [1, 2, 4])
@pytest.mark.usefixtures("new_workers")
def test_descriptors_of_a_worker(spare: int) -> None:
    """Where a worker may open no more files, values and items are right, or an error: no hang."""
    limit_every_worker(limit_files, spare)
    tables = [np.full(100_000, float(k)) for k in range(4)]
    task = parallel(total).with_options(
        backend="process", workers=2, return_exceptions=True, chunksize=1
    )
    for k, table in enumerate(tables):
        results: Any = task.map(range(4), table=table)
        for x, result in enumerate(results):
            assert isinstance(result, SharedTaskError | OSError) or result == k + x
    echo = parallel(len).with_options(
        backend="process", workers=2, return_exceptions=True, chunksize=1
    )
    lengths: Any = echo.map([np.ones(300_000)] * 4)
    for found in lengths:
        assert isinstance(found, SharedTaskError | OSError) or found == 300_000


NO_FORK = """
import errno, os
real = os.fork
def fork():
    if os.path.exists(os.environ.get("SHAREDTASK_TEST_NO_FORK", "")):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()
os.fork = fork
"""


def test_no_more_processes(run: Run, tmp_path: Path) -> None:
    """Where the system forks no worker that is an error of ours, and later it works."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_FORK)
    flag = tmp_path / "no-fork"
    flag.touch()
    text = f"""{HEAD}
for how in (0, 1):
    try:
        found = task.map(range(4), table=small)
    except (SharedTaskError, OSError) as error:
        found = [error]
    assert all(isinstance(f, SharedTaskError) and "forked none" in str(f) for f in found), found
os.unlink({str(flag)!r})
right()
print("OK")
"""
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    assert "OK\n" == run(text, PYTHONPATH=path, SHAREDTASK_TEST_NO_FORK=str(flag))


def test_no_more_descriptors_for_a_pool(run: Run) -> None:
    """Where not even a pool can be started, that is an error, and later it works."""
    text = f"""{HEAD}
first = max(map(int, os.listdir("/proc/self/fd")))
old = resource.getrlimit(resource.RLIMIT_NOFILE)
outcomes = []
for spare in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15):
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + spare, old[1]))
    try:
        outcomes.append(task.map(range(2), table=small) == [2.0, 3.0])
    except (SharedTaskError, OSError) as error:
        outcomes.append(None)
    resource.setrlimit(resource.RLIMIT_NOFILE, old)
    assert task.map(range(2), table=small) == [2.0, 3.0]
    sharedtask.shutdown()
assert None in outcomes, outcomes
right()
print("OK")
"""
    assert "OK\n" == run(text)


def test_store_full_is_a_memory_error() -> None:
    """Programs that know nothing of us catch it as what it is."""
    assert issubclass(StoreFullError, MemoryError)
