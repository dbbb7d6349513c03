"""Calls that are given up, whenever and however: the caller's arrays stay the caller's."""

import asyncio
import contextlib
import itertools
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

import sharedtask
from sharedtask import (
    ArgumentError,
    ClosedError,
    Locked,
    Partition,
    Reduction,
    SerializationError,
    parallel,
)
from sharedtask.backends.process.connections import ForkserverLink
from sharedtask.task.run import Run
from sharedtask.testing import until
from sharedtask.writing.locked.acquire import Use

pytestmark = pytest.mark.timeout(60)

HERE = pytest.mark.parametrize("backend", ["serial", "thread", "process"])
QUEUES = pytest.mark.parametrize("backend", ["thread", "process"])


# ------------------------------------------------------------------------ tasks and helpers


def look(_item: Any, a: Locked[Any], extra: Any = None) -> float:
    del extra
    with a.read(0) as cell:
        return float(cell)


def look_at_both(_item: Any, a: Locked[Any], b: Locked[Any], *, extra: Any = None) -> float:
    del extra
    return look(0, a) + look(0, b)


def fill(value: float, a: Locked[Any]) -> float:
    with a.write() as whole:
        whole[...] = value
    return value


def cut(row: int, out: Annotated[Any, Partition()]) -> None:
    out[...] = row + 1


def add(row: int, out: Annotated[Any, Reduction("sum")]) -> None:
    out += row + 1


def wait_for(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.002)


def on(backend: Any, function: Any, **options: Any) -> Any:
    return parallel(function).with_options(backend=backend, workers=1, **options)


@contextlib.contextmanager
def all_busy(backend: Any, folder: Path) -> Iterator[None]:
    """The only worker is busy, until the block ends."""
    gate = folder / "gate"
    busy = on(backend, wait_for).submit(str(gate))
    until(busy.running)
    try:
        yield
    finally:
        gate.touch()
        busy.result(60)


class Interrupts:
    """Pickling it is when Ctrl-C comes."""

    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGINT)
        return Interrupts, ()


class Refuses:
    """Pickling it fails."""

    def __reduce__(self) -> Any:
        raise ValueError("not today")


uses = weakref.WeakSet[Use]()


@pytest.fixture(autouse=True)
def all_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note all arrays that calls get.

    Not by ``gc.get_objects``: it also finds tuples that another thread is making, and then Python
    cannot complete these (python/cpython issue 59313).
    """

    def note(use: Use, *args: Any, **kwargs: Any) -> None:
        begin(use, *args, **kwargs)
        uses.add(use)

    begin = Use.__init__
    monkeypatch.setattr(Use, "__init__", note)


def open_uses() -> list[Use]:
    """Arrays that calls have at present."""
    return [use for use in list(uses) if use.is_open]


def assert_left_alone(backend: Any, array: Any) -> None:
    """No call uses the array any more: what the caller writes is there, for the next call too."""
    assert not open_uses()
    array[:] = 5
    assert [5.0] == on(backend, look).map([0], a=array)
    assert [5.0] * len(array) == array.tolist()


# ------------------------------------------------------------------------------- cancelled


@QUEUES
def test_cancelled_submit_leaves_the_array(backend: Any, tmp_path: Path) -> None:
    """A future that is cancelled in the queue has let go of its arrays when ``cancel`` returns."""
    array = np.zeros(3)
    with all_busy(backend, tmp_path):
        future = on(backend, look).submit(0, a=array)
        array[:] = 4
        assert future.cancel()
        assert [4.0] * 3 == array.tolist()
    assert_left_alone(backend, array)


@QUEUES
def test_time_limit_of_asyncio_leaves_the_array(backend: Any, tmp_path: Path) -> None:
    """A coroutine that gives up waiting for a future gives up its arrays."""
    array = np.zeros(3)

    async def main() -> None:
        future = on(backend, look).submit(0, a=array)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(future), 0.05)

    with all_busy(backend, tmp_path):
        asyncio.run(main())
    assert_left_alone(backend, array)


@QUEUES
def test_cancelled_beside_one_that_writes(backend: Any, tmp_path: Path) -> None:
    """What another call has written stays, when one that began nothing is cancelled after it."""
    array = np.zeros(3)
    first = on(backend, fill).submit(7.0, a=array)
    with all_busy(backend, tmp_path):
        future = on(backend, look).submit(0, a=array)
        assert 7.0 == first.result(60)
        array[:] = 8
        assert future.cancel()
        assert [8.0] * 3 == array.tolist()
    assert_left_alone(backend, array)


@pytest.mark.parametrize("task", [cut, add])
def test_cancelled_submit_that_writes_otherwise(backend: Any, task: Any, tmp_path: Path) -> None:
    """Nothing of a cancelled item reaches a partitioned or a reduced array."""
    if backend == "serial":
        pytest.skip("a submitted item is done before anyone could cancel it")
    array = np.zeros((3, 2) if task is cut else 2)
    with all_busy(backend, tmp_path):
        futures = [on(backend, task).submit(k, out=array) for k in range(3)]
        cancelled = [future.cancel() for future in futures]
    for future, gone in zip(futures, cancelled, strict=True):
        if not gone:
            future.result(60)
    kept = [k for k, gone in enumerate(cancelled) if not gone]
    assert True in cancelled
    expected = np.zeros_like(array)
    for k in kept:
        (cut(k, expected[k]) if task is cut else add(k, expected))
    assert expected.tolist() == array.tolist()


@QUEUES
def test_dropped_future_is_run_and_lets_go(backend: Any) -> None:
    """No one need keep a future: the item is run, and its arrays are written."""
    array = np.zeros(3)
    on(backend, fill).submit(7.0, a=array)
    until(lambda: [7.0] * 3 == array.tolist())
    until(lambda: not open_uses())
    assert_left_alone(backend, array)


@QUEUES
def test_cancelled_map_leaves_the_array(backend: Any, tmp_path: Path) -> None:
    """A coroutine that is cancelled while its map waits for a worker lets go of its arrays."""
    array = np.zeros(3)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(on(backend, look).amap([0], a=array), 0.05)

    with all_busy(backend, tmp_path):
        asyncio.run(main())

    assert_left_alone(backend, array)


@QUEUES
def test_cancelled_map_raises_when_it_has_ended(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the thread that makes the call is slow to end it: the array is the caller's."""
    close = Run.close

    def slow(run: Run) -> None:
        time.sleep(0.2)
        close(run)

    monkeypatch.setattr(Run, "close", slow)
    test_cancelled_map_leaves_the_array(backend, tmp_path)


