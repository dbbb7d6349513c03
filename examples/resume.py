"""A long map is killed with SIGKILL half-way; the same call then runs only the rest.

The program starts itself a second time, as a child that it kills. Both make the same call, so
``journal=`` alone is enough to resume it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sharedtask import Shared, parallel

ITEMS = 60


@parallel(workers=2)
def simulate(seed: int, terrain: Shared[np.ndarray], entered: str) -> float:
    """A walk over the terrain; its start is recorded in a file."""
    with open(entered, "a", encoding="ascii") as file:
        file.write(f"{seed}\n")
    time.sleep(0.05)  # a real one would take minutes
    rng = np.random.default_rng(seed)
    return float(rng.choice(terrain.ravel(), 1000).mean())


def run(folder: Path) -> list[float]:
    """The call that is interrupted, and made again."""
    terrain = np.random.default_rng(0).normal(size=(1000, 1000))
    task = simulate.with_options(journal=folder / "run.sqlite")
    return task.map(range(ITEMS), terrain=terrain, entered=str(folder / "entered"))


def entered(folder: Path) -> int:
    """The number of walks that have started so far, in all processes."""
    file = folder / "entered"
    return len(file.read_text().split()) if file.exists() else 0


if len(sys.argv) > 1:  # the child
    run(Path(sys.argv[1]))
    sys.exit()

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    child = subprocess.Popen([sys.executable, __file__, name])  # noqa: S603  this very program
    while entered(folder) < ITEMS // 2:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = entered(folder)
    print(f"killed after {before} of {ITEMS} walks had started")

    table = subprocess.run(  # noqa: S603  our own command
        [sys.executable, "-m", "sharedtask", "journal", folder / "run.sqlite"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\t")
    recorded = int(table[4])
    print(f"the journal has {recorded} results of {table[1]}()")

    walks = run(folder)
    again = entered(folder) - before
    print(f"the same call ran {again} walks and returned {len(walks)} results")
    print(f"no recorded walk ran twice: {again == ITEMS - recorded}")
