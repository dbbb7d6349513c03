"""What tasks in this process set up for each thread that runs them: see ``worker/making.py``.

Recipes are published in a cache of their own, as for workers: an equal recipe is found there, and
what was made by another one is closed, as is what belongs to a task that was dropped.
"""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING, Any

from sharedtask.annotations import Role
from sharedtask.backends.worker.making import Table
from sharedtask.recipes import INITIALIZER
from sharedtask.store.cache import ShareCache
from sharedtask.system import background, forks, interrupts
from sharedtask.system.finalizers import Weak
from sharedtask.system.forks import Step

from .leasing import lease_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from sharedtask.backends.worker.making import Wanted
    from sharedtask.store.cache import Lease

    from .base import Call


class SetUp:
    """What one call sets up, leased until the call ends."""

    def __init__(self, call: Call, own_table: Callable[[], Table]) -> None:
        self._call = call
        self._own_table = own_table
        self._leases: dict[str, Lease] = {}
        self._number = None if call.options.retries else object()

    @classmethod
    def opened(cls, call: Call, own_table: Callable[[], Table] | None) -> SetUp:
        """Publish the recipes of a call; without ``own_table`` its thread runs the items.

        Raises:
            UnshareableError: One cannot be encoded.
            StoreFullError: One does not fit.
        """
        if own_table is not None:
            set_up = cls(call, own_table)
            set_up.lease()
        else:
            set_up = cls(call, table_of_caller)
            with table_of_caller().closing_here():  # what the recipes replace
                set_up.lease()
        return set_up

    def lease(self) -> None:
        """Publish the recipes, or find them published."""
        try:
            for name, value in self._call.shared.items():
                if value.role is Role.PER_WORKER:
                    self._leases[name] = lease_value(_recipes.cache, self._call, name)
        except BaseException:
            self.close()
            raise

    def values(self) -> dict[str, Any]:
        """The values of this thread; what is missing is made.

        Raises the errors of recipes, with a note that names the parameter.
        """
        table = self._own_table()
        return table.values(self._call.task, self._wanted(table), self._number)

    def _wanted(self, table: Table) -> list[Wanted]:
        wanted: list[Wanted] = []
        for name, lease in self._leases.items():
            publication = lease.publication
            publication.call_on_release(table.drop)
            wanted.append((name, publication.token, publication.value))
        return wanted

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, called with the settings that the initializer has made."""
        lease = self._leases.get(INITIALIZER)
        if lease is None:
            return function
        return self._own_table().with_settings(lease.publication.token, function)

    def close(self) -> None:
        """The call has ended: it needs the recipes no longer."""
        for lease in self._leases.values():
            lease.release()


class _Recipes:
    """The published recipes; those whose task was dropped are released at once."""

    def __init__(self) -> None:
        self.renew()
        forks.in_child(Step.HELD, self.renew)

    def renew(self) -> None:
        """Start empty, as a forked child does."""
        self.cache = ShareCache(wake=self._sweep)

    def _sweep(self) -> None:
        self.cache.sweep()


_recipes = _Recipes()


# --------------------------------------------------------------------- tables of threads


class _Here(threading.local):
    """The table of this thread, which is freed with it."""

    table: Table | None = None


_here = _Here()
_of_callers: Weak[int, Table] = Weak()


def table_of_caller() -> Table:
    """The table of this thread of the caller, made at its first use."""
    table = _here.table
    if table is None or not table.is_ours:
        table = _here.table = Table(_close_soon)
        _of_callers.put(id(table), table)
    return table


def _close_soon() -> None:
    """A thread of the caller may not run our code for long: another one closes what it can."""
    background.put(_close_due_of_callers)


def _close_due_of_callers() -> None:
    for table in _of_callers.values():
        table.close_elsewhere()


@interrupts.shielded
def close_callers() -> None:
    """Close what all threads of the caller have made; this one first."""
    table = _here.table
    if table is not None:
        table.close_all()
    for other in _of_callers.values():
        other.drop_all()
        other.close_elsewhere()


atexit.register(close_callers)
