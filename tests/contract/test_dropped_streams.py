"""Ctrl-C while a stream is dropped: an exception there would be printed and lost."""

import contextlib
import signal
import sys
from typing import Any

import pytest

from sharedtask import parallel
from sharedtask.system import interrupts
from sharedtask.task.run import Run

echo = parallel(lambda x: x)


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What could not be raised."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    return told


def in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the end of a run."""
    end = Run.close

    def close(run: Run) -> None:
        signal.raise_signal(signal.SIGINT)
        end(run)

    monkeypatch.setattr(Run, "close", close)


def before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C just before that, when signals are not kept yet."""
    handlers, left = interrupts._handlers, [signal.SIGINT]

    def found() -> Any:
        if left and sys._getframe(3).f_code is interrupts.Afterwards.__call__.__code__:
            signal.raise_signal(left.pop())
        return handlers()

    monkeypatch.setattr(interrupts, "_handlers", found)


@pytest.mark.parametrize("moment", [in_the_end, before_the_end])
@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
@pytest.mark.parametrize("left", ["dropped", "closed"])
def test_ctrl_c_while_a_stream_ends_is_raised_in_its_loop(
    local: str,
    left: str,
    method: str,
    moment: Any,
    unraisable: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is raised once, in the caller, and the next call works."""
    task = echo.with_options(backend=local)  # type: ignore[arg-type]
    moment(monkeypatch)
    stream = getattr(task, method)(range(100))
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        with contextlib.closing(stream) if left == "closed" else contextlib.nullcontext():
            del stream
        for _ in range(3):
            pass
    assert [] == unraisable
    monkeypatch.undo()
    assert [0, 1] == task.map(range(2))


def test_ctrl_c_while_the_first_of_many_streams_ends(
    unraisable: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many others there are, and nothing of them is kept."""
    end, left = Run.close, [signal.SIGINT]

    def close(run: Run) -> None:
        if left:
            signal.raise_signal(left.pop())
        end(run)

    monkeypatch.setattr(Run, "close", close)
    streams = [echo.with_options(backend="serial").imap(range(2)) for _ in range(200)]
    for stream in streams:
        next(stream)
    del stream
    with pytest.raises(KeyboardInterrupt):
        del streams[0]
        for _ in range(3):
            pass
    streams.clear()
    assert [] == unraisable
    monkeypatch.undo()
    assert [0, 1] == list(echo.with_options(backend="serial").imap(range(2)))
    assert len(interrupts._dropped) < 100


@pytest.fixture(params=["serial", "thread", "process"])
def local(request: pytest.FixtureRequest) -> str:
    """The backends of this machine, whose streams end by the same code on Ray."""
    name: str = request.param
    return name
