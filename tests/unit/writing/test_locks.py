"""Locks between processes and threads; the processes are programs that are told each step."""

import base64
import contextlib
import ctypes
import doctest
import fcntl
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np
import pytest

import sharedtask
from sharedtask.errors import ClosedError, LockOrderError, RegionPoisonedError
from sharedtask.memory import locations
from sharedtask.testing import Belongings, assert_nothing_left, until
from sharedtask.writing.locked import rwlock
from sharedtask.writing.locked.rwlock import Locks, Span, Table

pytestmark = pytest.mark.timeout(60)

CELLS = 16
PROGRAM = """
import base64, contextlib, pickle, sys
from sharedtask.errors import *
from sharedtask.writing.locked.rwlock import Locks, Span

memory, cells, data = pickle.loads(base64.b64decode(sys.argv[1]))
mine = Locks(memory, cells, name="grid")

def tell(word):
    print(word, flush=True)

def wait():
    return sys.stdin.readline()

def block(start, stop, **how):
    return mine.hold([Span(start, stop)], where=f"[{start}:{stop}]", **how)

tell("ready")
wait()
"""


class Other:
    """Another process with locks of its own, which goes on by a line of input."""

    def __init__(self, text: str, table: Table, data: Any = None) -> None:
        given = base64.b64encode(pickle.dumps((table.memory, table.cells, data))).decode()
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM + text, given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.pid = self.process.pid
        assert "ready" == self.hear()

    def go(self) -> None:
        """Let it take its next step."""
        _pipe(self.process.stdin).write("\n")

    def hear(self) -> str:
        """What it says next, "" at its end."""
        return str(_pipe(self.process.stdout).readline()).rstrip()

    def kill(self) -> None:
        """It is gone when this returns."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Ended, if it is not, and nothing of it is open."""
        self.kill()
        with contextlib.suppress(BrokenPipeError):
            _pipe(self.process.stdin).close()
        _pipe(self.process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Every test gives back its descriptors, mappings, threads and processes."""
    before = Belongings.now()
    yield
    assert_nothing_left(before)


@pytest.fixture
def table(nothing_left: None) -> Iterator[Table]:
    made = Table(CELLS)
    yield made
    made.close()


@pytest.fixture
def other(table: Table) -> Iterator[Callable[..., Other]]:
    """Start processes that know the table: ``other(program, data)``."""
    started: list[Other] = []

    def start(text: str, data: Any = None) -> Other:
        started.append(Other(text, table, data))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def opened(table: Table) -> Iterator[Callable[..., Locks]]:
    """Open the table once more: ``opened(name=..., rank=...)``."""
    made: list[Locks] = []

    def make(at: Table = table, **how: Any) -> Locks:
        made.append(Locks(at.memory, at.cells, **{"name": "grid", **how}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def in_thread(function: Callable[[], Any]) -> Any:
    """What ``function`` gives in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(60)


def is_free(table: Table, start: int = 0, stop: int = CELLS, *, write: bool = True) -> bool:
    """Whether a stranger gets these cells at once; what a dead writer left does not matter."""

    def tried() -> bool:
        mine = Locks(table.memory, table.cells, poisoned="continue")
        try:
            kind = fcntl.F_WRLCK if write else fcntl.F_RDLCK
            for first in (start, CELLS + start):  # the cells, and their turnstiles
                flock = rwlock._FLOCK(kind, 0, first, stop - start, 0)
                fcntl.fcntl(mine.fd, fcntl.F_OFD_SETLK, flock)
        except BlockingIOError:
            return False
        finally:
            mine.close()
        return True

    return bool(in_thread(tried))


def queued(table: Table, cell: int) -> bool:
    """Whether somebody is through the turnstile of this cell, and waits."""
    return bool(np.fromfile(f"/proc/self/fd/{table.memory.fd}", np.uint8)[4 * CELLS + cell])


ALL = [Span(0, CELLS)]

HOLDS = """
with block(*data[:2], write=data[2]):
    tell("in")
    wait()
tell("out")
wait()
"""

# ------------------------------------------------------------------------- who gets in

COUNTS = """
array, spans, times = data[0].view(writable=True), [Span(*span) for span in data[1]], data[2]
for _ in range(times):
    with mine.hold(spans, write=True):
        value = int(array[0])
        array[1] += 1
        array[0] = value + 1
tell("done")
"""


@pytest.mark.parametrize(
    "spans", [[(3, 4)], [(0, CELLS)], [(1, 2), (4, 9)]], ids=["cell", "all", "two spans"]
)
def test_no_update_is_lost_between_processes(
    spans: list[tuple[int, int]], other: Callable[..., Other]
) -> None:
    """Writers in four processes are in the same cells one after the other."""
    array = sharedtask.zeros(2, np.int64)
    found = locations.find(array)
    assert found is not None
    counting = [other(COUNTS, (found.region, spans, 2000)) for _ in range(4)]
    for each in counting:
        each.go()
    assert ["done"] * 4 == [each.hear() for each in counting]
    assert [8000, 8000] == array.tolist()


def test_no_update_is_lost_between_threads(opened: Callable[..., Locks]) -> None:
    """Threads of one process exclude one another as processes do."""
    counts = [0]

    def count(mine: Locks) -> None:
        for _ in range(1000):
            with mine.hold([Span(3, 4)], write=True):
                value = counts[0]
                os.sched_yield()  # gives the others their chance to read the same
                counts[0] = value + 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, [opened() for _ in range(4)]))
    assert [4000] == counts


