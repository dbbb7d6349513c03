"""Forked children: they begin with what is theirs, whatever the parent's threads were doing."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Script

import sharedtask

Run = Callable[..., str]

HEAD = """\
import asyncio, concurrent.futures, gc, multiprocessing, os, signal, sys, threading, time
import numpy as np
import sharedtask
from sharedtask import Shared, parallel

BACKEND = sys.argv[1]

def double(x):
    return 2 * x

def use(x, table: Shared):
    return float(table[0]) + x

def nap(x, seconds=0.05):
    time.sleep(seconds)
    return x

def on(function, **options):
    return parallel(function).with_options(backend=BACKEND, workers=2, **options)

def everything():
    table = np.ones(200_000)
    assert on(double).map(range(3)) == [0, 2, 4]
    assert on(use).map(range(3), table=table) == [1.0, 2.0, 3.0]
    assert list(on(double).imap(range(5))) == [0, 2, 4, 6, 8]
    assert on(double).submit(4).result() == 8
    assert asyncio.run(on(double).amap(range(3))) == [0, 2, 4]
    called = threading.Event()
    future = on(double).submit(5)
    future.add_done_callback(lambda f: called.set())
    assert called.wait(60)
    assert concurrent.futures.wait([on(double).submit(6)], 20).done.pop().result() == 12

def forked(work):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(25)
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
"""

END = """
print("OK")
"""


@pytest.fixture(params=["serial", "thread", "process"])
def backend(request: pytest.FixtureRequest) -> str:
    """Ray refuses to be used in a forked child."""
    name: str = request.param
    return name


def passes(run: Run, text: str, backend: str) -> None:
    assert "OK\n" == run(HEAD + text + END, backend)[-3:]


def test_child_does_everything_after_its_parent_did(run: Run, backend: str) -> None:
    """Counts of idle threads are copied, threads are not: a child has none."""
    passes(run, "everything()\nforked(everything)\neverything()\n", backend)


def test_child_of_a_child(run: Run, backend: str) -> None:
    """And so on."""
    text = "everything()\nforked(lambda: (everything(), forked(everything), everything()))\n"
    passes(run, text, backend)


def test_child_made_by_c(run: Run, backend: str) -> None:
    """A library that forks tells Python nothing: the child is known by its process id."""
    text = """
import ctypes
everything()
os.fork = ctypes.CDLL(None).fork
time.sleep(0.5)  # no other thread may hold the GIL then: the child could not take it
forked(everything)
everything()
"""
    passes(run, text, backend)


def test_child_made_by_multiprocessing(run: Run, backend: str) -> None:
    """With the fork method a process is forked like any other."""
    text = """
everything()
child = multiprocessing.get_context("fork").Process(target=everything)
child.start()
child.join(60)
assert child.exitcode == 0
"""
    passes(run, text, backend)


def test_fork_while_threads_map(run: Run, backend: str) -> None:
    """Locks that other threads hold at that moment are free in the child."""
    text = """
def work():
    while not ended.is_set():
        table = np.ones(200_000)
        on(use).map(range(6), table=table)
        on(double).submit(1).result()

everything()
ended = threading.Event()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(3):
    forked(everything)
ended.set()
for thread in threads:
    thread.join()
everything()
"""
    passes(run, text, backend)


@pytest.mark.parametrize("holder", ["lock", "shield"])
def test_fork_while_another_thread_holds_our_locks(run: Run, holder: str) -> None:
    """All locks are reset, and Ctrl-C is not held back by a block that no thread will leave."""
    text = f"""
from sharedtask.system import critical_sections, interrupts
def hold():
    with interrupts.shield():
        known = [reference() for reference in list(critical_sections._all.values())]
        locks = [lock for lock in known if lock is not None and lock.acquire(timeout=1)]
        held.set()
        ended.wait()
        for lock in locks:
            lock.release()

def child():
    everything()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        return
    raise AssertionError("Ctrl-C was held back")

def fork():
    held.wait()
    forked(child)

signal.signal(signal.SIGINT, signal.default_int_handler)
everything()
held, ended = threading.Event(), threading.Event()
if {holder!r} == "lock":
    other = threading.Thread(target=hold)
    other.start()
    fork()
    ended.set()
    other.join()
else:
    other = threading.Thread(target=lambda: (fork(), ended.set()))
    other.start()
    hold()
    other.join()
everything()
"""
    passes(run, text, "process")


def test_results_of_the_parents_call_are_refused(run: Run, backend: str) -> None:
    """Its workers belong to the parent: what it began there is an error here, and no wait."""
    text = """
def child():
    assert isinstance(future.exception(), sharedtask.ClosedError)
    for get in (lambda: list(stream), future.result):
        try:
            get()
        except sharedtask.ClosedError as error:
            assert "forked" in str(error)
        else:
            raise AssertionError(get)
    everything()

everything()
stream = on(nap).imap(range(20), seconds=0.2)
next(stream)
future = on(nap).submit(1, seconds=2)
if BACKEND == "serial":
    assert future.done()
else:
    forked(child)
stream.close()
assert future.result() == 1
"""
    passes(run, text, backend)


# ------------------------------------------------------------------------- the order in a child

STEPS = """
from sharedtask.system import critical_sections, forks
from sharedtask.system.forks import Step

seen = []

class Heir:
    def abandon(self):
        seen.append("heir")

def fails():
    seen.append("fails")
    raise RuntimeError("by a part")

def show(*names):
    seen.extend(names)

lock = critical_sections.object_lock()

def take():
    seen.append(("free", lock.acquire(timeout=1)))
"""


def test_parts_enter_a_child_step_by_step(run: Run) -> None:
    """In a child the steps follow each other, whatever the order of imports; then registration."""
    text = """
for step in reversed(Step):
    for name in "ab":
        forks.in_child(step, lambda name=name, step=step: show(step.name + name))
import sharedtask.backends.process.backend, sharedtask.task.futures
forked(lambda: print(*seen, flush=True))
"""
    wanted = [
        step + name
        for step in ("SIGNALS", "IDENTITY", "LOCKS", "THREADS", "HELD", "OUTCOMES")
        for name in "ab"
    ]
    assert wanted == run(HEAD + STEPS + text, "serial").split()


def test_locks_are_free_when_a_part_gives_up_what_it_holds(run: Run) -> None:
    """A part that takes a lock, which a thread of the parent holds, finds it reset."""
    text = """
forks.in_child(Step.HELD, take)
taken, done = threading.Event(), threading.Event()
def hold():
    with lock:
        taken.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
taken.wait()
forked(lambda: print(seen, flush=True))
done.set()
thread.join()
"""
    assert "[('free', True)]\n" == run(HEAD + STEPS + text, "serial")


def test_parts_that_fail_or_are_freed(script: Callable[..., Script]) -> None:
    """What one part raises is printed, and the others go on; an object that is freed has none."""
    text = """
heir, freed = Heir(), Heir()
for each in (heir, freed):
    forks.abandon_in_child(each)
forks.in_child(Step.LOCKS, fails)
del freed, each
forked(lambda: print(seen, flush=True))
"""
    ran = script(HEAD + STEPS + text, "serial")
    assert 0 == ran.end()
    assert "['fails', 'heir']\n" == ran.out
    assert "RuntimeError: by a part" in ran.err


def test_one_order_for_all_parts() -> None:
    """No part registers with the interpreter by itself: the order would be that of imports."""
    library = Path(sharedtask.__file__).parent
    found = [path for path in library.rglob("*.py") if "register_at_fork" in path.read_text()]
    assert [library / "system" / "forks.py"] == found
