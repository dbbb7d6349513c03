"""What a trace records of calls, seen on the backends of this machine."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharedtask
from sharedtask import Shared, observing, parallel, trace
from sharedtask.errors import SharedTaskError
from sharedtask.tracing.recorder import Recorder
from sharedtask.tracing.records import Recorded
from sharedtask.tracing.sizes import describe

NAP = 0.004
LOCAL = ("serial", "thread", "process")


@parallel(workers=2)
def nap(number: int, model: Shared[Any], weights: object = None) -> int:
    time.sleep(NAP * (1 + 4 * (number == 7)))
    return number


@parallel(backend="serial", chunksize=1)
def rest(seconds: float) -> None:
    time.sleep(seconds)


@parallel(workers=2)
def die_at(number: int, at: int) -> int:
    if number == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@parallel(workers=2)
def fail_once(number: int, folder: str) -> int:
    mark = Path(folder, str(number))
    if number == 2 and not mark.exists():
        mark.touch()
        raise ValueError(number)
    return number


@parallel(backend="process", workers=2)
def outer(number: int) -> int:
    return sum(inner.map(range(number)))


@parallel(workers=2)
def inner(number: int) -> int:
    return number


def numbers() -> Any:
    """Items that come late."""
    for number in range(8):
        time.sleep(NAP)
        yield number


@pytest.fixture(scope="module", params=LOCAL)
def traced(request: pytest.FixtureRequest) -> Recorded:
    """Three maps with one model, which changes before the second; then a stream and a submit."""
    task = nap.with_options(backend=request.param)
    model = np.ones(300_000)
    with trace() as run:
        task.map(range(20), model=model, weights=np.ones(1000))
        model[0] += 1
        task.map(range(20), model=model)
        task.map(range(20), model=model)
        list(task.imap(numbers(), model=model))
        task.submit(7, model=model).result()
    return run.recorded()


def test_every_call_is_recorded(traced: Recorded) -> None:
    """Maps, streams and submits are there, with their items and the caller's line."""
    assert ["map", "map", "map", "imap", "submit"] == [call.method for call in traced.calls]
    assert [20, 20, 20, 8, 1] == [call.items for call in traced.calls]
    assert {"nap"} == {call.task for call in traced.calls}
    assert {"test_recording.py"} == {call.place.partition(":")[0] for call in traced.calls}
    assert all(call.finished for call in traced.calls)


def test_phases_of_a_caller_sum_to_its_time(traced: Recorded) -> None:
    """No moment of a call is counted twice, or not at all."""
    for call in traced.calls:
        assert call.seconds == pytest.approx(sum(call.phases.values()))


def test_phases_of_a_worker_sum_to_the_time_of_the_run(traced: Recorded) -> None:
    """A worker does one thing at a time, and always one."""
    for worker in traced.workers:
        assert worker.seconds == pytest.approx(sum(worker.phases.values()), rel=0.02)
        assert worker.stop == pytest.approx(traced.seconds, rel=0.02)
        assert min(worker.phases.values()) >= 0


def test_times_of_items_are_those_of_a_stopwatch(traced: Recorded) -> None:
    """A nap is as long as asked for, or longer; and the longest item is named."""
    for call in traced.calls[:3]:
        assert NAP <= call.times.min <= call.times.median <= call.times.p95 <= call.times.max
        assert 24 * NAP <= call.times.total
        assert 5 == len(call.slowest)
        assert 5 * NAP <= call.slowest[0].seconds
        seven = next(item for item in traced.items if (item.call, item.index) == (call.number, 7))
        assert 5 * NAP <= seven.seconds
    assert "7" in {item.text for item in traced.calls[0].slowest}


def test_workers_are_as_busy_as_their_chunks(traced: Recorded) -> None:
    """What workers ran is what calls had run."""
    assert sum(c.items for c in traced.calls) == sum(w.items for w in traced.workers)
    assert sum(c.chunks for c in traced.calls) == len(traced.chunks)
    for worker in traced.workers:
        spent = sum(chunk.phases()["compute"] for chunk in traced.chunks_of(worker.number))
        assert worker.phases["compute"] == pytest.approx(spent)


def test_chunks_of_a_worker_follow_each_other(traced: Recorded) -> None:
    """Their spans have no gaps, and no two chunks of a worker overlap."""
    for worker in traced.workers:
        chunks = sorted(traced.chunks_of(worker.number), key=lambda chunk: chunk.start)
        for before, after in itertools.pairwise(chunks):
            assert before.stop <= after.start
        for chunk in chunks:
            assert chunk.start == chunk.spans[0].start
            assert [s.stop for s in chunk.spans[:-1]] == [s.start for s in chunk.spans[1:]]


