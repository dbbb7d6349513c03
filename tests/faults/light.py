"""Tasks for tests that replace many workers: every fresh worker imports this, so it imports little.

Who begins an item says so in a file, by one appending write of its own: nothing that dies later can
take that back, and no two are lost in one.
"""

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sharedtask.backends.worker.limits import private_bytes

MB = 1_000_000
_kept: list[Any] = []


def enter(folder: str, x: int) -> int:
    """Note that the body of item x was entered by this process; return how often it was."""
    log = os.open(Path(folder, "entered"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{x} {os.getpid()}\n".encode())
    os.close(log)
    return entered(folder)[x]


def entered(folder: str | Path) -> Counter[int]:
    """How often each item was entered."""
    log = Path(folder, "entered")
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(int(line.split()[0]) for line in lines)


def who(x: int, folder: str = "") -> int:
    """The pid of the worker."""
    if folder:
        enter(folder, x)
    return os.getpid()


def hoard(x: int, folder: str, size: int, seconds: float = 0.0) -> tuple[int, int]:
    """Keep some megabytes without end; tell who and how much this process had before."""
    before = private_bytes() or 0
    enter(folder, x)
    _kept.append(np.ones(size * MB // 8))
    time.sleep(seconds)
    return os.getpid(), before


def gorge(x: int, folder: str, bad: Any, size: int = 400) -> int:
    """Take much memory for a while, for a bad item."""
    enter(folder, x)
    if x in bad:
        mine = np.ones(size * MB // 8)
        time.sleep(10)
        return len(mine)
    return x


def add_up(k: int, tally: Any, folder: str) -> int:
    """Add to an array, and keep some memory."""
    enter(folder, k)
    _kept.append(np.ones(10 * MB // 8))
    tally[k % 3] += 0.1 * k
    return os.getpid()


def poisoned(x: int, folder: str, bad: Any, size: int = 0) -> Any:
    """A bad item kills its worker every time, if it has a size, while its result is sent."""
    enter(folder, x)
    if x in bad and not size:
        os.kill(os.getpid(), signal.SIGKILL)
    return Killing(size) if x in bad else x


class Killing:
    """A large value whose worker is killed a moment after its encoding has begun."""

    def __init__(self, size: int) -> None:
        self.data = np.ones(size)

    def __reduce__(self) -> Any:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return np.copy, (self.data,)


def linger(x: int, folder: str, seconds: float) -> int:
    """Take a while."""
    enter(folder, x)
    time.sleep(seconds)
    return x


def wait_or_die(x: int, folder: str) -> int:
    """One item kills its worker, another one hangs."""
    enter(folder, x)
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    if x == 11:
        time.sleep(60)
    return x


class SlowToLoad:
    """Takes a while to unpickle."""

    def __reduce__(self) -> Any:
        return time.sleep, (0.4,)
