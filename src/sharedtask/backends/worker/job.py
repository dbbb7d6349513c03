"""A chunk received by a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Job(NamedTuple):
    """A received chunk. ``body`` contains the constants and the items in the format ``mode``.

    ``attachments`` gives the descriptors or payloads sent with the message; ``poll_cancel`` is
    called between items, with ``singly`` before each item, and returns whether the chunk ends here.
    ``slot`` is the accumulator slot. ``call`` is the number of the call, None if each chunk begins
    as a call does; ``within`` is that number in any case.
    """

    number: int
    first: int
    items: int
    mode: int
    header: bytes
    body: memoryview
    attachments: Iterator[Any]
    poll_cancel: Callable[[], bool]
    slot: int = 0
    singly: bool = False
    call: int | None = None
    within: int = 0
