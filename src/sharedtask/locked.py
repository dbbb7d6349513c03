"""``Locked``: an array that several tasks write, under locks on the regions that they touch.

Use          a call has one for each array that it locks, and a copy of it if need be
 |  _Guarded the table of locks that belongs to the memory
 v
Locked       in a task: the memory, and an opening of the table for each thread
"""

from __future__ import annotations

import graphlib
import itertools
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, Literal, NoReturn, TypeVar, cast

import numpy as np
import numpy.typing as npt

from sharedtask import partitions
from sharedtask.annotations import Role
from sharedtask.errors import ArgumentError, DefinitionError, LockOrderError
from sharedtask.sharing import arrays, mapping
from sharedtask.sharing.locks import Hold, Locks, Quiet, Span, Table, held_here
from sharedtask.sharing.regions import Memory, Region, bounds, find

__all__ = ["Locked", "Regions"]

T = TypeVar("T")
Array = npt.NDArray[Any]

# So many rows can be locked apart where nothing else is said; of more, some go together.
_ROWS = 1 << 16
_MOST_CELLS = 1 << 20
# How long the end of a call waits for tasks, of this or another call, that are writing.
_QUIET_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Regions:
    """What is locked together: ``Annotated[Locked[np.ndarray], Regions(blocks=(64, 64))]``.

    Attributes:
        blocks: Lengths of the blocks that are locked as a whole, along the first axes. None: rows,
            or a few rows where there are more than 65,536. An index that touches blocks in n rows
            of blocks costs n times as much as one in a single row.
        poisoned: What happens in a region whose writer died: "raise" RegionPoisonedError until
            somebody repairs it, or "continue" as if nothing had happened.
    """

    role: ClassVar[Role] = Role.LOCKED

    blocks: int | tuple[int, ...] | None = None
    poisoned: Literal["raise", "continue"] = "raise"

    def __post_init__(self) -> None:
        given: Any = self.blocks
        blocks = given if isinstance(given, tuple) else (1 if given is None else given,)
        if not blocks or not all(type(length) is int and length > 0 for length in blocks):
            raise DefinitionError(f"Regions(blocks={self.blocks!r}): lengths are 1 or more.")
        if self.poisoned not in ("raise", "continue"):
            raise DefinitionError(f"Regions(poisoned={self.poisoned!r}) is 'raise' or 'continue'.")

    def lengths(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths for an array of this shape, for each of its first axes.

        Raises:
            ArgumentError: There are more lengths than axes, or too many blocks.
        """
        if self.blocks is None:
            return (max(-(-shape[0] // _ROWS), 1),) if shape else ()
        blocks = (self.blocks,) if isinstance(self.blocks, int) else self.blocks
        if len(blocks) > len(shape):
            raise ArgumentError(f"Regions(blocks={blocks}) do not fit an array of shape {shape}.")
        return blocks


class _Cells:
    """The regions of an array that can be locked apart, numbered in C order."""

    def __init__(self, shape: tuple[int, ...], lengths: tuple[int, ...]) -> None:
        self.shape, self.lengths = shape, lengths
        self._counts = tuple(
            max(-(-extent // length), 1) for extent, length in zip(shape, lengths, strict=False)
        )
        self.count = math.prod(self._counts)
        self.whole = (Span(0, self.count),)
        if self.count > _MOST_CELLS:
            raise ArgumentError(
                f"an array of shape {shape} has {self.count:,} blocks of {lengths}; at most"
                f" {_MOST_CELLS:,} can be locked apart. Lock larger ones: Regions(blocks=...)."
            )

    def spans(self, index: Any) -> Sequence[Span]:
        """The regions that an index touches, ascending.

        Raises:
            ArgumentError: The index makes a copy or is none.
            IndexError: An int is out of range, or there are too many.
        """
        if len(self.lengths) == 1 and type(index) in (int, slice):  # most: 1 us instead of 5
            quick = self._quick(index, self.shape[0], self.lengths[0])
            if quick is not None:
                return (quick,)
        extents = []
        for axis, length in zip(
            partitions.ranges_of(index, self.shape), self.lengths, strict=False
        ):
            touched = range(*axis)
            if not touched:
                return ()
            low, high = sorted((touched[0] // length, touched[-1] // length))
            extents.append((low, high + 1))
        return tuple(self._rows(extents))

    def _quick(self, index: int | slice, rows: int, length: int) -> Span | None:
        """The span of a row, or of rows in ascending order; None where there is more to say."""
        if isinstance(index, slice):
            start, stop, step = index.indices(rows)
            if step == 1 and start < stop:
                return Span(start // length, (stop - 1) // length + 1)
        elif -rows <= index < rows:
            cell = index % rows // length
            return Span(cell, cell + 1)
        return None

    def _rows(self, extents: Sequence[tuple[int, int]]) -> list[Span]:
        """One span for each row of a box of cells; rows that touch are one."""
        if not extents:
            return [Span(0, 1)]
        *outer, (low, high) = extents
        spans: list[Span] = []
        for place in itertools.product(*(range(*extent) for extent in outer)):
            row = 0
            for at, count in zip((*place, 0), self._counts, strict=True):
                row = row * count + at
            if spans and spans[-1].stop == row + low:
                spans[-1] = Span(spans[-1].start, row + high)
            else:
                spans.append(Span(row + low, row + high))
        return spans


@dataclass(frozen=True, slots=True)
class _Opening:
    """How a thread opens the locks of an array."""

    memory: Memory
    cells: int
    name: str
    rank: int
    poisoned: Literal["raise", "continue"]

    def locks(self) -> Locks:
        return Locks(
            self.memory, self.cells, name=self.name, rank=self.rank, poisoned=self.poisoned
        )


class Locked(Generic[T]):
    """An array behind locks: many read a region at the same time, or one writes it.

    A task gets one for each parameter that is marked so; the caller passes the array, or one of
    these where a type checker shall be content. Made by the caller, it also reads and writes an
    array in shared memory while tasks do.

    Args:
        array: A writable array without Python objects.
        regions: What is locked together.

    Raises:
        ArgumentError: ``array`` cannot be written, or ``regions`` do not fit it.

    Example:
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

    def __init__(self, array: T, regions: Regions = Regions()) -> None:
        guarded = _guard(array, "", regions)
        self._begin(array, guarded.cells, guarded.opening("", 0, regions), guarded)
        guarded.users.add(self)

    @classmethod
    def over(
        cls, array: Array, cells: _Cells, opening: _Opening, guarded: _Guarded | None = None
    ) -> Locked[Any]:
        """Over memory and locks that are there."""
        made: Locked[Any] = cls.__new__(cls)
        made._begin(array, cells, opening, guarded)
        return made

    def _begin(
        self, array: Any, cells: _Cells, opening: _Opening, guarded: _Guarded | None
    ) -> None:
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
        """Where the locks are."""
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
        """A block in which nobody writes there: ``with grid.read(slice(0, 10)) as rows``.

        Args:
            index: Ints, slices and ``...``, or a tuple of them; all by default.

        Returns:
            A context manager; ``as`` gives a read-only view of that part.

        Raises:
            RegionPoisonedError: A writer died there, on entering.
            LockOrderError: This thread would wait for itself, or has locked what comes later.
            ArgumentError: The index makes a copy or is none.
        """
        return self._hold(index, self._readonly, write=False, repair=False)

    def write(self, index: Any = ..., *, repair: bool = False) -> Hold[T]:
        """A block in which nobody else reads or writes there: ``with grid.write(3) as row``.

        Args:
            index: Ints, slices and ``...``, or a tuple of them; all by default.
            repair: The block writes that part anew, so it does not matter that a writer died in
                it; afterwards it counts as whole.

        Returns:
            A context manager; ``as`` gives a writable view of that part. An int for every axis
            gives an array of shape ``()``: write ``cell[...] = 3`` or ``cell += 1``.

        Raises:
            Exception: See ``read``.
        """
        return self._hold(index, self._array, write=True, repair=repair)

    def quiet(self, seconds: float) -> Quiet:
        """A block in which nobody writes, if that comes about in time; else one all the same."""
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
        """This thread's opening of the table; another one in a forked child."""
        locks: Locks | None = getattr(self._local, "locks", None)
        if locks is None or not locks.usable:
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
    region: Region, shape: tuple[int, ...], lengths: tuple[int, ...], opening: _Opening
) -> Locked[Any]:
    array, cells = region.view(writable=True), _Cells(shape, lengths)
    # A task may pass the array on to a map of its own: that must lock by the same table.
    place = _Place.of(array)
    guarded = _Guarded(_form(array, place, lengths), place, cells, opening.memory)
    with _making:
        for each in _kept.all():
            if each.form == guarded.form:
                _kept.drop(each)
        _kept.add(guarded, place.holder)
    return Locked.over(array, cells, opening, guarded)


