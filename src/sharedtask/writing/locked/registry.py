"""The locks that belong to an array of this process, kept between calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from sharedtask.errors import ArgumentError, RegionPoisonedError, UnshareableError
from sharedtask.memory import mapping
from sharedtask.memory.locations import Memory, find
from sharedtask.memory.mapping import bounds
from sharedtask.system import critical_sections
from sharedtask.system.finalizers import Ending, Weak
from sharedtask.system.records import dataclass
from sharedtask.writing.partitioned import partitions

from .regions import Cells, Regions
from .rwlock import Locks, Span, Table

__all__ = ["Array", "Guarded", "Opening", "adopt", "guard"]

Array = npt.NDArray[Any]
_PRIVATE = ("private",)


def _none() -> None:
    """No copy to update."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The lock handle of an array: opens its locks for a thread."""

    memory: Memory
    cells: int
    name: str
    rank: int
    poisoned: Literal["raise", "continue"]

    def locks(self) -> Locks:
        try:
            return Locks(
                self.memory, self.cells, name=self.name, rank=self.rank, poisoned=self.poisoned
            )
        except LookupError as error:
            msg = (
                f"{self.name!r} cannot be locked: each thread opens the locks in /proc. Mount"
                f" it, or use Partitioned or Reduced. ({error})"
            )
            raise UnshareableError(msg) from error
        except NotImplementedError as error:
            msg = (
                f"{self.name!r} cannot be locked: locks of open files are denied here ({error})."
                " Allow them where the container or its sandbox is set up, or use Partitioned or"
                " Reduced."
            )
            raise UnshareableError(msg) from None


@dataclass(frozen=True, slots=True)
class _Place:
    """The place of an array: its memory, independent of the mapping, and its bounds.

    ``holder`` keeps that memory, or one mapping of it, alive.
    """

    memory: tuple[Any, ...]
    start: int
    low: int
    high: int
    holder: Any

    @property
    def is_shared(self) -> bool:
        """Whether a forked child shares the memory."""
        return self.memory != _PRIVATE

    @classmethod
    def of(cls, array: Array) -> _Place:
        address = mapping.address_of(array)
        low, high = bounds(array)
        found = find(array)
        if found is None:
            owner: Any = array
            while isinstance(owner, np.ndarray) and owner.base is not None:
                owner = owner.base
            return cls(_PRIVATE, address, low, high, owner)
        memory, start = found.region.memory, found.region.offset
        shift = start - address
        return cls((memory.device, memory.inode), start, low + shift, high + shift, found.holder)

    def meets(self, other: _Place) -> bool:
        """Whether the two may have a byte in common."""
        return self.memory == other.memory and self.low < other.high and other.low < self.high


class Guarded:
    """The locks of one array. They live as long as its memory, across calls.

    So a region that a dead task left half written is still known to the next call. The memory keeps
    this object alive, and this object does not keep the memory alive.
    """

    def __init__(
        self, form: tuple[Any, ...], place: _Place, cells: Cells, memory: Memory | None = None
    ) -> None:
        self.form, self.cells = form, cells
        self.place = replace(place, holder=None)
        self._theirs = memory  # of the table, if another process created it
        self._table = Table(cells.count) if memory is None else None
        self._pid = os.getpid()
        self.users: Weak[int, Any] = Weak()
        self.shared_copy: Callable[[], Array | None] = _none

    @property
    def _is_parents(self) -> bool:
        return self._pid != os.getpid() and not self.place.is_shared and self._table is not None

    def be_own(self) -> None:
        """In a forked child private memory is a copy: it gets a table of its own.

        Regions poisoned by a dead writer are known there too. The running calls, and their copies,
        are the parent's.
        """
        old = self._table
        if old is None or not self._is_parents:
            return
        table = Table(self.cells.count)
        if old.is_open:
            table.take_poison(old)
        self._table, self._pid = table, os.getpid()
        self.shared_copy = _none
        self.users.clear()

    @property
    def is_used(self) -> bool:
        """Whether a call or a handle locks it, here or in the process that created the table."""
        return self._theirs is not None or bool(self.users.values())

    @property
    def is_lost(self) -> bool:
        """Whether the program has closed the descriptor by which others open the locks."""
        return self._table is not None and not self._table.is_open

    def require_whole(self, name: str) -> None:
        """Refuse to drop the table if a task died while it wrote.

        Raises:
            RegionPoisonedError: One did, and that part was not rewritten.
        """
        writer = 0 if self._table is None or self.is_lost else self._table.writer()
        if writer:
            raise RegionPoisonedError(name, "", writer)

    def note_torn(self, cells: Sequence[Span], user: object) -> None:
        """Mark cells as poisoned that tasks were still writing in a copy for other processes.

        Their writers may still complete the copy, and clear their marks there. Another call that
        uses the copy copies it back at its own end.
        """
        with making:
            table, users = self._table, self.users.values()
            if table is not None and all(each is user for each in users):
                self._table, self.shared_copy = table.torn(cells), _none

    def opening(self, name: str, rank: int, rules: Regions) -> Opening:
        """The lock handle for tasks."""
        return Opening(self.memory, self.cells.count, name, rank, rules.poisoned)

    def own_memory(self) -> Memory:
        """``memory``, but in a forked child its own; takes no lock unless a fork happened."""
        if self._is_parents:
            with making:
                self.be_own()
        return self.memory

    @property
    def memory(self) -> Memory:
        """The memory of the locks."""
        if self._table is None:
            return cast("Memory", self._theirs)
        return replace(self._table.memory, pid=os.getpid())  # a forked child has it too


