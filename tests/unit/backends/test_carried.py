"""The dispatcher of chunks that another library carries, beside a library that runs nothing."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.carried import dispatcher
from sharedtask.backends.carried.dispatcher import Dispatcher
from sharedtask.backends.carried.message import RAN, Answer
from sharedtask.testing import until


class Silent(Dispatcher[Any]):
    """Notes which chunks are to end, and how."""

    def __init__(self) -> None:
        self.ends: list[tuple[bool, float]] = []
        self.answers: dict[int, Future[bytes]] = {}
        super().__init__("silent", lambda: False)

    def _start(self, work_item: Any) -> Any:
        self.answers[work_item.number] = Future[bytes]()
        return self.answers[work_item.number]

    def answer(self, number: int, **fields: Any) -> None:
        """Answer a chunk that was given to the library."""
        until(lambda: number in self.answers)
        self.answers[number].set_result(Answer(RAN, [], **fields).dump())

    def _failed(self, work_item: Any, error: BaseException) -> None:
        raise NotImplementedError

    def _end_chunks(self, work_items: Sequence[Any], *, kill: bool) -> None:
        assert work_items
        self.ends.append((kill, time.monotonic()))

    def _translated(self, work_item: Any, error: BaseException) -> BaseException:
        del work_item
        return error


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silent]:
    """It looks at all chunks once in an hour."""
    monkeypatch.setattr(dispatcher, "_TICK_SECONDS", 3600.0)
    made = Silent()
    yield made
    made.end("over")


def a_call() -> Any:
    return SimpleNamespace(
        closed=False,
        team=object(),
        limit=lambda: 1,
        sink=SimpleNamespace(begun=lambda _: True),
        leases=SimpleNamespace(release=lambda: None),
        report=lambda _: None,
    )


def a_chunk(call: Any, number: int = 1) -> Any:
    return SimpleNamespace(
        call=call,
        number=number,
        chunk=SimpleNamespace(number=number),
        give_up_at=None,
        is_stopped=False,
        is_unreported=False,
        all_failed=lambda _: -number,
        arrived=lambda _: number,
    )


@pytest.mark.parametrize("kill", [False, True])
def test_given_up_chunk_ends_when_it_is_due(silent: Silent, kill: bool) -> None:
    """It is asked to end, then killed, and killed again while it goes on: no look is waited for."""
    call = a_call()
    silent.submit(a_chunk(call))
    until(lambda: silent._flying)
    silent.close_call(call, kill=kill)
    until(lambda: len(silent.ends) > 2)
    assert [kill, True, True] == [killed for killed, _ in silent.ends[:3]]
    assert silent.ends[1][1] - silent.ends[0][1] >= dispatcher._GRACE_SECONDS


def test_call_without_chunks_leaves_nothing_to_end(silent: Silent) -> None:
    """Nothing is due then, and the thread rests."""
    call = a_call()
    silent.submit(a_chunk(call))
    until(lambda: silent._flying)
    silent.close_call(a_call())
    silent.wake()
    until(silent._inbox.empty)
    assert silent._end_at == float("inf")
    assert [] == silent.ends


def test_chunk_that_waits_starts_when_another_ends(silent: Silent) -> None:
    """Its place is free as soon as the results of the other were passed on: no look is waited for.

    The second time these come just as the dispatcher finds that there is no place.
    """
    call = a_call()
    silent.submit(a_chunk(call, 1))
    silent.submit(a_chunk(call, 2))
    until(lambda: silent._queue)
    silent.answer(1)
    until(lambda: 2 in silent.answers)

    def limit() -> int:
        if threading.current_thread().name == "sharedtask-silent" and 2 in silent._flying:
            call.limit = lambda: 1
            silent.answer(2)
        return 1

    call.limit = limit
    silent.submit(a_chunk(call, 3))
    silent.answer(3)


def test_answer_wakes_only_where_a_chunk_waits(silent: Silent) -> None:
    """The thread that waits for the results would have to share Python with the dispatcher."""
    reports: list[Any] = []
    call = a_call()
    call.report = reports.append
    silent.submit(a_chunk(call))
    until(lambda: silent.answers)
    until(silent._inbox.empty)
    silent.answer(1)
    assert ([1], [1]) == (reports, list(silent._flying))
    silent.wake()
    until(lambda: not silent._flying)
    silent.submit(a_chunk(call, 2))
    silent.answer(2, logs=(b"a record",))  # these it has to pass on
    until(lambda: not silent._flying)


def test_chunk_that_was_reported_does_not_fail_at_the_end(silent: Silent) -> None:
    """Its call may have returned its results already."""
    reports: list[Any] = []
    call = a_call()
    call.report, call.limit = reports.append, lambda: 2
    for number in (1, 2):
        silent.submit(a_chunk(call, number))
    silent.answer(1)
    until(lambda: 2 in silent.answers)
    silent.end("over")
    until(lambda: -2 in reports)
    assert [1, -2] == reports