def test_readers_and_writers_mixed_see_no_half(opened: Callable[..., Locks]) -> None:
    """No reader sees the two numbers differ that writers change one after the other."""
    numbers, torn = [0, 0], []

    def work(mine: Locks, write: bool) -> None:
        for k in range(500):
            start = k % (CELLS - 4)
            with mine.hold([Span(start, start + 1), Span(CELLS - 2, CELLS)], write=write):
                if write:
                    numbers[0] += 1
                    os.sched_yield()
                    numbers[1] += 1
                elif numbers[0] != numbers[1]:
                    torn.append(k)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [opened() for _ in range(4)], [True, False, True, False]))
    assert [] == torn
    assert [1000, 1000] == numbers


def test_readers_are_in_together(opened: Callable[..., Locks]) -> None:
    """Two readers of overlapping cells are in at the same time."""
    both = threading.Barrier(2, timeout=20)

    def read(mine: Locks, span: Span) -> None:
        with mine.hold([span], write=False):
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, [opened(), opened()], [Span(0, 8), Span(4, 12)]))


def test_disjoint_writers_are_in_together(opened: Callable[..., Locks]) -> None:
    """Writers of different cells do not wait for one another."""
    both = threading.Barrier(2, timeout=20)

    def write(mine: Locks, spans: list[Span]) -> None:
        with mine.hold(spans, write=True):
            both.wait()

    spans = [[Span(0, 4), Span(8, 9)], [Span(4, 8), Span(9, 12)]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [opened(), opened()], spans))


@pytest.mark.parametrize("first", [True, False], ids=["writer in", "reader in"])
@pytest.mark.parametrize("second", [True, False], ids=["writer comes", "reader comes"])
def test_who_waits_for_whom(
    first: bool, second: bool, table: Table, other: Callable[..., Other]
) -> None:
    """Of one cell there are many readers or one writer."""
    one = other(HOLDS, (2, 6, first))
    one.go()
    assert "in" == one.hear()
    assert (not first and not second) is is_free_for(table, second)
    one.go()
    assert "out" == one.hear()
    assert is_free(table)


def is_free_for(table: Table, write: bool) -> bool:
    return is_free(table, 5, 6, write=write)


def test_waiting_ends_with_the_holder(
    table: Table, other: Callable[..., Other], opened: Callable[..., Locks]
) -> None:
    """Who waits goes on when the other leaves its block."""
    one = other(HOLDS, (2, 6, True))
    one.go()
    assert "in" == one.hear()
    mine = opened()

    def write() -> bool:
        with mine.hold([Span(5, 7)], write=True):
            return is_free(table, 2, 5)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(write)
        until(lambda: queued(table, 5))
        assert not future.done()
        one.go()
        assert future.result(60)


