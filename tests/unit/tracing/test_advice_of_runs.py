"""Advice about what only the kernel, the locks and the heap of a worker tell: from real runs."""

from __future__ import annotations

import threading
import time
from typing import Any

import mkdocs_traces
import numpy as np
import pytest
import threadpoolctl
from traces import topics

import sharedtask
from sharedtask import Locked, Shared, parallel, trace
from sharedtask.testing import until
from sharedtask.tracing.advising import rules
from sharedtask.tracing.records import Recorded

MODEL = {str(k): k for k in range(300_000)}


@parallel(backend="process", workers=1)
def deposit(row: int, accounts: Locked[np.ndarray]) -> None:
    with accounts.write(row):
        time.sleep(0.001)


def waiting(accounts: Locked[Any]) -> bool:
    """Whether a thread of any process waits for a row."""
    return bool(accounts._locks().waited_for.any())


@pytest.fixture(scope="module")
def locked() -> Recorded:
    """A task that waits for a row that this thread has; then one that finds it free."""
    accounts = Locked(sharedtask.zeros(8))
    deposit.map([1], accounts=accounts)
    with trace() as run:
        with accounts.write(0):
            thread = threading.Thread(
                target=deposit.map, args=([0],), kwargs={"accounts": accounts}
            )
            thread.start()
            until(lambda: waiting(accounts))
            time.sleep(0.3)
        thread.join()
        deposit.map([1], accounts=accounts)
    return run.recorded()


def test_waits_for_locks_are_those_of_the_holder(locked: Recorded) -> None:
    """A task waits as long as another has the row, and that is a phase of its worker."""
    waited, free = locked.calls
    (worker,) = {chunk.worker for chunk in locked.chunks}

    assert 0.3 <= waited.lock_wait <= waited.times.total
    assert 0.0 == free.lock_wait
    assert waited.lock_wait == pytest.approx(locked.workers[worker].phases["lock"])
    assert waited.lock_wait == pytest.approx(locked.chunks[0].phases()["lock"])
    assert "lock" not in locked.chunks[1].phases()


def test_waits_for_locks_are_advised_on(locked: Recorded) -> None:
    """Where a task waited, and not where the rows were free."""
    assert "lock waits" in topics(locked)
    assert "lock waits" not in topics(locked, calls=locked.calls[1:])


@parallel(backend="process", chunksize=1)
def work(seconds: float, threads: int = 1) -> None:
    """Computes for so long in this thread, whatever else the machine does."""
    if threads > 1:
        threadpoolctl.threadpool_limits(threads)
    square, end = np.ones((300, 300)), time.thread_time() + seconds
    while time.thread_time() < end:
        _ = square @ square if threads > 1 else 0


@parallel(backend="process", chunksize=1)
def nap(seconds: float) -> None:
    time.sleep(seconds)


def traced(task: Any, items: list[Any], workers: int, **arguments: Any) -> Recorded:
    """A map on workers that are there."""
    task = task.with_options(workers=workers)
    with trace() as run:
        task.map(items, **arguments)
    return run.recorded()


def test_threads_of_libraries_are_advised_on() -> None:
    """Where each worker has more of them than there are cores, and they compute."""
    cpus = trace().start().stop().recorded().cpus
    crowded = traced(work, [0.05] * 6, 2, threads=2 * cpus)
    assert "inner threads" in topics(crowded)
    (call,) = crowded.calls
    assert 0.3 * 0.9 <= call.cpu - call.cpu_beside
    assert call.cpu_beside > 0.2 * call.cpu
    assert call.cpu == pytest.approx(sum(chunk.cpu for chunk in crowded.chunks))


def test_more_workers_than_cores_are_advised_on_if_they_compute() -> None:
    """Items that compute wait for a core; those that sleep do not."""
    cpus = trace().start().stop().recorded().cpus
    assert "too many workers" in topics(traced(work, [0.05] * 20 * cpus, 4 * cpus))
    sleeping = traced(nap, [0.05] * 4 * cpus, 4 * cpus)
    assert "too many workers" not in topics(sleeping)
    assert sleeping.calls[0].cpu < 0.1 * sleeping.calls[0].times.total


