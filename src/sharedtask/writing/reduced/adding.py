"""The accumulators of a chunk, updated between its items and their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.writing.handler import Part

from .accumulators import keep_all, result_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sharedtask.outcomes import Partial
    from sharedtask.writing.handler import Entered

    from .accumulators import Accumulator


class Adders(Part):
    """The accumulators that the items of one chunk add to, of all parameters."""

    lends = True

    def __init__(self, values: Mapping[str, Accumulator], chunk: Entered) -> None:
        self._accumulators = values
        self._chunk = chunk
        for accumulator in values.values():
            accumulator.enter(chunk.slot, chunk.number)

    def before(self, item: Any) -> dict[str, Any]:
        """The accumulators for the next item."""
        del item
        return {name: accumulator.lend() for name, accumulator in self._accumulators.items()}

    def after(self, value: Any) -> Any:
        """Keep the item's contributions."""
        keep_all(self._accumulators.values(), self._chunk.position)
        return value

    def take_back(self) -> None:
        """Drop the contributions of the item that returned last."""
        for accumulator in self._accumulators.values():
            accumulator.take_back()

    def leave(self, count: int) -> Partial | None:
        """The partial result of the chunk, if the memory is this worker's own."""
        return result_of(self._accumulators, self._chunk.first, count)
