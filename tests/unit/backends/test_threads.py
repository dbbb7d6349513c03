"""The threads of the thread backend outlive what goes wrong in one call."""

import threading
from typing import Any

import numpy as np
import pytest

from sharedtask import Locked, parallel
from sharedtask.backends import local


def add(x: int, account: Locked[np.ndarray]) -> int:
    with account.write() as values:
        values[...] += 1
    return x


@pytest.mark.parametrize("end", ["kill", "error"])
def test_chunk_that_cannot_begin_ends_no_thread(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """Its call was given up as it began, or gets the error: the thread serves the next call."""
    began, may_go_on = threading.Event(), threading.Event()
    entered = local._LocalSession._entered

    def late(self: Any, *args: Any) -> Any:
        began.set()
        assert may_go_on.wait(60)
        if end == "error":
            raise KeyError("account")
        return entered(self, *args)

    account: Any = np.zeros(2)
    task = parallel(add).with_options(backend="thread", workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(local._LocalSession, "_entered", late)
        future = task.submit(1, account=account)
        assert began.wait(60)
        if end == "kill":
            assert future.kill()
        may_go_on.set()
        if end == "error":
            assert isinstance(future.exception(60), KeyError)
    account = np.zeros(2)
    assert list(range(4)) == task.map(range(4), account=account)
    assert [4.0, 4.0] == account.tolist()