def test_nothing_to_lock(table: Table, opened: Callable[..., Locks]) -> None:
    """An empty region locks nothing, whatever else is held."""
    mine = opened()
    with mine.hold(ALL, write=True), mine.hold([], write=True), opened().hold([], write=False):
        assert not is_free(table)
    assert is_free(table)


def test_spans_are_locked_and_no_more(table: Table, opened: Callable[..., Locks]) -> None:
    """Cells between the spans stay free, and all are free afterwards."""
    with opened().hold([Span(1, 2), Span(4, 6)], write=True):
        found = [is_free(table, cell, cell + 1) for cell in range(CELLS)]
    assert [cell not in {1, 4, 5} for cell in range(CELLS)] == found
    assert is_free(table)


# ------------------------------------------------------------------------- nobody starves


def test_writer_among_overlapping_readers(table: Table, opened: Callable[..., Locks]) -> None:
    """A writer comes in before any of four readers, never all out, has been in ten times."""
    over, entries = threading.Event(), [0, 0, 0, 0]
    inside = threading.Semaphore(0)

    def read(number: int) -> None:
        mine = opened()
        while not over.is_set():
            with mine.hold([Span(number, number + 8)], write=False):
                entries[number] += 1
                inside.release()
                over.wait(0.005)

    mine, waits = opened(), []
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(read, number) for number in range(4)]
        for _ in range(8):
            inside.acquire(timeout=60)
        for _ in range(10):
            before = list(entries)
            with mine.hold([Span(6, 7)], write=True):
                waits.append(max(np.subtract(entries, before)))
        over.set()
        for future in futures:
            future.result(60)
    assert 10 > max(waits)


def test_reader_among_writers(opened: Callable[..., Locks]) -> None:
    """A reader comes in before writers, who come again at once, have been in very often."""
    over, entries = threading.Event(), [0]

    def write() -> None:
        mine = opened()
        while not over.is_set():
            with mine.hold([Span(3, 4)], write=True):
                entries[0] += 1
                over.wait(0.002)

    mine, waits = opened(), []
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(write) for _ in range(3)]
        until(lambda: entries[0] > 3)
        for _ in range(10):
            before = entries[0]
            with mine.hold([Span(0, 8)], write=False):
                waits.append(entries[0] - before)
        over.set()
        for future in futures:
            future.result(60)
    assert 30 > max(waits)


def test_second_lock_does_not_queue_behind_who_waits_for_the_first(
    table: Table, opened: Callable[..., Locks]
) -> None:
    """Who is in a table gets further cells of it although another waits for both."""
    mine, waiting = opened(), opened()

    def write_both() -> str:
        with waiting.hold([Span(0, 2)], write=True):
            return "in"

    with ThreadPoolExecutor(1) as pool:
        with mine.hold([Span(0, 1)], write=True):
            future = pool.submit(write_both)
            until(lambda: queued(table, 1))
            with mine.hold([Span(1, 2)], write=True):
                assert not future.done()
        assert "in" == future.result(60)


def test_dead_waiter_leaves_the_turnstile(table: Table, other: Callable[..., Other]) -> None:
    """A writer that is killed while it waits keeps no one out, and has poisoned nothing."""
    reader, writer = other(HOLDS, (2, 6, False)), other(HOLDS, (0, 8, True))
    reader.go()
    assert "in" == reader.hear()
    writer.go()
    until(lambda: queued(table, 3))
    writer.kill()
    assert is_free(table, 0, 2)
    third = other(HOLDS, (0, 8, False))
    third.go()
    assert "in" == third.hear()
    assert not queued(table, 3)


# ------------------------------------------------------------------------- death

DIES = """
with block(*data, write=True):
    tell("in")
    wait()
"""


