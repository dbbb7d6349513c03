"""A Locked write that is cut off in the middle: the next reader is told."""

import threading
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import sharedtask
from sharedtask import ClosedError, Locked, RegionPoisonedError, Regions, parallel, zeros
from sharedtask.writing.locked import acquire

pytestmark = pytest.mark.timeout(120)


def tear(x: int, account: Locked[np.ndarray], began: Path, over: Path) -> None:
    """Write the first half, and the rest when a file is there."""
    with account.write() as view:
        view[: len(view) // 2] = 1
        began.touch()
        while not over.exists():
            time.sleep(0.005)
        view[:] = 1


def read(x: int, account: Locked[np.ndarray]) -> list[float]:
    with account.read() as view:
        return [float(view[0]), float(view[-1])]


MAKERS: dict[str, Any] = {
    "private": lambda: np.zeros(64),
    "large": lambda: np.zeros(200_000),
    "shared": lambda: zeros(64),
}


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.005)


def outcome_of(call: Any) -> Any:
    try:
        return call()
    except BaseException as error:
        return error


@pytest.mark.parametrize("way", ["map", "imap", "submit"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_shutdown_within_a_write_is_told(make: Any, way: str, tmp_path: Path) -> None:
    """Workers that ``shutdown`` ends within a block leave its region marked, like any death."""
    array, began, over = make(), tmp_path / "began", tmp_path / "over"
    task = parallel(tear).with_options(backend="process", workers=2)
    calls: dict[str, Any] = {
        "map": lambda: task.map([0], account=array, began=began, over=over),
        "imap": lambda: list(task.imap([0], account=array, began=began, over=over)),
        "submit": lambda: task.submit(0, account=array, began=began, over=over).result(),
    }
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(outcome_of(calls[way])))
    thread.start()
    wait_for(began)
    sharedtask.shutdown()
    thread.join()
    assert isinstance(found[0], ClosedError)
    look = parallel(read).with_options(backend="process", workers=2)
    with pytest.raises(RegionPoisonedError):
        look.map([0], account=array)
    with pytest.raises(RegionPoisonedError):
        look.with_options(backend="thread").map([0], account=array)
    repaired = Locked(array)
    with repaired.write(repair=True) as view:
        view[:] = 2
    assert [[2.0, 2.0]] == look.map([0], account=array)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_threads_end_their_write_after_shutdown(make: Any, tmp_path: Path) -> None:
    """A thread cannot be ended: it completes its block, and the next reader waits for that."""
    array, began, over = make(), tmp_path / "began", tmp_path / "over"
    task = parallel(tear).with_options(backend="thread", workers=2)
    future = task.submit(0, account=array, began=began, over=over)
    wait_for(began)
    sharedtask.shutdown()
    threading.Timer(0.2, over.touch).start()
    look = parallel(read).with_options(backend="thread", workers=2)
    assert [[1.0, 1.0]] == look.map([0], account=array)
    assert isinstance(outcome_of(future.result), (ClosedError, type(None)))


@pytest.mark.parametrize("late", ["completes it", "raises"])
def test_copy_that_is_taken_within_a_write(late: str, monkeypatch: Any) -> None:
    """What the caller gets of a copy while a task writes it counts as half written.

    Also where the task completes its write afterwards, in a copy that nothing shows any more.
    """
    monkeypatch.setattr(acquire, "_QUIET_SECONDS", 0.01)
    array = np.zeros((4, 8))
    use = acquire.Use(array, "account", Regions(blocks=(1,)), 0)
    use.open(shared=True)
    written, over = threading.Event(), threading.Event()

    def write(account: Any) -> None:
        try:
            with account.write(1) as row:
                row[:4] = 1
                written.set()
                over.wait()
                if late == "raises":
                    raise SystemExit
                row[:] = 1
        except SystemExit:
            pass

    thread = threading.Thread(target=write, args=(use.locked,))
    thread.start()
    written.wait()
    use.close(wrote=True, gave_up=True)
    over.set()
    thread.join()
    assert [1.0] * 4 + [0.0] * 4 == array[1].tolist()
    again: Any = parallel(read_rows)
    again = again.with_options(backend="thread", workers=1, return_exceptions=True)
    found: list[Any] = again.map(range(4), account=array)
    assert [0.0, 0.0, 0.0] == [found[0], found[2], found[3]]
    assert isinstance(found[1], RegionPoisonedError)
    with Locked(array, Regions(blocks=(1,))).write(1, repair=True) as row:
        row[:] = 5
    assert [0.0, 40.0, 0.0, 0.0] == again.map(range(4), account=array)


def read_rows(x: int, account: Annotated[Locked[np.ndarray], Regions(blocks=(1,))]) -> float:
    with account.read(x) as row:
        return float(row.sum())
