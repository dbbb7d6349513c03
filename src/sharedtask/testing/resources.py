"""The resources of a process that could leak, and tasks that query them in workers.

Separate from the rest of the test kit, which imports pytest and hypothesis: every fresh worker
imports this to report its resources.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedtask.annotations import Shared

if TYPE_CHECKING:
    from collections.abc import Iterator


# The thread of the finalizers, which stays once it was needed.
_OF_THE_PROCESS = "sharedtask-endings"


@dataclass(frozen=True, slots=True)
class Belongings:
    """The resources of this process that could leak, by kind and number.

    Attributes:
        descriptors: Open files by kind: "socket", "memfd:sharedtask", a path ...
        threads: Threads by name, without numbers.
        children: Processes below this one, zombies included.
        mappings: Mapped segments of ours.
        names: Entries of ``/dev/shm`` with our name, but for those of other running programs.
    """

    descriptors: Counter[str]
    threads: Counter[str]
    children: frozenset[int]
    mappings: int
    names: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        """Count everything after a garbage collection."""
        gc.collect()
        return cls(
            _descriptors(),
            Counter(
                re.sub(r"\d+", "N", thread.name)
                for thread in threading.enumerate()
                if thread.name != _OF_THE_PROCESS
            ),
            frozenset(descendants(os.getpid())),
            _mapped_segments(),
            frozenset(filter(_may_be_ours, _listed("/dev/shm"))),  # noqa: S108
        )

    def more_than(self, before: Belongings, *, same_children: bool = False) -> list[str]:
        """Describe the growth since ``before``; with ``same_children`` children count by number."""
        grown = [
            f"{n} more open: {what}" for what, n in (self.descriptors - before.descriptors).items()
        ]
        grown += [
            f"{n} more threads: {what}" for what, n in (self.threads - before.threads).items()
        ]
        if same_children:
            if len(self.children) > len(before.children):
                grown.append(f"{len(self.children)} child processes, before {len(before.children)}")
        elif self.children - before.children:
            grown.append(f"child processes {sorted(self.children - before.children)}")
        if self.mappings > before.mappings:
            grown.append(f"{self.mappings - before.mappings} more mapped segments")
        if self.names - before.names:
            grown.append(f"names in /dev/shm: {sorted(self.names - before.names)}")
        return grown


def nap(seconds: float, big: Shared[Any] = None) -> int:
    """Sleep; returns the pid."""
    del big  # sharing it is the point
    time.sleep(seconds)
    return os.getpid()


def report(x: int, big: Shared[Any]) -> tuple[int, float, int, Belongings]:
    """The square of ``x``, the sum of ``big``, the pid, and the resources of this process."""
    time.sleep(0.002)  # the other worker takes the other item
    return x * x, float(big.sum()), os.getpid(), Belongings.now()


def _may_be_ours(name: str) -> bool:
    """Whether this process, or one that has ended, may have left a name."""
    owner = re.search(r"sharedtask-loky-(?:new-)?(\d+)-", name)
    if owner is None:
        return "sharedtask" in name
    return int(owner[1]) == os.getpid() or not Path("/proc", owner[1]).exists()


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for number in _listed("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("/proc/"):  # the listing itself
                found[re.sub(r":\[\d+\]$", "", target)] += 1
    return found


def _mapped_segments() -> int:
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
            return sum("sharedtask" in line.partition(" /")[2] for line in file)
    except OSError:
        return 0


def descendants(pid: int) -> Iterator[int]:
    """The processes below this one, zombies included."""
    parents: dict[int, list[int]] = {}
    for name in _listed("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                stat = Path("/proc", name, "stat").read_text(encoding="utf-8", errors="replace")
                parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(name))
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        yield from children
        waiting += children
