"""A program that closes descriptors which it did not open, as daemons do: each one of its own."""

from collections.abc import Callable

import pytest

Run = Callable[..., str]

HEAD = """\
import os, socket, sys, threading, time
import numpy as np
import sharedtask
from sharedtask import ClosedError, CopyOnWrite, Locked, Partitioned, Reduced, Shared, parallel

how = parallel(backend=sys.argv[1], workers=2)

@how
def use(x: int, table: Shared[np.ndarray], mine: CopyOnWrite[np.ndarray]) -> float:
    mine[0] = x
    return float(table.sum() + mine[0])

@how
def write(
    x: int, block: Partitioned[np.ndarray], many: Reduced[np.ndarray], grid: Locked[np.ndarray]
) -> None:
    block[...] = x
    many += 1
    with grid.write() as whole:
        whole += 1

@how
def nap(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x

class Others:
    '''What the program opens next: it gets the same numbers, and nobody is to touch it.'''

    def __init__(self, count: int = 40) -> None:
        self.pairs = [[end.detach() for end in socket.socketpair()] for _ in range(count)]
        for each, other in self.pairs:
            os.write(each, b"sent")
            os.set_blocking(each, False)
            os.set_blocking(other, False)

    def check(self) -> None:
        for each, other in self.pairs:
            assert b"sent" == os.read(other, 99)
            for end in (each, other):
                try:
                    raise AssertionError(os.read(end, 99))
                except BlockingIOError:
                    pass
            os.close(each)
            os.close(other)

def close_all() -> Others:
    os.closerange(3, 1024)
    return Others()

table, mine = np.ones(200_000), np.zeros(200_000)

def values() -> list[float]:
    return use.map(range(4), table=table, mine=mine)
"""


@pytest.mark.parametrize("backend", ["process", "thread", "serial"])
def test_all_closed_between_two_maps(run: Run, backend: str) -> None:
    """The next call is served by a new pool, values are there again, and no other file is used."""
    out = run(
        f"""{HEAD}
handle = sharedtask.share(table)
own = sharedtask.array(table)
block, many, grid = sharedtask.zeros(4), sharedtask.zeros(3), sharedtask.zeros(5)

def all_of_it() -> None:
    assert [200_000.0 + x for x in range(4)] == values()
    assert [200_000.0 + x for x in range(4)] == use.map(range(4), table=handle, mine=mine)
    assert [200_000.0 + x for x in range(4)] == use.map(range(4), table=mine + 1, mine=handle)
    assert [200_000.0 + x for x in range(4)] == use.map(range(4), table=own, mine=mine)
    write.map(range(4), block=block, many=many, grid=grid)

all_of_it()
others = [close_all()]
began = time.monotonic()
all_of_it()
assert 30 > time.monotonic() - began
others[0].check()
others.append(close_all())
all_of_it()
assert [[0, 1, 2, 3], [12] * 3, [12] * 5] == [block.tolist(), many.tolist(), grid.tolist()]
handle.close()
del own, block, many, grid, handle
sharedtask.shutdown()
others[1].check()
print("DONE")
""",
        backend,
    )
    assert "DONE" == out.strip()


def test_daemon(run: Run) -> None:
    """A daemon, forked twice from a program with a pool, has one of its own and spoils none."""
    out = run(
        f"""{HEAD}
handle = sharedtask.share(table)
values()
ours, theirs = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.dup2(theirs, 9)
        os.closerange(3, 9)
        os.closerange(10, 1024)
        assert [200_000.0 + x for x in range(4)] == values()
        assert [200_000.0 + x for x in range(4)] == use.map(range(4), table=handle, mine=mine)
        os.write(9, b"well")
        sys.exit(0)
    os._exit(0)
os.close(theirs)
assert b"well" == os.read(ours, 99)
assert [200_000.0 + x for x in range(4)] == values()
print("DONE")
""",
        "process",
    )
    assert "DONE" == out.strip()


def test_all_closed_while_a_map_runs(run: Run) -> None:
    """The call that has lost its workers says so at once, and the next one is served."""
    out = run(
        f"""{HEAD}
assert [0, 1] == nap.map(range(2), seconds=0.0)
others = []
threading.Timer(0.3, lambda: others.append(close_all())).start()
began = time.monotonic()
try:
    nap.map(range(200), seconds=0.5)
except ClosedError as error:
    print(error)
assert 40 > time.monotonic() - began
assert [0, 1] == nap.map(range(2), seconds=0.0)
others[0].check()
""",
        "process",
    )
    assert "the program has closed file descriptors that it did not open" in out


def test_all_closed_while_a_stream_waits(run: Run) -> None:
    """A stream in the middle ends with the same error, and what it had is let go."""
    out = run(
        f"""{HEAD}
stream = use.imap(iter(range(1000)), table=table, mine=mine)
first = next(stream)
others = close_all()
try:
    print(len(list(stream)))
except ClosedError as error:
    print("CLOSED", error)
assert [200_000.0 + x for x in range(4)] == values()
others.check()
""",
        "process",
    )
    assert out.startswith("CLOSED")


def test_each_one_closed(run: Run) -> None:
    """Whichever it is, and whatever has its number by then: a call is right, or says so at once."""
    out = run(
        f"""{HEAD}
handle = sharedtask.share(table)
values()
tried = failed = 0
for number in range(3, 40):
    values()
    try:
        os.close(number)
    except OSError:
        continue
    others = Others(20)
    assert any(number in pair for pair in others.pairs)
    for _ in range(2):
        began = time.monotonic()
        try:
            assert [200_000.0 + x for x in range(4)] == values()
            assert [200_000.0 + x for x in range(4)] == use.map(range(4), table=handle, mine=mine)
        except ClosedError:
            failed += 1
        assert 30 > time.monotonic() - began, number
    assert [200_000.0 + x for x in range(4)] == values()
    others.check()
    tried += 1
print("TRIED", tried, failed)
""",
        "process",
    )
    assert out.startswith("TRIED")
    assert 5 <= int(out.split()[1])
