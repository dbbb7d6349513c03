"""Ctrl-C while a thread waits for a future, and locks of futures that are never released."""

import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from interrupting import interrupted_at, places_of

from sharedtask import parallel

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("interruptible")]


def until(x: int, began: Path, over: Path) -> int:
    """Runs until a file is there."""
    began.touch()
    while not over.exists():
        time.sleep(0.005)
    return 2 * x


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def interrupt_when(path: Path) -> threading.Thread:
    """Send SIGINT as soon as a file is there."""

    def send() -> None:
        wait_for(path)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_interrupt_ends_the_wait_alone(backend: Any, ask: str, tmp_path: Path) -> None:
    """The task runs on, maps do not wait behind it, and its future can be asked again or killed.

    On serial it runs in ``submit``, which the interrupt ends with it.
    """
    if backend == "serial":
        pytest.skip("nothing runs on serial when submit has returned")
    began, over = tmp_path / "began", tmp_path / "over"
    task = parallel(until).with_options(backend=backend, workers=2)
    future = task.submit(21, began=began, over=over)
    thread = interrupt_when(began)
    with pytest.raises(KeyboardInterrupt):
        getattr(future, ask)()
    thread.join()
    quick = parallel(lambda x: x + 1).with_options(backend=backend, workers=2)
    assert [1, 2, 3] == quick.map(range(3))
    assert not future.done()
    over.touch()
    assert 42 == future.result()


@pytest.mark.parametrize("backend", ["process", "ray"])
def test_interrupted_future_can_be_killed(
    backend: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """What was waited for with ``result`` is ended with ``kill``."""
    if backend == "ray":
        request.getfixturevalue("ray_runtime")
    began, over = tmp_path / "began", tmp_path / "over"
    task = parallel(until).with_options(backend=backend, workers=2)
    future = task.submit(21, began=began, over=over)
    thread = interrupt_when(began)
    with pytest.raises(KeyboardInterrupt):
        future.result()
    thread.join()
    assert future.kill()
    assert future.cancelled()


def test_interrupt_of_serial_submit(tmp_path: Path) -> None:
    """On serial the interrupt falls into the task, which ends."""
    began = tmp_path / "began"
    thread = interrupt_when(began)
    task = parallel(until).with_options(backend="serial")
    with pytest.raises(KeyboardInterrupt):
        task.submit(21, began=began, over=tmp_path / "over")
    thread.join()
    assert [1] == parallel(lambda x: x + 1).with_options(backend="serial").map([0])


def hold(lock: Any) -> None:
    """Take a lock in a thread that ends without giving it back."""
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()


@pytest.mark.parametrize("when", ["it runs", "it waits"])
def test_lock_that_is_never_released(backend: Any, when: str, tmp_path: Path) -> None:
    """An interrupt may leave a future's lock taken: no other call waits for it.

    In ``concurrent.futures.wait`` too, whose code is not ours.
    """
    if backend == "serial":
        pytest.skip("a future of serial is done when it is there")
    began, over = tmp_path / "began", tmp_path / "over"
    task = parallel(until).with_options(backend=backend, workers=1)
    first = task.submit(1, began=began, over=over)
    wait_for(began)
    other = tmp_path / "other"
    held = first if when == "it runs" else task.submit(2, began=other, over=over)
    hold(held._condition)
    over.touch()
    if when == "it waits":
        assert 2 == first.result()
        wait_for(other)
    quick = parallel(lambda x: x + 1).with_options(backend=backend, workers=1)
    assert [1, 2, 3] == quick.map(range(3))
    assert 2 == quick.submit(1).result()
    held._condition = threading.Condition()  # so that what waits for it in the background ends


def is_free(lock: Any) -> bool:
    """Whether another thread can take a lock."""
    taken: list[bool] = []

    def take() -> None:
        taken.append(lock.acquire(timeout=0.0))
        if taken[0]:
            lock.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


METHODS: dict[str, Callable[[Any], object]] = {
    "done": lambda future: future.done(),
    "running": lambda future: future.running(),
    "cancelled": lambda future: future.cancelled(),
    "repr": repr,
    "cancel": lambda future: future.cancel(),
    "result": lambda future: future.result(),
    "exception": lambda future: future.exception(),
}


@pytest.mark.parametrize("name", METHODS)
def test_interrupted_method_gives_the_lock_back(name: str) -> None:
    """Wherever an interrupt falls in a method of a future, its lock is free afterwards."""
    task = parallel(lambda x: x + 1).with_options(backend="process", workers=2)
    future = task.submit(1)
    assert 2 == future.result()
    call = partial(METHODS[name], future)
    for place in places_of(call):
        outcome = interrupted_at(place, call)
        assert KeyboardInterrupt is type(outcome.raised), place
        assert is_free(future._condition), place
