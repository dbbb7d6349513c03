"""Programs that tests run in places of their own."""

import functools
import subprocess
import sys


@functools.cache
def starts_late() -> bool:
    """Whether threads can be started while the program ends: not on Python 3.12.0 to 3.12.2."""
    program = (
        "import atexit, threading as t; atexit.register(t.Thread(target=len, args=[()]).start)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return not ran.stderr


EVERYTHING = """
import ctypes, os, signal, sys, time
import numpy as np
import sharedtask
from sharedtask import CopyOnWrite, Shared, TaskTimeoutError, WorkerDiedError, parallel, share

def use(x, table: Shared):
    if x == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return float(table.sum()) + x, table.flags.writeable

def scribble(x, table: CopyOnWrite):
    found = float(table.sum())
    table[:] = 0
    return found

def everything():
    table = np.ones(600_000)
    task = parallel(use).with_options(backend="process", workers=2, return_exceptions=True)
    found = task.map(range(5), table=table)
    assert isinstance(found.pop(3), WorkerDiedError)
    assert found == [(600_000.0 + x, False) for x in (0, 1, 2, 4)], found
    table[-1] = 2
    assert task.map([0], table=table) == [(600_001.0, False)]
    assert parallel(scribble).map(range(4), table=table) == [600_001.0] * 4
    with share(table) as handle:
        assert task.map([1], table=handle) == [(600_002.0, False)]
    results = parallel(lambda x: np.full(300_000, x)).map(range(4))
    assert [r.sum() for r in results] == [300_000.0 * x for x in range(4)]
    assert parallel(lambda a: float(a.sum())).map([table, table]) == [600_001.0] * 2
    late = parallel(lambda x: time.sleep(x)).with_options(timeout=0.5, return_exceptions=True)
    assert isinstance(late.map([0, 9])[1], TaskTimeoutError)
    sharedtask.shutdown()
    print("OK")
"""

ALL = f"{EVERYTHING}\neverything()\n"
