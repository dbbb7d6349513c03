"""Time and memory of a piece of work, with all the processes that take part in it.

Memory is the proportional set size (PSS) that Linux reports: a page that four processes share
counts a quarter in each, so the sum over all of them is what the machine really spends.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Cost", "measure", "memory", "watching"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a piece of work returned, the seconds it took and the most memory it added (bytes)."""

    result: Any
    seconds: float
    memory: int


def family() -> list[int]:
    """This process and everything below it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold spaces: count the fields after it.
            parents[int(stat.parent.name)] = int(
                stat.read_text("utf-8", "replace").rpartition(")")[2].split()[1]
            )
        except OSError:
            continue  # it ended while we looked
    members = [os.getpid()]
    for pid in members:
        members += [child for child, parent in parents.items() if parent == pid]
    return members


def memory() -> int:
    """Bytes of memory that this process and everything below it occupy."""
    kilobytes = 0
    for pid in family():
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8")
        except OSError:
            continue
        kilobytes += int(rollup.partition("\nPss:")[2].split()[0])
    return kilobytes * 1024


@contextmanager
def watching(peak: list[int], every: float = 0.1) -> Generator[None]:
    """Keep the highest ``memory()`` seen inside the block in ``peak[0]``."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(every):
            peak[0] = max(peak[0], memory())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
        peak[0] = max(peak[0], memory())
    finally:
        done.set()
        watcher.join()


def measure(work: Callable[[], Any]) -> Cost:
    """Do the work once, with time and memory taken."""
    before = memory()
    peak = [before]
    with watching(peak):
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
    return Cost(result, seconds, peak[0] - before)
