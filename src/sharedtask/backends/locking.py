"""The arrays of the caller that a call locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.errors import OptionsError
from sharedtask.memory.room import needed_for
from sharedtask.writing.locked.acquire import refuse_held, use_all

if TYPE_CHECKING:
    from sharedtask.writing.locked.acquire import Use

    from .base import Call


def open_uses(uses: dict[str, Use], call: Call, *, shared: bool) -> None:
    """Begin to use the arrays; if ``shared``, other processes see them. See ``use_all``."""
    if not call.locked:
        return
    arrays = {name: (call.shared[name].value, rules) for name, rules in call.locked.items()}
    names = ", ".join(map(repr, arrays))
    with needed_for(call.task, f"a copy of {names} does not fit"):
        use_all(uses, arrays, shared=shared)
    refuse_held(uses, call.task)


def refuse(call: Call) -> None:
    """Refuse locks where tasks may run on several machines, with the alternatives.

    Raises:
        OptionsError: The call locks an array.
    """
    for name in call.locked:
        msg = (
            f"{call.task}(): {name!r} is Locked, and its locks reach no other machine. Run it with "
            "backend='process'. On Ray, mark it Partitioned where each item writes a block of its "
            "own, Reduced where all add to it, or keep what must be locked in an actor."
        )
        raise OptionsError(msg)
