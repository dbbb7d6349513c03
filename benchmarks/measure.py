"""Measuring side by side: one host process per contestant, in turns, A B C A B C."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from benchmarks.contestants import missing
from benchmarks.machine import warm_up

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")  # where joblib puts them by itself
HANG = 120.0  # seconds: nothing that is allowed to be this slow hangs longer


@dataclass(frozen=True, slots=True)
class Timing:
    """What one contestant took for one job, in milliseconds, turn by turn."""

    turns: tuple[tuple[float, ...], ...]
    single: bool = False  # one run only, workers warm but the value new to them

    @property
    def median(self) -> float:
        return median(run for turn in self.turns for run in turn)

    @property
    def least(self) -> float:
        return min(run for turn in self.turns for run in turn)

    def per(self, count: float) -> Timing:
        """The same for one of ``count`` equal parts of the job."""
        return Timing(tuple(tuple(ms / count for ms in turn) for turn in self.turns), self.single)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no timing: the word for the table, and the detail for the list under it."""

    word: str
    detail: str = ""


Cell = Timing | Failure
SLOW = Failure("slow")
NOT_INSTALLED = Failure("not installed")
CANNOT = Failure("-")


def ratio(one: Cell, other: Cell) -> float | None:
    """``one / other``, turn by turn, the median of all; None unless both were timed.

    Turns that stand side by side saw the same machine: a neighbour's burst hits both, and one
    that hits a single turn does not move the median.
    """
    if isinstance(one, Failure) or isinstance(other, Failure):
        return None
    if len(one.turns) != len(other.turns):
        return one.median / other.median
    pairs = zip(one.turns, other.turns, strict=True)
    return median(median(first) / median(second) for first, second in pairs)


class HostError(Exception):
    """Raised when a host answers with an error, too late, or not at all."""

    def __init__(self, word: str, detail: str = "") -> None:
        super().__init__(word, detail)
        self.failure = Failure(word, detail)


class Hosted(Protocol):
    """A contestant in some process, as the conductor sees it."""

    def ask(self, do: str, limit: float | None = ..., **arguments: object) -> Any:
        """Send one command; return its answer."""

    def close(self, *, politely: bool = True) -> None:
        """End the contestant."""


