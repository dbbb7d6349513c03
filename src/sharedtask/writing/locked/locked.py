"""``Locked``: an array that several tasks write, under locks on the regions that they touch.

acquire.py   a call begins to use the arrays that it locks, with a copy if needed
registry.py  the table of locks that belongs to the memory of an array
locked.py    in a task: the memory, and a lock handle on the table for each thread
regions.py   the regions that can be locked separately
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, NoReturn, TypeVar, cast

import numpy as np

from sharedtask.errors import ArgumentError
from sharedtask.memory.locations import Memory, Region, find
from sharedtask.writing.partitioned import partitions

from .regions import Cells, Regions
from .registry import Array, Guarded, Opening, adopt, guard
from .rwlock import Hold, Locks, Quiet, Span

__all__ = ["Locked"]

T = TypeVar("T")
_ROWS = Regions()


class Locked(Generic[T]):
    """An array with locks: several tasks may read a region at the same time, or one may write it.

    A task gets one for each such parameter; the caller passes the array, or a
    ``Locked`` to satisfy type checkers. With its own ``Locked`` the caller can read and write
    an array in shared memory while tasks do.

    Args:
        array: A writable array without Python objects.
        regions: The regions that are locked together.

    Raises:
        ArgumentError: ``array`` is read-only, or ``regions`` do not fit it.

    Examples:
        >>> import numpy as np
        >>> from sharedtask import Locked, parallel
        >>> @parallel
        ... def deposit(amount: int, accounts: Locked[np.ndarray]) -> None:
        ...     with accounts.write(amount % 3) as account:
        ...         account += amount
        >>> accounts = np.zeros(3)
        >>> _ = deposit.map(range(9), accounts=accounts)
        >>> accounts
        array([ 9., 12., 15.])
    """

    __slots__ = (
        "__weakref__",
        "_array",
        "_cells",
        "_guarded",
        "_local",
        "_opening",
        "_readonly",
    )

    def __init__(self, array: T, regions: Regions = _ROWS) -> None:
        guarded = guard(array, "", regions)
        self._begin(array, guarded.cells, guarded.opening("", 0, regions), guarded)
        guarded.users.put(id(self), self)

    @classmethod
    def over(
        cls, array: Array, cells: Cells, opening: Opening, guarded: Guarded | None = None
    ) -> Locked[Any]:
        """A ``Locked`` over existing memory and locks."""
        made: Locked[Any] = cls.__new__(cls)
        made._begin(array, cells, opening, guarded)
        return made

    def _begin(self, array: Any, cells: Cells, opening: Opening, guarded: Guarded | None) -> None:
        self._array: Array = array
        self._readonly = partitions.block(array, ..., readonly=True)
        self._cells, self._opening = cells, opening
        self._guarded = guarded  # keeps the table
        self._local = threading.local()

    @property
    def array(self) -> T:
        """The array itself, without a lock."""
        return cast("T", self._array)

    @property
    def table(self) -> Memory:
        """The memory of the locks."""
        return self._opening.memory

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array."""
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(_BEHIND)

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError(_BEHIND)

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise TypeError(_BEHIND)

    def read(self, index: Any = ...) -> Hold[T]:
        """Lock a part for reading: ``with grid.read(slice(0, 10)) as rows``. No task writes it.

        Args:
            index: Ints, slices and ``...``, or a tuple of them; all by default.

        Returns:
            A context manager; ``as`` gives a read-only view of that part.

        Raises:
            RegionPoisonedError: A writer died there, on entering.
            LockOrderError: This thread would wait for itself, or has locked a later part.
            ArgumentError: The index makes a copy or is none.
        """
        return self._hold(index, self._readonly, write=False, repair=False)

    def write(self, index: Any = ..., *, repair: bool = False) -> Hold[T]:
        """Lock a part for writing, exclusively: ``with grid.write(3) as row``.

        Args:
            index: Ints, slices and ``...``, or a tuple of them; all by default.
            repair: The block rewrites the whole part, so entering it raises no error if a writer
                died there; afterwards the part counts as intact.

        Returns:
            A context manager; ``as`` gives a writable view of that part. An int for every axis
            gives an array of shape ``()``: write ``cell[...] = 3`` or ``cell += 1``.

        Raises:
            Exception: See ``read``.
        """
        return self._hold(index, self._array, write=True, repair=repair)

    def quiet(self, seconds: float) -> Quiet:
        """Waits up to ``seconds`` for writers, then runs the block in any case."""
        return Quiet(self._locks(), self._cells.whole, seconds)

    def _hold(self, index: Any, base: Array, *, write: bool, repair: bool) -> Hold[T]:
        view: Any = base
        if index is ...:
            spans: Sequence[Span] = self._cells.whole
        else:
            spans = self._cells.spans(index)
            view = base[partitions.with_dots(index)]
        return Hold(self._locks(), spans, view, write=write, repair=repair, where=_Where(index))

    def _locks(self) -> Locks:
        """This thread's lock handle on the table; another one in a forked child."""
        locks: Locks | None = getattr(self._local, "locks", None)
        if locks is None or not locks.usable:
            if self._guarded is not None:  # in a forked child the table may differ
                self._opening = replace(self._opening, memory=self._guarded.own_memory())
            locks = self._local.locks = self._opening.locks()
        return locks

    def __reduce__(self) -> Any:
        found = find(self._array)
        if found is None:
            msg = (
                "a Locked is passed to a parameter that is marked so, over an array of the process"
                " that passes it; as an item or a result it cannot travel. Return the array."
            )
            raise ArgumentError(msg)
        cells = self._cells
        return _open, (found.region, cells.shape, cells.lengths, self._opening)

    def __repr__(self) -> str:
        return f"<Locked {self.dtype} array of shape {self.shape}>"


def _open(
    region: Region, shape: tuple[int, ...], lengths: tuple[int, ...], opening: Opening
) -> Locked[Any]:
    array, cells = region.view(writable=True), Cells(shape, lengths)
    return Locked.over(array, cells, opening, adopt(array, cells, opening.memory))


_BEHIND = (
    "this array is behind locks: `with grid.read(index) as part` gives a part of it to read, and"
    " `with grid.write(index) as part` one to write."
)


class _Where:
    """The text of an index, computed on demand."""

    __slots__ = ("index",)

    def __init__(self, index: Any) -> None:
        self.index = index

    def __str__(self) -> str:
        return "" if self.index is ... else partitions.index_text(self.index)