@pytest.fixture
def dead(table: Table, other: Callable[..., Other]) -> int:
    """The pid of a writer that was killed in cells 2 to 5."""
    return killed_in(other, 2, 6)


def killed_in(other: Callable[..., Other], start: int, stop: int) -> int:
    writer = other(DIES, (start, stop))
    writer.go()
    assert "in" == writer.hear()
    writer.kill()
    return writer.pid


@pytest.mark.parametrize("write", [True, False])
def test_death_of_the_holder_is_told_to_who_waits(
    write: bool, table: Table, other: Callable[..., Other]
) -> None:
    """The waiter goes on at once, and is told who was writing what."""
    tells = f"""
try:
    with block(5, 8, write={write}):
        tell("entered")
except RegionPoisonedError as error:
    tell(f"{{error.parameter}} {{error.region}} {{error.pid}}")
wait()
"""
    writer, waiter = other(DIES, (2, 6)), other(tells)
    writer.go()
    assert "in" == writer.hear()
    waiter.go()
    until(lambda: queued(table, 5))
    writer.kill()
    assert f"grid [5:8] {writer.pid}" == waiter.hear()
    assert is_free(table)


@pytest.mark.parametrize("how", [{"write": True}, {"write": False}, {"write": False, "repair": 1}])
def test_poison_stays(how: Any, dead: int, table: Table, opened: Callable[..., Locks]) -> None:
    """Everybody who enters one of its cells is told, each time, and holds nothing then."""
    for mine in (opened(), opened()):
        for span in (Span(2, 3), Span(5, 6), Span(0, CELLS), Span(4, 9)):
            with pytest.raises(RegionPoisonedError) as caught, mine.hold([span], **how):
                pytest.fail("entered")
            assert ("grid", "", dead) == (
                caught.value.parameter,
                caught.value.region,
                caught.value.pid,
            )
            assert is_free(table)


def test_poison_is_of_its_cells_only(dead: int, opened: Callable[..., Locks]) -> None:
    """The cells beside those of a dead writer are as they were."""
    entered = []
    for write in (True, False):
        with opened().hold([Span(0, 2), Span(6, CELLS)], write=write):
            entered.append(write)
    assert [True, False] == entered


def test_repair_ends_the_poison(dead: int, opened: Callable[..., Locks]) -> None:
    """After a block that wrote the region again it is like any other."""
    with opened().hold([Span(2, 6)], write=True, repair=True):
        pass
    with opened().hold(ALL, write=False) as value:
        assert value is None


def test_repair_of_a_part(dead: int, opened: Callable[..., Locks]) -> None:
    """What was not written again is poisoned still."""
    with opened().hold([Span(2, 4)], write=True, repair=True):
        pass
    with opened().hold([Span(0, 4)], write=True):
        pass
    with pytest.raises(RegionPoisonedError), opened().hold([Span(4, 5)], write=False):
        pass


@pytest.mark.parametrize("tolerant", [True, False])
def test_failed_repair_changes_nothing(
    tolerant: bool, dead: int, table: Table, opened: Callable[..., Locks]
) -> None:
    """A repair that leaves by an exception leaves the poison, with the name of the dead."""
    mine = opened(poisoned="continue" if tolerant else "raise")
    with pytest.raises(ZeroDivisionError), mine.hold(ALL, write=True, repair=not tolerant):
        raise ZeroDivisionError
    assert is_free(table)
    with pytest.raises(RegionPoisonedError) as caught, opened().hold(ALL, write=False):
        pass
    assert dead == caught.value.pid
    with opened().hold([Span(0, 2), Span(6, CELLS)], write=True):
        pass


def test_death_while_repairing(table: Table, other: Callable[..., Other], dead: int) -> None:
    """A writer that dies repairing is the one that the next is told of."""
    again = other(DIES.replace("write=True", "write=True, repair=True"), (0, 4))
    again.go()
    assert "in" == again.hear()
    again.kill()
    found = np.fromfile(f"/proc/self/fd/{table.memory.fd}", np.uint32, CELLS)
    assert [again.pid] * 4 + [dead] * 2 + [0] * (CELLS - 6) == found.tolist()


