"""Times a chunk in its worker, for a call that is traced; loaded by the first one.

What it tells goes along with the chunk's last results.
"""

from __future__ import annotations

import marshal
import os
import time
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .limits import private_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ChunkClock", "Told", "read"]

# Of a chunk so many items are told one by one: evenly spread ones, and the slowest.
_SPREAD, _SLOWEST = 64, 5


class Told(NamedTuple):
    """What a worker tells of a chunk; all times are of CLOCK_MONOTONIC, in ns.

    ``marks`` are phases and their beginnings. ``quantiles`` are minimum, median, 95 % and maximum
    of the items' durations. ``positions``, ``starts`` and ``stops`` are those of some items.
    ``decodings`` are (token, begin, end, bytes of the pickle, bytes mapped).
    """

    pid: int
    name: str
    node: str
    marks: list[tuple[str, int]]
    ended: int
    ran: int
    total: int
    quantiles: tuple[int, ...]
    positions: list[int]
    starts: list[int]
    stops: list[int]
    by_message: int
    beside: int
    private: int
    locked: int
    decodings: list[tuple[Any, int, int, int, int]]


def read(data: bytes) -> Told:
    """What ``ChunkClock.told`` has written."""
    return Told(*marshal.loads(data))


class ChunkClock:
    """See ``observing.Clock``. ``name`` is that of the worker among those of this process."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._marks = [("decode", time.monotonic_ns())]
        self._times = array("q")
        self._by_message = self._beside = 0
        self._decodings: list[tuple[Any, int, int, int, int]] = []

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._marks.append((phase, time.monotonic_ns()))

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call of one item, with its time taken: 0.3 us each."""
        now, note = time.monotonic_ns, self._times.append

        def timed(*args: Any) -> Any:
            began = now()
            try:
                return call(*args)
            finally:
                ended = now()
                note(began)
                note(ended)

        return timed

    def sent(self, nbytes: int, beside: int) -> None:
        """Results were sent."""
        self._by_message += nbytes
        self._beside += beside

    def note_decoding(self, token: Any, began: float, head: int, mapped: int) -> None:
        """A value was decoded just now."""
        self._decodings.append((token, int(began * 1e9), time.monotonic_ns(), head, mapped))

    def told(self) -> bytes:
        """What was timed, as bytes."""
        times = np.frombuffer(self._times, np.int64).reshape(-1, 2) if self._times else _NONE
        durations = times[:, 1] - times[:, 0]
        order = np.argsort(durations)
        positions = _told_of(len(times), order)
        quantiles = tuple(int(durations[k]) for k in _places(order)) if len(times) else ()
        return marshal.dumps(
            (
                os.getpid(),
                self._name,
                os.uname().nodename,
                self._marks,
                time.monotonic_ns(),
                len(times),
                int(durations.sum()),
                quantiles,
                positions,
                times[positions, 0].tolist(),
                times[positions, 1].tolist(),
                self._by_message,
                self._beside,
                private_bytes() or 0,
                0,
                self._decodings,
            )
        )


_NONE = np.empty((0, 2), np.int64)


def _places(order: Any) -> tuple[Any, ...]:
    """The items of which the minimum, the median, 95 % and the maximum are."""
    last = len(order) - 1
    return order[0], order[last // 2], order[round(last * 0.95)], order[last]


def _told_of(count: int, order: Any) -> list[int]:
    """The positions of the items that are told one by one."""
    if count <= _SPREAD:
        return list(range(count))
    spread = set(range(0, count, -(-count // _SPREAD)))
    return sorted(spread | set(order[-_SLOWEST:].tolist()))
