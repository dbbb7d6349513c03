"""The handler of ``Partitioned``: blocks of arrays, and an array that takes the results."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from sharedtask.errors import ArgumentError
from sharedtask.memory.room import needed_for
from sharedtask.writing.checks import check_written, refuse_other_use
from sharedtask.writing.handler import BASE, COUNT, Handler, Part, Reach

from . import partitions
from .overlaps import check_overlap
from .partitions import INTO, TAKEN, Blocks, Partition
from .transport import ByCopy, Here, InPlace, Taken, WithBlocks, Working, accept_returned

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

    from sharedtask.outcomes import Batch
    from sharedtask.writing.handler import Entered, Stage, Wanted

    from .transport import Lender, Taker


class Blocking(Part):
    """The blocks of the items of a chunk; ``INTO`` among the values takes their results."""

    def __init__(self, values: Mapping[str, Any], chunk: Entered) -> None:
        lenders: dict[str, Lender] = dict(values)
        self._taker: Taker | None = cast("Any", lenders.pop(INTO, None))
        self._lenders = lenders
        self._returned = [name for name, lender in lenders.items() if lender.comes_back]
        self._chunk = chunk
        self._lent: dict[str, Any] = {}
        self.lends = bool(lenders)

    def before(self, item: Any) -> dict[str, Any]:
        """The item's blocks."""
        chunk = self._chunk
        at, star = chunk.first + chunk.position, chunk.star
        self._lent = {n: lender.lend(item, at, star=star) for n, lender in self._lenders.items()}
        return self._lent

    def after(self, value: Any) -> Any:
        """Write the result into its place; blocks that are copies go back with it."""
        back = {name: self._lent[name] for name in self._returned}
        if self._taker is not None:
            value = self._taker.take(self._chunk.first + self._chunk.position, value)
            if isinstance(value, WithBlocks):
                value, taken = value
                back.update(taken)
        return WithBlocks(value, back) if back else value

    def around(self, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The shortest way: results alone are written in a third of the time."""
        if self._taker is None and not self._returned:
            return call
        if self._lenders or not isinstance(self._taker, InPlace):
            return super().around(call)
        base, words, first = self._taker.base(), self._chunk.words, self._chunk.first

        def run(item: Any) -> bool:
            base[first + words[BASE] + words[COUNT]] = call(item)
            return TAKEN

        return run


class Cutting(Handler):
    """The partitioned arrays of a call, and the array that takes its results."""

    part = Blocking
    knows_items = True  # as no two blocks may overlap

    def __init__(self, blocks: Mapping[str, Blocks]) -> None:
        self.names = frozenset(blocks)
        self._blocks = blocks
        self._working: dict[str, Working] = {}
        self._reach = Reach.HERE

    @classmethod
    def plan(cls, wanted: Wanted) -> Cutting:
        """Find the block of each item in each array, and refuse what overlaps.

        Raises:
            ArgumentError: A value has no blocks that can be written, or an item names none.
            OverlapError: Two items would write to the same memory.
        """
        values = dict(wanted.values)
        into = values.pop(INTO, None)
        found = {name: _blocks_of(wanted, name, array) for name, array in values.items()}
        if into is not None:
            found[INTO] = _results_of(wanted, into)
        return cls(found)

    def separated(self, items: Iterable[Any]) -> Iterable[Any]:
        """The items, with copies of those that share memory with the arrays."""
        for blocks in self._blocks.values():
            items = separated(items, blocks.array)
        return items

    def open(self, stage: Stage) -> None:
        """Find the arrays in shared memory, or put copies of them there."""
        self._reach = stage.reach
        if stage.reach is Reach.MACHINE:
            for name, blocks in self._blocks.items():
                with needed_for(stage.task, f"{name!r} does not fit"):
                    self._working[name] = Working.of(blocks)

    def lend(self, name: str) -> Lender | Taker:
        """What provides an array's blocks, or takes the results."""
        if name in self._working:
            return self._working[name].lender()
        blocks = self._blocks[name]
        if self._reach is Reach.HERE:
            return Here(blocks)
        if name == INTO:
            return Taken(blocks.array.dtype, blocks.array.shape[1:])
        return ByCopy(blocks.array, blocks.by)

    def accept(self, batch: Batch) -> None:
        """Copy the blocks of succeeded items into the caller's arrays."""
        for working in self._working.values():
            working.accept(batch)
        if self._reach.copies:
            accept_returned(self._blocks, batch)


def _blocks_of(wanted: Wanted, name: str, array: npt.NDArray[Any]) -> Blocks:
    by = wanted.rules.get(name, Partition()).by
    check_written(array, name)
    refuse_other_use(wanted.task, name, array, wanted.shared)
    indices = partitions.indices_of(_named_by(wanted.items, by, star=wanted.star), by)
    check_overlap(array, indices, "item {}".format, name)
    return Blocks(array, by, indices)


def _results_of(wanted: Wanted, into: npt.NDArray[Any]) -> Blocks:
    """Result i is written to ``into[i]``."""
    check_written(into, "out")
    count = len(cast("Sequence[Any]", wanted.items))
    if not into.ndim or len(into) != count:
        msg = (
            f"{wanted.task}.map_into(): 'out' has shape {into.shape}, and there are {count} items. "
            "Its first axis must be as long as the items are many."
        )
        raise ArgumentError(msg)
    refuse_other_use(wanted.task, INTO, into, wanted.shared, said="out")
    return Blocks(into, None, range(count))


def separated(items: Iterable[Any], written: Any) -> Sequence[Any]:
    """Copies of items that share memory with arrays that tasks write.

    An array of items may be part of the written array, and so may each of a list of rows.
    """
    if isinstance(items, np.ndarray):
        return cast("Sequence[Any]", items.copy() if np.may_share_memory(items, written) else items)
    known = items if isinstance(items, (list, tuple, range)) else list(items)
    kinds = () if isinstance(known, range) else set(map(type, known))
    if not any(issubclass(kind, np.ndarray) for kind in kinds):
        return known
    return [
        item.copy() if isinstance(item, np.ndarray) and np.may_share_memory(item, written) else item
        for item in known
    ]


def _named_by(items: Iterable[Any], by: Any, *, star: bool) -> Sequence[Any]:
    """The names of the blocks: the items, or the first argument of each."""
    if star and by is None:
        return [_first(position, item) for position, item in enumerate(items)]
    return list(items)


def _first(position: int, item: Any) -> Any:
    try:
        return item[0]
    except (IndexError, KeyError, TypeError):
        msg = (
            f"item {position}, {reprlib.repr(item)}: an item of starmap is a tuple, and its first "
            "element names the block."
        )
        raise ArgumentError(msg) from None