_BEHIND = (
    "this array is behind locks: `with grid.read(index) as part` gives a part of it to read, and"
    " `with grid.write(index) as part` one to write."
)


class _Where:
    """An index in words, when they are asked for."""

    __slots__ = ("index",)

    def __init__(self, index: Any) -> None:
        self.index = index

    def __str__(self) -> str:
        return "" if self.index is ... else partitions.index_text(self.index)


# ----------------------------------------------------------------------- on the caller's side


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an array lies: in which memory, by whatever mapping, and from where to where.

    ``holder`` keeps that memory, or one mapping of it.
    """

    memory: tuple[Any, ...]
    start: int
    low: int
    high: int
    holder: Any

    @classmethod
    def of(cls, array: Array) -> _Place:
        address = mapping.address_of(array)
        low, high = bounds(array)
        found = find(array)
        if found is None:
            owner: Any = array
            while isinstance(owner, np.ndarray) and owner.base is not None:
                owner = owner.base
            return cls(("private",), address, low, high, owner)
        memory, start = found.region.memory, found.region.offset
        shift = start - address
        return cls((memory.device, memory.inode), start, low + shift, high + shift, found.holder)

    def meets(self, other: _Place) -> bool:
        """Whether the two may have a byte in common."""
        return self.memory == other.memory and self.low < other.high and other.low < self.high


class _Guarded:
    """The locks of one array. They stay with its memory from one call to the next.

    So a region that a dead task left half written is still known to the next call. The memory keeps
    this, and this does not keep the memory.
    """

    def __init__(
        self, form: tuple[Any, ...], place: _Place, cells: _Cells, memory: Memory | None = None
    ) -> None:
        self.form, self.cells = form, cells
        self.place = replace(place, holder=None)
        self._theirs = memory  # of the table, where another process made it
        self._table = Table(cells.count) if memory is None else None
        self.users: weakref.WeakSet[Use | Locked[Any]] = weakref.WeakSet()
        self.twin: Callable[[], Array | None] = lambda: None

    @property
    def is_used(self) -> bool:
        """Whether a call or a handle locks it, here or in the process that made the table."""
        return self._theirs is not None or bool(self.users)

    def opening(self, name: str, rank: int, rules: Regions) -> _Opening:
        """How others open the locks."""
        if self._table is None:
            memory = cast("Memory", self._theirs)
        else:
            memory = replace(self._table.memory, pid=os.getpid())  # a forked child has it too
        return _Opening(memory, self.cells.count, name, rank, rules.poisoned)


def _form(array: Array, place: _Place, lengths: tuple[int, ...]) -> tuple[Any, ...]:
    """What tells one array of some memory, and its blocks, from the others."""
    return place.memory, place.start, array.dtype, array.shape, array.strides, lengths


class _Kept:
    """The locks that are known, each as long as one of the mappings of its memory."""

    def __init__(self) -> None:
        self._known: dict[int, _Guarded] = {}
        self._holders: dict[int, list[weakref.ref[Any]]] = {}

    def add(self, guarded: _Guarded, holder: Any) -> None:
        """Keep it while ``holder`` lives, also."""
        key = id(guarded)
        self._known[key] = guarded
        holders = self._holders.setdefault(key, [])
        if any(reference() is holder for reference in holders):
            return

        def forget(gone: weakref.ref[Any]) -> None:  # at any moment: it takes no lock
            left = self._holders.get(key, [])
            if gone in left:
                left.remove(gone)
            if not left:
                self.drop(guarded)

        holders.append(weakref.ref(holder, forget))

    def drop(self, guarded: _Guarded) -> None:
        """Forget it."""
        self._known.pop(id(guarded), None)
        self._holders.pop(id(guarded), None)

    def all(self) -> list[_Guarded]:
        """Those that are known."""
        return list(self._known.values())


_kept = _Kept()
_making = threading.Lock()


def _guard(array: Any, name: str, rules: Regions) -> _Guarded:
    """The locks of an array: those that are there, or new ones.

    Raises:
        ArgumentError: It cannot be written, or part of it is locked as another array.
    """
    partitions.check_base(array, name)
    cells, place = _Cells(array.shape, rules.lengths(array.shape)), _Place.of(array)
    form = _form(array, place, cells.lengths)
    with _making:
        guarded = next((each for each in _kept.all() if each.form == form), None)
        if guarded is None:
            _make_way(place, name)
            guarded = _Guarded(form, place, cells)
        _kept.add(guarded, place.holder)
        return guarded


def _make_way(place: _Place, name: str) -> None:
    """Other views of the same memory have locks that say nothing to the new ones."""
    for each in _kept.all():
        if each.place.meets(place):
            if each.is_used:
                raise ArgumentError(
                    f"{f'{name!r}' if name else 'the array'} shares memory with an array that is"
                    " locked by a call that is running, or by a Locked(...) that is alive. Pass the"
                    " same array, with the same Regions."
                )
            _kept.drop(each)


class Use:
    """An array of the caller that a call locks.

    Args:
        array: The array.
        name: The parameter.
        rules: What is locked together.
        rank: The place of the parameter among those that are locked.
        shared: Whether other processes must see it: of an array of this one alone they get a copy,
            whose contents come back at the end.

    Raises:
        ArgumentError: The array cannot be locked.
        StoreFullError: There is no room for the copy.
    """

    def __init__(self, array: Array, name: str, rules: Regions, rank: int, *, shared: bool) -> None:
        self.array = array
        self.order: _Order | None = None
        guarded = self.guarded = _guard(array, name, rules)
        with _making:
            self._twin = guarded.twin()
            if self._twin is None and shared and find(array) is None:
                if any(isinstance(user, Use) for user in guarded.users):
                    raise ArgumentError(
                        f"'{name}' is locked by a call in this process, and other processes cannot"
                        " see it. Make it by sharedtask.array(), or let that call end."
                    )
                self._twin = arrays.array(array)
                guarded.twin = weakref.ref(self._twin)
            guarded.users.add(self)
        base = array if self._twin is None else self._twin
        opening = guarded.opening(name, rank, rules)
        self.locked = Locked.over(base, guarded.cells, opening, guarded)

    def close(self) -> None:
        """The call is over: what was written is in the caller's array, failed or not."""
        self.order = None
        twin, self._twin = self._twin, None
        # Where the call failed, others may be within a block; they leave it soon, or are killed.
        with self.locked.quiet(_QUIET_SECONDS):
            if twin is not None:
                self.array[...] = twin


