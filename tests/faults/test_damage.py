"""An exception in the middle of a change of the pool's tables ends the pool, not the program."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from sharedtask import parallel, shutdown
from sharedtask.backends import registry
from sharedtask.backends.process.events import SocketEvents
from sharedtask.backends.process.scheduler import Scheduler
from sharedtask.backends.process.worker_table import WorkerTable
from sharedtask.errors import ClosedError


def square(x: int) -> int:
    return x * x


def waits(number: int, path: str) -> int:
    import time
    from pathlib import Path

    while not Path(path).exists():
        time.sleep(0.01)
    return number


plain = parallel(square).with_options(backend="process", workers=2, chunksize=1)
slow = parallel(waits).with_options(backend="process", workers=2, chunksize=1)


@pytest.fixture(params=[RecursionError, TimeoutError])
def error(request: pytest.FixtureRequest) -> Any:
    """As when the stack ends there, or when the handler of a signal raises there."""
    return request.param


def fail_once(
    monkeypatch: pytest.MonkeyPatch, part: type[Any], method: str, error: type[Exception]
) -> None:
    """Let a method of a part of the pool raise at its next call."""
    real, errors = getattr(part, method), [error]

    def failing(self: Any, *args: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()("in the middle")
        return real(self, *args, **options)

    monkeypatch.setattr(part, method, failing)


@pytest.mark.parametrize("method", ["add", "_send", "end"])
def test_call_that_meets_it_raises_and_the_next_is_right(
    method: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch, unharmed: None
) -> None:
    """The map whose thread was interrupted raises that exception; the next one is right."""
    assert [0, 1, 4, 9] == plain.map(range(4))
    fail_once(monkeypatch, Scheduler, method, error)
    with pytest.raises((error, ClosedError)):
        plain.map(range(4))
    assert [0, 1, 4, 9] == plain.map(range(4))


def test_chunk_that_was_noted_and_not_sent(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, unharmed: None
) -> None:
    """A worker that counts as busy with a chunk that it never got is replaced."""
    assert [0, 1, 4, 9] == plain.map(range(4))
    fail_once(monkeypatch, WorkerTable, "send", error)
    with pytest.raises(error):
        plain.submit(3).result(60)
    assert [9, 16] == [future.result(60) for future in [plain.submit(3), plain.submit(4)]]
    process: Any = registry.get("process")
    workers = process.pool._workers.values()
    assert [[], []] == [list(worker.work_items) for worker in workers]


def test_others_learn_that_the_pool_was_ended(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Any, unharmed: None
) -> None:
    """A call of another thread that was running gets a ClosedError with the reason."""
    gate = tmp_path / "gate"
    other = slow.submit(1, path=str(gate))
    fail_once(monkeypatch, SocketEvents, "_on_results", error)
    with pytest.raises((error, ClosedError)):
        plain.map(range(4))
    with pytest.raises(ClosedError, match=error.__name__):
        other.result(60)
    gate.touch()
    assert 1 == slow.submit(1, path=str(gate)).result(60)


def test_io_thread_survives_it(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch, unharmed: None
) -> None:
    """Where no thread waits, the future fails with the reason, and later ones are right."""
    assert [0, 1] == plain.map(range(2))
    fail_once(monkeypatch, SocketEvents, "_on_results", error)
    done = threading.Event()
    future = plain.submit(3)
    future.add_done_callback(lambda _: done.set())
    assert done.wait(60)
    with pytest.raises(ClosedError, match=error.__name__):
        future.result(0)
    assert 9 == plain.submit(3).result(60)


def test_thread_that_cannot_be_started_is_an_error_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without any thread the call says so; as soon as one can be started the next is right."""
    shutdown()
    task = plain.with_options(backend="thread")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            task.map(range(4))
        with pytest.raises(RuntimeError, match="new thread"):
            task.submit(3)
    assert [0, 1, 4, 9] == task.map(range(4))
    assert 9 == task.submit(3).result(60)
    shutdown()


def _refuse(thread: threading.Thread) -> None:
    msg = "can't start new thread"
    raise RuntimeError(msg)
