"""How many waiting items go out together."""

import pytest

from sharedtask.backends.base import CLOSED_SESSION
from sharedtask.task.gathering import (
    AHEAD,
    GATHER_SECONDS,
    LARGEST,
    QUICK_SECONDS,
    gathers,
    next_size,
)


def test_nothing_waits_nothing_is_sent() -> None:
    """Without items there is no chunk."""
    assert 0 == next_size(0, 0, 4, None)


@pytest.mark.parametrize("flying", range(6))
def test_unknown_items_are_sent_one_by_one(flying: int) -> None:
    """Until the time of an item is known, each worker gets one."""
    assert int(flying < 4) == next_size(100, flying, 4, None)


@pytest.mark.parametrize("flying", range(10))
def test_slow_items_are_sent_one_by_one(flying: int) -> None:
    """Of slow items one runs in each worker, and one waits in its socket."""
    assert int(flying < 4 * AHEAD) == next_size(100, flying, 4, 2 * QUICK_SECONDS)


def test_quick_items_go_together() -> None:
    """What waits is one chunk while no other is in flight."""
    assert 7 == next_size(7, 0, 4, 1e-5)


def test_little_work_waits_for_the_chunk_in_flight() -> None:
    """Some microseconds of work wake no other worker."""
    assert 0 == next_size(7, 1, 4, 1e-5)


def test_much_work_goes_to_other_workers() -> None:
    """Work that takes as long as a wake-up, or more, does not wait, up to two chunks a worker."""
    assert [100] * 8 + [0] == [next_size(100, flying, 4, 1e-5) for flying in range(9)]


def test_chunk_is_bounded_by_time_and_count() -> None:
    """No chunk takes much longer than two milliseconds, or has more items than the most."""
    assert 20 == next_size(10_000, 0, 4, 1e-4)
    assert LARGEST == next_size(10_000, 0, 4, 1e-9)


@pytest.mark.parametrize(
    ("expected", "waiting", "flying", "since", "seconds"),
    [
        (True, 1, 1, 0.0, 1e-5),
        (True, 2, 0, 0.0, 1e-5),
        (False, 1, 0, 0.0, 1e-5),
        (False, 0, 1, 0.0, 1e-5),
        (False, 1, 1, 0.0, None),
        (False, 1, 1, 0.0, 2 * QUICK_SECONDS),
        (False, 1, 1, GATHER_SECONDS, 1e-5),
        (False, LARGEST, 1, 0.0, 1e-9),
        (False, 21, 1, 0.0, 1e-4),
    ],
)
def test_quick_items_wait_a_moment_for_others(
    expected: bool, waiting: int, flying: int, since: float, seconds: float | None
) -> None:
    """Not one alone, unknown or slow ones, longer than the moment, or enough work for a chunk."""
    assert expected == gathers(waiting, flying, since, seconds)


def test_closed_session_schedules_nothing() -> None:
    """A late report may find the session closed: the thread that serves the workers goes on."""
    called: list[int] = []
    CLOSED_SESSION.soon(lambda: called.append(1))
    assert [] == called
