"""What the items do in the workers, and items that are awkward themselves.

Seven rooms are visited, ``room-3`` is the one at fault. The names are odd enough to be recognised
in any error's text.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOMS = 7
BAD = "room-3"
SCRATCH = "FAULTS_SCRATCH"  # environment variable: a folder of this run's own
WORK, HANG = 0.02, 60.0  # seconds


def rooms() -> list[Any]:
    return [f"room-{number}" for number in range(ROOMS)]


def right(place: int) -> int:
    """What the item at ``place`` has to give."""
    return 10 * place


def rooms_in(text: str) -> set[int]:
    """The items that a text names: ``room-3``, or ``item 3`` as a library may count them."""
    return {int(number) for number in re.findall(r"\b(?:room-|item )(\d+)\b", text)}


def work(room: Any) -> int:
    time.sleep(WORK)  # so that both workers take part
    return right(int(str(room)[-1]))


def whoami(room: str) -> int:
    time.sleep(0.1)
    return os.getpid()


def killed(room: str) -> int:
    if room == BAD:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(room)


def crashes(room: str) -> int:
    if room == BAD:
        ctypes.string_at(0)
    return work(room)


def ends(room: str) -> int:
    if room == BAD:
        os._exit(0)
    return work(room)


def exits(room: str) -> int:
    if room == BAD:
        sys.exit(3)
    return work(room)


def interrupts(room: str) -> int:
    if room == BAD:
        raise KeyboardInterrupt
    return work(room)


class NoSuchRoomError(Exception):
    """Wants more than its text, as many do: Python pickles it, and cannot unpickle it."""

    def __init__(self, room: str, house: str) -> None:
        super().__init__(f"{house} has no {room}")
        self.room = room


def no_such_room(room: str) -> int:
    if room == BAD:
        raise NoSuchRoomError(room, house="the cottage")
    return work(room)


class LockedRoomError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def locked_room(room: str) -> int:
    if room == BAD:
        raise LockedRoomError(f"{room} is locked")
    return work(room)


def gives_lock(room: str) -> Any:
    return threading.Lock() if room == BAD else work(room)


def refuse(room: str) -> Any:
    raise ArithmeticError("it will not be rebuilt")


def die(room: str, caller: int) -> Any:
    """Kill the process that unpickles it, unless that is the caller itself."""
    if os.getpid() != caller:
        os.kill(os.getpid(), signal.SIGKILL)
    return DeadlyItem(room, caller)


class Awkward:
    """An item or a result that does not travel; it shows its name as any good object does."""

    def __init__(self, room: str) -> None:
        self.room = room

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.room})"

    def __str__(self) -> str:
        return self.room


class Stubborn(Awkward):
    """Raises when it is pickled."""

    def __reduce__(self) -> Any:
        raise ArithmeticError("it will not be pickled")


class Shattered(Awkward):
    """Raises when it is unpickled."""

    def __reduce__(self) -> Any:
        return refuse, (self.room,)


class DeadlyItem(Awkward):
    """Kills the worker that unpickles it."""

    def __init__(self, room: str, caller: int = 0) -> None:
        super().__init__(room)
        self.caller = caller or os.getpid()

    def __reduce__(self) -> Any:
        return die, (self.room, self.caller)


def rooms_with(kind: type[Awkward]) -> Callable[[], list[Any]]:
    return lambda: [kind(room) if room == BAD else room for room in rooms()]


def gives_shattered(room: str) -> Any:
    return Shattered(room) if room == BAD else work(room)


def behind_a_lock() -> Callable[[str], int]:
    """A function that captured a lock."""
    guard = threading.Lock()

    def guarded(room: str) -> int:
        with guard:
            return work(room)

    return guarded


def without_end(room: Any) -> int:
    return without_end(room) + 1


def recurses(room: str) -> int:
    return without_end(room) if room == BAD else work(room)


def hangs(room: str) -> int:
    if room == BAD:
        time.sleep(HANG)
    return work(room)


def closes_descriptors(room: str) -> int:
    if room == BAD:
        os.closerange(3, 256)
    return work(room)


def look(room: str, table: np.ndarray) -> int:
    return work(room) * int(table[0])


def scribbles(room: str, table: np.ndarray) -> int:
    """Writes over all of it; whoever looks afterwards in the same memory sees that."""
    if room == BAD:
        table[:] = -1
        return work(room)
    return look(room, table)


def waits(room: str) -> int:
    """From the third room on: say who has it, and wait for the word to go on."""
    folder = Path(os.environ[SCRATCH])
    if work(room) >= right(2):
        half = folder / f"{room}.half"
        half.write_text(str(os.getpid()))
        half.rename(folder / room)
        deadline = time.monotonic() + HANG
        while not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
    return work(room)
