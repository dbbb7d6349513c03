"""A chunk as it arrives in a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Job(NamedTuple):
    """A chunk on arrival. ``body`` holds the constants and the items, as ``mode`` says.

    ``beside`` gives what travelled beside the message; ``heed`` is asked between items whether the
    chunk ends here; with ``singly`` before each item. ``slot`` is where to add up. ``call`` is the
    number of the call, None where each chunk begins as a call does.
    """

    number: int
    first: int
    items: int
    mode: int
    head: bytes
    body: memoryview
    beside: Iterator[Any]
    heed: Callable[[], bool]
    slot: int = 0
    singly: bool = False
    call: int | None = None