def test_continue_is_told_nothing(dead: int, opened: Callable[..., Locks]) -> None:
    """Where half-written contents do no harm, everybody enters and a writer clears them."""
    mine = opened(poisoned="continue")
    with mine.hold(ALL, write=False):
        pass
    with pytest.raises(RegionPoisonedError), opened().hold(ALL, write=False):
        pass
    with mine.hold(ALL, write=True):
        pass
    with opened().hold(ALL, write=False) as value:
        assert value is None


def test_dead_reader_poisons_nothing(table: Table, other: Callable[..., Other]) -> None:
    """Who only read has left nothing half done."""
    reader = other(HOLDS, (0, 8, False))
    reader.go()
    assert "in" == reader.hear()
    assert not is_free(table)
    reader.kill()
    assert is_free(table)
    mine = Locks(table.memory, CELLS)
    with mine.hold(ALL, write=True) as value:
        assert value is None


def test_exception_in_the_block_is_no_death(table: Table, opened: Callable[..., Locks]) -> None:
    """A block that is left by an exception is unlocked, and its cells are not poisoned."""
    mine = opened()
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), mine.hold([Span(2, 6)], write=True):
            raise error
        assert is_free(table)
        with mine.hold(ALL, write=True):
            pass


def test_thread_that_never_leaves(table: Table) -> None:
    """A block that is given up with its thread and its locks counts as a death."""

    def enter() -> None:
        Locks(table.memory, CELLS).hold([Span(1, 2)], write=True).__enter__()

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    gc.collect()
    until(lambda: is_free(table))  # another thread ends what is freed
    mine = Locks(table.memory, CELLS)
    with pytest.raises(RegionPoisonedError) as caught, mine.hold(ALL, write=False):
        pass
    assert os.getpid() == caught.value.pid


# ------------------------------------------------------------------------- order


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("span", [Span(2, 6), Span(5, 7), Span(0, 3), Span(3, 4), Span(0, 16)])
def test_waiting_for_oneself_is_refused(
    first: bool, second: bool, span: Span, table: Table, opened: Callable[..., Locks]
) -> None:
    """A second block over cells that this thread holds is an error, whichever locks it is of."""
    mine = opened()
    with mine.hold([Span(2, 6)], write=first, where="[2:6]"):
        for theirs in (mine, opened(name="other")):
            with pytest.raises(LockOrderError) as caught, theirs.hold([span], write=second):
                pytest.fail("entered")
            assert ("[2:6] of 'grid'", True) == (caught.value.held, caught.value.same)
        assert not is_free(table, 2, 3)
    assert is_free(table)


def test_order_within_a_table(table: Table, opened: Callable[..., Locks]) -> None:
    """Further cells lie behind those that are held; what is before them comes first."""
    mine = opened()
    with mine.hold([Span(2, 6)], write=True, where="[2:6]"):
        with pytest.raises(LockOrderError) as caught, mine.hold([Span(0, 2)], write=False):
            pass
        assert ("'grid'", "[2:6] of 'grid'", False) == caught.value.args
        with pytest.raises(LockOrderError), mine.hold([Span(1, 2), Span(7, 8)], write=False):
            pass
        with mine.hold([Span(6, 8)], write=True), opened().hold([Span(9, 10)], write=False):
            assert not is_free(table, 6, 7)
    assert is_free(table)


def test_order_looks_behind_all_spans(opened: Callable[..., Locks]) -> None:
    """What lies between two spans that are held comes too late as well."""
    mine = opened()
    with mine.hold([Span(2, 3), Span(6, 7)], write=True):
        with pytest.raises(LockOrderError) as caught, mine.hold([Span(4, 5)], write=True):
            pass
        assert not caught.value.same


