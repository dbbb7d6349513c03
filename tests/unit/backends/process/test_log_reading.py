"""Records of a worker find the call that has logged them."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.call_logs import CallLogs
from sharedtask.backends.process import log_reading
from sharedtask.backends.worker import log_records
from sharedtask.backends.worker.log_box import LogWriter
from sharedtask.backends.worker.status_page import LOG_SIZE, Word
from sharedtask.testing import until


def worker_with(text: str) -> Any:
    """A worker without a chunk that has logged a text."""
    words = memoryview(bytearray(8 * 64)).cast("Q")
    ring = memoryview(bytearray(LOG_SIZE))
    page = SimpleNamespace(words=words, log=ring)
    made = SimpleNamespace(status_page=page, find=lambda _: None, work_items=[], logs_dropped=0)
    return log_again(made, text)


def log_again(worker: Any, text: str) -> Any:
    """The worker, which has logged one more."""
    words, ring = worker.status_page.words, worker.status_page.log
    record = logging.makeLogRecord({"name": "jobs", "levelno": logging.ERROR, "msg": text})
    LogWriter(words, ring).write(log_records.record_as_bytes(record, 1, "Worker", had=False))
    return worker


def test_record_of_a_call_that_is_over_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    """What was logged by a call that no one waits for is handled by a background thread."""
    assert [] == log_reading.collect(worker_with("late"))
    until(lambda: "late" in caplog.messages)


class Closed:
    """A chunk of a call that the caller has given up."""

    cancelled = False
    call = SimpleNamespace(closed=True, logs=None, task="jobs")


def test_record_of_a_closed_call_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    """No one waits for its results any more."""
    worker = worker_with("closed")
    worker.find = lambda _: Closed
    assert [] == log_reading.collect(worker)
    until(lambda: "closed" in caplog.messages)


def test_dropped_records_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker counts all that it has dropped: of that only what is new is added."""
    found = CallLogs("jobs()")
    monkeypatch.setattr(log_reading, "strays", found)
    monkeypatch.setattr(found, "finish_behind", found.handle)
    worker, told = worker_with("begun"), []
    for dropped in (3, 3, 5):
        log_again(worker, "more")
        worker.status_page.words[Word.LOG_DROPPED] = dropped
        log_reading.collect(worker)
        told.append(found.dropped)
    assert [3, 3, 5] == told


def test_dropped_records_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """So is the number of those for which its worker had no room."""
    worker = worker_with("kept")
    worker.status_page.words[Word.LOG_DROPPED] = 3
    log_reading.collect(worker)
    until(lambda: any(": 3 log records" in message for message in caplog.messages))