@QUEUES
def test_closed_map_leaves_the_array(backend: Any, tmp_path: Path) -> None:
    """A coroutine that is closed cannot wait, but its map does not wait for a worker any more."""
    array = np.zeros(3)

    async def main() -> None:
        coroutine = on(backend, look).amap([0], a=array)
        coroutine.send(None)
        until(open_uses)
        coroutine.close()

    with all_busy(backend, tmp_path):
        asyncio.run(main())
        until(lambda: not open_uses())
    assert_left_alone(backend, array)


# --------------------------------------------------------------------- while a call is begun


METHODS: dict[str, Callable[..., Any]] = {
    "map": lambda task, item, **kwargs: task.map([item], **kwargs),
    "starmap": lambda task, item, **kwargs: task.starmap([(item,)], **kwargs),
    "imap": lambda task, item, **kwargs: list(task.imap([item], **kwargs)),
    "submit": lambda task, item, **kwargs: task.submit(item, **kwargs).result(60),
    "amap": lambda task, item, **kwargs: asyncio.run(task.amap([item], **kwargs)),
}


@pytest.mark.parametrize("method", ["map", "starmap", "imap", "submit"])
@pytest.mark.parametrize("where", ["item", "argument"])
def test_ctrl_c_while_a_call_is_begun(method: str, where: str) -> None:
    """An interrupt while an item or an argument is pickled ends the call, and all that it used."""
    array = np.zeros(3)
    item, extra = (Interrupts(), None) if where == "item" else (0, Interrupts())
    try:
        METHODS[method](on("process", look), item, a=array, extra=extra)
    except KeyboardInterrupt as error:
        kept = error  # its frames live as long
        assert_left_alone("process", array)
        del kept
    else:
        pytest.fail("the interrupt is lost")


@pytest.mark.parametrize("method", METHODS)
def test_call_that_cannot_be_begun(method: str) -> None:
    """A call whose arguments cannot be pickled has let go of its arrays when it raises."""
    array = np.zeros(3)
    with pytest.raises(SerializationError) as kept:
        METHODS[method](on("process", look), 0, a=array, extra=Refuses())
    assert_left_alone("process", array)
    del kept


