"""Ctrl-C at every place of a call where Python can notice it: see interrupting.py."""

import gc
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import with_long
from interrupting import interrupted_at, places_of

import sharedtask
from sharedtask import CopyOnWrite, Locked, Partitioned, Reduced, Shared, attach, parallel, share
from sharedtask.testing import Deadline, warm_up

pytestmark = pytest.mark.usefixtures("interruptible")


@parallel(workers=2)
def look(x: int, table: Shared[Any]) -> float:
    return float(table[0]) + x


@parallel(workers=2)
def scribble(x: int, table: CopyOnWrite[Any]) -> float:
    table[0] += x
    return float(table[0])


@parallel(workers=2)
def fill(x: int, out: Partitioned[Any]) -> None:
    out[...] = x


@parallel(workers=2)
def count(x: int, total: Reduced[Any]) -> None:
    total[0] += x


@parallel(workers=2)
def deposit(x: int, account: Locked[Any]) -> None:
    with account.write() as view:
        view[:] = view + x


@parallel(workers=2, backend="process")
def large(x: int) -> Any:
    return np.full(1 << 18, x)


class Case:
    """A call, what is done before each, and how one knows that it is right."""

    fresh = False  # a new value each time
    keeps: tuple[str, ...] = ()  # places where what the call holds stays, as documented

    def __init__(self, backend: str, tmp_path: Path) -> None:
        self.backend, self.tmp_path = backend, tmp_path
        self.n = 0
        self.table = np.zeros(20_000)

    def task(self, task: Any) -> Any:
        return task.with_options(backend=self.backend)

    def change(self) -> None:
        self.n += 1
        if self.fresh:
            self.table = np.full(20_000, float(self.n))
        else:
            self.table[:] = self.n

    def expected(self) -> Any:
        return [self.n + x for x in range(4)]

    def call(self) -> Any:
        return self.task(look).map(range(4), table=self.table)

    def __call__(self) -> Any:
        return self.call()

    def check(self) -> None:
        assert self.expected() == self.call()


class Warm(Case):
    """The value is as it was."""

    def change(self) -> None:
        pass


class Changed(Case):
    """The value has changed: it is published again."""


class First(Case):
    """The value is another one: it is published, and what was before goes."""

    fresh = True


class Huge(First):
    """The value is large enough for huge pages."""

    def change(self) -> None:
        self.n += 1
        self.table = np.full(600_000, float(self.n))


class Stream(Case):
    """Results are taken one by one."""

    def call(self) -> Any:
        return list(self.task(look).imap(range(4), table=self.table))


class Left(Case):
    """A stream is left half-way."""

    def expected(self) -> Any:
        return [self.n + 0]

    def call(self) -> Any:
        stream = self.task(look).imap(range(100), table=self.table)
        found = [next(stream)]
        stream.close()
        return found


class Unordered(Case):
    """Results are taken as they come."""

    def call(self) -> Any:
        return sorted(self.task(look).imap_unordered(range(4), table=self.table))


class Single(Case):
    """One item, by a future."""

    def expected(self) -> Any:
        return self.n + 1

    def call(self) -> Any:
        return self.task(look).submit(1, table=self.table).result()


class Large(Case):
    """Results come in segments of their own."""

    def expected(self) -> Any:
        return [(0, 1 << 18), (1, 1 << 18)]

    def call(self) -> Any:
        return [(int(each[-1]), each.size) for each in large.map(range(2))]


class Large2(Case):
    """Arguments and items go in segments of their own."""

    def expected(self) -> Any:
        return [float(self.n)] * 2

    def call(self) -> Any:
        add = self.task(parallel(lambda item, rest: float(item[0] + rest[0])))
        return add.map([np.full(1 << 18, self.n)] * 2, rest=np.zeros(1 << 18))


class Private(Case):
    """The value is copied on write."""

    def call(self) -> Any:
        return self.task(scribble).map(range(4), table=self.table)


class Handle(Case):
    """The value is shared by a handle, which is closed."""

    def call(self) -> Any:
        with share(self.table) as handle:
            return self.task(look).map(range(4), table=handle)


class Dropped(Case):
    """The value is shared by a handle, which is not closed."""

    def call(self) -> Any:
        return self.task(look).map(range(4), table=share(self.table))


class Named(Case):
    """The value is shared by name, which stays on the way into the ``with`` block."""

    keeps = ("Handle.__enter__ at -1", "Named.call at")

    def call(self) -> Any:
        name = f"interrupted-{uuid.uuid4().hex}"
        with share(self.table, name=name), attach(name) as handle:
            return self.task(look).map(range(4), table=handle)


class Born(Case):
    """The value is born in shared memory."""

    def call(self) -> Any:
        return self.task(look).map(range(4), table=sharedtask.array(self.table))


class Journalled(Case):
    """Results are recorded."""

    def call(self) -> Any:
        task = self.task(look).with_options(journal=self.tmp_path / f"{self.n}.journal")
        return task.map(range(4), table=self.table)