def test_order_of_tables(opened: Callable[..., Locks]) -> None:
    """Tables are locked in the order of their ranks, and the error says which is first."""
    second = Table(4)
    low, high = opened(rank=1), opened(second, name="sums", rank=2)
    with low.hold(ALL, write=True), high.hold([Span(0, 1)], write=True) as value:
        assert value is None
    with high.hold([Span(0, 1)], write=False, where="[0]"):
        with pytest.raises(LockOrderError, match=r"Enter .*'grid' first, then .*'sums'") as caught:
            low.hold(ALL, write=False, where="[:]").__enter__()
        assert ("[:] of 'grid'", "[0] of 'sums'", False) == caught.value.args
    second.close()


def test_equal_ranks_have_an_order(opened: Callable[..., Locks]) -> None:
    """Of two tables with one rank exactly one may be locked first."""
    second = Table(4)
    pair = [opened(), opened(second)]

    def allowed(first: Locks, then: Locks) -> bool:
        try:
            with first.hold([Span(0, 1)], write=True), then.hold([Span(0, 1)], write=True):
                return True
        except LockOrderError:
            return False

    assert {True, False} == {allowed(*pair), allowed(*reversed(pair))}
    second.close()


def test_order_is_of_one_thread(opened: Callable[..., Locks]) -> None:
    """What another thread holds is waited for and no error."""
    with opened().hold([Span(2, 6)], write=True):
        theirs = opened()

        def lower() -> bool:
            with theirs.hold([Span(0, 2)], write=True):
                return True

        assert in_thread(lower)


# ------------------------------------------------------------------------- what errors say

POISONED = RegionPoisonedError("grid", "rows 3:5", 4127)
DISORDER = LockOrderError("[0:2] of 'grid'", "[2:6] of 'grid'")


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "error",
    [POISONED, RegionPoisonedError(), DISORDER, LockOrderError("[3] of 'a'", "'a'", True)],
    ids=repr,
)
def test_errors_survive_pickle(error: Exception, protocol: int) -> None:
    """In another process they have the same fields and say the same."""
    again = pickle.loads(pickle.dumps(error, protocol))
    assert (type(error), error.args, str(error)) == (type(again), again.args, str(again))
    assert vars(error) == vars(again)
    assert isinstance(again, sharedtask.SharedTaskError)
    assert isinstance(again, RuntimeError)


def test_poisoned_says_what_to_do() -> None:
    """The message names the region, the array and the worker, and both ways out."""
    assert (
        "the region rows 3:5 of 'grid' was being written when worker 4127 died, so its contents"
        " may be half old and half new. Rewrite it in `with grid.write(..., repair=True)`, or"
        ' take such contents as they are with poisoned="continue".'
    ) == str(POISONED)


def test_disorder_says_which_is_first() -> None:
    """The message names both and the order that is right."""
    assert str(DISORDER).startswith("this thread holds [2:6] of 'grid' and asks for [0:2] of 'gri")
    assert str(DISORDER).endswith("Enter [0:2] of 'grid' first, then [2:6] of 'grid'.")


# ------------------------------------------------------------------------- Ctrl-C

# Calls the C function on the spot, without an instruction of Python at which a handler could run.
_raise_signal = ctypes.CDLL(None)["raise"]


class SignalWhenRead:
    __getitem__ = staticmethod(_raise_signal)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("depth", [1, 2])
