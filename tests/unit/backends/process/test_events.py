"""What workers send, read without a worker."""

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from sharedtask.backends.process.events import SocketEvents
from sharedtask.backends.process.wire import Frame, Kind
from sharedtask.backends.worker.status_page import Word


@pytest.mark.parametrize("lacks", ["chunk", "worker"])
def test_results_that_no_call_waits_for_leave_no_descriptor_open(lacks: str) -> None:
    """Those of a chunk that the worker does not have any more, or of a pool that has ended."""
    words, chunk = dict.fromkeys((Word.LOGGED, Word.LOG_READ), 0), object()
    found = {"chunk": lambda _: None, "worker": lambda _: chunk}[lacks]
    worker: Any = SimpleNamespace(status_page=SimpleNamespace(words=words), find=found, serial=1)
    events: Any = object.__new__(SocketEvents)
    events._lock = threading.Lock()
    events._table = SimpleNamespace(workers={1: worker} if lacks == "chunk" else {})
    read, write = os.pipe()
    os.close(write)
    assert [] == events._on_results(worker, Frame(Kind.RESULTS, 3, fds=(read,)))
    assert not os.path.exists(f"/proc/self/fd/{read}")
    assert [] == events._on_change(worker, Frame(Kind.CHANGED, 3))
    events._resend_each(worker, 3)
