"""Hints at calls that are right, and often meant in another way; each once for a task."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sharedtask.errors import HintWarning
from sharedtask.system.tracebacks import level_of_user

if TYPE_CHECKING:
    from sharedtask.task.signature.spec import TaskSpec

__all__ = ["may_be_items", "tell"]

# Tasks, and what they were told.
_told: set[tuple[str, str]] = set()


def tell(spec: TaskSpec, items: Any, args: tuple[Any, ...]) -> None:
    """Warn where a dict or a frame is mapped over, or a second collection is given.

    If warnings are errors, the next call is warned of again.
    """
    unmarked = () if spec.roles else args  # marked ones are meant for all items
    for what, hint in (_of_keys(items), _of_second(items, unmarked)):
        if hint and (spec.name, what) not in _told:
            warnings.warn(f"{spec.name}(): {hint}", HintWarning, stacklevel=level_of_user())
            _told.add((spec.name, what))


def _of_keys(items: Any) -> tuple[str, str]:
    """What a loop over a dict or a DataFrame gives, and what gives the rest."""
    if isinstance(items, Mapping) and len(items):
        what = f"the keys of a {type(items).__name__}, {len(items)} of them"
        rest = "For values take .values(), for pairs starmap(d.items()), and for the keys list(d)."
        return "keys", f"maps over {what}. {rest}"
    if _is_frame(items):
        columns: Any = getattr(items, "columns", ())
        what = f"the columns of a DataFrame, {len(columns)} of them"
        rest = "For rows take .itertuples() or partition(len(frame), 100), for columns list(frame)."
        return "columns", f"maps over {what}. {rest}"
    return "", ""


def _is_frame(items: Any) -> bool:
    """Whether it is a DataFrame of pandas or polars, neither of which is imported."""
    of = type(items)
    return of.__name__ == "DataFrame" and of.__module__.partition(".")[0] in {"pandas", "polars"}


def _of_second(items: Any, args: tuple[Any, ...]) -> tuple[str, str]:
    """What becomes of the second collection in ``map(a, b)``."""
    if len(args) == 0 or not may_be_items(args[0]) or not isinstance(items, Collection):
        return "", ""
    if len(items) != len(args[0]) or len(items) < 2:
        return "", ""
    return "second", (
        f"every item gets the whole second collection, of {len(items)} as well. To pass one "
        "element with each item write starmap(zip(a, b, strict=True)); otherwise pass it by name."
    )


def may_be_items(value: Any) -> bool:
    """Whether a user of ``Executor.map`` could mean it as a second collection of items."""
    return isinstance(value, list | tuple | range)