def _form(array: Array, place: _Place, lengths: tuple[int, ...]) -> tuple[Any, ...]:
    """A key that distinguishes arrays over one memory, with their blocks."""
    return place.memory, place.start, array.dtype, array.shape, array.strides, lengths


class _Kept:
    """The known locks, each for as long as a mapping of its memory."""

    def __init__(self) -> None:
        self._known: dict[int, Guarded] = {}
        self._holders: dict[int, list[Ending]] = {}

    def add(self, guarded: Guarded, holder: Any) -> None:
        """Keep it also while ``holder`` lives."""
        key = id(guarded)
        self._known[key] = guarded
        holders = self._holders.setdefault(key, [])
        if any(reference() is holder for reference in holders):
            return

        def forget() -> None:  # at any moment: it takes no lock
            left = [each for each in self._holders.get(key, []) if each() is not None]
            if key in self._holders:
                self._holders[key] = left
            if not left:
                self.drop(guarded)

        holders.append(Ending(holder, forget))

    def drop(self, guarded: Guarded) -> None:
        """Forget one."""
        self._known.pop(id(guarded), None)
        for ending in self._holders.pop(id(guarded), ()):
            ending.cancel()

    def all(self) -> list[Guarded]:
        """The known ones."""
        return list(self._known.values())


_kept = _Kept()
making = critical_sections.table_lock()


def guard(array: Any, name: str, rules: Regions) -> Guarded:
    """The locks of an array: the existing ones, or new ones.

    Raises:
        ArgumentError: It cannot be written, or part of it is locked as another array.
    """
    partitions.check_base(array, name)
    cells, place = Cells(array.shape, rules.lengths(array.shape)), _Place.of(array)
    form = _form(array, place, cells.lengths)
    with making:
        for each in _kept.all():
            each.be_own()
        guarded = next((each for each in _kept.all() if each.form == form), None)
        if guarded is not None and guarded.is_lost:
            _kept.drop(guarded)
            guarded = None
        if guarded is None:
            _make_way(place, name, rules)
            guarded = Guarded(form, place, cells)
        _kept.add(guarded, place.holder)
        return guarded


def _make_way(place: _Place, name: str, rules: Regions) -> None:
    """Drop locks of other views of the same memory, which would not exclude the new ones."""
    for each in _kept.all():
        if each.place.meets(place):
            if each.is_used:
                raise ArgumentError(
                    f"{f'{name!r}' if name else 'the array'} shares memory with an array that is"
                    " locked by a call that is running, or by a Locked(...) that is alive. Pass the"
                    " same array, with the same Regions."
                )
            if rules.poisoned == "raise":
                each.require_whole(name)
            _kept.drop(each)


def adopt(array: Array, cells: Cells, memory: Memory) -> Guarded:
    """The locks of an array that came from another process: for tasks that pass it to a map."""
    place = _Place.of(array)
    guarded = Guarded(_form(array, place, cells.lengths), place, cells, memory)
    with making:
        for each in _kept.all():
            if each.form == guarded.form:
                _kept.drop(each)
        _kept.add(guarded, place.holder)
    return guarded
