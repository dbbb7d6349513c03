"""The table of roles that tasks write, and what holds for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sharedtask.annotations import Role

from .locked.handler import Locking
from .partitioned.handler import Cutting
from .reduced.handler import Reducing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sharedtask.outcomes import Partial

    from .handler import Entered, Handler, Part, Wanted

# An item's contributions are kept before its result is written into an array: they can be taken
# back if it does not fit, and what was written cannot.
HANDLERS: dict[Role, type[Handler]] = {
    Role.REDUCED: Reducing,
    Role.PARTITIONED: Cutting,
    Role.LOCKED: Locking,
}


RESULTS = Role.PARTITIONED
"""The role of an array that takes results: each item has a block of it."""


def knows_items(roles: Iterable[Role]) -> bool:
    """Whether a call with parameters of these roles needs all items before the first one runs."""
    return any(role.writes and HANDLERS[role].knows_items for role in roles)


def plan_all(wanted: Wanted, values: Mapping[Role, Mapping[str, Any]]) -> tuple[Handler, ...]:
    """The handlers of a call whose tasks write these values.

    Raises:
        ArgumentError: A value cannot be written by tasks as its role says.
    """
    return tuple(
        handler.plan(replace(wanted, values=values[role]))
        for role, handler in HANDLERS.items()
        if role in values
    )


def enter(values: Mapping[Role, Mapping[str, Any]], chunk: Entered) -> list[Part]:
    """The parts of these roles in the run of a chunk."""
    return [made.part(values[role], chunk) for role, made in HANDLERS.items() if role in values]


def after(parts: Sequence[Part], value: Any) -> Any:
    """An item has returned: what is recorded. All parts accept that, or none."""
    done = []
    try:
        for part in parts:
            value = part.after(value)
            done.append(part)
    except BaseException:  # a result that does not fit, or the user's operation
        take_back(done)
        raise
    return value


def leave(parts: Iterable[Part], count: int) -> Partial | None:
    """What goes back with a chunk that has ended, with ``count`` outcomes."""
    found = [part.leave(count) for part in parts]
    return next((partial for partial in found if partial is not None), None)


def take_back(parts: Iterable[Part]) -> None:
    """The item that returned last counts as failed."""
    for part in parts:
        part.take_back()


def around(parts: Sequence[Part], call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The call for an item, with ``after``."""
    if len(parts) == 1:
        return parts[0].around(call)
    return lambda item: after(parts, call(item))
