"""What happens around a map: idle workers die, all die at once, the shared array changes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.deeds import SCRATCH, rooms, rooms_in

NOTICED = 0.3  # seconds that a pool has to notice an idle worker's death
AT_WORK = 5.0  # seconds after which nobody else begins


@dataclass(slots=True)
class Scene:
    """The caller's side of one fault, once its workers are warm."""

    run: Callable[[], Any]  # the fault's own map, once
    workers: set[int]
    table: np.ndarray | None
    bad: set[int] = field(default_factory=set)  # the places at fault, as they are found out
    helper: threading.Thread | None = None

    def end(self) -> None:
        """Wait for what still happens beside the map."""
        if self.helper is not None:
            self.helper.join()


def nothing(scene: Scene) -> None:
    """The item does it all."""


def kill_idle(scene: Scene) -> None:
    """Kill one of the workers that wait for work."""
    os.kill(min(scene.workers), signal.SIGKILL)
    time.sleep(NOTICED)


def change_table(scene: Scene) -> None:
    """Map once over the array as it is, then give it its right contents."""
    assert scene.table is not None
    scene.run()
    scene.table[:] = 1


def kill_all_at_work(scene: Scene) -> None:
    """Kill both workers while each has an item in hand."""
    scene.helper = threading.Thread(target=kill_who_works, args=(scene,))
    scene.helper.start()


def kill_who_works(scene: Scene) -> None:
    """Wait until two have begun, kill both, let whoever comes then go on."""
    folder, deadline = Path(os.environ[SCRATCH]), time.monotonic() + AT_WORK
    begun: dict[str, int] = {}
    while len(set(begun.values())) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
        begun = {room: int((folder / room).read_text()) for room in at_work(folder)}
    for pid in set(begun.values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    scene.bad.update(*(rooms_in(room) for room in begun))
    (folder / "go").touch()


def at_work(folder: Path) -> list[str]:
    return [room for room in rooms() if (folder / room).exists()]
