"""Reader-writer locks over numbered cells, for processes and threads, released on death.

    Table                 the parent's: memory with a few bytes for each cell
    Locks(table.memory)   one for each thread: its own open file of that memory
    locks.hold(spans)     a block in which ranges of cells are locked

The kernel keeps the locks (byte ranges that belong to an open file description, fcntl(2)) and drops
them when their holder dies. It does not report that the holder died; the table records that: a
writer stores its pid in its cells, and clears it before it unlocks.

Each cell ``c`` has two bytes that can be locked: ``c`` itself, and ``cells + c``, its turnstile.
A thread that finds a cell free and none waiting locks it at once. Others wait at the turnstile,
which admits one at a time to wait for the cell. Later ones do not overtake, so neither writers nor
readers starve.

A lock belongs to the open file and to all copies of its descriptor. Each thread therefore has a
``Locks`` of its own, and a forked child opens another: the inherited one is its parent's. While
such a child lives it keeps the locks held at the fork, even if its parent is killed.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from sharedtask.errors import ClosedError, LockOrderError, RegionPoisonedError
from sharedtask.memory import locations, mapping, segments
from sharedtask.system import descriptors, forks, interrupts
from sharedtask.system.descriptors import Descriptor
from sharedtask.system.forks import Step
from sharedtask.system.posix import fcntl
from sharedtask.system.records import dataclass

if TYPE_CHECKING:
    import numpy.typing as npt

_V = TypeVar("_V")
_PID_BYTES = 4
_CELL_BYTES = _PID_BYTES + 1  # its writer, and whether a thread waits for it


@dataclass(frozen=True, slots=True)
class Span:
    """The cells from ``start`` up to but not including ``stop``; at least one."""

    start: int
    stop: int


class Table:
    """The memory of the locks, and its place for others; freed with this object.

    Raises:
        StoreFullError: No room, no descriptors, or a limit of the process is in the way.

    Examples:
        >>> table = Table(8)
        >>> locks = Locks(table.memory, table.cells, name="grid")
        >>> with locks.hold([Span(2, 4)], write=True):
        ...     pass  # no other thread is in cell 2 or 3
        >>> locks.close()
        >>> table.close()
    """

    def __init__(self, cells: int) -> None:
        self.cells = cells
        size = cells * _CELL_BYTES
        with interrupts.shield():  # an interrupt would leak the descriptor
            fd = segments.scratch(size)
            self._file = here = Descriptor.of(fd)
            self._closing = descriptors.closing(self, here)
        self.memory = locations.Memory(os.getpid(), fd, here.device, here.inode, size)

    @property
    def is_open(self) -> bool:
        """Whether others can open it: the program may have closed the descriptor."""
        return self._file.is_open()

    def writer(self) -> int:
        """The pid of a process that writes a cell, or died in it; 0 for none."""
        return int(self._writers().max(initial=0))

    def _writers(self, *, writable: bool = False) -> npt.NDArray[np.uint32]:
        memory = self.memory
        view: npt.NDArray[np.uint8] = mapping.view(memory.fd, memory.size, writable=writable)
        return view[: self.cells * _PID_BYTES].view(np.uint32)

    def take_poison(self, other: Table) -> None:
        """Copy the poisoned state of another table's cells."""
        ours, theirs = self._writers(writable=True), other._writers()
        for pid in np.unique(theirs[theirs != 0]):
            if not _is_alive(int(pid)):
                ours[theirs == pid] = pid

    def torn(self, cells: Sequence[Span]) -> Table:
        """A new table in which these cells are poisoned, in addition to those of dead writers.

        Their writers have the old table open, and clear their own marks there.
        """
        table = Table(self.cells)
        table.take_poison(self)
        ours, theirs = table._writers(writable=True), self._writers()
        for cell in cells:
            ours[cell.start] = theirs[cell.start] or os.getpid()
        return table

    def close(self) -> None:
        """Close the descriptor: no other can open the table then; open ones stay valid."""
        self._closing.now()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is alive, under another user
        return True
    return True


