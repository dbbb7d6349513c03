"""Ctrl-C that does not wake the main thread: Python has noted it, and the wait goes on."""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sharedtask import Executor, parallel
from sharedtask.testing import Deadline, until

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("interruptible")]


def run_on(x: int, place: Path) -> int:
    """Runs until the caller is interrupted, or says that it was not for too long."""
    (place / "begun").touch()
    patience = Deadline(20)
    while not (place / "interrupted").exists():
        if patience.is_over:
            (place / "in vain").touch()
            break
        time.sleep(0.005)
    return x


def interrupt_once_begun(place: Path) -> threading.Thread:
    """SIGINT as it is when the main thread was about to sleep: another thread takes it."""

    def send() -> None:
        until((place / "begun").exists)
        time.sleep(0.05)  # the main thread waits by now
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


def in_executor(backend: Any, place: Path) -> Any:
    with Executor(2, backend=backend) as executor:
        try:
            return list(executor.map(run_on, range(2), [place] * 2))
        finally:
            (place / "interrupted").touch()  # the end of the block waits for the tasks


def at_shutdown(backend: Any, place: Path) -> None:
    executor = Executor(2, backend=backend)
    executor.map(run_on, range(2), [place] * 2)
    executor.shutdown()


def task(backend: Any) -> Any:
    return parallel(run_on).with_options(backend=backend, workers=2)


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "map": lambda backend, place: task(backend).map(range(2), place=place),
    "imap": lambda backend, place: list(task(backend).imap(range(2), place=place)),
    "submit": lambda backend, place: task(backend).submit(1, place=place).result(),
    "executor": in_executor,
    "shutdown": at_shutdown,
}


@pytest.mark.parametrize("way", WAYS)
def test_interrupt_that_wakes_no_thread(backend: Any, way: str, tmp_path: Path) -> None:
    """It is raised within a second all the same, not when the first task has ended.

    So it is with one in hundreds of those that come just as the main thread begins to wait.
    """
    if backend == "serial":
        pytest.skip("the main thread runs the tasks, and waits for nothing")
    thread = interrupt_once_begun(tmp_path)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            WAYS[way](backend, tmp_path)
    finally:
        (tmp_path / "interrupted").touch()
        thread.join()
    assert caught.value.__context__ is None
    assert not (tmp_path / "in vain").exists()
    assert [1, 2] == parallel(backend=backend, workers=2)(lambda x: x + 1).map(range(2))
