"""A random program: its steps, and its text."""

import importlib
import pkgutil
import random
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fuzz import kinds
from fuzz.drawing import CLASSES, Draw

KINDS = tuple(sorted(module.name for module in pkgutil.iter_modules(kinds.__path__)))
PROLOGUE = (Path(__file__).parent / "judge.py").read_text()


@dataclass(frozen=True)
class ProcessSettings:
    """Steps of random kinds, in turns; the same seed gives the same ones."""

    seed: int
    backend: str
    kinds: tuple[str, ...]
    steps: tuple[str, ...]

    @classmethod
    def random(cls, seed: int, backend: str, among: tuple[str, ...]) -> "ProcessSettings":
        draw = Draw(random.Random(f"{seed} {backend} {among}"), backend)
        chosen = tuple(sorted({draw.of(among) for _ in range(draw.of((1, 1, 1, 2, 3)))}))
        sources = [
            importlib.import_module(f"{kinds.__name__}.{kind}").steps(draw) for kind in chosen
        ]
        steps = [next(source) for source in sources]
        for _ in range(draw.of((4, 8, 16, 24))):
            steps += islice(draw.of(sources), draw.of((1, 2)))
        return cls(seed, backend, chosen, tuple(steps))

    def without(self, places: range) -> "ProcessSettings":
        steps = (step for place, step in enumerate(self.steps) if place not in places)
        return replace(self, steps=tuple(steps))

    @property
    def body(self) -> str:
        """The text after the prologue."""
        lines = [CLASSES, f"BACKEND = {self.backend!r}", *self.steps, "finish()"]
        return "\n".join(line.strip("\n") for line in lines) + "\n"

    @property
    def text(self) -> str:
        """All of it: a program that runs by itself."""
        return f"{PROLOGUE}\n\n# seed {self.seed}, kinds {', '.join(self.kinds)}\n\n{self.body}"
