"""The rows of the fourth table: every kind of value, with us, with joblib, and on Ray by hand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.kinds_work import KINDS, MIB, MLP, MLP_MIB, PLAIN, Kind, installed
from benchmarks.measure import HANG, Cell, Effort, Failure, Host, HostError, Race, race
from benchmarks.ray_rows import OneRay, RayRow
from benchmarks.rows import Cells, by_phase

OURS, BESIDE, RAY_WAY = "ours", "ours array", "4 chunks"
LOCAL = (OURS, BESIDE, "joblib")
COLUMNS = (*LOCAL, RAY_WAY)
SIZE = MIB << 20
ALLOWANCE = 200_000  # bytes: what an interpreter needs anew from one look to the next
WARM_MIB = 3 * MIB  # what the first run takes anew
RAY_MODULE = "benchmarks.kinds_ray_host"
PREFIX = "kind-"
KINDS_EXTRAS = ("kindsmlp",)

SLOW = 20.0  # seconds: joblib and Ray may take long for what they copy, and are waited for
ROW = 8.0  # seconds, after which no further turns begin

Booth = functools.partial(Host, module="benchmarks.kinds_host")


@dataclass(frozen=True, slots=True)
class KindRow:
    """One line of the table: its key, without the prefix, is that of its kind."""

    name: str

    @property
    def key(self) -> str:
        return PREFIX + self.name

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def title(self) -> str:
        return self.kind.title

    def run(self, effort: Effort) -> tuple[Cells, dict[str, float | Failure]]:
        """Times of those on this machine in turns, and by how many bytes their workers grow."""
        with race(effort, host=Booth) as running:
            for name in LOCAL:
                running.enter(name, PLAIN if name == BESIDE else self.name)
            grown = {name: private(running, name) for name in LOCAL if name != BESIDE}
            first: Mapping[str, Cell] = {**running.checked, **running.cells}
            if effort.firsts:
                running.warm_mib = WARM_MIB
                first = running.run("first", turns=effort.firsts)
                running.warm_mib = 0
            return by_phase({"first": first, "repeated": running.run()}), grown

    def run_on_ray(self, ray: OneRay, effort: Effort) -> tuple[Cells, dict[str, float | Failure]]:
        """The same on Ray, in tasks of many items that are handed one reference."""
        row = RayRow(self.key, self.title, self.name, (RAY_WAY,), has_first=True)
        cells = row.run(ray, replace(effort, turns=1, firsts=1))
        seat = ray.seat(RAY_WAY)
        seat.job = self.name
        return cells, {RAY_WAY: grown_by(seat)}


def patient(effort: Effort) -> Effort:
    """The same, but slow ones have their turns as well, and are asked what they occupy."""
    if not effort.hopeless:
        return effort
    return replace(effort, turns=4, firsts=1, budget=30.0, slow=SLOW, limit=HANG, row=ROW)


def private(running: Race, name: str) -> float | Failure:
    """By how many bytes a worker of this contestant grows that holds the value."""
    host = running.hosts.get(name)
    if host is not None:
        return grown_by(host)
    cell = running.cells[name]
    return cell if isinstance(cell, Failure) else Failure("slow")


def grown_by(host: Any) -> float | Failure:
    try:
        return float(host.ask("private")["bytes"])
    except HostError as error:
        return error.failure


@dataclass(frozen=True, slots=True)
class Network:
    """What a network of 200 MB on four workers took, and how its results compare."""

    grows: float  # all processes together, in its sizes
    bits: bool  # as serial with as many threads
    relative: float  # from serial with all threads: the largest difference over the largest result


def network() -> Network | Failure:
    """Run a network of torch in four workers."""
    if not installed(KINDS["module"]):
        return Failure("not installed")
    host = Booth(OURS)
    try:
        host.ask("open")
        host.ask("load", job=MLP)
        grown = host.ask("memory", seconds=4.0)["bytes"] / (MLP_MIB << 20)
        return Network(grown, **host.ask("spread"))
    except HostError as error:
        return error.failure
    finally:
        host.close()


@dataclass(slots=True)
class KindsResults:
    """Everything that this table and the lines below it are made of."""

    rows: dict[str, Cells] = field(default_factory=dict)
    private: dict[str, dict[str, float | Failure]] = field(default_factory=dict)
    network: Network | Failure | None = None

    def add(self, key: str, found: tuple[Cells, Mapping[str, float | Failure]]) -> None:
        """Add what some contestants gave for a row."""
        cells, grown = found
        self.rows[key] = {**self.rows.get(key, {}), **cells}
        self.private.setdefault(key, {}).update(grown)


KIND_ROWS = tuple(KindRow(name) for name in KINDS)
