"""Ctrl-C, the caller's own death, and the end of the interpreter: each in a program of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from budget import with_long
from programs import starts_late

from sharedtask.testing import slowness

Start = Callable[..., Any]

HEAD = """\
import asyncio, atexit, gc, os, signal, sys, threading, time
import numpy as np
import sharedtask
from sharedtask import Shared, parallel

def nap(x, seconds=30.0, folder=None):
    if folder:
        open(os.path.join(folder, f"{x}-{os.getpid()}-{time.monotonic_ns()}"), "w").close()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return x

def spin(x, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return x

def swallow(x, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
    return x

def hold_the_gil(x, seconds=30):
    import ctypes
    ctypes.PyDLL(None).sleep(int(seconds))
    return x

def use(x, table: Shared):
    return float(table.sum()) + x

def warm():
    parallel(nap).map(range(4), seconds=0.02)

def end(code):
    print("END", flush=True)
    sys.exit(code)

def left():
    gc.collect()
    with open("/proc/self/maps") as maps:
        return sum("memfd:sharedtask" in line for line in maps)

def started():
    threading.Timer(0.3, lambda: print("STARTED", flush=True)).start()
"""

WAYS_TO_MAP = {
    "map": "parallel({0}).map(range(8))",
    "imap": "list(parallel({0}).imap(range(8)))",
    "imap_unordered": "list(parallel({0}).imap_unordered(range(8)))",
    "starmap": "parallel({0}).starmap([(x,) for x in range(8)])",
    "submit": "parallel({0}).submit(1).result()",
    "amap": "asyncio.run(parallel({0}).amap(range(8)))",
    "aimap": "asyncio.run(anext(parallel({0}).aimap(range(8))))",
}
CASES = [("nap", how) for how in WAYS_TO_MAP] + [
    (task, "map") for task in ("spin", "swallow", "hold_the_gil")
]


@pytest.mark.parametrize(
    ("task", "how"),
    with_long(CASES, ("nap", "imap_unordered"), ("nap", "starmap"), ("nap", "aimap")),
)
def test_ctrl_c_in_mid_map(script: Start, task: str, how: str) -> None:
    """Ctrl-C to the group is one KeyboardInterrupt within a second; the pool is usable at once."""
    ran = script(
        f"""{HEAD}
warm()
started()
try:
    {WAYS_TO_MAP[how].format(task)}
except KeyboardInterrupt as error:
    print("CAUGHT", time.monotonic(), len(getattr(error, "exceptions", [1])), flush=True)
began = time.monotonic()
print("AGAIN", parallel(nap).map(range(4), seconds=0.0), flush=True)
print("TOOK", time.monotonic() - began, flush=True)
"""
    )
    ran.wait_for("STARTED")
    sent = time.monotonic()
    os.killpg(ran.pid, signal.SIGINT)
    caught = float(ran.wait_for("CAUGHT").split()[0])
    assert 1 * slowness() > caught - sent
    assert "[0, 1, 2, 3]" == ran.wait_for("AGAIN")
    assert 2 * slowness() > float(ran.wait_for("TOOK"))
    assert (0, "") == (ran.end(), ran.err)
    ran.assert_gone(1)


@pytest.mark.parametrize("task", ["nap", "swallow", "hold_the_gil"])
def test_ctrl_c_that_nobody_catches(script: Start, task: str) -> None:
    """A program that ends by Ctrl-C shows one traceback of its own and leaves no process."""
    ran = script(f"{HEAD}\nwarm()\nstarted()\nparallel({task}).map(range(8))\n")
    ran.wait_for("STARTED")
    sent = time.monotonic()
    os.killpg(ran.pid, signal.SIGINT)
    code = ran.end()
    assert 2 * slowness() > time.monotonic() - sent
    assert -signal.SIGINT == code
    assert 1 == ran.err.count("Traceback")
    assert ran.err.rstrip().endswith("KeyboardInterrupt")
    ran.assert_gone(1)


def test_ctrl_c_twice(script: Start) -> None:
    """A second Ctrl-C right behind the first does no more harm than the first."""
    ran = script(f"{HEAD}\nwarm()\nstarted()\nparallel(nap).map(range(8))\n")
    ran.wait_for("STARTED")
    os.killpg(ran.pid, signal.SIGINT)
    time.sleep(0.02)
    os.killpg(ran.pid, signal.SIGINT)
    assert 0 != ran.end(5)
    ran.assert_gone(1)
    assert "Exception ignored" not in ran.err


def test_no_item_begins_after_ctrl_c(script: Start, tmp_path: Any) -> None:
    """Workers neither swallow Ctrl-C nor take another item after it."""
    folder = tmp_path / "marks"
    folder.mkdir()
    ran = script(
        f"""{HEAD}
warm()
started()
try:
    parallel(nap).map(range(1000), seconds=0.2, folder={str(folder)!r})
except KeyboardInterrupt:
    before = len(os.listdir({str(folder)!r}))
    time.sleep(1.0)
    print("MORE", len(os.listdir({str(folder)!r})) - before, flush=True)
"""
    )
    ran.wait_for("STARTED")
    os.killpg(ran.pid, signal.SIGINT)
    assert 2 >= int(ran.wait_for("MORE"))  # what was in a worker's hands may have begun
    assert (0, "") == (ran.end(), ran.err)


@pytest.mark.parametrize("milliseconds", with_long([0, 5, 20, 50, 100, 200], 5, 50, 200))
def test_ctrl_c_at_any_moment_of_a_publication(script: Start, milliseconds: int) -> None:
    """Ctrl-C while a large value is published or attached leaves a usable pool and no memory."""
    ran = script(
        f"""{HEAD}
warm()
table = np.ones(40_000_000)
main = threading.main_thread().ident
timer = threading.Timer({milliseconds} / 1000, signal.pthread_kill, (main, signal.SIGINT))
try:
    timer.start()
    parallel(use).map(range(4), table=table)
    time.sleep(5)
except KeyboardInterrupt:
    print("CAUGHT", flush=True)
print(parallel(use).map(range(2), table=table) == [4e7, 4e7 + 1], flush=True)
del table
sharedtask.shutdown()
print("LEFT", left(), flush=True)
"""
    )
    assert "" == ran.wait_for("CAUGHT")
    assert "0" == ran.wait_for("LEFT")
    assert (0, "") == (ran.end(), ran.err)


@pytest.mark.parametrize(
    ("number", "task"),
    [
        (signal.SIGKILL, "nap"),
        (signal.SIGKILL, "swallow"),
        (signal.SIGKILL, "hold_the_gil"),
        (signal.SIGTERM, "nap"),
        (signal.SIGHUP, "nap"),
    ],
)
def test_death_of_the_caller(script: Start, number: signal.Signals, task: str) -> None:
    """When the caller is killed in mid-map, its workers are gone within a second."""
    ran = script(
        f"""{HEAD}
warm()
started()
table = np.ones(4_000_000)
parallel(use).map(range(4), table=table)
parallel({task}).map(range(8))
"""
    )
    ran.wait_for("STARTED")
    assert 4 == len(ran.survivors())  # itself, the forkserver, two workers
    os.kill(ran.pid, number)
    ran.assert_gone(1)
    assert -number == ran.end()
    assert "" == ran.err


def test_death_of_the_whole_group(script: Start) -> None:
    """``kill -9`` of the process group leaves no process, no memory and no name."""
    names = set(os.listdir("/dev/shm"))
    ran = script(
        f"""{HEAD}
warm()
started()
parallel(use).map(range(4), table=np.ones(4_000_000))
parallel(nap).map(range(8))
"""
    )
    ran.wait_for("STARTED")
    os.killpg(ran.pid, signal.SIGKILL)
    ran.assert_gone(1)
    assert -signal.SIGKILL == ran.end()
    assert not {
        n for n in set(os.listdir("/dev/shm")) - names if "sharedtask" in n and "loky" not in n
    }


def test_death_of_the_caller_with_file_segments(script: Start) -> None:
    """Segments that are files leave no name behind either."""
    names = set(os.listdir("/dev/shm"))
    ran = script(
        f"{HEAD}\nwarm()\nstarted()\nparallel(use).map(range(4), table=np.ones(4_000_000))\n"
        "parallel(nap).map(range(8))\n",
        SHAREDTASK_STORE="file",
    )
    ran.wait_for("STARTED")
    os.kill(ran.pid, signal.SIGKILL)
    ran.assert_gone(1)
    assert not {
        n for n in set(os.listdir("/dev/shm")) - names if "sharedtask" in n and "loky" not in n
    }


def test_thread_that_started_the_pool_ends(script: Start) -> None:
    """The workers live on when the thread that started them has ended."""
    ran = script(
        f"""{HEAD}
pid = parallel(lambda x: (time.sleep(0.1), os.getpid())[1])
found = []
thread = threading.Thread(target=lambda: found.extend(pid.with_options(chunksize=1).map(range(4))))
thread.start()
thread.join()
time.sleep(0.2)
print(sorted(set(found)) == sorted(set(pid.with_options(chunksize=1).map(range(4)))))
"""
    )
    assert (0, "") == (ran.end(), ran.err)
    assert "True\n" == ran.out


NO_THREAD = "ClosedError: the program ends: can't create new thread at interpreter shutdown"
ENDS = {
    "nothing special": "warm(); print('END', flush=True)",
    "exit code": "warm(); end(7)",
    "SystemExit with text": "warm(); print('END'); raise SystemExit(7)",
    "tasks running": "fs = [parallel(nap).submit(x) for x in range(8)]; time.sleep(0.3); end(7)",
    "tasks that hold on": "f = parallel(swallow).submit(1); time.sleep(0.3); end(7)",
    "the GIL is held": "f = parallel(hold_the_gil).submit(1); time.sleep(0.3); end(7)",
    "right after submit": "f = parallel(nap).submit(1); end(7)",
    "never used": "end(7)",
    "only decorated": "t = parallel(nap); end(7)",
    "half a stream": "s = parallel(nap).imap(range(99), seconds=0.01); next(s); end(7)",
    "half an unordered stream": "s = parallel(nap).imap_unordered(iter(int, 1), seconds=0.01);"
    " next(s); end(7)",
    "values in the cache": "t = np.ones(10**6); d = {'t': t};"
    " parallel(use).map([1], table=t); parallel(shared=['d'])(lambda x, d: x).map([1], d=d);"
    " end(7)",
    "open handle": "h = sharedtask.share(np.ones(10**6)); parallel(use).map([1], table=h);"
    " keep = h.value; end(7)",
    "result kept": "r = parallel(lambda x: np.ones(10**6)).map([1, 2]); end(7)",
    "map in atexit": "atexit.register(lambda: print(parallel(nap).map([1, 2], seconds=0.0)));"
    " warm(); end(7)",
    "daemon thread": "threading.Thread(target=lambda: parallel(nap).map(range(99)), daemon=True)"
    ".start(); time.sleep(0.4); end(7)",
    "daemon thread in a stream": "threading.Thread(target=lambda: [r for r in parallel(nap).imap("
    "iter(int, 1), seconds=0.0)], daemon=True).start(); time.sleep(0.4); end(7)",
    "shut down": "warm(); sharedtask.shutdown(); end(7)",
    "shut down twice": "warm(); sharedtask.shutdown(); sharedtask.shutdown(); end(7)",
    "shut down and used again": "warm(); sharedtask.shutdown(); warm(); end(7)",
    "thread backend": "task = parallel(nap).with_options(backend='thread');"
    " futures = [task.submit(x) for x in range(4)];"
    " time.sleep(0.1); end(7)",
}


@pytest.mark.parametrize(
    "name",
    with_long(
        ENDS,
        "exit code",
        "half an unordered stream",
        "daemon thread in a stream",
        "result kept",
        "shut down",
        "shut down twice",
    ),
)
def test_end_of_the_interpreter(script: Start, name: str) -> None:
    """A program ends in less than two seconds, silently, with its own exit code."""
    ran = script(f"{HEAD}\n{ENDS[name]}\n")
    ran.wait_for("END")
    began = time.monotonic()
    code = ran.end()
    assert 2 * slowness() > time.monotonic() - began
    assert (0 if name == "nothing special" else 7) == code
    if name == "map in atexit" and not starts_late():
        assert NO_THREAD in ran.err
    else:
        assert "" == ran.err
    ran.assert_gone(1)


def test_handler_that_was_registered_before_the_import(script: Start) -> None:
    """A map in an atexit handler that runs after our own is right, and its workers end as well.

    Where Python starts no thread at that time, it says so.
    """
    ran = script(
        f"""
import atexit
atexit.register(lambda: print(parallel(nap).map([1, 2], seconds=0.0)))
{HEAD}
warm()
"""
    )
    assert 0 == ran.end()
    if starts_late():
        assert ("", "[1, 2]\n") == (ran.err, ran.out)
    else:
        assert NO_THREAD in ran.err
    ran.assert_gone(1)


def test_exception_ends_the_program(script: Start) -> None:
    """A program that ends by an exception shows that exception and nothing else."""
    ran = script(f"{HEAD}\nwarm()\nraise LookupError('mine')\n")
    assert 1 == ran.end()
    assert 1 == ran.err.count("Traceback")
    assert ran.err.rstrip().endswith("LookupError: mine")
    ran.assert_gone(1)


def test_os_exit_ends_the_workers(script: Start) -> None:
    """``os._exit`` of the caller ends the workers too."""
    ran = script(f"{HEAD}\nwarm()\nos._exit(5)\n")
    assert (5, "") == (ran.end(), ran.err)
    ran.assert_gone(1)


@pytest.mark.parametrize("where", ["main thread", "other thread", "at the end"])
def test_stream_in_a_cycle_is_collected(script: Start, where: str) -> None:
    """A half-read stream that is garbage in a cycle is collected anywhere without a hang."""
    collect = {
        "main thread": "gc.collect()",
        "other thread": "t = threading.Thread(target=gc.collect); t.start(); t.join()",
        "at the end": "pass",
    }[where]
    ran = script(
        f"""{HEAD}
import gc
gc.disable()
for _ in range(5):
    stream = parallel(nap).imap(iter(int, 1), seconds=0.001)
    next(stream)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
{collect}
print(parallel(nap).map([1, 2], seconds=0.0))
"""
    )
    assert (0, "") == (ran.end(10), ran.err)
    assert "[1, 2]\n" == ran.out
    ran.assert_gone(1)


FORKS = {
    "os.fork": """
pid = os.fork()
if pid == 0:
    child()
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
""",
    "multiprocessing": """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
assert process.exitcode == 0, process.exitcode
""",
    "subprocess": """
import subprocess
assert subprocess.run(["true"]).returncode == 0
child()
""",
}


@pytest.mark.parametrize("how", FORKS)
def test_fork_while_the_pool_is_live(script: Start, how: str) -> None:
    """A forked child may map or gets a clear error; the parent's pool and values are untouched."""
    ran = script(
        f"""{HEAD}
table = np.ones(1_000_000)
handle = sharedtask.share({{"rows": table}})
task = parallel(use)
print(task.map(range(2), table=table), flush=True)

def child():
    try:
        found = task.map(range(2), table=table)
        assert found == [1e6, 1e6 + 1], found
    except sharedtask.SharedTaskError as error:
        assert str(error)
    sys.stdout.flush()
{FORKS[how]}
print(task.map(range(2), table=table), handle.value["rows"].sum(), flush=True)
print(task.cache_info().hits)
"""
    )
    assert (0, "") == (ran.end(), ran.err)
    assert "[1000000.0, 1000001.0]\n[1000000.0, 1000001.0] 1000000.0\n" in ran.out
    ran.assert_gone(1)


def test_child_of_a_fork_dies_without_harm(script: Start) -> None:
    """A forked child that is killed, or ends by itself, takes nothing of the parent's along."""
    ran = script(
        f"""{HEAD}
warm()
for how in ("exit", "kill", "quick"):
    pid = os.fork()
    if pid == 0:
        if how == "exit":
            sys.exit(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(0)
    os.waitpid(pid, 0)
    print(parallel(nap).map(range(3), seconds=0.0), flush=True)
"""
    )
    assert (0, "") == (ran.end(), ran.err)
    assert "[0, 1, 2]\n" * 3 == ran.out


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_first_use_among_threads(script: Start, method: str) -> None:
    """The first use in a process with threads and BLAS at work starts well, without a warning."""
    ran = script(
        f"""{HEAD}
import multiprocessing
multiprocessing.set_start_method({method!r})
rows = np.random.default_rng(0).random((300, 300))
go_on = True
def work():
    while go_on:
        rows @ rows
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
found = []
first = threading.Thread(target=lambda: found.append(parallel(use).map(range(3), table=rows)))
first.start()
first.join(60)
go_on = False
print(found == [[float(rows.sum()) + x for x in range(3)]])
"""
    )
    assert (0, "") == (ran.end(40), ran.err)
    assert "True\n" == ran.out


def test_pipe_of_a_shell_ends(tmp_path: Any) -> None:
    """A program whose reader has gone ends; no worker keeps the pipe open."""
    text = f"{HEAD}\nwarm()\nprint('out', flush=True)\nsharedtask.share(1)\n"
    path = tmp_path / "piped.py"
    path.write_text(text)
    began = time.monotonic()
    ran = subprocess.run(
        f"{sys.executable} {path} | cat", shell=True, timeout=60, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert ("out\n", "") == (ran.stdout, ran.stderr)
    assert 10 * slowness() > time.monotonic() - began