def test_the_wait_for_items_is_the_iterators(traced: Recorded) -> None:
    """What the caller's iterator takes is counted as its own phase."""
    maps, stream = traced.calls[0], traced.calls[3]
    assert 8 * NAP <= stream.phases["items"]
    assert "items" not in maps.phases


def test_names_of_what_came_along_are_told(traced: Recorded) -> None:
    """Marked and unmarked values are listed with their bytes."""
    found = {value.name: value for value in traced.calls[0].values}
    assert 2_400_000 <= found["model"].nbytes
    assert found["model"].marked
    assert 8000 <= found["weights"].nbytes
    assert not found["weights"].marked


def test_reasons_of_misses_are_told() -> None:
    """A value is new, then changed, then found; then the copy of it is another object."""
    task = nap.with_options(backend="process")
    model = np.ones(300_000)
    with trace() as run:
        for change in (0, 1, 0):
            model[0] += change
            task.map([0], model=model)
        task.map([0], model=model.copy())
    of_model = [v for call in run.calls for v in call.values if v.name == "model"]

    assert ["new", "changed", "", "dead"] == [value.miss for value in of_model]
    assert [False, False, True, False] == [value.hit for value in of_model]
    assert [None, True, True, False] == [value.same_object for value in of_model]
    assert all(value.store > 0 for value in of_model if value.miss)
    assert [2] == [call.number for call in run.calls if call.uncopied >= model.nbytes]


def test_bytes_are_told_by_the_way_they_went() -> None:
    """Small items and results go in messages, large ones through memory."""
    task = parallel(backend="process", workers=1, chunksize=1)(lambda array: array)
    small, large = np.ones(1000), np.ones(400_000)
    with trace() as run:
        task.map([small])
        task.map([large])
    first, second = run.calls

    assert 8000 <= first.bytes_out <= first.by_message - 8000
    assert 8000 <= first.bytes_back
    assert 6_400_000 <= second.by_memory
    assert second.by_message < 3_200_000 <= second.bytes_back


def test_what_a_worker_decodes_is_recorded() -> None:
    """The function and each shared value, once in each worker, with the bytes of the pickle."""
    model = [{"name": str(k)} for k in range(1000)]
    with trace() as run:
        nap.with_options(backend="process", chunksize=1).map(range(6), model=model)
    found = [d for d in run.recorded().decodings if d.name == "model"]

    assert len({d.worker for d in found}) == len(found)
    assert all(d.seconds > 0 and d.nbytes > 5000 for d in found)


def test_the_last_chunk_of_a_worker_that_died_is_there() -> None:
    """Its outcome says so, the worker is marked as dead, and the call counts it."""
    task = die_at.with_options(backend="process", return_exceptions=True, chunksize=2)
    with trace() as run:
        results = task.map(range(8), at=5)
    recorded = run.recorded()
    (lost,) = [chunk for chunk in recorded.chunks if chunk.outcome == "died"]

    assert "WorkerDiedError" == type(results[5]).__name__
    assert 4 <= lost.first <= 5
    assert 1 == recorded.calls[0].deaths
    (dead,) = [worker for worker in recorded.workers if "SIGKILL" in worker.end]
    assert lost.worker == dead.number
    assert dead.seconds == pytest.approx(sum(dead.phases.values()), rel=0.02)
    assert [dead.number] == [e.worker for e in recorded.events if e.kind == "death"]


def test_worker_that_dies_in_its_first_chunk_is_there() -> None:
    """A worker of before the trace that dies before it has told anything is marked as dead."""
    task = die_at.with_options(backend="process", return_exceptions=True, chunksize=1, workers=1)
    task.map([0], at=1)
    with trace() as run:
        task.map([1], at=1)
    recorded = run.recorded()

    (lost,) = [chunk for chunk in recorded.chunks if chunk.outcome == "died"]
    (dead,) = [worker for worker in recorded.workers if "SIGKILL" in worker.end]
    assert lost.worker == dead.number
    assert [dead.number] == [e.worker for e in recorded.events if e.kind == "death"]


