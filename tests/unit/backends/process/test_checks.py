"""Which signals a worker gets that has not ended a chunk that was given up."""

import signal
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.process.checks import GRACE_SECONDS, Checks
from sharedtask.backends.process.watchdog import Watchdog
from sharedtask.backends.worker.status_page import Phase, Word

EARLIER, GIVEN_UP, NEXT = 1, 2, 3


class FakeWorker:
    """A worker that has a given-up chunk, and behind it one of the next call."""

    def __init__(self) -> None:
        self.words = {Word.CHUNK: EARLIER, Word.PHASE: Phase.IDLE, Word.STARTED: 0}
        self.status_page = SimpleNamespace(words=self.words)
        self.stop_reason: Any = None
        self.kill_reason: Any = None
        self.work_items = deque(
            SimpleNamespace(number=number, kill_at=0.0) for number in (GIVEN_UP, NEXT)
        )

    def in_hand(self) -> int:
        return self.words[Word.CHUNK]

    def still(self, reason: Any) -> bool:
        return bool(self.words[Word.CHUNK] == reason.chunk)


@pytest.fixture
def sent() -> list[int]:
    """The signals that were sent."""
    return []


@pytest.fixture
def worker(sent: list[int]) -> FakeWorker:
    """A worker whose given-up chunk is looked at after its time, and which has begun nothing."""
    worker = FakeWorker()
    watchdog = Watchdog(lambda _, number: sent.append(number))
    kill = SimpleNamespace(workers={1: worker}, kill=lambda _: sent.append(signal.SIGKILL))
    refill = SimpleNamespace(refill=lambda _: None)
    checks: Any = Checks(kill, refill, watchdog)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    checks._end_given_up(worker, worker.work_items[0], GRACE_SECONDS)
    worker.confirm = lambda: checks.on_stopped(worker)  # type: ignore[attr-defined]
    return worker


def test_worker_that_begins_the_next_call_meanwhile_lives(worker: Any, sent: list[int]) -> None:
    """It was slow to take the given-up chunk: by now it runs an item that must not die."""
    assert [signal.SIGSTOP] == sent
    worker.words[Word.CHUNK] = NEXT
    worker.confirm()
    assert [signal.SIGSTOP, signal.SIGCONT] == sent
    assert worker.kill_reason is None


def test_worker_that_never_got_the_chunk_is_killed(worker: Any, sent: list[int]) -> None:
    """A stopped process, with a chunk that it will never end."""
    worker.confirm()
    assert [signal.SIGSTOP, signal.SIGKILL] == sent
