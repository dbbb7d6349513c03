"""Forked children: they begin with what is theirs, whatever the parent's threads were doing."""

from collections.abc import Callable

import pytest

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
    assert called.wait(20)
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


def test_child_made_by_multiprocessing(run: Run, backend: str) -> None:
    """With the fork method a process is forked like any other."""
    text = """
everything()
child = multiprocessing.get_context("fork").Process(target=everything)
child.start()
child.join(40)
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