@pytest.mark.parametrize("backend", LOCAL)
def test_retries_and_errors_are_counted(backend: Any, tmp_path: Path) -> None:
    """An item that is run again is told with its index, and so is its error."""
    with trace() as run:
        fail_once.with_options(backend=backend, retries=1).map(range(4), folder=str(tmp_path))
    recorded = run.recorded()

    assert (1, 1) == (recorded.calls[0].retries, recorded.calls[0].errors)
    told = [(event.kind, event.index) for event in recorded.events if event.kind != "start"]
    assert [("error", 2), ("retry", 2)] == told


def test_all_threads_are_recorded() -> None:
    """A map of another thread is told with the name of that thread."""
    task = inner.with_options(backend="serial")
    with trace() as run:
        thread = threading.Thread(target=task.map, args=(range(3),), name="other")
        thread.start()
        task.map(range(2))
        thread.join()

    assert {("other", 3), ("MainThread", 2)} == {(c.thread, c.items) for c in run.calls}


def test_an_executor_is_recorded() -> None:
    """Its submits and its maps are calls too."""
    with trace() as run, sharedtask.Executor(backend="thread", max_workers=2) as pool:
        assert [1, 2] == list(pool.map(abs, (-1, -2)))
        assert 3 == pool.submit(abs, -3).result()

    assert ["executor", "executor"] == [call.method for call in run.calls]
    assert [2, 1] == [call.items for call in run.calls]


def test_calls_before_and_after_are_not_recorded() -> None:
    """A trace that was stopped keeps what it has, and a second run of it has its own."""
    task = inner.with_options(backend="thread")
    run = trace().start()
    task.map(range(3))
    run.stop().stop()
    task.map(range(4))
    assert [3] == [call.items for call in run.calls]
    with run:
        task.map(range(5))
        assert run.is_open
    assert [5] == [call.items for call in run.calls]


def test_an_open_trace_can_be_read() -> None:
    """A notebook looks at it between two cells; a stream that is not at its end is there."""
    with trace() as run:
        assert "no call" in str(run)
        stream = inner.with_options(backend="thread", chunksize=1).imap(range(50))
        assert 0 == next(stream)
        (call,) = run.calls
        assert not call.finished
        stream.close()
    assert run.calls[0].finished


def test_two_traces_are_one_too_many() -> None:
    """The second is refused, and the first goes on."""
    with trace() as run:
        with pytest.raises(SharedTaskError, match="open already"):
            trace().start()
        inner.with_options(backend="serial").map(range(2))
    assert 1 == len(run.calls)
    assert observing.recorder is None


def test_an_error_in_recording_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map is right all the same, and the trace says that it is incomplete."""

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("sharedtask.tracing.recorder.Recorder._on_chunk", broken)
    monkeypatch.setattr("sharedtask.tracing.recorder.caller_since", broken)
    run = trace().start()
    assert [0, 1] == inner.with_options(backend="serial").map(range(2))
    with pytest.warns(RuntimeWarning, match="incomplete"):
        run.stop()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rings keep the last records, and counts of all."""
    small = {"calls": 2, "chunks": 3, "items": 4, "decodings": 1, "events": 1, "samples": 1}
    monkeypatch.setattr("sharedtask.tracing.recorder._MOST", small)
    with trace() as run:
        for _ in range(5):
            inner.with_options(backend="serial", chunksize=1).map(range(4))
    recorded = run.recorded()

    assert (2, 3, 4) == tuple(map(len, (recorded.calls, recorded.chunks, recorded.items)))
    assert {"calls": 3, "chunks": 17, "items": 16} == {
        name: recorded.dropped[name] for name in ("calls", "chunks", "items")
    }
    assert 20 == sum(worker.items for worker in recorded.workers)


def test_slowest_items_are_found_wherever_they_are() -> None:
    """Of many chunks the longest items are told with their texts, also of the last chunk."""
    with trace() as run:
        rest.map([0.0] * 9 + [0.2])
    slowest = run.calls[0].slowest[0]
    assert (9, "0.2") == (slowest.index, slowest.text)


def test_memory_is_told_over_time(traced: Recorded) -> None:
    """That of this process, and of each worker its highest: little that a fork does not share."""
    assert all(worker.memory_peak > 10_000 for worker in traced.workers)
    own = [sample for sample in traced.samples if sample.worker is None]
    assert own
    assert all(sample.private > 10_000 for sample in own)


