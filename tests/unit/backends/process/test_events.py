"""What workers send, read without a worker."""

import os
import threading
from types import SimpleNamespace
from typing import Any

from sharedtask.backends.process.events import SocketEvents
from sharedtask.backends.process.wire import Frame, Kind
from sharedtask.backends.worker.status_page import Word


def test_results_that_no_call_waits_for_leave_no_descriptor_open() -> None:
    """Those of a chunk that the worker does not have any more."""
    words = dict.fromkeys((Word.LOGGED, Word.LOG_READ), 0)
    worker: Any = SimpleNamespace(status_page=SimpleNamespace(words=words), find=lambda _: None)
    events: Any = object.__new__(SocketEvents)
    events._lock = threading.Lock()
    read, write = os.pipe()
    os.close(write)
    assert [] == events._on_results(worker, Frame(Kind.RESULTS, 3, fds=(read,)))
    assert not os.path.exists(f"/proc/self/fd/{read}")
