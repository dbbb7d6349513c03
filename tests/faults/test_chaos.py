"""Workers are killed at random while maps run: every answer is that of a serial run."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedtask import WorkerDiedError, parallel
from sharedtask.testing import slowness

TABLE = np.arange(100_000.0)


def made_here() -> Any:
    """Tasks that travel by value: a new worker need not import this module first."""

    def mixed(x, table):  # type: ignore[no-untyped-def]
        time.sleep(0.001)
        kind = x % 4
        if kind == 0:
            return float(table[x]) + x
        if kind == 1:
            return f"item {x}" * (x % 7)
        return np.full(5 if kind == 2 else 200_000, float(table[x]))

    def fill(x, out):  # type: ignore[no-untyped-def]
        time.sleep(0.001)
        out[...] = x
        return x

    def add(x, total):  # type: ignore[no-untyped-def]
        time.sleep(0.001)
        total[x % 8] += x

    return (
        parallel(shared=["table"])(mixed),
        parallel(partitioned=["out"])(fill),
        parallel(reduced=["total"])(add),
    )


MIXED, FILL, ADD = made_here()


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    return []


def workers() -> list[int]:
    """The children of our forkserver, which is a child of this process, as a Ray may be."""
    return [pid for child in children(os.getpid()) if is_ours(child) for pid in children(child)]


def is_ours(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"backends.process.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@contextlib.contextmanager
def killings(every: float, seed: int) -> Iterator[list[int]]:
    """A random worker is killed again and again; new ones are given some time to come up.

    On a busy machine both take longer: otherwise no worker would live to run anything.
    """
    chosen, stop, killed = random.Random(seed), threading.Event(), list[int]()
    seen: dict[int, float] = {}

    def kill() -> None:
        while not stop.wait(every * slowness()):
            now, age = time.monotonic(), 0.2 * slowness()
            grown_up = [pid for pid in workers() if now - seen.setdefault(pid, now) > age]
            if grown_up:
                killed.append(chosen.choice(grown_up))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def same(expected: Any, actual: Any) -> bool:
    return type(expected) is type(actual) and bool(np.all(expected == actual))


def turn(number: int, serial: list[Any]) -> None:
    """Map in several ways, and compare with what a serial run gives."""
    options: Any = {"backend": "process", "workers": 2, "retry_on": WorkerDiedError}
    options |= {"retries": 3, "chunksize": (1, 7, "auto")[number % 3]}
    task = MIXED.with_options(**options)
    table = TABLE + 0.0 if number % 5 == 0 else TABLE
    if number % 3 == 0:
        results = task.map(range(40), table=table)
    elif number % 3 == 1:
        results = list(task.imap(iter(range(40)), table=table))
    else:
        results = [f.result(60) for f in [task.submit(x, table=table) for x in range(40)]]
    assert all(map(same, serial, results))
    blocks, total = np.zeros(60), np.zeros(8)
    out = FILL.with_options(**options).map_into(np.zeros(60), range(60), out=blocks)
    assert list(range(60)) == out.tolist() == blocks.tolist()
    ADD.with_options(**options).map(range(60), total=total)
    assert [float(sum(range(k, 60, 8))) for k in range(8)] == total.tolist()


def endure(seconds: float, kills: int) -> None:
    """Take turns for some time, and until so many workers were killed."""
    serial = MIXED.with_options(backend="serial").map(range(40), table=TABLE)
    end, number = time.monotonic() + seconds, 0
    with killings(0.05, 7) as killed:
        while time.monotonic() < end or len(killed) <= kills:
            turn(number, serial)
            number += 1


def test_random_deaths() -> None:
    """With a worker killed every 50 ms, and retries, answers are those of a serial run."""
    endure(4.0, 3)


@pytest.mark.long
@pytest.mark.timeout(240)
def test_random_deaths_for_longer() -> None:
    """The same for longer: ``SHAREDTASK_TEST_CHAOS`` says for how many seconds."""
    endure(float(os.environ.get("SHAREDTASK_TEST_CHAOS", "20")), 20)


@pytest.mark.long
def test_random_deaths_without_retries() -> None:
    """Without retries each item has its result or WorkerDiedError, at its own place."""
    task = MIXED.with_options(backend="process", workers=2, return_exceptions=True)
    serial = MIXED.with_options(backend="serial").map(range(100), table=TABLE)
    end, died = time.monotonic() + 2, 0
    with killings(0.03, 1):
        while time.monotonic() < end or not died:
            for index, result in enumerate(task.map(range(100), table=TABLE)):
                if isinstance(result, WorkerDiedError):
                    died += 1
                    assert (index, signal.SIGKILL) == (result.index, result.signal)
                else:
                    assert same(serial[index], result)
    assert died


def test_three_retries(tmp_path: Path) -> None:
    """An item may lose its worker as often as ``retries`` says, and not once more."""

    def die(x: int, times: int) -> int:
        tries = tmp_path / str(x)
        with tries.open("a") as file:
            file.write("x")
        if x == 4 and tries.stat().st_size <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    task = parallel(die).with_options(backend="process", workers=2, retries=3, chunksize=3)
    assert list(range(9)) == task.map(range(9), times=3)
    (tmp_path / "4").unlink()
    with pytest.raises(WorkerDiedError) as caught:
        task.map(range(9), times=4)
    assert 4 == caught.value.index
