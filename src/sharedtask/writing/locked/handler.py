"""The handler of ``Locked``: arrays that tasks enter under locks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.errors import OptionsError
from sharedtask.memory.room import needed_for
from sharedtask.system.posix import IS_POSIX
from sharedtask.writing.checks import check_written, refuse_other_use
from sharedtask.writing.handler import Handler, Part, Reach

from .acquire import close_all, leaving_locks, refuse_held, use_all
from .locked import Locked
from .regions import Regions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sharedtask.writing.handler import Entered, Stage, Wanted

    from .acquire import Use
    from .registry import Array


class Entering(Part):
    """The locked arrays of a chunk: all items get the same."""

    def __init__(self, values: Mapping[str, Any], chunk: Entered) -> None:
        self.common = values
        self._task = chunk.task

    def guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which fails if it ends within a block that it has entered."""
        return leaving_locks(self._task, function)

    def around(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Nothing follows an item."""
        return call


class Locking(Handler):
    """The arrays that the tasks of a call lock."""

    part = Entering

    def __init__(self, arrays: Mapping[str, tuple[Array, Regions]]) -> None:
        self.names = frozenset(arrays)
        self._arrays = arrays
        self._uses: dict[str, Use] = {}

    @classmethod
    def plan(cls, wanted: Wanted) -> Locking:
        """Determine the regions of each array that are locked together.

        Raises:
            ArgumentError: A value is no array that can be written, or two are the same memory.
        """
        found = {}
        for name, array in wanted.values.items():
            check_written(array, name)
            refuse_other_use(wanted.task, name, array, wanted.shared)
            rules = wanted.rules.get(name, Regions())
            rules.lengths(array.shape)
            found[name] = array, rules
        return cls(found)

    @staticmethod
    def array_of(value: Any) -> Any:
        """The array behind the locks of another call."""
        return value.array if isinstance(value, Locked) else value

    def open(self, stage: Stage) -> None:
        """Begin to use the arrays; see ``use_all``.

        Raises:
            OptionsError: The tasks do not share memory with the caller.
        """
        if stage.reach.copies:
            refusal = _refusal_apart if stage.reach is Reach.APART else _refusal
            raise OptionsError(refusal(stage.task, next(iter(self._arrays))))
        if not IS_POSIX:
            raise OptionsError(_refusal_without_locks(stage.task, next(iter(self._arrays))))
        names = ", ".join(map(repr, self._arrays))
        with needed_for(stage.task, f"a copy of {names} does not fit"):
            use_all(self._uses, self._arrays, shared=stage.reach is Reach.MACHINE)
        refuse_held(self._uses, stage.task)

    def lend(self, name: str) -> Any:
        """The array behind its locks."""
        return self._uses[name].locked

    def close(self, *, entered: bool, gave_up: bool) -> None:
        """End the use; see ``Use.close``."""
        close_all(self._uses, wrote=entered, gave_up=gave_up)


def _refusal(task: str, name: str) -> str:
    return (
        f"{task}(): {name!r} is Locked, and its locks reach no other machine. Run it with "
        "backend='process'. On Ray, mark it Partitioned where each item writes a block of its "
        "own, Reduced where all add to it, or keep what must be locked in an actor."
    )


def _refusal_apart(task: str, name: str) -> str:
    return (
        f"{task}(): {name!r} is Locked, and workers that loky starts share no memory that could be "
        "locked. Run it with backend='thread', or mark it Partitioned where each item writes a "
        "block of its own, Reduced where all add to it."
    )


def _refusal_without_locks(task: str, name: str) -> str:
    return (
        f"{task}(): {name!r} is Locked, which needs file locks that this system does not have. "
        "Mark it Partitioned where each item writes a block of its own, Reduced where all add to "
        "it, or take a threading.Lock with backend='thread'."
    )