class Locks:
    """One thread's own open file of a table.

    Args:
        memory: ``Table.memory``, of any process of the same user.
        cells: ``Table.cells``.
        name: The parameter that is locked, for messages.
        rank: Tables are locked in ascending order of it; if equal, of their creation.
        poisoned: What happens if a writer died: "raise" RegionPoisonedError, or "continue".

    Raises:
        LookupError: The table is freed, or may not be opened.
        NotImplementedError: The kernel has no locks of open files, or denies them.
    """

    def __init__(
        self,
        memory: locations.Memory,
        cells: int,
        *,
        name: str = "",
        rank: int = 0,
        poisoned: Literal["raise", "continue"] = "raise",
    ) -> None:
        self.name = name
        self.cells = cells
        self.tolerant = poisoned == "continue"
        self.order = rank, memory.device, memory.inode
        self.pid = _process.pid
        with interrupts.shield():  # an interrupt would leak the descriptor
            self.fd = locations.reopened(memory, writable=True)
            self._closing = descriptors.closing(self, Descriptor.of(self.fd))
        _require_locks(self.fd)
        view: npt.NDArray[np.uint8] = mapping.view(self.fd, memory.size, writable=True)
        self.writers: npt.NDArray[Any] = view[: cells * _PID_BYTES].view(np.uint32)
        self.waited_for: npt.NDArray[Any] = view[cells * _PID_BYTES :]

    def hold(
        self, spans: Sequence[Span], *, write: bool, repair: bool = False, where: object = ""
    ) -> Hold[None]:
        """A block in which these cells are locked: for this thread alone, or for readers.

        Args:
            spans: Ascending, apart from each other; none locks nothing.
            write: Exclusive; if False, other readers are admitted.
            repair: The block rewrites all of it: poisoned cells are no error, and are
                repaired when the block ends without an exception.
            where: The region as the caller wrote it, such as "[0:10]".

        Raises:
            RegionPoisonedError: A writer of one of the cells died, on entering.
            LockOrderError: This thread would wait for itself, or has locked a later part.
            ClosedError: The locks are closed, or belong to the parent of this forked process.
        """
        return Hold(self, spans, None, write=write, repair=repair, where=where)

    def close(self) -> None:
        """Release all as death would: the cells of a block that writes count as poisoned."""
        self.pid = 0
        self._closing.now()
        self.writers = self.waited_for = np.empty(0, np.uint32)  # unmapped with the last view

    @property
    def usable(self) -> bool:
        """False once closed, and in a forked child, where the descriptor is its parent's."""
        return self.pid == _process.pid


def _require_locks(fd: int) -> None:
    """Raise NotImplementedError where the kernel has no locks of open files, or denies them."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK(fcntl.F_UNLCK, 0, 0, 1, 0))
    except (OSError, AttributeError) as error:
        msg = f"fcntl(F_OFD_SETLK): {getattr(error, 'strerror', error)}"
        raise NotImplementedError(msg) from None


class _Process:
    """This process's id: a system call at each entry would be a tenth of its time."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.ask()
        forks.in_child(Step.IDENTITY, self.ask)

    def ask(self) -> None:
        self.pid = os.getpid()


_process = _Process()


