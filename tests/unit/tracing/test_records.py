import pytest
from traces import recorded

from sharedtask.tracing.records import Span, merged


def test_a_critical_path_covers_the_whole_run_without_gaps() -> None:
    """It begins at 0, each span begins where the one before ended, and it ends with the run."""
    run = recorded(seconds=1.0)

    path = run.critical_path()

    assert 0.0 == path[0].start
    assert 1.0 == path[-1].stop
    assert [span.stop for span in path[:-1]] == [span.start for span in path[1:]]
    assert Span("outside", run.calls[0].stop, 1.0) == path[-1]


def test_the_last_chunk_alone_is_a_straggler() -> None:
    """From the moment when the other workers have nothing, the last one is waited for."""
    path = recorded(workers=2, chunks=3).critical_path()

    assert ["begin", "compute", "straggler", "results"] == [span.phase for span in path]


def test_the_phases_of_each_worker_sum_to_its_time() -> None:
    """A hand-made run obeys the rule of recorded ones."""
    for worker in recorded().workers:
        assert worker.seconds == pytest.approx(sum(worker.phases.values()))


def test_the_efficiency_is_the_share_of_time_spent_in_items() -> None:
    """Two workers of which one is idle are half used."""
    assert 0.45 < recorded(workers=2, chunks=1).efficiency < 0.5


def test_intervals_that_touch_are_one() -> None:
    """Overlapping and touching ones are merged, others not."""
    assert [(0, 3), (4, 5)] == merged(iter([(2, 3), (0, 2), (4, 5), (1, 2)]))
