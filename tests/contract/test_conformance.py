import os
import subprocess
import threading
from typing import Any

import numpy as np
import pytest

from sharedtask import parallel, share
from sharedtask.testing import BackendContract, Belongings

pytestmark = pytest.mark.timeout(60)


class TestBackend(BackendContract):
    """The whole contract on every backend; ``backend`` is the fixture of conftest.py."""


def deep(x: int) -> int:
    return deeper(x)


def deeper(x: int) -> int:
    message = "down here"
    raise LookupError(message)


def test_traceback_shows_the_users_lines(backend: Any) -> None:
    """The traceback of an error leads to the line of the user's function that raised it."""
    with pytest.raises(LookupError) as caught:
        parallel(deep).with_options(backend=backend).map([1])
    told = str(caught.value.__cause__) if backend == "process" else str(caught.getrepr())
    assert "in deep\n" in told or "deeper(x)" in told
    assert "raise LookupError(message)" in told
    assert "sharedtask/backends" not in str(caught.value.__cause__ or "")


def test_leaks_are_found() -> None:
    """The leak fixtures see a descriptor, a thread, a child process and a mapping."""
    before = Belongings.now()
    assert [] == Belongings.now().more_than(before)
    fd = os.open(os.devnull, os.O_RDONLY)
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    child = subprocess.Popen(["sleep", "60"])
    handle = share(np.ones(100_000))
    assert handle.value.sum()
    try:
        found = "; ".join(Belongings.now().more_than(before))
    finally:
        os.close(fd)
        leave.set()
        thread.join()
        child.kill()
        child.wait()
        handle.close()
    for word in (os.devnull, "threads", str(child.pid), "mapped segments", "memfd"):
        assert word in found
    assert [] == Belongings.now().more_than(before)
