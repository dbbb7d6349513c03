"""Which workers have made something of which value, so that it need not be handed over again.

An argument costs a millisecond for every task, even where its object lies beside the worker. A
worker that turns out not to have a value says so and gets it with the second attempt.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKENS_KEPT = 1024
_WARY = 8


class Holders:
    """What is known from the answers of workers."""

    def __init__(self) -> None:
        self._wary = 0  # chunks that get the values in any case
        self._holders: OrderedDict[int, set[str]] = OrderedDict()

    def enough_have(self, tokens: Iterable[int], running: int) -> bool:
        """Whether so many workers have all of these values that each chunk under way may have one.

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
        """A worker lacks one of these values: it is new, or has let it go."""
        self._wary = _WARY
        for token in tokens:
            self._holders.get(token, set()).discard(worker)

    def forget(self, token: int) -> None:
        """The value is needed no more."""
        self._holders.pop(token, None)

    def forget_workers(self) -> None:
        """A worker died: who is there shows anew."""
        self._holders.clear()
