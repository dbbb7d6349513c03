"""The handler of ``Reduced``: accumulators in the workers, combined in the caller."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Any

from sharedtask.writing.checks import check_written, refuse_other_use
from sharedtask.writing.handler import Handler, Reach

from .accumulators import Accumulator, AccumulatorLayout, Merger
from .adding import Adders
from .operations import Reduction, Total, operation
from .slot_table import SlotTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sharedtask.options import Options
    from sharedtask.outcomes import Batch
    from sharedtask.writing.handler import Stage, Wanted

_BLOCKS, _LONGEST_BLOCK = 64, 4096


class Reducing(Handler):
    """The totals that the tasks of a call add to.

    If ``itemwise``, each item adds to an array of its own, so that a failed item adds nothing. If
    ``final``, no item is run again.
    """

    part = Adders
    comes_at_end = True

    def __init__(
        self, totals: Mapping[str, Total], block: int | None, *, itemwise: bool, final: bool
    ) -> None:
        self.names, self.block = frozenset(totals), block
        self._layouts = AccumulatorLayout.all_of(totals, itemwise=itemwise)
        self._merger = Merger(totals, block, stops=final)
        self._slot_table: SlotTable | None = None

    @classmethod
    def plan(cls, wanted: Wanted) -> Reducing:
        """Determine how the tasks' contributions are combined into each array.

        Raises:
            ArgumentError: A value is no writable array, or the operation does not fit it.
        """
        for name, array in wanted.values.items():
            check_written(array, name)
            refuse_other_use(wanted.task, name, array, wanted.written)
        rules = {name: wanted.rules.get(name, Reduction()) for name in wanted.values}
        totals = {
            name: Total(array, operation(rules[name], array, name))
            for name, array in wanted.values.items()
        }
        options = wanted.options
        final = not options.return_exceptions and not options.retries
        ordered = any(rule.deterministic for rule in rules.values())
        block = _block_length(wanted.items, options) if ordered else None
        return cls(totals, block, itemwise=ordered or not final, final=final)

    def open(self, stage: Stage) -> None:
        """Make the accumulators of all workers, if they share memory with the caller."""
        if stage.reach is Reach.MACHINE:
            ordered = self.block is not None
            self.slot_table = self._slot_table = SlotTable(
                stage.task, self._layouts, self._merger, stage.workers, ordered=ordered
            )

    def lend(self, name: str) -> Accumulator:
        """The accumulator of a parameter."""
        if self._slot_table is not None:
            return self._slot_table.accumulator(name)
        return Accumulator(self._layouts[name])

    def accept(self, batch: Batch) -> None:
        """Combine what has come; the function may be the user's."""
        if self._slot_table is not None:
            self._slot_table.take()
        else:
            self._merger.add(batch.partial)

    def finish(self) -> None:
        """Complete the caller's totals."""
        if self._slot_table is not None:
            self._slot_table.finish()
        else:
            self._merger.finish()


def _block_length(items: Iterable[Any], options: Options) -> int:
    """Number of items to combine first; depends only on their count and the user's options."""
    if options.chunksize != "auto":
        length = int(options.chunksize)
    elif isinstance(items, Sized):
        length = min(max(-(-len(items) // _BLOCKS), 1), _LONGEST_BLOCK)
    else:
        length = _BLOCKS
    return min(length, options.buffersize or length)