def test_interrupt_at_the_end_of_a_block(
    fails: bool, depth: int, table: Table, opened: Callable[..., Locks]
) -> None:
    """An interrupt that comes out as the block is left is raised when nothing is locked."""
    mine, probe, handler = opened(), SignalWhenRead(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        if depth == 1:
            with mine.hold([Span(2, 6)], write=True):
                probe[int(signal.SIGINT)] if not fails else probe[int(signal.SIGINT)].missing
        else:
            with mine.hold([Span(0, 1)], write=True), mine.hold([Span(2, 6)], write=True):
                probe[int(signal.SIGINT)] if not fails else probe[int(signal.SIGINT)].missing
    # Seen here, while the exception and with it every frame still lives.
    assert caught.value is not None
    assert is_free(table)
    assert [] == rwlock._here.held
    assert handler is signal.getsignal(signal.SIGINT)


def test_interrupt_in_the_block_is_raised_there(opened: Callable[..., Locks]) -> None:
    """Within the block Ctrl-C does what it always does, at once."""
    reached = []
    with pytest.raises(KeyboardInterrupt), opened().hold(ALL, write=True):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            reached.append("here")
            raise
    assert ["here"] == reached


def test_interrupt_while_waiting(
    table: Table, other: Callable[..., Other], opened: Callable[..., Locks]
) -> None:
    """Ctrl-C ends the wait of the main thread, which then holds and waits for nothing."""
    holder = other(HOLDS, (2, 6, True))
    holder.go()
    assert "in" == holder.hear()
    mine, main = opened(), threading.get_ident()

    def interrupt() -> None:
        until(lambda: queued(table, 5))
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), mine.hold([Span(0, 8)], write=True):
        pytest.fail("entered")
    thread.join()
    assert is_free(table, 0, 2)
    assert is_free(table, 6, CELLS)
    holder.go()
    assert "out" == holder.hear()
    with mine.hold([Span(0, 8)], write=True) as value:
        assert value is None


