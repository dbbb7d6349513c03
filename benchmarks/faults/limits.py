"""A limit for a call that may never come back: what Ctrl-C is to somebody who waits for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any, NoReturn

LIMIT = 7.0  # seconds for each call


class NoAnswerError(BaseException):
    """Raised in the main thread when the time is over; nobody's ``except Exception`` takes it."""


def give_up(*_: Any) -> NoReturn:
    raise NoAnswerError


@contextlib.contextmanager
def limited(seconds: float = LIMIT) -> Iterator[None]:
    """Interrupt the block after that many seconds."""
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
