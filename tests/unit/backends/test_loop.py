"""The loop of the process backend is run by the thread that waits, else by the I/O thread."""

import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sharedtask import TaskTimeoutError, parallel
from sharedtask.backends.process import event_loop
from sharedtask.backends.process.event_loop import Loop


@parallel(backend="process")
def square(x: int) -> int:
    return x * x


def turns(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Counts turns from now on: True for those of the main thread."""
    found: Counter[bool] = Counter()
    turn = Loop._turn

    def counted(self: Loop, until: float | None) -> None:
        found[threading.current_thread() is threading.main_thread()] += 1
        turn(self, until)

    monkeypatch.setattr(Loop, "_turn", counted)
    return found


def maps_for(seconds: float) -> None:
    """One small map after the other."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        square.map(range(4))


def test_a_map_reads_its_results_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch between threads for every report would cost as much as a small map."""
    maps_for(0.1)
    found = turns(monkeypatch)
    maps_for(0.3)
    assert found[True] > 2 * found[False]


def test_the_io_thread_leaves_a_run_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submit brings it up; maps that follow at once do not keep it there."""
    assert square.submit(3).result() == 9
    found = turns(monkeypatch)
    maps_for(0.5)
    assert found[True] > 2 * found[False]


def test_a_submit_whose_result_is_waited_for_is_read_by_that_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The I/O thread is not woken for submits that follow each other."""
    assert 1 == square.submit(1).result()
    found = turns(monkeypatch)
    for x in range(200):
        assert x * x == square.submit(x).result()
    assert found[True] > 2 * found[False]


class Busy:
    """A pool with work in flight."""

    def is_busy(self) -> bool:
        return True


def test_left_work_is_served_at_the_second_look() -> None:
    """The first one may come while the thread that left it is about to wait for it."""
    loop: Any = object.__new__(Loop)  # without its thread
    loop._duties, loop._turns, loop._alone_at = Busy(), 7, None
    loop._attended = loop._wanted = loop._near = False
    loop._left = True
    assert (True, False) == (loop._take_left_work(last=False), loop._wanted)
    loop._turns += 1  # that thread has come, and waits no more
    assert (True, False) == (loop._take_left_work(last=False), loop._wanted)
    loop._attended = True
    assert (True, False) == (loop._take_left_work(last=False), loop._wanted)
    assert (False, False) == (loop._take_left_work(last=False), loop._wanted)
    loop._attended, loop._left = False, True
    assert (True, False) == (loop._take_left_work(last=False), loop._wanted)
    assert (True, True) == (loop._take_left_work(last=False), loop._wanted)
    assert not loop._take_left_work(last=True)
    assert not loop._near


def test_a_future_that_is_only_polled_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The I/O thread takes over what was left, before the loop counts as stalled."""
    assert 1 == square.submit(1).result()
    monkeypatch.setattr(event_loop, "_STALL_SECONDS", 1000.0)
    for x in range(5):
        future, limit = square.submit(x), time.monotonic() + 30
        while not future.done() and time.monotonic() < limit:
            time.sleep(0.001)
        assert future.done()


class Slow:
    """Takes its time to be pickled, and looks then whether a process lives."""

    seen_dead: ClassVar[list[int]] = []

    def __init__(self, number: int, note: Path) -> None:
        self.number, self.note = number, note

    def __reduce__(self) -> Any:
        time.sleep(0.2)
        if self.note.exists() and not os.path.exists(f"/proc/{self.note.read_text()}"):
            Slow.seen_dead.append(self.number)
        return int, (self.number,)


@parallel(backend="process", workers=2, chunksize=1, timeout=0.3)
def hang_first(number: int, note: str) -> int:
    if number == 0:
        Path(note).write_text(str(os.getpid()))
        time.sleep(60)
    return number


def test_limits_hold_while_items_are_being_encoded(tmp_path: Path) -> None:
    """The caller is busy for 1.2 s with its items: the first of them is ended meanwhile."""
    note = tmp_path / "pid"
    Slow.seen_dead.clear()
    with pytest.raises(TaskTimeoutError):
        hang_first.map([Slow(k, note) for k in range(6)], note=str(note))
    assert Slow.seen_dead
