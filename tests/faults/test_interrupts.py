"""SIGINT at random moments, and where the program ignores or handles it itself."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from budget import with_long
from conftest import Script
from processes import slowness

Start = Callable[..., Script]

# Kinds of calls: those whose tasks take long, and quick ones, one after the other.
PROGRAM = """
import gc, os, random, sys, threading, time
import numpy as np
from sharedtask import Shared, parallel

backend, rounds, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LONG = 900 if backend == "ray" else 20

def nap(x, table: Shared):
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        time.sleep(0.01)

def add(x, table: Shared):
    return float(table[0]) + x

def large(x, table: Shared):
    return np.full(1 << 18, x + table[0])

def rest(x):
    time.sleep(0.1)
    return os.getpid(), threading.get_ident()

nap, add, large, rest = (
    parallel(backend=backend, workers=2, chunksize=chunksize)(each)
    for each, chunksize in ((nap, 1), (add, "auto"), (large, "auto"), (rest, 1))
)
table, number = np.zeros(20_000), 0

def changed():
    global number
    number += 1
    table[:] = number
    return table

def other(size=20_000):
    global table, number
    number += 1
    table = np.full(size, float(number))
    return table

def expected():
    return [number + x for x in range(10)]

def again_and_again(step):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        step()

def quick(value):
    assert add.map(range(10), table=value()) == expected()

def stream():
    assert list(add.imap(range(10), table=changed())) == expected()

def single():
    assert add.submit(1, table=changed()).result() == number + 1

def with_large_results():
    assert [each[0] for each in large.map(range(3), table=changed())] == expected()[:3]

KINDS = {
    "map": lambda: nap.map(range(8), table=changed()),
    "imap": lambda: list(nap.imap(range(8), table=changed())),
    "same": lambda: again_and_again(lambda: quick(lambda: table)),
    "changed": lambda: again_and_again(lambda: quick(changed)),
    "other": lambda: again_and_again(lambda: quick(other)),
    "huge": lambda: again_and_again(lambda: quick(lambda: other(600_000))),
    "streams": lambda: again_and_again(stream),
    "singles": lambda: again_and_again(single),
    "large": lambda: again_and_again(with_large_results),
}
if backend == "thread":  # whose tasks cannot be ended from outside
    for kind in ("map", "imap"):
        del KINDS[kind]

def is_ours(name):
    try:
        return backend != "ray" or not os.readlink("/proc/self/fd/" + name).startswith("socket:")
    except FileNotFoundError:  # that of the listing itself
        return False

def held():  # Ray connects to new workers at any moment
    gc.collect()
    with open("/proc/self/maps") as maps:
        mappings = maps.read().count("memfd:sharedtask")
    return len([name for name in os.listdir("/proc/self/fd") if is_ours(name)]), mappings

def both_up():
    # Each has a socket and a status page. One whose item was given up is killed, and the next
    # starts when a call needs it, which a quick one may not.
    limit = time.monotonic() + 60
    while len(set(rest.map(range(2)))) < 2 and backend != "serial" and time.monotonic() < limit:
        pass

def held_at_rest():
    both_up()
    quick(other)
    return held()

def is_within(now, base):
    return now[0] <= base[0] and now[1] <= base[1]

def settled(base):
    limit = time.monotonic() + 60
    while not is_within(now := held_at_rest(), base) and time.monotonic() < limit:
        time.sleep(0.1)
    return now

choose = random.Random(seed)
for _ in range(3):
    quick(changed), quick(lambda: other(600_000)), stream(), single(), with_large_results()
base = None
for count in range(rounds):
    if count == 5:
        base = tuple(map(min, *(held_at_rest() for _ in range(5))))
    kind = choose.choice(list(KINDS))
    try:
        try:
            print("ROUND", kind, flush=True)
            KINDS[kind]()
            told = "nothing"
        except BaseException as error:
            told = type(error).__name__, time.monotonic()
        print("RAISED", *([told] if told == "nothing" else told), flush=True)
    except KeyboardInterrupt:
        print("RAISED twice", flush=True)
    began = time.monotonic()
    quick(changed)
    print("NEXT", time.monotonic() - began, flush=True)
now = settled(base)
print("HELD", is_within(now, base) or (base, now), flush=True)
"""
# Tasks take longer: what is interrupted, or goes on after it, does not wait for them. Ray starts
# a process for each that was killed, which takes seconds of a core.
LATE, LATE_ON_RAY = 5.0, 60.0


def interrupt_at_random(ran: Script, rounds: int, seed: int, next_late: float = LATE) -> None:
    """One SIGINT for each round, from 0 to 0.3 s after its beginning."""
    moments, wrong = random.Random(seed), []
    for number in range(rounds):
        kind = ran.wait_for("ROUND")
        time.sleep(moments.uniform(0, 0.3))
        sent = time.monotonic()
        os.killpg(ran.pid, signal.SIGINT)
        what, *when = ran.wait_for("RAISED").split()
        if what != "KeyboardInterrupt" or float(when[0]) - sent > LATE * slowness():
            wrong.append(f"{number}: {kind} raised {what} after {when}")
        waited = float(ran.wait_for("NEXT"))
        if waited > next_late * slowness():
            wrong.append(f"{number}: the call after {kind} took {waited} s")
    assert [] == wrong
    assert "True" == ran.wait_for("HELD")
    assert (0, "") == (ran.end(), ran.err)


@pytest.mark.skipif("CI" in os.environ, reason="test_ctrl_c_many_times is run there")
@pytest.mark.timeout(120)
def test_ctrl_c_at_random(script: Start) -> None:
    """Each Ctrl-C is one KeyboardInterrupt; stderr is empty, nothing stays, the next call is right.

    However it falls: in the middle of a call, of its end, or between two calls.
    """
    interrupt_at_random(script(PROGRAM, "process", 20, 1), 20, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("backend", "times"), [("process", 60), ("thread", 30), ("serial", 30), ("ray", 15)]
)
def test_ctrl_c_many_times(script: Start, backend: str, times: int) -> None:
    """Of so many each is caught; ``SHAREDTASK_TEST_INTERRUPTS`` says of how many others."""
    count = int(os.environ.get("SHAREDTASK_TEST_INTERRUPTS", times))
    late = LATE_ON_RAY if backend == "ray" else LATE
    interrupt_at_random(script(PROGRAM, backend, count, 2), count, 2, late)


# ------------------------------------------------------------------- the program's own handling

HANDLES = """
import asyncio, multiprocessing, os, signal, sys, threading, time
import numpy as np
from sharedtask import Shared, parallel

