"""Random numbers that depend on the seed and the item, and on nothing else."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from sharedtask.system.records import dataclass

Seed: TypeAlias = "int | tuple[int, ...]"

_FRESH_BYTES = 16  # as many as numpy takes where no seed is given


@dataclass(frozen=True, slots=True)
class Randomness:
    """The parameters that get generators, and the seed of a call.

    ``before`` is the number of items in earlier calls with the same seed.
    """

    names: tuple[str, ...]
    entropy: Seed
    before: int = 0

    @classmethod
    def of(cls, names: tuple[str, ...], seed: Seed | None) -> Randomness | None:
        """Draw a seed once if there is none: a retried item gets the same."""
        if not names:
            return None
        fresh = int.from_bytes(os.urandom(_FRESH_BYTES), "little")
        return cls(names, fresh if seed is None else seed)

    def after(self, count: int) -> Randomness:
        """The same, for items that come after ``count`` others of this seed."""
        return replace(self, before=count)

    def generators(self, index: int) -> dict[str, np.random.Generator]:
        """The generators of the item at ``index``; new objects at each call.

        Source:
            ``SeedSequence(seed).spawn(n)[index]`` has the spawn key ``(index,)``. Further
            parameters get children of that sequence: since it counts them, none is ever equal to
            one that the task spawns itself.
        """
        first = np.random.SeedSequence(self.entropy, spawn_key=(self.before + index,))
        sequences = (first, *first.spawn(len(self.names) - 1))
        return {
            name: np.random.default_rng(sequence)
            for name, sequence in zip(self.names, sequences, strict=True)
        }
