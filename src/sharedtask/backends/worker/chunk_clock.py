"""Times a chunk in its worker, for a call that is traced; loaded by the first one.

What it tells goes along with the chunk's last results. The worker notes plain numbers: sums and
quantiles are made when the trace is read, unless the chunk is so large that they are shorter.

A worker that comes back from its wait for the next chunk finds cold caches: each function that is
entered, and each object that is made, costs several times what a loop over them shows.
"""

from __future__ import annotations

import marshal
import os
import time
from array import array
from operator import sub
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharedtask import observing
from sharedtask.system import cpu_time
from sharedtask.writing.locked.rwlock import waited_here

from .limits import private_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .inner_calls import InnerCalls

__all__ = ["ChunkClock", "Told", "durations_of", "read"]

# Of a chunk so many items are told one by one: evenly spread ones, and the slowest.
_SPREAD, _SLOWEST = 64, 5
_MOST_RAW = 512  # items whose times travel as they are
_LONGEST_BYTES = 8
# Threads are counted where others than the one that runs items took a fifth of the time of cores,
# and more than the rounding of the two clocks.
_MUCH, _ROUNDING_NS = 5, 50_000
_LOOK_NS = 20_000_000  # between two looks at the memory, each of which takes some 10 us


class Told(NamedTuple):
    """What a worker tells of a chunk; all times are of CLOCK_MONOTONIC, in ns.

    ``marks`` are phases and their beginnings. ``cpu`` is the time that cores worked for the items,
    ``own_cpu`` that of the thread that ran them. ``yielded`` and ``preempted`` count how often that
    thread left its core to wait for something, and because others wanted it. ``threads`` is how
    many the process has, or 1 if others than that thread did little. ``locked`` is the time of
    waiting for locks. ``private`` is the private memory, as it was at most 20 ms before.
    ``inner`` and ``more_inner``: see ``InnerCalls``.
    ``decodings`` are (token, begin, end, bytes of the pickle, bytes mapped, objects).
    ``quantiles`` are minimum, median, 95 % and maximum of the items' durations. ``positions``,
    ``starts`` and ``stops`` are those of some items.
    """

    pid: int
    name: str
    node: str
    marks: list[tuple[str, int]]
    ended: int
    cpu: int
    own_cpu: int
    yielded: int
    preempted: int
    threads: int
    locked: int
    by_message: int
    beside: int
    private: int
    decodings: list[tuple[Any, int, int, int, int, int]]
    inner: list[tuple[str, str, str, int, int, int]]
    more_inner: int
    ran: int
    total: int
    quantiles: tuple[int, ...]
    positions: list[int]
    starts: list[int]
    stops: list[int]


def read(data: bytes) -> Told:
    """What ``ChunkClock.told`` has written."""
    *told, times = marshal.loads(memoryview(data)[_LONGEST_BYTES:])
    return Told(*told, *(_summed(array("q", times)) if isinstance(times, bytes) else times))


