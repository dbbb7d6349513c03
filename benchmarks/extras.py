"""What the rows do not show: imports, publishing, checking an unchanged array, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from benchmarks.contestants import missing
from benchmarks.measure import (
    NOT_INSTALLED,
    ROOT,
    Cell,
    Effort,
    Failure,
    Host,
    HostError,
    Timing,
    hosting,
    race,
)

# The names that every use needs: a package that loads its modules late hides nothing here.
IMPORTS = {
    "base": "import numpy, pydantic, wrapt",
    "ours": "from sharedtask import Shared, parallel, share",
}
PUBLISHED_MIB = (64, 256, 512)
SHARED_BYTES = 256 << 20
# Less, and a pool whose workers unpickle 256 MB each has not done so when it is looked at.
HELD_SECONDS = 4.0


def imports(effort: Effort) -> Mapping[str, Cell]:
    """How long the import takes in a fresh process, beside what it cannot do without."""
    code = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
    spent: dict[str, list[tuple[float, ...]]] = {name: [] for name in IMPORTS}
    if missing("ours"):
        del spent["ours"]
    for _ in range(effort.turns + 1):
        for name, turns in spent.items():
            command = [sys.executable, "-c", code.format(IMPORTS[name])]
            ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if ran.returncode == 0:
                turns.append((float(ran.stdout) * 1000,))
    timings = {name: Timing(tuple(turns[1:])) for name, turns in spent.items() if turns[1:]}
    return {name: timings.get(name, NOT_INSTALLED) for name in IMPORTS}


def publishing(effort: Effort, peers: Collection[str]) -> Mapping[int, Mapping[str, Cell]]:
    """How long arrays of several sizes take to publish, by the floor's pwrite and by share()."""
    with race(effort) as running:
        for name in ("floor", "ours"):
            if name in peers:
                running.enter(name, "first")
        found = {}
        for mib in PUBLISHED_MIB if effort.hopeless else PUBLISHED_MIB[:2]:
            running.warm_mib = 2 * mib + 64
            found[mib] = running.run("publish", mib=mib)
    return found


def unchanged(effort: Effort) -> Mapping[str, float] | Failure:
    """What 512 MB that did not change add to a map, in milliseconds, beside their memcmp."""
    return in_host("ours", "unchanged", mib=512, repeats=3 * effort.turns)


def memory(peers: Collection[str]) -> Iterator[tuple[str, float | Failure]]:
    """Growth of the proportional set size while four workers hold 256 MB, over those 256 MB."""
    for name in peers:
        answer = in_host(name, "memory", load="memory", seconds=HELD_SECONDS)
        yield name, answer if isinstance(answer, Failure) else answer["bytes"] / SHARED_BYTES


def in_host(
    name: str, do: str, load: str | None = None, **arguments: Any
) -> dict[str, float] | Failure:
    """One command in a host of its own; a failure where there is no answer."""
    if missing(name):
        return NOT_INSTALLED
    try:
        with hosting(name) as host:
            prepare(host, load)
            answer: dict[str, float] = host.ask(do, **arguments)
            return answer
    except HostError as error:
        return error.failure


def prepare(host: Host, load: str | None) -> None:
    """Start the workers and build the job's value, where the command needs one."""
    host.ask("open")
    if load:
        host.ask("load", job=load)
