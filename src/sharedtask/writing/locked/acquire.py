"""The caller's arrays that a call locks, for as long as it runs."""

from __future__ import annotations

import graphlib
import itertools
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sharedtask.errors import ArgumentError, LockOrderError, SharedTaskError
from sharedtask.memory import arrays
from sharedtask.memory.locations import find
from sharedtask.system import interrupts
from sharedtask.system.finalizers import Weak

from . import registry
from .locked import Locked
from .regions import Regions
from .registry import Array, Guarded, guard
from .rwlock import abandon_held, count_held, held_here

__all__ = ["Use", "close_all", "leaving_locks", "refuse_held", "use_all"]

# Time limit at the end of a call for tasks that are still writing.
_QUIET_SECONDS = 1.0


class Use:
    """An array of the caller that a call locks.

    Args:
        array: The array.
        name: The parameter.
        rules: The regions that are locked together.
        rank: The position of the parameter among the locked ones.
    """

    guarded: Guarded
    locked: Locked[Array]

    def __init__(self, array: Array, name: str, rules: Regions, rank: int) -> None:
        self.array = array
        self.order: _Order | None = None
        self._how = name, rules, rank
        self._shared_copy: Array | None = None
        self._pid = os.getpid()
        self.is_open = False

    def open(self, *, shared: bool) -> None:
        """Begin the use. With ``shared`` other processes must see the array.

        If the array is private to this process, they get a copy, which is copied back at the end.

        Raises:
            ArgumentError: The array cannot be locked.
            StoreFullError: There is no room for the copy.
        """
        array, (name, rules, rank) = self.array, self._how
        guarded = self.guarded = guard(array, name, rules)
        self.is_open = True
        with registry.making:
            self._shared_copy = guarded.shared_copy()
            if self._shared_copy is None and shared and find(array) is None:
                if any(isinstance(user, Use) for user in guarded.users.values()):
                    raise ArgumentError(
                        f"'{name}' is locked by a call in this process, and other processes cannot"
                        " see it. Make it by sharedtask.array(), or let that call end."
                    )
                self._shared_copy = arrays.array(array)
                guarded.shared_copy = weakref.ref(self._shared_copy)
            guarded.users.put(id(self), self)
        base = array if self._shared_copy is None else self._shared_copy
        opening = guarded.opening(name, rank, rules)
        self.locked = Locked.over(base, guarded.cells, opening, guarded)

    def close(self, *, wrote: bool, gave_up: bool = False) -> None:
        """End the use: copy the tasks' writes into the caller's array, also after a failure.

        If no task has begun (not ``wrote``), nothing is copied: the caller's own writes since then
        stay. Tasks that were given up may be within a block. They leave it soon, or are killed in
        it; the region of one that does neither is poisoned from then on. In a forked child nothing
        is copied: the call is its parent's.
        """
        self.order = None
        copy, self._shared_copy = self._shared_copy, None
        if copy is not None and wrote and self._pid == os.getpid():
            with self.locked.quiet(_QUIET_SECONDS if gave_up else 0.0) as torn:
                self.array[...] = copy
            if torn:
                self.guarded.note_torn(torn, self)
        if self.is_open:
            self.is_open = False
            self.guarded.users.drop(id(self))


class _Order:
    """The order in which the tasks of a running call enter arrays."""

    __slots__ = ("__weakref__", "pid", "tables")

    def __init__(self, tables: tuple[Guarded, ...]) -> None:
        self.tables = tables
        self.pid = os.getpid()


_orders: Weak[int, _Order] = Weak()


def use_all(
    uses: dict[str, Use], locked: Mapping[str, tuple[Array, Regions]], *, shared: bool
) -> None:
    """Begin the use of a call's arrays, by parameter; see ``Use``.

    Each is in ``uses`` before it is opened, so that ``close_all`` finds it after an error or an
    interrupt.

    Raises:
        ArgumentError: An array cannot be locked, or a running call enters them in another
            order, so that its tasks and those of this one could deadlock.
        StoreFullError: There is no room for a copy.
    """
    for rank, (name, (array, rules)) in enumerate(locked.items()):
        uses[name] = Use(array, name, rules, rank)
        uses[name].open(shared=shared)
    order = _Order(tuple(use.guarded for use in uses.values()))
    with registry.making:
        running = [other for other in _orders.values() if other.pid == order.pid]
        _check_orders([*running, order], " and ".join(map(repr, uses)))
        _orders.put(id(order), order)
    for use in uses.values():
        use.order = order


def refuse_held(uses: Mapping[str, Use], task: str) -> None:
    """Refuse a call whose tasks would wait for the thread that waits for the tasks.

    Raises:
        LockOrderError: This thread is in a block of one of the arrays.
    """
    for name, use in uses.items():
        held = held_here(use.locked.table)
        if held:
            raise LockOrderError(f"'{name}' in the tasks of {task}()", held, True)


def _check_orders(orders: Sequence[_Order], names: str) -> None:
    before: dict[Guarded, set[Guarded]] = {}
    for order in orders:
        for first, second in itertools.pairwise(order.tables):
            before.setdefault(second, set()).add(first)
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError:
        raise ArgumentError(
            f"{names} are locked in another order by a call that is running: its tasks and those of"
            " this call could wait for each other without end. Give the arrays to parameters that"
            " have the same order, or let that call end."
        ) from None


def close_all(uses: dict[str, Use], *, wrote: bool, gave_up: bool = False) -> None:
    """End the uses: copy the tasks' writes into the caller's arrays. See ``Use.close``."""
    if uses:  # emptied: the arrays may be locked with other regions then
        with interrupts.shield():  # a second Ctrl-C would skip the copies of some
            while uses:
                uses.popitem()[1].close(wrote=wrote, gave_up=gave_up)


def leaving_locks(task: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, which fails if it ends within a block that it has entered.

    Otherwise the worker would keep the lock and fail its next item.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        before = count_held()
        try:
            return function(*args, **kwargs)
        finally:
            left = abandon_held(before)
            if left:
                msg = (
                    f"{task}() ended within a block that locks {left}. Enter blocks by `with`, and"
                    " do not keep a generator or an object that is inside one."
                )
                raise SharedTaskError(msg)

    return run
