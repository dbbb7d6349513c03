"""The accumulators of a chunk, updated between its items and their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sharedtask.writing.reduced.accumulators import keep_all, result_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sharedtask.outcomes import Partial
    from sharedtask.worker.job import Job
    from sharedtask.writing.reduced.accumulators import Accumulator

    from .result_writer import Outbox


class Adders:
    """The accumulators that the items of one chunk add to, of all parameters."""

    def __init__(self, accumulators: Mapping[str, Accumulator], outbox: Outbox, job: Job) -> None:
        self._accumulators = accumulators
        self._outbox = outbox
        outbox.on_refusal = self.take_back
        for accumulator in accumulators.values():
            accumulator.enter(job.slot, job.number)

    def lend(self) -> dict[str, Any]:
        """The accumulators for the next item."""
        return {name: accumulator.lend() for name, accumulator in self._accumulators.items()}

    def keep(self) -> None:
        """Called after the item has returned, before its result is recorded."""
        keep_all(self._accumulators.values(), self._outbox.position)

    def take_back(self) -> None:
        """The item that returned last counts as failed."""
        for accumulator in self._accumulators.values():
            accumulator.take_back()

    def result(self, first: int, count: int) -> Partial | None:
        """The partial result of the chunk, if the memory is this worker's own."""
        return result_of(self._accumulators, first, count)
