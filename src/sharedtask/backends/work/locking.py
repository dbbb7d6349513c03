"""The arrays of the caller that a call locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.errors import OptionsError, SharedTaskError
from sharedtask.sharing.locks import count_held, leave_behind
from sharedtask.uses import refuse_held, use_all

from .room import needed_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.base import Call
    from sharedtask.uses import Use


def open_uses(uses: dict[str, Use], call: Call, *, shared: bool) -> None:
    """Begin to use them; with ``shared`` other processes must see them. See ``use_all``."""
    if not call.locked:
        return
    arrays = {name: (call.shared[name].value, rules) for name, rules in call.locked.items()}
    names = ", ".join(map(repr, arrays))
    with needed_for(call.task, f"a copy of {names} does not fit"):
        use_all(uses, arrays, shared=shared)
    refuse_held(uses, call.task)


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


def leaving_locks(task: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same call, which fails where the task ends within a block that it has entered.

    Left alone, the lock would stay with the worker and fail its next item.
    """

    def run(item: Any) -> Any:
        before = count_held()
        try:
            return call(item)
        finally:
            left = leave_behind(before)
            if left:
                msg = (
                    f"{task}() ended within a block that locks {left}. Enter blocks by `with`, and"
                    " do not keep a generator or an object that stands in one."
                )
                raise SharedTaskError(msg)

    return run