def test_memory_is_told_in_a_trace_soon_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has looked at its memory shortly before tells what it saw then."""
    monkeypatch.setattr("sharedtask.backends.worker.chunk_clock._LOOK_NS", 1 << 62)
    for _ in range(2):
        with trace() as run:
            inner.with_options(backend="serial").map(range(4))
        assert run.workers[0].memory_peak > 10_000


def test_samples_of_a_call_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantiles are those of the first durations; counts, sums and extremes are of all."""
    monkeypatch.setattr("sharedtask.tracing.call_trace._MOST_SAMPLES", 10)
    with trace() as run:
        inner.with_options(backend="serial", chunksize=1).map(range(50))
        assert run._recorder is not None
        (call,) = (what[0] for kind, *what in run._recorder._inbox if kind == "call")
    (told,) = run.calls

    assert 10 == len(call.samples)
    assert 50 == told.times.count
    assert told.times.total >= sum(call.samples) / 1e9


def test_much_that_waits_is_worked_up_while_a_call_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what was noted so much is kept as it came, and records are made of the oldest."""
    monkeypatch.setattr("sharedtask.tracing.recorder._MOST_WAITING", 20)
    with trace() as run:
        inner.with_options(backend="serial", chunksize=1).map(range(100))
        assert run._recorder is not None
        assert len(run._recorder._inbox) <= 21
        assert 70 <= len(run._recorder._rings["chunks"])
    assert list(range(100)) == [chunk.first for chunk in run.chunks]
    assert 100 == run.calls[0].items


def test_bytes_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of large chunks are many bytes: few of them are kept as they came."""
    monkeypatch.setattr("sharedtask.tracing.recorder._MOST_WAITING_BYTES", 10_000)
    with trace() as run:
        inner.with_options(backend="serial", chunksize=200).map(range(20_000))
        recorder = run._recorder
        assert recorder is not None
        waiting = sum(len(what[2]) for kind, *what in recorder._inbox if kind == "chunk")
        assert waiting == recorder._inbox_bytes <= 13_000
    assert 20_000 == run.calls[0].items


def test_calls_that_have_ended_are_not_open() -> None:
    """What the trace looks at while a call runs does not grow with the calls before."""
    with trace() as run:
        for _ in range(30):
            inner.with_options(backend="serial").map(range(2))
        assert run._recorder is not None
        assert [] == run._recorder.open_calls
        assert 30 == len(run.calls)


def test_items_of_users_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call runs those of five chunks are held, and none once it has ended."""

    class Item:
        pass

    items = [Item() for _ in range(40)]
    gone = [weakref.ref(item) for item in items]
    task = parallel(backend="thread", chunksize=1, workers=1)(lambda _: None)
    with trace() as run:
        stream = task.imap(items.pop() for _ in range(40))
        for _ in range(20):
            next(stream)
        alive = sum(ref() is not None for ref in gone[20:])
        assert alive <= 5 + 4  # and those that are sent ahead
        list(stream)
        gc.collect()
        assert not any(ref() for ref in gone)
        assert "<" == run.calls[0].slowest[0].text[0]


def test_one_screen_says_what_happened(traced: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls and workers in two tables, at most 40 lines of 130 characters."""
    run = trace()
    monkeypatch.setattr(run, "recorded", lambda: traced)
    lines = str(run).splitlines()

    assert len(lines) <= 40
    assert max(map(len, lines)) <= 150
    assert "69 items" in lines[0]
    assert any(line.startswith("nap (imap)") for line in lines)


def test_pandas_gets_a_row_for_each_chunk(traced: Recorded) -> None:
    """With columns for the seconds of each phase."""
    pytest.importorskip("pandas")
    run = trace()
    run.recorded = lambda: traced  # type: ignore[method-assign]
    frame = run.to_pandas()

    assert len(traced.chunks) == len(frame)
    assert {"compute", "decode", "task"} <= set(frame.columns)


def test_texts_of_items_run_no_code_of_users() -> None:
    """Of an object of a class that is not Python's, its name is told."""

    class Rude:
        def __repr__(self) -> str:
            raise AssertionError

    assert "<test_texts_of_items_run_no_code_of_users.<locals>.Rude>" == describe(Rude())
    assert "(1, 'a')" == describe((1, "a"))
    assert "<list>" == describe([Rude()])
    assert "array of float64, shape (2, 3)" == describe(np.ones((2, 3)))
    assert 60 >= len(describe("x" * 1000))
    assert ("-7", "1.5", "True", "None") == tuple(map(describe, (-7, 1.5, True, None)))
    assert "<int of 16610 bits>" == describe(10**5000)  # which Python refuses to write down