class Host:
    """A contestant's process, seen from the conductor."""

    def __init__(self, name: str, *, tiny: bool = False, module: str = "benchmarks.host") -> None:
        # joblib and Ray leave files behind: they go where close() removes them.
        self.scratch = tempfile.mkdtemp(
            prefix="benchmarks-", dir=MEMORY if MEMORY.is_dir() else None
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, name, *(["tiny"] if tiny else [])],
            cwd=ROOT,
            env={**os.environ, "JOBLIB_TEMP_FOLDER": self.scratch, "RAY_TMPDIR": self.scratch},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if "BENCH_DEBUG" in os.environ else subprocess.DEVNULL,
            start_new_session=True,  # a group of its own: what is left of it can be ended at once
        )

    def ask(self, do: str, limit: float | None = HANG, **arguments: object) -> Any:
        """Send one command; return its answer, at most ``limit`` seconds later."""
        assert self.process.stdin is not None
        command = json.dumps({"do": do, **arguments}) + "\n"
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(command.encode())
            self.process.stdin.flush()
        answer = json.loads(self.line(limit))
        if "error" in answer:
            raise HostError(answer["error"], answer["detail"])
        if not answer.get("equal", True):
            raise HostError("WRONG", "the results differ from serial's")
        return answer

    def line(self, limit: float | None) -> bytes:
        """Read one line of answer. Its workers hold the pipe too, so EOF alone proves nothing."""
        assert self.process.stdout is not None
        deadline = None if limit is None else time.monotonic() + limit
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], 0.2)
            if ready:
                line += os.read(self.process.stdout.fileno(), 1 << 20)
            elif self.process.poll() is not None:
                raise HostError("died", f"exit status {self.process.returncode}")
            if not line and deadline is not None and time.monotonic() > deadline:
                raise HostError(f"> {limit:g} s")
            if ready and not line:
                raise HostError("died", f"exit status {self.process.wait()}")
        return line

    def close(self, *, politely: bool = True) -> None:
        """End the host and all that it started."""
        if politely:
            with contextlib.suppress(HostError):
                self.ask("close", limit=10.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        for semaphore in MEMORY.glob(f"sem.loky-{self.process.pid}-*"):
            semaphore.unlink(missing_ok=True)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def hosting(name: str, *, tiny: bool = False) -> Iterator[Host]:
    """A host for the length of a ``with``; ended roughly when the block fails."""
    host = Host(name, tiny=tiny)
    try:
        yield host
    except BaseException:
        host.close(politely=False)
        raise
    host.close()


@dataclass(frozen=True, slots=True)
class Effort:
    """How much time the run may take."""

    turns: int  # how often each contestant has its turn
    firsts: int  # how often with a value never seen before; 0: the checked run is the one
    budget: float  # milliseconds of one turn
    row: float  # seconds after which no further round of turns begins
    slow: float  # seconds: a contestant whose first run takes longer is not run in turns
    limit: float | None  # seconds after which a contestant is given up; None: never
    hopeless: bool = True  # try those too that are known to exceed any short limit

    def limit_of(self, name: str) -> float | None:
        """The floor and ours are never given up for being slow: that would hide a figure."""
        return HANG if name.startswith(("floor", "ours")) else self.limit

    def is_slow(self, name: str, spent: float) -> bool:
        """True when a first run of ``spent`` milliseconds must do."""
        return not name.startswith(("floor", "ours")) and spent > self.slow * 1000


FULL = Effort(turns=7, firsts=3, budget=60.0, row=60.0, slow=3.0, limit=20.0)
QUICK = Effort(turns=3, firsts=0, budget=20.0, row=3.0, slow=1.5, limit=1.5, hopeless=False)
PATIENT = replace(FULL, limit=None)


@dataclass(slots=True)
class Race:
    """The contestants of one row: prepared one after the other, then run in turns."""

    effort: Effort
    calls: bool = False
    warm_mib: int = 0  # memory that a run will take: touched before each turn
    host: Callable[[str], Hosted] = Host
    hosts: dict[str, Hosted] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    checked: dict[str, Cell] = field(default_factory=dict)

    def enter(self, name: str, job: str) -> None:
        """Start the contestant and check its answer; one that cannot run gets its failure."""
        if missing(name):
            self.cells[name] = NOT_INSTALLED
            return
        host = self.host(name)
        try:
            host.ask("open")
            host.ask("load", job=job)
            answer = host.ask("check", limit=self.effort.limit_of(name), calls=self.calls)
        except HostError as error:
            self.give_up(name, host, error)
            return
        if self.effort.is_slow(name, answer["ms"]):
            self.cells[name] = Timing(((answer["ms"],),), single=True)
            host.close()
            return
        self.hosts[name] = host
        self.checked[name] = Timing(((answer["ms"],),), single=True)

    def run(
        self, do: str = "turn", turns: int | None = None, **arguments: object
    ) -> Mapping[str, Cell]:
        """Give each contestant its turns, side by side; return every cell of the row."""
        if do == "turn":
            arguments = {"budget": self.effort.budget, "calls": self.calls}
        spent: dict[str, list[tuple[float, ...]]] = {name: [] for name in self.hosts}
        began = time.monotonic()
        for turn in range(turns or self.effort.turns):
            if turn and time.monotonic() - began > self.effort.row:
                break
            for name, host in list(self.hosts.items()):
                warm_up(self.warm_mib)
                try:
                    answer = host.ask(do, limit=self.effort.limit_of(name), **arguments)
                except HostError as error:
                    self.give_up(name, self.hosts.pop(name), error)
                    continue
                spent[name].append(tuple(answer["ms"]))
        timings: dict[str, Cell] = {
            name: Timing(tuple(taken)) for name, taken in spent.items() if name in self.hosts
        }
        return {**self.cells, **timings}

    def give_up(self, name: str, host: Hosted, error: HostError) -> None:
        """End the contestant's processes; its cell says why, and the run goes on."""
        host.close(politely=False)
        self.cells[name] = error.failure

    def close(self) -> None:
        """End every host."""
        for host in self.hosts.values():
            host.close()


@contextlib.contextmanager
def race(
    effort: Effort,
    *,
    calls: bool = False,
    warm_mib: int = 0,
    host: Callable[[str], Hosted] = Host,
) -> Iterator[Race]:
    """A race for the length of a ``with``."""
    current = Race(effort, calls, warm_mib, host)
    try:
        yield current
    finally:
        current.close()