class Hold(Generic[_V]):
    """The block of ``Locks.hold``; ``as`` gives ``value``.

    It must be in the ``with`` statement itself. Inside another object's ``__exit__`` it would not
    be left if Ctrl-C arrives as that one begins, which is when an interrupt during a long array
    operation is raised.
    """

    __slots__ = ("_guard", "_held", "_kind", "_left", "_marked", "locks", "repair", "spans",
                 "value", "where", "write")  # fmt: skip

    def __init__(
        self,
        locks: Locks,
        spans: Sequence[Span],
        value: _V,
        *,
        write: bool,
        repair: bool = False,
        where: object = "",
    ) -> None:
        self.locks = locks
        self.spans = spans
        self.value = value
        self.write = write
        self.repair = repair
        self.where = where
        self._kind = fcntl.F_WRLCK if write else fcntl.F_RDLCK
        self._guard: interrupts.Leaving | None = None
        self._marked = False
        self._left: list[npt.NDArray[np.uint32]] | None = None

    def __enter__(self) -> _V:
        self._held = held = _here.held
        nested = _admit(self, held)
        try:
            # Stored first, then installed: an interrupt between the two finds both.
            self._guard = interrupts.leaving(_EXIT)
            if self._guard is not None:
                self._guard.install()
            held.append(self)
            self._take(nested)
            self._mark()
        except BaseException:
            if self._guard is not None:
                self._guard.busy = True
            self._leave(clean=False, turnstile=True)
            raise
        return self.value

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # An interrupt that came before this line waits as well: see interrupts.Leaving.
        if self._guard is not None:
            self._guard.busy = True
        self._leave(clean=kind is None)

    def abandon(self) -> None:
        """Leave as death would: if it was writing, its mark stays."""
        self._marked = False
        self._leave(clean=False)

    # ------------------------------------------------------------------------- taking cells

    def _take(self, nested: bool) -> None:
        if not nested and self._taken_at_once():
            return
        began = time.monotonic_ns()
        try:
            if nested:
                # Not through the turnstile. If thread 1 holds cell 0 and waits at the turnstile of
                # cell 1, thread 2 may be waiting for cells 0 and 1, having both turnstiles.
                self._lock(self._kind, fcntl.F_OFD_SETLKW)
            else:
                self._queue()
        finally:
            _here.waited += time.monotonic_ns() - began

    def _taken_at_once(self) -> bool:
        waited_for = self.locks.waited_for
        for span in self.spans:
            if np.count_nonzero(waited_for[span.start : span.stop]):
                return False
        try:
            self._lock(self._kind, fcntl.F_OFD_SETLK)
        except BlockingIOError:
            self._lock(fcntl.F_UNLCK, fcntl.F_OFD_SETLK)  # spans that it got before
            return False
        return True

    def _queue(self) -> None:
        """Wait at all turnstiles, then for all cells; each in ascending order, so no deadlock."""
        turnstiles = self.locks.cells
        self._lock(fcntl.F_WRLCK, fcntl.F_OFD_SETLKW, turnstiles)
        # Only the thread past the turnstile writes here. If it dies waiting, this stays set: the
        # next one at the cell queues without need, and clears it.
        self._fill(self.locks.waited_for, 1)
        self._lock(self._kind, fcntl.F_OFD_SETLKW)
        self._fill(self.locks.waited_for, 0)
        self._lock(fcntl.F_UNLCK, fcntl.F_OFD_SETLK, turnstiles)

    def _lock(self, kind: int, command: int, offset: int = 0) -> None:
        fd = self.locks.fd
        for span in self.spans:
            flock = _FLOCK(kind, 0, span.start + offset, span.stop - span.start, 0)
            fcntl.fcntl(fd, command, flock)

    # ------------------------------------------------------------------------- writers' marks

    def _mark(self) -> None:
        """Refuse poisoned cells, or overwrite their marks with this writer's."""
        writers = self.locks.writers
        for span in self.spans:
            if np.count_nonzero(writers[span.start : span.stop]):
                self._find_poisoned()
                break
        if self.write:
            self._marked = True
            self._fill(writers, self.locks.pid)

    def _find_poisoned(self) -> None:
        found = [self.locks.writers[span.start : span.stop].copy() for span in self.spans]
        if not (self.locks.tolerant or (self.write and self.repair)):
            dead = np.concatenate(found)
            raise RegionPoisonedError(self.locks.name, str(self.where), int(dead[dead != 0][0]))
        self._left = found

    def _unmark(self, *, clean: bool) -> None:
        writers, left = self.locks.writers, self._left
        if clean or left is None:
            self._fill(writers, 0)
            return
        for span, old in zip(self.spans, left, strict=True):
            writers[span.start : span.stop] = old

    def _fill(self, array: npt.NDArray[Any], value: int) -> None:
        for span in self.spans:
            array[span.start : span.stop] = value

    # ------------------------------------------------------------------------- leaving

    def _leave(self, *, clean: bool, turnstile: bool = False) -> None:
        """Undo the completed steps of entering, shielded from interrupts."""
        if self.locks.usable:
            if self._marked:
                self._unmark(clean=clean)
            self._lock(fcntl.F_UNLCK, fcntl.F_OFD_SETLK)
            if turnstile:
                self._lock(fcntl.F_UNLCK, fcntl.F_OFD_SETLK, self.locks.cells)
        self._marked, self._left = False, None
        if self in self._held:
            self._held.remove(self)
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.remove()