def test_without_a_trace_nothing_of_it_is_loaded() -> None:
    """Neither by the import nor by a map."""
    import subprocess

    program = (
        "import sys, sharedtask\n"
        "sharedtask.parallel(backend='serial')(abs).map([-1])\n"
        "print([m for m in sys.modules if m.startswith('sharedtask.tracing')])"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "[]\n" == told.stdout


def test_an_interrupted_drain_does_not_wait_for_itself() -> None:
    """Code that interrupts the working up of what was noted goes on at once."""
    recorder = Recorder()
    with recorder._lock:
        recorder.put("open", time.monotonic())
        recorder.drain()
    assert 1 == len(recorder._inbox)
    assert 0 == len(recorder.recorded().calls)
    assert 0 == len(recorder._inbox)


@pytest.mark.parametrize("backend", ["thread", "process"])
def test_maps_inside_tasks_belong_to_their_worker(backend: Any) -> None:
    """An inner map is told with the worker that made it, its items and its time."""
    with trace() as run, warnings.catch_warnings():
        outer.with_options(backend=backend).map(range(3))
        outer.with_options(backend=backend).map([2])
    (first, second), inside = run.recorded().outer, [c for c in run.calls if c.parent is not None]

    assert [0, 1, 2, 2] == sorted(call.items for call in inside)
    assert {("inner", "map", "test_recording.py")} == {
        (call.task, call.method, call.place.partition(":")[0]) for call in inside
    }
    assert {worker.number for worker in run.workers} >= {call.parent for call in inside}
    for call in inside:
        assert call.seconds == pytest.approx(sum(call.phases.values()))
        assert any(o.start <= call.start <= call.stop <= o.stop for o in (first, second))
    assert all(w.seconds == pytest.approx(sum(w.phases.values())) for w in run.workers)


@parallel(backend="process", workers=1)
def many(count: int) -> int:
    for _ in range(count):
        inner.map([1])
    return count


@parallel(backend="process", workers=1)
def trace_itself(number: int) -> int:
    with trace() as own:
        inner.map(range(number))
    inner.map([1])
    return sum(call.items for call in own.calls)


def test_many_maps_inside_an_item_are_counted() -> None:
    """The first of a chunk are told one by one, and the others are among those left out."""
    with trace() as run:
        many.map([50])
    recorded = run.recorded()
    inside = [call for call in recorded.calls if call.parent is not None]
    assert 50 == len(inside) + recorded.dropped["calls"]
    assert 0 < len(inside)


def test_a_task_may_trace_its_own_maps() -> None:
    """Its trace takes the place of what counts them, and no trace of it is left in the worker."""
    with trace() as run:
        assert [5] == trace_itself.map([5])
    assert 1 == len(run.calls)
    assert [4] == trace_itself.map([4])


def test_calls_of_joblib_are_recorded() -> None:
    """The backend of joblib sends batches, which are calls."""
    joblib = pytest.importorskip("joblib")
    sharedtask_joblib = pytest.importorskip("sharedtask.joblib")
    sharedtask_joblib.register()
    with trace() as run, joblib.parallel_config(backend="sharedtask", n_jobs=2):
        assert [1, 2, 3] == joblib.Parallel()(joblib.delayed(abs)(-k) for k in (1, 2, 3))

    assert {"joblib"} == {call.method for call in run.calls}
    assert 3 == sum(call.items for call in run.calls)


def test_ray_workers_tell_their_times(ray_runtime: None) -> None:
    """As on this machine: items, phases of callers and of workers, the node."""
    model = np.ones(300_000)
    with trace() as run:
        nap.with_options(backend="ray").map(range(8), model=model)
        outer.with_options(backend="ray").map([3])
    recorded = run.recorded()
    call, around = recorded.outer
    (inside,) = (call for call in recorded.calls if call.parent is not None)

    assert (3, "inner") == (inside.items, inside.task)
    assert inside.parent in {worker.number for worker in recorded.workers}
    assert around.start <= inside.start <= inside.stop <= around.stop

    assert (8, 12 * NAP) <= (call.items, call.times.total)
    assert call.seconds == pytest.approx(sum(call.phases.values()))
    assert all(worker.node for worker in recorded.workers)
    for worker in recorded.workers:
        assert worker.seconds == pytest.approx(sum(worker.phases.values()), rel=0.02)
    assert "new" == next(value.miss for value in call.values if value.name == "model")
