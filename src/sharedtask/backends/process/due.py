"""Calls that are due in some milliseconds, in the thread that runs the loop."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

from sharedtask.system import critical_sections

if TYPE_CHECKING:
    from collections.abc import Callable

_SOON_SECONDS = 0.003
# A burst of calls does not wake the loop each time: so long after each it turns often by itself.
_OFTEN_SECONDS = 0.05


class Due:
    """Calls in the order in which they are due."""

    def __init__(self, turn_soon: Callable[[], object]) -> None:
        self._turn_soon = turn_soon
        self._calls: deque[tuple[float, Callable[[], object]]] = deque()
        self._often_until = 0.0
        self._is_over = False

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, call: Callable[[], object]) -> None:
        """Call this in some milliseconds, or now where ``end`` was called."""
        now = time.monotonic()
        self._calls.append((now + _SOON_SECONDS, call))
        if self._is_over:  # thread 1 adds and then looks, thread 2 ends and then calls
            self._call_until(math.inf)
        was_known, self._often_until = now < self._often_until, now + _OFTEN_SECONDS
        if not was_known:
            self._turn_soon()

    def seconds_left(self, now: float) -> float:
        """How long the loop may wait."""
        return _SOON_SECONDS if now < self._often_until else math.inf

    def call(self) -> None:
        """Call what is due now."""
        if self._calls:
            self._call_until(time.monotonic())

    def end(self) -> None:
        """Call all: there will be no later."""
        self._is_over = True
        self._call_until(math.inf)

    def _call_until(self, now: float) -> None:
        while self._calls and self._calls[0][0] <= now:
            due = critical_sections.first_of(self._calls)
            if due is not None:
                due[1]()
