"""The arrays of the caller that a call locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.errors import OptionsError, StoreFullError
from sharedtask.locked import use_all

if TYPE_CHECKING:
    from sharedtask.backends.base import Call
    from sharedtask.locked import Use


def uses(call: Call, *, shared: bool) -> dict[str, Use]:
    """Begin to use them; with ``shared`` other processes must see them. See ``use_all``."""
    arrays = {name: (call.shared[name].value, rules) for name, rules in call.locked.items()}
    try:
        return use_all(arrays, shared=shared)
    except StoreFullError as error:
        names = ", ".join(map(repr, arrays))
        msg = f"{call.task}(): a copy of {names} does not fit: {error}"
        raise StoreFullError(msg) from error


def refuse(call: Call) -> None:
    """Say what to use where there may be several machines.

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