def durations_of(data: bytes) -> tuple[list[int], list[int]]:
    """The positions of the items that are told one by one, and their durations in ns."""
    *_, times = marshal.loads(memoryview(data)[_LONGEST_BYTES:])
    if isinstance(times, bytes):
        both = array("q", times)
        return [*range(len(both) // 2)], [*map(sub, both[1::2], both[::2])]
    *_, positions, starts, stops = times
    return positions, [*map(sub, stops, starts)]


class ChunkClock:
    """See ``observing.Clock``. A worker process has one, which ``begin`` sets for each chunk.

    ``name`` is that of the worker among those of this process. ``inner`` has the maps that the
    items make, if this process is a worker.
    """

    def __init__(self, name: str = "", inner: InnerCalls | None = None) -> None:
        self._name = name
        self._inner = inner
        self.begin()

    def begin(self) -> None:
        """A chunk begins."""
        self._marks = [("decode", time.monotonic_ns())]
        self._times = array("q")
        self._by_message = self._beside = 0
        self._decodings: list[tuple[Any, int, int, int, int, int]] = []
        self._before: tuple[int, ...] = ()
        self._spent: tuple[int, ...] = (0, 0, 0, 0, 0)
        if observing.recorder is None:
            observing.recorder = self._inner

    def enter(self, phase: str) -> None:
        """A phase begins."""
        if self._before:
            self._end_items()
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

    def compute(self) -> None:
        """Items run from now on, in this thread."""
        self._marks.append(("compute", time.monotonic_ns()))
        self._before = (*cpu_time.spent(), waited_here())

    def _end_items(self) -> None:
        now, self._before, before = (*cpu_time.spent(), waited_here()), (), self._before
        self._spent = tuple(map(sub, now, before))

    def sent(self, nbytes: int, beside: int) -> None:
        """Results were sent."""
        self._by_message += nbytes
        self._beside += beside

    def note_decoding(self, token: Any, began: float, head: int, mapped: int, objects: int) -> None:
        """A value was decoded just now."""
        ended = time.monotonic_ns()
        self._decodings.append((token, int(began * 1e9), ended, head, mapped, objects))

    def leave(self) -> None:
        """The chunk is over, and was told."""
        inner = self._inner
        if inner is not None:
            if observing.recorder is inner:
                observing.recorder = None
            if inner.made:
                inner.clear()

    def told(self) -> bytes:
        """What was timed, as bytes: the larger ones are those of a chunk with a longer item."""
        if self._before:
            self._end_items()
        cpu, own, yielded, preempted, locked = self._spent
        others, inner, times, now = cpu - own, self._inner, self._times, time.monotonic_ns()
        longest = max(map(sub, times[1::2], times[::2]), default=0)
        return longest.to_bytes(_LONGEST_BYTES, "big") + marshal.dumps(
            (
                os.getpid(),
                self._name,
                _machine.node,
                self._marks,
                now,
                own if self._name else cpu,  # a thread has others beside it, with items of theirs
                own,
                yielded,
                preempted,
                _threads_of_process()
                if others > cpu // _MUCH and others > _ROUNDING_NS and not self._name
                else 1,
                locked,
                self._by_message,
                self._beside,
                _machine.private if now < _machine.look_after else _machine.look(now),
                self._decodings,
                () if inner is None else inner.made,
                0 if inner is None else inner.more,
                times.tobytes() if len(times) <= 2 * _MOST_RAW else _summed(times),
            )
        )


def _threads_of_process() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # /proc is not mounted
        return 1


class _Machine:
    """What is told of the process, and need not be asked at each chunk."""

    def __init__(self) -> None:
        self.node = os.uname().nodename
        self.look_after = self.private = 0

    def look(self, now: int) -> int:
        """Look at the private memory of the process."""
        self.look_after = now + _LOOK_NS
        self.private = private_bytes() or 0
        return self.private


_machine = _Machine()


_Times = tuple[int, int, tuple[int, ...], list[int], list[int], list[int]]


def _summed(times: array[int]) -> _Times:
    """The last fields of ``Told``: all items of a small chunk, of a large one some of them."""
    if len(times) <= 2 * _SPREAD:
        return _listed(times[::2].tolist(), times[1::2].tolist())
    table = np.frombuffer(times, np.int64).reshape(-1, 2)
    durations = table[:, 1] - table[:, 0]
    order = np.argsort(durations)
    spread = set(range(0, len(table), -(-len(table) // _SPREAD)))
    positions = sorted(spread | set(order[-_SLOWEST:].tolist()))
    quantiles = _quantiles(durations[order].tolist())
    starts, stops = table[positions, 0].tolist(), table[positions, 1].tolist()
    return len(table), int(durations.sum()), quantiles, positions, starts, stops


def _listed(starts: list[int], stops: list[int]) -> _Times:
    durations = sorted(map(sub, stops, starts))
    return len(starts), sum(durations), _quantiles(durations), [*range(len(starts))], starts, stops


def _quantiles(ordered: list[int]) -> tuple[int, ...]:
    """The minimum, the median, 95 % and the maximum."""
    last = len(ordered) - 1
    return tuple(ordered[k] for k in (0, last // 2, round(last * 0.95), last)) if ordered else ()