def nap(x, seconds=1.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return x

class Own(Exception):
    pass

calls = []

def note(number, frame):
    calls.append((number, frame is not None, threading.current_thread() is threading.main_thread()))

def refuse(number, frame):
    raise Own("by the program")

def interrupt_soon():
    threading.Timer(0.3, os.killpg, (0, signal.SIGINT)).start()

task = parallel(backend=sys.argv[1], workers=2, chunksize=1)(nap)
assert task.map(range(2), seconds=0.0) == [0, 1]
"""

IGNORED = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
interrupt_soon()
print(task.map(range(2)), signal.getsignal(signal.SIGINT) is signal.SIG_IGN, flush=True)
"""
NOTED = """
signal.signal(signal.SIGINT, note)
interrupt_soon()
print(task.map(range(2)), calls, signal.getsignal(signal.SIGINT) is note, flush=True)
"""
REFUSED = """
signal.signal(signal.SIGINT, refuse)
interrupt_soon()
began = time.monotonic()
try:
    WAY
except Own as error:
    print(error, error.__cause__, error.__context__, getattr(error, "__notes__", []), flush=True)
assert time.monotonic() - began < 45
assert signal.getsignal(signal.SIGINT) is refuse
print(task.map(range(2), seconds=0.0), flush=True)
"""
RUNNER = """
async def main():
    interrupt_soon()
    try:
        return task.map(range(2))
    finally:
        print("mapped", flush=True)

try:
    asyncio.run(main(), debug=False)
except KeyboardInterrupt:
    print("cancelled", flush=True)
"""
WAYS = {
    "map": "task.map(range(4), seconds=60.0)",
    "imap": "list(task.imap(range(4), seconds=60.0))",
    "submit": "task.submit(1, seconds=60.0).result()",
    "items": "task.map((time.sleep(0.01) or x for x in range(100_000)), seconds=0.0)",
    "exceptions": "task.with_options(return_exceptions=True, retries=1).map([1], seconds=60.0)",
}
ALL = ["serial", "thread", "process"]


@pytest.mark.parametrize("backend", ALL)
def test_sigint_ignored(run: Callable[..., str], backend: str) -> None:
    """Where SIGINT is ignored, as under nohup, a map goes on, and it is ignored after it."""
    assert "[0, 1] True\n" == run(HANDLES + IGNORED, backend)


@pytest.mark.parametrize("backend", ALL)
def test_handler_that_returns(run: Callable[..., str], backend: str) -> None:
    """A handler that returns is called once, in the main thread with a frame; the map goes on."""
    noted = [(int(signal.SIGINT), True, True)]
    assert f"[0, 1] {noted} True\n" == run(HANDLES + NOTED, backend)


@pytest.mark.parametrize(
    ("backend", "way"),
    with_long(
        [(backend, way) for backend in ALL for way in WAYS],
        *[
            (backend, way)
            for backend in ALL
            for way in WAYS
            if (backend, way) != ("process", "map")
        ],
    ),
)
def test_handler_that_raises(run: Callable[..., str], backend: str, way: str) -> None:
    """What a handler raises ends the call as it is; the next call is right, and at once.

    A task in a thread cannot be ended: the next call has a thread of its own there.
    """
    text = REFUSED.replace("WAY", WAYS[way])
    if backend == "thread":
        text = text.replace("seconds=60.0", "seconds=2.0")
    assert "by the program None None []\n[0, 1]\n" == run(HANDLES + text, backend)


@pytest.mark.parametrize("backend", ALL)
def test_runner_of_asyncio(run: Callable[..., str], backend: str) -> None:
    """A map that blocks a coroutine goes on; asyncio cancels the coroutine when it waits again."""
    assert "mapped\n" in run(HANDLES + RUNNER, backend)


def test_pools_of_the_standard_library(run: Callable[..., str]) -> None:
    """What the above is measured by: a pool goes on after a handler that returns."""
    text = """
signal.signal(signal.SIGINT, note)
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        interrupt_soon()
        print(pool.map(nap, range(2)), [each[0] for each in calls], flush=True)
"""
    assert f"[0, 1] [{int(signal.SIGINT)}]\n" == run(HANDLES + text, "process")
