"""Hosts that tests ask for one thing after the other: to start one takes longer than most tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

from benchmarks.measure import Host


@dataclass(slots=True)
class Hosts:
    """A host for each contestant, its workers started when it is asked first."""

    make: Callable[[str], Host]
    kept: dict[str, Host] = field(default_factory=dict)

    @contextlib.contextmanager
    def asked(self, name: str) -> Iterator[Host]:
        """The host of this contestant; one whose block fails is ended, and the next is another."""
        if name not in self.kept:
            self.kept[name] = self.make(name)
            self.kept[name].ask("open")
        try:
            yield self.kept[name]
        except BaseException:
            self.kept.pop(name).close(politely=False)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self.kept:
            self.kept.popitem()[1].close()
