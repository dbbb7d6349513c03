"""The rules of the four marks: answered, named, usable, clean, from what a driver said and left.

docs/faults-table.md tells them to the reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.faults.catalogue import Fault

NOISE = re.compile("resource_tracker|Traceback|Exception ignored")


@dataclass(frozen=True, slots=True)
class Remains:
    """What is there after the caller's process has ended, or was ended."""

    status: int | None  # exit status; None: it did not end by itself
    processes: tuple[str, ...] = ()  # of those whose caller has ended
    memory: tuple[str, ...] = ()  # entries of /dev/shm
    stderr: str = ""

    @property
    def noise(self) -> list[str]:
        return sorted(set(NOISE.findall(self.stderr)))


@dataclass(frozen=True, slots=True)
class Observed:
    """All that was seen of one contestant in one fault."""

    said: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by stage
    remains: Remains = Remains(None)

    def at(self, stage: str) -> Mapping[str, Any]:
        return self.said.get(stage, {"answered": False})


@dataclass(frozen=True, slots=True)
class Marks:
    """The four marks of a cell."""

    answered: bool = False
    named: bool = False
    usable: bool = False
    clean: bool = False

    @property
    def each(self) -> tuple[bool, ...]:
        return (self.answered, self.named, self.usable, self.clean)

    def __str__(self) -> str:
        return "".join(
            letter if mark else "·" for letter, mark in zip("ANUC", self.each, strict=True)
        )


def marks(fault: Fault, seen: Observed) -> Marks:
    """Judge one cell."""
    answer, again = seen.at("answer"), seen.at("again")
    return Marks(
        answered=answer["answered"] and not any(error["ends"] for error in errors(answer)),
        named=answer["answered"] and is_named(fault, answer),
        usable=again.get("places") == [True] * 7,
        clean=is_clean(seen),
    )


def errors(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every error of the answer: the one it raised, or those in place of results."""
    if "raised" in answer:
        yield answer["raised"]
    yield from (place for place in answer.get("places", ()) if isinstance(place, dict))


def is_named(fault: Fault, answer: Mapping[str, Any]) -> bool:
    """True when the answer tells what was at fault, and blames nothing else."""
    if not answer["unharmed"]:
        return False
    if fault.words:
        told = [error["says"] for error in errors(answer)]
        return bool(told) and all(any(word in text for word in fault.words) for text in told)
    if "raised" in answer:
        names = set(answer["raised"]["names"])
        return bool(names) and names <= set(answer["bad"])
    return stands_in_place(fault, answer)


def stands_in_place(fault: Fault, answer: Mapping[str, Any]) -> bool:
    """True when the places of the items at fault, and only these, hold an error."""
    places = answer["places"]
    failed = {at for at, place in enumerate(places) if isinstance(place, dict)}
    right = {at for at, place in enumerate(places) if place is True}
    if fault.may_pass and not failed:
        return len(right) == len(places)
    return failed == set(answer["bad"]) and len(right) == len(places) - len(failed)


def is_clean(seen: Observed) -> bool:
    """True when pool and program ended by themselves, silently, and nothing stayed."""
    closed, remains = seen.at("closed"), seen.remains
    ended = closed["answered"] and "raised" not in closed and remains.status == 0
    return ended and not (remains.processes or remains.memory or remains.noise)


def kept(answer: Mapping[str, Any]) -> bool:
    """True when every item that was not at fault has its right result."""
    good = set(range(len(answer.get("places", ())))) - set(answer.get("bad", ()))
    return bool(good) and all(answer["places"][at] is True for at in good)
