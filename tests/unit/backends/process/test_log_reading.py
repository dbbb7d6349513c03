"""Records of a worker find the call that has logged them."""

import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.process import log_reading
from sharedtask.backends.worker import log_records
from sharedtask.backends.worker.log_box import LogWriter
from sharedtask.backends.worker.status_page import LOG_SIZE, Word


def worker_with(text: str) -> Any:
    """A worker without a chunk that has logged a text."""
    words = memoryview(bytearray(8 * 64)).cast("Q")
    ring = memoryview(bytearray(LOG_SIZE))
    record = logging.makeLogRecord({"name": "jobs", "levelno": logging.ERROR, "msg": text})
    LogWriter(words, ring).write(log_records.record_as_bytes(record, 1, "Worker", had=False))
    page = SimpleNamespace(words=words, log=ring)
    return SimpleNamespace(status_page=page, find=lambda _: None, work_items=[], logs_dropped=0)


def test_record_of_a_call_that_is_over_is_handled(caplog: pytest.LogCaptureFixture) -> None:
    """What was logged by a call that no one waits for is handled by a background thread."""
    assert [] == log_reading.collect(worker_with("late"))
    while "late" not in caplog.messages:
        time.sleep(0.01)


def test_dropped_records_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """So is the number of those for which its worker had no room."""
    worker = worker_with("kept")
    worker.status_page.words[Word.LOG_DROPPED] = 3
    log_reading.collect(worker)
    while not any(": 3 log records" in message for message in caplog.messages):
        time.sleep(0.01)
