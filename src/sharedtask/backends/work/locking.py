"""The arrays of the caller that a call locks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sharedtask.errors import OptionsError, StoreFullError
from sharedtask.locked import Use

if TYPE_CHECKING:
    from sharedtask.backends.base import Call


def uses(call: Call, *, shared: bool) -> dict[str, Use]:
    """Begin to use them; with ``shared`` other processes must see them.

    Raises:
        ArgumentError: One cannot be locked.
        StoreFullError: There is no room for a copy that others can see.
    """
    return {name: _use(call, name, rank, shared=shared) for rank, name in enumerate(call.locked)}


def _use(call: Call, name: str, rank: int, *, shared: bool) -> Use:
    try:
        return Use(call.shared[name].value, name, call.locked[name], rank, shared=shared)
    except StoreFullError as error:
        msg = f"{call.task}(): {name!r} does not fit: {error}"
        raise StoreFullError(msg) from error


def close(uses: dict[str, Use]) -> None:
    """The call is over: what was written is in the caller's arrays."""
    while uses:  # emptied: the arrays may be locked as others from now on
        uses.popitem()[1].close()


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