class Quiet:
    """A block that waits up to a time limit until certain cells are not written.

    It ignores turnstiles and marks, and runs after the time limit in any case. ``as`` gives the
    cells that are still being written, each by itself.
    """

    __slots__ = ("_locks", "_seconds", "_spans")

    def __init__(self, locks: Locks, spans: Sequence[Span], seconds: float) -> None:
        self._locks, self._spans, self._seconds = locks, spans, seconds

    def __enter__(self) -> list[Span]:
        limit = time.monotonic() + self._seconds
        while not all(map(self._takes, self._spans)):
            self._leave()
            if time.monotonic() >= limit:
                return [cell for cell in self._cells() if not self._takes(cell)]
            time.sleep(_LOOK_SECONDS)
        return []

    def _cells(self) -> Iterator[Span]:
        for span in self._spans:
            for cell in range(span.start, span.stop):
                yield Span(cell, cell + 1)

    def _takes(self, span: Span) -> bool:
        try:
            self._lock(fcntl.F_RDLCK, span)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        for span in self._spans:
            self._lock(fcntl.F_UNLCK, span)

    def _lock(self, kind: int, span: Span) -> None:
        flock = _FLOCK(kind, 0, span.start, span.stop - span.start, 0)
        fcntl.fcntl(self._locks.fd, fcntl.F_OFD_SETLK, flock)


_LOOK_SECONDS = 0.002

# struct flock: kind, origin, first byte, length, pid (0 for locks of this sort)
_FLOCK = struct.Struct("hhqqi4x").pack

# ------------------------------------------------------------------------- what a thread holds


class _Here(threading.local):
    """The blocks that this thread holds, in the order of entering, and the ns that it waited."""

    def __init__(self) -> None:
        self.held: list[Hold[Any]] = []
        self.waited = 0


_here = _Here()


def _admit(wanted: Hold[Any], held: list[Hold[Any]]) -> bool:
    """True if this thread is in the table already; raises if it must not enter."""
    if not wanted.locks.usable:
        msg = (
            f"the locks of '{wanted.locks.name}' are closed, or were opened before this process "
            "was forked. Open them again."
        )
        raise ClosedError(msg)
    nested = False
    for other in held:
        if other.locks.pid == wanted.locks.pid and other.spans and wanted.spans:
            _compare(wanted, other)
            nested = nested or other.locks.order == wanted.locks.order
    return nested


def _compare(wanted: Hold[Any], held: Hold[Any]) -> None:
    before, after = held.locks.order, wanted.locks.order
    if before[1:] != after[1:]:
        wrong, same = before > after, False
    else:
        wrong = held.spans[-1].stop > wanted.spans[0].start
        same = wrong and _overlap(held.spans, wanted.spans)
    if wrong:
        raise LockOrderError(_described(wanted), _described(held), same)


def _overlap(left: Sequence[Span], right: Sequence[Span]) -> bool:
    return any(one.start < other.stop and other.start < one.stop for one in left for other in right)


def _described(hold: Hold[Any]) -> str:
    name = f"'{hold.locks.name}'" if hold.locks.name else "an array"
    where = str(hold.where)
    return f"{where} of {name}" if where else name


def held_here(table: locations.Memory) -> str:
    """The regions that this thread holds of a table, as text; "" for none."""
    place = table.device, table.inode
    found = (hold for hold in _here.held if hold.locks.order[1:] == place)
    return next(map(_described, found), "")


def waited_here() -> int:
    """How long this thread has waited for locks in all, in ns."""
    return _here.waited


def count_held() -> int:
    """The number of blocks that this thread is in."""
    return len(_here.held)


def abandon_held(before: int) -> str:
    """Leave all blocks but the first ``before``, as death would; returns the first one's text."""
    left = ""
    for hold in reversed(_here.held[before:]):
        left = _described(hold)
        hold.abandon()
    return left


_EXIT = Hold.__exit__.__code__
