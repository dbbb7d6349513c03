"""Warns once of each loss of a value, with the name of the parameter and the path to it."""

from __future__ import annotations

import re
import warnings
from itertools import islice
from typing import TYPE_CHECKING, Any

from sharedtask.errors import IncompleteValueWarning
from sharedtask.system.tracebacks import level_of_user

from .traversal import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from .losses import Loss

__all__ = ["warn", "warn_of_items", "warn_of_result"]

# A name and its value.
_Named = tuple[str, Any]

# The search for the path to a part ends after this many parts.
_LOOKED_AT = 100_000
_NUMBERS = re.compile(r"\d+")

# Tasks, places, and what is lost there.
_warned: set[tuple[str, str, str]] = set()


def warn_of_items(task: str, first: int, items: Sequence[Any], losses: Sequence[Loss]) -> None:
    """Warn of the losses of items."""
    warn(task, losses, lambda: ((f"item {first + k}", item) for k, item in enumerate(items)))


def warn_of_result(task: str, index: int, value: Any, losses: Sequence[Loss]) -> None:
    """Warn of the losses of a result."""
    warn(task, losses, lambda: [(f"the result of item {index}", value)])


def warn(task: str, losses: Sequence[Loss], named: Callable[[], Iterable[_Named]]) -> None:
    """Warn of each loss, once for each task and place.

    If warnings are errors, the next call is warned of again.
    """
    for loss in losses:
        place = _place(loss, list(named()))
        key = task, _NUMBERS.sub("", place or ""), loss.says  # of a thousand items the first
        if place is None or key in _warned:
            continue
        msg = f"{task}(): {place} ({type(loss.part).__name__}) {loss.says}. {loss.cure}"
        warnings.warn(msg, IncompleteValueWarning, stacklevel=level_of_user())
        _warned.add(key)


def _place(loss: Loss, named: list[_Named]) -> str | None:
    """The path to the part that loses something; None if it does not matter there."""
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
    """The parts of a value; none if its class does not show them."""
    try:
        yield from parts(value)
    except Exception:  # noqa: BLE001  user code runs here
        return
