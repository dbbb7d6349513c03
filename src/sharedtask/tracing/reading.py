"""What a worker told of a chunk, as records.

``zero`` is the time at which the trace began, by the clock of the worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .records import Call, Decoding, Item, Span, Times

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from sharedtask.backends.worker.chunk_clock import Told

__all__ = ["core_wait", "decodings", "inner_calls", "items", "shift_of", "spans", "times"]


def _at(monotonic_ns: int, zero: float) -> float:
    return max(monotonic_ns / 1e9 - zero, 0.0)


def spans(told: Told, zero: float) -> tuple[Span, ...]:
    """The phases of a chunk.

    Items do not say when they waited for locks: all of that comes after their own time. What they
    did not take of "compute" is that of results.
    """
    found: list[Span] = []
    for (phase, start), (_, stop) in itertools.pairwise((*told.marks, ("", told.ended))):
        began, ended = _at(start, zero), _at(stop, zero)
        if phase == "compute":
            taken = min(began + told.total / 1e9, ended)
            computed = max(taken - told.locked / 1e9, began)
            found.append(Span(phase, began, computed))
            if told.locked:
                found.append(Span("lock", computed, taken))
            found.append(Span("report", taken, ended))
        else:
            found.append(Span(phase, began, ended))
    return tuple(found)


def times(told: Told) -> Times:
    """The distribution of the items' times."""
    numbers = (told.total, *(told.quantiles or (0, 0, 0, 0)))
    return Times(told.ran, *(number / 1e9 for number in numbers))


def items(told: Told, call: int, first: int, worker: int, zero: float) -> Iterator[Item]:
    """The items that were told one by one."""
    for position, start, stop in zip(told.positions, told.starts, told.stops, strict=True):
        yield Item(call, first + position, worker, _at(start, zero), _at(stop, zero))


def decodings(
    told: Told, call: int, names: Mapping[Any, str], worker: int, zero: float
) -> Iterator[Decoding]:
    """What was decoded before the items ran; of the caller's settings there is no name."""
    for token, start, stop, head, mapped, objects in told.decodings:
        if token in names:
            began, ended = _at(start, zero), _at(stop, zero)
            yield Decoding(call, worker, names[token], began, ended, head, mapped, objects)


def inner_calls(told: Told, worker: int, zero: float, cpus: int) -> Iterator[Call]:
    """The maps that items made inside their worker; of their items' times the mean is known."""
    for task, method, place, began, ended, count in told.inner:
        start, stop = _at(began, zero), _at(ended, zero)
        seconds = stop - start
        own = Times(count, seconds, *[seconds / count if count else 0.0] * 4)
        yield Call(
            0,
            task,
            method,
            "serial",
            place,
            worker,
            start=start,
            stop=stop,
            cpus=cpus,
            phases={"wait": seconds},
            items=count,
            times=own,
        )


def core_wait(told: Told) -> int:
    """About how many ns the items waited for a core.

    That is all time without a core, if the thread left it for others more often than to wait for
    something.
    """
    if told.preempted <= told.yielded:
        return 0
    return max(told.total - told.locked - told.own_cpu, 0)


def shift_of(told: Told, sent: float, received: float) -> float:
    """Seconds to add to the times of a worker on another machine, whose clock is another one."""
    start, stop = told.marks[0][1] / 1e9, told.ended / 1e9
    if sent <= start and stop <= received:
        return 0.0
    return received - stop
