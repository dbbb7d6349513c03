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


class Holders:
    """What is known from the answers of workers."""

    def __init__(self) -> None:
        self._workers: set[str] = set()
        self._holders: OrderedDict[int, set[str]] = OrderedDict()

    def all_have(self, tokens: Iterable[int]) -> bool:
        """Whether every worker that was seen has all of these values."""
        found = [self._holders.get(token, set()) for token in tokens]
        return bool(self._workers) and all(self._workers <= holders for holders in found)

    def note(self, worker: str, tokens: Iterable[int]) -> None:
        """A worker ran a chunk with these values."""
        self._workers.add(worker)
        for token in tokens:
            self._holders.setdefault(token, set()).add(worker)
            self._holders.move_to_end(token)
        while len(self._holders) > _TOKENS_KEPT:
            self._holders.popitem(last=False)

    def note_missing(self, worker: str, tokens: Iterable[int]) -> None:
        """A worker lacks one of these values: it is new, or has let it go."""
        self._workers.add(worker)
        for token in tokens:
            self._holders.get(token, set()).discard(worker)

    def forget(self, token: int) -> None:
        """The value is needed no more."""
        self._holders.pop(token, None)

    def forget_workers(self) -> None:
        """A worker died: who is there shows anew."""
        self._workers.clear()
        self._holders.clear()