@parallel(backend="process", workers=1)
def look_up(key: str, model: Shared[Any]) -> int:
    return len(model) + len(key)


def test_objects_of_a_decoding_are_counted() -> None:
    """A dict of many texts is told from an array of as many bytes, and advised on."""
    keys = ["1", "2"]
    told = traced(look_up, keys, 1, model=MODEL)
    (decoding,) = (d for d in told.decodings if d.name == "model")
    assert len(MODEL) <= decoding.objects < 3 * len(MODEL)
    assert decoding.seconds > 0
    assert "decoded slowly" in topics(told)
    flat = traced(look_up, keys, 1, model=np.ones(600_000))
    (array,) = (d for d in flat.decodings if d.name == "model")
    assert array.objects < 1000
    assert "decoded slowly" not in topics(flat)


def test_arguments_that_go_along_with_chunks_are_told() -> None:
    """A dict goes along with each chunk; an array of megabytes is stored once, by itself."""
    along, stored = {str(k): k for k in range(30_000)}, np.ones(1_000_000)
    task = parallel(backend="process", workers=1, chunksize=1)(len_of)
    told = traced(task, [*range(30)], 1, value=along)
    (value,) = (v for v in told.calls[0].values if v.name == "value")
    assert ("message", 30) == (value.travel, value.sent)
    assert told.calls[0].by_message >= 30 * value.nbytes
    assert "unmarked" in topics(told)
    told = traced(task, [*range(30)], 1, value=stored)
    (value,) = (v for v in told.calls[0].values if v.name == "value")
    assert ("shared", 0, stored.nbytes) == (value.travel, value.sent, value.nbytes)
    assert told.calls[0].by_message < stored.nbytes
    assert "unmarked" not in topics(told)


def test_arguments_beside_messages_are_decoded_by_each_chunk() -> None:
    """A dict of a megabyte of pickle is put beside the messages, once for all of them."""
    task = parallel(backend="process", workers=1, chunksize=1)(len_of)
    told = traced(task, [*range(9)], 1, value={str(k): k for k in range(110_000)})
    (value,) = (v for v in told.calls[0].values if v.name == "value")
    assert ("beside", 9) == (value.travel, value.sent)
    assert value.nbytes <= told.calls[0].by_memory < 2 * value.nbytes
    assert "unmarked" in topics(told)


def len_of(_: int, value: Any) -> int:
    return len(value)


def test_chunks_of_threads_tell_their_own_time_of_cores() -> None:
    """Threads of one process are told apart: one that sleeps has none of the time of others."""
    with trace() as run:
        parallel(backend="thread", workers=2, chunksize=1)(spin_or_nap).map([0, 1])
    (call,) = run.calls
    computed, slept = sorted((chunk.cpu for chunk in run.chunks), reverse=True)
    assert 0.05 <= computed
    assert slept < 0.04
    assert 0.0 == call.cpu_beside


def spin_or_nap(number: int) -> None:
    if number:
        time.sleep(0.05)
    else:
        end = time.thread_time() + 0.05
        while time.thread_time() < end:
            pass


@pytest.mark.long
@pytest.mark.parametrize("topic", mkdocs_traces.PROGRAMS)
def test_programs_of_the_page_get_their_advice(topic: str) -> None:
    """The trace of the slow program says what to do, and that of its cure does not say it again."""
    program = mkdocs_traces.PROGRAMS[topic]
    mkdocs_traces.warm()
    assert any(topic in topics(mkdocs_traces.traced(program.before)) for _ in range(3))
    assert any(topic not in topics(mkdocs_traces.traced(program.after)) for _ in range(3))


def test_every_advice_has_a_program() -> None:
    """The page has a part for each rule."""
    assert len(rules.RULES) + 1 == len(mkdocs_traces.PROGRAMS)  # one of them has two topics
