"""The rows of the second table: sharedtask on Ray beside Ray as one writes it by hand."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.measure import HANG, Cell, Effort, Failure, Host, HostError, Race, Timing
from benchmarks.rows import Cells, by_phase
from benchmarks.work import jobs

CHUNKED = ("1 chunk", "2 chunks", "4 chunks", "8 chunks")
BY_HAND = ("per item", *CHUNKED, "Pool")
COLUMNS = ("by value", *BY_HAND, "ours by value", "ours")
OURS = ("ours", "ours identity", "ours share()")
MEMORY_MIB = 32
MEMORY_HOLDERS = ("by value", "4 chunks", "ours by value", "ours")
STARTERS = ("4 chunks", "ours")
RAY_EXTRAS = ("raystart", "raymemory")
ROUNDS = 3  # times the turns of the other rows: the answers of Ray scatter more


def installed() -> bool:
    return importlib.util.find_spec("ray") is not None


@dataclass(slots=True)
class Seat:
    """One of the contestants in a common host, and its job."""

    host: Host
    name: str
    job: str = ""

    def ask(self, do: str, limit: float | None = HANG, **arguments: Any) -> Any:
        """As ``Host.ask``, for this contestant."""
        if do == "load":
            self.job = arguments["job"]
        self.host.ask("choose", name=self.name, job=self.job)
        return {} if do == "load" else self.host.ask(do, limit, **arguments)

    def close(self, *, politely: bool = True) -> None:
        """Leave; one that hangs or has failed takes the host with it."""
        if not politely:
            self.host.close(politely=False)


class OneRay:
    """The host of all contestants; a new one where a contestant took the last one with it."""

    def __init__(self, *, tiny: bool = False, module: str = "benchmarks.ray_host") -> None:
        self.tiny, self.module = tiny, module
        self.host: Host | None = None

    def seat(self, name: str) -> Seat:
        """A seat for this contestant, in a Ray that is running."""
        return Seat(self.running(), name)

    def running(self) -> Host:
        if self.host is None or self.host.process.poll() is not None:
            self.host = Host("ray", tiny=self.tiny, module=self.module)
            self.host.ask("start")
        return self.host

    def close(self, *, politely: bool = True) -> None:
        """End Ray."""
        if self.host is not None and self.host.process.poll() is None:
            self.host.close(politely=politely)


@contextlib.contextmanager
def one_ray(*, tiny: bool = False, module: str = "benchmarks.ray_host") -> Iterator[OneRay]:
    """A Ray for the length of a ``with``."""
    ray = OneRay(tiny=tiny, module=module)
    try:
        yield ray
    except BaseException:
        ray.close(politely=False)
        raise
    ray.close()


@dataclass(frozen=True, slots=True)
class RayRow:
    """One line of the table."""

    key: str
    title: str
    job: str
    contestants: tuple[str, ...]
    has_first: bool = False  # also over values never seen before
    calls: bool = False
    store_mib: int = 0  # of the object store, touched beforehand
    hopeless: tuple[str, ...] = ()  # these need seconds for each run: not in a quick one
    scaled: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # a smaller job, times

    def run(self, ray: OneRay, effort: Effort) -> Cells:
        """Give everybody their turns, side by side on the same Ray."""
        with contextlib.suppress(HostError):
            if self.store_mib and effort.firsts:
                ray.running().ask("touch", mib=self.store_mib)
        rounds = ROUNDS if effort.hopeless else 1
        # Nobody is given up for being slow: that would end the Ray of the others.
        patient = replace(
            effort,
            turns=effort.turns * rounds,
            slow=HANG,
            limit=HANG,
        )
        race = Race(patient, self.calls, host=ray.seat)
        for name in self.contestants:
            if effort.hopeless or name not in self.hopeless:
                race.enter(name, self.job_of(name))
        phases: dict[str, Mapping[str, Cell]] = {}
        if self.has_first and effort.firsts:
            phases["first"] = race.run("first", turns=effort.firsts * rounds)
            race.run("settle", turns=1)  # all meet the last of the values
        phases["repeated"] = race.run()
        return {
            name: {phase: self.whole(name, cell) for phase, cell in cells.items()}
            for name, cells in by_phase(phases).items()
        }

    def job_of(self, name: str) -> str:
        return self.scaled[name][0] if name in self.scaled else self.job

    def whole(self, name: str, cell: Cell) -> Cell:
        """The time of the whole job; of one item, where they go one by one."""
        if isinstance(cell, Failure):
            return cell
        if self.calls:
            return cell.per(len(jobs()[self.job].items))
        return cell.per(1 / self.scaled[name][1]) if name in self.scaled else cell


def start(effort: Effort) -> Mapping[str, Cell]:
    """Ray's own start, and then each contestant's first results, each run in a new process."""
    spent: dict[str, list[tuple[float, ...]]] = {"ray.init": [], **{name: [] for name in STARTERS}}
    failed: dict[str, Cell] = {}
    for _ in range(max(effort.firsts, 1)):
        for name in STARTERS:
            host = Host("ray", module="benchmarks.ray_host")
            try:
                init, first = host.ask("from_nothing", name=name)["ms"]
            except HostError as error:
                failed[name] = error.failure
            else:
                spent["ray.init"].append((init,))
                spent[name].append((first,))
            host.close()
    return {**{name: Timing(tuple(turns)) for name, turns in spent.items() if turns}, **failed}


def memory(effort: Effort) -> Mapping[str, float | Failure]:
    """Growth of the proportional set size of all processes, the object store among them.

    Each in a Ray of its own: pages that the store has used stay in it.
    """
    seconds = 5.0 if effort.hopeless else 3.0
    found: dict[str, float | Failure] = {}
    for name in MEMORY_HOLDERS:
        try:
            with one_ray() as ray:
                seat = ray.seat(name)
                seat.ask("load", job="memory-32")
                grown = seat.ask("memory", seconds=seconds)["bytes"]
        except HostError as error:
            found[name] = error.failure
        else:
            found[name] = grown / (MEMORY_MIB << 20)
    return found


RAY_ROWS = (
    RayRow("ray1", "100 items, 8 MB model dict", "model-100", COLUMNS),
    RayRow("ray2", "2,000 items, same model", "model-2000", (*BY_HAND, "ours")),
    RayRow(
        "ray3",
        "32 items, 256 MB array: first / repeated",
        "array",
        (*BY_HAND, *OURS),
        has_first=True,
        store_mib=2048,
    ),
    RayRow(
        "ray4",
        "200 lookups, dict of 1,000,000: first / repeated",
        "words",
        (*CHUNKED[:3], "Pool", *OURS),  # each chunk decodes it: 8 of them need ten seconds
        has_first=True,
        hopeless=("2 chunks", "4 chunks"),
    ),
    RayRow(
        "ray5",
        "100,000 trivial items (per item: 1,000, times 100)",
        "trivial",
        (*BY_HAND, "ours"),
        scaled={"per item": ("trivial-1000", 100)},
    ),
    RayRow("ray6", "50 results of 8 MB", "blocks", (*BY_HAND, "ours"), store_mib=2048),
    RayRow(
        "ray8", "one submit, there and back", "submit", ("per item", "Pool", "ours"), calls=True
    ),
)
