"""Pictures of the page about slow maps: each program is traced as it is, and as it should be.

They are run when the site is built, so the pictures and their figures are those of real runs.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sharedtask import Shared, parallel, trace
from sharedtask.text import duration
from sharedtask.tracing.records import Recorded
from sharedtask.tracing.showing.picture import timeline

SCHEMES = ("light", "dark")
TABLE = np.ones(3_000_000)


@parallel(backend="process", workers=2)
def look(row: int, table: Any) -> float:
    """A table that goes along with each chunk."""
    return float(table[row])


@parallel(backend="process", workers=2)
def look_shared(row: int, table: Shared[Any]) -> float:
    """A table that is stored once."""
    return float(table[row])


@parallel(backend="process", workers=2, chunksize=1)
def wait(seconds: float) -> float:
    """An item of a known length."""
    time.sleep(seconds)
    return seconds


@parallel(backend="process", workers=2, chunksize=1)
def read_and_wait(seconds: float) -> float:
    """The same, which is read inside the task."""
    time.sleep(0.02)
    return wait(seconds)


def read() -> Iterator[float]:
    """Items that come slowly."""
    for _ in range(20):
        time.sleep(0.02)
        yield 0.001


SIZES = [0.01] * 40 + [0.4]
PROGRAMS: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
    "unmarked": (
        lambda: [look.map(range(40), table=TABLE) for _ in range(3)],
        lambda: [look_shared.map(range(40), table=TABLE) for _ in range(3)],
    ),
    "straggler": (lambda: wait.map(SIZES), lambda: wait.map(sorted(SIZES, reverse=True))),
    "iterator": (lambda: wait.map(read()), lambda: read_and_wait.map([0.001] * 20)),
}


def warm() -> None:
    """Start the workers."""
    wait.map([0.01] * 4)


def traced(program: Callable[[], object]) -> Recorded:
    """What a program does, whose workers are there."""
    with trace() as run:
        program()
    return run.recorded()


def pictures() -> tuple[dict[str, str], dict[str, str]]:
    """The pictures by their file, and by program what the page says of them."""
    warm()
    files: dict[str, str] = {}
    texts: dict[str, str] = {}
    for name, programs in PROGRAMS.items():
        runs = dict(zip(("before", "after"), map(traced, programs), strict=True))
        seconds = max(run.seconds for run in runs.values())
        for when, run in runs.items():
            for scheme in SCHEMES:
                files[file_of(name, when, scheme)] = timeline(run, scheme, seconds)
        texts[name] = told(name, runs)
    return files, texts


def file_of(name: str, when: str, scheme: str) -> str:
    """A picture's file, from the page."""
    return f"traces/{name}-{when}-{scheme}.svg"


def told(name: str, runs: dict[str, Recorded]) -> str:
    """Both pictures, one above the other, with the times below."""
    lines = [
        f"![Timeline of the program {when}]({file_of(name, when, scheme)}#only-{scheme})"
        for when in runs
        for scheme in SCHEMES
    ]
    before, after = (duration(run.in_calls) for run in runs.values())
    return "\n".join([*lines, "", f"Above before, below after: {before} and {after} in calls."])
