"""Signals: those that the caller blocks, ignores or handles, and those that reach a worker."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from budget import with_long

from sharedtask import Shared, TaskTimeoutError, WorkerDiedError, parallel

Start = Callable[..., Any]
Run = Callable[..., str]

HEAD = """\
import os, signal, sys, threading, time
import numpy as np
import sharedtask
from sharedtask import Shared, TaskTimeoutError, WorkerDiedError, parallel

def use(x, table: Shared, bad=None, how="kill"):
    if x == bad and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30 if x == bad else 0.001)
    return float(table[0] + table[-1]) + x

table = np.ones(200_000)
task = parallel(use).with_options(backend="process", workers=2, chunksize=1, return_exceptions=True)

def fault_and_all():
    found = task.map(range(6), table=table, bad=2)
    error = found.pop(2)
    assert isinstance(error, WorkerDiedError) and error.signal == signal.SIGKILL, error
    assert found == [2.0, 3.0, 5.0, 6.0, 7.0], found
    found = task.with_options(timeout=0.4).map(range(3), table=table, bad=1, how="sleep")
    assert isinstance(found.pop(1), TaskTimeoutError), found
    assert found == [2.0, 4.0], found
"""

HABITS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "SIGCHLD handled": "signal.signal(signal.SIGCHLD, lambda *_: None)",
    "SIGCHLD reaped": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
""",
    "everything reaped": """
def reap():
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            time.sleep(0.005)
threading.Thread(target=reap, daemon=True).start()
""",
    "all blocked": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "SIGPIPE by default": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "SIGINT ignored": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "a timer that ticks": """
ticks = []
signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
""",
    "a timer that interrupts calls": """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
""",
}


@pytest.mark.parametrize(
    "habit",
    with_long(
        HABITS, "SIGCHLD handled", "SIGPIPE by default", "SIGINT ignored", "a timer that ticks"
    ),
)
def test_caller_with_signals_of_its_own(run: Run, habit: str) -> None:
    """Deaths and time limits are seen whatever the caller does with signals, and children.

    It may begin to do so before its workers are started, or after.
    """
    text = f"""{HEAD}
assert task.map([0], table=table) == [2.0]
{HABITS[habit]}
fault_and_all()
sharedtask.shutdown()
fault_and_all()
for _ in range(5):
    for pid in set(parallel(lambda x: os.getpid()).map(range(8))):
        os.kill(pid, signal.SIGKILL)
    found = task.map(range(8), table=table)
    assert 2 >= sum(isinstance(r, WorkerDiedError) for r in found), found
signal.setitimer(signal.ITIMER_REAL, 0)
print("OK")
"""
    assert "OK\n" == run(text)


def test_handler_that_raises(run: Run) -> None:
    """A handler may end a call by its exception at any moment: the next call is right."""
    text = f"""{HEAD}
import random
class Alarm(Exception):
    pass
def ring(*_):
    raise Alarm
signal.signal(signal.SIGALRM, ring)
random.seed(5)
fault_and_all()
rung, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.02))
        how = random.choice(["map", "imap", "imap_unordered"])
        list(getattr(task, how)(range(10), table=table))
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Exception as error:
        rung += 1
        while error is not None and not isinstance(error, Alarm):
            error = error.__cause__ or error.__context__
        assert error is not None
    began = time.monotonic()
    assert task.map(range(3), table=table) == [2.0, 3.0, 4.0]
    assert time.monotonic() - began < 30
assert rung > 5, rung
fault_and_all()
print("OK")
"""
    assert "OK\n" == run(text)


def test_program_that_is_suspended(script: Start) -> None:
    """A program that is stopped with all its workers (Ctrl-Z), and continued, goes on."""
    ran = script(
        f"""{HEAD}
task = task.with_options(return_exceptions=False)
threading.Timer(0.2, lambda: print("STARTED", flush=True)).start()
print(parallel(lambda x: (time.sleep(0.1), x)[1]).map(range(12)), flush=True)
"""
    )
    ran.wait_for("STARTED")
    os.killpg(ran.pid, signal.SIGSTOP)
    time.sleep(1.0)  # nothing can tell when nothing happens
    os.killpg(ran.pid, signal.SIGCONT)
    assert (0, "") == (ran.end(), ran.err)
    assert f"{list(range(12))}\n" == ran.out


