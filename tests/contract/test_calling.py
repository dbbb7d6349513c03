"""Several calls in one future: how their reports are put together."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.base import Chunk, Session
from sharedtask.options import Options
from sharedtask.outcomes import Batch, Report
from sharedtask.task.calling import Several

pytestmark = pytest.mark.timeout(30)


class Told:
    """A delivery that is opened when it may be."""

    is_plain = False

    def __init__(self, batch: Batch, may: threading.Event, then: threading.Event) -> None:
        self.batch, self.may, self.then = batch, may, then

    def open(self) -> Batch:
        assert self.may.wait(60)
        self.then.set()
        return self.batch

    def discard(self) -> None:
        self.then.set()


class Sessions(Session):
    """Keeps the chunks that it is given."""

    in_caller = False

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.submitted = threading.Semaphore(0)

    def session(self, call: Any, sink: Any) -> Session:
        del call, sink
        return self

    def open(self) -> None: ...

    def submit(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.submitted.release()

    def fingerprints(self, shared: Any) -> dict[str, bytes]:
        del shared
        return {}

    def close(self) -> None: ...


def several(count: int, **options: Any) -> tuple[Several, Sessions]:
    sessions: Any = Sessions()
    call: Any = SimpleNamespace(task="f", handlers={})
    made = Several(sessions, call, range(count), Options(**options))
    made.begun(1)
    return made, sessions


def report(may: threading.Event, then: threading.Event, batch: Batch, **said: Any) -> Report:
    said.setdefault("first", batch.first)
    return Report(said.pop("chunk", 1), Told(batch, may, then), len(batch.values), **said)


def test_reports_may_be_opened_in_any_order() -> None:
    """What arrives first may be opened last: the results stand in the order of the calls."""
    made, _ = several(2)
    may, last, ended = threading.Event(), threading.Event(), threading.Event()
    may.set()
    made.report(report(last, ended, Batch(0, ["a"]), finished=False))
    made.report(report(may, last, Batch(1, ["b"]), finished=True))
    assert ["a", "b"] == made.future.result(60)


def test_what_was_not_begun_is_begun_elsewhere() -> None:
    """A chunk that ends early is no end of its calls."""
    made, sessions = several(3)
    may, then = threading.Event(), threading.Event()
    may.set()
    made.report(report(may, then, Batch(0, ["a"]), finished=True))
    assert sessions.submitted.acquire(timeout=60)
    assert sessions.submitted.acquire(timeout=60)
    assert [range(3), range(1, 3)] == [chunk.items for chunk in sessions.chunks]
    made.report(report(may, then, Batch(1, ["b", "c"]), chunk=2, first=0, finished=True))
    assert ["a", "b", "c"] == made.future.result(60)


def test_nothing_is_begun_after_an_error_that_is_not_opened_yet() -> None:
    """The rest of a chunk waits for all that is known of it."""
    made, sessions = several(3)
    may, last, ended = threading.Event(), threading.Event(), threading.Event()
    may.set()
    made.report(report(last, ended, Batch(0, [None], {0: KeyError("a")}), finished=False))
    made.report(report(may, last, Batch(1, ["b"]), finished=True))
    with pytest.raises(KeyError):
        made.future.result(60)
    assert 1 == len(sessions.chunks)


def test_call_that_failed_is_tried_again_alone() -> None:
    """Its neighbours keep their results."""
    made, sessions = several(2, retries=1)
    may, then = threading.Event(), threading.Event()
    may.set()
    made.report(report(may, then, Batch(0, [None, "b"], {0: KeyError("a")}), finished=True))
    assert sessions.submitted.acquire(timeout=60)
    assert sessions.submitted.acquire(timeout=60)
    assert range(1) == sessions.chunks[1].items
    made.report(report(may, then, Batch(0, ["a"]), chunk=2, first=0, finished=True))
    assert ["a", "b"] == made.future.result(60)
