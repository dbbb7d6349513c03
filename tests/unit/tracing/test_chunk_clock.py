"""What a worker tells of the items of a chunk, and how the times of calls add up."""

import time
from typing import Any

import pytest

from sharedtask.backends.worker import chunk_clock
from sharedtask.backends.worker.chunk_clock import ChunkClock, read
from sharedtask.tracing import leases
from sharedtask.tracing.accounts import Openings


def timed(monkeypatch: pytest.MonkeyPatch, durations: list[int]) -> chunk_clock.Told:
    """What is told of items that took so many ns each, one after the other."""
    now = [0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: now[0])

    def item(duration: int) -> None:
        now[0] += duration

    clock = ChunkClock()
    call: Any = clock.around(item)
    for duration in durations:
        call(duration)
    return read(clock.told())


def test_quantiles_are_of_all_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minimum, median, 95 % and maximum count items that are not told one by one as well."""
    told = timed(monkeypatch, [*range(1000, 0, -1)])
    assert (1, 500, 950, 1000) == told.quantiles
    assert (1000, 500_500) == (told.ran, told.total)


def test_slowest_items_of_a_large_chunk_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand items some are told one by one: spread ones, and always the five slowest."""
    slow = [501, 17, 998, 333, 2]
    told = timed(monkeypatch, [10_000 + k if k in slow else 1 for k in range(1000)])
    assert set(slow) <= set(told.positions)
    assert 64 <= len(told.positions) <= 70
    spent = {p: b - a for p, a, b in zip(told.positions, told.starts, told.stops, strict=True)}
    assert 10_501 == spent[501]


def test_time_with_a_call_open_is_counted_once() -> None:
    """Calls that overlap count once, and the time between calls not at all."""
    openings = Openings()
    openings.begin(1.0)
    openings.begin(2.0)
    openings.end(3.0)
    openings.end(4.0)
    openings.begin(6.0)
    assert 3.0 + 1.0 == openings.within(0.0, 7.0)
    assert 0.5 + 0.5 == openings.within(3.5, 6.5)
    openings.end(8.0)
    assert 2.0 == openings.within(5.0, 9.0)


@pytest.mark.parametrize(
    ("was_known", "was_evicted", "had", "reason"),
    [
        (True, False, True, "changed"),
        (False, True, True, "evicted"),
        (False, False, True, "dead"),
        (False, False, False, "new"),
    ],
)
def test_reason_of_a_miss(was_known: bool, was_evicted: bool, had: bool, reason: str) -> None:
    """A value that was given up is told from one that changed, that has gone, or that is new."""
    note = leases.Note(0.0, 0.0, 0.0, was_known, was_evicted)
    assert reason == leases._reason(note, known=had)
