"""The loop where its thread cannot be started."""

import gc
import threading
from typing import Any

import pytest

from sharedtask import ClosedError
from sharedtask.backends.process.event_loop import Loop


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("can't create new thread at interpreter shutdown", ClosedError, "the program ends: can't"),
        ("can't start new thread", RuntimeError, "can't start new thread"),
    ],
)
def test_thread_that_cannot_be_started(
    text: str, error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says so, and no socket stays open."""

    def refuse(_thread: Any) -> None:
        raise RuntimeError(text)

    duties: Any = None
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(error, match=told):
        Loop(duties)
    gc.collect()  # which would warn of sockets