def test_interrupt_while_entering_is_undone(
    dead: int, table: Table, opened: Callable[..., Locks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt that arrives as a refused entry gives back its locks waits until it has."""
    leave = rwlock.Hold._leave

    def interrupted(self: Any, **how: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        leave(self, **how)

    monkeypatch.setattr(rwlock.Hold, "_leave", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught, opened().hold(ALL, write=True):
        pass
    assert isinstance(caught.value.__context__, RegionPoisonedError)
    assert is_free(table)
    assert [] == rwlock._here.held


def test_handlers_of_blocks_that_cross(opened: Callable[..., Locks]) -> None:
    """However two blocks are left, the handler that was there before hears of SIGINT."""
    handler = signal.getsignal(signal.SIGINT)
    mine = opened()
    one, two = (mine.hold([Span(k, k + 1)], write=True) for k in (0, 1))
    one.__enter__()
    two.__enter__()
    one.__exit__(None)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    two.__exit__(None)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, handler)


STORM = """
import fcntl, os, signal, subprocess
from sharedtask.writing.locked import rwlock

armed = False

def interrupt(*_):
    if armed:
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
theirs, bad = Locks(memory, cells), 0
sender = subprocess.Popen([sys.executable, "-c", '''
import os, random, signal, sys, time
while os.getppid() == int(sys.argv[1]):
    os.kill(int(sys.argv[1]), signal.SIGINT)
    time.sleep(random.random() / 1000)
''', str(os.getpid())])
for _ in range(1000):
    try:
        try:
            armed = True
            while True:
                with mine.hold([Span(2, 4), Span(7, 8)], write=True):
                    pass
        finally:
            armed = False  # no call, so nothing can come before it
    except KeyboardInterrupt:
        pass
    bad += bool(rwlock._here.held) + int(theirs.writers.any())
    bad += signal.getsignal(signal.SIGINT) is not interrupt
    try:
        fcntl.fcntl(theirs.fd, fcntl.F_OFD_SETLK, rwlock._FLOCK(fcntl.F_WRLCK, 0, 0, 2 * cells, 0))
    except BlockingIOError:
        bad += 1
    fcntl.fcntl(theirs.fd, fcntl.F_OFD_SETLK, rwlock._FLOCK(fcntl.F_UNLCK, 0, 0, 2 * cells, 0))
sender.kill()
sender.wait()
tell(f"bad {bad}")
"""


def test_interrupts_at_any_point(other: Callable[..., Other]) -> None:
    """Wherever Ctrl-C arrives, outside the block nothing is locked or marked."""
    storm = other(STORM)
    storm.go()
    assert "bad 0" == storm.hear()


# ------------------------------------------------------------------------- what stays, what goes


def test_closed_locks_are_refused(table: Table) -> None:
    """Locks that are closed say so, with the name of the parameter."""
    mine = Locks(table.memory, CELLS, name="grid")
    mine.close()
    mine.close()
    with pytest.raises(ClosedError, match="'grid'"), mine.hold(ALL, write=True):
        pass


def test_closing_within_a_block(table: Table, opened: Callable[..., Locks]) -> None:
    """Closed in the middle of a block, the locks are gone and what was written is poisoned."""
    mine = opened()
    with mine.hold([Span(2, 6)], write=True):
        mine.close()
        assert is_free(table)
    with pytest.raises(RegionPoisonedError), opened().hold(ALL, write=False):
        pass


def test_table_that_is_gone(table: Table, opened: Callable[..., Locks]) -> None:
    """A closed table cannot be opened any more; locks that are open go on."""
    mine = opened()
    memory = table.memory
    table.close()
    with pytest.raises(LookupError):
        Locks(memory, CELLS)
    with mine.hold(ALL, write=True) as value:
        assert value is None


def test_forked_child_leaves_the_lock_alone(table: Table, opened: Callable[..., Locks]) -> None:
    """A child forked within a block can use nothing of it, and does not unlock it."""
    mine = opened()
    with mine.hold([Span(2, 6)], write=True):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                rwlock._here.held[-1].__exit__(None)
                mine.hold([Span(8, 9)], write=True).__enter__()
            except ClosedError:
                code = 7
            finally:
                os._exit(code)
        assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert not is_free(table, 2, 3)
        found = np.fromfile(f"/proc/self/fd/{table.memory.fd}", np.uint32, CELLS)
        assert [2, 3, 4, 5] == np.flatnonzero(found).tolist()
    assert is_free(table)


def test_forked_child_opens_its_own(table: Table, opened: Callable[..., Locks]) -> None:
    """A forked child that opens the table again is excluded like any other process."""
    with opened().hold([Span(2, 6)], write=True):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                theirs = Locks(table.memory, CELLS)
                with theirs.hold([Span(0, 2)], write=True):
                    flock = rwlock._FLOCK(fcntl.F_RDLCK, 0, 5, 1, 0)
                    fcntl.fcntl(theirs.fd, fcntl.F_OFD_SETLK, flock)
            except BlockingIOError:
                code = 7
            finally:
                os._exit(code)
        assert 7 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_value_of_the_block(opened: Callable[..., Locks]) -> None:
    """A block can give a value, and can be entered again."""
    block = rwlock.Hold(opened(), ALL, "value", write=True)
    values = []
    for _ in range(2):
        with block as value:
            values.append(value)
    assert ["value", "value"] == values


def test_a_million_cells() -> None:
    """Large tables are locked in part or whole like small ones."""
    big = Table(1 << 20)
    mine = Locks(big.memory, big.cells)
    for spans in ([Span(0, 1 << 20)], [Span((1 << 20) - 1, 1 << 20)]):
        with mine.hold(spans, write=True):
            cells = sum(span.stop - span.start for span in spans)
            assert cells == np.count_nonzero(mine.writers == os.getpid())
        assert 0 == np.count_nonzero(mine.writers)
    mine.close()
    big.close()


def test_table_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where segments are files without a name, the locks are the same."""
    monkeypatch.setenv("SHAREDTASK_STORE", "file")
    made = Table(CELLS)
    mine = Locks(made.memory, CELLS)
    with mine.hold([Span(2, 6)], write=True):
        assert not is_free(made, 5, 6)
        assert is_free(made, 6, 7)
    assert is_free(made)
    mine.close()
    made.close()


def test_example_of_the_docstring() -> None:
    """The example runs."""
    examples = doctest.DocTestFinder().find(Table, "Table", globs=vars(rwlock).copy())
    runner = doctest.DocTestRunner()
    assert [(0, 5)] == [tuple(runner.run(each)) for each in examples if each.examples]


def test_forgotten_objects_close_themselves() -> None:
    """A table and locks that no one has any more have nothing open."""
    made = Table(CELLS)
    with Locks(made.memory, CELLS).hold(ALL, write=True) as value:
        assert value is None