def test_ctrl_c_where_a_task_has_taken_the_signal(script: Start) -> None:
    """A task that sets SIGINT to its default costs its own worker; the caller has one Ctrl-C."""
    ran = script(
        f"""{HEAD}
def takes(x):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    time.sleep(30)
threading.Timer(0.4, lambda: print("STARTED", flush=True)).start()
try:
    parallel(takes).map(range(4))
except KeyboardInterrupt:
    print("CAUGHT", flush=True)
fault_and_all()
"""
    )
    ran.wait_for("STARTED")
    os.killpg(ran.pid, signal.SIGINT)
    assert "" == ran.wait_for("CAUGHT")
    assert (0, "") == (ran.end(), ran.err)


# ------------------------------------------------------------------------------ in a worker


def total(x: int, table: Shared[Any]) -> Any:
    return np.full(200_000, table.sum() + x)


def tick(x: int) -> int:
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, True)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    return x


def calm(x: int) -> int:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    time.sleep(0.01)
    return x


def in_every_worker(function: Any) -> None:
    parallel(function).with_options(backend="process", workers=2, chunksize=1).map(range(16))


def test_timer_that_ticks_in_a_worker() -> None:
    """System calls of a worker that signals interrupt are made again: nothing is lost."""
    in_every_worker(tick)
    task = parallel(total).with_options(backend="process", chunksize=2)
    for k in range(5):
        table = np.full(300_000, float(k))
        results = task.map(range(8), table=table)
        assert [k * 300_000.0 + x for x in range(8)] == [float(r[0]) for r in results]
        assert all(r[0] == r[-1] for r in results)
    in_every_worker(calm)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGALRM", "SIGTERM", "SIGHUP", "SIGSYS"])
def test_signal_that_ends_a_worker(name: str) -> None:
    """A signal that no one handles ends the worker, and the error of the item names it."""
    number = getattr(signal, name)

    def hit(x: int) -> int:
        if x == 2:
            os.kill(os.getpid(), number)
            time.sleep(4)
        return x

    task = parallel(hit).with_options(backend="process", return_exceptions=True, chunksize=2)
    results: Any = task.map(range(6))
    error = results.pop(2)
    assert [0, 1, 3, 4, 5] == results
    assert isinstance(error, WorkerDiedError)
    assert (2, number) == (error.index, error.signal)
    assert name in str(error)


class Late(Exception):
    pass


def leave_an_alarm(x: int) -> int:
    def ring(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    return x


def test_alarm_that_a_task_leaves_behind() -> None:
    """An alarm that goes off when its task is over costs at most the worker it goes off in."""
    task = parallel(leave_an_alarm).with_options(backend="process", chunksize=1)
    assert [0, 1, 2, 3] == task.map(range(4))
    time.sleep(0.15)  # they go off while the workers are idle
    in_every_worker(calm)


def test_alarm_within_a_task() -> None:
    """The usual way to limit a piece of code by SIGALRM works in a task, from its main thread."""

    def limited(x: int) -> str:
        def ring(*_: Any) -> None:
            raise Late

        old = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(10 if x % 2 else 0)
        except Late:
            return "late"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        return "in time"

    task = parallel(limited).with_options(backend="process", chunksize=2)
    assert ["in time", "late"] * 3 == task.map(range(6))


@pytest.mark.parametrize("timeout", [None, 0.8])
def test_worker_that_somebody_stops(timeout: float | None, tmp_path: Path) -> None:
    """A stopped worker is not taken for dead: it goes on later, or its time limit ends it."""

    def tell(x: int) -> int:
        if x == 1:
            (tmp_path / "pid").write_text(str(os.getpid()))
            time.sleep(0.4)
        return x

    def stop() -> None:
        path = tmp_path / "pid"
        while not (path.exists() and path.stat().st_size):
            time.sleep(0.005)
        pid = int(path.read_text())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    stopper = threading.Thread(target=stop)
    stopper.start()
    task = parallel(tell).with_options(
        backend="process", timeout=timeout, return_exceptions=True, chunksize=1
    )
    results: Any = task.map(range(4))
    stopper.join()
    if timeout is None:
        assert [0, 1, 2, 3] == results
    else:
        assert isinstance(results.pop(1), TaskTimeoutError)
        assert [0, 2, 3] == results


@pytest.mark.long
def test_worker_that_is_stopped_for_long(tmp_path: Path) -> None:
    """A worker that is stopped for some seconds finishes its item when it goes on."""

    def stop_myself(x: int) -> int:
        if x == 1:
            (tmp_path / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return x

    task = parallel(stop_myself).with_options(backend="process", chunksize=1)

    def wake() -> None:
        time.sleep(10)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)

    waker = threading.Thread(target=wake)
    waker.start()
    assert [0, 1, 2, 3] == task.map(range(4))
    waker.join()
