"""What a value leaves behind is told once, with the name of the parameter and the way to it."""

from __future__ import annotations

import re
import warnings
from itertools import islice
from typing import TYPE_CHECKING, Any

from sharedtask.errors import IncompleteValueWarning
from sharedtask.tracebacks import level_of_user

from .traversal import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .losses import Loss

__all__ = ["tell", "tell_of_items", "tell_of_result"]

# A name, and the value that has it.
_Named = tuple[str, Any]

# How many parts of a call are looked at to find the way to one.
_LOOKED_AT = 100_000
_NUMBERS = re.compile(r"\d+")

# Tasks, places, and what is lost there.
_told: set[tuple[str, str, str]] = set()


def tell_of_items(task: str, first: int, items: Sequence[Any], losses: Sequence[Loss]) -> None:
    """Warn of what was lost as items were sent."""
    tell(task, losses, lambda: ((f"item {first + k}", item) for k, item in enumerate(items)))


def tell_of_result(task: str, index: int, value: Any, losses: Sequence[Loss]) -> None:
    """Warn of what was lost as a result was sent."""
    tell(task, losses, lambda: [(f"the result of item {index}", value)])


def tell(task: str, losses: Sequence[Loss], named: Callable[[], Iterable[_Named]]) -> None:
    """Warn of each loss, once for each task and place.

    Where warnings are errors the next call is told again.
    """
    for loss in losses:
        place = _place(loss, list(named()))
        key = task, _NUMBERS.sub("", place or ""), loss.says  # of a thousand items the first
        if place is None or key in _told:
            continue
        msg = f"{task}(): {place} ({type(loss.part).__name__}) {loss.says}. {loss.cure}"
        warnings.warn(msg, IncompleteValueWarning, stacklevel=level_of_user())
        _told.add(key)


def _place(loss: Loss, named: list[_Named]) -> str | None:
    """The way to the part that loses something; None where it does not matter there."""
    if loss.whole:
        return next((name for name, value in named if value is loss.part), None)
    return _way_to(loss.part, named) or "a value"


def _way_to(part: Any, named: list[_Named]) -> str | None:
    level, seen = named, set[int]()
    while level:
        way = next((path for path, value in level if value is part), None)
        if way is not None or len(seen) > _LOOKED_AT:
            return way
        seen.update(id(value) for _, value in level)
        below = ((path + step, each) for path, value in level for step, each in _parts(value))
        fresh = (found for found in below if id(found[1]) not in seen)
        level = list(islice(fresh, _LOOKED_AT))
    return None


def _parts(value: Any) -> Iterator[_Named]:
    """The parts of a value; of one that does not say what it is made of, none."""
    try:
        yield from parts(value)
    except Exception:  # noqa: BLE001  user code runs here
        return
