"""Finds the part of a value that prevents its encoding."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from sharedtask.system.records import dataclass

from . import codec
from .traversal import parts
from .unshareable import cure_for_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .traversal import Part

_DEPTH = 40
# Number of failing parts that are searched at each level.
_BREADTH = 8
# Items are tried in groups: a pickler for each of a million items would take 10 s.
_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class Culprit:
    """The innermost part that cannot be pickled, and the way to it."""

    path: str
    part: Any

    def __str__(self) -> str:
        return f"{self.path} is a {class_name(self.part)}"


def culprit(value: object, name: str) -> str:
    """Describe the unpicklable part of ``value``: "cfg.pool.lock is a _thread.lock"."""
    return str(find_culprit(value, name))


def find_culprit(value: object, name: str) -> Culprit:
    """The part of ``value`` that cannot be pickled, by the shortest way there is to one."""
    return next(find_culprits(value, name))


def find_culprits(value: object, name: str, breadth: int = _BREADTH) -> Iterator[Culprit]:
    """The parts of ``value`` that cannot be pickled, those with the shortest ways first.

    ``value`` is known to fail. Failing parts are searched level by level, each once: a part that
    fails only because it refers back to another is not the cause. At each level
    about ``breadth`` of them are searched.
    """
    seen: dict[int, object] = {id(value): value}
    level = [Culprit(name, value)]
    is_found = False
    for _ in range(_DEPTH):
        below: list[Culprit] = []
        for found in level:
            failing = [] if _is_refused(found.part) else _failing(found.part, breadth)
            if not failing:
                is_found = True
                yield found
            fresh = [(step, part) for step, part in failing if id(part) not in seen]
            seen.update((id(part), part) for _, part in fresh)
            below.extend(Culprit(found.path + step, part) for step, part in fresh)
        if not below:
            break
        level = below[:breadth]
    if not is_found:
        yield level[0]


def class_name(value: object) -> str:
    """The class of a value with its module, where that is not ``builtins``."""
    cls = type(value)
    known = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    return f"{known}{cls.__qualname__}"


def encodes(value: object) -> bool:
    """True where ``value`` can be encoded; tested by encoding."""
    try:
        codec.encode(value)
    except Exception:  # noqa: BLE001  pickling runs user code
        return False
    return True


def _is_refused(value: object) -> bool:
    """True if the class is reason enough: its parts would tell the user nothing."""
    return cure_for_value(value) is not None or _refuses(value)


def _refuses(value: object) -> bool:
    """True if a class of ours refuses pickling with its own message."""
    if not type(value).__module__.startswith("sharedtask."):
        return False
    try:
        codec.reduced(value)
    except Exception:  # noqa: BLE001  whatever it says
        return True
    return False


def _failing(value: object, breadth: int) -> list[Part]:
    """The first parts that cannot be encoded."""
    failing: list[Part] = []
    try:
        found = parts(value)
        while len(failing) < breadth and (batch := list(islice(found, _TOGETHER))):
            if not encodes([part for _, part in batch]):
                failing += islice((part for part in batch if not encodes(part[1])), breadth)
    except Exception:  # noqa: BLE001  as in encodes()
        return []
    return failing
