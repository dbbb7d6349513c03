"""What a worker tells of the items of a chunk, and how the times of calls add up."""

import time
from typing import Any

import pytest

from sharedtask.backends.worker import chunk_clock
from sharedtask.backends.worker.chunk_clock import ChunkClock, read
from sharedtask.system import cpu_time
from sharedtask.tracing import leases
from sharedtask.tracing.accounts import Account, Openings
from sharedtask.tracing.records import Span


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


def test_small_chunks_are_summed_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker sends the times of some hundred items as they are; the slowest come first."""

    def refused(_: object) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(chunk_clock, "_summed", refused)
        now = iter(range(0, 10**6, 7))
        patch.setattr(time, "monotonic_ns", lambda: next(now))
        clock = ChunkClock()
        call: Any = clock.around(abs)
        for number in range(300):
            call(number)
        small = clock.told()
    assert 300 == read(small).ran
    assert 64 <= len(read(small).positions) <= 70
    assert ([*range(300)], [7] * 300) == chunk_clock.durations_of(small)


def test_bytes_of_a_slower_chunk_are_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is in the order of the slowest items, without being read."""
    told = []
    for longest in (3, 300, 70_000, 5_000_000_000):
        clock = ChunkClock()
        clock._times.extend((10, 12, 10, 10 + longest))
        told.append(clock.told())
    assert sorted(told) == told


def test_time_of_cores_is_not_that_of_the_last_tick() -> None:
    """All that this process uses within a tick is told as its only thread's."""
    process = thread = 0
    for _ in range(40):
        before = cpu_time.spent()
        until = time.process_time_ns() + 200_000
        while time.process_time_ns() < until:
            pass
        after = cpu_time.spent()
        process, thread = process + after[0] - before[0], thread + after[1] - before[1]
    assert thread == pytest.approx(process, rel=0.1)


@pytest.mark.parametrize(
    ("spent", "looks"),
    [((1_000_000, 990_000), 0), ((60_000, 20_000), 0), ((2_000_000, 1_000_000), 1)],
)
def test_threads_are_counted_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, spent: tuple[int, int], looks: int
) -> None:
    """Only if others than the thread of the items took much: counting costs as much as a chunk."""
    counted: list[int] = []

    def count() -> int:
        counted.append(1)
        return 4

    monkeypatch.setattr(chunk_clock, "_threads_of_process", count)
    turns = iter([(0, 0, 0, 0), (*spent, 0, 0)])
    monkeypatch.setattr("sharedtask.system.cpu_time.spent", lambda: next(turns))
    clock = ChunkClock()
    clock.compute()
    told = read(clock.told())
    assert looks == len(counted)
    assert (4 if looks else 1, *spent) == (told.threads, told.cpu, told.own_cpu)


def test_worker_whose_start_is_noted_after_its_first_chunk() -> None:
    """Nothing of the chunk is lost where the caller was slower than its new worker."""
    account = Account(0, "process", 1, "", start=5.0, until=5.0, is_new=True)
    account.pass_to(3.0, 2.0, Openings())
    account.take([Span("decode", 3.0, 4.0), Span("compute", 4.0, 7.0)])
    assert {"decode": 1.0, "compute": 3.0} == account.phases
    assert (3.0, 7.0) == (account.start, account.until)


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
