"""Which workers have decoded which value, so that it need not be passed again.

An argument costs a millisecond for every task, even if its object is on the worker's node. A
worker that lacks a value reports that and gets it with the second attempt.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKENS_KEPT = 1024
_WARY = 8


class Holders:
    """Values that workers have, as known from their answers."""

    def __init__(self) -> None:
        self._wary = 0  # number of chunks that get the values in any case
        self._holders: OrderedDict[int, set[str]] = OrderedDict()

    def enough_have(self, tokens: Iterable[int], running: int) -> bool:
        """Whether enough workers have all of these values for the chunks in flight.

        Ray gives a task to the worker that became idle last, which is most likely one of them.
        """
        if self._wary:
            self._wary -= 1
            return False
        found = [self._holders.get(token, set()) for token in tokens]
        return bool(found) and len(set.intersection(*found)) >= running

    def note(self, worker: str, tokens: Iterable[int]) -> None:
        """A worker ran a chunk with these values."""
        for token in tokens:
            self._holders.setdefault(token, set()).add(worker)
            self._holders.move_to_end(token)
        while len(self._holders) > _TOKENS_KEPT:
            self._holders.popitem(last=False)

    def note_missing(self, worker: str, tokens: Iterable[int]) -> None:
        """A worker lacks one of these values: it is new, or has dropped it."""
        self._wary = _WARY
        for token in tokens:
            self._holders.get(token, set()).discard(worker)

    def forget(self, token: int) -> None:
        """The value is not needed any more."""
        self._holders.pop(token, None)

    def forget_workers(self) -> None:
        """A worker died: forget all; later answers show which remain."""
        self._holders.clear()