class Written(Case):
    """Tasks write the blocks of an array."""

    def expected(self) -> Any:
        return [0, 1, 2, 3]

    def call(self) -> Any:
        out = np.zeros(4)
        self.task(fill).map(range(4), out=out)
        return out.tolist()


class Into(Case):
    """Results are written into an array."""

    def call(self) -> Any:
        out = np.zeros(4)
        return self.task(look).map_into(out, range(4), table=self.table).tolist()


class Added(Case):
    """Tasks add up."""

    def expected(self) -> Any:
        return 6.0

    def call(self) -> Any:
        total = np.zeros(4)
        self.task(count).map(range(4), total=total)
        return float(total[0])


class Locking(Case):
    """Tasks lock an array."""

    def expected(self) -> Any:
        return [6.0] * 4

    def call(self) -> Any:
        account = np.zeros(4)
        self.task(deposit).map(range(4), account=account)
        return account.tolist()


class Fallible(Case):
    """Items fail."""

    def expected(self) -> Any:
        return [0, "ZeroDivisionError"]

    def call(self) -> Any:
        task = self.task(parallel(lambda x: x // (1 - x))).with_options(return_exceptions=True)
        return [each if each == 0 else type(each).__name__ for each in task.map(range(2))]


CASES: dict[str, type[Case]] = {
    case.__name__: case
    for case in (
        Warm,
        Changed,
        First,
        Huge,
        Stream,
        Left,
        Unordered,
        Single,
        Large,
        Large2,
        Private,
        Handle,
        Dropped,
        Named,
        Born,
        Journalled,
        Written,
        Into,
        Added,
        Locking,
        Fallible,
    )
}


def held() -> tuple[int, int]:
    """How many descriptors are open, and how many of our mappings there are.

    Where Ray runs, sockets do not count: it connects to new workers at any moment.
    """
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    targets = [_target_of(name) for name in os.listdir("/proc/self/fd")]
    if "ray" in sys.modules:
        targets = [each for each in targets if not each.startswith("socket:")]
    return len(targets), maps.count("memfd:sharedtask")


def _target_of(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except FileNotFoundError:  # it was that of the listing itself
        return ""


def settled(base: tuple[int, int]) -> tuple[int, int]:
    """What is held when it is no more than this, or after some seconds."""
    deadline = Deadline(5)
    while True:
        now = held()
        if (now[0] <= base[0] and now[1] <= base[1]) or deadline.is_over:
            return now
        time.sleep(0.01)


def run_case(case: Case, places: int, offset: int = 0) -> list[str]:
    """Interrupt the call at this many of its places; what was wrong."""
    for _ in range(3):
        case.change()
        case.check()
    case.change()
    known = places_of(case.call)
    case.check()
    base, wrong = held(), []
    every = max(len(known) // places, 1)
    for place in known[offset % every :: every]:
        case.change()
        outcome = interrupted_at(place, case.call)
        if not outcome.fired:
            continue
        if type(outcome.raised) is not KeyboardInterrupt or outcome.ignored:
            wrong.append(f"{place}: {outcome}")
        late = Deadline(5)
        try:
            case.check()
        except BaseException as error:
            wrong.append(f"{place}: the next call: {error!r}")
        if late.is_over:
            wrong.append(f"{place}: the next call took more than 5 s")
        now = settled(base)
        if any(each in str(place) for each in case.keeps):
            base = now
        if now[0] > base[0] or now[1] > base[1]:
            wrong.append(f"{place}: {base} held before, {now} after")
            base = now
    return wrong


SHORT = ("Changed", "First", "Stream", "Dropped")


@pytest.mark.parametrize("name", with_long(CASES, *(name for name in CASES if name not in SHORT)))
def test_interrupted_anywhere(tmp_path: Path, name: str) -> None:
    """An interrupt is raised once, what the call held is given back, and the next call is right.

    A hundred thousand for SHAREDTASK_TEST_PLACES tries all places, in minutes.
    """
    places = int(os.environ.get("SHAREDTASK_TEST_PLACES", "12" if os.environ.get("CI") else "8"))
    warm_up()
    assert [] == run_case(CASES[name]("process", tmp_path), places)


LOCAL = [(name, backend) for name in CASES if name != "Large" for backend in ("serial", "thread")]


@pytest.mark.long
@pytest.mark.parametrize(("name", "backend"), LOCAL)
def test_interrupted_anywhere_in_this_process(tmp_path: Path, name: str, backend: str) -> None:
    """The same holds where tasks run in this process."""
    assert [] == run_case(CASES[name](backend, tmp_path), 12)


ON_RAY = ("Changed", "First", "Stream", "Single", "Written")


@pytest.mark.long
@pytest.mark.parametrize("name", ON_RAY)
def test_interrupted_anywhere_on_ray(ray_runtime: None, tmp_path: Path, name: str) -> None:
    """The same holds on Ray."""
    assert [] == run_case(CASES[name]("ray", tmp_path), 8)