def test_second_array_that_is_refused() -> None:
    """Where one of two arrays cannot be locked, the other is let go."""
    array, constant = np.zeros(3), np.zeros(3)
    constant.flags.writeable = False
    with pytest.raises(ArgumentError) as kept:
        on("process", look_at_both).submit(0, a=array, b=constant)
    assert_left_alone("process", array)
    del kept


def test_submit_that_a_shutdown_overtakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that ends between the opening of a call and its first item: ``ClosedError``."""
    from sharedtask.backends.process.backend import _ProcessSession

    array = np.zeros(3)
    submit = _ProcessSession.submit

    def late(self: Any, chunk: Any) -> None:
        sharedtask.shutdown()
        submit(self, chunk)

    monkeypatch.setattr(_ProcessSession, "submit", late)
    with pytest.raises(ClosedError) as kept:
        on("process", look).submit(0, a=array)
    monkeypatch.undo()
    assert_left_alone("process", array)
    del kept


# ----------------------------------------------------------------------------- pools that end


@QUEUES
@pytest.mark.parametrize("retries", [0, 2])
def test_shutdown_resolves_what_waits(backend: Any, retries: int, tmp_path: Path) -> None:
    """Futures in the queue of a pool that is shut down are ``ClosedError``, tried once."""
    array = np.zeros(3)
    busy = on(backend, wait_for).submit(str(tmp_path / "gate"))
    until(busy.running)
    future = on(backend, look, retries=retries).submit(0, a=array)
    sharedtask.shutdown()
    assert isinstance(future.exception(60), ClosedError)
    (tmp_path / "gate").touch()
    assert_left_alone(backend, array)


@QUEUES
@pytest.mark.usefixtures("busy_switching")
def test_shutdown_in_a_stream_of_quick_items(backend: Any) -> None:
    """A thread that has the next results in hand gets ``ClosedError`` as well."""
    endings: list[BaseException] = []
    quick = parallel(backend=backend, workers=2)(abs)

    def read_all(begun: threading.Event) -> None:
        try:
            for number, _ in enumerate(quick.imap(itertools.repeat(1))):
                if number == 5_000:  # chunks are larger by then, and results follow each other
                    begun.set()
        except BaseException as error:
            endings.append(error)

    for _ in range(12):
        begun = threading.Event()
        reader = threading.Thread(target=read_all, args=(begun,))
        reader.start()
        assert begun.wait(60)
        sharedtask.shutdown()
        reader.join(60)
        assert not reader.is_alive()
    assert [ClosedError] * 12 == [type(each) for each in endings]


def test_shutdown_kills_workers_that_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And at once: a program that ends does not wait for its items."""
    killed = []
    send = ForkserverLink.signal

    def noted(self: ForkserverLink, serial: int, number: int) -> None:
        killed.append(number)
        send(self, serial, number)

    def rest(seconds: float) -> None:
        time.sleep(seconds)

    sharedtask.shutdown()
    sleep = parallel(backend="process", workers=2, chunksize=1)(rest)
    sleep.map([0.2] * 2)
    future = sleep.submit(600)
    until(future.running)
    monkeypatch.setattr(ForkserverLink, "signal", noted)
    sharedtask.shutdown()
    assert [signal.SIGKILL] == killed
    assert isinstance(future.exception(60), ClosedError)


# ------------------------------------------------------------------------------------- forks


def test_fork_while_a_call_runs(run: Callable[..., str]) -> None:
    """A forked child has arrays of its own: it neither writes the parent's nor waits for them."""
    assert "[1.0, 7.0]\n[1.0, 7.0, 9.0]\n[3.0, 3.0]\n[2.0, 2.0]\n" == run(FORKS)


FORKS = """
import os, sys, time
import numpy as np
from pathlib import Path
from sharedtask import Locked, parallel

@parallel(workers=1)
def set_both(value, a: Locked[np.ndarray], gate=""):
    with a.write() as whole:
        whole[...] = value
        while gate and not os.path.exists(gate):
            time.sleep(0.002)
    return value

array = np.array([1.0, 1.0])
gate = os.path.abspath("gate")
future = set_both.submit(2.0, a=array, gate=gate)
while not future.running():
    time.sleep(0.001)
time.sleep(0.2)  # it is in its block
child = os.fork()
if not child:
    array[1] = 7.0
    print(array.tolist(), flush=True)
    array = np.append(array, 9.0)
    print(array.tolist(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
child = os.fork()
if not child:
    assert set_both.map([3.0], a=array) == [3.0]
    print(array.tolist(), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
Path(gate).touch()
future.result(60)
print(array.tolist())
"""