class _Order:
    """The order in which the tasks of a running call enter arrays."""

    __slots__ = ("__weakref__", "tables")

    def __init__(self, tables: tuple[_Guarded, ...]) -> None:
        self.tables = tables


_orders: weakref.WeakSet[_Order] = weakref.WeakSet()


def use_all(locked: Mapping[str, tuple[Array, Regions]], *, shared: bool) -> dict[str, Use]:
    """Begin to use the arrays of a call, by parameter; see ``Use``.

    Raises:
        ArgumentError: An array cannot be locked, or a call that is running enters them in another
            order, so that its tasks and those of this one could wait for each other for ever.
        StoreFullError: There is no room for a copy.
    """
    uses = {
        name: Use(array, name, rules, rank, shared=shared)
        for rank, (name, (array, rules)) in enumerate(locked.items())
    }
    order = _Order(tuple(use.guarded for use in uses.values()))
    with _making:
        _check_orders([*_orders, order], " and ".join(map(repr, uses)))
        _orders.add(order)
    for use in uses.values():
        use.order = order
    return uses


def refuse_held(uses: Mapping[str, Use], task: str) -> None:
    """Refuse a call whose tasks would wait for the thread that waits for them.

    Raises:
        LockOrderError: This thread is in a block of one of the arrays.
    """
    for name, use in uses.items():
        held = held_here(use.locked.table)
        if held:
            raise LockOrderError(f"'{name}' in the tasks of {task}()", held, True)


def _check_orders(orders: Sequence[_Order], names: str) -> None:
    before: dict[_Guarded, set[_Guarded]] = {}
    for order in orders:
        for first, second in itertools.pairwise(order.tables):
            before.setdefault(second, set()).add(first)
    try:
        graphlib.TopologicalSorter(before).prepare()
    except graphlib.CycleError:
        raise ArgumentError(
            f"{names} are locked in another order by a call that is running: its tasks and those of"
            " this call could wait for each other for ever. Give the arrays to parameters that"
            " stand in the same order, or let that call end."
        ) from None


def close_all(uses: dict[str, Use]) -> None:
    """The call is over: what was written is in the caller's arrays."""
    while uses:  # emptied: the arrays may be locked as others from now on
        uses.popitem()[1].close()
